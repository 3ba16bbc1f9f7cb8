//! Cells with tables, a tenant in one of them, and what a test asks of its moves.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use cell_directory::proto::v1::migration_service_client::MigrationServiceClient;
use tonic::Status;
use tonic::transport::Channel;

use crate::celld::cell;
use crate::world::{Engine, World, table};

pub type Item = HashMap<String, AttributeValue>;

/// Longest wait for a state, on a busy machine.
const SOON: Duration = Duration::from_secs(120);

/// Waits are short: what is tested is what becomes of the data, not when.
pub const FLAGS: [&str; 5] = [
    "--migration-interval=50ms",
    "--migration-takeover=2s",
    "--migration-lease-margin=0s",
    "--migration-soak=1h",
    "--guards-interval=100ms",
];

pub const CELLS: [&str; 3] = ["cell-a", "cell-b", "cell-longer"];

/// How long leases are.
pub const LEASE: Duration = Duration::from_millis(300);

pub struct Scene {
    pub world: World,
    pub moves: MigrationServiceClient<Channel>,
    pub directory: CellDirectoryClient<Channel>,
    pub tables: Client,
}

pub fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

pub fn partition(tenant: &str) -> String {
    format!("CUSTOMER#{tenant}")
}

impl Scene {
    pub async fn new(engine: Engine) -> Self {
        Self::with_flags(engine, &[]).await
    }

    pub async fn with_flags(engine: Engine, more: &[&'static str]) -> Self {
        Self::with_cells(engine, CELLS.iter().map(|id| cell(id)).collect(), more).await
    }

    pub async fn with_cells(engine: Engine, cells: Vec<v1::Cell>, more: &[&'static str]) -> Self {
        Self::with(engine, cells, tables(), more).await
    }

    /// Tables without indexes and streams, of which each makes every write of DynamoDB Local twice as slow.
    pub async fn plain(engine: Engine) -> Self {
        let plain = |table| v1::TableSpec { indexes: vec![], stream: 0, ..table };
        let tables = tables().into_iter().map(plain).collect();
        Self::with(engine, CELLS.iter().map(|id| cell(id)).collect(), tables, &[]).await
    }

    async fn with(
        engine: Engine,
        cells: Vec<v1::Cell>,
        tables: Vec<v1::TableSpec>,
        more: &[&'static str],
    ) -> Self {
        let name = |flag: &str| flag.split('=').next().map(str::to_owned);
        let kept = |flag: &&&str| !more.iter().any(|other| name(other) == name(flag));
        let flags: Vec<_> = FLAGS.iter().filter(kept).chain(more).copied().collect();
        let mut world = World::with_flags(engine, &[], &flags).await;
        let ids: Vec<_> = cells.iter().map(|cell| cell.cell_id.clone()).collect();
        for cell in cells {
            let request = v1::CreateCellRequest { cell: Some(cell), ..Default::default() };
            world.admin.create_cell(request).await.unwrap();
        }
        world.put_set(tables).await;
        for id in ids {
            let operation = world.provision(&id).await;
            assert_eq!(operation.state(), v1::OperationState::Succeeded, "{operation:?}");
        }
        let channel = world.server.channel().await;
        let tables = Client::new(&world.sdk().await);
        let (moves, directory) =
            (MigrationServiceClient::new(channel.clone()), CellDirectoryClient::new(channel));
        let mut scene = Self { world, moves, directory, tables };
        scene.lease(LEASE).await;
        scene
    }

    /// How long leases are from now on.
    pub async fn lease(&mut self, lease: Duration) {
        let lease_duration = Some(lease.try_into().unwrap());
        let request = v1::UpdateClusterRequest {
            cluster: Some(v1::Cluster { lease_duration, ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths: vec!["lease_duration".to_owned()] }),
            ..Default::default()
        };
        self.world.admin.update_cluster(request).await.unwrap();
    }

    pub async fn pin(&mut self, tenant: &str, cell: &str) {
        let request = v1::PinPlacementRequest {
            partition_key: tenant.to_owned(),
            cell_id: cell.to_owned(),
            ..Default::default()
        };
        self.directory.pin_placement(request).await.unwrap();
    }

    pub async fn placement(&mut self, tenant: &str) -> v1::Placement {
        let request = v1::GetPlacementRequest { partition_key: tenant.to_owned() };
        self.directory.get_placement(request).await.unwrap().into_inner().placement.unwrap()
    }

    /// Writes an item into a cell's table, past everything.
    pub async fn write(&self, table: &str, cell: &str, item: Item) {
        let table = self.world.table(table, cell);
        self.tables.put_item().table_name(table).set_item(Some(item)).send().await.unwrap();
    }

    /// All items of a cell's table, but for guards and logs, by their keys.
    pub async fn items(&self, table: &str, cell: &str) -> BTreeMap<String, Item> {
        let (ours, _) = self.all(table, cell).await;
        ours
    }

    /// Guards and logs of a cell.
    pub async fn records(&self, cell: &str) -> BTreeMap<String, Item> {
        let (_, records) = self.all("CustomerData", cell).await;
        records
    }

    /// Waits until a cell has so many guards: they come after the placements of tenants that were pinned before the cell had any.
    pub async fn guarded(&self, cell: &str, tenants: usize) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.records(cell).await.len() < tenants {
            assert!(Instant::now() < deadline, "a guard is missing");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Keys of what the directory keeps in a cell's table.
    pub async fn directory_items(&self, table: &str, cell: &str) -> Vec<String> {
        let (_, ours) = self.all(table, cell).await;
        ours.into_keys().collect()
    }

    async fn all(
        &self,
        table: &str,
        cell: &str,
    ) -> (BTreeMap<String, Item>, BTreeMap<String, Item>) {
        let scan = self.tables.scan().table_name(self.world.table(table, cell));
        let pages = scan.consistent_read(true).into_paginator().items().send();
        let items: Vec<Item> = pages.collect::<Result<_, _>>().await.unwrap();
        let named =
            items.into_iter().map(|item| (format!("{:?}/{:?}", item["PK"], item.get("SK")), item));
        named.partition(|(_, item)| !item["PK"].as_s().unwrap().starts_with('\u{1}'))
    }

    pub async fn start(&mut self, tenant: &str, to: &str) -> Result<v1::Migration, Status> {
        self.start_with(request(tenant, to)).await
    }

    pub async fn start_with(
        &mut self,
        request: v1::StartMigrationRequest,
    ) -> Result<v1::Migration, Status> {
        let answer = self.moves.start_migration(request).await?.into_inner();
        Ok(answer.migration.unwrap())
    }

    pub async fn get(&mut self, id: &str) -> v1::Migration {
        let request = v1::GetMigrationRequest { migration_id: id.to_owned() };
        self.moves.get_migration(request).await.unwrap().into_inner().migration.unwrap()
    }

    /// Waits until a migration is in a state.
    pub async fn until(&mut self, id: &str, state: v1::MigrationState) -> v1::Migration {
        let deadline = Instant::now() + SOON;
        loop {
            let migration = self.get(id).await;
            if migration.state() == state {
                return migration;
            }
            assert!(Instant::now() < deadline, "not {state:?}: {migration:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn reverse(&mut self, id: &str) {
        let migration_id = id.to_owned();
        self.moves.reverse_migration(v1::ReverseMigrationRequest { migration_id }).await.unwrap();
    }
}

pub fn tables() -> Vec<v1::TableSpec> {
    let carts = v1::TableSpec { sort_key: None, indexes: vec![], ..table("Carts") };
    let mut journeys = table("Journeys");
    journeys.tenant_key_templates.push("TRAVELLER#{partition_key}".to_owned());
    vec![carts, table("CustomerData"), journeys]
}

pub fn request(tenant: &str, to: &str) -> v1::StartMigrationRequest {
    v1::StartMigrationRequest {
        partition_key: tenant.to_owned(),
        target: Some(v1::start_migration_request::Target::TargetCellId(to.to_owned())),
        ..Default::default()
    }
}
