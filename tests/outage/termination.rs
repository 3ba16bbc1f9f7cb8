//! SIGTERM under load, two replicas behind one client that balances: no call fails.
//!
//! Health says NOT_SERVING first, and for the drain delay calls are taken as ever: a balancer that hears of health has turned away before
//! anybody is told to go. What knows nothing but its connections needs to begin a call anew that never left: gRPC's libraries do
//! ("transparent retries"), and so does the project's own client, but a bare tonic channel does not. Its calls that wait in the client when
//! the connection ends are given up there, and a replica that is gone is tried again with somebody's call. No server can prevent
//! that; what it can is to answer every call that reached it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use cells_client::{Directory, Mode};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::channel::Change;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::alone;
use crate::world::{Replica, SOON, World, cell, key};

const TENANTS: usize = 500;

const CALLERS: usize = 8;

const FLAGS: &[&str] = &["--drain-delay=3s", "--max-queue-delay=1m"];

/// Callers that ask on and on. The first failure ends it.
struct Load {
    callers: JoinSet<()>,
    answered: Arc<AtomicUsize>,
    stop: CancellationToken,
}

impl Load {
    fn start<F>(ask: impl Fn(usize) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let mut load = Self {
            callers: JoinSet::new(),
            answered: Arc::default(),
            stop: CancellationToken::new(),
        };
        for caller in 0..CALLERS {
            let (ask, stop) = (ask.clone(), load.stop.clone());
            let answered = Arc::clone(&load.answered);
            load.callers.spawn(async move {
                for tenant in (0..TENANTS).cycle().skip(caller * TENANTS / CALLERS) {
                    if stop.is_cancelled() {
                        break;
                    }
                    ask(tenant).await;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        load
    }

    /// Waits for so many further answers.
    async fn answers(&mut self, count: usize) {
        let due = self.answered.load(Ordering::Relaxed) + count;
        let deadline = Instant::now() + SOON;
        while self.answered.load(Ordering::Relaxed) < due {
            if let Some(ended) = self.callers.try_join_next() {
                ended.expect("a call was lost");
            }
            assert!(Instant::now() < deadline, "calls are too slow");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.callers.join_all().await;
    }
}

/// A world with two replicas, of which the first is going to end.
async fn pair(name: &str) -> [Replica; 2] {
    let world = World::with(name, TENANTS).await;
    let replicas = ["whole", "bounded"].map(|mode| world.replica(mode, FLAGS));
    for replica in &replicas {
        replica.celld().ready().await;
    }
    replicas
}

fn endpoint(replica: &Replica) -> Endpoint {
    Endpoint::from_shared(format!("http://{}", replica.celld().address)).unwrap()
}

async fn resolve(channel: Channel, tenant: usize) -> Result<(), Status> {
    let request = v1::ResolveRequest { partition_key: key(tenant), ..Default::default() };
    let answer = CellDirectoryClient::new(channel).resolve(request).await?.into_inner();
    assert_eq!(answer.placement.unwrap().cell_id, cell(tenant));
    Ok(())
}

/// Ends the first replica under load, and goes on for a while without it.
async fn terminate(replicas: &mut [Replica; 2], load: &mut Load) {
    load.answers(500).await;
    let ended = async {
        tokio::time::timeout(SOON, replicas[0].end(true)).await.expect("it ends");
    };
    // Nobody waits for it.
    tokio::join!(ended, load.answers(1000));
    load.answers(500).await;
}

/// tonic's own balancing, told of health as a service mesh or a resolver does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balancing_channel_that_hears_of_health_loses_no_call() {
    let _alone = alone().await;
    let mut replicas = pair("healthy").await;
    let (channel, changes) = Channel::balance_channel(4);
    for (number, replica) in replicas.iter().enumerate() {
        changes.send(Change::Insert(number, endpoint(replica))).await.unwrap();
    }
    let mut health = HealthClient::new(replicas[0].celld().channel().await)
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(health.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let direct = replicas[0].celld().channel().await;
    let turned_away = tokio::spawn(async move {
        let status = health.message().await.unwrap().unwrap().status();
        assert_eq!(status, ServingStatus::NotServing);
        // It is told of before anything is refused.
        resolve(direct, 0).await.unwrap();
        changes.send(Change::Remove(0)).await.unwrap();
        changes
    });
    let mut load = Load::start(move |tenant| {
        let channel = channel.clone();
        async move { resolve(channel, tenant).await.unwrap() }
    });
    terminate(&mut replicas, &mut load).await;
    let _changes = turned_away.await.unwrap();
    load.end().await;
}

/// Whether a call failed within the client: it was never sent, or it crossed the GOAWAY that says that nobody has looked at it.
fn never_seen(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            let end = error.is_go_away() && error.is_remote();
            return end && error.reason() == Some(h2::Reason::NO_ERROR);
        }
        cause = error.source();
    }
    false
}

/// A list of endpoints and nothing else. It never hears that one has gone, so it goes on trying it with calls: these are begun anew here,
/// as gRPC's libraries do. Every call that a server has seen is answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_balanced_list_of_endpoints_loses_no_call_that_was_sent() {
    let _alone = alone().await;
    let mut replicas = pair("list").await;
    let channel = Channel::balance_list(replicas.each_ref().map(endpoint).into_iter());
    let unseen = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&unseen);
    let mut load = Load::start(move |tenant| {
        let (channel, unseen) = (channel.clone(), Arc::clone(&counted));
        async move {
            while let Err(status) = resolve(channel.clone(), tenant).await {
                assert!(never_seen(&status), "{status:?}");
                unseen.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    terminate(&mut replicas, &mut load).await;
    let answered = load.answered.load(Ordering::Relaxed);
    load.end().await;
    println!("{answered} calls answered, {} begun anew", unseen.load(Ordering::Relaxed));
}

/// Less than there are tenants, so that most questions go to a replica.
const HELD: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rust_client_loses_no_call() {
    let _alone = alone().await;
    let mut replicas = pair("client").await;
    let endpoints = replicas.each_ref().map(|it| format!("http://{}", it.celld().address));
    let directory = Directory::builder(endpoints).mode(Mode::Bounded { capacity: HELD });
    let directory = Arc::new(directory.connect().await.unwrap());
    let asked = Arc::clone(&directory);
    let mut load = Load::start(move |tenant| {
        let directory = Arc::clone(&asked);
        async move {
            let answer = directory.locate(&key(tenant)).await.unwrap();
            assert_eq!((answer.cell_id(), answer.epoch()), (cell(tenant), 1));
        }
    });
    terminate(&mut replicas, &mut load).await;
    load.end().await;
}
