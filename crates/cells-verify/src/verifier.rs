//! Reads both cells and tells what differs. Decides nothing of its own: [`Comparison`] does.
//!
//! What an owner does with it:
//! 1. [`Verifier::compare_page`] from [`Verifier::start`] on, until there is no next cursor. Counts and cursor are kept in one write.
//! 2. Drain the log up to a moment after the page was read, then [`Verifier::recheck`] its suspects. What it returns are mismatches.
//! 3. Write them again as they are at the source, under the target's guard, and [`crate::Findings::add`] each.

use std::collections::BTreeMap;

use cells_guard::Touched;
use futures::try_join;

use crate::comparison::{Suspect, difference};
use crate::digest::Tally;
use crate::findings::MismatchKind;
use crate::key::SortKey;
use crate::lane::{BadAnswer, View};
use crate::plan::{Part, Plan};
use crate::{
    BadCursor, CellSide, Comparison, Cursor, Incompatible, Item, Page, Place, Reader, Side,
};

/// Items of a page, unless another number is asked for.
pub const PAGE_ITEMS: u32 = 1000;

/// Keys read at once in a recheck: 10 MB of each side at most.
pub const KEYS_AT_ONCE: usize = 25;

/// Why nothing was found out. Nothing was written, and the same call can be repeated.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError<E> {
    /// As the side's reader said.
    #[error("the {side} could not be read")]
    Read { side: Side, error: E },
    /// A fault of a reader or of the storage, or an item that cannot be compared. Repeating it will not help.
    #[error("table {table} at the {side}: {problem}")]
    Answer { side: Side, table: String, problem: BadAnswer },
    #[error(transparent)]
    Cursor(#[from] BadCursor),
}

/// What one step of a comparison showed.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// Of this step alone.
    pub source: Tally,
    pub target: Tally,
    pub suspects: Vec<Suspect>,
    /// `None`: all was compared.
    pub next: Option<Cursor>,
}

/// A key at which the cells differ still.
#[derive(Debug, Clone, PartialEq)]
pub struct Differing {
    pub at: Touched,
    /// What stands for the key in reports.
    pub key_hash: String,
    pub kind: MismatchKind,
    /// The item at the source, with the `CellId` that it has there; `None`: there is none, or it has expired.
    pub source: Option<Item>,
}

/// What a recheck showed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rechecked {
    /// In the order of the plan's tables and of the keys.
    pub differing: Vec<Differing>,
    /// Different keys that were read.
    pub checked: u64,
    /// Keys that are none of the tenant's, or none at all. They were not read: a log record is written by an application.
    pub foreign: u64,
}

/// Compares a tenant's items in two cells.
#[derive(Debug)]
pub struct Verifier<S, T> {
    source: CellSide<S>,
    target: CellSide<T>,
    plan: Plan,
    page_items: u32,
}

impl<S: Reader, T: Reader<Error = S::Error>> Verifier<S, T> {
    /// # Errors
    /// Where tables of one name have different keys, or both cells are one.
    pub fn new(
        source: CellSide<S>,
        target: CellSide<T>,
        tenant: &str,
    ) -> Result<Self, Incompatible> {
        let of = (source.cell.as_str(), &source.tables);
        let plan = Plan::of(of, (&target.cell, &target.tables), tenant)?;
        Ok(Self { source, target, plan, page_items: PAGE_ITEMS })
    }

    /// With pages of at most this many items, at least 1.
    pub fn with_page_items(self, page_items: u32) -> Self {
        Self { page_items: page_items.max(1), ..self }
    }

    /// The beginning of a comparison.
    pub fn start(&self) -> Cursor {
        self.begin(0)
    }

    fn begin(&self, part: u32) -> Cursor {
        Cursor { mark: self.plan.mark, part, source: Place::Start, target: Place::Start }
    }

    /// Reads at most one page of each side, and judges the keys that both have come past. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub async fn compare_page(
        &self,
        from: &Cursor,
        now: u64,
    ) -> Result<Compared, VerifyError<S::Error>> {
        let parts = &self.plan.parts;
        if from.mark != self.plan.mark {
            return Err(BadCursor::OtherPlan.into());
        }
        let number = usize::try_from(from.part).ok();
        let Some(part) = number.and_then(|number| parts.get(number)) else {
            // Tables without partitions of the tenant have nothing to compare.
            let (source, target) = (Tally::default(), Tally::default());
            return Ok(Compared { source, target, suspects: Vec::new(), next: None });
        };
        let view = |side| self.plan.view(part, side, now);
        let (at_source, at_target) = (view(Side::Source), view(Side::Target));
        let places = (from.source.clone(), from.target.clone());
        let mut comparison = Comparison::new(at_source, at_target, places);
        let (source, target) = try_join!(
            page(&self.source.reader, at_source, &comparison, Side::Source, self.page_items),
            page(&self.target.reader, at_target, &comparison, Side::Target, self.page_items),
        )?;
        for (side, page, view) in
            [(Side::Source, source, at_source), (Side::Target, target, at_target)]
        {
            if let Some(page) = page {
                comparison.take(side, &page).map_err(bad(side, view))?;
            }
        }
        Ok(Compared {
            source: comparison.tally(Side::Source),
            target: comparison.tally(Side::Target),
            suspects: comparison.suspects(),
            next: self.next(from, &comparison),
        })
    }

    fn next(&self, from: &Cursor, comparison: &Comparison<'_>) -> Option<Cursor> {
        if !comparison.ended() {
            let place = |side| comparison.place(side).clone();
            let (source, target) = (place(Side::Source), place(Side::Target));
            return Some(Cursor { mark: from.mark, part: from.part, source, target });
        }
        let part = from.part.checked_add(1)?;
        let there = usize::try_from(part).is_ok_and(|part| part < self.plan.parts.len());
        there.then(|| self.begin(part))
    }

    /// Reads keys at both sides again, and tells which differ still. Keys may be there several times; hand in at most what one or a few
    /// steps, or one part of a log, gave, for what differs is returned with its items. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub async fn recheck(
        &self,
        keys: &[Touched],
        now: u64,
    ) -> Result<Rechecked, VerifyError<S::Error>> {
        let mut rechecked = Rechecked::default();
        // By part and by the order of sort keys.
        let mut wanted: BTreeMap<usize, BTreeMap<Vec<u8>, SortKey>> = BTreeMap::new();
        for at in keys {
            match self.plan.find(at) {
                None => rechecked.foreign += 1,
                Some((part, sort)) => {
                    wanted.entry(part).or_default().insert(sort.order.clone(), sort);
                }
            }
        }
        for (number, keys) in wanted {
            let Some(part) = self.plan.parts.get(number) else { continue };
            let keys: Vec<_> = keys.into_values().collect();
            for keys in keys.chunks(KEYS_AT_ONCE) {
                self.recheck_some(part, keys, now, &mut rechecked).await?;
            }
        }
        Ok(rechecked)
    }

    async fn recheck_some(
        &self,
        part: &Part,
        sorts: &[SortKey],
        now: u64,
        rechecked: &mut Rechecked,
    ) -> Result<(), VerifyError<S::Error>> {
        let keys: Vec<_> = sorts.iter().map(|sort| part.key(sort)).collect();
        let view = |side| self.plan.view(part, side, now);
        let (at_source, at_target) = (view(Side::Source), view(Side::Target));
        let (source, target) = try_join!(
            items(&self.source.reader, at_source, &keys, Side::Source),
            items(&self.target.reader, at_target, &keys, Side::Target),
        )?;
        for (((sort, key), source), target) in sorts.iter().zip(keys).zip(source).zip(target) {
            rechecked.checked += 1;
            let hash = |view: Option<View<'_>>, item: &Option<Item>| match (view, item) {
                (Some(view), Some(item)) => match view.look(item)? {
                    seen if seen.sort.order == sort.order => Ok(seen.live),
                    _ => Err(BadAnswer("has an item of another key")),
                },
                _ => Ok(None),
            };
            let at_both = (
                hash(at_source, &source).map_err(bad(Side::Source, at_source))?,
                hash(at_target, &target).map_err(bad(Side::Target, at_target))?,
            );
            if let Some(kind) = difference(at_both.0, at_both.1) {
                let source = source.filter(|_| at_both.0.is_some());
                let (at, key_hash) = (part.touched(key), part.key_hash(sort));
                rechecked.differing.push(Differing { at, key_hash, kind, source });
            }
        }
        Ok(())
    }
}

pub(crate) fn bad<E>(
    side: Side,
    view: Option<View<'_>>,
) -> impl FnOnce(BadAnswer) -> VerifyError<E> {
    let table = view.map_or_else(String::new, |view| view.table.name.clone());
    move |problem| VerifyError::Answer { side, table, problem }
}

async fn page<R: Reader>(
    reader: &R,
    view: Option<View<'_>>,
    comparison: &Comparison<'_>,
    side: Side,
    limit: u32,
) -> Result<Option<Page>, VerifyError<R::Error>> {
    let (Some(view), Some(wanted)) = (view, comparison.wants(side)) else { return Ok(None) };
    let page = reader.query(view.table, view.partition, wanted.after.as_ref(), limit).await;
    page.map(Some).map_err(|error| VerifyError::Read { side, error })
}

/// As many as there are keys.
async fn items<R: Reader>(
    reader: &R,
    view: Option<View<'_>>,
    keys: &[Item],
    side: Side,
) -> Result<Vec<Option<Item>>, VerifyError<R::Error>> {
    let Some(view) = view else { return Ok(vec![None; keys.len()]) };
    let items = reader.get(view.table, keys).await;
    let items = items.map_err(|error| VerifyError::Read { side, error })?;
    match items.len() == keys.len() {
        true => Ok(items),
        false => Err(bad(side, Some(view))(BadAnswer("has not one answer for each key"))),
    }
}
