//! The simulation against cases worked out by hand, and what holds for all of them.

use proptest::prelude::*;

use crate::series::{Units, Window};
use crate::simulate::*;
use crate::usage::{Autoscaling, Capacity};

/// 2026-03-01T00:00:00Z, and so the start of a day.
const START: i64 = 1_772_323_200;

fn window(points: usize) -> Window {
    Window { start: START, period_seconds: 60, points: points as u32 }
}

/// Demand of so many units a second for so many minutes, one after the other.
fn steps(steps: &[(usize, u64)]) -> Vec<u64> {
    steps.iter().flat_map(|&(minutes, rate)| std::iter::repeat_n(rate * 60_000, minutes)).collect()
}

fn scaling(units: u64, min: u64, max: u64, target_percent: u8) -> Capacity {
    Capacity { units, autoscaling: Some(Autoscaling { min, max, target_percent }) }
}

fn simulate(demand: &[u64], capacity: &Capacity) -> Run {
    run(&window(demand.len()), demand, capacity)
}

#[test]
fn capacity_rises_after_two_minutes_above_the_target_and_the_delay() {
    // 90 of 100 is above 70 %; ⌈90 ÷ 0.7⌉ = 129.
    let run = simulate(&steps(&[(6, 90)]), &scaling(100, 10, 200, 70));
    assert_eq!(run.capacity, [100, 100, 100, 100, 129, 129]);
    // One minute above is not enough, and a quiet one starts the count again.
    let run = simulate(
        &steps(&[(1, 90), (1, 60), (1, 90), (1, 60), (9, 60)]),
        &scaling(100, 10, 200, 70),
    );
    assert!(run.capacity.iter().all(|units| *units == 100));
    // At the target is not above it.
    assert!(
        simulate(&steps(&[(30, 70)]), &scaling(100, 10, 200, 70))
            .capacity
            .iter()
            .all(|units| *units == 100)
    );
    // Never above the maximum, whatever is asked.
    assert_eq!(
        simulate(&steps(&[(10, 900)]), &scaling(100, 10, 200, 70)).capacity.last(),
        Some(&200)
    );
}

#[test]
fn capacity_falls_after_fifteen_minutes_twenty_points_below() {
    // 10 of 100 is below 50 %; ⌈10 ÷ 0.7⌉ = 15, from minute 14 + 1 + 2 on.
    let run = simulate(&steps(&[(20, 10)]), &scaling(100, 10, 200, 70));
    assert_eq!(run.capacity[..17], [100; 17]);
    assert_eq!(run.capacity[17..], [15; 3]);
    // 51 of 100 is not far enough below; 50 is.
    assert_eq!(simulate(&steps(&[(60, 51)]), &scaling(100, 10, 200, 70)).decreases, 0);
    assert_eq!(simulate(&steps(&[(60, 50)]), &scaling(100, 10, 200, 70)).decreases, 1);
    // Never below the minimum.
    assert_eq!(simulate(&steps(&[(30, 1)]), &scaling(100, 40, 200, 70)).capacity.last(), Some(&40));
    // The busiest of the fifteen counts.
    let run = simulate(&steps(&[(3, 10), (1, 42), (14, 10)]), &scaling(100, 10, 200, 70));
    assert_eq!(run.capacity[17], 60);
}

#[test]
fn a_day_has_four_decreases_and_one_for_each_quiet_hour() {
    // Every 20 minutes: two of load, eighteen of rest: each cycle wants one rise and one fall.
    let cycle = steps(&[(2, 90), (18, 1)]);
    let day: Vec<u64> = cycle.iter().copied().cycle().take(1440).collect();
    let capacity = scaling(10, 10, 200, 70);
    let run = simulate(&day, &capacity);
    assert!(run.decreases > FREE_DECREASES && run.decreases <= MAX_DECREASES, "{}", run.decreases);
    let falls: Vec<usize> =
        (1..run.capacity.len()).filter(|&i| run.capacity[i] < run.capacity[i - 1]).collect();
    let spaced =
        falls.windows(2).skip(FREE_DECREASES as usize - 1).all(|pair| pair[1] - pair[0] >= 60);
    assert!(spaced, "{falls:?}");
    // The next day begins anew.
    let two: Vec<u64> = cycle.iter().copied().cycle().take(2880).collect();
    let second = simulate(&two, &capacity).decreases - run.decreases;
    assert!(second > FREE_DECREASES, "{second}");
}

#[test]
fn an_hour_is_billed_at_its_highest_capacity() {
    // From 00:30: half an hour, an hour, and ten minutes.
    let window = Window { start: START + 1800, ..window(100) };
    let mut run = Run { capacity: vec![5; 100], ..Run::default() };
    run.capacity[29] = 7;
    run.capacity[30] = 9;
    run.capacity[95] = 6;
    assert_eq!(run.hours(first_minute(&window)).collect::<Vec<_>>(), [(7, 30), (9, 60), (6, 10)]);
    assert_eq!(run.billed_unit_minutes(first_minute(&window)), 7 * 30 + 9 * 60 + 6 * 10);
}

#[test]
fn a_longer_period_is_spread_over_its_minutes_and_keeps_every_unit() {
    let window = Window { start: START, period_seconds: 300, points: 2 };
    let spread = demand(&window, &[Some(Units::from_milli(1003)), None], &[1, 0]);
    assert_eq!(spread, [400, 400, 400, 400, 403, 0, 0, 0, 0, 0]);
}

proptest! {
    #[test]
    fn capacity_stays_within_its_bounds(
        stretches in prop::collection::vec((1usize..40, 0u64..500), 1..100),
        (min, span, units) in (1u64..300, 0u64..300, 1u64..700),
        target in 20u8..=90,
    ) {
        let demand = steps(&stretches);
        let run = simulate(&demand, &scaling(units, min, min + span, target));
        prop_assert!(run.capacity.iter().all(|units| (min..=min + span).contains(units)));
        prop_assert!(run.decreases <= MAX_DECREASES * (demand.len() as u32 / 1440 + 1));
    }

    #[test]
    fn more_capacity_never_throttles_more(
        demand in prop::collection::vec(0u64..30_000_000, 1..300),
        units in 1u64..500,
        more in 0u64..100,
    ) {
        let fixed = |units| simulate(&demand, &Capacity { units, autoscaling: None });
        prop_assert!(fixed(units + more).throttled <= fixed(units).throttled);
        // What is served and what is throttled is what was wanted.
        let smallest = smallest_unthrottled(&window(demand.len()), &demand);
        prop_assert_eq!(fixed(smallest).throttled, 0);
        prop_assert!(smallest == 1 || fixed(smallest - 1).throttled > 0);
    }
}
