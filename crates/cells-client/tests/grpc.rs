//! Over real connections: a tonic server in front of the fake's replicas.

use std::sync::Arc;
use std::time::Duration;

use cells_client::fake::FakeDirectory;
use cells_client::proto::cell_directory_server::{CellDirectory, CellDirectoryServer};
use cells_client::proto::*;
use cells_client::testing::{Failure, FailureKind, Transport};
use cells_client::{Directory, Error, Hedge, Mode, Question};
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt};

/// Everything here takes milliseconds; this is for a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(20);

struct Server {
    transport: Arc<dyn Transport>,
    replica: usize,
}

fn status(failure: Failure) -> Status {
    let (code, reason) = match failure.kind {
        FailureKind::Passing => (Code::Unavailable, "SHUTTING_DOWN"),
        FailureKind::NotFound => (Code::NotFound, "PLACEMENT_NOT_FOUND"),
        FailureKind::ResumeTokenExpired => (Code::FailedPrecondition, "RESUME_TOKEN_EXPIRED"),
        FailureKind::EpochNotReached => (Code::FailedPrecondition, "EPOCH_NOT_REACHED"),
        FailureKind::Final => (Code::FailedPrecondition, "NO_ELIGIBLE_CELL"),
    };
    let details =
        ErrorDetails::with_error_info(reason, "cells.v1", std::collections::HashMap::new());
    Status::with_error_details(code, failure.message, details)
}

fn unused<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not in this test"))
}

#[tonic::async_trait]
impl CellDirectory for Server {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let stream =
            self.transport.watch(self.replica, request.into_inner()).await.map_err(status)?;
        Ok(Response::new(stream.map(|message| message.map_err(status)).boxed()))
    }

    async fn sync(&self, _: Request<SyncRequest>) -> Result<Response<SyncResponse>, Status> {
        self.transport.sync(self.replica).await.map(Response::new).map_err(status)
    }

    async fn resolve(
        &self,
        request: Request<ResolveRequest>,
    ) -> Result<Response<ResolveResponse>, Status> {
        self.transport
            .resolve(self.replica, request.into_inner())
            .await
            .map(Response::new)
            .map_err(status)
    }

    async fn batch_resolve(
        &self,
        request: Request<BatchResolveRequest>,
    ) -> Result<Response<BatchResolveResponse>, Status> {
        self.transport
            .batch_resolve(self.replica, request.into_inner())
            .await
            .map(Response::new)
            .map_err(status)
    }

    async fn get_placement(
        &self,
        _: Request<GetPlacementRequest>,
    ) -> Result<Response<GetPlacementResponse>, Status> {
        unused()
    }

    async fn list_placements(
        &self,
        _: Request<ListPlacementsRequest>,
    ) -> Result<Response<ListPlacementsResponse>, Status> {
        unused()
    }

    async fn pin_placement(
        &self,
        _: Request<PinPlacementRequest>,
    ) -> Result<Response<PinPlacementResponse>, Status> {
        unused()
    }

    async fn delete_placement(
        &self,
        _: Request<DeletePlacementRequest>,
    ) -> Result<Response<DeletePlacementResponse>, Status> {
        unused()
    }

    async fn get_placement_history(
        &self,
        _: Request<GetPlacementHistoryRequest>,
    ) -> Result<Response<GetPlacementHistoryResponse>, Status> {
        unused()
    }

    async fn import_placements(
        &self,
        _: Request<Streaming<ImportPlacementsRequest>>,
    ) -> Result<Response<ImportPlacementsResponse>, Status> {
        unused()
    }
}

async fn serve(fake: &FakeDirectory, replica: usize) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let server = CellDirectoryServer::new(Server { transport: fake.transport(), replica });
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving =
        tonic::transport::Server::builder().add_service(server).serve_with_incoming(incoming);
    (endpoint, tokio::spawn(async move { serving.await.unwrap() }))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

fn epoch(directory: &Directory, key: &str) -> u64 {
    directory.resolve(key).map_or(0, |answer| answer.epoch())
}

#[tokio::test]
async fn a_directory_follows_fails_over_and_asks() {
    for mode in [Mode::Whole, Mode::Bounded { capacity: 100 }] {
        let fake = FakeDirectory::with_replicas(2);
        for cell in ["a", "b"] {
            fake.put_cell(cell, "https://x.example", "eu-west-1");
        }
        (0..500).for_each(|n| fake.place(&format!("t-{n}"), "a"));
        let (first, first_task) = serve(&fake, 0).await;
        let (second, second_task) = serve(&fake, 1).await;
        let builder = Directory::builder([first, second])
            .mode(mode)
            .watch_silence(Duration::from_secs(3))
            .seed(1);
        let directory = builder.connect().await.unwrap();
        directory.locate("t-7").await.unwrap();
        until("a lease", || !directory.resolve("t-7").unwrap().lease().is_zero()).await;
        assert_eq!(directory.resolve("t-7").unwrap().region(), "eu-west-1");
        fake.place("t-7", "b");
        until("a change", || epoch(&directory, "t-7") == 2).await;

        // The server dies without a word.
        let tasks = [first_task, second_task];
        let watched = directory.status().watching.unwrap();
        tasks[watched].abort();
        fake.disconnect_replica(watched);
        fake.place("t-7", "a");
        until("a change from elsewhere", || epoch(&directory, "t-7") == 3).await;
        assert_eq!(directory.locate("new").await.unwrap().epoch(), 1);
        let missing = directory.locate_with("nobody", &Question::new().lookup_only()).await;
        assert_eq!(missing.unwrap_err(), Error::NotFound);
        let refused = directory.locate_with("t-7", &Question::new().min_epoch(9)).await;
        assert!(
            matches!(&refused, Err(Error::Refused { reason, .. }) if reason == "EPOCH_NOT_REACHED"),
            "{refused:?}"
        );

        // All of them.
        tasks.iter().for_each(JoinHandle::abort);
        fake.disconnect();
        until("an error", || directory.status().watching.is_none()).await;
        assert_eq!(epoch(&directory, "t-7"), 3);
        let down = directory.locate("newer").await;
        assert!(matches!(down, Err(Error::Unavailable { .. })), "{down:?}");
        directory.close().await;
    }
}

#[tokio::test]
async fn an_expired_token_begins_anew() {
    let fake = FakeDirectory::new();
    fake.put_cell("a", "https://x.example", "eu-west-1");
    fake.place("t", "a");
    let (endpoint, task) = serve(&fake, 0).await;
    let directory = Directory::connect([endpoint]).await.unwrap();
    fake.disconnect();
    until("the end of the watch", || directory.status().watching.is_none()).await;
    fake.vacate("t");
    fake.place("u", "a");
    fake.forget_history();
    assert_eq!(epoch(&directory, "t"), 1, "held until the new picture is whole");
    fake.reconnect();
    until("a new picture", || epoch(&directory, "u") == 1 && directory.resolve("t").is_none())
        .await;
    directory.close().await;
    task.abort();
}

#[tokio::test]
async fn a_slow_endpoint_is_hedged() {
    let fake = FakeDirectory::with_replicas(2);
    fake.put_cell("a", "https://x.example", "eu-west-1");
    let (first, one) = serve(&fake, 0).await;
    let (second, two) = serve(&fake, 1).await;
    let builder =
        Directory::builder([first, second]).hedge(Hedge::After(Duration::from_millis(20)));
    let directory =
        builder.attempt_timeout(PATIENCE).deadline(PATIENCE * 2).connect().await.unwrap();
    fake.slow_replica(directory.status().watching.unwrap(), PATIENCE);
    let began = tokio::time::Instant::now();
    directory.locate("new").await.unwrap();
    assert!(began.elapsed() < PATIENCE / 2);
    directory.close().await;
    one.abort();
    two.abort();
}
