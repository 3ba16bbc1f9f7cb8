//! What tenants have in a cell, and what the cell was billed: gathered here, shared out and compared by `cells-cost`.
//!
//! DynamoDB counts nothing by tenant. What a tenant stores is measured, by reading its partitions; reads and writes are then taken to be
//! in proportion to that, which the answer calls an estimate. A tenant that writes much and stores little costs more than it says.

use std::collections::BTreeMap;

use cells_cost::{Load, Report, TableUsage, TenantUsage, Units, Usd};
use futures::{StreamExt, TryStreamExt};

use super::Accounts;
use crate::cells::cloud::{CloudError, TableRef};
use crate::cells::table_set::TableSpec;
use crate::domain::PartitionKey;

/// Tenants of one request.
pub const MAX_TENANTS: usize = 100;

/// Pages of one tenant that are read, 1 MB each: some 128 read units a page.
pub const MAX_PAGES: usize = 16;

/// Partitions that are read at the same time.
const CONCURRENCY: usize = 8;

/// What a partition holds.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stored {
    pub items: u64,
    pub bytes: u64,
    /// What it took to find out.
    pub read_units: f64,
    /// Pages that were read.
    pub pages: usize,
    /// Whether there is more.
    pub more: bool,
}

/// What Cost Explorer says of a cell.
#[derive(Debug, Clone, PartialEq)]
pub enum Billed {
    Amount {
        amount: Usd,
        /// Cost Explorer calls some of it estimated itself: the days are not closed yet.
        preliminary: bool,
    },
    /// Nothing at all was billed under the cell's tag.
    NoData,
    /// It could not be asked, or does not answer.
    Unreachable { code: String },
}

/// A tenant, its part, and what it rests on.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantShare {
    pub tenant: PartitionKey,
    pub amount: Usd,
    pub items: u64,
    pub bytes: u64,
    /// The tenant has more than is read: everything here is at least so much.
    pub lower_bound: bool,
}

impl Stored {
    pub(super) fn add(&mut self, other: &Self) {
        self.items += other.items;
        self.bytes += other.bytes;
        self.read_units += other.read_units;
        self.pages += other.pages;
        self.more |= other.more;
    }
}

/// Reads a table's partitions of tenants, each until its pages are used up.
pub(super) async fn measure(
    accounts: &dyn Accounts,
    table: &TableRef,
    spec: &TableSpec,
    tenants: &[PartitionKey],
    pages: &[usize],
) -> Result<Vec<Stored>, CloudError> {
    let of_tenant = async |(tenant, pages): (&PartitionKey, &usize)| {
        let mut all = Stored::default();
        for template in &spec.tenant_keys {
            let left = pages.saturating_sub(all.pages);
            if left == 0 {
                all.more = true;
                break;
            }
            let partition = template.partition(tenant);
            let one = accounts.stored(table, &spec.partition_key.name, &partition, left).await?;
            all.add(&one);
        }
        Ok::<_, CloudError>(all)
    };
    let asked = futures::stream::iter(tenants.iter().zip(pages).map(of_tenant));
    asked.buffered(CONCURRENCY).try_collect().await
}

/// What each tenant is taken to have and to use of a table and its indexes.
pub(super) fn usages(
    table: &TableUsage,
    tenants: &[PartitionKey],
    stored: &[Stored],
) -> Vec<TenantUsage> {
    let indexes: u64 = table.indexes.iter().map(|index| index.bytes).sum();
    // An index holds of each tenant as large a part as the table does.
    let with_indexes =
        |bytes: u64| bytes.saturating_add(part(indexes, bytes.min(table.bytes), table.bytes));
    let claimed: u64 = stored.iter().map(|stored| with_indexes(stored.bytes)).sum();
    let whole = (table.bytes.saturating_add(indexes)).max(claimed);
    let loads = [&table.load].into_iter().chain(table.indexes.iter().map(|index| &index.load));
    let sum = |points: fn(&Load) -> &[Option<Units>]| -> u64 {
        let points = loads.clone().flat_map(points).flatten();
        points.map(|units| units.milli()).sum()
    };
    let (reads, writes) = (sum(|load| &load.reads), sum(|load| &load.writes));
    let of = |(tenant, stored): (&PartitionKey, &Stored)| {
        let bytes = with_indexes(stored.bytes);
        TenantUsage {
            tenant: tenant.as_str().to_owned(),
            table: table.table.clone(),
            item_count: stored.items,
            bytes,
            reads: Units::from_milli(part(reads, bytes, whole)),
            writes: Units::from_milli(part(writes, bytes, whole)),
        }
    };
    tenants.iter().zip(stored).map(of).collect()
}

/// `amount` × `part` ÷ `whole`, rounded down; zero of nothing.
fn part(amount: u64, part: u64, whole: u64) -> u64 {
    let product = u128::from(amount) * u128::from(part);
    product.checked_div(u128::from(whole)).map_or(0, |n| u64::try_from(n).unwrap_or(u64::MAX))
}

/// Each tenant with its part of the report.
pub(super) fn shares(
    report: &Report,
    tenants: &[PartitionKey],
    stored: &[Stored],
) -> Vec<TenantShare> {
    let amounts = report.shares.iter().flat_map(|shares| &shares.tenants);
    let amounts: BTreeMap<_, _> = amounts.map(|cost| (cost.tenant.as_str(), cost.amount)).collect();
    let of = |(tenant, stored): (&PartitionKey, &Stored)| TenantShare {
        tenant: tenant.clone(),
        amount: amounts.get(tenant.as_str()).copied().unwrap_or_default(),
        items: stored.items,
        bytes: stored.bytes,
        lower_bound: stored.more,
    };
    tenants.iter().zip(stored).map(of).collect()
}

/// What the reader has to know, besides the figures.
pub(super) fn notes(
    tenants: &[TenantShare],
    read_units: f64,
    billed: Option<&Billed>,
) -> Vec<String> {
    let mut notes = Vec::new();
    if !tenants.is_empty() {
        let count = tenants.len();
        notes.push(format!("measuring {count} partition keys took {read_units} read units"));
    }
    for share in tenants.iter().filter(|share| share.lower_bound) {
        let tenant = &share.tenant;
        notes.push(format!(
            "{tenant} has more than the {MAX_PAGES} MB that are read: its bytes and its share are lower bounds"
        ));
    }
    match billed {
        Some(Billed::NoData) => notes.push(NO_DATA.to_owned()),
        Some(Billed::Unreachable { code }) => {
            notes.push(format!("Cost Explorer was not reached: {code}"));
        }
        Some(Billed::Amount { preliminary: true, .. }) => {
            notes.push("Cost Explorer calls some of its days preliminary".to_owned());
        }
        Some(Billed::Amount { .. }) | None => {}
    }
    notes
}

/// What to do where nothing is billed under the tag.
pub const NO_DATA: &str =
    "Cost Explorer has no data: activate the tag `cell` as cost-allocation tag, and wait a day";

#[cfg(test)]
mod tests {
    use super::*;
    use cells_cost::{Billing, IndexUsage, TableClass};

    #[test]
    fn units_are_shared_by_stored_bytes_and_never_more_than_there_are() {
        let load = |reads| Load {
            reads: vec![Some(Units::from_milli(reads)), None],
            writes: vec![Some(Units::from_milli(4_000))],
            ..Load::default()
        };
        let index = IndexUsage {
            index: "i".into(),
            item_count: 1,
            bytes: 1_000,
            throughput: None,
            load: load(1_000),
        };
        let table = |bytes| TableUsage {
            table: "t".into(),
            region: "eu-west-1".into(),
            billing: Billing::OnDemand,
            class: TableClass::Standard,
            item_count: 10,
            bytes,
            load: load(9_000),
            indexes: vec![index.clone()],
            pitr: false,
            backup_bytes: 0,
            restored_bytes: 0,
            streams_reads: 0,
            replicas: vec![],
        };
        let tenants = ["a", "b"].map(|name| PartitionKey::new(name).unwrap());
        let stored = |bytes| Stored { items: 1, bytes, ..Stored::default() };
        // A tenth and a fifth, of the index, too.
        let found = usages(&table(2_000), &tenants, &[stored(200), stored(400)]);
        let of = |usage: &TenantUsage| (usage.bytes, usage.reads.milli(), usage.writes.milli());
        assert_eq!(
            found.iter().map(of).collect::<Vec<_>>(),
            [(300, 1_000, 800), (600, 2_000, 1_600)]
        );
        // DescribeTable is hours behind: what was measured is the whole.
        let found = usages(&table(0), &tenants, &[stored(1_000), stored(3_000)]);
        assert_eq!(found.iter().map(|usage| usage.reads.milli()).sum::<u64>(), 10_000);
    }

    /// Partitions without an end.
    struct Endless;

    #[async_trait::async_trait]
    impl crate::cells::capacity::Meters for Endless {
        async fn metered(
            &self,
            _: &TableRef,
            _: &[String],
            _: &cells_cost::Window,
        ) -> Result<Vec<crate::cells::capacity::Metered>, CloudError> {
            Err(CloudError::Unsupported)
        }
    }

    #[async_trait::async_trait]
    impl Accounts for Endless {
        async fn stored(
            &self,
            _: &TableRef,
            key: &str,
            partition: &str,
            pages: usize,
        ) -> Result<Stored, CloudError> {
            assert_eq!((key, partition), ("PK", "CUSTOMER#a"));
            Ok(Stored { items: 1, bytes: 10, read_units: 0.5, pages, more: true })
        }

        async fn billed(&self, _: &crate::domain::CellId, _: i64, _: i64) -> Billed {
            Billed::NoData
        }
    }

    #[tokio::test]
    async fn a_tenant_without_an_end_is_read_so_far_and_no_further() {
        let mut spec = crate::cells::fixtures::table("t");
        spec.tenant_keys = ["CUSTOMER#{partition_key}", "ORDER#{partition_key}"]
            .map(|text| crate::cells::KeyTemplate::new(text).unwrap())
            .into();
        let region = crate::domain::Region::new("eu-west-1").unwrap();
        let table = TableRef { region, name: "t".into() };
        let tenants = [PartitionKey::new("a").unwrap()];
        let found = measure(&Endless, &table, &spec, &tenants, &[MAX_PAGES]).await.unwrap();
        assert_eq!((found[0].pages, found[0].more, found[0].items), (MAX_PAGES, true, 1));
        // Nothing is left for the next table, which says so.
        let found = measure(&Endless, &table, &spec, &tenants, &[0]).await.unwrap();
        assert_eq!((found[0].pages, found[0].more), (0, true));
    }
}
