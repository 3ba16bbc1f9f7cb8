//! Where deliveries go.

mod channel;
mod file;
mod parts;
mod webhook;

use async_trait::async_trait;

pub use channel::{ChannelSink, Received, channel};
pub use file::{FileSink, Fsync};
pub use parts::Parts;
pub use webhook::{WebhookOptions, WebhookSink};

pub use crate::post::InvalidWebhook;

use crate::Delivery;

/// A delivery was not accepted; it is offered again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SinkError(pub String);

/// Takes deliveries of any shards, several at a time; those of one shard one after the other and in their order.
///
/// `Ok` says that the delivery is safe with the sink: the position is recorded next and it is not offered again, unless the consumer
/// dies before that. After an error, and around a takeover, the same delivery or the rest of one is offered again: a sink that must
/// not do things twice compares sequence numbers per shard. An endless call holds up its shard and nothing else; it should bound its
/// own time. It is dropped half-way only if the consumer is.
#[async_trait]
pub trait Sink: Send + Sync {
    async fn deliver(&self, delivery: &std::sync::Arc<Delivery>) -> Result<(), SinkError>;
}
