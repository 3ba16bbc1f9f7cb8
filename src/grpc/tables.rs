//! Table sets, plans and operations: from messages and to messages.

use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value};

use super::convert::timestamp;
use super::parse;
use super::status::{Fault, Reason};
use crate::cells::capacity::{DEFAULT_DAYS, MAX_DAYS};
use crate::cells::{
    Autoscaling, BackupSchedule, Billing, Encryption, Goal, IndexSpec, KeyAttribute, KeyTemplate,
    KeyType, Operation, OperationId, OperationState, Plan, Projection, Provision, StreamView,
    TableClass, TableSet, TableSetId, TableSpec, Throughput,
};
use crate::domain::{Region, Timestamp};
use crate::proto::v1;

/// The set that is meant where none is named.
const DEFAULT_SET: &str = "default";
const DEFAULT_TARGET_PERCENT: u8 = 70;
const AWS_MANAGED: &str = "AWS_MANAGED";

pub fn set_id(field: &str, id: &str) -> Result<TableSetId, Fault> {
    required_set_id(field, if id.is_empty() { DEFAULT_SET } else { id })
}

pub fn required_set_id(field: &str, id: &str) -> Result<TableSetId, Fault> {
    TableSetId::new(id).map_err(|invalid| Fault::invalid(field, &invalid))
}

pub fn operation_id(field: &str, id: String) -> Result<OperationId, Fault> {
    OperationId::new(id).map_err(|invalid| Fault::invalid(field, &invalid))
}

pub fn version(version: u64) -> i64 {
    i64::try_from(version).unwrap_or(i64::MAX)
}

fn wrong(field: &str, problem: &str) -> Fault {
    Fault::field(Reason::InvalidTableSet, field, problem)
}

/// A set to put. What its values may be is checked later, all at once; here only what has no domain value.
pub fn table_set(set: v1::TableSet, now: Timestamp) -> Result<TableSet, Fault> {
    let tables = set.tables.into_iter().enumerate();
    let tables = tables.map(|(at, table)| table_spec(&format!("table_set.tables[{at}]"), table));
    Ok(TableSet {
        id: required_set_id("table_set.table_set_id", &set.table_set_id)?,
        version: 0,
        created: now,
        tables: tables.collect::<Result<_, _>>()?,
        tags: set.tags,
        backups: set.backups.map(|schedule| {
            // What is negative is out of bounds as 0 is.
            let number = |number: i32| u32::try_from(number).unwrap_or(0);
            BackupSchedule {
                every_hours: number(schedule.every_hours),
                keep_days: number(schedule.keep_days),
            }
        }),
    })
}

fn table_spec(at: &str, table: v1::TableSpec) -> Result<TableSpec, Fault> {
    let templates = table.tenant_key_templates.iter().enumerate().map(|(number, text)| {
        let field = format!("{at}.tenant_key_templates[{number}]");
        KeyTemplate::new(text).map_err(|problem| wrong(&field, problem))
    });
    let indexes = table.indexes.into_iter().enumerate();
    let indexes =
        indexes.map(|(number, index)| index_spec(&format!("{at}.indexes[{number}]"), index));
    let replicas = table.replica_regions.into_iter().enumerate().map(|(number, region)| {
        let field = format!("{at}.replica_regions[{number}]");
        Region::new(region).map_err(|invalid| Fault::invalid(field, &invalid))
    });
    let billing = match table.provisioned {
        None => Billing::OnDemand,
        Some(units) => Billing::Provisioned(throughput(&format!("{at}.provisioned"), units)?),
    };
    let days = table.point_in_time_recovery_days;
    let recovery_days = u8::try_from(days).map_err(|_| {
        wrong(&format!("{at}.point_in_time_recovery_days"), "is not 1 to 35, or 0 for none")
    })?;
    Ok(TableSpec {
        partition_key: key(&format!("{at}.partition_key"), table.partition_key)?,
        sort_key: table
            .sort_key
            .map(|sort| key(&format!("{at}.sort_key"), Some(sort)))
            .transpose()?,
        tenant_keys: templates.collect::<Result<_, _>>()?,
        indexes: indexes.collect::<Result<_, _>>()?,
        ttl_attribute: Some(table.ttl_attribute).filter(|name| !name.is_empty()),
        stream: stream(&format!("{at}.stream"), table.stream)?,
        billing,
        recovery_days: Some(recovery_days).filter(|days| *days > 0),
        encryption: match table.kms_key.as_str() {
            "" => Encryption::AwsOwned,
            AWS_MANAGED => Encryption::AwsManaged,
            _ => Encryption::Customer(table.kms_key),
        },
        deletion_protection: table.deletion_protection,
        class: match table.infrequent_access {
            true => TableClass::InfrequentAccess,
            false => TableClass::Standard,
        },
        replicas: replicas.collect::<Result<_, _>>()?,
        name: table.name,
    })
}

fn key(field: &str, key: Option<v1::KeyAttribute>) -> Result<KeyAttribute, Fault> {
    let key = key.ok_or_else(|| parse::missing(field))?;
    let key_type = match v1::KeyType::try_from(key.r#type) {
        Ok(v1::KeyType::Unspecified | v1::KeyType::String) => KeyType::String,
        Ok(v1::KeyType::Number) => KeyType::Number,
        Ok(v1::KeyType::Binary) => KeyType::Binary,
        Err(_) => return Err(parse::unknown(&format!("{field}.type"), key.r#type)),
    };
    Ok(KeyAttribute { name: key.name, key_type })
}

fn stream(field: &str, value: i32) -> Result<Option<StreamView>, Fault> {
    Ok(match v1::StreamViewType::try_from(value) {
        Ok(v1::StreamViewType::Unspecified) => None,
        Ok(v1::StreamViewType::KeysOnly) => Some(StreamView::KeysOnly),
        Ok(v1::StreamViewType::NewImage) => Some(StreamView::NewImage),
        Ok(v1::StreamViewType::OldImage) => Some(StreamView::OldImage),
        Ok(v1::StreamViewType::NewAndOldImages) => Some(StreamView::Both),
        Err(_) => return Err(parse::unknown(field, value)),
    })
}

fn index_spec(at: &str, index: v1::IndexSpec) -> Result<IndexSpec, Fault> {
    let projection = match v1::ProjectionType::try_from(index.projection) {
        Ok(v1::ProjectionType::Unspecified | v1::ProjectionType::KeysOnly) => Projection::KeysOnly,
        Ok(v1::ProjectionType::All) => Projection::All,
        Ok(v1::ProjectionType::Include) => Projection::Include(index.non_key_attributes.clone()),
        Err(_) => return Err(parse::unknown(&format!("{at}.projection"), index.projection)),
    };
    if !index.non_key_attributes.is_empty() && !matches!(projection, Projection::Include(_)) {
        return Err(wrong(
            &format!("{at}.non_key_attributes"),
            "goes with the projection INCLUDE alone",
        ));
    }
    Ok(IndexSpec {
        partition_key: key(&format!("{at}.partition_key"), index.partition_key)?,
        sort_key: index
            .sort_key
            .map(|sort| key(&format!("{at}.sort_key"), Some(sort)))
            .transpose()?,
        projection,
        throughput: index
            .throughput
            .map(|units| throughput(&format!("{at}.throughput"), units))
            .transpose()?,
        name: index.name,
    })
}

fn throughput(field: &str, units: v1::Throughput) -> Result<Throughput, Fault> {
    Ok(Throughput {
        read: provision(&format!("{field}.read"), units.read)?,
        write: provision(&format!("{field}.write"), units.write)?,
    })
}

fn provision(field: &str, provision: Option<v1::Provision>) -> Result<Provision, Fault> {
    let provision = provision.ok_or_else(|| parse::missing(field))?;
    // What is negative is out of bounds as 0 is.
    let units = |units: i64| u64::try_from(units).unwrap_or(0);
    let autoscaling = provision.autoscaling.map(|scaling| Autoscaling {
        min: units(scaling.min_units),
        max: units(scaling.max_units),
        target_percent: match scaling.target_percent {
            0 => DEFAULT_TARGET_PERCENT,
            percent => u8::try_from(percent).unwrap_or(u8::MAX),
        },
    });
    Ok(Provision { units: units(provision.units), autoscaling })
}

pub fn table_set_message(set: &TableSet) -> v1::TableSet {
    v1::TableSet {
        table_set_id: set.id.as_str().to_owned(),
        tables: set.tables.iter().map(table_spec_message).collect(),
        tags: set.tags.clone(),
        version: version(set.version),
        create_time: Some(timestamp(set.created)),
        etag: set.etag(),
        backups: set.backups.map(schedule_message),
    }
}

pub fn schedule_message(schedule: BackupSchedule) -> v1::BackupSchedule {
    let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    v1::BackupSchedule {
        every_hours: number(schedule.every_hours),
        keep_days: number(schedule.keep_days),
    }
}

fn table_spec_message(table: &TableSpec) -> v1::TableSpec {
    v1::TableSpec {
        name: table.name.clone(),
        partition_key: Some(key_message(&table.partition_key)),
        sort_key: table.sort_key.as_ref().map(key_message),
        tenant_key_templates: table.tenant_keys.iter().cloned().map(String::from).collect(),
        indexes: table.indexes.iter().map(index_message).collect(),
        ttl_attribute: table.ttl_attribute.clone().unwrap_or_default(),
        stream: match table.stream {
            None => v1::StreamViewType::Unspecified,
            Some(StreamView::KeysOnly) => v1::StreamViewType::KeysOnly,
            Some(StreamView::NewImage) => v1::StreamViewType::NewImage,
            Some(StreamView::OldImage) => v1::StreamViewType::OldImage,
            Some(StreamView::Both) => v1::StreamViewType::NewAndOldImages,
        }
        .into(),
        provisioned: table.billing.throughput().map(throughput_message),
        point_in_time_recovery_days: table.recovery_days.map_or(0, i32::from),
        kms_key: match &table.encryption {
            Encryption::AwsOwned => String::new(),
            Encryption::AwsManaged => AWS_MANAGED.to_owned(),
            Encryption::Customer(arn) => arn.clone(),
        },
        deletion_protection: table.deletion_protection,
        infrequent_access: table.class == TableClass::InfrequentAccess,
        replica_regions: table.replicas.iter().map(|region| region.as_str().to_owned()).collect(),
    }
}

fn key_message(key: &KeyAttribute) -> v1::KeyAttribute {
    let key_type = match key.key_type {
        KeyType::String => v1::KeyType::String,
        KeyType::Number => v1::KeyType::Number,
        KeyType::Binary => v1::KeyType::Binary,
    };
    v1::KeyAttribute { name: key.name.clone(), r#type: key_type.into() }
}

fn index_message(index: &IndexSpec) -> v1::IndexSpec {
    let (projection, names) = match &index.projection {
        Projection::KeysOnly => (v1::ProjectionType::KeysOnly, Vec::new()),
        Projection::All => (v1::ProjectionType::All, Vec::new()),
        Projection::Include(names) => (v1::ProjectionType::Include, names.clone()),
    };
    v1::IndexSpec {
        name: index.name.clone(),
        partition_key: Some(key_message(&index.partition_key)),
        sort_key: index.sort_key.as_ref().map(key_message),
        projection: projection.into(),
        non_key_attributes: names,
        throughput: index.throughput.as_ref().map(throughput_message),
    }
}

fn throughput_message(throughput: &Throughput) -> v1::Throughput {
    let provision = |provision: &Provision| v1::Provision {
        units: version(provision.units),
        autoscaling: provision.autoscaling.map(|scaling| v1::Autoscaling {
            min_units: version(scaling.min),
            max_units: version(scaling.max),
            target_percent: i32::from(scaling.target_percent),
        }),
    };
    v1::Throughput {
        read: Some(provision(&throughput.read)),
        write: Some(provision(&throughput.write)),
    }
}

pub fn plan_message(plan: &Plan) -> Vec<v1::TablePlan> {
    let table = |(table, plan): &(String, crate::cells::TablePlan)| v1::TablePlan {
        table: table.clone(),
        changes: plan.changes.iter().map(ToString::to_string).collect(),
        conflicts: plan.conflicts.clone(),
        notes: plan.notes.clone(),
    };
    plan.tables.iter().map(table).collect()
}

pub fn operation_message(operation: &Operation) -> v1::Operation {
    let (set, set_version) = operation.goal.set();
    let steps = operation.steps.iter().map(|step| v1::OperationStep {
        table: step.table.clone(),
        done: step.done.clone(),
        time: Some(timestamp(step.at)),
    });
    v1::Operation {
        operation_id: operation.id.as_str().to_owned(),
        cell_id: operation.cell.as_str().to_owned(),
        r#type: match operation.goal {
            Goal::Provision { .. } => v1::OperationType::Provision,
            Goal::Deprovision { .. } => v1::OperationType::Deprovision,
            Goal::BackUp { .. } => v1::OperationType::BackUp,
            Goal::Restore { .. } => v1::OperationType::Restore,
            Goal::Drill { .. } => v1::OperationType::Drill,
        }
        .into(),
        state: match operation.state {
            OperationState::Running => v1::OperationState::Running,
            OperationState::Succeeded => v1::OperationState::Succeeded,
            OperationState::Failed => v1::OperationState::Failed,
        }
        .into(),
        table_set_id: set.as_str().to_owned(),
        table_set_version: version(set_version),
        steps: steps.collect(),
        steps_done: version(operation.steps_done),
        steps_left: version(operation.steps_left),
        notes: operation.notes.clone(),
        error: operation.error.clone().unwrap_or_default(),
        create_time: Some(timestamp(operation.created)),
        update_time: Some(timestamp(operation.updated)),
    }
}

/// The days that an analysis looks at.
pub fn days(field: &str, days: i32) -> Result<u32, Fault> {
    match u32::try_from(days) {
        Ok(0) => Ok(DEFAULT_DAYS),
        Ok(days) if days <= MAX_DAYS => Ok(days),
        _ => {
            let problem = format!("is {days}; 1 to {MAX_DAYS}, or 0 for {DEFAULT_DAYS}");
            Err(Fault::field(Reason::InvalidWindow, field, problem))
        }
    }
}

/// A report as a message.
pub fn details(report: &impl serde::Serialize) -> Option<Struct> {
    match message(serde_json::to_value(report).ok()?).kind? {
        Kind::StructValue(details) => Some(details),
        _ => None,
    }
}

fn message(json: serde_json::Value) -> Value {
    use serde_json::Value as Json;
    let kind = match json {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => {
            Kind::ListValue(ListValue { values: values.into_iter().map(message).collect() })
        }
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields.into_iter().map(|(name, value)| (name, message(value))).collect(),
        }),
    };
    Value { kind: Some(kind) }
}
