//! Commits as a whole, the journal they make, the registry of cells and the records of requests.

use std::time::Duration;

use cell_directory::domain::{
    Cell, CellState, Change, Cluster, JournalEntry, JournalId, Labels, LeaseDuration, Mapping,
    Nonce, RequestId, RequestRecord, Sequence, StoredOutcome, Weight,
};
use cell_directory::store::{
    Commit, CommitOutcome, Expected, Found, Head, MAX_ENTRY_BYTES, MAX_WRITES, Refusal, StoreError,
    Write, encoded_len,
};

use super::{
    Engine, adopted, at, cell, commit, entry, epoch, expect_placed, id, key, nonce, past, place,
    placement, request, vacate,
};

pub async fn a_commit_at_another_head_does_nothing(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::new(41)).await;
    f.must(vec![place(placement("taken", "cell-a", 1), Expected::Absent)]).await;
    for sequence in [1, 41, 42, 44, 1000] {
        // The second write would be refused too, but on a head that moved nothing is worth saying about it.
        let writes = vec![
            place(placement("tenant", "cell-a", 1), Expected::Absent),
            place(placement("taken", "cell-b", 1), Expected::Absent),
        ];
        let outcome = f.commit(&commit(sequence, writes)).await;
        assert_eq!(outcome, CommitOutcome::HeadMoved, "{sequence}");
    }
    assert_eq!(f.mapping(&key("tenant")).await, Mapping::Absent);
    assert_eq!(f.head().await, 42);
}

pub async fn one_refused_write_undoes_all(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let taken = request("taken", "d", at(99));
    f.must(vec![
        place(placement("placed", "cell-a", 1), Expected::Absent),
        place(placement("vacated", "cell-a", 1), Expected::Absent),
        Write::PutCell { cell: cell("cell-a", 1), set_count: true },
        Write::PutCell { cell: cell("cell-b", 1), set_count: true },
        Write::PutRequest(taken.clone()),
    ])
    .await;
    let cells = f.cells().await;
    let outcome = f
        .write(vec![
            place(placement("new", "cell-a", 1), Expected::Absent),
            place(placement("placed", "cell-b", 1), Expected::Absent),
            vacate("vacated", 1, expect_placed("cell-a", 1, false)),
            Write::AddHistory(past("vacated", 1)),
            Write::AddToCount { cell: id("cell-a"), delta: 5 },
            Write::RemoveCell(id("cell-b")),
            Write::PutCell { cell: cell("cell-c", 2), set_count: true },
            Write::PutRequest(request("new", "d", at(99))),
            Write::PutRequest(request("taken", "other", at(99))),
            vacate("absent", 1, Expected::Vacated(epoch(1))),
        ])
        .await;
    let mapping = |write, mapping| Refusal { write, found: Found::Mapping(mapping) };
    let expected = vec![
        mapping(1, Mapping::Placed(placement("placed", "cell-a", 1))),
        Refusal { write: 8, found: Found::Request(taken) },
        mapping(9, Mapping::Absent),
    ];
    assert_eq!(outcome, CommitOutcome::Refused(expected));
    assert_eq!(f.mapping(&key("new")).await, Mapping::Absent);
    assert!(f.mapping(&key("vacated")).await.placement().is_some());
    let history = f.store.placements.history(&key("vacated"), 9, None).await.unwrap();
    assert_eq!(history.items, []);
    assert_eq!(f.cells().await, cells);
    let new = RequestId::new("new").unwrap();
    assert_eq!(f.store.journal.request(&new).await, Ok(None));
    assert_eq!(f.head().await, 1);
    let entries = f.store.journal.entries(Sequence::new(1), 9).await;
    assert_eq!(entries, Ok(vec![]));
}

pub async fn a_request_id_is_taken_until_it_may_be_forgotten(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let first = request("r-1", "first", at(0).plus(Duration::from_millis(1)));
    f.must(vec![Write::PutRequest(first.clone())]).await;
    assert_eq!(f.store.journal.request(&first.id).await, Ok(Some(first.clone())));

    let second = request("r-1", "second", at(50));
    let outcome = f.write(vec![Write::PutRequest(second.clone())]).await;
    let found = Found::Request(first.clone());
    assert_eq!(outcome, CommitOutcome::Refused(vec![Refusal { write: 0, found }]));

    // A millisecond later, which is the first's last, the id is free again.
    let mut later = commit(2, vec![Write::PutRequest(second.clone())]);
    later.entry.written = first.forget_after;
    assert_eq!(f.commit(&later).await, CommitOutcome::Committed);
    assert_eq!(f.store.journal.request(&first.id).await, Ok(Some(second)));

    for outcome in [
        StoredOutcome::Vacated(placement("t", "cell-a", 2)),
        StoredOutcome::Cell(cell("cell-a", 3)),
        StoredOutcome::CellDeleted,
    ] {
        let record = RequestRecord { outcome, ..request("r-2", "d", at(0)) };
        f.must(vec![Write::PutRequest(record.clone())]).await;
        assert_eq!(f.store.journal.request(&record.id).await, Ok(Some(record)));
    }
}

pub async fn cells_keep_their_counts_apart_from_their_settings(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let count = |cells: &[Cell]| -> Vec<(String, u64, u64)> {
        let of = |c: &Cell| (c.id.to_string(), c.placements, c.counted_at.get());
        cells.iter().map(of).collect()
    };
    let add = |name: &str, delta| Write::AddToCount { cell: id(name), delta };
    let put = |cell: Cell, set_count| Write::PutCell { cell, set_count };
    let counted = Cell { placements: 40, counted_at: Sequence::new(1), ..cell("b", 1) };
    f.must(vec![put(counted, true), put(cell("a", 1), false), put(cell("a-1", 1), true)]).await;
    let expected = [("a".into(), 0, 1), ("a-1".into(), 0, 1), ("b".into(), 40, 1)];
    assert_eq!(count(&f.cells().await), expected);

    f.must(vec![add("a", 3), add("b", -1)]).await;
    let changed = Cell { weight: Weight::new(7).unwrap(), placements: 99, ..cell("b", 3) };
    f.must(vec![put(changed.clone(), false), add("a", 2), add("a-1", -4)]).await;
    let cells = f.cells().await;
    let expected = [("a".into(), 5, 3), ("a-1".into(), 0, 3), ("b".into(), 39, 2)];
    assert_eq!(count(&cells), expected);
    let settings = Cell { placements: 39, counted_at: Sequence::new(2), ..changed };
    assert_eq!(cells[2], settings);

    // A count below zero is shown as none, but not forgotten.
    f.must(vec![add("a-1", 5)]).await;
    assert_eq!(count(&f.cells().await)[1], ("a-1".into(), 1, 4));
}

pub async fn a_cell_is_read_as_it_was_written_and_goes_with_its_count(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    for (n, state) in (1..).zip(CellState::ALL) {
        let written = Cell {
            state,
            capacity: std::num::NonZeroU64::new(n - 1),
            labels: Labels::default(),
            updated: at(7),
            placements: 5,
            counted_at: Sequence::new(n),
            ..cell("cell-a", n)
        };
        f.must(vec![Write::PutCell { cell: written.clone(), set_count: true }]).await;
        assert_eq!(f.cells().await, [written]);
    }
    f.must(vec![Write::RemoveCell(id("cell-a"))]).await;
    assert_eq!(f.cells().await, []);
    f.must(vec![Write::PutCell { cell: cell("cell-a", 9), set_count: false }]).await;
    assert_eq!(f.cells().await, [cell("cell-a", 9)]);
}

/// The journal is kept in partitions of a thousand; this one crosses two borders.
pub async fn entries_are_read_in_order_and_without_gaps(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::new(998)).await;
    let mut written = Vec::new();
    for n in 999..=1004 {
        let change = Change::CellDeleted { cell: id(&format!("cell-{n}")) };
        let entry = entry(n, vec![change]);
        let commit = Commit { entry: entry.clone(), writes: vec![] };
        assert_eq!(f.commit(&commit).await, CommitOutcome::Committed);
        written.push(entry);
    }
    assert_eq!(f.head().await, 1004);
    let entries = async |after, limit| {
        let entries = f.store.journal.entries(Sequence::new(after), limit).await;
        entries.unwrap()
    };
    assert_eq!(entries(998, 100).await, written);
    assert_eq!(entries(998, 1).await, written[..1]);
    assert_eq!(entries(998, 3).await, written[..3]);
    assert_eq!(entries(999, 100).await, written[1..]);
    assert_eq!(entries(1001, 2).await, written[3..5]);
    assert_eq!(entries(1004, 100).await, []);
    assert_eq!(entries(998, 0).await, []);
}

pub async fn an_entry_of_every_change_is_read_as_it_was_written(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let placement = placement("é\"\\", "cell-a", u64::MAX);
    let entry = JournalEntry {
        nonce: Nonce::new(u128::MAX - 1),
        written: at(77),
        ..entry(
            1,
            vec![
                Change::Placed { placement: placement.clone(), replaced: Some(id("cell-b")) },
                Change::Vacated { placement },
                Change::CellCreated { cell: cell("a", 1) },
                Change::CellUpdated { cell: cell("b", 1) },
                Change::CellDeleted { cell: id("c") },
            ],
        )
    };
    // A fixed nonce would be a repeat of the same test on an engine that remembers.
    let entry = JournalEntry { nonce: nonce(), ..entry };
    let commit = Commit { entry: entry.clone(), writes: vec![] };
    assert_eq!(f.commit(&commit).await, CommitOutcome::Committed);
    assert_eq!(f.store.journal.entries(Sequence::START, 9).await, Ok(vec![entry]));
}

pub async fn a_commit_that_is_repeated_is_done_once(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    f.must(vec![Write::PutCell { cell: cell("cell-a", 1), set_count: true }]).await;
    let again = commit(
        2,
        vec![
            place(placement("tenant", "cell-a", 1), Expected::Absent),
            Write::AddToCount { cell: id("cell-a"), delta: 1 },
        ],
    );
    assert_eq!(f.commit(&again).await, CommitOutcome::Committed);
    for _ in 0..3 {
        let outcome = f.commit(&again).await;
        let known = [CommitOutcome::Committed, CommitOutcome::HeadMoved];
        assert!(known.contains(&outcome), "{outcome:?}");
    }
    assert_eq!(f.head().await, 2);
    assert_eq!(f.cells().await[0].placements, 1);
    let entries = f.store.journal.entries(Sequence::new(1), 9).await;
    assert_eq!(entries, Ok(vec![again.entry]));
}

/// Sixteen writers at one head, again and again: of each round one commits, and the others learn why they did not.
pub async fn of_racing_commits_one_wins(engine: &dyn Engine) {
    const WRITERS: usize = 16;
    const ROUNDS: u64 = 8;
    let f = engine.fresh(Sequence::START).await;
    for sequence in 1..=ROUNDS {
        let mut racing = tokio::task::JoinSet::new();
        for n in 0..WRITERS {
            let journal = f.store.journal.clone();
            let placed = placement(&format!("tenant-{sequence}"), &format!("cell-{n}"), 1);
            let commit = commit(sequence, vec![place(placed, Expected::Absent)]);
            racing.spawn(async move {
                // Contended is no answer yet.
                for _ in 0..1000 {
                    match journal.commit(&commit).await.unwrap() {
                        CommitOutcome::Contended => tokio::task::yield_now().await,
                        outcome => return (n, outcome),
                    }
                }
                panic!("contended for ever");
            });
        }
        let outcomes = racing.join_all().await;
        let won = |(_, outcome): &&(usize, CommitOutcome)| *outcome == CommitOutcome::Committed;
        let winners: Vec<_> = outcomes.iter().filter(won).map(|(n, _)| *n).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        let lost = outcomes.iter().filter(|(_, outcome)| *outcome == CommitOutcome::HeadMoved);
        assert_eq!(lost.count(), WRITERS - 1, "{outcomes:?}");
        let winner = placement(&format!("tenant-{sequence}"), &format!("cell-{}", winners[0]), 1);
        assert_eq!(f.mapping(&winner.key).await, Mapping::Placed(winner.clone()));
        let entry = f.store.journal.entries(Sequence::new(sequence - 1), 9).await.unwrap();
        let change = Change::Placed { placement: winner, replaced: None };
        assert_eq!(entry.len(), 1);
        assert_eq!(entry[0].changes, [change]);
    }
    assert_eq!(f.head().await, ROUNDS);
}

pub async fn the_largest_commit_is_done(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let mut writes: Vec<_> = (0..MAX_WRITES - 2)
        .map(|n| place(placement(&format!("t-{n}"), "cell-a", 1), Expected::Absent))
        .collect();
    writes.push(Write::PutCell { cell: cell("cell-a", 1), set_count: true });
    let items: usize = writes.iter().map(Write::items).sum();
    assert_eq!(items, MAX_WRITES);
    let mut largest = commit(1, writes);
    let filler = Change::Vacated { placement: placement(&"x".repeat(1024), "cell-a", 1) };
    let size = |changes: &[Change]| changes.iter().map(encoded_len).sum::<usize>();
    while size(&largest.entry.changes) + encoded_len(&filler) <= MAX_ENTRY_BYTES {
        largest.entry.changes.push(filler.clone());
    }
    assert_eq!(f.commit(&largest).await, CommitOutcome::Committed);
    let entries = f.store.journal.entries(Sequence::START, 1).await;
    assert_eq!(entries, Ok(vec![largest.entry]));
    assert_eq!(f.pages(Some(&id("cell-a")), 1000).await.0.len(), MAX_WRITES - 2);
}

pub async fn a_malformed_commit_is_rejected(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let placed = |n: usize| place(placement(&format!("t-{n}"), "cell-a", 1), Expected::Absent);
    let count = || Write::AddToCount { cell: id("cell-a"), delta: 1 };
    let huge = Change::Vacated { placement: placement(&"x".repeat(1024), "cell-a", 1) };
    let mut oversized = commit(1, vec![]);
    oversized.entry.changes = vec![huge; 300];
    let malformed = [
        commit(0, vec![]),
        oversized,
        commit(1, (0..=MAX_WRITES).map(placed).collect()),
        commit(1, vec![place(adopted("t", "cell-a"), Expected::Absent)]),
        commit(1, vec![placed(1), placed(1)]),
        commit(1, vec![placed(1), count(), count()]),
        commit(1, vec![Write::PutCell { cell: cell("cell-a", 1), set_count: true }, count()]),
    ];
    for commit in malformed {
        let outcome = f.store.journal.commit(&commit).await;
        let rejected = matches!(outcome, Err(StoreError::Rejected { .. }));
        assert!(rejected, "{outcome:?} for {:?}", commit.writes.first());
    }
    assert_eq!(f.head().await, 0);
    assert_eq!(f.pages(None, 9).await.0, []);
}

/// Across the border of two partitions; trimmed twice, less than before, and up to the head.
pub async fn entries_are_trimmed_and_never_the_head(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::new(990)).await;
    let first = f.store.journal.trimmed().await.unwrap();
    assert!(first <= Sequence::new(990));
    for n in 991..=1040 {
        assert_eq!(f.commit(&commit(n, vec![])).await, CommitOutcome::Committed);
    }
    let journal = &f.store.journal;
    let kept = async |after: u64| -> Vec<u64> {
        let entries = journal.entries(Sequence::new(after), 100).await.unwrap();
        entries.iter().map(|entry| entry.sequence.get()).collect()
    };
    for last in [1040, 1041] {
        let outcome = journal.trim(Sequence::new(last)).await;
        assert!(matches!(outcome, Err(StoreError::Rejected { .. })), "{outcome:?}");
    }
    assert_eq!(kept(990).await.len(), 50, "nothing was trimmed");
    assert_eq!(journal.trimmed().await, Ok(first));
    // 1038 after 1038 and 1005: the mark does not fall.
    for (last, marked) in [(1005, 1005), (1038, 1038), (1038, 1038), (1005, 1038)] {
        journal.trim(Sequence::new(last)).await.unwrap();
        assert_eq!(journal.trimmed().await, Ok(Sequence::new(marked)));
        assert_eq!(kept(marked).await, (marked + 1..=1040).collect::<Vec<_>>());
    }
    // Whoever asks for what is gone gets nothing, or what is left, and sees that it is not what follows.
    assert_ne!(kept(990).await.first(), Some(&991));
    assert_eq!(f.head().await, 1040);
    assert_eq!(f.commit(&commit(1041, vec![])).await, CommitOutcome::Committed);
    assert_eq!(kept(1039).await, [1040, 1041]);
}

pub async fn a_journal_is_renamed_at_its_head_only(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::new(3)).await;
    let journal = &f.store.journal;
    let head = journal.head().await.unwrap();
    let id = JournalId::new(0xfeed);
    let behind = Head { sequence: Sequence::new(2), ..head };
    assert_eq!(journal.rename(behind, id).await, Ok(false));
    assert_eq!(journal.head().await, Ok(head));
    assert_eq!(journal.rename(head, id).await, Ok(true));
    assert_eq!(journal.head().await, Ok(Head { journal: id, ..head }));
    // Somebody else, who saw the old one.
    assert_eq!(journal.rename(head, JournalId::new(7)).await, Ok(false));
    assert_eq!(f.commit(&commit(4, vec![])).await, CommitOutcome::Committed);
    let head = journal.head().await.unwrap();
    assert_eq!((head.sequence, head.journal), (Sequence::new(4), id), "a commit leaves the id");
}

pub async fn the_clusters_settings_are_read_as_they_were_written(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    assert_eq!(f.store.journal.cluster().await, Ok(Cluster::default()));
    for (n, millis) in [(1, 0), (2, 60_000)] {
        let lease = LeaseDuration::from_millis(millis).unwrap();
        let cluster = Cluster {
            lease,
            longest: LeaseDuration::MAX,
            updated: Some(at(5)),
            revision: Sequence::new(n),
        };
        f.must(vec![Write::PutCluster(cluster.clone())]).await;
        assert_eq!(f.store.journal.cluster().await, Ok(cluster));
    }
}
