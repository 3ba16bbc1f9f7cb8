//! Drains and rebalances in memory that nobody works on. What their edge is tested against, where no cell has a table.

use std::collections::BTreeMap;

use async_trait::async_trait;
use cell_directory::directory::Refused;
use cell_directory::domain::{CellId, Timestamp};
use cell_directory::migration::bulk::{
    BulkApi, BulkError, BulkId, BulkPage, BulkProgress, BulkRecord, DrainAsk, How, Planned,
    RebalanceAsk,
};
use cell_directory::store::{Cursor, Page, StoreError};
use cells_balance::Plan;
use cells_balance::bulk::{Cancel, End, Header, Limits, Purpose};
use parking_lot::Mutex;

/// Cells that there are: `cell-0` to `cell-7`.
const CELLS: usize = 8;

#[derive(Default)]
pub struct FakeBulks(Mutex<State>);

#[derive(Default)]
struct State {
    bulks: BTreeMap<BulkId, BulkRecord>,
    /// The bulk of each request id.
    requests: BTreeMap<String, BulkId>,
}

fn record(id: BulkId, purpose: Purpose, how: How) -> BulkRecord {
    let at = Timestamp::from_millis(1_700_000_000_000).unwrap();
    let How { limits, terms, request, caller } = how;
    BulkRecord {
        id,
        header: Header {
            id: id.to_string(),
            purpose,
            limits,
            paused: false,
            cancelled: None,
            ended: None,
            items: 1,
            revision: 1,
        },
        planned: Planned {
            terms,
            generation: 1,
            staying: 0,
            created: at,
            digest: request.map(|request| request.digest).unwrap_or_default(),
            caller,
        },
        progress: BulkProgress::default(),
        updated: at,
        worker: 0,
        beat: 0,
    }
}

fn known(cell: &CellId) -> Result<(), BulkError> {
    match (0..CELLS).any(|number| format!("cell-{number}") == cell.as_str()) {
        true => Ok(()),
        false => Err(Refused::CellNotFound { cell: cell.clone() }.into()),
    }
}

fn page(record: &BulkRecord) -> BulkPage {
    BulkPage { record: record.clone(), problems: Vec::new() }
}

impl FakeBulks {
    /// Drains of `cell-0` with these numbers; each third one has ended.
    pub fn with(numbers: impl IntoIterator<Item = u128>) -> Self {
        let bulk = |number| {
            let id = BulkId::new(number);
            let how = How { limits: Limits::default(), ..How::default() };
            let mut bulk = record(id, Purpose::Drain { cell: "cell-0".into() }, how);
            bulk.header.ended = (number % 3 == 0).then_some(End::Finished);
            (id, bulk)
        };
        let bulks = numbers.into_iter().map(bulk).collect();
        Self(Mutex::new(State { bulks, ..State::default() }))
    }

    /// All of them.
    pub fn bulks(&self) -> BTreeMap<BulkId, BulkRecord> {
        self.0.lock().bulks.clone()
    }

    fn begin(&self, purpose: Purpose, how: How) -> Result<BulkPage, BulkError> {
        let mut state = self.0.lock();
        let request = how.request.as_ref().map(|request| request.id.to_string());
        let digest = how.request.as_ref().map(|request| request.digest.clone());
        if let Some(id) = request.as_ref().and_then(|request| state.requests.get(request)) {
            let begun = &state.bulks[id];
            return match digest.as_ref() == Some(&begun.planned.digest) {
                true => Ok(page(begun)),
                false => Err(Refused::RequestIdReused.into()),
            };
        }
        let id = BulkId::new(1_000 + state.bulks.len() as u128);
        let begun = record(id, purpose, how);
        state.requests.extend(request.map(|request| (request, id)));
        state.bulks.insert(id, begun.clone());
        Ok(page(&begun))
    }

    fn steer(&self, id: BulkId, steer: impl FnOnce(&mut Header)) -> Result<BulkPage, BulkError> {
        let mut state = self.0.lock();
        let bulk = state.bulks.get_mut(&id).ok_or(BulkError::NotFound(id))?;
        if bulk.header.ended.is_some() {
            return Err(BulkError::NotNow { bulk: id, why: "has ended" });
        }
        steer(&mut bulk.header);
        Ok(page(bulk))
    }
}

#[async_trait]
impl BulkApi for FakeBulks {
    async fn plan_drain(&self, ask: DrainAsk) -> Result<Plan, BulkError> {
        known(&ask.cell).map(|()| Plan::default())
    }

    async fn start_drain(&self, ask: DrainAsk, how: How) -> Result<BulkPage, BulkError> {
        known(&ask.cell)?;
        self.begin(Purpose::Drain { cell: ask.cell.as_str().to_owned() }, how)
    }

    async fn plan_rebalance(&self, _: RebalanceAsk) -> Result<Plan, BulkError> {
        Ok(Plan::default())
    }

    async fn start_rebalance(&self, ask: RebalanceAsk, how: How) -> Result<BulkPage, BulkError> {
        self.begin(Purpose::Rebalance { low: ask.band.low, high: ask.band.high }, how)
    }

    async fn get(&self, id: BulkId) -> Result<BulkPage, BulkError> {
        self.0.lock().bulks.get(&id).map(page).ok_or(BulkError::NotFound(id))
    }

    async fn list(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<BulkRecord>, BulkError> {
        let after = after.map(|Cursor(id)| BulkId::parse(id)).transpose();
        let after = after.map_err(|_| StoreError::ForeignCursor)?;
        let state = self.0.lock();
        let later = state.bulks.values().filter(|bulk| Some(bulk.id) > after);
        let mut items: Vec<_> = later.take(limit + 1).cloned().collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|last| Cursor(last.id.to_string()));
        Ok(Page { items, next })
    }

    async fn pause(&self, id: BulkId, paused: bool) -> Result<BulkPage, BulkError> {
        self.steer(id, |header| header.paused = paused)
    }

    async fn cancel(&self, id: BulkId, how: Cancel) -> Result<BulkPage, BulkError> {
        self.steer(id, |header| header.cancelled = Some(how))
    }
}
