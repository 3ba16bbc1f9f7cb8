//! Data on their way to CloudWatch: in batches, repeated while it does not answer, in bounded memory.
//!
//! What does not find room drops the oldest and is counted. A batch whose answer was lost is sent again, and CloudWatch may then have it
//! twice: PutMetricData knows no tokens.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::cells::CloudError;
use crate::telemetry::CellMetrics;

/// The namespace of all that is published.
pub const NAMESPACE: &str = "CellBasedArchitecture/DynamoDB";

/// Data that wait at most: about an hour of 200 tables, and some 10 MB.
pub const MAX_WAITING: usize = 50_000;

/// Most data in one PutMetricData, by CloudWatch.
pub const MAX_BATCH: usize = 1_000;

/// Most bytes in one, by our estimate: CloudWatch takes 1 MB.
const MAX_BATCH_BYTES: usize = 900_000;

/// What a datum takes beside its texts, names of fields included; generous.
const DATUM_BYTES: usize = 200;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long the last batches may take at shutdown.
const FINISHING: Duration = Duration::from_secs(3);

/// A unit, as CloudWatch names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Count,
    Bytes,
    Percent,
}

/// One value of one metric for one minute.
#[derive(Debug, Clone, PartialEq)]
pub struct Datum {
    pub name: &'static str,
    pub dimensions: Vec<(&'static str, String)>,
    /// When the minute began, in seconds since 1970.
    pub minute: i64,
    pub value: f64,
    pub unit: Unit,
}

impl Datum {
    pub fn new(name: &'static str, minute: i64, value: f64, unit: Unit) -> Self {
        Self { name, dimensions: Vec::new(), minute, value, unit }
    }

    /// The same with one dimension more.
    pub fn with(mut self, name: &'static str, value: &str) -> Self {
        self.dimensions.push((name, value.to_owned()));
        self
    }

    fn bytes(&self) -> usize {
        let dimensions = self.dimensions.iter().map(|(name, value)| name.len() + value.len() + 32);
        DATUM_BYTES + self.name.len() + dimensions.sum::<usize>()
    }
}

/// CloudWatch, as far as something is put there.
#[async_trait]
pub trait Board: Send + Sync + 'static {
    /// Puts at most [`MAX_BATCH`] data into [`NAMESPACE`].
    async fn put(&self, data: &[Datum]) -> Result<(), CloudError>;
}

/// What waits. Clones share it.
#[derive(Clone)]
pub struct Outbox(Arc<Inner>);

struct Inner {
    waiting: Mutex<VecDeque<Datum>>,
    filled: Notify,
    metrics: CellMetrics,
}

impl Outbox {
    pub fn new(metrics: CellMetrics) -> Self {
        let (waiting, filled) = Default::default();
        Self(Arc::new(Inner { waiting, filled, metrics }))
    }

    /// Adds data; never waits.
    pub fn push(&self, data: Vec<Datum>) {
        if data.is_empty() {
            return;
        }
        let mut waiting = self.0.waiting.lock();
        waiting.extend(data);
        self.make_room(&mut waiting);
        drop(waiting);
        self.0.filled.notify_one();
    }

    fn make_room(&self, waiting: &mut VecDeque<Datum>) {
        let over = waiting.len().saturating_sub(MAX_WAITING);
        waiting.drain(..over);
        self.0.metrics.published("dropped", over);
    }

    /// Takes the oldest data, as many as go at once.
    fn batch(&self) -> Vec<Datum> {
        let mut waiting = self.0.waiting.lock();
        let mut bytes = 0;
        let fits = |datum: &&Datum| {
            bytes += datum.bytes();
            bytes <= MAX_BATCH_BYTES
        };
        let count = waiting.iter().take(MAX_BATCH).take_while(fits).count();
        waiting.drain(..count).collect()
    }

    #[cfg(test)]
    pub fn take_all(&self) -> Vec<Datum> {
        self.0.waiting.lock().drain(..).collect()
    }

    /// Puts a batch back where it was.
    fn give_back(&self, batch: Vec<Datum>) {
        let mut waiting = self.0.waiting.lock();
        for datum in batch.into_iter().rev() {
            waiting.push_front(datum);
        }
        self.make_room(&mut waiting);
    }

    /// Sends one batch. `None`: there is none.
    async fn send(&self, board: &dyn Board) -> Option<Result<(), CloudError>> {
        let batch = self.batch();
        if batch.is_empty() {
            return None;
        }
        let sent = board.put(&batch).await;
        match &sent {
            Ok(()) => self.0.metrics.published("sent", batch.len()),
            Err(CloudError::Busy { .. }) => self.give_back(batch),
            // It would be refused again.
            Err(CloudError::Refused { .. } | CloudError::Unsupported) => {
                self.0.metrics.published("dropped", batch.len());
            }
        }
        Some(sent)
    }

    /// Sends what comes until `stop`, and then what is left, for a moment.
    pub async fn run(self, board: Arc<dyn Board>, stop: CancellationToken) {
        let mut pause = FIRST_PAUSE;
        let mut failing = false;
        loop {
            let wait = match self.send(&*board).await {
                None => {
                    tokio::select! {
                        biased;
                        () = stop.cancelled() => break,
                        () = self.0.filled.notified() => continue,
                    }
                }
                Some(Ok(())) => {
                    (pause, failing) = (FIRST_PAUSE, false);
                    Duration::ZERO
                }
                Some(Err(error)) => {
                    if !failing {
                        tracing::warn!(%error, "metrics cannot be put to CloudWatch; see cell.cloudwatch.data for what is lost");
                    }
                    failing = true;
                    let wait = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    wait
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
        let rest = async { while let Some(Ok(())) = self.send(&*board).await {} };
        let _ = tokio::time::timeout(FINISHING, rest).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telemetry;

    fn outbox() -> Outbox {
        Outbox::new(Telemetry::noop().cell_metrics())
    }

    fn datum(n: usize) -> Datum {
        Datum::new("ItemCount", n as i64, 1.0, Unit::Count).with("CellId", "cell-a")
    }

    /// Answers as the script says, then always well.
    #[derive(Default)]
    struct Scripted {
        answers: Mutex<VecDeque<Result<(), CloudError>>>,
        got: Mutex<Vec<Vec<i64>>>,
    }

    #[async_trait]
    impl Board for Scripted {
        async fn put(&self, data: &[Datum]) -> Result<(), CloudError> {
            self.got.lock().push(data.iter().map(|datum| datum.minute).collect());
            self.answers.lock().pop_front().unwrap_or(Ok(()))
        }
    }

    #[test]
    fn batches_keep_to_both_limits_and_to_the_order() {
        let outbox = outbox();
        outbox.push((0..2_500).map(datum).collect());
        let sizes: Vec<_> = std::iter::repeat_with(|| outbox.batch()).take(4).collect();
        assert_eq!(sizes.iter().map(Vec::len).collect::<Vec<_>>(), [1000, 1000, 500, 0]);
        assert!(sizes.concat().iter().map(|datum| datum.minute).eq(0..2_500));
        let long = "x".repeat(2_000);
        outbox.push((0..1_000).map(|n| datum(n).with("TableName", &long)).collect());
        let batch = outbox.batch();
        assert!((300..450).contains(&batch.len()), "{}", batch.len());
        assert!(batch.iter().map(Datum::bytes).sum::<usize>() <= 1_000_000);
    }

    #[test]
    fn the_oldest_go_first_where_there_is_no_room() {
        let outbox = outbox();
        outbox.push((0..MAX_WAITING + 10).map(datum).collect());
        let batch = outbox.batch();
        assert_eq!(batch[0].minute, 10);
        outbox.push((0..20).map(datum).collect());
        outbox.give_back(batch);
        assert_eq!(outbox.0.waiting.lock().len(), MAX_WAITING);
        assert_eq!(outbox.batch()[0].minute, 30);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_for_a_while_is_sent_again_and_what_is_refused_is_not() {
        let outbox = outbox();
        let busy = || Err(CloudError::Busy { code: "ThrottlingException".to_owned() });
        let refused =
            Err(CloudError::Refused { code: "AccessDenied".into(), detail: String::new() });
        let board = Arc::new(Scripted {
            answers: Mutex::new([busy(), busy(), Ok(()), refused].into()),
            ..Scripted::default()
        });
        let stop = CancellationToken::new();
        let running = tokio::spawn(outbox.clone().run(board.clone(), stop.clone()));
        outbox.push(vec![datum(1), datum(2)]);
        tokio::time::sleep(Duration::from_secs(10)).await;
        outbox.push(vec![datum(3)]);
        tokio::time::sleep(Duration::from_secs(10)).await;
        // Comes at the very end, and is sent all the same.
        stop.cancel();
        outbox.push(vec![datum(4)]);
        running.await.unwrap();
        let got = board.got.lock().clone();
        assert_eq!(got, [vec![1, 2], vec![1, 2], vec![1, 2], vec![3], vec![4]]);
    }
}
