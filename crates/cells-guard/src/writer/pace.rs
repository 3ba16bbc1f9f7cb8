//! How long one call goes on, and how it waits.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// Pauses between attempts: each twice the one before, from the first to the last, drawn from the upper half.
const FIRST: Duration = Duration::from_millis(10);
const LAST: Duration = Duration::from_millis(400);
/// Between two looks at a guard that is not open.
const LOOK: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub struct Pace {
    deadline: Instant,
    attempt: Duration,
    left: u32,
    pause: Duration,
}

impl Pace {
    pub fn new(deadline: Instant, attempt: Duration, attempts: u32) -> Self {
        Self { deadline, attempt, left: attempts.saturating_sub(1), pause: FIRST }
    }

    /// `None`: there was no answer in time.
    pub async fn within<T>(&self, call: impl Future<Output = T>) -> Option<T> {
        let until = self.deadline.min(Instant::now() + self.attempt);
        timeout_at(until, call).await.ok()
    }

    /// Waits before another attempt. `false`: there is none.
    pub async fn again(&mut self) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        let pause = self.pause;
        self.pause = (pause * 2).min(LAST);
        self.wait(pause).await
    }

    /// Waits before another look at a guard, of which there may be any number. `false`: the deadline is too near.
    pub async fn look(&self) -> bool {
        self.wait(LOOK).await
    }

    async fn wait(&self, pause: Duration) -> bool {
        let pause = pause.mul_f64(0.5 + 0.5 * rand::random::<f64>());
        if Instant::now() + pause >= self.deadline {
            return false;
        }
        sleep(pause).await;
        true
    }
}
