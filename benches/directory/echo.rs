//! The baseline: a bare tonic server that answers the same messages without thinking.

use std::net::SocketAddr;

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_server::{CellDirectory, CellDirectoryServer};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Answers what a hit looks like.
pub struct Echo {
    pub resolve: v1::ResolveResponse,
    pub batch: v1::BatchResolveResponse,
}

/// Starts an echo on a free port, on the current runtime.
pub async fn start(echo: Echo) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(CellDirectoryServer::new(echo))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true))),
    );
    address
}

fn unimplemented<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("the echo answers Resolve and BatchResolve"))
}

#[tonic::async_trait]
impl CellDirectory for Echo {
    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, Status> {
        let mut response = self.resolve.clone();
        if let Some(placement) = &mut response.placement {
            placement.partition_key = request.into_inner().partition_key;
        }
        Ok(Response::new(response))
    }

    async fn batch_resolve(
        &self,
        _: Request<v1::BatchResolveRequest>,
    ) -> Result<Response<v1::BatchResolveResponse>, Status> {
        Ok(Response::new(self.batch.clone()))
    }

    async fn get_placement(
        &self,
        _: Request<v1::GetPlacementRequest>,
    ) -> Result<Response<v1::GetPlacementResponse>, Status> {
        unimplemented()
    }

    async fn list_placements(
        &self,
        _: Request<v1::ListPlacementsRequest>,
    ) -> Result<Response<v1::ListPlacementsResponse>, Status> {
        unimplemented()
    }

    async fn pin_placement(
        &self,
        _: Request<v1::PinPlacementRequest>,
    ) -> Result<Response<v1::PinPlacementResponse>, Status> {
        unimplemented()
    }

    async fn delete_placement(
        &self,
        _: Request<v1::DeletePlacementRequest>,
    ) -> Result<Response<v1::DeletePlacementResponse>, Status> {
        unimplemented()
    }

    async fn get_placement_history(
        &self,
        _: Request<v1::GetPlacementHistoryRequest>,
    ) -> Result<Response<v1::GetPlacementHistoryResponse>, Status> {
        unimplemented()
    }

    type WatchStream = futures::stream::Empty<Result<v1::WatchResponse, Status>>;

    async fn watch(
        &self,
        _: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn sync(
        &self,
        _: Request<v1::SyncRequest>,
    ) -> Result<Response<v1::SyncResponse>, Status> {
        Err(Status::unimplemented("an echo"))
    }

    async fn import_placements(
        &self,
        _: Request<Streaming<v1::ImportPlacementsRequest>>,
    ) -> Result<Response<v1::ImportPlacementsResponse>, Status> {
        unimplemented()
    }
}
