//! Bulks and plans as messages.

use cells_balance::bulk::{Cancel, Count, End, Item, Limits, Purpose, State};
use cells_balance::{
    Forecast, Hotspot, HotspotCause, LeftAlone, MAX_LISTED, Move, Plan, Standing, Unplaced,
};

use crate::grpc::convert::{duration, timestamp};
use crate::grpc::tables::version as number;
use crate::migration::Verification;
use crate::migration::bulk::{BulkPage, BulkRecord, Terms, migration_id};
use crate::proto::v1;

pub fn page(page: &BulkPage) -> v1::Bulk {
    let id = page.record.id.to_string();
    let problems = page.problems.iter().map(|item| tenant(&id, item)).collect();
    v1::Bulk { problems, ..bulk(&page.record) }
}

pub fn bulk(record: &BulkRecord) -> v1::Bulk {
    let (header, planned, progress) = (&record.header, &record.planned, &record.progress);
    let purpose = match &header.purpose {
        Purpose::Drain { cell } => {
            v1::bulk::Purpose::Drain(v1::BulkDrain { cell_id: cell.clone() })
        }
        Purpose::Rebalance { low, high } => {
            v1::bulk::Purpose::Rebalance(v1::BulkRebalance { low: *low, high: *high })
        }
    };
    let state = match (header.ended, header.cancelled) {
        (Some(End::Finished), _) => v1::BulkState::Finished,
        (Some(End::Cancelled), _) => v1::BulkState::Cancelled,
        (None, Some(Cancel::LetRun | Cancel::Running)) => v1::BulkState::Cancelling,
        (None, None) if header.paused => v1::BulkState::Paused,
        (None, None) => v1::BulkState::Running,
    };
    let summary = &progress.summary;
    let count = |count: &Count| number(count.tenants);
    v1::Bulk {
        bulk_id: record.id.to_string(),
        purpose: Some(purpose),
        state: state.into(),
        limits: Some(limits(&header.limits)),
        terms: Some(terms(&planned.terms)),
        counts: Some(v1::BulkCounts {
            waiting: count(&summary.waiting),
            running: count(&summary.running),
            done: count(&summary.done),
            to_retry: count(&summary.to_retry),
            failed: count(&summary.failed),
            skipped: count(&summary.skipped),
        }),
        staying_total: number(planned.staying),
        problems: Vec::new(),
        trouble: progress.trouble.clone().unwrap_or_default(),
        worker: record.worker,
        create_time: Some(timestamp(planned.created)),
        update_time: Some(timestamp(record.updated)),
        end_time: header.ended.map(|_| timestamp(record.updated)),
    }
}

fn limits(limits: &Limits) -> v1::BulkLimits {
    v1::BulkLimits {
        running: limits.running.get(),
        per_source: limits.per_source.get(),
        per_target: limits.per_target.get(),
        open: limits.open.get(),
        units_per_cell: limits.units_per_cell.map_or(0, std::num::NonZeroU32::get),
        attempts: limits.attempts.get(),
    }
}

fn terms(terms: &Terms) -> v1::BulkTerms {
    v1::BulkTerms {
        verification: match terms.verification {
            Verification::LogDrain => v1::MigrationVerification::LogDrain,
            Verification::Strict => v1::MigrationVerification::Strict,
        }
        .into(),
        soak_duration: terms.soak.map(duration),
        pause_budget: terms.pause_budget.map(duration),
    }
}

fn tenant(bulk: &str, item: &Item) -> v1::BulkTenant {
    let reason = match &item.state {
        State::Failed { reason, .. } | State::Skipped { reason } => reason.clone(),
        State::Waiting | State::Running { .. } | State::Done => String::new(),
    };
    let last = (item.attempts > 0).then(|| migration_id(bulk, &item.tenant, item.attempts));
    v1::BulkTenant {
        partition_key: item.tenant.clone(),
        source_cell_id: item.source.clone(),
        target_cell_id: item.target.clone(),
        attempts: item.attempts,
        state: item.state.as_str().to_owned(),
        reason,
        migration_id: last.map(|id| id.to_string()).unwrap_or_default(),
    }
}

pub fn plan(plan: Plan) -> v1::BulkPlan {
    let moves_total = number(plan.moves.len() as u64);
    let unplaced = plan.unplaced.into_iter().map(unplaced);
    let left = plan.left.into_iter().map(|left| v1::BulkStaying {
        partition_key: left.tenant,
        reason: match left.why {
            LeftAlone::Moving => "is being moved already",
            LeftAlone::ExpiresSoon => "expires soon",
        }
        .to_owned(),
        refusals: Vec::new(),
    });
    v1::BulkPlan {
        moves: plan.moves.into_iter().take(MAX_LISTED).map(movement).collect(),
        moves_total,
        size_bytes: number(plan.bytes),
        guessed_total: number(plan.bytes_guessed),
        size_bytes_at_least: plan.bytes_at_least.map(number),
        staying: unplaced.chain(left).take(MAX_LISTED).collect(),
        staying_total: number(plan.unplaced_total + plan.left_total),
        hotspots: plan.hotspots.into_iter().map(hotspot).collect(),
        hotspots_total: number(plan.hotspots_total),
        cells: plan.cells.into_iter().map(forecast).collect(),
    }
}

fn movement(one: Move) -> v1::BulkPlannedMove {
    v1::BulkPlannedMove {
        partition_key: one.tenant,
        source_cell_id: one.source,
        target_cell_id: one.target,
        size_bytes: one.bytes.map(number),
        relieves: one.relieves,
    }
}

fn unplaced(one: Unplaced) -> v1::BulkStaying {
    let refusals = one
        .refused
        .into_iter()
        .map(|refused| v1::BulkRefusal { cell_id: refused.cell, reason: refused.why.to_string() });
    v1::BulkStaying {
        partition_key: one.tenant,
        reason: "no cell can take it".to_owned(),
        refusals: refusals.collect(),
    }
}

fn hotspot(one: Hotspot) -> v1::BulkHotspot {
    v1::BulkHotspot {
        partition_key: one.tenant,
        cell_id: one.cell,
        share: one.share,
        reason: match one.cause {
            HotspotCause::Share => "it is too large a part of its cell's load to be moved",
            HotspotCause::Room => "no cell that could take it has room for it within the band",
        }
        .to_owned(),
    }
}

fn forecast(one: Forecast) -> v1::BulkForecast {
    let standing = match one.standing {
        None => "",
        Some(Standing::InBand) => "IN_BAND",
        Some(Standing::Above) => "ABOVE",
        Some(Standing::Below) => "BELOW",
        Some(Standing::Unknown) => "UNKNOWN",
        Some(Standing::LeftAlone) => "LEFT_ALONE",
    };
    v1::BulkForecast {
        cell_id: one.cell,
        placements: number(one.placements),
        placements_after: number(one.placements_after),
        utilisation: one.utilisation,
        utilisation_after: one.utilisation_after,
        standing: standing.to_owned(),
    }
}
