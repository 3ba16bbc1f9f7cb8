//! Calls that memory cannot answer, at a fixed rate and however long each takes: each costs reads or writes of the tables.

use std::time::Duration;

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::transport::Channel;

use crate::celld::{Celld, unique};

/// Between two look-ups of somebody whom nobody knows.
const LOOK_UP: Duration = Duration::from_millis(80);

/// One in so many is a new tenant instead.
const NEW_TENANTS: usize = 10;

/// Most calls that wait for an answer.
const WAITING: usize = 1000;

pub struct Misses {
    stop: CancellationToken,
    asking: JoinHandle<()>,
}

impl Misses {
    pub async fn start(celld: &Celld) -> Self {
        let stop = CancellationToken::new();
        let asking = tokio::spawn(ask(celld.directory().await, stop.clone()));
        Self { stop, asking }
    }

    /// Stops when all are answered.
    pub async fn end(self) {
        self.stop.cancel();
        self.asking.await.unwrap();
    }
}

async fn ask(directory: CellDirectoryClient<Channel>, stop: CancellationToken) {
    let names = unique("nobody");
    let mut ticks = tokio::time::interval(LOOK_UP);
    let mut waiting = JoinSet::new();
    for number in 1.. {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            _ = ticks.tick() => {}
        }
        while let Some(ended) = waiting.try_join_next() {
            ended.unwrap();
        }
        assert!(waiting.len() < WAITING, "calls do not end");
        let mut directory = directory.clone();
        let new = number % NEW_TENANTS == 0;
        let mode = if new { v1::ResolveMode::AssignIfMissing } else { v1::ResolveMode::LookupOnly };
        let request = v1::ResolveRequest {
            partition_key: format!("{names}{number}"),
            mode: mode.into(),
            ..Default::default()
        };
        waiting.spawn(async move {
            let answer = directory.resolve(request).await;
            let code = answer.as_ref().map_or_else(tonic::Status::code, |_| Code::Ok);
            // Nobody is made up, and what was not changed or may have been is said to be that.
            let fine: &[Code] = match new {
                true => &[Code::Ok, Code::Unavailable, Code::DeadlineExceeded],
                false => &[Code::NotFound, Code::Unavailable],
            };
            assert!(fine.contains(&code), "{answer:?}");
        });
    }
    waiting.join_all().await;
}
