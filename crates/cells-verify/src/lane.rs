//! One side of a partition, page by page: of each item its key and its hash.

use std::collections::VecDeque;

use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::CellTable;

use crate::canon::{self, Hash, Incomparable, Named};
use crate::digest::Tally;
use crate::key::{self, SortKey};
use crate::{Item, Page, Place, expiry};

/// How one cell's items of a partition are looked at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub table: &'a CellTable,
    pub partition: &'a str,
    /// The cell.
    pub cell: &'a str,
    /// Whether another cell's `CellId` is a difference; it is counted in any case.
    pub exact: bool,
    /// Seconds since 1970.
    pub now: u64,
}

/// What a reader answered is not what it was asked for, or cannot be compared. Says no key and no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the answer {0}")]
pub struct BadAnswer(pub &'static str);

impl From<Incomparable> for BadAnswer {
    fn from(Incomparable(problem): Incomparable) -> Self {
        Self(problem)
    }
}

/// An item that was read.
pub(crate) struct Seen {
    pub sort: SortKey,
    /// `None`: it has expired, and counts as absent.
    pub live: Option<Hash>,
    misnamed: bool,
}

impl View<'_> {
    pub(crate) fn look(&self, item: &Item) -> Result<Seen, BadAnswer> {
        let sort = key::sort_key(self.table, self.partition, item)
            .ok_or(BadAnswer("has an item of another partition, or without its key"))?;
        if expiry::expired(self.table.ttl_attribute.as_deref(), item, self.now) {
            return Ok(Seen { sort, live: None, misnamed: false });
        }
        let named = if self.exact { Named::Exactly(self.cell) } else { Named::Any };
        let misnamed = canon::cell_id(self.table, item).is_some_and(|name| name != self.cell);
        Ok(Seen { sort, live: Some(canon::item_hash(self.table, item, named)?), misnamed })
    }
}

/// One side under way. Holds at most one page.
pub(crate) struct Lane<'a> {
    /// `None`: the cell has no such partition.
    view: Option<View<'a>>,
    /// Up to where items were given out.
    place: Place,
    page: VecDeque<Seen>,
    /// The place after the page.
    rest: Place,
    tally: Tally,
}

impl<'a> Lane<'a> {
    pub fn new(view: Option<View<'a>>, from: Place) -> Self {
        let place = if view.is_some() { from } else { Place::End };
        let (page, rest, tally) = (VecDeque::new(), Place::End, Tally::default());
        Self { view, place, page, rest, tally }
    }

    /// Whether it needs a page before it can say what comes next.
    pub fn wants(&self) -> bool {
        self.page.is_empty() && self.place != Place::End
    }

    /// The key after which the next page begins.
    pub fn after(&self) -> Option<Item> {
        match (&self.view, &self.place) {
            (Some(view), Place::After(sort)) => {
                Some(key::key(view.table, view.partition, Some(sort)))
            }
            _ => None,
        }
    }

    pub fn place(&self) -> &Place {
        &self.place
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// Takes the page that it wants.
    pub fn take(&mut self, page: &Page) -> Result<(), BadAnswer> {
        let view = self.view.filter(|_| self.wants());
        let view = view.ok_or(BadAnswer("was not asked for"))?;
        let mut last = match &self.place {
            Place::After(sort) => Some(order(view.table, sort)?),
            Place::Start | Place::End => None,
        };
        let mut seen = VecDeque::with_capacity(page.items.len());
        for item in &page.items {
            let item = view.look(item)?;
            if last.as_ref().is_some_and(|last| item.sort.order <= *last) {
                return Err(BadAnswer("is not in the order of the sort keys"));
            }
            last = Some(item.sort.order.clone());
            seen.push_back(item);
        }
        self.rest = rest(&view, page, last.as_deref())?;
        if seen.is_empty() {
            self.place = self.rest.clone();
        }
        self.page = seen;
        Ok(())
    }

    pub fn front(&self) -> Option<&[u8]> {
        self.page.front().map(|seen| seen.sort.order.as_slice())
    }

    pub fn pop(&mut self) -> Option<Seen> {
        let seen = self.page.pop_front()?;
        match &seen.live {
            None => self.tally.expired += 1,
            Some(hash) => {
                self.tally.items += 1;
                self.tally.misnamed += u64::from(seen.misnamed);
                self.tally.digest.add(hash);
            }
        }
        self.place = match &seen.sort.value {
            Some(sort) if !self.page.is_empty() => Place::After(sort.clone()),
            _ => self.rest.clone(),
        };
        Some(seen)
    }
}

/// The place after a page whose last key, or the one before it, is `last`.
fn rest(view: &View<'_>, page: &Page, last: Option<&[u8]>) -> Result<Place, BadAnswer> {
    let Some(next) = &page.next else { return Ok(Place::End) };
    let next = key::sort_key(view.table, view.partition, next)
        .ok_or(BadAnswer("goes on at a key of another partition, or at none"))?;
    let on = last.is_none_or(|last| match page.items.is_empty() {
        true => *next.order > *last,
        false => *next.order >= *last,
    });
    match next.value {
        Some(sort) if on => Ok(Place::After(sort)),
        // A partition without sort keys has one item; that one was read, whatever a limit makes the storage say.
        None if !page.items.is_empty() => Ok(Place::End),
        _ => Err(BadAnswer("goes on where it has been")),
    }
}

fn order(table: &CellTable, sort: &AttributeValue) -> Result<Vec<u8>, BadAnswer> {
    let of = table.sort_key.as_ref().map(|(_, of)| *of);
    of.and_then(|of| key::order(of, sort)).ok_or(BadAnswer("begins at no key of the table"))
}
