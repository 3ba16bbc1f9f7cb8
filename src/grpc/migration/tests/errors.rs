use std::collections::HashMap;

use super::*;
use crate::cells::CellsError;
use crate::cells::data::DataError;
use crate::directory::{Error, Refused};
use crate::domain::CellId;
use crate::migration::{MigrationError, Obstacle};
use crate::store::StoreError;

fn cell(name: &str) -> CellId {
    CellId::new(name).unwrap()
}

/// An error, its code, its reason, and its metadata.
type Case = (MigrationError, Code, &'static str, &'static [(&'static str, &'static str)]);

/// What a call is answered when the engine says this.
async fn answered(error: MigrationError) -> Status {
    let fake = Arc::new(FakeMigrations::default());
    fake.state(|state| state.refusal = Some((error, None)));
    service(&fake).start_migration(Request::new(start())).await.unwrap_err()
}

#[tokio::test]
async fn every_error_has_its_code_its_reason_and_what_it_is_about() {
    use Code::{
        Aborted, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable,
    };
    let b = || cell("cell-b");
    let refused = |refused: Refused| MigrationError::from(refused);
    let at = Timestamp::from_millis(NOW).unwrap();
    let orders = || "Orders".to_owned();
    let running = MigrationId::new(0xfeed);
    let cases: Vec<Case> = vec![
        (MigrationError::NotFound(running), NotFound, "MIGRATION_NOT_FOUND", &[]),
        (
            MigrationError::AlreadyMoving { migration: running, target: b() },
            FailedPrecondition,
            "MIGRATION_RUNNING",
            &[("migration_id", "0000000000000000000000000000feed"), ("target_cell_id", "cell-b")],
        ),
        (MigrationError::SameCell(b()), FailedPrecondition, "SAME_CELL", &[("cell_id", "cell-b")]),
        (
            Obstacle::NotEligible { cell: b(), why: "is CORDONED".to_owned() }.into(),
            FailedPrecondition,
            "CELL_NOT_ELIGIBLE",
            &[("cell_id", "cell-b")],
        ),
        (
            Obstacle::SchemasDiffer { table: orders(), why: "has another sort key".to_owned() }
                .into(),
            FailedPrecondition,
            "SCHEMAS_DIFFER",
            &[("table", "Orders")],
        ),
        (
            Obstacle::NoTables { cell: b() }.into(),
            FailedPrecondition,
            "CELL_NOT_PROVISIONED",
            &[("cell_id", "cell-b")],
        ),
        (
            Obstacle::NoGuardTable { cell: b() }.into(),
            FailedPrecondition,
            "NO_GUARD_TABLE",
            &[("cell_id", "cell-b")],
        ),
        (
            Obstacle::GuardMissing { cell: b() }.into(),
            Unavailable,
            "GUARD_MISSING",
            &[("cell_id", "cell-b")],
        ),
        (
            Obstacle::NotTogether { cell: b() }.into(),
            FailedPrecondition,
            "CELL_APART",
            &[("cell_id", "cell-b")],
        ),
        (
            Obstacle::TargetNotEmpty { cell: b(), items: 3 }.into(),
            FailedPrecondition,
            "TARGET_NOT_EMPTY",
            &[("cell_id", "cell-b")],
        ),
        (
            Obstacle::NotRecoverable { table: orders() }.into(),
            FailedPrecondition,
            "NOT_RECOVERABLE",
            &[("table", "Orders")],
        ),
        (
            Obstacle::NoStream { table: orders() }.into(),
            FailedPrecondition,
            "NO_STREAM",
            &[("table", "Orders")],
        ),
        (
            Obstacle::NoFreeze.into(),
            FailedPrecondition,
            "FREEZE_NOT_CONFIGURED",
            &[("writers", "FROZEN")],
        ),
        (
            Obstacle::ProbeRefused { cell: b() }.into(),
            FailedPrecondition,
            "FREEZE_PROBE_REFUSED",
            &[("cell_id", "cell-b")],
        ),
        (refused(Refused::PlacementNotFound), NotFound, "PLACEMENT_NOT_FOUND", &[]),
        (refused(Refused::PlacementExpired { expired: at }), NotFound, "PLACEMENT_EXPIRED", &[]),
        (refused(Refused::CellNotFound { cell: b() }), NotFound, "CELL_NOT_FOUND", &[]),
        (refused(Refused::RequestIdReused), InvalidArgument, "REQUEST_ID_REUSED", &[]),
        (refused(Refused::Contended), Aborted, "CONTENDED", &[]),
        (Error::OutcomeUnknown.into(), DeadlineExceeded, "OUTCOME_UNKNOWN", &[]),
        (StoreError::Throttled.into(), Unavailable, "STORE_THROTTLED", &[]),
        (
            CellsError::NotProvisioned { cell: b() }.into(),
            FailedPrecondition,
            "CELL_NOT_PROVISIONED",
            &[],
        ),
        (
            DataError::TableMissing { cell: b() }.into(),
            NotFound,
            "TABLE_NOT_FOUND",
            &[("cell_id", "cell-b")],
        ),
    ];
    for (error, code, why, metadata) in cases {
        let status = answered(error.clone()).await;
        assert_eq!((status.code(), reason(&status).as_str()), (code, why), "{error:?}");
        let told: HashMap<_, _> = status.get_details_error_info().unwrap().metadata;
        for (name, value) in metadata {
            assert_eq!(told.get(*name).map(String::as_str), Some(*value), "{error:?}");
        }
        // What to do next is told, not only what is wrong.
        assert!(status.message().contains("; "), "{}", status.message());
        let waits = matches!(code, Unavailable | DeadlineExceeded | Aborted);
        let retry = status.get_details_retry_info();
        assert_eq!(retry.is_some(), waits, "{error:?}");
    }
}

#[tokio::test]
async fn several_obstacles_are_listed_each_with_its_reason() {
    let obstacles = vec![
        Obstacle::SchemasDiffer { table: "Orders".to_owned(), why: "is missing".to_owned() },
        Obstacle::TargetNotEmpty { cell: cell("cell-b"), items: 3 },
        Obstacle::GuardMissing { cell: cell("cell-a") },
    ];
    let status = answered(MigrationError::Obstructed(obstacles)).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(reason(&status), "MIGRATION_OBSTRUCTED");
    let violations = status.get_details_precondition_failure().unwrap().violations;
    let listed: Vec<_> = violations
        .iter()
        .map(|violation| (violation.r#type.as_str(), violation.subject.as_str()))
        .collect();
    assert_eq!(
        listed,
        [("SCHEMAS_DIFFER", "Orders"), ("TARGET_NOT_EMPTY", "cell-b"), ("GUARD_MISSING", "cell-a")]
    );
    assert!(violations[1].description.contains("3 items"), "{violations:?}");

    // One alone gives its own reason, and is listed, too.
    let status = answered(Obstacle::NoTables { cell: cell("cell-b") }.into()).await;
    let violations = status.get_details_precondition_failure().unwrap().violations;
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].r#type, reason(&status));

    // No more than anybody reads.
    let many = vec![Obstacle::NotRecoverable { table: "Orders".to_owned() }; 500];
    let status = answered(MigrationError::Obstructed(many)).await;
    assert_eq!(status.get_details_precondition_failure().unwrap().violations.len(), 50);
}

#[tokio::test]
async fn who_is_on_the_way_already_is_not_moved_again() {
    let fake = Arc::new(FakeMigrations::with([1]));
    let service = service(&fake);
    let status = service.start_migration(Request::new(start())).await.unwrap_err();
    assert_eq!(reason(&status), "MIGRATION_RUNNING");
    assert_eq!(status.get_details_error_info().unwrap().metadata["migration_id"], id(1));
    assert_eq!(fake.state(|state| state.migrations.len()), 1);
    fake.change(1, |one| one.record.phase = cells_migration::Phase::Aborted);
    assert!(service.start_migration(Request::new(start())).await.is_ok());
}
