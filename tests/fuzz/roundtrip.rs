//! What a caller sends is what callers read: cells, placements and times go through messages and back unchanged.

use cell_directory::domain::Timestamp;
use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_admin_client::CellAdminClient;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tonic::transport::Channel;

use crate::generate::now;
use crate::server::Server;

const FIRST: i64 = -62_135_596_800_000;
const LAST: i64 = 253_402_300_799_999;

fn cell() -> impl Strategy<Value = v1::Cell> {
    let labels = prop::collection::btree_map("[a-z0-9][a-z0-9._/-]{0,62}", "\\PC{0,30}", 0..33);
    (
        "[a-z0-9][a-z0-9-]{0,62}",
        "[a-z0-9][a-z0-9-]{0,31}",
        "[!-~]{1,512}",
        labels,
        prop::option::of(prop_oneof![0..=1_000_000u32, Just(1_000_000)]),
        prop::option::of(prop_oneof![0..1000u64, Just(u64::MAX)]),
        0..=4,
    )
        .prop_map(|(cell_id, region, endpoint, labels, weight, capacity, state)| v1::Cell {
            cell_id,
            region,
            endpoint,
            labels,
            weight,
            capacity,
            state,
            ..Default::default()
        })
}

/// What is answered for a cell that was created so.
fn as_created(sent: &v1::Cell, read: &v1::Cell) -> v1::Cell {
    v1::Cell {
        weight: Some(sent.weight.unwrap_or(100)),
        capacity: Some(sent.capacity.unwrap_or(0)),
        state: if sent.state == 0 { v1::CellState::Active.into() } else { sent.state },
        etag: read.etag.clone(),
        create_time: read.create_time,
        update_time: read.update_time,
        placement_count: 0,
        ..sent.clone()
    }
}

async fn cell_goes_round(
    channel: Channel,
    sent: v1::Cell,
    other: v1::Cell,
) -> Result<(), TestCaseError> {
    let mut admin = CellAdminClient::new(channel);
    let create = v1::CreateCellRequest { cell: Some(sent.clone()), ..Default::default() };
    let created = admin.create_cell(create).await.unwrap().into_inner().cell.unwrap();
    prop_assert_eq!(&created, &as_created(&sent, &created));
    prop_assert!(created.create_time.is_some() && created.update_time.is_some());
    let get = v1::GetCellRequest { cell_id: sent.cell_id.clone() };
    let read = admin.get_cell(get).await.unwrap().into_inner().cell.unwrap();
    prop_assert_eq!(&read, &created);

    // All that can be changed, by the etag that was read.
    let changed = v1::Cell {
        cell_id: sent.cell_id.clone(),
        region: sent.region.clone(),
        etag: read.etag.clone(),
        state: other.state.max(1),
        ..other
    };
    let paths = ["weight", "capacity", "labels", "endpoint", "state"].map(str::to_owned).to_vec();
    let update = v1::UpdateCellRequest {
        cell: Some(changed.clone()),
        update_mask: Some(prost_types::FieldMask { paths }),
        ..Default::default()
    };
    let updated = admin.update_cell(update).await.unwrap().into_inner().cell.unwrap();
    prop_assert_eq!(&updated, &as_created(&changed, &updated));
    prop_assert_ne!(&updated.etag, &read.etag);
    let delete =
        v1::DeleteCellRequest { cell_id: sent.cell_id, etag: updated.etag, ..Default::default() };
    admin.delete_cell(delete).await.unwrap();
    Ok(())
}

fn time(millis: i64) -> prost_types::Timestamp {
    let nanos = i32::try_from(millis.rem_euclid(1000)).unwrap() * 1_000_000;
    prost_types::Timestamp { seconds: millis.div_euclid(1000), nanos }
}

async fn placement_goes_round(
    channel: Channel,
    key: String,
    (begun, ends): (i64, i64),
) -> Result<(), TestCaseError> {
    let mut directory = CellDirectoryClient::new(channel);
    let row = v1::PlacementImport {
        partition_key: key.clone(),
        cell_id: "cell-1".to_owned(),
        create_time: Some(time(begun)),
        expire_time: Some(time(ends)),
    };
    let import = v1::ImportPlacementsRequest { placements: vec![row], validate_only: false };
    let answer = directory.import_placements(futures::stream::iter([import])).await;
    let answer = answer.unwrap().into_inner();
    prop_assert_eq!(answer.created, 1, "{:?}", answer);
    let get = v1::GetPlacementRequest { partition_key: key.clone() };
    let read = directory.get_placement(get).await.unwrap().into_inner().placement.unwrap();
    prop_assert_eq!(&read.partition_key, &key);
    prop_assert_eq!(&read.cell_id, "cell-1");
    prop_assert_eq!(read.create_time, Some(time(begun)));
    prop_assert_eq!(read.expire_time, Some(time(ends)));
    let ask = v1::ResolveRequest { partition_key: key.clone(), ..Default::default() };
    let routed = directory.resolve(ask).await.unwrap().into_inner().placement.unwrap();
    prop_assert_eq!(&routed, &read);
    let delete = v1::DeletePlacementRequest { partition_key: key, ..Default::default() };
    let last = directory.delete_placement(delete).await.unwrap().into_inner().placement.unwrap();
    prop_assert_eq!(&last, &read);
    Ok(())
}

/// Runs a property that needs a server.
fn with_server<S: Strategy>(
    cases: u32,
    values: S,
    property: impl AsyncFn(Channel, S::Value) -> Result<(), TestCaseError>,
) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (server, channel) = runtime.block_on(async {
        let server = Server::start().await;
        let endpoint = format!("http://{}", server.address());
        let channel = tonic::transport::Endpoint::from_shared(endpoint).unwrap();
        (server, channel.connect().await.unwrap())
    });
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let run = TestRunner::new(config)
        .run(&values, |value| runtime.block_on(property(channel.clone(), value)));
    run.unwrap_or_else(|failure| panic!("{failure}"));
    runtime.block_on(server.end());
}

#[test]
fn cells_go_round() {
    // `cell-` is there already.
    let cells =
        (cell(), cell()).prop_filter("taken", |(cell, _)| !cell.cell_id.starts_with("cell-"));
    with_server(200, cells, async |channel, (sent, other)| {
        cell_goes_round(channel, sent, other).await
    });
}

#[test]
fn placements_go_round() {
    let now = now() * 1000;
    let begun = prop_oneof![FIRST..now - 60_000, Just(FIRST), Just(0), Just(-1)];
    let ends = prop_oneof![now + 600_000..LAST, Just(LAST)];
    let values = ("\\PC{1,200}", (begun, ends));
    with_server(300, values, async |channel, (key, times)| {
        placement_goes_round(channel, key, times).await
    });
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

    #[test]
    fn times_are_written_and_read_back(millis in prop_oneof![FIRST..=LAST, Just(FIRST), Just(LAST)]) {
        let time = Timestamp::from_millis(millis).unwrap();
        let text = time.to_string();
        prop_assert!(text.ends_with('Z') && text.len() == 24, "{}", text);
        prop_assert_eq!(Timestamp::parse(&text), Some(time));
        prop_assert_eq!(Timestamp::from_millis(LAST + 1), None);
        prop_assert_eq!(Timestamp::from_millis(FIRST - 1), None);
    }
}
