//! Requests into domain types: each field once, at the edge, and every fault names its field.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::status::{Fault, Reason};
use crate::directory::{CellPatch, NewCell, Placing, Request, RouteOptions};
use crate::domain::{
    CellId, CellState, Constraints, Endpoint, Epoch, Invalid, Labels, LeaseDuration, PartitionKey,
    Region, RequestId, Timestamp, Weight,
};
use crate::proto::v1;

/// Most keys of a batch.
pub const MAX_BATCH: usize = 1000;

pub fn partition_key(field: &str, value: String) -> Result<PartitionKey, Fault> {
    PartitionKey::new(value).map_err(|invalid| Fault::invalid(field, &invalid))
}

pub fn cell_id(field: &str, value: &str) -> Result<CellId, Fault> {
    checked(field, CellId::new(value))
}

/// How to route, from what Resolve and BatchResolve have in common.
pub fn route_options(
    mode: i32,
    constraints: Option<v1::PlacementConstraints>,
    fallback: i32,
) -> Result<RouteOptions, Fault> {
    let mode = v1::ResolveMode::try_from(mode).map_err(|_| unknown("mode", mode))?;
    let fallback =
        v1::FallbackPolicy::try_from(fallback).map_err(|_| unknown("fallback", fallback))?;
    let constraints = constraints.map(self::constraints).transpose()?;
    Ok(RouteOptions {
        assign: mode != v1::ResolveMode::LookupOnly,
        constraints: constraints.unwrap_or_default(),
        fallback: fallback != v1::FallbackPolicy::Refuse,
        ..RouteOptions::default()
    })
}

pub fn constraints(asked: v1::PlacementConstraints) -> Result<Arc<Constraints>, Fault> {
    if asked.regions.len() > Constraints::MAX_REGIONS {
        let problem = format!(
            "holds {} regions; at most {} are allowed",
            asked.regions.len(),
            Constraints::MAX_REGIONS
        );
        return Err(Fault::field(Reason::InvalidRegion, "constraints.regions", problem));
    }
    let regions =
        asked.regions.into_iter().enumerate().map(|(at, region)| {
            checked(&format!("constraints.regions[{at}]"), Region::new(region))
        });
    Ok(Arc::new(Constraints {
        labels: labels("constraints.labels", asked.labels)?,
        regions: regions.collect::<Result<_, _>>()?,
    }))
}

/// `None` for 0: any.
pub fn epoch(value: u64) -> Option<Epoch> {
    Epoch::new(value)
}

pub fn batch_size(field: &str, len: usize) -> Result<(), Fault> {
    if (1..=MAX_BATCH).contains(&len) {
        return Ok(());
    }
    Err(Fault::field(
        Reason::InvalidBatchSize,
        field,
        format!("holds {len} entries; 1 to {MAX_BATCH} are allowed"),
    ))
}

/// The request's id, with what it asks: `body` is the request without its id, encoded.
pub fn request(
    id: &str,
    method: &str,
    body: &impl prost::Message,
) -> Result<Option<Request>, Fault> {
    use sha2::{Digest, Sha256};
    if id.is_empty() {
        return Ok(None);
    }
    let id = checked("request_id", RequestId::new(id))?;
    let digest = Sha256::digest(body.encode_to_vec());
    let digest = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Some(Request { id, method: method.to_owned(), digest }))
}

pub fn etag(field: &str, value: String) -> Result<Option<String>, Fault> {
    if value.len() > 64 || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        let problem = "is not an etag; send it as it was answered, or nothing";
        return Err(Fault::field(Reason::InvalidEtag, field, problem));
    }
    Ok(Some(value).filter(|etag| !etag.is_empty()))
}

/// A moment in the future; `None` where it is absent.
pub fn expire_time(
    field: &str,
    value: Option<prost_types::Timestamp>,
    now: Timestamp,
) -> Result<Option<Timestamp>, Fault> {
    let Some(time) = value.map(|value| timestamp(field, value)).transpose()? else {
        return Ok(None);
    };
    if time <= now {
        let problem = format!("is {time}, which has passed; it is {now}");
        return Err(Fault::field(Reason::InvalidTime, field, problem));
    }
    Ok(Some(time))
}

/// A moment that is not in the future; `None` where it is absent.
pub fn past_time(
    field: &str,
    value: Option<prost_types::Timestamp>,
    now: Timestamp,
) -> Result<Option<Timestamp>, Fault> {
    let Some(time) = value.map(|value| timestamp(field, value)).transpose()? else {
        return Ok(None);
    };
    if time > now {
        let problem = format!("is {time}, which is yet to come; it is {now}");
        return Err(Fault::field(Reason::InvalidTime, field, problem));
    }
    Ok(Some(time))
}

fn timestamp(field: &str, value: prost_types::Timestamp) -> Result<Timestamp, Fault> {
    let nanos = (0..1_000_000_000).contains(&value.nanos).then_some(value.nanos / 1_000_000);
    let seconds = value.seconds.checked_mul(1000);
    let millis = seconds.zip(nanos).and_then(|(s, n)| s.checked_add(i64::from(n)));
    millis.and_then(Timestamp::from_millis).ok_or_else(|| {
        Fault::field(Reason::InvalidTime, field, "is not a time in the years 1 to 9999")
    })
}

pub fn import(at: &str, row: v1::PlacementImport, now: Timestamp) -> Result<Placing, Fault> {
    Ok(Placing {
        key: partition_key(&format!("{at}.partition_key"), row.partition_key)?,
        cell: cell_id(&format!("{at}.cell_id"), &row.cell_id)?,
        since: past_time(&format!("{at}.create_time"), row.create_time, now)?,
        expires: expire_time(&format!("{at}.expire_time"), row.expire_time, now)?,
    })
}

pub fn new_cell(cell: v1::Cell) -> Result<NewCell, Fault> {
    if !cell.etag.is_empty() {
        let problem = "must be empty: the cell has no version yet";
        return Err(Fault::field(Reason::InvalidEtag, "cell.etag", problem));
    }
    let state = cell_state(cell.state)?.unwrap_or(CellState::Active);
    Ok(NewCell {
        id: cell_id("cell.cell_id", &cell.cell_id)?,
        region: checked("cell.region", Region::new(cell.region))?,
        endpoint: checked("cell.endpoint", Endpoint::new(cell.endpoint))?,
        labels: labels("cell.labels", cell.labels)?,
        weight: weight(cell.weight)?.unwrap_or(Weight::DEFAULT),
        capacity: NonZeroU64::new(cell.capacity.unwrap_or(0)),
        state,
    })
}

/// What an update changes: the fields that the mask names.
pub fn cell_patch(
    cell: v1::Cell,
    mask: Option<prost_types::FieldMask>,
) -> Result<CellPatch, Fault> {
    let paths = mask.map(|mask| mask.paths).unwrap_or_default();
    let bad_mask =
        |problem: String| Fault::field(Reason::InvalidUpdateMask, "update_mask", problem);
    if paths.is_empty() {
        let problem =
            "is empty; name the fields to change: weight, capacity, labels, endpoint, state";
        return Err(bad_mask(problem.into()));
    }
    let mut patch = CellPatch::default();
    for path in paths {
        match path.as_str() {
            "weight" => patch.weight = Some(weight(cell.weight)?.unwrap_or(Weight::DEFAULT)),
            "capacity" => patch.capacity = Some(NonZeroU64::new(cell.capacity.unwrap_or(0))),
            "labels" => patch.labels = Some(labels("cell.labels", cell.labels.clone())?),
            "endpoint" => {
                let endpoint = Endpoint::new(cell.endpoint.clone());
                patch.endpoint = Some(checked("cell.endpoint", endpoint)?);
            }
            "state" => {
                let state = cell_state(cell.state)?;
                patch.state = Some(state.ok_or_else(|| unknown("cell.state", cell.state))?);
            }
            other => {
                let shown: String = other.chars().take(64).collect();
                let problem = format!(
                    "names {shown:?}, which cannot be changed; weight, capacity, labels, endpoint and state can"
                );
                return Err(bad_mask(problem));
            }
        }
    }
    Ok(patch)
}

/// The new lease, where the mask names just that.
pub fn lease_duration(
    lease: Option<prost_types::Duration>,
    mask: Option<prost_types::FieldMask>,
) -> Result<LeaseDuration, Fault> {
    let paths = mask.map(|mask| mask.paths).unwrap_or_default();
    if paths.is_empty() || paths.iter().any(|path| path != "lease_duration") {
        let problem = "must name lease_duration, which is all that can be changed";
        return Err(Fault::field(Reason::InvalidUpdateMask, "update_mask", problem));
    }
    let field = "cluster.lease_duration";
    let lease = lease.ok_or_else(|| missing(field))?;
    let lease = elapsed(lease).unwrap_or(Duration::MAX);
    checked(field, LeaseDuration::new(lease))
}

/// A duration within bounds, which are `shown` where it is not; `None` where it is absent.
pub fn duration(
    field: &str,
    value: Option<prost_types::Duration>,
    bounds: RangeInclusive<Duration>,
    shown: &str,
) -> Result<Option<Duration>, Fault> {
    let Some(value) = value else {
        return Ok(None);
    };
    match elapsed(value).filter(|value| bounds.contains(value)) {
        Some(value) => Ok(Some(value)),
        None => {
            let problem = format!("is out of bounds: {shown} are allowed, or nothing");
            Err(Fault::field(Reason::InvalidDuration, field, problem))
        }
    }
}

/// `None` where it is negative or no duration. By hand: the library's own conversion panics on the least of all seconds.
fn elapsed(value: prost_types::Duration) -> Option<Duration> {
    let seconds = u64::try_from(value.seconds).ok()?;
    let nanos = u32::try_from(value.nanos).ok().filter(|nanos| *nanos < 1_000_000_000)?;
    Some(Duration::new(seconds, nanos))
}

fn cell_state(value: i32) -> Result<Option<CellState>, Fault> {
    let state = v1::CellState::try_from(value).map_err(|_| unknown("cell.state", value))?;
    Ok(match state {
        v1::CellState::Unspecified => None,
        v1::CellState::Active => Some(CellState::Active),
        v1::CellState::Cordoned => Some(CellState::Cordoned),
        v1::CellState::Draining => Some(CellState::Draining),
        v1::CellState::Quarantined => Some(CellState::Quarantined),
        v1::CellState::Retired => Some(CellState::Retired),
    })
}

fn weight(value: Option<u32>) -> Result<Option<Weight>, Fault> {
    value.map(|value| checked("cell.weight", Weight::new(value))).transpose()
}

fn labels(field: &str, value: BTreeMap<String, String>) -> Result<Labels, Fault> {
    checked(field, Labels::new(value))
}

fn checked<T>(field: &str, value: Result<T, Invalid>) -> Result<T, Fault> {
    value.map_err(|invalid| Fault::invalid(field, &invalid))
}

pub fn unknown(field: &str, value: i32) -> Fault {
    let problem = format!("is {value}, which is not one of its values");
    Fault::field(Reason::UnknownEnumValue, field, problem)
}

pub fn missing(field: &str) -> Fault {
    Fault::field(Reason::MissingField, field, "is required")
}
