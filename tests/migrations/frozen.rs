//! Writers that know nothing of guards: plain DynamoDB calls to whatever cell they were told of. Followed by the stream, and stopped by a
//! hook that a test serves, they lose nothing.

mod applications;
mod hook;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cell_directory::proto::v1;
use tonic::Code;
use tonic_types::StatusExt;

use self::applications::Applications;
use self::hook::{Hook, Obeys};
use crate::celld;
use crate::dynamodb_local::DynamoDbLocal;
use crate::embedded::Embedded;
use crate::proxy_denying::DenyingProxy;
use crate::scene::{self, Scene, request};
use crate::streams_proxy::StreamsProxy;
use crate::world::{self, Engine, fault};

const TENANT: &str = "outsider";

/// Longest wait, on a busy machine.
const SOON: Duration = Duration::from_secs(300);

fn embedded() -> Engine {
    Engine::Embedded(Arc::new(Embedded::temporary()))
}

/// Flags are kept for a server that is started again.
fn flag(text: String) -> &'static str {
    Box::leak(text.into_boxed_str())
}

fn flags(hook: &Hook, more: &[&'static str]) -> Vec<&'static str> {
    let url = flag(format!("--migration-freeze-url={}", hook.url));
    [&[url, "--migration-freeze-settle=300ms"], more].concat()
}

/// A scene with a hook, whose freezes have to hold for a moment.
async fn scene_with(engine: Engine, hook: &Hook, more: &[&'static str]) -> Scene {
    let mut scene = Scene::with_flags(engine, &flags(hook, more)).await;
    scene.pin(TENANT, "cell-a").await;
    scene
}

fn asked(writers: v1::MigrationWriters) -> v1::StartMigrationRequest {
    v1::StartMigrationRequest { writers: writers.into(), ..request(TENANT, "cell-b") }
}

/// Waits until something holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Scene {
    async fn cancel(&mut self, id: &str) {
        let migration_id = id.to_owned();
        self.moves.cancel_migration(v1::CancelMigrationRequest { migration_id }).await.unwrap();
    }
}

macro_rules! on_both_engines {
    ($($case:ident),+ $(,)?) => {
        mod on_embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(super::embedded()).await;
            })+
        }
        mod on_dynamodb_local {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                super::$case(super::Engine::DynamoDbLocal(super::DynamoDbLocal::shared())).await;
            })+
        }
    };
}

on_both_engines!(what_was_acknowledged_before_the_freeze_is_there_and_back_again);

async fn what_was_acknowledged_before_the_freeze_is_there_and_back_again(engine: Engine) {
    let hook = Hook::start(Obeys::AtOnce).await;
    let mut scene = scene_with(engine, &hook, &[]).await;
    let applications = Applications::start(&scene, &hook, TENANT).await;
    applications.more(300).await;

    let begun = scene.start_with(asked(v1::MigrationWriters::Frozen)).await.unwrap();
    let spec = begun.spec.clone().unwrap();
    assert_eq!(spec.writers(), v1::MigrationWriters::Frozen);
    assert!(!begun.writes_may_be_lost);
    let id = begun.migration_id;
    let soaking = scene.until(&id, v1::MigrationState::Soaking).await;
    // They go on in the target, as they were told.
    until("they write in the target", async || hook.cell() == "cell-b").await;
    applications.more(50).await;
    applications.pause().await;
    applications.are_in(&scene, "cell-b").await;
    let progress = soaking.progress.unwrap();
    assert!(progress.stream_applied > 0, "{progress:?}");
    assert_eq!(soaking.report.as_ref().unwrap().mismatches, 0, "{:?}", soaking.report);

    let orders = hook.orders();
    let actions: Vec<_> = orders.iter().map(|o| (o.action.as_str(), o.cell.as_str())).collect();
    assert_eq!(actions, [("THAW", "cell-a"), ("FREEZE", "cell-a"), ("THAW", "cell-b")]);
    assert!(orders.iter().all(|order| order.migration == id && order.tenant == TENANT));
    let numbers: Vec<_> = orders.iter().map(|order| (order.number, order.order)).collect();
    assert!(numbers.is_sorted_by(|one, next| one < next) && numbers[0] >= (1, 1), "{numbers:?}");

    hook.resume("cell-b").await;
    applications.more(50).await;
    scene.reverse(&id).await;
    let done = scene.until(&id, v1::MigrationState::Done).await;
    assert_eq!((done.live_cell_id.as_str(), done.leg()), ("cell-a", v1::MigrationLeg::Back));
    until("they write in the source again", async || hook.cell() == "cell-a").await;
    applications.more(50).await;
    applications.stop().await.are_in(&scene, "cell-a").await;
    for table in applications::TABLES {
        assert_eq!(scene.items(table, "cell-b").await, BTreeMap::new(), "{table}");
        // No marker is left, nor a log.
        for cell in ["cell-a", "cell-b"] {
            let records = scene.directory_items(table, cell).await;
            assert!(records.iter().all(|key| key.contains("guard#")), "{records:?}");
        }
    }
}

/// A hook that answers before the freeze holds, as one does that attaches a policy, and lets nobody write but where the tenant lives. What
/// is written until it holds is not lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_is_probed_until_it_holds() {
    let engine = Embedded::temporary();
    let denying = Arc::new(DenyingProxy::start(engine.endpoint().to_owned(), "PROBE").await);
    let hook = Hook::start(Obeys::Later).await;
    let mut scene = scene_with(Engine::At(denying.endpoint()), &hook, &[]).await;
    let folder = tempfile::tempdir().unwrap();
    let credentials = folder.path().join("credentials");
    let text = "[applications]\naws_access_key_id = PROBE\naws_secret_access_key = none\n";
    std::fs::write(&credentials, text).unwrap();
    let mut serve = celld::command(&["serve", "--listen", "127.0.0.1:0"]);
    serve.args(["--dynamodb-endpoint", &denying.endpoint(), "--region", "eu-west-1"]);
    serve.args(["--table-prefix", &scene.world.prefix]).args(world::FLAGS).args(scene::FLAGS);
    serve.arg(format!("--migration-freeze-url={}", hook.url));
    serve.args(["--migration-freeze-settle=300ms", "--migration-freeze-budget=2m"]);
    serve.arg("--migration-freeze-probe-profile=applications");
    serve.env("AWS_SHARED_CREDENTIALS_FILE", &credentials);
    let server = celld::Celld::start(serve);
    server.ready().await;
    std::mem::replace(&mut scene.world.server, server).kill();
    let channel = scene.world.server.channel().await;
    scene.moves = v1::migration_service_client::MigrationServiceClient::new(channel);

    // Refused before anybody was stopped, the probe would say that they are, always.
    denying.deny(&["cell-a"]);
    let status = scene.start_with(asked(v1::MigrationWriters::Frozen)).await.unwrap_err();
    let (code, reason, _) = fault(&status);
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "FREEZE_PROBE_REFUSED"));
    assert_eq!(status.get_details_error_info().unwrap().metadata["cell_id"], "cell-a");
    denying.deny(&["cell-b"]);
    let lifting = denying.clone();
    hook.on(move |order| match (order.action.as_str(), order.cell.as_str()) {
        ("THAW", "cell-a") => lifting.deny(&["cell-b"]),
        ("THAW", _) => lifting.deny(&["cell-a"]),
        _ => {}
    });

    let applications = Applications::start(&scene, &hook, TENANT).await;
    applications.more(100).await;
    let id = scene.start_with(asked(v1::MigrationWriters::Frozen)).await.unwrap().migration_id;
    let mut seen = String::new();
    let deadline = Instant::now() + SOON;
    while !hook.told("FREEZE") {
        assert!(Instant::now() < deadline, "nobody is asked to stop them: {seen}");
        seen = format!("{:?}", scene.get(&id).await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    until("what is waited for is told", async || {
        scene.get(&id).await.trouble.contains("still let through")
    })
    .await;
    applications.more(100).await;
    assert_eq!(scene.get(&id).await.state(), v1::MigrationState::Verifying);
    // A probe that fails says nothing, and what AWS says of it is not for callers.
    denying.fail(true);
    let failed = "the probe of the freeze failed";
    until("that it fails is told", async || scene.get(&id).await.trouble.contains(failed)).await;
    let trouble = scene.get(&id).await.trouble;
    assert!(!trouble.contains("arn:") && !trouble.contains("token"), "{trouble}");
    denying.fail(false);
    // Now it holds.
    applications.pause().await;
    denying.throttle(3);
    denying.deny(&["cell-a", "cell-b"]);
    scene.until(&id, v1::MigrationState::Soaking).await;
    applications.stop().await.are_in(&scene, "cell-b").await;
    assert!(denying.denied() > 0 && denying.throttled());
    for table in applications::TABLES {
        let left = scene.directory_items(table, "cell-a").await;
        assert!(!left.iter().any(|key| key.contains("mark#")), "markers are left: {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thaw_that_arrives_in_the_freeze_after_it_lets_nobody_write() {
    let hook = Hook::start(Obeys::ThawsLate).await;
    let mut scene = scene_with(embedded(), &hook, &["--migration-freeze-timeout=1s"]).await;
    let applications = Applications::start(&scene, &hook, TENANT).await;
    applications.more(100).await;
    let id = scene.start_with(asked(v1::MigrationWriters::Frozen)).await.unwrap().migration_id;
    scene.until(&id, v1::MigrationState::Soaking).await;
    assert_eq!(hook.landed(), (1, 0));
    // Repeated, it is the same order.
    let orders = hook.orders();
    let [first, again] = [&orders[0], &orders[1]];
    assert_eq!([first.action.as_str(), again.action.as_str()], ["THAW"; 2]);
    assert_eq!((first.number, first.order), (again.number, again.order));
    until("they write in the target", async || hook.cell() == "cell-b").await;
    applications.more(50).await;
    applications.stop().await.are_in(&scene, "cell-b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_over_from_a_worker_that_died_in_its_freeze_lifts_it_and_freezes_again() {
    let hook = Hook::start(Obeys::FreezesMutely).await;
    let more = ["--migration-freeze-timeout=1m"];
    let mut scene = scene_with(embedded(), &hook, &more).await;
    let applications = Applications::start(&scene, &hook, TENANT).await;
    applications.more(100).await;
    let id = scene.start_with(asked(v1::MigrationWriters::Frozen)).await.unwrap().migration_id;
    until("they are frozen", async || hook.gate().read().await.is_none()).await;

    let other = scene.world.join(&[&scene::FLAGS[..], &flags(&hook, &more)].concat()).await;
    let channel = other.channel().await;
    scene.moves = v1::migration_service_client::MigrationServiceClient::new(channel);
    std::mem::replace(&mut scene.world.server, other).kill();
    scene.until(&id, v1::MigrationState::Soaking).await;
    until("they write in the target", async || hook.cell() == "cell-b").await;
    applications.more(50).await;
    applications.stop().await.are_in(&scene, "cell-b").await;

    let orders = hook.orders();
    let actions: Vec<_> = orders.iter().map(|o| (o.action.as_str(), o.cell.as_str())).collect();
    let (thaw, freeze) = (("THAW", "cell-a"), ("FREEZE", "cell-a"));
    assert_eq!(actions, [thaw, freeze, thaw, freeze, ("THAW", "cell-b")]);
    let workers: Vec<_> = orders.iter().map(|order| order.number).collect();
    assert!(workers[0] == workers[1] && workers[1] < workers[2], "{workers:?}");
    assert_eq!(workers[2..], [workers[2]; 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_refuses_or_hangs_stops_the_move_and_not_the_writers() {
    for (obeys, said) in [(Obeys::Never, "answered 503"), (Obeys::Silent, "did not answer")] {
        let hook = Hook::start(obeys).await;
        let timeout = match obeys {
            Obeys::Silent => "--migration-freeze-timeout=200ms",
            _ => "--migration-freeze-timeout=1m",
        };
        let more = [timeout, "--migration-freeze-budget=1s"];
        let mut scene = scene_with(embedded(), &hook, &more).await;
        let applications = Applications::start(&scene, &hook, TENANT).await;
        applications.more(100).await;
        let id = scene.start_with(asked(v1::MigrationWriters::Frozen)).await.unwrap().migration_id;
        until("it was tried, and thawed, twice", async || hook.count_after_freeze("THAW") >= 2)
            .await;
        let migration = scene.get(&id).await;
        assert_eq!(migration.state(), v1::MigrationState::Verifying, "{migration:?}");
        assert_eq!(migration.progress.unwrap().fences, 0, "other writers were made to wait");
        assert!(migration.trouble.contains(said), "{}", migration.trouble);
        applications.more(50).await;

        scene.cancel(&id).await;
        scene.until(&id, v1::MigrationState::Aborted).await;
        // Of what was in a queue, nothing stops them any more.
        let (late, done) = hook.land().await;
        assert_eq!((late > 0, done), (obeys == Obeys::Silent, 0));
        applications.more(50).await;
        applications.stop().await.are_in(&scene, "cell-a").await;
        for table in applications::TABLES {
            assert_eq!(scene.items(table, "cell-b").await, BTreeMap::new(), "{table}");
        }
        assert_eq!(scene.placement(TENANT).await.cell_id, "cell-a");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_was_trimmed_means_to_copy_again() {
    let engine = Embedded::temporary();
    let streams = Arc::new(StreamsProxy::start(engine.endpoint().to_owned()).await);
    let hook = Hook::start(Obeys::AtOnce).await;
    let mut scene = scene_with(Engine::Streams(streams.clone()), &hook, &[]).await;
    let applications = Applications::start(&scene, &hook, TENANT).await;
    applications.more(100).await;
    streams.lose();
    let id = scene.start_with(asked(v1::MigrationWriters::Frozen)).await.unwrap().migration_id;
    let mut first = 0;
    until("it was copied twice", async || {
        let migration = scene.get(&id).await;
        let progress = migration.progress.unwrap();
        first = progress.items_estimated;
        first > 0 && progress.items_copied > 3 * first / 2
    })
    .await;
    assert!(!hook.told("FREEZE"), "nobody is stopped before the stream is known");
    streams.keep();
    scene.until(&id, v1::MigrationState::Soaking).await;
    applications.stop().await.are_in(&scene, "cell-b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn best_effort_moves_a_writer_that_stops_by_itself_and_says_what_it_is() {
    let hook = Hook::start(Obeys::Never).await;
    let mut scene = Scene::new(embedded()).await;
    scene.pin(TENANT, "cell-a").await;
    let applications = Applications::start(&scene, &hook, TENANT).await;
    applications.more(100).await;
    let request = v1::StartMigrationRequest {
        // A way back would be another move.
        soak_duration: Some(prost_types::Duration::default()),
        rate_limit_units: 20,
        ..asked(v1::MigrationWriters::BestEffort)
    };
    let planned = v1::StartMigrationRequest { validate_only: true, ..request.clone() };
    let planned = scene.moves.start_migration(planned).await.unwrap().into_inner();
    let spec = planned.estimate.unwrap().spec.unwrap();
    assert_eq!(spec.writers(), v1::MigrationWriters::BestEffort);
    let begun = scene.start_with(request).await.unwrap();
    assert!(begun.writes_may_be_lost);
    let id = begun.migration_id;
    until("it copies", async || scene.get(&id).await.progress.unwrap().items_copied > 0).await;
    applications.more(50).await;
    let stopped = applications.stop().await;
    let done = scene.until(&id, v1::MigrationState::Done).await;
    assert!(done.writes_may_be_lost, "{done:?}");
    assert!(done.progress.unwrap().stream_applied > 0);
    stopped.are_in(&scene, "cell-b").await;
    assert!(hook.orders().is_empty(), "nobody is asked to stop");
    let list = v1::ListMigrationsRequest::default();
    let listed = scene.moves.list_migrations(list).await.unwrap().into_inner().migrations;
    assert!(listed.iter().all(|one| one.writes_may_be_lost) && listed.len() == 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_such_a_move_needs_is_asked_for_before_anything_is_changed() {
    let mut scene = Scene::new(embedded()).await;
    scene.pin(TENANT, "cell-a").await;
    let hookless = [
        asked(v1::MigrationWriters::Frozen),
        v1::StartMigrationRequest { validate_only: true, ..asked(v1::MigrationWriters::Frozen) },
    ];
    for request in hookless {
        let status = scene.start_with(request).await.unwrap_err();
        let (code, reason, _) = fault(&status);
        assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "FREEZE_NOT_CONFIGURED"));
        assert!(status.message().contains("migration_freeze_url"), "{}", status.message());
    }
    for cell in ["cell-a", "cell-b"] {
        let table = scene.world.table("Carts", cell);
        set_stream(&scene, &table, false).await;
        let status = scene.start_with(asked(v1::MigrationWriters::BestEffort)).await.unwrap_err();
        let (code, reason, _) = fault(&status);
        assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, "NO_STREAM"));
        assert!(status.message().contains(&table), "{}", status.message());
        set_stream(&scene, &table, true).await;
    }
    assert_eq!(scene.placement(TENANT).await.migration_id, "");
    let list = v1::ListMigrationsRequest::default();
    let listed = scene.moves.list_migrations(list).await.unwrap().into_inner().migrations;
    assert!(listed.is_empty(), "{listed:?}");
}

async fn set_stream(scene: &Scene, table: &str, on: bool) {
    use aws_sdk_dynamodb::types::{StreamSpecification, StreamViewType};
    let stream = StreamSpecification::builder().stream_enabled(on);
    let stream = stream.set_stream_view_type(on.then_some(StreamViewType::KeysOnly));
    let update = scene.tables.update_table().table_name(table);
    update.stream_specification(stream.build().unwrap()).send().await.unwrap();
}
