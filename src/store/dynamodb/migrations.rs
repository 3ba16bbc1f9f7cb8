//! Migrations in `CellControl`: the record, the mark that a tenant moves, and the list in the order of their times.

use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, Delete, Put, TransactWriteItem, Update};
use cells_migration::{Cursor as Reached, Leg, Phase, Record, RecordCheck, Wish};

use super::DynamoDbStore;
use super::attributes::{Item, Reader, json, number, seconds_rounded_up, text};
use super::call::Call;
use super::commit::{incomplete, put, update};
use super::records::key;
use super::schema::control::{
    BEAT, BULK, CALLER, CREATED_AT, CURSOR, DIGEST, EPOCH, FINDINGS, LAST_UPDATED, LEG, MIGRATION,
    PARKED, PAUSED, PHASE, PK, PROGRESS, SK, SPEC, STREAM, TROUBLE, WISH, WORKER_EPOCH,
};
use super::schema::{ControlKey, LISTED_PK, MOVING_PK, TTL};
use crate::domain::{MigrationId, PartitionKey, Sequence, Timestamp};
use crate::migration::bulk::Part;
use crate::migration::{Begun, Findings, Migration, MigrationRecords, Order, Told};
use crate::store::{Cursor, Page, StoreError, Write};

/// How long a migration is kept after it began.
const KEPT: Duration = Duration::from_secs(400 * 24 * 3600);

/// The names of attributes that may be reserved words, for whatever expression wants them.
const NAMES: [(&str, &str); 14] = [
    ("#stream", STREAM),
    ("#leg", LEG),
    ("#phase", PHASE),
    ("#worker", WORKER_EPOCH),
    ("#epoch", EPOCH),
    ("#cursor", CURSOR),
    ("#updated", LAST_UPDATED),
    ("#wish", WISH),
    ("#paused", PAUSED),
    ("#parked", PARKED),
    ("#beat", BEAT),
    ("#progress", PROGRESS),
    ("#findings", FINDINGS),
    ("#trouble", TROUBLE),
];

#[async_trait]
impl MigrationRecords for DynamoDbStore {
    async fn begin(&self, migration: &Migration, part: Option<&Part>) -> Result<Begun, StoreError> {
        let (id, tenant) = (migration.id(), migration.spec.tenant.clone());
        let forget = number(seconds_rounded_up(migration.created.plus(KEPT)));
        let mut record = migration_item(migration)?;
        record.insert(TTL.to_owned(), forget.clone());
        let mut moving = key(&ControlKey::Moving(tenant.clone()));
        moving.insert(MIGRATION.to_owned(), text(id.to_string()));
        let at = u64::try_from(migration.created.millis()).unwrap_or(0);
        let mut listed = key(&ControlKey::Listed(at, id));
        listed.insert(TTL.to_owned(), forget);
        let new = format!("attribute_not_exists({PK})");
        let table = self.names.control();
        let put_new = |item: Item| {
            let put_item = Put::builder().table_name(table).set_item(Some(item));
            put(put_item.condition_expression(new.clone()).build())
        };
        let mut items = vec![put_new(record)?, put_new(moving)?, put_new(listed)?];
        let at_part = items.len();
        if let Some(part) = part {
            items.push(self.check_part(part)?);
        }
        let Some(failed) = self.all_or_nothing(items).await? else { return Ok(Begun::Begun) };
        if let Some(existing) = self.migration(id).await? {
            return Ok(Begun::Exists(Box::new(existing)));
        }
        tracing::debug!(failed, "a migration was not begun");
        match self.moving_tenant(&tenant).await? {
            Some(other) => Ok(Begun::Moving(other)),
            None if failed == at_part => Ok(Begun::Superseded),
            // Over in between: nothing was begun, and to try again is right.
            None => Err(StoreError::Throttled),
        }
    }

    async fn migration(&self, id: MigrationId) -> Result<Option<Migration>, StoreError> {
        let item = self.control_item(&ControlKey::Migration(id)).await?;
        item.map(|item| read_migration(self.names.control(), id, &item)).transpose()
    }

    async fn moving(&self) -> Result<Vec<(PartitionKey, MigrationId)>, StoreError> {
        let table = self.names.control();
        let read = |item: &Item| {
            let reader = Reader { table, item };
            let key = reader.parsed(SK, |sk| ControlKey::parse(MOVING_PK, sk))?;
            let ControlKey::Moving(tenant) = key else { return Ok(None) };
            Ok(Some((tenant, read_id(&reader)?)))
        };
        let items = self.control_partition(MOVING_PK).await?;
        items.iter().filter_map(|item| read(item).transpose()).collect()
    }

    async fn moving_tenant(
        &self,
        tenant: &PartitionKey,
    ) -> Result<Option<MigrationId>, StoreError> {
        let item = self.control_item(&ControlKey::Moving(tenant.clone())).await?;
        let table = self.names.control();
        item.map(|item| read_id(&Reader { table, item: &item })).transpose()
    }

    async fn migrations(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Migration>, StoreError> {
        let table = self.names.control();
        let from = match after {
            None => None,
            Some(Cursor(sk)) => match ControlKey::parse(LISTED_PK, sk) {
                Some(listed @ ControlKey::Listed(..)) => Some(key(&listed)),
                _ => return Err(StoreError::ForeignCursor),
            },
        };
        let query = self
            .client
            .query()
            .table_name(table)
            .consistent_read(true)
            .scan_index_forward(false)
            .limit(super::page_size(limit, 100))
            .key_condition_expression("#pk = :pk")
            .expression_attribute_names("#pk", PK)
            .expression_attribute_values(":pk", text(LISTED_PK))
            .set_exclusive_start_key(from);
        let page = Call::consistent("Query", &[table]).run(query.send()).await?;
        let mut migrations = Vec::new();
        let mut last = None;
        for item in page.items() {
            let reader = Reader { table, item };
            let sk = reader.text(SK)?;
            last = Some(Cursor(sk.to_owned()));
            if let Some(ControlKey::Listed(_, id)) = ControlKey::parse(LISTED_PK, sk) {
                migrations.extend(self.migration(id).await?);
            }
        }
        Ok(Page { items: migrations, next: last.filter(|_| page.last_evaluated_key.is_some()) })
    }

    async fn write(&self, writes: &[Write], now: Timestamp) -> Result<bool, StoreError> {
        let mut items = Vec::new();
        for write in writes {
            // None of these writes counts placements, so no entry is behind them.
            items.extend(self.write_items(write, Sequence::START, now)?);
        }
        Ok(self.all_or_nothing(items).await?.is_none())
    }

    async fn tell(
        &self,
        id: MigrationId,
        worker: u64,
        told: &Told,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut changes = Changes::default();
        changes.set("#beat", number(told.beat));
        changes.set("#progress", json(&told.progress)?);
        changes.set("#updated", text(now.to_string()));
        changes.set_or_remove("#trouble", told.trouble.as_deref().map(text));
        changes.set_or_remove("#parked", told.parked.as_deref().map(text));
        changes.condition = vec!["#worker = :is_worker"];
        changes.values.push((":is_worker".to_owned(), number(worker)));
        self.change_migration(id, changes).await
    }

    async fn order(
        &self,
        id: MigrationId,
        order: Order,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let mut changes = Changes::default();
        changes.set("#updated", text(now.to_string()));
        match order {
            Order::Wish(wish) => {
                changes.set("#wish", text(wish_name(wish)));
                if wish == Wish::Cancel {
                    // What was copied is to be removed, and a pause would put that off.
                    changes.set("#paused", AttributeValue::Bool(false));
                }
            }
            Order::Pause(paused) => changes.set("#paused", AttributeValue::Bool(paused)),
            Order::Unpark => changes.set_or_remove("#parked", None),
        }
        // There: the phase is an attribute of every migration.
        changes.condition = vec!["attribute_exists(#phase)"];
        changes.names.push("#phase");
        self.change_migration(id, changes).await
    }
}

impl DynamoDbStore {
    async fn change_migration(
        &self,
        id: MigrationId,
        changes: Changes,
    ) -> Result<bool, StoreError> {
        let change = changes.update(self.names.control(), id);
        Ok(self.all_or_nothing(vec![update(change.build())?]).await?.is_none())
    }

    /// What the protocol keeps, where it is as the check says.
    pub(super) fn put_migration(
        &self,
        check: &RecordCheck,
        record: &Record,
        findings: Option<&Findings>,
        now: Timestamp,
    ) -> Result<TransactWriteItem, StoreError> {
        let mut changes = Changes::default();
        for (name, value) in protocol_attributes(record) {
            changes.set(name, value);
        }
        let stream = record.stream.as_ref().map(|s| AttributeValue::B(Blob::new(s.0.clone())));
        changes.set_or_remove("#stream", stream);
        changes.set_or_remove("#findings", findings.map(json).transpose()?);
        changes.set("#updated", text(now.to_string()));
        changes.condition = vec!["#leg = :is_leg", "#phase = :is_phase", "#worker = :is_worker"];
        changes.values.push((":is_leg".to_owned(), text(leg_name(check.leg))));
        changes.values.push((":is_phase".to_owned(), text(check.phase.name())));
        changes.values.push((":is_worker".to_owned(), number(check.worker)));
        update(changes.update(self.names.control(), check.id.into()).build())
    }

    pub(super) fn end_migration(
        &self,
        tenant: &PartitionKey,
        migration: MigrationId,
    ) -> Result<TransactWriteItem, StoreError> {
        let delete = Delete::builder()
            .table_name(self.names.control())
            .set_key(Some(key(&ControlKey::Moving(tenant.clone()))))
            .condition_expression("#migration = :migration")
            .expression_attribute_names("#migration", MIGRATION)
            .expression_attribute_values(":migration", text(migration.to_string()));
        let delete = delete.build().map_err(incomplete)?;
        Ok(TransactWriteItem::builder().delete(delete).build())
    }
}

/// A change of a migration's record.
#[derive(Default)]
struct Changes {
    set: Vec<String>,
    remove: Vec<&'static str>,
    condition: Vec<&'static str>,
    names: Vec<&'static str>,
    values: Vec<(String, AttributeValue)>,
}

impl Changes {
    fn set(&mut self, name: &'static str, value: AttributeValue) {
        let placeholder = name.replacen('#', ":", 1);
        self.set.push(format!("{name} = {placeholder}"));
        self.values.push((placeholder, value));
        self.names.push(name);
    }

    fn set_or_remove(&mut self, name: &'static str, value: Option<AttributeValue>) {
        match value {
            Some(value) => self.set(name, value),
            None => {
                self.remove.push(name);
                self.names.push(name);
            }
        }
    }

    fn update(
        self,
        table: &str,
        id: MigrationId,
    ) -> aws_sdk_dynamodb::types::builders::UpdateBuilder {
        let mut expression = format!("SET {}", self.set.join(", "));
        if !self.remove.is_empty() {
            expression.push_str(&format!(" REMOVE {}", self.remove.join(", ")));
        }
        let condition = self.condition.join(" AND ");
        let used = |name: &str| self.names.contains(&name) || condition.contains(name);
        let names = NAMES.into_iter().filter(|(name, _)| used(name));
        let names = names.map(|(name, attribute)| (name.to_owned(), attribute.to_owned()));
        Update::builder()
            .table_name(table)
            .set_key(Some(key(&ControlKey::Migration(id))))
            .update_expression(expression)
            .set_expression_attribute_names(Some(names.collect()))
            .set_expression_attribute_values(Some(self.values.into_iter().collect()))
            .condition_expression(condition)
    }
}

fn protocol_attributes(record: &Record) -> [(&'static str, AttributeValue); 5] {
    [
        ("#leg", text(leg_name(record.leg))),
        ("#phase", text(record.phase.name())),
        ("#worker", number(record.worker)),
        ("#epoch", number(record.epoch)),
        ("#cursor", AttributeValue::B(Blob::new(record.cursor.0.clone()))),
    ]
}

fn migration_item(migration: &Migration) -> Result<Item, StoreError> {
    let mut item = key(&ControlKey::Migration(migration.id()));
    for (name, value) in protocol_attributes(&migration.record) {
        let attribute = NAMES.iter().find(|(placeholder, _)| *placeholder == name);
        item.extend(attribute.map(|(_, attribute)| ((*attribute).to_owned(), value)));
    }
    let mut set = |name: &str, value: AttributeValue| item.insert(name.to_owned(), value);
    set(SPEC, json(&migration.spec)?);
    set(PROGRESS, json(&migration.progress)?);
    set(PAUSED, AttributeValue::Bool(migration.record.paused));
    set(CREATED_AT, text(migration.created.to_string()));
    set(LAST_UPDATED, text(migration.updated.to_string()));
    set(DIGEST, text(&migration.digest));
    set(BEAT, number(migration.beat));
    if let Some(wish) = migration.record.wish {
        set(WISH, text(wish_name(wish)));
    }
    let texts = [
        (PARKED, &migration.parked),
        (TROUBLE, &migration.trouble),
        (CALLER, &migration.caller),
        (BULK, &migration.bulk),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            set(name, text(value));
        }
    }
    if let Some(findings) = &migration.findings {
        set(FINDINGS, json(findings)?);
    }
    Ok(item)
}

fn read_id(reader: &Reader<'_>) -> Result<MigrationId, StoreError> {
    reader.parsed(MIGRATION, |text| MigrationId::parse(text).ok())
}

fn read_migration(table: &str, id: MigrationId, item: &Item) -> Result<Migration, StoreError> {
    let reader = Reader { table, item };
    let Some(AttributeValue::B(cursor)) = item.get(CURSOR) else {
        return Err(reader.unreadable(CURSOR, "is not binary"));
    };
    let owned = |attribute| Ok(reader.optional_text(attribute)?.map(str::to_owned));
    Ok(Migration {
        record: Record {
            id: id.into(),
            leg: reader.parsed(LEG, |name| parse(&LEGS, leg_name, name))?,
            phase: reader.parsed(PHASE, |name| parse(&PHASES, Phase::name, name))?,
            worker: reader.number(WORKER_EPOCH)?,
            epoch: reader.number(EPOCH)?,
            cursor: Reached(cursor.as_ref().to_vec()),
            stream: match item.get(STREAM) {
                None => None,
                Some(AttributeValue::B(stream)) => Some(Reached(stream.as_ref().to_vec())),
                Some(_) => return Err(reader.unreadable(STREAM, "is not binary")),
            },
            wish: reader.optional_parsed(WISH, |name| parse(&WISHES, wish_name, name))?,
            paused: item.get(PAUSED) == Some(&AttributeValue::Bool(true)),
        },
        spec: reader.json(SPEC)?,
        progress: reader.json(PROGRESS)?,
        findings: match reader.has(FINDINGS) {
            true => Some(reader.json(FINDINGS)?),
            false => None,
        },
        parked: owned(PARKED)?,
        trouble: owned(TROUBLE)?,
        created: reader.parsed(CREATED_AT, Timestamp::parse)?,
        updated: reader.parsed(LAST_UPDATED, Timestamp::parse)?,
        digest: reader.text(DIGEST)?.to_owned(),
        caller: owned(CALLER)?,
        bulk: owned(BULK)?,
        beat: reader.number(BEAT)?,
    })
}

const LEGS: [Leg; 2] = [Leg::Forward, Leg::Back];
const WISHES: [Wish; 3] = [Wish::Cancel, Wish::Reverse, Wish::Complete];
const PHASES: [Phase; 12] = [
    Phase::Planned,
    Phase::Logging,
    Phase::Copying,
    Phase::CatchingUp,
    Phase::Verifying,
    Phase::Fenced,
    Phase::Committed,
    Phase::Soaking,
    Phase::Cleaning,
    Phase::Done,
    Phase::Aborting,
    Phase::Aborted,
];

fn parse<T: Copy>(all: &[T], name_of: fn(T) -> &'static str, name: &str) -> Option<T> {
    all.iter().copied().find(|one| name_of(*one) == name)
}

fn leg_name(leg: Leg) -> &'static str {
    match leg {
        Leg::Forward => "FORWARD",
        Leg::Back => "BACK",
    }
}

fn wish_name(wish: Wish) -> &'static str {
    match wish {
        Wish::Cancel => "CANCEL",
        Wish::Reverse => "REVERSE",
        Wish::Complete => "COMPLETE",
    }
}
