//! Arbitrary domain values, for the codecs' round-trip properties.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::Arc;

use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::{CellTable, CellTables, KeyType};
use proptest::collection::{btree_map, hash_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::schema::ControlKey;
use crate::cells::{OperationId, TableSetId};
use crate::domain::{
    Cell, CellId, CellState, Change, Cluster, Endpoint, Epoch, HistoryRecord, JournalEntry, Labels,
    LeaseDuration, MigrationId, Nonce, PartitionKey, Placement, PlacementEvent, Region, RequestId,
    RequestRecord, Sequence, StoredOutcome, Timestamp, Weight, WriteMode,
};
use crate::migration::bulk::BulkId;

pub fn key() -> impl Strategy<Value = PartitionKey> {
    // Separators of our own keys among them.
    prop_oneof!["[ -~]{1,40}", "[a#é𝄞\"\\\\]{1,40}", "\\PC{1,64}"]
        .prop_filter_map("not a partition key", |text| PartitionKey::new(text).ok())
}

pub fn cell_id() -> impl Strategy<Value = CellId> {
    "[a-z0-9][a-z0-9-]{0,62}".prop_map(|text| CellId::new(text).unwrap())
}

fn table_set_id() -> impl Strategy<Value = TableSetId> {
    cell_id().prop_map(|id| TableSetId::new(id.as_str()).unwrap())
}

pub fn time() -> impl Strategy<Value = Timestamp> {
    (-62_135_596_800_000_i64..=253_402_207_200_000)
        .prop_map(|millis| Timestamp::from_millis(millis).unwrap())
}

fn epoch() -> impl Strategy<Value = Epoch> {
    (1..=u64::MAX).prop_map(|n| Epoch::new(n).unwrap())
}

fn sequence() -> impl Strategy<Value = Sequence> {
    any::<u64>().prop_map(Sequence::new)
}

fn event() -> impl Strategy<Value = PlacementEvent> {
    select(PlacementEvent::ALL.to_vec())
}

/// A placement as we write it: never one that is still adopted.
pub fn placement() -> impl Strategy<Value = Placement> {
    let mode = select(vec![WriteMode::Direct, WriteMode::Logged]);
    let began_by = event().prop_filter("adopted", |event| *event != PlacementEvent::Adopted);
    let times = (option::of(time()), option::of(time()), option::of(time()));
    (key(), cell_id(), epoch(), mode, began_by, times, option::of(migration_id())).prop_map(
        |(key, cell, epoch, write_mode, began_by, (created, updated, expires), migration)| {
            Placement {
                key,
                cell,
                epoch,
                write_mode,
                began_by,
                created,
                updated,
                expires,
                migration,
            }
        },
    )
}

pub fn cell() -> impl Strategy<Value = Cell> {
    let labels = btree_map("[a-z0-9][a-z0-9._/-]{0,20}", "[^\\p{Cc}]{0,30}", 0..4);
    let labels = labels.prop_map(|map: BTreeMap<String, String>| Labels::new(map).unwrap());
    let settings = (
        cell_id(),
        "[a-z0-9][a-z0-9-]{0,31}",
        "[!-~]{1,60}",
        labels,
        0..=1_000_000_u32,
        option::of(1..=u64::MAX),
        select(CellState::ALL.to_vec()),
    );
    let count = 0..=u64::try_from(i64::MAX).unwrap();
    (settings, time(), time(), sequence(), count, sequence(), option::of(tables())).prop_map(
        |(settings, created, updated, revision, placements, counted_at, tables)| {
            let (id, region, endpoint, labels, weight, capacity, state) = settings;
            Cell {
                id,
                region: Region::new(region).unwrap(),
                endpoint: Endpoint::new(endpoint).unwrap(),
                labels,
                weight: Weight::new(weight).unwrap(),
                capacity: capacity.and_then(NonZeroU64::new),
                state,
                created,
                updated,
                revision,
                placements,
                counted_at,
                tables: tables.map(Arc::new),
            }
        },
    )
}

pub fn cluster() -> impl Strategy<Value = Cluster> {
    let lease = (0..=60_000_u32).prop_map(|millis| LeaseDuration::from_millis(millis).unwrap());
    (lease.clone(), lease, option::of(time()), sequence()).prop_map(
        |(lease, longest, updated, revision)| Cluster { lease, longest, updated, revision },
    )
}

fn migration_id() -> impl Strategy<Value = MigrationId> {
    any::<u128>().prop_map(MigrationId::new)
}

fn tables() -> impl Strategy<Value = CellTables> {
    let sort = option::of((
        "[a-zA-Z]{1,9}",
        select(vec![KeyType::String, KeyType::Number, KeyType::Binary]),
    ));
    let names = ("[a-zA-Z]{1,9}", "[a-z-]{3,20}", "[a-zA-Z]{1,9}");
    let table =
        (names, sort, vec("[A-Z]{1,5}#[{]partition_key[}]", 1..3), option::of("[a-z]{1,5}"));
    let table =
        table.prop_map(|((name, table_name, partition_key), sort_key, tenant_keys, ttl)| {
            CellTable { name, table_name, partition_key, sort_key, tenant_keys, ttl_attribute: ttl }
        });
    ("[a-z]{1,9}", any::<u64>(), vec(table, 0..3), any::<bool>()).prop_map(
        |(set, version, tables, together)| {
            CellTables { set, version, tables, together, guards: None, guarded: false }
                .with_guards_as(None)
        },
    )
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (placement(), option::of(cell_id()))
            .prop_map(|(placement, replaced)| Change::Placed { placement, replaced }),
        (placement(), cell_id(), option::of(cell_id()), option::of(cell_id())).prop_map(
            |(placement, from, gained, lost)| Change::Moved { placement, from, gained, lost }
        ),
        placement().prop_map(|placement| Change::Vacated { placement }),
        cell().prop_map(|cell| Change::CellCreated { cell }),
        cell().prop_map(|cell| Change::CellUpdated { cell }),
        cell_id().prop_map(|cell| Change::CellDeleted { cell }),
        cluster().prop_map(|cluster| Change::ClusterUpdated { cluster }),
    ]
}

pub fn entry() -> impl Strategy<Value = JournalEntry> {
    let nonce = any::<u128>().prop_map(Nonce::new);
    // The key has room for the buckets of 10^15 entries.
    let sequence = (1..1_000_000_000_000_000_u64).prop_map(Sequence::new);
    (sequence, nonce, time(), vec(change(), 0..4)).prop_map(
        |(sequence, nonce, written, changes)| JournalEntry { sequence, nonce, written, changes },
    )
}

pub fn history() -> impl Strategy<Value = HistoryRecord> {
    let began = option::of(time());
    (key(), epoch(), cell_id(), event(), began, event(), time()).prop_map(
        |(key, epoch, cell, began_by, began, ended_by, ended)| HistoryRecord {
            key,
            epoch,
            cell,
            began_by,
            began,
            ended_by,
            ended,
        },
    )
}

fn request_id() -> impl Strategy<Value = RequestId> {
    "[A-Za-z0-9._-]{1,64}".prop_map(|text| RequestId::new(text).unwrap())
}

pub fn request() -> impl Strategy<Value = RequestRecord> {
    let outcome = prop_oneof![
        placement().prop_map(StoredOutcome::Placed),
        placement().prop_map(StoredOutcome::Vacated),
        cell().prop_map(StoredOutcome::Cell),
        Just(StoredOutcome::CellDeleted),
    ];
    (request_id(), "[ -~]{1,30}", "[0-9a-f]{64}", outcome, time()).prop_map(
        |(id, method, digest, outcome, forget_after)| RequestRecord {
            id,
            method,
            digest,
            outcome,
            forget_after,
        },
    )
}

fn bulk_id() -> impl Strategy<Value = BulkId> {
    any::<u128>().prop_map(BulkId::new)
}

pub fn control_key() -> impl Strategy<Value = ControlKey> {
    prop_oneof![
        Just(ControlKey::Head),
        Just(ControlKey::Trimmed),
        Just(ControlKey::Cluster),
        sequence().prop_map(ControlKey::Entry),
        cell_id().prop_map(ControlKey::Cell),
        cell_id().prop_map(ControlKey::Count),
        (key(), epoch()).prop_map(|(key, epoch)| ControlKey::History(key, epoch)),
        request_id().prop_map(ControlKey::Request),
        table_set_id().prop_map(ControlKey::NewestTableSet),
        (table_set_id(), any::<u64>()).prop_map(|(id, version)| ControlKey::TableSet(id, version)),
        cell_id().prop_map(ControlKey::CellTables),
        cell_id().prop_map(ControlKey::Load),
        migration_id().prop_map(ControlKey::Migration),
        key().prop_map(ControlKey::Moving),
        (any::<u64>(), migration_id()).prop_map(|(at, id)| ControlKey::Listed(at, id)),
        bulk_id().prop_map(ControlKey::Bulk),
        (bulk_id(), any::<u64>(), any::<u64>())
            .prop_map(|(id, generation, number)| ControlKey::BulkChunk(id, generation, number)),
        cell_id().prop_map(ControlKey::ActiveDrain),
        Just(ControlKey::ActiveRebalance),
        (any::<u64>(), bulk_id()).prop_map(|(at, id)| ControlKey::BulkListed(at, id)),
        Just(ControlKey::LoadTurn),
        "[a-z0-9-]{1,64}".prop_map(|id| ControlKey::Operation(OperationId::new(id).unwrap())),
        (cell_id(), "[a-z0-9-]{1,64}")
            .prop_map(|(cell, id)| ControlKey::Drill(cell, OperationId::new(id).unwrap())),
    ]
}

/// Attributes that some other writer may have put beside `PartitionKey` and `CellId`, under names of ours and of its own.
pub fn foreign_attributes()
-> impl Strategy<Value = std::collections::HashMap<String, AttributeValue>> {
    let name = prop_oneof!["CreatedAt", "LastUpdated", "TTL", "WriteMode", "x[a-z]{0,5}"];
    let value = prop_oneof![
        "\\PC{0,20}".prop_map(AttributeValue::S),
        any::<f64>().prop_map(|n| AttributeValue::N(n.to_string())),
        any::<i64>().prop_map(|n| AttributeValue::N(n.to_string())),
        any::<bool>().prop_map(AttributeValue::Bool),
        Just(AttributeValue::Null(true)),
        vec("[a-z]{1,3}", 1..3).prop_map(AttributeValue::Ss),
    ];
    hash_map(name, value, 0..5)
}
