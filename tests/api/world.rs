//! A test's surroundings: an engine, tables of its own in it, and servers on them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use cell_directory::domain::Change;
use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_admin_client::CellAdminClient;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use cell_directory::store::dynamodb::{
    DynamoDbOptions, DynamoDbStore, StoreSettings, TableNames, connect,
};
use tonic::transport::Channel;

use crate::celld::{Celld, unique};
use crate::dynamodb_local::DynamoDbLocal;
use crate::embedded::Embedded;

pub type Item = HashMap<String, AttributeValue>;

/// Longest wait for something that is due within a few polls, on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// For every server here. Budgets are wide, because what is tested is what is answered on a busy machine, not when; and expired placements
/// stay until a case wants them swept.
const FLAGS: [&str; 15] = [
    "--read-timeout=20s",
    "--lookup-budget=50s",
    "--commit-timeout=20s",
    "--commit-budget=50s",
    "--journal-poll-interval=50ms",
    "--sweep-interval=1h",
    "--drain-timeout=20s",
    "--log-filter=error",
    "--retry-attempts=5",
    "--retry-backoff-min=5ms",
    "--retry-backoff-max=100ms",
    "--retry-budget-ratio=1",
    "--retry-budget-floor=1000",
    "--max-message-bytes=262144",
    "--max-queue-delay=1m",
];

/// Something that speaks DynamoDB's protocol. The embedded one lives as long as a test holds it.
#[derive(Clone)]
pub enum Engine {
    Embedded(Arc<Embedded>),
    DynamoDbLocal(&'static DynamoDbLocal),
}

impl Engine {
    pub fn embedded() -> Self {
        static SHARED: Mutex<Weak<Embedded>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        let engine = shared.upgrade().unwrap_or_else(|| Arc::new(Embedded::temporary()));
        *shared = Arc::downgrade(&engine);
        Self::Embedded(engine)
    }

    pub fn dynamodb_local() -> Self {
        Self::DynamoDbLocal(DynamoDbLocal::shared())
    }

    pub fn endpoint(&self) -> String {
        match self {
            Engine::Embedded(engine) => engine.endpoint().to_owned(),
            Engine::DynamoDbLocal(engine) => engine.endpoint(),
        }
    }
}

/// Tables of a test's own, and how to reach them around the servers.
pub struct World {
    engine: Engine,
    pub prefix: String,
    pub dynamodb: Client,
}

impl World {
    pub async fn new(engine: Engine) -> Self {
        let options = DynamoDbOptions {
            endpoint: Some(engine.endpoint()),
            read_timeout: Duration::from_secs(20),
            ..DynamoDbOptions::default()
        };
        Self { dynamodb: connect(&options).await, prefix: unique("api"), engine }
    }

    /// A world with one server and these cells, in `eu-west-1`.
    pub async fn with_cells(engine: Engine, cells: &[&str]) -> (Self, Server) {
        let world = Self::new(engine).await;
        let server = world.serve(&[]).await;
        server.process.create_cells(cells).await;
        (world, server)
    }

    /// A server on this world's tables, which are made where they are missing.
    pub async fn serve(&self, more: &[&str]) -> Server {
        self.serve_through(&self.engine.endpoint(), more).await
    }

    /// The same through another endpoint than the engine's own.
    pub async fn serve_through(&self, endpoint: &str, more: &[&str]) -> Server {
        let flags: Vec<&str> = FLAGS
            .into_iter()
            .filter(|flag| {
                let name = flag.split('=').next().unwrap();
                !more.iter().any(|other| other.split('=').next() == Some(name))
            })
            .chain(more.iter().copied())
            .collect();
        let process = Celld::serve(endpoint, &self.prefix, &flags);
        process.ready().await;
        let channel = process.channel().await;
        Server {
            directory: CellDirectoryClient::new(channel.clone()),
            admin: CellAdminClient::new(channel.clone()),
            channel,
            process,
        }
    }

    pub fn endpoint(&self) -> String {
        self.engine.endpoint()
    }

    pub fn engine(&self) -> Engine {
        self.engine.clone()
    }

    /// The tables as a server sees them.
    pub fn store(&self) -> DynamoDbStore {
        let names = TableNames::with_prefix(&self.prefix).unwrap();
        DynamoDbStore::new(self.dynamodb.clone(), names, StoreSettings::default())
    }

    pub fn mappings(&self) -> String {
        format!("{}CellMappings", self.prefix)
    }

    pub fn control(&self) -> String {
        format!("{}CellControl", self.prefix)
    }

    /// Writes an item as somebody else's router would.
    pub async fn put_foreign(&self, item: Item) {
        let put = self.dynamodb.put_item().table_name(self.mappings());
        put.set_item(Some(item)).send().await.unwrap();
    }

    /// Reads a mapping as anybody would.
    pub async fn item(&self, key: &str) -> Option<Item> {
        let get = self.dynamodb.get_item().table_name(self.mappings());
        get.key("PartitionKey", text(key)).send().await.unwrap().item
    }

    /// All items of a table.
    pub async fn scan(&self, table: &str) -> Vec<Item> {
        let (mut items, mut start) = (Vec::new(), None);
        loop {
            let scan = self.dynamodb.scan().table_name(table).consistent_read(true);
            let page = scan.set_exclusive_start_key(start).send().await.unwrap();
            items.extend(page.items.unwrap_or_default());
            start = page.last_evaluated_key.filter(|key| !key.is_empty());
            if start.is_none() {
                return items;
            }
        }
    }

    /// All that is stored, in a form that can be compared.
    pub async fn dump(&self) -> Vec<String> {
        let mut all = Vec::new();
        for table in [self.mappings(), self.control()] {
            for item in self.scan(&table).await {
                all.push(format!("{:?}", item.into_iter().collect::<BTreeMap<_, _>>()));
            }
        }
        all.sort();
        all
    }

    /// The journal as it is stored, from the first entry to its head: the changes of each entry. Fails where an entry is missing, or one
    /// stands beyond the head.
    pub async fn journal(&self) -> Vec<Vec<Change>> {
        let (mut head, mut entries) = (None, BTreeMap::new());
        for item in self.scan(&self.control()).await {
            let (pk, sk) = (item["PK"].as_s().unwrap(), item["SK"].as_s().unwrap());
            if (pk.as_str(), sk.as_str()) == ("JOURNAL", "HEAD") {
                head = Some(item["Sequence"].as_n().unwrap().parse::<u64>().unwrap());
            } else if pk.starts_with("JOURNAL#") {
                let changes = cell_directory::store::dynamodb::entry::of_item(&item).unwrap();
                assert!(entries.insert(sk.parse::<u64>().unwrap(), changes).is_none());
            }
        }
        let due: Vec<u64> = (1..=head.expect("a head")).collect();
        assert_eq!(entries.keys().copied().collect::<Vec<_>>(), due, "the journal has gaps");
        entries.into_values().collect()
    }

    /// The stored number of placements of each cell.
    pub async fn counts(&self) -> BTreeMap<String, i64> {
        let items = self.scan(&self.control()).await;
        let counts = items.iter().filter_map(|item| {
            let cell = item["SK"].as_s().unwrap().strip_prefix("COUNT#")?;
            Some((cell.to_owned(), item["Placements"].as_n().unwrap().parse().unwrap()))
        });
        counts.collect()
    }
}

/// A server and clients of it.
pub struct Server {
    pub process: Celld,
    pub channel: Channel,
    pub directory: CellDirectoryClient<Channel>,
    pub admin: CellAdminClient<Channel>,
}

impl Server {
    /// Resolves with all defaults.
    pub async fn resolve(&self, key: &str) -> v1::ResolveResponse {
        self.try_resolve(resolve(key)).await.unwrap()
    }

    pub async fn try_resolve(
        &self,
        request: v1::ResolveRequest,
    ) -> Result<v1::ResolveResponse, tonic::Status> {
        self.directory.clone().resolve(request).await.map(tonic::Response::into_inner)
    }

    pub async fn look_up(&self, key: &str) -> Result<v1::ResolveResponse, tonic::Status> {
        self.try_resolve(look_up(key)).await
    }

    pub async fn pin(
        &self,
        request: v1::PinPlacementRequest,
    ) -> Result<v1::Placement, tonic::Status> {
        let answer = self.directory.clone().pin_placement(request).await?;
        Ok(answer.into_inner().placement.unwrap())
    }

    pub async fn delete(&self, key: &str) -> Result<v1::Placement, tonic::Status> {
        self.delete_as(v1::DeletePlacementRequest { partition_key: key.into(), ..def() }).await
    }

    pub async fn delete_as(
        &self,
        request: v1::DeletePlacementRequest,
    ) -> Result<v1::Placement, tonic::Status> {
        let answer = self.directory.clone().delete_placement(request).await?;
        Ok(answer.into_inner().placement.unwrap())
    }

    pub async fn get(&self, key: &str) -> Result<v1::Placement, tonic::Status> {
        let request = v1::GetPlacementRequest { partition_key: key.into() };
        let answer = self.directory.clone().get_placement(request).await?;
        Ok(answer.into_inner().placement.unwrap())
    }

    /// The whole history of a key, read in one page.
    pub async fn history(&self, key: &str) -> Vec<v1::PlacementHistoryEntry> {
        let request = v1::GetPlacementHistoryRequest { partition_key: key.into(), ..def() };
        let answer = self.directory.clone().get_placement_history(request).await.unwrap();
        answer.into_inner().entries
    }

    pub async fn create_cell(&self, cell: v1::Cell) -> Result<v1::Cell, tonic::Status> {
        let request = v1::CreateCellRequest { cell: Some(cell), ..def() };
        let answer = self.admin.clone().create_cell(request).await?;
        Ok(answer.into_inner().cell.unwrap())
    }

    pub async fn cell(&self, id: &str) -> Result<v1::Cell, tonic::Status> {
        let request = v1::GetCellRequest { cell_id: id.into() };
        Ok(self.admin.clone().get_cell(request).await?.into_inner().cell.unwrap())
    }

    pub async fn update_cell(
        &self,
        cell: v1::Cell,
        paths: &[&str],
    ) -> Result<v1::Cell, tonic::Status> {
        let request = v1::UpdateCellRequest { cell: Some(cell), update_mask: mask(paths), ..def() };
        let answer = self.admin.clone().update_cell(request).await?;
        Ok(answer.into_inner().cell.unwrap())
    }

    pub async fn set_state(&self, id: &str, state: v1::CellState) -> v1::Cell {
        let cell = v1::Cell { cell_id: id.into(), state: state.into(), ..def() };
        self.update_cell(cell, &["state"]).await.unwrap()
    }

    pub async fn delete_cell(&self, id: &str) -> Result<(), tonic::Status> {
        let request = v1::DeleteCellRequest { cell_id: id.into(), ..def() };
        self.admin.clone().delete_cell(request).await.map(|_| ())
    }
}

/// The default of whatever is wanted.
pub fn def<T: Default>() -> T {
    T::default()
}

pub fn text(value: &str) -> AttributeValue {
    AttributeValue::S(value.to_owned())
}

pub fn resolve(key: &str) -> v1::ResolveRequest {
    v1::ResolveRequest { partition_key: key.into(), ..def() }
}

pub fn look_up(key: &str) -> v1::ResolveRequest {
    v1::ResolveRequest { mode: v1::ResolveMode::LookupOnly.into(), ..resolve(key) }
}

pub fn pin(key: &str, cell: &str) -> v1::PinPlacementRequest {
    v1::PinPlacementRequest { partition_key: key.into(), cell_id: cell.into(), ..def() }
}

pub fn mask(paths: &[&str]) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() })
}

/// The present, moved by some milliseconds.
pub fn from_now(millis: i64) -> prost_types::Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let at = i64::try_from(now.as_millis()).unwrap() + millis;
    let nanos = i32::try_from(at.rem_euclid(1000)).unwrap() * 1_000_000;
    prost_types::Timestamp { seconds: at.div_euclid(1000), nanos }
}

/// Asks again until the answer is as wanted.
pub async fn until<T: std::fmt::Debug>(
    mut ask: impl AsyncFnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        let answer = ask().await;
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "still {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
