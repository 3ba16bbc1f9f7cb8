//! The guard's item.
//!
//! | attribute | |
//! | --- | --- |
//! | the partition key | `\u{1}guard#<shard>#<tenant>` |
//! | the sort key | `\u{1}` |
//! | `GuardCell` | the cell that the guard is of. One that names another cell came with a copy of that cell's table and counts as absent |
//! | `GuardState` | `OPEN`, `INCOMING`, `FENCED` or `MOVED` |
//! | `GuardEpoch` | a number |
//! | `GuardMode` | `DIRECT` or `LOGGED` |
//! | `GuardShards` | how many items the guard has: all say the same but for the shard in their keys, and change together |
//! | `GuardMigration`, `GuardWorker` | who works on the cell; absent where nobody does |
//! | `GuardNext` | in a moved guard: the cell that the tenant moved to |
//!
//! A guard that no migration holds has one shard, number 0. Checks of one item by transactions at the same time conflict, so a
//! migration, under which every write is checked, gives the guard more; a writer takes any.

use cells_migration::{Guard, GuardState, Holder, MigrationId, WriteMode};

use crate::tables::GuardTable;
use crate::{Item, Unreadable, number, optional_text, required_number, required_text, text};

pub const CELL: &str = "GuardCell";
pub const STATE: &str = "GuardState";
pub const EPOCH: &str = "GuardEpoch";
pub const MODE: &str = "GuardMode";
pub const SHARDS: &str = "GuardShards";
pub const MIGRATION: &str = "GuardMigration";
pub const WORKER: &str = "GuardWorker";
pub const NEXT: &str = "GuardNext";

/// Most items of one guard: with two guards and what else a move changes they fit in one transaction.
pub const MAX_SHARDS: u8 = 16;

/// The sort key of a guard.
const SORT_KEY: &str = "\u{1}";

/// A guard as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredGuard {
    pub guard: Guard,
    /// The cell that it is of.
    pub cell: String,
    /// 1 to [`MAX_SHARDS`].
    pub shards: u8,
    /// Where the tenant moved to.
    pub next: Option<String>,
}

impl StoredGuard {
    /// Of a tenant who lives in the cell and does not move.
    pub fn open(cell: &str, epoch: u64) -> Self {
        let (state, mode) = (GuardState::Open, WriteMode::Direct);
        let guard = Guard { state, epoch, mode, holder: None };
        Self { guard, cell: cell.to_owned(), shards: 1, next: None }
    }
}

/// The partition of one of a guard's items.
pub fn partition(tenant: &str, shard: u8) -> String {
    format!("\u{1}guard#{shard}#{tenant}")
}

pub fn key(table: &GuardTable, tenant: &str, shard: u8) -> Item {
    [
        (table.partition_key.clone(), text(partition(tenant, shard))),
        (table.sort_key.clone(), text(SORT_KEY)),
    ]
    .into()
}

pub fn item(table: &GuardTable, tenant: &str, shard: u8, stored: &StoredGuard) -> Item {
    let StoredGuard { guard, cell, shards, next } = stored;
    let mut item = key(table, tenant, shard);
    let mut set = |name: &str, value| item.insert(name.to_owned(), value);
    set(CELL, text(cell));
    set(STATE, text(state_name(guard.state)));
    set(EPOCH, number(guard.epoch));
    set(MODE, text(mode_name(guard.mode)));
    set(SHARDS, number(shards));
    if let Some(holder) = guard.holder {
        set(MIGRATION, text(migration_name(holder.migration)));
        set(WORKER, number(holder.worker));
    }
    if let Some(next) = next {
        set(NEXT, text(next));
    }
    item
}

/// # Errors
/// Where an attribute is missing or says what is not known.
pub fn read(item: &Item) -> Result<StoredGuard, Unreadable> {
    let unknown = |attribute| Unreadable { attribute, problem: "has a value that is not known" };
    let holder = match optional_text(item, MIGRATION)? {
        None => None,
        Some(name) => Some(Holder {
            migration: parse_migration(&name).ok_or_else(|| unknown(MIGRATION))?,
            worker: required_number(item, WORKER)?,
        }),
    };
    let shards = required_number(item, SHARDS)?;
    if !(1..=MAX_SHARDS).contains(&shards) {
        return Err(unknown(SHARDS));
    }
    Ok(StoredGuard {
        guard: Guard {
            state: parse_state(&required_text(item, STATE)?).ok_or_else(|| unknown(STATE))?,
            epoch: required_number(item, EPOCH)?,
            mode: parse_mode(&required_text(item, MODE)?).ok_or_else(|| unknown(MODE))?,
            holder,
        },
        cell: required_text(item, CELL)?,
        shards,
        next: optional_text(item, NEXT)?,
    })
}

pub fn state_name(state: GuardState) -> &'static str {
    match state {
        GuardState::Open => "OPEN",
        GuardState::Incoming => "INCOMING",
        GuardState::Fenced => "FENCED",
        GuardState::Moved => "MOVED",
    }
}

fn parse_state(name: &str) -> Option<GuardState> {
    let states = [GuardState::Open, GuardState::Incoming, GuardState::Fenced, GuardState::Moved];
    states.into_iter().find(|state| state_name(*state) == name)
}

pub fn mode_name(mode: WriteMode) -> &'static str {
    match mode {
        WriteMode::Direct => "DIRECT",
        WriteMode::Logged => "LOGGED",
    }
}

fn parse_mode(name: &str) -> Option<WriteMode> {
    [WriteMode::Direct, WriteMode::Logged].into_iter().find(|mode| mode_name(*mode) == name)
}

/// 32 lower-case hexadecimal digits.
pub fn migration_name(id: MigrationId) -> String {
    format!("{:032x}", id.0)
}

/// `None` for what [`migration_name`] does not write.
pub fn parse_migration(name: &str) -> Option<MigrationId> {
    let id = MigrationId(u128::from_str_radix(name, 16).ok()?);
    (migration_name(id) == name).then_some(id)
}
