//! Posts to one address: HTTP/1.1, over TLS where the address says so, trusted by the system's certificates.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Uri, response};
use http_body_util::Full;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

/// An address or options that no request can be made from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidWebhook(pub(crate) String);

/// A client of one address. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Post {
    uri: Uri,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Post {
    /// `http://` or `https://`, the latter trusted by the system's certificates.
    ///
    /// # Errors
    ///
    /// If the address is no such one, or the system's certificates cannot be read.
    pub fn new(uri: &str) -> Result<Self, InvalidWebhook> {
        let uri: Uri =
            uri.parse().map_err(|error| InvalidWebhook(format!("the address: {error}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(InvalidWebhook("the address is neither http:// nor https://".into()));
        }
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|error| InvalidWebhook(format!("the system's roots: {error}")))?;
        let connector = connector.https_or_http().enable_http1().build();
        Ok(Self { uri, client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// Posts once and answers the head of the response, whatever its status.
    ///
    /// # Errors
    ///
    /// Why there was no answer within `patience`; it may have been received.
    pub async fn send(
        &self,
        headers: HeaderMap,
        body: Bytes,
        patience: Duration,
    ) -> Result<response::Parts, String> {
        let request = Request::post(self.uri.clone()).body(Full::new(body));
        let mut request = request.map_err(|error| error.to_string())?;
        *request.headers_mut() = headers;
        let answer = timeout(patience, self.client.request(request)).await;
        let answer = answer.map_err(|_| "no answer in time".to_owned())?;
        Ok(answer.map_err(|error| in_full(&error))?.into_parts().0)
    }
}

/// An error and what caused it: of a client's, the first only says that something went wrong.
fn in_full(error: &dyn Error) -> String {
    let (mut told, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        told = format!("{told}: {error}");
        cause = error.source();
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn why_there_was_no_answer_is_told_down_to_its_cause() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let post = Post::new(&format!("http://{address}/")).unwrap();
        let sent = post.send(HeaderMap::new(), Bytes::new(), Duration::from_secs(60)).await;
        let why = sent.unwrap_err();
        assert!(why.contains("Connection refused"), "{why}");
    }
}
