//! Guards in cells' tables, as part of a commit or of a migration's own transactions.

use aws_sdk_dynamodb::types::{Delete, Put, TransactWriteItem, Update};
use cells_guard::guard::{self, MIGRATION, WORKER};
use cells_guard::{Condition, Item};

use super::attributes::{number, text};
use super::transact::{delete, put, update};
use crate::store::{GuardEffect, GuardWrite, StoreError};

pub(super) fn transact_item(write: &GuardWrite) -> Result<TransactWriteItem, StoreError> {
    let GuardWrite { table, cell, tenant, shard, check, effect } = write;
    let condition = check.map(|check| Condition::of(&check, cell.as_str()));
    let values = condition.as_ref().map(|condition| condition.values.iter().cloned());
    let values: Option<Item> = values.map(Iterator::collect);
    let expression = condition.map(|condition| condition.expression);
    let key = || Some(guard::key(table, tenant.as_str(), *shard));
    match effect {
        GuardEffect::Set(stored) => put(Put::builder()
            .table_name(&table.table_name)
            .set_item(Some(guard::item(table, tenant.as_str(), *shard, stored)))
            .set_condition_expression(expression)
            .set_expression_attribute_values(values)
            .build()),
        GuardEffect::Hold(holder) => {
            let migration = guard::migration_name(holder.migration);
            let mut values = values.unwrap_or_default();
            values.insert(":migration".to_owned(), text(migration));
            values.insert(":worker".to_owned(), number(holder.worker));
            update(
                Update::builder()
                    .table_name(&table.table_name)
                    .set_key(key())
                    .update_expression(format!("SET {MIGRATION} = :migration, {WORKER} = :worker"))
                    .set_condition_expression(expression)
                    .set_expression_attribute_values(Some(values))
                    .build(),
            )
        }
        GuardEffect::Remove => delete(
            Delete::builder()
                .table_name(&table.table_name)
                .set_key(key())
                .set_condition_expression(expression)
                .set_expression_attribute_values(values)
                .build(),
        ),
    }
}
