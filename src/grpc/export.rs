//! `ExportTenant` of `cells.v1.CellData`: all items of a tenant, in parts that can be resumed, and a summary.

use std::collections::BTreeMap;
use std::pin::Pin;

use futures::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::status::{Fault, Reason};
use super::{data, page, parse};
use crate::cells::data::{CellData, Export, ExportPosition, Exported, json};
use crate::domain::CellId;
use crate::proto::v1;
use crate::store::Cursor;

pub type Parts = Pin<Box<dyn Stream<Item = Result<v1::ExportTenantResponse, Status>> + Send>>;

/// Begins an export. What is wrong with the request is the call's status, not the end of a stream.
pub async fn begin(
    first: CellData,
    rest: CellData,
    request: v1::ExportTenantRequest,
    draining: CancellationToken,
) -> Result<Parts, Fault> {
    let scope = v1::QueryScope::try_from(request.scope)
        .map_err(|_| parse::unknown("scope", request.scope))?;
    let filter = format!("{}\u{0}{}", request.partition_key, request.scope);
    let query = page::Query { method: "ExportTenant", filter: &filter };
    let token = query.cursor(&request.resume_token);
    let token = token.map_err(|_| not_a_resume_token())?;
    let from = token.map(|Cursor(text)| position(&text)).transpose()?;
    let export = Export {
        tenant: parse::partition_key("partition_key", request.partition_key)?,
        all_cells: scope == v1::QueryScope::AllCells,
        consistent: request.consistent,
    };
    let (resumed, counts) = (from.is_some(), BTreeMap::new());
    let mut exporting = Exporting {
        data: rest,
        export,
        filter,
        from,
        resumed,
        counts,
        complete: true,
        over: false,
        draining,
    };
    let part = exporting.part(&first).await?;
    let rest = futures::stream::unfold(exporting, async |mut exporting| {
        if exporting.over {
            return None;
        }
        let data = exporting.data.clone();
        let part = exporting.part(&data).await;
        exporting.over |= part.is_err();
        Some((part.map_err(Status::from), exporting))
    });
    let first = futures::stream::once(std::future::ready(Ok(part)));
    Ok(Box::pin(first.chain(rest)))
}

/// An export under way.
struct Exporting {
    data: CellData,
    export: Export,
    filter: String,
    from: Option<ExportPosition>,
    resumed: bool,
    /// Items by table.
    counts: BTreeMap<String, i64>,
    complete: bool,
    over: bool,
    draining: CancellationToken,
}

impl Exporting {
    async fn part(&mut self, data: &CellData) -> Result<v1::ExportTenantResponse, Fault> {
        if self.draining.is_cancelled() {
            let message =
                "this replica shuts down; go on at another one with the last resume_token";
            return Err(Fault::new(Reason::ShuttingDown, message));
        }
        let exported = data.export(&self.export, self.from.take(), data::PART).await?;
        let Exported { table, found, failures, next } = exported;
        let count = found.items.len();
        if let Some(table) = &table {
            *self.counts.entry(table.clone()).or_default() +=
                i64::try_from(count).unwrap_or(i64::MAX);
        }
        let table = table.unwrap_or_default();
        self.complete &= failures.is_empty();
        let items = found.items.iter().map(|(item, cell, previous)| v1::ExportedItem {
            table: table.clone(),
            item: Some(json::message(item)),
            cell_id: cell.as_str().to_owned(),
            previous: *previous,
        });
        let failures = failures.into_iter().map(|(table, failure)| v1::ExportFailure {
            table,
            cell_id: failure.cell.into(),
            reason: Fault::from(failure.error).reason().as_str().to_owned(),
        });
        let query = page::Query { method: "ExportTenant", filter: &self.filter };
        let resume_token = query.token(next.as_ref().map(|next| Cursor(cursor(next))));
        self.over = next.is_none();
        self.from = next;
        Ok(v1::ExportTenantResponse {
            items: items.collect(),
            failures: failures.collect(),
            resume_token,
            summary: self.over.then(|| self.summary()),
        })
    }

    fn summary(&self) -> v1::ExportSummary {
        let tables = self.counts.iter();
        let tables =
            tables.map(|(table, items)| v1::ExportedTable { table: table.clone(), items: *items });
        v1::ExportSummary {
            tables: tables.collect(),
            items: self.counts.values().sum(),
            complete: self.complete,
            resumed: self.resumed,
        }
    }
}

/// A position as text: the cell, the table, and where in it.
fn cursor(position: &ExportPosition) -> String {
    let within = position.within.as_ref().map(data::cursor).unwrap_or_default();
    format!("{}\u{0}{}\u{0}{within}", position.home, position.table)
}

fn position(text: &str) -> Result<ExportPosition, Fault> {
    let (home, rest) = text.split_once('\u{0}').ok_or_else(not_a_resume_token)?;
    let home = CellId::new(home).map_err(|_| not_a_resume_token())?;
    let (table, within) = rest.split_once('\u{0}').ok_or_else(not_a_resume_token)?;
    let within = Some(within).filter(|within| !within.is_empty());
    let within = within.map(data::position).transpose().map_err(|_| not_a_resume_token())?;
    Ok(ExportPosition { home, table: table.to_owned(), within })
}

fn not_a_resume_token() -> Fault {
    let problem = "is not one of an export of this tenant and scope; leave it empty to begin anew";
    Fault::field(Reason::InvalidPageToken, "resume_token", problem)
}
