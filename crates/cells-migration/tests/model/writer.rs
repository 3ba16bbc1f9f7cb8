//! A cooperating writer: direct under a lease, else checked; what is open after a lease is written again, checked.

use cells_migration::{GuardCheck, MigrationId, Placement, Side, WriteMode};

use crate::Moves;
use crate::bounds::Op;
use crate::mutant::Mutant;
use crate::state::{State, Step, Value, index, of};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Writer {
    /// How many writes were acknowledged.
    done: usize,
    route: Option<Route>,
    flight: Option<Flight>,
    /// A direct write of which nobody knows, and which may land at any time.
    late: Option<(Side, usize, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Route {
    side: Side,
    epoch: u64,
    mode: WriteMode,
    migration: Option<MigrationId>,
    lease: bool,
}

/// A direct write under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Flight {
    side: Side,
    key: usize,
    value: Value,
    landed: bool,
    /// Another one landed on the key after it.
    overtaken: bool,
}

impl Writer {
    pub fn has_under_way(&self, key: usize, value: Value) -> bool {
        self.flight.is_some_and(|flight| (flight.key, flight.value) == (key, value))
    }

    /// Whether it may still write directly.
    pub fn leased(&self) -> bool {
        self.route.is_some_and(|route| route.lease)
    }

    fn op(&self, moves: &Moves, at: usize) -> Option<Op> {
        moves.bounds.ops[at].get(self.done).copied()
    }

    pub fn steps(&self, state: &State, moves: &Moves, at: usize, steps: &mut Vec<Step>) {
        if self.late.is_some() {
            steps.push(Step::LandLate(at));
        }
        if let Some(flight) = self.flight {
            let step = if flight.landed { Step::Acknowledge(at) } else { Step::LandDirect(at) };
            steps.push(step);
        }
        let Some(route) = self.route else {
            let comes = !moves.bounds.late || state.placement.mode == WriteMode::Logged;
            if comes && self.op(moves, at).is_some() {
                steps.push(Step::Route(at));
            }
            return;
        };
        if route.lease {
            steps.push(Step::Expire(at));
        }
        if self.op(moves, at).is_some() && self.flight.is_none() {
            // One at a time is late, so that there is an end to what may be.
            match (route.lease, self.late) {
                (true, None) => steps.push(Step::Send(at)),
                (true, Some(_)) => {}
                (false, _) => steps.push(Step::WriteChecked(at)),
            }
        }
    }
}

impl State {
    pub fn go_on_writing(&mut self, moves: &Moves, at: usize, step: Step) {
        match step {
            Step::Route(_) => {
                let Placement { side, epoch, mode, migration } = self.placement;
                let lease = mode == WriteMode::Direct;
                self.writers[at].route = Some(Route { side, epoch, mode, migration, lease });
            }
            Step::Expire(_) => self.expire(moves, at),
            Step::Send(_) => {
                let writer = &mut self.writers[at];
                if let (Some((key, value)), Some(route)) = (writer.op(moves, at), writer.route) {
                    let side = route.side;
                    writer.flight =
                        Some(Flight { side, key, value, landed: false, overtaken: false });
                }
            }
            Step::LandDirect(_) => {
                if let Some(flight) = &mut self.writers[at].flight {
                    flight.landed = true;
                    let Flight { side, key, value, .. } = *flight;
                    self.items[index(side)][key] = value;
                    self.overtake(at, key);
                }
            }
            Step::Acknowledge(_) => {
                let writer = &mut self.writers[at];
                if let Some(flight) = writer.flight.take() {
                    writer.done += 1;
                    if !flight.overtaken {
                        self.acknowledged[flight.key] = flight.value;
                    }
                }
            }
            Step::LandLate(_) => {
                if let Some((side, key, value)) = self.writers[at].late.take() {
                    self.items[index(side)][key] = value;
                }
            }
            Step::WriteChecked(_) => self.write_checked(moves, at),
            _ => {}
        }
    }

    /// A lease runs out: what is not acknowledged by then has an unknown outcome.
    fn expire(&mut self, moves: &Moves, at: usize) {
        let writer = &mut self.writers[at];
        if let Some(route) = &mut writer.route {
            route.lease = false;
        }
        if moves.mutant == Some(Mutant::AcknowledgeAfterTheLease) {
            return;
        }
        if let Some(flight) = writer.flight.take() {
            if !self.loose[flight.key].contains(&flight.value) {
                self.loose[flight.key].push(flight.value);
            }
            if !flight.landed {
                writer.late = Some((flight.side, flight.key, flight.value));
            }
        }
    }

    /// One transaction: the check, the write, and where writes are logged its record. An answer that is lost is asked for again by the
    /// write's token, so it is told when it is done.
    fn write_checked(&mut self, moves: &Moves, at: usize) {
        let writer = &self.writers[at];
        let (Some((key, value)), Some(route)) = (writer.op(moves, at), writer.route) else {
            return;
        };
        let Route { epoch, mode, migration, .. } = route;
        let check = GuardCheck::Open { epoch, mode, migration };
        let guard = self.guards[index(route.side)];
        if !check.holds(guard.as_ref()) && !moves.passes(check, guard) {
            self.writers[at].route = None;
            return;
        }
        self.items[index(route.side)][key] = value;
        if let (WriteMode::Logged, Some(migration)) = (mode, migration)
            && !moves.bounds.unlogged
            && moves.mutant != Some(Mutant::WriteWithoutARecord)
        {
            let number = moves.number(at, self.writers[at].done);
            self.log[index(route.side)][of(migration)] |= 1 << number;
        }
        self.overtake(at, key);
        self.acknowledged[key] = value;
        self.writers[at].done += 1;
    }

    /// A write of this writer landed on a key.
    pub fn overtake(&mut self, at: usize, key: usize) {
        for (other, writer) in self.writers.iter_mut().enumerate() {
            if let Some(flight) = &mut writer.flight
                && other != at
                && flight.key == key
                && flight.landed
            {
                flight.overtaken = true;
            }
        }
    }
}

impl Moves {
    /// The number of a write among all.
    pub fn number(&self, writer: usize, op: usize) -> usize {
        writer * self.bounds.ops[0].len() + op
    }

    pub fn key_of(&self, number: usize) -> usize {
        let ops = self.bounds.ops;
        ops.iter().flat_map(|ops| ops.iter()).nth(number).map_or(0, |(key, _)| *key)
    }
}
