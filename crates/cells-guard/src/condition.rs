//! What is asked of a guard, as a condition on its item.

use aws_sdk_dynamodb::types::builders::ConditionCheckBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, ConditionCheck};
use cells_migration::{GuardCheck, GuardState, WriteMode};

use crate::guard::{
    self, CELL, EPOCH, MIGRATION, MODE, STATE, WORKER, migration_name, mode_name, state_name,
};
use crate::{GuardTable, number, text};

/// A condition expression and the values of its placeholders, which begin with `:guard`. It names attributes as they are: none of them is
/// a reserved word.
#[derive(Debug, Clone, PartialEq)]
pub struct Condition {
    pub expression: String,
    pub values: Vec<(String, AttributeValue)>,
}

impl Condition {
    /// That the guard of `cell` is as the check asks.
    pub fn of(check: &GuardCheck, cell: &str) -> Self {
        let mut condition = Self { expression: String::new(), values: Vec::new() };
        let ours = condition.is(CELL, text(cell));
        let free = format!("attribute_not_exists({MIGRATION})");
        condition.expression = match check {
            GuardCheck::Vacant => {
                let moved = condition.is(STATE, text(state_name(GuardState::Moved)));
                // Another cell's guard, in a copy of its table, counts as none.
                format!("attribute_not_exists({CELL}) OR NOT {ours} OR ({moved} AND {free})")
            }
            GuardCheck::Idle { epoch } => {
                let open = condition.open(*epoch, WriteMode::Direct);
                format!("{ours} AND {open} AND {free}")
            }
            GuardCheck::Held { state, holder } => {
                let state = condition.is(STATE, text(state_name(*state)));
                let migration = condition.is(MIGRATION, text(migration_name(holder.migration)));
                let worker = condition.is(WORKER, number(holder.worker));
                format!("{ours} AND {state} AND {migration} AND {worker}")
            }
            GuardCheck::Of { migration } => {
                let migration = condition.is(MIGRATION, text(migration_name(*migration)));
                format!("{ours} AND {migration}")
            }
            GuardCheck::Open { epoch, mode, migration } => {
                let open = condition.open(*epoch, *mode);
                match (mode, migration) {
                    (WriteMode::Logged, Some(migration)) => {
                        let migration = condition.is(MIGRATION, text(migration_name(*migration)));
                        format!("{ours} AND {open} AND {migration}")
                    }
                    (WriteMode::Logged, None) => format!("{ours} AND {open} AND {free}"),
                    (WriteMode::Direct, _) => format!("{ours} AND {open}"),
                }
            }
        };
        condition
    }

    /// The same as a part of a transaction, of one of the items of a tenant's guard.
    pub fn of_guard(self, table: &GuardTable, tenant: &str, shard: u8) -> ConditionCheckBuilder {
        ConditionCheck::builder()
            .table_name(&table.table_name)
            .set_key(Some(guard::key(table, tenant, shard)))
            .condition_expression(self.expression)
            .set_expression_attribute_values(Some(self.values.into_iter().collect()))
    }

    fn open(&mut self, epoch: u64, mode: WriteMode) -> String {
        let state = self.is(STATE, text(state_name(GuardState::Open)));
        let epoch = self.is(EPOCH, number(epoch));
        let mode = self.is(MODE, text(mode_name(mode)));
        format!("{state} AND {epoch} AND {mode}")
    }

    fn is(&mut self, attribute: &str, value: AttributeValue) -> String {
        let placeholder = format!(":guard{}", self.values.len());
        let term = format!("{attribute} = {placeholder}");
        self.values.push((placeholder, value));
        term
    }
}
