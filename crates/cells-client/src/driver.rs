//! Performs what the follower decides. It decides nothing itself.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::watch;

use crate::directory::Core;
use crate::error::Failure;
use crate::follower::{Action, Event};
use crate::proto;
use crate::transport::{BoxFuture, WatchStream};

/// A clock that lags behind tokio's cannot make this loop spin.
const MIN_SLEEP: Duration = Duration::from_millis(1);

/// The Watch as the transport knows it.
enum Watch {
    Closed,
    Opening(BoxFuture<Result<WatchStream, Failure>>),
    Open(WatchStream),
}

struct Driver {
    core: Arc<Core>,
    watch: Watch,
    sync: Option<BoxFuture<Result<proto::SyncResponse, Failure>>>,
    refresh: Option<BoxFuture<Result<proto::BatchResolveResponse, Failure>>>,
}

/// Follows the directory until it is cancelled. `ready` turns true with the first whole picture.
pub(crate) async fn follow(core: Arc<Core>, ready: watch::Sender<bool>) {
    let cancel = core.cancel.clone();
    let mut driver = Driver { core, watch: Watch::Closed, sync: None, refresh: None };
    driver.perform(Event::Tick);
    loop {
        if driver.core.follower.lock().is_ready() {
            ready.send_if_modified(|ready| !std::mem::replace(ready, true));
        }
        let event = tokio::select! {
            // In this order: small answers are not kept waiting by a long snapshot.
            biased;
            () = cancel.cancelled() => return,
            answer = poll(&mut driver.sync) => Event::Synced(answer),
            answer = poll(&mut driver.refresh) => Event::Refreshed(answer),
            () = sleep(&driver.core) => Event::Tick,
            event = next(&mut driver.watch) => event,
        };
        driver.perform(event);
        // A stream that always has a next message would keep everybody else from running.
        tokio::task::consume_budget().await;
    }
}

impl Driver {
    fn perform(&mut self, event: Event) {
        let now = self.core.shared.now();
        if matches!(event, Event::WatchEnded(_)) {
            self.watch = Watch::Closed;
        }
        let actions = self.core.follower.lock().on_event(now, event);
        for action in actions {
            match action {
                Action::OpenWatch { endpoint, request } => {
                    self.watch = Watch::Opening(self.core.transport.watch(endpoint, request));
                }
                Action::CloseWatch => self.watch = Watch::Closed,
                Action::Sync { endpoint } => self.sync = Some(self.core.transport.sync(endpoint)),
                Action::CancelSync => self.sync = None,
                Action::Refresh { endpoint, request } => {
                    self.refresh = Some(self.core.transport.batch_resolve(endpoint, request));
                }
                Action::CancelRefresh => self.refresh = None,
            }
        }
    }
}

/// The answer of a call that is under way; then it is under way no more.
async fn poll<T>(call: &mut Option<BoxFuture<T>>) -> T {
    match call {
        Some(future) => {
            let answer = future.await;
            *call = None;
            answer
        }
        None => pending().await,
    }
}

async fn sleep(core: &Core) {
    let wake_at = core.follower.lock().wake_at();
    let duration = wake_at.since(core.shared.now());
    tokio::time::sleep(duration.max(MIN_SLEEP)).await;
}

async fn next(watch: &mut Watch) -> Event {
    if let Watch::Opening(opening) = watch {
        match opening.await {
            Ok(stream) => *watch = Watch::Open(stream),
            Err(failure) => {
                *watch = Watch::Closed;
                return Event::WatchEnded(failure);
            }
        }
    }
    let Watch::Open(stream) = watch else { return pending().await };
    match stream.next().await {
        Some(Ok(message)) => Event::Watch(Box::new(message)),
        Some(Err(failure)) => Event::WatchEnded(failure),
        None => Event::WatchEnded(Failure::passing("the replica has ended the watch")),
    }
}

/// Writes the snapshot file at its interval, and once more at the end.
pub(crate) async fn keep_saving(core: Arc<Core>) {
    loop {
        let ended = tokio::time::timeout(core.options.snapshot_interval, core.cancel.cancelled())
            .await
            .is_ok();
        let saver = core.clone();
        match tokio::task::spawn_blocking(move || crate::snapshot::save(&saver)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the snapshot file could not be written"),
            Err(error) => tracing::warn!(%error, "writing the snapshot file was broken off"),
        }
        if ended {
            return;
        }
    }
}
