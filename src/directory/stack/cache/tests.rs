use std::time::{Duration, Instant};

use futures::FutureExt;
use parking_lot::Mutex;

use super::super::RouteOptions;
use super::super::testing::{Inner, every_error, found, from_table, gist, look_up, request};
use super::*;
use crate::directory::fixtures::stage::Time;
use crate::directory::fixtures::{key, now, placed, placement};
use crate::directory::memory::Mode;
use crate::directory::randomness::Randomness;
use crate::domain::{CellId, Change, Epoch, Placement};
use crate::store::StoreError;

fn cached(memory: &Arc<Memory>, time: &Time, inner: &Inner) -> Cached<Inner> {
    CacheLayer::new(memory.clone(), time.clock(), Duration::ZERO).layer(inner.clone())
}

fn memory() -> Arc<Memory> {
    Arc::new(Memory::new(Mode::Bounded(100), Time::new().clock(), &Randomness::system()))
}

fn told(epoch: u64) -> Change {
    Change::Placed { placement: placement("k", "a", epoch), replaced: None }
}

/// Who waits for the whole table is answered as soon as the tenant is there, and reads the table only if that takes too long.
#[tokio::test(start_paused = true)]
async fn a_load_answers_those_whom_it_brings() {
    let patience = Duration::from_millis(100);
    let time = Time::new();
    let memory = Arc::new(Memory::new(Mode::Whole, time.clock(), &Randomness::system()));
    let inner = Inner::answering(found("late", 1), Duration::ZERO);
    let mut cached = CacheLayer::new(memory.clone(), time.clock(), patience).layer(inner.clone());
    memory.begin_load();
    let began = tokio::time::Instant::now();
    let asking = tokio::spawn(cached.call(look_up("soon")));
    tokio::task::yield_now().await;
    assert!(memory.take_in(&[placement("other", "a", 1)]));
    tokio::time::sleep(patience / 2).await;
    assert!(!asking.is_finished());
    assert!(memory.take_in(&[placement("soon", "a", 1)]));
    assert_eq!(asking.await.unwrap().unwrap().source, Source::Memory);
    assert_eq!((inner.calls(), began.elapsed()), (0, patience / 2));
    assert_eq!(cached.call(look_up("late")).await.unwrap().source, Source::Table);
    assert_eq!(inner.calls(), 1);
    assert!(began.elapsed() >= patience * 3 / 2);
}

#[tokio::test]
async fn what_a_call_placed_itself_is_its_answer() {
    let memory = memory();
    let telling = memory.clone();
    let inner = Inner::new(move |_, _| {
        telling.apply(&[told(2)], None);
        let assigned = found("k", 1).map(|found| Routed { written: true, ..found });
        async { assigned }
    });
    let assign = RouteOptions { assign: true, ..RouteOptions::default() };
    let answer = cached(&memory, &Time::new(), &inner).call(request("k", assign)).await;
    assert_eq!(gist(&answer), Ok(("a".into(), Source::Table, Some(1))));
    assert_eq!(inner.calls(), 1);
    assert_eq!(memory.get("k").unwrap().residence.epoch.get(), 2);
}

#[tokio::test]
async fn what_the_table_says_is_kept_and_answered_from_then_on() {
    let (memory, inner) = (memory(), Inner::answering(found("k", 2), Duration::ZERO));
    let mut service = cached(&memory, &Time::new(), &inner);
    let explain = RouteOptions { explain: true, ..RouteOptions::default() };
    let first = service.call(request("k", explain.clone())).await;
    assert_eq!(gist(&first), gist(&found("k", 2)));
    assert_eq!(first.unwrap().steps[0].outcome, "not held, or not good enough");
    let second = service.call(request("k", explain)).now_or_never().unwrap();
    assert_eq!(gist(&second), Ok(("a".into(), Source::Memory, Some(2))));
    let steps = second.unwrap().steps;
    assert_eq!(steps.len(), 1);
    assert!(steps[0].outcome.starts_with("held: a at epoch 2"), "{steps:?}");
    assert_eq!(inner.calls(), 1);
}

#[tokio::test]
async fn neither_errors_nor_guesses_are_kept() {
    let guess = Routed {
        home: Home::Default(CellId::new("d").unwrap()),
        ..from_table(placement("k", "a", 1))
    };
    let absent = Error::from(Refused::PlacementNotFound);
    let errors = every_error().into_iter().filter(|(error, _)| *error != absent);
    for answer in errors.map(|(error, _)| Err(error)).chain([Ok(guess)]) {
        let (memory, inner) = (memory(), Inner::answering(answer.clone(), Duration::ZERO));
        let mut service = cached(&memory, &Time::new(), &inner);
        for calls in 1..4 {
            assert_eq!(gist(&service.call(look_up("k")).await), gist(&answer));
            assert_eq!(inner.calls(), calls);
        }
        assert!(memory.is_empty());
    }
}

/// That a tenant has no cell is answered without a read, until an entry tells of it, or some time has passed.
#[tokio::test]
async fn absence_is_kept_for_a_while() {
    let time = Time::new();
    let started = Instant::now();
    let ahead = Arc::new(Mutex::new(Duration::ZERO));
    let at = ahead.clone();
    let clock = time.clock().with_instant(move || started + *at.lock());
    let memory = Arc::new(Memory::new(Mode::Bounded(100), clock.clone(), &Randomness::system()));
    let inner = Inner::answering(Err(Refused::PlacementNotFound.into()), Duration::ZERO);
    let mut service = CacheLayer::new(memory.clone(), clock, Duration::ZERO).layer(inner.clone());
    let mut absent = async |calls| {
        let read = inner.calls() < calls;
        let answer = service.call(look_up("k")).await.unwrap_err();
        let known = matches!(answer, Error::Refused(Refused::KnownAbsent { .. }));
        assert!(known != read && (known || answer == Refused::PlacementNotFound.into()));
        assert_eq!(inner.calls(), calls);
    };
    absent(1).await;
    *ahead.lock() += Duration::from_millis(4_999);
    absent(1).await;
    *ahead.lock() += Duration::from_millis(1);
    absent(2).await;
    // An entry about the key: read anew.
    memory.apply(&[Change::Vacated { placement: placement("k", "a", 1) }], None);
    absent(3).await;
    absent(3).await;
    memory.apply(&[told(2)], None);
    let answer = service.call(look_up("k")).await;
    assert_eq!(gist(&answer), Ok(("a".into(), Source::Memory, Some(2))));
}

/// What the journal does not vouch for is answered where the table does not answer, with its age and no lease; not otherwise.
#[tokio::test]
async fn what_is_not_trusted_is_better_than_nothing() {
    let (memory, time) = (memory(), Time::new());
    memory.apply(&[told(4)], None);
    let proof = memory.last_proof();
    memory.distrust();
    memory.proven(Instant::now());
    let down = Inner::answering(Err(Error::Store(StoreError::Timeout)), Duration::ZERO);
    let answer = cached(&memory, &time, &down).call(look_up("k")).await;
    assert_eq!(gist(&answer), Ok(("a".into(), Source::Memory, Some(4))));
    let answer = answer.unwrap();
    assert!(answer.lease_until.is_none() && answer.as_of <= proof);
    let up = Inner::answering(found("k", 5), Duration::ZERO);
    let answer = cached(&memory, &time, &up).call(look_up("k")).await;
    assert_eq!(gist(&answer), gist(&found("k", 5)));
    assert_eq!((down.calls(), up.calls()), (1, 1));
    let held = memory.get("k").unwrap();
    assert!(held.trusted && held.residence.epoch.get() == 5);
}

#[tokio::test]
async fn what_expired_is_a_miss() {
    let expires = Some(now().plus(Duration::from_secs(10)));
    let held = Placement { expires, ..placement("k", "a", 1) };
    let (memory, time) = (memory(), Time::new());
    memory.apply(&[Change::Placed { placement: held, replaced: None }], None);
    let inner = Inner::answering(Err(Refused::PlacementNotFound.into()), Duration::ZERO);
    let mut service = cached(&memory, &time, &inner);
    time.pass(Duration::from_millis(9_999));
    assert!(service.call(look_up("k")).await.is_ok());
    assert_eq!(inner.calls(), 0);
    time.pass(Duration::from_millis(1));
    let answer = service.call(look_up("k")).await;
    assert_eq!(answer.unwrap_err(), Refused::PlacementNotFound.into());
}

#[tokio::test]
async fn an_epoch_below_the_one_asked_for_is_a_miss() {
    let (memory, inner) = (memory(), Inner::answering(found("k", 5), Duration::ZERO));
    memory.apply(&[told(4)], None);
    let mut service = cached(&memory, &Time::new(), &inner);
    for (least, calls) in [(3, 0), (4, 0), (5, 1), (5, 1)] {
        let options = RouteOptions { min_epoch: Epoch::new(least), ..RouteOptions::default() };
        assert!(service.call(request("k", options)).await.is_ok());
        assert_eq!(inner.calls(), calls, "{least}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_says_how_old_it_can_be() {
    let read_at = Arc::new(Mutex::new(None));
    let noted = read_at.clone();
    let inner = Inner::new(move |_, _| {
        noted.lock().get_or_insert_with(Instant::now);
        async { found("k", 1) }
    });
    let memory = memory();
    let mut service = cached(&memory, &Time::new(), &inner);
    let before = Instant::now();
    service.call(look_up("k")).await.unwrap();
    let read_at = read_at.lock().unwrap();
    let hit = service.call(look_up("k")).await.unwrap();
    assert!(before <= hit.as_of && hit.as_of <= read_at, "the start of the read, or earlier");
    let proof = Instant::now();
    memory.proven(proof);
    let hit = service.call(look_up("k")).await.unwrap();
    assert!(hit.as_of <= proof && hit.as_of + Duration::from_micros(1) > proof);
    // Told by the journal, without a proof yet: not newer than the last one.
    memory.apply(&[told(2)], None);
    let hit = service.call(look_up("k")).await.unwrap();
    assert_eq!(gist(&Ok(hit.clone())).unwrap().2, Some(2));
    assert!(hit.as_of <= proof);
}

/// A read comes back with less than was told meanwhile: it is not the answer, and it is not kept.
#[tokio::test]
async fn an_epoch_never_falls_below_one_that_was_told() {
    let (memory, time) = (memory(), Time::new());
    // What was told is still held, or was evicted, or came from another reader.
    for case in ["held", "taken away", "another reader"] {
        let slow = memory.clone();
        let inner = Inner::new(move |call, request| {
            let memory = slow.clone();
            async move {
                if call > 0 {
                    return found("k", 2);
                }
                match case {
                    "another reader" => {
                        let other = memory.begin_read(request.key.clone());
                        assert!(other.keep(Residence::from(&placement("k", "a", 2))));
                    }
                    _ => memory.apply(&[told(2)], None),
                }
                if case == "taken away" {
                    memory.apply(&[Change::Vacated { placement: placement("k", "a", 2) }], None);
                }
                found("k", 1)
            }
        });
        let mut service = cached(&memory, &time, &inner);
        let answer = service.call(look_up("k")).await;
        assert_eq!(gist(&answer).unwrap().2, Some(2), "{case}");
        assert_eq!(inner.calls(), if case == "taken away" { 2 } else { 1 });
        assert_eq!(memory.get("k").unwrap().residence.epoch.get(), 2);
        memory.clear();
    }
}

#[tokio::test]
async fn a_read_that_is_overtaken_again_and_again_gives_up() {
    let memory = memory();
    let overtaking = memory.clone();
    let inner = Inner::new(move |call, _| {
        let (memory, epoch) = (overtaking.clone(), call as u64 + 1);
        async move {
            memory.apply(&[told(epoch + 1)], None);
            let placement = placement("k", "a", epoch + 1);
            memory.apply(&[Change::Vacated { placement }], None);
            found("k", epoch)
        }
    });
    let mut service = cached(&memory, &Time::new(), &inner);
    let answer = service.call(look_up("k")).await;
    assert_eq!(answer.unwrap_err(), Refused::Contended.into());
    assert_eq!(inner.calls(), MAX_READS);
}

/// Who comes after a change does not get what was read before it; who comes before shares.
#[tokio::test]
async fn reads_are_shared_up_to_a_change_and_not_beyond() {
    let rounds = Arc::new(Mutex::new(Vec::new()));
    let noted = rounds.clone();
    let inner = Inner::new(move |_, request| {
        noted.lock().push(request.round);
        std::future::pending()
    });
    let memory = memory();
    let mut service = cached(&memory, &Time::new(), &inner);
    let _before = [service.call(look_up("k")), service.call(look_up("k"))];
    memory.apply(&[placed("other", "a", None)], None);
    let _unrelated = service.call(look_up("k"));
    memory.apply(&[Change::Vacated { placement: placement("k", "a", 1) }], None);
    let _after = [service.call(look_up("k")), service.call(look_up("k"))];
    let rounds = rounds.lock();
    assert!(rounds[0] == rounds[1] && rounds[1] == rounds[2]);
    assert!(rounds[3] > rounds[2] && rounds[3] == rounds[4]);
}

/// A read that is given up ends before its announcement does, or somebody could join it unannounced.
#[tokio::test]
async fn a_read_is_announced_for_as_long_as_it_lives() {
    struct Reading(Arc<Memory>, u64);
    impl Drop for Reading {
        fn drop(&mut self) {
            let joined = self.0.begin_read(key("k"));
            assert_eq!(joined.round(), self.1, "the announcement went first");
        }
    }
    let memory = memory();
    let reading = memory.clone();
    let inner = Inner::new(move |_, request| {
        let reading = Reading(reading.clone(), request.round);
        async move {
            let _reading = reading;
            std::future::pending().await
        }
    });
    let mut service = cached(&memory, &Time::new(), &inner);
    for polled in [false, true] {
        let mut given_up = service.call(look_up("k"));
        if polled {
            assert!(futures::poll!(&mut given_up).is_pending());
        }
        drop(given_up);
    }
    assert_eq!(inner.calls(), 2);
}
