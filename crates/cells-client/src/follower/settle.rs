//! What becomes of an answer to a miss: whether it may be told, and whether it may be kept.
//!
//! The danger: an answer that is older than what the Watch has told already, about a key that memory does not hold. Were it kept, the
//! next renewal would cover it, and a writer would write directly to a cell that the tenant has left. So a question takes a ticket, which
//! notes the position `from` that was applied when it was asked, and every change that the Watch tells of the key until it is settled.
//! An answer is *exact*, and may be kept attached, where its `sequence` is at or beyond both; then no change lies between the answer and
//! the present position that it does not take in.
//!
//! An answer whose epoch is above that of an attached value is from beyond the present position, whatever its `sequence` says: exact too.

use std::collections::HashMap;
use std::time::Duration;

use super::Follower;
use crate::answer::{Resolved, Source};
use crate::clock::{Moment, shortened};
use crate::held::Held;
use crate::memory::attached;

/// Whole map: fetched values that the Watch has not reached yet. More are answered, but not kept.
pub(super) const MAX_AHEAD: usize = 65_536;

/// The latest change that the Watch told of a key while it was being asked for.
#[derive(Clone, Copy)]
struct Told {
    sequence: u64,
    epoch: u64,
    after: Option<Held>,
}

#[derive(Default)]
struct Open {
    questions: usize,
    told: Option<Told>,
}

/// The keys that are being asked for. As many as there are flights and keys of a refresh.
#[derive(Default)]
pub(super) struct Tickets(HashMap<Box<str>, Open>);

impl Tickets {
    pub fn note(&mut self, key: &str, sequence: u64, epoch: u64, after: Option<Held>) {
        if let Some(open) = self.0.get_mut(key) {
            open.told = Some(Told { sequence, epoch, after });
        }
    }
}

/// What was so when a question was asked. To be given back by [`Follower::end`].
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    pub key: Box<str>,
    pub core: TicketCore,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct TicketCore {
    generation: u32,
    from: u64,
    /// The epoch that memory held.
    pub held_epoch: u64,
}

/// An answer to a miss.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetched {
    pub held: Held,
    pub source: Source,
    /// When the question was sent.
    pub sent: Moment,
    pub sequence: u64,
    pub age: Option<Duration>,
    pub lease: Duration,
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Settled {
    /// To be told.
    Answer(Resolved),
    /// A higher epoch may have been told before. To be asked: is there an epoch above this one? If not, the answer is good.
    Doubtful { epoch: u64 },
    /// The Watch has told since that this epoch is over. To be asked again, for a higher one.
    Over { epoch: u64 },
}

impl Follower {
    /// A question about `key` is about to be sent.
    pub fn begin(&mut self, key: &str) -> Ticket {
        self.tickets.0.entry(key.into()).or_default().questions += 1;
        let picture = self.shared.picture.load();
        let held_epoch = match picture.memory.peek(key, picture.generation) {
            Some((held, generation)) if generation >= self.journal_generation => held.epoch,
            Some(_) | None => 0,
        };
        let core =
            TicketCore { generation: picture.generation, from: self.position.applied, held_epoch };
        Ticket { key: key.into(), core }
    }

    /// Nothing more will be asked with this ticket.
    pub fn end(&mut self, ticket: &Ticket) {
        if let Some(open) = self.tickets.0.get_mut(&ticket.key) {
            open.questions = open.questions.saturating_sub(1);
            if open.questions == 0 {
                self.tickets.0.remove(&ticket.key);
            }
        }
    }

    /// The answer that memory has by now.
    pub fn recall(&self, key: &str) -> Option<Resolved> {
        self.shared.picture.load().resolve(key)
    }

    /// Judges an answer. `verified`: the directory has said that no higher epoch exists.
    pub fn settle(
        &mut self,
        now: Moment,
        ticket: &Ticket,
        fetched: &Fetched,
        verified: bool,
    ) -> Settled {
        let key = &*ticket.key;
        let held = fetched.held;
        let picture = self.shared.picture.load_full();
        let known = picture.memory.peek(key, picture.generation);
        if fetched.source == Source::Fallback {
            let known = known.map(|(held, generation)| picture.answer_now(held, generation));
            return Settled::Answer(known.unwrap_or_else(|| self.own_terms(fetched)));
        }
        // Of a key that is held nothing higher was told than what is held.
        let floor = match known {
            Some((_, generation)) if generation >= self.journal_generation => 0,
            Some(_) | None => self.shared.floors.floor(key),
        };
        let same = ticket.core.generation == picture.generation && self.position.attached;
        // What is held may be from beyond both the answer and what the Watch has told.
        if let Some((present, generation)) = known
            && generation >= self.journal_generation
            && present.epoch > held.epoch
        {
            return Settled::Answer(picture.answer_now(present, generation));
        }
        let told = self
            .tickets
            .0
            .get(key)
            .and_then(|open| open.told)
            .filter(|told| told.sequence > ticket.core.from);
        if let Some(told) = told
            && same
            && told.sequence > fetched.sequence
            && told.epoch >= held.epoch
        {
            return match told.after {
                Some(newer) if newer.epoch < floor && !verified => {
                    Settled::Doubtful { epoch: newer.epoch }
                }
                // Exact: no change of this key was told after it.
                Some(newer) => {
                    if picture.memory.is_bounded() {
                        picture.memory.put(key, newer, picture.generation);
                    }
                    Settled::Answer(picture.answer_now(newer, picture.generation))
                }
                None => Settled::Over { epoch: told.epoch },
            };
        }
        let quiet = now >= self.settle_until;
        if let Some((present, generation)) = known {
            let exact = attached(generation, picture.generation);
            if exact && !quiet {
                return Settled::Answer(picture.answer_now(present, generation));
            }
        }
        if held.epoch < floor && !verified {
            return Settled::Doubtful { epoch: held.epoch };
        }
        let up_to_date =
            fetched.sequence >= ticket.core.from.max(told.map_or(0, |told| told.sequence));
        let beyond = known.is_some_and(|(present, generation)| {
            attached(generation, picture.generation) && present.epoch < held.epoch
        });
        let exact = same && quiet && fetched.source != Source::Override && (up_to_date || beyond);
        // A higher epoch of this journal is the later truth, though the picture it was asked for has gone: it is kept without a lease.
        let later = quiet
            && fetched.source != Source::Override
            && ticket.core.generation >= self.journal_generation
            && known.is_some_and(|(present, _)| present.epoch < held.epoch);
        if let Some((present, generation)) = known
            && attached(generation, picture.generation)
            && !exact
            && !later
        {
            // Of the same epoch, and the Watch may know a later mode of it; or of another journal.
            return Settled::Answer(match fetched.source {
                Source::Override => self.own_terms(fetched),
                _ => picture.answer_now(present, generation),
            });
        }
        self.keep(key, fetched, exact);
        let own = self.own_terms(fetched);
        Settled::Answer(Resolved {
            // What is kept attached is covered by the picture's lease as well.
            lease_until: if exact {
                own.lease_until.max(picture.lease_until())
            } else {
                own.lease_until
            },
            ..own
        })
    }

    /// The directory says, from the table itself, that a key has no cell.
    ///
    /// What is attached goes when the Watch says so. Of what is not, the Watch may have told the end long ago, or may have yet to tell both
    /// beginning and end. A whole map would then answer the beginning, an epoch below what was told: so there it goes only once the
    /// Watch has come past the moment of this answer.
    pub fn settle_absent(&mut self, now: Moment, ticket: &Ticket) {
        let key = &*ticket.key;
        let picture = self.shared.picture.load_full();
        let told = self.tickets.0.get(key).and_then(|open| open.told);
        if told.is_some_and(|told| told.sequence > ticket.core.from) || now < self.settle_until {
            return;
        }
        let Some((held, generation)) = picture.memory.peek(key, picture.generation) else { return };
        if attached(generation, picture.generation) {
            return;
        }
        let since = self.absent.get(key).copied();
        if !picture.memory.is_bounded() && since.is_none_or(|since| picture.as_of() < since) {
            if self.absent.len() < MAX_AHEAD {
                self.absent.entry(key.into()).or_insert(now);
            }
            return;
        }
        if generation >= self.journal_generation {
            self.shared.floors.raise(key, held.epoch);
        }
        picture.memory.remove(key);
        self.ahead.remove(key);
        self.absent.remove(key);
    }

    fn keep(&mut self, key: &str, fetched: &Fetched, exact: bool) {
        let picture = self.shared.picture.load_full();
        if fetched.source == Source::Override {
            self.shared.floors.raise(key, fetched.held.epoch);
            return;
        }
        if !picture.memory.is_bounded() {
            let noted = self.ahead.len() < MAX_AHEAD || self.ahead.contains_key(key);
            // What is held already must take the newer epoch, or it would answer the older one again.
            if !noted && picture.memory.peek(key, picture.generation).is_none() {
                self.shared.floors.raise(key, fetched.held.epoch);
                return;
            }
            if noted {
                self.ahead.insert(key.into(), fetched.sequence);
            }
        }
        picture.memory.put(
            key,
            fetched.held,
            if exact { picture.generation } else { self.loose() },
        );
        if !exact {
            self.refresh.add(key);
        }
    }

    /// The answer with the lease that came with it and no other.
    fn own_terms(&self, fetched: &Fetched) -> Resolved {
        let lease = shortened(fetched.lease, self.options.clock_drift_ppm);
        Resolved {
            held: fetched.held,
            lease_until: if lease.is_zero() { Moment::NEVER } else { fetched.sent.after(lease) },
            as_of: fetched.age.map_or(Moment::NEVER, |age| fetched.sent.before(age)),
            source: fetched.source,
        }
    }
}
