//! Making, describing and removing the control tables.
//!
//! Every step may be repeated: what is there already is checked, not made again. A `CellMappings` that somebody else made is adopted
//! as it is, if its key is right: it gains the index by cell and the TTL that it lacks, and keeps its billing, its tags and
//! everything else. Nothing is ever replaced.

use std::fmt;
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::Builder;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, CreateGlobalSecondaryIndexAction, GlobalSecondaryIndex,
    GlobalSecondaryIndexUpdate, IndexStatus, KeySchemaElement, KeyType, Projection, ProjectionType,
    ProvisionedThroughput, ScalarAttributeType, TableDescription, TableStatus, Tag,
    TimeToLiveSpecification, TimeToLiveStatus,
};

use super::call::Call;
use super::client::call_timeouts;
use super::error::{from_sdk, rejected};
use super::schema::{CELL_ID_INDEX, TTL, TableNames, control, mapping};
use super::{DynamoDbStore, StoreSettings, records};
use crate::domain::{JournalId, Sequence};
use crate::store::{Head, Journal, StoreError};

/// Longest wait for the answer of one call. Calls that change tables take longer than reads.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);

/// How often a table is looked at until it is as it should be, and the time between.
const WAITS: usize = 480;
const WAIT: Duration = Duration::from_millis(250);

/// What a table is, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableReport {
    pub table: String,
    /// As DynamoDB names it, such as `ACTIVE`; `None`: the table does not exist.
    pub status: Option<String>,
    /// Such as `PartitionKey (S)`.
    pub key: Vec<String>,
    /// As DynamoDB counts them, every six hours or so.
    pub items: Option<u64>,
    /// Names and states of its indexes.
    pub indexes: Vec<(String, String)>,
    /// Whether the storage deletes by itself, and by which attribute.
    pub ttl: Option<String>,
    /// What was done or could not be done, in order; empty: everything was there.
    pub done: Vec<String>,
}

impl fmt::Display for TableReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(status) = &self.status else {
            write!(f, "{}: does not exist", self.table)?;
            return self.done.iter().try_for_each(|done| write!(f, "\n  {done}"));
        };
        write!(f, "{}: {status}, key {}", self.table, self.key.join(", "))?;
        if let Some(items) = self.items {
            write!(f, ", about {items} items")?;
        }
        for (name, status) in &self.indexes {
            write!(f, ", index {name} {status}")?;
        }
        if let Some(ttl) = &self.ttl {
            write!(f, ", TTL {ttl}")?;
        }
        self.done.iter().try_for_each(|done| write!(f, "\n  {done}"))
    }
}

/// What a table of ours must be like.
struct Spec<'a> {
    table: &'a str,
    /// Hash key first; all are strings.
    key: &'static [&'static str],
    indexed: bool,
}

fn specs(names: &TableNames) -> [Spec<'_>; 2] {
    [
        Spec { table: names.mappings(), key: &[mapping::PARTITION_KEY], indexed: true },
        Spec { table: names.control(), key: &[control::PK, control::SK], indexed: false },
    ]
}

/// Makes what is missing of the control tables, and waits until they can be used.
///
/// # Errors
/// Those of the store; [`StoreError::Rejected`] where a table of that name exists and has another key.
pub async fn create(client: &Client, names: &TableNames) -> Result<Vec<TableReport>, StoreError> {
    let tables = Tables { client };
    let mut reports = Vec::new();
    for spec in specs(names) {
        let mut done = Vec::new();
        if tables.description(spec.table).await?.is_none() {
            tables.create(&spec).await?;
            done.push("created".to_owned());
        }
        let description = tables.wait_until_active(spec.table).await?;
        check(&spec, &description)?;
        if spec.indexed {
            tables.ensure_index(&spec, &description, &mut done).await?;
        }
        tables.ensure_ttl(spec.table, &mut done).await?;
        if spec.table == names.control() {
            tables.ensure_head(spec.table, &mut done).await?;
        }
        let mut report = tables.report(spec.table).await?;
        report.done = done;
        reports.push(report);
    }
    Ok(reports)
}

/// What the control tables are. One that does not exist is reported so.
pub async fn describe(client: &Client, names: &TableNames) -> Result<Vec<TableReport>, StoreError> {
    let tables = Tables { client };
    let mut reports = Vec::new();
    for spec in specs(names) {
        reports.push(tables.report(spec.table).await?);
    }
    Ok(reports)
}

/// Deletes the control tables and all that is in them, and waits until they are gone.
pub async fn delete(client: &Client, names: &TableNames) -> Result<Vec<TableReport>, StoreError> {
    let tables = Tables { client };
    let mut reports = Vec::new();
    for spec in specs(names) {
        let mut done = Vec::new();
        if tables.description(spec.table).await?.is_some() {
            tables.delete(spec.table).await?;
            done.push("deleted".to_owned());
        }
        let mut report = tables.report(spec.table).await?;
        report.done = done;
        reports.push(report);
    }
    Ok(reports)
}

/// Whether the directory can work on the control tables.
///
/// # Errors
/// Those of the store; [`StoreError::Rejected`] where something is missing, with what to do about it.
pub async fn verify(client: &Client, names: &TableNames) -> Result<(), StoreError> {
    let tables = Tables { client };
    for spec in specs(names) {
        let Some(description) = tables.description(spec.table).await? else {
            return Err(rejected(format!(
                "table {} does not exist: run `celld tables create`",
                spec.table
            )));
        };
        check(&spec, &description)?;
        if !usable(&description) {
            return Err(rejected(format!(
                "table {} is {}, not ACTIVE",
                spec.table,
                status(&description)
            )));
        }
    }
    let store = DynamoDbStore::new(client.clone(), names.clone(), StoreSettings::default());
    store.head().await.map(|_| ())
}

/// Holds a table's key, and that of its index by cell, against what they must be.
fn check(spec: &Spec<'_>, description: &TableDescription) -> Result<(), StoreError> {
    let types = description.attribute_definitions();
    let is_string = |name: &str| {
        let mut definitions = types.iter();
        definitions
            .any(|d| d.attribute_name() == name && *d.attribute_type() == ScalarAttributeType::S)
    };
    let key: Vec<&str> = names(description.key_schema());
    if key != spec.key || !key.iter().copied().all(is_string) {
        return Err(rejected(format!(
            "table {} has the key {}, not {}: choose another table prefix",
            spec.table,
            keys(description).join(", "),
            spec.key.join(" (S), ") + " (S)",
        )));
    }
    let mut indexes = description.global_secondary_indexes().iter();
    let by_cell = indexes.find(|index| index.index_name() == Some(CELL_ID_INDEX));
    match by_cell.map(|index| names(index.key_schema())) {
        Some(key) if spec.indexed && key.first() != Some(&mapping::CELL_ID) => {
            Err(rejected(format!(
                "index {CELL_ID_INDEX} of table {} is by {}, not by {}: drop it, and `celld tables create` adds the right one",
                spec.table,
                key.join(", "),
                mapping::CELL_ID,
            )))
        }
        _ => Ok(()),
    }
}

/// The attributes of a key, hash key first.
fn names(key: &[KeySchemaElement]) -> Vec<&str> {
    let mut key: Vec<_> = key.iter().collect();
    key.sort_by_key(|element| *element.key_type() != KeyType::Hash);
    key.into_iter().map(KeySchemaElement::attribute_name).collect()
}

fn keys(description: &TableDescription) -> Vec<String> {
    let types = description.attribute_definitions();
    let with_type = |name: &str| {
        let definition = types.iter().find(|d| d.attribute_name() == name);
        let kind = definition.map_or("?", |d| d.attribute_type().as_str());
        format!("{name} ({kind})")
    };
    let names = names(description.key_schema());
    names.into_iter().map(with_type).collect()
}

fn status(description: &TableDescription) -> &str {
    description.table_status().map_or("?", TableStatus::as_str)
}

fn usable(description: &TableDescription) -> bool {
    matches!(description.table_status(), Some(TableStatus::Active | TableStatus::Updating))
}

fn incomplete(error: impl fmt::Display) -> StoreError {
    rejected(format!("a request is incomplete: {error}"))
}

fn key_element(name: &str, kind: KeyType) -> Result<KeySchemaElement, StoreError> {
    let element = KeySchemaElement::builder().attribute_name(name).key_type(kind);
    element.build().map_err(incomplete)
}

fn string_attribute(name: &str) -> Result<AttributeDefinition, StoreError> {
    let definition =
        AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S);
    definition.build().map_err(incomplete)
}

fn keys_only() -> Projection {
    Projection::builder().projection_type(ProjectionType::KeysOnly).build()
}

struct Tables<'a> {
    client: &'a Client,
}

impl Tables<'_> {
    fn config(&self) -> Builder {
        let mut builder = Builder::new();
        builder.set_timeout_config(Some(call_timeouts(CALL_TIMEOUT)));
        builder
    }

    /// `None` where the table does not exist.
    async fn description(&self, table: &str) -> Result<Option<TableDescription>, StoreError> {
        let request = self.client.describe_table().table_name(table).customize();
        let request = request.config_override(self.config()).send();
        match Call::new("DescribeTable", &[table]).raw(request).await {
            Ok(output) => Ok(output.table),
            Err(error) => match error.as_service_error() {
                Some(service) if service.is_resource_not_found_exception() => Ok(None),
                _ => Err(from_sdk(&error)),
            },
        }
    }

    async fn create(&self, spec: &Spec<'_>) -> Result<(), StoreError> {
        let tag = Tag::builder().key("managed-by").value("cell-directory");
        let mut request = self
            .client
            .create_table()
            .table_name(spec.table)
            .billing_mode(BillingMode::PayPerRequest)
            .tags(tag.build().map_err(incomplete)?);
        for (at, name) in spec.key.iter().enumerate() {
            let kind = if at == 0 { KeyType::Hash } else { KeyType::Range };
            request = request
                .key_schema(key_element(name, kind)?)
                .attribute_definitions(string_attribute(name)?);
        }
        if spec.indexed {
            let index = GlobalSecondaryIndex::builder()
                .index_name(CELL_ID_INDEX)
                .key_schema(key_element(mapping::CELL_ID, KeyType::Hash)?)
                .projection(keys_only());
            request = request
                .attribute_definitions(string_attribute(mapping::CELL_ID)?)
                .global_secondary_indexes(index.build().map_err(incomplete)?);
        }
        let request = request.customize().config_override(self.config()).send();
        match Call::new("CreateTable", &[spec.table]).raw(request).await {
            Ok(_) => Ok(()),
            // Somebody else is making it at this moment: what matters is that it comes to be.
            Err(error) => match error.as_service_error() {
                Some(service) if service.is_resource_in_use_exception() => Ok(()),
                _ => Err(from_sdk(&error)),
            },
        }
    }

    async fn wait_until_active(&self, table: &str) -> Result<TableDescription, StoreError> {
        for _ in 0..WAITS {
            if let Some(description) = self.description(table).await?
                && usable(&description)
            {
                return Ok(description);
            }
            tokio::time::sleep(WAIT).await;
        }
        Err(rejected(format!(
            "table {table} did not become ACTIVE: look at it with `celld tables describe`, then repeat the command"
        )))
    }

    async fn ensure_index(
        &self,
        spec: &Spec<'_>,
        description: &TableDescription,
        done: &mut Vec<String>,
    ) -> Result<(), StoreError> {
        if index_status(description).is_none() {
            if let Err(error) = self.add_index(spec.table, description).await {
                if error.transient() {
                    return Err(error);
                }
                // The directory works without it, so the rest need not wait for it.
                done.push(format!(
                    "could not add {CELL_ID_INDEX}, so listings by cell read the whole table: {error}"
                ));
                return Ok(());
            }
            done.push(format!("added {CELL_ID_INDEX}"));
        }
        for _ in 0..WAITS {
            let description = self.wait_until_active(spec.table).await?;
            if index_status(&description) == Some(IndexStatus::Active) {
                return Ok(());
            }
            tokio::time::sleep(WAIT).await;
        }
        done.push(format!(
            "{CELL_ID_INDEX} is still being built; until it is, listings by cell read the whole table"
        ));
        Ok(())
    }

    async fn add_index(
        &self,
        table: &str,
        description: &TableDescription,
    ) -> Result<(), StoreError> {
        let mut index = CreateGlobalSecondaryIndexAction::builder()
            .index_name(CELL_ID_INDEX)
            .key_schema(key_element(mapping::CELL_ID, KeyType::Hash)?)
            .projection(keys_only());
        // An index of a table with provisioned capacity needs its own: as much as the table has.
        let provisioned = description.provisioned_throughput();
        if let Some(throughput) = provisioned.filter(|t| t.read_capacity_units().unwrap_or(0) > 0) {
            let capacity = ProvisionedThroughput::builder()
                .read_capacity_units(throughput.read_capacity_units().unwrap_or(1))
                .write_capacity_units(throughput.write_capacity_units().unwrap_or(1));
            index = index.provisioned_throughput(capacity.build().map_err(incomplete)?);
        }
        let index = GlobalSecondaryIndexUpdate::builder()
            .create(index.build().map_err(incomplete)?)
            .build();
        let request = self
            .client
            .update_table()
            .table_name(table)
            .attribute_definitions(string_attribute(mapping::PARTITION_KEY)?)
            .attribute_definitions(string_attribute(mapping::CELL_ID)?)
            .global_secondary_index_updates(index)
            .customize()
            .config_override(self.config());
        let tables = [table];
        let call = Call::new("UpdateTable", &tables);
        call.run(request.send()).await.map(|_| ())
    }

    /// The attribute by which the storage deletes from a table, and whether it does.
    async fn ttl(&self, table: &str) -> Result<Option<(String, TimeToLiveStatus)>, StoreError> {
        let request = self.client.describe_time_to_live().table_name(table);
        let request = request.customize().config_override(self.config());
        let tables = [table];
        let call = Call::new("DescribeTimeToLive", &tables);
        let output = call.run(request.send()).await?;
        let ttl = output.time_to_live_description.and_then(|ttl| {
            let status = ttl.time_to_live_status?;
            Some((ttl.attribute_name.unwrap_or_default(), status))
        });
        Ok(ttl.filter(|(_, status)| *status != TimeToLiveStatus::Disabled))
    }

    async fn ensure_ttl(&self, table: &str, done: &mut Vec<String>) -> Result<(), StoreError> {
        match self.ttl(table).await? {
            Some((attribute, _)) if attribute == TTL => return Ok(()),
            Some((attribute, status)) => {
                done.push(format!(
                    "left TTL as it is ({} by {attribute}): expired items stay until the directory removes them",
                    status.as_str()
                ));
                return Ok(());
            }
            None => {}
        }
        let specification = TimeToLiveSpecification::builder().enabled(true).attribute_name(TTL);
        let request = self
            .client
            .update_time_to_live()
            .table_name(table)
            .time_to_live_specification(specification.build().map_err(incomplete)?)
            .customize()
            .config_override(self.config());
        let tables = [table];
        let call = Call::new("UpdateTimeToLive", &tables);
        call.run(request.send()).await?;
        done.push(format!("enabled TTL by {TTL}"));
        Ok(())
    }

    /// Begins the journal, where that has not been done.
    async fn ensure_head(&self, table: &str, done: &mut Vec<String>) -> Result<(), StoreError> {
        let request = self
            .client
            .put_item()
            .table_name(table)
            .set_item(Some(records::head_item(Head {
                sequence: Sequence::START,
                journal: JournalId::new(rand::random()),
            })))
            .condition_expression(format!("attribute_not_exists({})", control::PK))
            .customize()
            .config_override(self.config());
        match Call::new("PutItem", &[table]).raw(request.send()).await {
            Ok(_) => done.push("began the journal".to_owned()),
            Err(error) => match error.as_service_error().and_then(|error| error.code()) {
                Some("ConditionalCheckFailedException") => {}
                _ => return Err(from_sdk(&error)),
            },
        }
        Ok(())
    }

    async fn delete(&self, table: &str) -> Result<(), StoreError> {
        let request = self.client.delete_table().table_name(table).customize();
        let request = request.config_override(self.config()).send();
        if let Err(error) = Call::new("DeleteTable", &[table]).raw(request).await {
            match error.as_service_error() {
                Some(service) if service.is_resource_not_found_exception() => return Ok(()),
                _ => return Err(from_sdk(&error)),
            }
        }
        for _ in 0..WAITS {
            if self.description(table).await?.is_none() {
                return Ok(());
            }
            tokio::time::sleep(WAIT).await;
        }
        Err(rejected(format!(
            "table {table} is still being deleted: look at it with `celld tables describe`"
        )))
    }

    async fn report(&self, table: &str) -> Result<TableReport, StoreError> {
        let mut report = TableReport {
            table: table.to_owned(),
            status: None,
            key: Vec::new(),
            items: None,
            indexes: Vec::new(),
            ttl: None,
            done: Vec::new(),
        };
        let Some(description) = self.description(table).await? else {
            return Ok(report);
        };
        report.status = Some(status(&description).to_owned());
        report.key = keys(&description);
        report.items = description.item_count.and_then(|count| u64::try_from(count).ok());
        for index in description.global_secondary_indexes() {
            let status = index.index_status().map_or("?", IndexStatus::as_str);
            let name = index.index_name().unwrap_or("?");
            report.indexes.push((name.to_owned(), status.to_owned()));
        }
        let ttl = self.ttl(table).await?;
        report.ttl = Some(match ttl {
            Some((attribute, status)) => format!("{} by {attribute}", status.as_str()),
            None => "DISABLED".to_owned(),
        });
        Ok(report)
    }
}

fn index_status(description: &TableDescription) -> Option<IndexStatus> {
    let mut indexes = description.global_secondary_indexes().iter();
    let index = indexes.find(|index| index.index_name() == Some(CELL_ID_INDEX))?;
    index.index_status().cloned()
}
