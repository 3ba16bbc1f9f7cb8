//! The threads that serve connections, each with a runtime of its own: a connection and all its calls stay on one thread.
//!
//! On a runtime whose threads share their tasks, a frame that arrives wakes tasks that another thread may steal, which costs a wake-up of
//! that thread, and the caches of both. A call that is answered from memory takes less time than that. (Seastar and glommio are built on
//! the same thought: "shared nothing", a thread a core.) What waits for the table is woken from the shared runtime and goes on here.
//!
//! The price: a connection has no more than one core, and a call that computes for long delays the others of its thread.

use std::io;
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Running threads. Dropped, they end, and the tasks that they still have with them.
pub struct Threads {
    threads: Vec<Thread>,
}

struct Thread {
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    joined: Option<JoinHandle<()>>,
}

impl Threads {
    /// # Errors
    /// What the system says when it has no more threads or files to give.
    pub fn start(count: usize) -> io::Result<Self> {
        let threads = (0..count.max(1)).map(Thread::start).collect::<io::Result<_>>()?;
        Ok(Self { threads })
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
        let fewest = self.threads.iter().min_by_key(|thread| thread.tasks.len());
        if let Some(thread) = fewest {
            thread.tasks.spawn_on(async move { task().await }, &thread.runtime);
        }
    }

    /// Waits until all tasks have ended. No more are to be spawned.
    pub async fn finish(&self) {
        for thread in &self.threads {
            thread.tasks.close();
            thread.tasks.wait().await;
        }
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
        Ok(Self { runtime: handle, tasks: TaskTracker::new(), stop, joined: Some(joined) })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

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
        assert!(threads.threads.iter().all(|thread| thread.tasks.is_empty()));
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
