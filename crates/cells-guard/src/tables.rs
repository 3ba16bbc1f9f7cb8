//! Which tables a cell has, as writers and movers need to know it.

use serde::{Deserialize, Serialize};

/// The tables that a cell has by its table set. Kept in the cell's registration and in the journal as JSON: fields are added with a
/// default, and never renamed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellTables {
    /// The table set and its version.
    pub set: String,
    pub version: u64,
    pub tables: Vec<CellTable>,
    /// The name of the table that holds guards and logs. It stays the same as long as the cell has tables; `None`: none of them can, and
    /// none of the cell's tenants can move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guards: Option<String>,
    /// Whether one transaction can span these tables and the directory's own: same account, same Region.
    pub together: bool,
    /// Whether every tenant of the cell was seen to have a guard. Those who came after the tables were registered have one anyway.
    #[serde(default)]
    pub guarded: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CellTable {
    /// As the table set names it, such as `CustomerData`.
    pub name: String,
    /// As DynamoDB does, such as `CustomerData-cell-a`.
    pub table_name: String,
    /// The name of the partition key's attribute, which is a string.
    pub partition_key: String,
    /// The name and the type of the sort key's attribute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort_key: Option<(String, KeyType)>,
    /// Which partitions belong to a tenant, such as `CUSTOMER#{partition_key}`.
    pub tenant_keys: Vec<String>,
    /// The attribute by which the storage itself deletes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_attribute: Option<String>,
}

/// What a key attribute holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum KeyType {
    #[serde(rename = "S")]
    String,
    #[serde(rename = "N")]
    Number,
    #[serde(rename = "B")]
    Binary,
}

impl KeyType {
    /// As DynamoDB writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::String => "S",
            Self::Number => "N",
            Self::Binary => "B",
        }
    }
}

/// The table that holds a cell's guards and logs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GuardTable {
    /// As DynamoDB names it.
    pub table_name: String,
    pub partition_key: String,
    pub sort_key: String,
}

impl CellTables {
    /// The table that holds guards and logs.
    pub fn guard_table(&self) -> Option<GuardTable> {
        self.table(self.guards.as_ref()?)?.as_guard_table()
    }

    /// The table that holds guards and logs, where one transaction spans it and the directory's own.
    pub fn reachable_guards(&self) -> Option<GuardTable> {
        self.guard_table().filter(|_| self.together)
    }

    /// The same tables with guards where they were before, or else in the first table that can hold them.
    pub fn with_guards_as(mut self, before: Option<&Self>) -> Self {
        let can = |table: &&CellTable| table.as_guard_table().is_some();
        let stays = before.and_then(|before| self.table(before.guards.as_ref()?)).filter(can);
        let guarded = stays.is_some() && before.is_some_and(|before| before.guarded);
        let guards = stays.or(self.tables.iter().find(can)).map(|table| table.name.clone());
        (self.guards, self.guarded) = (guards, guarded);
        self
    }

    pub fn table(&self, name: &str) -> Option<&CellTable> {
        self.tables.iter().find(|table| table.name == name)
    }
}

impl CellTable {
    /// Only a string sort key has room for those of guards and log records.
    fn as_guard_table(&self) -> Option<GuardTable> {
        let (sort_key, _) = self.sort_key.as_ref().filter(|(_, of)| *of == KeyType::String)?;
        Some(GuardTable {
            table_name: self.table_name.clone(),
            partition_key: self.partition_key.clone(),
            sort_key: sort_key.clone(),
        })
    }

    /// The tenant's partitions, one for each template.
    pub fn partitions<'a>(&'a self, tenant: &'a str) -> impl Iterator<Item = String> + 'a {
        self.tenant_keys.iter().map(|template| template.replacen("{partition_key}", tenant, 1))
    }

    /// The names of the key's attributes.
    pub fn key_names(&self) -> impl Iterator<Item = &str> {
        let sort = self.sort_key.as_ref().map(|(name, _)| name.as_str());
        std::iter::once(self.partition_key.as_str()).chain(sort)
    }
}
