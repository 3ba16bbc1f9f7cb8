//! What a collector receives of a migration.

use std::sync::Arc;
use std::time::Duration;

use cell_directory::proto::v1;

use crate::embedded::Embedded;
use crate::otlp::OtlpReceiver;
use crate::scene::{Item, Scene, partition, request, text};
use crate::world::Engine;

/// One trace, whose id is the migration's; a span for each phase, linked to the call that began it; counts, and nothing of an item.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migration_is_one_trace_that_is_linked_to_its_caller() {
    let (endpoint, collector) = OtlpReceiver::start().await;
    let flag: &'static str = format!("--otlp-endpoint={endpoint}").leak();
    let engine = Engine::Embedded(Arc::new(Embedded::temporary()));
    // Nothing is sampled: migrations are recorded always.
    let mut scene = Scene::with_flags(engine, &[flag, "--trace-sample-ratio=0"]).await;
    scene.pin("traced", "cell-a").await;
    for n in 0..120 {
        let item = Item::from([
            ("PK".to_owned(), text(&partition("traced"))),
            ("SK".to_owned(), text(&format!("SECRET{n:03}"))),
        ]);
        scene.write("CustomerData", "cell-a", item).await;
    }
    let asked = v1::StartMigrationRequest {
        soak_duration: Some(prost_types::Duration::default()),
        ..request("traced", "cell-b")
    };
    let mut asked = tonic::Request::new(asked);
    let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    asked.metadata_mut().insert("traceparent", caller.parse().unwrap());
    let begun = scene.moves.start_migration(asked).await.unwrap().into_inner().migration.unwrap();
    scene.until(&begun.migration_id, v1::MigrationState::Done).await;

    let phases =
        ["LOGGING", "COPYING", "CATCHING_UP", "VERIFYING", "FENCED", "COMMITTED", "CLEANING"];
    for phase in phases {
        let name = format!("migration {phase}");
        let spans = collector.wait_for_span(&name, Duration::from_secs(60)).await;
        let span = spans.named(&name)[0].clone();
        assert_eq!(span.trace_id, begun.migration_id, "{name}");
        let linked = span.links.iter().any(|l| l.trace_id == "0af7651916cd43dd8448eb211c80319c");
        assert!(linked, "{name}: {:?}", span.links);
        assert_eq!(span.str("cell.migration.source"), Some("cell-a"));
        if phase == "COPYING" {
            assert_eq!(span.int("cell.migration.items_copied"), Some(120));
            assert!(span.events.iter().any(|event| event.name == "copied"), "{:?}", span.events);
        }
    }
    assert!(!collector.ever_received("SECRET"), "an item's key was told");
}
