//! A directory above the fake: what users see, with paused time.

use std::time::Duration;

use cells_client::fake::FakeDirectory;
use cells_client::{Directory, Error, FallbackCell, Hedge, Mode, Question, Source, WriteMode};

const SECOND: Duration = Duration::from_secs(1);

fn three_cells(replicas: usize) -> FakeDirectory {
    let fake = FakeDirectory::with_replicas(replicas);
    for cell in ["a", "b", "c"] {
        fake.put_cell(cell, &format!("https://{cell}.example"), "eu-west-1");
    }
    fake
}

fn cell(directory: &Directory, key: &str) -> Option<(String, u64)> {
    directory.resolve(key).map(|answer| (answer.cell_id().to_owned(), answer.epoch()))
}

#[tokio::test(start_paused = true)]
async fn answers_say_how_they_were_come_by_and_age() {
    let fake = three_cells(1);
    fake.place("t", "a");
    let directory = fake.connect().await.unwrap();
    tokio::time::sleep(3 * SECOND).await;
    let answer = directory.resolve("t").unwrap();
    assert_eq!(
        (answer.source(), answer.region(), answer.endpoint()),
        (Source::Memory, "eu-west-1", "https://a.example")
    );
    assert!(answer.is_authoritative() && !answer.is_stale() && answer.may_write_directly());
    assert!(answer.age().unwrap() <= 2 * SECOND, "{answer:?}");
    assert!(answer.lease() > 3 * SECOND && answer.lease() <= 5 * SECOND, "{answer:?}");
    fake.set_write_mode("t", WriteMode::Logged);
    fake.caught_up(&directory).await;
    assert!(!directory.resolve("t").unwrap().may_write_directly());

    fake.disconnect();
    tokio::time::sleep(6 * SECOND).await;
    let answer = directory.resolve("t").unwrap();
    assert!(answer.lease().is_zero() && !answer.is_stale(), "{answer:?}");
    tokio::time::sleep(3600 * SECOND).await;
    let answer = directory.resolve("t").unwrap();
    assert!(answer.is_stale() && answer.age().unwrap() > 3600 * SECOND, "{answer:?}");
    assert_eq!(
        directory.locate("t").await.unwrap().cell_id(),
        "a",
        "what is in memory never fails"
    );

    fake.reconnect();
    tokio::time::sleep(12 * SECOND).await;
    assert!(!directory.resolve("t").unwrap().lease().is_zero());
    directory.close().await;
}

#[tokio::test(start_paused = true)]
async fn no_lease_without_renewals_and_none_where_they_are_paused() {
    let fake = three_cells(1);
    fake.place("t", "a");
    let directory = fake.connect().await.unwrap();
    tokio::time::sleep(SECOND).await;
    fake.pause_leases();
    tokio::time::sleep(5 * SECOND).await;
    let answer = directory.resolve("t").unwrap();
    assert!(
        answer.lease().is_zero() && !answer.is_stale(),
        "current, but not for direct writes: {answer:?}"
    );
    fake.resume_leases();
    tokio::time::sleep(2 * SECOND).await;
    assert!(!directory.resolve("t").unwrap().lease().is_zero());
}

#[tokio::test(start_paused = true)]
async fn a_miss_places_once_for_all_who_ask() {
    let fake = three_cells(1);
    let directory = fake.connect().await.unwrap();
    let before = fake.calls();
    let asked = futures::future::join_all((0..100).map(|_| directory.locate("new"))).await;
    assert!(asked.iter().all(|answer| answer.as_ref().unwrap().epoch() == 1));
    assert!(fake.calls() - before <= 2, "one question, and perhaps a renewal");
    assert!(directory.resolve("new").is_some(), "kept");
    let missing = directory.locate_with("nobody", &Question::new().lookup_only()).await;
    assert_eq!(missing.unwrap_err(), Error::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_slow_replica_is_hedged_and_a_dead_one_is_passed_over() {
    for mode in [Mode::Whole, Mode::Bounded { capacity: 100 }] {
        let fake = three_cells(2);
        let hedge = Hedge::After(SECOND / 50);
        let directory = fake.builder().mode(mode).hedge(hedge).seed(3).connect().await.unwrap();
        let watched = directory.status().watching.unwrap();
        fake.slow_replica(watched, SECOND / 4);
        let began = tokio::time::Instant::now();
        directory.locate("new").await.unwrap();
        assert!(began.elapsed() < SECOND / 10, "{:?}", began.elapsed());
        fake.slow_replica(watched, Duration::ZERO);
        fake.disconnect_replica(watched);
        let began = tokio::time::Instant::now();
        directory.locate("newer").await.unwrap();
        assert!(began.elapsed() < SECOND / 10, "{:?}", began.elapsed());
        tokio::time::sleep(SECOND).await;
        assert_eq!(directory.status().watching, Some(1 - watched));
    }
}

#[tokio::test(start_paused = true)]
async fn a_failover_to_a_replica_that_lags_takes_nothing_back() {
    for mode in [Mode::Whole, Mode::Bounded { capacity: 100 }] {
        let fake = three_cells(2);
        fake.place("t", "a");
        let directory = fake.builder().mode(mode).seed(5).connect().await.unwrap();
        directory.locate("t").await.unwrap();
        let watched = directory.status().watching.unwrap();
        fake.hold_replica(1 - watched);
        fake.place("t", "b");
        fake.caught_up(&directory).await;
        assert_eq!(cell(&directory, "t"), Some(("b".into(), 2)));
        fake.disconnect_replica(watched);
        for _ in 0..20 {
            tokio::time::sleep(SECOND).await;
            assert_eq!(cell(&directory, "t"), Some(("b".into(), 2)));
        }
        assert!(
            directory.resolve("t").unwrap().lease().is_zero(),
            "the replica that is left cannot vouch for it"
        );
        fake.release_replica(1 - watched);
        tokio::time::sleep(15 * SECOND).await;
        assert!(!directory.resolve("t").unwrap().lease().is_zero());
    }
}

#[tokio::test(start_paused = true)]
async fn a_lagging_answer_never_gets_a_renewed_lease() {
    // Two replicas; the one that answers the miss lags behind what the watch has told.
    let fake = three_cells(2);
    fake.place("t", "a");
    let builder = fake.builder().mode(Mode::Bounded { capacity: 100 }).hedge(Hedge::Off).seed(5);
    let directory = builder.connect().await.unwrap();
    let watched = directory.status().watching.unwrap();
    fake.hold_replica(1 - watched);
    fake.place("t", "b");
    fake.caught_up(&directory).await;
    fake.slow_replica(watched, SECOND);
    let answer = directory.locate("t").await.unwrap();
    assert_eq!(answer.epoch(), 1, "the lagging replica has answered, within its own lease");
    fake.slow_replica(watched, Duration::ZERO);
    for _ in 0..50 {
        tokio::time::sleep(SECOND / 10).await;
        let answer = directory.resolve("t").unwrap();
        assert!(answer.epoch() == 2 || answer.lease().is_zero(), "{answer:?}");
    }
    assert_eq!(cell(&directory, "t"), Some(("b".into(), 2)), "asked again in the background");
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_and_a_restore_lose_nothing_that_is_held() {
    for mode in [Mode::Whole, Mode::Bounded { capacity: 1_000 }] {
        let fake = three_cells(1);
        let keys: Vec<String> = (0..350).map(|n| format!("t-{n}")).collect();
        keys.iter().for_each(|key| fake.place(key, "a"));
        let directory = fake.builder().mode(mode).connect().await.unwrap();
        for key in &keys {
            directory.locate(key).await.unwrap();
        }
        fake.disconnect();
        fake.place("t-7", "b");
        fake.vacate("t-8");
        fake.forget_history();
        tokio::time::sleep(SECOND).await;
        fake.reconnect();
        for _ in 0..300 {
            tokio::time::sleep(SECOND / 10).await;
            assert!(
                keys.iter().filter(|key| *key != "t-8").all(|key| directory.resolve(key).is_some())
            );
        }
        assert_eq!(
            cell(&directory, "t-7"),
            Some(("b".into(), 2)),
            "{mode:?} {:?}",
            directory.status()
        );
        assert_eq!(cell(&directory, "t-8"), None, "{mode:?} {:?}", directory.status());
        assert!(!directory.resolve("t-9").unwrap().lease().is_zero());

        fake.restore();
        fake.place("t-7", "c");
        for _ in 0..1_000 {
            tokio::time::sleep(SECOND / 10).await;
            assert!(directory.resolve("t-7").is_some());
        }
        assert_eq!(cell(&directory, "t-7"), Some(("c".into(), 3)));
        assert!(!directory.resolve("t-7").unwrap().lease().is_zero());
    }
}

#[tokio::test(start_paused = true)]
async fn a_bounded_memory_holds_what_was_asked_for_and_keeps_it_exact() {
    let fake = three_cells(1);
    (0..1_000).for_each(|n| fake.place(&format!("t-{n}"), "a"));
    let directory = fake.builder().mode(Mode::Bounded { capacity: 50 }).connect().await.unwrap();
    assert!(directory.resolve("t-1").is_none());
    for n in 0..1_000 {
        directory.locate(&format!("t-{n}")).await.unwrap();
    }
    assert!(directory.status().placements <= 50);
    directory.locate("t-1").await.unwrap();
    fake.place("t-1", "b");
    fake.place("t-2", "c");
    fake.caught_up(&directory).await;
    assert_eq!(cell(&directory, "t-1"), Some(("b".into(), 2)));
    fake.vacate("t-1");
    fake.caught_up(&directory).await;
    assert!(directory.resolve("t-1").is_none());
    assert_eq!(directory.locate("t-2").await.unwrap().cell_id(), "c");
}

#[tokio::test(start_paused = true)]
async fn a_silent_watch_is_left() {
    let fake = three_cells(2);
    fake.place("t", "a");
    let directory = fake.connect().await.unwrap();
    let watched = directory.status().watching.unwrap();
    fake.silence_replica(watched);
    fake.place("t", "b");
    tokio::time::sleep(12 * SECOND).await;
    assert_eq!(cell(&directory, "t"), Some(("b".into(), 2)));
    assert_eq!(directory.status().watching, Some(1 - watched));
}

#[tokio::test(start_paused = true)]
async fn with_everything_down_a_miss_is_a_guess_or_an_error_in_time() {
    let fake = three_cells(2);
    let guess = FallbackCell {
        cell_id: "z".into(),
        endpoint: "https://z.example".into(),
        region: "r".into(),
    };
    let directory = fake.builder().fallback_cell(guess).connect().await.unwrap();
    fake.disconnect();
    let began = tokio::time::Instant::now();
    let answer = directory.locate("new").await.unwrap();
    assert_eq!((answer.source(), answer.cell_id(), answer.epoch()), (Source::Fallback, "z", 0));
    assert!(!answer.is_authoritative() && answer.lease().is_zero() && !answer.may_write_directly());
    assert!(directory.resolve("new").is_none(), "a guess is not kept");
    let refused = directory.locate_with("new", &Question::new().refuse_fallback()).await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })));
    assert!(began.elapsed() <= 5 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn an_epoch_that_was_seen_elsewhere_is_waited_for() {
    let fake = three_cells(1);
    fake.place("t", "a");
    let directory = fake.connect().await.unwrap();
    fake.hold_replica(0);
    fake.place("t", "b");
    let answer = directory.locate_with("t", &Question::new().min_epoch(2)).await.unwrap();
    assert_eq!((answer.cell_id(), answer.epoch()), ("b", 2));
    assert_eq!(
        cell(&directory, "t"),
        Some(("b".into(), 2)),
        "what was told is held, though the watch lags"
    );
    fake.release_replica(0);
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(cell(&directory, "t"), Some(("b".into(), 2)));
    let beyond = directory.locate_with("t", &Question::new().min_epoch(9)).await;
    assert!(matches!(beyond, Err(Error::Refused { .. })), "{beyond:?}");
}

#[tokio::test(start_paused = true)]
async fn the_snapshot_file_serves_when_everything_is_down() {
    let folder = tempfile::tempdir().unwrap();
    for (mode, name) in [(Mode::Whole, "whole"), (Mode::Bounded { capacity: 100 }, "bounded")] {
        let path = folder.path().join(name);
        let fake = three_cells(1);
        fake.place("t", "a");
        fake.place("t", "b");
        let directory = fake.builder().mode(mode).snapshot(&path).connect().await.unwrap();
        directory.locate("t").await.unwrap();
        directory.close().await;
        fake.disconnect();
        let directory = fake.builder().mode(mode).snapshot(&path).connect().await.unwrap();
        let answer = directory.resolve("t").unwrap();
        assert_eq!(
            (answer.cell_id(), answer.epoch(), answer.source()),
            ("b", 2, Source::SnapshotFile)
        );
        assert_eq!(
            (answer.endpoint(), answer.age(), answer.lease()),
            ("https://b.example", None, Duration::ZERO)
        );
        assert!(answer.is_stale() && answer.saved_at().is_some());
        assert!(directory.resolve("u").is_none());
        fake.place("t", "c");
        fake.reconnect();
        tokio::time::sleep(15 * SECOND).await;
        let answer = directory.resolve("t").unwrap();
        assert_eq!((answer.cell_id(), answer.epoch(), answer.source()), ("c", 3, Source::Memory));
        assert!(!answer.lease().is_zero());
        directory.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_snapshot_file_is_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let fake = three_cells(1);
    (0..5).for_each(|n| fake.place(&format!("t-{n}"), "a"));
    let directory = fake.builder().snapshot(&path).connect().await.unwrap();
    directory.save().unwrap();
    directory.close().await;
    fake.disconnect();
    let good = std::fs::read(&path).unwrap();
    let usable = async |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        let directory = fake.builder().snapshot(&path).connect_lazily().connect().await.unwrap();
        let ready = directory.status().ready;
        assert_eq!(ready, directory.resolve("t-0").is_some());
        // Who has nothing does not overwrite the file.
        directory.close().await;
        ready
    };
    assert!(usable(&good).await);
    for length in 0..good.len() {
        assert!(!usable(&good[..length]).await, "cut at {length}");
    }
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 1 << (place % 8);
        assert!(!usable(&bad).await, "flipped at {place}");
    }
    let longer = [good.as_slice(), b"x"].concat();
    assert!(!usable(&longer).await);
}

#[tokio::test(start_paused = true)]
async fn connecting_has_an_end_and_closing_joins() {
    let fake = three_cells(1);
    fake.disconnect();
    let refused = fake.builder().connect_timeout(SECOND).connect().await;
    assert!(matches!(refused, Err(Error::NotReady { .. })));
    assert!(matches!(
        fake.builder().mode(Mode::Bounded { capacity: 0 }).connect().await,
        Err(Error::InvalidOption { .. })
    ));
    assert!(matches!(Directory::connect(["not a uri"]).await, Err(Error::InvalidOption { .. })));
    assert!(matches!(
        Directory::connect(Vec::<String>::new()).await,
        Err(Error::InvalidOption { .. })
    ));
    fake.reconnect();
    fake.place("t", "a");
    let directory = fake.connect().await.unwrap();
    let clone = directory.clone();
    directory.close().await;
    assert_eq!(
        cell(&clone, "t"),
        Some(("a".into(), 1)),
        "what is in memory is answered to the last"
    );
    assert_eq!(clone.locate("u").await.unwrap_err(), Error::Closed);
}
