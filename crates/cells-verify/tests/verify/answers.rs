//! Readers that fail, and readers whose answers cannot be: an error each time, never a verdict.

use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::{CellTable, KeyType, Touched};
use cells_verify::{CellSide, Cursor, Item, Page, Reader, Side, Verifier, VerifyError};
use futures::executor::block_on;

use crate::world::{Key, NOW, item, table, tables};

/// Answers the same, whatever it is asked.
#[derive(Debug, Clone)]
struct Says {
    page: Result<Page, String>,
    items: Vec<Option<Item>>,
}

impl Reader for Says {
    type Error = String;

    async fn query(
        &self,
        _: &CellTable,
        _: &str,
        _: Option<&Item>,
        _: u32,
    ) -> Result<Page, String> {
        self.page.clone()
    }

    async fn get(&self, _: &CellTable, _: &[Item]) -> Result<Vec<Option<Item>>, String> {
        Ok(self.items.clone())
    }
}

fn of(n: i64) -> Item {
    item("tenant", &Key::Number(n), "cell-b", 1, true)
}

fn key(n: i64) -> Item {
    let mut key = of(n);
    key.retain(|name, _| name == "PK" || name == "SK");
    key
}

fn says(page: Result<Page, String>, items: Vec<Option<Item>>) -> Says {
    Says { page, items }
}

fn none() -> Says {
    says(Ok(Page::default()), vec![None])
}

/// The target is odd.
fn verifier(sort: Option<KeyType>, target: Says) -> Verifier<Says, Says> {
    let tables = tables(vec![table("T", sort, &["{partition_key}"])]);
    let side =
        |cell: &str, reader| CellSide { cell: cell.to_owned(), tables: tables.clone(), reader };
    Verifier::new(side("cell-a", none()), side("cell-b", target), "tenant").unwrap()
}

fn compared(target: Says, from: Option<Cursor>) -> Result<Option<Cursor>, VerifyError<String>> {
    let verifier = verifier(Some(KeyType::Number), target);
    let from = from.unwrap_or_else(|| verifier.start());
    block_on(verifier.compare_page(&from, NOW)).map(|step| step.next)
}

fn page(items: Vec<Item>, next: Option<Item>) -> Says {
    says(Ok(Page { items, next }), vec![])
}

fn is_answer(error: &VerifyError<String>) -> bool {
    matches!(error, VerifyError::Answer { side: Side::Target, table, .. } if table == "T")
}

#[test]
fn a_reader_that_fails_is_named() {
    let failed = says(Err("throttled".to_owned()), vec![]);
    let error = compared(failed, None).unwrap_err();
    assert_eq!(error, VerifyError::Read { side: Side::Target, error: "throttled".to_owned() });
}

#[test]
fn pages_that_cannot_be_are_refused() {
    let mut elsewhere = of(1);
    elsewhere.insert("PK".to_owned(), AttributeValue::S("other".to_owned()));
    let mut keyless = of(1);
    keyless.remove("SK");
    let mut texts = of(1);
    texts.insert("SK".to_owned(), AttributeValue::S("1".to_owned()));
    for odd in [
        page(vec![of(2), of(1)], None),
        page(vec![of(1), of(1)], None),
        page(vec![elsewhere], None),
        page(vec![keyless], None),
        page(vec![texts], None),
        page(vec![of(1), of(2)], Some(key(1))),
        page(vec![of(1)], Some(Item::new())),
    ] {
        let error = compared(odd.clone(), None).unwrap_err();
        assert!(is_answer(&error), "{odd:?}: {error}");
    }
    assert!(compared(page(vec![of(1), of(2)], Some(key(2))), None).is_ok());
    assert!(compared(page(vec![], Some(key(5))), None).is_ok(), "empty, but further on");
}

/// Else a comparison would never end, or a key would be judged twice.
#[test]
fn a_page_that_does_not_go_on_is_refused() {
    let from = || compared(page(vec![], Some(key(5))), None).unwrap();
    assert!(from().is_some());
    for odd in [
        page(vec![], Some(key(5))),
        page(vec![], Some(key(4))),
        page(vec![of(5)], None),
        page(vec![of(4), of(6)], None),
    ] {
        assert!(is_answer(&compared(odd, from()).unwrap_err()));
    }
    assert!(compared(page(vec![of(6)], None), from()).is_ok());
}

#[test]
fn a_partition_without_sort_keys_has_one_item() {
    let mut one = of(1);
    one.remove("SK");
    let mut key = key(1);
    key.remove("SK");
    let step = |target| {
        let verifier = verifier(None, target);
        block_on(verifier.compare_page(&verifier.start(), NOW))
    };
    // As DynamoDB answers where the limit is 1.
    let whole = step(page(vec![one.clone()], Some(key.clone()))).unwrap();
    assert_eq!((whole.target.items, whole.next), (1, None));
    assert!(is_answer(&step(page(vec![one.clone(), one], None)).unwrap_err()));
    assert!(is_answer(&step(page(vec![], Some(key))).unwrap_err()));
}

/// An answer too few would pass for the same absence at both sides.
#[test]
fn answers_that_are_not_one_for_each_key_are_refused() {
    let keys = [Touched { table: "T".to_owned(), key: key(1) }];
    let recheck = |items| {
        let verifier = verifier(Some(KeyType::Number), says(Ok(Page::default()), items));
        block_on(verifier.recheck(&keys, NOW))
    };
    for odd in [vec![], vec![None, None], vec![Some(of(2))]] {
        assert!(is_answer(&recheck(odd).unwrap_err()));
    }
    assert_eq!(recheck(vec![Some(of(1))]).unwrap().differing.len(), 1);
    assert_eq!(recheck(vec![None]).unwrap().differing, []);
}

/// A server's tasks move between threads.
#[test]
fn what_it_does_can_be_spawned() {
    fn sent<T: Send>(_: &T) {}
    let verifier = verifier(Some(KeyType::Number), none());
    let start = verifier.start();
    sent(&verifier.compare_page(&start, NOW));
    sent(&verifier.recheck(&[], NOW));
}
