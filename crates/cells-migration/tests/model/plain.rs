//! A writer that reads no guards, the streams that tell of what it wrote, and the hook that stops it.

use cells_migration::{Action, Cursor, Event, Marker, Orders, Record, Side, Transaction};

use crate::Moves;
use crate::mutant::Mutant;
use crate::state::{State, Step, index};
use crate::worker::{Busy, Call};

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Plain {
    /// How many of its writes were acknowledged.
    done: usize,
    /// The cell that it writes to.
    at: usize,
    hook: Hook,
    /// Of each cell.
    streams: [Vec<Entry>; 2],
    /// How much of it is gone.
    gone: [usize; 2],
    trims: u8,
}

/// Whoever is asked to stop it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Hook {
    /// The latest order that it heard: the worker's number, and its own.
    heard: (u64, u64),
    asked: bool,
    /// No write of it lands.
    holds: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Entry {
    Key(usize),
    Marker(Marker),
}

impl Hook {
    /// Each order is done once, and none after a later one.
    fn heeds(&mut self, moves: &Moves, order: (u64, u64)) -> bool {
        let heeds = match moves.mutant {
            Some(Mutant::ThawOfAnyWorker) => true,
            Some(Mutant::OrdersOfOneWorkerAlike) => order.0 >= self.heard.0,
            _ => order > self.heard,
        };
        self.heard = self.heard.max(order);
        heeds
    }
}

impl Plain {
    pub fn new(trims: u8) -> Self {
        Self { trims, ..Self::default() }
    }

    /// It may have to wait.
    pub fn is_stopped(&self) -> bool {
        self.hook.asked
    }

    pub fn steps(&self, moves: &Moves, steps: &mut Vec<Step>) {
        if self.done < moves.bounds.plain.len() && !self.hook.holds {
            steps.push(Step::WritePlain);
        }
        if self.hook.asked && !self.hook.holds {
            steps.push(Step::FreezeHolds);
        }
        if self.trims > 0 {
            let more = |at: &usize| self.gone[*at] < self.streams[*at].len();
            steps.extend([0, 1].into_iter().filter(more).map(Step::Trim));
        }
    }
}

impl State {
    pub fn take_plain(&mut self, moves: &Moves, step: Step) {
        let plain = &mut self.plain;
        match step {
            Step::FreezeHolds => plain.hook.holds = true,
            Step::Trim(at) => {
                plain.trims -= 1;
                plain.gone[at] = plain.streams[at].len();
            }
            Step::WritePlain => {
                let (key, value) = moves.bounds.plain[plain.done];
                plain.done += 1;
                plain.streams[plain.at].push(Entry::Key(key));
                self.items[plain.at][key] = value;
                self.overtake(usize::MAX, key);
                self.acknowledged[key] = value;
            }
            _ => {}
        }
    }

    /// What a worker does about it.
    pub fn mind_the_plain(&mut self, moves: &Moves, record: &Record, action: Action) -> Call {
        let plain = &mut self.plain;
        let event = match action {
            Action::Listen { from } => {
                Event::Listening { position: position(plain.streams[index(from)].len()) }
            }
            Action::Mark { from, marker } => {
                if moves.mutant != Some(Mutant::MarkerBeforeTheFreeze) {
                    plain.streams[index(from)].push(Entry::Marker(marker));
                }
                Event::Marked
            }
            Action::Follow { from, fence, position: at, past } => {
                return self.follow(moves, record, (from, fence), &at, past);
            }
            _ => Event::Refused,
        };
        Call::Over(event)
    }

    /// Gives an order, and asks whether it is done.
    pub fn order(&mut self, moves: &Moves, orders: &mut Orders, action: &Action) -> Event {
        let freezes = matches!(action, Action::Freeze { .. });
        if !(freezes && orders.stands(action)) {
            let number = orders.give(action);
            self.obey(moves, action, number);
            orders.answered();
        }
        let said = moves.mutant == Some(Mutant::FreezeUnconfirmed);
        match freezes {
            true => Event::Frozen { holds: self.plain.hook.holds || said },
            false => Event::Thawed,
        }
    }

    /// An order is there.
    pub fn obey(&mut self, moves: &Moves, action: &Action, number: u64) {
        let Plain { hook, streams, at, .. } = &mut self.plain;
        match *action {
            Action::Freeze { from, holder } if hook.heeds(moves, (holder.worker, number)) => {
                if !hook.asked && moves.mutant == Some(Mutant::MarkerBeforeTheFreeze) {
                    streams[index(from)].push(Entry::Marker(Marker { holder, number: 1 }));
                }
                hook.asked = true;
            }
            Action::Thaw { live, holder } if hook.heeds(moves, (holder.worker, number)) => {
                (hook.asked, hook.holds) = (false, false);
                *at = index(live);
            }
            _ => {}
        }
    }

    /// One entry at a time.
    fn follow(
        &mut self,
        moves: &Moves,
        record: &Record,
        (from, fence): (Side, cells_migration::GuardCheck),
        at: &Cursor,
        past: Option<Marker>,
    ) -> Call {
        let (stream, gone) = (&self.plain.streams[index(from)], self.plain.gone[index(from)]);
        let mut at = at.0.first().map_or(0, |at| usize::from(*at));
        if at < gone {
            if moves.mutant != Some(Mutant::FollowFromTheLatest) {
                return Call::Over(Event::Trimmed);
            }
            at = gone;
        }
        if past.is_some() && moves.mutant == Some(Mutant::NotFollowedAfterTheFreeze) {
            return Call::Over(Event::Followed { found: 0, next: position(at), past: true });
        }
        let entry = stream.get(at).copied();
        let next = at + usize::from(entry.is_some());
        let seen = |marker: Marker| match moves.mutant {
            Some(Mutant::AnyMarker) => {
                stream[..next].iter().any(|entry| matches!(entry, Entry::Marker(_)))
            }
            _ => stream[..next].contains(&Entry::Marker(marker)),
        };
        let past = past.is_some_and(seen);
        let done = Event::Followed { found: (next - at) as u64, next: position(next), past };
        let Some(Entry::Key(key)) = entry else { return Call::Over(done) };
        if moves.mutant == Some(Mutant::PositionBeforeApply) {
            let record = Record { stream: Some(position(next)), ..record.clone() };
            let save = Transaction::save(&record, record.phase, record.cursor.clone());
            let _ = self.transact(moves, &save);
        }
        let value = self.items[index(from)][key];
        Call::On(Busy::Writing { side: from.other(), fence, key, value, done })
    }
}

fn position(at: usize) -> Cursor {
    Cursor(vec![at as u8])
}
