//! Drafts against a model: whatever is asked in whatever order, an entry keeps its limits, names no item twice, and comes to the same in
//! the tables as in the registry. And each refusal, once.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::time::Duration;

use futures::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::directory::fixtures::stage::{
    best, cell_id, command, create, import, named, new_cell, pin, remove, update,
};
use crate::directory::fixtures::{cell, key, now, placement};
use crate::directory::policy::{Constrained, Rendezvous, Standing};
use crate::domain::JournalId;
use crate::store::memory::MemoryStore;
use crate::store::{CommitOutcome, Head, Journal, Placements};

const RETENTION: Duration = Duration::from_secs(3600);
const POLICY: Constrained<Rendezvous> = Constrained(Rendezvous);

/// What a cell has after it was provisioned.
fn tables(cell: &str) -> Arc<CellTables> {
    let table = cells_guard::CellTable {
        name: "Data".into(),
        table_name: format!("Data-{cell}"),
        partition_key: "PK".into(),
        sort_key: Some(("SK".into(), cells_guard::KeyType::String)),
        tenant_keys: vec!["T#{partition_key}".into()],
        ttl_attribute: None,
    };
    let tables = CellTables {
        set: "default".into(),
        version: 1,
        tables: vec![table],
        guards: None,
        together: true,
        guarded: false,
    };
    Arc::new(tables.with_guards_as(None))
}

/// What is asked in a property test: of the tenants 0-19 and the cells 0-3.
#[derive(Debug, Clone)]
enum Ask {
    Assign {
        tenant: u8,
        request: Option<u8>,
    },
    Pin {
        tenant: u8,
        cell: u8,
        request: Option<u8>,
    },
    Import {
        tenant: u8,
        cell: u8,
        expired: bool,
    },
    Vacate {
        tenant: u8,
        epoch: Option<u64>,
        expired: bool,
    },
    Create {
        cell: u8,
        capacity: Option<u64>,
    },
    Update {
        cell: u8,
        state: u8,
        capacity: Option<Option<u64>>,
    },
    Remove {
        cell: u8,
    },
    /// The entry is finished here.
    Commit,
    /// The entry comes to nothing.
    Lose,
}

fn ask() -> impl Strategy<Value = Ask> {
    let (tenant, cell) = (0..20u8, 0..4u8);
    let request = proptest::option::weighted(0.3, 0..30u8);
    let capacity = || proptest::option::of(1..6u64);
    prop_oneof![
        8 => (tenant.clone(), request.clone())
            .prop_map(|(tenant, request)| Ask::Assign { tenant, request }),
        4 => (tenant.clone(), cell.clone(), request)
            .prop_map(|(tenant, cell, request)| Ask::Pin { tenant, cell, request }),
        2 => (tenant.clone(), cell.clone(), any::<bool>())
            .prop_map(|(tenant, cell, expired)| Ask::Import { tenant, cell, expired }),
        4 => (tenant, proptest::option::weighted(0.3, 1..4u64), any::<bool>())
            .prop_map(|(tenant, epoch, expired)| Ask::Vacate { tenant, epoch, expired }),
        2 => (cell.clone(), capacity()).prop_map(|(cell, capacity)| Ask::Create { cell, capacity }),
        2 => (cell.clone(), 0..5u8, proptest::option::of(capacity()))
            .prop_map(|(cell, state, capacity)| Ask::Update { cell, state, capacity }),
        1 => cell.prop_map(|cell| Ask::Remove { cell }),
        2 => Just(Ask::Commit),
        1 => Just(Ask::Lose),
    ]
}

/// The state that drafts are made on, in two forms that must stay the same.
struct World {
    store: MemoryStore,
    registry: Registry,
    epochs: BTreeMap<PartitionKey, u64>,
    committed: usize,
}

impl World {
    fn new() -> Self {
        Self {
            store: MemoryStore::new(),
            registry: Registry::default(),
            epochs: BTreeMap::new(),
            committed: 0,
        }
    }

    fn mapping(&self, key: &PartitionKey) -> Mapping {
        self.store.mapping(key).now_or_never().unwrap().unwrap()
    }

    fn command(&self, ask: &Ask) -> Command {
        let name = |tenant: &u8| format!("t{tenant}");
        let cell_name = |cell: &u8| format!("c{cell}");
        let place = |tenant: &u8, destination, expires, request: &Option<u8>| {
            let key = key(&name(tenant));
            let assumed = self.mapping(&key);
            let place = command(Action::Place { key, assumed, destination, since: None, expires });
            match request {
                Some(id) => named(place, &format!("r{id}"), "digest"),
                None => place,
            }
        };
        match ask {
            Ask::Assign { tenant, request } => place(tenant, best(), None, request),
            Ask::Pin { tenant, cell, request } => {
                place(tenant, Destination::Pinned(cell_id(&cell_name(cell))), None, request)
            }
            Ask::Import { tenant, cell, expired } => {
                let destination = Destination::Imported(cell_id(&cell_name(cell)));
                place(tenant, destination, expired.then(now), &None)
            }
            Ask::Vacate { tenant, epoch, expired } => {
                let key = key(&name(tenant));
                let event = match expired {
                    true => PlacementEvent::Expired,
                    false => PlacementEvent::Deleted,
                };
                let assumed = self.mapping(&key);
                let epoch = epoch.and_then(Epoch::new);
                command(Action::Vacate { key, assumed, epoch, event })
            }
            Ask::Create { cell, capacity } => {
                let capacity = capacity.and_then(NonZeroU64::new);
                let cell = NewCell { capacity, ..new_cell(&cell_name(cell)) };
                command(Action::CreateCell { cell, placements: 0 })
            }
            Ask::Update { cell, state, capacity } => {
                let patch = CellPatch {
                    state: Some(CellState::ALL[usize::from(*state)]),
                    capacity: capacity.map(|capacity| capacity.and_then(NonZeroU64::new)),
                    // From then on its tenants have guards.
                    tables: capacity.map(|_| Some(tables(&cell_name(cell)))),
                    ..CellPatch::default()
                };
                update(&cell_name(cell), patch)
            }
            Ask::Remove { cell } => remove(&cell_name(cell)),
            Ask::Commit | Ask::Lose => unreachable!(),
        }
    }

    /// Drafts commands until one marks the entry's end, and commits or drops it. Answers how many were taken.
    fn entry(&mut self, asks: &[Ask]) -> Result<usize, TestCaseError> {
        let registry = self.registry.clone();
        let mut draft = Draft::new(&POLICY, &registry, now(), RETENTION);
        let mut included = Vec::new();
        let mut counts: BTreeMap<CellId, u64> =
            registry.cells().map(|cell| (cell.id.clone(), cell.placements)).collect();
        let mut taken = 0;
        let mut lost = false;
        for ask in asks {
            taken += 1;
            if matches!(ask, Ask::Commit | Ask::Lose) {
                lost = matches!(ask, Ask::Lose);
                break;
            }
            let command = self.command(ask);
            match draft.add(&command) {
                Drafted::Included(outcome) => {
                    self.check_included(&draft, &outcome, &mut counts)?;
                    included.push((command, outcome));
                }
                Drafted::Settled(Ok(outcome)) => {
                    prop_assert!(command.request.is_none(), "a request is remembered");
                    let settled = matches!(outcome, Outcome::Placed { created: false, .. });
                    prop_assert!(settled);
                }
                // Whoever is refused is refused by what stands, not by what is drafted.
                Drafted::Settled(Err(refused)) => {
                    let mut alone = Draft::new(&POLICY, &registry, now(), RETENTION);
                    let again = alone.add(&command);
                    let same = matches!(&again, Drafted::Settled(Err(other)) if *other == refused);
                    prop_assert!(same, "{refused:?}, and {again:?} alone");
                }
                Drafted::Deferred => {
                    prop_assert!(!draft.is_empty(), "the first always fits");
                    taken -= 1;
                    break;
                }
            }
        }
        if draft.is_empty() {
            return Ok(taken.max(1));
        }
        let (commit, owners) = draft.finish(Nonce::new(rand::random()));
        check_commit(&commit, &owners, &included)?;
        if !lost {
            self.commit(&commit)?;
        }
        Ok(taken)
    }

    fn check_included(
        &self,
        draft: &Draft<'_>,
        outcome: &Outcome,
        counts: &mut BTreeMap<CellId, u64>,
    ) -> Result<(), TestCaseError> {
        match outcome {
            Outcome::Placed { placement, created: true, candidates } => {
                let cell = draft.registry.cell(&placement.cell).unwrap();
                let before = self.mapping(&placement.key);
                if let Mapping::Placed(expired) = &before
                    && let Some(count) = counts.get_mut(&expired.cell)
                {
                    *count -= 1;
                }
                let count = counts.entry(placement.cell.clone()).or_default();
                *count += 1;
                prop_assert_eq!(placement.epoch, before.next_epoch());
                if placement.began_by != PlacementEvent::Imported {
                    prop_assert_eq!(cell.state, CellState::Active);
                    let room = cell.capacity.is_none_or(|capacity| *count <= capacity.get());
                    // An expired placement's own place is free only once it is gone.
                    prop_assert!(room, "{} is over its capacity", cell.id);
                }
                if let Some(best) = candidates.first() {
                    prop_assert_eq!(&best.cell, &placement.cell);
                }
            }
            Outcome::Vacated(placement) => {
                if let Some(count) = counts.get_mut(&placement.cell) {
                    *count -= 1;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), TestCaseError> {
        let outcome = self.store.commit(commit).now_or_never().unwrap();
        if let Ok(CommitOutcome::Refused(refusals)) = &outcome {
            // Only a request's name can be taken here; all else is as the draft assumed.
            for refusal in refusals {
                prop_assert!(matches!(commit.writes[refusal.write], Write::PutRequest(_)));
            }
            return Ok(());
        }
        prop_assert_eq!(outcome, Ok(CommitOutcome::Committed));
        self.committed += 1;
        prop_assert!(self.registry.apply(&commit.entry));
        for change in &commit.entry.changes {
            if let Change::Placed { placement, .. } = change {
                let last = self.epochs.entry(placement.key.clone()).or_default();
                *last += 1;
                prop_assert_eq!(placement.epoch.get(), *last, "epochs are 1, 2, 3 and so on");
            }
        }
        let stored = self.store.cells().now_or_never().unwrap().unwrap();
        let folded: Vec<Cell> = self.registry.cells().map(|cell| Cell::clone(cell)).collect();
        let gist = |cells: &[Cell]| -> Vec<(CellId, u64, CellState)> {
            cells.iter().map(|cell| (cell.id.clone(), cell.placements, cell.state)).collect()
        };
        prop_assert_eq!(gist(&stored), gist(&folded));
        for cell in &stored {
            let live = self.store.count(&cell.id).now_or_never().unwrap().unwrap();
            prop_assert_eq!(cell.placements, live);
        }
        // An open guard exists in the tenant's own cell alone, and says its epoch.
        for (tenant, guard) in self.store.guards() {
            let mapping = self.mapping(&tenant);
            let lives = mapping.placement().map(|p| (p.cell.as_str().to_owned(), p.epoch.get()));
            prop_assert_eq!(Some((guard.cell, guard.guard.epoch)), lives);
        }
        Ok(())
    }
}

/// Names every item that a write touches, as DynamoDB would.
fn items(write: &Write) -> Vec<String> {
    match write {
        Write::Place { placement, .. } => vec![format!("mapping {}", placement.key)],
        Write::Vacate { key, .. } => vec![format!("mapping {key}")],
        Write::AddHistory(record) => vec![format!("history {} {}", record.key, record.epoch)],
        Write::PutCell { cell, set_count: false } => vec![format!("cell {}", cell.id)],
        Write::PutCell { cell, set_count: true } => {
            vec![format!("cell {}", cell.id), format!("count {}", cell.id)]
        }
        Write::RemoveCell(id) => vec![format!("cell {id}"), format!("count {id}")],
        Write::AddToCount { cell, .. } => vec![format!("count {cell}")],
        Write::PutRequest(record) => vec![format!("request {}", record.id.as_str())],
        Write::PutCluster(_) => vec!["cluster".to_owned()],
        Write::CheckPlacement { key, .. } => vec![format!("mapping {key}")],
        Write::Guard(guard) => {
            vec![format!("guard {} {} {}", guard.cell, guard.tenant, guard.shard)]
        }
        Write::PutMigration { record, .. } => vec![format!("migration {}", record.id.0)],
        Write::EndMigration { tenant, .. } => vec![format!("moving {tenant}")],
    }
}

fn check_commit(
    commit: &Commit,
    owners: &[usize],
    included: &[(Command, Outcome)],
) -> Result<(), TestCaseError> {
    let touched: Vec<String> = commit.writes.iter().flat_map(items).collect();
    prop_assert!(touched.len() <= MAX_WRITES);
    prop_assert_eq!(touched.iter().collect::<BTreeSet<_>>().len(), touched.len(), "{:?}", touched);
    let bytes: usize = commit.entry.changes.iter().map(store::encoded_len).sum();
    prop_assert!(bytes <= MAX_ENTRY_BYTES);
    // Each write but the counts belongs to the command that it is for.
    let counts = commit.writes.iter().filter(|write| matches!(write, Write::AddToCount { .. }));
    prop_assert_eq!(owners.len(), commit.writes.len() - counts.count());
    for (write, owner) in commit.writes.iter().zip(owners) {
        let (command, outcome) = &included[*owner];
        match write {
            Write::PutRequest(record) => {
                prop_assert_eq!(Some(&record.id), command.request.as_ref().map(|r| &r.id));
                prop_assert_eq!(&record.outcome, &outcome.stored());
                prop_assert_eq!(record.forget_after, now().plus(RETENTION));
            }
            Write::PutCell { cell, .. } => {
                prop_assert_eq!(Item::Cell(cell.id.clone()), command.action.item());
            }
            Write::RemoveCell(id) => {
                prop_assert_eq!(Item::Cell(id.clone()), command.action.item());
            }
            Write::Place { placement: Placement { key, .. }, .. }
            | Write::Vacate { key, .. }
            | Write::AddHistory(crate::domain::HistoryRecord { key, .. }) => {
                prop_assert_eq!(Some(key), command.action.key());
            }
            Write::Guard(guard) => prop_assert_eq!(Some(&guard.tenant), command.action.key()),
            Write::CheckPlacement { .. }
            | Write::PutMigration { .. }
            | Write::EndMigration { .. } => prop_assert!(false, "of no command here"),
            Write::PutCluster(_) => prop_assert_eq!(Item::Cluster, command.action.item()),
            Write::AddToCount { .. } => prop_assert!(false, "a count has no owner"),
        }
    }
    let named = included.iter().filter(|(command, _)| command.request.is_some()).count();
    let records = commit.writes.iter().filter(|write| matches!(write, Write::PutRequest(_)));
    prop_assert_eq!(records.count(), named, "every request is remembered");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn drafts_keep_their_promises(asks in prop::collection::vec(ask(), 1..250)) {
        let mut world = World::new();
        // So that there is something to place tenants in.
        let mut rest: &[Ask] = &[
            Ask::Create { cell: 0, capacity: None },
            Ask::Create { cell: 1, capacity: Some(3) },
            Ask::Commit,
        ];
        world.entry(rest)?;
        rest = &asks;
        while !rest.is_empty() {
            let taken = world.entry(rest)?;
            rest = &rest[taken.min(rest.len())..];
        }
        prop_assert!(world.committed > 0);
    }
}

fn registry(cells: Vec<Cell>) -> Registry {
    let head = Head { sequence: crate::domain::Sequence::new(9), journal: JournalId::default() };
    Registry::load(head, cells, Cluster::default())
}

fn two_cells() -> Registry {
    registry(vec![cell("a", 1), cell("b", 2)])
}

#[test]
fn an_entry_takes_as_much_as_it_can_and_no_more() {
    let registry = two_cells();
    // A placement with its request is two items; the counts of both cells are two more.
    let mut draft = Draft::new(&POLICY, &registry, now(), RETENTION);
    let place = |n: usize| named(pin(&format!("k{n}"), "a"), &format!("r{n}"), "d");
    let fits = (0..).take_while(|n| matches!(draft.add(&place(*n)), Drafted::Included(_))).count();
    assert_eq!(fits, (MAX_WRITES - 1) / 2);
    let (commit, _) = draft.finish(Nonce::new(1));
    assert_eq!(commit.writes.iter().map(Write::items).sum::<usize>(), fits * 2 + 1);

    // Large cells fill the entry's bytes before its items are used up.
    let labels = (0..Labels::MAX).map(|n| (format!("{n:063}"), "v".repeat(128))).collect();
    let labels = Labels::new(labels).unwrap();
    let mut draft = Draft::new(&POLICY, &registry, now(), RETENTION);
    let large = |n: usize| {
        let cell = NewCell { labels: labels.clone(), ..new_cell(&format!("large{n}")) };
        command(Action::CreateCell { cell, placements: 0 })
    };
    let fits = (0..).take_while(|n| matches!(draft.add(&large(*n)), Drafted::Included(_))).count();
    assert!(fits < MAX_WRITES / 2, "{fits}");
    let (commit, _) = draft.finish(Nonce::new(1));
    let bytes: usize = commit.entry.changes.iter().map(store::encoded_len).sum();
    assert!(bytes <= MAX_ENTRY_BYTES && bytes > MAX_ENTRY_BYTES * 9 / 10, "{bytes}");
}

/// A cell's count is one item: its registration and what moves it do not share an entry, in either order.
#[test]
fn a_count_is_written_once() {
    let adopted = Placement { began_by: PlacementEvent::Adopted, ..placement("k", "x", 1) };
    let leave = |placement: &Placement| {
        command(Action::Vacate {
            key: placement.key.clone(),
            assumed: Mapping::Placed(placement.clone()),
            epoch: None,
            event: PlacementEvent::Deleted,
        })
    };
    let one = Cell { placements: 1, ..cell("a", 1) };
    let registry = registry(vec![one, cell("b", 2)]);
    let resident = placement("l", "a", 1);
    for (first, second) in [
        (leave(&adopted), create("x")),
        (create("x"), leave(&adopted)),
        (create("x"), pin("k", "x")),
        (leave(&resident), remove("a")),
        (pin("k", "b"), update("b", CellPatch::default())),
        (update("b", CellPatch::default()), pin("k", "b")),
        (import("k", "b"), import("k", "b")),
        (named(pin("k", "b"), "r", "d"), named(pin("l", "b"), "r", "d")),
    ] {
        let mut draft = Draft::new(&POLICY, &registry, now(), RETENTION);
        assert!(matches!(draft.add(&first), Drafted::Included(_)), "{first:?}");
        let second_drafted = draft.add(&second);
        assert!(matches!(second_drafted, Drafted::Deferred), "{first:?} {second:?}");
    }
}

/// What somebody else's router wrote was never counted, and takes nothing from the count when it goes.
#[test]
fn a_count_never_falls_below_zero() {
    for (counted, leaving, expected) in [(0, 2, None), (1, 2, Some(-1)), (2, 2, Some(-2))] {
        let known = Cell { placements: counted, ..cell("a", 1) };
        let mut registry = registry(vec![known]);
        let base = registry.clone();
        let mut draft = Draft::new(&POLICY, &base, now(), RETENTION);
        for n in 0..leaving {
            let adopted = PlacementEvent::Adopted;
            let placement = Placement { began_by: adopted, ..placement(&format!("k{n}"), "a", 1) };
            let leave = command(Action::Vacate {
                key: placement.key.clone(),
                assumed: Mapping::Placed(placement),
                epoch: None,
                event: PlacementEvent::Deleted,
            });
            assert!(matches!(draft.add(&leave), Drafted::Included(_)));
        }
        let (commit, _) = draft.finish(Nonce::new(1));
        let delta = commit.writes.iter().find_map(|write| match write {
            Write::AddToCount { delta, .. } => Some(*delta),
            _ => None,
        });
        assert_eq!(delta, expected);
        assert!(registry.apply(&commit.entry));
        let after = registry.cell(&cell_id("a")).unwrap().placements;
        assert_eq!(after, counted.saturating_add_signed(delta.unwrap_or(0)), "as in the table");
    }
}

/// Every refusal that a draft can come to.
#[test]
fn each_refusal_has_its_reason() {
    let full = Cell { capacity: NonZeroU64::new(1), placements: 1, ..cell("full", 3) };
    let state = |id: &str, state| Cell { state, ..cell(id, 4) };
    let registry = registry(vec![
        full,
        state("cordoned", CellState::Cordoned),
        state("retired", CellState::Retired),
        Cell { state: CellState::Draining, placements: 1, ..cell("settled", 5) },
    ]);
    let there = placement("k", "settled", 3);
    let on = |action| command(action);
    let vacate = |assumed: &Mapping, epoch, event| {
        on(Action::Vacate { key: key("k"), assumed: assumed.clone(), epoch, event })
    };
    let placed = Mapping::Placed(there.clone());
    let place = |destination| {
        let (key, assumed) = (key("k"), placed.clone());
        on(Action::Place { key, assumed, destination, since: None, expires: None })
    };
    let patch = |state| CellPatch { state: Some(state), ..CellPatch::default() };
    let etag = Some("r1".to_owned());
    let (deleted, expired) = (PlacementEvent::Deleted, PlacementEvent::Expired);
    let elsewhere = Refused::PlacementExists { existing: Box::new(there.clone()) };
    let not_eligible =
        |id: &str, why: &str| Refused::CellNotEligible { cell: cell_id(id), why: why.into() };
    let not_empty = Refused::CellNotEmpty { cell: cell_id("settled") };
    let unknown = Refused::CellNotFound { cell: cell_id("nowhere") };
    let changed = |present: &str| Refused::EtagMismatch { present: present.into() };
    let repeat = |assumed| {
        let destination = Destination::Best {
            constraints: Arc::default(),
            entropy: 0,
            only_at: Some(Epoch::FIRST),
        };
        on(Action::Place { key: key("k"), assumed, destination, since: None, expires: None })
    };
    for (command, expected) in [
        (repeat(Mapping::Vacated(Epoch::FIRST)), Refused::Contended),
        (vacate(&Mapping::Absent, None, deleted), Refused::PlacementNotFound),
        (vacate(&Mapping::Vacated(there.epoch), None, deleted), Refused::PlacementNotFound),
        (vacate(&placed, None, expired), Refused::PlacementNotFound),
        (vacate(&placed, Epoch::new(2), deleted), Refused::EpochMismatch { present: there.epoch }),
        (place(Destination::Pinned(cell_id("full"))), elsewhere.clone()),
        (place(Destination::Imported(cell_id("full"))), elsewhere),
        (pin("l", "nowhere"), unknown.clone()),
        (import("l", "nowhere"), unknown.clone()),
        (update("nowhere", CellPatch::default()), unknown.clone()),
        (remove("nowhere"), unknown),
        (pin("l", "full"), not_eligible("full", "is full: 1 of 1")),
        (pin("l", "cordoned"), not_eligible("cordoned", "is CORDONED")),
        (import("l", "retired"), not_eligible("retired", "is RETIRED")),
        (create("full"), Refused::CellExists { cell: cell_id("full") }),
        (remove("settled"), not_empty.clone()),
        (update("settled", patch(CellState::Retired)), not_empty),
        (
            update("retired", patch(CellState::Active)),
            Refused::StateChangeNotAllowed {
                cell: cell_id("retired"),
                from: CellState::Retired,
                to: CellState::Active,
            },
        ),
        (
            on(Action::UpdateCell {
                cell: cell_id("full"),
                patch: CellPatch::default(),
                etag: etag.clone(),
            }),
            changed("r3"),
        ),
        (on(Action::DeleteCell { cell: cell_id("cordoned"), etag }), changed("r4")),
    ] {
        let mut draft = Draft::new(&POLICY, &registry, now(), RETENTION);
        match draft.add(&command) {
            Drafted::Settled(Err(refused)) => assert_eq!(refused, expected),
            other => panic!("{command:?} came to {other:?}"),
        }
        assert!(draft.is_empty());
    }

    let mut draft = Draft::new(&POLICY, &registry, now(), RETENTION);
    let homeless = crate::directory::fixtures::stage::assign("l");
    let Drafted::Settled(Err(Refused::NoEligibleCell { candidates })) = draft.add(&homeless) else {
        panic!("somebody takes them")
    };
    assert_eq!(candidates.len(), 4, "each with its reason");
    for candidate in candidates {
        assert!(matches!(candidate.standing, Standing::Ineligible { .. }), "{candidate:?}");
    }
    // What is refused to new tenants is not to those who live there.
    assert!(matches!(draft.add(&import("l", "full")), Drafted::Included(_)));
}

/// Into a cell that takes nobody, a tenant is not moved, whatever held when its migration was begun. Back it may always go: both cells count
/// it all the while.
#[test]
fn a_step_into_a_cell_is_refused_as_a_new_tenant_is() {
    let full = Cell { capacity: NonZeroU64::new(1), placements: 1, ..cell("full", 3) };
    let cordoned = Cell { state: CellState::Cordoned, ..cell("cordoned", 4) };
    let registry = registry(vec![cell("home", 1), cell("room", 2), full, cordoned]);
    let before = placement("k", "home", 3);
    let step = |to: &str, gained: bool| {
        command(Action::Move(Box::new(Step {
            assumed: Mapping::Placed(before.clone()),
            before: before.clone(),
            after: Placement { cell: cell_id(if gained { "home" } else { to }), ..before.clone() },
            gained: gained.then(|| cell_id(to)),
            lost: None,
            writes: Vec::new(),
        })))
    };
    let drafted = |step| Draft::new(&POLICY, &registry, now(), RETENTION).add(&step);
    for (to, why) in [("full", "is full: 1 of 1"), ("cordoned", "is CORDONED")] {
        match drafted(step(to, true)) {
            Drafted::Settled(Err(Refused::CellNotEligible { cell, why: told })) => {
                assert_eq!((cell, told.as_str()), (cell_id(to), why));
            }
            other => panic!("{to}: {other:?}"),
        }
        assert!(matches!(drafted(step(to, false)), Drafted::Included(_)), "{to}");
    }
    assert!(matches!(drafted(step("room", true)), Drafted::Included(_)));
    let gone = drafted(step("gone", true));
    assert!(matches!(gone, Drafted::Settled(Err(Refused::CellNotFound { .. }))), "{gone:?}");
}

#[test]
fn a_request_repeats_only_itself() {
    let request = named(create("a"), "r", "d").request.unwrap();
    let record = RequestRecord {
        id: request.id.clone(),
        method: request.method.clone(),
        digest: request.digest.clone(),
        outcome: StoredOutcome::Placed(placement("k", "a", 1)),
        forget_after: now(),
    };
    let repeat = request.repeat_of(record.clone()).unwrap();
    let Outcome::Placed { placement: again, created, .. } = repeat else { panic!() };
    assert_eq!((&*again, created), (&placement("k", "a", 1), false));
    let other_method = RequestRecord { method: "Other".into(), ..record.clone() };
    let other_body = RequestRecord { digest: "other".into(), ..record };
    for record in [other_method, other_body] {
        assert_eq!(request.repeat_of(record), Err(Refused::RequestIdReused));
    }
}

/// A request that changes nothing is remembered all the same, in an entry of its own if need be.
#[test]
fn a_request_without_effect_is_remembered() {
    let registry = two_cells();
    let there = placement("k", "a", 1);
    let assumed = Mapping::Placed(there.clone());
    let (key, destination) = (key("k"), Destination::Pinned(cell_id("a")));
    let action = Action::Place { key, assumed, destination, since: None, expires: None };
    let mut draft = Draft::new(&POLICY, &registry, now(), RETENTION);
    let drafted = draft.add(&named(command(action), "r", "d"));
    assert!(matches!(drafted, Drafted::Included(Outcome::Placed { created: false, .. })));
    assert!(!draft.is_empty());
    let (commit, owners) = draft.finish(Nonce::new(1));
    assert!(commit.entry.changes.is_empty());
    assert!(matches!(commit.writes.as_slice(), [Write::PutRequest(_)]));
    assert_eq!(owners, [0]);
}

/// The place of an expired placement is taken by the next, which records how it ended.
#[test]
fn an_expired_placement_is_replaced() {
    let registry = two_cells();
    let old = Placement { expires: Some(now()), ..placement("k", "a", 4) };
    let action = Action::Place {
        key: key("k"),
        assumed: Mapping::Placed(old),
        destination: Destination::Pinned(cell_id("b")),
        since: None,
        expires: None,
    };
    let mut draft = Draft::new(&POLICY, &registry, now(), RETENTION);
    let Drafted::Included(Outcome::Placed { placement: new, created: true, .. }) =
        draft.add(&command(action))
    else {
        panic!()
    };
    assert_eq!(new.epoch.get(), 5);
    let (commit, _) = draft.finish(Nonce::new(1));
    let [Write::Place { .. }, Write::AddHistory(record), counts @ ..] = commit.writes.as_slice()
    else {
        panic!("{commit:?}")
    };
    assert_eq!((record.epoch.get(), record.ended_by), (4, PlacementEvent::Expired));
    // The count of `a` was zero: the old placement was never counted.
    assert_eq!(counts, [Write::AddToCount { cell: cell_id("b"), delta: 1 }]);
}
