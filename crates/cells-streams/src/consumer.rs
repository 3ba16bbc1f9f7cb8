//! One consumer of a group: lists shards and leases, performs what the planner decides, and looks after the workers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::sync::{Notify, watch};
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::event::Source;
use crate::lease::{Claim, Group, Lease, LeaseError, Leases, Taken};
use crate::options::{InvalidOptions, Options, StartAt};
use crate::plan::{Action, Planner};
use crate::reader::Ended;
use crate::sink::Sink;
use crate::streams::{Shard, Streams, StreamsError};
use crate::worker::{Shared, Worker};
use crate::{OwnerId, ShardId};

/// Most pages of one listing of shards, some 100 shards each.
const MAX_SHARD_PAGES: usize = 1000;

/// Time between two pages: DescribeStream allows ten calls a second to all callers together.
const PAGE_INTERVAL: Duration = Duration::from_millis(200);

/// A record's time may be rounded down to the minute (DynamoDB Local does so) and clocks differ: better a minute too much than too little.
const LATEST_MARGIN_SECS: i64 = 60;

/// How a consumer fares.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    /// Shards that it reads at the moment.
    pub reading: usize,
    /// Shards of the group that are recorded and not finished.
    pub unfinished: usize,
    /// What kept the last round from being done in full.
    pub problem: Option<String>,
}

/// One consumer of one group on one stream. See the crate's documentation.
pub struct Consumer {
    shared: Arc<Shared>,
    me: OwnerId,
    planner: Planner,
    group: Option<Group>,
    listed_at: Option<Duration>,
    workers: JoinSet<Ended>,
    running: BTreeMap<Id, ShardId>,
    spawned: u64,
    stop: CancellationToken,
    status: watch::Sender<Status>,
}

impl Consumer {
    /// A consumer that does nothing before [`Consumer::run`].
    ///
    /// `me` must be an owner that no other run ever had: [`OwnerId::unique`].
    ///
    /// # Errors
    ///
    /// If the options cannot work together.
    pub fn new(
        source: Source,
        me: OwnerId,
        options: Options,
        streams: Arc<dyn Streams>,
        leases: Arc<dyn Leases>,
        sink: Arc<dyn Sink>,
    ) -> Result<Self, InvalidOptions> {
        options.check()?;
        let planner = Planner::new(me.clone(), &options);
        let shared = Shared {
            source: Arc::new(source),
            streams,
            leases,
            sink,
            options,
            started: Instant::now(),
            listing: RwLock::new(None),
            relist: Notify::new(),
        };
        Ok(Self {
            shared: Arc::new(shared),
            me,
            planner,
            group: None,
            listed_at: None,
            workers: JoinSet::new(),
            running: BTreeMap::new(),
            spawned: 0,
            stop: CancellationToken::new(),
            status: watch::Sender::default(),
        })
    }

    /// How it fares, from round to round.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Follows the stream until `stop` is cancelled. Then the batches at hand are finished, their positions recorded, the leases
    /// released; what takes longer than [`Options::stop_within`] is cut off and delivered again to whoever comes next.
    ///
    /// Fails of the stream, of the leases and of the sink are retried for ever; [`Consumer::status`] and the log tell. Dropping the
    /// future is what a crash would be: nothing is lost, the leases expire.
    pub async fn run(mut self, stop: CancellationToken) {
        loop {
            if stop.is_cancelled() {
                break;
            }
            tokio::select! {
                problem = self.round() => self.tell(problem),
                () = stop.cancelled() => break,
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep(self.shared.options.tick) => {}
                () = relist_soon(&self.shared) => self.listed_at = None,
                Some(ended) = self.workers.join_next_with_id() => self.ended(ended),
            }
            while let Some(ended) = self.workers.try_join_next_with_id() {
                self.ended(ended);
            }
        }
        self.stop.cancel();
        let within = self.shared.options.stop_within;
        let all = async { while self.workers.join_next().await.is_some() {} };
        if timeout(within, all).await.is_err() {
            tracing::warn!("batches at hand cut off: the sink took longer than {within:?}");
            self.workers.shutdown().await;
        }
    }

    fn ended(&mut self, ended: Result<(Id, Ended), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, _)) => id,
            Err(error) => {
                tracing::error!(%error, "reader of a shard failed, starting it again");
                error.id()
            }
        };
        self.running.remove(&id);
    }

    fn tell(&self, problem: Result<usize, String>) {
        let reading = self.running.len();
        self.status.send_modify(|status| {
            status.reading = reading;
            match problem {
                Ok(unfinished) => (status.unfinished, status.problem) = (unfinished, None),
                Err(problem) => {
                    tracing::warn!(%problem, "round not completed");
                    status.problem = Some(problem);
                }
            }
        });
    }

    /// One look at everything, and what follows from it. Returns how many shards are not finished.
    ///
    /// It may be dropped at any await: whatever it was about to do, the next round finds undone or done.
    async fn round(&mut self) -> Result<usize, String> {
        let group = self.begin().await.map_err(|error| error.to_string())?;
        let listed = self.list_shards().await;
        let leases = self.shared.lease_call(self.shared.leases.list()).await;
        let leases = leases.map_err(|error| error.to_string())?;
        let unfinished = leases.iter().filter(|lease| !lease.position.is_end()).count();
        self.planner.saw_leases(self.shared.now(), leases);
        let running: BTreeSet<ShardId> = self.running.values().cloned().collect();
        for action in self.planner.plan(
            self.shared.now(),
            (self.shared.options.wall_secs)(),
            &group,
            &running,
        ) {
            self.perform(action).await.map_err(|error| error.to_string())?;
        }
        listed.map_err(|error| error.to_string())?;
        Ok(unfinished)
    }

    async fn begin(&mut self) -> Result<Group, LeaseError> {
        if let Some(group) = self.group
            && group.initialised
        {
            return Ok(group);
        }
        let since = match self.shared.options.start {
            StartAt::TrimHorizon => None,
            StartAt::Latest => Some((self.shared.options.wall_secs)() - LATEST_MARGIN_SECS),
        };
        // Read again each time: another consumer may have completed the start.
        let group = self.shared.lease_call(self.shared.leases.begin(since)).await?;
        self.group = Some(group);
        Ok(group)
    }

    async fn list_shards(&mut self) -> Result<(), StreamsError> {
        let began = self.shared.now();
        let due =
            self.listed_at.is_none_or(|at| at + self.shared.options.discover_interval <= began);
        if !due {
            return Ok(());
        }
        let (shards, outcome) = describe(&self.shared).await;
        if outcome.is_ok() {
            self.listed_at = Some(began);
            *self.shared.listing.write() = Some((began, shards.clone()));
        }
        self.planner.saw_shards(self.shared.now(), shards, outcome.is_ok());
        outcome
    }

    async fn perform(&mut self, action: Action) -> Result<(), LeaseError> {
        let leases = self.shared.leases.clone();
        match action {
            Action::Probe(parent) => {
                let stream = &self.shared.source.stream;
                let call =
                    self.shared.streams.iterator(stream, &parent, &crate::ReadFrom::TrimHorizon);
                match self.shared.call(call).await {
                    Ok(_) => {
                        self.planner.probed(self.shared.now(), &parent, true);
                        self.listed_at = None;
                    }
                    Err(StreamsError::NotFound | StreamsError::Trimmed) => {
                        self.planner.probed(self.shared.now(), &parent, false);
                    }
                    Err(_) => {}
                }
                Ok(())
            }
            Action::Create(lease) => self.shared.lease_call(leases.create(&lease)).await,
            Action::Initialised => self.shared.lease_call(leases.initialised()).await,
            Action::Forget(shard) => self.shared.lease_call(leases.forget(&shard)).await,
            Action::Adopt(mut lease) => {
                lease.position = self.planner.begins(&lease);
                self.spawn(&lease, None);
                Ok(())
            }
            Action::Take { shard, seen } => {
                let sent = self.shared.now();
                let take = leases.take(&shard, seen, &self.me);
                if let Taken::Won(mut lease) = self.shared.lease_call(take).await? {
                    lease.position = self.planner.begins(&lease);
                    self.spawn(&lease, Some(sent));
                }
                Ok(())
            }
        }
    }

    fn spawn(&mut self, lease: &Lease, held_since: Option<Duration>) {
        let shard = lease.shard.clone();
        let claim =
            Claim { shard: shard.clone(), owner: self.me.clone(), epoch: lease.stamp.epoch };
        self.spawned += 1;
        let seed = self.shared.options.seed.wrapping_add(self.spawned);
        let stop = self.stop.clone();
        let worker = Worker::new(self.shared.clone(), lease, claim, held_since, stop, seed);
        self.running.insert(self.workers.spawn(worker.run()).id(), shard);
    }
}

/// All shards, or those that came before a failure.
async fn describe(shared: &Shared) -> (Vec<Shard>, Result<(), StreamsError>) {
    let (mut shards, mut after) = (Vec::new(), None);
    for _ in 0..MAX_SHARD_PAGES {
        let call = shared.streams.describe(&shared.source.stream, after.as_ref());
        match shared.call(call).await {
            Ok(page) => {
                shards.extend(page.shards);
                match page.next {
                    Some(next) => after = Some(next),
                    None => return (shards, Ok(())),
                }
            }
            Err(error) => return (shards, Err(error)),
        }
        sleep(PAGE_INTERVAL).await;
    }
    (shards, Err(StreamsError::Failed(format!("more than {MAX_SHARD_PAGES} pages of shards"))))
}

/// Workers that ask for a listing get one, but no more often than every so often.
async fn relist_soon(shared: &Shared) {
    shared.relist.notified().await;
    sleep(PAGE_INTERVAL * 2).await;
}
