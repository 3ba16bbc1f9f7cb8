//! The way from a replica to the store: calls are late, fail, and get lost before or after they are done.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cell_directory::domain::{
    Cell, CellId, Cluster, HistoryRecord, JournalEntry, JournalId, Mapping, PartitionKey,
    Placement, RequestId, RequestRecord, Sequence, Timestamp,
};
use cell_directory::store::memory::MemoryStore;
use cell_directory::store::{
    Commit, CommitOutcome, Cursor, Head, Journal, Page, Placements, StoreError,
};
use futures::future::BoxFuture;
use tokio::sync::oneshot;

use crate::world::{World, never};

/// How long a replica waits for an answer.
const PATIENCE: Duration = Duration::from_millis(300);

/// The store as one incarnation of a replica reaches it.
#[derive(Clone)]
pub struct Wire {
    pub world: Arc<World>,
    pub replica: usize,
    pub incarnation: u64,
}

impl Wire {
    async fn call<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(Arc<MemoryStore>) -> BoxFuture<'static, Result<T, StoreError>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        let Self { world, replica, incarnation } = self.clone();
        let (reply, answer) = oneshot::channel();
        // A task of its own: what is on its way arrives, whether the caller still lives or not.
        tokio::spawn(async move {
            let (there, back) = (world.delay(), world.delay());
            let (fails, lost, late) = (world.mishap(0.01), world.mishap(0.01), world.mishap(0.004));
            tokio::time::sleep(there).await;
            if !world.store_reached(replica) {
                if world.chance(0.5) {
                    let _ = reply.send(Err(StoreError::Unreachable));
                }
                return;
            }
            if fails {
                let errors = [StoreError::Throttled, StoreError::Failed, StoreError::Unreachable];
                let _ = reply.send(Err(world.pick(&errors).clone()));
                return;
            }
            if late {
                tokio::time::sleep(world.millis(300, 2_000)).await;
            }
            let result = work(Arc::clone(&world.store)).await;
            let done = if result.is_ok() { "done" } else { "failed" };
            world.log(format_args!("r{replica}.{incarnation} {name} {done}"));
            tokio::time::sleep(back).await;
            if !lost && world.store_reached(replica) {
                let _ = reply.send(result);
            }
        });
        let answered = async {
            match answer.await {
                Ok(result) => result,
                Err(_lost) => never().await,
            }
        };
        let result = tokio::time::timeout(PATIENCE, answered).await;
        if !self.world.alive(self.replica, self.incarnation) {
            // Whoever asked is no more.
            return never().await;
        }
        result.unwrap_or(Err(StoreError::Timeout))
    }
}

#[async_trait]
impl Placements for Wire {
    async fn mapping(&self, key: &PartitionKey) -> Result<Mapping, StoreError> {
        let key = key.clone();
        self.call("mapping", move |store| Box::pin(async move { store.mapping(&key).await })).await
    }

    async fn mappings(&self, keys: &[PartitionKey]) -> Vec<Result<Mapping, StoreError>> {
        let asked = keys.to_vec();
        let answers = self.call("mappings", move |store| {
            Box::pin(async move { Ok(store.mappings(&asked).await) })
        });
        answers.await.unwrap_or_else(|error| vec![Err(error); keys.len()])
    }

    async fn list(
        &self,
        cell: Option<&CellId>,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        let (cell, after) = (cell.cloned(), after.cloned());
        self.call("list", move |store| {
            Box::pin(async move { store.list(cell.as_ref(), limit, after.as_ref()).await })
        })
        .await
    }

    async fn count(&self, cell: &CellId) -> Result<u64, StoreError> {
        let cell = cell.clone();
        self.call("count", move |store| Box::pin(async move { store.count(&cell).await })).await
    }

    async fn expired(
        &self,
        now: Timestamp,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        let after = after.cloned();
        self.call("expired", move |store| {
            Box::pin(async move { store.expired(now, limit, after.as_ref()).await })
        })
        .await
    }

    async fn scan(
        &self,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<Placement>, StoreError> {
        // Small pages, so that changes come between them.
        let (limit, after) = (limit.min(2), after.cloned());
        self.call("scan", move |store| {
            Box::pin(async move { store.scan(limit, after.as_ref()).await })
        })
        .await
    }

    async fn history(
        &self,
        key: &PartitionKey,
        limit: usize,
        after: Option<&Cursor>,
    ) -> Result<Page<HistoryRecord>, StoreError> {
        let (key, after) = (key.clone(), after.cloned());
        self.call("history", move |store| {
            Box::pin(async move { store.history(&key, limit, after.as_ref()).await })
        })
        .await
    }
}

#[async_trait]
impl Journal for Wire {
    async fn head(&self) -> Result<Head, StoreError> {
        self.call("head", |store| Box::pin(async move { store.head().await })).await
    }

    async fn entries(
        &self,
        after: Sequence,
        limit: usize,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        self.call("entries", move |store| {
            Box::pin(async move { store.entries(after, limit).await })
        })
        .await
    }

    async fn trimmed(&self) -> Result<Sequence, StoreError> {
        self.call("trimmed", |store| Box::pin(async move { store.trimmed().await })).await
    }

    async fn trim(&self, last: Sequence) -> Result<(), StoreError> {
        self.call("trim", move |store| Box::pin(async move { store.trim(last).await })).await
    }

    async fn rename(&self, head: Head, id: JournalId) -> Result<bool, StoreError> {
        self.call("rename", move |store| Box::pin(async move { store.rename(head, id).await }))
            .await
    }

    async fn cells(&self) -> Result<Vec<Cell>, StoreError> {
        self.call("cells", |store| Box::pin(async move { store.cells().await })).await
    }

    async fn cluster(&self) -> Result<Cluster, StoreError> {
        self.call("cluster", |store| Box::pin(async move { store.cluster().await })).await
    }

    async fn request(&self, id: &RequestId) -> Result<Option<RequestRecord>, StoreError> {
        let id = id.clone();
        self.call("request", move |store| Box::pin(async move { store.request(&id).await })).await
    }

    async fn commit(&self, commit: &Commit) -> Result<CommitOutcome, StoreError> {
        let (commit, world) = (commit.clone(), Arc::clone(&self.world));
        self.call("commit", move |_| Box::pin(async move { world.commit(&commit).await })).await
    }
}

impl World {
    /// Commits, and keeps what is true.
    pub async fn commit(&self, commit: &Commit) -> Result<CommitOutcome, StoreError> {
        let outcome = self.store.commit(commit).await;
        if outcome == Ok(CommitOutcome::Committed) {
            let sequence = commit.entry.sequence;
            self.log(format_args!("committed {sequence} {:?}", commit.entry.nonce));
            self.truth.lock().committed(self.now(), &commit.entry);
            self.counts.lock().changes += commit.entry.changes.len() as u64;
        }
        if outcome == Ok(CommitOutcome::HeadMoved)
            && self.truth.lock().entry(commit.entry.sequence) == Some(&commit.entry)
            && self.chance(0.5)
        {
            // DynamoDB may know a transaction again by its token.
            return Ok(CommitOutcome::Committed);
        }
        outcome
    }
}
