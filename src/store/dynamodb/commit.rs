//! A commit as one transaction, and what became of it.
//!
//! The first two items are the journal's: the head moves from the entry's predecessor, and the entry is put where none is. The
//! writes follow. The nonce is the transaction's token, so a commit that is repeated as it is, is done once. Nothing here is
//! tried twice: whoever asked decides.

use aws_sdk_dynamodb::types::builders::UpdateBuilder;
use aws_sdk_dynamodb::types::{
    AttributeValue, CancellationReason, ConditionCheck, Put, ReturnValuesOnConditionCheckFailure,
    TransactWriteItem, Update,
};
use cells_guard::sdk::{Cancelled, cancellation, condition_failed};

use super::attributes::{Item, number, text};
use super::call::Call;
use super::error::{from_sdk, rejected};
use super::schema::control::{COUNTED_AT, FORGET_AFTER, PK, PLACEMENTS, SEQUENCE};
use super::schema::mapping::{CELL_ID, EPOCH, MIGRATION, PARTITION_KEY};
use super::schema::{ControlKey, TableNames};
use super::transact::{check, delete, put, update};
use super::{DynamoDbStore, guards, mapping, records};
use crate::domain::{CellId, PartitionKey, Placement, Sequence, Timestamp};
use crate::mutants::{self, Mutant};
use crate::store::{Commit, CommitOutcome, Expected, Found, Refusal, StoreError, Write};

/// Items of the transaction before those of the writes: the head and the entry.
const JOURNAL_ITEMS: usize = 2;

/// A transaction, and of each of its items the write that it belongs to.
struct Transaction {
    items: Vec<TransactWriteItem>,
    owners: Vec<Option<usize>>,
}

impl DynamoDbStore {
    pub(super) async fn transact(&self, commit: &Commit) -> Result<CommitOutcome, StoreError> {
        if let Some(problem) = commit.malformed() {
            return Err(rejected(problem.into()));
        }
        let transaction = self.transaction(commit)?;
        let request = self
            .client
            .transact_write_items()
            .set_transact_items(Some(transaction.items))
            .client_request_token(commit.entry.nonce.to_string())
            .customize()
            .config_override(self.commit_config());
        let tables = [self.names.control(), self.names.mappings()];
        let call = Call::new("TransactWriteItems", &tables);
        match call.raw(request.send()).await {
            Ok(_) => Ok(CommitOutcome::Committed),
            Err(error) => match cancellation(&error) {
                Some(reasons) => interpret(commit, &transaction.owners, reasons, &self.names),
                None => Err(from_sdk(&error)),
            },
        }
    }

    fn transaction(&self, commit: &Commit) -> Result<Transaction, StoreError> {
        let mut transaction =
            Transaction { items: self.journal_items(commit)?, owners: vec![None; JOURNAL_ITEMS] };
        for (at, write) in commit.writes.iter().enumerate() {
            let items = self.write_items(write, commit.entry.sequence, commit.entry.written)?;
            transaction.owners.extend(items.iter().map(|_| Some(at)));
            transaction.items.extend(items);
        }
        Ok(transaction)
    }

    fn journal_items(&self, commit: &Commit) -> Result<Vec<TransactWriteItem>, StoreError> {
        let sequence = commit.entry.sequence;
        let before = Sequence::new(sequence.get().saturating_sub(1));
        let head = Update::builder()
            .table_name(self.names.control())
            .set_key(Some(records::key(&ControlKey::Head)))
            .update_expression("SET #sequence = :next")
            .condition_expression("#sequence = :before")
            .expression_attribute_names("#sequence", SEQUENCE)
            .expression_attribute_values(":next", number(sequence))
            .expression_attribute_values(":before", number(before));
        let entry = self.put_new(records::entry_item(&commit.entry)?)?;
        Ok(vec![update(head.build())?, entry])
    }

    pub(super) fn write_items(
        &self,
        write: &Write,
        sequence: Sequence,
        now: Timestamp,
    ) -> Result<Vec<TransactWriteItem>, StoreError> {
        let control = |item: Item| put(self.put_control(item).build());
        let item = match write {
            Write::Place { placement, expect } => match expect {
                Expected::Placed { .. } => self.replace(placement, expect)?,
                Expected::Absent | Expected::Vacated(_) => {
                    let item = mapping::placement_item(placement, self.settings.ttl_grace);
                    self.put_mapping(item, expect)?
                }
            },
            Write::Vacate { key, epoch, expect } => {
                self.put_mapping(mapping::vacated_item(key, *epoch, now), expect)?
            }
            Write::CheckPlacement { key, expect } => self.check_mapping(key, expect)?,
            Write::AddHistory(record) => control(records::history_item(record))?,
            Write::PutCell { cell, set_count } => {
                let settings = control(records::cell_item(cell)?)?;
                if !set_count {
                    return Ok(vec![settings]);
                }
                let count = records::count_item(&cell.id, cell.placements, cell.counted_at);
                return Ok(vec![settings, control(count)?]);
            }
            Write::RemoveCell(id) => {
                let keys = [ControlKey::Cell(id.clone()), ControlKey::Count(id.clone())];
                return keys.iter().map(|key| delete(self.delete_control(key).build())).collect();
            }
            Write::AddToCount { cell, delta } => self.add_to_count(cell, *delta, sequence)?,
            Write::PutCluster(cluster) => control(records::cluster_item(cluster))?,
            Write::PutRequest(record) => put(self
                .put_control(records::request_item(record)?)
                // Times of equal form compare as texts. The storage deletes late, so a record past its time counts as absent.
                .condition_expression(format!("attribute_not_exists({PK}) OR #until <= :now"))
                .expression_attribute_names("#until", FORGET_AFTER)
                .expression_attribute_values(":now", text(now.to_string()))
                .return_values_on_condition_check_failure(
                    ReturnValuesOnConditionCheckFailure::AllOld,
                )
                .build())?,
            Write::Guard(guard) => guards::transact_item(guard)?,
            Write::PutMigration { check, record, findings } => {
                self.put_migration(check, record, findings.as_ref(), now)?
            }
            Write::EndMigration { tenant, migration } => self.end_migration(tenant, *migration)?,
        };
        Ok(vec![item])
    }

    /// Puts what a key's item becomes. What somebody else had added to it goes.
    fn put_mapping(&self, item: Item, expect: &Expected) -> Result<TransactWriteItem, StoreError> {
        let condition = Condition::of(expect);
        let mut builder = Put::builder()
            .table_name(self.names.mappings())
            .set_item(Some(item))
            .condition_expression(condition.expression)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        for (name, value) in condition.values {
            builder = builder.expression_attribute_values(name, value);
        }
        put(builder.build())
    }

    fn check_mapping(
        &self,
        key: &PartitionKey,
        expect: &Expected,
    ) -> Result<TransactWriteItem, StoreError> {
        let condition = Condition::of(expect);
        let values = condition.values.into_iter().map(|(name, value)| (name.to_owned(), value));
        let is = ConditionCheck::builder()
            .table_name(self.names.mappings())
            .set_key(Some(mapping::key(key)))
            .condition_expression(condition.expression)
            .set_expression_attribute_values(
                Some(values.collect::<Item>()).filter(|v| !v.is_empty()),
            )
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        check(is.build())
    }

    /// Turns a placement into another. What somebody else had added to its item stays.
    fn replace(
        &self,
        placement: &Placement,
        expect: &Expected,
    ) -> Result<TransactWriteItem, StoreError> {
        let condition = Condition::of(expect);
        let change = mapping::placement_update(placement, self.settings.ttl_grace);
        let mut builder: UpdateBuilder = Update::builder()
            .table_name(self.names.mappings())
            .set_key(Some(mapping::key(&placement.key)))
            .update_expression(change.expression)
            .condition_expression(condition.expression)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        for (name, attribute) in change.names {
            builder = builder.expression_attribute_names(name, attribute);
        }
        for (name, value) in change.values {
            builder = builder.expression_attribute_values(name, value);
        }
        for (name, value) in condition.values {
            builder = builder.expression_attribute_values(name, value);
        }
        update(builder.build())
    }

    fn add_to_count(
        &self,
        cell: &CellId,
        delta: i64,
        sequence: Sequence,
    ) -> Result<TransactWriteItem, StoreError> {
        let builder = Update::builder()
            .table_name(self.names.control())
            .set_key(Some(records::key(&ControlKey::Count(cell.clone()))))
            .update_expression("SET #count = if_not_exists(#count, :zero) + :delta, #at = :at")
            .expression_attribute_names("#count", PLACEMENTS)
            .expression_attribute_names("#at", COUNTED_AT)
            .expression_attribute_values(":zero", number(0))
            .expression_attribute_values(":delta", number(delta))
            .expression_attribute_values(":at", number(sequence));
        update(builder.build())
    }
}

/// What a mapping's item must be like for a write to be done.
struct Condition {
    expression: String,
    values: Vec<(&'static str, AttributeValue)>,
}

impl Condition {
    fn of(expect: &Expected) -> Self {
        let epoch_is = |epoch| (":e", number(epoch));
        let cell_is = |cell: &CellId| (":c", text(cell.as_str()));
        let (expression, values) = match expect {
            Expected::Absent => (format!("attribute_not_exists({PARTITION_KEY})"), vec![]),
            Expected::Vacated(epoch) => (
                format!("attribute_not_exists({CELL_ID}) AND {EPOCH} = :e"),
                vec![epoch_is(*epoch)],
            ),
            Expected::Placed { cell, adopted: true, .. } => {
                (format!("{CELL_ID} = :c AND attribute_not_exists({EPOCH})"), vec![cell_is(cell)])
            }
            Expected::Placed { cell, epoch, migration: None, .. } => (
                format!("{CELL_ID} = :c AND {EPOCH} = :e AND attribute_not_exists({MIGRATION})"),
                vec![cell_is(cell), epoch_is(*epoch)],
            ),
            Expected::Placed { cell, epoch, migration: Some(migration), .. } => (
                format!("{CELL_ID} = :c AND {EPOCH} = :e AND {MIGRATION} = :g"),
                vec![cell_is(cell), epoch_is(*epoch), (":g", text(migration.to_string()))],
            ),
        };
        if mutants::is(Mutant::UnconditionalWrite) {
            // Holds for every item. A transaction's reasons are read as those of conditional writes.
            let anything = format!(
                "attribute_exists({PARTITION_KEY}) OR attribute_not_exists({PARTITION_KEY})"
            );
            return Self { expression: anything, values: Vec::new() };
        }
        Self { expression, values }
    }
}

/// What a cancelled transaction comes to. A moved head says that all of it was decided on an old state, so that takes
/// precedence; then come preconditions, then what a repeat may cure.
fn interpret(
    commit: &Commit,
    owners: &[Option<usize>],
    reasons: &[CancellationReason],
    names: &TableNames,
) -> Result<CommitOutcome, StoreError> {
    let journal = reasons.iter().take(JOURNAL_ITEMS);
    if journal.into_iter().any(condition_failed) {
        return Ok(CommitOutcome::HeadMoved);
    }
    let mut refusals = Vec::new();
    for (reason, owner) in reasons.iter().zip(owners) {
        if let Some(write) = owner
            && condition_failed(reason)
        {
            let found = found(&commit.writes[*write], reason.item(), names)?;
            refusals.push(Refusal { write: *write, found });
        }
    }
    if !refusals.is_empty() {
        return Ok(CommitOutcome::Refused(refusals));
    }
    match Cancelled::of(reasons) {
        Cancelled::Contended => Ok(CommitOutcome::Contended),
        Cancelled::Throttled => Err(StoreError::Throttled),
        Cancelled::Other(why) => Err(rejected(why)),
    }
}

/// What the item says that stood in a write's way.
fn found(write: &Write, item: Option<&Item>, names: &TableNames) -> Result<Found, StoreError> {
    let absent = Item::new();
    let item = item.unwrap_or(&absent);
    match write {
        Write::PutRequest(_) => records::read_request(names.control(), item).map(Found::Request),
        Write::Guard(_) | Write::PutMigration { .. } | Write::EndMigration { .. } => {
            Ok(Found::Superseded)
        }
        _ => mapping::read(names.mappings(), item).map(Found::Mapping),
    }
}
