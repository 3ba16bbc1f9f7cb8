//! The threads that serve connections, each with a runtime of its own: a connection and all its calls stay on one thread.
//!
//! On a runtime whose threads share their tasks, a frame that arrives wakes tasks that another thread may steal, which costs a wake-up of
//! that thread, and the caches of both. A call that is answered from memory takes less time than that. (Seastar and glommio are built on
//! the same thought: "shared nothing", a thread a core.) What waits for the table is woken from the shared runtime and goes on here.
//!
//! The price: a connection has no more than one core, and a call that computes for long delays the others of its thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Running threads. Dropped, they end, and the tasks that they still have with them.
pub struct Threads {
    threads: Vec<Thread>,
    tracker: TaskTracker,
}

struct Thread {
    runtime: Handle,
    /// Tasks that it has.
    tasks: Arc<AtomicUsize>,
    stop: CancellationToken,
    joined: Option<JoinHandle<()>>,
}

impl Threads {
    /// # Errors
    /// What the system says when it has no more threads or files to give.
    pub fn start(count: usize) -> io::Result<Self> {
        let threads = (0..count.max(1)).map(Thread::start).collect::<io::Result<Vec<Thread>>>()?;
        Ok(Self { threads, tracker: TaskTracker::new() })
    }

    /// The runtime of one of them.
    pub fn any(&self) -> &Handle {
        &self.threads[0].runtime
    }

    /// Runs what `task` makes on the thread that has the fewest tasks. `task` is called there, so that what it makes belongs to that
    /// thread's reactor.
    pub fn spawn<F>(&self, task: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let fewest = self.threads.iter().min_by_key(|thread| thread.tasks.load(Ordering::Relaxed));
        let Some(thread) = fewest else { return };
        let counted = Counted::new(&thread.tasks);
        let task = async move {
            let _counted = counted;
            task().await;
        };
        self.tracker.spawn_on(task, &thread.runtime);
    }

    /// Waits until all tasks have ended. No more are to be spawned.
    pub async fn finish(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for thread in &self.threads {
            thread.stop.cancel();
        }
        for thread in &mut self.threads {
            if let Some(joined) = thread.joined.take() {
                // It has said why it panicked, if it has.
                let _ = joined.join();
            }
        }
    }
}

impl Thread {
    fn start(number: usize) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let joined = std::thread::Builder::new()
            .name(format!("serve-{number}"))
            .spawn(move || runtime.block_on(stopped))?;
        Ok(Self { runtime: handle, tasks: Arc::default(), stop, joined: Some(joined) })
    }
}

/// A task, until it ends.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(tasks: &Arc<AtomicUsize>) -> Self {
        tasks.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(tasks))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn tasks_are_spread_evenly_and_stay_where_they_are() {
        let threads = Threads::start(3).unwrap();
        let (tell, mut told) = mpsc::unbounded_channel();
        let (stop, _) = tokio::sync::broadcast::channel::<()>(1);
        for _ in 0..9 {
            let (tell, mut stop) = (tell.clone(), stop.subscribe());
            threads.spawn(move || async move {
                let thread = || std::thread::current().name().unwrap_or_default().to_owned();
                let before = thread();
                tell.send(before.clone()).unwrap();
                stop.recv().await.unwrap();
                assert_eq!(thread(), before);
                tell.send(before).unwrap();
            });
        }
        let mut names = Vec::new();
        for _ in 0..9 {
            names.push(told.recv().await.unwrap());
        }
        names.sort();
        let three = |name: &str| std::iter::repeat_n(name.to_owned(), 3).collect::<Vec<_>>();
        assert_eq!(names, [three("serve-0"), three("serve-1"), three("serve-2")].concat());
        stop.send(()).unwrap();
        threads.finish().await;
        let stayed = (0..9).map(|_| told.try_recv().unwrap());
        assert_eq!(stayed.count(), 9);
        assert!(threads.threads.iter().all(|thread| thread.tasks.load(Ordering::Relaxed) == 0));
    }

    /// Calls that hang must not keep a server from ending.
    #[tokio::test]
    async fn what_still_runs_ends_with_the_threads() {
        let threads = Threads::start(2).unwrap();
        let held = Arc::new(());
        let (began, mut begun) = mpsc::unbounded_channel();
        for _ in 0..2 {
            let (held, began) = (Arc::clone(&held), began.clone());
            threads.spawn(move || async move {
                let _held = held;
                began.send(()).unwrap();
                std::future::pending::<()>().await;
            });
            begun.recv().await.unwrap();
        }
        assert_eq!(Arc::strong_count(&held), 3);
        drop(threads);
        assert_eq!(Arc::strong_count(&held), 1);
    }
}
