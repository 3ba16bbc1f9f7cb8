//! Amazon's clients for an endpoint of one's own.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::time::Duration;

use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    StreamSpecification, StreamViewType,
};
use aws_smithy_http_client::Builder;

fn credentials() -> Credentials {
    Credentials::new("local", "local", None, None, "tests")
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().operation_timeout(Duration::from_secs(10)).build()
}

pub fn dynamodb(endpoint: &str) -> aws_sdk_dynamodb::Client {
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .http_client(Builder::new().build_http())
        .region(Region::new("us-east-1"))
        .credentials_provider(credentials())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts())
        .endpoint_url(endpoint);
    aws_sdk_dynamodb::Client::from_conf(config.build())
}

pub fn streams(endpoint: &str) -> aws_sdk_dynamodbstreams::Client {
    let config = aws_sdk_dynamodbstreams::Config::builder()
        .behavior_version(aws_sdk_dynamodbstreams::config::BehaviorVersion::v2026_01_12())
        .http_client(Builder::new().build_http())
        .region(Region::new("us-east-1"))
        .credentials_provider(credentials())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts())
        .endpoint_url(endpoint);
    aws_sdk_dynamodbstreams::Client::from_conf(config.build())
}

/// A table keyed by `PK` and `SK`, without a stream.
pub async fn control_table(client: &aws_sdk_dynamodb::Client, name: &str) {
    create(client, name, None).await;
}

/// A table keyed by `PK` and `SK`, with a stream of both images. Returns the stream's ARN.
pub async fn table(client: &aws_sdk_dynamodb::Client, name: &str) -> String {
    let stream = StreamSpecification::builder()
        .stream_enabled(true)
        .stream_view_type(StreamViewType::NewAndOldImages)
        .build()
        .unwrap();
    create(client, name, Some(stream)).await.expect("the table has a stream")
}

async fn create(
    client: &aws_sdk_dynamodb::Client,
    name: &str,
    stream: Option<StreamSpecification>,
) -> Option<String> {
    let mut create = client
        .create_table()
        .table_name(name)
        .billing_mode(BillingMode::PayPerRequest)
        .set_stream_specification(stream);
    for (attribute, kind) in [("PK", KeyType::Hash), ("SK", KeyType::Range)] {
        let key = KeySchemaElement::builder().attribute_name(attribute).key_type(kind);
        let definition = AttributeDefinition::builder()
            .attribute_name(attribute)
            .attribute_type(ScalarAttributeType::S);
        create = create
            .key_schema(key.build().unwrap())
            .attribute_definitions(definition.build().unwrap());
    }
    let answer = create.send().await.expect("the table is made");
    answer.table_description.and_then(|table| table.latest_stream_arn)
}
