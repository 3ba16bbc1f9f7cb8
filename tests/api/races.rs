//! Two servers on one DynamoDB, and many callers who want the same at once. What the servers answered is held against the journal as it is
//! stored.

use std::collections::{BTreeMap, BTreeSet};

use cell_directory::domain::Change;
use cell_directory::proto::v1;
use cell_directory::proto::v1::DecisionSource;
use futures::StreamExt;
use futures::future::join_all;
use tonic::{Code, Status};

use crate::checks::refused;
use crate::world::{Engine, Server, World, pin};

on_both_engines!(one_key_has_one_winner, epochs_have_no_gaps_whatever_races);

const KEYS: usize = 100;
const CALLERS: usize = 64;

async fn one_key_has_one_winner(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b", "cell-c"]).await;
    // Lots are drawn by one policy, so the servers would choose differently if they could.
    let other = world.serve(&["--assignment-policy=least-loaded"]).await;
    let servers = [&server, &other];
    let race = async |key: String| {
        let ask = async |at: usize| (at, servers[at].resolve(&key).await);
        let callers = (0..CALLERS).map(|n| ask(n % 2));
        let (mut winners, mut assigners) = (BTreeSet::new(), BTreeSet::new());
        for (at, answer) in join_all(callers).await {
            let (placement, decision) = (answer.placement.unwrap(), answer.decision.unwrap());
            assert!(decision.authoritative);
            winners.insert((placement.cell_id.clone(), placement.epoch));
            if decision.source() == DecisionSource::Assigned {
                assigners.insert(at);
            }
        }
        assert_eq!(winners.len(), 1, "{key}: {winners:?}");
        assert_eq!(assigners.len(), 1, "{key}: one server says that it assigned");
        let (cell, epoch) = winners.pop_first().unwrap();
        assert_eq!(epoch, 1, "{key}");
        (key, cell)
    };
    let races = (0..KEYS).map(|n| race(format!("tenant-{n}")));
    let homes: BTreeMap<String, String> =
        futures::stream::iter(races).buffer_unordered(4).collect().await;

    let mut placed = BTreeMap::new();
    for change in world.journal().await.into_iter().flatten() {
        match change {
            Change::Placed { placement, replaced: None } => {
                let (key, cell) = (placement.key.as_str().to_owned(), placement.cell.to_string());
                assert!(placed.insert(key, cell).is_none(), "placed twice");
            }
            Change::CellCreated { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(placed, homes);
    let mut stored = BTreeMap::<String, i64>::new();
    for item in world.scan(&world.mappings()).await {
        let (key, cell) = (item["PartitionKey"].as_s().unwrap(), item["CellId"].as_s().unwrap());
        assert_eq!(&homes[key], cell);
        *stored.entry(cell.clone()).or_default() += 1;
    }
    assert_eq!(stored.values().sum::<i64>(), i64::try_from(KEYS).unwrap());
    let mut counts = world.counts().await;
    counts.retain(|_, count| *count != 0);
    assert_eq!(counts, stored);
}

/// What a caller was told.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    Placed(String, u64, String),
    Vacated(String, u64, String),
}

fn told(make: fn(String, u64, String) -> Told, placement: v1::Placement) -> Told {
    make(placement.partition_key, placement.epoch, placement.cell_id)
}

/// Does one of several things with a key. `None`: it was refused for a reason that a race may give.
async fn meddle(server: &Server, key: &str, lot: u64) -> Option<Told> {
    let bearable = |status: Status, code, reason| {
        if status.code() == Code::Aborted {
            refused(Err::<(), _>(status), Code::Aborted, "CONTENDED");
        } else {
            refused(Err::<(), _>(status), code, reason);
        }
        None
    };
    match lot % 4 {
        0 => match server.delete(key).await {
            Ok(placement) => Some(told(Told::Vacated, placement)),
            Err(status) => bearable(status, Code::NotFound, "PLACEMENT_NOT_FOUND"),
        },
        1 => {
            let cell = if lot % 8 == 1 { "cell-a" } else { "cell-b" };
            match server.pin(pin(key, cell)).await {
                Ok(placement) => Some(told(Told::Placed, placement)),
                Err(status) => bearable(status, Code::AlreadyExists, "PLACEMENT_EXISTS"),
            }
        }
        _ => {
            let answer = server.resolve(key).await;
            assert!(answer.decision.unwrap().authoritative);
            Some(told(Told::Placed, answer.placement.unwrap()))
        }
    }
}

async fn epochs_have_no_gaps_whatever_races(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b", "cell-c"]).await;
    let other = world.serve(&[]).await;
    let servers = [&server, &other];
    let workers = (0..16_u64).map(|worker| async move {
        let mut told = Vec::new();
        for round in 0..12_u64 {
            let lot = lot_of(worker, round);
            let key = format!("tenant-{}", lot % 3);
            let server = servers[usize::try_from(worker % 2).unwrap()];
            told.extend(meddle(server, &key, lot / 3).await);
        }
        told
    });
    let told: Vec<Told> = join_all(workers).await.into_iter().flatten().collect();

    // The journal tells one story: each life begins above the last one, and ends as it began.
    let mut present = BTreeMap::<String, (u64, String)>::new();
    let mut last = BTreeMap::<String, u64>::new();
    let (mut placed, mut vacated) = (BTreeSet::new(), BTreeSet::new());
    for change in world.journal().await.into_iter().flatten() {
        match change {
            Change::Placed { placement, replaced: None } => {
                let (key, epoch) = (placement.key.as_str().to_owned(), placement.epoch.get());
                let before = last.insert(key.clone(), epoch).unwrap_or(0);
                assert_eq!(epoch, before + 1, "{key}");
                let cell = placement.cell.to_string();
                assert!(present.insert(key.clone(), (epoch, cell.clone())).is_none(), "{key}");
                placed.insert(Told::Placed(key, epoch, cell));
            }
            Change::Vacated { placement } => {
                let (key, epoch) = (placement.key.as_str().to_owned(), placement.epoch.get());
                let cell = placement.cell.to_string();
                assert_eq!(present.remove(&key), Some((epoch, cell.clone())), "{key}");
                vacated.insert(Told::Vacated(key, epoch, cell));
            }
            Change::CellCreated { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(last.values().sum::<u64>() > 10, "the premise: there was a race: {last:?}");
    // What callers were told is what happened: each placement that was answered was made, and each removal was told to one caller.
    let (said_placed, said_vacated): (Vec<_>, Vec<_>) =
        told.into_iter().partition(|told| matches!(told, Told::Placed(..)));
    for told in &said_placed {
        assert!(placed.contains(told), "{told:?} never happened");
    }
    let mut once = BTreeSet::new();
    for told in said_vacated {
        assert!(vacated.contains(&told), "{told:?} never happened");
        assert!(once.insert(told), "two callers removed the same placement");
    }
    assert_eq!(once.len(), vacated.len());

    for (key, epoch) in &last {
        let lives: Vec<_> = server.history(key).await.into_iter().map(|life| life.epoch).collect();
        assert_eq!(lives, (1..=*epoch).rev().collect::<Vec<_>>(), "{key}");
        for server in servers {
            let stored = server.get(key).await.ok().map(|p| (p.epoch, p.cell_id));
            assert_eq!(stored.as_ref(), present.get(key), "{key}");
        }
    }
    let mut counts = world.counts().await;
    counts.retain(|_, count| *count != 0);
    let mut due = BTreeMap::<String, i64>::new();
    for (_, cell) in present.into_values() {
        *due.entry(cell).or_default() += 1;
    }
    assert_eq!(counts, due);
}

/// A number that is the same each time, and without a pattern.
fn lot_of(worker: u64, round: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64(&[worker.to_le_bytes(), round.to_le_bytes()].concat())
}
