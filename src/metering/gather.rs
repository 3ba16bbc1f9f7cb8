//! What was counted of a cell's tables, made into its load and into data for CloudWatch. Pure.

use cells_cost::Window;

use super::outbox::{Datum, Unit};
use crate::cells::TableRef;
use crate::cells::capacity::Metered;
use crate::domain::{Cell, CellLoad, TableLoad, Timestamp};

/// Minutes over which a utilisation is taken: as many as it takes to tell work from a burst.
pub const MINUTES: i64 = 5;

/// How long after its end a minute is taken for counted, in seconds. CloudWatch says nothing about that; metrics of DynamoDB are usually
/// there after one or two minutes.
pub const SETTLED_AFTER: i64 = 180;

/// Most minutes that are made up for, after all replicas were away.
const MOST_MINUTES: i64 = 15;

/// Units a second that DynamoDB gives a table on demand, reads and writes each, where nobody asked for more.
pub const ON_DEMAND_QUOTA: f64 = 40_000.0;

const MINUTE: i64 = 60;

/// What a table may consume and what it holds, as DescribeTable says.
#[derive(Debug, Clone, PartialEq)]
pub struct Size {
    pub items: u64,
    /// Of the table and its indexes.
    pub bytes: u64,
    /// The indexes' part of that.
    pub index_bytes: u64,
    /// Units a second, read and write, of the table itself.
    pub limits: (f64, f64),
    /// The same of its indexes, by their names.
    pub indexes: Vec<(String, (f64, f64))>,
}

/// A table with what was counted of it and of each of its indexes, in their order.
#[derive(Debug, Clone)]
pub struct Measured {
    pub table: TableRef,
    pub size: Size,
    pub metered: Vec<Metered>,
}

/// The end of the last minute that is counted.
pub fn settled(now: Timestamp) -> i64 {
    let end = now.seconds().saturating_sub(SETTLED_AFTER);
    end - end.rem_euclid(MINUTE)
}

/// The first minute that is to be published.
pub fn publish_from(published: Option<i64>, end: i64) -> i64 {
    match published {
        // One that is in the future was written by a clock that was wrong.
        Some(published) => published.clamp(end - MOST_MINUTES * MINUTE, end),
        None => end - MINUTES * MINUTE,
    }
}

/// Up to which minute is published once a turn that ended at `end` is. It goes back only over so many minutes that a clock must have been
/// wrong: else a replica whose clock is ahead, and one whose clock is not, would publish the same minutes in turns.
pub fn published_until(published: Option<i64>, end: i64) -> i64 {
    match published {
        Some(published) if published <= end + MOST_MINUTES * MINUTE => published.max(end),
        _ => end,
    }
}

/// What to ask CloudWatch for: what is to be published, and what a utilisation takes.
pub fn window(from: i64, end: i64) -> Window {
    let start = from.min(end - MINUTES * MINUTE);
    let points = u32::try_from((end - start) / MINUTE).unwrap_or(0);
    Window { start, period_seconds: 60, points }
}

/// A cell's load over the last minutes before `end`.
pub fn load(cell: &Cell, tables: &[Measured], end: i64, at: Timestamp) -> CellLoad {
    let recent = (end - MINUTES * MINUTE)..end;
    let sum = |series: &[(i64, f64)]| -> f64 {
        series.iter().filter(|(start, _)| recent.contains(start)).map(|(_, sum)| sum).sum()
    };
    let seconds = (MINUTES * MINUTE) as f64;
    let busy = |metered: &Metered, (read, write): (f64, f64)| {
        let of = |series: &[(i64, f64)], limit: f64| sum(series) / seconds / limit;
        of(&metered.reads, read).max(of(&metered.writes, write))
    };
    let table = |measured: &Measured| {
        let limits = [measured.size.limits].into_iter();
        let limits = limits.chain(measured.size.indexes.iter().map(|(_, limits)| *limits));
        let each =
            measured.metered.iter().zip(limits).map(|(metered, limits)| busy(metered, limits));
        TableLoad {
            table: measured.table.name.clone(),
            utilisation: each.fold(0.0, f64::max),
            items: measured.size.items,
            bytes: measured.size.bytes,
            index_bytes: measured.size.index_bytes,
        }
    };
    let tables_of: Vec<_> = tables.iter().map(table).collect();
    let throttled: f64 = tables
        .iter()
        .flat_map(|measured| &measured.metered)
        .map(|metered| sum(&metered.throttled_reads) + sum(&metered.throttled_writes))
        .sum();
    CellLoad {
        cell: cell.id.clone(),
        at,
        utilisation: tables_of.iter().map(|table| table.utilisation).fold(0.0, f64::max),
        throttled_per_minute: throttled / MINUTES as f64,
        tables: tables_of,
    }
}

/// What CloudWatch is told of a cell: of each minute in `from..end` what everybody consumed of each table with its indexes, and of the
/// last one what the cell holds. Nothing where no minute is new.
pub fn data(
    cell: &Cell,
    load: Option<&CellLoad>,
    tables: &[Measured],
    (from, end): (i64, i64),
) -> Vec<Datum> {
    if from >= end {
        return Vec::new();
    }
    let mut data = Vec::new();
    for measured in tables {
        let of = |series: fn(&Metered) -> &Vec<(i64, f64)>| {
            measured.metered.iter().flat_map(series).copied().collect::<Vec<_>>()
        };
        let throttles = [of(|m| &m.throttled_reads), of(|m| &m.throttled_writes)].concat();
        for (name, series) in [
            ("ConsumedReadCapacityUnits", of(|m| &m.reads)),
            ("ConsumedWriteCapacityUnits", of(|m| &m.writes)),
            ("ThrottledRequests", throttles),
        ] {
            for (minute, sum) in by_minute(&series, from..end) {
                let datum = Datum::new(name, minute, sum, Unit::Count);
                let datum = datum.with("CellId", cell.id.as_str());
                data.push(datum.with("TableName", &measured.table.name));
            }
        }
    }
    let last = end - MINUTE;
    let of_cell =
        |name, value, unit| Datum::new(name, last, value, unit).with("CellId", cell.id.as_str());
    data.push(of_cell("Placements", cell.placements as f64, Unit::Count));
    if let Some(load) = load {
        data.push(of_cell("ItemCount", load.items() as f64, Unit::Count));
        data.push(of_cell("TableSizeBytes", load.bytes() as f64, Unit::Bytes));
        data.push(of_cell("Utilisation", load.utilisation * 100.0, Unit::Percent));
    }
    data
}

/// Sums of the same minute together, in the order of the minutes.
fn by_minute(series: &[(i64, f64)], within: std::ops::Range<i64>) -> Vec<(i64, f64)> {
    let mut sums = std::collections::BTreeMap::new();
    for (start, sum) in series.iter().filter(|(start, _)| within.contains(start)) {
        *sums.entry(*start).or_insert(0.0) += sum;
    }
    sums.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::fixtures;
    use crate::domain::Region;

    const END: i64 = 1_000_020;

    fn measured(limits: (f64, f64), index: (f64, f64), metered: [Metered; 2]) -> Measured {
        let name = "Orders-a".to_owned();
        Measured {
            table: TableRef { region: Region::new("eu-west-1").unwrap(), name },
            size: Size {
                items: 7,
                bytes: 70,
                index_bytes: 30,
                limits,
                indexes: vec![("ByCell".to_owned(), index)],
            },
            metered: metered.into(),
        }
    }

    fn minutes(sum: f64) -> Vec<(i64, f64)> {
        (1..=MOST_MINUTES).rev().map(|ago| (END - ago * 60, sum)).collect()
    }

    #[test]
    fn utilisation_is_the_worst_of_tables_indexes_and_directions_over_five_minutes() {
        let cell = fixtures::cell("a", 1);
        let of = |own: Metered, index: Metered| {
            let tables = [measured((10.0, 20.0), (5.0, 40_000.0), [own, index])];
            load(&cell, &tables, END, fixtures::now())
        };
        let none = Metered::default;
        let reads = Metered { reads: minutes(300.0), ..none() };
        let writes = Metered { writes: minutes(300.0), ..none() };
        assert_eq!(of(none(), none()).utilisation, 0.0);
        assert_eq!(of(reads.clone(), none()).utilisation, 0.5);
        assert_eq!(of(reads.clone(), reads.clone()).utilisation, 1.0);
        assert_eq!(of(writes.clone(), writes.clone()).utilisation, 0.25);
        let burst =
            Metered { reads: vec![(END - 60, 1500.0), (END - 360, 9e9), (END, 9e9)], ..none() };
        assert_eq!(of(burst, none()).utilisation, 0.5, "a minute of five, and none outside");
        let throttled =
            Metered { throttled_writes: minutes(2.0), throttled_reads: minutes(1.0), ..none() };
        let load = of(throttled.clone(), throttled);
        assert_eq!((load.throttled_per_minute, load.items(), load.bytes()), (6.0, 7, 70));
        assert_eq!(load.item_bytes(), 40);
    }

    #[test]
    fn each_minute_is_published_once_and_only_what_is_counted() {
        let cell = fixtures::cell("a", 1);
        let reads = Metered {
            reads: vec![(END - 120, 1.5), (END - 60, 2.0), (END, 9.0)],
            ..Metered::default()
        };
        let tables = [measured((1.0, 1.0), (1.0, 1.0), [reads.clone(), reads])];
        let load = load(&cell, &tables, END, fixtures::now());
        let told = |from| {
            let data = data(&cell, Some(&load), &tables, (from, END));
            let told = data.iter().map(|datum| (datum.name, datum.minute - END, datum.value));
            told.collect::<Vec<_>>()
        };
        let gauges = [
            ("Placements", -60, 0.0),
            ("ItemCount", -60, 7.0),
            ("TableSizeBytes", -60, 70.0),
            // (3.5 units in 300 s) of 1 a second
            ("Utilisation", -60, 3.5 / 300.0 * 100.0),
        ];
        let last = [("ConsumedReadCapacityUnits", -60, 4.0)];
        let first = [("ConsumedReadCapacityUnits", -120, 3.0)];
        assert_eq!(told(END - 60), [&last[..], &gauges].concat());
        assert_eq!(told(END - 120), [&first[..], &last, &gauges].concat());
        assert!(told(END).is_empty());
    }

    #[test]
    fn what_is_published_goes_on_where_it_ended_within_bounds() {
        let at = |seconds| Timestamp::from_seconds(seconds).unwrap();
        assert_eq!(settled(at(END + 180)), END);
        assert_eq!(settled(at(END + 239)), END);
        assert_eq!(publish_from(Some(END - 60), END), END - 60);
        assert_eq!(publish_from(Some(END - 9_999), END), END - 900);
        assert_eq!(publish_from(Some(END + 9_999), END), END, "nothing, until that is past");
        assert_eq!(publish_from(None, END), END - 300);
        assert_eq!(published_until(None, END), END);
        assert_eq!(published_until(Some(END - 60), END), END);
        assert_eq!(published_until(Some(END + 180), END), END + 180, "by a clock that is ahead");
        assert_eq!(published_until(Some(END + 9_999), END), END, "by one that was wrong");
        let recent = window(END - 60, END);
        assert_eq!((recent.start, recent.points), (END - 300, 5));
        assert_eq!(window(END - 900, END).points, 15);
    }
}
