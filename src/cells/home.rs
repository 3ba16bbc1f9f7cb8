//! Where the directory's own tables are, and which others one transaction reaches together with them.

use cells_guard::CellTables;

use super::cloud::{Cloud, CloudError, TableRef};
use super::table_set::TableSet;
use crate::domain::{Cell, Region};

/// The Region of the directory's own tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    pub region: Region,
    /// The endpoint is not AWS's own. Some emulators have one place for the tables of all Regions.
    pub emulated: bool,
}

impl Home {
    /// The tables that a cell has by a table set, for its registration.
    pub async fn tables_of(
        &self,
        cloud: &dyn Cloud,
        set: &TableSet,
        prefix: &str,
        cell: &Cell,
    ) -> Result<CellTables, CloudError> {
        let together = match set.tables.first() {
            Some(first) => self.reaches(cloud, cell, &first.table_name(prefix, &cell.id)).await?,
            None => false,
        };
        Ok(set.cell_tables(prefix, cell, together))
    }

    /// Whether one transaction spans the directory's tables and this one of a cell: it is in the same Region.
    async fn reaches(
        &self,
        cloud: &dyn Cloud,
        cell: &Cell,
        table: &str,
    ) -> Result<bool, CloudError> {
        if self.region == cell.region {
            return Ok(true);
        }
        if !self.emulated {
            // A table of the same name in this Region would be a replica.
            return Ok(false);
        }
        let here = TableRef { region: self.region.clone(), name: table.to_owned() };
        Ok(cloud.observe(&here).await?.is_some())
    }
}
