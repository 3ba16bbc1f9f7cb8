//! How the control tables' DynamoDB is reached: one HTTP client, no retries, a deadline on every call.
//!
//! The SDK's own retries are off, because a retry in here would be invisible to the budget above, and would turn the success of a
//! write whose reply was lost into a failed condition. Retrying is done in one place: the directory's retry layer.

use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{
    Credentials, SharedCredentialsProvider, SharedHttpClient, StalledStreamProtectionConfig,
    retry::RetryConfig,
};
use aws_smithy_http_client::tls;
use cells_guard::MarkingClient;

use crate::metering::{Consumption, Counting};

/// Where DynamoDB is and how long to wait for it.
#[derive(Debug, Clone)]
pub struct DynamoDbOptions {
    /// An endpoint other than AWS's own, such as `http://127.0.0.1:8000`.
    pub endpoint: Option<String>,
    /// `None`: as AWS's default chain finds it.
    pub region: Option<String>,
    /// Longest wait for a connection. A connection that takes longer was never made.
    pub connect_timeout: Duration,
    /// Longest wait for the answer of a read, its connection included.
    pub read_timeout: Duration,
    /// Longest wait for the answer of a commit, its connection included.
    pub commit_timeout: Duration,
    /// Where what the calls consume is counted.
    pub consumption: Consumption,
}

impl Default for DynamoDbOptions {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: None,
            connect_timeout: Duration::from_millis(500),
            read_timeout: Duration::from_secs(1),
            commit_timeout: Duration::from_secs(3),
            consumption: Consumption::default(),
        }
    }
}

/// Variables by which AWS's default chain finds credentials. Where an endpoint is given and none of these is set, it is an engine
/// that wants no real ones.
const CREDENTIAL_VARIABLES: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_PROFILE",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// Most connections kept open while idle.
const MAX_IDLE_CONNECTIONS: usize = 64;

/// A client for the control tables. Makes no call but those by which AWS's chain finds Region and credentials.
pub async fn connect(options: &DynamoDbOptions) -> Client {
    let config = shared_config(options).await;
    let mut config = counting(&config, options.consumption.clone());
    if let Some(endpoint) = &options.endpoint {
        config = config.endpoint_url(endpoint.clone());
    }
    Client::from_conf(config.build())
}

/// The configuration of a client of DynamoDB. Every client begins with it, or its calls would not be counted.
pub fn counting(config: &SdkConfig, consumption: Consumption) -> aws_sdk_dynamodb::config::Builder {
    aws_sdk_dynamodb::config::Builder::from(config).interceptor(Counting(consumption))
}

/// What all of AWS's services have in common: Region, credentials, HTTP client, deadlines, no retries. Without an endpoint.
pub async fn shared_config(options: &DynamoDbOptions) -> SdkConfig {
    let local = options.endpoint.as_deref().filter(|endpoint| wants_no_credentials(endpoint));
    let config = match local {
        Some(_) => SdkConfig::builder()
            .behavior_version(behavior())
            .http_client(http_client())
            .region(Region::new(options.region.clone().unwrap_or_else(|| "us-east-1".into())))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new(
                "local",
                "local",
                None,
                None,
                "cell-directory",
            ))),
        None => {
            let mut loader = aws_config::defaults(behavior()).http_client(http_client());
            if let Some(region) = &options.region {
                loader = loader.region(Region::new(region.clone()));
            }
            loader.load().await.into_builder()
        }
    };
    config
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            call_timeouts(options.read_timeout)
                .to_builder()
                .connect_timeout(options.connect_timeout.min(options.read_timeout))
                .build(),
        )
        // Answers are small and have a deadline; a trickling one runs into that.
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .build()
}

/// The deadline of a call. There is one attempt, so the operation's is the attempt's. The connection's deadline stays as it is for
/// all calls of a client, or they could not share connections.
pub fn call_timeouts(call: Duration) -> TimeoutConfig {
    TimeoutConfig::builder().operation_attempt_timeout(call).operation_timeout(call).build()
}

fn behavior() -> BehaviorVersion {
    BehaviorVersion::v2026_01_12()
}

fn http_client() -> SharedHttpClient {
    let client = aws_smithy_http_client::Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
        .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
        .build_https();
    SharedHttpClient::new(MarkingClient(client))
}

/// Whether an endpoint is an engine of one's own, on a machine that has no AWS credentials set. An interface endpoint of AWS is not:
/// its machine may have a role, which no variable shows.
fn wants_no_credentials(endpoint: &str) -> bool {
    !of_aws(endpoint)
        && !CREDENTIAL_VARIABLES
            .iter()
            .any(|variable| std::env::var_os(variable).is_some_and(|value| !value.is_empty()))
}

/// Whether an endpoint is AWS's own, such as an interface endpoint in a VPC. One that is not is taken to be an emulator, of DynamoDB
/// or of more.
pub fn of_aws(endpoint: &str) -> bool {
    let aws = ["amazonaws.com", "amazonaws.com.cn", "api.aws"];
    let host = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let host = host.split(['/', ':', '?']).next().unwrap_or(host);
    aws.iter().any(|domain| host.ends_with(domain))
}
