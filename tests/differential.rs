//! The store in memory against the one on DynamoDB Local: random operations, done to both, answered the same.
//!
//! Tests and simulations rest on the store in memory; this is why they may. The operations are drawn from a seed for each sequence, and
//! mostly make sense: what is written is mostly expected rightly. `CELLD_DIFFERENTIAL_SEED` is added to all seeds.

#[path = "support/dynamodb_local.rs"]
mod dynamodb_local;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use cell_directory::domain::{
    Cell, CellId, CellState, Change, Cluster, Endpoint, Epoch, HistoryRecord, JournalEntry,
    JournalId, Labels, LeaseDuration, Mapping, MigrationId, Nonce, PartitionKey, Placement,
    PlacementEvent, Region, RequestId, RequestRecord, Sequence, StoredOutcome, Timestamp, Weight,
    WriteMode,
};
use cell_directory::store::dynamodb::{
    DynamoDbOptions, DynamoDbStore, StoreSettings, TableNames, connect, tables,
};
use cell_directory::store::memory::MemoryStore;
use cell_directory::store::{
    Commit, CommitOutcome, Cursor, Expected, Head, Journal, Page, Placements, StoreError, Write,
};
use dynamodb_local::DynamoDbLocal;
use futures::StreamExt;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SEQUENCES: u64 = 40;
const OPERATIONS: usize = 510;
const THREADS: usize = 2;
const AT_ONCE: usize = 4;

const KEYS: [&str; 7] = ["a", "a#1", "ab", "é", "A", "customer-12345", "~"];
const CELLS: [&str; 3] = ["cell-a", "cell-b", "c"];
const REQUESTS: [&str; 4] = ["r1", "r2", "R1", "9f0c1d3e-5b1a-4f59-9c0f-2f8f8f8f8f8f"];

/// A sequence under way: both stores, and what to draw from.
struct Pair {
    seed: u64,
    random: StdRng,
    model: MemoryStore,
    table: DynamoDbStore,
    /// And whether it was done.
    last: Option<(Commit, bool)>,
    committed: usize,
    refused: usize,
}

/// What went wrong counts, not how it is worded.
fn kind<T>(result: Result<T, StoreError>) -> Result<T, std::mem::Discriminant<StoreError>> {
    result.map_err(|error| std::mem::discriminant(&error))
}

/// In the order of the keys: listings have none.
fn sorted(mut placements: Vec<Placement>) -> Vec<Placement> {
    placements.sort_by(|a, b| a.key.as_str().cmp(b.key.as_str()));
    placements
}

/// All pages of a listing.
async fn pages<T>(
    mut page: impl AsyncFnMut(Option<&Cursor>) -> Result<Page<T>, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let Page { items, next } = page(after.as_ref()).await?;
        all.extend(items);
        match next {
            Some(_) => after = next,
            None => return Ok(all),
        }
    }
}

impl Pair {
    async fn new(endpoint: String, seed: u64) -> Self {
        let options = DynamoDbOptions {
            endpoint: Some(endpoint),
            read_timeout: Duration::from_secs(20),
            ..DynamoDbOptions::default()
        };
        let client = connect(&options).await;
        let names = TableNames::with_prefix(&format!("d{}-{seed}-", std::process::id())).unwrap();
        tables::create(&client, &names).await.unwrap();
        let settings = StoreSettings {
            commit_timeout: Duration::from_secs(20),
            ttl_grace: Duration::from_secs(100),
        };
        let table = DynamoDbStore::new(client, names, settings);
        let model = MemoryStore::new();
        // The table's journal was given an id when it was made.
        let (ours, theirs) = (model.head().await.unwrap(), table.head().await.unwrap());
        assert!(model.rename(ours, theirs.journal).await.unwrap());
        let random = StdRng::seed_from_u64(seed);
        Self { seed, random, model, table, last: None, committed: 0, refused: 0 }
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.random_range(0..bound)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.random.random_range(0..from.len())]
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn key(&mut self) -> PartitionKey {
        PartitionKey::new(self.pick(&KEYS)).unwrap()
    }

    fn cell_id(&mut self) -> CellId {
        CellId::new(self.pick(&CELLS)).unwrap()
    }

    fn migration(&mut self) -> Option<MigrationId> {
        let id = MigrationId::new(self.below(2).into());
        self.chance(30).then_some(id)
    }

    fn epoch(&mut self) -> Epoch {
        Epoch::new(1 + self.below(4)).unwrap()
    }

    /// Far ahead, so that no storage takes it for expired.
    fn time(&mut self) -> Timestamp {
        Timestamp::from_millis(2_000_000_000_000 + i64::try_from(self.below(60_000)).unwrap())
            .unwrap()
    }

    fn maybe_time(&mut self) -> Option<Timestamp> {
        let time = self.time();
        self.chance(50).then_some(time)
    }

    fn event(&mut self) -> PlacementEvent {
        self.pick(&PlacementEvent::ALL)
    }

    fn placement(&mut self, key: PartitionKey, epoch: Epoch) -> Placement {
        let origins = [PlacementEvent::Assigned, PlacementEvent::Pinned, PlacementEvent::Imported];
        Placement {
            key,
            cell: self.cell_id(),
            epoch,
            write_mode: self.pick(&[WriteMode::Direct, WriteMode::Logged]),
            began_by: if self.chance(1) { PlacementEvent::Adopted } else { self.pick(&origins) },
            created: Some(self.time()),
            updated: Some(self.time()),
            expires: self.maybe_time(),
            migration: self.migration(),
        }
    }

    fn cell(&mut self, revision: Sequence) -> Cell {
        let labels = match self.chance(50) {
            true => BTreeMap::from([("tier".to_owned(), "é 1".to_owned())]),
            false => BTreeMap::new(),
        };
        let states = [CellState::Active, CellState::Cordoned, CellState::Draining];
        Cell {
            id: self.cell_id(),
            region: Region::new(self.pick(&["eu-west-1", "us-east-1"])).unwrap(),
            endpoint: Endpoint::new("https://cell.example.com").unwrap(),
            labels: Labels::new(labels).unwrap(),
            weight: Weight::new(u32::try_from(self.below(100)).unwrap()).unwrap(),
            capacity: std::num::NonZeroU64::new(self.below(3)),
            state: self.pick(&states),
            created: self.time(),
            updated: self.time(),
            revision,
            placements: self.below(5),
            counted_at: revision,
            tables: None,
        }
    }

    fn cluster(&mut self, revision: Sequence) -> Cluster {
        let mut lease =
            || LeaseDuration::from_millis(u32::try_from(self.below(60_000)).unwrap()).unwrap();
        let (lease, longest) = (lease(), lease());
        Cluster { lease, longest, updated: self.maybe_time(), revision }
    }

    async fn expected(&mut self, key: &PartitionKey) -> Expected {
        let right = Expected::from(&self.model.mapping(key).await.unwrap());
        match self.below(12) {
            0 => Expected::Absent,
            1 => Expected::Vacated(self.epoch()),
            2 => Expected::Placed {
                cell: self.cell_id(),
                epoch: self.epoch(),
                adopted: self.chance(20),
                migration: self.migration(),
            },
            _ => right,
        }
    }

    async fn write(&mut self, at: Sequence) -> Write {
        match self.below(12) {
            0..4 => {
                let key = self.key();
                let expect = self.expected(&key).await;
                let next = self.model.mapping(&key).await.unwrap().next_epoch();
                let epoch = if self.chance(80) { next } else { self.epoch() };
                Write::Place { placement: self.placement(key, epoch), expect }
            }
            4..6 => {
                let key = self.key();
                let expect = self.expected(&key).await;
                Write::Vacate { key, epoch: self.epoch(), expect }
            }
            6 => Write::AddHistory(HistoryRecord {
                key: self.key(),
                epoch: self.epoch(),
                cell: self.cell_id(),
                began_by: self.event(),
                began: self.maybe_time(),
                ended_by: self.event(),
                ended: self.time(),
            }),
            7 => Write::PutCell { cell: self.cell(at), set_count: self.chance(50) },
            8 => Write::RemoveCell(self.cell_id()),
            9 => {
                let delta = i64::try_from(self.below(7)).unwrap() - 3;
                Write::AddToCount { cell: self.cell_id(), delta }
            }
            10 => Write::PutCluster(self.cluster(at)),
            _ => {
                let (key, epoch) = (self.key(), self.epoch());
                let placement = self.placement(key, epoch);
                let outcome = match self.below(5) {
                    0 => StoredOutcome::Placed(placement),
                    1 => StoredOutcome::Vacated(placement),
                    2 => StoredOutcome::Cell(self.cell(at)),
                    3 => StoredOutcome::CellDeleted,
                    _ => StoredOutcome::Cluster(self.cluster(at)),
                };
                Write::PutRequest(RequestRecord {
                    id: RequestId::new(self.pick(&REQUESTS)).unwrap(),
                    method: "CellDirectory/PinPlacement".into(),
                    digest: format!("digest {}", self.below(3)),
                    outcome,
                    forget_after: self.time(),
                })
            }
        }
    }

    fn change(&mut self, at: Sequence) -> Change {
        let (key, epoch) = (self.key(), self.epoch());
        let placement = self.placement(key, epoch);
        let replaced = self.cell_id();
        match self.below(6) {
            0 => Change::Placed { placement, replaced: self.chance(50).then_some(replaced) },
            1 => Change::Vacated { placement },
            2 => Change::CellCreated { cell: self.cell(at) },
            3 => Change::CellUpdated { cell: self.cell(at) },
            4 => Change::CellDeleted { cell: replaced },
            _ => Change::ClusterUpdated { cluster: self.cluster(at) },
        }
    }

    async fn commit(&mut self) -> Commit {
        let head = self.model.head().await.unwrap().sequence;
        let sequence = match self.below(40) {
            0 => Sequence::START,
            1 => head,
            2 => head.next().next(),
            _ => head.next(),
        };
        let mut writes: Vec<Write> = Vec::new();
        for _ in 0..self.below(5) {
            let write = self.write(sequence).await;
            writes.push(write);
        }
        let changes = (0..self.below(4)).map(|_| self.change(sequence)).collect();
        let nonce = Nonce::new(self.random.random());
        Commit { entry: JournalEntry { sequence, nonce, written: self.time(), changes }, writes }
    }

    fn same<T: Default + PartialEq + Debug>(
        &self,
        what: &impl Debug,
        model: Result<T, StoreError>,
        table: Result<T, StoreError>,
    ) -> T {
        let told = (format!("{model:?}"), format!("{table:?}"));
        let (model, table) = (kind(model), kind(table));
        assert_eq!(
            model, table,
            "seed {}: {what:?}\nin memory: {}\nin the table: {}",
            self.seed, told.0, told.1
        );
        model.unwrap_or_default()
    }

    /// One operation on both.
    async fn step(&mut self) {
        let limit = usize::try_from(1 + self.below(5)).unwrap();
        match self.below(20) {
            0..8 => {
                let again = self.last.clone().filter(|_| self.random.random_range(0..30) == 0);
                let done_before = again.as_ref().is_some_and(|(_, done)| *done);
                let commit = match again {
                    Some((commit, _)) => commit,
                    None => self.commit().await,
                };
                let (model, table) = (&self.model, &self.table);
                let (model, table) = (model.commit(&commit).await, table.commit(&commit).await);
                if done_before && table == Ok(CommitOutcome::Committed) {
                    // DynamoDB knows a transaction again by its token, for a while, and says that it is done.
                    assert_eq!(model, Ok(CommitOutcome::HeadMoved), "{commit:?}");
                    return;
                }
                let done = table == Ok(CommitOutcome::Committed);
                self.committed += usize::from(done);
                self.refused += usize::from(matches!(table, Ok(CommitOutcome::Refused(_))));
                self.same(&commit, model.map(Some), table.map(Some));
                self.last = Some((commit, done));
            }
            8 | 9 => {
                let key = self.key();
                let (model, table) =
                    (self.model.mapping(&key).await, self.table.mapping(&key).await);
                self.same(&key, model.map(Some), table.map(Some));
            }
            10 => {
                let keys: Vec<_> = KEYS
                    .iter()
                    .take(limit + 2)
                    .map(|key| PartitionKey::new(*key).unwrap())
                    .collect();
                let model: Result<Vec<Mapping>, _> =
                    self.model.mappings(&keys).await.into_iter().collect();
                let table = self.table.mappings(&keys).await.into_iter().collect();
                self.same(&keys, model, table);
            }
            11 => {
                let foreign = self.chance(5).then(|| Cursor("no cursor".into()));
                if let Some(foreign) = &foreign {
                    let key = self.key();
                    let model = self.model.history(&key, limit, Some(foreign)).await;
                    let table = self.table.history(&key, limit, Some(foreign)).await;
                    self.same(
                        &"history",
                        model.map(|page| page.items),
                        table.map(|page| page.items),
                    );
                }
                let cell = self.cell_id();
                let cell = self.chance(60).then_some(cell);
                let (model, table) = (&self.model, &self.table);
                let model =
                    pages(async |after| model.list(cell.as_ref(), limit, after).await).await;
                let table =
                    pages(async |after| table.list(cell.as_ref(), limit, after).await).await;
                self.same(&("list", &cell, limit), model.map(sorted), table.map(sorted));
            }
            12 => {
                let cell = self.cell_id();
                let (model, table) = (self.model.count(&cell).await, self.table.count(&cell).await);
                self.same(&("count", &cell), model, table);
            }
            13 => {
                let now = self.time();
                let (model, table) = (&self.model, &self.table);
                let model = pages(async |after| model.expired(now, limit, after).await).await;
                let table = pages(async |after| table.expired(now, limit, after).await).await;
                self.same(&("expired", now), model.map(sorted), table.map(sorted));
                let (model, table) = (&self.model, &self.table);
                let model = pages(async |after| model.scan(limit, after).await).await;
                let table = pages(async |after| table.scan(limit, after).await).await;
                self.same(&"scan", model.map(sorted), table.map(sorted));
            }
            14 => {
                let key = self.key();
                let (model, table) = (&self.model, &self.table);
                let model = pages(async |after| model.history(&key, limit, after).await).await;
                let table = pages(async |after| table.history(&key, limit, after).await).await;
                self.same(&("history", &key), model, table);
            }
            15 => {
                let (model, table) = (self.model.head().await, self.table.head().await);
                self.same(&"head", model.map(Some), table.map(Some));
                let (model, table) = (self.model.cluster().await, self.table.cluster().await);
                self.same(&"cluster", model, table);
            }
            16 => {
                let head = self.model.head().await.unwrap().sequence.get();
                let after = Sequence::new(self.below(head + 2));
                let (model, table) = (
                    self.model.entries(after, limit).await,
                    self.table.entries(after, limit).await,
                );
                self.same(&("entries", after, limit), model, table);
            }
            17 => {
                let (model, table) = (self.model.cells().await, self.table.cells().await);
                self.same(&"cells", model, table);
            }
            18 => {
                let id = RequestId::new(self.pick(&REQUESTS)).unwrap();
                let (model, table) = (self.model.request(&id).await, self.table.request(&id).await);
                self.same(&id, model, table);
            }
            _ => self.administer().await,
        }
    }

    /// Trims and renames, which are rare.
    async fn administer(&mut self) {
        let Head { sequence, journal } = self.model.head().await.unwrap();
        if self.chance(40) {
            let back = self.below(8);
            let last = Sequence::new(sequence.get().saturating_sub(back));
            let (model, table) = (self.model.trim(last).await, self.table.trim(last).await);
            self.same(&("trim", last), model, table);
        } else if self.chance(30) {
            let given = match self.chance(60) {
                true => Head { sequence, journal },
                false => Head { sequence: sequence.next(), journal },
            };
            let id = JournalId::new(self.random.random());
            let model = self.model.rename(given, id).await;
            let table = self.table.rename(given, id).await;
            self.same(&("rename", given), model, table);
        }
        let (model, table) = (self.model.trimmed().await, self.table.trimmed().await);
        self.same(&"trimmed", model, table);
    }
}

/// Every so many of the sequences, some at once. Answers how many commits were done, and how many refused.
fn run(first: u64, base: u64, endpoint: &str) -> (usize, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mine = (first..=SEQUENCES).step_by(THREADS);
    let sequences = futures::stream::iter(mine).map(|n| async move {
        let mut pair = Pair::new(endpoint.to_owned(), base + n).await;
        for _ in 0..OPERATIONS {
            pair.step().await;
        }
        (pair.committed, pair.refused)
    });
    let sum = async |all: (usize, usize), one: (usize, usize)| (all.0 + one.0, all.1 + one.1);
    runtime.block_on(sequences.buffer_unordered(AT_ONCE).fold((0, 0), sum))
}

#[test]
fn the_store_in_memory_answers_as_dynamodb_local_does() {
    let base = std::env::var("CELLD_DIFFERENTIAL_SEED").ok();
    let base: u64 = base.map_or(0, |base| base.parse().unwrap());
    let endpoint = DynamoDbLocal::shared().endpoint();
    let (committed, refused) = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=THREADS as u64)
            .map(|first| {
                scope.spawn({
                    let endpoint = &endpoint;
                    move || run(first, base, endpoint)
                })
            })
            .collect();
        let done = threads.into_iter().map(|thread| thread.join().unwrap());
        done.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
    });
    let operations = usize::try_from(SEQUENCES).unwrap() * OPERATIONS;
    println!("{operations} operations: {committed} committed, {refused} refused");
    assert!(committed > 2_000 && refused > 500, "{committed} committed, {refused} refused");
}
