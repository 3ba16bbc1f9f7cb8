//! Where the directory's own tables are, and which others one transaction reaches together with them.

use super::cloud::{Cloud, CloudError, TableRef};
use crate::domain::{Cell, Region};

/// The Region of the directory's own tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    pub region: Region,
    /// The endpoint is not AWS's own. Some emulators have one place for the tables of all Regions.
    pub emulated: bool,
}

impl Home {
    /// Whether one transaction spans the directory's tables and this one of a cell: it is in the same Region.
    pub async fn reaches(
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
