//! Background tasks: each has a name, is watched, and is waited for at shutdown.
//!
//! No task is meant to end before it is told to. One that does, or that panics, takes the process down in order: to run without, say,
//! the follower would be to answer older and older placements as if nothing had happened.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[derive(Debug, Clone, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    /// Tells the tasks to stop.
    stop: CancellationToken,
    /// Says that a task failed.
    failed: CancellationToken,
}

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs a task, which ends when its token is cancelled.
    pub fn spawn<F, T>(&self, name: &'static str, task: F)
    where
        F: FnOnce(CancellationToken) -> T,
        T: Future<Output = ()> + Send + 'static,
    {
        let running = tokio::spawn(task(self.stop.clone()));
        let (stop, failed) = (self.stop.clone(), self.failed.clone());
        self.tracker.spawn(async move {
            let ended = running.await;
            match ended {
                Ok(()) if stop.is_cancelled() => tracing::debug!(task = name, "task ended"),
                Ok(()) => tracing::error!(task = name, "task ended before it was told to"),
                Err(ref error) => tracing::error!(task = name, %error, "task failed"),
            }
            if ended.is_err() || !stop.is_cancelled() {
                failed.cancel();
            }
        });
    }

    /// Ends when a task has failed.
    pub async fn failure(&self) {
        self.failed.cancelled().await;
    }

    /// Cancelled when the tasks are told to stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stop
    }

    /// Tells all tasks to stop and waits for them, at most `patience`. Answers whether all ended.
    pub async fn stop(&self, patience: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(patience, self.tracker.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_fails_is_noticed() {
        for fails in [true, false] {
            let tasks = Tasks::new();
            tasks.spawn("doomed", |_| async move {
                assert!(!fails, "on purpose");
            });
            tokio::time::timeout(Duration::from_secs(5), tasks.failure()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn all_tasks_end_at_shutdown() {
        let tasks = Tasks::new();
        tasks.spawn("obedient", |stop| async move { stop.cancelled().await });
        assert!(tasks.stop(Duration::from_secs(5)).await);
        let deaf = Tasks::new();
        deaf.spawn("deaf", |_| std::future::pending());
        assert!(!deaf.stop(Duration::from_millis(20)).await);
    }
}
