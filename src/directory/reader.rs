//! Group reads: many callers' reads of different keys go to the table together.
//!
//! The counterpart of the committer's group commit. A read is sent at once while few are under way; beyond that, keys wait for the next
//! answer and then go together in one call. So the latency of a lone read is that of one call, and under load the number of calls grows with
//! the table's latency instead of the number of callers.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use futures::future::join_all;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use super::error::Error;
use crate::domain::{Mapping, PartitionKey};
use crate::store::{MAX_KEYS, Placements, StoreError};
use crate::telemetry::propagation;

/// Most keys that wait to be read.
const QUEUE: usize = 16_384;

/// Most calls under way at the same time.
const FLIGHTS: usize = 4;

/// Hands keys to the reader's task.
#[derive(Debug, Clone)]
pub struct Reads {
    queue: mpsc::Sender<Wanted>,
}

#[derive(Debug)]
struct Wanted {
    key: PartitionKey,
    reply: oneshot::Sender<Result<Mapping, StoreError>>,
    /// Who asks.
    span: Span,
}

impl Reads {
    /// The queue's ends. The receiver is for [`run`].
    pub fn queue() -> (Self, ReadQueue) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        (Self { queue }, ReadQueue(receiver))
    }

    /// What the table says of a key, by a read that begins after this call.
    ///
    /// # Errors
    /// Those of the store; [`Error::Overloaded`] where too many wait; [`Error::NotReady`] at shutdown.
    pub async fn mapping(&self, key: PartitionKey) -> Result<Mapping, Error> {
        let (reply, answer) = oneshot::channel();
        let wanted = Wanted { key, reply, span: Span::current() };
        self.queue.try_send(wanted)?;
        Ok(answer.await.map_err(|_| Error::NotReady)??)
    }
}

/// Keys on their way to [`run`].
pub struct ReadQueue(mpsc::Receiver<Wanted>);

/// Reads keys until `stop`. Those that wait then are not read.
pub async fn run(placements: Arc<dyn Placements>, queue: ReadQueue, stop: CancellationToken) {
    let mut queue = queue.0;
    let mut flights = FuturesUnordered::new();
    let mut wanted = Vec::with_capacity(MAX_KEYS);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(()) = flights.next(), if !flights.is_empty() => {}
            taken = queue.recv_many(&mut wanted, MAX_KEYS), if flights.len() < FLIGHTS => {
                if taken == 0 {
                    return;
                }
                // Nobody waits any more for those whose callers gave up.
                let batch: Vec<_> = wanted.drain(..).filter(|wanted| !wanted.reply.is_closed()).collect();
                if !batch.is_empty() {
                    flights.push(read(&*placements, batch));
                }
            }
        }
    }
}

/// Reads a batch and answers everybody.
async fn read(placements: &dyn Placements, batch: Vec<Wanted>) {
    // Two callers may ask different questions of one key; a call names a key once.
    // In the order of the keys, so that a run can be repeated.
    let mut waiting: BTreeMap<PartitionKey, Vec<Wanted>> = BTreeMap::new();
    for wanted in batch {
        waiting.entry(wanted.key.clone()).or_default().push(wanted);
    }
    let (keys, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().unzip();
    let span = span_of(&waiting);
    // Callers' spans are let go here: a span that is held stays open, though its caller may have given up long ago.
    let replies = waiting.into_iter().map(|callers| callers.into_iter().map(|wanted| wanted.reply));
    let mut replies: Vec<Vec<_>> = replies.map(Iterator::collect).collect();
    let reading = async {
        match keys.as_slice() {
            [key] => vec![placements.mapping(key).await],
            keys => placements.mappings(keys).await,
        }
    };
    let answers = {
        let gone = join_all(replies.iter_mut().flatten().map(oneshot::Sender::closed));
        tokio::select! {
            biased;
            answers = reading.instrument(span) => answers,
            // Nobody waits any more. Not read on, for a lone caller's span is open as long as the read.
            _ = gone => return,
        }
    };
    for (answer, replies) in answers.into_iter().zip(replies) {
        for reply in replies {
            // A caller who has gone does not need it.
            let _ = reply.send(answer.clone());
        }
    }
}

/// What the call is traced under: the caller's own span where there is one caller; for several, a span that is linked to all.
fn span_of(waiting: &[Vec<Wanted>]) -> Span {
    if let [callers] = waiting
        && let [only] = callers.as_slice()
    {
        return only.span.clone();
    }
    let callers =
        waiting.iter().flatten().filter_map(|wanted| propagation::context_of(&wanted.span));
    let span = tracing::info_span!(target: "cells::read", parent: None, "cell.read", otel.kind = "internal");
    propagation::serve(&span, callers);
    span
}
