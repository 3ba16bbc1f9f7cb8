//! `AnalyzeCell`'s question and answer as messages.

use std::collections::BTreeSet;

use super::status::{Fault, Reason};
use super::{parse, tables};
use crate::cells::capacity::Analysis;
use crate::cells::capacity::share::{Billed, MAX_TENANTS, NO_DATA, TenantShare};
use crate::domain::PartitionKey;
use crate::proto::v1;

/// Tenants, each once.
pub fn tenants(field: &str, names: Vec<String>) -> Result<Vec<PartitionKey>, Fault> {
    if names.len() > MAX_TENANTS {
        let problem = format!("holds {} entries; at most {MAX_TENANTS} are allowed", names.len());
        return Err(Fault::field(Reason::InvalidBatchSize, field, problem));
    }
    let mut seen = BTreeSet::new();
    let mut tenants = Vec::new();
    for (number, name) in names.into_iter().enumerate() {
        let tenant = parse::partition_key(&format!("{field}[{number}]"), name)?;
        if seen.insert(tenant.as_str().to_owned()) {
            tenants.push(tenant);
        }
    }
    Ok(tenants)
}

pub fn message(analysis: &Analysis) -> v1::AnalyzeCellResponse {
    let Analysis { report, tenants, read_units, .. } = analysis;
    v1::AnalyzeCellResponse {
        report: report.to_string(),
        utilisation: report.utilisation.as_f64(),
        details: tables::details(report),
        tenant_shares: tenants.iter().map(share).collect(),
        measuring_read_units: *read_units,
        cost_explorer: comparison(analysis),
    }
}

fn share(share: &TenantShare) -> v1::TenantShare {
    v1::TenantShare {
        partition_key: share.tenant.as_str().to_owned(),
        amount: format!("{:#}", share.amount),
        item_count: i64::try_from(share.items).unwrap_or(i64::MAX),
        bytes: i64::try_from(share.bytes).unwrap_or(i64::MAX),
        lower_bound: share.lower_bound,
    }
}

fn comparison(analysis: &Analysis) -> Option<v1::CostExplorerComparison> {
    use v1::CostExplorerState as State;
    let none = |state: State, note: &str| v1::CostExplorerComparison {
        state: state.into(),
        note: note.to_owned(),
        ..Default::default()
    };
    Some(match analysis.billed.as_ref()? {
        Billed::NoData => none(State::NoData, NO_DATA),
        Billed::Unreachable { code } => none(State::Unreachable, code),
        Billed::Amount { .. } => {
            let found = analysis.report.comparison.as_ref()?;
            v1::CostExplorerComparison {
                state: State::Compared.into(),
                reported: format!("{:#}", found.reported),
                estimated: format!("{:#}", found.estimated),
                difference: found.difference.as_f64(),
                note: found.warning.clone().unwrap_or_default(),
            }
        }
    })
}
