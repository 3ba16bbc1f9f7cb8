//! Random interleavings with the journal as the model, and tables of events.

mod sim;
mod tables;

use proptest::prelude::*;

use self::sim::{Op, Sim};
use crate::options::Mode;

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any::<u8>(), any::<u8>(), any::<bool>()).prop_map(|(key, cell, logged)| Op::Change { key, cell, logged }),
        2 => any::<u8>().prop_map(|key| Op::Vacate { key }),
        6 => any::<usize>().prop_map(|replica| Op::Poll { replica }),
        12 => Just(Op::Produce),
        12 => Just(Op::Deliver),
        1 => Just(Op::Break),
        1 => Just(Op::Expire),
        6 => Just(Op::ServeSync),
        6 => Just(Op::DeliverSync),
        1 => Just(Op::LoseSync),
        6 => (any::<u8>(), any::<usize>(), any::<bool>())
            .prop_map(|(key, replica, table)| Op::Ask { key, replica, table }),
        6 => any::<usize>().prop_map(|flight| Op::Serve { flight }),
        6 => any::<usize>().prop_map(|flight| Op::Land { flight }),
        2 => any::<usize>().prop_map(|replica| Op::ServeRefresh { replica }),
        2 => Just(Op::DeliverRefresh),
        8 => (1_u16..900).prop_map(|ms| Op::Pass { ms }),
        1 => Just(Op::Restart),
    ]
}

/// `CELLS_CLIENT_CASES` asks for more.
fn config() -> ProptestConfig {
    let cases = std::env::var("CELLS_CLIENT_CASES")
        .ok()
        .and_then(|cases| cases.parse().ok())
        .unwrap_or(300);
    ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 300,
        ..ProptestConfig::default()
    }
}

fn run(mode: Mode, ops: Vec<Op>) {
    let mut sim = Sim::new(mode);
    for op in ops {
        sim.step(op);
    }
    sim.heal_and_compare();
    // A test that sees no lease tests nothing.
    assert!(sim.leased > 0 || !sim.holds_anything());
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_whole_map_keeps_its_promises(ops in prop::collection::vec(op(), 50..400)) {
        run(Mode::Whole, ops);
    }

    #[test]
    fn a_bounded_memory_keeps_its_promises(ops in prop::collection::vec(op(), 50..400), capacity in 1_usize..10) {
        run(Mode::Bounded { capacity }, ops);
    }
}
