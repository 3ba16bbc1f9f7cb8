//! `cells.v1.CellAdmin`: parses, asks the directory, and writes what it answers. Decides nothing.

use tonic::{Request, Response, Status};

use super::page::{self, Query};
use super::status::Fault;
use super::{analysis, convert, parse, tables};
use crate::cells::capacity::Question;
use crate::cells::{FinalBackup, Registrar, Removal};
use crate::directory::{Directory, Mutation, Outcome, Refused, Registry};
use crate::domain::CellId;
use crate::proto::v1;
use crate::proto::v1::cell_admin_server::CellAdmin;
use crate::store::Cursor;

pub struct AdminService {
    pub directory: Directory,
    pub cells: Registrar,
}

#[tonic::async_trait]
impl CellAdmin for AdminService {
    async fn create_cell(
        &self,
        request: Request<v1::CreateCellRequest>,
    ) -> Result<Response<v1::CreateCellResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let how = Mutation {
            request: parse::request(&id, "CreateCell", &request)?,
            validate_only: request.validate_only,
        };
        let cell = request.cell.ok_or_else(|| parse::missing("cell"))?;
        let outcome = self.directory.create_cell(parse::new_cell(cell)?, how).await;
        let cell = cell_of(outcome.map_err(Fault::from)?);
        Ok(Response::new(v1::CreateCellResponse { cell }))
    }

    async fn get_cell(
        &self,
        request: Request<v1::GetCellRequest>,
    ) -> Result<Response<v1::GetCellResponse>, Status> {
        let id = parse::cell_id("cell_id", &request.into_inner().cell_id)?;
        let registry = self.directory.registry().await.map_err(Fault::from)?;
        let loads = self.directory.loads();
        let cell = registry.cell(&id).map(|cell| convert::cell_with_load(cell, &loads));
        let cell = cell.ok_or_else(|| Fault::from(Refused::CellNotFound { cell: id }))?;
        Ok(Response::new(v1::GetCellResponse { cell: Some(cell) }))
    }

    async fn list_cells(
        &self,
        request: Request<v1::ListCellsRequest>,
    ) -> Result<Response<v1::ListCellsResponse>, Status> {
        let request = request.into_inner();
        let limit = page::size(request.page_size)?;
        let query = Query { method: "ListCells", filter: "" };
        let after = match query.cursor(&request.page_token)? {
            None => None,
            Some(Cursor(id)) => Some(CellId::new(id).map_err(|_| Fault::not_a_page_token())?),
        };
        let registry = self.directory.registry().await.map_err(Fault::from)?;
        let mut cells: Vec<_> = registry.cells_after(after.as_ref()).take(limit + 1).collect();
        let more = cells.len() > limit;
        cells.truncate(limit);
        let last = cells.last().filter(|_| more);
        let next = last.map(|cell| Cursor(cell.id.as_str().to_owned()));
        let loads = self.directory.loads();
        let cells = cells.into_iter().map(|cell| convert::cell_with_load(cell, &loads));
        Ok(Response::new(v1::ListCellsResponse {
            cells: cells.collect(),
            next_page_token: query.token(next),
        }))
    }

    async fn update_cell(
        &self,
        request: Request<v1::UpdateCellRequest>,
    ) -> Result<Response<v1::UpdateCellResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let how = Mutation {
            request: parse::request(&id, "UpdateCell", &request)?,
            validate_only: request.validate_only,
        };
        let mut cell = request.cell.ok_or_else(|| parse::missing("cell"))?;
        let id: CellId = parse::cell_id("cell.cell_id", &cell.cell_id)?;
        let etag = parse::etag("cell.etag", std::mem::take(&mut cell.etag))?;
        let patch = parse::cell_patch(cell, request.update_mask)?;
        let outcome = self.directory.update_cell(id, patch, etag, how).await;
        let cell = cell_of(outcome.map_err(Fault::from)?);
        Ok(Response::new(v1::UpdateCellResponse { cell }))
    }

    async fn get_cluster(
        &self,
        _: Request<v1::GetClusterRequest>,
    ) -> Result<Response<v1::GetClusterResponse>, Status> {
        let registry = self.directory.registry().await.map_err(Fault::from)?;
        let cluster = Some(convert::cluster(registry.cluster(), registry.journal()));
        Ok(Response::new(v1::GetClusterResponse { cluster }))
    }

    async fn update_cluster(
        &self,
        request: Request<v1::UpdateClusterRequest>,
    ) -> Result<Response<v1::UpdateClusterResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let how = Mutation {
            request: parse::request(&id, "UpdateCluster", &request)?,
            validate_only: request.validate_only,
        };
        let cluster = request.cluster.ok_or_else(|| parse::missing("cluster"))?;
        let etag = parse::etag("cluster.etag", cluster.etag)?;
        let lease = parse::lease_duration(cluster.lease_duration, request.update_mask)?;
        let outcome = self.directory.update_cluster(lease, etag, how).await;
        let Outcome::Cluster(cluster) = outcome.map_err(Fault::from)? else {
            return Ok(Response::new(v1::UpdateClusterResponse { cluster: None }));
        };
        let journal = self.directory.peek(Registry::journal).unwrap_or_default();
        let cluster = Some(convert::cluster(&cluster, journal));
        Ok(Response::new(v1::UpdateClusterResponse { cluster }))
    }

    async fn delete_cell(
        &self,
        request: Request<v1::DeleteCellRequest>,
    ) -> Result<Response<v1::DeleteCellResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let how = Mutation {
            request: parse::request(&id, "DeleteCell", &request)?,
            validate_only: request.validate_only,
        };
        let id = parse::cell_id("cell_id", &request.cell_id)?;
        let etag = parse::etag("etag", request.etag)?;
        self.cells.refuse_if_in_use(&id).await.map_err(Fault::from)?;
        self.directory.delete_cell(id, etag, how).await.map_err(Fault::from)?;
        Ok(Response::new(v1::DeleteCellResponse {}))
    }

    async fn put_table_set(
        &self,
        request: Request<v1::PutTableSetRequest>,
    ) -> Result<Response<v1::PutTableSetResponse>, Status> {
        let request = request.into_inner();
        let mut set = request.table_set.ok_or_else(|| parse::missing("table_set"))?;
        let etag = parse::etag("table_set.etag", std::mem::take(&mut set.etag))?;
        let set = tables::table_set(set, self.directory.now())?;
        let put = self.cells.put_table_set(set, etag.as_deref(), request.validate_only).await;
        let table_set = Some(tables::table_set_message(&put.map_err(Fault::from)?));
        Ok(Response::new(v1::PutTableSetResponse { table_set }))
    }

    async fn get_table_set(
        &self,
        request: Request<v1::GetTableSetRequest>,
    ) -> Result<Response<v1::GetTableSetResponse>, Status> {
        let id = tables::required_set_id("table_set_id", &request.into_inner().table_set_id)?;
        let set = self.cells.table_set(&id).await.map_err(Fault::from)?;
        let table_set = Some(tables::table_set_message(&set));
        Ok(Response::new(v1::GetTableSetResponse { table_set }))
    }

    async fn list_table_sets(
        &self,
        request: Request<v1::ListTableSetsRequest>,
    ) -> Result<Response<v1::ListTableSetsResponse>, Status> {
        let request = request.into_inner();
        let query = Query { method: "ListTableSets", filter: "" };
        let page = (request.page_size, request.page_token.as_str());
        let sets = self.cells.records.table_sets().await.map_err(Fault::from)?;
        let (sets, next_page_token) = paged(sets, |set| set.id.as_str(), &query, page)?;
        let table_sets = sets.iter().map(tables::table_set_message).collect();
        Ok(Response::new(v1::ListTableSetsResponse { table_sets, next_page_token }))
    }

    async fn plan_cell(
        &self,
        request: Request<v1::PlanCellRequest>,
    ) -> Result<Response<v1::PlanCellResponse>, Status> {
        let request = request.into_inner();
        let cell = parse::cell_id("cell_id", &request.cell_id)?;
        let set = tables::set_id("table_set_id", &request.table_set_id)?;
        let (set, plan) = self.cells.plan(&cell, &set).await.map_err(Fault::from)?;
        Ok(Response::new(v1::PlanCellResponse {
            tables: tables::plan_message(&plan),
            table_set_version: tables::version(set.version),
        }))
    }

    async fn provision_cell(
        &self,
        request: Request<v1::ProvisionCellRequest>,
    ) -> Result<Response<v1::ProvisionCellResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let id = parse::request(&id, "ProvisionCell", &request)?;
        let cell = parse::cell_id("cell_id", &request.cell_id)?;
        let set = tables::set_id("table_set_id", &request.table_set_id)?;
        let begun = self.cells.provision(&cell, &set, id.as_ref()).await.map_err(Fault::from)?;
        let operation = Some(tables::operation_message(&begun));
        Ok(Response::new(v1::ProvisionCellResponse { operation }))
    }

    async fn deprovision_cell(
        &self,
        request: Request<v1::DeprovisionCellRequest>,
    ) -> Result<Response<v1::DeprovisionCellResponse>, Status> {
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let id = parse::request(&id, "DeprovisionCell", &request)?;
        let cell = parse::cell_id("cell_id", &request.cell_id)?;
        let final_backup = match request.skip_final_backup {
            true => FinalBackup::Skip,
            false => FinalBackup::Required,
        };
        let removal = Removal { delete_data: request.delete_data, final_backup };
        let begun = self.cells.deprovision(&cell, removal, id.as_ref()).await;
        let operation = Some(tables::operation_message(&begun.map_err(Fault::from)?));
        Ok(Response::new(v1::DeprovisionCellResponse { operation }))
    }

    async fn analyze_cell(
        &self,
        request: Request<v1::AnalyzeCellRequest>,
    ) -> Result<Response<v1::AnalyzeCellResponse>, Status> {
        let request = request.into_inner();
        let cell = parse::cell_id("cell_id", &request.cell_id)?;
        let days = tables::days("days", request.days)?;
        let tenants = analysis::tenants("partition_keys", request.partition_keys)?;
        let question = Question { days, tenants, compare: request.compare_with_cost_explorer };
        let analysis = self.cells.analyze(&cell, &question).await.map_err(Fault::from)?;
        Ok(Response::new(analysis::message(&analysis)))
    }

    async fn get_operation(
        &self,
        request: Request<v1::GetOperationRequest>,
    ) -> Result<Response<v1::GetOperationResponse>, Status> {
        let id = tables::operation_id("operation_id", request.into_inner().operation_id)?;
        let operation = self.cells.operation(&id).await.map_err(Fault::from)?;
        let operation = Some(tables::operation_message(&operation));
        Ok(Response::new(v1::GetOperationResponse { operation }))
    }

    async fn list_operations(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        let request = request.into_inner();
        let cell = Some(request.cell_id.as_str()).filter(|id| !id.is_empty());
        let cell = cell.map(|id| parse::cell_id("cell_id", id)).transpose()?;
        let query = Query { method: "ListOperations", filter: &request.cell_id };
        let page = (request.page_size, request.page_token.as_str());
        let mut all = self.cells.records.operations().await.map_err(Fault::from)?;
        all.retain(|operation| cell.as_ref().is_none_or(|cell| operation.cell == *cell));
        let (page, next_page_token) = paged(all, |one| one.id.as_str(), &query, page)?;
        let operations = page.iter().map(tables::operation_message).collect();
        Ok(Response::new(v1::ListOperationsResponse { operations, next_page_token }))
    }
}

/// A page of what is sorted by its ids, all of which are known.
pub(super) fn paged<T>(
    mut all: Vec<T>,
    id: impl Fn(&T) -> &str,
    query: &Query<'_>,
    (page_size, page_token): (i32, &str),
) -> Result<(Vec<T>, String), Fault> {
    let limit = page::size(page_size)?;
    if let Some(Cursor(after)) = query.cursor(page_token)? {
        all.retain(|one| id(one) > after.as_str());
    }
    let more = all.len() > limit;
    all.truncate(limit);
    let next = all.last().filter(|_| more).map(|last| Cursor(id(last).to_owned()));
    Ok((all, query.token(next)))
}

fn cell_of(outcome: Outcome) -> Option<v1::Cell> {
    match outcome {
        Outcome::Cell(cell) => Some(convert::cell(&cell)),
        Outcome::Placed { .. }
        | Outcome::Vacated(_)
        | Outcome::Moved(_)
        | Outcome::CellDeleted
        | Outcome::Cluster(_) => None,
    }
}
