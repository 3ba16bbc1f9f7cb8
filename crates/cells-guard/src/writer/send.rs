//! Sends requests and tells what became of them.

use aws_sdk_dynamodb::config::http::HttpResponse;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::types::{CancellationReason, ReturnValue};

use super::error::{Busy, Error};
use super::route::Home;
use super::write::{Action, Parts, Write, incomplete};
use super::{Job, Routes};
use crate::sdk::{CONTENDED, Cancelled, cancellation, condition_failed};
use crate::{CellTable, Failure, Item};

/// What became of one attempt.
#[derive(Debug)]
pub enum Sent<T> {
    Done(T),
    /// The condition of the write of this number does not hold. Nothing was done.
    Condition(usize),
    /// The guard is not as it was asked for; what it is, if it was answered. Nothing was done.
    Guard(Option<Item>),
    /// There is a log record of this very transaction: it was done before.
    Recorded,
    /// The write of this number, or one of them, is not valid. Nothing was done.
    Invalid(Option<usize>),
    /// DynamoDB knows the token of another transaction. Nothing was done.
    TokenUsed,
    /// Nothing was done.
    Busy(Busy),
    /// It may have been done, or may be done yet.
    Open,
    /// Nothing was done.
    Refused(Failure),
}

/// What the parts of a transaction are: the guard's check first, the log record last.
#[derive(Debug, Clone, Copy)]
pub struct Layout {
    pub guard: bool,
    pub log: bool,
}

impl<T> Sent<T> {
    pub fn of<E>(result: Result<T, SdkError<E, HttpResponse>>) -> Self
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let error = match result {
            Ok(done) => return Self::Done(done),
            Err(error) => error,
        };
        let service = error.as_service_error();
        match service.and_then(ProvideErrorMetadata::code) {
            Some("ConditionalCheckFailedException") => Self::Condition(0),
            Some(code) if CONTENDED.contains(&code) => Self::Busy(Busy::Contended),
            Some("ValidationException") => {
                let detail = service.and_then(ProvideErrorMetadata::message);
                tracing::debug!(detail, "a write was not valid");
                Self::Invalid(None)
            }
            Some("IdempotentParameterMismatchException" | "IdempotentParameterMismatch") => {
                Self::TokenUsed
            }
            _ => Self::failed(Failure::of(&error)),
        }
    }

    fn failed(failure: Failure) -> Self {
        match failure {
            Failure::Throttled => Self::Busy(Busy::Throttled),
            Failure::Unreachable => Self::Busy(Busy::Unreachable),
            Failure::Timeout | Failure::Failed => Self::Open,
            rejected @ Failure::Rejected { .. } => Self::Refused(rejected),
        }
    }

    pub fn of_transaction(
        result: Result<T, SdkError<TransactWriteItemsError, HttpResponse>>,
        layout: Layout,
    ) -> Self {
        if let Err(error) = &result
            && let Some(reasons) = cancellation(error)
        {
            return Self::cancelled(reasons, layout);
        }
        Self::of(result)
    }

    fn cancelled(reasons: &[CancellationReason], layout: Layout) -> Self {
        let (guard, rest) = match (layout.guard, reasons) {
            (true, [guard, rest @ ..]) => (Some(guard), rest),
            (_, all) => (None, all),
        };
        let (log, writes) = match (layout.log, rest) {
            (true, [writes @ .., log]) => (Some(log), writes),
            (_, all) => (None, all),
        };
        // It says that all was done, whatever the rest has become since.
        if log.is_some_and(condition_failed) {
            return Self::Recorded;
        }
        if let Some(guard) = guard.filter(|reason| condition_failed(reason)) {
            return Self::Guard(guard.item.clone());
        }
        if let Some(write) = writes.iter().position(condition_failed) {
            return Self::Condition(write);
        }
        let invalid = |reason: &CancellationReason| reason.code() == Some("ValidationError");
        if let Some(write) = writes.iter().position(invalid) {
            return Self::Invalid(Some(write));
        }
        match Cancelled::of(reasons) {
            Cancelled::Contended => Self::Busy(Busy::Contended),
            Cancelled::Throttled => Self::Busy(Busy::Throttled),
            Cancelled::Other(detail) => Self::Refused(Failure::Rejected { detail }),
        }
    }
}

impl Job<'_> {
    /// A write by itself. Of a put or a delete what was there, of an update what is there now.
    pub(super) async fn send_single(
        &self,
        home: &Home,
        write: &Write,
        table: &CellTable,
    ) -> Sent<Option<Item>> {
        let Parts { condition, names, values } = write.condition.parts();
        let (client, table) = (&home.client, &table.table_name);
        let sent = async {
            match &write.action {
                Action::Put(item) => {
                    let put = client
                        .put_item()
                        .table_name(table)
                        .set_item(Some(Write::stamped(item, &home.cell)))
                        .set_condition_expression(condition)
                        .set_expression_attribute_names(names)
                        .set_expression_attribute_values(values)
                        .return_values(ReturnValue::AllOld);
                    Sent::of(put.send().await.map(|done| done.attributes))
                }
                Action::Update(key, update) => {
                    let update = client
                        .update_item()
                        .table_name(table)
                        .set_key(Some(key.clone()))
                        .update_expression(update)
                        .set_condition_expression(condition)
                        .set_expression_attribute_names(names)
                        .set_expression_attribute_values(values)
                        .return_values(ReturnValue::AllNew);
                    Sent::of(update.send().await.map(|done| done.attributes))
                }
                // A check never comes here by itself.
                Action::Delete(key) | Action::Check(key) => {
                    let delete = client
                        .delete_item()
                        .table_name(table)
                        .set_key(Some(key.clone()))
                        .set_condition_expression(condition)
                        .set_expression_attribute_names(names)
                        .set_expression_attribute_values(values)
                        .return_values(ReturnValue::AllOld);
                    Sent::of(delete.send().await.map(|done| done.attributes))
                }
            }
        };
        self.pace.within(sent).await.unwrap_or(Sent::Open)
    }

    /// All writes as they are, in one transaction.
    pub(super) async fn send_plain<R: Routes>(
        &self,
        home: &Home,
    ) -> Result<Sent<Option<Item>>, Error<R::Error>> {
        let mut items = Vec::new();
        for (write, table) in self.place(home)? {
            items.push(write.part(table, &home.cell).map_err(|_| incomplete::<R>(write))?);
        }
        let sent = home
            .client
            .transact_write_items()
            .set_transact_items(Some(items))
            .client_request_token(self.identity.token())
            .send();
        let layout = Layout { guard: false, log: false };
        let sent = async { Sent::of_transaction(sent.await.map(|_| None), layout) };
        Ok(self.pace.within(sent).await.unwrap_or(Sent::Open))
    }
}
