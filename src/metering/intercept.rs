//! Asks for the consumed capacity of every call to DynamoDB, and counts it, in the one place that every call passes.
//!
//! `TOTAL`, not `INDEXES`: what is counted is a table with its indexes, as an operator pays for it, and the shorter answer is cheaper to
//! carry and to parse on every miss. What CloudWatch counts of an index by itself is asked for there.
//!
//! An answer that is an error tells no units, though a condition that did not hold consumed some: those only CloudWatch counts.

use std::collections::HashMap;
use std::sync::Arc;

use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::operation as op;
use aws_sdk_dynamodb::operation::transact_get_items::TransactGetItemsError;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{
    CancellationReason, ConsumedCapacity, ReturnConsumedCapacity, TransactWriteItem,
};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::{
    AfterDeserializationInterceptorContextRef, BeforeSerializationInterceptorContextMut, Error,
    Input, Output,
};
use aws_smithy_runtime_api::client::interceptors::{Intercept, dyn_dispatch_hint};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::{ConfigBag, Storable, StoreReplace};

use super::consumption::{Consumption, Direction, Table};

/// Codes of answers, or of a cancelled transaction's reasons, that mean that the rate was too high.
const THROTTLED: [&str; 5] = [
    "ProvisionedThroughputExceededException",
    "ThrottlingException",
    "RequestLimitExceeded",
    "ThrottlingError",
    "ProvisionedThroughputExceeded",
];

/// Counts what the calls of a client consume. To be added to the configuration of every client of DynamoDB.
#[derive(Debug)]
pub struct Counting(pub Consumption);

/// What is remembered of a call until it is answered.
#[derive(Debug)]
struct Asked {
    operation: &'static Operation,
    /// Of a transaction, the table of each item, in their order.
    tables: Vec<Arc<Table>>,
}

impl Storable for Asked {
    type Storer = StoreReplace<Self>;
}

/// How a kind of call is counted.
#[derive(Debug)]
struct Operation {
    /// As the API names it.
    #[cfg_attr(not(test), expect(dead_code, reason = "for whoever debugs, and for the tests"))]
    name: &'static str,
    direction: Direction,
    /// Asks for the consumed capacity, and finds the tables. `None`: it is another kind of call.
    ask: fn(&mut Input, &Consumption) -> Option<Vec<Arc<Table>>>,
    /// What an answer says of each table.
    consumed: fn(&Output) -> &[ConsumedCapacity],
    throttled: fn(&Error) -> Throttled,
}

/// Whether an error is a throttle.
enum Throttled {
    No,
    All,
    /// Of a transaction, the items by their places.
    Items(Vec<usize>),
}

/// An [`Operation`] by its types in the SDK: how its input names tables, its output what was consumed, and its error a throttle.
macro_rules! operation {
    ($name:literal, $direction:ident, $input:ty, $output:ty, $error:ty, $tables:expr, $throttled:expr) => {
        Operation {
            name: $name,
            direction: Direction::$direction,
            ask: |input, consumption| {
                let input = input.downcast_mut::<$input>()?;
                input.return_consumed_capacity.get_or_insert(ReturnConsumedCapacity::Total);
                let tables: fn(&$input, &Consumption) -> Vec<Arc<Table>> = $tables;
                Some(tables(input, consumption))
            },
            consumed: |output| match output.downcast_ref::<$output>() {
                Some(output) => output.consumed_capacity.units(),
                None => &[],
            },
            throttled: |error| {
                let throttled: fn(&$error) -> Throttled = $throttled;
                error.downcast_ref::<$error>().map_or(Throttled::No, throttled)
            },
        }
    };
}

/// Every call that reads or writes items. The most frequent first: they are tried in this order.
static OPERATIONS: [Operation; 10] = [
    operation!(
        "GetItem",
        Read,
        op::get_item::GetItemInput,
        op::get_item::GetItemOutput,
        op::get_item::GetItemError,
        |input, consumption| one(input.table_name(), consumption),
        whole
    ),
    operation!(
        "BatchGetItem",
        Read,
        op::batch_get_item::BatchGetItemInput,
        op::batch_get_item::BatchGetItemOutput,
        op::batch_get_item::BatchGetItemError,
        |input, consumption| all(
            input.request_items().into_iter().flat_map(HashMap::keys),
            consumption
        ),
        whole
    ),
    operation!(
        "Query",
        Read,
        op::query::QueryInput,
        op::query::QueryOutput,
        op::query::QueryError,
        |input, consumption| one(input.table_name(), consumption),
        whole
    ),
    operation!(
        "TransactWriteItems",
        Write,
        op::transact_write_items::TransactWriteItemsInput,
        op::transact_write_items::TransactWriteItemsOutput,
        op::transact_write_items::TransactWriteItemsError,
        |input, consumption| all(input.transact_items().iter().map(written), consumption),
        |error| match error {
            TransactWriteItemsError::TransactionCanceledException(cancelled) => {
                items(cancelled.cancellation_reasons())
            }
            error => whole(error),
        }
    ),
    operation!(
        "PutItem",
        Write,
        op::put_item::PutItemInput,
        op::put_item::PutItemOutput,
        op::put_item::PutItemError,
        |input, consumption| one(input.table_name(), consumption),
        whole
    ),
    operation!(
        "UpdateItem",
        Write,
        op::update_item::UpdateItemInput,
        op::update_item::UpdateItemOutput,
        op::update_item::UpdateItemError,
        |input, consumption| one(input.table_name(), consumption),
        whole
    ),
    operation!(
        "DeleteItem",
        Write,
        op::delete_item::DeleteItemInput,
        op::delete_item::DeleteItemOutput,
        op::delete_item::DeleteItemError,
        |input, consumption| one(input.table_name(), consumption),
        whole
    ),
    operation!(
        "BatchWriteItem",
        Write,
        op::batch_write_item::BatchWriteItemInput,
        op::batch_write_item::BatchWriteItemOutput,
        op::batch_write_item::BatchWriteItemError,
        |input, consumption| all(
            input.request_items().into_iter().flat_map(HashMap::keys),
            consumption
        ),
        whole
    ),
    operation!(
        "Scan",
        Read,
        op::scan::ScanInput,
        op::scan::ScanOutput,
        op::scan::ScanError,
        |input, consumption| one(input.table_name(), consumption),
        whole
    ),
    operation!(
        "TransactGetItems",
        Read,
        op::transact_get_items::TransactGetItemsInput,
        op::transact_get_items::TransactGetItemsOutput,
        op::transact_get_items::TransactGetItemsError,
        |input, consumption| {
            let gets = input.transact_items().iter();
            all(gets.map(|item| item.get().map_or("", |get| get.table_name())), consumption)
        },
        |error| match error {
            TransactGetItemsError::TransactionCanceledException(cancelled) => {
                items(cancelled.cancellation_reasons())
            }
            error => whole(error),
        }
    ),
];

fn one(table: Option<&str>, consumption: &Consumption) -> Vec<Arc<Table>> {
    table.map(|table| consumption.table(table)).into_iter().collect()
}

fn all<T: AsRef<str>>(
    tables: impl Iterator<Item = T>,
    consumption: &Consumption,
) -> Vec<Arc<Table>> {
    tables.map(|table| consumption.table(table.as_ref())).collect()
}

/// The table of a transaction's item. One without a table is refused by DynamoDB.
fn written(item: &TransactWriteItem) -> &str {
    let put = item.put().map(|put| put.table_name());
    let update = || item.update().map(|update| update.table_name());
    let delete = || item.delete().map(|delete| delete.table_name());
    let check = || item.condition_check().map(|check| check.table_name());
    put.or_else(update).or_else(delete).or_else(check).unwrap_or_default()
}

fn throttling(code: Option<&str>) -> bool {
    code.is_some_and(|code| THROTTLED.contains(&code))
}

fn whole(error: &impl ProvideErrorMetadata) -> Throttled {
    if throttling(error.code()) { Throttled::All } else { Throttled::No }
}

fn items(reasons: &[CancellationReason]) -> Throttled {
    let reasons = reasons.iter().enumerate();
    Throttled::Items(reasons.filter(|(_, why)| throttling(why.code())).map(|(at, _)| at).collect())
}

/// The tables of which a batch was answered in part.
fn left_undone(output: &Output) -> Vec<&str> {
    let keys = output.downcast_ref::<op::batch_get_item::BatchGetItemOutput>();
    let keys =
        keys.and_then(|output| output.unprocessed_keys()).into_iter().flat_map(HashMap::keys);
    let items = output.downcast_ref::<op::batch_write_item::BatchWriteItemOutput>();
    let items = items.and_then(|output| output.unprocessed_items());
    keys.chain(items.into_iter().flat_map(HashMap::keys)).map(String::as_str).collect()
}

/// What an answer says of the units of its tables: one table's, or several'.
trait Units {
    fn units(&self) -> &[ConsumedCapacity];
}

impl Units for Option<ConsumedCapacity> {
    fn units(&self) -> &[ConsumedCapacity] {
        Option::as_slice(self)
    }
}

impl Units for Option<Vec<ConsumedCapacity>> {
    fn units(&self) -> &[ConsumedCapacity] {
        self.as_deref().unwrap_or_default()
    }
}

impl Asked {
    fn count(&self, consumed: &ConsumedCapacity, consumption: &Consumption) {
        let (read, write) = match (consumed.read_capacity_units, consumed.write_capacity_units) {
            // A transaction that is repeated by its token reads what it wrote.
            (None, None) => {
                let units = consumed.capacity_units.unwrap_or_default();
                match self.operation.direction {
                    Direction::Read => (units, 0.0),
                    Direction::Write => (0.0, units),
                }
            }
            (read, write) => (read.unwrap_or_default(), write.unwrap_or_default()),
        };
        let name = consumed.table_name().unwrap_or_default();
        match self.tables.iter().find(|table| table.name() == name) {
            Some(table) => table.consumed(read, write),
            // A table that is called by its ARN is answered by that, too; we call them by name.
            None => match self.tables.first() {
                Some(table) if self.tables.len() == 1 => table.consumed(read, write),
                _ => consumption.table(name).consumed(read, write),
            },
        }
    }

    /// The tables, though several items are of the same.
    fn each_once(&self) -> impl Iterator<Item = &Arc<Table>> {
        let before = |at| self.tables.iter().take(at);
        let tables = self.tables.iter().enumerate();
        let first = tables.filter(move |(at, table)| !before(*at).any(|t| Arc::ptr_eq(t, table)));
        first.map(|(_, table)| table)
    }

    /// What a batch left undone of a table counts as one throttle, which it nearly always is: of our batches, none comes near the limits
    /// of an answer's size.
    fn count_left_undone(&self, output: &Output) {
        let left = left_undone(output);
        let direction = self.operation.direction;
        let tables = self.each_once().filter(|table| left.contains(&table.name()));
        tables.for_each(|table| table.throttled(direction));
    }

    fn count_throttles(&self, error: &Error) {
        let direction = self.operation.direction;
        match (self.operation.throttled)(error) {
            Throttled::No => {}
            Throttled::All => self.each_once().for_each(|table| table.throttled(direction)),
            Throttled::Items(places) => {
                let tables = places.into_iter().filter_map(|at| self.tables.get(at));
                tables.for_each(|table| table.throttled(direction));
            }
        }
    }
}

#[dyn_dispatch_hint]
impl Intercept for Counting {
    fn name(&self) -> &'static str {
        "Counting"
    }

    fn modify_before_serialization(
        &self,
        context: &mut BeforeSerializationInterceptorContextMut<'_>,
        _components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let input = context.input_mut();
        for operation in &OPERATIONS {
            if let Some(tables) = (operation.ask)(input, &self.0) {
                cfg.interceptor_state().store_put(Asked { operation, tables });
                break;
            }
        }
        Ok(())
    }

    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        cfg: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let Some(asked) = cfg.load::<Asked>() else { return Ok(()) };
        match context.output_or_error() {
            Ok(output) => {
                for consumed in (asked.operation.consumed)(output) {
                    asked.count(consumed, &self.0);
                }
                asked.count_left_undone(output);
            }
            Err(error) => {
                if let Some(error) = error.as_operation_error() {
                    asked.count_throttles(error);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::error::{
        ProvisionedThroughputExceededException, RequestLimitExceeded, ResourceNotFoundException,
        TransactionCanceledException,
    };

    use super::*;

    fn asked(name: &str, tables: &[&str], consumption: &Consumption) -> Asked {
        let operation = OPERATIONS.iter().find(|operation| operation.name == name).unwrap();
        Asked { operation, tables: all(tables.iter(), consumption) }
    }

    fn throttles(consumption: &Consumption, table: &str) -> (u64, u64) {
        let used = consumption.used(table);
        (used.throttled_reads, used.throttled_writes)
    }

    #[test]
    fn a_throttled_call_counts_for_its_tables_in_its_direction() {
        let consumption = Consumption::default();
        let code = |code| aws_sdk_dynamodb::error::ErrorMetadata::builder().code(code).build();
        let get = asked("GetItem", &["a"], &consumption);
        let exceeded = ProvisionedThroughputExceededException::builder()
            .meta(code("ProvisionedThroughputExceededException"));
        get.count_throttles(&Error::erase(
            op::get_item::GetItemError::ProvisionedThroughputExceededException(exceeded.build()),
        ));
        let throttling = op::get_item::GetItemError::generic(code("ThrottlingException"));
        get.count_throttles(&Error::erase(throttling));
        let absent = ResourceNotFoundException::builder().meta(code("ResourceNotFoundException"));
        get.count_throttles(&Error::erase(op::get_item::GetItemError::ResourceNotFoundException(
            absent.build(),
        )));
        assert_eq!(throttles(&consumption, "a"), (2, 0));
        let batch = asked("BatchWriteItem", &["a", "b"], &consumption);
        let limit = RequestLimitExceeded::builder().meta(code("RequestLimitExceeded")).build();
        batch.count_throttles(&Error::erase(
            op::batch_write_item::BatchWriteItemError::RequestLimitExceeded(limit),
        ));
        assert_eq!((throttles(&consumption, "a"), throttles(&consumption, "b")), ((2, 1), (0, 1)));
    }

    #[test]
    fn a_throttled_transaction_counts_once_a_table() {
        let consumption = Consumption::default();
        let transaction = asked("TransactWriteItems", &["a", "b", "a", "a"], &consumption);
        let code = aws_sdk_dynamodb::error::ErrorMetadata::builder().code("ThrottlingException");
        let error = TransactWriteItemsError::generic(code.build());
        transaction.count_throttles(&Error::erase(error));
        assert_eq!((throttles(&consumption, "a"), throttles(&consumption, "b")), ((0, 1), (0, 1)));
    }

    #[test]
    fn what_a_batch_leaves_undone_counts_once_a_table() {
        use aws_sdk_dynamodb::types::{DeleteRequest, WriteRequest};

        let consumption = Consumption::default();
        let batch = asked("BatchWriteItem", &["a", "b"], &consumption);
        let delete = DeleteRequest::builder().set_key(Some(HashMap::new())).build().unwrap();
        let left = vec![WriteRequest::builder().delete_request(delete).build(); 3];
        let answer = op::batch_write_item::BatchWriteItemOutput::builder();
        batch.count_left_undone(&Output::erase(answer.clone().build()));
        batch.count_left_undone(&Output::erase(answer.unprocessed_items("b", left).build()));
        assert_eq!((throttles(&consumption, "a"), throttles(&consumption, "b")), ((0, 0), (0, 1)));
    }

    #[test]
    fn a_cancelled_transaction_counts_for_the_items_that_were_throttled() {
        let consumption = Consumption::default();
        let transaction = asked("TransactWriteItems", &["a", "b", "a", "c"], &consumption);
        let reasons =
            ["ThrottlingError", "ConditionalCheckFailed", "ProvisionedThroughputExceeded", "None"];
        let reasons = reasons.map(|code| CancellationReason::builder().code(code).build());
        let cancelled =
            TransactionCanceledException::builder().set_cancellation_reasons(Some(reasons.into()));
        transaction.count_throttles(&Error::erase(
            TransactWriteItemsError::TransactionCanceledException(cancelled.build()),
        ));
        assert_eq!(throttles(&consumption, "a"), (0, 2));
        assert_eq!((throttles(&consumption, "b"), throttles(&consumption, "c")), ((0, 0), (0, 0)));
    }

    #[test]
    fn units_that_are_told_by_kind_are_taken_by_kind() {
        let consumption = Consumption::default();
        let transaction = asked("TransactWriteItems", &["a", "b"], &consumption);
        let consumed = ConsumedCapacity::builder().table_name("b").capacity_units(6.0);
        transaction.count(&consumed.clone().build(), &consumption);
        let by_kind = consumed.read_capacity_units(2.0).write_capacity_units(4.0);
        transaction.count(&by_kind.build(), &consumption);
        let used = consumption.used("b");
        assert_eq!((used.units(Direction::Read), used.units(Direction::Write)), (2.0, 10.0));
        assert_eq!(consumption.used("a"), super::super::consumption::Used::default());
    }
}
