//! A writer with a running `celld`: what the service answers, and the guards that it writes, are what the examples take them for.

use std::time::Instant;

use crate::celld::{Celld, table, unique};
use crate::dynamodb_local::DynamoDbLocal;
use crate::world::{Build, CELLS, World};
use crate::{AMPLE, cases};

/// Budgets are wide: what is tested is what is answered on a busy machine, not when.
const FLAGS: [&str; 6] = [
    "--read-timeout=20s",
    "--commit-timeout=20s",
    "--commit-budget=50s",
    "--operations-interval=50ms",
    "--max-queue-delay=1m",
    "--log-filter=error",
];

pub async fn a_writer_and_the_service_agree(build: &Build) {
    let prefix = unique("writers");
    let server = Celld::serve(&DynamoDbLocal::shared().endpoint(), &prefix, &FLAGS);
    server.create_cells(&CELLS).await;
    let tables = vec![table("Profiles", None), table("Orders", Some("SK"))];
    server.provision(tables, &CELLS).await;
    let world = World::at(build, &server.address, &prefix).await;
    let case = world.case("served");

    case.write(&[case.put("a", "1")], "done").await;
    // What cannot be repeated is checked, by the guard that came with the placement.
    case.write(&[case.count(), case.put("b", "1")], "done").await;
    let at = usize::from(case.value(0, "a").await.is_none());
    assert_eq!(case.value(at, "b").await.as_deref(), Some("1"));
    assert_eq!(case.counted(at).await.as_deref(), Some("1"));
    assert_eq!(case.calls(cases::TRANSACTION), 1);

    // Without the directory it goes on with what it knows, checked.
    server.kill();
    let deadline = Instant::now() + AMPLE;
    while case.calls(cases::TRANSACTION) == 1 {
        assert!(Instant::now() < deadline, "the lease does not end");
        case.write(&[case.put("a", "2")], "done").await;
    }
    assert_eq!(case.value(at, "a").await.as_deref(), Some("2"));
}
