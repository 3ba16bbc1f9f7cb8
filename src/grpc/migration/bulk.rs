//! Drains and rebalances: what is asked, with its bounds, and what is answered.

use std::num::NonZeroU32;

use cells_balance::bulk::{Cancel, Limits, MAX_ATTEMPTS, MAX_OPEN, MAX_RUNNING};
use cells_balance::{Band, RebalanceOptions};
use tonic::{Request, Response, Status};

use super::bulk_message as message;
use super::{MigrationService, ask, caller};
use crate::domain::Labels;
use crate::grpc::page::{self, Query};
use crate::grpc::parse;
use crate::grpc::status::{Fault, Reason};
use crate::migration::bounds::MAX_RATE;
use crate::migration::bulk::{
    BulkApi, BulkError, BulkId, BulkPage, DrainAsk, How, RebalanceAsk, Targets, Terms,
};
use crate::proto::v1;

/// Highest utilisation that can be asked for.
const MAX_UTILISATION: f64 = 1000.0;

type Answer<T> = Result<Response<T>, Status>;

impl MigrationService {
    fn bulks(&self) -> Result<&dyn BulkApi, Fault> {
        let none = || Fault::new(Reason::MethodNotFound, "this server does not run bulks");
        self.bulks.as_deref().ok_or_else(none)
    }

    pub(super) async fn do_plan_drain(
        &self,
        request: v1::PlanDrainRequest,
    ) -> Answer<v1::PlanDrainResponse> {
        let ask = drain(&request.cell_id, request.targets, request.max_utilisation)?;
        let plan = self.bulks()?.plan_drain(ask).await.map_err(Fault::from)?;
        Ok(Response::new(v1::PlanDrainResponse { plan: Some(message::plan(plan)) }))
    }

    pub(super) async fn do_start_drain(
        &self,
        request: Request<v1::StartDrainRequest>,
    ) -> Answer<v1::StartDrainResponse> {
        let caller = caller(&request);
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let id = parse::request(&id, "StartDrain", &request)?;
        let ask = drain(&request.cell_id, request.targets, request.max_utilisation)?;
        let (limits, terms) = (limits(request.limits)?, terms(request.terms)?);
        let how = How { limits, terms, request: id, caller };
        let begun = self.bulks()?.start_drain(ask, how).await;
        Ok(Response::new(v1::StartDrainResponse { bulk: bulk(begun)? }))
    }

    pub(super) async fn do_plan_rebalance(
        &self,
        request: v1::PlanRebalanceRequest,
    ) -> Answer<v1::PlanRebalanceResponse> {
        let v1::PlanRebalanceRequest { low, high, targets, hotspot_share } = request;
        let ask = rebalance(low, high, targets, hotspot_share)?;
        let plan = self.bulks()?.plan_rebalance(ask).await.map_err(Fault::from)?;
        Ok(Response::new(v1::PlanRebalanceResponse { plan: Some(message::plan(plan)) }))
    }

    pub(super) async fn do_start_rebalance(
        &self,
        request: Request<v1::StartRebalanceRequest>,
    ) -> Answer<v1::StartRebalanceResponse> {
        let caller = caller(&request);
        let mut request = request.into_inner();
        let id = std::mem::take(&mut request.request_id);
        let id = parse::request(&id, "StartRebalance", &request)?;
        let ask = rebalance(request.low, request.high, request.targets, request.hotspot_share)?;
        let (limits, terms) = (limits(request.limits)?, terms(request.terms)?);
        let how = How { limits, terms, request: id, caller };
        let begun = self.bulks()?.start_rebalance(ask, how).await;
        Ok(Response::new(v1::StartRebalanceResponse { bulk: bulk(begun)? }))
    }

    pub(super) async fn do_get_bulk(&self, id: &str) -> Answer<v1::GetBulkResponse> {
        let page = self.bulks()?.get(bulk_id(id)?).await;
        Ok(Response::new(v1::GetBulkResponse { bulk: bulk(page)? }))
    }

    pub(super) async fn do_list_bulks(
        &self,
        request: v1::ListBulksRequest,
    ) -> Answer<v1::ListBulksResponse> {
        let query = Query { method: "ListBulks", filter: "" };
        let limit = page::size(request.page_size)?;
        let after = query.cursor(&request.page_token)?;
        let page = self.bulks()?.list(limit, after.as_ref()).await.map_err(Fault::from)?;
        Ok(Response::new(v1::ListBulksResponse {
            bulks: page.items.iter().map(message::bulk).collect(),
            next_page_token: query.token(page.next),
        }))
    }

    pub(super) async fn do_pause_bulk(
        &self,
        id: &str,
        paused: bool,
    ) -> Result<Option<v1::Bulk>, Status> {
        Ok(bulk(self.bulks()?.pause(bulk_id(id)?, paused).await)?)
    }

    pub(super) async fn do_cancel_bulk(
        &self,
        request: &v1::CancelBulkRequest,
    ) -> Answer<v1::CancelBulkResponse> {
        let how = if request.migrations { Cancel::Running } else { Cancel::LetRun };
        let page = self.bulks()?.cancel(bulk_id(&request.bulk_id)?, how).await;
        Ok(Response::new(v1::CancelBulkResponse { bulk: bulk(page)? }))
    }
}

fn bulk(page: Result<BulkPage, BulkError>) -> Result<Option<v1::Bulk>, Fault> {
    Ok(Some(message::page(&page?)))
}

fn bulk_id(id: &str) -> Result<BulkId, Fault> {
    BulkId::parse(id).map_err(|invalid| Fault::invalid("bulk_id", &invalid))
}

fn drain(
    cell: &str,
    asked: Option<v1::BulkTargets>,
    max_utilisation: f64,
) -> Result<DrainAsk, Fault> {
    let cell = parse::cell_id("cell_id", cell)?;
    let targets = targets(asked)?;
    if !(0.0..=MAX_UTILISATION).contains(&max_utilisation) {
        let problem =
            format!("is {max_utilisation}; above 0 to {MAX_UTILISATION}, or 0 for no limit");
        return Err(Fault::field(Reason::InvalidUtilisation, "max_utilisation", problem));
    }
    Ok(DrainAsk { cell, targets, ceiling: Some(max_utilisation).filter(|most| *most > 0.0) })
}

fn rebalance(
    low: f64,
    high: f64,
    asked: Option<v1::BulkTargets>,
    hotspot_share: f64,
) -> Result<RebalanceAsk, Fault> {
    let invalid = |field: &str, problem: String| {
        Err(Fault::field(Reason::InvalidUtilisation, field, problem))
    };
    if !(0.0..=MAX_UTILISATION).contains(&low) {
        return invalid("low", format!("is {low}; 0 to {MAX_UTILISATION} are allowed"));
    }
    if !(high > low && high <= MAX_UTILISATION) {
        let problem = format!("is {high}; it has to be above low and at most {MAX_UTILISATION}");
        return invalid("high", problem);
    }
    let targets = targets(asked)?;
    if !(0.0..=1.0).contains(&hotspot_share) {
        let problem = format!("is {hotspot_share}; above 0 to 1, or 0 for the default");
        return invalid("hotspot_share", problem);
    }
    let hotspot_share = match hotspot_share {
        share if share > 0.0 => share,
        _ => RebalanceOptions::default().hotspot_share,
    };
    Ok(RebalanceAsk { band: Band { low, high }, targets, hotspot_share })
}

fn targets(asked: Option<v1::BulkTargets>) -> Result<Targets, Fault> {
    let v1::BulkTargets { other_regions, keep_labels } = asked.unwrap_or_default();
    // As labels without values, so that the same is allowed.
    let names = keep_labels.iter().map(|name| (name.clone(), String::new())).collect();
    let checked = Labels::new(names);
    checked.map_err(|invalid| Fault::invalid("targets.keep_labels", &invalid))?;
    Ok(Targets { other_regions, keep_labels })
}

fn limits(asked: Option<v1::BulkLimits>) -> Result<Limits, Fault> {
    let asked = asked.unwrap_or_default();
    let or = Limits::default();
    let limit = |field: &str, value: u32, most: u32| {
        if value > most {
            let problem = format!("is {value}; 1 to {most} are allowed, 0 means the default");
            return Err(Fault::field(Reason::InvalidLimit, format!("limits.{field}"), problem));
        }
        Ok(NonZeroU32::new(value))
    };
    Ok(Limits {
        running: limit("running", asked.running, MAX_RUNNING)?.unwrap_or(or.running),
        per_source: limit("per_source", asked.per_source, MAX_RUNNING)?.unwrap_or(or.per_source),
        per_target: limit("per_target", asked.per_target, MAX_RUNNING)?.unwrap_or(or.per_target),
        open: limit("open", asked.open, MAX_OPEN)?.unwrap_or(or.open),
        units_per_cell: limit("units_per_cell", asked.units_per_cell, MAX_RATE)?,
        attempts: limit("attempts", asked.attempts, MAX_ATTEMPTS)?.unwrap_or(or.attempts),
    })
}

fn terms(asked: Option<v1::BulkTerms>) -> Result<Terms, Fault> {
    let v1::BulkTerms { verification, soak_duration, pause_budget } = asked.unwrap_or_default();
    Ok(Terms {
        verification: ask::verification("terms.verification", verification)?,
        soak: ask::soak("terms.soak_duration", soak_duration)?,
        pause_budget: ask::pause_budget("terms.pause_budget", pause_budget)?,
    })
}
