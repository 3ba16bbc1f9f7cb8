//! Reads: bounded by the lease, or held against the guard.

use std::sync::atomic::Ordering;

use cells_guard::writer::{Call, Error, Query, Reads};
use cells_migration::GuardState;

use crate::faults::{Fault, hook};
use crate::world::{MOVE, TENANT, World, held, key, moved, open, put, set_guard, text};

async fn get(world: &World, reads: Reads) -> Result<Option<String>, Error<crate::world::Down>> {
    let item = world.writer.get(TENANT, "Orders", key("1"), reads, Call::default()).await?;
    Ok(item.map(|item| item["V"].as_s().unwrap().clone()))
}

#[tokio::test]
async fn a_strict_read_asks_the_guard_where_there_is_no_lease() {
    let world = World::new().await;
    world.write(put("1", "a")).await.unwrap();
    world.faults.seen();
    for (reads, leased, calls) in [
        (Reads::Eventual, false, 1),
        (Reads::Consistent, false, 1),
        (Reads::Strict, true, 1),
        (Reads::Strict, false, 2),
    ] {
        world.lease.store(if leased { 60_000 } else { 0 }, Ordering::SeqCst);
        assert_eq!(get(&world, reads).await.unwrap().as_deref(), Some("a"));
        assert_eq!(world.faults.seen().len(), calls, "{reads:?}, leased: {leased}");
    }
}

/// The tenant moved and was written to; the route knows nothing of it.
#[tokio::test]
async fn a_strict_read_finds_the_tenant_where_it_is() {
    let world = World::new().await;
    world.write(put("1", "old")).await.unwrap();
    world.no_lease();
    world.guard(&moved("cell-a", 2, "cell-b")).await;
    world.guard(&open("cell-b", 2)).await;
    assert_eq!(get(&world, Reads::Consistent).await.unwrap().as_deref(), Some("old"), "bounded");
    let mut new = key("1");
    new.insert("V".to_owned(), text("new"));
    let there = world.client.put_item().table_name("Orders-cell-b").set_item(Some(new));
    there.send().await.unwrap();
    assert_eq!(get(&world, Reads::Strict).await.unwrap().as_deref(), Some("new"));
    let query = Query {
        table: "Orders".to_owned(),
        sort_key_prefix: Some("1".to_owned()),
        reads: Reads::Strict,
        ..Query::default()
    };
    let found = world.writer.query(TENANT, &query, Call::default()).await.unwrap();
    assert_eq!((found.items.len(), &*found.cell), (1, "cell-b"));
    assert_eq!(found.items[0]["V"], text("new"));
}

/// The lease ends while a strict read is under way, and the tenant leaves.
#[tokio::test]
async fn a_strict_read_after_the_lease_is_made_again() {
    let world = World::new().await;
    world.write(put("1", "old")).await.unwrap();
    world.guard(&open("cell-b", 2)).await;
    let (lease, client) = (world.lease.clone(), world.client.clone());
    let leaves = hook(move || async move {
        lease.store(0, Ordering::SeqCst);
        set_guard(&client, &moved("cell-a", 2, "cell-b")).await;
    });
    world.faults.next("GetItem", Fault::After(leaves));
    assert_eq!(get(&world, Reads::Strict).await.unwrap(), None, "it is not in the new cell");
}

#[tokio::test]
async fn a_strict_read_does_not_pass_a_fence() {
    let world = World::new().await;
    world.no_lease();
    world.guard(&held("cell-a", GuardState::Fenced, 1, MOVE)).await;
    let soon = tokio::time::Instant::now() + std::time::Duration::from_secs(2);
    let call = || Call { deadline: Some(soon), ..Call::default() };
    let error = world.writer.get(TENANT, "Orders", key("1"), Reads::Strict, call()).await;
    assert_eq!(error.unwrap_err(), Error::Fenced { cell: "cell-a".to_owned() });
    let table = crate::world::guard_table("cell-a");
    let delete = world.client.delete_item().table_name("Orders-cell-a");
    let guard = cells_guard::guard::key(&table, TENANT, 0);
    delete.set_key(Some(guard)).send().await.unwrap();
    let missing = Error::GuardMissing { cell: "cell-a".to_owned() };
    assert_eq!(get(&world, Reads::Strict).await.unwrap_err(), missing);
}

/// Pages go on after one another, in either direction, and never leave the tenant.
#[tokio::test]
async fn pages_follow_one_another() {
    let world = World::new().await;
    for sort in ["a1", "a2", "a3", "b1"] {
        world.write(put(sort, sort)).await.unwrap();
    }
    for descending in [false, true] {
        let mut query = Query {
            table: "Orders".to_owned(),
            sort_key_prefix: Some("a".to_owned()),
            limit: Some(2),
            descending,
            ..Query::default()
        };
        let mut found = Vec::new();
        loop {
            let page = world.writer.query(TENANT, &query, Call::default()).await.unwrap();
            found.extend(page.items.iter().map(|item| item["V"].as_s().unwrap().clone()));
            query.after = page.next;
            if query.after.is_none() {
                break;
            }
        }
        let mut wanted = vec!["a1", "a2", "a3"];
        if descending {
            wanted.reverse();
        }
        assert_eq!(found, wanted);
    }
    let mut query = Query { table: "Orders".to_owned(), ..Query::default() };
    query.filter.text = "V = :v".to_owned();
    query.filter.values = [(":v".to_owned(), text("b1"))].into();
    let found = world.writer.query(TENANT, &query, Call::default()).await.unwrap();
    assert_eq!(found.items.len(), 1);
    query.template = 1;
    let error = world.writer.query(TENANT, &query, Call::default()).await.unwrap_err();
    assert_eq!(
        error,
        Error::Invalid { field: "template".into(), problem: "is not below 1".into() }
    );
    world.faults.throttle("Query");
    query.template = 0;
    world.writer.query(TENANT, &query, Call::default()).await.unwrap();
}
