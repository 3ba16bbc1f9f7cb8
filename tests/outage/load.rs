//! Callers that ask one replica for known tenants at a fixed rate, hold every answer against the truth, and time it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::celld::Celld;
use crate::figures::Sample;
use crate::world::{cell, key};

/// Callers of a replica, each on a connection of its own.
pub const CALLERS: u32 = 8;

/// After so long without a poll no lease is left.
const LEASE: Duration = Duration::from_secs(5);

/// How much older than the outage an answer may say to be: the time between two polls or two snapshots, and what a busy machine adds.
const OLDER: Duration = Duration::from_secs(10);

/// Most failures that are told of.
const TOLD: usize = 5;

/// Since when the table has not answered, if it does not.
#[derive(Clone, Default)]
pub struct Dark(Arc<Mutex<Option<Instant>>>);

impl Dark {
    pub fn set(&self, since: Option<Instant>) {
        *self.0.lock() = since;
    }

    fn since(&self) -> Option<Instant> {
        *self.0.lock()
    }
}

/// What a load is told at its start.
#[derive(Clone)]
pub struct Orders {
    /// Tenants to ask for: `0..tenants`.
    pub tenants: usize,
    /// Calls a second, by all callers together.
    pub rate: u32,
    pub dark: Dark,
    /// No lease, from the beginning: the process was started in the dark.
    pub unleased: bool,
}

pub struct Load {
    callers: JoinSet<Vec<Sample>>,
    failures: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
}

impl Load {
    pub async fn start(celld: &Celld, orders: &Orders) -> Self {
        let mut load = Self {
            callers: JoinSet::new(),
            failures: Arc::default(),
            stop: CancellationToken::new(),
        };
        let period = Duration::from_secs(1) * CALLERS / orders.rate;
        for number in 0..CALLERS {
            let caller = Caller {
                directory: celld.directory().await,
                orders: orders.clone(),
                failures: Arc::clone(&load.failures),
                stop: load.stop.clone(),
            };
            // Not all at the same moment.
            let first = tokio::time::Instant::now() + period * number / CALLERS;
            load.callers.spawn(caller.run(number as usize, first, period));
        }
        load
    }

    /// Stops, and answers what was timed. Every call must have been answered, and rightly.
    pub async fn end(self) -> Vec<Sample> {
        self.stop.cancel();
        let samples = self.callers.join_all().await.concat();
        let failures = self.failures.lock();
        let (told, all) = (&failures[..failures.len().min(TOLD)], samples.len() + failures.len());
        assert!(failures.is_empty(), "{} of {all} calls failed: {told:#?}", failures.len());
        samples
    }
}

struct Caller {
    directory: CellDirectoryClient<Channel>,
    orders: Orders,
    failures: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
}

impl Caller {
    async fn run(
        mut self,
        number: usize,
        first: tokio::time::Instant,
        period: Duration,
    ) -> Vec<Sample> {
        let mut ticks = tokio::time::interval_at(first, period);
        let mut samples = Vec::new();
        let mut ended = Instant::now();
        // Callers go through the tenants at the same pace, each from another one on.
        let from = number * self.orders.tenants / CALLERS as usize;
        for tenant in (0..self.orders.tenants).cycle().skip(from) {
            let due = tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                due = ticks.tick() => due.into_std(),
            };
            // A call that another one kept from being made has waited since it was due. That a timer is late is not the server's doing.
            let began = if ended > due { due } else { Instant::now() };
            let answer = self.ask(tenant).await;
            ended = Instant::now();
            match answer {
                Ok(()) => samples.push(Sample { began, took: ended - began }),
                Err(why) => self.failures.lock().push(why),
            }
        }
        samples
    }

    async fn ask(&mut self, tenant: usize) -> Result<(), String> {
        let before = self.orders.dark.since();
        let sent = Instant::now();
        let request = v1::ResolveRequest { partition_key: key(tenant), ..Default::default() };
        let answer = self.directory.resolve(request).await;
        let answer = answer.map_err(|status| format!("{status:?}"))?.into_inner();
        let heard = Instant::now();
        // Whoever asked while the table came or went may be told of either.
        let dark = before.filter(|_| before == self.orders.dark.since());
        let wrong = |what: &str| Err(format!("{what}: {answer:?}"));
        let (Some(placement), Some(decision)) = (&answer.placement, &answer.decision) else {
            return wrong("no placement");
        };
        if (placement.cell_id.as_str(), placement.epoch) != (cell(tenant), 1) {
            return wrong("another cell");
        }
        if decision.source() != v1::DecisionSource::Memory || !decision.authoritative {
            return wrong("not from memory");
        }
        let duration = |it: &Option<prost_types::Duration>| {
            it.map_or(Duration::ZERO, |it| Duration::try_from(it).unwrap())
        };
        let (age, lease) = (duration(&decision.age), duration(&decision.lease));
        if let Some(since) = dark {
            if age < sent - since {
                return wrong(&format!("younger than the outage, {:?}", sent - since));
            }
            if age > heard - since + OLDER {
                return wrong(&format!("much older than the outage, {:?}", heard - since));
            }
            if !lease.is_zero() && (self.orders.unleased || sent - since > LEASE) {
                return wrong("a lease");
            }
        }
        Ok(())
    }
}

/// Asks for all tenants until all are answered from memory, and with a lease.
pub async fn known(celld: &Celld, tenants: usize) {
    let mut directory = celld.directory().await;
    let deadline = Instant::now() + crate::world::SOON;
    for tenant in 0..tenants {
        loop {
            let request = v1::ResolveRequest { partition_key: key(tenant), ..Default::default() };
            let answer = directory.resolve(request).await;
            let decision = answer.ok().and_then(|answer| answer.into_inner().decision);
            let leased = |decision: &v1::Decision| {
                decision.source() == v1::DecisionSource::Memory && decision.lease.is_some()
            };
            if decision.as_ref().is_some_and(leased) {
                break;
            }
            assert!(Instant::now() < deadline, "{} is not in memory: {decision:?}", key(tenant));
        }
    }
}
