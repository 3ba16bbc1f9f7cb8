//! A write as data, held against the tables of a cell and made into DynamoDB's requests.

use std::collections::HashMap;

use aws_sdk_dynamodb::error::BuildError;
use aws_sdk_dynamodb::types::{
    AttributeValue, ConditionCheck, Delete, Put, TransactWriteItem, Update,
};

use super::error::Error;
use super::route::Home;
use super::{Job, Routes};
use crate::{CellTable, Item};

/// Writes of one transaction: DynamoDB takes 100 items, of which the guard and the log take one each. The same under a lease, so that no
/// transaction ceases to work because its tenant moves.
pub const MAX_WRITES: usize = 98;

/// The attribute that says which cell an item is in.
pub const CELL_ID: &str = "CellId";

/// A condition or an update, with what its names and values stand for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Expression {
    /// Empty: none.
    pub text: String,
    pub names: HashMap<String, String>,
    pub values: Item,
}

/// What to do with one item. Keys hold exactly the key's attributes.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Put(Item),
    /// By an expression that shares the condition's names and values.
    Update(Item, String),
    Delete(Item),
    /// Nothing but to hold it against the condition, beside other writes of a transaction.
    Check(Item),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// As the table set names it.
    pub table: String,
    /// What errors call the item or key.
    pub field: String,
    pub action: Action,
    pub condition: Expression,
}

impl Action {
    pub fn item(&self) -> &Item {
        match self {
            Self::Put(item) | Self::Update(item, _) | Self::Delete(item) | Self::Check(item) => {
                item
            }
        }
    }
}

impl Expression {
    /// Without names and values.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), ..Self::default() }
    }

    /// What `#name` stands for.
    pub fn name(mut self, placeholder: impl Into<String>, name: impl Into<String>) -> Self {
        self.names.insert(placeholder.into(), name.into());
        self
    }

    /// What `:value` stands for.
    pub fn value(mut self, placeholder: impl Into<String>, value: AttributeValue) -> Self {
        self.values.insert(placeholder.into(), value);
        self
    }
}

impl Write {
    /// The item in place of what is there.
    pub fn put(table: impl Into<String>, item: Item) -> Self {
        Self::of(table, "item", Action::Put(item))
    }

    /// Changes the item with this key, or makes it.
    pub fn update(table: impl Into<String>, key: Item, update: Expression) -> Self {
        let Expression { text, names, values } = update;
        let condition = Expression { text: String::new(), names, values };
        Self { condition, ..Self::of(table, "key", Action::Update(key, text)) }
    }

    /// Removes the item with this key.
    pub fn delete(table: impl Into<String>, key: Item) -> Self {
        Self::of(table, "key", Action::Delete(key))
    }

    /// Only holds the item with this key against a condition, beside the other writes of a transaction.
    pub fn check(table: impl Into<String>, key: Item, condition: Expression) -> Self {
        Self { condition, ..Self::of(table, "key", Action::Check(key)) }
    }

    /// Only if this holds. Names and values are added to those of an update.
    pub fn only_if(mut self, condition: Expression) -> Self {
        self.condition.text = condition.text;
        self.condition.names.extend(condition.names);
        self.condition.values.extend(condition.values);
        self
    }

    fn of(table: impl Into<String>, field: &str, action: Action) -> Self {
        let condition = Expression::default();
        Self { table: table.into(), field: field.to_owned(), action, condition }
    }

    /// Whether to do it twice is the same as to do it once: true of puts and deletes, and of updates that only set attributes to given
    /// values or remove them. Anything that may read what is there before is taken to: sums, list positions, functions, copies.
    pub fn repeatable(&self) -> bool {
        match &self.action {
            Action::Put(_) | Action::Delete(_) | Action::Check(_) => true,
            Action::Update(_, update) => {
                let words = || update.split(|c: char| !is_word(c));
                let mut set_to = update.split('=').skip(1);
                !update.contains(['[', '(', '+', '-'])
                    && !words().any(|word| word.eq_ignore_ascii_case("ADD"))
                    && set_to.all(|to| to.trim_start().starts_with(':'))
            }
        }
    }

    /// The key's attributes.
    pub(super) fn key(&self, table: &CellTable) -> Item {
        let item = self.action.item();
        let key = table.key_names().filter_map(|name| item.get_key_value(name));
        key.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Holds it against the table's key and the tenant's partitions.
    pub(super) fn fits<E>(&self, tenant: &str, table: &CellTable) -> Result<(), Error<E>> {
        let Self { field, action, condition, .. } = self;
        check_key(tenant, table, field, action.item())?;
        let whole = matches!(action, Action::Put(_));
        if !whole && action.item().len() != table.key_names().count() {
            return Err(Error::invalid(field, "holds more than the key"));
        }
        if let Action::Update(_, update) = action {
            let names = condition.names.values().map(String::as_str);
            let words = update.split(|c: char| !is_word(c));
            if names.chain(words).any(|name| name == CELL_ID) {
                return Err(Error::invalid("update", "names CellId, which the directory sets"));
            }
        }
        Ok(())
    }

    /// The item to put, which says what cell it is in.
    pub(super) fn stamped(item: &Item, cell: &str) -> Item {
        let mut item = item.clone();
        item.insert(CELL_ID.to_owned(), AttributeValue::S(cell.to_owned()));
        item
    }

    /// As a part of a transaction.
    pub(super) fn part(
        &self,
        table: &CellTable,
        cell: &str,
    ) -> Result<TransactWriteItem, BuildError> {
        let Parts { condition, names, values } = self.condition.parts();
        let name = &table.table_name;
        let item = TransactWriteItem::builder();
        let item = match &self.action {
            Action::Put(put) => item.put(
                Put::builder()
                    .table_name(name)
                    .set_item(Some(Self::stamped(put, cell)))
                    .set_condition_expression(condition)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .build()?,
            ),
            Action::Update(key, update) => item.update(
                Update::builder()
                    .table_name(name)
                    .set_key(Some(key.clone()))
                    .update_expression(update)
                    .set_condition_expression(condition)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .build()?,
            ),
            Action::Delete(key) => item.delete(
                Delete::builder()
                    .table_name(name)
                    .set_key(Some(key.clone()))
                    .set_condition_expression(condition)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .build()?,
            ),
            Action::Check(key) => item.condition_check(
                ConditionCheck::builder()
                    .table_name(name)
                    .set_key(Some(key.clone()))
                    .set_condition_expression(condition)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .build()?,
            ),
        };
        Ok(item.build())
    }
}

/// Holds an item or a key against the table's key and the tenant's partitions.
pub(super) fn check_key<E>(
    tenant: &str,
    table: &CellTable,
    field: &str,
    item: &Item,
) -> Result<(), Error<E>> {
    let name = &table.partition_key;
    let Some(AttributeValue::S(partition)) = item.get(name) else {
        return Err(Error::invalid(format!("{field}.{name}"), "is missing, or is not {\"S\": …}"));
    };
    if !table.partitions(tenant).any(|of| of == *partition) {
        let problem = format!("is not a partition of the tenant: {}", table.tenant_keys.join(", "));
        return Err(Error::invalid(format!("{field}.{name}"), problem));
    }
    match table.key_names().find(|name| !item.contains_key(*name)) {
        Some(name) => Err(Error::invalid(format!("{field}.{name}"), "is missing")),
        None => Ok(()),
    }
}

/// An expression as requests take it.
pub(super) struct Parts {
    pub condition: Option<String>,
    pub names: Option<HashMap<String, String>>,
    pub values: Option<Item>,
}

impl Expression {
    pub(super) fn parts(&self) -> Parts {
        fn some<K: Clone, V: Clone>(map: &HashMap<K, V>) -> Option<HashMap<K, V>> {
            Some(map).filter(|map| !map.is_empty()).cloned()
        }
        Parts {
            condition: Some(self.text.clone()).filter(|text| !text.is_empty()),
            names: some(&self.names),
            values: some(&self.values),
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '_' | '#' | ':')
}

impl<'a> Job<'a> {
    /// Each write with its table in this cell.
    pub(super) fn place<'h, E>(
        &self,
        home: &'h Home,
    ) -> Result<Vec<(&'a Write, &'h CellTable)>, Error<E>> {
        self.writes
            .iter()
            .map(|write| {
                let table = table(home, &write.table)?;
                write.fits(self.tenant, table)?;
                Ok((write, table))
            })
            .collect()
    }
}

pub(super) fn table<'h, E>(home: &'h Home, name: &str) -> Result<&'h CellTable, Error<E>> {
    home.tables
        .table(name)
        .ok_or_else(|| Error::UnknownTable { cell: home.cell.to_string(), table: name.to_owned() })
}

/// What a part of a transaction lacks.
pub(super) fn incomplete<R: Routes>(write: &Write) -> Error<R::Error> {
    Error::invalid(&write.field, "lacks an expression")
}
