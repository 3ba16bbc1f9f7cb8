//! The comparison of both cells, by [`cells_verify`], which shares nothing with the copier, and the repair of what differs still after
//! the log was drained.

use cells_guard::{CellTable, Item, Touched};
use cells_migration::{Cursor, GuardCheck, Side};
use cells_verify::{CellSide, Differing, Page, Reader, Verifier, VerifyError};
use tracing::Span;

use super::access::CellAccess;
use super::copier::Copier;
use super::outsiders::Outsiders;
use super::pulse::Pulse;
use super::trace;
use crate::directory::Directory;
use crate::store::StoreError;

/// How often what differs is looked at again after a drain of the log, until it counts as a finding.
const MAX_RECHECKS: u32 = 5;

/// Drains in a row, where the log is long.
const MAX_DRAINS: u32 = 50;

impl Reader for CellAccess {
    type Error = StoreError;

    async fn query(
        &self,
        table: &CellTable,
        partition: &str,
        after: Option<&Item>,
        limit: u32,
    ) -> Result<Page, StoreError> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let (items, next) = self.page(table, partition, after.cloned(), limit, false).await?;
        Ok(Page { items, next })
    }

    async fn get(&self, table: &CellTable, keys: &[Item]) -> Result<Vec<Option<Item>>, StoreError> {
        let touched = |key: &Item| Touched { table: table.name.clone(), key: key.clone() };
        let keys: Vec<_> = keys.iter().map(touched).collect();
        CellAccess::get(self, &keys).await
    }
}

/// A cell as the verifier sees it.
pub fn side(cell: &CellAccess) -> CellSide<CellAccess> {
    CellSide {
        cell: cell.cell.as_str().to_owned(),
        tables: cells_guard::CellTables::clone(&cell.tables),
        reader: cell.clone(),
    }
}

/// Why a comparison did not get on, as the store's error that it is handled as.
pub fn store_error(error: VerifyError<StoreError>) -> StoreError {
    match error {
        VerifyError::Read { error, .. } => error,
        other => StoreError::Rejected { detail: other.to_string() },
    }
}

/// The comparison of one migration's cells, and what is mended by it.
pub struct Comparison<'a> {
    pub copier: Copier<'a>,
    pub from: Side,
    /// Under which the other cell is written.
    pub fence: &'a GuardCheck,
    /// Nobody writes: all are under the fence.
    pub still: bool,
    /// Writers that do not cooperate, and the position in their stream that the record has.
    pub outsiders: Option<(&'a Outsiders, &'a Cursor)>,
    pub pulse: &'a Pulse,
    pub directory: &'a Directory,
    pub span: &'a Span,
}

impl Comparison<'_> {
    fn verifier(&self) -> Result<Verifier<CellAccess, CellAccess>, StoreError> {
        let side = |of| side(self.copier.cells.of(of));
        Verifier::new(side(self.from), side(self.from.other()), self.copier.spec.tenant.as_str())
            .map_err(|error| StoreError::Rejected { detail: error.to_string() })
    }

    /// Compares a page, and mends what differs though the log was drained. `Ok(None)`: the guard does not let it.
    pub async fn page(&self, cursor: &Cursor) -> Result<Option<Option<Cursor>>, StoreError> {
        let verifier = self.verifier()?;
        let begins = cursor.0.is_empty();
        let place = match begins {
            true => verifier.start(),
            // One that this plan did not make is of tables that have changed: from the beginning, then.
            false => cells_verify::Cursor::decode(&cursor.0).unwrap_or_else(|_| verifier.start()),
        };
        let now = self.directory.now().unix_seconds();
        let compared = verifier.compare_page(&place, now).await.map_err(store_error)?;
        let suspects: Vec<_> = compared.suspects.iter().map(|suspect| suspect.at.clone()).collect();
        if !suspects.is_empty() && !self.recheck(&suspects).await? {
            return Ok(None);
        }
        trace::event(self.span, "compared", compared.source.items);
        let mut tale = self.pulse.tale();
        tale.progress.items_compared += compared.source.items;
        let findings = tale.findings.get_or_insert_default();
        if begins {
            findings.begin_again();
        }
        findings.count(&compared);
        if compared.next.is_none() {
            findings.ended = Some(self.directory.now());
        }
        Ok(Some(compared.next.map(|next| Cursor(next.encode()))))
    }

    /// Looks at keys again, and writes what differs as it is where the tenant lives. `false`: the guard does not let it.
    ///
    /// What a record of the log names is no finding: it was written since, and is looked at again by whoever drains the log. That holds for
    /// what was seen before the log was: the other cell is written by this worker alone, and a record comes with what it tells of, and goes
    /// after that was applied. Under the fence there is no such excuse.
    pub async fn recheck(&self, keys: &[Touched]) -> Result<bool, StoreError> {
        let verifier = self.verifier()?;
        let (mut keys, mut rounds) = (keys.to_vec(), 0);
        for _ in 0..MAX_DRAINS {
            let now = self.directory.now().unix_seconds();
            let checked = verifier.recheck(&keys, now).await.map_err(store_error)?;
            let mut differing = checked.differing;
            if differing.is_empty() {
                return Ok(true);
            }
            if self.still {
                return self.mend(&differing, &keys).await;
            }
            let pending = self.copier.pending(self.from).await?;
            differing.retain(|one| !pending.names(&one.at));
            if differing.is_empty() {
                return Ok(true);
            }
            keys = differing.iter().map(|differing| differing.at.clone()).collect();
            if rounds == MAX_RECHECKS {
                return self.mend(&differing, &keys).await;
            }
            // A log that is too long to be seen whole may tell of all of them.
            rounds += u32::from(pending.all);
            if !self.copier.drain(self.from, self.fence).await? {
                return Ok(false);
            }
            if let Some((outsiders, position)) = self.outsiders {
                let (under, now) = ((self.from, self.fence), self.directory.now().seconds());
                if !outsiders.catch_up(&self.copier, under, position, now).await? {
                    return Ok(false);
                }
            }
        }
        // Other things want to be looked at, too, before it goes on.
        Err(StoreError::Throttled)
    }

    async fn mend(&self, differing: &[Differing], keys: &[Touched]) -> Result<bool, StoreError> {
        let mended = self.copier.rewrite(self.from, self.fence, keys).await?;
        let mut tale = self.pulse.tale();
        let findings = tale.findings.get_or_insert_default();
        differing.iter().for_each(|one| findings.add(one, mended));
        tracing::warn!(migration = %self.pulse.id, items = differing.len(), "items differed and were written again");
        Ok(mended)
    }
}
