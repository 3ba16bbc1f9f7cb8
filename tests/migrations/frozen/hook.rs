//! A freeze hook, as an operator would have it, and the gate by which it stops writers.

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
    /// It does not answer freezes.
    Silent,
}

#[derive(Clone, Debug)]
pub struct Told {
    pub action: String,
    pub cell: String,
    pub migration: String,
    pub tenant: String,
    pub number: u64,
}

#[derive(Clone)]
pub struct Hook {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    obeys: Obeys,
    orders: Mutex<Vec<Told>>,
    /// Where writers write; `None`: they are stopped. Each holds it while it writes.
    gate: RwLock<Option<String>>,
    cell: Mutex<String>,
    on_thaw: Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Hook {
    pub async fn start(obeys: Obeys) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/freeze", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            obeys,
            orders: Mutex::default(),
            gate: RwLock::new(Some("cell-a".to_owned())),
            cell: Mutex::new("cell-a".to_owned()),
            on_thaw: Mutex::default(),
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

    pub fn on_thaw(&self, then: impl Fn() + Send + 'static) {
        *self.shared.on_thaw.lock() = Some(Box::new(then));
    }

    pub fn gate(&self) -> &RwLock<Option<String>> {
        &self.shared.gate
    }

    pub async fn resume(&self, cell: &str) {
        *self.shared.gate.write().await = Some(cell.to_owned());
    }

    async fn obey(&self, order: &Told) {
        if order.action == "FREEZE" {
            if self.shared.obeys == Obeys::AtOnce {
                // Waits for whoever writes just now.
                *self.shared.gate.write().await = None;
            }
            return;
        }
        if let Some(then) = &*self.shared.on_thaw.lock() {
            then();
        }
        self.resume(&order.cell).await;
        self.shared.cell.lock().clone_from(&order.cell);
    }
}

async fn answer(
    request: Request<Incoming>,
    hook: Hook,
) -> Result<Response<Full<Bytes>>, Infallible> {
    assert_eq!(request.method(), "POST");
    assert!(request.headers().contains_key("idempotency-key"));
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    let text = |name: &str| body[name].as_str().unwrap().to_owned();
    let order = Told {
        action: text("action"),
        cell: text("cell"),
        migration: text("migration"),
        tenant: text("tenant"),
        number: body["number"].as_u64().unwrap(),
    };
    hook.shared.orders.lock().push(order.clone());
    let status = match (order.action.as_str(), hook.shared.obeys) {
        ("FREEZE", Obeys::Never) => 503,
        ("FREEZE", Obeys::Silent) => std::future::pending().await,
        _ => {
            hook.obey(&order).await;
            200
        }
    };
    Ok(Response::builder().status(status).body(Full::default()).unwrap())
}
