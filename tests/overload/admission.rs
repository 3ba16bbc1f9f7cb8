//! Calls that wait for the table are limited over all connections, by class, and what is refused is told why and changes nothing.

use std::time::Duration;

use cell_directory::proto::v1;
use cell_directory::proto::v1::batch_resolve_result::Outcome;
use cell_directory::proto::v1::cell_admin_client::CellAdminClient;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::otlp::OtlpReceiver;
use crate::{SOON, World, resolve};

/// Holds a status against what docs/errors.md says of it.
#[track_caller]
fn overloaded(status: &Status) -> Duration {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("OVERLOADED", "cells.v1"));
    let after = details.retry_info().and_then(|retry| retry.retry_delay).expect("RetryInfo");
    assert!(after > Duration::ZERO);
    after
}

type Answers = JoinSet<(String, Result<(), Status>)>;

/// Waits until so many were refused, and for every refusal's key. The others are still under way.
async fn refused(answers: &mut Answers, count: usize) -> Vec<String> {
    let mut keys = Vec::new();
    let mut delays = std::collections::BTreeSet::new();
    while keys.len() < count {
        let answer = tokio::time::timeout(SOON, answers.join_next()).await.expect("a refusal");
        let (key, answer) = answer.unwrap().unwrap();
        delays.insert(overloaded(&answer.expect_err(&key)));
        keys.push(key);
    }
    assert!(count < 8 || delays.len() > 1, "no jitter: {delays:?}");
    keys
}

async fn channels(world: &World, count: usize) -> Vec<Channel> {
    let mut channels = Vec::new();
    for _ in 0..count {
        channels.push(world.server.channel().await);
    }
    channels
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_are_counted_over_all_connections_and_go_to_what_matters_most() {
    let (collector, receiver) = OtlpReceiver::start().await;
    let world = World::new(&[
        "--max-in-flight=4",
        "--otlp-endpoint",
        &collector,
        "--metrics-interval=100ms",
    ])
    .await;
    let channels = channels(&world, 5).await;
    world.valve.shut();

    // Lists may take half of the four places.
    let mut lists = Answers::new();
    for at in 0..20 {
        let mut client = CellDirectoryClient::new(channels[at % 5].clone());
        lists.spawn(async move {
            let answer = client.list_placements(v1::ListPlacementsRequest::default()).await;
            (String::new(), answer.map(|_| ()))
        });
    }
    refused(&mut lists, 18).await;
    // Changes and reads of the table three quarters; two are taken.
    let mut pins = Answers::new();
    for at in 0..20 {
        let mut client = CellDirectoryClient::new(channels[at % 5].clone());
        let key = format!("pinned-{at}");
        pins.spawn(async move {
            let cell_id = "cell-a".to_owned();
            let partition_key = key.clone();
            let pin = v1::PinPlacementRequest { partition_key, cell_id, ..Default::default() };
            (key, client.pin_placement(pin).await.map(|_| ()))
        });
    }
    let mut unmade = refused(&mut pins, 19).await;
    let mut import = CellDirectoryClient::new(channels[0].clone());
    let placements = vec![v1::PlacementImport {
        partition_key: "imported".into(),
        cell_id: "cell-a".into(),
        ..Default::default()
    }];
    let portion = v1::ImportPlacementsRequest { placements, ..Default::default() };
    let answer = import.import_placements(tokio_stream::iter([portion])).await;
    overloaded(&answer.unwrap_err());
    unmade.push("imported".into());
    let cell = Some(crate::celld::cell("cell-b"));
    let create = v1::CreateCellRequest { cell, ..Default::default() };
    let answer = CellAdminClient::new(channels[1].clone()).create_cell(create).await;
    overloaded(&answer.unwrap_err());

    // Resolves all of them; where two are looked at in the same moment, one more.
    let mut resolves = Answers::new();
    for at in 0..20 {
        let mut client = CellDirectoryClient::new(channels[at % 5].clone());
        let key = format!("resolved-{at}");
        resolves.spawn(async move {
            let answer = client.resolve(resolve(&key)).await;
            (key, answer.map(|_| ()))
        });
    }
    unmade.extend(refused(&mut resolves, 18).await);

    // What is in memory keeps resolving with every place taken, alone and among others.
    let mut client = CellDirectoryClient::new(channels[2].clone());
    let known = client.resolve(resolve("known")).await.unwrap().into_inner();
    assert_eq!(known.decision.unwrap().source(), v1::DecisionSource::Memory);
    let partition_keys = vec!["known".to_owned(), "batched".to_owned(), String::new()];
    let batch = v1::BatchResolveRequest { partition_keys, ..Default::default() };
    let batch = client.batch_resolve(batch).await.unwrap().into_inner();
    let outcomes: Vec<_> =
        batch.results.into_iter().map(|result| result.outcome.unwrap()).collect();
    assert!(matches!(&outcomes[0], Outcome::Placement(placement) if placement.cell_id == "cell-a"));
    let Outcome::Error(error) = &outcomes[1] else { panic!("{outcomes:?}") };
    assert_eq!((error.code, error.reason.as_str()), (Code::ResourceExhausted as i32, "OVERLOADED"));
    assert!(error.retry_delay.is_some());
    let Outcome::Error(error) = &outcomes[2] else { panic!("{outcomes:?}") };
    assert_eq!(error.reason, "INVALID_PARTITION_KEY");
    unmade.push("batched".into());
    HealthClient::new(channels[3].clone()).check(HealthCheckRequest::default()).await.unwrap();

    // Those who were let in are served once the table answers, and then there is room again.
    world.valve.open();
    for mut answers in [lists, pins, resolves] {
        while let Some(answer) = answers.join_next().await {
            let (key, answer) = answer.unwrap();
            // One of the last two resolves may have been one too many.
            if let Err(status) = answer {
                assert!(key.starts_with("resolved-"), "{key}: {status:?}");
                overloaded(&status);
                unmade.push(key);
            }
        }
    }
    for key in unmade {
        let get = v1::GetPlacementRequest { partition_key: key.clone() };
        let absent = client.get_placement(get).await.expect_err(&key);
        assert_eq!(absent.code(), Code::NotFound, "{key}: {absent:?}");
    }
    let mut admin = CellAdminClient::new(channels[4].clone());
    let cells = admin.list_cells(v1::ListCellsRequest::default()).await.unwrap().into_inner().cells;
    assert_eq!(cells.len(), 1, "{cells:?}");

    let counts = |points: &[crate::otlp::MetricPoint], class: &str| -> u64 {
        let of_class =
            points.iter().filter(|point| point.has(&[("class", class), ("cause", "in_flight")]));
        of_class.map(|point| point.count() as u64).sum()
    };
    let sheds = |points: &[crate::otlp::MetricPoint]| {
        let [low, normal, critical] = ["low", "normal", "critical"].map(|c| counts(points, c));
        // Of the resolves 18 or 19, and the batch's key.
        (low, normal) == (18, 21) && (19..=20).contains(&critical)
    };
    receiver.wait_for_points("cell.admission.sheds", sheds, SOON).await;
    for gauge in
        ["cell.admission.queue_delay", "cell.admission.queue_bound", "cell.admission.in_flight"]
    {
        receiver.wait_for_points(gauge, |points| !points.is_empty(), SOON).await;
    }
    // The refusals are counted as calls, too.
    let exhausted = |points: &[crate::otlp::MetricPoint]| {
        let lists = [
            ("rpc.method", "cells.v1.CellDirectory/ListPlacements"),
            ("rpc.response.status_code", "RESOURCE_EXHAUSTED"),
        ];
        points.iter().any(|point| point.has(&lists) && point.count() as u64 == 18)
    };
    receiver.wait_for_points("rpc.server.calls", exhausted, SOON).await;
}
