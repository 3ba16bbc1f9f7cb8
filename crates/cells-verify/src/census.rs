//! What one cell holds of a tenant: where there is no second cell to compare it with, and to tell that a former one holds nothing.

use crate::digest::Tally;
use crate::lane::Lane;
use crate::plan::Plan;
use crate::verifier::{PAGE_ITEMS, VerifyError, bad};
use crate::{BadCursor, CellSide, Cursor, Incompatible, Place, Reader, Side};

/// Counts a tenant's items in one cell.
#[derive(Debug)]
pub struct Census<R> {
    side: CellSide<R>,
    plan: Plan,
    page_items: u32,
}

impl<R: Reader> Census<R> {
    /// # Errors
    /// Where two of its tables have one name.
    pub fn new(side: CellSide<R>, tenant: &str) -> Result<Self, Incompatible> {
        let plan = Plan::of_one(&side.cell, &side.tables, tenant)?;
        Ok(Self { side, plan, page_items: PAGE_ITEMS })
    }

    /// With pages of at most this many items, at least 1.
    pub fn with_page_items(self, page_items: u32) -> Self {
        Self { page_items: page_items.max(1), ..self }
    }

    pub fn start(&self) -> Cursor {
        Cursor { mark: self.plan.mark, part: 0, source: Place::Start, target: Place::End }
    }

    /// Counts one page. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`VerifyError`]; the cell is the source.
    pub async fn page(
        &self,
        from: &Cursor,
        now: u64,
    ) -> Result<(Tally, Option<Cursor>), VerifyError<R::Error>> {
        if from.mark != self.plan.mark {
            return Err(BadCursor::OtherPlan.into());
        }
        let part = usize::try_from(from.part).ok().and_then(|part| self.plan.parts.get(part));
        let view = part.and_then(|part| self.plan.view(part, Side::Source, now));
        let Some(view) = view else { return Ok((Tally::default(), None)) };
        let mut lane = Lane::new(Some(view), from.source.clone());
        if lane.wants() {
            let after = lane.after();
            let page =
                self.side.reader.query(view.table, view.partition, after.as_ref(), self.page_items);
            let page =
                page.await.map_err(|error| VerifyError::Read { side: Side::Source, error })?;
            lane.take(&page).map_err(bad(Side::Source, Some(view)))?;
        }
        while lane.pop().is_some() {}
        let next = match lane.place() {
            Place::End => from.part.checked_add(1).map(|part| Cursor { part, ..self.start() }),
            place => Some(Cursor { source: place.clone(), ..from.clone() }),
        };
        let more = |next: &Cursor| {
            usize::try_from(next.part).is_ok_and(|part| part < self.plan.parts.len())
        };
        Ok((lane.tally(), next.filter(more)))
    }

    /// Counts all. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`VerifyError`]; the cell is the source.
    pub async fn one_cell(&self, now: u64) -> Result<Tally, VerifyError<R::Error>> {
        let (mut tally, mut from) = (Tally::default(), Some(self.start()));
        while let Some(cursor) = from {
            let (page, next) = self.page(&cursor, now).await?;
            tally.merge(&page);
            from = next;
        }
        Ok(tally)
    }
}
