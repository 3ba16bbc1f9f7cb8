//! Group commit: all changes of this replica go through one task, which writes as many as fit in one journal entry.
//!
//! While a commit is under way, commands queue up; the next entry takes them together. So the latency of one commit bounds the latency
//! of a change, and the rate of changes grows with the load instead of the rate of transactions. (The idea is that of a database's
//! log: D. DeWitt et al., "Implementation techniques for main memory database systems", SIGMOD 1984.)
//!
//! *Waiting for companions*, see [`crowd`].
//!
//! *Leaving others their turn.* Whoever loses the race for the head must read what won and try again, and meanwhile the winner, who need not
//! read, has committed once more: it could win for ever. So a replica that knows of others pauses after each entry of its own.
//!
//! *Lost replies.* A commit whose reply was lost is repeated as it is. Both attempts are conditional on the journal's head, so at most
//! one of them is done; if the head has moved, the entry that took the place says by its nonce whether it is ours.
//!
//! *Nobody pays for others for long.* A command that assumes wrongly has its whole entry refused. So what a commit says of a key is
//! told to all that wait, and the commands of a refused entry are drafted again without newcomers, who may assume wrongly, too.
//! And where the store will not have an entry at all, it may be for one command's sake, such as a tenant whose record cannot be read:
//! smaller entries follow until that command stands alone.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::SpanContext;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

mod crowd;

use self::crowd::Crowd;
use super::clock::Clock;
use super::commit_span;
use super::draft::{Command, Draft, Drafted, Outcome};
use super::error::{Error, Refused};
use super::pauses::Pauses;
use super::policy::AssignmentPolicy;
use super::randomness::Randomness;
use super::replica::Replica;
use crate::domain::{Change, Mapping, Nonce, PartitionKey, Placement, Sequence};
use crate::store::{Commit, CommitOutcome, Found, Journal, MAX_WRITES, Refusal, StoreError};
use crate::telemetry::propagation;

/// Most commands that wait for the task to take them up.
const QUEUE: usize = 4096;

/// Most commands taken up at once: more than an entry holds, so that deferred ones do not keep others waiting.
const BACKLOG: usize = 256;

/// How often a command is drafted again because somebody else's change came first.
const MAX_REDRAFTS: u32 = 128;

/// How long another replica that was seen to commit is taken to go on with it, and the share of a commit's duration that it is left each
/// time.
const RIVALS_STAY: Duration = Duration::from_secs(10);
const COURTESY_SHARE: u32 = 2;

/// How many commands in a row the store has to turn down alone until it is taken to turn down all that wait.
const MAX_LONE_FAILURES: u32 = 3;

#[derive(Debug, Clone)]
pub struct CommitterSettings {
    /// How long a commit may take, all attempts together.
    pub commit_budget: Duration,
    /// How long a request id is remembered.
    pub request_retention: Duration,
}

/// Hands commands to the committer's task.
#[derive(Debug, Clone)]
pub struct Changes {
    queue: mpsc::Sender<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    command: Command,
    reply: oneshot::Sender<Result<Outcome, Error>>,
    redrafts: u32,
    /// Drafted on a registry that was read after the command came: a refusal is final.
    current: bool,
    /// Its entry was refused, and what it assumes was put right. Drafted again before those that are not checked.
    checked: bool,
    /// Who asks, where that is traced.
    caller: Option<SpanContext>,
}

impl Changes {
    /// Does a command and answers what it came to.
    ///
    /// # Errors
    /// [`Error::Refused`], or why it could not be done; only after [`Error::OutcomeUnknown`] may it have been done.
    pub async fn submit(&self, command: Command) -> Result<Outcome, Error> {
        let (reply, answer) = oneshot::channel();
        let caller = propagation::current();
        let waiting =
            Waiting { command, reply, redrafts: 0, current: false, checked: false, caller };
        self.queue.try_send(waiting)?;
        // The task answers all that it takes up, unless it panics.
        answer.await.unwrap_or(Err(Error::OutcomeUnknown))
    }
}

/// What the task needs.
pub struct Committer {
    pub replica: Arc<Replica>,
    pub journal: Arc<dyn Journal>,
    pub policy: Arc<dyn AssignmentPolicy>,
    pub clock: Clock,
    pub randomness: Randomness,
    pub pauses: Pauses,
    pub settings: CommitterSettings,
}

/// The task's state.
struct Task {
    parts: Committer,
    /// Most commands of the next entry.
    limit: usize,
    /// Commands in a row that the store turned down though they stood alone.
    lone_failures: u32,
    crowd: Crowd,
    /// The last entry of its own.
    last_own: Sequence,
    /// Until when other replicas are taken to commit, too.
    rivals_until: Option<tokio::time::Instant>,
}

/// A command in a draft and what it comes to if the draft is committed.
type Included = (Waiting, Outcome);

/// What became of a backlog.
#[derive(Default)]
struct Sorted {
    included: Vec<Included>,
    /// Refused for good, unless they repeat a request that was done.
    refused: Vec<(Waiting, Refused)>,
    /// Some are refused as this replica knows the journal, which may have gone on.
    doubtful: bool,
}

/// What became of an entry.
enum Ended {
    Committed,
    /// Draft again on the journal as it stands now.
    HeadMoved,
    Refused(Vec<Refusal>),
    Failed(Error),
}

impl Ended {
    /// As telemetry names it.
    fn as_str(&self) -> &'static str {
        match self {
            Ended::Committed => "committed",
            Ended::HeadMoved => "head_moved",
            Ended::Refused(_) => "refused",
            Ended::Failed(_) => "failed",
        }
    }
}

impl Committer {
    /// The queue's ends. The receiver is for [`Committer::run`].
    pub fn queue() -> (Changes, CommandQueue) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Changes { queue }, CommandQueue(receiver))
    }

    /// Commits commands until `stop`, then those that wait already.
    pub async fn run(self, queue: CommandQueue, stop: CancellationToken) {
        let mut task = Task {
            parts: self,
            limit: MAX_WRITES,
            lone_failures: 0,
            crowd: Crowd::default(),
            last_own: Sequence::START,
            rivals_until: None,
        };
        let mut queue = queue.0;
        let mut backlog = VecDeque::new();
        loop {
            // Closing lets `recv` hand out what waits and then end. Looked at in every round, so that load does not put it off.
            if stop.is_cancelled() {
                queue.close();
            }
            if backlog.is_empty() {
                tokio::select! {
                    biased;
                    next = queue.recv() => match next {
                        Some(waiting) => backlog.push_back(waiting),
                        None => return,
                    },
                    () = stop.cancelled(), if !queue.is_closed() => continue,
                }
            }
            task.gather(&mut queue, &mut backlog).await;
            task.round(&mut backlog).await;
        }
    }
}

fn take_up(queue: &mut mpsc::Receiver<Waiting>, backlog: &mut VecDeque<Waiting>) {
    while backlog.len() < BACKLOG
        && let Ok(waiting) = queue.try_recv()
    {
        backlog.push_back(waiting);
    }
}

impl Task {
    /// Takes up what waits, and waits for companions where that is worth it.
    async fn gather(
        &mut self,
        queue: &mut mpsc::Receiver<Waiting>,
        backlog: &mut VecDeque<Waiting>,
    ) {
        take_up(queue, backlog);
        let Some(wait) = self.crowd.wait(backlog.len(), self.limit) else { return };
        let until = tokio::time::Instant::now() + wait.longest;
        while backlog.len() < wait.enough
            && let Ok(Some(waiting)) = tokio::time::timeout_at(until, queue.recv()).await
        {
            backlog.push_back(waiting);
            take_up(queue, backlog);
        }
        self.crowd.waited(backlog.len() >= wait.enough);
    }

    /// Drafts an entry from the backlog, commits it, and answers. What did not fit, or must be drafted again, stays.
    async fn round(&mut self, backlog: &mut VecDeque<Waiting>) {
        let registry = match self.parts.replica.registry() {
            Ok(registry) => registry,
            Err(error) => return refuse_all(backlog.drain(..), &error),
        };
        if registry.applied() > self.last_own && self.last_own > Sequence::START {
            self.meet_rivals();
        }
        let mut draft = Draft::new(
            &*self.parts.policy,
            &registry,
            self.parts.clock.now(),
            self.parts.settings.request_retention,
        )
        .with_loads(self.parts.replica.loads());
        let sorted = self.sort(&mut draft, backlog);
        if !draft.is_empty() {
            let (commit, owners) = draft.finish(Nonce::new(self.parts.randomness.draw()));
            self.see_through(&commit, sorted.included, &owners, backlog).await;
        }
        let refused = sorted.refused.into_iter();
        let refusing = refused.map(|(waiting, refusal)| self.refuse(waiting, refusal));
        futures::future::join_all(refusing).await;
        if sorted.doubtful && !backlog.is_empty() {
            let read = self.parts.replica.catch_up().await;
            make_current(read, backlog);
        }
    }

    /// Adds the backlog's commands to a draft, and answers those that need no entry. What did not fit stays.
    fn sort(&self, draft: &mut Draft<'_>, backlog: &mut VecDeque<Waiting>) -> Sorted {
        let mut sorted = Sorted::default();
        let only_checked = backlog.iter().any(|waiting| waiting.checked);
        for waiting in std::mem::take(backlog) {
            if waiting.reply.is_closed() {
                continue;
            }
            if (only_checked && !waiting.checked) || sorted.included.len() >= self.limit {
                backlog.push_back(waiting);
                continue;
            }
            match draft.add(&waiting.command) {
                Drafted::Included(outcome) => sorted.included.push((waiting, outcome)),
                Drafted::Settled(Err(_)) if !waiting.current => {
                    sorted.doubtful = true;
                    backlog.push_back(waiting);
                }
                Drafted::Settled(Err(refusal)) if waiting.command.request.is_some() => {
                    sorted.refused.push((waiting, refusal));
                }
                Drafted::Settled(answer) => waiting.answer(answer.map_err(Error::from)),
                Drafted::Deferred => backlog.push_back(waiting),
            }
        }
        sorted
    }

    /// Commits an entry, applies it, answers its commands, and leaves other replicas their turn.
    async fn see_through(
        &mut self,
        commit: &Commit,
        included: Vec<Included>,
        owners: &[usize],
        backlog: &mut VecDeque<Waiting>,
    ) {
        let began = self.parts.replica.clock().instant();
        let callers = included.iter().filter_map(|(waiting, _)| waiting.caller.as_ref());
        let span = commit_span::begin(commit.entry.sequence, included.len(), callers);
        let sent = tokio::time::Instant::now();
        let ended = self.commit(commit).instrument(span.clone()).await;
        let took = sent.elapsed();
        self.crowd.committed(included.len(), took);
        commit_span::end(span, ended.as_str(), matches!(ended, Ended::Failed(_)));
        let committed = matches!(ended, Ended::Committed);
        if committed {
            self.parts.replica.apply_own(&commit.entry, began);
            self.last_own = commit.entry.sequence;
        }
        self.conclude(ended, included, owners, backlog, took).await;
        let now = tokio::time::Instant::now();
        if committed && self.rivals_until.is_some_and(|until| now < until) {
            tokio::time::sleep(took / COURTESY_SHARE).await;
        }
    }

    /// Another replica was seen to commit.
    fn meet_rivals(&mut self) {
        self.rivals_until = Some(tokio::time::Instant::now() + RIVALS_STAY);
    }

    /// Refuses a command with a request id, unless it repeats one that was done since it came: what that did is why it is refused.
    async fn refuse(&self, waiting: Waiting, refusal: Refused) {
        let Some(request) = &waiting.command.request else {
            return waiting.answer(Err(refusal.into()));
        };
        let answer = match self.parts.journal.request(&request.id).await {
            Ok(Some(record)) if record.counts(self.parts.clock.now()) => {
                request.repeat_of(record).map_err(Error::from)
            }
            Ok(_) => Err(refusal.into()),
            Err(error) => Err(error.into()),
        };
        waiting.answer(answer);
    }

    /// Answers an entry's commands, or puts them back at the front of the backlog.
    async fn conclude(
        &mut self,
        ended: Ended,
        included: Vec<Included>,
        owners: &[usize],
        backlog: &mut VecDeque<Waiting>,
        took: Duration,
    ) {
        match ended {
            Ended::Committed => {
                self.limit = (self.limit * 2).min(MAX_WRITES);
                self.lone_failures = 0;
                tell(backlog, included.iter().filter_map(|(_, outcome)| mapping_after(outcome)));
                for (waiting, outcome) in included {
                    waiting.answer(Ok(outcome));
                }
            }
            Ended::Failed(error) if self.divides(&error, included.len()) => {
                put_back_checked(included, backlog);
            }
            Ended::Failed(error) => {
                refuse_all(included.into_iter().map(|(waiting, _)| waiting), &error);
            }
            Ended::HeadMoved => {
                put_back(included, backlog);
                self.meet_rivals();
                // Whoever keeps coming too late by as much each time would never get its turn.
                tokio::time::sleep(took.mul_f64(self.parts.randomness.draw())).await;
                let read = self.parts.replica.pull().await;
                make_current(read, backlog);
            }
            Ended::Refused(refusals) => {
                let mut found: Vec<Option<Found>> = vec![None; included.len()];
                for refusal in refusals {
                    if let Some(owner) = owners.get(refusal.write) {
                        found[*owner] = Some(refusal.found);
                    }
                }
                let mut again = Vec::new();
                let mut mappings = Vec::new();
                for ((mut waiting, outcome), found) in included.into_iter().zip(found) {
                    match found {
                        Some(Found::Request(record)) => {
                            let request = waiting.command.request.as_ref();
                            let answer = request.map(|request| request.repeat_of(record));
                            let answer = answer.unwrap_or(Err(Refused::RequestIdReused));
                            waiting.answer(answer.map_err(Error::from));
                            continue;
                        }
                        Some(Found::Superseded) => {
                            waiting.answer(Err(Refused::Superseded.into()));
                            continue;
                        }
                        Some(Found::Mapping(mapping)) => {
                            let key = waiting.command.action.key().cloned();
                            mappings.extend(key.map(|key| (key, mapping.clone())));
                            waiting.command.action.assume(mapping);
                        }
                        None => {}
                    }
                    again.push((waiting, outcome));
                }
                tell(backlog, mappings.into_iter());
                put_back_checked(again, backlog);
            }
        }
    }

    /// Whether to try smaller entries: the store will not have one of `commands` commands, and it may be for the sake of one.
    fn divides(&mut self, error: &Error, commands: usize) -> bool {
        use StoreError::{Rejected, Unreadable};
        if !matches!(error, Error::Store(Rejected { .. } | Unreadable { .. })) {
            return false;
        }
        if commands == 1 {
            self.lone_failures += 1;
            if self.lone_failures >= MAX_LONE_FAILURES {
                self.limit = MAX_WRITES;
            }
            return false;
        }
        if self.lone_failures >= MAX_LONE_FAILURES {
            self.lone_failures = 0;
            return false;
        }
        self.limit = commands / 2;
        true
    }

    /// Commits an entry, repeating it while that may help and there is time.
    async fn commit(&mut self, commit: &Commit) -> Ended {
        let deadline = tokio::time::Instant::now() + self.parts.settings.commit_budget;
        let mut failures = 0;
        // A reply to an earlier attempt was lost: the entry may be in the journal already.
        let mut in_doubt = false;
        loop {
            let attempt = self.attempt(commit, in_doubt);
            let failed = match tokio::time::timeout_at(deadline, attempt).await {
                Ok(Ok(ended)) => return ended,
                Ok(Err(error)) => error,
                // Given up half-way.
                Err(_elapsed) => StoreError::Timeout,
            };
            in_doubt |= failed.ambiguous();
            failures += 1;
            let pause = self.parts.pauses.after(failures, &self.parts.randomness);
            // An attempt that is cut off leaves the outcome open: unless it is open already, none is begun that may be.
            let room =
                if in_doubt { Duration::ZERO } else { self.parts.settings.commit_budget / 8 };
            // A step of a migration waits for writers to let go of a guard: that is for its worker to do, not for everybody here.
            let alone = matches!(commit.entry.changes.as_slice(), [Change::Moved { .. }]);
            if !failed.transient()
                || (alone && failed == StoreError::Throttled)
                || tokio::time::Instant::now() + pause + room >= deadline
            {
                return Ended::Failed(match in_doubt {
                    true => Error::OutcomeUnknown,
                    false => Error::Store(failed),
                });
            }
            tracing::debug!(error = %failed, in_doubt, "repeating a commit");
            tokio::time::sleep(pause).await;
        }
    }

    async fn attempt(&self, commit: &Commit, in_doubt: bool) -> Result<Ended, StoreError> {
        match self.parts.journal.commit(commit).await? {
            CommitOutcome::Committed => Ok(Ended::Committed),
            // Also after an attempt whose reply was lost: that one was not done, or the head would have moved.
            CommitOutcome::Refused(refusals) => Ok(Ended::Refused(refusals)),
            CommitOutcome::HeadMoved if in_doubt && self.is_written(commit).await? => {
                Ok(Ended::Committed)
            }
            CommitOutcome::HeadMoved => Ok(Ended::HeadMoved),
            CommitOutcome::Contended => Err(StoreError::Throttled),
        }
    }

    /// Whether the journal holds this very entry, whose place is taken.
    async fn is_written(&self, commit: &Commit) -> Result<bool, StoreError> {
        let sequence = commit.entry.sequence;
        let before = Sequence::new(sequence.get() - 1);
        let there = self.parts.journal.entries(before, 1).await?;
        match there.first() {
            Some(entry) if entry.sequence == sequence => Ok(entry.nonce == commit.entry.nonce),
            _ => {
                Err(StoreError::Unreadable { detail: format!("journal entry {sequence} is gone") })
            }
        }
    }
}

/// Commands on their way to [`Committer::run`].
pub struct CommandQueue(mpsc::Receiver<Waiting>);

impl Waiting {
    fn answer(self, answer: Result<Outcome, Error>) {
        // A caller who has gone does not need it.
        let _ = self.reply.send(answer);
    }
}

fn put_back(included: Vec<Included>, backlog: &mut VecDeque<Waiting>) {
    for (mut waiting, _) in included.into_iter().rev() {
        waiting.redrafts += 1;
        if waiting.redrafts > MAX_REDRAFTS {
            waiting.answer(Err(Refused::Contended.into()));
        } else {
            backlog.push_front(waiting);
        }
    }
}

/// Puts commands back that are to be drafted again without newcomers.
fn put_back_checked(mut included: Vec<Included>, backlog: &mut VecDeque<Waiting>) {
    included.iter_mut().for_each(|(waiting, _)| waiting.checked = true);
    put_back(included, backlog);
}

fn refuse_all(waiting: impl Iterator<Item = Waiting>, error: &Error) {
    for waiting in waiting {
        waiting.answer(Err(error.clone()));
    }
}

/// After a read of the journal up to its head, refusals are final. Where it failed, so do the commands that wait for it.
fn make_current(read: Result<(), StoreError>, backlog: &mut VecDeque<Waiting>) {
    match read {
        Ok(()) => backlog.iter_mut().for_each(|waiting| waiting.current = true),
        Err(error) => refuse_all(backlog.drain(..), &Error::Store(error)),
    }
}

/// Tells those that wait what the table says of their keys.
fn tell(backlog: &mut VecDeque<Waiting>, mappings: impl Iterator<Item = (PartitionKey, Mapping)>) {
    if backlog.is_empty() {
        return;
    }
    let mappings: HashMap<PartitionKey, Mapping> = mappings.collect();
    for waiting in backlog {
        let known = waiting.command.action.key().and_then(|key| mappings.get(key)).cloned();
        if let Some(mapping) = known {
            waiting.command.action.assume(mapping);
        }
    }
}

/// What the table says of a key once a command's outcome is committed.
fn mapping_after(outcome: &Outcome) -> Option<(PartitionKey, Mapping)> {
    match outcome {
        Outcome::Placed { placement, created: true, .. } => {
            Some((placement.key.clone(), Mapping::Placed(Placement::clone(placement))))
        }
        Outcome::Vacated(placement) => {
            Some((placement.key.clone(), Mapping::Vacated(placement.epoch)))
        }
        Outcome::Moved(placement) => {
            Some((placement.key.clone(), Mapping::Placed(Placement::clone(placement))))
        }
        // What was there before was only assumed to be there still.
        Outcome::Placed { .. } | Outcome::Cell(_) | Outcome::CellDeleted | Outcome::Cluster(_) => {
            None
        }
    }
}
