//! `cells.v1.CellDirectory`: parses, asks the directory, and writes what it answers. Decides nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::admission::Admission;
use super::controller::Class;
use super::deadline::Deadline;
use super::page::{self, Query};
use super::status::{Fault, refine};
use super::watch::{self, WatchStream};
use super::{convert, parse};
use crate::directory::{
    self, DecisionTrace, Directory, Mutation, Outcome, Refused, RouteOptions, RouteRequest, Routed,
};
use crate::domain::PartitionKey;
use crate::proto::v1::cell_directory_server::CellDirectory;
use crate::proto::v1::{self, batch_resolve_result};
use crate::store::Cursor;
use crate::telemetry::rpc::RpcTrace;

/// Failures that an import reports one by one.
const MAX_IMPORT_FAILURES: usize = 1000;

/// Placements of one import that are on their way at the same time.
const IMPORT_CONCURRENCY: usize = 256;

pub struct DirectoryService {
    pub directory: Directory,
    pub admission: Admission,
    /// Cancelled when streams are to end.
    pub draining: CancellationToken,
}

/// What the layers say of a call.
struct Caller {
    rpc: Option<RpcTrace>,
    deadline: Option<Instant>,
}

impl Caller {
    fn of<T>(request: &Request<T>) -> Self {
        let extensions = request.extensions();
        Self {
            rpc: extensions.get::<RpcTrace>().cloned(),
            deadline: extensions.get::<Deadline>().map(|deadline| deadline.0),
        }
    }

    fn route(&self, key: PartitionKey, options: &Arc<RouteOptions>) -> RouteRequest {
        RouteRequest::new(key, Arc::clone(options), DecisionTrace::under(self.rpc.clone()))
    }
}

#[tonic::async_trait]
impl CellDirectory for DirectoryService {
    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        let key = parse::partition_key("partition_key", request.partition_key)?;
        let options = RouteOptions {
            min_epoch: parse::epoch(request.min_epoch),
            explain: request.explain,
            deadline: caller.deadline,
            ..parse::route_options(request.mode, request.constraints, request.fallback)?
        };
        let name = key.as_str().to_owned();
        let routed = self.route(&caller, key, options).await?;
        Ok(Response::new(self.resolved(&routed, name)))
    }

    async fn batch_resolve(
        &self,
        request: Request<v1::BatchResolveRequest>,
    ) -> Result<Response<v1::BatchResolveResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        parse::batch_size("partition_keys", request.partition_keys.len())?;
        let options = Arc::new(RouteOptions {
            deadline: caller.deadline,
            ..parse::route_options(request.mode, request.constraints, request.fallback)?
        });
        let keys = request.partition_keys;
        let with_tables = |mut answer: v1::BatchResolveResponse| {
            if request.cell_tables {
                self.add_tables(&mut answer);
            }
            Response::new(answer)
        };
        if self.admission.slots().full(Class::Critical) {
            let options = Arc::new(in_memory(RouteOptions::clone(&options)));
            return Ok(with_tables(self.batch(&caller, keys, &options, true).await));
        }
        let mut answer = std::pin::pin!(self.batch(&caller, keys, &options, false));
        if let Poll::Ready(answer) = futures::poll!(answer.as_mut()) {
            return Ok(with_tables(answer));
        }
        let _slot = self.admission.slots().take_anyway();
        Ok(with_tables(answer.await))
    }

    async fn get_placement(
        &self,
        request: Request<v1::GetPlacementRequest>,
    ) -> Result<Response<v1::GetPlacementResponse>, Status> {
        let key = parse::partition_key("partition_key", request.into_inner().partition_key)?;
        let placement = self.directory.placement(&key).await.map_err(Fault::from)?;
        let placement = Some(self.placement(&placement));
        Ok(Response::new(v1::GetPlacementResponse { placement }))
    }

    async fn list_placements(
        &self,
        request: Request<v1::ListPlacementsRequest>,
    ) -> Result<Response<v1::ListPlacementsResponse>, Status> {
        let request = request.into_inner();
        let cell = match request.cell_id.as_str() {
            "" => None,
            id => Some(parse::cell_id("cell_id", id)?),
        };
        let limit = page::size(request.page_size)?;
        let query = Query { method: "ListPlacements", filter: &request.cell_id };
        let after = query.cursor(&request.page_token)?;
        let page = self.directory.list(cell.as_ref(), limit, after.as_ref()).await;
        let page = page.map_err(Fault::from)?;
        Ok(Response::new(v1::ListPlacementsResponse {
            placements: page.items.iter().map(|placement| self.placement(placement)).collect(),
            next_page_token: query.token(page.next),
        }))
    }

    async fn pin_placement(
        &self,
        request: Request<v1::PinPlacementRequest>,
    ) -> Result<Response<v1::PinPlacementResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let how = Mutation {
            request: parse::request(&id, "PinPlacement", &request)?,
            validate_only: request.validate_only,
        };
        let placing = directory::Placing {
            key: parse::partition_key("partition_key", request.partition_key)?,
            cell: parse::cell_id("cell_id", &request.cell_id)?,
            since: None,
            expires: parse::expire_time("expire_time", request.expire_time, self.directory.now())?,
        };
        let outcome = self.directory.pin(placing, how).await.map_err(Fault::from)?;
        let placement = self.outcome_placement(outcome);
        Ok(Response::new(v1::PinPlacementResponse { placement }))
    }

    async fn delete_placement(
        &self,
        request: Request<v1::DeletePlacementRequest>,
    ) -> Result<Response<v1::DeletePlacementResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let how = Mutation {
            request: parse::request(&id, "DeletePlacement", &request)?,
            validate_only: request.validate_only,
        };
        let key = parse::partition_key("partition_key", request.partition_key)?;
        let epoch = parse::epoch(request.epoch);
        let outcome = self.directory.delete(key, epoch, how).await.map_err(Fault::from)?;
        let placement = self.outcome_placement(outcome);
        Ok(Response::new(v1::DeletePlacementResponse { placement }))
    }

    async fn get_placement_history(
        &self,
        request: Request<v1::GetPlacementHistoryRequest>,
    ) -> Result<Response<v1::GetPlacementHistoryResponse>, Status> {
        let request = request.into_inner();
        let filter = request.partition_key.clone();
        let key = parse::partition_key("partition_key", request.partition_key)?;
        let limit = page::size(request.page_size)?;
        let query = Query { method: "GetPlacementHistory", filter: &filter };
        let after = query.cursor(&request.page_token)?;
        let mut entries = Vec::new();
        if after.is_none() {
            match self.directory.placement(&key).await {
                Ok(placement) => entries.push(convert::present(&placement)),
                Err(directory::Error::Refused(Refused::PlacementNotFound)) => {}
                Err(error) => return Err(Fault::from(error).into()),
            }
        }
        // The past begins at the empty cursor: where the present placement fills the page, the next one begins there.
        let next = match limit - entries.len() {
            0 => Some(Cursor(String::new())),
            room => {
                let after = after.filter(|Cursor(cursor)| !cursor.is_empty());
                let past = self.directory.history(&key, room, after.as_ref()).await;
                let past = past.map_err(Fault::from)?;
                entries.extend(past.items.iter().map(convert::past));
                past.next
            }
        };
        let next_page_token = query.token(next);
        Ok(Response::new(v1::GetPlacementHistoryResponse { entries, next_page_token }))
    }

    type WatchStream = WatchStream;

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        let Caller { deadline, .. } = Caller::of(&request);
        let draining = self.draining.clone();
        let stream = watch::begin(&self.directory, request.into_inner(), deadline, draining)?;
        Ok(Response::new(stream))
    }

    async fn sync(
        &self,
        _: Request<v1::SyncRequest>,
    ) -> Result<Response<v1::SyncResponse>, Status> {
        let standing = self.directory.standing().map_err(Fault::from)?;
        Ok(Response::new(convert::synced(&standing)))
    }

    async fn import_placements(
        &self,
        request: Request<Streaming<v1::ImportPlacementsRequest>>,
    ) -> Result<Response<v1::ImportPlacementsResponse>, Status> {
        let mut portions = request.into_inner();
        let mut import = Import::new(&self.directory);
        while let Some(portion) = portions.message().await.map_err(refine)? {
            import.take(portion).await?;
        }
        Ok(Response::new(import.finish().await))
    }
}

impl DirectoryService {
    fn placement(&self, placement: &crate::domain::Placement) -> v1::Placement {
        let now = self.directory.now();
        let known =
            self.directory.peek(|registry| convert::placement(placement, Some(registry), now));
        known.unwrap_or_else(|| convert::placement(placement, None, now))
    }

    fn outcome_placement(&self, outcome: Outcome) -> Option<v1::Placement> {
        match outcome {
            Outcome::Placed { placement, .. } | Outcome::Moved(placement) => {
                Some(self.placement(&placement))
            }
            Outcome::Vacated(placement) => Some(self.placement(&placement)),
            Outcome::Cell(_) | Outcome::CellDeleted | Outcome::Cluster(_) => None,
        }
    }

    fn resolved(&self, routed: &Routed, key: String) -> v1::ResolveResponse {
        let clock = self.directory.clock();
        // Not two closures with the key moved into both: the registry is there but for the first moments.
        let mut key = Some(key);
        let mut take = || key.take().unwrap_or_default();
        let known = self
            .directory
            .peek(|registry| convert::resolved(routed, take(), Some(registry), clock));
        known.unwrap_or_else(|| convert::resolved(routed, take(), None, clock))
    }

    /// Routes a tenant. One that is not in memory takes a place among those who wait for the table; where there is none left, the
    /// call is refused.
    async fn route(
        &self,
        caller: &Caller,
        key: PartitionKey,
        options: RouteOptions,
    ) -> Result<Routed, Fault> {
        let slots = self.admission.slots();
        if slots.full(Class::Critical) {
            return self.route_in_memory(caller.route(key, &Arc::new(in_memory(options))));
        }
        let mut answer = self.directory.route(caller.route(key, &Arc::new(options)));
        if let Poll::Ready(answer) = futures::poll!(&mut answer) {
            return answer.map_err(Fault::from);
        }
        let _slot = slots.take_anyway();
        answer.await.map_err(Fault::from)
    }

    /// Routes a tenant who is in memory, and refuses any other. What is in memory is there at the first poll, and with `in_memory` options
    /// nothing that was begun there can change anything.
    fn route_in_memory(&self, request: RouteRequest) -> Result<Routed, Fault> {
        let answer = self.directory.route(request).now_or_never();
        answer.and_then(Result::ok).ok_or_else(|| self.admission.refuse(Class::Critical))
    }

    /// With `in_memory`, keys that are not are refused.
    async fn batch(
        &self,
        caller: &Caller,
        keys: Vec<String>,
        options: &Arc<RouteOptions>,
        in_memory: bool,
    ) -> v1::BatchResolveResponse {
        let mut requests = Vec::with_capacity(keys.len());
        let mut faults = Vec::new();
        for (at, key) in keys.into_iter().enumerate() {
            match PartitionKey::new(key) {
                Ok(key) => requests.push(caller.route(key, options)),
                Err(invalid) => {
                    let fault = Fault::invalid(format!("partition_keys[{at}]"), &invalid);
                    faults.push((at, failed(fault)));
                }
            }
        }
        let mut oldest = convert::Oldest::default();
        let mut make = |answer: Result<Routed, Fault>| match answer {
            Ok(routed) => {
                oldest.take(&routed);
                convert::batch_result(&routed, || self.directory.now())
            }
            Err(fault) => failed(fault),
        };
        let requests = requests.into_iter();
        let mut results: Vec<_> = match in_memory {
            true => requests.map(|request| make(self.route_in_memory(request))).collect(),
            false => {
                let make =
                    |answer: Result<Routed, directory::Error>| make(answer.map_err(Fault::from));
                self.directory.route_all(requests, make).await
            }
        };
        // In ascending order, so that each finds its place among those before it.
        for (at, fault) in faults {
            results.insert(at, fault);
        }
        let cells = self.addresses(&results);
        let mut response =
            v1::BatchResolveResponse { results, cells, ..v1::BatchResolveResponse::default() };
        oldest.note(&mut response, self.directory.clock());
        response
    }

    /// To the addresses of cells, which tables they have.
    fn add_tables(&self, answer: &mut v1::BatchResolveResponse) {
        let cells = &mut answer.cells;
        self.directory.peek(|registry| {
            for (id, address) in cells.iter_mut() {
                let cell = registry.cell_named(id);
                let tables = cell.and_then(|cell| cell.tables.as_deref());
                address.tables = tables.map(convert::cell_tables);
            }
        });
    }

    /// The address of every registered cell that the results name.
    fn addresses(&self, results: &[v1::BatchResolveResult]) -> BTreeMap<String, v1::CellAddress> {
        let mut named: BTreeSet<&str> = BTreeSet::new();
        let mut last = "";
        for result in results {
            if let Some(batch_resolve_result::Outcome::Placement(placement)) = &result.outcome
                && placement.cell_id != last
            {
                last = &placement.cell_id;
                named.insert(last);
            }
        }
        let address = |registry: &directory::Registry, id: &str| {
            let cell = registry.cell_named(id)?;
            let endpoint = cell.endpoint.as_str().to_owned();
            Some((
                id.to_owned(),
                v1::CellAddress { endpoint, region: cell.region.as_str().to_owned(), tables: None },
            ))
        };
        let known = self
            .directory
            .peek(|registry| named.into_iter().filter_map(|id| address(registry, id)).collect());
        known.unwrap_or_default()
    }
}

/// Options for an answer from memory or none: no assignment, no guess.
fn in_memory(options: RouteOptions) -> RouteOptions {
    RouteOptions { assign: false, fallback: false, ..options }
}

fn failed(fault: Fault) -> v1::BatchResolveResult {
    v1::BatchResolveResult {
        outcome: Some(batch_resolve_result::Outcome::Error(fault.into_key_error())),
        decision: None,
    }
}

/// An import under way.
struct Import<'a> {
    directory: &'a Directory,
    validate_only: Option<bool>,
    /// Placements met so far.
    met: u64,
    waiting: FuturesUnordered<futures::future::BoxFuture<'a, (u64, Result<Outcome, Fault>)>>,
    response: v1::ImportPlacementsResponse,
}

impl<'a> Import<'a> {
    fn new(directory: &'a Directory) -> Self {
        Self {
            directory,
            validate_only: None,
            met: 0,
            waiting: FuturesUnordered::new(),
            response: v1::ImportPlacementsResponse::default(),
        }
    }

    async fn take(&mut self, portion: v1::ImportPlacementsRequest) -> Result<(), Status> {
        let validate_only = *self.validate_only.get_or_insert(portion.validate_only);
        if portion.placements.len() > parse::MAX_BATCH {
            parse::batch_size("placements", portion.placements.len())?;
        }
        let now = self.directory.now();
        for row in portion.placements {
            let index = self.met;
            self.met += 1;
            match parse::import(&format!("placements[{index}]"), row, now) {
                Err(fault) => self.note(index, Err(fault)),
                Ok(placing) => {
                    let directory = self.directory;
                    self.waiting.push(Box::pin(async move {
                        let outcome = directory.import(placing, validate_only).await;
                        (index, outcome.map_err(Fault::from))
                    }));
                }
            }
            if self.waiting.len() >= IMPORT_CONCURRENCY {
                self.land().await;
            }
        }
        Ok(())
    }

    async fn land(&mut self) {
        if let Some((index, outcome)) = self.waiting.next().await {
            self.note(index, outcome);
        }
    }

    fn note(&mut self, index: u64, outcome: Result<Outcome, Fault>) {
        match outcome {
            Ok(Outcome::Placed { created: true, .. }) => self.response.created += 1,
            Ok(_) => self.response.unchanged += 1,
            Err(fault) => {
                self.response.failed += 1;
                if self.response.failures.len() < MAX_IMPORT_FAILURES {
                    let error = Some(fault.into_key_error());
                    self.response.failures.push(v1::ImportFailure { index, error });
                }
            }
        }
    }

    async fn finish(mut self) -> v1::ImportPlacementsResponse {
        while !self.waiting.is_empty() {
            self.land().await;
        }
        self.response.failures.sort_by_key(|failure| failure.index);
        self.response
    }
}
