//! The clocks, as values that tests and simulations can replace.
//!
//! The wall clock dates what is stored and says what has expired; no safety rests on it. The monotonic clock is what ages and
//! leases are counted on: it may run a little fast or slow, but it never stands still or goes back.

use std::sync::Arc;
use std::time::Instant;

use crate::domain::Timestamp;

type Read<T> = Arc<dyn Fn() -> T + Send + Sync>;

#[derive(Clone)]
pub struct Clock {
    now: Read<Timestamp>,
    /// `None`: the system's.
    instant: Option<Read<Instant>>,
}

impl Clock {
    pub fn system() -> Self {
        Self { now: Arc::new(Timestamp::now), instant: None }
    }

    /// A wall clock that is read so, and the system's monotonic clock.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Self { now: Arc::new(now), instant: None }
    }

    /// The same with a monotonic clock that is read so.
    pub fn with_instant(self, instant: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        Self { instant: Some(Arc::new(instant)), ..self }
    }

    /// The wall clock's time.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// The monotonic clock's time.
    pub fn instant(&self) -> Instant {
        match &self.instant {
            None => Instant::now(),
            Some(read) => read(),
        }
    }
}
