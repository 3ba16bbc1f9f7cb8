//! `cells.v1.MigrationService`: parses, asks, and writes what is answered. Decides nothing.

mod ask;
mod bulk;
mod bulk_message;
mod message;
mod watch;

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::deadline::Deadline;
use super::page::{self, Query};
use super::parse;
use super::status::Fault;
use crate::directory::Clock;
use crate::domain::MigrationId;
use crate::migration::bulk::BulkApi;
use crate::migration::{Filter, Instruction, MigrationApi};
use crate::proto::v1;
use crate::proto::v1::migration_service_server::MigrationService as Service;
use crate::telemetry::propagation;
use crate::telemetry::rpc::RpcTrace;

use watch::{Watches, Watching};

pub struct MigrationService {
    migrations: Arc<dyn MigrationApi>,
    /// `None`: drains and rebalances are not served.
    bulks: Option<Arc<dyn BulkApi>>,
    clock: Clock,
    watches: Watches,
    /// Cancelled when streams are to end.
    draining: CancellationToken,
}

impl MigrationService {
    pub fn new(
        migrations: Arc<dyn MigrationApi>,
        clock: Clock,
        draining: CancellationToken,
    ) -> Self {
        Self { migrations, bulks: None, clock, watches: Watches::default(), draining }
    }

    pub fn with_bulks(self, bulks: Option<Arc<dyn BulkApi>>) -> Self {
        Self { bulks, ..self }
    }

    async fn steer(&self, id: &str, wish: Instruction) -> Result<Option<v1::Migration>, Status> {
        let id = migration_id(id)?;
        let migration = self.migrations.ask(id, wish).await.map_err(Fault::from)?;
        Ok(Some(message::migration(&migration, self.clock.now())))
    }
}

#[tonic::async_trait]
impl Service for MigrationService {
    async fn start_migration(
        &self,
        request: Request<v1::StartMigrationRequest>,
    ) -> Result<Response<v1::StartMigrationResponse>, Status> {
        let caller = caller(&request);
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let id = parse::request(&id, "StartMigration", &request)?;
        let validate_only = request.validate_only;
        let ask = ask::ask(request)?;
        if validate_only {
            let estimate = self.migrations.plan(ask).await.map_err(Fault::from)?;
            let estimate = Some(message::estimate(&estimate));
            return Ok(Response::new(v1::StartMigrationResponse { migration: None, estimate }));
        }
        let begun = self.migrations.start(ask, id, caller).await.map_err(Fault::from)?;
        let migration = Some(message::migration(&begun, self.clock.now()));
        Ok(Response::new(v1::StartMigrationResponse { migration, estimate: None }))
    }

    async fn get_migration(
        &self,
        request: Request<v1::GetMigrationRequest>,
    ) -> Result<Response<v1::GetMigrationResponse>, Status> {
        let id = migration_id(&request.into_inner().migration_id)?;
        let migration = self.migrations.get(id).await.map_err(Fault::from)?;
        let migration = Some(message::migration(&migration, self.clock.now()));
        Ok(Response::new(v1::GetMigrationResponse { migration }))
    }

    async fn list_migrations(
        &self,
        request: Request<v1::ListMigrationsRequest>,
    ) -> Result<Response<v1::ListMigrationsResponse>, Status> {
        let v1::ListMigrationsRequest { partition_key, cell_id, active_only, .. } =
            request.get_ref();
        // No key and no id has the character between them.
        let text = format!("{partition_key}\u{0}{cell_id}\u{0}{active_only}");
        let query = Query { method: "ListMigrations", filter: &text };
        let request = request.into_inner();
        let limit = page::size(request.page_size)?;
        let after = query.cursor(&request.page_token)?;
        let tenant = Some(request.partition_key).filter(|key| !key.is_empty());
        let cell = Some(request.cell_id).filter(|id| !id.is_empty());
        let filter = Filter {
            tenant: tenant.map(|key| parse::partition_key("partition_key", key)).transpose()?,
            cell: cell.map(|id| parse::cell_id("cell_id", &id)).transpose()?,
            active_only: request.active_only,
        };
        let page = self.migrations.list(filter, limit, after.as_ref()).await;
        let page = page.map_err(Fault::from)?;
        let now = self.clock.now();
        Ok(Response::new(v1::ListMigrationsResponse {
            migrations: page.items.iter().map(|one| message::migration(one, now)).collect(),
            next_page_token: query.token(page.next),
        }))
    }

    type WatchMigrationStream = watch::WatchStream;

    async fn watch_migration(
        &self,
        request: Request<v1::WatchMigrationRequest>,
    ) -> Result<Response<watch::WatchStream>, Status> {
        let deadline = request.extensions().get::<Deadline>().map(|deadline| deadline.0);
        let id = migration_id(&request.into_inner().migration_id)?;
        let watching = Watching {
            _place: self.watches.begin()?,
            migrations: Arc::clone(&self.migrations),
            clock: self.clock.clone(),
            id,
            deadline,
            draining: self.draining.clone(),
        };
        Ok(Response::new(watching.stream().await?))
    }

    async fn pause_migration(
        &self,
        request: Request<v1::PauseMigrationRequest>,
    ) -> Result<Response<v1::PauseMigrationResponse>, Status> {
        let migration = self.steer(&request.get_ref().migration_id, Instruction::Pause).await?;
        Ok(Response::new(v1::PauseMigrationResponse { migration }))
    }

    async fn resume_migration(
        &self,
        request: Request<v1::ResumeMigrationRequest>,
    ) -> Result<Response<v1::ResumeMigrationResponse>, Status> {
        let migration = self.steer(&request.get_ref().migration_id, Instruction::Resume).await?;
        Ok(Response::new(v1::ResumeMigrationResponse { migration }))
    }

    async fn cancel_migration(
        &self,
        request: Request<v1::CancelMigrationRequest>,
    ) -> Result<Response<v1::CancelMigrationResponse>, Status> {
        let migration = self.steer(&request.get_ref().migration_id, Instruction::Cancel).await?;
        Ok(Response::new(v1::CancelMigrationResponse { migration }))
    }

    async fn reverse_migration(
        &self,
        request: Request<v1::ReverseMigrationRequest>,
    ) -> Result<Response<v1::ReverseMigrationResponse>, Status> {
        let migration = self.steer(&request.get_ref().migration_id, Instruction::Reverse).await?;
        Ok(Response::new(v1::ReverseMigrationResponse { migration }))
    }

    async fn complete_migration(
        &self,
        request: Request<v1::CompleteMigrationRequest>,
    ) -> Result<Response<v1::CompleteMigrationResponse>, Status> {
        let migration = self.steer(&request.get_ref().migration_id, Instruction::Complete).await?;
        Ok(Response::new(v1::CompleteMigrationResponse { migration }))
    }

    async fn retry_migration(
        &self,
        request: Request<v1::RetryMigrationRequest>,
    ) -> Result<Response<v1::RetryMigrationResponse>, Status> {
        let migration = self.steer(&request.get_ref().migration_id, Instruction::Retry).await?;
        Ok(Response::new(v1::RetryMigrationResponse { migration }))
    }

    async fn verify_tenant(
        &self,
        request: Request<v1::VerifyTenantRequest>,
    ) -> Result<Response<v1::VerifyTenantResponse>, Status> {
        let tenant = parse::partition_key("partition_key", request.into_inner().partition_key)?;
        let verified = self.migrations.verify(&tenant).await.map_err(Fault::from)?;
        Ok(Response::new(message::verification(&verified)))
    }

    async fn get_guard_coverage(
        &self,
        request: Request<v1::GetGuardCoverageRequest>,
    ) -> Result<Response<v1::GetGuardCoverageResponse>, Status> {
        let cell = parse::cell_id("cell_id", &request.into_inner().cell_id)?;
        let count = self.migrations.guards(&cell).await.map_err(Fault::from)?;
        Ok(Response::new(message::coverage(&count)))
    }

    async fn plan_drain(
        &self,
        request: Request<v1::PlanDrainRequest>,
    ) -> Result<Response<v1::PlanDrainResponse>, Status> {
        self.do_plan_drain(request.into_inner()).await
    }

    async fn start_drain(
        &self,
        request: Request<v1::StartDrainRequest>,
    ) -> Result<Response<v1::StartDrainResponse>, Status> {
        self.do_start_drain(request).await
    }

    async fn plan_rebalance(
        &self,
        request: Request<v1::PlanRebalanceRequest>,
    ) -> Result<Response<v1::PlanRebalanceResponse>, Status> {
        self.do_plan_rebalance(request.into_inner()).await
    }

    async fn start_rebalance(
        &self,
        request: Request<v1::StartRebalanceRequest>,
    ) -> Result<Response<v1::StartRebalanceResponse>, Status> {
        self.do_start_rebalance(request).await
    }

    async fn get_bulk(
        &self,
        request: Request<v1::GetBulkRequest>,
    ) -> Result<Response<v1::GetBulkResponse>, Status> {
        self.do_get_bulk(&request.get_ref().bulk_id).await
    }

    async fn list_bulks(
        &self,
        request: Request<v1::ListBulksRequest>,
    ) -> Result<Response<v1::ListBulksResponse>, Status> {
        self.do_list_bulks(request.into_inner()).await
    }

    async fn pause_bulk(
        &self,
        request: Request<v1::PauseBulkRequest>,
    ) -> Result<Response<v1::PauseBulkResponse>, Status> {
        let bulk = self.do_pause_bulk(&request.get_ref().bulk_id, true).await?;
        Ok(Response::new(v1::PauseBulkResponse { bulk }))
    }

    async fn resume_bulk(
        &self,
        request: Request<v1::ResumeBulkRequest>,
    ) -> Result<Response<v1::ResumeBulkResponse>, Status> {
        let bulk = self.do_pause_bulk(&request.get_ref().bulk_id, false).await?;
        Ok(Response::new(v1::ResumeBulkResponse { bulk }))
    }

    async fn cancel_bulk(
        &self,
        request: Request<v1::CancelBulkRequest>,
    ) -> Result<Response<v1::CancelBulkResponse>, Status> {
        self.do_cancel_bulk(request.get_ref()).await
    }
}

fn migration_id(id: &str) -> Result<MigrationId, Fault> {
    MigrationId::parse(id).map_err(|invalid| Fault::invalid("migration_id", &invalid))
}

/// What the spans of a migration are linked to: the server's span of the call that begins it, or, where that is not traced, the caller's.
fn caller<T>(request: &Request<T>) -> Option<String> {
    let trace = request.extensions().get::<RpcTrace>();
    let context = trace.and_then(|trace| propagation::context_of(trace.span()));
    let context =
        context.or_else(|| propagation::extract(&request.metadata().clone().into_headers()));
    context.as_ref().map(propagation::traceparent)
}

#[cfg(test)]
mod tests;
