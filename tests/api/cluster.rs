//! The settings that all replicas share.

use std::time::Duration;

use cell_directory::proto::v1;
use tonic::{Code, Status};

use crate::checks::{invalid, refused};
use crate::world::{Engine, Server, World, def, mask, until};

on_both_engines!(
    what_one_server_sets_the_other_knows,
    only_what_was_read_is_changed,
    a_preview_and_a_repeat_change_nothing,
    what_cannot_be_set,
    a_changed_lease_is_granted_everywhere,
);

pub fn millis(millis: i64) -> prost_types::Duration {
    let nanos = i32::try_from(millis % 1000).unwrap() * 1_000_000;
    prost_types::Duration { seconds: millis / 1000, nanos }
}

fn lease(duration: prost_types::Duration) -> v1::UpdateClusterRequest {
    v1::UpdateClusterRequest {
        cluster: Some(v1::Cluster { lease_duration: Some(duration), ..def() }),
        update_mask: mask(&["lease_duration"]),
        ..def()
    }
}

pub async fn get(server: &Server) -> v1::Cluster {
    let answer = server.admin.clone().get_cluster(v1::GetClusterRequest {}).await.unwrap();
    answer.into_inner().cluster.unwrap()
}

pub async fn update(
    server: &Server,
    request: v1::UpdateClusterRequest,
) -> Result<v1::Cluster, Status> {
    let answer = server.admin.clone().update_cluster(request).await?;
    Ok(answer.into_inner().cluster.unwrap())
}

pub async fn set_lease(server: &Server, duration: i64) -> v1::Cluster {
    update(server, lease(millis(duration))).await.unwrap()
}

async fn what_one_server_sets_the_other_knows(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    // Hears of nothing by itself in the time that this takes.
    let other = world.serve(&["--journal-poll-interval=1m"]).await;
    let before = get(&server).await;
    assert_eq!(before.lease_duration, Some(millis(5_000)));
    assert_eq!(before.update_time, None);
    assert!(!before.etag.is_empty() && !before.journal_id.is_empty());
    let changed = set_lease(&server, 1_250).await;
    assert_eq!(changed.lease_duration, Some(millis(1_250)));
    assert!(changed.update_time.is_some() && changed.etag != before.etag);
    assert_eq!(changed.journal_id, before.journal_id);
    assert_eq!(get(&other).await, changed);
    assert_eq!(get(&server).await, changed);
    // And a server that starts now.
    assert_eq!(get(&world.serve(&[]).await).await, changed);
    let again = set_lease(&other, 0).await;
    assert_eq!(get(&server).await, again);
}

async fn only_what_was_read_is_changed(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let other = world.serve(&["--journal-poll-interval=1m"]).await;
    let read = get(&server).await;
    let with_etag = |etag: &str, duration| {
        let mut request = lease(millis(duration));
        request.cluster.as_mut().unwrap().etag = etag.to_owned();
        request
    };
    let changed = update(&other, with_etag(&read.etag, 2_000)).await.unwrap();
    let before = world.dump().await;
    for server in [&server, &other] {
        let answer = update(server, with_etag(&read.etag, 3_000)).await;
        refused(answer, Code::Aborted, "ETAG_MISMATCH");
    }
    assert_eq!(world.dump().await, before);
    // Of many who have read the same, one wins.
    let tries = (0..16).map(|n| {
        let server = [&server, &other][n % 2];
        update(server, with_etag(&changed.etag, 10_000 + i64::try_from(n).unwrap()))
    });
    let won: Vec<_> =
        futures::future::join_all(tries).await.into_iter().filter_map(Result::ok).collect();
    assert_eq!(won.len(), 1, "{won:?}");
    assert_eq!(get(&server).await, won[0]);
}

async fn a_preview_and_a_repeat_change_nothing(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let other = world.serve(&[]).await;
    let before = world.dump().await;
    let preview = v1::UpdateClusterRequest { validate_only: true, ..lease(millis(7_000)) };
    let would_be = update(&server, preview.clone()).await.unwrap();
    assert_eq!(would_be.lease_duration, Some(millis(7_000)));
    assert_eq!(world.dump().await, before);
    let mut stale = preview;
    stale.cluster.as_mut().unwrap().etag = "r77".into();
    refused(update(&server, stale).await, Code::Aborted, "ETAG_MISMATCH");

    let once = v1::UpdateClusterRequest { request_id: "once".into(), ..lease(millis(8_000)) };
    let first = update(&server, once.clone()).await.unwrap();
    let later = set_lease(&server, 9_000).await;
    assert_eq!(update(&other, once).await.unwrap(), first, "what it was answered at first");
    assert_eq!(get(&server).await, later);
    let reused = v1::UpdateClusterRequest { request_id: "once".into(), ..lease(millis(1_000)) };
    refused(update(&other, reused).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    assert_eq!(get(&other).await, later);
}

async fn what_cannot_be_set(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let before = world.dump().await;
    for paths in [&[][..], &["etag"], &["lease_duration", "journal_id"], &["*"]] {
        let request = v1::UpdateClusterRequest { update_mask: mask(paths), ..lease(millis(1)) };
        invalid(update(&server, request).await, "INVALID_UPDATE_MASK", "update_mask");
    }
    let request = v1::UpdateClusterRequest { update_mask: None, ..lease(millis(1)) };
    invalid(update(&server, request).await, "INVALID_UPDATE_MASK", "update_mask");
    let duration = |seconds, nanos| prost_types::Duration { seconds, nanos };
    for bad in [duration(60, 1_000_000), duration(-1, 0), duration(0, 1), duration(i64::MAX, 0)] {
        let answer = update(&server, lease(bad)).await;
        invalid(answer, "INVALID_LEASE_DURATION", "cluster.lease_duration");
    }
    let none = v1::UpdateClusterRequest { cluster: Some(def()), ..lease(millis(1)) };
    invalid(update(&server, none).await, "MISSING_FIELD", "cluster.lease_duration");
    let none = v1::UpdateClusterRequest { cluster: None, ..lease(millis(1)) };
    invalid(update(&server, none).await, "MISSING_FIELD", "cluster");
    let bad_id = v1::UpdateClusterRequest { request_id: "a b".into(), ..lease(millis(1)) };
    invalid(update(&server, bad_id).await, "INVALID_REQUEST_ID", "request_id");
    assert_eq!(world.dump().await, before);
    for good in [duration(60, 0), duration(0, 0), duration(0, 1_000_000)] {
        assert_eq!(update(&server, lease(good)).await.unwrap().lease_duration, Some(good));
    }
}

async fn a_changed_lease_is_granted_everywhere(engine: Engine) {
    let (world, server) = World::with_cells(engine, &["cell-a"]).await;
    let other = world.serve(&[]).await;
    let granted = async |server: &Server| {
        let answer = server.directory.clone().sync(v1::SyncRequest {}).await.unwrap().into_inner();
        Duration::try_from(answer.lease.unwrap()).unwrap()
    };
    for (seconds, above) in [(60, 30), (3, 0), (20, 5)] {
        set_lease(&server, seconds * 1000).await;
        let (least, most) =
            (Duration::from_secs(above), Duration::from_secs(seconds.unsigned_abs()));
        for server in [&server, &other] {
            until(async || granted(server).await, |lease| *lease > least && *lease <= most).await;
        }
    }
    set_lease(&other, 0).await;
    until(async || granted(&server).await, Duration::is_zero).await;
    assert!(granted(&other).await.is_zero(), "at once where it was changed");
}
