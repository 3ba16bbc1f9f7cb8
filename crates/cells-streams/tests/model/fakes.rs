//! The model behind the crate's traits, with faults: calls that fail before or after they were done, that are slow, and processes
//! that stand still.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use cells_streams::lease::{
    Claim, Claimed, Group, Lease, LeaseError, Leases, NewLease, Stamp, Taken,
};
use cells_streams::{
    Delivery, MemoryLeases, OwnerId, Position, ReadFrom, RecordPage, ShardId, ShardIterator,
    ShardPage, Sink, SinkError, StreamArn, Streams, StreamsError,
};
use parking_lot::Mutex;
use tokio::time::{Duration, Instant, sleep, sleep_until};

use super::check::Checker;
use super::world::World;

/// What all consumers of a run share.
pub struct Run {
    pub world: Mutex<World>,
    pub leases: MemoryLeases,
    pub checker: Mutex<Checker>,
    /// Percent of calls that fail.
    pub faults: Mutex<u64>,
}

/// One consumer's process.
pub struct Process {
    pub run: Arc<Run>,
    /// It stands still until then.
    pub paused_until: Mutex<Instant>,
    last_read: Mutex<HashMap<ShardId, Instant>>,
}

#[derive(PartialEq, Clone, Copy)]
enum Fault {
    None,
    Before,
    After,
}

impl Process {
    pub fn new(run: Arc<Run>) -> Arc<Self> {
        let paused_until = Mutex::new(Instant::now());
        Arc::new(Self { run, paused_until, last_read: Mutex::default() })
    }

    async fn standstill(&self) {
        let until = *self.paused_until.lock();
        sleep_until(until).await;
    }

    /// Before a call: takes time, and says what is to go wrong.
    async fn call(&self) -> Fault {
        let (wait, fault) = {
            let percent = *self.run.faults.lock();
            let rng = &mut self.run.world.lock().rng;
            let fault = match (rng.percent(percent), rng.percent(50)) {
                (false, _) => Fault::None,
                (true, true) => Fault::Before,
                (true, false) => Fault::After,
            };
            (1 + rng.below(30), fault)
        };
        sleep(Duration::from_millis(wait)).await;
        self.standstill().await;
        fault
    }

    async fn stream<T>(
        &self,
        call: impl FnOnce(&mut World) -> Result<T, StreamsError>,
    ) -> Result<T, StreamsError> {
        if self.call().await != Fault::None {
            return Err(if self.run.world.lock().rng.percent(50) {
                StreamsError::Throttled
            } else {
                StreamsError::Failed("injected".into())
            });
        }
        let answer = call(&mut self.run.world.lock());
        self.standstill().await;
        answer
    }

    async fn lease<T>(
        &self,
        call: impl Future<Output = Result<T, LeaseError>>,
    ) -> Result<T, LeaseError> {
        let fault = self.call().await;
        if fault == Fault::Before {
            return Err(LeaseError("injected".into()));
        }
        let answer = call.await;
        self.standstill().await;
        if fault == Fault::After { Err(LeaseError("reply lost".into())) } else { answer }
    }
}

pub struct FakeStreams(pub Arc<Process>);

#[async_trait]
impl Streams for FakeStreams {
    async fn describe(
        &self,
        _: &StreamArn,
        after: Option<&ShardId>,
    ) -> Result<ShardPage, StreamsError> {
        self.0.stream(|world| Ok(world.describe(after))).await
    }

    async fn iterator(
        &self,
        _: &StreamArn,
        shard: &ShardId,
        from: &ReadFrom,
    ) -> Result<ShardIterator, StreamsError> {
        self.0.stream(|world| world.iterator(shard, from)).await
    }

    async fn records(&self, iterator: &ShardIterator) -> Result<RecordPage, StreamsError> {
        let shard =
            self.0.run.world.lock().shard_of(iterator).expect("an iterator that was issued");
        let last = self.0.last_read.lock().insert(shard, Instant::now());
        // Asked for five times a second at most by one reader. A new reader of the same process does not know of the one before.
        if let Some(last) = last {
            self.0.run.checker.lock().read_after(last.elapsed());
        }
        self.0.stream(|world| world.records(iterator)).await
    }
}

pub struct FakeLeases(pub Arc<Process>);

#[async_trait]
impl Leases for FakeLeases {
    async fn begin(&self, since_secs: Option<i64>) -> Result<Group, LeaseError> {
        self.0.lease(self.0.run.leases.begin(since_secs)).await
    }

    async fn initialised(&self) -> Result<(), LeaseError> {
        self.0.lease(self.0.run.leases.initialised()).await
    }

    async fn list(&self) -> Result<Vec<Lease>, LeaseError> {
        self.0.lease(self.0.run.leases.list()).await
    }

    async fn create(&self, lease: &NewLease) -> Result<(), LeaseError> {
        self.0.lease(self.0.run.leases.create(lease)).await
    }

    async fn take(
        &self,
        shard: &ShardId,
        seen: Stamp,
        owner: &OwnerId,
    ) -> Result<Taken, LeaseError> {
        self.0.lease(self.0.run.leases.take(shard, seen, owner)).await
    }

    async fn renew(&self, claim: &Claim) -> Result<Claimed, LeaseError> {
        self.0.lease(self.0.run.leases.renew(claim)).await
    }

    async fn checkpoint(&self, claim: &Claim, position: &Position) -> Result<Claimed, LeaseError> {
        let call = async {
            let outcome = self.0.run.leases.checkpoint(claim, position).await?;
            if outcome == Claimed::Held {
                self.0.run.checker.lock().checkpoint(&claim.shard, position);
            }
            Ok(outcome)
        };
        self.0.lease(call).await
    }

    async fn release(&self, claim: &Claim) -> Result<Claimed, LeaseError> {
        self.0.lease(self.0.run.leases.release(claim)).await
    }

    async fn forget(&self, shard: &ShardId) -> Result<(), LeaseError> {
        self.0.lease(self.0.run.leases.forget(shard)).await
    }
}

pub struct FakeSink(pub Arc<Process>);

#[async_trait]
impl Sink for FakeSink {
    async fn deliver(&self, delivery: &Arc<Delivery>) -> Result<(), SinkError> {
        let fault = self.0.call().await;
        if fault == Fault::Before {
            return Err(SinkError("injected".into()));
        }
        self.0.run.checker.lock().delivered(&self.0.run.world.lock(), delivery);
        self.0.standstill().await;
        if fault == Fault::After { Err(SinkError("reply lost".into())) } else { Ok(()) }
    }
}
