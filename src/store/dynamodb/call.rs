//! One client span around each call, with OpenTelemetry's current names for DynamoDB
//! (<https://opentelemetry.io/docs/specs/semconv/db/dynamodb/>). Keys and items never enter it.

use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::RequestId;
use opentelemetry::{Array, StringValue, Value};
use opentelemetry_semantic_conventions::attribute as otel;
use tracing::{Instrument, Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::error::from_sdk;
use crate::store::StoreError;

/// Errors that are outcomes: the precondition of a write did not hold.
const OUTCOMES: [&str; 2] = ["TransactionCanceledException", "ConditionalCheckFailedException"];

/// What a span says of a call.
#[derive(Clone, Copy, Default)]
pub struct Call<'a> {
    /// As the API names it, such as `GetItem`.
    pub operation: &'static str,
    pub tables: &'a [&'a str],
    pub index: Option<&'static str>,
    pub consistent: bool,
    pub limit: Option<i32>,
}

impl<'a> Call<'a> {
    pub fn new(operation: &'static str, tables: &'a [&'a str]) -> Self {
        Self { operation, tables, ..Self::default() }
    }

    /// A read that is strongly consistent.
    pub fn consistent(operation: &'static str, tables: &'a [&'a str]) -> Self {
        Self { consistent: true, ..Self::new(operation, tables) }
    }

    fn span(&self) -> Span {
        let name = match self.tables {
            [table] => format!("{} {table}", self.operation),
            _ => self.operation.to_owned(),
        };
        let span = tracing::info_span!(
            target: "cells::dynamodb",
            "DynamoDB",
            otel.name = name,
            otel.kind = "client",
            otel.status_code = field::Empty,
            "db.system.name" = "aws.dynamodb",
            "db.operation.name" = self.operation,
            "db.collection.name" = field::Empty,
            "db.response.status_code" = field::Empty,
            "rpc.system.name" = "aws-api",
            "aws.request_id" = field::Empty,
            "aws.dynamodb.consistent_read" = field::Empty,
            "aws.dynamodb.index_name" = self.index,
            "aws.dynamodb.limit" = self.limit,
            "error.type" = field::Empty,
        );
        if span.is_disabled() {
            return span;
        }
        if let [table] = self.tables {
            span.record(otel::DB_COLLECTION_NAME, *table);
        }
        if self.consistent {
            span.record(otel::AWS_DYNAMODB_CONSISTENT_READ, true);
        }
        let tables = self.tables.iter();
        let tables = tables.map(|table| StringValue::from((*table).to_owned()));
        span.set_attribute(
            otel::AWS_DYNAMODB_TABLE_NAMES,
            Value::Array(Array::String(tables.collect())),
        );
        span
    }

    /// Makes the call and answers as the SDK does, for whoever tells outcomes from errors.
    pub async fn raw<T, E>(
        self,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, SdkError<E, HttpResponse>>
    where
        T: RequestId,
        E: ProvideErrorMetadata + std::error::Error + 'static,
        SdkError<E, HttpResponse>: RequestId,
    {
        let span = self.span();
        let result = call.instrument(span.clone()).await;
        let request_id = match &result {
            Ok(output) => output.request_id(),
            Err(error) => error.request_id(),
        };
        if let Some(id) = request_id {
            span.record(otel::AWS_REQUEST_ID, id);
        }
        if let Err(error) = &result {
            record_error(&span, error);
        }
        result
    }

    /// Makes the call.
    pub async fn run<T, E>(
        self,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, StoreError>
    where
        T: RequestId,
        E: ProvideErrorMetadata + std::error::Error + 'static,
        SdkError<E, HttpResponse>: RequestId,
    {
        self.raw(call).await.map_err(|error| from_sdk(&error))
    }

    /// Makes a conditional write. `None`: its condition does not hold.
    pub async fn unless_refused<T, E>(
        self,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<Option<T>, StoreError>
    where
        T: RequestId,
        E: ProvideErrorMetadata + std::error::Error + 'static,
        SdkError<E, HttpResponse>: RequestId,
    {
        match self.raw(call).await {
            Ok(done) => Ok(Some(done)),
            Err(error) => match error.as_service_error().and_then(ProvideErrorMetadata::code) {
                Some("ConditionalCheckFailedException") => Ok(None),
                _ => Err(from_sdk(&error)),
            },
        }
    }
}

fn record_error<E>(span: &Span, error: &SdkError<E, HttpResponse>)
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let code = error.as_service_error().and_then(|error| error.code());
    if let Some(code) = code {
        span.record(otel::DB_RESPONSE_STATUS_CODE, code);
        if OUTCOMES.contains(&code) {
            return;
        }
    }
    let kind = code.unwrap_or(match from_sdk(error) {
        StoreError::Throttled => "throttled",
        StoreError::Timeout => "timeout",
        StoreError::Unreachable => "unreachable",
        StoreError::Failed => "failed",
        StoreError::Rejected { .. } | StoreError::Unreadable { .. } | StoreError::ForeignCursor => {
            "rejected"
        }
    });
    span.record(otel::ERROR_TYPE, kind);
    span.record("otel.status_code", "ERROR");
}
