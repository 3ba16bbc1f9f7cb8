//! Applications that write with plain DynamoDB calls: no lease, no guard, no log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::SOON;
use super::hook::Hook;
use crate::scene::{Item, Scene, partition, text};

pub const TABLES: [&str; 3] = ["Carts", "CustomerData", "Journeys"];

/// Applications that write at the same time, each its own items.
const WRITERS: u64 = 2;

/// Items of each in a table.
const ITEMS: u64 = 25;

/// What was acknowledged: table and key, and the value, unless it was deleted.
type Model = BTreeMap<(usize, String), u64>;

pub struct Applications {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    hook: Hook,
    client: Client,
    prefix: String,
    tenant: String,
    model: Mutex<Model>,
    written: AtomicU64,
    stop: AtomicBool,
}

impl Applications {
    pub async fn start(scene: &Scene, hook: &Hook, tenant: &str) -> Self {
        let shared = Arc::new(Shared {
            hook: hook.clone(),
            client: scene.tables.clone(),
            prefix: scene.world.prefix.clone(),
            tenant: tenant.to_owned(),
            model: Mutex::default(),
            written: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let writer = |number| {
            let shared = shared.clone();
            tokio::spawn(async move { shared.write(number).await })
        };
        Self { tasks: (0..WRITERS).map(writer).collect(), shared }
    }

    /// Waits until so many more writes were acknowledged.
    pub async fn more(&self, writes: u64) {
        let goal = self.shared.written.load(Ordering::SeqCst) + writes;
        let deadline = Instant::now() + SOON;
        while self.shared.written.load(Ordering::SeqCst) < goal {
            assert!(Instant::now() < deadline, "they cannot write");
            assert!(self.tasks.iter().all(|task| !task.is_finished()), "one failed");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Nobody writes until the hook says so.
    pub async fn pause(&self) {
        *self.shared.hook.gate().write().await = None;
    }

    pub async fn stop(mut self) -> Self {
        self.shared.stop.store(true, Ordering::SeqCst);
        for task in self.tasks.drain(..) {
            task.await.unwrap();
        }
        self
    }

    /// The tenant's items in a cell are those that were acknowledged last, and no others. Nobody may write meanwhile.
    pub async fn are_in(&self, scene: &Scene, cell: &str) {
        let mut found = Model::new();
        for (number, table) in TABLES.iter().enumerate() {
            for item in scene.items(table, cell).await.into_values() {
                let key = match item.get("SK") {
                    Some(sort) => sort.as_s().unwrap().clone(),
                    None => item["PK"].as_s().unwrap().clone(),
                };
                let value = item["value"].as_n().unwrap().parse().unwrap();
                found.insert((number, key), value);
            }
        }
        let model = self.shared.model.lock().clone();
        let lost: Vec<_> = model.iter().filter(|(key, of)| found.get(*key) != Some(of)).collect();
        let extra: Vec<_> = found.iter().filter(|(key, _)| !model.contains_key(*key)).collect();
        assert!(lost.is_empty() && extra.is_empty(), "lost {lost:?}, came back {extra:?}");
        assert!(!model.is_empty());
    }
}

impl Shared {
    async fn write(&self, writer: u64) {
        let mut random = fastrand(writer);
        let mut value = 0;
        while !self.stop.load(Ordering::SeqCst) {
            let gate = self.hook.gate().read().await;
            let Some(cell) = gate.clone() else {
                drop(gate);
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            value += 1;
            let table = (random() % 3) as usize;
            // Each partition of the table without a sort key is one item, and is one application's.
            let number = if table == 0 { 0 } else { random() % ITEMS };
            if table == 0 && writer > 0 {
                continue;
            }
            self.once(&cell, table, writer * ITEMS + number, value, random() % 4).await;
            self.written.fetch_add(1, Ordering::SeqCst);
            drop(gate);
            // A hundred writes a second are enough for a busy machine.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn once(&self, cell: &str, table: usize, number: u64, value: u64, how: u64) {
        let name = format!("{}{}-{cell}", self.prefix, TABLES[table]);
        let (mut key, id) = match table {
            0 => (Item::new(), partition(&self.tenant)),
            _ => {
                let id = format!("ITEM#{number:03}");
                (Item::from([("SK".to_owned(), text(&id))]), id)
            }
        };
        // In both of the tenant's partitions, where the table has two.
        let pk = match (table, number % 2) {
            (2, 1) => format!("TRAVELLER#{}", self.tenant),
            _ => partition(&self.tenant),
        };
        key.insert("PK".to_owned(), text(&pk));
        let stored = AttributeValue::N(value.to_string());
        match how {
            0 => {
                let delete = self.client.delete_item().table_name(name).set_key(Some(key));
                delete.send().await.unwrap();
                self.model.lock().remove(&(table, id));
            }
            1 => {
                let update = self.client.update_item().table_name(name).set_key(Some(key));
                let update = update
                    .update_expression("SET #v = :v")
                    .expression_attribute_names("#v", "value")
                    .expression_attribute_values(":v", stored);
                update.send().await.unwrap();
                self.model.lock().insert((table, id), value);
            }
            _ => {
                key.insert("value".to_owned(), stored);
                self.client.put_item().table_name(name).set_item(Some(key)).send().await.unwrap();
                self.model.lock().insert((table, id), value);
            }
        }
    }
}

/// xorshift: the same in each run.
fn fastrand(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 8
    }
}
