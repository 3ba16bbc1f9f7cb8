//! The narrow seam between what this crate decides and how it reaches a replica.
//!
//! The tonic implementation is in `grpc`, the in-process one in `fake`; a simulation brings its own. There are no default methods, so
//! that a wrapper that misses one does not compile.

use std::future::Future;
use std::pin::Pin;

use futures::Stream;

use crate::error::Failure;
use crate::proto;

/// A future that owns what it needs.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The messages of a Watch. Its end without a failure is the server's end of the stream.
pub type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::WatchResponse, Failure>> + Send>>;

/// Calls to one of several equal endpoints, numbered from 0.
///
/// A call is sent when its future is first polled, never before; dropping the future or the stream ends the call. Time limits are
/// the caller's business.
pub trait Transport: Send + Sync + 'static {
    /// How many endpoints there are: at least one.
    fn endpoints(&self) -> usize;

    /// Opens a Watch.
    fn watch(
        &self,
        endpoint: usize,
        request: proto::WatchRequest,
    ) -> BoxFuture<Result<WatchStream, Failure>>;

    /// Asks for a renewal.
    fn sync(&self, endpoint: usize) -> BoxFuture<Result<proto::SyncResponse, Failure>>;

    /// Asks for one key.
    fn resolve(
        &self,
        endpoint: usize,
        request: proto::ResolveRequest,
    ) -> BoxFuture<Result<proto::ResolveResponse, Failure>>;

    /// Asks for many keys.
    fn batch_resolve(
        &self,
        endpoint: usize,
        request: proto::BatchResolveRequest,
    ) -> BoxFuture<Result<proto::BatchResolveResponse, Failure>>;
}
