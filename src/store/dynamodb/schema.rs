//! Where everything is kept: the names of the tables and attributes, and the key of every record of `CellControl`.
//!
//! Invariants: [`ControlKey`] is the only maker and reader of `PK` and `SK`, and no two records share a key: each kind has its own
//! prefix, and what follows a prefix is either of fixed form or the key's end. Numbers in sort keys are padded, so that their
//! order is the numbers' order.

use crate::cells::{OperationId, TableSetId};
use crate::domain::{CellId, Epoch, Invalid, MigrationId, PartitionKey, RequestId, Sequence};
use crate::migration::bulk::BulkId;

/// The index of `CellMappings` by cell. Vacated keys have no `CellId` and so are not in it.
pub const CELL_ID_INDEX: &str = "CellIdIndex";

/// Attributes of `CellMappings`. The first four and `TTL` are anybody's; the others are ours.
pub mod mapping {
    pub const PARTITION_KEY: &str = "PartitionKey";
    pub const CELL_ID: &str = "CellId";
    pub const CREATED_AT: &str = "CreatedAt";
    pub const LAST_UPDATED: &str = "LastUpdated";
    pub const EPOCH: &str = "Epoch";
    pub const WRITE_MODE: &str = "WriteMode";
    pub const BEGUN_BY: &str = "BegunBy";
    pub const EXPIRES_AT: &str = "ExpiresAt";
    pub const VACATED_AT: &str = "VacatedAt";
    pub const MIGRATION: &str = "Migration";
}

/// Attributes of `CellControl`.
pub mod control {
    pub const PK: &str = "PK";
    pub const SK: &str = "SK";
    // The head and the entries.
    pub const SEQUENCE: &str = "Sequence";
    pub const NONCE: &str = "Nonce";
    pub const WRITTEN_AT: &str = "WrittenAt";
    pub const CHANGES: &str = "Changes";
    pub const JOURNAL_ID: &str = "JournalId";
    pub const DELETED: &str = "Deleted";
    // Cells and their counts.
    pub const REGION: &str = "Region";
    pub const ENDPOINT: &str = "Endpoint";
    pub const LABELS: &str = "Labels";
    pub const WEIGHT: &str = "Weight";
    pub const CAPACITY: &str = "Capacity";
    pub const STATE: &str = "State";
    pub const CREATED_AT: &str = "CreatedAt";
    pub const LAST_UPDATED: &str = "LastUpdated";
    pub const REVISION: &str = "Revision";
    pub const PLACEMENTS: &str = "Placements";
    pub const COUNTED_AT: &str = "CountedAt";
    // Past placements.
    pub const CELL_ID: &str = "CellId";
    pub const BEGUN_BY: &str = "BegunBy";
    pub const BEGUN_AT: &str = "BegunAt";
    pub const ENDED_BY: &str = "EndedBy";
    pub const ENDED_AT: &str = "EndedAt";
    // Requests.
    pub const METHOD: &str = "Method";
    pub const DIGEST: &str = "Digest";
    pub const OUTCOME: &str = "Outcome";
    pub const FORGET_AFTER: &str = "ForgetAfter";
    // Table sets, what cells have of them, and operations.
    pub const SPEC: &str = "Spec";
    pub const VERSION: &str = "Version";
    pub const TABLE_SET: &str = "TableSet";
    pub const OPERATION: &str = "Operation";
    pub const RECORD: &str = "Record";
    pub const WORKER_EPOCH: &str = "WorkerEpoch";
    pub const BEAT: &str = "Beat";
    // Loads, and whose turn it is to measure.
    pub const MEASURED_AT: &str = "MeasuredAt";
    pub const TURN: &str = "Turn";
    // What tables were provisioned for a cell.
    pub const TABLES: &str = "Tables";
    // Migrations.
    pub const LEG: &str = "Leg";
    pub const PHASE: &str = "Phase";
    pub const PHASE_SINCE: &str = "PhaseSince";
    pub const EPOCH: &str = "Epoch";
    pub const CURSOR: &str = "Cursor";
    pub const STREAM: &str = "Stream";
    pub const WISH: &str = "Wish";
    pub const PAUSED: &str = "Paused";
    pub const PARKED: &str = "Parked";
    pub const PROGRESS: &str = "Progress";
    pub const FINDINGS: &str = "Findings";
    pub const TROUBLE: &str = "Trouble";
    pub const CALLER: &str = "Caller";
    pub const BULK: &str = "Bulk";
    pub const MIGRATION: &str = "Migration";
    // The cluster's settings.
    pub const LEASE_MILLIS: &str = "LeaseMillis";
    pub const LONGEST_LEASE_MILLIS: &str = "LongestLeaseMillis";
}

/// The attribute by which the storage itself deletes, in both tables.
pub const TTL: &str = "TTL";

/// The names of the two control tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableNames {
    mappings: String,
    control: String,
}

impl TableNames {
    /// Longest prefix, in bytes.
    pub const MAX_PREFIX: usize = 64;

    /// `{prefix}CellMappings` and `{prefix}CellControl`; the prefix is at most 64 of `[A-Za-z0-9_.-]` and may be empty.
    pub fn with_prefix(prefix: &str) -> Result<Self, Invalid> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        if prefix.len() > Self::MAX_PREFIX || !prefix.bytes().all(allowed) {
            return Err(Invalid::new(
                "INVALID_TABLE_PREFIX",
                "is not at most 64 characters of [A-Za-z0-9_.-], such as staging-",
            ));
        }
        Ok(Self {
            mappings: format!("{prefix}CellMappings"),
            control: format!("{prefix}CellControl"),
        })
    }

    pub fn mappings(&self) -> &str {
        &self.mappings
    }

    pub fn control(&self) -> &str {
        &self.control
    }
}

/// Entries in one partition of the journal. A reader asks for one partition at a time, and no partition grows for ever.
pub const BUCKET: u64 = 1000;

/// What a record of `CellControl` is, and by that its key:
///
/// | record | `PK` | `SK` | attributes |
/// | --- | --- | --- | --- |
/// | journal head | `JOURNAL` | `HEAD` | `Sequence` N, `JournalId` |
/// | last trimmed entry | `JOURNAL` | `TRIMMED` | `Sequence` N, `Deleted` N |
/// | journal entry | `JOURNAL#<sequence / 1000, 12 digits>` | `<sequence, 20 digits>` | `Nonce`, `WrittenAt`, `Changes` (protobuf) |
/// | cell | `CELL` | `CELL#<cell id>` | settings, `Revision` N |
/// | count of a cell | `CELL` | `COUNT#<cell id>` | `Placements` N, `CountedAt` N |
/// | past placement | `TENANT#<partition key>` | `HISTORY#<epoch, 20 digits>` | `CellId`, `BegunBy`, `BegunAt`, `EndedBy`, `EndedAt` |
/// | request | `REQUEST#<request id>` | `REQUEST` | `Method`, `Digest`, `Outcome` (JSON), `ForgetAfter`, `TTL` N |
/// | cluster | `CLUSTER` | `SETTINGS` | `LeaseMillis` N, `LastUpdated`, `Revision` N |
/// | newest version of a table set | `TABLESETS` | `SET#<table set id>` | `Version` N |
/// | version of a table set | `TABLESET#<table set id>` | `VERSION#<version, 20 digits>` | `Spec` (JSON) |
/// | what tables a cell has | `CELLTABLES` | `CELL#<cell id>` | `TableSet`, `Version` N, `Operation` |
/// | consumers of a stream | `STREAM#<group>#<table>` | `GROUP`, `SHARD#<shard>` | those of `cells_streams::schema` |
/// | load of a cell | `LOAD` | `CELL#<cell id>` | `Record` (JSON), `MeasuredAt` N, `TTL` N |
/// | turn to measure loads | `LOAD` | `TURN` | `Turn` N |
/// | operation | `OPERATION` | `OPERATION#<operation id>` | `Record` (JSON), `WorkerEpoch` N, `Beat` N, `TTL` N |
/// | migration | `MIGRATION#<migration id>` | `MIGRATION` | `Leg`, `Phase`, `WorkerEpoch` N, `PhaseSince`, `Epoch` N, `Cursor` B, `Wish`, `Spec` (JSON), `Progress` (JSON), … |
/// | tenant that moves | `MIGRATIONS` | `TENANT#<partition key>` | `Migration` |
/// | migration in the order of their times | `MIGRATIONLOG` | `<created, milliseconds, 20 digits>#<migration id>` | `Tenant`, `Source`, `Target` |
/// | bulk | `BULK#<bulk id>` | `BULK` | `Record` (JSON of its header), `Revision` N, `Spec` (JSON), `Progress` (JSON), `WorkerEpoch` N, `Beat` N, … |
/// | tenants of a bulk | `BULK#<bulk id>` | `CHUNK#<generation, 16 hex digits>#<number, 12 digits>` | `Record` (JSON), `Revision` N |
/// | bulk at work | `BULKS` | `DRAIN#<cell id>`, `REBALANCE` | `Bulk` |
/// | bulk in the order of their times | `BULKLOG` | `<created, milliseconds, 20 digits>#<bulk id>` | |
/// | recovery drill | `DRILLS#<cell id>` | `DRILL#<operation id>` | `Record` (the operation's), `TTL` N |
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlKey {
    Head,
    Trimmed,
    Cluster,
    Entry(Sequence),
    Cell(CellId),
    Count(CellId),
    History(PartitionKey, Epoch),
    Request(RequestId),
    NewestTableSet(TableSetId),
    TableSet(TableSetId, u64),
    CellTables(CellId),
    Operation(OperationId),
    Drill(CellId, OperationId),
    Load(CellId),
    LoadTurn,
    Migration(MigrationId),
    Moving(PartitionKey),
    Listed(u64, MigrationId),
    Bulk(BulkId),
    /// Its generation and number.
    BulkChunk(BulkId, u64, u64),
    ActiveDrain(CellId),
    ActiveRebalance,
    BulkListed(u64, BulkId),
}

/// The partitions of the newest versions, and of all operations.
pub const TABLE_SETS_PK: &str = "TABLESETS";
pub const OPERATIONS_PK: &str = "OPERATION";

/// The partition of what tables each cell has.
pub const CELL_TABLES_PK: &str = "CELLTABLES";

/// The partition of a cell's recovery drills.
pub fn drills_pk(cell: &CellId) -> String {
    format!("DRILLS#{cell}")
}

/// The partitions of the tenants that move now, and of all migrations in the order of their times.
pub const MOVING_PK: &str = "MIGRATIONS";
pub const LISTED_PK: &str = "MIGRATIONLOG";

/// The partitions of the bulks that are at work, and of all bulks in the order of their times.
pub const BULKS_PK: &str = "BULKS";
pub const BULK_LOG_PK: &str = "BULKLOG";

/// The partition of a bulk, and what the sort keys of its chunks begin with.
pub fn bulk_pk(id: BulkId) -> String {
    format!("BULK#{id}")
}

pub fn chunks_prefix(generation: u64) -> String {
    format!("CHUNK#{generation:016x}#")
}

/// The partition of all loads.
pub const LOADS_PK: &str = "LOAD";

/// The partition that holds all cells and their counts.
pub const CELLS_PK: &str = "CELL";

/// The partition of the journal that holds an entry.
pub fn bucket_pk(sequence: Sequence) -> String {
    format!("JOURNAL#{:012}", sequence.get() / BUCKET)
}

/// The partition of a tenant's past placements.
pub fn history_pk(key: &PartitionKey) -> String {
    format!("TENANT#{key}")
}

impl ControlKey {
    pub fn pk(&self) -> String {
        match self {
            ControlKey::Head | ControlKey::Trimmed => "JOURNAL".into(),
            ControlKey::Cluster => "CLUSTER".into(),
            ControlKey::Entry(sequence) => bucket_pk(*sequence),
            ControlKey::Cell(_) | ControlKey::Count(_) => CELLS_PK.into(),
            ControlKey::History(key, _) => history_pk(key),
            ControlKey::Request(id) => format!("REQUEST#{id}"),
            ControlKey::NewestTableSet(_) => TABLE_SETS_PK.into(),
            ControlKey::TableSet(id, _) => format!("TABLESET#{}", id.as_str()),
            ControlKey::CellTables(_) => CELL_TABLES_PK.into(),
            ControlKey::Load(_) | ControlKey::LoadTurn => LOADS_PK.into(),
            ControlKey::Operation(_) => OPERATIONS_PK.into(),
            ControlKey::Drill(cell, _) => drills_pk(cell),
            ControlKey::Migration(id) => format!("MIGRATION#{id}"),
            ControlKey::Moving(_) => MOVING_PK.into(),
            ControlKey::Listed(..) => LISTED_PK.into(),
            ControlKey::Bulk(id) | ControlKey::BulkChunk(id, ..) => bulk_pk(*id),
            ControlKey::ActiveDrain(_) | ControlKey::ActiveRebalance => BULKS_PK.into(),
            ControlKey::BulkListed(..) => BULK_LOG_PK.into(),
        }
    }

    pub fn sk(&self) -> String {
        match self {
            ControlKey::Head => "HEAD".into(),
            ControlKey::Trimmed => "TRIMMED".into(),
            ControlKey::Cluster => "SETTINGS".into(),
            ControlKey::Entry(sequence) => format!("{:020}", sequence.get()),
            ControlKey::Cell(id) => format!("CELL#{id}"),
            ControlKey::Count(id) => format!("COUNT#{id}"),
            ControlKey::History(_, epoch) => format!("HISTORY#{:020}", epoch.get()),
            ControlKey::Request(_) => "REQUEST".into(),
            ControlKey::NewestTableSet(id) => format!("SET#{}", id.as_str()),
            ControlKey::TableSet(_, version) => format!("VERSION#{version:020}"),
            ControlKey::CellTables(id) | ControlKey::Load(id) => format!("CELL#{id}"),
            ControlKey::LoadTurn => "TURN".into(),
            ControlKey::Operation(id) => format!("OPERATION#{}", id.as_str()),
            ControlKey::Drill(_, id) => format!("DRILL#{}", id.as_str()),
            ControlKey::Migration(_) => "MIGRATION".into(),
            ControlKey::Moving(tenant) => format!("TENANT#{tenant}"),
            ControlKey::Listed(at, id) => format!("{at:020}#{id}"),
            ControlKey::Bulk(_) => "BULK".into(),
            ControlKey::BulkChunk(_, generation, number) => {
                format!("{}{number:012}", chunks_prefix(*generation))
            }
            ControlKey::ActiveDrain(cell) => format!("DRAIN#{cell}"),
            ControlKey::ActiveRebalance => "REBALANCE".into(),
            ControlKey::BulkListed(at, id) => format!("{at:020}#{id}"),
        }
    }

    /// `None` for a key that no record of ours has.
    pub fn parse(pk: &str, sk: &str) -> Option<Self> {
        let key = match (pk.split_once('#'), sk.split_once('#')) {
            (None, None) => match (pk, sk) {
                ("JOURNAL", "HEAD") => ControlKey::Head,
                ("JOURNAL", "TRIMMED") => ControlKey::Trimmed,
                ("CLUSTER", "SETTINGS") => ControlKey::Cluster,
                (LOADS_PK, "TURN") => ControlKey::LoadTurn,
                (BULKS_PK, "REBALANCE") => ControlKey::ActiveRebalance,
                _ => return None,
            },
            (None, Some(("CELL", id))) if pk == CELLS_PK => ControlKey::Cell(CellId::new(id).ok()?),
            (None, Some(("CELL", id))) if pk == LOADS_PK => ControlKey::Load(CellId::new(id).ok()?),
            (None, Some(("CELL", id))) => ControlKey::CellTables(CellId::new(id).ok()?),
            (None, Some(("SET", id))) => ControlKey::NewestTableSet(TableSetId::new(id).ok()?),
            (Some(("TABLESET", id)), Some(("VERSION", version))) => {
                ControlKey::TableSet(TableSetId::new(id).ok()?, version.parse().ok()?)
            }
            (None, Some(("OPERATION", id))) => ControlKey::Operation(OperationId::new(id).ok()?),
            (Some(("DRILLS", cell)), Some(("DRILL", id))) => {
                ControlKey::Drill(CellId::new(cell).ok()?, OperationId::new(id).ok()?)
            }
            (Some(("MIGRATION", id)), None) => ControlKey::Migration(MigrationId::parse(id).ok()?),
            (None, Some(("TENANT", key))) if pk == MOVING_PK => {
                ControlKey::Moving(PartitionKey::new(key).ok()?)
            }
            (None, Some((at, id))) if pk == LISTED_PK => {
                ControlKey::Listed(at.parse().ok()?, MigrationId::parse(id).ok()?)
            }
            (Some(("BULK", id)), None) => ControlKey::Bulk(BulkId::parse(id).ok()?),
            (Some(("BULK", id)), Some(("CHUNK", chunk))) => {
                let (generation, number) = chunk.split_once('#')?;
                let generation = u64::from_str_radix(generation, 16).ok()?;
                ControlKey::BulkChunk(BulkId::parse(id).ok()?, generation, number.parse().ok()?)
            }
            (None, Some(("DRAIN", cell))) => ControlKey::ActiveDrain(CellId::new(cell).ok()?),
            (None, Some((at, id))) if pk == BULK_LOG_PK => {
                ControlKey::BulkListed(at.parse().ok()?, BulkId::parse(id).ok()?)
            }
            (None, Some(("COUNT", id))) => ControlKey::Count(CellId::new(id).ok()?),
            (Some(("JOURNAL", _)), None) => ControlKey::Entry(Sequence::new(sk.parse().ok()?)),
            (Some(("TENANT", key)), Some(("HISTORY", epoch))) => {
                ControlKey::History(PartitionKey::new(key).ok()?, Epoch::new(epoch.parse().ok()?)?)
            }
            (Some(("REQUEST", id)), None) => ControlKey::Request(RequestId::new(id).ok()?),
            _ => return None,
        };
        // Only what this very key would be written as: an entry in a foreign partition is no entry.
        (key.pk() == pk && key.sk() == sk).then_some(key)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::strategies;
    use super::*;

    proptest! {
        #[test]
        fn a_key_survives_its_text(key in strategies::control_key()) {
            prop_assert_eq!(ControlKey::parse(&key.pk(), &key.sk()), Some(key));
        }

        #[test]
        fn entries_sort_by_sequence(a in any::<u64>(), b in any::<u64>()) {
            let text = |n| { let key = ControlKey::Entry(Sequence::new(n)); (key.pk(), key.sk()) };
            // Past 10^15 the bucket's twelve digits no longer suffice; at a thousand entries a second that takes 31,000 years.
            let (a, b) = (a % 1_000_000_000_000_000, b % 1_000_000_000_000_000);
            prop_assert_eq!(text(a).cmp(&text(b)), a.cmp(&b));
        }
    }

    #[test]
    fn foreign_keys_are_no_records() {
        for (pk, sk) in [
            ("JOURNAL", "TAIL"),
            ("JOURNAL#000000000000", "00000000000000001000"),
            ("JOURNAL#0", "00000000000000000001"),
            ("CELL", "CELL#Not-A-Cell"),
            ("TENANT#a", "HISTORY#0"),
            ("TENANT#a", "HISTORY#00000000000000000000"),
            ("REQUEST#", "REQUEST"),
        ] {
            assert_eq!(ControlKey::parse(pk, sk), None, "{pk} {sk}");
        }
    }

    #[test]
    fn a_prefix_is_held_to_what_table_names_may_be() {
        let names = TableNames::with_prefix("it-1.").map(|names| names.control().to_owned());
        assert_eq!(names.as_deref(), Ok("it-1.CellControl"));
        for bad in ["a b", "é", "a/b", &"a".repeat(65)] {
            assert!(TableNames::with_prefix(bad).is_err(), "{bad}");
        }
    }
}
