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

use crate::domain::{Cluster, LeaseDuration};

/// The lengths of leases that may still be about.
#[derive(Debug, Default)]
pub struct LeaseTerms {
    /// As of the last entry that was applied.
    length: Duration,
    /// The longest of those that were granted before it got shorter, and when the last of them has run out.
    longer: Option<(Duration, Instant)>,
}

impl LeaseTerms {
    /// The settings were read. What came before they say themselves.
    pub fn loaded(&mut self, cluster: &Cluster, now: Instant) {
        self.length = cluster.lease.get();
        self.outlast(cluster.longest.get(), now);
    }

    /// What was granted until now is not known, so it is taken to be the longest.
    pub fn lost(&mut self, now: Instant) {
        self.outlast(LeaseDuration::MAX.get(), now);
    }

    /// An entry was applied, with which leases have this length.
    pub fn changed(&mut self, length: Duration, now: Instant) {
        let former = std::mem::replace(&mut self.length, length);
        self.outlast(former, now);
    }

    /// When no lease is left on what stood before an entry. `committed`: some moment after it was committed, at which all entries up
    /// to it had been applied here.
    pub fn run_out(&self, committed: Instant) -> Instant {
        let end = committed + self.length;
        self.longer.map_or(end, |(_, longer)| longer.max(end))
    }

    /// The longest lease that there may be at this moment, for the settings that come next.
    pub fn longest(&self, now: Instant) -> LeaseDuration {
        let longer = self.longer.filter(|(_, until)| *until > now);
        let longest = longer.map_or(self.length, |(longer, _)| longer.max(self.length));
        LeaseDuration::new(longest).unwrap_or(LeaseDuration::MAX)
    }

    /// Leases of this length were granted until now at most.
    fn outlast(&mut self, former: Duration, now: Instant) {
        if former > self.length {
            let last = self.longer.filter(|(_, until)| *until > now);
            let (longer, until) = last.unwrap_or((former, now));
            self.longer = Some((longer.max(former), until.max(now + former)));
        }
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

    fn set(millis: u64, longest: u64) -> Cluster {
        let [lease, longest] = [millis, longest].map(|ms| LeaseDuration::from_millis(ms as u32));
        Cluster { lease: lease.unwrap(), longest: longest.unwrap(), ..Cluster::default() }
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
    fn where_something_was_lost_leases_are_taken_to_have_been_the_longest() {
        let start = Instant::now();
        let mut terms = LeaseTerms::default();
        terms.loaded(&set(1_000, 1_000), start);
        assert_eq!(terms.run_out(start), start + ms(1_000));
        terms.lost(start + ms(3_000));
        assert_eq!(terms.run_out(start + ms(3_000)), start + ms(63_000));
        assert_eq!(terms.run_out(start + ms(62_500)), start + ms(63_500));
    }

    /// Or every replica that starts would make every migration wait a minute, for ever after leases were changed once.
    #[test]
    fn settings_say_how_long_leases_were_that_they_outlast() {
        let start = Instant::now();
        let mut terms = LeaseTerms::default();
        terms.loaded(&set(1_000, 7_000), start);
        assert_eq!(terms.run_out(start), start + ms(7_000));
        assert_eq!(terms.longest(start + ms(6_999)).get(), ms(7_000));
        // By then none of them is left, and what comes next need not know of them.
        assert_eq!(terms.longest(start + ms(7_000)).get(), ms(1_000));
        terms.changed(ms(500), start + ms(8_000));
        assert_eq!(terms.longest(start + ms(8_999)).get(), ms(1_000));
        assert_eq!(terms.longest(start + ms(9_000)).get(), ms(500));
    }

    #[test]
    fn settings_that_do_not_say_it_may_follow_on_the_longest() {
        let json = r#"{"lease":1000,"updated":null,"revision":7}"#;
        let cluster: Cluster = serde_json::from_str(json).unwrap();
        assert_eq!(cluster.longest, LeaseDuration::MAX);
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
            let mut settings = Cluster::default();
            terms.loaded(&settings, start);
            for (number, (at, length)) in entries.iter().enumerate() {
                let now = start + ms(*at);
                if let Some(length) = length {
                    let longest = terms.longest(now);
                    terms.changed(ms(*length), now);
                    // Each is decided by somebody who has only just read those before it, or by one who knows them all.
                    let mut new = LeaseTerms::default();
                    new.loaded(&settings, now);
                    let longest = if number % 2 == 0 { new.longest(now) } else { longest };
                    settings = Cluster { longest, ..set(*length, 0) };
                    continue;
                }
                let mut new = LeaseTerms::default();
                new.loaded(&settings, now);
                for end in [terms.run_out(now), new.run_out(now)] {
                    for grant in grants.iter().filter(|grant| grant.applied <= number) {
                        prop_assert!(start + ms(grant.until) <= end, "entry {number} of {entries:?}");
                    }
                }
            }
        }
    }
}
