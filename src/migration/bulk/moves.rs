//! What a bulk asks of migrations.

use async_trait::async_trait;
use cells_balance::bulk::Start;

use super::model::{BulkRecord, Terms};
use super::records::Part;
use crate::directory::{Error, Refused};
use crate::domain::{CellId, MigrationId, PartitionKey};
use crate::migration::service::Origin;
use crate::migration::{
    Ask, Instruction, Migration, MigrationApi, MigrationError, Migrations, Obstacle, TargetCell,
    Writers,
};
use crate::store::StoreError;

/// A migration to be begun, and the stored step that says so.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    pub start: Start,
    pub part: Part,
    pub terms: Terms,
    pub caller: Option<String>,
}

impl Order {
    pub fn new(start: Start, chunk: u64, revision: u64, of: &BulkRecord) -> Self {
        let part = Part { bulk: of.id, generation: of.planned.generation, chunk, revision };
        let (terms, caller) = (of.planned.terms.clone(), of.planned.caller.clone());
        Self { start, part, terms, caller }
    }
}

/// Why a migration was not begun.
#[derive(Debug, Clone, PartialEq)]
pub enum NotStarted {
    /// The tenant lives in the target already.
    There,
    /// It cannot be, or not now: it is tried again as often as the bulk's limits say where `retry`.
    Refused { reason: String, retry: bool },
    /// What is stored of the bulk is not what was acted upon.
    Superseded,
    /// It may have been begun, or the storage does not answer: it is tried again until it does.
    Passing(String),
}

/// Migrations, as a bulk sees them.
#[async_trait]
pub trait Moves: Send + Sync + 'static {
    /// Begins a migration, where the part of the bulk that says so is as it is said to be. To begin one that exists is no error.
    async fn start(&self, order: Order) -> Result<(), NotStarted>;

    /// Read consistently.
    async fn migration(&self, id: MigrationId) -> Result<Option<Migration>, StoreError>;

    /// Cancels a migration where there is time for it.
    async fn cancel(&self, id: MigrationId) -> Result<(), StoreError>;
}

#[async_trait]
impl Moves for Migrations {
    async fn start(&self, order: Order) -> Result<(), NotStarted> {
        let Order { start, part, terms, caller } = order;
        let for_good = |problem: &str| NotStarted::Refused { reason: problem.into(), retry: false };
        let id = MigrationId::parse(&start.migration);
        let id = id.map_err(|invalid| for_good(&invalid.problem))?;
        let tenant = PartitionKey::new(start.tenant).map_err(|bad| for_good(&bad.problem))?;
        let target = CellId::new(start.target).map_err(|bad| for_good(&bad.problem))?;
        let source = CellId::new(start.source).map_err(|bad| for_good(&bad.problem))?;
        let ask = Ask {
            tenant,
            target: TargetCell::Cell(target),
            verification: terms.verification,
            writers: Writers::Cooperative,
            soak: terms.soak,
            pause_budget: terms.pause_budget,
            rate_limit: start.units,
        };
        let digest = format!("bulk {}", part.bulk);
        let origin = Origin { id, digest, caller, source: Some(source), part: Some(part) };
        self.begin(ask, origin).await.map(drop).map_err(|error| not_started(&error))
    }

    async fn migration(&self, id: MigrationId) -> Result<Option<Migration>, StoreError> {
        match self.get(id).await {
            Ok(migration) => Ok(Some(migration)),
            Err(MigrationError::NotFound(_)) => Ok(None),
            Err(MigrationError::Store(error)) => Err(error),
            Err(error) => Err(StoreError::Rejected { detail: error.to_string() }),
        }
    }

    async fn cancel(&self, id: MigrationId) -> Result<(), StoreError> {
        match self.ask(id, Instruction::Cancel).await {
            // It was committed, or has ended.
            Ok(_) | Err(MigrationError::NotNow { .. } | MigrationError::NotFound(_)) => Ok(()),
            Err(MigrationError::Store(error)) => Err(error),
            Err(error) => {
                tracing::debug!(%error, "a migration of a bulk cannot be cancelled yet");
                Err(StoreError::Throttled)
            }
        }
    }
}

fn not_started(error: &MigrationError) -> NotStarted {
    let reason = error.told();
    let refused = |retry| NotStarted::Refused { reason: reason.clone(), retry };
    match error {
        MigrationError::SameCell(_) => NotStarted::There,
        MigrationError::Superseded => NotStarted::Superseded,
        MigrationError::Elsewhere { .. } => refused(false),
        MigrationError::Obstructed(obstacles) => NotStarted::Refused {
            reason: obstacles.iter().map(Obstacle::to_string).collect::<Vec<_>>().join("; "),
            retry: true,
        },
        MigrationError::AlreadyMoving { .. } => refused(true),
        MigrationError::Directory(Error::Refused(refusal)) => refused(!matches!(
            refusal,
            Refused::PlacementNotFound
                | Refused::KnownAbsent { .. }
                | Refused::PlacementExpired { .. }
                | Refused::CellNotFound { .. }
        )),
        MigrationError::Store(StoreError::Rejected { .. } | StoreError::Unreadable { .. })
        | MigrationError::Directory(Error::Store(
            StoreError::Rejected { .. } | StoreError::Unreadable { .. },
        )) => refused(true),
        _ => NotStarted::Passing(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cells::{CellsError, CloudError};

    #[test]
    fn a_reason_has_no_text_of_aws() {
        let rejected = || StoreError::Rejected { detail: "no: arn:aws:iam::123456789012".into() };
        let (code, detail) =
            ("AccessDenied".to_owned(), "no: arn:aws:iam::123456789012".to_owned());
        for error in [
            MigrationError::Store(rejected()),
            MigrationError::Directory(rejected().into()),
            MigrationError::Cells(CellsError::Store(rejected())),
            MigrationError::Cells(CloudError::Refused { code, detail }.into()),
        ] {
            let (NotStarted::Refused { reason, .. } | NotStarted::Passing(reason)) =
                not_started(&error)
            else {
                panic!("{error:?}")
            };
            assert!(!reason.is_empty() && !reason.contains("arn:"), "{reason}");
        }
    }
}
