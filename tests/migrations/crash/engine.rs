//! The embedded engine in the process, behind an HTTP client of the SDK's that counts a worker's calls and breaks one of them.
//!
//! There is no socket and no clock but the test's: a run takes the same course each time, so "call number 37" is a place in it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::{
    Credentials, SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_smithy_runtime_api::client::connection::ConnectionMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use cell_directory::store::dynamodb::client::call_timeouts;
use dynoxide::Database;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::run::Run;

/// Where the SDK takes the engine to be.
pub const ENDPOINT: &str = "http://engine.invalid";

/// How long a call takes.
const ROUND_TRIP: Duration = Duration::from_millis(1);

/// Does one of DynamoDB's operations. An error is one of DynamoDB's answers: its status and its body.
pub fn perform(database: &Database, operation: &str, body: &str) -> Result<String, (u16, String)> {
    macro_rules! dispatch {
        ($($name:literal => $method:ident),+ $(,)?) => {
            match operation {
                $($name => {
                    let request = serde_json::from_str(body).expect("a request of the SDK's");
                    let answer = database.$method(request);
                    answer.map(|answer| serde_json::to_string(&answer).expect("an answer"))
                })+
                other => panic!("the engine is asked for {other}"),
            }
        };
    }
    let answer = dispatch! {
        "BatchGetItem" => batch_get_item,
        "BatchWriteItem" => batch_write_item,
        "CreateTable" => create_table,
        "DeleteItem" => delete_item,
        "DescribeTable" => describe_table,
        "GetItem" => get_item,
        "PutItem" => put_item,
        "Query" => query,
        "Scan" => scan,
        "TransactWriteItems" => transact_write_items,
        "UpdateItem" => update_item,
        "UpdateTimeToLive" => update_time_to_live,
        "DescribeTimeToLive" => describe_time_to_live,
    };
    answer.map_err(|error| (error.status_code(), error.to_json()))
}

/// The same with a request as a value. Panics where DynamoDB refuses it.
pub fn ask(database: &Database, operation: &str, request: &Value) -> Value {
    let answer = perform(database, operation, &request.to_string());
    serde_json::from_str(&answer.unwrap_or_else(|error| panic!("{operation}: {error:?}"))).unwrap()
}

/// What becomes of one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// The worker dies before the call has an effect.
    DiesBefore,
    /// The worker dies after the call had its effect.
    DiesAfter,
    /// The call has its effect, its reply is lost, and the worker lives.
    LostReply,
    /// The worker dies, and the call has its effect so many calls later.
    DiesAndLands(usize),
    /// The reply is lost, the worker lives, and the call has its effect so many calls later.
    Lands(usize),
}

/// A worker's way to the engine.
#[derive(Clone)]
pub struct Line {
    pub run: Arc<Run>,
    /// Cancelled when the worker has died: nothing that it sends has an effect any more, and nothing comes back.
    pub dead: CancellationToken,
    /// Calls count from now on.
    armed: Arc<AtomicBool>,
}

/// What a client is connected to.
#[derive(Clone)]
pub enum Wire {
    /// The engine, and nothing ever fails.
    Plain(Database),
    Worker(Line),
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl HttpClient for Wire {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let target = request.headers().get("x-amz-target").expect("a target").to_owned();
        let operation = target.rsplit('.').next().expect("an operation").to_owned();
        let body = request.body().bytes().expect("a body in memory");
        let body = String::from_utf8(body.to_vec()).expect("JSON");
        match self.clone() {
            Self::Plain(database) => {
                HttpConnectorFuture::ready(Ok(answer(perform(&database, &operation, &body))))
            }
            Self::Worker(line) => HttpConnectorFuture::new(line.call(operation, body)),
        }
    }
}

impl Line {
    pub fn new(run: Arc<Run>) -> Self {
        Self { run, dead: CancellationToken::new(), armed: Arc::default() }
    }

    /// What a replica reads as it begins is behind it.
    pub fn arm(&self) {
        self.armed.store(true, Ordering::Relaxed);
    }

    async fn call(self, operation: String, body: String) -> Result<HttpResponse, ConnectorError> {
        let Self { run, dead, armed } = self;
        if !armed.load(Ordering::Relaxed) {
            return Ok(answer(perform(&run.database, &operation, &body)));
        }
        tokio::time::sleep(ROUND_TRIP).await;
        if dead.is_cancelled() {
            return std::future::pending().await;
        }
        let call = || perform(&run.database, &operation, &body);
        let fault = run.begins(&operation);
        let done = match fault {
            None => Some(call()),
            Some(Fault::DiesBefore) => None,
            Some(Fault::DiesAfter | Fault::LostReply) => Some(call()),
            Some(Fault::DiesAndLands(after) | Fault::Lands(after)) => {
                run.lands(after, operation.clone(), body.clone());
                None
            }
        };
        // Nothing else changes the phase.
        if operation == "TransactWriteItems" {
            run.looks();
        }
        match (fault, done) {
            (None, Some(done)) => Ok(answer(done)),
            (Some(Fault::LostReply | Fault::Lands(_)), _) => Err(broken()),
            _ => {
                dead.cancel();
                std::future::pending().await
            }
        }
    }
}

fn answer(done: Result<String, (u16, String)>) -> HttpResponse {
    let (status, body) = match done {
        Ok(body) => (200, body),
        Err(refusal) => refusal,
    };
    let status = status.try_into().expect("a status");
    let mut response = HttpResponse::new(status, SdkBody::from(body));
    response.headers_mut().insert("content-type", "application/x-amz-json-1.0");
    response
}

/// A connection that there was, and that broke: what was sent may have been done.
fn broken() -> ConnectorError {
    let connection = ConnectionMetadata::builder().proxied(false).poison_fn(|| {}).build();
    ConnectorError::io("the connection broke".into()).with_connection(connection)
}

/// What a client of this wire is made of, as `client::shared_config` makes it.
pub fn config(wire: Wire) -> SdkConfig {
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(SharedHttpClient::new(wire))
        .region(Region::new("eu-west-1"))
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new(
            "local", "local", None, None, "test",
        )))
        .retry_config(RetryConfig::disabled())
        .timeout_config(call_timeouts(Duration::from_secs(1)))
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .build()
}
