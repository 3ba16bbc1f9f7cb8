//! Which cell a table is of, by its name.
//!
//! A cell's table is named `{prefix}{name}-{cell id}`. Names and ids may hold hyphens, so of several registered cells whose ids a name
//! ends with, the longest is taken. What belongs to no registered cell is counted together: labels are of a closed set.

use crate::directory::Registry;
use crate::store::dynamodb::TableNames;

/// Stands for the control tables; no cell can be named so.
pub const CONTROL: &str = "_CONTROL";

/// Stands for tables that are nobody's.
pub const OTHER: &str = super::consumption::OTHER_TABLE;

/// A table's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner<'a> {
    pub cell: &'a str,
    pub table: &'a str,
}

/// What tables' names are made of.
#[derive(Debug, Clone)]
pub struct Names {
    pub control: TableNames,
    /// Before every table's name.
    pub prefix: String,
}

impl Names {
    /// Whose table it is. Without a registry nobody's is known but the control tables'.
    pub fn owner<'a>(&self, table: &'a str, registry: Option<&Registry>) -> Owner<'a> {
        if [self.control.mappings(), self.control.control()].contains(&table) {
            return Owner { cell: CONTROL, table };
        }
        let cell = registry.and_then(|registry| {
            let rest = table.strip_prefix(self.prefix.as_str())?;
            // From the left, so that the longest comes first; a table's own name is never empty.
            let hyphens = rest.match_indices('-').map(|(at, _)| at).filter(|at| *at > 0);
            let mut ids = hyphens.filter_map(|at| rest.get(at + 1..));
            ids.find(|id| registry.cell_named(id).is_some())
        });
        match cell {
            Some(cell) => Owner { cell, table },
            None => Owner { cell: OTHER, table: OTHER },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::fixtures::cell;
    use crate::domain::{Cluster, JournalId, Sequence};
    use crate::store::Head;

    #[test]
    fn tables_are_of_registered_cells_or_of_the_control_plane_or_nobodys() {
        let cells = vec![cell("a", 1), cell("b-a", 1), cell("ab", 1)];
        let registry = {
            let head = Head { sequence: Sequence::START, journal: JournalId::default() };
            Registry::load(head, cells, Cluster::default())
        };
        let control = TableNames::with_prefix("p-").unwrap();
        let names = Names { control, prefix: "p-".to_owned() };
        for (table, owner) in [
            ("p-CellControl", CONTROL),
            ("p-CellMappings", CONTROL),
            ("p-Orders-a", "a"),
            ("p-X-a", "a"),
            ("p-Orders-b-a", "b-a"),
            ("p-Order-lines-ab", "ab"),
            ("p-Orders-c", OTHER),
            ("q-Orders-a", OTHER),
            ("p--a", OTHER),
            ("p-a", OTHER),
            ("Orders-a", OTHER),
            (OTHER, OTHER),
        ] {
            let of = names.owner(table, Some(&registry));
            assert_eq!(of.cell, owner, "{table}");
            assert_eq!(of.table, if owner == OTHER { OTHER } else { table });
        }
        assert_eq!(names.owner("p-Orders-a", None).cell, OTHER);
        assert_eq!(names.owner("p-CellControl", None).cell, CONTROL);
    }
}
