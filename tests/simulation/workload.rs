//! What is done in a run: clients ask, operators pin and delete, tenants move, and things break.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use cell_directory::directory::{Mutation, Placing};
use cell_directory::domain::{
    Cell, CellId, CellState, Change, Cluster, Endpoint, JournalEntry, Labels, LeaseDuration,
    Mapping, Nonce, PartitionKey, Placement, Region, Sequence, Timestamp, Weight, WriteMode,
};
use cell_directory::store::{Commit, CommitOutcome, Expected, Journal, Placements, Write};
use cells_client::testing::Clock;
use cells_client::{Answer, Directory, Error, FallbackCell, Mode, Question, Source};

use crate::network::Network;
use crate::replicas::{ROUNDING, insist};
use crate::truth::Home;
use crate::world::{CLIENTS, Cut, DRIFT_PPM, LEASE, REPLICAS, World, drifted, lease_in_true_time};

pub const TENANTS: usize = 6;
const NAMES: [&str; TENANTS] = ["t0", "t1", "t2", "t3", "t4", "t5"];
const CELLS: [&str; 3] = ["cell-a", "cell-b", "cell-c"];

pub fn tenant(n: usize) -> &'static str {
    NAMES[n]
}

pub fn cell_id(n: usize) -> CellId {
    CellId::new(CELLS[n]).unwrap()
}

fn now(world: &World) -> Timestamp {
    let passed = i64::try_from(world.now().as_millis()).unwrap();
    Timestamp::from_millis(1_800_000_000_000 + passed).unwrap()
}

/// Commits at the head of the journal, past all faults. `false`: a condition does not hold.
async fn commit(world: &World, changes: Vec<Change>, writes: Vec<Write>) -> bool {
    let sequence = world.store.head().await.unwrap().sequence.next();
    let entry = JournalEntry {
        sequence,
        nonce: Nonce::new(world.lots.draw()),
        written: now(world),
        changes,
    };
    world.commit(&Commit { entry, writes }).await == Ok(CommitOutcome::Committed)
}

/// The cluster's lease and its cells.
pub async fn prepare(world: &World) {
    let lease = LeaseDuration::new(LEASE).unwrap();
    let cluster = Cluster { lease, revision: Sequence::new(1), ..Cluster::default() };
    let change = Change::ClusterUpdated { cluster: cluster.clone() };
    assert!(commit(world, vec![change], vec![Write::PutCluster(cluster)]).await);
    for n in 0..CELLS.len() {
        let revision = world.store.head().await.unwrap().sequence.next();
        let id = cell_id(n);
        let cell = Cell {
            endpoint: Endpoint::new(format!("https://{id}.example.com")).unwrap(),
            id,
            region: Region::new("eu-west-1").unwrap(),
            labels: Labels::default(),
            weight: Weight::DEFAULT,
            capacity: None,
            state: CellState::Active,
            created: now(world),
            updated: now(world),
            revision,
            placements: 0,
            counted_at: revision,
            tables: None,
        };
        let change = Change::CellCreated { cell: cell.clone() };
        assert!(commit(world, vec![change], vec![Write::PutCell { cell, set_count: true }]).await);
    }
}

/// A client's clock, off by so many parts per million.
struct Drifting(Arc<World>, i64);

impl Clock for Drifting {
    fn now(&self) -> Duration {
        drifted(self.0.now(), self.1)
    }
}

/// One process after the other with a client in it.
pub async fn client(world: Arc<World>, n: usize) {
    let drift = world.drift();
    loop {
        let mode = match world.below(3) {
            0 => Mode::Bounded { capacity: 3 },
            1 => Mode::Bounded { capacity: 100 },
            _ => Mode::Whole,
        };
        let mut builder = Directory::builder(Vec::<String>::new())
            .transport(Arc::new(Network { world: Arc::clone(&world), client: n }))
            .clock(Arc::new(Drifting(Arc::clone(&world), drift)))
            .clock_drift_ppm(DRIFT_PPM)
            .seed(world.lots.draw())
            .mode(mode)
            .sync_interval(world.millis(200, 900))
            .attempt_timeout(world.millis(100, 800))
            .deadline(Duration::from_millis(1_500))
            .watch_silence(Duration::from_secs(3))
            .backoff_max(Duration::from_secs(1))
            .stale_after(Duration::from_secs(3))
            .connect_lazily();
        if world.chance(0.3) {
            builder = builder.fallback_cell(FallbackCell {
                cell_id: CELLS[0].to_owned(),
                endpoint: String::new(),
                region: String::new(),
            });
        }
        world.log(format_args!("c{n} begins, {mode:?}, {drift} ppm"));
        let directory = builder.connect().await.unwrap();
        let life = if world.chance(0.3) { world.millis(5_000, 15_000) } else { Duration::MAX };
        let told = Told::default();
        let working = async {
            tokio::join!(read(&world, n, &directory, &told), ask(&world, n, &directory, &told));
        };
        let _ = tokio::time::timeout(life, working).await;
        directory.close().await;
        world.log(format_args!("c{n} ends"));
    }
}

/// The highest epoch that each tenant was answered with.
#[derive(Default)]
struct Told([std::sync::atomic::AtomicU64; TENANTS]);

impl Told {
    fn get(&self, tenant: usize) -> u64 {
        self.0[tenant].load(std::sync::atomic::Ordering::Relaxed)
    }

    fn raise(&self, tenant: usize, epoch: u64) {
        self.0[tenant].fetch_max(epoch, std::sync::atomic::Ordering::Relaxed);
    }
}

fn home(answer: &Answer<'_>) -> Home {
    Home {
        cell: answer.cell_id().to_owned(),
        epoch: answer.epoch(),
        direct: answer.write_mode() == cells_client::WriteMode::Direct,
    }
}

/// Holds an answer to what it says of itself. `least`: an epoch that was told before it was asked for.
fn check(world: &World, n: usize, t: usize, answer: &Answer<'_>, least: u64) {
    world.counts.lock().answers += 1;
    if !answer.is_authoritative() {
        return;
    }
    let home = home(answer);
    if home.epoch < least {
        world.broken(format!("c{n}: t{t} fell from epoch {least} to {answer:?}"));
    }
    let direct = check_lease(world, n, t, answer, &home);
    world.counts.lock().direct += u64::from(direct);
    // A clock that is slow takes what it is told for younger than it is.
    let slowest = 1.0 - f64::from(DRIFT_PPM) / 1e6;
    if let Some(age) = answer.age() {
        let since = world.now().saturating_sub(age.div_f64(slowest) + ROUNDING);
        if !world.truth.lock().was(tenant(t), &home, since) {
            world.broken(format!("c{n}: t{t} is {answer:?}, which was over before that"));
        }
    }
}

/// Whether a direct write is allowed; if so, whether it may be.
fn check_lease(world: &World, n: usize, t: usize, answer: &Answer<'_>, home: &Home) -> bool {
    let direct = answer.may_write_directly();
    let since = world.now().saturating_sub(lease_in_true_time());
    if !answer.lease().is_zero() && !world.truth.lock().was(tenant(t), home, since) {
        world.broken(format!(
            "c{n}: a lease on t{t}, {answer:?}, which was waited out (direct: {direct})"
        ));
    }
    direct
}

/// Reads memory all the time, and keeps some answers as a caller would.
async fn read(world: &World, n: usize, directory: &Directory, told: &Told) {
    let mut kept: VecDeque<(usize, Answer<'_>)> = VecDeque::new();
    let mut last: [Option<(Home, bool)>; TENANTS] = Default::default();
    loop {
        tokio::time::sleep(world.millis(2, 14)).await;
        for (t, last) in last.iter_mut().enumerate() {
            let Some(answer) = directory.resolve(tenant(t)) else { continue };
            check(world, n, t, &answer, told.get(t));
            told.raise(t, answer.epoch());
            let present = Some((home(&answer), answer.may_write_directly()));
            if *last != present {
                world.log(format_args!("c{n} t{t} {present:?}"));
                *last = present;
            }
            if world.chance(0.01) {
                kept.push_back((t, answer));
            }
        }
        for (t, answer) in &kept {
            check_lease(world, n, *t, answer, &home(answer));
        }
        while kept.len() > 20 || kept.front().is_some_and(|(_, answer)| answer.lease().is_zero()) {
            kept.pop_front();
        }
    }
}

/// Asks, one question after the other.
async fn ask(world: &World, n: usize, directory: &Directory, told: &Told) {
    loop {
        tokio::time::sleep(world.millis(1, 250)).await;
        let t = world.index(TENANTS);
        let least = told.get(t);
        let mut question = Question::new();
        let refuse_fallback = world.chance(0.5);
        if refuse_fallback {
            question = question.refuse_fallback();
        }
        if world.chance(0.5) {
            question = question.lookup_only();
        }
        if world.chance(0.6) {
            question = question.leased();
        }
        let wanted = match world.below(4) {
            0 => least,
            1 => least + 1,
            _ => 0,
        };
        let answer = directory.locate_with(tenant(t), &question.min_epoch(wanted)).await;
        match answer {
            Ok(answer) => {
                world.log(format_args!(
                    "c{n} asked t{t}: {:?} {:?}",
                    home(&answer),
                    answer.source()
                ));
                check(world, n, t, &answer, least.max(wanted));
                if answer.is_authoritative() {
                    told.raise(t, answer.epoch());
                } else if refuse_fallback || wanted > 0 {
                    world.broken(format!("c{n}: a guess for t{t} that was not asked for"));
                }
                world.counts.lock().fetched += u64::from(answer.source() == Source::Fetched);
            }
            Err(error) => {
                world.log(format_args!("c{n} asked t{t}: {error}"));
                if matches!(error, Error::Closed) {
                    return;
                }
            }
        }
    }
}

/// Pins, deletes, trims and moves, at leisure and in a hurry.
pub async fn operate(world: Arc<World>) {
    while !world.healed() {
        tokio::time::sleep(world.millis(20, 500)).await;
        let t = world.index(TENANTS);
        match world.below(11) {
            0..3 => drop(tokio::spawn(change(Arc::clone(&world), t))),
            3 => {
                let head = world.store.head().await.unwrap().sequence.get();
                let last = head.saturating_sub(1 + world.below(6));
                let trimmed = last > 0 && world.store.trim(Sequence::new(last)).await.is_ok();
                world.log(format_args!("trim {last} {trimmed}"));
            }
            4 => drop(tokio::spawn(hurry(Arc::clone(&world), t))),
            _ => drop(tokio::spawn(migrate(Arc::clone(&world), t))),
        }
    }
}

/// Asks a replica to delete a placement, or to place a tenant in a cell.
async fn change(world: Arc<World>, t: usize) {
    let Some(running) = world.running(world.index(REPLICAS)) else { return };
    let key = PartitionKey::new(tenant(t)).unwrap();
    let directory = running.directory;
    let deleted = directory.delete(key.clone(), None, Mutation::default()).await;
    world.log(format_args!("delete t{t}: {:?}", deleted.map(drop)));
    if world.chance(0.6) {
        let Some(running) = world.running(world.index(REPLICAS)) else { return };
        let cell = cell_id(world.index(CELLS.len()));
        let placing = Placing { key, cell, since: None, expires: None };
        let placed = running.directory.pin(placing, Mutation::default()).await;
        world.log(format_args!("pin t{t}: {:?}", placed.map(drop)));
    }
}

/// Writes a placement on the condition that it is as it was read.
async fn set(world: &World, from: &Placement, to: &Placement) -> bool {
    let change = Change::Placed { placement: to.clone(), replaced: Some(from.cell.clone()) };
    let expect = Expected::from(&Mapping::Placed(from.clone()));
    let mut writes = vec![Write::Place { placement: to.clone(), expect }];
    if from.cell != to.cell {
        writes.push(Write::AddToCount { cell: from.cell.clone(), delta: -1 });
        writes.push(Write::AddToCount { cell: to.cell.clone(), delta: 1 });
    }
    let done = commit(world, vec![change], writes).await;
    world.log(format_args!(
        "{} to {} {} {}: {done}",
        to.key,
        to.cell,
        to.epoch,
        to.write_mode.as_str()
    ));
    done
}

/// Moves a tenant as a migration does: logged, waited out, elsewhere at the next epoch, direct. Or it goes back.
async fn migrate(world: Arc<World>, t: usize) {
    let key = PartitionKey::new(tenant(t)).unwrap();
    let Mapping::Placed(present) = world.store.mapping(&key).await.unwrap() else { return };
    if present.write_mode == WriteMode::Logged {
        return;
    }
    sabotage(&world);
    // On both sides of what is cut off.
    tokio::time::sleep(world.millis(0, 150)).await;
    let logged = Placement { write_mode: WriteMode::Logged, ..present.clone() };
    if !set(&world, &present, &logged).await {
        return;
    }
    tokio::time::sleep(lease_in_true_time()).await;
    if world.chance(0.2) {
        let direct = Placement { write_mode: WriteMode::Direct, ..logged.clone() };
        set(&world, &logged, &direct).await;
        return;
    }
    tokio::time::sleep(world.millis(0, 500)).await;
    let to = CELLS.iter().filter(|cell| **cell != present.cell.as_str());
    let to: Vec<_> = to.collect();
    let cell = CellId::new(**world.pick(&to)).unwrap();
    let moved = Placement { cell, epoch: present.epoch.next(), ..logged.clone() };
    if !set(&world, &logged, &moved).await {
        return;
    }
    world.counts.lock().moves += 1;
    tokio::time::sleep(world.millis(0, 1_000)).await;
    let direct = Placement { write_mode: WriteMode::Direct, ..moved.clone() };
    set(&world, &moved, &direct).await;
}

/// Moves a tenant several times within a poll of the journal or two. At each step somebody has heard of it from elsewhere, as from a guard's
/// redirect, and will not take less: so replicas read from the table what the journal has yet to tell them, earlier steps included.
async fn hurry(world: Arc<World>, t: usize) {
    let key = PartitionKey::new(tenant(t)).unwrap();
    let Mapping::Placed(mut present) = world.store.mapping(&key).await.unwrap() else { return };
    for _ in 0..world.below(3) + 2 {
        let to: Vec<_> = CELLS.iter().filter(|cell| **cell != present.cell.as_str()).collect();
        let cell = CellId::new(**world.pick(&to)).unwrap();
        let moved = Placement { cell, epoch: present.epoch.next(), ..present.clone() };
        if !set(&world, &present, &moved).await {
            return;
        }
        tokio::spawn(insist(Arc::clone(&world), world.index(REPLICAS), t, moved.epoch));
        present = moved;
        tokio::time::sleep(world.millis(0, 60)).await;
    }
}

/// Cuts somebody off just when it hurts: around a change, for longer than a lease.
fn sabotage(world: &Arc<World>) {
    let duration = world.millis(2_200, 3_500);
    match world.below(5) {
        0 => world.cut(Cut::FromStore(world.index(REPLICAS)), duration),
        1 => world.cut(Cut::Store, duration),
        2 | 3 => {
            let client = world.index(CLIENTS);
            for replica in 0..REPLICAS {
                world.cut(Cut::Link(client, replica), duration);
            }
        }
        _ => {}
    }
}

/// Breaks things.
pub async fn break_things(world: Arc<World>) {
    while !world.healed() {
        tokio::time::sleep(world.millis(200, 1_500)).await;
        let duration = world.millis(50, 2_500);
        match world.below(6) {
            0 => world.cut(Cut::Store, duration / 3),
            1 | 2 => world.cut(Cut::FromStore(world.index(REPLICAS)), duration),
            _ => world.cut(Cut::Link(world.index(CLIENTS), world.index(REPLICAS)), duration),
        }
    }
}
