//! An HTTP server before an engine, for what the engine's streams lack. It answers as the service does when positions were trimmed: no
//! engine trims what is younger than a day. And it writes who deleted an item as the API does: the embedded engine has the spelling of what
//! Lambda passes on.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

pub struct StreamsProxy {
    endpoint: String,
    trimmed: Arc<AtomicBool>,
    lost: Arc<AtomicBool>,
}

impl StreamsProxy {
    pub async fn start(engine: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let trimmed = Arc::new(AtomicBool::new(false));
        let trimming = trimmed.clone();
        let lost = Arc::new(AtomicBool::new(false));
        let losing = lost.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (engine, trimming) = (engine.clone(), trimming.clone());
                let losing = losing.clone();
                let service = service_fn(move |request| {
                    answer(request, engine.clone(), trimming.clone(), losing.clone())
                });
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { endpoint, trimmed, lost }
    }

    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// From now on no position after a record is kept any more.
    pub fn trim(&self) {
        self.trimmed.store(true, Ordering::SeqCst);
    }

    /// From now on nothing that is to be read is kept any more, until [`Self::keep`].
    #[allow(dead_code, reason = "not every test program loses records")]
    pub fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    #[allow(dead_code, reason = "not every test program loses records")]
    pub fn keep(&self) {
        self.lost.store(false, Ordering::SeqCst);
    }
}

async fn answer(
    request: Request<Incoming>,
    engine: String,
    trimmed: Arc<AtomicBool>,
    lost: Arc<AtomicBool>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let seeks = target.is_some_and(|target| target.ends_with(".GetShardIterator"));
    let reads = target.is_some_and(|target| target.ends_with(".GetRecords"));
    let after = String::from_utf8_lossy(&body).contains("AFTER_SEQUENCE_NUMBER");
    let trimmed = seeks && after && trimmed.load(Ordering::SeqCst);
    if trimmed || (reads && lost.load(Ordering::SeqCst)) {
        let refusal = r#"{"__type":"com.amazonaws.dynamodb.v20120810#TrimmedDataAccessException","message":"The operation attempted to read past the oldest stream record in a shard."}"#;
        let response =
            Response::builder().status(400).header("content-type", "application/x-amz-json-1.0");
        return Ok(response.body(Full::new(refusal.into())).unwrap());
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut onward = Request::from_parts(parts, Full::new(body));
    *onward.uri_mut() = format!("{engine}/").parse().unwrap();
    let Ok(response) = client.request(onward).await else {
        return Ok(Response::builder().status(502).body(Full::default()).unwrap());
    };
    let (mut parts, body) = response.into_parts();
    parts.headers.remove("transfer-encoding");
    let mut body = body.collect().await.unwrap().to_bytes();
    if reads {
        let text = String::from_utf8(body.to_vec()).unwrap();
        let (kind, principal) = (r#""userIdentity":{"type":"#, r#""principalId":"#);
        let text = text.replace(kind, r#""userIdentity":{"Type":"#);
        body = text.replace(principal, r#""PrincipalId":"#).into();
        parts.headers.remove("x-amz-crc32");
    }
    Ok(Response::from_parts(parts, Full::new(body)))
}
