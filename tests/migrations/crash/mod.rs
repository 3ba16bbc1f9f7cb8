//! A worker of a migration is stopped before and after each of its store calls, the reply of each is lost, and calls land late: then
//! another worker, or the same, goes on, while an application writes all the while. Nothing that was acknowledged may be lost.
//!
//! `CELLD_TEST_CRASH_ROUNDS=20` does it with so many interleavings of the writes, and with pairs of faults. A case that fails
//! is told by its course, seed and faults, and takes the same course each time:
//! `CELLD_TEST_CRASH_CASE="forward/1/37=DiesAfter"`.

mod engine;
mod run;
mod tables;
mod writer;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use cells_migration::{Leg, Phase};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use engine::Fault;
use run::{Course, Ended};

const DONE: (Phase, Leg) = (Phase::Done, Leg::Forward);
const BACK: (Phase, Leg) = (Phase::Done, Leg::Back);
const ABORTED: (Phase, Leg) = (Phase::Aborted, Leg::Forward);

const fn course(name: &'static str, asked: run::Asked, ends: &'static [(Phase, Leg)]) -> Course {
    Course { name, asked, strict: false, ends }
}

/// A cancel that comes too late changes nothing, so where it is near the commit either end is right.
const COURSES: [Course; 9] = [
    course("forward", None, &[DONE]),
    Course { strict: true, ..course("strict", None, &[DONE]) },
    course("reverse", Some(("SOAKING", "REVERSE")), &[BACK]),
    course("cancel when planned", Some(("PLANNED", "CANCEL")), &[ABORTED]),
    course("cancel when logging", Some(("LOGGING", "CANCEL")), &[ABORTED]),
    course("cancel when copying", Some(("COPYING", "CANCEL")), &[ABORTED]),
    course("cancel when catching up", Some(("CATCHING_UP", "CANCEL")), &[ABORTED, DONE]),
    course("cancel when verifying", Some(("VERIFYING", "CANCEL")), &[ABORTED, DONE]),
    course("cancel when fenced", Some(("FENCED", "CANCEL")), &[ABORTED, DONE]),
];

/// Pairs of faults of each course in each round but the first, and in a single one.
const PAIRS: usize = 300;
const FEW_PAIRS: usize = 20;

/// Cases that may fail until the rest is not played any more.
const ENOUGH: usize = 10;

/// How many calls later a call lands; the last: after the end.
const LATE: [usize; 5] = [2, 7, 20, 50, usize::MAX];

#[derive(Debug, Clone)]
struct Case {
    course: Course,
    seed: u64,
    faults: Vec<(usize, Fault)>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<_> =
            self.faults.iter().map(|(at, fault)| format!("{at}={fault:?}")).collect();
        write!(f, "{}/{}/{}", self.course.name, self.seed, faults.join(","))
    }
}

fn play(template: &Path, case: &Case) -> Ended {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(run::run(template, case.course, case.seed, case.faults.clone()))
}

#[test]
fn crash_points() {
    let began = Instant::now();
    let folder = tempfile::tempdir().unwrap();
    let template = folder.path().join("template.sqlite");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(tables::prepare(&template));
    let rounds = std::env::var("CELLD_TEST_CRASH_ROUNDS");
    let rounds: u64 = rounds.map_or(1, |rounds| rounds.parse().expect("a number of rounds"));
    let mut cases = Vec::new();
    for course in COURSES {
        for seed in 1..=rounds {
            let case = Case { course, seed, faults: Vec::new() };
            let started = Instant::now();
            let whole = play(&template, &case);
            println!(
                "{:?} {}, seed {seed}: {} calls, {:?} writes, {:?}",
                started.elapsed(),
                course.name,
                whole.trail.len(),
                whole.writes,
                whole.end
            );
            cases.extend(singles(&case, &whole));
            cases.extend(pairs(&case, &whole, if rounds > 1 { PAIRS } else { FEW_PAIRS }));
        }
    }
    println!("{} cases", cases.len());
    if let Ok(only) = std::env::var("CELLD_TEST_CRASH_CASE") {
        cases.retain(|case| case.to_string().starts_with(&only));
        assert!(!cases.is_empty(), "there is no such case");
    }
    let (next, failed, workers) =
        (AtomicUsize::new(0), Mutex::new(Vec::new()), AtomicUsize::new(0));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if failed.lock().len() >= ENOUGH {
                        return;
                    }
                    match catch_unwind(AssertUnwindSafe(|| play(&template, case))) {
                        Ok(ended) => drop(workers.fetch_add(ended.workers, Ordering::Relaxed)),
                        Err(_) => failed.lock().push(case.to_string()),
                    }
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!("{} cases, {} workers, {:?}", cases.len(), workers.into_inner(), began.elapsed());
    assert!(failed.is_empty(), "{} of {} fail:\n{}", failed.len(), cases.len(), failed.join("\n"));
}

/// Each call of a run, broken in each way.
fn singles(case: &Case, whole: &Ended) -> Vec<Case> {
    let broken = own(case.course, whole).flat_map(|at| {
        let late = LATE[(at + case.seed as usize) % LATE.len()];
        let faults: &[Fault] = match whole.trail[at].1.contains("Write") {
            true => &[
                Fault::DiesBefore,
                Fault::DiesAfter,
                Fault::LostReply,
                Fault::DiesAndLands(late),
                Fault::Lands(late),
            ],
            // A read has no effect that could come before or after.
            false => &[Fault::DiesBefore, Fault::LostReply],
        };
        faults.iter().map(|fault| vec![(at + 1, *fault)]).collect::<Vec<_>>()
    });
    broken.map(|faults| Case { faults, ..case.clone() }).collect()
}

/// The calls of a course that are not those of the first one as well: what comes after something was asked, and what is done under the
/// fence where that is strict.
fn own(course: Course, whole: &Ended) -> std::ops::Range<usize> {
    let begins = |phase: &str| whole.trail.iter().position(|(at, _)| at == phase);
    let own = match (course.asked, course.strict) {
        (Some((phase, _)), _) => begins(phase).map(|begin| begin..whole.trail.len()),
        (None, true) => begins("FENCED").zip(begins("SOAKING")).map(|(begin, end)| begin..end),
        (None, false) => Some(0..whole.trail.len()),
    };
    own.expect("the course goes through that phase")
}

/// Two faults: the second somewhere after the first, where the run may have taken another course already.
fn pairs(case: &Case, whole: &Ended, count: usize) -> Vec<Case> {
    let mut lots = StdRng::seed_from_u64(case.seed);
    let fault = |lots: &mut StdRng| {
        let late = LATE[lots.random_range(0..LATE.len())];
        let faults = [
            Fault::DiesBefore,
            Fault::DiesAfter,
            Fault::LostReply,
            Fault::DiesAndLands(late),
            Fault::Lands(late),
        ];
        faults[lots.random_range(0..faults.len())]
    };
    let pairs = (0..count).map(|_| {
        let first = lots.random_range(own(case.course, whole)) + 1;
        let second = first + lots.random_range(1..40_usize);
        Case { faults: vec![(first, fault(&mut lots)), (second, fault(&mut lots))], ..case.clone() }
    });
    pairs.collect()
}
