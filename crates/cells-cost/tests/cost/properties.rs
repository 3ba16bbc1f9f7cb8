//! What holds for every usage that is accepted.

use crate::common::*;
use cells_cost::*;
use proptest::prelude::*;

const POINTS: u32 = 30;

fn series(max: u64) -> impl Strategy<Value = Vec<Option<Units>>> {
    prop::collection::vec(
        prop::option::weighted(0.97, (0..=max).prop_map(Units::from_milli)),
        POINTS as usize,
    )
}

fn loads(max: u64) -> impl Strategy<Value = Load> {
    let throttled =
        prop::collection::vec(prop_oneof![9 => Just(0u64), 1 => 0..=max / 1000], POINTS as usize);
    (series(max), series(max), throttled).prop_map(|(reads, writes, throttled_writes)| Load {
        reads,
        writes,
        throttled_reads: vec![],
        throttled_writes,
    })
}

fn capacities(max: u64) -> impl Strategy<Value = Capacity> {
    let scaling = (1..=max, 1..=max, 20u8..=90).prop_map(|(a, b, target_percent)| Autoscaling {
        min: a.min(b),
        max: a.max(b),
        target_percent,
    });
    (1..=max, prop::option::of(scaling))
        .prop_map(|(units, autoscaling)| Capacity { units, autoscaling })
}

fn throughputs(max: u64) -> impl Strategy<Value = Throughput> {
    (capacities(max), capacities(max)).prop_map(|(read, write)| Throughput { read, write })
}

/// A table of one index: loads up to `load` thousandths of a unit a point, capacity up to `units`, sizes up to `bytes`.
fn tables(
    name: &'static str,
    load: u64,
    units: u64,
    bytes: u64,
) -> impl Strategy<Value = TableUsage> {
    let region = prop::sample::select(vec!["us-east-1", "us-west-2", "eu-west-1", "eu-central-1"]);
    let own =
        (loads(load), loads(load), prop::option::of((throughputs(units), throughputs(units))));
    let sizes = (0..=bytes, 0..=bytes, 0..=bytes, 0..=bytes);
    let rest = (any::<bool>(), any::<bool>(), any::<bool>(), 0..=bytes.min(MAX_UNITS));
    (own, region, sizes, rest).prop_map(move |((own, index, given), region, sizes, rest)| {
        let billing = given.map_or(Billing::OnDemand, |(table, _)| Billing::Provisioned(table));
        let mut table = table(billing, own);
        (table.table, table.region) = (name.into(), region.into());
        (table.bytes, table.backup_bytes, table.restored_bytes) = (sizes.0, sizes.1, sizes.2);
        (table.pitr, table.streams_reads) = (rest.0, rest.3);
        if rest.1 && region.starts_with("us") {
            table.class = TableClass::StandardIa;
        }
        if rest.2 {
            table.replicas =
                vec![if region == "us-east-1" { "us-west-2" } else { "us-east-1" }.into()];
        }
        let throughput = given.map(|(_, index)| index);
        table.indexes = vec![IndexUsage {
            index: "i".into(),
            item_count: 0,
            bytes: sizes.3,
            throughput,
            load: index,
        }];
        table
    })
}

fn cells(load: u64, units: u64, bytes: u64) -> impl Strategy<Value = CellUsage> {
    let tenants =
        prop::collection::vec((any::<bool>(), 0..=bytes, 0..=load * 10, 0..=load * 10), 0..6);
    (tables("A", load, units, bytes), tables("B", load, units, bytes), tenants).prop_map(
        |(a, b, tenants)| {
            let mut usage = cell(window(3600, POINTS), vec![a, b]);
            let tenant =
                |(i, (second, bytes, reads, writes)): (usize, (bool, u64, u64, u64))| TenantUsage {
                    tenant: format!("t{i}"),
                    table: if second { "B" } else { "A" }.into(),
                    item_count: 0,
                    bytes,
                    reads: Units::from_milli(reads),
                    writes: Units::from_milli(writes),
                };
            usage.tenants = tenants.into_iter().enumerate().map(tenant).collect();
            usage
        },
    )
}

/// Up to 1,000 units a second, 2,000 units, 10 TiB.
fn usual() -> impl Strategy<Value = CellUsage> {
    cells(3_600_000_000, 2_000, 10 << 40)
}

/// All that is accepted.
fn extreme() -> impl Strategy<Value = CellUsage> {
    let edge = prop_oneof![Just(MAX_CAPACITY * 3_600_000), Just(1), Just(0)];
    (cells(MAX_CAPACITY * 3_600_000 / 10, MAX_CAPACITY, MAX_BYTES), edge).prop_map(
        |(mut usage, edge)| {
            usage.tables[0].load.writes.fill(Some(Units::from_milli(edge)));
            usage.tables[1].bytes = MAX_BYTES;
            usage
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_shown_formula_is_worth_what_it_shows(usage in usual()) {
        prop_assert!(check_formulas(&report(&usage).to_string()) > 20);
    }

    #[test]
    fn a_recommendation_costs_less_and_throttles_no_more(usage in usual()) {
        for table in &report(&usage).tables {
            let mode = table.mode.as_ref().unwrap();
            let present = &mode.options[0];
            prop_assert_eq!(present.mode, Mode::Present);
            if let Verdict::Change { to, saving_month, saving } = &mode.verdict {
                let chosen = mode.options.iter().find(|option| option.mode == *to).unwrap();
                prop_assert!(chosen.cost < present.cost && chosen.throttled <= present.throttled);
                prop_assert_eq!(*saving_month, present.month - chosen.month);
                prop_assert!(*saving >= modes::MIN_SAVING);
            }
            for option in mode.options.iter().filter(|option| option.mode != Mode::Present && option.mode != Mode::OnDemand) {
                prop_assert_eq!(option.throttled, Units::ZERO, "right-sized capacity throttles nothing");
            }
            let class = table.class.as_ref().unwrap();
            if class.change {
                prop_assert!(class.other_month.unwrap() < table.cost.as_ref().unwrap().month);
            }
        }
    }

    #[test]
    fn reserved_costs_no_more_than_the_same_capacity_without(usage in usual()) {
        for table in &report(&usage).tables {
            let options = &table.mode.as_ref().unwrap().options;
            let Some(without) = options.iter().find(|option| option.mode == Mode::Provisioned) else { continue };
            for option in options.iter().filter(|option| matches!(option.mode, Mode::ProvisionedReserved(_))) {
                // The upfront price is rounded once for all blocks.
                prop_assert!(option.cost <= without.cost + Usd::from_picos(1_000_000));
            }
        }
    }

    #[test]
    fn more_use_never_costs_less(usage in usual(), at in 0..POINTS as usize, more in 1u64..1_000_000_000, bytes in 1u64..1 << 40) {
        let before = report(&usage);
        let mut used = usage.clone();
        let grown = used.tables[0].load.writes[at].unwrap_or_default().plus(Units::from_milli(more));
        // With autoscaling a peak can end a run of quiet minutes before the fall it led to: cost is not monotone there.
        let scales = |c: Capacity| c.autoscaling.is_some();
        if !matches!(used.tables[0].billing, Billing::Provisioned(t) if scales(t.write)) {
            used.tables[0].load.writes[at] = Some(grown);
        }
        used.tables[1].bytes += bytes;
        let after = report(&used);
        prop_assert!(after.total > before.total);
    }

    #[test]
    fn shares_and_the_residual_are_the_total(usage in usual()) {
        let report = report(&usage);
        let Some(shares) = &report.shares else { return Ok(()) };
        let sum: Usd = shares.tenants.iter().map(|tenant| tenant.amount).sum();
        prop_assert_eq!(sum + shares.residual, report.total);
        prop_assert!(shares.residual >= Usd::ZERO, "{} of {}", shares.residual, report.total);
        prop_assert!(shares.tenants.iter().all(|tenant| tenant.amount >= Usd::ZERO));
    }

    #[test]
    fn lines_add_up(usage in usual()) {
        let report = report(&usage);
        let tables: Usd = report.tables.iter().filter_map(|t| t.cost.as_ref()).map(|c| c.total).sum();
        prop_assert_eq!(tables, report.total);
        for cost in report.tables.iter().filter_map(|t| t.cost.as_ref()) {
            prop_assert_eq!(cost.lines.iter().map(|line| line.amount).sum::<Usd>(), cost.total);
        }
        let worst = report.tables.iter().flat_map(|t| &t.lanes).map(|lane| lane.utilisation).max().unwrap();
        prop_assert_eq!(report.utilisation, worst);
    }

    #[test]
    fn no_input_ends_in_a_panic_or_saturates(usage in extreme()) {
        let report = report(&usage);
        prop_assert!(report.total >= Usd::ZERO && report.total < usd("999999999999"));
        prop_assert!(check_formulas(&report.to_string()) > 20);
        let json = serde_json::to_string(&report).unwrap();
        prop_assert!(json.contains("\"formula\""));
        if let Some(shares) = &report.shares {
            prop_assert!(shares.residual >= Usd::ZERO);
        }
    }

    #[test]
    fn no_text_makes_the_price_reader_panic(text in ".{0,200}", cut in 0usize..6000) {
        let _ = PriceTable::parse(&text);
        let file = include_str!("../../../../prices/aws-dynamodb-2026-10-04.toml");
        if let (Some(head), Some(tail)) = (file.get(..cut), file.get(cut..)) {
            let _ = PriceTable::parse(&format!("{head}{text}{tail}"));
        }
    }
}
