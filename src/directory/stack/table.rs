//! The end of the stack: reads the table, and has a tenant that has no cell assigned to one.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::FutureExt;
use futures::future::BoxFuture;
use tower::Service;

use super::{Answer, Home, RouteRequest, Routed, Source, Step};
use crate::directory::clock::Clock;
use crate::directory::committer::Changes;
use crate::directory::draft::{Action, Command, Destination, Outcome};
use crate::directory::error::{Error, Refused};
use crate::directory::memory::Residence;
use crate::directory::randomness::Randomness;
use crate::directory::reader::Reads;
use crate::domain::{Mapping, Placement};

#[derive(Clone)]
pub struct Table(Arc<Parts>);

struct Parts {
    reads: Reads,
    changes: Changes,
    clock: Clock,
    randomness: Randomness,
}

impl Table {
    pub fn new(reads: Reads, changes: Changes, clock: Clock, randomness: Randomness) -> Self {
        Self(Arc::new(Parts { reads, changes, clock, randomness }))
    }
}

impl Service<RouteRequest> for Table {
    type Response = Routed;
    type Error = Error;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RouteRequest) -> Self::Future {
        let parts = Arc::clone(&self.0);
        async move { parts.route(request).await }.boxed()
    }
}

impl Parts {
    async fn route(&self, request: RouteRequest) -> Answer {
        let as_of = self.clock.instant();
        let mut steps = Vec::new();
        let mapping = match request.assumed.clone() {
            Some(mapping) => mapping,
            None => {
                let mapping = self.reads.mapping(request.key.clone()).await?;
                if request.options.explain {
                    steps.push(Step::new("table", describe(&mapping)));
                }
                mapping
            }
        };
        match &mapping {
            Mapping::Placed(placement) if !placement.expired(self.clock.now()) => {
                return decided(&request, placement, Source::Table, as_of, steps);
            }
            Mapping::Placed(placement) if !request.options.assign => {
                let expired = placement.expires.unwrap_or_else(|| self.clock.now());
                return Err(Refused::PlacementExpired { expired }.into());
            }
            _ if !request.options.assign => return Err(Refused::PlacementNotFound.into()),
            // A caller who has seen a later epoch talks of another table; to assign would make two truths.
            _ if request.options.min_epoch.is_some_and(|least| mapping.next_epoch() < least) => {
                return Err(Refused::EpochNotReached { present: mapping.last_epoch() }.into());
            }
            _ => {}
        }

        // An earlier attempt may have placed the tenant, and its placement may have come and gone since. To place the tenant once more would
        // be two changes for one call, the second of them behind the back of whoever removed the first.
        let earlier = request.writing.open();
        let epoch = mapping.next_epoch();
        if earlier.is_some_and(|earlier| earlier != epoch) {
            return Err(Error::OutcomeUnknown);
        }
        request.writing.begin(epoch);
        let command = Command {
            action: Action::Place {
                key: request.key.clone(),
                assumed: mapping,
                destination: Destination::Best {
                    constraints: Arc::clone(&request.options.constraints),
                    entropy: self.randomness.draw(),
                    only_at: earlier,
                },
                since: None,
                expires: None,
            },
            request: None,
        };
        let outcome = self.changes.submit(command).await;
        if earlier.is_none() && !matches!(outcome, Err(Error::OutcomeUnknown)) {
            request.writing.settle();
        }
        let Outcome::Placed { placement, created, candidates } = outcome? else {
            // Unreachable: placing comes to a placement.
            return Err(Error::OutcomeUnknown);
        };
        let source = if created { Source::Assigned } else { Source::Table };
        if request.options.explain {
            let outcome = match created {
                true => format!("assigned to {} at epoch {}", placement.cell, placement.epoch),
                false => format!("somebody else assigned it to {} first", placement.cell),
            };
            steps.push(Step { name: "assign", outcome, candidates });
        }
        decided(&request, &placement, source, as_of, steps)
    }
}

fn decided(
    request: &RouteRequest,
    placement: &Placement,
    source: Source,
    as_of: Instant,
    steps: Vec<Step>,
) -> Answer {
    if request.options.min_epoch.is_some_and(|epoch| placement.epoch < epoch) {
        return Err(Refused::EpochNotReached { present: Some(placement.epoch) }.into());
    }
    // Beyond what an earlier attempt may have written, it may be another's, and the call's own be gone: a change that no answer told of.
    let earlier = request.writing.open();
    if earlier.is_some_and(|earlier| placement.epoch > earlier) {
        return Err(Error::OutcomeUnknown);
    }
    let written = source == Source::Assigned || earlier.is_some();
    let home = Home::Placed(Residence::from(placement));
    let RouteRequest { sequence, lease_until, .. } = *request;
    Ok(Routed { home, source, written, as_of, sequence, lease_until, steps })
}

fn describe(mapping: &Mapping) -> String {
    match mapping {
        Mapping::Absent => "the tenant never had a cell".to_owned(),
        Mapping::Vacated(epoch) => format!("the tenant's last cell ended at epoch {epoch}"),
        Mapping::Placed(placement) => {
            let expiry = placement.expires.map(|at| format!(", expiring at {at}"));
            format!(
                "placed in {} at epoch {}{}",
                placement.cell,
                placement.epoch,
                expiry.unwrap_or_default()
            )
        }
    }
}
