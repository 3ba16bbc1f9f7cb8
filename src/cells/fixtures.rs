//! For the tests: a cloud that takes its time, refuses, and stops the world at any of its calls.

mod backups;
mod restore;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;
use cells_guard::CellTables;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

pub use backups::FakeBackup;

use super::cloud::{Backup, Cloud, CloudError, Page, Restorable, Restoration, TableRef};
use super::data::Item;
use super::plan::{Change, Feature, Observed, ObservedIndex, Wanted};
use super::records::Cells;
use super::table_set::{
    Autoscaling, Billing, Encryption, IndexSpec, KeyAttribute, KeyType, Projection, Provision,
    StreamView, TableClass, TableSet, TableSetId, TableSpec, Throughput,
};
use super::template::KeyTemplate;
use crate::directory::{Clock, Error};
use crate::domain::{
    Cell, CellId, CellState, Endpoint, Labels, Region, Sequence, Timestamp, Weight,
};

pub fn key(name: &str) -> KeyAttribute {
    KeyAttribute { name: name.to_owned(), key_type: KeyType::String }
}

/// A table with everything that a table can have but replicas.
pub fn table(name: &str) -> TableSpec {
    let provision = || Provision {
        units: 5,
        autoscaling: Some(Autoscaling { min: 5, max: 50, target_percent: 70 }),
    };
    let throughput = || Throughput { read: provision(), write: provision() };
    TableSpec {
        name: name.to_owned(),
        partition_key: key("PK"),
        sort_key: Some(key("SK")),
        tenant_keys: vec![KeyTemplate::new("CUSTOMER#{partition_key}").unwrap()],
        indexes: vec![IndexSpec {
            name: "CellIdIndex".to_owned(),
            partition_key: key("CellId"),
            sort_key: Some(key("PK")),
            projection: Projection::KeysOnly,
            throughput: Some(throughput()),
        }],
        ttl_attribute: Some("TTL".to_owned()),
        stream: Some(StreamView::Both),
        billing: Billing::Provisioned(throughput()),
        recovery_days: Some(35),
        encryption: Encryption::AwsManaged,
        deletion_protection: true,
        class: TableClass::Standard,
        replicas: Vec::new(),
    }
}

pub fn table_set(tables: Vec<TableSpec>) -> TableSet {
    TableSet {
        id: TableSetId::new("default").unwrap(),
        version: 1,
        created: Timestamp::from_millis(0).unwrap(),
        tables,
        tags: [("environment".to_owned(), "test".to_owned())].into(),
        backups: None,
    }
}

pub fn cell(state: CellState, placements: u64) -> Cell {
    Cell {
        id: CellId::new("cell-a").unwrap(),
        region: Region::new("eu-west-1").unwrap(),
        endpoint: Endpoint::new("https://a").unwrap(),
        labels: Labels::default(),
        weight: Weight::DEFAULT,
        capacity: None,
        state,
        created: Timestamp::from_millis(0).unwrap(),
        updated: Timestamp::from_millis(0).unwrap(),
        revision: Sequence::new(1),
        placements,
        counted_at: Sequence::new(1),
        tables: None,
    }
}

/// One cell, which can change under whoever reads it.
pub struct OneCell(pub Mutex<Cell>);

#[async_trait]
impl Cells for OneCell {
    async fn cell(&self, id: &CellId) -> Result<Option<Arc<Cell>>, Error> {
        let cell = self.0.lock().clone();
        // Any other is as this one, but cordoned.
        let other =
            Cell { id: id.clone(), state: CellState::Cordoned, placements: 0, ..cell.clone() };
        Ok(Some(Arc::new(if cell.id == *id { cell } else { other })))
    }

    async fn set_tables(&self, id: &CellId, tables: Option<CellTables>) -> Result<(), Error> {
        let mut cell = self.0.lock();
        if cell.id == *id {
            cell.tables = tables.map(Arc::new);
        }
        Ok(())
    }
}

/// Where the world stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Before the call has an effect.
    Before(usize),
    /// After it, and before anybody hears of it.
    After(usize),
}

struct Table {
    observed: Observed,
    /// Looks until what was begun has taken effect.
    changing: u32,
    /// Being deleted: gone after these looks.
    going: bool,
    items: Items,
}

/// By their keys.
pub type Items = BTreeMap<String, u8>;

/// What somebody else does.
pub type Act = Box<dyn FnOnce() + Send>;

/// AWS, by its rules as far as they matter here: a table in change takes no other change.
#[derive(Default)]
pub struct FakeCloud {
    tables: Mutex<BTreeMap<TableRef, Table>>,
    calls: AtomicUsize,
    stop: Mutex<Option<Stop>>,
    /// Cancelled when the world has stopped.
    pub stopped: Mutex<CancellationToken>,
    /// How often CreateTable is refused for the number of tables in change.
    pub throttled: AtomicUsize,
    pub created: AtomicUsize,
    pub restored: AtomicUsize,
    /// By table, the oldest first.
    pub backups: Mutex<BTreeMap<TableRef, Vec<FakeBackup>>>,
    /// For what is made. A table can be set back to any time until a minute ago, as it is now.
    pub clock: Mutex<Option<Clock>>,
    /// Whether DeleteTable is refused for tables whose name holds this.
    pub undeletable: Mutex<Option<String>>,
    /// A table that is gone from this call on, and the call's number.
    pub vanishing: Mutex<Option<(usize, String)>>,
    /// Whether restores are refused that are not of the first table.
    pub unrestorable: AtomicBool,
    /// A table whose changes are refused.
    pub unchangeable: Mutex<Option<String>>,
    /// Whether deletions of tables are throttled, and of backups refused.
    pub stuck: AtomicBool,
    pub keeping: AtomicBool,
    /// If not 0, of so many calls of ListBackups only one gets through.
    pub throttled_lists: AtomicUsize,
    lists: AtomicUsize,
    begun: AtomicUsize,
    /// Tables of which pages were read, in their order.
    pub paged: Mutex<Vec<String>>,
    /// What somebody else does at this call.
    pub meanwhile: Mutex<Option<(usize, Act)>>,
}

/// Looks until a change has taken effect.
const LOOKS: u32 = 2;

impl FakeCloud {
    pub fn stop_at(&self, stop: Option<Stop>) {
        *self.stop.lock() = stop;
        *self.stopped.lock() = CancellationToken::new();
        self.calls.store(0, Ordering::SeqCst);
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub fn observed(&self) -> BTreeMap<String, Observed> {
        let tables = self.tables.lock();
        tables.iter().map(|(table, is)| (table.name.clone(), is.observed.clone())).collect()
    }

    /// Changes a table behind everybody's back.
    pub fn meddle(&self, name: &str, meddle: impl FnOnce(&mut Observed)) {
        let mut tables = self.tables.lock();
        let table = tables.iter_mut().find(|(table, _)| table.name == name).unwrap().1;
        meddle(&mut table.observed);
    }

    pub fn put_data(&self, name: &str) {
        self.put_item(name, "a", 1);
    }

    pub fn put_item(&self, name: &str, key: &str, value: u8) {
        let mut tables = self.tables.lock();
        let table = tables.iter_mut().find(|(table, _)| table.name == name).unwrap().1;
        table.items.insert(key.to_owned(), value);
    }

    pub fn remove_item(&self, name: &str, key: &str) {
        let mut tables = self.tables.lock();
        let table = tables.iter_mut().find(|(table, _)| table.name == name).unwrap().1;
        table.items.remove(key);
    }

    pub fn items(&self, name: &str) -> Items {
        let tables = self.tables.lock();
        tables.iter().find(|(table, _)| table.name == name).unwrap().1.items.clone()
    }

    fn time(&self) -> Timestamp {
        let clock = self.clock.lock();
        clock.as_ref().map_or(Timestamp::from_millis(0).unwrap(), Clock::now)
    }

    /// Somebody deletes a table, which takes these looks.
    pub fn begin_deleting(&self, name: &str, looks: u32) {
        let mut tables = self.tables.lock();
        let table = tables.iter_mut().find(|(table, _)| table.name == name).unwrap().1;
        (table.going, table.changing) = (true, looks);
        table.observed.status = "DELETING".to_owned();
    }

    /// Numbers the call, and stops the world before or after it where that is asked for.
    async fn call<T>(&self, effect: impl FnOnce() -> T) -> T {
        let number = self.calls.fetch_add(1, Ordering::SeqCst);
        let stop = *self.stop.lock();
        if let Some((_, name)) = self.vanishing.lock().take_if(|(at, _)| *at <= number) {
            self.tables.lock().retain(|table, _| table.name != name);
        }
        let meanwhile = self.meanwhile.lock().take_if(|(at, _)| *at <= number);
        if let Some((_, act)) = meanwhile {
            act();
        }
        if stop == Some(Stop::Before(number)) {
            self.halt().await;
        }
        let result = effect();
        if stop == Some(Stop::After(number)) {
            self.halt().await;
        }
        result
    }

    async fn halt(&self) {
        self.stopped.lock().cancel();
        std::future::pending::<()>().await;
    }

    fn create(&self, wanted: &Wanted) -> Result<(), CloudError> {
        if self.throttled.load(Ordering::SeqCst) > 0 {
            self.throttled.fetch_sub(1, Ordering::SeqCst);
            return Err(CloudError::Busy { code: "LimitExceededException".to_owned() });
        }
        let spec = &wanted.spec;
        let units = |throughput: &Throughput| (throughput.read.units, throughput.write.units);
        let mut all: BTreeMap<_, _> =
            spec.billing.throughput().map(|it| (String::new(), units(it))).into_iter().collect();
        all.extend(spec.indexes.iter().filter_map(|index| {
            index.throughput.as_ref().map(|throughput| (index.name.clone(), units(throughput)))
        }));
        let observed = Observed {
            status: "CREATING".to_owned(),
            partition_key: spec.partition_key.clone(),
            sort_key: spec.sort_key.clone(),
            indexes: spec
                .indexes
                .iter()
                .map(|index| ObservedIndex {
                    spec: index.clone(),
                    active: true,
                    items: 0,
                    bytes: 0,
                })
                .collect(),
            stream: spec.stream,
            units: spec.billing.throughput().map(|_| all),
            class: spec.class,
            encryption: spec.encryption.clone(),
            deletion_protection: false,
            replicas: BTreeMap::new(),
            ttl_attribute: Feature::Known(None),
            recovery_days: Feature::Known(None),
            tags: Feature::Known(wanted.tags.clone()),
            scaling: Feature::Known(BTreeMap::new()),
            items: 0,
            bytes: 0,
            created: None,
            restored_from: None,
        };
        let mut tables = self.tables.lock();
        tables.entry(TableRef::from(wanted)).or_insert_with(|| {
            self.created.fetch_add(1, Ordering::SeqCst);
            Table { observed, changing: LOOKS, going: false, items: Items::new() }
        });
        Ok(())
    }

    fn change(&self, wanted: &Wanted, change: &Change) -> Result<(), CloudError> {
        let mut tables = self.tables.lock();
        let busy = || CloudError::Busy { code: "ResourceInUseException".to_owned() };
        let Some(table) = tables.get_mut(&TableRef::from(wanted)) else { return Err(busy()) };
        if self.unchangeable.lock().as_ref() == Some(&wanted.name) {
            let code = "AccessDeniedException".to_owned();
            return Err(CloudError::Refused { code, detail: String::new() });
        }
        if table.changing > 0 {
            return Err(busy());
        }
        let is = &mut table.observed;
        match change {
            Change::CreateTable => {}
            Change::SetTtl(attribute) => is.ttl_attribute = Feature::Known(Some(attribute.clone())),
            Change::SetRecovery(days) => is.recovery_days = Feature::Known(*days),
            Change::SetTags(more) => {
                if let Feature::Known(tags) = &mut is.tags {
                    tags.extend(more.clone());
                }
            }
            Change::SetScaling(resource, dimension, scaling) => {
                if let Feature::Known(all) = &mut is.scaling {
                    all.insert((resource.clone(), *dimension), *scaling);
                }
            }
            Change::RemoveScaling(resource, dimension) => {
                if let Feature::Known(all) = &mut is.scaling {
                    all.remove(&(resource.clone(), *dimension));
                }
            }
            Change::SetDeletionProtection(on) => is.deletion_protection = *on,
            Change::SetStream(view) => is.stream = *view,
            Change::SetClass(class) => is.class = *class,
            Change::SetEncryption(encryption) => is.encryption = encryption.clone(),
            Change::SetBilling(billing) => {
                is.units = billing.throughput().map(|_| BTreeMap::new());
            }
            Change::SetUnits(resource, read, write) => {
                is.units.get_or_insert_default().insert(resource.clone(), (*read, *write));
            }
            Change::AddIndex(index) => {
                let spec = index.clone();
                is.indexes.push(ObservedIndex { spec, active: true, items: 0, bytes: 0 });
            }
            Change::AddReplica(region) => {
                is.replicas.insert(region.clone(), true);
            }
            Change::RemoveReplica(region) => {
                is.replicas.remove(region);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Cloud for FakeCloud {
    async fn observe(&self, table: &TableRef) -> Result<Option<Observed>, CloudError> {
        self.call(|| {
            let mut tables = self.tables.lock();
            let Some(is) = tables.get_mut(table) else { return Ok(None) };
            let observed = is.observed.clone();
            if is.changing > 0 {
                is.changing -= 1;
                if is.changing == 0 && is.going {
                    tables.remove(table);
                } else if is.changing == 0 {
                    is.observed.status = "ACTIVE".to_owned();
                }
            }
            Ok(Some(observed))
        })
        .await
    }

    async fn apply(&self, wanted: &Wanted, change: &Change) -> Result<(), CloudError> {
        self.call(|| match change {
            Change::CreateTable => self.create(wanted),
            other => self.change(wanted, other),
        })
        .await
    }

    async fn holds_data(&self, table: &TableRef) -> Result<bool, CloudError> {
        self.call(|| Ok(self.tables.lock().get(table).is_some_and(|table| !table.items.is_empty())))
            .await
    }

    async fn backups(&self, table: &TableRef) -> Result<Vec<Backup>, CloudError> {
        self.call(|| self.list_backups(table)).await
    }

    async fn create_backup(&self, table: &TableRef, name: &str) -> Result<(), CloudError> {
        self.call(|| self.begin_backup(table, name)).await
    }

    async fn delete_backup(&self, table: &TableRef, backup: &Backup) -> Result<(), CloudError> {
        self.call(|| self.remove_backup(table, backup)).await
    }

    async fn restorable(&self, table: &TableRef) -> Result<Restorable, CloudError> {
        self.call(|| {
            let tables = self.tables.lock();
            let Some(is) = tables.get(table) else { return Ok(Restorable::NoTable) };
            let days = is.observed.recovery_days.known().copied().flatten();
            let ago = |millis: i64| Timestamp::from_millis(self.time().millis() - millis).unwrap();
            Ok(days.map_or(Restorable::Off, |days| Restorable::Between {
                earliest: ago(i64::from(days) * 24 * 3600 * 1000),
                latest: ago(60_000),
                days,
            }))
        })
        .await
    }

    async fn restore(&self, restoration: &Restoration) -> Result<(), CloudError> {
        self.call(|| self.begin_restore(restoration)).await
    }

    async fn page(&self, table: &TableRef, from: Option<&Item>) -> Result<Page, CloudError> {
        self.call(|| {
            let tables = self.tables.lock();
            let Some(is) = tables.get(table) else {
                let code = "ResourceNotFoundException".to_owned();
                return Err(CloudError::Refused { code, detail: String::new() });
            };
            self.paged.lock().push(table.name.clone());
            let text = |value: &str| AttributeValue::S(value.to_owned());
            let after = from.and_then(|key| key["PK"].as_s().ok());
            let rest: Vec<_> = is.items.iter().skip_while(|(key, _)| Some(*key) <= after).collect();
            let item = |(key, value): &(&String, &u8)| {
                let pair = |name: &str, value| (name.to_owned(), value);
                let value = AttributeValue::N(value.to_string());
                Item::from([pair("PK", text(key)), pair("SK", text("-")), pair("V", value)])
            };
            let items: Vec<_> = rest.iter().take(2).map(item).collect();
            let next = (rest.len() > 2).then(|| items[1].clone());
            Ok(Page { items, next })
        })
        .await
    }

    async fn delete(&self, table: &TableRef) -> Result<(), CloudError> {
        self.call(|| {
            if let Some(is) = self.tables.lock().get_mut(table) {
                let kept = self.undeletable.lock();
                let kept = kept.as_ref().is_some_and(|part| table.name.contains(part));
                if is.observed.deletion_protection || kept {
                    let code = "ValidationException".to_owned();
                    return Err(CloudError::Refused { code, detail: "protected".to_owned() });
                }
                if is.changing > 0 || self.stuck.load(Ordering::SeqCst) {
                    return Err(CloudError::Busy { code: "ResourceInUseException".to_owned() });
                }
                (is.going, is.changing) = (true, LOOKS);
                is.observed.status = "DELETING".to_owned();
            }
            Ok(())
        })
        .await
    }
}
