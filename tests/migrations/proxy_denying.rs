//! An HTTP server before an engine that refuses writes to some cells under one access key, as AWS does where a policy denies them: no engine
//! looks at permissions. And it throttles the removal of markers, and fails as AWS does where an access key is unknown.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use http::request::Parts;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpListener;

type Onward = Client<HttpConnector, Full<Bytes>>;

pub struct DenyingProxy {
    endpoint: String,
    does: Arc<Does>,
}

#[derive(Default)]
struct Does {
    /// Cells in which it refuses writes.
    deny: Mutex<Vec<String>>,
    /// Writes that were refused.
    denied: AtomicU64,
    /// The access key is unknown.
    fail: AtomicBool,
    /// Removals of markers that are still to be throttled.
    throttle: AtomicU64,
}

impl DenyingProxy {
    pub async fn start(engine: String, access_key: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let does = Arc::new(Does::default());
        let doing = does.clone();
        let client: Onward = Client::builder(TokioExecutor::new()).build_http();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (engine, does, client) = (engine.clone(), doing.clone(), client.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (engine, does, client) = (engine.clone(), does.clone(), client.clone());
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.unwrap().to_bytes();
                        if let Some(refusal) = does.refusal(&parts, &body, access_key) {
                            return Ok::<_, Infallible>(refused(refusal));
                        }
                        Ok(onward(Request::from_parts(parts, body), &client, &engine).await)
                    }
                });
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { endpoint, does }
    }

    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// Writes in these cells are refused from now on, and in no others.
    pub fn deny(&self, cells: &[&str]) {
        *self.does.deny.lock() = cells.iter().map(|cell| format!("-{cell}")).collect();
    }

    pub fn denied(&self) -> u64 {
        self.does.denied.load(Ordering::SeqCst)
    }

    /// Whether the access key is unknown from now on.
    pub fn fail(&self, fails: bool) {
        self.does.fail.store(fails, Ordering::SeqCst);
    }

    /// So many removals of markers are throttled.
    pub fn throttle(&self, times: u64) {
        self.does.throttle.store(times, Ordering::SeqCst);
    }

    /// Whether all were that were to be.
    pub fn throttled(&self) -> bool {
        self.does.throttle.load(Ordering::SeqCst) == 0
    }
}

const DENIED: &str = r#"{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"User: arn:aws:iam::1:role/applications is not authorized to perform: dynamodb:PutItem with an explicit deny in an identity-based policy"}"#;
const UNKNOWN: &str = r#"{"__type":"com.amazon.coral.service#UnrecognizedClientException","message":"The security token of arn:aws:iam::1:role/applications is invalid."}"#;
const THROTTLED: &str = r#"{"__type":"com.amazonaws.dynamodb.v20120810#ThrottlingException","message":"Rate exceeded"}"#;

impl Does {
    fn refusal(&self, parts: &Parts, body: &[u8], access_key: &str) -> Option<&'static str> {
        let header = |name: &str| {
            let value = parts.headers.get(name).and_then(|value| value.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let target = header("x-amz-target");
        let writes = [".PutItem", ".UpdateItem", ".DeleteItem"];
        if !writes.iter().any(|write| target.ends_with(write)) {
            return None;
        }
        let body: serde_json::Value = serde_json::from_slice(body).unwrap();
        if header("authorization").contains(&format!("Credential={access_key}/")) {
            if self.fail.load(Ordering::SeqCst) {
                return Some(UNKNOWN);
            }
            let table = body["TableName"].as_str().unwrap();
            let denies = self.deny.lock().iter().any(|cell| table.ends_with(cell));
            return denies.then(|| {
                self.denied.fetch_add(1, Ordering::SeqCst);
                DENIED
            });
        }
        let marker = target.ends_with(".DeleteItem") && body["Key"].to_string().contains("mark#");
        let less = |left: u64| left.checked_sub(1);
        let throttles =
            marker && self.throttle.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok();
        throttles.then_some(THROTTLED)
    }
}

fn refused(body: &'static str) -> Response<Full<Bytes>> {
    let response =
        Response::builder().status(400).header("content-type", "application/x-amz-json-1.0");
    response.body(Full::new(body.into())).unwrap()
}

async fn onward(request: Request<Bytes>, client: &Onward, engine: &str) -> Response<Full<Bytes>> {
    let mut onward = request.map(Full::new);
    *onward.uri_mut() = format!("{engine}/").parse().unwrap();
    let Ok(response) = client.request(onward).await else {
        return Response::builder().status(502).body(Full::default()).unwrap();
    };
    let (mut parts, body) = response.into_parts();
    parts.headers.remove("transfer-encoding");
    Response::from_parts(parts, Full::new(body.collect().await.unwrap().to_bytes()))
}
