//! Migrations as messages.

use cells_migration::{Leg, Phase, Side, Wish};

use crate::domain::Timestamp;
use crate::grpc::convert::{duration, timestamp};
use crate::grpc::tables::version as number;
use cells_verify::{Mismatch, MismatchKind};

use crate::migration::{
    Estimate, Findings, GuardCount, Migration, Spec, TenantVerification, Verification, Writers, eta,
};
use crate::proto::v1;

pub fn migration(migration: &Migration, now: Timestamp) -> v1::Migration {
    let (record, spec) = (&migration.record, &migration.spec);
    let live = match record.live() {
        Side::Source => &spec.source,
        Side::Target => &spec.target,
    };
    v1::Migration {
        migration_id: migration.id().to_string(),
        spec: Some(self::spec(spec)),
        state: state(record.phase).into(),
        leg: match record.leg {
            Leg::Forward => v1::MigrationLeg::Forward,
            Leg::Back => v1::MigrationLeg::Back,
        }
        .into(),
        live_cell_id: live.as_str().to_owned(),
        epoch: record.epoch,
        progress: Some(progress(migration, now)),
        report: migration.findings.as_ref().map(report),
        wish: wish(migration).into(),
        paused: migration.record.paused,
        parked_reason: migration.parked.clone().unwrap_or_default(),
        trouble: migration.trouble.clone().unwrap_or_default(),
        worker: record.worker,
        create_time: Some(timestamp(migration.created)),
        update_time: Some(timestamp(migration.updated)),
        state_time: Some(timestamp(migration.phase_since)),
        end_time: record.phase.ended().then(|| timestamp(migration.updated)),
        writes_may_be_lost: spec.writers == Writers::BestEffort,
    }
}

fn state(phase: Phase) -> v1::MigrationState {
    match phase {
        Phase::Planned => v1::MigrationState::Planned,
        Phase::Logging => v1::MigrationState::Logging,
        Phase::Copying => v1::MigrationState::Copying,
        Phase::CatchingUp => v1::MigrationState::CatchingUp,
        Phase::Verifying => v1::MigrationState::Verifying,
        Phase::Fenced => v1::MigrationState::Fenced,
        Phase::Committed => v1::MigrationState::Committed,
        Phase::Soaking => v1::MigrationState::Soaking,
        Phase::Cleaning => v1::MigrationState::Cleaning,
        Phase::Done => v1::MigrationState::Done,
        Phase::Aborting => v1::MigrationState::Aborting,
        Phase::Aborted => v1::MigrationState::Aborted,
    }
}

/// What is still to be done. The record keeps a wish after it was fulfilled.
fn wish(migration: &Migration) -> v1::MigrationWish {
    let (leg, phase) = (migration.record.leg, migration.record.phase);
    let committed =
        matches!(phase, Phase::Committed | Phase::Soaking | Phase::Cleaning | Phase::Done);
    let aborted = matches!(phase, Phase::Aborting | Phase::Aborted);
    let soaking = phase == Phase::Soaking && leg == Leg::Forward;
    match migration.record.wish {
        Some(Wish::Cancel) if leg == Leg::Forward && !committed && !aborted => {
            v1::MigrationWish::Cancel
        }
        Some(Wish::Reverse) if soaking => v1::MigrationWish::Reverse,
        Some(Wish::Complete) if soaking => v1::MigrationWish::Complete,
        _ => v1::MigrationWish::Unspecified,
    }
}

fn spec(spec: &Spec) -> v1::MigrationSpec {
    v1::MigrationSpec {
        partition_key: spec.tenant.as_str().to_owned(),
        source_cell_id: spec.source.as_str().to_owned(),
        target_cell_id: spec.target.as_str().to_owned(),
        verification: match spec.verification {
            Verification::LogDrain => v1::MigrationVerification::LogDrain,
            Verification::Strict => v1::MigrationVerification::Strict,
        }
        .into(),
        soak_duration: Some(duration(spec.soak)),
        pause_budget: Some(duration(spec.pause_budget)),
        rate_limit_units: spec.rate_limit.map_or(0, |units| units.get()),
        writers: match spec.writers {
            Writers::Cooperative => v1::MigrationWriters::Cooperative,
            Writers::Frozen => v1::MigrationWriters::Frozen,
            Writers::BestEffort => v1::MigrationWriters::BestEffort,
        }
        .into(),
    }
}

fn progress(migration: &Migration, now: Timestamp) -> v1::MigrationProgress {
    let progress = &migration.progress;
    v1::MigrationProgress {
        items_estimated: number(progress.items_estimated),
        bytes_estimated: number(progress.bytes_estimated),
        items_copied: number(progress.items_copied),
        bytes_copied: number(progress.bytes_copied),
        log_applied: number(progress.log_applied),
        log_backlog: progress.log_backlog.map(number),
        items_compared: number(progress.items_compared),
        differences: number(migration.findings.as_ref().map_or(0, |found| found.mismatches)),
        items_purged: number(progress.items_purged),
        fences: progress.fences,
        last_pause: progress.last_pause.map(duration),
        total_pause: Some(duration(progress.total_pause)),
        write_units: number(progress.write_units),
        stream_applied: number(progress.stream_applied),
        time_left: eta::time_left(migration, now).map(duration),
    }
}

fn report(findings: &Findings) -> v1::VerificationReport {
    v1::VerificationReport {
        source_items: number(findings.source_items),
        target_items: number(findings.target_items),
        source_digest: findings.source_digest.to_string(),
        target_digest: findings.target_digest.to_string(),
        mismatches: number(findings.mismatches),
        repaired: number(findings.repaired),
        examples: findings.examples.iter().map(mismatch).collect(),
        end_time: findings.ended.map(timestamp),
        source_expired: number(findings.source_expired),
        target_expired: number(findings.target_expired),
        source_misnamed: number(findings.source_misnamed),
    }
}

fn mismatch(mismatch: &Mismatch) -> v1::ItemMismatch {
    v1::ItemMismatch {
        table: mismatch.table.clone(),
        key_hash: mismatch.key_hash.clone(),
        r#type: match mismatch.kind {
            MismatchKind::Missing => v1::MismatchType::Missing,
            MismatchKind::Extra => v1::MismatchType::Extra,
            MismatchKind::Different => v1::MismatchType::Different,
        }
        .into(),
        repaired: mismatch.repaired,
    }
}

pub fn estimate(estimate: &Estimate) -> v1::MigrationEstimate {
    v1::MigrationEstimate {
        spec: Some(spec(&estimate.spec)),
        items: number(estimate.items),
        size_bytes: number(estimate.bytes),
        read_units: number(estimate.read_units),
        write_units: number(estimate.write_units),
        cost_micros: estimate.cost_micros.map(number),
        duration: Some(duration(estimate.duration)),
    }
}

pub fn verification(verified: &TenantVerification) -> v1::VerifyTenantResponse {
    let cells = verified.cells.iter().map(|(cell, items)| v1::TenantItems {
        cell_id: cell.as_str().to_owned(),
        items: number(*items),
    });
    v1::VerifyTenantResponse {
        report: Some(report(&verified.findings)),
        cells: cells.collect(),
        leftovers: number(verified.leftovers),
    }
}

pub fn coverage(count: &GuardCount) -> v1::GetGuardCoverageResponse {
    v1::GetGuardCoverageResponse {
        placements: number(count.placements),
        missing: number(count.missing),
        count_time: Some(timestamp(count.counted_at)),
    }
}
