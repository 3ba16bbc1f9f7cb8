//! Tells how calls ended, for those who count them.

use std::time::Duration;

use super::{Error, How, Job, Written};

/// How one call ended: of what it met with on the way, what is told is what comes first here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// It may have been written, or may be yet.
    Unknown,
    /// Nothing was written: a condition of the caller's does not hold.
    Condition,
    /// Nothing was written: the tenant is about to move, or keeps moving, and was so for as long as the caller waits.
    Moving,
    /// Nothing was written: DynamoDB was busy, or not reached, each time.
    Busy,
    /// Nothing was written: it cannot be, however often it is tried.
    Refused,
    /// Written, though for some time that was not known: an attempt got no answer, or got it after the lease.
    Settled,
    /// Written in another cell than the one that was tried first.
    Redirected,
    /// Written at the second try or later: DynamoDB was busy with it, or the guard was not as it was known to be, or closed for a while.
    Retried,
    /// Written at once.
    Done,
}

impl Ending {
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Condition,
        Self::Moving,
        Self::Busy,
        Self::Refused,
        Self::Settled,
        Self::Redirected,
        Self::Retried,
        Self::Done,
    ];
}

/// One call that has ended. Calls for which no cell was found are not told of, nor those that name no table of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// How it was tried last.
    pub how: How,
    pub ending: Ending,
    /// From when its cell was known.
    pub took: Duration,
}

/// Is told of each call. Must not block.
pub trait Watch: Send + Sync + 'static {
    fn ended(&self, ended: Ended);
}

impl Job<'_> {
    pub(super) fn ending<E>(&self, outcome: &Result<Written, Error<E>>) -> Ending {
        match outcome {
            Ok(_) if self.open => Ending::Settled,
            Ok(written) if written.redirects > 0 => Ending::Redirected,
            Ok(_) if self.again || self.waits.is_some() => Ending::Retried,
            Ok(_) => Ending::Done,
            Err(Error::Unknown) => Ending::Unknown,
            Err(Error::ConditionFailed { .. }) => Ending::Condition,
            Err(Error::Fenced { .. } | Error::Moving) => Ending::Moving,
            Err(Error::Busy(_) | Error::Route(_)) => Ending::Busy,
            Err(
                Error::UnknownTable { .. }
                | Error::Invalid { .. }
                | Error::GuardMissing { .. }
                | Error::Unguarded { .. }
                | Error::Refused(_)
                | Error::IdUsed
                | Error::Unreadable(_),
            ) => Ending::Refused,
        }
    }
}
