//! Resolve: where the answer comes from, what it says, and when there is none.

use cell_directory::proto::v1;
use cell_directory::proto::v1::DecisionSource::{Assigned, Memory, Table};
use tonic::Code;

use crate::celld::cell;
use crate::checks::{refused, violations};
use crate::world::{Engine, World, def, look_up, pin, resolve};

on_both_engines!(
    assigns_once_and_answers_from_memory,
    another_server_answers_from_the_table,
    explains_each_step,
    looking_up_assigns_nothing,
    constraints_choose_among_cells,
    says_of_each_cell_why_it_is_not_eligible,
    min_epoch_goes_past_memory_and_not_past_the_table,
    keys_are_compared_byte_for_byte,
);

async fn assigns_once_and_answers_from_memory(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let first = server.resolve("tenant").await;
    let (placed, decision) = (first.placement.unwrap(), first.decision.unwrap());
    assert_eq!((placed.partition_key.as_str(), placed.epoch), ("tenant", 1));
    assert_eq!(placed.endpoint, format!("https://{}.example.com", placed.cell_id));
    assert_eq!(placed.region, "eu-west-1");
    assert_eq!(placed.state(), v1::PlacementState::Active);
    assert_eq!(placed.write_mode(), v1::WriteMode::Direct);
    assert!(placed.create_time.is_some() && placed.create_time == placed.update_time);
    assert_eq!(placed.expire_time, None);
    assert_eq!((decision.source(), decision.authoritative), (Assigned, true));
    assert_eq!(decision.fallback_reason(), v1::FallbackReason::Unspecified);
    assert!(decision.age.is_some() && decision.steps.is_empty());

    let before = world.dump().await;
    let again = server.resolve("tenant").await;
    assert_eq!(again.placement.unwrap(), placed);
    let decision = again.decision.unwrap();
    assert_eq!((decision.source(), decision.authoritative), (Memory, true));
    assert!(decision.age.is_some());
    assert_eq!(world.dump().await, before);

    // Memory needs no table.
    for table in [world.mappings(), world.control()] {
        world.dynamodb.delete_table().table_name(table).send().await.unwrap();
    }
    assert_eq!(server.resolve("tenant").await.placement.unwrap(), placed);
}

async fn another_server_answers_from_the_table(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let placed = server.resolve("tenant").await.placement.unwrap();
    let restarted = world.serve(&[]).await;
    // From the table until it holds the whole of it.
    for sources in [&[Table, Memory][..], &[Memory]] {
        let answer = restarted.resolve("tenant").await;
        assert!(sources.contains(&answer.decision.unwrap().source()));
        assert_eq!(answer.placement.as_ref(), Some(&placed));
    }
}

async fn explains_each_step(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a", "cell-b", "cell-c"]).await;
    server.set_state("cell-b", v1::CellState::Cordoned).await;
    let explained = async || {
        let request = v1::ResolveRequest { explain: true, ..resolve("tenant") };
        let answer = server.try_resolve(request).await.unwrap();
        (answer.placement.unwrap().cell_id, answer.decision.unwrap().steps)
    };
    let (cell, steps) = explained().await;
    let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["memory", "assign"], "the whole table is held");
    assert!(steps.iter().all(|step| !step.outcome.is_empty()), "{steps:?}");
    let candidates = &steps[1].candidates;
    assert_eq!(candidates.len(), 3, "{candidates:?}");
    assert_eq!(candidates[0].cell_id, cell, "the first is the winner: {candidates:?}");
    assert!(candidates[0].reason.contains("chosen"), "{candidates:?}");
    assert!(candidates[0].eligible && candidates[1].eligible && !candidates[2].eligible);
    assert!(candidates[0].score.unwrap() >= candidates[1].score.unwrap(), "{candidates:?}");
    let refused = &candidates[2];
    assert_eq!((refused.cell_id.as_str(), refused.score), ("cell-b", None));
    assert!(refused.reason.contains("CORDONED"), "{refused:?}");

    let (again, steps) = explained().await;
    assert_eq!(again, cell);
    let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, ["memory"]);
    assert!(steps[0].outcome.contains(&cell), "{steps:?}");
}

async fn looking_up_assigns_nothing(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    for _ in 0..2 {
        refused(server.look_up("tenant").await, Code::NotFound, "PLACEMENT_NOT_FOUND");
    }
    assert_eq!(world.dump().await, before);
    refused(server.get("tenant").await, Code::NotFound, "PLACEMENT_NOT_FOUND");

    // That it was not found is not remembered.
    server.resolve("tenant").await;
    assert_eq!(server.look_up("tenant").await.unwrap().placement.unwrap().epoch, 1);
}

async fn constraints_choose_among_cells(engine: Engine) {
    let world = World::new(engine).await;
    let server = world.serve(&[]).await;
    for (id, region, tier) in [
        ("eu-gold", "eu-west-1", "gold"),
        ("us-gold", "us-east-1", "gold"),
        ("us-tin", "us-east-1", "tin"),
    ] {
        let labels = [("tier".to_owned(), tier.to_owned())].into();
        let registered = v1::Cell { region: region.into(), labels, ..cell(id) };
        server.create_cell(registered).await.unwrap();
    }
    let ask = async |key: &str, tier: Option<&str>, regions: &[&str]| {
        let constraints = v1::PlacementConstraints {
            labels: tier.map(|tier| ("tier".to_owned(), tier.to_owned())).into_iter().collect(),
            regions: regions.iter().map(|&region| region.to_owned()).collect(),
        };
        let request = v1::ResolveRequest { constraints: Some(constraints), ..resolve(key) };
        server.try_resolve(request).await
    };
    // Enough keys that a policy that does not look would have to be lucky.
    for n in 0..8 {
        let only = async |tier, regions: &[&str]| {
            let key = format!("{n}-{tier:?}-{regions:?}");
            ask(&key, tier, regions).await.unwrap().placement.unwrap().cell_id
        };
        assert_eq!(only(Some("tin"), &[]).await, "us-tin");
        assert_eq!(only(None, &["eu-west-1"]).await, "eu-gold");
        assert_eq!(only(Some("gold"), &["us-east-1", "ap-south-1"]).await, "us-gold");
        assert_ne!(only(Some("gold"), &["us-east-1", "eu-west-1"]).await, "us-tin");
    }
    let before = world.dump().await;
    let details = refused(
        ask("nowhere", Some("tin"), &["eu-west-1"]).await,
        Code::FailedPrecondition,
        "NO_ELIGIBLE_CELL",
    );
    let named: Vec<_> = violations(&details).into_iter().map(|(_, cell, _)| cell).collect();
    assert_eq!(named, ["eu-gold", "us-gold", "us-tin"]);
    assert_eq!(world.dump().await, before);

    // They do not concern a tenant who has a cell.
    let settled = ask("settled", Some("tin"), &[]).await.unwrap().placement.unwrap();
    let elsewhere = ask("settled", Some("gold"), &["eu-west-1"]).await.unwrap();
    assert_eq!(elsewhere.placement.unwrap(), settled);
}

async fn says_of_each_cell_why_it_is_not_eligible(engine: Engine) {
    let world = World::new(engine).await;
    let server = world.serve(&[]).await;
    let nowhere = refused(
        server.try_resolve(resolve("tenant")).await,
        Code::FailedPrecondition,
        "NO_ELIGIBLE_CELL",
    );
    assert_eq!(violations(&nowhere)[0].0, "REGISTRY");

    server.create_cell(v1::Cell { capacity: Some(1), ..cell("full") }).await.unwrap();
    server.pin(pin("first", "full")).await.unwrap();
    server.create_cell(v1::Cell { weight: Some(0), ..cell("weightless") }).await.unwrap();
    let far = v1::Cell { region: "us-east-1".into(), ..cell("far") };
    server.create_cell(far).await.unwrap();
    let cordoned = v1::Cell { state: v1::CellState::Cordoned.into(), ..cell("cordoned") };
    server.create_cell(cordoned).await.unwrap();
    let before = world.dump().await;
    let constraints = v1::PlacementConstraints { regions: vec!["eu-west-1".into()], ..def() };
    let request = v1::ResolveRequest { constraints: Some(constraints), ..resolve("tenant") };
    let details =
        refused(server.try_resolve(request).await, Code::FailedPrecondition, "NO_ELIGIBLE_CELL");
    let mut violations = violations(&details);
    violations.sort();
    for ((kind, cell, why), (wanted, word)) in violations.iter().zip([
        ("cordoned", "CORDONED"),
        ("far", "us-east-1"),
        ("full", "full: 1 of 1"),
        ("weightless", "weight 0"),
    ]) {
        assert_eq!((kind.as_str(), cell.as_str()), ("CELL", wanted));
        assert!(why.contains(word), "{cell} {why}");
    }
    assert_eq!(violations.len(), 4);
    assert_eq!(world.dump().await, before);
}

async fn min_epoch_goes_past_memory_and_not_past_the_table(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let at_least = async |server: &crate::world::Server, epoch| {
        server.try_resolve(v1::ResolveRequest { min_epoch: epoch, ..look_up("tenant") }).await
    };
    server.resolve("tenant").await;
    // A server that polls once a minute does not hear of what the other one does.
    let deaf = world.serve(&["--journal-poll-interval=1m"]).await;
    deaf.resolve("tenant").await;
    server.delete("tenant").await.unwrap();
    server.resolve("tenant").await;
    let stale = at_least(&deaf, 1).await.unwrap();
    assert_eq!(stale.decision.unwrap().source(), Memory);
    assert_eq!(stale.placement.unwrap().epoch, 1, "the premise: its memory is older");
    let fresh = at_least(&deaf, 2).await.unwrap();
    assert_eq!(fresh.decision.unwrap().source(), Table);
    assert_eq!(fresh.placement.unwrap().epoch, 2);
    // And never goes back behind what it has answered.
    assert_eq!(at_least(&deaf, 0).await.unwrap().placement.unwrap().epoch, 2);

    let before = world.dump().await;
    for request in [
        v1::ResolveRequest { min_epoch: 3, ..look_up("tenant") },
        v1::ResolveRequest { min_epoch: 3, ..resolve("tenant") },
        v1::ResolveRequest { min_epoch: 2, ..resolve("nobody") },
    ] {
        let answer = server.try_resolve(request).await;
        refused(answer, Code::FailedPrecondition, "EPOCH_NOT_REACHED");
    }
    assert_eq!(world.dump().await, before);
}

async fn keys_are_compared_byte_for_byte(engine: Engine) {
    let (_world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let longest = "\"".repeat(1024);
    let keys = ["a", "A", "a ", " a", "é", "e\u{301}", "a#1", "a/b", "🦀", longest.as_str()];
    for key in keys {
        let placed = server.resolve(key).await.placement.unwrap();
        assert_eq!((placed.partition_key.as_str(), placed.epoch), (key, 1), "a key of its own");
        assert_eq!(server.get(key).await.unwrap(), placed);
        assert_eq!(server.history(key).await.len(), 1);
    }
}
