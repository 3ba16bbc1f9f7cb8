//! BatchResolve: a result a key, each for itself.

use cell_directory::proto::v1;
use cell_directory::proto::v1::DecisionSource::{Assigned, Memory};
use cell_directory::proto::v1::batch_resolve_result::Outcome;

use crate::checks::invalid;
use crate::world::{Engine, Server, World, def, pin};

on_both_engines!(
    answers_each_key_for_itself,
    a_key_may_stand_more_than_once,
    takes_one_to_a_thousand_keys,
);

async fn batch(
    server: &Server,
    keys: Vec<String>,
    mode: v1::ResolveMode,
) -> Result<v1::BatchResolveResponse, tonic::Status> {
    let request = v1::BatchResolveRequest { partition_keys: keys, mode: mode.into(), ..def() };
    server.directory.clone().batch_resolve(request).await.map(tonic::Response::into_inner)
}

fn placement(result: &v1::BatchResolveResult) -> &v1::Placement {
    match result.outcome.as_ref().unwrap() {
        Outcome::Placement(placement) => placement,
        Outcome::Error(error) => panic!("{error:?}"),
    }
}

async fn answers_each_key_for_itself(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b", "cell-c"]).await;
    server.pin(pin("known-a", "cell-a")).await.unwrap();
    server.pin(pin("known-b", "cell-b")).await.unwrap();
    let before = world.dump().await;
    let keys = ["known-a", "", "unknown", "known-b", "a\nb", &"x".repeat(1025)];
    let keys: Vec<String> = keys.map(str::to_owned).into();
    let answer = batch(&server, keys, v1::ResolveMode::LookupOnly).await.unwrap();
    let shown: Vec<_> = answer
        .results
        .iter()
        .map(|result| match result.outcome.as_ref().unwrap() {
            Outcome::Placement(placement) => {
                assert_eq!(result.decision.as_ref().unwrap().source(), Memory);
                // What a batch says once for all.
                assert!(placement.partition_key.is_empty());
                assert!(placement.endpoint.is_empty() && placement.region.is_empty());
                (0, placement.cell_id.as_str())
            }
            Outcome::Error(error) => {
                assert!(result.decision.is_none() && !error.message.is_empty());
                (error.code, error.reason.as_str())
            }
        })
        .collect();
    let bad = (3, "INVALID_PARTITION_KEY");
    assert_eq!(shown, [(0, "cell-a"), bad, (5, "PLACEMENT_NOT_FOUND"), (0, "cell-b"), bad, bad]);
    let cells: Vec<_> = answer.cells.keys().map(String::as_str).collect();
    assert_eq!(cells, ["cell-a", "cell-b"], "only those that results name");
    assert_eq!(answer.cells["cell-b"].endpoint, "https://cell-b.example.com");
    assert_eq!(answer.cells["cell-b"].region, "eu-west-1");
    assert_eq!(world.dump().await, before);
}

async fn a_key_may_stand_more_than_once(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b", "cell-c"]).await;
    let keys: Vec<String> = (0..100).map(|n| format!("tenant-{}", n % 10)).collect();
    let answer = batch(&server, keys.clone(), v1::ResolveMode::Unspecified).await.unwrap();
    assert_eq!(answer.results.len(), 100);
    for (key, result) in keys.iter().zip(&answer.results) {
        let stored = server.get(key).await.unwrap();
        let answered = placement(result);
        assert_eq!((&answered.cell_id, answered.epoch), (&stored.cell_id, 1), "{key}");
        assert_eq!(answered.create_time, stored.create_time);
    }
    let assigned =
        |result: &&v1::BatchResolveResult| result.decision.as_ref().unwrap().source() == Assigned;
    assert!(answer.results.iter().filter(assigned).count() >= 10);
    assert_eq!(world.scan(&world.mappings()).await.len(), 10);
}

async fn takes_one_to_a_thousand_keys(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a", "cell-b"]).await;
    let keys = |n: usize| (0..n).map(|n| format!("tenant-{n}")).collect::<Vec<_>>();
    let before = world.dump().await;
    for wrong in [0, 1001] {
        let answer = batch(&server, keys(wrong), v1::ResolveMode::Unspecified).await;
        invalid(answer, "INVALID_BATCH_SIZE", "partition_keys");
    }
    assert_eq!(world.dump().await, before);

    let answer = batch(&server, keys(1000), v1::ResolveMode::AssignIfMissing).await.unwrap();
    assert!(answer.results.iter().all(|result| placement(result).epoch == 1));
    assert_eq!(world.scan(&world.mappings()).await.len(), 1000);
    let placed: i64 = world.counts().await.values().sum();
    assert_eq!(placed, 1000);
    let entries = world.journal().await.len();
    assert!(entries < 500, "{entries} entries: changes are committed in groups");
    let again = batch(&server, keys(1000), v1::ResolveMode::LookupOnly).await.unwrap();
    for (result, first) in again.results.iter().zip(&answer.results) {
        assert_eq!(result.decision.as_ref().unwrap().source(), Memory);
        assert_eq!(result.outcome, first.outcome);
    }
}
