use std::num::NonZeroU32;
use std::time::Duration;

use prost_types::Duration as Wire;

use super::*;
use crate::domain::Constraints;
use crate::migration::{Ask, Instruction, TargetCell, Verification, Writers, fake};

fn wire(duration: Duration) -> Option<Wire> {
    Some(Wire { seconds: duration.as_secs() as i64, nanos: duration.subsec_nanos() as i32 })
}

/// A label with the value `gold`, and a Region.
fn constraints(label: &str, region: &str) -> Option<v1::PlacementConstraints> {
    let labels = [(label.to_owned(), "gold".to_owned())].into();
    Some(v1::PlacementConstraints { labels, regions: vec![region.to_owned()] })
}

#[tokio::test]
async fn what_is_asked_arrives_as_it_was_asked() {
    let fake = Arc::new(FakeMigrations::default());
    let service = service(&fake);
    let plain = service.start_migration(Request::new(start())).await.unwrap().into_inner();
    assert!(plain.estimate.is_none());
    let asked = fake.state(|state| state.asked.take()).unwrap();
    let expected = Ask {
        tenant: crate::domain::PartitionKey::new("tenant-1").unwrap(),
        target: TargetCell::Cell(crate::domain::CellId::new("cell-1").unwrap()),
        verification: Verification::LogDrain,
        writers: Writers::Cooperative,
        soak: None,
        pause_budget: None,
        rate_limit: None,
    };
    assert_eq!(asked, expected);

    let all = v1::StartMigrationRequest {
        partition_key: "tenant-2".to_owned(),
        target: Some(v1::start_migration_request::Target::Choose(true)),
        verification: v1::MigrationVerification::Strict.into(),
        soak_duration: wire(Duration::ZERO),
        pause_budget: wire(Duration::from_millis(50)),
        rate_limit_units: 1_000_000,
        writers: v1::MigrationWriters::BestEffort.into(),
        constraints: constraints("tier", "eu-west-1"),
        ..Default::default()
    };
    let begun = service.start_migration(Request::new(all)).await.unwrap().into_inner();
    let asked = fake.state(|state| state.asked.take()).unwrap();
    let due = Constraints {
        labels: crate::domain::Labels::new([("tier".to_owned(), "gold".to_owned())].into())
            .unwrap(),
        regions: vec![crate::domain::Region::new("eu-west-1").unwrap()],
    };
    assert_eq!(asked.target, TargetCell::Choose(Arc::new(due)));
    assert_eq!(asked.verification, Verification::Strict);
    assert_eq!(asked.writers, Writers::BestEffort);
    assert_eq!(asked.soak, Some(Duration::ZERO));
    assert_eq!(asked.pause_budget, Some(Duration::from_millis(50)));
    assert_eq!(asked.rate_limit, NonZeroU32::new(1_000_000));
    let spec = begun.migration.unwrap().spec.unwrap();
    assert_eq!((spec.target_cell_id.as_str(), spec.rate_limit_units), ("cell-2", 1_000_000));
    assert_eq!(spec.verification(), v1::MigrationVerification::Strict);
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_told_by_its_field_and_nothing_is_asked() {
    let fake = Arc::new(FakeMigrations::default());
    let service = service(&fake);
    type Change = fn(&mut v1::StartMigrationRequest);
    let wrong: [(&str, &str, Change); 29] = [
        ("partition_key", "INVALID_PARTITION_KEY", |r| r.partition_key.clear()),
        ("partition_key", "INVALID_PARTITION_KEY", |r| r.partition_key = "a".repeat(1025)),
        ("partition_key", "INVALID_PARTITION_KEY", |r| r.partition_key = "a\n".to_owned()),
        ("target_cell_id", "MISSING_FIELD", |r| r.target = None),
        ("target_cell_id", "INVALID_CELL_ID", |r| r.target = Some(to(""))),
        ("target_cell_id", "INVALID_CELL_ID", |r| r.target = Some(to(&"a".repeat(64)))),
        ("choose", "MISSING_FIELD", |r| {
            r.target = Some(v1::start_migration_request::Target::Choose(false))
        }),
        ("choose", "MISSING_FIELD", |r| r.constraints = constraints("tier", "eu-west-1")),
        ("constraints.labels", "INVALID_LABELS", |r| {
            r.target = Some(v1::start_migration_request::Target::Choose(true));
            r.constraints = constraints("Tier", "eu-west-1");
        }),
        ("constraints.regions[0]", "INVALID_REGION", |r| {
            r.target = Some(v1::start_migration_request::Target::Choose(true));
            r.constraints = constraints("tier", "EU");
        }),
        ("verification", "UNKNOWN_ENUM_VALUE", |r| r.verification = 3),
        ("verification", "UNKNOWN_ENUM_VALUE", |r| r.verification = -1),
        ("writers", "UNKNOWN_ENUM_VALUE", |r| r.writers = 4),
        ("writers", "UNKNOWN_ENUM_VALUE", |r| r.writers = -1),
        ("soak_duration", "INVALID_DURATION", |r| {
            r.soak_duration = Some(Wire { seconds: 30 * 24 * 3600, nanos: 1 })
        }),
        ("soak_duration", "INVALID_DURATION", |r| {
            r.soak_duration = Some(Wire { seconds: -1, nanos: 0 })
        }),
        ("soak_duration", "INVALID_DURATION", |r| {
            r.soak_duration = Some(Wire { seconds: 0, nanos: -1 })
        }),
        ("soak_duration", "INVALID_DURATION", |r| {
            r.soak_duration = Some(Wire { seconds: 1, nanos: 1_000_000_000 })
        }),
        ("soak_duration", "INVALID_DURATION", |r| {
            r.soak_duration = Some(Wire { seconds: i64::MIN, nanos: i32::MIN })
        }),
        ("pause_budget", "INVALID_DURATION", |r| {
            r.pause_budget = Some(Wire { seconds: 0, nanos: 49_999_999 })
        }),
        ("pause_budget", "INVALID_DURATION", |r| {
            r.pause_budget = Some(Wire { seconds: 60, nanos: 1 })
        }),
        ("pause_budget", "INVALID_DURATION", |r| r.pause_budget = Some(Wire::default())),
        ("pause_budget", "INVALID_DURATION", |r| {
            r.pause_budget = Some(Wire { seconds: i64::MAX, nanos: 0 })
        }),
        ("rate_limit_units", "INVALID_RATE_LIMIT", |r| r.rate_limit_units = 1_000_001),
        ("rate_limit_units", "INVALID_RATE_LIMIT", |r| r.rate_limit_units = u32::MAX),
        ("request_id", "INVALID_REQUEST_ID", |r| r.request_id = "a b".to_owned()),
        ("request_id", "INVALID_REQUEST_ID", |r| r.request_id = "a".repeat(65)),
        ("request_id", "INVALID_REQUEST_ID", |r| {
            r.validate_only = true;
            r.request_id = "\u{7f}".to_owned();
        }),
        ("partition_key", "INVALID_PARTITION_KEY", |r| {
            r.validate_only = true;
            r.partition_key.clear();
        }),
    ];
    for (field, why, change) in wrong {
        let mut request = start();
        change(&mut request);
        refused(service.start_migration(Request::new(request)).await, field, why);
    }
    fake.state(|state| assert!(state.asked.is_none() && state.migrations.is_empty()));

    // What is just within bounds.
    let edges = v1::StartMigrationRequest {
        soak_duration: wire(Duration::from_secs(30 * 24 * 3600)),
        pause_budget: wire(Duration::from_secs(60)),
        rate_limit_units: 1,
        ..start()
    };
    service.start_migration(Request::new(edges)).await.unwrap();
}

#[tokio::test]
async fn an_estimate_changes_nothing() {
    let fake = Arc::new(FakeMigrations::with([1]));
    let service = service(&fake);
    let before = fake.state(|state| state.migrations.clone());
    // Its tenant is on its way: whoever began something would be refused.
    let request =
        v1::StartMigrationRequest { validate_only: true, request_id: "once".to_owned(), ..start() };
    let answer = service.start_migration(Request::new(request)).await.unwrap().into_inner();
    assert!(answer.migration.is_none());
    let estimate = answer.estimate.unwrap();
    assert_eq!((estimate.items, estimate.size_bytes), (100, 40_000));
    assert_eq!((estimate.read_units, estimate.write_units), (300, 400));
    assert_eq!(estimate.cost_micros, Some(625));
    assert_eq!(estimate.duration, wire(Duration::from_secs(12)));
    let spec = estimate.spec.unwrap();
    assert_eq!((spec.source_cell_id.as_str(), spec.target_cell_id.as_str()), ("cell-0", "cell-1"));
    assert_eq!(spec.soak_duration, wire(Duration::from_secs(3600)));
    assert_eq!(fake.state(|state| state.migrations.clone()), before);
}

#[tokio::test]
async fn a_request_that_comes_again_is_answered_with_what_it_began() {
    let fake = Arc::new(FakeMigrations::default());
    let service = service(&fake);
    let named = |soak| v1::StartMigrationRequest {
        request_id: "r-1".to_owned(),
        soak_duration: wire(Duration::from_secs(soak)),
        ..start()
    };
    let mut begun = Vec::new();
    for _ in 0..2 {
        let answer = service.start_migration(Request::new(named(60))).await.unwrap();
        begun.push(answer.into_inner().migration.unwrap().migration_id);
    }
    assert_eq!(begun[0], begun[1]);
    let other = service.start_migration(Request::new(named(61))).await;
    refused(other, "request_id", "REQUEST_ID_REUSED");
    assert_eq!(fake.state(|state| state.migrations.len()), 1);
}

#[tokio::test]
async fn ids_that_are_none_are_refused_and_not_repeated() {
    let fake = Arc::new(FakeMigrations::with([0xabc]));
    let service = service(&fake);
    let ids = [
        String::new(),
        "a".repeat(31),
        "a".repeat(33),
        "A".repeat(32),
        format!("+{:031x}", 1),
        format!("{:032x} ", 0xabc),
        "f".repeat(100_000),
        "é".repeat(16),
    ];
    let why = "INVALID_MIGRATION_ID";
    for migration_id in ids {
        let get = v1::GetMigrationRequest { migration_id: migration_id.clone() };
        refused(service.get_migration(Request::new(get)).await, "migration_id", why);
        let pause = v1::PauseMigrationRequest { migration_id: migration_id.clone() };
        refused(service.pause_migration(Request::new(pause)).await, "migration_id", why);
        let watch = v1::WatchMigrationRequest { migration_id };
        let watch = service.watch_migration(Request::new(watch)).await.map(|_| Response::new(()));
        refused(watch, "migration_id", why);
    }
    let get = v1::GetMigrationRequest { migration_id: id(0xabc) };
    let found = service.get_migration(Request::new(get)).await.unwrap().into_inner();
    assert_eq!(found.migration.unwrap().migration_id, id(0xabc));
}

/// Asks for one instruction. Answers the migration.
async fn steer(
    service: &MigrationService,
    wish: Instruction,
    number: u128,
) -> Result<v1::Migration, Status> {
    let migration_id = id(number);
    macro_rules! call {
        ($method:ident, $request:ident) => {{
            let request = Request::new(v1::$request { migration_id });
            service.$method(request).await?.into_inner().migration
        }};
    }
    let migration = match wish {
        Instruction::Cancel => call!(cancel_migration, CancelMigrationRequest),
        Instruction::Reverse => call!(reverse_migration, ReverseMigrationRequest),
        Instruction::Complete => call!(complete_migration, CompleteMigrationRequest),
        Instruction::Pause => call!(pause_migration, PauseMigrationRequest),
        Instruction::Resume => call!(resume_migration, ResumeMigrationRequest),
        Instruction::Retry => call!(retry_migration, RetryMigrationRequest),
    };
    Ok(migration.unwrap())
}

#[tokio::test]
async fn each_call_steers_as_it_says_and_may_be_repeated() {
    use cells_migration::Phase;
    let fake = Arc::new(FakeMigrations::default());
    let service = service(&fake);
    for number in 1..=6 {
        fake.change(number, |one| one.record.phase = Phase::Soaking);
    }
    fake.change(1, |one| one.record.phase = Phase::Copying);
    for _ in 0..2 {
        let cancelled = steer(&service, Instruction::Cancel, 1).await.unwrap();
        assert_eq!(cancelled.wish(), v1::MigrationWish::Cancel);
        let reversed = steer(&service, Instruction::Reverse, 2).await.unwrap();
        assert_eq!(reversed.wish(), v1::MigrationWish::Reverse);
        let completed = steer(&service, Instruction::Complete, 3).await.unwrap();
        assert_eq!(completed.wish(), v1::MigrationWish::Complete);
        assert!(steer(&service, Instruction::Pause, 4).await.unwrap().paused);
        fake.change(5, |one| one.record.paused = true);
        assert!(!steer(&service, Instruction::Resume, 5).await.unwrap().paused);
        fake.change(6, |one| one.parked = Some("a key is disabled".to_owned()));
        assert_eq!(steer(&service, Instruction::Retry, 6).await.unwrap().parked_reason, "");
    }
}

#[tokio::test]
async fn what_there_is_no_time_for_is_refused_with_what_to_do_instead() {
    use cells_migration::Phase;
    let fake = Arc::new(FakeMigrations::default());
    let service = service(&fake);
    let cases = [
        (Instruction::Cancel, Phase::Committed, "COMMITTED", "reversed"),
        (Instruction::Reverse, Phase::Copying, "COPYING", "cancel it"),
        (Instruction::Complete, Phase::Fenced, "FENCED", "SOAKING alone"),
        (Instruction::Pause, Phase::Done, "DONE", "it has ended"),
        (Instruction::Resume, Phase::Aborted, "ABORTED", "it has ended"),
        (Instruction::Retry, Phase::Copying, "COPYING", "nobody gave it up"),
    ];
    for (number, (wish, phase, state, instead)) in (1..).zip(cases) {
        fake.change(number, |one| one.record.phase = phase);
        let before = fake.state(|state| state.migrations.clone());
        let status = steer(&service, wish, number).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(reason(&status), "INSTRUCTION_NOT_ALLOWED");
        assert!(status.message().contains(instead), "{}", status.message());
        assert!(status.message().contains(wish.done()), "{}", status.message());
        let metadata = status.get_details_error_info().unwrap().metadata;
        assert_eq!(metadata["state"], state);
        assert_eq!(metadata["migration_id"], id(number));
        assert_eq!(fake.state(|state| state.migrations.clone()), before);
    }
    let missing = steer(&service, Instruction::Cancel, 99).await.unwrap_err();
    assert_eq!(
        (missing.code(), reason(&missing).as_str()),
        (Code::NotFound, "MIGRATION_NOT_FOUND")
    );
}

/// All migrations of a listing, page by page; how many pages there were.
async fn list(
    service: &MigrationService,
    mut request: v1::ListMigrationsRequest,
) -> (Vec<String>, usize) {
    let (mut ids, mut pages) = (Vec::new(), 0);
    loop {
        let page = service.list_migrations(Request::new(request.clone())).await.unwrap();
        let page = page.into_inner();
        ids.extend(page.migrations.into_iter().map(|one| one.migration_id));
        pages += 1;
        if page.next_page_token.is_empty() {
            return (ids, pages);
        }
        request.page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn migrations_are_listed_page_by_page_by_tenant_cell_and_whether_they_go_on() {
    let fake = Arc::new(FakeMigrations::with(1..=5));
    fake.change(2, |one| one.record.phase = cells_migration::Phase::Done);
    fake.change(3, |one| one.spec.target = crate::domain::CellId::new("cell-3").unwrap());
    let service = service(&fake);
    let all = v1::ListMigrationsRequest { page_size: 2, ..Default::default() };
    let numbers = |numbers: &[u128]| numbers.iter().map(|number| id(*number)).collect::<Vec<_>>();
    assert_eq!(list(&service, all.clone()).await, (numbers(&[1, 2, 3, 4, 5]), 3));
    let active = v1::ListMigrationsRequest { active_only: true, ..all.clone() };
    assert_eq!(list(&service, active).await, (numbers(&[1, 3, 4, 5]), 2));
    let target = v1::ListMigrationsRequest { cell_id: "cell-3".to_owned(), ..all.clone() };
    assert_eq!(list(&service, target).await, (numbers(&[3]), 1));
    let source = v1::ListMigrationsRequest { cell_id: "cell-0".to_owned(), ..all.clone() };
    assert_eq!(list(&service, source).await.0.len(), 5);
    let tenant = v1::ListMigrationsRequest { partition_key: "tenant-4".to_owned(), ..all };
    assert_eq!(list(&service, tenant).await, (numbers(&[4]), 1));
    assert_eq!(list(&service, Default::default()).await.1, 1);
}

#[tokio::test]
async fn a_page_token_is_good_for_its_own_listing_alone() {
    let fake = Arc::new(FakeMigrations::with(1..=5));
    let service = service(&fake);
    let first = v1::ListMigrationsRequest { page_size: 1, ..Default::default() };
    let page = service.list_migrations(Request::new(first.clone())).await.unwrap().into_inner();
    let token = page.next_page_token;
    let going_on = v1::ListMigrationsRequest { page_token: token.clone(), ..first.clone() };
    assert!(service.list_migrations(Request::new(going_on.clone())).await.is_ok());
    type Change = fn(&mut v1::ListMigrationsRequest);
    let other: [Change; 4] = [
        |r| r.active_only = true,
        |r| r.cell_id = "cell-0".to_owned(),
        |r| r.partition_key = "tenant-1".to_owned(),
        |r| r.page_token.push('x'),
    ];
    for change in other {
        let mut request = going_on.clone();
        change(&mut request);
        let answer = service.list_migrations(Request::new(request)).await;
        refused(answer, "page_token", "INVALID_PAGE_TOKEN");
    }
    // Of another method, and of this one with insides that lead nowhere.
    let other = Query { method: "ListOperations", filter: "\u{0}\u{0}false" };
    let own = Query { method: "ListMigrations", filter: "\u{0}\u{0}false" };
    let cursor = |text: &str| Some(crate::store::Cursor(text.to_owned()));
    assert_eq!(own.token(cursor(&id(1))), token);
    for page_token in [other.token(cursor(&id(1))), own.token(cursor("elsewhere"))] {
        let request = v1::ListMigrationsRequest { page_token, ..first.clone() };
        let answer = service.list_migrations(Request::new(request)).await;
        refused(answer, "page_token", "INVALID_PAGE_TOKEN");
    }
    for page_size in [-1, 1001] {
        let request = v1::ListMigrationsRequest { page_size, ..Default::default() };
        let answer = service.list_migrations(Request::new(request)).await;
        refused(answer, "page_size", "INVALID_PAGE_SIZE");
    }
    let request = v1::ListMigrationsRequest { cell_id: "Cell".to_owned(), ..Default::default() };
    refused(service.list_migrations(Request::new(request)).await, "cell_id", "INVALID_CELL_ID");
    let request =
        v1::ListMigrationsRequest { partition_key: "\u{0}".to_owned(), ..Default::default() };
    let answer = service.list_migrations(Request::new(request)).await;
    refused(answer, "partition_key", "INVALID_PARTITION_KEY");
}

#[tokio::test]
async fn tenants_are_verified_and_guards_are_counted() {
    let service = service(&Arc::default());
    let ask = |key: &str| Request::new(v1::VerifyTenantRequest { partition_key: key.to_owned() });
    let verified = service.verify_tenant(ask("tenant-1")).await.unwrap().into_inner();
    let cells: Vec<_> =
        verified.cells.iter().map(|cell| (cell.cell_id.as_str(), cell.items)).collect();
    assert_eq!(cells, [("cell-0", 100), ("cell-1", 2)]);
    assert_eq!(verified.leftovers, 2);
    let report = verified.report.unwrap();
    assert_eq!((report.source_items, report.target_items), (100, 100));
    refused(service.verify_tenant(ask("")).await, "partition_key", "INVALID_PARTITION_KEY");
    let nobody = service.verify_tenant(ask("nobody")).await.unwrap_err();
    assert_eq!(reason(&nobody), "PLACEMENT_NOT_FOUND");

    let ask = |id: &str| Request::new(v1::GetGuardCoverageRequest { cell_id: id.to_owned() });
    let covered = service.get_guard_coverage(ask(fake::SOURCE)).await.unwrap().into_inner();
    assert_eq!((covered.placements, covered.missing), (40, 3));
    assert_eq!(covered.count_time.unwrap().seconds, 1_700_000_000);
    refused(service.get_guard_coverage(ask("")).await, "cell_id", "INVALID_CELL_ID");
    let nowhere = service.get_guard_coverage(ask("cell-9")).await.unwrap_err();
    assert_eq!((nowhere.code(), reason(&nowhere).as_str()), (Code::NotFound, "CELL_NOT_FOUND"));
}

#[tokio::test]
async fn a_migration_remembers_the_trace_of_the_call_that_began_it() {
    let fake = Arc::new(FakeMigrations::default());
    let service = service(&fake);
    let sent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let mut request = Request::new(start());
    request.metadata_mut().insert("traceparent", sent.parse().unwrap());
    service.start_migration(request).await.unwrap();
    let untraced = v1::StartMigrationRequest { partition_key: "tenant-2".to_owned(), ..start() };
    let mut untraced = Request::new(untraced);
    untraced.metadata_mut().insert("traceparent", "00-zz".parse().unwrap());
    service.start_migration(untraced).await.unwrap();
    let callers = fake
        .state(|state| state.migrations.values().map(|one| one.caller.clone()).collect::<Vec<_>>());
    assert_eq!(callers, [Some(sent.to_owned()), None]);
}
