//! The network between clients and replicas: late, cut off, and at times silent about it.
//!
//! Calls end in the replicas' real service, and messages cross as bytes, as they do on a socket.

use std::pin::Pin;
use std::sync::Arc;

use cell_directory::proto::v1;
use cells_client::testing::{BoxFuture, Failure, Transport, WatchStream, failure, proto};
use futures::StreamExt;
use futures::stream::unfold;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, Response, Status};

use crate::world::{REPLICAS, Running, World, never};

/// What one client reaches the replicas by.
pub struct Network {
    pub world: Arc<World>,
    pub client: usize,
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

fn as_bytes<To: Message + Default>(message: &impl Message) -> To {
    To::decode(message.encode_to_vec().as_slice()).unwrap()
}

fn reset() -> Failure {
    Failure::passing("the connection was reset")
}

impl Network {
    /// One way. Where the link is cut, the message is gone: whoever waits either hears of it, or does not.
    async fn leg(world: &World, client: usize, replica: usize) -> Result<(), Failure> {
        tokio::time::sleep(world.delay()).await;
        let heard = world.chance(0.5);
        let lost = world.mishap(0.005);
        match world.linked(client, replica) && !lost {
            true => Ok(()),
            false if heard => Err(reset()),
            false => never().await,
        }
    }

    fn call<Question, Reply, Known>(
        &self,
        name: &'static str,
        replica: usize,
        question: &impl Message,
        ask: impl FnOnce(Running, Request<Question>) -> Answer<Known> + Send + 'static,
    ) -> BoxFuture<Result<Reply, Failure>>
    where
        Question: Message + Default + 'static,
        Known: Message + 'static,
        Reply: Message + Default + 'static,
    {
        let (world, client) = (Arc::clone(&self.world), self.client);
        let question: Question = as_bytes(question);
        Box::pin(async move {
            let (reply, answer) = oneshot::channel();
            // A task of its own: a question that is on its way is answered, whether anybody still waits or not.
            tokio::spawn(async move {
                if let Err(failure) = Self::leg(&world, client, replica).await {
                    let _ = reply.send(Err(failure));
                    return;
                }
                let Some(running) = world.running(replica) else {
                    let _ = reply.send(Err(reset()));
                    return;
                };
                let incarnation = running.incarnation;
                let answer = ask(running, Request::new(question)).await;
                if !world.alive(replica, incarnation) {
                    let _ = reply.send(Err(reset()));
                    return;
                }
                let answer = answer.map(|known| as_bytes(known.get_ref())).map_err(failure);
                let code = answer.as_ref().err().map(|failure: &Failure| failure.kind);
                world.log(format_args!("c{client}-r{replica} {name} {code:?}"));
                let arrived = Self::leg(&world, client, replica).await;
                let _ = reply.send(arrived.and(answer));
            });
            answer.await.unwrap_or_else(|_| Err(reset()))
        })
    }

    /// Carries a stream's messages until it ends, the replica goes, the link breaks or nobody listens.
    async fn pump(
        world: Arc<World>,
        client: usize,
        replica: usize,
        question: v1::WatchRequest,
        messages: mpsc::Sender<Result<proto::WatchResponse, Failure>>,
        opened: oneshot::Sender<Result<(), Failure>>,
    ) {
        if let Err(failure) = Self::leg(&world, client, replica).await {
            let _ = opened.send(Err(failure));
            return;
        }
        let Some(Running { service, incarnation, .. }) = world.running(replica) else {
            let _ = opened.send(Err(reset()));
            return;
        };
        world.log(format_args!("c{client}-r{replica} watch resumes {:?}", question.resume_token));
        let mut stream = match service.watch(Request::new(question)).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => {
                let _ = opened.send(Err(failure(status)));
                return;
            }
        };
        let _ = opened.send(Ok(()));
        loop {
            let next = tokio::select! {
                biased;
                () = messages.closed() => return,
                next = stream.next() => next,
            };
            let Some(next) = next else { return };
            tokio::time::sleep(world.delay()).await;
            let (breaks, stalls) = (world.mishap(0.01), world.chance(0.5));
            if breaks || !world.alive(replica, incarnation) {
                let _ = messages.send(Err(reset())).await;
                return;
            }
            while !world.linked(client, replica) {
                if !stalls {
                    let _ = messages.send(Err(reset())).await;
                    return;
                }
                // As a connection without keepalive: late, and nobody is told.
                tokio::time::sleep(world.millis(50, 150)).await;
            }
            if let Ok(message) = &next {
                let snapshot =
                    matches!(message.event, Some(v1::watch_response::Event::Snapshot(_)));
                let (sequence, caught_up) = (message.sequence, message.caught_up);
                world.log(format_args!(
                    "c{client}-r{replica} watch {sequence} {snapshot} {caught_up}"
                ));
                let mut counts = world.counts.lock();
                counts.snapshots += u64::from(snapshot);
                counts.watched += 1;
            }
            let carried = next.map(|message| as_bytes(&message)).map_err(failure);
            if messages.send(carried).await.is_err() {
                return;
            }
        }
    }
}

impl Transport for Network {
    fn endpoints(&self) -> usize {
        REPLICAS
    }

    fn watch(
        &self,
        endpoint: usize,
        request: proto::WatchRequest,
    ) -> BoxFuture<Result<WatchStream, Failure>> {
        let (world, client) = (Arc::clone(&self.world), self.client);
        Box::pin(async move {
            let (opened, open) = oneshot::channel();
            let (messages, receiver) = mpsc::channel(4);
            let question = as_bytes(&request);
            tokio::spawn(Self::pump(world, client, endpoint, question, messages, opened));
            open.await.unwrap_or_else(|_| Err(reset()))?;
            let stream = unfold(receiver, |mut receiver| async {
                receiver.recv().await.map(|message| (message, receiver))
            });
            Ok(stream.boxed())
        })
    }

    fn sync(&self, endpoint: usize) -> BoxFuture<Result<proto::SyncResponse, Failure>> {
        self.call("sync", endpoint, &proto::SyncRequest {}, |running, request| {
            Box::pin(async move { running.service.sync(request).await })
        })
    }

    fn resolve(
        &self,
        endpoint: usize,
        request: proto::ResolveRequest,
    ) -> BoxFuture<Result<proto::ResolveResponse, Failure>> {
        self.call("resolve", endpoint, &request, |running, request| {
            Box::pin(async move { running.service.resolve(request).await })
        })
    }

    fn batch_resolve(
        &self,
        endpoint: usize,
        request: proto::BatchResolveRequest,
    ) -> BoxFuture<Result<proto::BatchResolveResponse, Failure>> {
        self.call("batch_resolve", endpoint, &request, |running, request| {
            Box::pin(async move { running.service.batch_resolve(request).await })
        })
    }
}
