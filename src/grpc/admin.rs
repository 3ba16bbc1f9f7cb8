//! `cells.v1.CellAdmin`: parses, asks the directory, and writes what it answers. Decides nothing.

use tonic::{Request, Response, Status};

use super::page::{self, Query};
use super::status::Fault;
use super::{convert, parse};
use crate::directory::{Directory, Mutation, Outcome, Refused, Registry};
use crate::domain::CellId;
use crate::proto::v1;
use crate::proto::v1::cell_admin_server::CellAdmin;
use crate::store::Cursor;

pub struct AdminService {
    pub directory: Directory,
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
        let cell = registry.cell(&id).map(|cell| convert::cell(cell));
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
        Ok(Response::new(v1::ListCellsResponse {
            cells: cells.into_iter().map(|cell| convert::cell(cell)).collect(),
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
        self.directory.delete_cell(id, etag, how).await.map_err(Fault::from)?;
        Ok(Response::new(v1::DeleteCellResponse {}))
    }
}

fn cell_of(outcome: Outcome) -> Option<v1::Cell> {
    match outcome {
        Outcome::Cell(cell) => Some(convert::cell(&cell)),
        Outcome::Placed { .. }
        | Outcome::Vacated(_)
        | Outcome::CellDeleted
        | Outcome::Cluster(_) => None,
    }
}
