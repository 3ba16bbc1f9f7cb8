//! Parts of a transaction.

use aws_sdk_dynamodb::error::BuildError;
use aws_sdk_dynamodb::types::{ConditionCheck, Delete, Put, TransactWriteItem, Update};

use super::error::rejected;
use crate::store::StoreError;

type Part = Result<TransactWriteItem, StoreError>;

pub fn put(built: Result<Put, BuildError>) -> Part {
    Ok(TransactWriteItem::builder().put(built.map_err(incomplete)?).build())
}

pub fn update(built: Result<Update, BuildError>) -> Part {
    Ok(TransactWriteItem::builder().update(built.map_err(incomplete)?).build())
}

pub fn delete(built: Result<Delete, BuildError>) -> Part {
    Ok(TransactWriteItem::builder().delete(built.map_err(incomplete)?).build())
}

pub fn check(built: Result<ConditionCheck, BuildError>) -> Part {
    Ok(TransactWriteItem::builder().condition_check(built.map_err(incomplete)?).build())
}

pub fn incomplete(error: BuildError) -> StoreError {
    rejected(format!("a request is incomplete: {error}"))
}
