//! A tenant's items: written, read, found in former cells, and never anybody else's. On both engines.

use std::collections::BTreeMap;

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_data_client::CellDataClient;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use prost_types::Struct;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::world::{Engine, World, fault, table};

/// Each case on each engine.
macro_rules! on_both_engines {
    ($($case:ident),+ $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let engine = crate::world::Engine::Embedded(std::sync::Arc::new(crate::embedded::Embedded::temporary()));
                super::$case(crate::data::Data::new(engine).await).await;
            })+
        }
        mod dynamodb_local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let engine = crate::world::Engine::DynamoDbLocal(crate::dynamodb_local::DynamoDbLocal::shared());
                super::$case(crate::data::Data::new(engine).await).await;
            })+
        }
    };
}
pub(crate) use on_both_engines;

on_both_engines!(
    items_are_written_and_read_as_they_are,
    a_condition_that_does_not_hold_changes_nothing,
    no_tenant_sees_anothers_items,
    what_is_wrong_is_named_and_writes_nothing,
);

pub struct Data {
    pub world: World,
    pub data: CellDataClient<Channel>,
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
pub fn text(item: &v1::CellItem, name: &str) -> String {
    use prost_types::value::Kind;
    let value = &item.item.as_ref().unwrap().fields[name];
    let Some(Kind::StructValue(typed)) = &value.kind else { panic!("{value:?}") };
    match typed.fields.values().next().unwrap().kind.clone() {
        Some(Kind::StringValue(text)) => text,
        other => panic!("{other:?}"),
    }
}

pub fn export_text(item: &v1::ExportedItem, name: &str) -> String {
    let item = v1::CellItem { item: item.item.clone(), ..Default::default() };
    text(&item, name)
}

pub fn item_key(tenant: &str, sort: &str) -> serde_json::Value {
    json!({ "PK": { "S": format!("CUSTOMER#{tenant}") }, "SK": { "S": sort } })
}

pub fn item(tenant: &str, sort: &str, value: &str) -> Struct {
    let mut item = item_key(tenant, sort);
    item["Value"] = json!({ "S": value });
    item["EntityType"] = json!({ "S": if sort.starts_with("ORDER") { "Order" } else { "Note" } });
    message(item)
}

impl Data {
    pub async fn new(engine: Engine) -> Self {
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

    pub async fn pin(&mut self, tenant: &str, cell: &str) {
        let request = v1::PinPlacementRequest {
            partition_key: tenant.to_owned(),
            cell_id: cell.to_owned(),
            ..Default::default()
        };
        self.directory.pin_placement(request).await.unwrap();
    }

    /// Takes a tenant away and places it elsewhere: its items stay where they are, and its history says so.
    pub async fn send(&mut self, tenant: &str, cell: &str) {
        let partition_key = tenant.to_owned();
        let request = v1::DeletePlacementRequest { partition_key, ..Default::default() };
        self.directory.delete_placement(request).await.unwrap();
        self.pin(tenant, cell).await;
    }

    pub async fn put(&mut self, tenant: &str, item: Struct) -> Result<v1::PutResponse, Status> {
        let request = v1::PutRequest {
            partition_key: tenant.to_owned(),
            table: "CustomerData".to_owned(),
            item: Some(item),
            condition: None,
        };
        Ok(self.data.put(request).await?.into_inner())
    }

    pub fn question(tenant: &str) -> v1::QueryRequest {
        v1::QueryRequest {
            partition_key: tenant.to_owned(),
            table: "CustomerData".to_owned(),
            consistent: true,
            page_size: 1000,
            ..Default::default()
        }
    }

    pub async fn query(&mut self, request: v1::QueryRequest) -> Result<v1::QueryResponse, Status> {
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
    pub async fn export(
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
    pub async fn put_raw(&self, table: &str, key: &str, sort: Option<&str>, value: &str) {
        self.put_raw_in("cell-a", table, key, sort, value).await;
    }

    pub async fn put_raw_in(
        &self,
        cell: &str,
        table: &str,
        key: &str,
        sort: Option<&str>,
        value: &str,
    ) {
        use aws_sdk_dynamodb::types::AttributeValue;
        let dynamodb = aws_sdk_dynamodb::Client::new(&self.world.sdk().await);
        let text = |text: &str| AttributeValue::S(text.to_owned());
        let put = dynamodb.put_item().table_name(self.world.table(table, cell));
        let put = put.item("PK", text(key)).item("Value", text(value));
        let put = match sort {
            Some(sort) => put.item("SK", text(sort)),
            None => put,
        };
        put.send().await.unwrap();
    }

    /// Sort keys and values of a tenant's items.
    pub async fn all(&mut self, tenant: &str) -> BTreeMap<String, String> {
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
