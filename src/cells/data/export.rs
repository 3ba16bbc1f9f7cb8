//! All items of a tenant: every table of its cell, one after the other, each by the query that every caller has.
//!
//! Invariant: what an export may lack, it says. A position names its table, so that it holds after the tenant has moved to a cell whose
//! table set has others.

use super::query::{CellFailure, Found};
use super::{CellData, DataError, Lives, Position, Query};
use crate::domain::{CellId, PartitionKey};

/// What to export.
#[derive(Debug, Clone)]
pub struct Export {
    pub tenant: PartitionKey,
    pub all_cells: bool,
    pub consistent: bool,
}

/// Where an export goes on: in this table, after this position, or at its beginning.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportPosition {
    /// Where the tenant lived.
    pub home: CellId,
    pub table: String,
    pub within: Option<Position>,
}

/// Items of one table.
#[derive(Debug, Default)]
pub struct Exported {
    /// `None`: there is no table.
    pub table: Option<String>,
    pub found: Found,
    /// Tables that could not be read, each with the cell that has them.
    pub failures: Vec<(String, CellFailure)>,
    /// `None`: that was all.
    pub next: Option<ExportPosition>,
}

impl CellData {
    /// A part of a tenant's items, of one table, at most `limit`.
    ///
    /// # Errors
    /// Those of the current cell. What a previous cell keeps back is in [`Exported::failures`].
    pub async fn export(
        &self,
        export: &Export,
        from: Option<ExportPosition>,
        limit: usize,
    ) -> Result<Exported, DataError> {
        let lives = self.home(&export.tenant).await?;
        let home = lives.cell.clone();
        let mut names: Vec<_> =
            self.tables(&home).await?.into_iter().map(|spec| spec.name).collect();
        if names.is_empty() {
            return Err(DataError::NotProvisioned { cell: home });
        }
        names.sort_unstable();
        let mut exported = Exported::default();
        // Whoever moves leaves another cell behind.
        if from.as_ref().is_none_or(|from| from.home != home) && export.all_cells {
            exported.failures = self.out_of_reach(&export.tenant, &lives, &names).await?;
        }
        let wanted = from.as_ref().map_or("", |from| from.table.as_str());
        if from.is_some() && !names.iter().any(|name| name == wanted) {
            // The tenant has moved, and the rest of this table is not where it lives.
            exported.failures.push((wanted.to_owned(), unknown(&home, wanted)));
        }
        names.retain(|name| name.as_str() >= wanted);
        let mut names = names.into_iter();
        let Some(table) = names.next() else { return Ok(exported) };
        let query = Query {
            tenant: export.tenant.clone(),
            table: table.clone(),
            sort_key_prefix: None,
            entity_type: None,
            all_cells: export.all_cells,
            consistent: export.consistent,
            limit,
        };
        let within = from.filter(|from| from.table == table).and_then(|from| from.within);
        exported.found = self.query(&query, within).await?;
        let failures = std::mem::take(&mut exported.found.failures).into_iter();
        exported.failures.extend(failures.map(|failure| (table.clone(), failure)));
        let next = match exported.found.next.take() {
            Some(position) => Some((table.clone(), Some(position))),
            None => names.next().map(|table| (table, None)),
        };
        exported.next = next.map(|(table, within)| ExportPosition { home, table, within });
        exported.table = Some(table);
        Ok(exported)
    }

    /// Tables of previous cells that the current one does not have: a query begins at the current cell's.
    async fn out_of_reach(
        &self,
        tenant: &PartitionKey,
        home: &Lives,
        names: &[String],
    ) -> Result<Vec<(String, CellFailure)>, DataError> {
        let mut failures = Vec::new();
        for cell in self.previous(tenant, home).await?.asked {
            let tables = match self.tables(&cell).await {
                Ok(tables) => tables,
                Err(error) => {
                    failures.push((String::new(), CellFailure { cell, error }));
                    continue;
                }
            };
            for spec in tables {
                if !names.contains(&spec.name) {
                    let failure = unknown(&cell, &spec.name);
                    failures.push((spec.name, failure));
                }
            }
        }
        Ok(failures)
    }
}

fn unknown(cell: &CellId, table: &str) -> CellFailure {
    let error = DataError::UnknownTable { cell: cell.clone(), table: table.to_owned() };
    CellFailure { cell: cell.clone(), error }
}
