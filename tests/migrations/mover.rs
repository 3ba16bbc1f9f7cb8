//! Moves a tenant there and back, by whatever replica answers, and notes where the time goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::migration_service_client::MigrationServiceClient;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::ledger::TENANT;
use crate::scene::CELLS;
use crate::writers::Shared;

/// Longest wait for one state, whatever happens.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at a migration.
const LOOK: Duration = Duration::from_millis(50);

/// Codes of calls that are made again, elsewhere: the replica was killed, or could not reach DynamoDB.
const PASSING: [Code; 7] = [
    Code::Unavailable,
    Code::DeadlineExceeded,
    Code::Aborted,
    Code::Cancelled,
    Code::Unknown,
    Code::Internal,
    Code::ResourceExhausted,
];

pub struct Mover {
    replicas: Vec<Channel>,
    shared: Arc<Shared>,
    random: StdRng,
    began: Instant,
    /// Where the tenant lives.
    pub live: String,
    pub figures: Figures,
}

#[derive(Default)]
pub struct Figures {
    pub rounds: u64,
    pub commits: u64,
    pub begun: usize,
    pub reversed: usize,
    pub cancelled: usize,
    /// Workers beyond the first of each migration: those that took over, from others or after a reply that was lost.
    pub takeovers: u64,
    pub fences: u32,
    pub pauses: Vec<Duration>,
    pub items: BTreeMap<&'static str, i64>,
    pub states: BTreeMap<String, Duration>,
}

/// How a tenant comes to another cell and back.
#[derive(Clone, Copy)]
enum Kind {
    /// The soak is reversed: nothing is copied on the way back.
    Reverse,
    /// Two migrations.
    Two,
    /// Two, of which the first soaks until it is completed.
    Complete,
    /// A first one that is given up in the middle, if that is not too late.
    Cancel,
}

impl Mover {
    pub fn new(endpoints: Vec<String>, shared: Arc<Shared>, seed: u64) -> Self {
        let lazy = |endpoint| {
            let endpoint = Endpoint::from_shared(endpoint).unwrap();
            endpoint.timeout(Duration::from_secs(10)).connect_lazy()
        };
        Self {
            replicas: endpoints.into_iter().map(lazy).collect(),
            shared,
            random: StdRng::seed_from_u64(seed),
            began: Instant::now(),
            live: CELLS[0].to_owned(),
            figures: Figures::default(),
        }
    }

    /// From home to another cell, and back.
    pub async fn round(&mut self) {
        let kinds = [Kind::Reverse, Kind::Two, Kind::Reverse, Kind::Complete, Kind::Cancel];
        let kind = kinds[self.random.random_range(0..kinds.len())];
        let to = CELLS[self.random.random_range(1..CELLS.len())];
        match kind {
            Kind::Reverse => {
                let id = self.start(to, 3600).await;
                self.until(&id, v1::MigrationState::Soaking).await;
                self.linger(300).await;
                let reverse = v1::ReverseMigrationRequest { migration_id: id.clone() };
                self.ask(&reverse, async |mut api, ask| api.reverse_migration(ask).await).await;
                self.figures.reversed += 1;
                self.ended(&id).await;
            }
            Kind::Complete => {
                let id = self.start(to, 3600).await;
                self.until(&id, v1::MigrationState::Soaking).await;
                self.linger(300).await;
                let complete = v1::CompleteMigrationRequest { migration_id: id.clone() };
                self.ask(&complete, async |mut api, ask| api.complete_migration(ask).await).await;
                self.ended(&id).await;
            }
            Kind::Cancel => {
                let id = self.start(to, 0).await;
                self.linger(1500).await;
                let cancel = v1::CancelMigrationRequest { migration_id: id.clone() };
                self.ask(&cancel, async |mut api, ask| api.cancel_migration(ask).await).await;
                self.figures.cancelled += 1;
                self.ended(&id).await;
            }
            Kind::Two => {}
        }
        if self.live == CELLS[0] && !matches!(kind, Kind::Reverse) {
            self.there(to).await;
        }
        if self.live != CELLS[0] {
            self.there(CELLS[0]).await;
        }
        self.figures.rounds += 1;
        println!(
            "{:?}: {} rounds, {} commits, {} acknowledged",
            self.began.elapsed(),
            self.figures.rounds,
            self.figures.commits,
            self.shared.tally.acknowledged(),
        );
    }

    async fn there(&mut self, to: &str) {
        self.linger(200).await;
        let id = self.start(to, 0).await;
        self.ended(&id).await;
        assert_eq!(self.live, to);
    }

    async fn start(&mut self, to: &str, soak: i64) -> String {
        self.figures.begun += 1;
        let verification = match self.random.random_ratio(1, 8) {
            true => v1::MigrationVerification::Strict,
            false => v1::MigrationVerification::LogDrain,
        };
        let request = v1::StartMigrationRequest {
            partition_key: TENANT.to_owned(),
            target: Some(v1::start_migration_request::Target::TargetCellId(to.to_owned())),
            verification: verification.into(),
            soak_duration: Some(prost_types::Duration { seconds: soak, nanos: 0 }),
            request_id: format!("move-{}", self.figures.begun),
            ..Default::default()
        };
        let begun = self.call(&request, async |mut api, ask| api.start_migration(ask).await).await;
        begun.migration.unwrap().migration_id
    }

    async fn linger(&mut self, millis: u64) {
        let millis = self.random.random_range(0..millis);
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    /// Waits until a migration has ended, and counts what it took.
    async fn ended(&mut self, id: &str) {
        let ended = self.until(id, v1::MigrationState::Done).await;
        let epoch = ended.epoch - 1;
        let figures = &mut self.figures;
        self.live = ended.live_cell_id;
        figures.commits = epoch;
        figures.takeovers += ended.worker.saturating_sub(1);
        let progress = ended.progress.unwrap_or_default();
        figures.fences += progress.fences;
        figures.pauses.extend(progress.last_pause.map(|pause| Duration::try_from(pause).unwrap()));
        for (what, items) in [
            ("copied", progress.items_copied),
            ("compared", progress.items_compared),
            ("purged", progress.items_purged),
            ("log records applied", progress.log_applied),
            ("repaired", ended.report.map_or(0, |report| report.repaired)),
        ] {
            *figures.items.entry(what).or_default() += items;
        }
    }

    /// Waits until a migration is in a state, or has been given up.
    async fn until(&mut self, id: &str, state: v1::MigrationState) -> v1::Migration {
        let get = v1::GetMigrationRequest { migration_id: id.to_owned() };
        let (mut seen, mut since) = (v1::MigrationState::Unspecified, Instant::now());
        loop {
            self.shared.tally.check();
            let got = self.call(&get, async |mut api, get| api.get_migration(get).await).await;
            let migration = got.migration.unwrap();
            let before = std::mem::replace(&mut seen, migration.state());
            if before != seen {
                let lasted = std::mem::replace(&mut since, Instant::now()).elapsed();
                *self.figures.states.entry(format!("{before:?}")).or_default() += lasted;
                if std::env::var_os("CELLD_TEST_LOAD_TOLD").is_some() {
                    println!(
                        "{:?} {before:?} {lasted:?}, worker {}",
                        self.began.elapsed(),
                        migration.worker
                    );
                }
            }
            if [state, v1::MigrationState::Aborted].contains(&seen) {
                return migration;
            }
            assert_eq!(migration.parked_reason, "", "{migration:#?}");
            assert!(since.elapsed() < PATIENCE, "not {state:?}: {migration:#?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A wish that may come too late.
    async fn ask<A: Clone, B>(
        &mut self,
        request: &A,
        ask: impl AsyncFn(MigrationServiceClient<Channel>, A) -> Result<tonic::Response<B>, Status>,
    ) {
        self.tried(request, ask, &[Code::FailedPrecondition]).await;
    }

    async fn call<A: Clone, B>(
        &mut self,
        request: &A,
        call: impl AsyncFn(MigrationServiceClient<Channel>, A) -> Result<tonic::Response<B>, Status>,
    ) -> B {
        self.tried(request, call, &[]).await.unwrap()
    }

    /// By one replica after the other, until one answers. `None`: it was refused with one of these codes.
    async fn tried<A: Clone, B>(
        &mut self,
        request: &A,
        call: impl AsyncFn(MigrationServiceClient<Channel>, A) -> Result<tonic::Response<B>, Status>,
        refusals: &[Code],
    ) -> Option<B> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let at = self.random.random_range(0..self.replicas.len());
            let api = MigrationServiceClient::new(self.replicas[at].clone());
            match call(api, request.clone()).await {
                Ok(answer) => return Some(answer.into_inner()),
                Err(status) if refusals.contains(&status.code()) => return None,
                Err(status) => {
                    assert!(PASSING.contains(&status.code()), "{status:?}");
                    assert!(Instant::now() < deadline, "{status:?}");
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
