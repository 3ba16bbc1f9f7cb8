//! What `celld dev` begins with: three cells, and what to try.

use std::net::SocketAddr;
use std::path::Path;

use tokio_util::sync::CancellationToken;

use super::AppError;
use crate::config::Config;
use crate::directory::{self, Directory, Mutation, NewCell, Refused};
use crate::domain::{CellId, CellState, Endpoint, Invalid, Labels, Region, Weight};

/// The cells of `celld dev`.
pub const DEMO_CELLS: [(&str, &str); 3] =
    [("cell-a", "eu-west-1"), ("cell-b", "us-east-1"), ("cell-c", "ap-southeast-2")];

/// Registers the cells of the demo that are not registered yet.
pub async fn register_demo_cells(directory: &Directory) -> Result<(), AppError> {
    directory.ready(&CancellationToken::new()).await;
    for (id, region) in DEMO_CELLS {
        let cell = demo_cell(id, region).map_err(AppError::DefaultCell)?;
        match directory.create_cell(cell, Mutation::default()).await {
            Ok(_) | Err(directory::Error::Refused(Refused::CellExists { .. })) => {}
            Err(error) => return Err(AppError::DemoCells(error)),
        }
    }
    Ok(())
}

fn demo_cell(id: &str, region: &str) -> Result<NewCell, Invalid> {
    Ok(NewCell {
        id: CellId::new(id)?,
        region: Region::new(region)?,
        endpoint: Endpoint::new(format!("https://{id}.example.com"))?,
        labels: Labels::new([("tier".to_owned(), "standard".to_owned())].into())?,
        weight: Weight::DEFAULT,
        capacity: None,
        state: CellState::Active,
    })
}

pub fn greeting(address: SocketAddr, endpoint: &str, data: &Path, config: &Config) -> String {
    let tls = if config.tls_cert.is_some() { "-insecure" } else { "-plaintext" };
    format!(
        "\
celld serves gRPC on {address}
embedded DynamoDB on {endpoint}, data in {data}

try:
  grpcurl {tls} -d '{{\"partition_key\": \"customer-12345\", \"explain\": true}}' {address} cells.v1.CellDirectory/Resolve
  grpcurl {tls} -d '{{\"partition_keys\": [\"customer-12345\", \"customer-67890\"]}}' {address} cells.v1.CellDirectory/BatchResolve
  grpcurl {tls} {address} cells.v1.CellAdmin/ListCells
",
        data = data.display(),
    )
}
