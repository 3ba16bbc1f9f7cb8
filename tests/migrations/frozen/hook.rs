//! A freeze hook, as an operator would have it, and the gate by which it stops writers. Orders that are late it ignores, and what it has
//! done it does not do again, as docs/moving.md asks.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::RwLock;

/// How it does what it is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Obeys {
    /// When it answers, it is done.
    AtOnce,
    /// It answers, and somebody else will do it.
    Later,
    /// It answers freezes with 503.
    Never,
    /// It does not answer freezes. What they ask for is done when the test says so.
    Silent,
    /// The same of the first thaw, which arrives right after the freeze.
    ThawsLate,
    /// It freezes, and does not answer the first freeze.
    FreezesMutely,
}

#[derive(Clone, Debug)]
pub struct Told {
    pub action: String,
    pub cell: String,
    pub migration: String,
    pub tenant: String,
    pub number: u64,
    pub order: u64,
    /// The idempotency key.
    key: String,
}

/// What it remembers.
#[derive(Default)]
struct Heard {
    /// The latest order that it did, by the migration: the worker's number, and its own.
    latest: HashMap<String, (u64, u64)>,
    /// Idempotency keys of what it did.
    done: HashSet<String>,
}

#[derive(Clone)]
pub struct Hook {
    pub url: String,
    shared: Arc<Shared>,
}

/// What is done when an order comes.
type Then = Box<dyn Fn(&Told) + Send>;

struct Shared {
    obeys: Obeys,
    orders: Mutex<Vec<Told>>,
    /// Those that got no answer, and are not done yet.
    late: Mutex<Vec<Told>>,
    /// How many of them arrived in a freeze, and how many it did.
    landed: Mutex<(usize, usize)>,
    heard: tokio::sync::Mutex<Heard>,
    /// Where writers write; `None`: they are stopped. Each holds it while it writes.
    gate: RwLock<Option<String>>,
    cell: Mutex<String>,
    on: Mutex<Option<Then>>,
}

impl Hook {
    pub async fn start(obeys: Obeys) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/freeze", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            obeys,
            orders: Mutex::default(),
            late: Mutex::default(),
            landed: Mutex::default(),
            heard: tokio::sync::Mutex::default(),
            gate: RwLock::new(Some("cell-a".to_owned())),
            cell: Mutex::new("cell-a".to_owned()),
            on: Mutex::default(),
        });
        let hook = Self { url, shared };
        let serving = hook.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let hook = serving.clone();
                let service = service_fn(move |request| answer(request, hook.clone()));
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        hook
    }

    pub fn orders(&self) -> Vec<Told> {
        self.shared.orders.lock().clone()
    }

    pub fn told(&self, action: &str) -> bool {
        self.orders().iter().any(|order| order.action == action)
    }

    /// Orders of this kind since the first freeze.
    pub fn count_after_freeze(&self, action: &str) -> usize {
        let orders = self.orders();
        let since = orders.iter().skip_while(|order| order.action != "FREEZE");
        since.filter(|order| order.action == action).count()
    }

    /// Where writers were told to write last.
    pub fn cell(&self) -> String {
        self.shared.cell.lock().clone()
    }

    /// What else it does.
    pub fn on(&self, then: impl Fn(&Told) + Send + 'static) {
        *self.shared.on.lock() = Some(Box::new(then));
    }

    /// Orders that got no answer arrive. Answers how many there were, and how many of them it did.
    pub async fn land(&self) -> (usize, usize) {
        let late = std::mem::take(&mut *self.shared.late.lock());
        let (all, mut done) = (late.len(), 0);
        for order in late {
            done += usize::from(self.obey(&order).await);
        }
        (all, done)
    }

    pub fn gate(&self) -> &RwLock<Option<String>> {
        &self.shared.gate
    }

    pub async fn resume(&self, cell: &str) {
        *self.shared.gate.write().await = Some(cell.to_owned());
    }

    /// How many such orders arrived in a freeze, and how many it did.
    pub fn landed(&self) -> (usize, usize) {
        *self.shared.landed.lock()
    }

    /// Whether it did it.
    async fn obey(&self, order: &Told) -> bool {
        let mut heard = self.shared.heard.lock().await;
        let at = (order.number, order.order);
        let late = heard.latest.get(&order.migration).is_some_and(|latest| at < *latest);
        if late || heard.done.contains(&order.key) {
            return false;
        }
        self.act(order).await;
        heard.latest.insert(order.migration.clone(), at);
        heard.done.insert(order.key.clone());
        true
    }

    async fn act(&self, order: &Told) {
        if let Some(then) = &*self.shared.on.lock() {
            then(order);
        }
        if order.action == "FREEZE" {
            if self.shared.obeys != Obeys::Later {
                // Waits for whoever writes just now.
                *self.shared.gate.write().await = None;
            }
            return;
        }
        self.resume(&order.cell).await;
        self.shared.cell.lock().clone_from(&order.cell);
    }

    /// What becomes of an order: the status of its answer, if it gets one.
    async fn heed(&self, order: &Told) -> Option<u16> {
        let action = order.action.as_str();
        let first = self.orders().iter().filter(|told| told.action == action).count() == 1;
        match (self.shared.obeys, action, first) {
            (Obeys::Never, "FREEZE", _) => return Some(503),
            (Obeys::Silent, "FREEZE", _) | (Obeys::ThawsLate, "THAW", true) => {
                self.shared.late.lock().push(order.clone());
                return None;
            }
            _ => {}
        }
        self.obey(order).await;
        match (self.shared.obeys, action, first) {
            (Obeys::FreezesMutely, "FREEZE", true) => return None,
            (Obeys::ThawsLate, "FREEZE", _) => {
                let (all, done) = self.land().await;
                let mut landed = self.shared.landed.lock();
                *landed = (landed.0 + all, landed.1 + done);
            }
            _ => {}
        }
        Some(200)
    }
}

async fn answer(
    request: Request<Incoming>,
    hook: Hook,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.method(), "POST");
    let key = request.headers()["idempotency-key"].to_str().unwrap().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let text = |name: &str| body[name].as_str().unwrap().to_owned();
    let order = Told {
        action: text("action"),
        cell: text("cell"),
        migration: text("migration"),
        tenant: text("tenant"),
        number: body["number"].as_u64().unwrap(),
        order: body["order"].as_u64().unwrap(),
        key,
    };
    hook.shared.orders.lock().push(order.clone());
    let Some(status) = hook.heed(&order).await else { std::future::pending().await };
    Ok(Response::builder().status(status).body(Full::default()).unwrap())
}
