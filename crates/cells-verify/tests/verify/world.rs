//! Two cells in memory, ordered by the test's own notion of keys, and readers that answer in pages of any size.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::{CellTable, CellTables, KeyType, Touched};
use cells_verify::{CellSide, Compared, Cursor, Item, Page, Reader, Suspect, Verifier};
use futures::executor::block_on;

pub const NOW: u64 = 1_800_000_000;

/// A sort key as it is meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    None,
    Text(String),
    /// Ten-thousandths.
    Number(i64),
    Bytes(Vec<u8>),
}

impl Key {
    /// As a storage that writes numbers in this way returns it.
    fn value(&self, exponents: bool) -> Option<AttributeValue> {
        match self {
            Self::None => None,
            Self::Text(text) => Some(AttributeValue::S(text.clone())),
            Self::Bytes(bytes) => Some(AttributeValue::B(Blob::new(bytes.clone()))),
            Self::Number(n) if exponents => Some(AttributeValue::N(format!("{n}E-4"))),
            Self::Number(n) => {
                let (sign, n) = (if *n < 0 { "-" } else { "" }, n.unsigned_abs());
                Some(AttributeValue::N(format!("{sign}{}.{:04}", n / 10_000, n % 10_000)))
            }
        }
    }

    pub fn of(value: Option<&AttributeValue>) -> Self {
        match value {
            None => Self::None,
            Some(AttributeValue::S(text)) => Self::Text(text.clone()),
            Some(AttributeValue::B(bytes)) => Self::Bytes(bytes.as_ref().to_vec()),
            Some(AttributeValue::N(text)) => Self::Number(match text.strip_suffix("E-4") {
                Some(n) => n.parse().unwrap(),
                None => text.replace('.', "").parse().unwrap(),
            }),
            Some(other) => panic!("{other:?}"),
        }
    }
}

pub type Partition = (String, String);

/// One cell's items: by table, as the set names it, and partition.
pub type Items = BTreeMap<Partition, BTreeMap<Key, Item>>;

/// A change that a writer makes: at the source or not, where, and to what.
#[derive(Debug, Clone)]
pub struct Change {
    pub source: bool,
    pub at: Partition,
    pub key: Key,
    pub item: Option<Item>,
}

#[derive(Debug, Default)]
pub struct State {
    pub source: Items,
    pub target: Items,
    /// Made before the next reads, so many before each.
    pub changes: VecDeque<Change>,
    pub changes_a_read: usize,
    /// Sizes of the next pages; then as large as asked for.
    pub sizes: VecDeque<usize>,
    /// Every partition that was read.
    pub read: Vec<Partition>,
    pub items_read: usize,
}

pub type World = Arc<Mutex<State>>;

#[derive(Debug, Clone)]
pub struct Cell {
    pub world: World,
    pub source: bool,
}

impl Cell {
    fn begin(&self) -> std::sync::MutexGuard<'_, State> {
        let mut state = self.world.lock().unwrap();
        for _ in 0..state.changes_a_read {
            if let Some(change) = state.changes.pop_front() {
                state.change(change);
            }
        }
        state
    }
}

impl State {
    pub fn cell(&mut self, source: bool) -> &mut Items {
        if source { &mut self.source } else { &mut self.target }
    }

    pub fn change(&mut self, change: Change) {
        let partition = self.cell(change.source).entry(change.at).or_default();
        match change.item {
            None => partition.remove(&change.key),
            Some(item) => partition.insert(change.key, item),
        };
    }
}

fn sort<'a>(table: &CellTable, item: &'a Item) -> Option<&'a AttributeValue> {
    table.sort_key.as_ref().and_then(|(name, _)| item.get(name))
}

impl Reader for Cell {
    type Error = String;

    async fn query(
        &self,
        table: &CellTable,
        partition: &str,
        after: Option<&Item>,
        limit: u32,
    ) -> Result<Page, String> {
        let mut state = self.begin();
        let at = (table.name.clone(), partition.to_owned());
        state.read.push(at.clone());
        let size = state.sizes.pop_front().unwrap_or(usize::MAX).min(limit as usize).max(1);
        let after = after.map(|key| Key::of(sort(table, key)));
        let items: Vec<Item> = state.cell(self.source).get(&at).map_or_else(Vec::new, |items| {
            let rest = items.iter().filter(|(key, _)| after.as_ref().is_none_or(|a| *key > a));
            rest.take(size).map(|(_, item)| item.clone()).collect()
        });
        state.items_read += items.len();
        // As DynamoDB: a page that is full says that there is more, though there may not be.
        let next = items.last().filter(|_| items.len() == size).map(|last| {
            let names: Vec<_> = table.key_names().collect();
            last.iter()
                .filter(|(name, _)| names.contains(&name.as_str()))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        });
        Ok(Page { items, next })
    }

    async fn get(&self, table: &CellTable, keys: &[Item]) -> Result<Vec<Option<Item>>, String> {
        let mut state = self.begin();
        assert!(keys.len() <= cells_verify::verifier::KEYS_AT_ONCE);
        let find = |key: &Item| {
            let AttributeValue::S(partition) = &key[&table.partition_key] else { panic!() };
            let at = (table.name.clone(), partition.clone());
            state.read.push(at.clone());
            let item = state.cell(self.source).get(&at)?.get(&Key::of(sort(table, key))).cloned();
            state.items_read += usize::from(item.is_some());
            item
        };
        Ok(keys.iter().map(find).collect())
    }
}

pub fn table(name: &str, sort: Option<KeyType>, templates: &[&str]) -> CellTable {
    CellTable {
        name: name.to_owned(),
        table_name: format!("{name}-of-some-cell"),
        partition_key: "PK".to_owned(),
        sort_key: sort.map(|of| ("SK".to_owned(), of)),
        tenant_keys: templates.iter().map(|template| (*template).to_owned()).collect(),
        ttl_attribute: Some("TTL".to_owned()),
    }
}

pub fn tables(tables: Vec<CellTable>) -> CellTables {
    let set = "default".to_owned();
    let tables =
        CellTables { set, version: 1, tables, guards: None, together: true, guarded: true };
    tables.with_guards_as(None)
}

/// An item of a cell that is called `cell`.
pub fn item(partition: &str, key: &Key, cell: &str, value: u8, exponents: bool) -> Item {
    let mut item: Item = [
        ("PK".to_owned(), AttributeValue::S(partition.to_owned())),
        ("CellId".to_owned(), AttributeValue::S(cell.to_owned())),
        ("V".to_owned(), AttributeValue::N(value.to_string())),
    ]
    .into();
    item.extend(key.value(exponents).map(|value| ("SK".to_owned(), value)));
    item
}

pub fn side(world: &World, source: bool, of: &CellTables) -> CellSide<Cell> {
    let cell = if source { "cell-a" } else { "cell-b" };
    let reader = Cell { world: world.clone(), source };
    CellSide { cell: cell.to_owned(), tables: of.clone(), reader }
}

pub fn verifier(world: &World, of: &CellTables, tenant: &str) -> Verifier<Cell, Cell> {
    Verifier::new(side(world, true, of), side(world, false, of), tenant).unwrap()
}

/// Compares all, and takes each cursor through another process. All that it showed in one, and in how many steps.
pub fn compare(verifier: &Verifier<Cell, Cell>) -> (Compared, usize) {
    let mut from = Some(verifier.start());
    let (source, target) = (Default::default(), Default::default());
    let mut all = Compared { source, target, suspects: Vec::new(), next: None };
    let mut steps = 0;
    while let Some(cursor) = from {
        let cursor = Cursor::decode(&cursor.encode()).unwrap();
        let step = block_on(verifier.compare_page(&cursor, NOW)).unwrap();
        all.source.merge(&step.source);
        all.target.merge(&step.target);
        all.suspects.extend(step.suspects);
        from = step.next;
        steps += 1;
        assert!(steps < 10_000, "it never ends");
    }
    (all, steps)
}

/// Where a suspect is, as the test means it.
pub fn place(at: &Touched) -> (Partition, Key) {
    let AttributeValue::S(partition) = &at.key["PK"] else { panic!("{at:?}") };
    ((at.table.clone(), partition.clone()), Key::of(at.key.get("SK")))
}

pub fn places(suspects: &[Suspect]) -> Vec<(Partition, Key)> {
    suspects.iter().map(|suspect| place(&suspect.at)).collect()
}
