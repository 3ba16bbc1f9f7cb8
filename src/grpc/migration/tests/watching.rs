//! The clock is tokio's, which stands still but for what is waited for: nothing here depends on the machine's pace.

use std::time::{Duration, Instant};

use cells_migration::Phase;
use futures::StreamExt;

use super::*;
use crate::grpc::migration::watch::{INTERVAL, MAX_MISSES, MAX_WATCHES, WatchStream};
use crate::migration::MigrationError;
use crate::store::StoreError;

fn request(number: u128) -> Request<v1::WatchMigrationRequest> {
    Request::new(v1::WatchMigrationRequest { migration_id: id(number) })
}

async fn watch(service: &MigrationService, number: u128) -> WatchStream {
    service
        .watch_migration(request(number))
        .await
        .map_err(|status| status.to_string())
        .unwrap()
        .into_inner()
}

/// What comes next; within a minute of tokio's clock, so that a stream that goes on for ever fails its test.
async fn item(stream: &mut WatchStream) -> Option<Result<v1::WatchMigrationResponse, Status>> {
    let next = tokio::time::timeout(Duration::from_secs(60), stream.next());
    next.await.expect("nothing comes, and it does not end")
}

async fn next(stream: &mut WatchStream) -> v1::Migration {
    item(stream).await.expect("the stream goes on").unwrap().migration.unwrap()
}

/// Whether nothing comes in several looks.
async fn silent(stream: &mut WatchStream) -> bool {
    tokio::time::timeout(INTERVAL * 5, stream.next()).await.is_err()
}

#[tokio::test(start_paused = true)]
async fn a_migration_is_told_at_once_at_each_change_and_until_it_ends() {
    let fake = Arc::new(FakeMigrations::with([1]));
    let service = service(&fake);
    let mut stream = watch(&service, 1).await;
    assert_eq!(next(&mut stream).await.state(), v1::MigrationState::Planned);
    assert!(silent(&mut stream).await);
    fake.change(1, |one| one.record.phase = Phase::Copying);
    assert_eq!(next(&mut stream).await.state(), v1::MigrationState::Copying);
    fake.change(1, |one| one.progress.items_copied = 17);
    assert_eq!(next(&mut stream).await.progress.unwrap().items_copied, 17);
    fake.change(1, |one| one.record.paused = true);
    assert!(next(&mut stream).await.paused);
    // Its worker is alive: that is no news.
    fake.change(1, |one| (one.beat, one.updated) = (9, Timestamp::from_millis(NOW).unwrap()));
    assert!(silent(&mut stream).await);
    fake.change(1, |one| one.record.phase = Phase::Done);
    assert_eq!(next(&mut stream).await.state(), v1::MigrationState::Done);
    assert!(item(&mut stream).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_is_told_once() {
    let fake = Arc::new(FakeMigrations::with([1]));
    fake.change(1, |one| one.record.phase = Phase::Aborted);
    let mut stream = watch(&service(&fake), 1).await;
    assert_eq!(next(&mut stream).await.state(), v1::MigrationState::Aborted);
    assert!(item(&mut stream).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_migration_that_changes_all_the_time_is_told_four_times_a_second_at_most() {
    let fake = Arc::new(FakeMigrations::with([1]));
    let service = service(&fake);
    let mut stream = watch(&service, 1).await;
    next(&mut stream).await;
    let (began, mut told) = (tokio::time::Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(10) {
        fake.change(1, |one| one.progress.items_copied += 1);
        next(&mut stream).await;
        told += 1;
    }
    assert!((10..=40).contains(&told), "{told} messages in 10 s");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_there_is_the_status_of_the_call() {
    let fake = Arc::new(FakeMigrations::default());
    let service = service(&fake);
    let Err(status) = service.watch_migration(request(1)).await else { panic!("it was found") };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "MIGRATION_NOT_FOUND"));
    // One that is forgotten meanwhile ends the stream.
    fake.change(1, |_| {});
    let mut stream = watch(&service, 1).await;
    next(&mut stream).await;
    fake.state(|state| state.migrations.clear());
    let status = item(&mut stream).await.unwrap().unwrap_err();
    assert_eq!(reason(&status), "MIGRATION_NOT_FOUND");
    assert!(item(&mut stream).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_shuts_down_ends_its_streams() {
    let fake = Arc::new(FakeMigrations::with([1]));
    let service = service(&fake);
    let mut stream = watch(&service, 1).await;
    next(&mut stream).await;
    service.draining.cancel();
    let status = item(&mut stream).await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    assert!(item(&mut stream).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_ends_the_stream() {
    let fake = Arc::new(FakeMigrations::with([1]));
    let mut request = request(1);
    let deadline = tokio::time::Instant::now().into_std() + Duration::from_secs(3);
    request.extensions_mut().insert(Deadline(deadline));
    let stream = service(&fake).watch_migration(request).await;
    let mut stream = stream.map_err(|status| status.to_string()).unwrap().into_inner();
    next(&mut stream).await;
    let status = item(&mut stream).await.unwrap().unwrap_err();
    let expected = (Code::DeadlineExceeded, "DEADLINE_EXCEEDED");
    assert_eq!((status.code(), reason(&status).as_str()), expected);
    assert!(Instant::from(tokio::time::Instant::now()) >= deadline);
    assert!(item(&mut stream).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_for_a_moment_ends_nothing() {
    let fake = Arc::new(FakeMigrations::with([1]));
    let service = service(&fake);
    let mut stream = watch(&service, 1).await;
    next(&mut stream).await;
    let fail = |error: StoreError, times| {
        let error = MigrationError::Store(error);
        fake.state(|state| state.refusal = Some((error, times)));
    };
    fail(StoreError::Throttled, Some(MAX_MISSES));
    fake.change(1, |one| one.record.phase = Phase::Logging);
    assert_eq!(next(&mut stream).await.state(), v1::MigrationState::Logging);
    // One that keeps failing does.
    fail(StoreError::Timeout, None);
    let status = item(&mut stream).await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "STORE_TIMEOUT"));

    // And one that will never answer, at once.
    fake.state(|state| state.refusal = None);
    let mut stream = watch(&service, 1).await;
    next(&mut stream).await;
    fail(StoreError::Unreadable { detail: "an attribute".to_owned() }, Some(1));
    let status = item(&mut stream).await.unwrap().unwrap_err();
    assert_eq!(reason(&status), "RECORD_UNREADABLE");
}

#[tokio::test(start_paused = true)]
async fn so_many_may_watch_and_a_place_is_given_back() {
    let fake = Arc::new(FakeMigrations::with([1]));
    let service = service(&fake);
    let mut streams = Vec::new();
    for _ in 0..MAX_WATCHES {
        streams.push(watch(&service, 1).await);
    }
    let reads = fake.state(|state| state.reads);
    let Err(status) = service.watch_migration(request(1)).await else { panic!("one too many") };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(fake.state(|state| state.reads), reads);
    // By a caller who goes.
    streams.pop();
    let mut last = watch(&service, 1).await;
    assert!(service.watch_migration(request(1)).await.is_err());
    // By a stream that ends.
    fake.change(1, |one| one.record.phase = Phase::Done);
    next(&mut last).await;
    next(&mut last).await;
    assert!(item(&mut last).await.is_none());
    assert!(service.watch_migration(request(1)).await.is_ok());
}
