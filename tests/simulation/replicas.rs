//! The replicas: started, killed, started anew with empty memory, and watched from close by.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cell_directory::directory::policy::{Constrained, Rendezvous};
use cell_directory::directory::{
    Clock, CommitterSettings, DecisionTrace, Directory, Error, Home as Routing, Ingredients,
    MemoryMode, Pauses, Piece, Position, Refused, RouteOptions, RouteRequest, Routed, Settings,
    StackSettings, WatchEnd, WatchOptions,
};
use cell_directory::domain::{Epoch, PartitionKey, Timestamp};
use cell_directory::grpc::{self, AdmissionSettings};
use cell_directory::store::Store;
use cell_directory::tasks::Tasks;
use cell_directory::telemetry::DecisionMetrics;
use futures::FutureExt;
use opentelemetry::metrics::MeterProvider;
use opentelemetry_sdk::metrics::SdkMeterProvider;
use tokio_util::sync::CancellationToken;

use crate::truth::{Home, State, apply};
use crate::wire::Wire;
use crate::workload::{TENANTS, tenant};
use crate::world::{DRIFT_PPM, REPLICAS, Running, World, drifted, lease_in_true_time};

fn settings(world: &World) -> Settings {
    Settings {
        stack: StackSettings {
            load_patience: Duration::from_millis(50),
            default_cell: world.chance(0.3).then(|| crate::workload::cell_id(0)),
            lookup_budget: Duration::from_millis(400),
            attempts: 3,
            pauses: Pauses {
                shortest: Duration::from_millis(5),
                longest: Duration::from_millis(100),
            },
            retry_ratio: 0.2,
            retry_floor: 10,
        },
        committer: CommitterSettings {
            commit_budget: Duration::from_millis(900),
            request_retention: Duration::from_secs(3600),
        },
        memory: match world.chance(0.5) {
            true => MemoryMode::Whole,
            false => MemoryMode::Bounded(1000),
        },
        journal_poll_interval: Duration::from_millis(100),
        sweep_interval: Duration::from_secs(5),
        journal_retention: Duration::from_secs(24 * 3600),
        batch_concurrency: 4,
    }
}

/// Runs one replica after the other in this place, for as long as the world is.
pub async fn keep(world: Arc<World>, replica: usize) {
    // The machine's clocks outlive its processes.
    let (drift, skew) = (world.drift(), world.below(7_200_000).cast_signed() - 3_600_000);
    let base = Instant::now();
    for incarnation in 1.. {
        let clock = {
            let (wall, monotonic) = (Arc::clone(&world), Arc::clone(&world));
            Clock::from_fn(move || {
                let passed = i64::try_from(wall.now().as_millis()).unwrap();
                Timestamp::from_millis(1_800_000_000_000 + skew + passed).unwrap()
            })
            .with_instant(move || base + drifted(monotonic.now(), drift))
        };
        let wire = Wire { world: Arc::clone(&world), replica, incarnation };
        let ingredients = Ingredients {
            store: Store::of(Arc::new(wire)),
            policy: Arc::new(Constrained(Rendezvous)),
            clock,
            randomness: cell_directory::directory::Randomness::seeded(world.lots.draw()),
            metrics: DecisionMetrics::new(&SdkMeterProvider::builder().build().meter("simulation")),
            settings: settings(&world),
            keep: None,
        };
        let tasks = Tasks::new();
        let directory = Directory::start(ingredients, &tasks);
        let admission = AdmissionSettings {
            max_queue_delay: Duration::from_secs(60),
            max_in_flight: 1000,
            max_refusal_hold: Duration::ZERO,
            max_header_bytes: 1 << 14,
        };
        let service = grpc::service(directory.clone(), admission, CancellationToken::new());
        let service = Arc::new(service);
        let running = Running { incarnation, directory: directory.clone(), service };
        world.set_running(replica, Some(running));
        world.log(format_args!("r{replica}.{incarnation} starts, {drift} ppm"));
        let life = if world.chance(0.5) { world.millis(2_000, 15_000) } else { Duration::MAX };
        tokio::select! {
            biased;
            () = tasks.failure() => world.broken(format!("r{replica}: a task failed")),
            () = probe(&world, &directory, replica, incarnation) => {}
            () = tokio::time::sleep(life) => {}
        }
        if world.healed() {
            // Only the crash was due: it does not come any more.
            return probe(&world, &directory, replica, incarnation).await;
        }
        // Killed: what it was about to do, it does not do. What it sent is on its way.
        world.set_running(replica, None);
        world.counts.lock().crashes += 1;
        world.log(format_args!("r{replica}.{incarnation} dies"));
        tokio::time::sleep(world.millis(50, 2_500)).await;
    }
}

/// Asks a replica what it knows, and holds it to that.
async fn probe(world: &Arc<World>, directory: &Directory, replica: usize, incarnation: u64) {
    let mut epochs = [0; TENANTS];
    let slowest = 1.0 - f64::from(DRIFT_PPM) / 1e6;
    loop {
        tokio::time::sleep(world.millis(10, 60)).await;
        if let Ok(standing) = directory.standing() {
            let since = world.now().saturating_sub(standing.age.div_f64(slowest) + ROUNDING);
            let (due, come) = (world.truth.lock().head_at(since), standing.position.sequence.get());
            if come < due {
                let age = standing.age;
                world.broken(format!(
                    "r{replica}: stands at {come} with age {age:?}, but {due} was there"
                ));
            }
        }
        let n = world.index(TENANTS);
        let key = PartitionKey::new(tenant(n)).unwrap();
        let request =
            RouteRequest::new(key, Arc::new(RouteOptions::default()), DecisionTrace::default());
        // What it was told before it was asked.
        let least = epochs[n];
        let Some(Ok(routed)) = directory.route(request).now_or_never() else { continue };
        let Routing::Placed(residence) = &routed.home else { continue };
        let epoch = residence.epoch.get();
        if epoch < least {
            world.broken(format!(
                "r{replica}.{incarnation}: t{n} fell from epoch {least} to {epoch}"
            ));
        }
        epochs[n] = epoch;
        let home = Home {
            cell: residence.cell.id().as_str().to_owned(),
            epoch,
            direct: residence.write_mode == cell_directory::domain::WriteMode::Direct,
        };
        let since = world.now().saturating_sub(lease_in_true_time());
        let leased = routed.lease_until.is_some_and(|until| until > directory.clock().instant());
        if leased && !world.truth.lock().was(tenant(n), &home, since) {
            world.broken(format!("r{replica}: a lease on {home:?} of t{n}, which is over"));
        }
    }
}

/// Asks a replica for an epoch that it must have heard of nowhere yet. From then on it says nothing lower.
pub async fn insist(world: Arc<World>, replica: usize, n: usize, epoch: Epoch) {
    let Some(Running { incarnation, directory, .. }) = world.running(replica) else { return };
    let ask = |options: RouteOptions| {
        let key = PartitionKey::new(tenant(n)).unwrap();
        directory.route(RouteRequest::new(key, Arc::new(options), DecisionTrace::default()))
    };
    let told = |routed: Result<Routed, Error>| match routed.ok()?.home {
        Routing::Placed(residence) => Some(residence.epoch),
        Routing::Default(_) => None,
    };
    let options = RouteOptions { min_epoch: Some(epoch), ..RouteOptions::default() };
    let Some(mut least) = told(ask(options).await) else { return };
    world.log(format_args!("r{replica}.{incarnation} t{n} at {least}, asked for {epoch}"));
    if least < epoch {
        world.broken(format!("r{replica}: t{n} at epoch {least}, asked for {epoch}"));
    }
    for _ in 0..20 {
        tokio::time::sleep(world.millis(2, 20)).await;
        if !world.alive(replica, incarnation) {
            return;
        }
        let Some(now) = ask(RouteOptions::default()).now_or_never().and_then(told) else {
            continue;
        };
        if now < least {
            world
                .broken(format!("r{replica}.{incarnation}: t{n} fell from epoch {least} to {now}"));
        }
        least = now;
    }
}

/// Times are kept in microseconds.
pub const ROUNDING: Duration = Duration::from_micros(2);

/// Watches placements at one replica after the other, and folds what comes.
pub async fn watch(world: Arc<World>) {
    let mut position: Option<Position> = None;
    let mut state = State::new();
    // From which entry on the fold is exact; `None`: the snapshot is not whole.
    let mut exact_from: Option<u64> = None;
    let mut at = world.index(REPLICAS);
    loop {
        let options = WatchOptions { resume: position, ..WatchOptions::default() };
        let watcher = world.running(at).map(|running| (running.directory.watch(options), running));
        let Some((Ok(mut watcher), running)) = watcher else {
            tokio::time::sleep(world.millis(20, 200)).await;
            at = world.index(REPLICAS);
            continue;
        };
        if position.is_none() {
            (state, exact_from) = (State::new(), None);
        }
        loop {
            let piece = tokio::time::timeout(Duration::from_secs(3), watcher.next()).await;
            if !world.alive(at, running.incarnation) || world.mishap(0.02) {
                break;
            }
            let truth = world.truth.lock();
            match piece {
                Err(_silent) => {
                    drop(truth);
                    break;
                }
                Ok(Ok(Piece::Snapshot { placements, .. })) => {
                    let homes = placements.iter().map(|placement| {
                        (placement.key.as_str().to_owned(), Home::from(placement))
                    });
                    state.extend(homes);
                    if watcher.whole() {
                        // Memory and table may be ahead of the replica's own position.
                        exact_from = Some(truth.head());
                        position = Some(watcher.position());
                    }
                }
                Ok(Ok(Piece::Changes { entries, .. })) => {
                    let mut sequence = position.map_or(watcher.position().sequence, |p| p.sequence);
                    for entry in &entries {
                        let due = sequence.next();
                        if entry.sequence != due || truth.entry(due) != Some(&**entry) {
                            let (got, due) = (entry.sequence, due.get());
                            drop(truth);
                            return world.broken(format!(
                                "r{at}: the watch sent {got} where {due} was due"
                            ));
                        }
                        apply(&mut state, &entry.changes);
                        sequence = due;
                    }
                    if sequence != watcher.position().sequence {
                        drop(truth);
                        return world.broken(format!(
                            "r{at}: the watch came to {sequence} and says otherwise"
                        ));
                    }
                    position = Some(watcher.position());
                    if exact_from.is_some_and(|from| sequence.get() >= from)
                        && state != *truth.state(sequence.get())
                    {
                        let expected = truth.state(sequence.get()).clone();
                        drop(truth);
                        return world.broken(format!(
                            "r{at}: watched at {sequence}: {state:?}, not {expected:?}"
                        ));
                    }
                    drop(truth);
                    world.counts.lock().watched += 1;
                }
                Ok(Err(end)) => {
                    drop(truth);
                    world.log(format_args!("watch of r{at} ends: {end}"));
                    if end == WatchEnd::Expired {
                        position = None;
                    }
                    break;
                }
            }
        }
        if exact_from.is_none() {
            position = None;
        }
        at = world.index(REPLICAS);
    }
}

/// Once all is healed: every replica knows what is true.
pub async fn converged(world: &World) {
    for replica in 0..REPLICAS {
        let Some(running) = world.running(replica) else {
            return world.broken(format!("r{replica} is not there"));
        };
        let head = world.truth.lock().head();
        let come = running.directory.standing().map(|standing| standing.position.sequence.get());
        if come != Ok(head) {
            return world.broken(format!("r{replica} has come to {come:?} of {head}"));
        }
        for n in 0..TENANTS {
            let key = PartitionKey::new(tenant(n)).unwrap();
            let request =
                RouteRequest::new(key, Arc::new(RouteOptions::default()), DecisionTrace::default());
            let routed = running.directory.route(request).await;
            let present = world.truth.lock().present(tenant(n)).cloned();
            let agrees = match (&routed, &present) {
                (Ok(routed), Some(home)) => match &routed.home {
                    Routing::Placed(residence) => {
                        residence.epoch.get() == home.epoch
                            && residence.cell.id().as_str() == home.cell
                    }
                    Routing::Default(_) => false,
                },
                (Err(Error::Refused(Refused::PlacementNotFound)), None) => true,
                _ => false,
            };
            if !agrees {
                world.broken(format!("r{replica} in the end: t{n} is {routed:?}, not {present:?}"));
            }
        }
    }
}
