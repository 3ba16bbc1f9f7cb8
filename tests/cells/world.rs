//! A server on an engine, and what a test asks of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_admin_client::CellAdminClient;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::celld::{Celld, cell, unique};
use crate::cloudwatch::CloudWatch;
use crate::dynamodb_local::DynamoDbLocal;
use crate::embedded::Embedded;
use crate::moto::Moto;
use crate::streams_proxy::StreamsProxy;

/// Longest wait for an operation, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Budgets are wide: what is tested is what is answered on a busy machine, not when. moto takes its time.
pub const FLAGS: [&str; 9] = [
    "--read-timeout=20s",
    "--lookup-budget=50s",
    "--commit-timeout=20s",
    "--commit-budget=50s",
    "--journal-poll-interval=200ms",
    "--operations-interval=50ms",
    "--operations-takeover=2s",
    "--max-queue-delay=1m",
    "--log-filter=error",
];

#[derive(Clone)]
pub enum Engine {
    Moto(Arc<Moto>),
    DynamoDbLocal(&'static DynamoDbLocal),
    Embedded(Arc<Embedded>),
    /// An engine, and before it what its streams lack.
    Streams(Arc<StreamsProxy>),
    /// moto, and before it what a test counts.
    CloudWatch(Arc<CloudWatch>),
    /// Whatever answers at an address.
    At(String),
}

impl Engine {
    pub fn moto() -> Self {
        Self::Moto(Arc::new(Moto::start()))
    }

    pub fn endpoint(&self) -> String {
        match self {
            Engine::Moto(engine) => engine.endpoint(),
            Engine::DynamoDbLocal(engine) => engine.endpoint(),
            Engine::Embedded(engine) => engine.endpoint().to_owned(),
            Engine::Streams(before) => before.endpoint(),
            Engine::CloudWatch(before) => before.endpoint(),
            Engine::At(endpoint) => endpoint.clone(),
        }
    }
}

pub struct World {
    pub engine: Engine,
    pub prefix: String,
    pub server: Celld,
    pub admin: CellAdminClient<Channel>,
    flags: Vec<&'static str>,
}

impl World {
    /// With cells in `eu-west-1`.
    pub async fn new(engine: Engine, cells: &[&str]) -> Self {
        Self::with_flags(engine, cells, &[]).await
    }

    /// The same with further flags.
    pub async fn with_flags(engine: Engine, cells: &[&str], more: &[&'static str]) -> Self {
        let prefix = unique("cells");
        let flags: Vec<_> = FLAGS.iter().chain(more).copied().collect();
        let server = Celld::serve(&engine.endpoint(), &prefix, &flags);
        server.ready().await;
        let admin = server.admin().await;
        let mut world = Self { engine, prefix, server, admin, flags };
        for id in cells {
            let request = v1::CreateCellRequest { cell: Some(cell(id)), ..Default::default() };
            world.admin.create_cell(request).await.unwrap();
        }
        world
    }

    /// Another server on the same tables, with more flags.
    pub async fn join(&self, more: &[&str]) -> Celld {
        let flags = [&FLAGS[..], more].concat();
        let server = Celld::serve(&self.engine.endpoint(), &self.prefix, &flags);
        server.ready().await;
        server
    }

    /// Ends the server with `kill -9` and starts another.
    pub async fn restart(&mut self) {
        let server = Celld::serve(&self.engine.endpoint(), &self.prefix, &self.flags);
        std::mem::replace(&mut self.server, server).kill();
        self.server.ready().await;
        self.admin = self.server.admin().await;
    }

    pub fn table(&self, name: &str, cell: &str) -> String {
        format!("{}{name}-{cell}", self.prefix)
    }

    /// The SDK, past the server.
    pub async fn sdk(&self) -> aws_config::SdkConfig {
        aws_config::defaults(aws_config::BehaviorVersion::latest())
            .region(aws_config::Region::new("eu-west-1"))
            .credentials_provider(aws_sdk_dynamodb::config::Credentials::for_tests())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .endpoint_url(self.engine.endpoint())
            .load()
            .await
    }

    pub async fn put_set(&mut self, tables: Vec<v1::TableSpec>) -> v1::TableSet {
        let tags = [("environment".to_owned(), "test".to_owned())].into();
        let table_set_id = "default".to_owned();
        let set = v1::TableSet { table_set_id, tables, tags, ..Default::default() };
        let request = v1::PutTableSetRequest { table_set: Some(set), validate_only: false };
        self.admin.put_table_set(request).await.unwrap().into_inner().table_set.unwrap()
    }

    pub async fn plan(&mut self, cell: &str) -> Vec<v1::TablePlan> {
        let request = v1::PlanCellRequest { cell_id: cell.to_owned(), ..Default::default() };
        self.admin.plan_cell(request).await.unwrap().into_inner().tables
    }

    /// What would be changed, all tables together.
    pub async fn changes(&mut self, cell: &str) -> Vec<String> {
        self.plan(cell).await.into_iter().flat_map(|table| table.changes).collect()
    }

    pub async fn begin(&mut self, cell: &str) -> v1::Operation {
        let request = v1::ProvisionCellRequest { cell_id: cell.to_owned(), ..Default::default() };
        self.admin.provision_cell(request).await.unwrap().into_inner().operation.unwrap()
    }

    pub async fn provision(&mut self, cell: &str) -> v1::Operation {
        let begun = self.begin(cell).await;
        self.ended(&begun.operation_id).await
    }

    /// Waits until an operation has ended.
    pub async fn ended(&mut self, id: &str) -> v1::Operation {
        let deadline = Instant::now() + SOON;
        loop {
            let request = v1::GetOperationRequest { operation_id: id.to_owned() };
            let answer = self.admin.get_operation(request).await.unwrap().into_inner();
            let operation = answer.operation.unwrap();
            if operation.state() != v1::OperationState::Running {
                return operation;
            }
            assert!(Instant::now() < deadline, "{operation:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn cordon(&mut self, id: &str) {
        let state = v1::CellState::Cordoned.into();
        let cell = v1::Cell { cell_id: id.to_owned(), state, ..Default::default() };
        let request = v1::UpdateCellRequest {
            cell: Some(cell),
            update_mask: Some(prost_types::FieldMask { paths: vec!["state".to_owned()] }),
            ..Default::default()
        };
        self.admin.update_cell(request).await.unwrap();
    }
}

pub fn key(name: &str) -> Option<v1::KeyAttribute> {
    Some(v1::KeyAttribute { name: name.to_owned(), r#type: 0 })
}

/// A table on demand with what an application's table usually has.
pub fn table(name: &str) -> v1::TableSpec {
    v1::TableSpec {
        name: name.to_owned(),
        partition_key: key("PK"),
        sort_key: key("SK"),
        tenant_key_templates: vec!["CUSTOMER#{partition_key}".to_owned()],
        indexes: vec![v1::IndexSpec {
            name: "CellIdIndex".to_owned(),
            partition_key: key("CellId"),
            sort_key: key("PK"),
            ..Default::default()
        }],
        ttl_attribute: "TTL".to_owned(),
        stream: v1::StreamViewType::NewAndOldImages.into(),
        ..Default::default()
    }
}

/// What an error says: its code, its reason, and the fields that it names.
pub fn fault(status: &Status) -> (Code, String, Vec<String>) {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let fields = status.get_details_bad_request().map(|bad| bad.field_violations);
    let fields = fields.unwrap_or_default().into_iter().map(|violation| violation.field);
    (status.code(), reason, fields.collect())
}
