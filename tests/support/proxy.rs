//! An HTTP/1.1 proxy in front of a DynamoDB, which does what networks and services do on bad days.
//!
//! [`Rule`]s say which requests meet with which [`Fault`]; the first that matches decides, and what none matches is forwarded. The proxy
//! counts all requests by operation, and the items that reads of each table came upon. It runs on threads of its own, so a test may block while it waits for a process.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Where ports are looked for: below those that systems hand out by themselves, so that the port of a dead proxy stays its own.
const PORTS: std::ops::Range<u16> = 10_000..30_000;

/// Longest wait for a port to be free again, or for a rule to fire.
const PATIENCE: Duration = Duration::from_secs(20);

/// What every message of an injected error holds: nothing of it may reach a caller.
pub const AWS_TEXT: &str = "arn:aws:iam::123456789012:user/somebody";

/// What happens to a request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The connection breaks before the backend sees the request.
    LoseRequest,
    /// The connection breaks after the backend has done the request.
    LoseReply,
    /// As [`Fault::LoseReply`], and then the proxy dies, as by [`Proxy::die`].
    LoseReplyAndDie,
    /// Neither forwarded nor answered.
    Hang,
    /// Done by the backend, but never answered.
    HangReply,
    /// Forwarded this much later; not at all if the caller has gone by then.
    Slow(Duration),
    /// Forwarded when the gate opens, whether or not the caller still waits.
    Late(CancellationToken),
    /// Answered with an error in the backend's stead: status and code.
    Error(u16, &'static str),
    /// A BatchGetItem that does nothing and says so.
    Unprocessed,
    /// A cancelled transaction: the code is the reason of its first item.
    Cancelled(&'static str),
}

impl Fault {
    pub const THROUGHPUT: Fault = Fault::Error(400, "ProvisionedThroughputExceededException");
    pub const THROTTLING: Fault = Fault::Error(400, "ThrottlingException");
    pub const INTERNAL: Fault = Fault::Error(500, "InternalServerError");
    pub const UNAVAILABLE: Fault = Fault::Error(503, "ServiceUnavailable");
    pub const DENIED: Fault = Fault::Error(400, "AccessDeniedException");
    pub const CONFLICT: Fault = Fault::Cancelled("TransactionConflict");
}

/// Which requests meet with a fault.
#[derive(Debug, Clone)]
pub struct Rule {
    /// None: all.
    operations: &'static [&'static str],
    containing: Option<String>,
    times: usize,
    /// Fires once in so many matches, beginning with the last of the first so many.
    every: usize,
    after: Option<Laid>,
    fault: Fault,
}

impl Rule {
    /// Requests of these operations, such as `GetItem`.
    pub fn on(operations: &'static [&'static str], fault: Fault) -> Self {
        Self { operations, ..Self::all(fault) }
    }

    pub fn all(fault: Fault) -> Self {
        Self { operations: &[], containing: None, times: usize::MAX, every: 1, after: None, fault }
    }

    /// Only requests whose body contains a text.
    pub fn containing(mut self, text: &str) -> Self {
        self.containing = Some(text.to_owned());
        self
    }

    /// Only requests that concern a table, given by the end of its name.
    pub fn in_table(self, table: &str) -> Self {
        self.containing(&format!("{table}\""))
    }

    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    /// Only each `n`th match: the share 1/n, but the same in every run.
    pub fn every(mut self, n: usize) -> Self {
        self.every = n;
        self
    }

    /// Only from when another rule has fired.
    pub fn once_fired(mut self, other: &Laid) -> Self {
        self.after = Some(other.clone());
        self
    }

    fn matches(&self, call: &Call) -> bool {
        (self.operations.is_empty() || self.operations.contains(&call.operation.as_str()))
            && self.after.as_ref().is_none_or(|other| other.fired() > 0)
            && self.containing.as_ref().is_none_or(|text| call.body.contains(text.as_str()))
    }
}

/// A rule that the proxy follows, for a look at what became of it.
#[derive(Debug, Clone)]
pub struct Laid(Arc<LaidRule>);

#[derive(Debug)]
struct LaidRule {
    rule: Rule,
    matched: AtomicUsize,
    fired: AtomicUsize,
    landed: AtomicUsize,
    lifted: AtomicBool,
}

impl Laid {
    fn of(rule: Rule) -> Self {
        let (matched, fired, landed) = Default::default();
        Self(Arc::new(LaidRule { rule, matched, fired, landed, lifted: false.into() }))
    }

    /// How many requests met with the fault.
    pub fn fired(&self) -> usize {
        self.0.fired.load(Ordering::SeqCst)
    }

    /// Waits until so many requests met with the fault.
    pub async fn has_fired(&self, times: usize) {
        self.reaches("fire", times, &self.0.fired).await;
    }

    /// Waits until the backend has answered so many requests of the fault's, whoever heard it.
    pub async fn has_landed(&self, times: usize) {
        self.reaches("land", times, &self.0.landed).await;
    }

    async fn reaches(&self, what: &str, times: usize, count: &AtomicUsize) {
        let deadline = Instant::now() + PATIENCE;
        while count.load(Ordering::SeqCst) < times {
            assert!(Instant::now() < deadline, "did not {what} {times} times: {:?}", self.0.rule);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Takes the rule back.
    pub fn lift(&self) {
        self.0.lifted.store(true, Ordering::SeqCst);
    }

    /// Whether a request meets with the fault.
    fn strikes(&self, call: &Call) -> bool {
        let Self(laid) = self;
        if laid.lifted.load(Ordering::SeqCst) || !laid.rule.matches(call) {
            return false;
        }
        let matched = laid.matched.fetch_add(1, Ordering::SeqCst) + 1;
        let due = matched.is_multiple_of(laid.rule.every);
        due && laid
            .fired
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |fired| {
                (fired < laid.rule.times).then_some(fired + 1)
            })
            .is_ok()
    }
}

/// A request as the proxy saw it.
#[derive(Debug, Clone)]
struct Call {
    operation: String,
    body: String,
}

/// The proxy. Ends when it is dropped.
pub struct Proxy {
    runtime: Option<Runtime>,
    address: SocketAddr,
    shared: Arc<Shared>,
    life: Mutex<Life>,
}

/// From one birth to the next death.
struct Life {
    stop: CancellationToken,
    ended: Option<tokio::task::JoinHandle<()>>,
}

struct Shared {
    backend: String,
    client: Client<HttpConnector, Full<Bytes>>,
    rules: Mutex<Vec<Laid>>,
    calls: Mutex<Vec<Call>>,
    items_read: Mutex<HashMap<String, usize>>,
    forget_tokens: AtomicBool,
    /// Neither calls nor items are counted.
    uncounted: AtomicBool,
    /// Ends the present life.
    stop: Mutex<CancellationToken>,
}

impl Proxy {
    /// A proxy in front of `backend`, such as `http://127.0.0.1:8000`.
    pub fn start(backend: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("proxy")
            .enable_all()
            .build()
            .unwrap();
        let entered = runtime.enter();
        let (listener, address) = some_port();
        let shared = Arc::new(Shared {
            backend: backend.to_owned(),
            client: Client::builder(TokioExecutor::new()).build_http(),
            rules: Mutex::default(),
            calls: Mutex::default(),
            items_read: Mutex::default(),
            forget_tokens: AtomicBool::new(false),
            uncounted: AtomicBool::new(false),
            stop: Mutex::default(),
        });
        let life = live(listener, &shared);
        drop(entered);
        Self { runtime: Some(runtime), address, shared, life: Mutex::new(life) }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Follows a rule from now on, after those that it follows already.
    pub fn lay(&self, rule: Rule) -> Laid {
        let laid = Laid::of(rule);
        self.shared.rules.lock().push(laid.clone());
        laid
    }

    /// Follows this rule and no other from now on, without a moment between.
    #[allow(dead_code, reason = "not every test program does")]
    pub fn replace(&self, rule: Rule) {
        let laid = Laid::of(rule);
        *self.shared.rules.lock() = vec![laid];
    }

    /// Forgets all rules.
    pub fn clear(&self) {
        self.shared.rules.lock().clear();
    }

    /// Takes the tokens out of transactions, as if the ten minutes had passed for which DynamoDB knows a repeat by its token.
    pub fn forget_tokens(&self, forget: bool) {
        self.shared.forget_tokens.store(forget, Ordering::SeqCst);
    }

    /// Counts neither calls nor items from now on: of a long run there would be too many to keep.
    #[allow(dead_code, reason = "not every test program runs long")]
    pub fn count_nothing(&self) {
        self.shared.uncounted.store(true, Ordering::SeqCst);
    }

    /// How many requests of these operations came whose body contains a text.
    pub fn calls(&self, operations: &[&str], containing: &str) -> usize {
        let calls = self.shared.calls.lock();
        let counted = calls.iter().filter(|call| {
            operations.contains(&call.operation.as_str()) && call.body.contains(containing)
        });
        counted.count()
    }

    /// How many requests came, whatever became of them. Those that found nobody listening are not among them.
    #[allow(dead_code, reason = "not every test program counts all")]
    pub fn received(&self) -> usize {
        self.shared.calls.lock().len()
    }

    /// How many items of a table the backend has read to answer: what a filter left out is among them, as it is paid for.
    #[allow(dead_code, reason = "not every test program counts items")]
    pub fn items_read(&self, table: &str) -> usize {
        self.shared.items_read.lock().get(table).copied().unwrap_or(0)
    }

    /// Breaks all connections, and refuses new ones until [`Proxy::revive`].
    pub async fn die(&self) {
        let ended = {
            let mut life = self.life.lock();
            life.stop.cancel();
            life.ended.take()
        };
        if let Some(ended) = ended {
            ended.await.unwrap();
        }
    }

    /// Takes connections again, at the same address.
    pub async fn revive(&self) {
        self.die().await;
        let deadline = Instant::now() + PATIENCE;
        let _entered = self.runtime.as_ref().unwrap().enter();
        let listener = loop {
            match bind(self.address) {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", self.address),
            }
        };
        *self.life.lock() = live(listener, &self.shared);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Not waited for: this may be a thread of another runtime.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn some_port() -> (TcpListener, SocketAddr) {
    let mut tried = HashSet::new();
    loop {
        let port = rand::random_range(PORTS);
        assert!(tried.insert(port) || tried.len() < 1000, "no free port");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if let Ok(listener) = bind(address) {
            return (listener, address);
        }
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn live(listener: TcpListener, shared: &Arc<Shared>) -> Life {
    let stop = CancellationToken::new();
    *shared.stop.lock() = stop.clone();
    let ended = tokio::spawn(accept(listener, Arc::clone(shared), stop.clone()));
    Life { stop, ended: Some(ended) }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => {}
            Ok((stream, _)) = listener.accept() => {
                let _ = stream.set_nodelay(true);
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(|request| handle(Arc::clone(&shared), request));
                    // An error is a fault that was asked for, or a caller who has gone.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .header_read_timeout(None)
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        }
    }
    drop(listener);
    connections.shutdown().await;
}

type Reply = Response<Full<Bytes>>;

/// The connection is to be closed without a reply.
#[derive(Debug, thiserror::Error)]
#[error("the connection breaks")]
struct Broken;

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Reply, Broken> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let operation = target.and_then(|target| target.rsplit('.').next()).unwrap_or_default();
    let call =
        Call { operation: operation.to_owned(), body: String::from_utf8_lossy(&body).into_owned() };
    if !shared.uncounted.load(Ordering::SeqCst) {
        shared.calls.lock().push(call.clone());
    }
    let struck = shared.rules.lock().iter().find(|rule| rule.strikes(&call)).cloned();
    let Some(laid) = struck else {
        return forward(shared, parts.headers, call, body).await;
    };
    // A task of its own: what is on its way arrives, whether or not anybody waits for it.
    let deliver = async |after: CancellationToken| {
        let (laid, shared, call) = (laid.clone(), Arc::clone(&shared), call.clone());
        let delivery = tokio::spawn(async move {
            after.cancelled().await;
            let reply = forward(shared, parts.headers, call, body).await;
            laid.0.landed.fetch_add(1, Ordering::SeqCst);
            reply
        });
        delivery.await.map_err(|_| Broken)?
    };
    let at_once = || {
        let open = CancellationToken::new();
        open.cancel();
        open
    };
    match &laid.0.rule.fault {
        Fault::LoseRequest => Err(Broken),
        Fault::LoseReply => deliver(at_once()).await.and(Err(Broken)),
        Fault::LoseReplyAndDie => {
            let _ = deliver(at_once()).await;
            shared.stop.lock().cancel();
            Err(Broken)
        }
        Fault::Hang => never().await,
        Fault::HangReply => {
            let _ = deliver(at_once()).await;
            never().await
        }
        Fault::Slow(delay) => {
            tokio::time::sleep(*delay).await;
            deliver(at_once()).await
        }
        Fault::Late(gate) => deliver(gate.clone()).await,
        Fault::Error(status, code) => Ok(error(*status, code, &[])),
        Fault::Unprocessed => {
            let body: serde_json::Value = serde_json::from_str(&call.body).unwrap();
            let left = &body["RequestItems"];
            Ok(answer(200, &serde_json::json!({ "Responses": {}, "UnprocessedKeys": left })))
        }
        Fault::Cancelled(code) => {
            Ok(error(400, "TransactionCanceledException", &reasons(&call, code)))
        }
    }
}

async fn never() -> Result<Reply, Broken> {
    match std::future::pending::<Infallible>().await {}
}

/// Hands a request to the backend.
async fn forward(
    shared: Arc<Shared>,
    headers: HeaderMap,
    call: Call,
    body: Bytes,
) -> Result<Reply, Broken> {
    let forget = shared.forget_tokens.load(Ordering::SeqCst);
    let body = match forget && call.operation == "TransactWriteItems" {
        true => without_token(&call.body),
        false => body,
    };
    let mut request = Request::post(format!("{}/", shared.backend)).body(Full::new(body)).unwrap();
    *request.headers_mut() = headers;
    // The client gives both anew.
    for name in [header::HOST, header::CONTENT_LENGTH] {
        request.headers_mut().remove(name);
    }
    let reply = shared.client.request(request).await.map_err(|_| Broken)?;
    let (parts, body) = reply.into_parts();
    let body = body.collect().await.map_err(|_| Broken)?.to_bytes();
    if parts.status == StatusCode::OK && !shared.uncounted.load(Ordering::SeqCst) {
        let mut all = shared.items_read.lock();
        for (table, items) in items_of(&call, &body) {
            *all.entry(table).or_default() += items;
        }
    }
    Ok(Response::from_parts(parts, Full::new(body)))
}

/// How many items a reply says that it took, by table.
fn items_of(call: &Call, reply: &[u8]) -> Vec<(String, usize)> {
    let json = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).unwrap();
    let table = || json(call.body.as_bytes())["TableName"].as_str().unwrap().to_owned();
    match call.operation.as_str() {
        "GetItem" => vec![(table(), usize::from(json(reply)["Item"].is_object()))],
        "Query" | "Scan" => {
            let scanned = json(reply)["ScannedCount"].as_u64().unwrap();
            vec![(table(), usize::try_from(scanned).unwrap())]
        }
        "BatchGetItem" => {
            let reply = json(reply);
            let tables = reply["Responses"].as_object().unwrap().iter();
            tables.map(|(table, items)| (table.clone(), items.as_array().unwrap().len())).collect()
        }
        _ => Vec::new(),
    }
}

fn without_token(body: &str) -> Bytes {
    let mut body: serde_json::Value = serde_json::from_str(body).unwrap();
    let token = body.as_object_mut().unwrap().remove("ClientRequestToken");
    assert!(token.is_some(), "a transaction without a token");
    serde_json::to_vec(&body).unwrap().into()
}

/// One reason an item, as DynamoDB gives them.
fn reasons(call: &Call, first: &str) -> Vec<serde_json::Value> {
    let body: serde_json::Value = serde_json::from_str(&call.body).unwrap();
    let items = body["TransactItems"].as_array().map_or(0, Vec::len);
    let mut reasons = vec![serde_json::json!({ "Code": "None" }); items];
    reasons[0] = serde_json::json!({ "Code": first, "Message": AWS_TEXT });
    reasons
}

fn error(status: u16, code: &str, reasons: &[serde_json::Value]) -> Reply {
    let mut body = serde_json::json!({
        "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"),
        "message": format!("{AWS_TEXT} is refused"),
    });
    if !reasons.is_empty() {
        body["CancellationReasons"] = reasons.into();
    }
    answer(status, &body)
}

fn answer(status: u16, body: &serde_json::Value) -> Reply {
    let mut reply = Response::new(Full::new(body.to_string().into()));
    *reply.status_mut() = StatusCode::from_u16(status).unwrap();
    let json = header::HeaderValue::from_static("application/x-amz-json-1.0");
    reply.headers_mut().insert(header::CONTENT_TYPE, json);
    reply
}
