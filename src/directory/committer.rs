//! Group commit: all changes of this replica go through one task, which writes as many as fit in one journal entry.
//!
//! While a commit is under way, commands queue up; the next entry takes them together. So the latency of one commit bounds the latency
//! of a change, and the rate of changes grows with the load instead of the rate of transactions. (The idea is that of a database's
//! log: D. DeWitt et al., "Implementation techniques for main memory database systems", SIGMOD 1984.)
//!
//! *Lost replies.* A commit whose reply was lost is repeated as it is. Both attempts are conditional on the journal's head, so at most
//! one of them is done; if the head has moved, the entry that took the place says by its nonce whether it is ours.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry::trace::SpanContext;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tower::retry::backoff::{Backoff, ExponentialBackoffMaker, MakeBackoff};
use tracing::Instrument;

use super::clock::Clock;
use super::commit_span;
use super::draft::{Command, Draft, Drafted, Outcome};
use super::error::{Error, Refused};
use super::policy::AssignmentPolicy;
use super::replica::Replica;
use crate::domain::{Nonce, Sequence};
use crate::store::{Commit, CommitOutcome, Found, Journal, Refusal, StoreError};
use crate::telemetry::propagation;

/// Most commands that wait for the task to take them up.
const QUEUE: usize = 4096;

/// Most commands taken up at once: more than an entry holds, so that deferred ones do not keep others waiting.
const BACKLOG: usize = 256;

/// How often a command is drafted again because somebody else's change came first.
const MAX_REDRAFTS: u32 = 32;

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
        let waiting = Waiting { command, reply, redrafts: 0, current: false, caller };
        self.queue.try_send(waiting).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Error::NotReady,
        })?;
        // The task answers all that it takes up, unless it panics.
        answer.await.unwrap_or(Err(Error::OutcomeUnknown))
    }
}

/// The task's state.
pub struct Committer {
    pub replica: Arc<Replica>,
    pub journal: Arc<dyn Journal>,
    pub policy: Arc<dyn AssignmentPolicy>,
    pub clock: Clock,
    pub backoff: ExponentialBackoffMaker,
    pub settings: CommitterSettings,
}

/// A command in a draft and what it comes to if the draft is committed.
type Included = (Waiting, Outcome);

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
    pub async fn run(mut self, queue: CommandQueue, stop: CancellationToken) {
        let mut queue = queue.0;
        let mut backlog = VecDeque::new();
        loop {
            if backlog.is_empty() {
                tokio::select! {
                    biased;
                    next = queue.recv() => match next {
                        Some(waiting) => backlog.push_back(waiting),
                        None => return,
                    },
                    // Closing lets `recv` hand out what waits and then end.
                    () = stop.cancelled(), if !queue.is_closed() => queue.close(),
                }
            }
            while backlog.len() < BACKLOG
                && let Ok(waiting) = queue.try_recv()
            {
                backlog.push_back(waiting);
            }
            self.round(&mut backlog).await;
        }
    }

    /// Drafts an entry from the backlog, commits it, and answers. What did not fit, or must be drafted again, stays.
    async fn round(&mut self, backlog: &mut VecDeque<Waiting>) {
        let registry = match self.replica.registry() {
            Ok(registry) => registry,
            Err(error) => return refuse_all(backlog.drain(..), &error),
        };
        let mut draft =
            Draft::new(&*self.policy, &registry, self.clock.now(), self.settings.request_retention);
        let mut included: Vec<Included> = Vec::new();
        let mut rest = VecDeque::new();
        let mut doubtful = false;
        for waiting in backlog.drain(..) {
            if waiting.reply.is_closed() {
                continue;
            }
            match draft.add(&waiting.command) {
                Drafted::Included(outcome) => included.push((waiting, outcome)),
                Drafted::Settled(Err(_)) if !waiting.current => {
                    doubtful = true;
                    rest.push_back(waiting);
                }
                Drafted::Settled(answer) => waiting.answer(answer.map_err(Error::from)),
                Drafted::Deferred => rest.push_back(waiting),
            }
        }
        *backlog = rest;
        if !draft.is_empty() {
            let (commit, owners) = draft.finish(Nonce::new(rand::random()));
            let began = Instant::now();
            let callers = included.iter().filter_map(|(waiting, _)| waiting.caller.as_ref());
            let span = commit_span::begin(commit.entry.sequence, included.len(), callers);
            let ended = self.commit(&commit).instrument(span.clone()).await;
            commit_span::end(span, ended.as_str(), matches!(ended, Ended::Failed(_)));
            if matches!(ended, Ended::Committed) {
                self.replica.apply_own(&commit.entry, began);
            }
            self.conclude(ended, included, &owners, backlog).await;
        }
        if doubtful {
            self.make_current(backlog).await;
        }
    }

    /// Answers an entry's commands, or puts them back at the front of the backlog.
    async fn conclude(
        &mut self,
        ended: Ended,
        included: Vec<Included>,
        owners: &[usize],
        backlog: &mut VecDeque<Waiting>,
    ) {
        match ended {
            Ended::Committed => {
                for (waiting, outcome) in included {
                    waiting.answer(Ok(outcome));
                }
            }
            Ended::Failed(error) => {
                refuse_all(included.into_iter().map(|(waiting, _)| waiting), &error);
            }
            Ended::HeadMoved => {
                put_back(included, backlog);
                self.make_current(backlog).await;
            }
            Ended::Refused(refusals) => {
                let mut found: Vec<Option<Found>> = vec![None; included.len()];
                for refusal in refusals {
                    if let Some(owner) = owners.get(refusal.write) {
                        found[*owner] = Some(refusal.found);
                    }
                }
                let mut again = Vec::new();
                for ((mut waiting, outcome), found) in included.into_iter().zip(found) {
                    match found {
                        Some(Found::Request(record)) => {
                            let request = waiting.command.request.as_ref();
                            let answer = request.map(|request| request.repeat_of(record));
                            let answer = answer.unwrap_or(Err(Refused::RequestIdReused));
                            waiting.answer(answer.map_err(Error::from));
                            continue;
                        }
                        Some(Found::Mapping(mapping)) => waiting.command.action.assume(mapping),
                        None => {}
                    }
                    again.push((waiting, outcome));
                }
                put_back(again, backlog);
            }
        }
    }

    /// Reads the journal up to its head, after which refusals are final. Where that fails, so do the commands that wait for it.
    async fn make_current(&mut self, backlog: &mut VecDeque<Waiting>) {
        match self.replica.catch_up().await {
            Ok(()) => backlog.iter_mut().for_each(|waiting| waiting.current = true),
            Err(error) => refuse_all(backlog.drain(..), &Error::Store(error)),
        }
    }

    /// Commits an entry, repeating it while that may help.
    async fn commit(&mut self, commit: &Commit) -> Ended {
        let deadline = Instant::now() + self.settings.commit_budget;
        let mut backoff = self.backoff.make_backoff();
        // A reply to an earlier attempt was lost: the entry may be in the journal already.
        let mut in_doubt = false;
        loop {
            let failed = match self.journal.commit(commit).await {
                Ok(CommitOutcome::Committed) => return Ended::Committed,
                Ok(CommitOutcome::Refused(refusals)) => return Ended::Refused(refusals),
                Ok(CommitOutcome::HeadMoved) if !in_doubt => return Ended::HeadMoved,
                Ok(CommitOutcome::HeadMoved) => match self.is_written(commit).await {
                    Ok(true) => return Ended::Committed,
                    Ok(false) => return Ended::HeadMoved,
                    Err(error) => error,
                },
                Ok(CommitOutcome::Contended) => StoreError::Throttled,
                Err(error) => error,
            };
            in_doubt |= failed.ambiguous();
            if !failed.transient() || Instant::now() >= deadline {
                return Ended::Failed(match in_doubt {
                    true => Error::OutcomeUnknown,
                    false => Error::Store(failed),
                });
            }
            tracing::debug!(error = %failed, in_doubt, "repeating a commit");
            backoff.next_backoff().await;
        }
    }

    /// Whether the journal holds this very entry.
    async fn is_written(&self, commit: &Commit) -> Result<bool, StoreError> {
        let before = Sequence::new(commit.entry.sequence.get() - 1);
        let there = self.journal.entries(before, 1).await?;
        Ok(there.first().is_some_and(|entry| entry.nonce == commit.entry.nonce))
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

fn refuse_all(waiting: impl Iterator<Item = Waiting>, error: &Error) {
    for waiting in waiting {
        waiting.answer(Err(error.clone()));
    }
}
