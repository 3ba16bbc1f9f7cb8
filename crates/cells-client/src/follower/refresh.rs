//! Asks again, in the background and a page at a time, for what memory holds but is not exact about.

use std::collections::VecDeque;
use std::time::Duration;

use super::settle::{Fetched, MAX_AHEAD, Ticket};
use super::{Action, Follower, duration};
use crate::answer::Source;
use crate::clock::Moment;
use crate::error::Failure;
use crate::held::Held;
use crate::memory::attached;
use crate::options::{Mode, Options};
use crate::proto::{self, batch_resolve_result::Outcome};

/// Keys of a page: as many as BatchResolve takes.
const PAGE: usize = 1_000;
/// No two pages are asked for sooner after one another.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Nor later, while there is something to ask for.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A page takes no longer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// `google.rpc.Code.NOT_FOUND`.
const NOT_FOUND: i32 = 5;

struct Page {
    tickets: Vec<Ticket>,
    sent: Moment,
}

pub(super) struct Refresh {
    /// At most as many as memory holds; beyond that, what is unattached waits for the next time it is asked for.
    queue: VecDeque<Box<str>>,
    capacity: usize,
    page: Option<Page>,
    next_at: Moment,
    /// Pages in a row that made nothing exact.
    fruitless: u32,
}

impl Refresh {
    pub fn new(options: &Options) -> Self {
        let capacity = match options.mode {
            Mode::Whole => MAX_AHEAD,
            Mode::Bounded { capacity } => capacity,
        };
        Self { queue: VecDeque::new(), capacity, page: None, next_at: Moment::NEVER, fruitless: 0 }
    }

    pub fn add(&mut self, key: &str) {
        if self.queue.len() < self.capacity.max(PAGE) {
            self.queue.push_back(key.into());
        }
    }

    pub fn queued(&self) -> impl Iterator<Item = &str> {
        self.queue.iter().map(|key| &**key)
    }

    #[cfg(test)]
    pub fn is_idle(&self) -> bool {
        self.page.is_none() && self.queue.is_empty()
    }

    pub fn wake_at(&self, attached: bool) -> Moment {
        match &self.page {
            Some(page) => page.sent.after(TIMEOUT),
            None if self.queue.is_empty() || !attached => Moment::LAST,
            None => self.next_at,
        }
    }
}

impl Follower {
    /// All that is held but not attached is asked for again.
    pub(super) fn refresh_all(&mut self) {
        let picture = self.shared.picture.load_full();
        let mut keys = Vec::new();
        for portion in 0..picture.memory.portions() {
            picture.memory.visit(portion, picture.generation, |key, _, generation| {
                if !attached(generation, picture.generation) {
                    keys.push(Box::from(key));
                }
            });
        }
        // The memory's own order depends on its hash.
        keys.sort_unstable();
        self.refresh.queue = keys.into();
    }

    pub(super) fn on_refresh_time(&mut self, now: Moment, actions: &mut Vec<Action>) {
        if self.refresh.page.as_ref().is_some_and(|page| page.sent.after(TIMEOUT) <= now) {
            actions.push(Action::CancelRefresh);
            self.on_refreshed(now, Err(Failure::passing("the page took too long")));
        }
        if !self.position.attached || self.refresh.page.is_some() || self.refresh.next_at > now {
            return;
        }
        let picture = self.shared.picture.load_full();
        let mut tickets = Vec::new();
        while tickets.len() < PAGE {
            let Some(key) = self.refresh.queue.pop_front() else { break };
            let held = picture.memory.peek(&key, picture.generation);
            if held.is_some_and(|(_, generation)| !attached(generation, picture.generation)) {
                tickets.push(self.begin(&key));
            }
        }
        if tickets.is_empty() {
            return;
        }
        let request = proto::BatchResolveRequest {
            partition_keys: tickets.iter().map(|ticket| ticket.key.to_string()).collect(),
            mode: proto::ResolveMode::LookupOnly.into(),
            constraints: None,
            fallback: proto::FallbackPolicy::Refuse.into(),
            cell_tables: false,
        };
        let first = self.link.endpoint().unwrap_or_else(|| self.endpoints.pick(now));
        let endpoint = (first + self.refresh.fruitless as usize) % self.endpoint_count;
        self.refresh.page = Some(Page { tickets, sent: now });
        actions.push(Action::Refresh { endpoint, request });
    }

    pub(super) fn on_refreshed(
        &mut self,
        now: Moment,
        answer: Result<proto::BatchResolveResponse, Failure>,
    ) {
        let Some(page) = self.refresh.page.take() else { return };
        match answer {
            Ok(answer) => self.settle_page(now, &page, answer),
            Err(failure) => tracing::debug!(message = %failure.message, "a refresh has failed"),
        }
        let picture = self.shared.picture.load_full();
        let mut fruitful = false;
        for ticket in &page.tickets {
            self.end(ticket);
            match picture.memory.peek(&ticket.key, picture.generation) {
                Some((_, generation)) if !attached(generation, picture.generation) => {
                    self.refresh.add(&ticket.key)
                }
                Some(_) | None => fruitful = true,
            }
        }
        self.refresh.fruitless =
            if fruitful { 0 } else { self.refresh.fruitless.saturating_add(1) };
        let pause = PAUSE_MIN.saturating_mul(1 << self.refresh.fruitless.min(16)).min(PAUSE_MAX);
        self.refresh.next_at = now.after(self.rng.jitter(pause * 2).min(PAUSE_MAX));
    }

    fn settle_page(&mut self, now: Moment, page: &Page, answer: proto::BatchResolveResponse) {
        for (id, address) in &answer.cells {
            self.shared.cells.address(id, &address.endpoint, &address.region, answer.sequence);
        }
        // One result a key, in order; whoever answers otherwise is not believed.
        if answer.results.len() != page.tickets.len() {
            return;
        }
        for (ticket, result) in page.tickets.iter().zip(answer.results) {
            let source = result.decision.as_ref().map_or(Source::Fallback, source);
            match result.outcome {
                Some(Outcome::Placement(placement)) if source == Source::Fetched => {
                    let Some(held) = Held::from_proto(&placement, &self.shared.cells) else {
                        continue;
                    };
                    let fetched = Fetched {
                        held,
                        source,
                        sent: page.sent,
                        sequence: answer.sequence,
                        age: duration(answer.age.as_ref()),
                        lease: duration(answer.lease.as_ref()).unwrap_or_default(),
                    };
                    self.settle(now, ticket, &fetched, false);
                }
                Some(Outcome::Error(error)) if error.code == NOT_FOUND => {
                    self.settle_absent(now, ticket)
                }
                Some(_) | None => {}
            }
        }
    }
}

/// Where a replica's answer came from, as far as it concerns us.
pub(crate) fn source(decision: &proto::Decision) -> Source {
    if !decision.authoritative {
        return Source::Fallback;
    }
    match decision.source() {
        proto::DecisionSource::Override => Source::Override,
        proto::DecisionSource::Fallback => Source::Fallback,
        _ => Source::Fetched,
    }
}
