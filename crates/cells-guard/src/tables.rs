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
    /// Whether one transaction can span these tables and the directory's own: same account, same Region.
    pub together: bool,
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

/// The table that holds a cell's guards and logs.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GuardTable {
    /// As DynamoDB names it.
    pub table_name: String,
    pub partition_key: String,
    pub sort_key: String,
}

impl CellTables {
    /// The first table with a string sort key; `None`: the cell can hold no guards, and none of its tenants can move.
    pub fn guard_table(&self) -> Option<GuardTable> {
        self.tables.iter().find_map(|table| {
            let (sort_key, _) = table.sort_key.as_ref().filter(|(_, of)| *of == KeyType::String)?;
            Some(GuardTable {
                table_name: table.table_name.clone(),
                partition_key: table.partition_key.clone(),
                sort_key: sort_key.clone(),
            })
        })
    }

    pub fn table(&self, name: &str) -> Option<&CellTable> {
        self.tables.iter().find(|table| table.name == name)
    }
}

impl CellTable {
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
