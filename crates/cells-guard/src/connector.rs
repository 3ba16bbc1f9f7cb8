//! Tells requests that never had a connection from those that did.
//!
//! The SDK reports both as a failed dispatch, but for a write they differ as night and day: without a connection nothing was
//! done. So this wraps the HTTP client and marks each of its errors with the connection that the request was given, if any.
//! Invariant: an error of this connector carries connection metadata exactly if the request had a connection.

use aws_smithy_runtime_api::client::connection::CaptureSmithyConnection;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;

#[derive(Debug)]
pub struct MarkingClient(pub SharedHttpClient);

impl HttpClient for MarkingClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let inner = self.0.http_connector(settings, components);
        SharedHttpConnector::new(MarkingConnector(inner))
    }
}

#[derive(Debug)]
struct MarkingConnector(SharedHttpConnector);

impl HttpConnector for MarkingConnector {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        // The SDK may have asked for the connection already, to drop it after an error: then its capture is shared.
        let capture = match request.extension::<CaptureSmithyConnection>() {
            Some(capture) => capture.clone(),
            None => {
                let capture = CaptureSmithyConnection::new();
                request.add_extension(capture.clone());
                capture
            }
        };
        let response = self.0.call(request);
        HttpConnectorFuture::new(async move {
            response.await.map_err(|error| match capture.get() {
                Some(connection) => error.with_connection(connection),
                None => error.never_connected(),
            })
        })
    }
}
