//! Decides how many calls of each class may wait for a processor, from how long they do wait. Pure: no clock, no task, no atomics.
//!
//! ```text
//!            delay above the class's limit for a whole INTERVAL
//!   OPEN ───────────────────────────────────────────────────────► SHEDDING ─┐ each tick: above, fewer may wait
//!     ▲                                                              │      │            below, more
//!     └────────────────────────── as many as there can be ◄─────────┴──────┘
//! ```
//!
//! The signal is the *sojourn time* in the queue, and only a queue that stands for a whole interval counts: a burst that drains by
//! itself is what queues are for. Source: Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012 (CoDel). Unlike CoDel,
//! which drops one packet at growing frequency, what finds the queue full is refused, since callers of RPCs do not slow down by themselves;
//! the length that fills it falls in proportion to the excess and rises slowly. Classes have limits of their own, lower for what matters
//! less, so that admin calls are gone before a Resolve is. Source: Zhou et al., "Overload Control for Scaling WeChat Microservices", SoCC
//! 2018 (DAGOR); Google, "Site Reliability Engineering", chapter 21.
//!
//! Why a length and not a share of the calls: who is answered asks again at once, who is refused does not for a while. With a share that
//! is a little too low for one tick the queue is empty and stays so, while nearly all callers wait to be refused. A queue of bounded length is
//! refilled by the answers that leave it, whatever is offered, so an error of the bound costs delay, not throughput.
//!
//! A refusal costs a good part of what an answer from memory costs (the frames, the headers). Who answered each of ten times too many
//! calls at once with a refusal would do nothing else. So when refusals outnumber three in a hundred answers, they are *held* before they
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

/// The bound falls at most by this factor in a tick; the signal is as old as the queue is long.
const STEEPEST_FALL: f64 = 0.8;

/// The bound rises by this factor in a tick.
const RISE: f64 = 1.03;

/// So few may always wait: enough that a processor which answers from memory does not run dry between two rounds over the connections.
const FEWEST: f64 = 128.0;

/// A bound that has grown to this is none.
const MOST: f64 = 16_384.0;

/// No bound.
pub const UNBOUNDED: u32 = u32::MAX;

/// Refusals to an answer above which refusals are held longer.
const REFUSALS_TO_AN_ANSWER: f64 = 0.03;

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
    /// How many calls may wait for a processor when one of this class comes, or [`UNBOUNDED`].
    pub bounds: [u32; CLASSES],
    /// How long to hold a refusal before it is sent.
    pub hold: Duration,
}

#[derive(Debug)]
pub struct Controller {
    /// The delay at which the most important class begins to be shed.
    limit: Duration,
    longest_hold: Duration,
    /// `None` where nothing is refused.
    bounds: [Option<f64>; CLASSES],
    /// Ticks for which each class's limit has been exceeded.
    standing: [u32; CLASSES],
    hold: Duration,
}

impl Controller {
    pub fn new(limit: Duration, longest_hold: Duration) -> Self {
        Self {
            limit,
            longest_hold,
            bounds: [None; CLASSES],
            standing: [0; CLASSES],
            hold: Duration::ZERO,
        }
    }

    /// Takes what the last tick brought and decides on the next.
    pub fn tick(&mut self, sample: Sample) -> Verdict {
        for class in Class::ALL {
            let at = class as usize;
            let limit = self.limit * class.quarters() / 4;
            let bound = &mut self.bounds[at];
            if sample.delay <= limit {
                self.standing[at] = 0;
                *bound = bound.map(|bound| bound * RISE).filter(|bound| *bound < MOST);
                continue;
            }
            self.standing[at] = self.standing[at].saturating_add(1);
            match bound {
                // Who sheds already is in the middle of the queue, and corrects at once.
                Some(bound) => {
                    let excess = limit.as_secs_f64() / sample.delay.as_secs_f64();
                    *bound = (*bound * excess.max(STEEPEST_FALL)).max(FEWEST);
                }
                // As many as are served while one waits for as long as it may (Little's law).
                None if self.standing[at] >= STANDING_TICKS => {
                    let served = sample.admitted as f64 * limit.as_secs_f64() / TICK.as_secs_f64();
                    *bound = Some(served.clamp(FEWEST, MOST));
                }
                None => {}
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
        let bounds = self.bounds.map(|bound| bound.map_or(UNBOUNDED, |bound| bound as u32));
        Verdict { bounds, hold: self.hold }
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

    const OPEN: [u32; CLASSES] = [UNBOUNDED; CLASSES];

    #[test]
    fn a_burst_sheds_nothing_and_a_standing_queue_does() {
        let mut controller = controller();
        for _ in 0..3 {
            let burst = ticks(&mut controller, waited(500), STANDING_TICKS - 1);
            assert_eq!(burst.bounds, OPEN);
            assert_eq!(controller.tick(waited(0)).bounds, OPEN);
        }
        let standing = ticks(&mut controller, waited(500), STANDING_TICKS);
        assert!(standing.bounds.iter().all(|bound| *bound < UNBOUNDED), "{standing:?}");
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
            assert_eq!(verdict.bounds.map(|bound| bound < UNBOUNDED), shed, "{ms} ms");
        }
        let busy = Sample { delay: Duration::from_millis(16), admitted: 1000, shed: 0 };
        let verdict = ticks(&mut controller(), busy, 6);
        assert!(verdict.bounds[LOW] < verdict.bounds[NORMAL], "{verdict:?}");
        assert!(verdict.bounds[NORMAL] < verdict.bounds[CRITICAL], "{verdict:?}");
    }

    #[test]
    fn too_long_a_queue_is_met_within_a_second_and_forgotten_within_five() {
        let mut controller = controller();
        let within = |time: Duration| (time.as_millis() / TICK.as_millis()) as u32;
        let full = ticks(&mut controller, waited(1000), within(Duration::from_secs(1)));
        assert_eq!(full.bounds, [FEWEST as u32; CLASSES]);
        let calm = ticks(&mut controller, waited(0), within(Duration::from_secs(5)));
        assert_eq!(calm, Verdict { bounds: OPEN, hold: Duration::ZERO });
    }

    #[test]
    fn refusals_are_held_while_they_are_more_than_a_few() {
        let mut controller = controller();
        let sample = |shed| Sample { delay: Duration::ZERO, admitted: 100, shed };
        assert_eq!(controller.tick(sample(3)).hold, Duration::ZERO);
        assert_eq!(controller.tick(sample(4)).hold, SHORTEST_HOLD);
        assert_eq!(ticks(&mut controller, sample(900), 100).hold, LONGEST_HOLD);
        assert_eq!(ticks(&mut controller, sample(0), 250).hold, Duration::ZERO);
    }

    /// A plant: callers with so many calls in sum ask again at once when answered, and only after the hold when refused. The controller
    /// must keep the server busy and the queue short.
    #[test]
    fn a_server_with_far_too_many_callers_stays_busy_and_its_queue_short() {
        let (callers, served_a_tick) = (8000.0, 1000.0);
        let mut controller = controller();
        let (mut queue, mut held) = (callers, std::collections::VecDeque::<f64>::new());
        let (mut verdict, mut served, mut delays) = (controller.tick(waited(0)), 0.0, Vec::new());
        for tick in 0..1500 {
            let done = f64::min(queue, served_a_tick);
            let delay = TICK.mul_f64(queue / served_a_tick);
            let holding = verdict.hold.div_duration_f64(TICK) as usize;
            let mut arrivals = done;
            while held.len() > holding {
                arrivals += held.pop_front().unwrap_or_default();
            }
            let room = f64::from(verdict.bounds[CRITICAL]) - (queue - done);
            let admitted = arrivals.min(room.max(0.0));
            queue += admitted - done;
            held.push_back(arrivals - admitted);
            let shed = (arrivals - admitted) as u64;
            verdict = controller.tick(Sample { delay, admitted: admitted as u64, shed });
            // The first five seconds are the way there.
            if tick >= 250 {
                served += done;
                delays.push(delay);
            }
        }
        delays.sort();
        assert!(served >= 0.95 * served_a_tick * delays.len() as f64, "{served}");
        let p99 = delays[delays.len() * 99 / 100];
        assert!(p99 <= 2 * LIMIT, "{p99:?}");
    }

    proptest! {
        #[test]
        fn bounds_and_holds_stay_in_their_limits(
            samples in prop::collection::vec((0u64..10_000, 0u64..1000, 0u64..1000), 1..300),
        ) {
            let mut controller = controller();
            for (ms, admitted, shed) in samples {
                let delay = Duration::from_millis(ms);
                let verdict = controller.tick(Sample { delay, admitted, shed });
                let valid = |bound: &u32| *bound == UNBOUNDED || (FEWEST..=MOST).contains(&f64::from(*bound));
                prop_assert!(verdict.bounds.iter().all(valid));
                prop_assert!(verdict.hold <= LONGEST_HOLD);
            }
        }
    }
}
