//! No call is lost when a connection ends for its age, or a server for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use tokio::task::JoinSet;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::caller::{Caller, Connection};
use crate::{SOON, World, resolve, terminate};

const CALLERS: usize = 8;

/// Callers that call until they are told to stop.
struct Load {
    callers: JoinSet<Result<usize, String>>,
    answered: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Load {
    /// `calls_a_connection`: after so many, a caller connects anew.
    fn start(replicas: &[&str], calls_a_connection: usize) -> Self {
        let (answered, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let mut caller = Caller::of(replicas);
            let (answered, stop) = (Arc::clone(&answered), Arc::clone(&stop));
            callers.spawn(async move {
                for at in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    if at % calls_a_connection == calls_a_connection - 1 {
                        caller.leave();
                    }
                    caller.resolve("known").await?;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                Ok(caller.connected)
            });
        }
        Self { callers, answered, stop }
    }

    /// Waits for so many further answers.
    async fn answers(&mut self, count: usize) {
        let due = self.answered.load(Ordering::Relaxed) + count;
        let deadline = Instant::now() + SOON;
        while self.answered.load(Ordering::Relaxed) < due {
            if let Some(ended) = self.callers.try_join_next() {
                panic!("a call was lost: {:?}", ended.unwrap());
            }
            assert!(Instant::now() < deadline, "calls are too slow");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Stops. How many connections there were.
    async fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        let mut connected = 0;
        while let Some(caller) = self.callers.join_next().await {
            connected += caller.unwrap().expect("a call was lost");
        }
        connected
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_recycled_and_no_call_is_lost() {
    let world = World::new(&["--max-connection-age=300ms", "--connection-grace=20s"]).await;
    let mut load = Load::start(&[&world.server.address], usize::MAX);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        load.answers(50).await;
    }
    let connected = load.end().await;
    assert!(connected >= 3 * CALLERS, "only {connected} connections");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_is_under_way_outlives_its_connections_age_but_not_the_grace() {
    let long = World::new(&["--max-connection-age=500ms", "--connection-grace=20s"]).await;
    let short = World::new(&["--max-connection-age=500ms", "--connection-grace=300ms"]).await;
    for (world, answered) in [(long, true), (short, false)] {
        let connection = Connection::open(&world.server.address).await.unwrap();
        world.valve.shut();
        let request = resolve("slow");
        let call = connection.call("CellDirectory/Resolve", &request, http::HeaderMap::new());
        let gone = async {
            // Told to go away: no further call is begun.
            let deadline = Instant::now() + SOON;
            while connection.client.clone().ready().await.is_ok() {
                assert!(Instant::now() < deadline, "not told to go away");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if answered {
                world.valve.open();
            }
        };
        let call = tokio::time::timeout(SOON, call);
        let (call, ()) = tokio::join!(call, gone);
        assert_eq!(call.expect("an answer or an end").is_ok(), answered);
    }
}

/// Clients that know nothing but the protocol: they go on until they are told to go away, and then to the other replica. Some connect all
/// the time, up to the moment in which nobody listens any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_termination_under_load_loses_no_call() {
    for calls_a_connection in [usize::MAX, 5] {
        let world = World::new(&["--drain-delay=300ms"]).await;
        let other = world.replica(&[]).await;
        let replicas = [world.server.address.as_str(), other.address.as_str()];
        let mut load = Load::start(&replicas, calls_a_connection);
        load.answers(200).await;
        let World { server, valve: _valve, .. } = world;
        let ended = tokio::task::spawn_blocking(move || server.terminate());
        let ended = tokio::time::timeout(SOON, ended);
        // They go on all the while, and afterwards elsewhere.
        let status = async {
            loop {
                load.answers(10).await;
                if load.answered.load(Ordering::Relaxed) > 400 {
                    break;
                }
            }
        };
        let (ended, ()) = tokio::join!(ended, status);
        assert!(ended.expect("it ends").unwrap().success());
        load.answers(100).await;
        load.end().await;
    }
}

/// Standard clients that watch health, as balancers do: they have turned away before anybody has to be told to go.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_health_has_left_when_the_server_turns_callers_away() {
    let world = World::new(&["--drain-delay=3s"]).await;
    let other = world.replica(&[]).await;
    let leave = Arc::new(AtomicBool::new(false));
    let mut watch = HealthClient::new(world.server.channel().await)
        .watch(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let mut callers = JoinSet::new();
    let (answered, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    for _ in 0..CALLERS {
        let (here, there) = (world.server.channel().await, other.channel().await);
        let (answered, leave, stop) =
            (Arc::clone(&answered), Arc::clone(&leave), Arc::clone(&stop));
        callers.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let left = leave.load(Ordering::Relaxed);
                let channel = if left { &there } else { &here };
                CellDirectoryClient::new(channel.clone()).resolve(resolve("known")).await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    while answered.load(Ordering::Relaxed) < 200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    terminate(world.server.id());
    // Health goes first: calls are still taken when it is known.
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    leave.store(true, Ordering::Relaxed);
    let World { server, valve: _valve, .. } = world;
    let ended = tokio::task::spawn_blocking(move || server.terminate());
    assert!(tokio::time::timeout(SOON, ended).await.expect("it ends").unwrap().success());
    stop.store(true, Ordering::Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.expect("a call was lost");
    }
}
