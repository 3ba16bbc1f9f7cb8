//! A tenant's items: written, read, found in former cells, and never anybody else's. On both engines.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_data_client::CellDataClient;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use prost_types::Struct;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::dynamodb_local::DynamoDbLocal;
use crate::embedded::Embedded;
use crate::world::{Engine, World, fault, table};

/// Each case on each engine.
macro_rules! on_both_engines {
    ($($case:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let engine = super::Engine::Embedded(super::Arc::new(super::Embedded::temporary()));
                super::$case(super::Data::new(engine).await).await;
            })+
        }
        mod dynamodb_local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let engine = super::Engine::DynamoDbLocal(super::DynamoDbLocal::shared());
                super::$case(super::Data::new(engine).await).await;
            })+
        }
    };
}

on_both_engines!(
    items_are_written_and_read_as_they_are,
    a_condition_that_does_not_hold_changes_nothing,
    no_tenant_sees_anothers_items,
    former_cells_are_asked_and_the_newest_wins,
    a_former_cell_that_is_gone_is_said,
    pages_make_the_whole,
    an_export_has_everything_and_can_be_resumed,
    an_export_says_what_it_lacks,
    what_is_wrong_is_named_and_writes_nothing,
    nothing_is_written_without_a_lease,
);

struct Data {
    world: World,
    data: CellDataClient<Channel>,
    directory: CellDirectoryClient<Channel>,
}

/// JSON as the calls take it.
pub fn message(json: serde_json::Value) -> Struct {
    fn value(json: serde_json::Value) -> prost_types::Value {
        use prost_types::value::Kind;
        let kind = match json {
            serde_json::Value::String(text) => Kind::StringValue(text),
            serde_json::Value::Bool(value) => Kind::BoolValue(value),
            serde_json::Value::Array(all) => Kind::ListValue(prost_types::ListValue {
                values: all.into_iter().map(value).collect(),
            }),
            serde_json::Value::Object(_) => Kind::StructValue(message(json)),
            other => panic!("{other}"),
        };
        prost_types::Value { kind: Some(kind) }
    }
    let serde_json::Value::Object(fields) = json else { panic!("{json}") };
    Struct { fields: fields.into_iter().map(|(name, json)| (name, value(json))).collect() }
}

/// Text of an attribute.
fn text(item: &v1::CellItem, name: &str) -> String {
    use prost_types::value::Kind;
    let value = &item.item.as_ref().unwrap().fields[name];
    let Some(Kind::StructValue(typed)) = &value.kind else { panic!("{value:?}") };
    match typed.fields.values().next().unwrap().kind.clone() {
        Some(Kind::StringValue(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn export_text(item: &v1::ExportedItem, name: &str) -> String {
    let item = v1::CellItem { item: item.item.clone(), ..Default::default() };
    text(&item, name)
}

fn item_key(tenant: &str, sort: &str) -> serde_json::Value {
    json!({ "PK": { "S": format!("CUSTOMER#{tenant}") }, "SK": { "S": sort } })
}

fn item(tenant: &str, sort: &str, value: &str) -> Struct {
    let mut item = item_key(tenant, sort);
    item["Value"] = json!({ "S": value });
    item["EntityType"] = json!({ "S": if sort.starts_with("ORDER") { "Order" } else { "Note" } });
    message(item)
}

impl Data {
    async fn new(engine: Engine) -> Self {
        let mut world = World::new(engine, &["cell-a", "cell-b", "cell-c"]).await;
        let carts = v1::TableSpec { sort_key: None, indexes: vec![], ..table("Carts") };
        let mut journeys = table("Journeys");
        journeys.tenant_key_templates.push("TRAVELLER#{partition_key}".to_owned());
        world.put_set(vec![table("CustomerData"), carts, journeys]).await;
        for cell in ["cell-a", "cell-b", "cell-c"] {
            let operation = world.provision(cell).await;
            assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?}");
        }
        let channel = world.server.channel().await;
        let data = CellDataClient::new(channel.clone());
        Self { world, data, directory: CellDirectoryClient::new(channel) }
    }

    async fn pin(&mut self, tenant: &str, cell: &str) {
        let request = v1::PinPlacementRequest {
            partition_key: tenant.to_owned(),
            cell_id: cell.to_owned(),
            ..Default::default()
        };
        self.directory.pin_placement(request).await.unwrap();
    }

    /// Takes a tenant away and places it elsewhere: its items stay where they are, and its history says so.
    async fn send(&mut self, tenant: &str, cell: &str) {
        let partition_key = tenant.to_owned();
        let request = v1::DeletePlacementRequest { partition_key, ..Default::default() };
        self.directory.delete_placement(request).await.unwrap();
        self.pin(tenant, cell).await;
    }

    async fn put(&mut self, tenant: &str, item: Struct) -> Result<v1::PutResponse, Status> {
        let request = v1::PutRequest {
            partition_key: tenant.to_owned(),
            table: "CustomerData".to_owned(),
            item: Some(item),
            condition: None,
        };
        Ok(self.data.put(request).await?.into_inner())
    }

    fn question(tenant: &str) -> v1::QueryRequest {
        v1::QueryRequest {
            partition_key: tenant.to_owned(),
            table: "CustomerData".to_owned(),
            consistent: true,
            page_size: 1000,
            ..Default::default()
        }
    }

    async fn query(&mut self, request: v1::QueryRequest) -> Result<v1::QueryResponse, Status> {
        let mut parts = self.data.query(request).await?.into_inner();
        let mut whole = v1::QueryResponse::default();
        while let Some(part) = parts.message().await? {
            whole.items.extend(part.items);
            whole.failures.extend(part.failures);
            whole.next_page_token = part.next_page_token;
        }
        Ok(whole)
    }

    /// An export in its parts, from where a token says.
    async fn export(
        &mut self,
        tenant: &str,
        all: bool,
        token: &str,
    ) -> Vec<v1::ExportTenantResponse> {
        let scope = if all { v1::QueryScope::AllCells } else { v1::QueryScope::CurrentCell };
        let request = v1::ExportTenantRequest {
            partition_key: tenant.to_owned(),
            scope: scope.into(),
            consistent: true,
            resume_token: token.to_owned(),
        };
        let mut stream = self.data.export_tenant(request).await.unwrap().into_inner();
        let mut parts = Vec::new();
        while let Some(part) = stream.message().await.unwrap() {
            parts.push(part);
        }
        parts
    }

    /// Writes an item without checks on whose it is: past the server.
    async fn put_raw(&mut self, table: &str, key: &str, sort: Option<&str>, value: &str) {
        use aws_sdk_dynamodb::types::AttributeValue;
        let dynamodb = aws_sdk_dynamodb::Client::new(&self.world.sdk().await);
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let put = dynamodb.put_item().table_name(self.world.table(table, "cell-a"));
        let put = put.item("PK", text(key)).item("Value", text(value));
        let put = match sort {
            Some(sort) => put.item("SK", text(sort)),
            None => put,
        };
        put.send().await.unwrap();
    }

    /// Sort keys and values of a tenant's items.
    async fn all(&mut self, tenant: &str) -> BTreeMap<String, String> {
        let found = self.query(Self::question(tenant)).await.unwrap();
        found.items.iter().map(|item| (text(item, "SK"), text(item, "Value"))).collect()
    }
}

async fn items_are_written_and_read_as_they_are(mut data: Data) {
    data.pin("t", "cell-a").await;
    let mut whole = item_key("t", "x");
    whole["Number"] = json!({ "N": "12345678901234567890123456789012345678" });
    whole["Bytes"] = json!({ "B": "AAEC/w==" });
    whole["Set"] = json!({ "SS": ["a", "b"] });
    whole["Nested"] =
        json!({ "M": { "L": { "L": [{ "BOOL": true }, { "NULL": true }, { "S": "" }] } } });
    whole["CellId"] = json!({ "S": "somewhere-else" });
    let put = data.put("t", message(whole.clone())).await.unwrap();
    assert_eq!((put.old_item, put.cell_id.as_str()), (None, "cell-a"));
    whole["CellId"] = json!({ "S": "cell-a" });
    let found = data.query(Data::question("t")).await.unwrap();
    assert_eq!(found.items.len(), 1);
    assert_eq!(found.items[0].item, Some(message(whole.clone())));
    assert_eq!((found.items[0].cell_id.as_str(), found.items[0].previous), ("cell-a", false));

    let update = v1::UpdateRequest {
        partition_key: "t".to_owned(),
        table: "CustomerData".to_owned(),
        key: Some(message(item_key("t", "x"))),
        update: Some(v1::Expression {
            expression: "SET #n = :one REMOVE Nested".to_owned(),
            names: [("#n".to_owned(), "Number".to_owned())].into(),
            values: Some(message(json!({ ":one": { "N": "1" } }))),
        }),
        condition: "attribute_exists(PK)".to_owned(),
    };
    let updated = data.data.update(update).await.unwrap().into_inner();
    whole["Number"] = json!({ "N": "1" });
    whole.as_object_mut().unwrap().remove("Nested");
    assert_eq!(updated.item, Some(message(whole.clone())));

    let delete = v1::DeleteRequest {
        partition_key: "t".to_owned(),
        table: "CustomerData".to_owned(),
        key: Some(message(item_key("t", "x"))),
        condition: None,
    };
    let deleted = data.data.delete(delete.clone()).await.unwrap().into_inner();
    assert_eq!(deleted.old_item, Some(message(whole)));
    assert_eq!(data.data.delete(delete).await.unwrap().into_inner().old_item, None);
    assert_eq!(data.all("t").await, BTreeMap::new());
}

async fn a_condition_that_does_not_hold_changes_nothing(mut data: Data) {
    data.pin("t", "cell-b").await;
    data.put("t", item("t", "a", "1")).await.unwrap();
    let new = |sort: &str| v1::DataWrite {
        table: "CustomerData".to_owned(),
        write: Some(v1::data_write::Write::Put(item("t", sort, "2"))),
        condition: Some(v1::Expression {
            expression: "attribute_not_exists(PK)".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    let cart = message(json!({ "PK": { "S": "CUSTOMER#t" }, "Lines": { "N": "3" } }));
    let cart = v1::DataWrite {
        table: "Carts".to_owned(),
        write: Some(v1::data_write::Write::Put(cart)),
        ..Default::default()
    };
    let transact = |writes| v1::TransactRequest {
        partition_key: "t".to_owned(),
        writes,
        request_id: String::new(),
    };
    let refused = data.data.transact(transact(vec![cart.clone(), new("b"), new("a")])).await;
    let refused = refused.unwrap_err();
    assert_eq!(fault(&refused), (Code::FailedPrecondition, "CONDITION_FAILED".to_owned(), vec![]));
    assert!(refused.message().contains("write 2"), "{refused:?}");
    assert_eq!(data.all("t").await, [("a".to_owned(), "1".to_owned())].into());
    let carts = v1::QueryRequest { table: "Carts".to_owned(), ..Data::question("t") };
    assert_eq!(data.query(carts.clone()).await.unwrap().items.len(), 0);
    data.data.transact(transact(vec![cart, new("b"), new("c")])).await.unwrap();
    assert_eq!(data.all("t").await.len(), 3);
    assert_eq!(data.query(carts).await.unwrap().items.len(), 1);
}

/// Tenants whose names begin alike, look alike or are each other's partitions: queries, writes and deletes of one never touch another's.
async fn no_tenant_sees_anothers_items(mut data: Data) {
    // The last four look the same: Latin and Cyrillic a, and é in one or in two characters.
    let tenants = ["a", "a#1", "ab", "CUSTOMER#a", "a#", "#", "*", "а", "é", "e\u{301}"];
    for tenant in tenants {
        data.pin(tenant, "cell-a").await;
        for sort in ["1", "10", "ORDER#1", "a#1"] {
            data.put(tenant, item(tenant, sort, tenant)).await.unwrap();
        }
    }
    // Partitions of other templates, and tables without a sort key.
    for tenant in tenants {
        data.put_raw("Carts", &format!("CUSTOMER#{tenant}"), None, tenant).await;
        data.put_raw("Journeys", &format!("TRAVELLER#{tenant}"), Some("1"), tenant).await;
    }
    for tenant in tenants {
        for everywhere in [false, true] {
            let parts = data.export(tenant, everywhere, "").await;
            let items: Vec<_> = parts.iter().flat_map(|part| &part.items).collect();
            assert!(items.iter().all(|item| export_text(item, "Value") == tenant), "{tenant}");
            assert_eq!(items.len(), 6, "{tenant}");
        }
        let all = data.all(tenant).await;
        assert_eq!(all.len(), 4, "{tenant}");
        assert!(all.values().all(|owner| owner == tenant), "{tenant}: {all:?}");
        for other in tenants.iter().filter(|other| **other != tenant) {
            let status = data.put(tenant, item(other, "1", tenant)).await.unwrap_err();
            assert_eq!(fault(&status).1, "INVALID_ITEM", "{tenant} into {other}");
            let delete = v1::DeleteRequest {
                partition_key: tenant.to_owned(),
                table: "CustomerData".to_owned(),
                key: Some(message(item_key(other, "1"))),
                condition: None,
            };
            assert_eq!(fault(&data.data.delete(delete).await.unwrap_err()).1, "INVALID_ITEM");
        }
    }
    let prefix = v1::QueryRequest { sort_key_prefix: "1".to_owned(), ..Data::question("a") };
    let found = data.query(prefix).await.unwrap().items;
    assert_eq!(found.iter().map(|item| text(item, "SK")).collect::<Vec<_>>(), ["1", "10"]);
    let orders = v1::QueryRequest { entity_type: "Order".to_owned(), ..Data::question("a") };
    let found = data.query(orders).await.unwrap().items;
    assert_eq!(found.iter().map(|item| text(item, "SK")).collect::<Vec<_>>(), ["ORDER#1"]);
}

/// A tenant who has moved twice, with items left behind.
async fn moved(data: &mut Data) {
    data.pin("t", "cell-a").await;
    for sort in ["1", "2", "3", "gone"] {
        data.put("t", item("t", sort, "a")).await.unwrap();
    }
    data.send("t", "cell-b").await;
    for sort in ["2", "4"] {
        data.put("t", item("t", sort, "b")).await.unwrap();
    }
    data.send("t", "cell-c").await;
    let mut other = item_key("t", "3");
    other["Value"] = json!({ "S": "c" });
    other["EntityType"] = json!({ "S": "Other" });
    data.put("t", message(other)).await.unwrap();
    // Expired, and perhaps not deleted yet: not there, whatever an older cell says.
    let mut expired = item_key("t", "gone");
    expired["TTL"] = json!({ "N": "1" });
    data.put("t", message(expired)).await.unwrap();
}

fn everywhere() -> v1::QueryRequest {
    v1::QueryRequest { scope: v1::QueryScope::AllCells.into(), ..Data::question("t") }
}

fn told(found: &v1::QueryResponse) -> Vec<(String, String, bool)> {
    let one = |item: &v1::CellItem| (text(item, "SK"), item.cell_id.clone(), item.previous);
    found.items.iter().map(one).collect()
}

async fn former_cells_are_asked_and_the_newest_wins(mut data: Data) {
    moved(&mut data).await;
    let found = data.query(everywhere()).await.unwrap();
    let expected = [
        ("1", "cell-a", true),
        ("2", "cell-b", true),
        ("3", "cell-c", false),
        ("4", "cell-b", true),
    ];
    let expected =
        expected.map(|(sort, cell, previous)| (sort.to_owned(), cell.to_owned(), previous));
    assert_eq!(told(&found), expected);
    assert_eq!((found.failures.len(), found.next_page_token.as_str()), (0, ""));
    let here = data.query(Data::question("t")).await.unwrap();
    assert_eq!(told(&here), [("3".to_owned(), "cell-c".to_owned(), false)]);
    // An older copy that would fit does not show where the newest one does not.
    let notes = v1::QueryRequest { entity_type: "Note".to_owned(), ..everywhere() };
    let notes = data.query(notes).await.unwrap();
    let sorts: BTreeSet<_> = notes.items.iter().map(|item| text(item, "SK")).collect();
    assert_eq!(sorts, ["1", "2", "4"].map(str::to_owned).into());
}

/// Every table and every partition, each item once and labelled, wherever the export is taken up again.
async fn an_export_has_everything_and_can_be_resumed(mut data: Data) {
    data.pin("t", "cell-a").await;
    for number in 0..25 {
        data.put_raw("CustomerData", "CUSTOMER#t", Some(&format!("{number:02}")), "x").await;
    }
    data.put_raw("Carts", "CUSTOMER#t", None, "x").await;
    for (key, sort) in [("CUSTOMER#t", "1"), ("TRAVELLER#t", "1"), ("TRAVELLER#t", "2")] {
        data.put_raw("Journeys", key, Some(sort), "x").await;
    }
    let parts = data.export("t", false, "").await;
    let label = |item: &v1::ExportedItem| {
        assert_eq!((item.cell_id.as_str(), item.previous), ("cell-a", false));
        let sort = if item.table == "Carts" { String::new() } else { export_text(item, "SK") };
        (item.table.clone(), export_text(item, "PK"), sort)
    };
    let all: Vec<_> = parts.iter().flat_map(|part| part.items.iter().map(label)).collect();
    assert_eq!(all.len(), 29);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 29, "{all:?}");
    let counted = |summary: &v1::ExportSummary| {
        summary.tables.iter().map(|table| (table.table.clone(), table.items)).collect::<Vec<_>>()
    };
    let (last, before) = parts.split_last().unwrap();
    let summary = last.summary.as_ref().unwrap();
    let tables = [("Carts", 1), ("CustomerData", 25), ("Journeys", 3)];
    assert_eq!(counted(summary), tables.map(|(table, items)| (table.to_owned(), items)));
    assert_eq!((summary.items, summary.complete, summary.resumed), (29, true, false));
    assert!(last.resume_token.is_empty() && before.iter().all(|part| part.summary.is_none()));
    assert!(before.len() >= 4, "{} parts", parts.len());

    let mut had = 0;
    for part in before {
        had += part.items.len();
        let rest = data.export("t", false, &part.resume_token).await;
        let items: Vec<_> = rest.iter().flat_map(|part| part.items.iter().map(label)).collect();
        assert_eq!(items, all[had..]);
        let summary = rest.last().unwrap().summary.as_ref().unwrap();
        assert_eq!((summary.items as usize, summary.resumed), (29 - had, true));
    }
    let request = v1::ExportTenantRequest {
        partition_key: "other".to_owned(),
        resume_token: before[0].resume_token.clone(),
        ..Default::default()
    };
    let status = data.data.export_tenant(request).await.unwrap_err();
    assert_eq!(
        (fault(&status).1, fault(&status).2),
        ("INVALID_PAGE_TOKEN".to_owned(), vec!["resume_token".to_owned()])
    );
    let nobody =
        v1::ExportTenantRequest { partition_key: "nobody".to_owned(), ..Default::default() };
    let status = data.data.export_tenant(nobody).await.unwrap_err();
    assert_eq!(fault(&status).1, "PLACEMENT_NOT_FOUND");
}

/// Former cells are exported, too, and a table of one that cannot be read is named.
async fn an_export_says_what_it_lacks(mut data: Data) {
    moved(&mut data).await;
    let told = |parts: &[v1::ExportTenantResponse]| {
        let items = parts.iter().flat_map(|part| &part.items);
        items
            .map(|item| (export_text(item, "SK"), item.cell_id.clone(), item.previous))
            .collect::<Vec<_>>()
    };
    let parts = data.export("t", true, "").await;
    let expected = [
        ("1", "cell-a", true),
        ("2", "cell-b", true),
        ("3", "cell-c", false),
        ("4", "cell-b", true),
    ];
    assert_eq!(
        told(&parts),
        expected.map(|(sort, cell, previous)| (sort.to_owned(), cell.to_owned(), previous))
    );
    assert!(parts.last().unwrap().summary.as_ref().unwrap().complete);

    let dynamodb = aws_sdk_dynamodb::Client::new(&data.world.sdk().await);
    let gone = data.world.table("CustomerData", "cell-a");
    dynamodb.delete_table().table_name(gone).send().await.unwrap();
    let parts = data.export("t", true, "").await;
    assert_eq!(told(&parts).len(), 3);
    let failures: BTreeSet<_> = parts
        .iter()
        .flat_map(|part| &part.failures)
        .collect::<Vec<_>>()
        .into_iter()
        .map(|failure| (failure.table.as_str(), failure.cell_id.as_str(), failure.reason.as_str()))
        .collect();
    assert_eq!(failures, [("CustomerData", "cell-a", "TABLE_NOT_FOUND")].into());
    let summary = parts.last().unwrap().summary.clone().unwrap();
    assert_eq!((summary.items, summary.complete), (3, false));
    // It takes no former cell to be complete where none is asked.
    let parts = data.export("t", false, "").await;
    assert!(parts.last().unwrap().summary.as_ref().unwrap().complete);
}

async fn a_former_cell_that_is_gone_is_said(mut data: Data) {
    moved(&mut data).await;
    let dynamodb = aws_sdk_dynamodb::Client::new(&data.world.sdk().await);
    let gone = data.world.table("CustomerData", "cell-a");
    dynamodb.delete_table().table_name(gone).send().await.unwrap();
    let found = data.query(everywhere()).await.unwrap();
    let sorts: Vec<_> = found.items.iter().map(|item| text(item, "SK")).collect();
    assert_eq!(sorts, ["2", "3", "4"]);
    let failures: Vec<_> =
        found.failures.iter().map(|f| (f.cell_id.as_str(), f.reason.as_str())).collect();
    assert_eq!(failures, [("cell-a", "TABLE_NOT_FOUND")]);
    // The current cell's is the call's own.
    let gone = data.world.table("CustomerData", "cell-c");
    dynamodb.delete_table().table_name(gone).send().await.unwrap();
    let status = data.query(everywhere()).await.unwrap_err();
    assert_eq!((status.code(), fault(&status).1.as_str()), (Code::NotFound, "TABLE_NOT_FOUND"));
}

/// However small the pages, the same items in the same order, none twice.
async fn pages_make_the_whole(mut data: Data) {
    data.pin("t", "cell-a").await;
    let write = |partition: &str, number: usize| {
        let key = json!({ "PK": { "S": format!("{partition}#t") }, "SK": { "S": format!("{number:03}") } });
        v1::DataWrite {
            table: "Journeys".to_owned(),
            write: Some(v1::data_write::Write::Put(message(key))),
            ..Default::default()
        }
    };
    for partition in ["CUSTOMER", "TRAVELLER"] {
        for cell in ["cell-a", "cell-b"] {
            let numbers: Vec<_> =
                if cell == "cell-a" { (0..25).collect() } else { (20..40).collect() };
            let writes = numbers.into_iter().map(|number| write(partition, number)).collect();
            let request = v1::TransactRequest {
                partition_key: "t".to_owned(),
                writes,
                request_id: String::new(),
            };
            data.data.transact(request).await.unwrap();
            data.send("t", if cell == "cell-a" { "cell-b" } else { "cell-a" }).await;
        }
    }
    let question = || v1::QueryRequest { table: "Journeys".to_owned(), ..everywhere() };
    let whole = told(&data.query(question()).await.unwrap());
    assert_eq!(whole.len(), 80);
    for page_size in [1, 7, 10, 33, 79, 80] {
        let (mut pages, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = v1::QueryRequest { page_size, page_token, ..question() };
            let page = data.query(request).await.unwrap();
            assert!(page.items.len() <= page_size as usize);
            pages.extend(told(&page));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(pages, whole, "by {page_size}");
    }
    let first = data.query(v1::QueryRequest { page_size: 1, ..question() }).await.unwrap();
    let other = v1::QueryRequest { page_token: first.next_page_token, ..everywhere() };
    assert_eq!(fault(&data.query(other).await.unwrap_err()).1, "INVALID_PAGE_TOKEN");
}

async fn what_is_wrong_is_named_and_writes_nothing(mut data: Data) {
    data.pin("t", "cell-a").await;
    data.put("t", item("t", "a", "1")).await.unwrap();
    let named = |status: Status| {
        let (code, reason, fields) = fault(&status);
        assert!(status.message().len() < 300, "{status:?}");
        (code, reason, fields.first().cloned().unwrap_or_default())
    };
    let invalid =
        |field: &str| (Code::InvalidArgument, "INVALID_ITEM".to_owned(), field.to_owned());
    for (bad, field) in [
        (json!({ "PK": { "S": "CUSTOMER#u" }, "SK": { "S": "x" } }), "item.PK"),
        (json!({ "PK": { "N": "1" }, "SK": { "S": "x" } }), "item.PK"),
        (json!({ "PK": { "S": "CUSTOMER#t" } }), "item.SK"),
        (json!({ "PK": { "S": "CUSTOMER#t" }, "SK": { "S": "x" }, "V": "plain" }), "item.V"),
        (json!({ "PK": { "S": "CUSTOMER#t" }, "SK": { "S": "x" }, "V": { "B": "?" } }), "item.V"),
    ] {
        assert_eq!(named(data.put("t", message(bad)).await.unwrap_err()), invalid(field));
    }
    let update = |key, expression: &str| v1::UpdateRequest {
        partition_key: "t".to_owned(),
        table: "CustomerData".to_owned(),
        key: Some(message(key)),
        update: Some(v1::Expression { expression: expression.to_owned(), ..Default::default() }),
        condition: String::new(),
    };
    let mut more = item_key("t", "a");
    more["Value"] = json!({ "S": "x" });
    let status = data.data.update(update(more, "REMOVE V")).await.unwrap_err();
    assert_eq!(named(status), invalid("key"));
    let status = data.data.update(update(item_key("t", "a"), "REMOVE CellId")).await.unwrap_err();
    assert_eq!(named(status), invalid("update"));
    let status = data.data.update(update(item_key("t", "a"), "SET nonsense")).await.unwrap_err();
    assert_eq!(named(status), invalid("write"));
    let nowhere = v1::QueryRequest { table: "Nothing".to_owned(), ..Data::question("t") };
    assert_eq!(named(data.query(nowhere).await.unwrap_err()).1, "TABLE_NOT_FOUND");
    let nobody = data.query(Data::question("nobody")).await.unwrap_err();
    assert_eq!(named(nobody).1, "PLACEMENT_NOT_FOUND");
    let prefix = v1::QueryRequest {
        table: "Carts".to_owned(),
        sort_key_prefix: "x".to_owned(),
        ..Data::question("t")
    };
    assert_eq!(named(data.query(prefix).await.unwrap_err()), invalid("sort_key_prefix"));
    assert_eq!(data.all("t").await, [("a".to_owned(), "1".to_owned())].into());
}

async fn nothing_is_written_without_a_lease(mut data: Data) {
    data.pin("t", "cell-a").await;
    data.put("t", item("t", "a", "1")).await.unwrap();
    let request = v1::UpdateClusterRequest {
        cluster: Some(v1::Cluster {
            lease_duration: Some(prost_types::Duration::default()),
            ..Default::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["lease_duration".to_owned()] }),
        ..Default::default()
    };
    data.world.admin.update_cluster(request).await.unwrap();
    let status = data.put("t", item("t", "a", "2")).await.unwrap_err();
    assert_eq!((status.code(), fault(&status).1.as_str()), (Code::Unavailable, "NO_LEASE"));
    assert_eq!(data.all("t").await, [("a".to_owned(), "1".to_owned())].into(), "reads go on");
}
