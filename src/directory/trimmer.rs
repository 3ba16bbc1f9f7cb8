//! Removes journal entries that are older than the retention, so that the journal does not grow for ever.
//!
//! Oldest first, in portions of bounded size, and never the head. Several replicas may trim at once: what is trimmed twice is trimmed. No
//! safety rests on the times of the entries, which are their writers': whoever has fallen behind what is trimmed notices it and reads
//! anew (see [`super::replica`]).

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::clock::Clock;
use crate::domain::{JournalEntry, Sequence};
use crate::store::{Journal, StoreError};

/// Most entries removed at once.
const PORTION: usize = 100;

/// Most portions an interval.
const PORTIONS: usize = 10;

pub struct Trimmer {
    pub journal: Arc<dyn Journal>,
    pub clock: Clock,
    pub interval: Duration,
    pub retention: Duration,
}

impl Trimmer {
    /// Trims until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let trimmed = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                trimmed = self.trim() => trimmed,
            };
            match trimmed {
                Ok(trimmed) => {
                    failing = false;
                    tracing::debug!(trimmed, "trimmed the journal");
                }
                // The next tick goes on where this one stood.
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!(%error, "the journal cannot be trimmed; trying again");
                }
                Err(error) => tracing::debug!(%error, "the journal cannot be trimmed"),
            }
        }
    }

    /// Trims what is due, as far as an interval's share goes. Answers how many entries that were.
    async fn trim(&self) -> Result<u64, StoreError> {
        let first = self.journal.trimmed().await?;
        let mut done = first;
        // Mostly, nothing is due, and one entry shows it.
        let oldest = self.journal.entries(done, 1).await?;
        if !oldest.first().is_some_and(|entry| self.due(entry)) {
            return Ok(0);
        }
        let head = self.journal.head().await?.sequence;
        for _ in 0..PORTIONS {
            let entries = self.journal.entries(done, PORTION).await?;
            let due = entries.iter().take_while(|entry| entry.sequence < head && self.due(entry));
            let Some(last) = due.last() else {
                break;
            };
            self.journal.trim(last.sequence).await?;
            done = last.sequence;
        }
        Ok(done.get().saturating_sub(first.get()))
    }

    fn due(&self, entry: &JournalEntry) -> bool {
        entry.sequence > Sequence::START && entry.written.plus(self.retention) <= self.clock.now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::fixtures::stage::Time;
    use crate::directory::fixtures::{Call, Fault, Faulty, commit_now, entry, placed};
    use crate::store::{Commit, CommitOutcome};

    const RETENTION: Duration = Duration::from_secs(3600);

    fn append(store: &Faulty, time: &Time, sequences: std::ops::RangeInclusive<u64>) {
        for n in sequences {
            let mut entry = entry(n, vec![placed(&format!("k{n}"), "a", None)]);
            entry.written = time.now();
            let commit = Commit { entry, writes: vec![] };
            assert_eq!(commit_now(&store.inner, &commit), CommitOutcome::Committed);
        }
    }

    fn trimmer(store: &Arc<Faulty>, time: &Time) -> Trimmer {
        let interval = Duration::from_millis(100);
        Trimmer { journal: store.clone(), clock: time.clock(), interval, retention: RETENTION }
    }

    async fn kept(store: &Faulty) -> (u64, Vec<u64>) {
        let trimmed = store.inner.trimmed().await.unwrap();
        let entries = store.inner.entries(trimmed, usize::MAX).await.unwrap();
        (trimmed.get(), entries.iter().map(|entry| entry.sequence.get()).collect())
    }

    #[tokio::test]
    async fn what_is_older_than_the_retention_goes_and_nothing_else() {
        let (store, time) = (Faulty::new(), Time::new());
        let trimmer = trimmer(&store, &time);
        assert_eq!(trimmer.trim().await, Ok(0), "an empty journal");
        append(&store, &time, 1..=3);
        time.pass(RETENTION / 2);
        append(&store, &time, 4..=6);
        time.pass(RETENTION / 2 - Duration::from_millis(1));
        assert_eq!(trimmer.trim().await, Ok(0), "a millisecond is missing");
        assert_eq!((store.count(Call::Trim), store.count(Call::Head)), (0, 0));
        time.pass(Duration::from_millis(1));
        assert_eq!(trimmer.trim().await, Ok(3));
        assert_eq!(kept(&store).await, (3, vec![4, 5, 6]));
        time.pass(RETENTION * 2);
        assert_eq!(trimmer.trim().await, Ok(2));
        assert_eq!(kept(&store).await, (5, vec![6]), "never the head");
        assert_eq!(trimmer.trim().await, Ok(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_journal_is_trimmed_in_portions_and_in_spite_of_errors() {
        let (store, time) = (Faulty::new(), Time::new());
        append(&store, &time, 1..=2500);
        time.pass(RETENTION);
        append(&store, &time, 2501..=2510);
        for call in [Call::Trimmed, Call::Entries, Call::Head, Call::Trim] {
            store.next(call, [Some(Fault::Fail(StoreError::Throttled))]);
        }
        store.next(Call::Trim, [None, Some(Fault::Lose(StoreError::Timeout))]);
        let (trimmer, stop) = (trimmer(&store, &time), CancellationToken::new());
        assert_eq!(trimmer.trim().await, Err(StoreError::Throttled));
        let running = tokio::spawn(trimmer.run(stop.clone()));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(kept(&store).await, (2500, (2501..=2510).collect()));
        assert!(store.count(Call::Trim) > 25, "25 portions and a repeat");
        stop.cancel();
        running.await.unwrap();
    }
}
