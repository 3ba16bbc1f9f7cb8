use super::*;
use crate::directory::fixtures::{Call, Fault, Faulty, cell, entry, now, placed, placement};
use crate::directory::memory::{Mode, Residence};
use crate::domain::{CellId, Change, PartitionKey};
use crate::store::memory::MemoryStore;
use crate::store::{Commit, CommitOutcome, Write};

fn clock() -> Clock {
    Clock::from_fn(now)
}

fn memory() -> Arc<Memory> {
    Arc::new(Memory::new(Mode::Bounded(10_000), clock(), &Randomness::system()))
}

async fn append(store: &MemoryStore, entry: JournalEntry, writes: Vec<Write>) {
    let commit = Commit { entry, writes };
    assert_eq!(store.commit(&commit).await, Ok(CommitOutcome::Committed));
}

#[tokio::test]
async fn follows_what_others_write() {
    let store = Arc::new(MemoryStore::default());
    let memory = memory();
    let replica = Replica::new(store.clone(), memory.clone(), clock());
    assert_eq!(replica.registry().unwrap_err(), Error::NotReady);

    let created = Change::CellCreated { cell: cell("a", 1) };
    let put = Write::PutCell { cell: cell("a", 1), set_count: true };
    append(&store, entry(1, vec![created]), vec![put]).await;
    replica.catch_up().await.unwrap();
    let proof = memory.last_proof();

    append(&store, entry(2, vec![placed("k", "a", None)]), vec![]).await;
    replica.catch_up().await.unwrap();
    assert!(memory.get("k").is_some());
    assert!(memory.last_proof() > proof);
    let a = CellId::new("a").unwrap();
    assert_eq!(replica.registry().unwrap().cell(&a).unwrap().placements, 1);

    // The committer applies its own entry after the follower did: nothing counts twice.
    replica.apply_own(&entry(2, vec![placed("k", "a", None)]), Instant::now());
    assert_eq!(replica.registry().unwrap().cell(&a).unwrap().placements, 1);
}

#[tokio::test]
async fn a_journal_that_went_back_is_read_anew() {
    let store = Arc::new(MemoryStore::default());
    append(&store, entry(1, vec![placed("k", "a", None)]), vec![]).await;
    let memory = memory();
    let replica = Replica::new(store, memory.clone(), clock());
    replica.catch_up().await.unwrap();
    replica.apply_own(&entry(2, vec![placed("k2", "a", None)]), Instant::now());
    assert!(memory.get("k2").is_some());
    replica.catch_up().await.unwrap();
    assert!(memory.get("k2").is_none());
    assert_eq!(replica.registry().unwrap().applied(), Sequence::new(1));
}

/// A replica on a store with cell `a` and `n` tenants.
async fn behind(n: u64) -> (Arc<Faulty>, Arc<Replica>) {
    let store = Faulty::new();
    let cell = cell("a", 1);
    let put = Write::PutCell { cell: cell.clone(), set_count: true };
    append(&store.inner, entry(1, vec![Change::CellCreated { cell }]), vec![put]).await;
    let replica = Arc::new(Replica::new(store.clone(), memory(), clock()));
    replica.catch_up().await.unwrap();
    for at in 2..n + 2 {
        append(&store.inner, entry(at, vec![placed(&format!("k{at}"), "a", None)]), vec![]).await;
    }
    (store, replica)
}

fn applied(replica: &Replica) -> u64 {
    replica.registry().unwrap().applied().get()
}

#[tokio::test]
async fn catches_up_page_by_page_and_keeps_what_it_has() {
    let (store, replica) = behind(250).await;
    let proof = replica.memory().last_proof();
    store.next(Call::Entries, [None, Some(Fault::Fail(StoreError::Timeout))]);
    assert_eq!(replica.catch_up().await, Err(StoreError::Timeout));
    assert_eq!(applied(&replica), 101);
    assert_eq!(replica.memory().len(), 100);
    let held = replica.memory().get("k2").unwrap();
    assert_eq!(replica.memory().last_proof(), proof, "it may have changed since");
    assert_eq!(held.as_of, proof);
    replica.catch_up().await.unwrap();
    assert_eq!((applied(&replica), replica.memory().len()), (251, 250));
    assert!(replica.memory().get("k2").unwrap().as_of > proof);
    assert_eq!(store.count(Call::Cells), 1, "read once");
}

/// What is applied while the head is being read may be ahead of it, and is no reason to forget everything.
#[tokio::test]
async fn an_own_entry_during_a_poll_is_no_step_back() {
    let (store, replica) = behind(0).await;
    let (gate, before, after) = Fault::gate();
    store.next(Call::Head, [Some(gate)]);
    let polling = replica.clone();
    let poll = tokio::spawn(async move { polling.catch_up().await });
    before.add_permits(1);
    tokio::task::yield_now().await;
    let own = entry(2, vec![placed("k", "a", None)]);
    append(&store.inner, own.clone(), vec![]).await;
    replica.apply_own(&own, Instant::now());
    after.add_permits(1);
    poll.await.unwrap().unwrap();
    assert!(replica.memory().get("k").is_some());
    assert_eq!((applied(&replica), store.count(Call::Cells)), (2, 1));
}

/// Many who read the journal at once, each at another pace, apply each entry once.
#[tokio::test(start_paused = true)]
async fn readers_of_the_journal_do_not_get_in_each_others_way() {
    let (store, replica) = behind(250).await;
    let polls: Vec<_> = (1..20)
        .map(|n| {
            store.next(Call::Head, [Some(Fault::Slow(Duration::from_millis(n * 7 % 10)))]);
            store.next(Call::Entries, [Some(Fault::Slow(Duration::from_millis(n % 5)))]);
            let replica = replica.clone();
            tokio::spawn(async move { replica.catch_up().await })
        })
        .collect();
    for poll in polls {
        poll.await.unwrap().unwrap();
    }
    let registry = replica.registry().unwrap();
    let a = CellId::new("a").unwrap();
    assert_eq!((applied(&replica), registry.cell(&a).unwrap().placements), (251, 250));
}

/// Two who load the registry for the first time: what the faster one has applied since is not taken back by the slower one.
#[tokio::test]
async fn a_late_first_load_takes_nothing_back() {
    let (store, _) = behind(0).await;
    let replica = Arc::new(Replica::new(store.clone(), memory(), clock()));
    let (gate, before, after) = Fault::gate();
    store.next(Call::Cells, [Some(gate)]);
    let slow = replica.clone();
    let slow = tokio::spawn(async move { slow.catch_up().await });
    tokio::task::yield_now().await;
    append(&store.inner, entry(2, vec![placed("k", "a", None)]), vec![]).await;
    replica.catch_up().await.unwrap();
    assert_eq!(applied(&replica), 2);
    let loaded = replica.registry().unwrap();
    before.add_permits(1);
    after.add_permits(1);
    slow.await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&loaded, &replica.registry().unwrap()));
}

/// A replica that cannot read the journal yet answers from the table. No entry up to the head that it then begins with is applied to
/// what it read meanwhile, so no poll vouches for it.
#[tokio::test]
async fn what_was_read_before_the_first_load_is_not_trusted_after_it() {
    let (store, _) = behind(1).await;
    let memory = memory();
    let replica = Replica::new(store.clone(), memory.clone(), clock());
    let key = PartitionKey::new("k2").unwrap();
    let read = Residence::from(&placement("k2", "a", 1));
    let slow = memory.begin_read(key.clone());
    assert!(memory.begin_read(key).keep(read));
    assert!(memory.get("k2").is_some_and(|held| held.trusted));
    let vacated = Change::Vacated { placement: placement("k2", "a", 1) };
    append(&store.inner, entry(3, vec![vacated]), vec![]).await;
    let before = clock().instant();
    replica.catch_up().await.unwrap();
    let untrusted = || {
        let held = memory.get("k2").unwrap();
        assert!(!held.trusted && held.as_of < before);
    };
    untrusted();
    assert!(slow.keep(read));
    untrusted();
}

/// Who looked at the head, was overtaken while reading on, and then finds those entries trimmed: what was adopted meanwhile is later
/// than that head, and is not given up for it.
#[tokio::test]
async fn who_fell_behind_does_not_go_back_to_an_older_head() {
    let (store, replica) = behind(10).await;
    let (gate, before, after) = Fault::gate();
    store.next(Call::Entries, [Some(gate)]);
    let slow = replica.clone();
    let slow = tokio::spawn(async move { slow.catch_up().await });
    tokio::task::yield_now().await;
    for at in 12..20 {
        append(&store.inner, entry(at, vec![placed(&format!("k{at}"), "a", None)]), vec![]).await;
    }
    store.inner.trim(Sequence::new(15)).await.unwrap();
    // It falls behind, too, and adopts the head as it is by now.
    replica.catch_up().await.unwrap();
    assert_eq!((applied(&replica), store.count(Call::Cells)), (19, 2));
    let adopted = replica.registry().unwrap();
    before.add_permits(1);
    after.add_permits(1);
    slow.await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&adopted, &replica.registry().unwrap()));
    assert_eq!(replica.memory().applied(), Sequence::new(19));
    assert_eq!(replica.feed().position().sequence, Sequence::new(19));
}

/// What the journal does not vouch for has no position in it: a hole lies between what it was and where the replica stands.
#[tokio::test]
async fn what_is_not_trusted_has_no_sequence() {
    let (store, replica) = behind(3).await;
    replica.catch_up().await.unwrap();
    let held = || replica.memory().get("k2").unwrap();
    assert_eq!((held().trusted, held().sequence), (true, Sequence::new(4)));
    let proof = replica.memory().last_proof();
    for at in 5..9 {
        append(&store.inner, entry(at, vec![placed(&format!("k{at}"), "a", None)]), vec![]).await;
    }
    store.inner.trim(Sequence::new(7)).await.unwrap();
    for _ in 0..2 {
        // No later poll vouches for it either.
        replica.catch_up().await.unwrap();
        assert_eq!(applied(&replica), 8);
        assert_eq!((held().trusted, held().sequence), (false, Sequence::START));
        assert!(held().as_of <= proof);
    }
    // Until an entry tells of it.
    append(&store.inner, entry(9, vec![placed("k2", "a", None)]), vec![]).await;
    replica.catch_up().await.unwrap();
    assert_eq!((held().trusted, held().sequence), (true, Sequence::new(9)));
}

#[tokio::test]
async fn a_journal_with_a_hole_is_not_read_over() {
    let store = Faulty::new();
    append(&store.inner, entry(1, vec![placed("k", "a", None)]), vec![]).await;
    let replica = Replica::new(store.clone(), memory(), clock());
    replica.begin_with(Registry::default());
    // An answer without the first entry, though none was trimmed.
    append(&store.inner, entry(2, vec![placed("l", "a", None)]), vec![]).await;
    store.next(Call::Entries, [Some(Fault::Skip(1))]);
    let Err(StoreError::Unreadable { detail }) = replica.catch_up().await else { panic!() };
    assert_eq!(detail, "journal entry 2 stands where 1 is due");
    assert!(replica.memory().is_empty());
    assert_eq!(applied(&replica), 0);
}
