//! Decides how much of each class of calls is taken, from how long calls wait for a processor. Pure: no clock, no task, no atomics.
//!
//! ```text
//!            delay above the class's limit for a whole INTERVAL
//!   OPEN ───────────────────────────────────────────────────────► SHEDDING ─┐ each tick: above, the share falls
//!     ▲                                                              │      │            below, it rises
//!     └──────────────────────────── share back at 1 ◄────────────────┴──────┘
//! ```
//!
//! The signal is the *sojourn time* in the queue, and only a queue that stands for a whole interval counts: a burst that drains by
//! itself is what queues are for. Source: Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012 (CoDel). Unlike CoDel,
//! which drops one packet at growing frequency, a share of the calls is refused, since callers of RPCs do not slow down by themselves;
//! the share falls in proportion to the excess and rises slowly. Classes have limits of their own, lower for what matters less, so that
//! admin calls are gone before a Resolve is. Source: Zhou et al., "Overload Control for Scaling WeChat Microservices", SoCC 2018 (DAGOR);
//! Google, "Site Reliability Engineering", chapter 21.
//!
//! A refusal costs a good part of what an answer from memory costs (the frames, the headers). Who answered each of ten times too many
//! calls at once with a refusal would do nothing else. So when refusals outnumber a quarter of the answers, they are *held* before they
//! are sent: a client that bounds its calls under way then asks less often.

use std::time::Duration;

/// What a call is worth when not all can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Lists, history, reads by and for people.
    Low = 0,
    /// Changes, and reads past the memory.
    Normal = 1,
    /// Applications cannot go on without the answer.
    Critical = 2,
}

impl Class {
    pub const ALL: [Class; CLASSES] = [Class::Low, Class::Normal, Class::Critical];

    /// As metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Class::Low => "low",
            Class::Normal => "normal",
            Class::Critical => "critical",
        }
    }

    /// The part of a limit that is there for this class and those below it, in quarters.
    pub(super) fn quarters(self) -> u32 {
        match self {
            Class::Low => 2,
            Class::Normal => 3,
            Class::Critical => 4,
        }
    }
}

pub const CLASSES: usize = 3;

/// Time between two decisions.
pub const TICK: Duration = Duration::from_millis(20);

/// Ticks that a delay has to stand before the first call is shed: CoDel's interval of 100 ms.
const STANDING_TICKS: u32 = 5;

/// The share falls at most by this factor in a tick; the signal is as old as the queue is long.
const STEEPEST_FALL: f64 = 0.8;

/// The share rises by this factor in a tick, and by this much more, so that it leaves the bottom.
const RISE: f64 = 1.03;
const RISE_FROM_BOTTOM: f64 = 0.002;

/// What is always let through, so that there is something to measure.
const LOWEST_SHARE: f64 = 0.01;

/// Refusals to an answer above which refusals are held longer.
const REFUSALS_TO_AN_ANSWER: f64 = 0.25;

/// A hold grows and shrinks by these factors in a tick.
const HOLD_GROWTH: f64 = 1.25;
const HOLD_DECAY: f64 = 0.95;
const SHORTEST_HOLD: Duration = Duration::from_millis(2);

/// What a tick brought.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// How long calls, or the probe, waited for a processor.
    pub delay: Duration,
    /// Calls that were begun.
    pub admitted: u64,
    /// Calls that were refused.
    pub shed: u64,
}

/// What to do until the next tick.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Verdict {
    /// The share of each class to take, 0 to 1.
    pub shares: [f64; CLASSES],
    /// How long to hold a refusal before it is sent.
    pub hold: Duration,
}

#[derive(Debug)]
pub struct Controller {
    /// The delay at which the most important class begins to be shed.
    limit: Duration,
    longest_hold: Duration,
    shares: [f64; CLASSES],
    /// Ticks for which each class's limit has been exceeded.
    standing: [u32; CLASSES],
    hold: Duration,
}

impl Controller {
    pub fn new(limit: Duration, longest_hold: Duration) -> Self {
        Self {
            limit,
            longest_hold,
            shares: [1.0; CLASSES],
            standing: [0; CLASSES],
            hold: Duration::ZERO,
        }
    }

    /// Takes what the last tick brought and decides on the next.
    pub fn tick(&mut self, sample: Sample) -> Verdict {
        for class in Class::ALL {
            let at = class as usize;
            let limit = self.limit * class.quarters() / 4;
            if sample.delay <= limit {
                self.standing[at] = 0;
                self.shares[at] = (self.shares[at] * RISE + RISE_FROM_BOTTOM).min(1.0);
                continue;
            }
            self.standing[at] = self.standing[at].saturating_add(1);
            // Who sheds already is in the middle of the queue, and corrects at once.
            if self.standing[at] >= STANDING_TICKS || self.shares[at] < 1.0 {
                let excess = limit.as_secs_f64() / sample.delay.as_secs_f64();
                let fallen = self.shares[at] * excess.max(STEEPEST_FALL);
                self.shares[at] = fallen.max(LOWEST_SHARE);
            }
        }
        let too_many = sample.shed as f64 > sample.admitted as f64 * REFUSALS_TO_AN_ANSWER;
        self.hold = match too_many {
            true => (self.hold.mul_f64(HOLD_GROWTH)).max(SHORTEST_HOLD).min(self.longest_hold),
            false => match self.hold.mul_f64(HOLD_DECAY) {
                hold if hold < SHORTEST_HOLD => Duration::ZERO,
                hold => hold,
            },
        };
        Verdict { shares: self.shares, hold: self.hold }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_millis(20);
    const LONGEST_HOLD: Duration = Duration::from_secs(1);
    const LOW: usize = Class::Low as usize;
    const NORMAL: usize = Class::Normal as usize;
    const CRITICAL: usize = Class::Critical as usize;

    fn controller() -> Controller {
        Controller::new(LIMIT, LONGEST_HOLD)
    }

    fn waited(ms: u64) -> Sample {
        Sample { delay: Duration::from_millis(ms), admitted: 100, shed: 0 }
    }

    fn ticks(controller: &mut Controller, sample: Sample, count: u32) -> Verdict {
        (0..count).map(|_| controller.tick(sample)).last().unwrap()
    }

    #[test]
    fn a_burst_sheds_nothing_and_a_standing_queue_does() {
        let mut controller = controller();
        for _ in 0..3 {
            let burst = ticks(&mut controller, waited(500), STANDING_TICKS - 1);
            assert_eq!(burst.shares, [1.0; CLASSES]);
            assert_eq!(controller.tick(waited(0)).shares, [1.0; CLASSES]);
        }
        let standing = ticks(&mut controller, waited(500), STANDING_TICKS);
        assert!(standing.shares.iter().all(|share| *share < 1.0), "{standing:?}");
    }

    #[test]
    fn what_matters_less_is_shed_first() {
        for (ms, shed) in [
            (10, [false; 3]),
            (12, [true, false, false]),
            (17, [true, true, false]),
            (25, [true; 3]),
        ] {
            let verdict = ticks(&mut controller(), waited(ms), 50);
            assert_eq!(verdict.shares.map(|share| share < 1.0), shed, "{ms} ms");
        }
        let verdict = ticks(&mut controller(), waited(16), 20);
        assert!(verdict.shares[LOW] < verdict.shares[NORMAL], "{verdict:?}");
        assert!(verdict.shares[NORMAL] < verdict.shares[CRITICAL], "{verdict:?}");
    }

    #[test]
    fn ten_times_too_much_is_met_within_a_second_and_forgotten_within_five() {
        let mut controller = controller();
        let within = |time: Duration| (time.as_millis() / TICK.as_millis()) as u32;
        let full = ticks(&mut controller, waited(1000), within(Duration::from_secs(1)));
        assert!(full.shares[CRITICAL] < 0.1, "{full:?}");
        let calm = ticks(&mut controller, waited(0), within(Duration::from_secs(5)));
        assert_eq!(calm, Verdict { shares: [1.0; CLASSES], hold: Duration::ZERO });
    }

    #[test]
    fn refusals_are_held_while_they_outnumber_a_quarter_of_the_answers() {
        let mut controller = controller();
        let sample = |shed| Sample { delay: Duration::ZERO, admitted: 100, shed };
        assert_eq!(controller.tick(sample(25)).hold, Duration::ZERO);
        assert_eq!(controller.tick(sample(26)).hold, SHORTEST_HOLD);
        assert_eq!(ticks(&mut controller, sample(900), 100).hold, LONGEST_HOLD);
        assert_eq!(ticks(&mut controller, sample(0), 250).hold, Duration::ZERO);
    }

    /// A plant: what is offered waits behind what is there; the controller must keep the server busy and the queue short.
    #[test]
    fn a_server_that_is_offered_ten_times_its_rate_stays_busy_and_its_queue_short() {
        let capacity = 1000.0;
        let (mut controller, mut queue) = (controller(), 0.0f64);
        let (mut shares, mut served, mut delays) = ([1.0; CLASSES], 0.0, Vec::new());
        for tick in 0..1500 {
            queue += 10.0 * capacity * shares[CRITICAL];
            let done = queue.min(capacity);
            queue -= done;
            let delay = TICK.mul_f64(queue / capacity);
            shares = controller.tick(Sample { delay, admitted: done as u64, shed: 0 }).shares;
            // The first five seconds are the way there.
            if tick >= 250 {
                served += done;
                delays.push(delay);
            }
        }
        delays.sort();
        assert!(served >= 0.9 * capacity * delays.len() as f64, "{served}");
        let p99 = delays[delays.len() * 99 / 100];
        assert!(p99 <= 5 * LIMIT, "{p99:?}");
    }

    proptest! {
        #[test]
        fn shares_and_holds_stay_in_bounds_and_in_order(
            samples in prop::collection::vec((0u64..10_000, 0u64..1000, 0u64..1000), 1..300),
        ) {
            let mut controller = controller();
            for (ms, admitted, shed) in samples {
                let delay = Duration::from_millis(ms);
                let verdict = controller.tick(Sample { delay, admitted, shed });
                prop_assert!(verdict.shares.iter().all(|s| (LOWEST_SHARE..=1.0).contains(s)));
                prop_assert!(verdict.shares[LOW] <= verdict.shares[NORMAL] + 1e-9);
                prop_assert!(verdict.shares[NORMAL] <= verdict.shares[CRITICAL] + 1e-9);
                prop_assert!(verdict.hold <= LONGEST_HOLD);
            }
        }
    }
}
