use std::time::Duration;

use cells_migration::{Leg, Phase, Wish};

use super::*;
use cells_verify::{Digest, Mismatch, MismatchKind};

use crate::migration::{Findings, Progress, fake};

fn told(change: impl FnOnce(&mut crate::migration::Migration)) -> v1::Migration {
    let mut migration = fake::migration(0xbeef);
    change(&mut migration);
    message::migration(&migration, Timestamp::from_millis(NOW).unwrap())
}

#[test]
fn every_phase_has_its_state() {
    use v1::MigrationState as State;
    let states = [
        (Phase::Planned, State::Planned),
        (Phase::Logging, State::Logging),
        (Phase::Copying, State::Copying),
        (Phase::CatchingUp, State::CatchingUp),
        (Phase::Verifying, State::Verifying),
        (Phase::Fenced, State::Fenced),
        (Phase::Committed, State::Committed),
        (Phase::Soaking, State::Soaking),
        (Phase::Cleaning, State::Cleaning),
        (Phase::Done, State::Done),
        (Phase::Aborting, State::Aborting),
        (Phase::Aborted, State::Aborted),
    ];
    for (phase, state) in states {
        let message = told(|one| one.record.phase = phase);
        assert_eq!(message.state(), state);
        // The name in errors is that of the API.
        let name = format!("MIGRATION_STATE_{}", phase.name());
        assert_eq!(name, state.as_str_name());
        assert_eq!(message.end_time.is_some(), matches!(state, State::Done | State::Aborted));
    }
}

#[test]
fn the_tenant_lives_where_the_protocol_says() {
    let live =
        |leg, phase| told(|one| (one.record.leg, one.record.phase) = (leg, phase)).live_cell_id;
    assert_eq!(live(Leg::Forward, Phase::Fenced), "cell-0");
    assert_eq!(live(Leg::Forward, Phase::Soaking), "cell-1");
    assert_eq!(live(Leg::Back, Phase::Verifying), "cell-1");
    assert_eq!(live(Leg::Back, Phase::Done), "cell-0");
    let back = told(|one| one.record.leg = Leg::Back);
    assert_eq!(back.leg(), v1::MigrationLeg::Back);
}

#[test]
fn who_writes_is_told_and_best_effort_says_what_it_costs() {
    use crate::migration::Writers;
    let cases = [
        (Writers::Cooperative, v1::MigrationWriters::Cooperative, false),
        (Writers::Frozen, v1::MigrationWriters::Frozen, false),
        (Writers::BestEffort, v1::MigrationWriters::BestEffort, true),
    ];
    for (writers, message, lossy) in cases {
        let migration = told(|one| one.spec.writers = writers);
        assert_eq!(migration.spec.unwrap().writers(), message);
        assert_eq!(migration.writes_may_be_lost, lossy);
    }
}

#[test]
fn a_wish_is_told_until_it_is_fulfilled() {
    use v1::MigrationWish as Told;
    let wish = |wish, leg, phase| {
        let message = told(|one| {
            (one.record.wish, one.record.leg, one.record.phase) = (Some(wish), leg, phase)
        });
        message.wish()
    };
    assert_eq!(wish(Wish::Cancel, Leg::Forward, Phase::Fenced), Told::Cancel);
    assert_eq!(wish(Wish::Cancel, Leg::Forward, Phase::Aborting), Told::Unspecified);
    // The commit was faster.
    assert_eq!(wish(Wish::Cancel, Leg::Forward, Phase::Soaking), Told::Unspecified);
    assert_eq!(wish(Wish::Cancel, Leg::Back, Phase::Verifying), Told::Unspecified);
    assert_eq!(wish(Wish::Reverse, Leg::Forward, Phase::Soaking), Told::Reverse);
    assert_eq!(wish(Wish::Reverse, Leg::Back, Phase::Verifying), Told::Unspecified);
    assert_eq!(wish(Wish::Complete, Leg::Forward, Phase::Soaking), Told::Complete);
    assert_eq!(wish(Wish::Complete, Leg::Forward, Phase::Cleaning), Told::Unspecified);
}

#[test]
fn all_that_is_known_is_told() {
    let at = |millis: i64| Timestamp::from_millis(1_700_000_000_000 + millis).unwrap();
    let message = told(|one| {
        one.record.phase = Phase::Copying;
        one.record.worker = 3;
        one.spec.rate_limit = std::num::NonZeroU32::new(250);
        one.spec.pause_budget = Duration::from_millis(1500);
        one.record.paused = false;
        one.trouble = Some("throttled".to_owned());
        one.updated = at(500);
        one.progress = Progress {
            items_estimated: 1000,
            bytes_estimated: 400_000,
            items_copied: 500,
            bytes_copied: 200_000,
            log_applied: 7,
            log_backlog: Some(0),
            stream_applied: 8,
            items_compared: 11,
            items_purged: 12,
            last_pause: Some(Duration::from_millis(80)),
            total_pause: Duration::from_millis(130),
            fences: 2,
            write_units: 1001,
        };
        one.findings = Some(Findings {
            source_items: 20,
            target_items: 19,
            source_digest: digest(0xaa),
            target_digest: digest(0xbb),
            source_expired: 0,
            target_expired: 0,
            source_misnamed: 0,
            mismatches: 3,
            repaired: 2,
            examples: vec![
                mismatch(MismatchKind::Missing),
                mismatch(MismatchKind::Extra),
                mismatch(MismatchKind::Different),
            ],
            ended: Some(at(400)),
        });
    });
    let wire = |millis: u64| {
        let nanos = (millis % 1000) as i32 * 1_000_000;
        Some(prost_types::Duration { seconds: (millis / 1000) as i64, nanos })
    };
    let time = |millis: i32| {
        Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: millis * 1_000_000 })
    };
    let expected = v1::MigrationProgress {
        items_estimated: 1000,
        bytes_estimated: 400_000,
        items_copied: 500,
        bytes_copied: 200_000,
        log_applied: 7,
        log_backlog: Some(0),
        items_compared: 11,
        differences: 3,
        items_purged: 12,
        fences: 2,
        last_pause: wire(80),
        total_pause: wire(130),
        write_units: 1001,
        // 500 in a second: one for the other 500, and two for the comparison.
        time_left: wire(3000),
        stream_applied: 8,
    };
    assert_eq!(message.progress, Some(expected));
    let report = message.report.unwrap();
    assert_eq!((report.source_items, report.target_items), (20, 19));
    assert_eq!(report.source_digest, "aa".repeat(32));
    assert_eq!(report.target_digest, "bb".repeat(32));
    assert_eq!((report.mismatches, report.repaired), (3, 2));
    assert_eq!(report.end_time, time(400));
    let kinds: Vec<_> = report.examples.iter().map(|one| one.r#type()).collect();
    use v1::MismatchType::{Different, Extra, Missing};
    assert_eq!(kinds, [Missing, Extra, Different]);
    assert_eq!((message.worker, message.epoch), (3, 7));
    assert_eq!(message.trouble, "throttled");
    assert_eq!(message.create_time, time(0));
    assert_eq!(message.update_time, time(500));
    assert_eq!(message.state_time, time(0));
    let spec = message.spec.unwrap();
    assert_eq!(spec.rate_limit_units, 250);
    assert_eq!(spec.pause_budget, wire(1500));
    assert_eq!(spec.soak_duration, wire(3_600_000));
}

fn mismatch(kind: MismatchKind) -> Mismatch {
    Mismatch { table: "Orders".to_owned(), key_hash: "cc".to_owned(), kind, repaired: true }
}

/// Of bytes that are all the same.
fn digest(byte: u8) -> Digest {
    serde_json::from_value(format!("{byte:02x}").repeat(32).into()).unwrap()
}
