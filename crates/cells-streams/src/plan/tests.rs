//! Planners of several consumers against leases in memory, without a stream.

use proptest::prelude::*;

use super::*;
use crate::SequenceNumber;
use crate::lease::LeaseEpoch;

const GROUP: Group = Group { since_secs: None, initialised: true };

fn options() -> Options {
    Options { lease: Duration::from_secs(10), tick: Duration::from_secs(2), ..Options::default() }
}

fn planner(name: &str) -> Planner {
    Planner::new(OwnerId::exactly(name), &options())
}

fn id(n: usize) -> ShardId {
    ShardId::new(format!("shard-{n:03}"))
}

fn shard(n: usize, parents: &[usize]) -> Shard {
    let parents = parents.iter().map(|parent| id(*parent)).collect();
    Shard { id: id(n), parents, start: SequenceNumber::new("1").ok(), end: None }
}

fn lease(n: usize, parents: &[usize], position: Position, owner: Option<&str>) -> Lease {
    Lease {
        shard: id(n),
        parents: parents.iter().map(|parent| id(*parent)).collect(),
        position,
        since_secs: None,
        owner: owner.map(OwnerId::exactly),
        stamp: Stamp { epoch: LeaseEpoch::new(1), counter: 1 },
    }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn taken(actions: &[Action]) -> Vec<ShardId> {
    let of = |action: &Action| match action {
        Action::Take { shard, .. } => Some(shard.clone()),
        _ => None,
    };
    actions.iter().filter_map(of).collect()
}

proptest! {
    /// From any division, consumers that look in any order come to shares that differ by one at most, and then let them be. Nothing
    /// is lost by one who is alive but what balances.
    #[test]
    fn shares_become_even_and_stay(
        owners in prop::collection::vec(prop::option::of(0usize..3), 1..20),
        order in prop::collection::vec(0usize..3, 200),
    ) {
        let names = ["a", "b", "c"];
        let mut leases: Vec<Lease> = owners.iter().enumerate()
            .map(|(n, owner)| lease(n, &[], Position::Horizon, owner.map(|owner| names[owner])))
            .collect();
        let mut planners = names.map(planner);
        let mut running = [(); 3].map(|()| BTreeSet::new());
        let mut last_change = 0;
        for (turn, who) in order.iter().enumerate() {
            let now = Duration::from_millis(turn as u64 * 300);
            // Everybody alive renews.
            for lease in leases.iter_mut().filter(|lease| lease.owner.is_some()) {
                lease.stamp.counter += 1;
            }
            planners[*who].saw_leases(now, leases.clone());
            let mine = |lease: &&Lease| lease.owner.as_ref() == Some(&planners[*who].me);
            running[*who] = leases.iter().filter(mine).map(|lease| lease.shard.clone()).collect();
            let actions = planners[*who].plan(now, 0, &GROUP, &running[*who]);
            let mut stolen = 0;
            for action in &actions {
                let Action::Take { shard, seen } = action else { panic!("{action:?}") };
                let lease = leases.iter_mut().find(|lease| lease.shard == *shard).unwrap();
                prop_assert_eq!(lease.stamp, *seen);
                prop_assert!(lease.owner.as_ref() != Some(&planners[*who].me));
                stolen += usize::from(lease.owner.is_some());
                lease.owner = Some(planners[*who].me.clone());
                lease.stamp.counter += 1;
                last_change = turn;
            }
            prop_assert!(stolen <= 1, "more than one at a time");
        }
        prop_assert!(last_change < 180, "they never rest");
        let share = |name: &str| leases.iter().filter(|lease| lease.owner.as_ref().is_some_and(|owner| owner.as_str() == name)).count();
        let shares = names.map(share);
        prop_assert_eq!(shares.iter().sum::<usize>(), owners.len());
        prop_assert!(shares.iter().max().unwrap() - shares.iter().min().unwrap() <= 1, "{:?}", shares);
    }

    /// However a lineage is listed, records are made parents first, and none for what waits for a parent that is not shown.
    #[test]
    fn records_are_made_parents_first(
        parents in prop::collection::vec(prop::collection::btree_set(any::<u32>(), 0..3), 1..12),
        hidden in prop::collection::btree_set(0usize..12, 0..4),
        gone in prop::collection::btree_set(0usize..12, 0..4),
        salt: u64,
    ) {
        // A shard's parents have lower numbers; its id says nothing of that.
        let name = |n: usize| ShardId::new(format!("shard-{}", (n as u64 ^ salt).wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        let lineage: Vec<BTreeSet<usize>> = parents.iter().enumerate()
            .map(|(n, parents)| if n == 0 { BTreeSet::new() } else { parents.iter().map(|at| *at as usize % n).collect() })
            .collect();
        let all: Vec<Shard> = lineage.iter().enumerate().map(|(n, parents)| Shard {
            id: name(n),
            parents: parents.iter().map(|n| name(*n)).collect(),
            start: None,
            end: None,
        }).collect();
        let listed: Vec<Shard> = (0..all.len()).filter(|n| !hidden.contains(n) && !gone.contains(n)).map(|n| all[n].clone()).collect();
        let mut planner = planner("a");
        planner.saw_shards(secs(0), listed.clone(), true);
        for n in &gone {
            planner.probed(secs(0), &name(*n), false);
        }
        let mut recorded = BTreeSet::new();
        for action in planner.plan(secs(1), 0, &GROUP, &BTreeSet::new()) {
            match action {
                Action::Create(lease) => {
                    for parent in &lease.parents {
                        let is_gone = gone.iter().any(|n| name(*n) == *parent);
                        prop_assert!(recorded.contains(parent) || is_gone, "{:?}", lease);
                    }
                    let orphan = lease.parents.iter().any(|parent| !recorded.contains(parent));
                    prop_assert_eq!(lease.position == Position::Orphan, orphan);
                    prop_assert!(recorded.insert(lease.shard));
                }
                Action::Probe(parent) => {
                    prop_assert!(hidden.iter().any(|n| name(*n) == parent), "{} is shown or known to be gone", parent);
                }
                other => panic!("{other:?}"),
            }
        }
        // All that waits for nothing hidden is recorded.
        let listed: BTreeSet<ShardId> = listed.into_iter().map(|shard| shard.id).collect();
        let mut free: BTreeSet<ShardId> = BTreeSet::new();
        for (n, shard) in all.iter().enumerate() {
            let is_gone = |id: &ShardId| gone.iter().any(|n| name(*n) == *id);
            if listed.contains(&name(n)) && shard.parents.iter().all(|id| free.contains(id) || is_gone(id)) {
                free.insert(name(n));
            }
        }
        prop_assert_eq!(recorded, free);
    }
}

#[test]
fn a_silent_owner_is_replaced_after_a_lease_and_no_sooner() {
    let mut planner = planner("a");
    let running = BTreeSet::new();
    let held = lease(0, &[], Position::Horizon, Some("b"));
    for (at, expected) in [(0, 0), (5, 0), (9, 0), (10, 1)] {
        planner.saw_leases(secs(at), vec![held.clone()]);
        assert_eq!(taken(&planner.plan(secs(at), 0, &GROUP, &running)).len(), expected, "{at}");
    }
    let mut renewed = held;
    renewed.stamp.counter += 1;
    planner.saw_leases(secs(11), vec![renewed]);
    assert!(taken(&planner.plan(secs(20), 0, &GROUP, &running)).is_empty());
}

#[test]
fn a_child_waits_for_all_its_parents() {
    let end = Position::End { as_of_secs: 5 };
    let cases = [
        (Position::Horizon, end.clone(), vec![id(0)]),
        (end.clone(), Position::LostEnd, vec![id(2)]),
    ];
    for (first, second, expected) in cases {
        let mut planner = planner("a");
        let leases = vec![
            lease(0, &[], first, None),
            lease(1, &[], second, None),
            lease(2, &[0, 1], Position::Fresh { as_of_secs: 0 }, None),
        ];
        // What is seen for the first time may have been listed without its parents.
        planner.saw_leases(secs(0), leases.clone());
        assert_eq!(planner.plan(secs(0), 0, &GROUP, &BTreeSet::new()), []);
        planner.saw_leases(secs(1), leases.clone());
        assert_eq!(taken(&planner.plan(secs(1), 0, &GROUP, &BTreeSet::new())), expected);
        // A gap above may reach down here.
        assert_eq!(planner.begins(&leases[2]), Position::Orphan);
    }
    let mut planner = planner("a");
    let child = lease(1, &[0], Position::Fresh { as_of_secs: 0 }, None);
    planner.saw_leases(secs(0), vec![lease(0, &[], end, None), child.clone()]);
    assert_eq!(planner.begins(&child), Position::Fresh { as_of_secs: 5 });
}

#[test]
fn a_finished_shard_is_forgotten_when_it_is_surely_gone_and_its_child_is_read() {
    let end = Position::End { as_of_secs: 5 };
    let after = Position::After(SequenceNumber::new("9").unwrap());
    let hour = options().forget_after;
    for (child, listed, expected) in [
        (after.clone(), true, false),
        (Position::Fresh { as_of_secs: 0 }, false, false),
        (after, false, true),
    ] {
        let mut planner = planner("a");
        let leases = vec![lease(0, &[], end.clone(), None), lease(1, &[0], child, Some("a"))];
        let running = BTreeSet::from([id(1)]);
        let mut shards = vec![shard(1, &[0])];
        shards.extend(listed.then(|| shard(0, &[])));
        planner.saw_leases(secs(0), leases.clone());
        planner.saw_shards(secs(0), shards.clone(), true);
        planner.saw_shards(hour, shards, true);
        planner.saw_leases(hour, leases);
        let now = hour + secs(1);
        let first = planner.plan(now, 0, &GROUP, &running);
        assert_eq!(first.contains(&Action::Probe(id(0))), expected);
        planner.probed(now, &id(0), false);
        let then = planner.plan(now, 0, &GROUP, &running);
        assert_eq!(then.contains(&Action::Forget(id(0))), expected);
    }
}

#[test]
fn a_shard_that_is_still_read_is_not_taken_again() {
    let mut planner = planner("a");
    for owner in [None, Some("b")] {
        let leases = vec![lease(0, &[], Position::Horizon, owner)];
        planner.saw_leases(secs(0), leases.clone());
        planner.saw_leases(secs(30), leases);
        let (idle, reading) = (BTreeSet::new(), BTreeSet::from([id(0)]));
        assert_eq!(taken(&planner.plan(secs(30), 0, &GROUP, &idle)), [id(0)]);
        assert!(taken(&planner.plan(secs(30), 0, &GROUP, &reading)).is_empty());
    }
}
