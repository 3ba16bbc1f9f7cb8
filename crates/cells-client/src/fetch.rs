//! Asks the directory for a key that memory does not hold: several endpoints, hedged, once for all who ask at the same time.
//!
//! A question to the directory is safe to repeat, and to ask of two replicas at once: a tenant is placed once. The first good answer wins;
//! whether it may be told and kept is up to the follower (`settle`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};

use crate::answer::{Resolved, Source};
use crate::clock::Moment;
use crate::directory::Core;
use crate::error::{Error, Failure, FailureKind};
use crate::follower::{Fetched, Settled, Ticket, duration, source};
use crate::held::Held;
use crate::options::Hedge;
use crate::proto;

/// Attempts of one round: every endpoint once, but no more than these.
const MAX_ATTEMPTS: usize = 4;
/// Rounds of one question: an answer can be doubtful, overtaken or a failure so often. The deadline usually comes first.
const MAX_ROUNDS: u32 = 16;
/// The pause after a round in which every endpoint has failed; doubles.
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// Its limit.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// Hedges are so many parts of a hundred of the questions, in the long run: a slow directory is not asked twice as much.
const HEDGE_PERCENT: u32 = 10;
/// Hedges that may be saved up, in hundredths.
const HEDGE_SAVED: u32 = 1_000;

/// What to ask for besides the key. See the methods of [`crate::Question`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Question {
    pub(crate) lookup_only: bool,
    pub(crate) refuse_fallback: bool,
    pub(crate) leased: bool,
    pub(crate) min_epoch: u64,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) regions: Vec<String>,
}

impl Question {
    /// The default: memory first; a tenant that has no cell is placed; a guess is welcome where nothing else is to be had.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tenant that has no cell is [`Error::NotFound`] and stays without.
    #[must_use]
    pub fn lookup_only(mut self) -> Self {
        self.lookup_only = true;
        self
    }

    /// No guess: [`Error::Unavailable`] instead.
    #[must_use]
    pub fn refuse_fallback(mut self) -> Self {
        self.refuse_fallback = true;
        self
    }

    /// An answer of memory without a lease is not enough: a replica is asked. Where none answers, memory's answer is given after all.
    #[must_use]
    pub fn leased(mut self) -> Self {
        self.leased = true;
        self
    }

    /// The lowest epoch to take, because it was seen elsewhere, such as in the redirect of a guard. 0: any. Memory below it is not
    /// answered, whatever happens.
    #[must_use]
    pub fn min_epoch(mut self, epoch: u64) -> Self {
        self.min_epoch = epoch;
        self
    }

    /// A label that the cell of a new tenant must carry. At most 32.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// A Region that the cell of a new tenant may be in; several may be named, at most 32.
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.regions.push(region.into());
        self
    }

    /// Whether what memory has is good enough.
    pub(crate) fn is_met_by(&self, resolved: &Resolved, now: Moment) -> bool {
        resolved.held.epoch >= self.min_epoch && (!self.leased || resolved.lease_until > now)
    }

    fn request(&self, key: &str, min_epoch: u64) -> proto::ResolveRequest {
        let mode = match self.lookup_only {
            true => proto::ResolveMode::LookupOnly,
            false => proto::ResolveMode::AssignIfMissing,
        };
        let fallback = match self.refuse_fallback {
            true => proto::FallbackPolicy::Refuse,
            false => proto::FallbackPolicy::Allow,
        };
        let constraints = (!self.labels.is_empty() || !self.regions.is_empty()).then(|| {
            proto::PlacementConstraints {
                labels: self.labels.clone(),
                regions: self.regions.clone(),
            }
        });
        proto::ResolveRequest {
            partition_key: key.to_owned(),
            mode: mode.into(),
            constraints,
            min_epoch,
            fallback: fallback.into(),
            explain: false,
        }
    }
}

/// How long answers take: the 95th percentile, by steps of its own size (Tierney's stochastic approximation, with a constant step).
pub(crate) struct Latency {
    p95: Duration,
    budget: u32,
}

impl Latency {
    pub fn new(hedge: Hedge) -> Self {
        let p95 = match hedge {
            Hedge::Off => Duration::MAX,
            Hedge::After(delay) => delay,
            Hedge::Adaptive { max, .. } => max,
        };
        Self { p95, budget: HEDGE_SAVED }
    }

    fn observe(&mut self, hedge: Hedge, took: Duration) {
        let Hedge::Adaptive { min, max } = hedge else { return };
        let step = (self.p95 / 10).max(Duration::from_micros(10));
        self.p95 =
            if took > self.p95 { self.p95 + step } else { self.p95.saturating_sub(step / 19) };
        self.p95 = self.p95.clamp(min, max);
    }

    fn question(&mut self) {
        self.budget = (self.budget + HEDGE_PERCENT).min(HEDGE_SAVED);
    }

    fn take_hedge(&mut self) -> bool {
        let afford = self.budget >= 100;
        self.budget -= if afford { 100 } else { 0 };
        afford
    }
}

/// Gives the ticket back, whatever ends the question.
struct Asking<'a> {
    core: &'a Core,
    ticket: Ticket,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.core.follower.lock().end(&self.ticket);
    }
}

/// Asks until there is an answer or the deadline.
pub(crate) async fn fetch(
    core: Arc<Core>,
    key: Box<str>,
    question: Question,
) -> Result<Resolved, Error> {
    let ticket = core.follower.lock().begin(&key);
    let asking = Asking { core: &core, ticket };
    core.latency.lock().question();
    let outcome = match tokio::time::timeout(
        core.options.deadline,
        rounds(&core, &asking, &question),
    )
    .await
    {
        Ok(outcome) => outcome,
        Err(_) => Err(Failure::passing("the deadline has passed")),
    };
    match outcome {
        Ok(resolved) => Ok(resolved),
        Err(failure) => last_resort(&core, &key, &question, failure),
    }
}

/// What is left where no endpoint has answered: memory, then the configured guess.
fn last_resort(
    core: &Core,
    key: &str,
    question: &Question,
    failure: Failure,
) -> Result<Resolved, Error> {
    if failure.kind != FailureKind::Passing {
        return Err(failure.into_error());
    }
    if let Some(resolved) = core.follower.lock().recall(key)
        && resolved.held.epoch >= question.min_epoch
    {
        return Ok(resolved);
    }
    // A guess for somebody who has seen an epoch would be a step back.
    match &core.fallback {
        Some(cell) if !question.refuse_fallback && question.min_epoch == 0 => Ok(Resolved {
            held: Held::fallback(*cell),
            lease_until: Moment::NEVER,
            as_of: Moment::NEVER,
            source: Source::Fallback,
        }),
        _ => Err(failure.into_error()),
    }
}

async fn rounds(
    core: &Core,
    asking: &Asking<'_>,
    question: &Question,
) -> Result<Resolved, Failure> {
    let mut min_epoch = question.min_epoch.max(asking.ticket.core.held_epoch);
    let mut doubtful: Option<Fetched> = None;
    let mut pause = PAUSE_MIN;
    let mut last = Failure::passing("too many rounds");
    for _ in 0..MAX_ROUNDS {
        let fetched = match round(core, &asking.ticket.key, question, min_epoch).await {
            Ok(fetched) => fetched,
            Err(failure) if failure.kind == FailureKind::EpochNotReached && doubtful.is_some() => {
                // No higher epoch exists: the answer in doubt is the latest.
                let Some(fetched) = doubtful.take() else { continue };
                match core.follower.lock().settle(core.shared.now(), &asking.ticket, &fetched, true)
                {
                    Settled::Answer(resolved) => return Ok(resolved),
                    Settled::Doubtful { epoch } | Settled::Over { epoch } => {
                        min_epoch = epoch.saturating_add(1)
                    }
                }
                continue;
            }
            Err(failure) if failure.kind == FailureKind::Passing => {
                let wait = pause.max(failure.retry_after.unwrap_or_default()).min(PAUSE_MAX);
                last = failure;
                let wait = core.rng.lock().jitter(wait);
                tokio::time::sleep(wait).await;
                pause = (pause * 2).min(PAUSE_MAX);
                continue;
            }
            Err(failure) => return Err(failure),
        };
        let settled =
            core.follower.lock().settle(core.shared.now(), &asking.ticket, &fetched, false);
        match settled {
            // What is held is below what was asked for, and what was fetched cannot be told from another journal's.
            Settled::Answer(resolved)
                if resolved.source != Source::Fallback
                    && resolved.held.epoch < question.min_epoch => {}
            Settled::Answer(resolved) => return Ok(resolved),
            Settled::Doubtful { epoch } => {
                min_epoch = min_epoch.max(epoch.saturating_add(1));
                doubtful = Some(fetched);
            }
            Settled::Over { epoch } => min_epoch = min_epoch.max(epoch.saturating_add(1)),
        }
        last = Failure::passing("the endpoints answer what is known to be over");
    }
    Err(last)
}

/// Asks one endpoint after the other, the second early, until one gives a good answer.
async fn round(
    core: &Core,
    key: &str,
    question: &Question,
    min_epoch: u64,
) -> Result<Fetched, Failure> {
    let count = core.transport.endpoints().max(1);
    let first =
        core.follower.lock().alive().unwrap_or_else(|| core.rng.lock().next() as usize % count);
    let mut left = (0..count.min(MAX_ATTEMPTS)).map(|n| (first + n) % count);
    let mut attempts = FuturesUnordered::new();
    attempts.extend(left.next().map(|endpoint| attempt(core, endpoint, key, question, min_epoch)));
    let delay = match core.options.hedge {
        Hedge::Off => Duration::MAX,
        Hedge::After(delay) => delay,
        Hedge::Adaptive { .. } => core.latency.lock().p95,
    };
    let hedge = tokio::time::sleep(delay);
    tokio::pin!(hedge);
    let mut hedged = false;
    let mut last = Failure::passing("no endpoint");
    loop {
        tokio::select! {
            biased;
            outcome = attempts.next() => match outcome {
                Some(Ok(fetched)) => return Ok(fetched),
                // What one replica says for good, all say.
                Some(Err(failure)) if failure.kind != FailureKind::Passing => return Err(failure),
                Some(Err(failure)) => {
                    last = failure;
                    attempts.extend(left.next().map(|endpoint| attempt(core, endpoint, key, question, min_epoch)));
                }
                None => return Err(last),
            },
            () = &mut hedge, if !hedged => {
                hedged = true;
                if core.latency.lock().take_hedge() {
                    attempts.extend(left.next().map(|endpoint| attempt(core, endpoint, key, question, min_epoch)));
                }
            }
        }
    }
}

async fn attempt(
    core: &Core,
    endpoint: usize,
    key: &str,
    question: &Question,
    min_epoch: u64,
) -> Result<Fetched, Failure> {
    // Before anything is sent: a lease counts from here.
    let sent = core.shared.now();
    let call = core.transport.resolve(endpoint, question.request(key, min_epoch));
    let response = match tokio::time::timeout(core.options.attempt_timeout, call).await {
        Ok(response) => response?,
        Err(_) => return Err(Failure::passing("an attempt took too long")),
    };
    core.latency.lock().observe(core.options.hedge, core.shared.now().since(sent));
    let (Some(placement), Some(decision)) = (response.placement, response.decision) else {
        return Err(Failure::passing("an answer without a placement"));
    };
    let source = source(&decision);
    if source != Source::Fallback && placement.epoch < min_epoch.max(1) {
        return Err(Failure::passing("an answer below the epoch that was asked for"));
    }
    if source == Source::Fallback && (question.min_epoch > 0 || question.refuse_fallback) {
        return Err(Failure::passing("a guess that was not asked for"));
    }
    core.shared.cells.address(
        &placement.cell_id,
        &placement.endpoint,
        &placement.region,
        decision.sequence,
    );
    let Some(held) = Held::from_proto(&placement, &core.shared.cells) else {
        return Err(Failure::passing("an answer without a cell"));
    };
    Ok(Fetched {
        held,
        source,
        sent,
        sequence: decision.sequence,
        age: duration(decision.age.as_ref()),
        lease: duration(decision.lease.as_ref()).unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hedge_delay_follows_the_95th_percentile_within_its_bounds() {
        let hedge =
            Hedge::Adaptive { min: Duration::from_millis(1), max: Duration::from_millis(100) };
        let mut latency = Latency::new(hedge);
        assert_eq!(latency.p95, Duration::from_millis(100));
        // 1 to 20 ms, evenly: 95 % stay below 19.
        for n in 0..20_000_u64 {
            latency.observe(hedge, Duration::from_millis(1 + n * 7 % 20));
        }
        assert!((15..=24).contains(&latency.p95.as_millis()), "{:?}", latency.p95);
        for _ in 0..20_000 {
            latency.observe(hedge, Duration::ZERO);
        }
        assert_eq!(latency.p95, Duration::from_millis(1));
    }

    #[test]
    fn hedges_are_a_tenth_of_the_questions() {
        let mut latency = Latency::new(Hedge::After(Duration::ZERO));
        let taken = (0..1_000).filter(|_| {
            latency.question();
            latency.take_hedge()
        });
        assert!((100..=110).contains(&taken.count()));
    }
}
