//! A bounded channel: for a receiver in the same process, such as a server-streaming call.
//!
//! Invariant: a delivery counts as accepted when its receiver says so, not when it lies in the channel.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};

use super::{Sink, SinkError};
use crate::Delivery;

/// The sending half, which a consumer is given.
#[derive(Debug, Clone)]
pub struct ChannelSink {
    sender: mpsc::Sender<Received>,
}

/// A delivery that awaits its acceptance. Dropped without it, it is offered again.
#[derive(Debug)]
pub struct Received {
    pub delivery: Arc<Delivery>,
    accepted: oneshot::Sender<()>,
}

impl Received {
    /// The delivery is safe: its position may be recorded.
    pub fn accept(self) -> Arc<Delivery> {
        // A consumer that is gone meanwhile offers it again elsewhere.
        let _ = self.accepted.send(());
        self.delivery
    }
}

/// A channel that holds up to `capacity` deliveries (at least 1), each a page of records at most. Senders wait while it is full.
pub fn channel(capacity: usize) -> (ChannelSink, mpsc::Receiver<Received>) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    (ChannelSink { sender }, receiver)
}

#[async_trait]
impl Sink for ChannelSink {
    async fn deliver(&self, delivery: &Arc<Delivery>) -> Result<(), SinkError> {
        let (accepted, answer) = oneshot::channel();
        let received = Received { delivery: delivery.clone(), accepted };
        let closed = |what: &str| SinkError(format!("the receiver {what}"));
        self.sender.send(received).await.map_err(|_| closed("is gone"))?;
        answer.await.map_err(|_| closed("did not accept the delivery"))
    }
}
