//! A cell's tables, declared once: every cell gets them as `{prefix}{name}-{cell_id}`.
//!
//! A table set has a name and versions; a version never changes. Kept as JSON, so these types are also its storage form: fields are
//! added with a default, and never renamed.

use std::collections::BTreeMap;

use cells_guard::{CellTable, CellTables};
use serde::{Deserialize, Serialize};

use super::template::KeyTemplate;
use crate::domain::{Cell, CellId, Invalid, Region, Timestamp};

/// A table set's name: `[a-z0-9][a-z0-9-]{0,62}`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TableSetId(CellId);

impl TableSetId {
    /// # Errors
    /// With the reason `INVALID_TABLE_SET`.
    pub fn new(id: &str) -> Result<Self, Invalid> {
        // The same form as a cell's name, for the same reason: it is part of keys and tags.
        CellId::new(id).map(Self).map_err(|_| {
            let problem = "is not of the form [a-z0-9][a-z0-9-]{0,62}, such as default";
            Invalid::new("INVALID_TABLE_SET", problem)
        })
    }

    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

/// One version of a table set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSet {
    pub id: TableSetId,
    /// Counted from 1.
    pub version: u64,
    pub created: Timestamp,
    pub tables: Vec<TableSpec>,
    /// Tags of every table, beside `cell`, `table-set` and `managed-by`.
    pub tags: BTreeMap<String, String>,
    /// When the tables are backed up; `None`: never.
    #[serde(default)]
    pub backups: Option<BackupSchedule>,
}

/// When a cell's tables are backed up, and for how long that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSchedule {
    /// Between two backups, 1-720.
    pub every_hours: u32,
    /// 1-3,650.
    pub keep_days: u32,
}

impl TableSet {
    /// Identifies this version.
    pub fn etag(&self) -> String {
        format!("v{}", self.version)
    }

    /// The tables that a cell has by this set, for its registration. `together`: one transaction spans them and the
    /// directory's own.
    pub fn cell_tables(&self, prefix: &str, cell: &Cell, together: bool) -> CellTables {
        let table = |spec: &TableSpec| CellTable {
            name: spec.name.clone(),
            table_name: spec.table_name(prefix, &cell.id),
            partition_key: spec.partition_key.name.clone(),
            sort_key: spec.sort_key.as_ref().map(|key| (key.name.clone(), key.key_type.into())),
            tenant_keys: spec.tenant_keys.iter().map(KeyTemplate::text).collect(),
            ttl_attribute: spec.ttl_attribute.clone(),
        };
        let tables = CellTables {
            set: self.id.as_str().to_owned(),
            version: self.version,
            tables: self.tables.iter().map(table).collect(),
            guards: None,
            together,
            guarded: false,
        };
        tables.with_guards_as(cell.tables.as_deref())
    }

    pub fn table(&self, name: &str) -> Option<&TableSpec> {
        self.tables.iter().find(|table| table.name == name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableSpec {
    /// Such as `CustomerData`.
    pub name: String,
    pub partition_key: KeyAttribute,
    pub sort_key: Option<KeyAttribute>,
    /// Which partitions belong to a tenant.
    pub tenant_keys: Vec<KeyTemplate>,
    pub indexes: Vec<IndexSpec>,
    /// The attribute by which the storage itself deletes.
    pub ttl_attribute: Option<String>,
    pub stream: Option<StreamView>,
    pub billing: Billing,
    /// Days to which the table can be set back, 1-35; `None`: off.
    pub recovery_days: Option<u8>,
    pub encryption: Encryption,
    pub deletion_protection: bool,
    pub class: TableClass,
    /// Regions that hold a replica, beside the cell's own.
    pub replicas: Vec<Region>,
}

impl TableSpec {
    /// The name that a cell's table has on AWS.
    pub fn table_name(&self, prefix: &str, cell: &CellId) -> String {
        format!("{prefix}{}-{cell}", self.name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct KeyAttribute {
    pub name: String,
    pub key_type: KeyType,
}

/// A name for each of an enum's values, as AWS writes it.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($value:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $(#[serde(rename = $text)] $value,)* }

        impl $name {
            pub fn as_str(self) -> &'static str {
                match self { $($name::$value => $text,)* }
            }

            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some($name::$value),)* _ => None }
            }
        }
    };
}

named! {
    /// What a key attribute holds.
    KeyType { String = "S", Number = "N", Binary = "B", }
}

impl From<KeyType> for cells_guard::KeyType {
    fn from(of: KeyType) -> Self {
        match of {
            KeyType::String => Self::String,
            KeyType::Number => Self::Number,
            KeyType::Binary => Self::Binary,
        }
    }
}

named! {
    /// What a stream's records hold.
    StreamView {
        KeysOnly = "KEYS_ONLY",
        NewImage = "NEW_IMAGE",
        OldImage = "OLD_IMAGE",
        Both = "NEW_AND_OLD_IMAGES",
    }
}

named! {
    TableClass { Standard = "STANDARD", InfrequentAccess = "STANDARD_INFREQUENT_ACCESS", }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexSpec {
    pub name: String,
    pub partition_key: KeyAttribute,
    pub sort_key: Option<KeyAttribute>,
    pub projection: Projection,
    /// Where the table is provisioned.
    pub throughput: Option<Throughput>,
}

/// What an index holds beside keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Projection {
    KeysOnly,
    All,
    /// These attributes.
    Include(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Billing {
    OnDemand,
    Provisioned(Throughput),
}

impl Billing {
    pub fn throughput(&self) -> Option<&Throughput> {
        match self {
            Billing::OnDemand => None,
            Billing::Provisioned(throughput) => Some(throughput),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throughput {
    pub read: Provision,
    pub write: Provision,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provision {
    /// Capacity units; where they are scaled, those to begin with.
    pub units: u64,
    pub autoscaling: Option<Autoscaling>,
}

/// Target tracking by Application Auto Scaling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Autoscaling {
    pub min: u64,
    pub max: u64,
    /// Consumed in percent of provisioned, 20-90.
    pub target_percent: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// With a key that AWS owns. Costs nothing.
    AwsOwned,
    /// With the account's own `aws/dynamodb`.
    AwsManaged,
    /// With this key: its ARN.
    Customer(String),
}

impl Encryption {
    /// Whether what is declared is what there is. Of a key in the account a table does not say whether it is AWS's own for DynamoDB.
    pub fn fits(&self, observed: &Encryption) -> bool {
        match (self, observed) {
            (Encryption::AwsManaged, Encryption::Customer(_)) => true,
            (declared, observed) => declared == observed,
        }
    }
}
