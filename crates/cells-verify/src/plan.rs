//! What is compared: every partition that the tables of either cell give to the tenant.
//!
//! A table or a template that one cell alone has is compared, too: at the other side there is nothing then.

use cells_guard::{CellTable, CellTables, KeyType, Touched};

use crate::canon::hash_of;
use crate::key::{self, SortKey};
use crate::{Item, Side, View};

/// Two cells that cannot be compared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Incompatible {
    #[error(
        "the table {table} has another key in one cell than in the other; give both cells tables of one table set"
    )]
    Keys { table: String },
    #[error("a cell is not compared with itself; name two cells")]
    SameCell,
    #[error("a cell's tables have two of the name {table}")]
    TwoTables { table: String },
}

#[derive(Debug)]
pub(crate) struct Plan {
    cells: (String, String),
    pub parts: Vec<Part>,
    /// Of all that a cursor rests on.
    pub mark: [u8; 8],
}

/// One partition of one table.
#[derive(Debug)]
pub(crate) struct Part {
    table: String,
    partition: String,
    source: Option<CellTable>,
    target: Option<CellTable>,
}

impl Plan {
    pub fn of(
        source: (&str, &CellTables),
        target: (&str, &CellTables),
        tenant: &str,
    ) -> Result<Self, Incompatible> {
        if source.0 == target.0 {
            return Err(Incompatible::SameCell);
        }
        let mut names: Vec<&str> = Vec::new();
        for CellTables { tables, .. } in [source.1, target.1] {
            for (at, CellTable { name, .. }) in tables.iter().enumerate() {
                if tables.iter().take(at).any(|other| other.name == *name) {
                    return Err(Incompatible::TwoTables { table: name.clone() });
                }
                if !names.contains(&name.as_str()) {
                    names.push(name);
                }
            }
        }
        let mut parts = Vec::new();
        for name in names {
            parts.extend(of_table(source.1.table(name), target.1.table(name), name, tenant)?);
        }
        Ok(Self::new((source.0, target.0), parts, tenant))
    }

    /// Of one cell alone, as the source.
    pub fn of_one(cell: &str, tables: &CellTables, tenant: &str) -> Result<Self, Incompatible> {
        let none = CellTables { tables: Vec::new(), ..tables.clone() };
        // No cell's name is empty.
        Self::of((cell, tables), ("", &none), tenant)
    }

    fn new(cells: (&str, &str), parts: Vec<Part>, tenant: &str) -> Self {
        let mut rests_on = vec![cells.0.to_owned(), cells.1.to_owned(), tenant.to_owned()];
        for part in &parts {
            rests_on.extend([part.table.clone(), part.partition.clone()]);
            rests_on.extend([&part.source, &part.target].map(|table| format!("{table:?}")));
        }
        let bytes: Vec<_> = rests_on.iter().map(String::as_bytes).collect();
        let mark = hash_of(&bytes).first_chunk().copied().unwrap_or_default();
        Self { cells: (cells.0.to_owned(), cells.1.to_owned()), parts, mark }
    }

    /// How a side of a part is looked at; `None`: that cell has no such partition.
    pub fn view<'a>(&'a self, part: &'a Part, side: Side, now: u64) -> Option<View<'a>> {
        let (table, cell, exact) = match side {
            Side::Source => (&part.source, &self.cells.0, false),
            Side::Target => (&part.target, &self.cells.1, true),
        };
        let partition = &part.partition;
        table.as_ref().map(|table| View { table, partition, cell, exact, now })
    }

    /// The number of the part that a key is in, and its sort key; `None`: it is not the tenant's, or no whole key.
    pub fn find(&self, at: &Touched) -> Option<(usize, SortKey)> {
        self.parts.iter().enumerate().filter(|(_, part)| part.table == at.table).find_map(
            |(number, part)| {
                let table = part.source.as_ref().or(part.target.as_ref())?;
                let sort = key::sort_key(table, &part.partition, &at.key)?;
                (at.key.len() == table.key_names().count()).then_some((number, sort))
            },
        )
    }
}

impl Part {
    pub fn touched(&self, key: Item) -> Touched {
        Touched { table: self.table.clone(), key }
    }

    pub fn key_hash(&self, sort: &SortKey) -> String {
        key::key_hash(&self.partition, &sort.order)
    }

    /// The key with this sort key.
    pub fn key(&self, sort: &SortKey) -> Item {
        let table = self.source.as_ref().or(self.target.as_ref());
        table.map_or_else(Item::new, |table| key::key(table, &self.partition, sort.value.as_ref()))
    }
}

fn of_table(
    source: Option<&CellTable>,
    target: Option<&CellTable>,
    name: &str,
    tenant: &str,
) -> Result<Vec<Part>, Incompatible> {
    fn shape(table: &CellTable) -> (&str, Option<&(String, KeyType)>) {
        (&table.partition_key, table.sort_key.as_ref())
    }
    if let (Some(source), Some(target)) = (source, target)
        && shape(source) != shape(target)
    {
        return Err(Incompatible::Keys { table: name.to_owned() });
    }
    let of = |table: Option<&CellTable>| -> Vec<String> {
        table.map_or_else(Vec::new, |table| table.partitions(tenant).collect())
    };
    let (at_source, at_target) = (of(source), of(target));
    let mut all: Vec<&String> = Vec::new();
    for partition in at_source.iter().chain(&at_target) {
        if !all.contains(&partition) {
            all.push(partition);
        }
    }
    let part = |partition: &String| Part {
        table: name.to_owned(),
        partition: partition.clone(),
        source: source.filter(|_| at_source.contains(partition)).cloned(),
        target: target.filter(|_| at_target.contains(partition)).cloned(),
    };
    Ok(all.into_iter().map(part).collect())
}
