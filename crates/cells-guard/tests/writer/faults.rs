//! An HTTP client that loses, delays and refuses what it is told to, once each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use tokio::sync::oneshot;

type Hook = Box<dyn FnOnce() -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// What happens to a request.
pub enum Fault {
    /// It is done, and the answer lost.
    LoseReply,
    /// It never arrives.
    LoseRequest,
    /// The same, and then this.
    LoseReplyAnd(Hook),
    /// It is on its way for long; this happens, and there is no answer. When told to it arrives, and what it was answered is told.
    Late(Hook, oneshot::Receiver<()>, oneshot::Sender<u16>),
    /// No connection is made.
    Unreachable,
    /// Answered without being done.
    Answer(u16, String),
    /// It is done, and before the answer comes, this.
    After(Hook),
}

#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next: VecDeque<(&'static str, Fault)>,
    seen: Vec<String>,
    forgets: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("State")
    }
}

/// A request that is late.
pub struct LateOne(oneshot::Sender<()>, oneshot::Receiver<u16>);

impl LateOne {
    /// Answers its status.
    pub async fn arrive(self) -> u16 {
        self.0.send(()).unwrap();
        self.1.await.unwrap()
    }
}

impl Fault {
    pub fn late(hook: Hook) -> (LateOne, Self) {
        let ((go, when), (answered, answer)) = (oneshot::channel(), oneshot::channel());
        (LateOne(go, answer), Self::Late(hook, when, answered))
    }
}

/// A hook from a future.
pub fn hook<F: Future<Output = ()> + Send + 'static>(
    hook: impl FnOnce() -> F + Send + 'static,
) -> Hook {
    Box::new(move || Box::pin(hook()))
}

impl Faults {
    /// The next call of this operation that has no fault yet has this one.
    pub fn next(&self, operation: &'static str, fault: Fault) {
        self.0.lock().unwrap().next.push_back((operation, fault));
    }

    pub fn throttle(&self, operation: &'static str) {
        let code = "ProvisionedThroughputExceededException";
        self.next(operation, Fault::Answer(400, answer(code)));
    }

    /// The operations since the last look, and whether all faults have happened.
    pub fn seen(&self) -> Vec<String> {
        let mut state = self.0.lock().unwrap();
        assert!(state.next.is_empty(), "faults that did not happen");
        std::mem::take(&mut state.seen)
    }

    /// How often an operation was called.
    pub fn count(&self, operation: &str) -> usize {
        let state = self.0.lock().unwrap();
        state.seen.iter().filter(|seen| *seen == operation).count()
    }

    /// From here on tokens come to nothing, as ten minutes later.
    pub fn forget_tokens(&self) {
        self.0.lock().unwrap().forgets = true;
    }

    fn take(&self, operation: &str) -> Option<Fault> {
        let mut state = self.0.lock().unwrap();
        state.seen.push(operation.to_owned());
        let at = state.next.iter().position(|(of, _)| *of == operation)?;
        state.next.remove(at).map(|(_, fault)| fault)
    }

    pub fn before(&self, inner: SharedHttpClient) -> SharedHttpClient {
        SharedHttpClient::new(Client { faults: self.clone(), inner })
    }
}

fn answer(code: &str) -> String {
    format!("{{\"__type\":\"com.amazonaws.dynamodb.v20120810#{code}\",\"message\":\"m\"}}")
}

#[derive(Debug)]
struct Client {
    faults: Faults,
    inner: SharedHttpClient,
}

impl HttpClient for Client {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let inner = self.inner.http_connector(settings, components);
        SharedHttpConnector::new(Connector { faults: self.faults.clone(), inner })
    }
}

#[derive(Debug)]
struct Connector {
    faults: Faults,
    inner: SharedHttpConnector,
}

fn response(status: u16, body: String) -> Result<HttpResponse, ConnectorError> {
    Ok(HttpResponse::new(status.try_into().unwrap(), SdkBody::from(body)))
}

fn lost() -> Result<HttpResponse, ConnectorError> {
    response(500, answer("InternalServerError"))
}

impl HttpConnector for Connector {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").unwrap_or_default();
        let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
        let inner = self.inner.clone();
        if self.faults.0.lock().unwrap().forgets {
            without_token(&mut request);
        }
        let fault = self.faults.take(&operation);
        HttpConnectorFuture::new(async move {
            match fault {
                None => inner.call(request).await,
                Some(Fault::LoseReply) => {
                    inner.call(request).await?;
                    lost()
                }
                Some(Fault::LoseRequest) => lost(),
                Some(Fault::LoseReplyAnd(hook)) => {
                    inner.call(request).await?;
                    hook().await;
                    lost()
                }
                Some(Fault::Late(hook, when, answered)) => {
                    tokio::spawn(async move {
                        let _ = when.await;
                        let answer = inner.call(request).await;
                        let status = answer.map_or(0, |answer| answer.status().as_u16());
                        let _ = answered.send(status);
                    });
                    hook().await;
                    lost()
                }
                Some(Fault::Unreachable) => {
                    Err(ConnectorError::io("refused".into()).never_connected())
                }
                Some(Fault::Answer(status, body)) => response(status, body),
                Some(Fault::After(hook)) => {
                    let answer = inner.call(request).await;
                    hook().await;
                    answer
                }
            }
        })
    }
}

fn without_token(request: &mut HttpRequest) {
    let Some(body) = request.body().bytes() else { return };
    let body = String::from_utf8(body.to_vec()).unwrap();
    let name = "\"ClientRequestToken\":\"";
    let Some((before, after)) = body.split_once(name) else { return };
    let (token, after) = after.split_once('"').unwrap();
    let other = "0123456789abcdef".chars().map(|_| rand::random_range(b'a'..=b'f') as char);
    let other: String = other.chain(token.chars().skip(16)).collect();
    // Of the same length, so that the headers stand.
    *request.body_mut() = SdkBody::from(format!("{before}{name}{other}\"{after}"));
}
