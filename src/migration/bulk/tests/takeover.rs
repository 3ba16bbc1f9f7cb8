//! Which of several replicas works on a bulk, in a time of the test's own.

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::migration::bulk::worker::{BulkSettings, BulkWorker};

const INTERVAL: Duration = Duration::from_millis(200);
/// The shortest that can be set.
const TAKEOVER: Duration = Duration::from_secs(2);
/// Above what any of this takes.
const SOON: Duration = Duration::from_secs(600);

/// Moves by way of a storage that takes its time over each start.
struct Slow(Fake, Duration);

#[async_trait]
impl Moves for Slow {
    async fn start(&self, order: Order) -> Result<(), NotStarted> {
        sleep(self.1).await;
        Moves::start(&self.0, order).await
    }

    async fn migration(&self, id: MigrationId) -> Result<Option<Migration>, StoreError> {
        Moves::migration(&self.0, id).await
    }

    async fn cancel(&self, id: MigrationId) -> Result<(), StoreError> {
        Moves::cancel(&self.0, id).await
    }
}

/// A replica's worker, to which each start takes so long.
fn replica(fake: &Fake, start: Duration) -> (JoinHandle<()>, CancellationToken) {
    let moves = Arc::new(Slow(fake.clone(), start));
    let (records, clock) = (Arc::new(fake.clone()), Clock::from_fn(now));
    let shared = BulkShared { records, moves, clock, slow_look: Duration::ZERO };
    let settings = BulkSettings { interval: INTERVAL, takeover: TAKEOVER };
    let stop = CancellationToken::new();
    (tokio::spawn(BulkWorker { shared, settings }.run(stop.clone())), stop)
}

async fn until(fake: &Fake, holds: impl Fn(&mut World) -> bool) {
    let deadline = Instant::now() + SOON;
    while !fake.world(&holds) {
        assert!(Instant::now() < deadline, "it does not come");
        sleep(Duration::from_millis(10)).await;
    }
}

fn worker(fake: &Fake) -> u64 {
    fake.world(|world| world.head.as_ref().unwrap().worker)
}

#[tokio::test(start_paused = true)]
async fn a_bulk_goes_on_within_the_bound_when_its_replica_is_gone() {
    let fake = begun();
    let (first, _) = replica(&fake, Duration::ZERO);
    until(&fake, |world| world.begun.len() == 2).await;
    let (second, stop) = replica(&fake, Duration::ZERO);
    // Of one that waits for its migrations there are signs of life.
    sleep(TAKEOVER * 5).await;
    assert_eq!(worker(&fake), 1);

    first.abort();
    let gone = Instant::now();
    until(&fake, |world| world.head.as_ref().unwrap().worker == 2).await;
    let took = gone.elapsed();
    let bound = TAKEOVER - INTERVAL..=TAKEOVER + INTERVAL * 2;
    assert!(bound.contains(&took), "taken over after {took:?}");
    until(&fake, |world| {
        pass(world);
        world.head.as_ref().unwrap().ended().is_some()
    })
    .await;
    assert_eq!((states(&fake), worker(&fake)), (vec!["DONE"; TENANTS], 2));
    let begun = fake.world(|world| world.begun.clone());
    assert_eq!(begun.iter().collect::<BTreeSet<_>>().len(), begun.len(), "{begun:?}");
    stop.cancel();
    second.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_turn_takes_long_keeps_its_bulk() {
    let fake = begun();
    let slow = TAKEOVER * 10;
    let (first, stop) = replica(&fake, slow);
    until(&fake, |world| world.head.as_ref().unwrap().worker == 1).await;
    let (second, stop_second) = replica(&fake, Duration::ZERO);
    sleep(slow - INTERVAL * 2).await;
    assert_eq!((worker(&fake), fake.world(|world| world.begun.len())), (1, 0));
    until(&fake, |world| world.begun.len() == 2).await;
    sleep(TAKEOVER * 2).await;
    assert_eq!(worker(&fake), 1);
    // One that is stopped in order lets another go on, after the same time.
    stop.cancel();
    first.await.unwrap();
    until(&fake, |world| world.head.as_ref().unwrap().worker == 2).await;
    stop_second.cancel();
    second.await.unwrap();
}
