//! Placements: what is written of them, on which conditions, and how they are read and listed.

use std::collections::{BTreeMap, BTreeSet};

use cell_directory::domain::{
    Mapping, Placement, PlacementEvent, RequestId, Sequence, Timestamp, WriteMode,
};
use cell_directory::store::{CommitOutcome, Cursor, Expected, Page, StoreError, Write};

use super::{
    Engine, Fixture, adopted, at, epoch, expect_placed, id, key, past, place, placement, refused,
    vacate,
};

pub async fn an_empty_store_has_nothing(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    assert_eq!(f.head().await, 0);
    assert_eq!(f.mapping(&key("tenant")).await, Mapping::Absent);
    assert_eq!(f.cells().await, []);
    assert_eq!(f.pages(None, 10).await.0, []);
    assert_eq!(f.pages(Some(&id("cell-a")), 10).await.0, []);
    assert_eq!(f.store.placements.count(&id("cell-a")).await, Ok(0));
    let entries = f.store.journal.entries(Sequence::START, 10).await;
    assert_eq!(entries, Ok(vec![]));
    let id = RequestId::new("r").unwrap();
    assert_eq!(f.store.journal.request(&id).await, Ok(None));
    let history = f.store.placements.history(&key("tenant"), 10, None).await.unwrap();
    assert_eq!((history.items, history.next), (vec![], None));
    let expired = f.store.placements.expired(at(0), 10, None).await.unwrap();
    assert_eq!((expired.items, expired.next), (vec![], None));
}

pub async fn a_placement_is_read_as_it_was_written(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let full = Placement {
        write_mode: WriteMode::Logged,
        began_by: PlacementEvent::Pinned,
        expires: Timestamp::from_millis(at(500).millis() + 7),
        ..placement("full", "cell-a", 7)
    };
    let bare = Placement { created: None, updated: None, ..placement("bare", "cell-b", 1) };
    for placed in [full, bare] {
        f.must(vec![place(placed.clone(), Expected::Absent)]).await;
        assert_eq!(f.mapping(&placed.key).await, Mapping::Placed(placed));
    }
}

pub async fn keys_are_compared_byte_for_byte(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let longest = "é".repeat(512);
    let odd = [
        "a",
        "A",
        "a ",
        " a",
        "a#1",
        "ab",
        "\"'\\",
        "é",
        "e\u{301}",
        "𝄞",
        "\u{feff}a",
        "0",
        "00",
        &longest,
    ];
    for (n, text) in (1..).zip(odd) {
        f.must(vec![place(placement(text, "cell-a", n), Expected::Absent)]).await;
    }
    for (n, text) in (1..).zip(odd) {
        let expected = Mapping::Placed(placement(text, "cell-a", n));
        assert_eq!(f.mapping(&key(text)).await, expected);
    }
    let listed: BTreeSet<_> = f.pages(None, 3).await.0.into_iter().map(|p| p.key).collect();
    assert_eq!(listed, odd.iter().map(|text| key(text)).collect());
}

pub async fn the_loser_of_an_assignment_gets_the_winners_placement(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let winner = placement("tenant", "cell-a", 1);
    f.must(vec![place(winner.clone(), Expected::Absent)]).await;
    let loser = place(placement("tenant", "cell-b", 1), Expected::Absent);
    let outcome = f.write(vec![loser]).await;
    assert_eq!(outcome, refused(0, Mapping::Placed(winner.clone())));
    assert_eq!(f.mapping(&winner.key).await, Mapping::Placed(winner));
    assert_eq!(f.head().await, 1);
}

/// Every expectation against every state that a key can be in, for both writes that have one.
pub async fn an_expectation_holds_for_its_own_state_only(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let expectations = [
        Expected::Absent,
        Expected::Vacated(epoch(3)),
        Expected::Vacated(epoch(2)),
        expect_placed("cell-a", 3, false),
        expect_placed("cell-a", 2, false),
        expect_placed("cell-b", 3, false),
        expect_placed("cell-a", 1, false),
        expect_placed("cell-a", 1, true),
        expect_placed("cell-b", 1, true),
    ];
    // Each state, and the positions of the expectations that it meets.
    let states = [("absent", 0), ("vacated", 1), ("placed", 3), ("adopted", 7)];
    for (state, met) in states {
        for (at, expect) in expectations.iter().enumerate() {
            for vacates in [false, true] {
                let name = format!("{state}-{at}-{vacates}");
                let before = put_into(&f, state, &name).await;
                let (write, after) = if vacates {
                    let write = vacate(&name, 8, expect.clone());
                    (write, Mapping::Vacated(epoch(8)))
                } else {
                    let placed = placement(&name, "cell-c", 8);
                    (place(placed.clone(), expect.clone()), Mapping::Placed(placed))
                };
                let head = f.head().await;
                let outcome = f.write(vec![write]).await;
                if at == met {
                    assert_eq!(outcome, CommitOutcome::Committed, "{name}");
                    assert_eq!(f.mapping(&key(&name)).await, after, "{name}");
                    assert_eq!(f.head().await, head + 1);
                } else {
                    assert_eq!(outcome, refused(0, before.clone()), "{name}");
                    assert_eq!(f.mapping(&key(&name)).await, before, "{name}");
                    assert_eq!(f.head().await, head);
                }
            }
        }
    }
}

async fn put_into(f: &Fixture, state: &str, name: &str) -> Mapping {
    let placed = placement(name, "cell-a", 3);
    match state {
        "vacated" => {
            f.must(vec![place(placed, Expected::Absent)]).await;
            let expect = expect_placed("cell-a", 3, false);
            f.must(vec![vacate(name, 3, expect)]).await;
        }
        "placed" => f.must(vec![place(placed, Expected::Absent)]).await,
        "adopted" => f.outsider.adopt(&key(name), &id("cell-a"), None).await,
        _ => {}
    }
    let expected = match state {
        "vacated" => Mapping::Vacated(epoch(3)),
        "placed" => Mapping::Placed(placement(name, "cell-a", 3)),
        "adopted" => Mapping::Placed(adopted(name, "cell-a")),
        _ => Mapping::Absent,
    };
    assert_eq!(f.mapping(&key(name)).await, expected);
    expected
}

pub async fn an_adopted_placement_becomes_ours_at_its_first_change(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    f.outsider.adopt(&key("tenant"), &id("cell-a"), Some(at(9))).await;
    let found = f.mapping(&key("tenant")).await;
    let expected = Placement { expires: Some(at(9)), ..adopted("tenant", "cell-a") };
    assert_eq!(found, Mapping::Placed(expected));
    // The expiry goes with the change, and with it whatever it was stored as.
    let ours = placement("tenant", "cell-b", 2);
    f.must(vec![place(ours.clone(), Expected::from(&found))]).await;
    assert_eq!(f.mapping(&ours.key).await, Mapping::Placed(ours.clone()));
    let stale = f.write(vec![vacate("tenant", 1, Expected::from(&found))]).await;
    assert_eq!(stale, refused(0, Mapping::Placed(ours)));
}

pub async fn listings_hold_each_placement_once(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let cells = ["cell-a", "cell-b", "cell"];
    let mut expected = BTreeMap::new();
    let mut writes = Vec::new();
    for n in 0..40 {
        let placed = placement(&format!("tenant-{n}"), cells[n % 3], 1);
        expected.insert(placed.key.clone(), placed.clone());
        writes.push(place(placed, Expected::Absent));
    }
    f.must(writes).await;
    // One is gone, one has moved, one came from outside.
    f.must(vec![vacate("tenant-0", 1, expect_placed("cell-a", 1, false))]).await;
    expected.remove(&key("tenant-0"));
    let moved = placement("tenant-1", "cell-a", 2);
    f.must(vec![place(moved.clone(), expect_placed("cell-b", 1, false))]).await;
    expected.insert(moved.key.clone(), moved);
    f.outsider.adopt(&key("outside"), &id("cell-a"), None).await;
    expected.insert(key("outside"), adopted("outside", "cell-a"));

    for limit in [1, 7, 40, 41, 1000] {
        let (mut all, pages) = f.pages(None, limit).await;
        all.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!(all, expected.values().cloned().collect::<Vec<_>>(), "{limit}");
        assert!(limit > 7 || pages > 1, "{limit}: {pages}");
        for name in cells {
            let (mut all, _) = f.pages(Some(&id(name)), limit).await;
            all.sort_by(|a, b| a.key.cmp(&b.key));
            let of_cell = expected.values().filter(|p| p.cell == id(name));
            assert_eq!(all, of_cell.cloned().collect::<Vec<_>>(), "{name} {limit}");
            let count = f.store.placements.count(&id(name)).await;
            assert_eq!(count, Ok(all.len() as u64), "{name}");
        }
    }
    assert_eq!(f.pages(Some(&id("nowhere")), 3).await.0, []);
}

pub async fn a_foreign_cursor_is_rejected(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    f.must(vec![place(placement("tenant", "cell-a", 1), Expected::Absent)]).await;
    let rejected = |error: Option<StoreError>| error == Some(StoreError::ForeignCursor);
    for text in ["", "\u{0}", "{\"Foo\":{\"S\":\"bar\"}}\u{1}"] {
        let cursor = Cursor(text.into());
        let (reads, after) = (&f.store.placements, Some(&cursor));
        assert!(rejected(reads.list(None, 9, after).await.err()), "{text:?}");
        assert!(rejected(reads.list(Some(&id("a")), 9, after).await.err()), "{text:?}");
        assert!(rejected(reads.expired(at(0), 9, after).await.err()), "{text:?}");
        assert!(rejected(reads.history(&key("a"), 9, after).await.err()), "{text:?}");
    }
}

pub async fn history_is_newest_first_and_of_one_tenant(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let epochs = [1, 2, 9, 10, 11, 100];
    for tenant in ["a", "a#1", "ab", "HISTORY#a"] {
        let records = epochs.iter().map(|n| Write::AddHistory(past(tenant, *n)));
        f.must(records.collect()).await;
    }
    for tenant in ["a", "a#1"].map(key) {
        for limit in [1, 4, 6, 100] {
            let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
            loop {
                let page = f.store.placements.history(&tenant, limit, after.as_ref());
                let Page { items, next } = page.await.unwrap();
                assert!(items.len() <= limit);
                all.extend(items);
                after = next;
                pages += 1;
                if after.is_none() || pages > 20 {
                    break;
                }
            }
            let newest_first = epochs.iter().rev().map(|n| past(tenant.as_str(), *n));
            assert_eq!(all, newest_first.collect::<Vec<_>>(), "{tenant} {limit}");
        }
    }
}

pub async fn expired_placements_are_found_page_by_page(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let (mut writes, mut expected) = (Vec::new(), BTreeSet::new());
    for n in 0..30_i64 {
        let expires = (n % 3 > 0).then(|| at(n));
        let placed = Placement { expires, ..placement(&format!("t-{n}"), "cell-a", 1) };
        writes.push(place(placed, Expected::Absent));
        if n % 3 > 0 && n <= 20 {
            expected.insert(format!("t-{n}"));
        }
    }
    f.must(writes).await;
    f.outsider.adopt(&key("outside-1"), &id("cell-a"), Some(at(20))).await;
    f.outsider.adopt(&key("outside-2"), &id("cell-a"), Some(at(21))).await;
    f.outsider.adopt(&key("outside-3"), &id("cell-a"), None).await;
    expected.insert("outside-1".into());
    f.must(vec![vacate("t-1", 1, expect_placed("cell-a", 1, false))]).await;
    expected.remove("t-1");
    for limit in [1, 8, 1000] {
        let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = f.store.placements.expired(at(20), limit, after.as_ref());
            let Page { items, next } = page.await.unwrap();
            assert!(items.len() <= limit && pages < 100);
            found.extend(items);
            pages += 1;
            match next {
                Some(_) => after = next,
                None => break,
            }
        }
        assert_eq!(found.len(), expected.len(), "each once, at {limit}");
        let found: BTreeSet<_> = found.iter().map(|p| p.key.to_string()).collect();
        assert_eq!(found, expected, "{limit}");
        assert!(limit > 8 || pages > 3, "{limit}: {pages}");
    }
}

/// All placements, expired and adopted ones included, and nothing that was vacated.
pub async fn a_scan_finds_every_placement_once(engine: &dyn Engine) {
    let f = engine.fresh(Sequence::START).await;
    let scan = async |limit: usize| {
        let (mut all, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = f.store.placements.scan(limit, after.as_ref()).await.unwrap();
            assert!(page.items.len() <= limit);
            all.extend(page.items);
            pages += 1;
            assert!(pages < 1000, "the scan does not end");
            after = page.next;
            if after.is_none() {
                all.sort_by(|a, b| a.key.as_str().cmp(b.key.as_str()));
                return all;
            }
        }
    };
    assert_eq!(scan(5).await, []);
    let mut expected: Vec<_> =
        (0..30).map(|n| placement(&format!("t-{n:02}"), "cell-a", 1)).collect();
    expected[3].expires = Some(at(-1000));
    f.must(expected.iter().map(|p| place(p.clone(), Expected::Absent)).collect()).await;
    f.must(vec![vacate("t-07", 1, expect_placed("cell-a", 1, false))]).await;
    expected.remove(7);
    f.outsider.adopt(&key("u"), &id("cell-b"), None).await;
    expected.push(adopted("u", "cell-b"));
    for limit in [1, 7, 1000] {
        assert_eq!(scan(limit).await, expected, "{limit} a page");
    }
}
