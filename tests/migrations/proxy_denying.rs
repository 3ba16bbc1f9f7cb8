//! An HTTP server before an engine that refuses writes under one access key, as AWS does where a policy denies them: no engine looks at
//! permissions.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

type Onward = Client<HttpConnector, Full<Bytes>>;

pub struct DenyingProxy {
    endpoint: String,
    pub deny: Arc<AtomicBool>,
    /// Writes that were refused.
    pub denied: Arc<AtomicU64>,
}

impl DenyingProxy {
    pub async fn start(engine: String, access_key: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (deny, denied) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (denying, counting) = (deny.clone(), denied.clone());
        let client: Onward = Client::builder(TokioExecutor::new()).build_http();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (engine, deny, denied) = (engine.clone(), denying.clone(), counting.clone());
                let client = client.clone();
                let service = service_fn(move |request| {
                    let client = client.clone();
                    let (engine, deny, denied) = (engine.clone(), deny.clone(), denied.clone());
                    async move {
                        if deny.load(Ordering::SeqCst) && writes_as(&request, access_key) {
                            denied.fetch_add(1, Ordering::SeqCst);
                            return Ok::<_, Infallible>(refusal());
                        }
                        Ok(onward(request, &client, &engine).await)
                    }
                });
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { endpoint, deny, denied }
    }

    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }
}

fn writes_as(request: &Request<Incoming>, access_key: &str) -> bool {
    let header = |name: &str| {
        let value = request.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let writes = [".PutItem", ".UpdateItem", ".DeleteItem"];
    header("authorization").contains(&format!("Credential={access_key}/"))
        && writes.iter().any(|write| header("x-amz-target").ends_with(write))
}

fn refusal() -> Response<Full<Bytes>> {
    let body = r#"{"__type":"com.amazon.coral.service#AccessDeniedException","Message":"User: arn:aws:iam::1:role/applications is not authorized to perform: dynamodb:PutItem with an explicit deny in an identity-based policy"}"#;
    let response =
        Response::builder().status(400).header("content-type", "application/x-amz-json-1.0");
    response.body(Full::new(body.into())).unwrap()
}

async fn onward(
    request: Request<Incoming>,
    client: &Onward,
    engine: &str,
) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let mut onward = Request::from_parts(parts, Full::new(body));
    *onward.uri_mut() = format!("{engine}/").parse().unwrap();
    let Ok(response) = client.request(onward).await else {
        return Response::builder().status(502).body(Full::default()).unwrap();
    };
    let (mut parts, body) = response.into_parts();
    parts.headers.remove("transfer-encoding");
    Response::from_parts(parts, Full::new(body.collect().await.unwrap().to_bytes()))
}
