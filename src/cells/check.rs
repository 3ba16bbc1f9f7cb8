//! What AWS would refuse, refused before the first call, with the field's name.
//!
//! Source of the limits: the DynamoDB developer guide, "Quotas" and "Naming rules", and the API references of CreateTable,
//! UpdateContinuousBackups, RegisterScalableTarget and PutScalingPolicy.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use super::table_set::{
    Autoscaling, BackupSchedule, Billing, Encryption, KeyAttribute, KeyType, Projection, Provision,
    StreamView, TableSet, TableSpec, Throughput,
};
use crate::domain::{Cell, CellId};

/// Tables of a set. Ours, not AWS's: all of a cell's tables are looked at together.
pub const MAX_TABLES: usize = 25;
const TABLE_NAME: RangeInclusive<usize> = 3..=255;
const INDEX_NAME: RangeInclusive<usize> = 3..=255;
/// Longest prefix and cell id.
const AROUND_NAME: usize = 64 + 1 + CELL_ID_BYTES;
const CELL_ID_BYTES: usize = 63;
const MAX_INDEXES: usize = 20;
const MAX_ATTRIBUTE_NAME: usize = 255;
const MAX_PROJECTED: usize = 100;
const MAX_TENANT_KEYS: usize = 10;
/// Of AWS's 50 a few are left to others and to ourselves.
const MAX_TAGS: usize = 40;
const UNITS: RangeInclusive<u64> = 1..=40_000;
const TARGET_PERCENT: RangeInclusive<u8> = 20..=90;
const RECOVERY_DAYS: RangeInclusive<u8> = 1..=35;
const MAX_REPLICAS: usize = 10;
/// Ours, not AWS's: backups are kept for as long as one likes, and made as often.
const EVERY_HOURS: RangeInclusive<u32> = 1..=720;
const KEEP_DAYS: RangeInclusive<u32> = 1..=3650;
/// Backups of a table that a schedule keeps: they are listed with every look.
const MAX_KEPT: u32 = 1000;

/// Tags that we set.
pub const OUR_TAGS: [&str; 3] = ["cell", "table-set", "managed-by"];

/// A field that AWS would refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Such as `table_set.tables[0].name`.
    pub field: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

#[derive(Default)]
struct Checked {
    violations: Vec<Violation>,
}

impl Checked {
    fn no(&mut self, field: impl Into<String>, problem: impl Into<String>) {
        self.violations.push(Violation { field: field.into(), problem: problem.into() });
    }

    fn require(&mut self, holds: bool, field: &str, problem: impl Into<String>) {
        if !holds {
            self.no(field, problem);
        }
    }
}

/// What is wrong with a set, whichever the cell.
pub fn table_set(set: &TableSet) -> Vec<Violation> {
    let mut checked = Checked::default();
    let many = set.tables.len();
    checked.require(
        (1..=MAX_TABLES).contains(&many),
        "table_set.tables",
        format!("holds {many} tables; 1 to {MAX_TABLES} are allowed"),
    );
    for (at, table) in set.tables.iter().enumerate() {
        let field = format!("table_set.tables[{at}]");
        check_table(&mut checked, &field, table);
        if set.tables[..at].iter().any(|other| other.name == table.name) {
            checked.no(format!("{field}.name"), format!("{:?} is there twice", table.name));
        }
    }
    check_tags(&mut checked, &set.tags);
    if let Some(schedule) = &set.backups {
        check_backups(&mut checked, schedule);
    }
    checked.violations
}

/// What is wrong with a set for one cell.
pub fn for_cell(set: &TableSet, prefix: &str, cell: &Cell) -> Vec<Violation> {
    let mut checked = Checked::default();
    for (at, table) in set.tables.iter().enumerate() {
        let name = table.table_name(prefix, &cell.id);
        checked.require(
            name.len() <= *TABLE_NAME.end(),
            &format!("table_set.tables[{at}].name"),
            format!("makes the table name {name}, longer than 255 characters"),
        );
        if table.replicas.contains(&cell.region) {
            checked.no(
                format!("table_set.tables[{at}].replica_regions"),
                format!("names {}, which is the Region of {} itself", cell.region, cell.id),
            );
        }
    }
    checked.violations
}

fn check_backups(checked: &mut Checked, schedule: &BackupSchedule) {
    let BackupSchedule { every_hours, keep_days } = *schedule;
    let field = "table_set.backups.every_hours";
    let every = EVERY_HOURS.contains(&every_hours);
    checked.require(every, field, format!("is {every_hours}; 1 to 720 are allowed"));
    let field = "table_set.backups.keep_days";
    if !KEEP_DAYS.contains(&keep_days) {
        return checked.no(field, format!("is {keep_days}; 1 to 3,650 are allowed"));
    }
    let hours = keep_days.saturating_mul(24);
    checked.require(
        hours >= every_hours,
        field,
        "is less than the time between two backups: keep them for longer, or make more",
    );
    let kept = hours / every_hours.max(1);
    checked.require(
        !every || kept <= MAX_KEPT,
        field,
        format!("keeps {kept} backups of each table; at most {MAX_KEPT} are allowed"),
    );
}

fn name_allowed(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

fn check_table(checked: &mut Checked, field: &str, table: &TableSpec) {
    let name = format!("{field}.name");
    checked.require(
        name_allowed(&table.name)
            && !table.name.is_empty()
            && table.name.len() <= TABLE_NAME.end() - AROUND_NAME,
        &name,
        format!("is not 1 to {} of [A-Za-z0-9_.-]", TABLE_NAME.end() - AROUND_NAME),
    );
    let reserved = ["CellMappings", "CellControl"];
    checked.require(!reserved.contains(&table.name.as_str()), &name, "is a table of the directory");
    let mut attributes = BTreeMap::new();
    check_key(checked, field, &mut attributes, &table.partition_key, table.sort_key.as_ref());
    checked.require(
        table.partition_key.key_type == KeyType::String,
        &format!("{field}.partition_key.type"),
        "is not STRING: tenants are found by text",
    );
    let templates = format!("{field}.tenant_key_templates");
    let many = table.tenant_keys.len();
    checked.require(
        (1..=MAX_TENANT_KEYS).contains(&many),
        &templates,
        format!("holds {many} templates; 1 to {MAX_TENANT_KEYS} are allowed"),
    );
    for (at, template) in table.tenant_keys.iter().enumerate() {
        if table.tenant_keys[..at].iter().any(|other| other.meets(template)) {
            checked.no(
                format!("{templates}[{at}]"),
                "can make one tenant's partition of another's by an earlier template; give them different beginnings",
            );
        }
    }
    check_indexes(checked, field, table, &mut attributes);
    if let Some(ttl) = &table.ttl_attribute {
        let field = format!("{field}.ttl_attribute");
        checked.require(
            (1..=MAX_ATTRIBUTE_NAME).contains(&ttl.len()),
            &field,
            "is not 1 to 255 bytes",
        );
        checked.require(
            !attributes.contains_key(ttl),
            &field,
            "is a key: the storage could not delete by it",
        );
    }
    check_billing(checked, field, table);
    if let Some(days) = table.recovery_days {
        checked.require(
            RECOVERY_DAYS.contains(&days),
            &format!("{field}.point_in_time_recovery_days"),
            format!("is {days}; 1 to 35, or 0 for none"),
        );
    }
    check_encryption_and_replicas(checked, field, table);
}

fn check_key(
    checked: &mut Checked,
    field: &str,
    attributes: &mut BTreeMap<String, KeyType>,
    partition: &KeyAttribute,
    sort: Option<&KeyAttribute>,
) {
    for (part, attribute) in [("partition_key", Some(partition)), ("sort_key", sort)] {
        let Some(attribute) = attribute else { continue };
        let field = format!("{field}.{part}.name");
        checked.require(
            (1..=MAX_ATTRIBUTE_NAME).contains(&attribute.name.len()),
            &field,
            "is not 1 to 255 bytes",
        );
        let known = attributes.insert(attribute.name.clone(), attribute.key_type);
        if known.is_some_and(|known| known != attribute.key_type) {
            checked.no(&field, format!("{:?} has another type in another key", attribute.name));
        }
    }
    if sort.is_some_and(|sort| sort.name == partition.name) {
        checked.no(format!("{field}.sort_key.name"), "is the partition key, too");
    }
}

fn check_indexes(
    checked: &mut Checked,
    field: &str,
    table: &TableSpec,
    attributes: &mut BTreeMap<String, KeyType>,
) {
    let many = table.indexes.len();
    checked.require(
        many <= MAX_INDEXES,
        &format!("{field}.indexes"),
        format!("holds {many} indexes; at most {MAX_INDEXES} are allowed"),
    );
    let mut projected = 0;
    for (at, index) in table.indexes.iter().enumerate() {
        let field = format!("{field}.indexes[{at}]");
        checked.require(
            name_allowed(&index.name) && INDEX_NAME.contains(&index.name.len()),
            &format!("{field}.name"),
            "is not 3 to 255 of [A-Za-z0-9_.-]",
        );
        if table.indexes[..at].iter().any(|other| other.name == index.name) {
            checked.no(format!("{field}.name"), format!("{:?} is there twice", index.name));
        }
        check_key(checked, &field, attributes, &index.partition_key, index.sort_key.as_ref());
        if let Projection::Include(names) = &index.projection {
            projected += names.len();
            let field = format!("{field}.non_key_attributes");
            checked.require(
                !names.is_empty(),
                &field,
                "is empty; name some, or project KEYS_ONLY or ALL",
            );
            let bad = names.iter().any(|name| !(1..=MAX_ATTRIBUTE_NAME).contains(&name.len()));
            checked.require(!bad, &field, "holds a name that is not 1 to 255 bytes");
        }
        let provisioned = matches!(table.billing, Billing::Provisioned(_));
        checked.require(
            index.throughput.is_some() == provisioned,
            &format!("{field}.throughput"),
            "is to be given if and only if the table is provisioned",
        );
        if let Some(throughput) = &index.throughput {
            check_throughput(checked, &format!("{field}.throughput"), throughput);
        }
    }
    checked.require(
        projected <= MAX_PROJECTED,
        &format!("{field}.indexes"),
        format!(
            "project {projected} attributes by name; at most {MAX_PROJECTED} in all are allowed"
        ),
    );
}

fn check_throughput(checked: &mut Checked, field: &str, throughput: &Throughput) {
    for (name, Provision { units, autoscaling }) in
        [("read", &throughput.read), ("write", &throughput.write)]
    {
        let field = format!("{field}.{name}");
        checked.require(
            UNITS.contains(units),
            &format!("{field}.units"),
            format!("is {units}; 1 to {}", UNITS.end()),
        );
        let Some(Autoscaling { min, max, target_percent }) = autoscaling else { continue };
        checked.require(
            UNITS.contains(min) && min <= max && UNITS.contains(max),
            &format!("{field}.autoscaling.max_units"),
            format!(
                "min_units {min} and max_units {max} must be 1 to {} and in order",
                UNITS.end()
            ),
        );
        checked.require(
            (min..=max).contains(&units),
            &format!("{field}.units"),
            format!("is {units}, not between min_units {min} and max_units {max}"),
        );
        checked.require(
            TARGET_PERCENT.contains(target_percent),
            &format!("{field}.autoscaling.target_percent"),
            format!("is {target_percent}; 20 to 90"),
        );
    }
}

fn check_billing(checked: &mut Checked, field: &str, table: &TableSpec) {
    if let Billing::Provisioned(throughput) = &table.billing {
        check_throughput(checked, &format!("{field}.provisioned"), throughput);
    }
}

fn check_encryption_and_replicas(checked: &mut Checked, field: &str, table: &TableSpec) {
    let customer = match &table.encryption {
        Encryption::Customer(arn) => {
            let whole = arn.starts_with("arn:")
                && arn.contains(":key/")
                && arn.split(':').nth(2) == Some("kms")
                && arn.len() <= 2048;
            checked.require(
                whole,
                &format!("{field}.kms_key"),
                "is not the ARN of a key; name one, AWS_MANAGED, or nothing for AWS's own",
            );
            Some(arn)
        }
        Encryption::AwsOwned | Encryption::AwsManaged => None,
    };
    if table.replicas.is_empty() {
        return;
    }
    let field = format!("{field}.replica_regions");
    checked.require(
        table.replicas.len() <= MAX_REPLICAS,
        &field,
        format!("names more than {MAX_REPLICAS} Regions"),
    );
    for (at, region) in table.replicas.iter().enumerate() {
        if table.replicas[..at].contains(region) {
            checked.no(&field, format!("names {region} twice"));
        }
    }
    checked.require(
        table.stream == Some(StreamView::Both),
        &field,
        "need the stream NEW_AND_OLD_IMAGES, by which a global table replicates",
    );
    checked.require(
        customer.is_none(),
        &field,
        "cannot be had with one key's ARN: a replica needs a key of its own Region; use AWS_MANAGED or AWS's own",
    );
    if let Billing::Provisioned(throughput) = &table.billing {
        checked.require(
            throughput.write.autoscaling.is_some(),
            &field,
            "need autoscaled writes, or on-demand billing: replicas must take what the others do",
        );
    }
}

fn check_tags(checked: &mut Checked, tags: &BTreeMap<String, String>) {
    let field = "table_set.tags";
    checked.require(
        tags.len() <= MAX_TAGS,
        field,
        format!("holds {} tags; at most {MAX_TAGS} are allowed", tags.len()),
    );
    let allowed = |text: &str| {
        text.chars().all(|c| c.is_alphanumeric() || c.is_whitespace() || "_.:/=+-@".contains(c))
    };
    for (key, value) in tags {
        let shown: String = key.chars().take(64).collect();
        let ok = (1..=128).contains(&key.chars().count()) && allowed(key);
        checked.require(
            ok,
            field,
            format!("has the key {shown:?}: 1 to 128 letters, digits, spaces and _.:/=+-@"),
        );
        checked.require(
            !key.to_ascii_lowercase().starts_with("aws:") && !OUR_TAGS.contains(&key.as_str()),
            field,
            format!("has the key {shown:?}, which is reserved"),
        );
        checked.require(
            value.chars().count() <= 256 && allowed(value),
            field,
            format!("has a value of {shown:?} that is not at most 256 letters, digits, spaces and _.:/=+-@"),
        );
    }
}

/// What the tags of a cell's table must say.
pub fn tags_of(set: &TableSet, cell: &CellId) -> BTreeMap<String, String> {
    let mut tags = set.tags.clone();
    let ours = [cell.as_str(), set.id.as_str(), "cell-directory"];
    tags.extend(
        OUR_TAGS.iter().zip(ours).map(|(key, value)| ((*key).to_owned(), value.to_owned())),
    );
    tags
}
