//! What every test of faults needs: tables on DynamoDB Local, a proxy in front of it, `celld` behind the proxy, and a reader of the tables
//! that goes past both.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use cell_directory::proto::v1;
use cell_directory::proto::v1::cell_admin_client::CellAdminClient;
use cell_directory::proto::v1::cell_directory_client::CellDirectoryClient;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_types::StatusExt;

use crate::celld::{Celld, cell, command, unique};
use crate::dynamodb_local::DynamoDbLocal;
use crate::proxy::{AWS_TEXT, Proxy};

/// The cell that is answered when the table is not. Registered, and CORDONED, so that nothing else leads to it.
pub const DEFAULT_CELL: &str = "cell-default";

/// What reads of the routing table are; several keys may go together.
pub const READ: &[&str] = &["GetItem", "BatchGetItem"];

/// What changes are.
pub const WRITE: &[&str] = &["TransactWriteItems"];

/// Longest wait for something that must come about.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a busy machine may add to a time that the service keeps.
pub const TOLERANCE: Duration = Duration::from_millis(1500);

/// Settings under which a lost reply is settled long before anybody gives up.
pub const PATIENT: [&str; 5] = [
    "--lookup-budget=30s",
    "--read-timeout=5s",
    "--commit-timeout=5s",
    "--commit-budget=25s",
    "--journal-poll-interval=50ms",
];

pub struct World {
    pub proxy: Proxy,
    pub tables: Tables,
}

impl World {
    /// Fresh tables, with a proxy before them that nothing goes wrong with yet.
    pub fn new(name: &str) -> Self {
        let backend = DynamoDbLocal::shared().endpoint();
        let prefix = unique(name);
        let made = ["tables", "create", "--dynamodb-endpoint", &backend, "--table-prefix", &prefix];
        let made = command(&made).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let tables = Tables { client: client(&backend), prefix };
        Self { proxy: Proxy::start(&backend), tables }
    }

    /// A world with a replica behind the proxy and the cells `cell-a`, `cell-b` and the default cell.
    pub async fn with_cells(name: &str, flags: &[&str]) -> (Self, Replica) {
        let world = Self::new(name);
        // By a replica with more patience than a test may have use for.
        let patient = world.other_replica().await;
        for id in ["cell-a", "cell-b", DEFAULT_CELL] {
            patient.create_cell(id).await.unwrap();
        }
        let replica = world.replica(flags).await.ready().await;
        (world, replica)
    }

    /// How often the routing table was asked for a key.
    pub fn reads_of(&self, key: &str) -> usize {
        self.proxy.calls(READ, &format!("\"{key}\""))
    }

    /// `celld serve` behind the proxy; perhaps not [`Replica::ready`] yet.
    pub async fn replica(&self, flags: &[&str]) -> Replica {
        self.serve(&self.proxy.endpoint(), flags).await
    }

    /// `celld serve` that nothing stands in the way of.
    pub async fn other_replica(&self) -> Replica {
        self.serve(&DynamoDbLocal::shared().endpoint(), &PATIENT).await.ready().await
    }

    async fn serve(&self, endpoint: &str, flags: &[&str]) -> Replica {
        let mut serve = command(&["serve", "--listen", "127.0.0.1:0", "--log-filter", "off"]);
        serve.args(["--dynamodb-endpoint", endpoint, "--table-prefix", &self.tables.prefix]);
        // Bounded, so that what is not held is read.
        serve.args(["--default-cell", DEFAULT_CELL, "--memory-mode", "bounded"]).args(flags);
        let celld = Celld::start(serve);
        let channel = celld.channel().await;
        Replica {
            directory: CellDirectoryClient::new(channel.clone()),
            admin: CellAdminClient::new(channel.clone()),
            channel,
            _celld: celld,
        }
    }
}

fn client(endpoint: &str) -> Client {
    let credentials =
        aws_sdk_dynamodb::config::Credentials::new("local", "local", None, None, "tests");
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::v2026_01_12())
        .region(aws_sdk_dynamodb::config::Region::new("us-east-1"))
        .credentials_provider(credentials)
        .endpoint_url(endpoint)
        .http_client(aws_smithy_http_client::Builder::new().build_http());
    Client::from_conf(config.build())
}

/// A `celld` and its clients.
pub struct Replica {
    pub directory: CellDirectoryClient<Channel>,
    pub admin: CellAdminClient<Channel>,
    channel: Channel,
    _celld: Celld,
}

impl Replica {
    /// Waits until it can answer.
    pub async fn ready(self) -> Self {
        eventually("the replica is ready", async || {
            self.health("").await == ServingStatus::Serving
        })
        .await;
        self
    }

    /// Resolves as most do: assigns if missing, welcomes a guess.
    pub async fn resolve(&self, key: &str) -> Result<Resolved, Status> {
        self.ask(request(key)).await
    }

    /// Resolves without a guess.
    pub async fn resolve_surely(&self, key: &str) -> Result<Resolved, Status> {
        self.ask(surely(request(key))).await
    }

    /// Only looks up, and takes no guess.
    pub async fn look_up(&self, key: &str) -> Result<Resolved, Status> {
        let mode = v1::ResolveMode::LookupOnly.into();
        self.ask(surely(v1::ResolveRequest { mode, ..request(key) })).await
    }

    pub async fn ask(&self, request: v1::ResolveRequest) -> Result<Resolved, Status> {
        let key = request.partition_key.clone();
        let answer = self.directory.clone().resolve(request).await?.into_inner();
        let (placement, decision) = (answer.placement.unwrap(), answer.decision.unwrap());
        assert_eq!(placement.partition_key, key);
        Ok(Resolved { placement, decision })
    }

    pub async fn pin(&self, key: &str, cell: &str) -> Result<v1::Placement, Status> {
        let (partition_key, cell_id) = (key.to_owned(), cell.to_owned());
        let request = v1::PinPlacementRequest { partition_key, cell_id, ..Default::default() };
        let answer = self.directory.clone().pin_placement(request).await?;
        Ok(answer.into_inner().placement.unwrap())
    }

    pub async fn delete(&self, key: &str) -> Result<v1::Placement, Status> {
        let partition_key = key.to_owned();
        let request = v1::DeletePlacementRequest { partition_key, ..Default::default() };
        let answer = self.directory.clone().delete_placement(request).await?;
        Ok(answer.into_inner().placement.unwrap())
    }

    pub async fn create_cell(&self, id: &str) -> Result<v1::Cell, Status> {
        let mut cell = cell(id);
        if id == DEFAULT_CELL {
            cell.state = v1::CellState::Cordoned.into();
        }
        let request = v1::CreateCellRequest { cell: Some(cell), ..Default::default() };
        let answer = self.admin.clone().create_cell(request).await?;
        Ok(answer.into_inner().cell.unwrap())
    }

    pub async fn delete_cell(&self, id: &str) -> Result<(), Status> {
        let request = v1::DeleteCellRequest { cell_id: id.to_owned(), ..Default::default() };
        self.admin.clone().delete_cell(request).await.map(|_| ())
    }

    /// The cells and how many placements each has.
    pub async fn cells(&self) -> Result<BTreeMap<String, u64>, Status> {
        let answer = self.admin.clone().list_cells(v1::ListCellsRequest::default()).await?;
        let cells = answer.into_inner().cells.into_iter();
        Ok(cells.map(|cell| (cell.cell_id, cell.placement_count)).collect())
    }

    pub async fn health(&self, service: &str) -> ServingStatus {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = HealthClient::new(self.channel.clone()).check(request).await.unwrap();
        answer.into_inner().status()
    }
}

/// An answer of Resolve.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub placement: v1::Placement,
    pub decision: v1::Decision,
}

impl Resolved {
    pub fn cell(&self) -> &str {
        &self.placement.cell_id
    }

    pub fn age(&self) -> Duration {
        Duration::try_from(self.decision.age.unwrap()).unwrap()
    }

    /// Asserts that it is the truth, by this way.
    #[track_caller]
    pub fn is(&self, source: v1::DecisionSource, epoch: u64) -> &Self {
        assert_eq!(self.decision.source(), source, "{self:?}");
        assert_eq!(self.decision.fallback_reason(), v1::FallbackReason::Unspecified, "{self:?}");
        assert!(self.decision.authoritative, "{self:?}");
        assert_eq!(self.placement.epoch, epoch, "{self:?}");
        self
    }

    /// Asserts that it is the truth of a call that placed the tenant itself.
    #[track_caller]
    pub fn is_assigned(&self) -> &Self {
        assert!(matches!(self.cell(), "cell-a" | "cell-b"), "{self:?}");
        assert!(self.placement.create_time.is_some(), "{self:?}");
        self.is(v1::DecisionSource::Assigned, 1)
    }

    /// Asserts that it is the default cell, flagged as a guess for a reason.
    #[track_caller]
    pub fn is_guess(&self, reason: v1::FallbackReason) {
        assert_eq!(self.decision.source(), v1::DecisionSource::Fallback, "{self:?}");
        assert_eq!(self.decision.fallback_reason(), reason, "{self:?}");
        assert!(!self.decision.authoritative, "{self:?}");
        assert_eq!(self.decision.age, None, "{self:?}");
        assert_eq!((self.cell(), self.placement.epoch), (DEFAULT_CELL, 0), "{self:?}");
        assert_eq!(self.placement.create_time, None, "{self:?}");
    }
}

pub fn request(key: &str) -> v1::ResolveRequest {
    v1::ResolveRequest { partition_key: key.to_owned(), ..Default::default() }
}

fn surely(request: v1::ResolveRequest) -> v1::ResolveRequest {
    v1::ResolveRequest { fallback: v1::FallbackPolicy::Refuse.into(), ..request }
}

/// Asserts that a call failed with a code and a reason, whether it says when to try again, and that it says nothing of AWS.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(
    answer: Result<T, Status>,
    code: Code,
    reason: &str,
    try_again: bool,
) {
    let status = answer.expect_err("the call cannot have succeeded");
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!((status.code(), info.reason.as_str()), (code, reason), "{status:?}");
    assert_eq!(info.domain, "cells.v1");
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    assert_eq!(delay.is_some_and(|delay| delay > Duration::ZERO), try_again, "{status:?}");
    says_nothing_of_aws(&status);
}

/// Asserts that no text of an injected error came through, wherever in the status.
#[track_caller]
pub fn says_nothing_of_aws(status: &Status) {
    let everything = format!("{status:?} {}", String::from_utf8_lossy(status.details()));
    for text in [AWS_TEXT, "arn:", "Exception", "dynamodb", "TransactionConflict"] {
        assert!(!everything.contains(text), "{text}: {everything}");
    }
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "did not come about: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The tables, past the proxy and past the service.
pub struct Tables {
    client: Client,
    pub prefix: String,
}

type Item = HashMap<String, AttributeValue>;

impl Tables {
    /// Writes a placement as somebody else's router does: no replica hears of it.
    pub async fn adopt(&self, key: &str, cell: &str) {
        let put = self.client.put_item().table_name(format!("{}CellMappings", self.prefix));
        let text = |text: &str| AttributeValue::S(text.to_owned());
        put.item("PartitionKey", text(key))
            .item("CellId", text(cell))
            .item("CreatedAt", text("2025-01-02T03:04:05Z"))
            .item("LastUpdated", text("2025-01-02T03:04:05Z"))
            .send()
            .await
            .unwrap();
    }

    /// What the tables say, having checked that they agree with each other.
    pub async fn ledger(&self) -> Ledger {
        let head = self.query("JOURNAL").await;
        let entries = self.query("JOURNAL#000000000000").await;
        let cells = self.query("CELL").await;
        let scan = self.client.scan().table_name(format!("{}CellMappings", self.prefix));
        let mappings = scan.consistent_read(true).send().await.unwrap();
        assert!(mappings.last_evaluated_key.is_none(), "more than a page");
        let ledger = Ledger {
            head: number(head.iter().find(|item| id(item, "HEAD").is_some()).unwrap(), "Sequence"),
            entries: entries.iter().map(entry).collect(),
            counts: cells.iter().filter_map(count).collect(),
            cells: cells.iter().filter_map(|item| id(item, "CELL#")).collect(),
            mappings: mappings.items().iter().filter_map(mapping).collect(),
        };
        ledger.check();
        ledger
    }

    async fn query(&self, pk: &str) -> Vec<Item> {
        let query = self
            .client
            .query()
            .table_name(format!("{}CellControl", self.prefix))
            .consistent_read(true)
            .key_condition_expression("PK = :pk")
            .expression_attribute_values(":pk", AttributeValue::S(pk.to_owned()));
        let page = query.send().await.unwrap();
        assert!(page.last_evaluated_key.is_none(), "more than a page");
        page.items.unwrap_or_default()
    }
}

/// The tables' content.
#[derive(Debug, Clone, PartialEq)]
pub struct Ledger {
    pub head: u64,
    pub entries: Vec<Entry>,
    /// Cell to number of placements.
    pub counts: BTreeMap<String, u64>,
    pub cells: Vec<String>,
    /// Key to cell and epoch; adopted ones at epoch 0.
    pub mappings: BTreeMap<String, (String, u64)>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub sequence: u64,
    nonce: String,
    pub changes: Vec<serde_json::Value>,
}

impl Ledger {
    /// The journal's changes of a tenant or a cell: what was done, and at which epoch.
    pub fn changes_of(&self, name: &str) -> Vec<(&str, u64)> {
        let changes = self.entries.iter().flat_map(|entry| &entry.changes);
        let of = changes.filter(|change| {
            let cell = [&change["cell"], &change["cell"]["id"]];
            change["placement"]["key"] == name || cell.iter().any(|cell| **cell == name)
        });
        let told = of.map(|change| {
            let epoch = change["placement"]["epoch"].as_u64();
            (change["change"].as_str().unwrap(), epoch.unwrap_or(0))
        });
        told.collect()
    }

    /// Asserts that a tenant was placed once, in this cell, and nothing else ever happened to it.
    #[track_caller]
    pub fn placed_once(&self, key: &str, cell: &str) {
        assert_eq!(self.changes_of(key), [("placed", 1)], "{key}");
        assert_eq!(self.mappings.get(key), Some(&(cell.to_owned(), 1)), "{key}");
    }

    /// Asserts that nothing ever happened to a tenant or a cell.
    #[track_caller]
    pub fn knows_nothing_of(&self, name: &str) {
        assert_eq!(self.changes_of(name), [], "{name}");
        assert_eq!(self.mappings.get(name), None, "{name}");
        assert!(!self.cells.iter().any(|cell| cell == name), "{name}");
    }

    /// The journal is gapless, holds no entry twice, and replayed it comes to what the tables say.
    fn check(&self) {
        let sequences: Vec<_> = self.entries.iter().map(|entry| entry.sequence).collect();
        assert_eq!(sequences, (1..=self.head).collect::<Vec<_>>(), "the journal has a gap");
        let nonces: HashSet<_> = self.entries.iter().map(|entry| &entry.nonce).collect();
        assert_eq!(nonces.len(), self.entries.len(), "an entry stands twice");
        let mut placed: BTreeMap<String, (String, u64)> = BTreeMap::new();
        let mut last_epoch: HashMap<String, u64> = HashMap::new();
        let mut cells: Vec<String> = Vec::new();
        for change in self.entries.iter().flat_map(|entry| &entry.changes) {
            let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            let placement = &change["placement"];
            match change["change"].as_str().unwrap() {
                "placed" => {
                    let (key, epoch) = (text(&placement["key"]), placement["epoch"].as_u64());
                    let epoch = epoch.unwrap();
                    let before = last_epoch.insert(key.clone(), epoch).unwrap_or(0);
                    assert_eq!(epoch, before + 1, "epochs of {key}");
                    let before = placed.insert(key, (text(&placement["cell"]), epoch));
                    assert_eq!(before, None, "placed while it had a cell: {change}");
                }
                "vacated" => {
                    let before = placed.remove(&text(&placement["key"]));
                    assert!(before.is_some(), "vacated without a cell: {change}");
                }
                "cell_created" => {
                    let id = text(&change["cell"]["id"]);
                    assert!(!cells.contains(&id), "created twice: {change}");
                    cells.push(id);
                }
                "cell_deleted" => {
                    let id = text(&change["cell"]);
                    let before = cells.len();
                    cells.retain(|cell| *cell != id);
                    assert_eq!(cells.len(), before - 1, "deleted twice: {change}");
                }
                other => panic!("no test makes a change {other}"),
            }
        }
        cells.sort();
        assert_eq!(self.cells, cells, "the registry is not what the journal says");
        let ours = self.mappings.iter().filter(|(_, (_, epoch))| *epoch > 0);
        let ours: BTreeMap<_, _> = ours.map(|(k, v)| (k.clone(), v.clone())).collect();
        assert_eq!(ours, placed, "the mappings are not what the journal says");
        let mut counts: BTreeMap<_, _> = cells.into_iter().map(|cell| (cell, 0)).collect();
        for (cell, _) in placed.into_values() {
            *counts.get_mut(&cell).unwrap() += 1;
        }
        assert_eq!(self.counts, counts, "the counts are not what the journal says");
    }
}

fn number(item: &Item, name: &str) -> u64 {
    item[name].as_n().unwrap().parse().unwrap()
}

fn id(item: &Item, prefix: &str) -> Option<String> {
    item["SK"].as_s().unwrap().strip_prefix(prefix).map(str::to_owned)
}

fn entry(item: &Item) -> Entry {
    Entry {
        sequence: item["SK"].as_s().unwrap().parse().unwrap(),
        nonce: item["Nonce"].as_s().unwrap().clone(),
        changes: {
            let changes = cell_directory::store::dynamodb::entry::of_item(item).unwrap();
            changes.iter().map(|change| serde_json::to_value(change).unwrap()).collect()
        },
    }
}

fn count(item: &Item) -> Option<(String, u64)> {
    id(item, "COUNT#").map(|cell| (cell, number(item, "Placements")))
}

fn mapping(item: &Item) -> Option<(String, (String, u64))> {
    // A vacated key keeps its epoch and has no cell.
    let cell = item.get("CellId")?.as_s().unwrap().clone();
    let epoch = item.get("Epoch").map_or(0, |epoch| epoch.as_n().unwrap().parse().unwrap());
    Some((item["PartitionKey"].as_s().unwrap().clone(), (cell, epoch)))
}
