//! Usage that must be refused, and by which field's name.

use crate::common::*;
use cells_cost::*;

#[test]
fn what_is_wrong_is_refused_by_name() {
    type Change = fn(&mut CellUsage);
    let table: &[(Change, &str)] = &[
        (|u| u.cell.clear(), "cell"),
        (|u| u.window.period_seconds = 90, "window.period_seconds"),
        (|u| u.window.period_seconds = 0, "window.period_seconds"),
        (|u| u.window.period_seconds = 7200, "window.period_seconds"),
        (|u| u.window.points = 0, "window.points"),
        (|u| u.window.points = u32::MAX, "window.points"),
        (|u| u.window.start = 30, "window.start"),
        (|u| u.window.start = i64::MAX, "window.start"),
        (|u| u.window.start = -60, "window.start"),
        (|u| u.quota.write = 0, "quota.write"),
        (|u| u.tables[0].table = "a\nb".into(), "tables[0].table"),
        (|u| u.tables[0].region.clear(), "tables[0].region"),
        (|u| u.tables[0].bytes = u64::MAX, "tables[0].bytes"),
        (|u| u.tables[0].streams_reads = u64::MAX, "tables[0].streams_reads"),
        (|u| u.tables[0].load.reads.truncate(2), "tables[0].load.reads"),
        (|u| u.tables[0].load.throttled_writes = vec![1], "tables[0].load.throttled_writes"),
        (
            |u| u.tables[0].load.writes[1] = Some(Units::from_milli(u64::MAX)),
            "tables[0].load.writes[1]",
        ),
        (|u| u.tables[0].billing = provisioned(0, 1), "tables[0].billing.read.units"),
        (|u| u.tables[0].indexes[0].throughput = None, "tables[0].indexes[0].throughput"),
        (|u| u.tables[0].billing = Billing::OnDemand, "tables[0].indexes[0].throughput"),
        (|u| u.tables[0].indexes[0].load.writes.clear(), "tables[0].indexes[0].load.writes"),
        (|u| scaling(u, 5, 4, 70), "tables[0].billing.write.autoscaling.min"),
        (|u| scaling(u, 1, 0, 70), "tables[0].billing.write.autoscaling.max"),
        (|u| scaling(u, 1, 4, 19), "tables[0].billing.write.autoscaling.target_percent"),
        (|u| scaling(u, 1, 4, 91), "tables[0].billing.write.autoscaling.target_percent"),
        (|u| u.tables[0].replicas = vec!["us-east-1".into()], "tables[0].replicas[0]"),
        (|u| u.tables.push(u.tables[0].clone()), "tables[1].table"),
        (|u| u.tables = vec![table_with_index(); MAX_TABLES + 1], "tables"),
        (too_many_lane_minutes, "tables"),
        (|u| u.tenants[0].table = "Other".into(), "tenants[0].table"),
        (|u| u.tenants[0].bytes = u64::MAX, "tenants[0].bytes"),
        (|u| u.tenants[0].reads = Units::from_milli(u64::MAX), "tenants[0].reads"),
        (|u| u.tenants.push(u.tenants[0].clone()), "tenants[1]"),
    ];
    let mut good = cell(window(60, 10), vec![table_with_index()]);
    good.tenants = vec![TenantUsage {
        tenant: "t".into(),
        table: "Orders-cell-a".into(),
        item_count: 0,
        bytes: 0,
        reads: Units::ZERO,
        writes: Units::ZERO,
    }];
    good.check().unwrap();
    for (change, field) in table {
        let mut bad = good.clone();
        change(&mut bad);
        let error = analyze(&PriceTable::bundled().unwrap(), &bad).unwrap_err();
        assert_eq!(error.field, *field, "{error}");
        assert!(!error.problem.is_empty());
    }
}

/// Refused before any series is looked at: these are too short as well.
fn too_many_lane_minutes(usage: &mut CellUsage) {
    usage.window = window(3600, 24 * 31);
    usage.tables = vec![table_with_index(); 57];
}

fn table_with_index() -> TableUsage {
    let mut table = table(provisioned(1, 1), load(10, 0, 0));
    let throughput = Some(Throughput { read: fixed(1), write: fixed(1) });
    table.indexes = vec![IndexUsage {
        index: "CellIdIndex".into(),
        item_count: 0,
        bytes: 0,
        throughput,
        load: load(10, 0, 0),
    }];
    table
}

fn scaling(usage: &mut CellUsage, min: u64, max: u64, target_percent: u8) {
    let write = Capacity { units: 1, autoscaling: Some(Autoscaling { min, max, target_percent }) };
    usage.tables[0].billing = Billing::Provisioned(Throughput { read: fixed(1), write });
}

#[test]
fn cloudwatch_s_floats_are_taken_if_they_are_numbers() {
    assert_eq!(Units::from_f64(0.5), Some(Units::from_milli(500)));
    for bad in [f64::NAN, f64::INFINITY, -0.1, 1e300] {
        assert_eq!(Units::from_f64(bad), None, "{bad}");
    }
}
