//! Usage to change, and a reader of shown formulas that knows nothing of the crate.

use cells_cost::*;

/// 2026-03-01T00:00:00Z.
pub const START: i64 = 1_772_323_200;
pub const GB: u64 = 1 << 30;

pub fn window(period_seconds: u32, points: u32) -> Window {
    Window { start: START, period_seconds, points }
}

pub fn constant(points: u32, units: u64) -> Vec<Option<Units>> {
    vec![Some(Units::from_whole(units)); points as usize]
}

pub fn load(points: u32, reads: u64, writes: u64) -> Load {
    Load { reads: constant(points, reads), writes: constant(points, writes), ..Load::default() }
}

pub fn fixed(units: u64) -> Capacity {
    Capacity { units, autoscaling: None }
}

pub fn provisioned(read: u64, write: u64) -> Billing {
    Billing::Provisioned(Throughput { read: fixed(read), write: fixed(write) })
}

pub fn table(billing: Billing, load: Load) -> TableUsage {
    TableUsage {
        table: "Orders-cell-a".into(),
        region: "us-east-1".into(),
        billing,
        class: TableClass::Standard,
        item_count: 0,
        bytes: 0,
        load,
        indexes: vec![],
        pitr: false,
        backup_bytes: 0,
        restored_bytes: 0,
        streams_reads: 0,
        replicas: vec![],
    }
}

pub fn cell(window: Window, tables: Vec<TableUsage>) -> CellUsage {
    let (tenants, reported, quota) = (vec![], None, Quota::default());
    let tenant_units = TenantUnits::default();
    CellUsage { cell: "cell-a".into(), window, tables, tenants, tenant_units, reported, quota }
}

pub fn report(usage: &CellUsage) -> Report {
    analyze(&PriceTable::bundled().unwrap(), usage).unwrap()
}

pub fn usd(text: &str) -> Usd {
    text.parse().unwrap()
}

/// Works out every formula in a report's text, and returns how many there were. Panics where one is not what it says.
pub fn check_formulas(text: &str) -> usize {
    let mut checked = 0;
    for line in text.lines() {
        let Some((shown, exact)) = line
            .rsplit_once(" = ")
            .map(|s| (s, true))
            .or_else(|| line.rsplit_once(" ≈ ").map(|s| (s, false)))
        else {
            continue;
        };
        let (left, right) = shown;
        let formula = left.rsplit_once(": ").unwrap().1;
        let result = right.split_whitespace().next().unwrap();
        let wanted = number(result).unwrap();
        // Half of the last digit that may be shown: of a picodollar below a cent, else of $0.0001; of a thousandth.
        let half = match (exact, result.trim_start_matches('-').strip_prefix('$')) {
            (true, _) => 0.0,
            (false, Some(_)) if wanted.abs() < 0.01 => 0.5e-12,
            (false, Some(_)) => 0.5e-4,
            (false, None) => 0.5e-3,
        };
        let (got, largest) = evaluate(formula);
        // A float's own error, in proportion to the largest number on the way.
        let close = (got - wanted).abs() <= half + 1e-12 * largest.max(wanted.abs());
        assert!(close, "{line}: {formula} is {got}, not {wanted}");
        checked += 1;
    }
    checked
}

fn number(token: &str) -> Option<f64> {
    let (sign, token) = token.strip_prefix('-').map_or((1.0, token), |rest| (-1.0, rest));
    token.strip_prefix('$').unwrap_or(token).parse::<f64>().ok().map(|n| sign * n)
}

/// What a formula is worth, and the largest number on the way; signs are taken from left to right.
fn evaluate(formula: &str) -> (f64, f64) {
    let (mut result, mut largest, mut sign) = (0.0f64, 0.0f64, "+");
    for token in formula.split_whitespace() {
        if ["+", "−", "×", "÷"].contains(&token) {
            sign = token;
        } else if let Some(n) = number(token) {
            match std::mem::replace(&mut sign, "?") {
                "+" => result += n,
                "−" => result -= n,
                "×" => result *= n,
                "÷" => result /= n,
                _ => panic!("two numbers in a row in {formula:?}"),
            }
            largest = largest.max(result.abs());
        }
    }
    // Products have no cancellation: only sums are as imprecise as their largest term.
    let sums = formula.contains(" + ") || formula.contains(" − ");
    (result, if sums { largest } else { result.abs() })
}
