//! Watch: options and tokens in, pieces out, and how a stream ends.

use std::collections::BTreeSet;
use std::time::Instant;

use futures::stream::{BoxStream, StreamExt, unfold};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::deadline::exceeded;
use super::page::Query;
use super::status::{Fault, Reason};
use super::{convert, parse};
use crate::directory::{Directory, Piece, Position, WatchEnd, WatchOptions, Watcher};
use crate::domain::{CellId, Change, JournalEntry, Sequence, Timestamp};
use crate::proto::v1::{self, placement_change, watch_response::Event};
use crate::store::Cursor;

/// Most cells that a watch can be limited to.
const MAX_CELLS: usize = 100;

pub type WatchStream = BoxStream<'static, Result<v1::WatchResponse, Status>>;

/// The streams' side of one watch.
struct Watching {
    watcher: Watcher,
    directory: Directory,
    /// The tokens are bound to it.
    filter: String,
    deadline: Option<Instant>,
    draining: CancellationToken,
}

/// Begins a watch.
pub fn begin(
    directory: &Directory,
    request: v1::WatchRequest,
    deadline: Option<Instant>,
    draining: CancellationToken,
) -> Result<WatchStream, Fault> {
    let cells = cells(&request.cell_ids)?;
    let filter = filter(&cells);
    let resume = resume(&filter, &request.resume_token)?;
    let options = WatchOptions { resume, cells, changes_only: request.changes_only };
    let watcher = directory.watch(options)?;
    let directory = directory.clone();
    let watching = Watching { watcher, directory, filter, deadline, draining };
    // Ends after the first error.
    let stream = unfold(Some(watching), |watching| async {
        let mut watching = watching?;
        match watching.next().await {
            Ok(piece) => Some((Ok(piece), Some(watching))),
            Err(status) => Some((Err(status), None)),
        }
    });
    Ok(stream.boxed())
}

impl Watching {
    async fn next(&mut self) -> Result<v1::WatchResponse, Status> {
        let piece = tokio::select! {
            biased;
            () = self.draining.cancelled() => return Err(self.shutting_down().into()),
            status = exceeded(self.deadline) => return Err(status),
            piece = self.watcher.next() => piece,
        };
        match piece {
            Ok(piece) => Ok(self.response(piece)),
            Err(WatchEnd::Expired) => Err(expired().into()),
            Err(WatchEnd::TooSlow) => Err(self.too_slow().into()),
            Err(WatchEnd::Failed(error)) => Err(Fault::from(error).into()),
        }
    }

    fn response(&self, piece: Piece) -> v1::WatchResponse {
        let now = self.directory.now();
        let (event, caught_up) = match piece {
            Piece::Snapshot { placements, cells } => {
                let placements = placements.iter().map(|p| convert::unaddressed(p, now)).collect();
                let cells = cells.iter().map(|cell| convert::cell(cell)).collect();
                (Event::Snapshot(v1::SnapshotPart { placements, cells }), false)
            }
            Piece::Changes { entries, caught_up } => {
                let changes = entries.iter().flat_map(|entry| changes(entry, now)).collect();
                (Event::Changes(v1::Changes { changes }), caught_up)
            }
        };
        let position = self.watcher.position();
        v1::WatchResponse {
            event: Some(event),
            resume_token: self.token(),
            sequence: position.sequence.get(),
            caught_up,
            journal_id: position.journal.to_string(),
        }
    }

    /// Empty while the snapshot is not whole.
    fn token(&self) -> String {
        let Position { journal, sequence } = self.watcher.position();
        let cursor = self.watcher.whole().then(|| Cursor(format!("{journal}.{sequence}")));
        query(&self.filter).token(cursor)
    }

    fn too_slow(&self) -> Fault {
        let message =
            "the stream is read more slowly than placements change; resume from the last token";
        Fault::new(Reason::WatchTooSlow, message).with("resume_token", self.token())
    }

    fn shutting_down(&self) -> Fault {
        let message = "this replica shuts down; resume from the last token at another one";
        Fault::new(Reason::ShuttingDown, message).with("resume_token", self.token())
    }
}

fn expired() -> Fault {
    let message = "resume_token is of a position that the journal does not reach back to, or of another journal; watch without a token";
    Fault::new(Reason::ResumeTokenExpired, message)
}

fn cells(ids: &[String]) -> Result<BTreeSet<CellId>, Fault> {
    if ids.len() > MAX_CELLS {
        let problem = format!("holds {} cells; at most {MAX_CELLS} are allowed", ids.len());
        return Err(Fault::field(Reason::InvalidBatchSize, "cell_ids", problem));
    }
    let parse = |(at, id): (usize, &String)| parse::cell_id(&format!("cell_ids[{at}]"), id);
    ids.iter().enumerate().map(parse).collect()
}

fn filter(cells: &BTreeSet<CellId>) -> String {
    cells.iter().map(CellId::as_str).collect::<Vec<_>>().join(",")
}

fn query(filter: &str) -> Query<'_> {
    Query { method: "Watch", filter }
}

fn resume(filter: &str, token: &str) -> Result<Option<Position>, Fault> {
    let invalid = || {
        let problem = "is not a token that a Watch with the same cell_ids has sent; send it as it was, or nothing";
        Fault::field(Reason::InvalidResumeToken, "resume_token", problem)
    };
    let Some(Cursor(cursor)) = query(filter).cursor(token).map_err(|_| invalid())? else {
        return Ok(None);
    };
    let (journal, sequence) = cursor.split_once('.').ok_or_else(invalid)?;
    let journal = journal.parse().map_err(|_| invalid())?;
    let sequence = sequence.parse().map(Sequence::new).map_err(|_| invalid())?;
    Ok(Some(Position { journal, sequence }))
}

fn changes(entry: &JournalEntry, now: Timestamp) -> impl Iterator<Item = v1::PlacementChange> {
    use placement_change::Change as Sent;
    let sequence = entry.sequence.get();
    entry.changes.iter().filter_map(move |change| {
        let change = match change {
            Change::Placed { placement, .. } | Change::Moved { placement, .. } => {
                Sent::Placed(convert::unaddressed(placement, now))
            }
            Change::Vacated { placement } => Sent::Vacated(convert::unaddressed(placement, now)),
            Change::CellCreated { cell } | Change::CellUpdated { cell } => {
                Sent::Cell(convert::cell(cell))
            }
            Change::CellDeleted { cell } => Sent::CellDeleted(cell.as_str().to_owned()),
            // Leases say themselves how long they are.
            Change::ClusterUpdated { .. } => return None,
        };
        Some(v1::PlacementChange { sequence, change: Some(change) })
    })
}
