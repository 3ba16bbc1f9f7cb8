//! A bulk run to its end by a worker that crashes anywhere, while migrations fail and operators interfere.

use std::collections::{BTreeMap, HashMap};

use cells_balance::Bulk;
use cells_balance::bulk::*;
use proptest::prelude::*;

use crate::bulk::{id, limits, of, one};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    Copying,
    Committed,
    Soaking,
    Done,
    Failed,
    TakenBack,
    Parked,
}

impl Phase {
    fn writes(self) -> bool {
        matches!(self, Self::Copying | Self::Committed)
    }

    fn ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::TakenBack)
    }
}

#[derive(Debug)]
struct Migration {
    tenant: String,
    source: String,
    target: String,
    phase: Phase,
}

/// What is stored, and the migrations. All that a worker knows, it reads here.
struct Store {
    header: String,
    chunks: BTreeMap<u64, String>,
    migrations: BTreeMap<String, Migration>,
    limits: Limits,
}

/// Where a worker stops, counted in writes and acts; beyond them, nowhere.
type Crash = usize;
const NONE: Crash = usize::MAX;

impl Store {
    fn new(mut bulk: Bulk) -> Self {
        let changes = bulk.take_changes();
        let mut store = Self {
            header: String::new(),
            chunks: BTreeMap::new(),
            migrations: BTreeMap::new(),
            limits: bulk.header().limits,
        };
        store.write_header(&changes.header.unwrap());
        changes.chunks.iter().for_each(|chunk| store.write_chunk(chunk));
        store
    }

    fn load(&self) -> Bulk {
        let chunks = self.chunks.values().map(|chunk| serde_json::from_str(chunk).unwrap());
        Bulk::load(serde_json::from_str(&self.header).unwrap(), chunks.collect()).unwrap()
    }

    fn write_header(&mut self, header: &Header) {
        let before =
            serde_json::from_str::<Header>(&self.header).map_or(0, |header| header.revision);
        assert_eq!(before + 1, header.revision);
        self.header = serde_json::to_string(header).unwrap();
    }

    fn write_chunk(&mut self, chunk: &Chunk) {
        let stored = self.chunks.get(&chunk.number);
        let before =
            stored.map_or(0, |chunk| serde_json::from_str::<Chunk>(chunk).unwrap().revision);
        assert_eq!(before + 1, chunk.revision);
        self.chunks.insert(chunk.number, serde_json::to_string(chunk).unwrap());
    }

    fn observe(&self, bulk: &Bulk) -> HashMap<String, Observed> {
        let observed = |id: String| {
            let observed = match self.migrations.get(&id).map(|migration| migration.phase) {
                None => Observed::Absent,
                Some(Phase::Copying) => Observed::Running { committed: false },
                Some(Phase::Committed) => Observed::Running { committed: true },
                Some(Phase::Soaking) => Observed::Soaking,
                Some(Phase::Done) => Observed::Done,
                Some(Phase::Failed) => Observed::Failed { reason: "failed".into() },
                Some(Phase::TakenBack) => Observed::TakenBack,
                Some(Phase::Parked) => Observed::Parked { reason: "parked".into() },
            };
            (id, observed)
        };
        bulk.to_observe(&id).into_iter().map(observed).collect()
    }

    /// A worker's turn: observe, ask, write down, act. It answers the steps, however far it came.
    fn work(&mut self, crash: Crash) -> Vec<Step> {
        let mut bulk = self.load();
        let observed = self.observe(&bulk);
        let steps = bulk.next(&observed, &id);
        assert_eq!(steps, bulk.next(&observed, &id), "asked twice");
        if bulk.header().paused || bulk.header().cancelled.is_some() {
            assert!(!steps.iter().any(|step| matches!(step, Step::Start(_))), "{steps:?}");
        }
        steps.iter().for_each(|step| bulk.apply(step).unwrap());
        let changes = bulk.take_changes();
        let mut left = crash;
        let mut goes_on = || {
            left = left.saturating_sub(1);
            left > 0
        };
        for chunk in &changes.chunks {
            if !goes_on() {
                return steps;
            }
            self.write_chunk(chunk);
        }
        if let Some(header) = &changes.header {
            if !goes_on() {
                return steps;
            }
            self.write_header(header);
        }
        for step in &steps {
            if !goes_on() {
                return steps;
            }
            self.act(step);
        }
        steps
    }

    fn act(&mut self, step: &Step) {
        match step {
            Step::Start(start) => {
                let open = |one: &&Migration| one.tenant == start.tenant && !one.phase.ended();
                let other = self.migrations.values().find(open);
                assert!(
                    other.is_none() || self.migrations.contains_key(&start.migration),
                    "two at once: {start:?}"
                );
                self.migrations.entry(start.migration.clone()).or_insert_with(|| Migration {
                    tenant: start.tenant.clone(),
                    source: start.source.clone(),
                    target: start.target.clone(),
                    phase: Phase::Copying,
                });
            }
            Step::Cancel { migration, .. } => {
                if let Some(one) = self.migrations.get_mut(migration)
                    && one.phase == Phase::Copying
                {
                    one.phase = Phase::TakenBack;
                }
            }
            Step::Note { .. } | Step::Finish(_) => {}
        }
    }

    /// One of the migrations under way gets on.
    fn progress(&mut self, which: usize, how: u8) {
        let mut open: Vec<&mut Migration> = self
            .migrations
            .values_mut()
            .filter(|one| !one.phase.ended() && one.phase != Phase::Parked)
            .collect();
        if open.is_empty() {
            return;
        }
        let at = which % open.len();
        let one = &mut open[at];
        one.phase = match (one.phase, how % 8) {
            (Phase::Copying, 0) => Phase::Failed,
            (Phase::Copying | Phase::Committed, 1) => Phase::Parked,
            (Phase::Copying | Phase::Soaking, 2) => Phase::TakenBack,
            (Phase::Copying, _) => Phase::Committed,
            (Phase::Committed, _) => Phase::Soaking,
            (_, _) => Phase::Done,
        };
    }

    fn check(&self) {
        let limits = &self.limits;
        let (mut sources, mut targets) = (BTreeMap::new(), BTreeMap::new());
        let writing = || self.migrations.values().filter(|one| one.phase.writes());
        for one in writing() {
            *sources.entry(&one.source).or_insert(0) += 1;
            *targets.entry(&one.target).or_insert(0) += 1;
        }
        assert!(writing().count() <= limits.running.get() as usize);
        assert!(sources.values().all(|running| *running <= limits.per_source.get()), "{sources:?}");
        assert!(targets.values().all(|running| *running <= limits.per_target.get()), "{targets:?}");
        let open =
            self.migrations.values().filter(|one| !one.phase.ended() && one.phase != Phase::Parked);
        assert!(open.count() <= limits.open.get() as usize);
        let mut attempts: BTreeMap<&str, u32> = BTreeMap::new();
        self.migrations.values().for_each(|one| *attempts.entry(&one.tenant).or_default() += 1);
        assert!(
            attempts.values().all(|attempts| *attempts <= limits.attempts.get()),
            "{attempts:?}"
        );
    }

    fn operate(&mut self, how: u8) {
        let mut bulk = self.load();
        // It may have ended, or been cancelled, and refuse.
        let _refused = match how % 12 {
            0..=4 => bulk.pause(),
            5..=9 => bulk.resume(),
            10 => bulk.cancel(Cancel::LetRun),
            _ => bulk.cancel(Cancel::Running),
        };
        let changes = bulk.take_changes();
        assert!(changes.chunks.is_empty());
        changes.header.iter().for_each(|header| self.write_header(header));
    }
}

#[derive(Debug, Clone)]
enum Event {
    Work { crash: Crash },
    Progress { which: usize, how: u8 },
    Operate { how: u8 },
}

fn an_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0usize..8).prop_map(|crash| Event::Work { crash }),
        2 => Just(Event::Work { crash: NONE }),
        8 => (any::<usize>(), any::<u8>()).prop_map(|(which, how)| Event::Progress { which, how }),
        1 => any::<u8>().prop_map(|how| Event::Operate { how }),
    ]
}

fn a_bulk() -> impl Strategy<Value = Bulk> {
    let moves = prop::collection::vec((0u8..3, 0u8..3), 0..100);
    (moves, 1u32..6, 1u32..4, 1u32..4, 1u32..12).prop_map(|(moves, running, out, into, open)| {
        let moves = moves.iter().enumerate().map(|(at, (source, target))| {
            one(&format!("t{at}"), &format!("s{source}"), &format!("x{target}"))
        });
        let limits = Limits { open: of(open), ..limits(running, out, into) };
        Bulk::new("b", Purpose::Drain { cell: "s0".into() }, moves.collect(), limits).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn it_ends_whatever_crashes_and_its_items_tell_the_truth(
        bulk in a_bulk(),
        events in prop::collection::vec(an_event(), 0..200),
    ) {
        let mut store = Store::new(bulk);
        for event in events {
            match event {
                Event::Work { crash } => drop(store.work(crash)),
                Event::Progress { which, how } => store.progress(which, how),
                Event::Operate { how } => store.operate(how),
            }
            store.check();
        }
        // From here on nothing crashes, and all that runs gets on; some of it still fails.
        store.operate(5);
        let mut rounds = 0;
        while store.load().header().ended.is_none() {
            store.work(NONE);
            store.check();
            store.progress(rounds, (rounds % 7) as u8);
            rounds += 1;
            prop_assert!(rounds < 5_000, "it does not end: {:?}", store.load().summary());
        }
        prop_assert_eq!(store.work(NONE), []);
        let bulk = store.load();
        let cancelled = bulk.header().cancelled.is_some();
        prop_assert_eq!(bulk.header().ended, Some(if cancelled { End::Cancelled } else { End::Finished }));
        for item in bulk.items() {
            let own: Vec<Phase> = store.migrations.values().filter(|one| one.tenant == item.tenant).map(|one| one.phase).collect();
            let moved = own.contains(&Phase::Done);
            prop_assert_eq!(moved, item.state == State::Done, "{:?} {:?}", item, own);
            match &item.state {
                State::Waiting | State::Running { .. } => prop_assert!(false, "{item:?}"),
                State::Failed { retry: true, .. } => prop_assert!(cancelled || item.attempts == 2, "{item:?}"),
                State::Failed { retry: false, .. } => prop_assert!(own.contains(&Phase::Parked)),
                State::Skipped { .. } => prop_assert!(cancelled || own.contains(&Phase::TakenBack)),
                State::Done => {}
            }
        }
        let summary = bulk.summary();
        let counts = [summary.done, summary.failed, summary.skipped];
        prop_assert_eq!(counts.iter().map(|count| count.tenants).sum::<u64>(), bulk.header().items);
        prop_assert_eq!(counts.iter().map(|count| count.bytes).sum::<u64>(), 100 * bulk.header().items);
    }
}
