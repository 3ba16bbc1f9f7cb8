//! Writes where there is no lease: checked by the tenant's guard, in the cell where it is. On both engines.

use std::time::Duration;

use cell_directory::proto::v1;
use cells_guard::{GuardTable, StoredGuard, guard, log};
use cells_migration::{Guard, GuardState, Holder, MigrationId, WriteMode};
use serde_json::json;
use tonic::{Code, Request};
use tonic_types::StatusExt;

use crate::data::{Data, item, item_key, message, on_both_engines};
use crate::world::fault;

on_both_engines!(
    a_write_without_a_lease_needs_an_open_guard,
    a_write_follows_its_tenant,
    a_call_with_a_request_id_has_one_effect,
);

const MOVE: MigrationId = MigrationId(7);

fn stored(cell: &str, state: GuardState, epoch: u64, held: bool) -> StoredGuard {
    let holder = held.then_some(Holder { migration: MOVE, worker: 1 });
    let mode = if held { WriteMode::Logged } else { WriteMode::Direct };
    let next = (state == GuardState::Moved).then(|| "cell-b".to_owned());
    let guard = Guard { state, epoch, mode, holder };
    StoredGuard { guard, cell: cell.to_owned(), shards: 1, next }
}

impl Data {
    fn guard_table(&self, cell: &str) -> GuardTable {
        GuardTable {
            table_name: self.world.table("CustomerData", cell),
            partition_key: "PK".to_owned(),
            sort_key: "SK".to_owned(),
        }
    }

    async fn dynamodb(&self) -> aws_sdk_dynamodb::Client {
        aws_sdk_dynamodb::Client::new(&self.world.sdk().await)
    }

    async fn set_guard(&self, tenant: &str, stored: &StoredGuard) {
        let table = self.guard_table(&stored.cell);
        let item = guard::item(&table, tenant, 0, stored);
        let put = self.dynamodb().await.put_item().table_name(&table.table_name);
        put.set_item(Some(item)).send().await.unwrap();
    }

    async fn without_guard(&self, tenant: &str, cell: &str) {
        let table = self.guard_table(cell);
        let key = guard::key(&table, tenant, 0);
        let delete = self.dynamodb().await.delete_item().table_name(&table.table_name);
        delete.set_key(Some(key)).send().await.unwrap();
    }

    /// From here on no answer has a lease.
    async fn without_leases(&mut self) {
        let lease_duration = Some(prost_types::Duration::default());
        let request = v1::UpdateClusterRequest {
            cluster: Some(v1::Cluster { lease_duration, ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["lease_duration".to_owned()] }),
            ..Default::default()
        };
        self.world.admin.update_cluster(request).await.unwrap();
    }
}

fn put(tenant: &str, sort: &str, value: &str) -> v1::PutRequest {
    v1::PutRequest {
        partition_key: tenant.to_owned(),
        table: "CustomerData".to_owned(),
        item: Some(item(tenant, sort, value)),
        condition: None,
    }
}

/// Adds one to `N`.
fn add(tenant: &str, sort: &str) -> v1::DataWrite {
    v1::DataWrite {
        table: "CustomerData".to_owned(),
        write: Some(v1::data_write::Write::UpdateKey(message(item_key(tenant, sort)))),
        update: "ADD N :one".to_owned(),
        condition: Some(v1::Expression {
            values: Some(message(json!({ ":one": { "N": "1" } }))),
            ..Default::default()
        }),
    }
}

fn transact(tenant: &str, writes: Vec<v1::DataWrite>, id: &str) -> v1::TransactRequest {
    let (partition_key, request_id) = (tenant.to_owned(), id.to_owned());
    v1::TransactRequest { partition_key, writes, request_id }
}

async fn a_write_without_a_lease_needs_an_open_guard(mut data: Data) {
    data.pin("t", "cell-a").await;
    let written = data.data.put(put("t", "a", "1")).await.unwrap().into_inner();
    assert!(!written.guarded, "under a lease it is plain");
    data.without_leases().await;
    data.without_guard("t", "cell-a").await;
    let status = data.data.put(put("t", "a", "2")).await.unwrap_err();
    assert_eq!((status.code(), fault(&status).1.as_str()), (Code::Unavailable, "GUARD_MISSING"));
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(data.all("t").await["a"], "1", "reads go on, and nothing was written");

    data.set_guard("t", &stored("cell-a", GuardState::Open, 1, false)).await;
    let written = data.data.put(put("t", "a", "3")).await.unwrap().into_inner();
    assert_eq!((written.guarded, written.old_item, &*written.cell_id), (true, None, "cell-a"));
    let never =
        v1::Expression { expression: "attribute_not_exists(PK)".to_owned(), ..Default::default() };
    let failing = v1::DataWrite {
        table: "CustomerData".to_owned(),
        write: Some(v1::data_write::Write::Put(item("t", "a", "4"))),
        condition: Some(never),
        ..Default::default()
    };
    let both = vec![add("t", "n"), failing];
    let status = data.data.transact(transact("t", both, "")).await.unwrap_err();
    assert_eq!(fault(&status).1, "CONDITION_FAILED");
    let info = status.get_details_error_info().unwrap();
    assert_eq!(info.metadata["write"], "1", "counted without the guard");

    data.set_guard("t", &stored("cell-a", GuardState::Fenced, 1, true)).await;
    let mut request = Request::new(put("t", "a", "5"));
    request.set_timeout(Duration::from_secs(2));
    let status = data.data.put(request).await.unwrap_err();
    assert_eq!((status.code(), fault(&status).1.as_str()), (Code::Unavailable, "TENANT_MOVING"));
    assert!(status.get_details_retry_info().is_some());
    assert_eq!(data.all("t").await, [("a".to_owned(), "3".to_owned())].into());
}

async fn a_write_follows_its_tenant(mut data: Data) {
    data.pin("t", "cell-a").await;
    data.without_leases().await;
    data.set_guard("t", &stored("cell-b", GuardState::Open, 2, true)).await;
    data.set_guard("t", &stored("cell-a", GuardState::Moved, 2, true)).await;
    for value in ["1", "2"] {
        let written = data.data.put(put("t", "a", value)).await.unwrap().into_inner();
        assert_eq!((written.guarded, &*written.cell_id), (true, "cell-b"));
    }
    let dynamodb = data.dynamodb().await;
    let read = |key| {
        let table = data.guard_table("cell-b");
        let query = dynamodb.query().table_name(&table.table_name);
        let query =
            query.key_condition_expression("PK = :p").expression_attribute_values(":p", key);
        async move { query.send().await.unwrap().items.unwrap_or_default() }
    };
    let text = |text: &str| aws_sdk_dynamodb::types::AttributeValue::S(text.to_owned());
    let items = read(text("CUSTOMER#t")).await;
    assert_eq!((items.len(), &items[0]["CellId"]), (1, &text("cell-b")));
    assert_eq!(items[0]["Value"], text("2"));
    let table = data.guard_table("cell-b");
    for record in read(text(&log::partition(MOVE, 0))).await {
        let record = log::read(&table, &record).unwrap();
        assert_eq!(record.touched[0].table, "CustomerData");
        assert_eq!(record.touched[0].key["SK"], text("a"));
    }
    assert_eq!(read(text(&log::partition(MOVE, 0))).await.len(), 2, "one a write");
    assert!(data.all("t").await.is_empty(), "nothing is in the cell that it left");
}

async fn a_call_with_a_request_id_has_one_effect(mut data: Data) {
    data.pin("t", "cell-a").await;
    data.set_guard("t", &stored("cell-a", GuardState::Open, 1, false)).await;
    for _ in 0..2 {
        data.data.transact(transact("t", vec![add("t", "n")], "direct")).await.unwrap();
    }
    data.without_leases().await;
    for _ in 0..2 {
        data.data.transact(transact("t", vec![add("t", "n")], "guarded")).await.unwrap();
    }
    // What was done under the lease is not done again in another form.
    let again = data.data.transact(transact("t", vec![add("t", "n")], "direct")).await.unwrap_err();
    assert_eq!(fault(&again).1, "REQUEST_ID_REUSED");
    assert_eq!(fault(&again).2, ["request_id"]);
    let key = Some([("PK", "CUSTOMER#t"), ("SK", "n")].map(|(name, value)| {
        (name.to_owned(), aws_sdk_dynamodb::types::AttributeValue::S(value.to_owned()))
    }));
    let table = data.guard_table("cell-a").table_name;
    let read = data.dynamodb().await.get_item().table_name(table).consistent_read(true);
    let found = read.set_key(key.map(Into::into)).send().await.unwrap().item.unwrap();
    assert_eq!(found["N"].as_n().unwrap(), "2");
}
