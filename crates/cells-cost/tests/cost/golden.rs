//! Cases worked out by hand, from the prices of us-east-1 as AWS writes them.

use crate::common::*;
use cells_cost::*;

fn amount(report: &Report, kind: CostKind) -> Usd {
    let lines = &report.tables[0].cost.as_ref().unwrap().lines;
    lines.iter().filter(|line| line.kind == kind).map(|line| line.amount).sum()
}

#[test]
fn a_provisioned_table_for_30_days() {
    let mut table = table(provisioned(200, 100), load(720, 3600, 3600));
    table.bytes = 50 * GB;
    table.pitr = true;
    table.backup_bytes = 10 * GB;
    table.restored_bytes = 10 * GB;
    table.streams_reads = 1_000_000;
    let report = report(&cell(window(3600, 720), vec![table]));
    for (kind, expected) in [
        (CostKind::Reads, "18.72"),  // 720 × 200 × 0.00013
        (CostKind::Writes, "46.80"), // 720 × 100 × 0.00065
        (CostKind::Storage, "12.50"),
        (CostKind::Pitr, "10"),
        (CostKind::Backups, "1"),
        (CostKind::Restores, "1.5"),
        (CostKind::Streams, "0.2"),
    ] {
        assert_eq!(amount(&report, kind), usd(expected), "{kind:?}");
    }
    assert_eq!((report.total, report.month), (usd("90.72"), usd("90.72")));
    let text = report.to_string();
    assert!(text.contains("720 h × 100 WCU × $0.00065 = $46.80"), "{text}");
    assert!(check_formulas(&text) > 30);
}

#[test]
fn an_on_demand_table_with_an_index_and_replicas() {
    // A day; a million writes and ten million reads; an index that took half a million writes.
    let mut table = table(Billing::OnDemand, load(1440, 0, 0));
    table.load.writes[0] = Some(Units::from_whole(1_000_000));
    table.load.reads[1] = Some(Units::from_milli(10_000_000_500));
    let mut index = load(1440, 0, 0);
    index.writes[5] = Some(Units::from_whole(500_000));
    table.indexes = vec![IndexUsage {
        index: "CellIdIndex".into(),
        item_count: 1,
        bytes: 10 * GB,
        throughput: None,
        load: index,
    }];
    table.bytes = 20 * GB;
    table.replicas = vec!["eu-west-1".into()];
    let report = report(&cell(window(60, 1440), vec![table]));
    assert_eq!(amount(&report, CostKind::Reads), usd("1.2500000625"));
    assert_eq!(amount(&report, CostKind::Writes), usd("0.9375")); // 0.625 + 0.3125
    assert_eq!(amount(&report, CostKind::ReplicaWrites), usd("1.0575")); // 0.705 + 0.3525
    assert_eq!(amount(&report, CostKind::Storage), usd("0.25")); // 30 GB × 0.25 ÷ 30
    assert_eq!(amount(&report, CostKind::ReplicaStorage), usd("0.283"));
    assert_eq!(report.total, usd("3.7780000625"));
    assert_eq!(report.month, usd("113.340001875"));
    check_formulas(&report.to_string());
}

#[test]
fn what_has_no_price_is_named_and_not_guessed() {
    let mut table = table(Billing::OnDemand, load(1440, 0, 60));
    table.region = "eu-west-1".into();
    table.bytes = GB;
    table.streams_reads = 5;
    table.replicas = vec!["mars-north-1".into()];
    let report = report(&cell(window(60, 1440), vec![table.clone()]));
    let cost = report.tables[0].cost.as_ref().unwrap();
    assert_eq!(
        cost.unpriced,
        [
            "writes of Orders-cell-a replicated to mars-north-1",
            "streams reads",
            "storage in mars-north-1"
        ]
    );
    assert!(matches!(report.tables[0].mode.as_ref().unwrap().verdict, Verdict::NotPriced { .. }));
    assert!(!report.tables[0].class.as_ref().unwrap().change);
    assert!(report.warnings[0].contains("not in the total"));

    table.region = "mars-north-1".into();
    table.replicas.clear();
    let report = crate::common::report(&cell(window(60, 1440), vec![table]));
    assert!(report.tables[0].cost.is_none() && report.total == Usd::ZERO);
    assert!(report.warnings[0].contains("no prices are known for mars-north-1"));
}

/// A provisioned table of 10 WCU after so many idle minutes, then one minute of so many units.
fn burst_after(idle: u32, units: u64) -> Burst {
    let points = idle + 1;
    let mut load = load(points, 0, 0);
    load.writes[idle as usize] = Some(Units::from_whole(units));
    let report = report(&cell(window(60, points), vec![table(provisioned(1, 10), load)]));
    report.tables[0].lanes[1].burst.unwrap()
}

#[test]
fn burst_credit_is_300_seconds_of_unused_capacity() {
    // Ten units a second: 600 in the minute itself and 3,000 of credit after five idle minutes.
    for (idle, units, covered) in [
        (5, 3600, true),
        (5, 3601, false),
        (60, 3601, false), // More idle minutes keep no more.
        (4, 3000, true),
        (4, 3001, false),
        (0, 600, true),
        (0, 601, false), // What was left before the window is not counted on.
    ] {
        let burst = burst_after(idle, units);
        assert_eq!(burst.covered, covered, "{idle} idle minutes, then {units}");
    }
    let burst = burst_after(5, 3700);
    assert_eq!(burst.uncovered, Units::from_whole(100));
    assert_eq!(burst.deepest_credit, Units::from_whole(3000));
    assert_eq!((burst.minutes_above, burst.uncovered_minutes), (1, 1));
}

#[test]
fn utilisation_is_the_worst_lane_s_99th_percentile() {
    // 200 minutes: 197 at 1 a second, one at 5, two at 8, of 10 WCU; reads at 1 of 100.
    let mut load = load(200, 60, 60);
    load.writes[7] = Some(Units::from_whole(300));
    load.writes[8] = Some(Units::from_whole(480));
    load.writes[9] = Some(Units::from_whole(480));
    let used = report(&cell(window(60, 200), vec![table(provisioned(100, 10), load.clone())]));
    // Nearest rank: 198 of 200 are at most 5 a second.
    assert_eq!(used.utilisation, Share::from_percent(50));
    let write = &used.tables[0].lanes[1];
    assert_eq!((write.rates.p50, write.rates.max), (Units::from_whole(1), Units::from_whole(8)));
    assert_eq!(write.peak, Share::from_percent(80));
    assert_eq!(write.rates.mean, Units::from_milli(1090)); // (197 × 60 + 300 + 960) ÷ 12,000
    // On demand: of 40,000.
    let used = report(&cell(window(60, 200), vec![table(Billing::OnDemand, load)]));
    assert_eq!(used.utilisation, Share::from_millionths(125));
}

#[test]
fn throttling_is_reported_with_its_times() {
    let mut load = load(60, 0, 0);
    load.throttled_writes = vec![0; 60];
    load.throttled_writes[10] = 5;
    load.throttled_writes[12] = 7;
    let report = report(&cell(window(60, 60), vec![table(Billing::OnDemand, load)]));
    let throttling = report.tables[0].lanes[1].throttling.as_ref().unwrap();
    assert_eq!((throttling.requests, throttling.periods), (12, 2));
    assert_eq!(
        (throttling.first.as_str(), throttling.last.as_str()),
        ("2026-03-01T00:10:00Z", "2026-03-01T00:12:00Z")
    );
    assert!(report.to_string().contains("2026-03-01T00:12:00Z  7"));
}

#[test]
fn steady_writes_on_demand_become_provisioned_and_reserved() {
    // 100 writes a second for 30 days: $162.00 on demand.
    let report =
        report(&cell(window(3600, 720), vec![table(Billing::OnDemand, load(720, 0, 360_000))]));
    let mode = report.tables[0].mode.as_ref().unwrap();
    let month = |mode_: Mode| mode.options.iter().find(|o| o.mode == mode_).unwrap().month;
    assert_eq!(month(Mode::Present), usd("162"));
    // ⌈100 ÷ 0.7⌉ = 143 WCU and 1 RCU: 720 × (143 × 0.00065 + 0.00013).
    assert_eq!(month(Mode::Provisioned), usd("67.0176"));
    // Two blocks: the second is used to 43 %, and pays from 23 % on. 2 × (180 × 720 ÷ 26,280 + 720 × 0.0081), and 1 RCU by the hour.
    assert_eq!(month(Mode::ProvisionedReserved(Term::ThreeYears)), usd("21.62061369863"));
    // For a year it would pay from 46 % on: one block, 150 × 720 ÷ 8,760 + 720 × 0.0128, and 43 WCU and 1 RCU by the hour.
    assert_eq!(month(Mode::ProvisionedReserved(Term::OneYear)), usd("41.762367123288"));
    let Verdict::Change { to, saving, .. } = mode.verdict else { panic!("{:?}", mode.verdict) };
    assert_eq!(to, Mode::ProvisionedReserved(Term::ThreeYears));
    assert_eq!(saving, Share::from_millionths(866_539));
    check_formulas(&report.to_string());
}

#[test]
fn a_spiky_table_stays_on_demand() {
    // One minute of 1,000 writes a second each day, nothing else.
    let mut load = load(2880, 0, 0);
    load.writes[600] = Some(Units::from_whole(60_000));
    load.writes[2040] = Some(Units::from_whole(60_000));
    let report = report(&cell(window(60, 2880), vec![table(Billing::OnDemand, load)]));
    let mode = report.tables[0].mode.as_ref().unwrap();
    let Verdict::Keep { why } = &mode.verdict else { panic!("{:?}", mode.verdict) };
    assert!(why.contains("provisioned, right-sized: costs"), "{why}");
    // 167 units carry it: a minute of them and five of credit are 60,120 units.
    let sized = &mode.options[1];
    assert_eq!((sized.mode, sized.sizes[1].capacity), (Mode::Provisioned, fixed(167)));
    assert_eq!(sized.throttled, Units::ZERO);
}

#[test]
fn an_oversized_table_shrinks_and_a_saving_below_the_margin_does_not_count() {
    let verdict = |write| {
        let usage =
            cell(window(3600, 48), vec![table(provisioned(1, write), load(48, 0, 360_000))]);
        report(&usage).tables[0].mode.clone().unwrap().verdict
    };
    assert!(matches!(verdict(1000), Verdict::Change { to: Mode::Provisioned, .. }));
    // 143 is right: 159 is a tenth more and a bit, 158 is less than a tenth of itself above.
    assert!(matches!(verdict(160), Verdict::Change { to: Mode::Provisioned, .. }));
    assert!(matches!(verdict(158), Verdict::Keep { .. }));
}

#[test]
fn what_is_cheaper_but_throttles_is_not_recommended() {
    // 60,000 WCU, of which a minute a day needs 45,000: on demand is nearly free, and stops at 40,000.
    let mut load = load(1440, 0, 0);
    load.writes[700] = Some(Units::from_whole(45_000 * 60));
    let usage = cell(window(60, 1440), vec![table(provisioned(1, 60_000), load)]);
    let mode = report(&usage).tables[0].mode.clone().unwrap();
    let on_demand = mode.options.iter().find(|option| option.mode == Mode::OnDemand).unwrap();
    assert!(on_demand.month < mode.options[0].month);
    assert_eq!(on_demand.throttled, Units::from_whole(5_000 * 60));
    assert!(on_demand.note.contains("would throttle 300000 units"), "{}", on_demand.note);
    // Right-sized capacity with five minutes of credit needs 7,500.
    assert_eq!(mode.options[2].sizes[1].capacity, fixed(7_500));
    assert!(matches!(mode.verdict, Verdict::Change { to: Mode::Provisioned, .. }));
    // Capacity above the quota is not recommended either.
    let steady = constant(1440, 41_000 * 60);
    let load = Load { writes: steady, reads: constant(1440, 0), ..Load::default() };
    let usage = cell(window(60, 1440), vec![table(Billing::OnDemand, load)]);
    let mode = report(&usage).tables[0].mode.clone().unwrap();
    let Verdict::Keep { why } = mode.verdict else { panic!("{:?}", mode.verdict) };
    assert!(why.contains("than the quota"), "{why}");
}

#[test]
fn too_little_data_recommends_nothing() {
    let why = |window: Window, load: Load| {
        let report = report(&cell(window, vec![table(Billing::OnDemand, load)]));
        match report.tables[0].mode.clone().unwrap().verdict {
            Verdict::TooLittleData { why } => Some(why),
            _ => None,
        }
    };
    assert!(why(window(60, 1439), load(1439, 0, 6000)).unwrap().contains("1439 minutes"));
    assert!(why(window(60, 1440), load(1440, 0, 6000)).is_none());
    let mut holes = load(1440, 0, 6000);
    holes.writes[..144].fill(None);
    assert!(why(window(60, 1440), holes.clone()).is_none());
    holes.writes[144] = None;
    let text = why(window(60, 1440), holes).unwrap();
    assert!(text.contains("of the points of writes of Orders-cell-a"), "{text}");
}

#[test]
fn a_reservation_is_not_recommended_from_less_than_a_week() {
    let verdict = |hours: u32| {
        let usage =
            cell(window(3600, hours), vec![table(Billing::OnDemand, load(hours, 0, 360_000))]);
        report(&usage).tables[0].mode.clone().unwrap().verdict
    };
    assert!(matches!(verdict(167), Verdict::Change { to: Mode::Provisioned, .. }));
    assert!(matches!(verdict(168), Verdict::Change { to: Mode::ProvisionedReserved(_), .. }));
}

#[test]
fn reserved_capacity_pays_from_its_break_even_on() {
    let report = report(&cell(window(60, 60), vec![table(Billing::OnDemand, load(60, 0, 0))]));
    let found = |term, direction| {
        let even = report.tables[0]
            .reserved
            .iter()
            .find(|e| e.term == term && e.direction == direction)
            .unwrap();
        (even.use_share.millionths(), even.full_hours)
    };
    // (150 ÷ 8760 + 0.0128) ÷ 0.065; 150 ÷ (0.065 − 0.0128).
    assert_eq!(found(Term::OneYear, Direction::Write), (460_358, Some(2873)));
    // (36 ÷ 26280 + 0.0016) ÷ 0.013; 36 ÷ (0.013 − 0.0016).
    assert_eq!(found(Term::ThreeYears, Direction::Read), (228_451, Some(3157)));
}

#[test]
fn infrequent_access_for_what_is_stored_and_hardly_used() {
    let class = |bytes, writes| {
        let mut table = table(Billing::OnDemand, load(720, 0, writes));
        table.bytes = bytes;
        report(&cell(window(3600, 720), vec![table])).tables[0].class.clone().unwrap()
    };
    let idle = class(1000 * GB, 0);
    // 1,000 GB: $250 or $100.
    assert_eq!((idle.change, idle.other_month), (true, Some(usd("100"))));
    assert!(idle.notes.iter().any(|note| note.contains("at most 2 changes")));
    // 100 GB and 50.4 million writes: 56.50 or 49.312, 12.7 % less; with 61.2 million 63.25 or 57.736, 8.7 % less.
    assert!(class(100 * GB, 70_000).change);
    let close = class(100 * GB, 85_000);
    assert!(!close.change && close.why.contains("less than 10 %"), "{}", close.why);
    let busy = class(GB, 1_000_000);
    assert!(!busy.change && busy.why.contains("costs"), "{}", busy.why);
}

#[test]
fn tenants_get_their_part_and_idle_capacity_is_nobody_s() {
    // 100 WCU for a day, a tenth of it used, half of that by t1; 10 GB of which t1 has 4.
    let mut table = table(provisioned(1, 100), load(24, 0, 36_000));
    table.bytes = 10 * GB;
    let mut usage = cell(window(3600, 24), vec![table]);
    let tenant = |tenant: &str, bytes, writes| TenantUsage {
        tenant: tenant.into(),
        table: "Orders-cell-a".into(),
        item_count: 0,
        bytes,
        reads: Units::ZERO,
        writes: Units::from_whole(writes),
    };
    usage.tenants = vec![tenant("t1", 4 * GB, 432_000), tenant("t2", 0, 0)];
    let report = report(&usage);
    let shares = report.shares.as_ref().unwrap();
    // Writes: 24 × 100 × 0.00065 = 1.56, of which 432,000 ÷ 8,640,000 = 0.078. Storage: 10 × 0.25 ÷ 30 × 0.4.
    assert_eq!(shares.tenants[0].amount, usd("0.111333333333"));
    assert_eq!(shares.tenants[1].amount, Usd::ZERO);
    assert_eq!(shares.residual, report.total - usd("0.111333333333"));
}

#[test]
fn cost_explorer_s_amount_is_compared() {
    let compared = |reported: &str| {
        let mut usage =
            cell(window(3600, 720), vec![table(provisioned(200, 100), load(720, 0, 0))]);
        usage.reported = Some(Reported { amount: usd(reported) });
        report(&usage).comparison.unwrap()
    };
    // The estimate is 65.52.
    assert_eq!(compared("65.52").difference, Share::from_percent(0));
    assert!(compared("60").warning.is_none());
    let far = compared("50");
    assert_eq!(far.difference, Share::from_millionths(310_400));
    assert!(far.warning.unwrap().contains("10 %"));
    assert!(compared("0").warning.is_some());
}

#[test]
fn an_operator_can_read_it() {
    let mut load = load(1440, 600, 1200);
    load.writes[700] = Some(Units::from_whole(30_000));
    load.throttled_writes = vec![0; 1440];
    load.throttled_writes[700] = 12;
    let mut table = table(provisioned(50, 100), load);
    table.bytes = 30 * GB;
    let mut usage = cell(window(60, 1440), vec![table]);
    usage.reported = Some(Reported { amount: usd("1.2") });
    let text = report(&usage).to_string();
    for line in [
        "Cell cell-a: 2026-03-01T00:00:00Z to 2026-03-02T00:00:00Z",
        "  utilisation  20 %",
        "  writes of Orders-cell-a: 20 % of 100/s (provisioned); mean 20.334/s, p50 20/s, p99 20/s, max 500/s",
        "    1 min above capacity: burst credit covers them",
        "    ! 12 requests throttled in 1 periods, 2026-03-01T11:40:00Z to 2026-03-01T11:40:00Z",
        "    writes of Orders-cell-a: 24 h × 100 WCU × $0.00065 = $1.56",
        "  billing: change to on demand; saves $15.30 in 30 days, 29.7 % of throughput",
        "      reserved write capacity, share of the upfront price: 1 blocks × 1440 min ÷ 525600 min × $150.00 ≈ $0.411",
        "    upfront price, for an hour: $36.00 ÷ 26280 h ≈ $0.001369863014",
        "    write burst credit at most: 100 WCU × 300 s = 30000 units",
    ] {
        assert!(text.lines().any(|shown| shown.starts_with(line)), "{line}\n{text}");
    }
}
