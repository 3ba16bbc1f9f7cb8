//! Table sets, what cells have of them, and operations.

use async_trait::async_trait;
use aws_sdk_dynamodb::types::Update;

use super::DynamoDbStore;
use super::attributes::{Item, Reader, json, number, seconds_rounded_up, text};
use super::records::key;
use super::schema::control::{BEAT, OPERATION, RECORD, SK, SPEC, TABLE_SET, VERSION, WORKER_EPOCH};
use super::schema::{CELL_TABLES_PK, ControlKey, OPERATIONS_PK, TABLE_SETS_PK, TTL, drills_pk};
use super::transact::{put, update};
use crate::cells::{
    CellRecords, CellTablesRecord, Operation, OperationId, OperationState, Started, TableSet,
    TableSetId,
};
use crate::domain::CellId;
use crate::store::StoreError;

/// How long an operation that has ended is kept, and with it its request id.
const KEPT: std::time::Duration = std::time::Duration::from_secs(90 * 24 * 3600);

/// How long a drill is kept after it changed last: for whoever asks once a year when the last one was.
const DRILLS_KEPT: std::time::Duration = std::time::Duration::from_secs(400 * 24 * 3600);

#[async_trait]
impl CellRecords for DynamoDbStore {
    async fn table_set(&self, id: &TableSetId) -> Result<Option<TableSet>, StoreError> {
        let newest = self.control_item(&ControlKey::NewestTableSet(id.clone())).await?;
        let Some(newest) = newest else { return Ok(None) };
        let version = Reader { table: self.names.control(), item: &newest }.number(VERSION)?;
        self.table_set_at(id, version).await
    }

    async fn table_set_at(
        &self,
        id: &TableSetId,
        version: u64,
    ) -> Result<Option<TableSet>, StoreError> {
        let item = self.control_item(&ControlKey::TableSet(id.clone(), version)).await?;
        let table = self.names.control();
        item.map(|item| Reader { table, item: &item }.json(SPEC)).transpose()
    }

    async fn table_sets(&self) -> Result<Vec<TableSet>, StoreError> {
        let mut sets = Vec::new();
        for item in self.control_partition(TABLE_SETS_PK).await? {
            let reader = Reader { table: self.names.control(), item: &item };
            let key = reader.parsed(SK, |sk| ControlKey::parse(TABLE_SETS_PK, sk))?;
            if let ControlKey::NewestTableSet(id) = key {
                sets.extend(self.table_set_at(&id, reader.number(VERSION)?).await?);
            }
        }
        Ok(sets)
    }

    async fn put_table_set(&self, set: &TableSet) -> Result<bool, StoreError> {
        let mut version = key(&ControlKey::TableSet(set.id.clone(), set.version));
        version.insert(SPEC.to_owned(), json(set)?);
        let mut newest = key(&ControlKey::NewestTableSet(set.id.clone()));
        newest.insert(VERSION.to_owned(), number(set.version));
        let newest = match set.version {
            1 => self.put_new(newest)?,
            later => put(self
                .put_control(newest)
                .condition_expression("#version = :before")
                .expression_attribute_names("#version", VERSION)
                .expression_attribute_values(":before", number(later - 1))
                .build())?,
        };
        let version = self.put_new(version)?;
        Ok(self.all_or_nothing(vec![newest, version]).await?.is_none())
    }

    async fn cell_tables(&self, cell: &CellId) -> Result<Option<CellTablesRecord>, StoreError> {
        let item = self.control_item(&ControlKey::CellTables(cell.clone())).await?;
        item.map(|item| read_cell_tables(self.names.control(), cell, &item)).transpose()
    }

    async fn all_cell_tables(&self) -> Result<Vec<CellTablesRecord>, StoreError> {
        let table = self.names.control();
        let items = self.control_partition(CELL_TABLES_PK).await?;
        let record = |item: &Item| {
            let parse = |sk: &str| ControlKey::parse(CELL_TABLES_PK, sk);
            match (Reader { table, item }).parsed(SK, parse)? {
                ControlKey::CellTables(cell) => read_cell_tables(table, &cell, item).map(Some),
                _ => Ok(None),
            }
        };
        items.iter().filter_map(|item| record(item).transpose()).collect()
    }

    async fn drills(&self, cell: &CellId) -> Result<Vec<Operation>, StoreError> {
        let items = self.control_partition(&drills_pk(cell)).await?;
        items.iter().map(|item| read_operation(self.names.control(), item)).collect()
    }

    async fn operation(&self, id: &OperationId) -> Result<Option<Operation>, StoreError> {
        let item = self.control_item(&ControlKey::Operation(id.clone())).await?;
        item.map(|item| read_operation(self.names.control(), &item)).transpose()
    }

    async fn operations(&self) -> Result<Vec<Operation>, StoreError> {
        let items = self.control_partition(OPERATIONS_PK).await?;
        items.iter().map(|item| read_operation(self.names.control(), item)).collect()
    }

    async fn start(&self, operation: &Operation) -> Result<Started, StoreError> {
        let cell = self
            .update_cell_tables(&operation.cell, "SET #operation = :operation")
            .condition_expression("attribute_not_exists(#operation)")
            .expression_attribute_values(":operation", text(operation.id.as_str()));
        let mut items = vec![self.put_new(operation_item(operation)?)?, update(cell.build())?];
        if operation.is_drill() {
            items.push(put(self.put_control(drill_item(operation)?).build())?);
        }
        let Some(failed) = self.all_or_nothing(items).await? else {
            return Ok(Started::Started);
        };
        if failed == 0
            && let Some(existing) = self.operation(&operation.id).await?
        {
            return Ok(Started::Exists(Box::new(existing)));
        }
        let busy = self.cell_tables(&operation.cell).await?.and_then(|record| record.operation);
        // Over in between: nothing was begun, and to try again is right.
        busy.map(Started::Busy).ok_or(StoreError::Throttled)
    }

    async fn save(&self, operation: &Operation, taking_over: bool) -> Result<bool, StoreError> {
        let epoch = operation.worker_epoch.saturating_sub(u64::from(taking_over));
        let mut record = self
            .put_control(operation_item(operation)?)
            .condition_expression("#epoch = :epoch")
            .expression_attribute_names("#epoch", WORKER_EPOCH)
            .expression_attribute_values(":epoch", number(epoch));
        if taking_over {
            record = record
                .condition_expression("#epoch = :epoch AND #beat = :beat")
                .expression_attribute_names("#beat", BEAT)
                .expression_attribute_values(":beat", number(operation.beat));
        }
        let mut items = vec![put(record.build())?];
        if operation.is_drill() {
            items.push(put(self.put_control(drill_item(operation)?).build())?);
        }
        if operation.ended() {
            let done = operation.state == OperationState::Succeeded;
            let leaves = operation.goal.leaves().filter(|_| done);
            let expression = match leaves {
                None => "REMOVE #operation",
                Some(Some(_)) => "SET #set = :set, #version = :version REMOVE #operation",
                Some(None) => "REMOVE #operation, #set, #version",
            };
            let mut cell = self
                .update_cell_tables(&operation.cell, expression)
                .condition_expression("#operation = :operation")
                .expression_attribute_values(":operation", text(operation.id.as_str()));
            if leaves.is_some() {
                cell = cell
                    .expression_attribute_names("#set", TABLE_SET)
                    .expression_attribute_names("#version", VERSION);
            }
            if let Some(Some((set, version))) = leaves {
                cell = cell
                    .expression_attribute_values(":set", text(set.as_str()))
                    .expression_attribute_values(":version", number(version));
            }
            items.push(update(cell.build())?);
        }
        Ok(self.all_or_nothing(items).await?.is_none())
    }
}

impl DynamoDbStore {
    fn update_cell_tables(
        &self,
        cell: &CellId,
        expression: &str,
    ) -> aws_sdk_dynamodb::types::builders::UpdateBuilder {
        Update::builder()
            .table_name(self.names.control())
            .set_key(Some(key(&ControlKey::CellTables(cell.clone()))))
            .update_expression(expression)
            .expression_attribute_names("#operation", OPERATION)
    }
}

fn operation_item(operation: &Operation) -> Result<Item, StoreError> {
    let mut item = key(&ControlKey::Operation(operation.id.clone()));
    item.insert(RECORD.to_owned(), json(operation)?);
    item.insert(WORKER_EPOCH.to_owned(), number(operation.worker_epoch));
    item.insert(BEAT.to_owned(), number(operation.beat));
    if operation.ended() {
        let forget = seconds_rounded_up(operation.updated.plus(KEPT));
        item.insert(TTL.to_owned(), number(forget));
    }
    Ok(item)
}

fn drill_item(operation: &Operation) -> Result<Item, StoreError> {
    let mut item = key(&ControlKey::Drill(operation.cell.clone(), operation.id.clone()));
    item.insert(RECORD.to_owned(), json(operation)?);
    let forget = seconds_rounded_up(operation.updated.plus(DRILLS_KEPT));
    item.insert(TTL.to_owned(), number(forget));
    Ok(item)
}

fn read_operation(table: &str, item: &Item) -> Result<Operation, StoreError> {
    Reader { table, item }.json(RECORD)
}

pub(super) fn read_cell_tables(
    table: &str,
    cell: &CellId,
    item: &Item,
) -> Result<CellTablesRecord, StoreError> {
    let reader = Reader { table, item };
    let set = reader.optional_parsed(TABLE_SET, |id| TableSetId::new(id).ok())?;
    let tables = match set {
        Some(set) => Some((set, reader.number(VERSION)?)),
        None => None,
    };
    let operation = reader.optional_parsed(OPERATION, |id| OperationId::new(id).ok())?;
    Ok(CellTablesRecord { cell: cell.clone(), tables, operation })
}
