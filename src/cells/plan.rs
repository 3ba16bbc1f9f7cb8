//! What has to change for a table to be as it is declared. Pure.
//!
//! Invariants: nothing that holds data is replaced or dropped to mend a difference (a wrong key is a conflict, an index that nobody
//! declared is a note); a plan for what has just been brought about is empty; what an endpoint does not know is told, not
//! passed over in silence.

use std::collections::BTreeMap;
use std::fmt;

use super::check;
use super::table_set::{
    Autoscaling, Billing, Encryption, IndexSpec, KeyAttribute, Provision, StreamView, TableClass,
    TableSet, TableSpec, Throughput,
};
use crate::domain::{Cell, Region};

/// A table as a cell should have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// On AWS.
    pub name: String,
    pub region: Region,
    pub spec: TableSpec,
    pub tags: BTreeMap<String, String>,
}

impl Wanted {
    /// All tables of a cell.
    pub fn of(set: &TableSet, prefix: &str, cell: &Cell) -> Vec<Wanted> {
        let wanted = |spec: &TableSpec| Wanted {
            name: spec.table_name(prefix, &cell.id),
            region: cell.region.clone(),
            spec: spec.clone(),
            tags: check::tags_of(set, &cell.id),
        };
        set.tables.iter().map(wanted).collect()
    }
}

/// Something that not every endpoint has: DynamoDB Local knows no backups, for example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Feature<T> {
    Known(T),
    Unsupported,
}

impl<T> Feature<T> {
    pub fn known(&self) -> Option<&T> {
        match self {
            Feature::Known(value) => Some(value),
            Feature::Unsupported => None,
        }
    }
}

/// A table or one of its indexes, as far as capacity is concerned: the name of the index, empty for the table.
pub type Resource = String;

/// Which of a resource's two capacities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dimension {
    Read,
    Write,
}

impl Dimension {
    pub const ALL: [Dimension; 2] = [Dimension::Read, Dimension::Write];

    pub fn as_str(self) -> &'static str {
        match self {
            Dimension::Read => "read",
            Dimension::Write => "write",
        }
    }

    fn of(self, throughput: &Throughput) -> &Provision {
        match self {
            Dimension::Read => &throughput.read,
            Dimension::Write => &throughput.write,
        }
    }
}

/// A table as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// As DynamoDB names it, such as `ACTIVE`.
    pub status: String,
    pub partition_key: KeyAttribute,
    pub sort_key: Option<KeyAttribute>,
    pub indexes: Vec<ObservedIndex>,
    pub stream: Option<StreamView>,
    /// Provisioned units of the table and of its indexes; `None`: on demand.
    pub units: Option<BTreeMap<Resource, (u64, u64)>>,
    pub class: TableClass,
    pub encryption: Encryption,
    pub deletion_protection: bool,
    /// Regions of replicas, and whether each can be used.
    pub replicas: BTreeMap<Region, bool>,
    pub ttl_attribute: Feature<Option<String>>,
    pub recovery_days: Feature<Option<u8>>,
    pub tags: Feature<BTreeMap<String, String>>,
    pub scaling: Feature<BTreeMap<(Resource, Dimension), Autoscaling>>,
    /// As DynamoDB counts them, every six hours or so.
    pub items: u64,
    pub bytes: u64,
    /// In seconds since 1970, where the endpoint says so.
    pub created: Option<i64>,
    /// The table that it was restored from, by name; `None`: it was made empty.
    pub restored_from: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedIndex {
    pub spec: IndexSpec,
    pub active: bool,
    pub items: u64,
    pub bytes: u64,
}

impl Observed {
    /// Whether the table takes changes.
    pub fn settled(&self) -> bool {
        self.status == "ACTIVE"
            && self.indexes.iter().all(|index| index.active)
            && self.replicas.values().all(|usable| *usable)
    }
}

/// One change, done by one or a few calls that can be repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    CreateTable,
    SetBilling(Billing),
    SetUnits(Resource, u64, u64),
    AddIndex(IndexSpec),
    /// `None` disables it. A stream's view changes by disabling and enabling it: what was not read of it is lost.
    SetStream(Option<StreamView>),
    SetClass(TableClass),
    SetEncryption(Encryption),
    SetTtl(String),
    SetRecovery(Option<u8>),
    AddReplica(Region),
    RemoveReplica(Region),
    SetTags(BTreeMap<String, String>),
    SetScaling(Resource, Dimension, Autoscaling),
    RemoveScaling(Resource, Dimension),
    /// Last, so that a half-made table can be deleted by hand.
    SetDeletionProtection(bool),
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |resource: &str| match resource {
            "" => String::new(),
            index => format!(" of index {index}"),
        };
        match self {
            Change::CreateTable => write!(f, "create the table"),
            Change::SetBilling(Billing::OnDemand) => write!(f, "set billing to on demand"),
            Change::SetBilling(Billing::Provisioned(_)) => write!(f, "set billing to provisioned"),
            Change::SetUnits(resource, read, write) => {
                write!(f, "set capacity{} to {read} read and {write} write units", of(resource))
            }
            Change::AddIndex(index) => write!(f, "add index {}", index.name),
            Change::SetStream(Some(view)) => write!(f, "enable the stream {}", view.as_str()),
            Change::SetStream(None) => write!(f, "disable the stream"),
            Change::SetClass(class) => write!(f, "set the table class to {}", class.as_str()),
            Change::SetEncryption(Encryption::AwsOwned) => write!(f, "encrypt with AWS's own key"),
            Change::SetEncryption(Encryption::AwsManaged) => {
                write!(f, "encrypt with the key aws/dynamodb")
            }
            Change::SetEncryption(Encryption::Customer(key)) => write!(f, "encrypt with {key}"),
            Change::SetTtl(attribute) => write!(f, "delete by the time in {attribute}"),
            Change::SetRecovery(Some(days)) => {
                write!(f, "enable point-in-time recovery for {days} days")
            }
            Change::SetRecovery(None) => write!(f, "disable point-in-time recovery"),
            Change::AddReplica(region) => write!(f, "add a replica in {region}"),
            Change::RemoveReplica(region) => write!(f, "remove the replica in {region}"),
            Change::SetTags(tags) => {
                let names: Vec<_> = tags.keys().map(String::as_str).collect();
                write!(f, "set the tags {}", names.join(", "))
            }
            Change::SetScaling(resource, dimension, Autoscaling { min, max, target_percent }) => {
                let what = dimension.as_str();
                write!(
                    f,
                    "scale {what} capacity{} from {min} to {max} at {target_percent} %",
                    of(resource)
                )
            }
            Change::RemoveScaling(resource, dimension) => {
                write!(f, "stop scaling {} capacity{}", dimension.as_str(), of(resource))
            }
            Change::SetDeletionProtection(true) => write!(f, "protect from deletion"),
            Change::SetDeletionProtection(false) => write!(f, "lift the protection from deletion"),
        }
    }
}

/// What is to be done about a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TablePlan {
    /// In the order in which they are done.
    pub changes: Vec<Change>,
    /// What no change can mend: the operation fails with these.
    pub conflicts: Vec<String>,
    /// What is different and left alone, and what the endpoint does not know.
    pub notes: Vec<String>,
}

/// What is to be done about a cell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// By the table's name on AWS.
    pub tables: Vec<(String, TablePlan)>,
}

impl Plan {
    pub fn done(&self) -> bool {
        self.tables.iter().all(|(_, plan)| plan.changes.is_empty() && plan.conflicts.is_empty())
    }
}

/// What is to be done for a table to be as wanted. `observed`: `None` where there is none.
pub fn plan(wanted: &Wanted, observed: Option<&Observed>) -> TablePlan {
    match observed {
        None => TablePlan { changes: vec![Change::CreateTable], ..TablePlan::default() },
        Some(observed) => Planner { wanted, observed, plan: TablePlan::default() }.plan(),
    }
}

struct Planner<'a> {
    wanted: &'a Wanted,
    observed: &'a Observed,
    plan: TablePlan,
}

impl Planner<'_> {
    fn plan(mut self) -> TablePlan {
        self.keys();
        if !self.plan.conflicts.is_empty() {
            return self.plan;
        }
        self.billing();
        self.indexes();
        self.stream();
        self.features();
        self.replicas();
        self.scaling();
        let protection = self.wanted.spec.deletion_protection;
        self.change(self.observed.deletion_protection != protection, || {
            Change::SetDeletionProtection(protection)
        });
        self.plan
    }

    fn change(&mut self, differs: bool, change: impl FnOnce() -> Change) {
        if differs {
            self.plan.changes.push(change());
        }
    }

    fn note(&mut self, note: impl Into<String>) {
        self.plan.notes.push(note.into());
    }

    fn keys(&mut self) {
        let (spec, observed) = (&self.wanted.spec, self.observed);
        if (&spec.partition_key, &spec.sort_key) != (&observed.partition_key, &observed.sort_key) {
            let shown = |first: &KeyAttribute, second: &Option<KeyAttribute>| {
                let one = |key: &KeyAttribute| format!("{} ({})", key.name, key.key_type.as_str());
                [Some(first), second.as_ref()]
                    .into_iter()
                    .flatten()
                    .map(one)
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            self.plan.conflicts.push(format!(
                "has the key {}, not {}: a key cannot be changed; move its data to another table, or declare the key it has",
                shown(&observed.partition_key, &observed.sort_key),
                shown(&spec.partition_key, &spec.sort_key),
            ));
        }
        for index in &observed.indexes {
            let declared = spec.indexes.iter().find(|declared| declared.name == index.spec.name);
            let same = declared.is_none_or(|declared| {
                (&declared.partition_key, &declared.sort_key, &declared.projection)
                    == (&index.spec.partition_key, &index.spec.sort_key, &index.spec.projection)
            });
            let name = &index.spec.name;
            if !same {
                self.plan.conflicts.push(format!(
                    "index {name} has another key or projection: declare it under another name, or drop it by hand"
                ));
            } else if declared.is_none() {
                self.plan.notes.push(format!("index {name} is not declared; it is left alone"));
            }
        }
    }

    fn billing(&mut self) {
        let wanted = &self.wanted.spec.billing;
        match (wanted, &self.observed.units) {
            (Billing::OnDemand, Some(_)) | (Billing::Provisioned(_), None) => {
                self.plan.changes.push(Change::SetBilling(wanted.clone()));
            }
            (Billing::Provisioned(_), Some(units)) => {
                for (resource, throughput) in self.throughputs() {
                    let Some((read, write)) = units.get(&resource).copied() else { continue };
                    let (reads, writes) =
                        (target(&throughput.read, read), target(&throughput.write, write));
                    self.change((reads, writes) != (read, write), || {
                        Change::SetUnits(resource, reads, writes)
                    });
                }
            }
            (Billing::OnDemand, None) => {}
        }
    }

    /// Of the table and of each declared index.
    fn throughputs(&self) -> Vec<(Resource, Throughput)> {
        let spec = &self.wanted.spec;
        let table = spec.billing.throughput().map(|throughput| (String::new(), throughput.clone()));
        let indexes = spec.indexes.iter().filter_map(|index| {
            index.throughput.as_ref().map(|throughput| (index.name.clone(), throughput.clone()))
        });
        table.into_iter().chain(indexes).collect()
    }

    fn indexes(&mut self) {
        for index in &self.wanted.spec.indexes {
            let there = self.observed.indexes.iter().any(|there| there.spec.name == index.name);
            self.change(!there, || Change::AddIndex(index.clone()));
        }
    }

    fn stream(&mut self) {
        let (wanted, is) = (self.wanted.spec.stream, self.observed.stream);
        if wanted != is {
            self.change(is.is_some(), || Change::SetStream(None));
            self.change(wanted.is_some(), || Change::SetStream(wanted));
        }
    }

    fn features(&mut self) {
        let (wanted, observed) = (self.wanted, self.observed);
        let spec = &wanted.spec;
        self.change(spec.class != observed.class, || Change::SetClass(spec.class));
        self.change(!spec.encryption.fits(&observed.encryption), || {
            Change::SetEncryption(spec.encryption.clone())
        });
        match (&spec.ttl_attribute, &observed.ttl_attribute) {
            (Some(_), Feature::Unsupported) => self.note("this endpoint knows no TTL"),
            (Some(attribute), Feature::Known(None)) => {
                self.plan.changes.push(Change::SetTtl(attribute.clone()));
            }
            (Some(attribute), Feature::Known(Some(other))) if attribute != other => {
                self.plan.conflicts.push(format!(
                    "deletes by {other}, not by {attribute}: disable TTL by hand, wait an hour as DynamoDB asks, and run this again"
                ));
            }
            (None, Feature::Known(Some(other))) => {
                self.note(format!("deletes by {other}, which is not declared; it is left alone"));
            }
            _ => {}
        }
        match &observed.recovery_days {
            Feature::Known(days) => {
                self.change(*days != spec.recovery_days, || Change::SetRecovery(spec.recovery_days))
            }
            Feature::Unsupported if spec.recovery_days.is_some() => {
                self.note("this endpoint knows no point-in-time recovery");
            }
            Feature::Unsupported => {}
        }
        match &observed.tags {
            Feature::Known(tags) => {
                let differs = |(key, value): &(&String, &String)| tags.get(*key) != Some(*value);
                let missing: BTreeMap<_, _> = wanted
                    .tags
                    .iter()
                    .filter(differs)
                    .map(|(k, v)| (k.clone(), v.clone()))
                    .collect();
                self.change(!missing.is_empty(), || Change::SetTags(missing));
            }
            Feature::Unsupported => self.note("this endpoint knows no tags"),
        }
    }

    fn replicas(&mut self) {
        let wanted = &self.wanted.spec.replicas;
        let observed = &self.observed.replicas;
        for region in wanted.iter().filter(|region| !observed.contains_key(*region)) {
            self.plan.changes.push(Change::AddReplica(region.clone()));
        }
        for region in observed.keys().filter(|region| !wanted.contains(region)) {
            self.plan.notes.push(format!(
                "has a replica in {region}, which is not declared; it is left alone"
            ));
        }
    }

    fn scaling(&mut self) {
        let mut wanted = BTreeMap::new();
        for (resource, throughput) in self.throughputs() {
            for dimension in Dimension::ALL {
                if let Some(scaling) = dimension.of(&throughput).autoscaling {
                    wanted.insert((resource.clone(), dimension), scaling);
                }
            }
        }
        let Feature::Known(observed) = &self.observed.scaling else {
            if !wanted.is_empty() {
                self.note("this endpoint knows no autoscaling");
            }
            return;
        };
        for ((resource, dimension), scaling) in &wanted {
            let key = (resource.clone(), *dimension);
            self.change(observed.get(&key) != Some(scaling), || {
                Change::SetScaling(resource.clone(), *dimension, *scaling)
            });
        }
        // An index that is not declared is left alone, and so is what scales it.
        let declared = |resource: &str| {
            resource.is_empty()
                || self.wanted.spec.indexes.iter().any(|index| index.name == resource)
        };
        let stale: Vec<_> = observed
            .keys()
            .filter(|key| !wanted.contains_key(*key) && declared(&key.0))
            .map(|(resource, dimension)| Change::RemoveScaling(resource.clone(), *dimension))
            .collect();
        self.plan.changes.extend(stale);
    }
}

/// The units to set: where they are scaled, those that there are, within the bounds.
fn target(provision: &Provision, present: u64) -> u64 {
    match provision.autoscaling {
        Some(Autoscaling { min, max, .. }) => present.clamp(min, max),
        None => provision.units,
    }
}
