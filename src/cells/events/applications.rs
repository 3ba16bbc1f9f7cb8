//! Hands on what applications changed, and nothing of the directory's own records in the same table: guards and change logs.

use std::sync::Arc;

use async_trait::async_trait;
use cells_streams::sink::{Sink, SinkError};
use cells_streams::{Batch, Delivery, Event};

pub struct Applications {
    pub inner: Arc<dyn Sink>,
    /// The name of the table's partition key.
    pub partition_key: String,
}

impl Applications {
    /// No tenant's partition begins with a control character.
    fn ours(&self, event: &Event) -> bool {
        let key = event.record.keys.get(&self.partition_key).and_then(|key| key.as_s().ok());
        key.is_some_and(|key| key.starts_with('\u{1}'))
    }
}

#[async_trait]
impl Sink for Applications {
    async fn deliver(&self, delivery: &Arc<Delivery>) -> Result<(), SinkError> {
        let Delivery::Events(batch) = &**delivery else {
            return self.inner.deliver(delivery).await;
        };
        if !batch.events.iter().any(|event| self.ours(event)) {
            return self.inner.deliver(delivery).await;
        }
        let events: Vec<_> =
            batch.events.iter().filter(|event| !self.ours(event)).cloned().collect();
        if events.is_empty() {
            return Ok(());
        }
        self.inner.deliver(&Arc::new(Delivery::Events(Batch { events, ..batch.clone() }))).await
    }
}
