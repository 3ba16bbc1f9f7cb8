//! How long to wait until nobody can hold a lease on what stood before an entry: for whoever moves a tenant.
//!
//! A lease that any replica grants ends at most a length after a proof, and whoever grants it had applied, when it made the proof, all
//! that there was then: the length that stood then included. So of what stood before an entry that was committed at `c`:
//!
//! - a lease of the length that stood at the entry was granted from a proof before `c`, and ends before `c` + that length;
//! - a longer one from before ends at the latest that longer length after the entry that made leases shorter;
//! - a longer one from after is granted only by those who have applied the entry.
//!
//! `docs/adr/0008-leases.md` has the argument in full.

use std::time::{Duration, Instant};

use crate::domain::{Cluster, LeaseDuration, Sequence};

/// The lengths of leases that may still be about.
#[derive(Debug, Default)]
pub struct LeaseTerms {
    /// As of the last entry that was applied.
    length: Duration,
    /// When whatever was granted under a longer one has run out.
    longer_until: Option<Instant>,
}

impl LeaseTerms {
    /// The settings were read, and what came before is not known: so it is taken to be the longest. Where they were never set, there is
    /// nothing before.
    pub fn loaded(&mut self, cluster: &Cluster, now: Instant) {
        self.length = cluster.lease.get();
        if cluster.revision > Sequence::START {
            self.outlast(now + LeaseDuration::MAX.get());
        }
    }

    /// An entry was applied, with which leases have this length.
    pub fn changed(&mut self, length: Duration, now: Instant) {
        let former = std::mem::replace(&mut self.length, length);
        if length < former {
            self.outlast(now + former);
        }
    }

    /// When no lease is left on what stood before an entry. `committed`: some moment after it was committed, at which all entries up
    /// to it had been applied here.
    pub fn run_out(&self, committed: Instant) -> Instant {
        let end = committed + self.length;
        self.longer_until.map_or(end, |longer| longer.max(end))
    }

    fn outlast(&mut self, until: Instant) {
        self.longer_until = self.longer_until.max(Some(until));
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn set(millis: u64, revision: u64) -> Cluster {
        let lease = LeaseDuration::new(ms(millis)).unwrap();
        Cluster { lease, revision: Sequence::new(revision), ..Cluster::default() }
    }

    #[test]
    fn a_shorter_lease_waits_for_the_longer_ones() {
        let start = Instant::now();
        let mut terms = LeaseTerms::default();
        terms.loaded(&Cluster::default(), start);
        assert_eq!(terms.run_out(start), start + ms(5_000));
        terms.changed(ms(20_000), start + ms(1_000));
        assert_eq!(terms.run_out(start + ms(1_000)), start + ms(21_000));
        terms.changed(ms(2_000), start + ms(3_000));
        assert_eq!(terms.run_out(start + ms(3_000)), start + ms(23_000));
        // One that is shorter still, and leases that go on in between, do not bring the end nearer.
        terms.changed(ms(1_000), start + ms(4_000));
        assert_eq!(terms.run_out(start + ms(4_000)), start + ms(23_000));
        assert_eq!(terms.run_out(start + ms(22_500)), start + ms(23_500));
    }

    #[test]
    fn who_does_not_know_what_was_before_takes_it_for_the_longest() {
        let start = Instant::now();
        let mut terms = LeaseTerms::default();
        terms.loaded(&set(1_000, 7), start);
        assert_eq!(terms.run_out(start), start + ms(60_000));
        assert_eq!(terms.run_out(start + ms(59_500)), start + ms(60_500));
    }

    /// What a replica grants: nothing that came after `applied`, until `until`.
    struct Grant {
        applied: usize,
        until: u64,
    }

    /// All that a replica can grant that polls so, by the rules of `Memory` and `Replica`: leases count from the proof, a shorter length
    /// counts at once, and a longer one with the next proof. `polls`: pause, time taken, and how many entries it reads that were
    /// committed after it began.
    fn grants(entries: &[(u64, Option<u64>)], polls: &[(u64, u64, usize)]) -> Vec<Grant> {
        let (mut applied, mut length, mut proof, mut now) = (0, 5_000, 0, 0);
        let mut latest = length;
        let mut grants = vec![Grant { applied, until: proof + length }];
        for (pause, took, more) in polls {
            let began = now + pause;
            now = began + took;
            let due = entries.iter().filter(|(at, _)| *at <= began).count();
            let there = entries.iter().filter(|(at, _)| *at <= now).count();
            while applied < there.min(due + more) {
                latest = entries[applied].1.unwrap_or(latest);
                length = length.min(latest);
                applied += 1;
                grants.push(Grant { applied, until: proof + length });
            }
            length = latest;
            grants.push(Grant { applied, until: proof + length });
            proof = began;
            grants.push(Grant { applied, until: proof + length });
        }
        grants
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// Whoever waits as told meets no lease of any replica, however far behind, on what was before.
        #[test]
        fn no_lease_outlives_the_wait(
            gaps in vec((1..8_000_u64, option::of(prop_oneof![Just(0), 1..3_000_u64, 1..=60_000_u64])), 1..12),
            polls in vec(vec((0..9_000_u64, 0..3_000_u64, 0..4_usize), 0..20), 1..5),
        ) {
            let mut at = 0;
            let entries: Vec<_> = gaps.iter().map(|(gap, length)| {
                at += gap;
                (at, *length)
            }).collect();
            let grants: Vec<_> = polls.iter().flat_map(|polls| grants(&entries, polls)).collect();
            // The mover commits the others, so it has applied all before each of them when it commits.
            let start = Instant::now();
            let mut terms = LeaseTerms::default();
            terms.loaded(&Cluster::default(), start);
            for (number, (at, length)) in entries.iter().enumerate() {
                let now = start + ms(*at);
                if let Some(length) = length {
                    terms.changed(ms(*length), now);
                    continue;
                }
                let end = terms.run_out(now);
                for grant in grants.iter().filter(|grant| grant.applied <= number) {
                    prop_assert!(start + ms(grant.until) <= end, "entry {number} of {entries:?}");
                }
            }
        }
    }
}
