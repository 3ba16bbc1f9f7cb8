//! `cells.v1.CellData`: parses, asks, and writes what is answered. Decides nothing.

use std::pin::Pin;

use aws_sdk_dynamodb::types::AttributeValue;
use futures::Stream;
use prost_types::Struct;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::deadline::Deadline;
use super::status::{Fault, Reason};
use super::{export, page, parse};
use crate::cells::data::{
    Action, CellData, Expression, Item, Position, Query, Write, Written, json,
};
use crate::proto::v1;
use crate::proto::v1::cell_data_server::CellData as Service;
use crate::store::Cursor;
use crate::telemetry::rpc::RpcTrace;

/// Items that one part of an answer holds at most, so that its first items come soon and a message is not too large: an item may
/// have 400 KB.
pub(super) const PART: usize = 10;

pub struct DataService {
    pub data: CellData,
    /// Cancelled when streams are to end.
    pub draining: CancellationToken,
}

impl DataService {
    /// Routes under the trace of this call, and ends with it.
    fn of<T>(&self, request: &Request<T>) -> CellData {
        let extensions = request.extensions();
        let deadline = extensions.get::<Deadline>().map(|deadline| deadline.0);
        self.data.under(extensions.get::<RpcTrace>().cloned()).until(deadline)
    }
}

type Parts = Pin<Box<dyn Stream<Item = Result<v1::QueryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Service for DataService {
    type QueryStream = Parts;
    type ExportTenantStream = export::Parts;

    async fn export_tenant(
        &self,
        request: Request<v1::ExportTenantRequest>,
    ) -> Result<Response<export::Parts>, Status> {
        let first = self.of(&request);
        let (rest, draining) = (self.data.clone(), self.draining.clone());
        let parts = export::begin(first, rest, request.into_inner(), draining).await?;
        Ok(Response::new(parts))
    }

    async fn query(&self, request: Request<v1::QueryRequest>) -> Result<Response<Parts>, Status> {
        let data = self.of(&request);
        let request = request.into_inner();
        let limit = page::size(request.page_size)?;
        let scope = v1::QueryScope::try_from(request.scope)
            .map_err(|_| parse::unknown("scope", request.scope))?;
        let filter = format!(
            "{}\u{0}{}\u{0}{}\u{0}{}\u{0}{}",
            request.partition_key,
            request.table,
            request.sort_key_prefix,
            request.entity_type,
            request.scope
        );
        let token = page::Query { method: "Query", filter: &filter }.cursor(&request.page_token)?;
        let from = token.map(|Cursor(text)| position(&text)).transpose()?;
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let query = Query {
            tenant: parse::partition_key("partition_key", request.partition_key)?,
            table: table("table", request.table)?,
            sort_key_prefix: given(request.sort_key_prefix),
            entity_type: given(request.entity_type),
            all_cells: scope == v1::QueryScope::AllCells,
            consistent: request.consistent,
            limit,
        };
        let asked = Asked { data, query, filter, from, left: limit, over: false };
        // What is wrong with the request is the call's status, not the end of a stream.
        let (first, mut asked) = asked.part().await;
        let first = first?;
        // One decision says where the call went; the parts to come need no spans.
        asked.data = self.data.clone();
        let rest = futures::stream::unfold(asked, async |asked| {
            if asked.over {
                return None;
            }
            let (part, asked) = asked.part().await;
            Some((part.map_err(Status::from), asked))
        });
        let first = futures::stream::once(std::future::ready(Ok(first)));
        Ok(Response::new(Box::pin(futures::StreamExt::chain(first, rest))))
    }

    async fn put(
        &self,
        request: Request<v1::PutRequest>,
    ) -> Result<Response<v1::PutResponse>, Status> {
        let data = self.of(&request);
        let request = request.into_inner();
        let item = required("item", request.item)?;
        let condition = expression("condition", request.condition)?;
        let write = (request.table, "item", Action::Put(item), condition);
        let Written { cell, guarded, item } = write_in(&data, request.partition_key, write).await?;
        let old_item = item.as_ref().map(json::message);
        Ok(Response::new(v1::PutResponse { old_item, cell_id: cell.into(), guarded }))
    }

    async fn update(
        &self,
        request: Request<v1::UpdateRequest>,
    ) -> Result<Response<v1::UpdateResponse>, Status> {
        let data = self.of(&request);
        let request = request.into_inner();
        let key = required("key", request.key)?;
        let Expression { text, names, values } = expression("update", request.update)?;
        if text.is_empty() {
            return Err(parse::missing("update.expression").into());
        }
        let condition = Expression { text: request.condition, names, values };
        let write = (request.table, "key", Action::Update(key, text), condition);
        let Written { cell, guarded, item } = write_in(&data, request.partition_key, write).await?;
        let item = item.as_ref().map(json::message);
        Ok(Response::new(v1::UpdateResponse { item, cell_id: cell.into(), guarded }))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let data = self.of(&request);
        let request = request.into_inner();
        let key = required("key", request.key)?;
        let condition = expression("condition", request.condition)?;
        let write = (request.table, "key", Action::Delete(key), condition);
        let Written { cell, guarded, item } = write_in(&data, request.partition_key, write).await?;
        let old_item = item.as_ref().map(json::message);
        Ok(Response::new(v1::DeleteResponse { old_item, cell_id: cell.into(), guarded }))
    }

    async fn transact(
        &self,
        request: Request<v1::TransactRequest>,
    ) -> Result<Response<v1::TransactResponse>, Status> {
        let data = self.of(&request);
        let request = request.into_inner();
        let tenant = parse::partition_key("partition_key", request.partition_key)?;
        let writes = request.writes.into_iter().enumerate();
        let writes = writes.map(|(at, write)| data_write(&format!("writes[{at}]"), write));
        let writes = writes.collect::<Result<Vec<_>, _>>()?;
        let token = token(request.request_id)?;
        let written = data.transact(&tenant, writes, token).await.map_err(Fault::from)?;
        Ok(Response::new(v1::TransactResponse { cell_id: written.cell.into() }))
    }
}

async fn write_in(
    data: &CellData,
    tenant: String,
    (name, field, action, condition): (String, &str, Action, Expression),
) -> Result<Written, Fault> {
    let tenant = parse::partition_key("partition_key", tenant)?;
    let table = table("table", name)?;
    let write = Write { table, field: field.to_owned(), action, condition };
    data.write(&tenant, write).await.map_err(Fault::from)
}

/// A query under way.
struct Asked {
    data: CellData,
    query: Query,
    filter: String,
    from: Option<Position>,
    left: usize,
    over: bool,
}

impl Asked {
    async fn part(mut self) -> (Result<v1::QueryResponse, Fault>, Self) {
        self.query.limit = self.left.min(PART);
        let found = match self.data.query(&self.query, self.from.take()).await {
            Ok(found) => found,
            Err(error) => {
                self.over = true;
                return (Err(error.into()), self);
            }
        };
        self.left -= found.items.len().min(self.left);
        self.over = found.next.is_none() || self.left == 0;
        let next = found.next.as_ref().map(|position| Cursor(cursor(position)));
        self.from = found.next;
        let items = found.items.iter().map(|(item, cell, previous)| v1::CellItem {
            item: Some(json::message(item)),
            cell_id: cell.as_str().to_owned(),
            previous: *previous,
        });
        let failures = found.failures.into_iter().map(|failure| v1::CellFailure {
            cell_id: failure.cell.into(),
            reason: Fault::from(failure.error).reason().as_str().to_owned(),
        });
        let query = page::Query { method: "Query", filter: &self.filter };
        let part = v1::QueryResponse {
            items: items.collect(),
            next_page_token: query.token(next),
            failures: failures.collect(),
        };
        (Ok(part), self)
    }
}

/// Between the parts of a position. No key template has it.
const BETWEEN: char = '\u{1}';

/// A position as text: the partition's key template, and the sort key with its type.
pub(super) fn cursor(position: &Position) -> String {
    use base64::Engine;
    let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
    let after = match &position.after {
        None => String::new(),
        Some(AttributeValue::S(text)) => format!("S{text}"),
        Some(AttributeValue::N(number)) => format!("N{number}"),
        Some(AttributeValue::B(bytes)) => format!("B{}", engine.encode(bytes.as_ref())),
        // No key is of another type.
        Some(_) => String::new(),
    };
    format!("{}{BETWEEN}{after}", position.partition)
}

pub(super) fn position(text: &str) -> Result<Position, Fault> {
    use base64::Engine;
    let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
    let read = || {
        let (partition, after) = text.split_once(BETWEEN)?;
        let after = match (after.get(..1), after.get(1..)) {
            (Some("S"), Some(text)) => Some(AttributeValue::S(text.to_owned())),
            (Some("N"), Some(number)) => Some(AttributeValue::N(number.to_owned())),
            (Some("B"), Some(bytes)) => {
                let bytes = engine.decode(bytes).ok()?;
                Some(AttributeValue::B(aws_sdk_dynamodb::primitives::Blob::new(bytes)))
            }
            _ => None,
        };
        Some(Position { partition: partition.to_owned(), after })
    };
    read().ok_or_else(Fault::not_a_page_token)
}

fn table(field: &str, name: String) -> Result<String, Fault> {
    match name.is_empty() {
        true => Err(parse::missing(field)),
        false => Ok(name),
    }
}

fn required(field: &str, item: Option<Struct>) -> Result<Item, Fault> {
    let item = item.ok_or_else(|| parse::missing(field))?;
    json::item(field, item).map_err(|(at, problem)| Fault::field(Reason::InvalidItem, at, problem))
}

fn expression(field: &str, given: Option<v1::Expression>) -> Result<Expression, Fault> {
    let given = given.unwrap_or_default();
    let values = required(&format!("{field}.values"), Some(given.values.unwrap_or_default()))?;
    Ok(Expression { text: given.expression, names: given.names.into_iter().collect(), values })
}

fn data_write(at: &str, write: v1::DataWrite) -> Result<Write, Fault> {
    use v1::data_write::Write as Kind;
    let of = |name: &str, json| {
        let field = format!("{at}.{name}");
        required(&field, Some(json)).map(|item| (field, item))
    };
    let (field, action) = match write.write.ok_or_else(|| parse::missing(&format!("{at}.write")))? {
        Kind::Put(item) => of("put", item).map(|(field, item)| (field, Action::Put(item)))?,
        Kind::UpdateKey(key) => {
            let (field, key) = of("update_key", key)?;
            (field, Action::Update(key, write.update))
        }
        Kind::DeleteKey(key) => {
            of("delete_key", key).map(|(field, key)| (field, Action::Delete(key)))?
        }
        Kind::CheckKey(key) => {
            of("check_key", key).map(|(field, key)| (field, Action::Check(key)))?
        }
    };
    Ok(Write {
        table: table(&format!("{at}.table"), write.table)?,
        field,
        action,
        condition: expression(&format!("{at}.condition"), write.condition)?,
    })
}

/// DynamoDB's own token takes 36 characters.
fn token(id: String) -> Result<Option<String>, Fault> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if id.len() > 36 || !id.bytes().all(allowed) {
        let problem = "is not at most 36 characters of [A-Za-z0-9._-], best a UUID";
        return Err(Fault::field(Reason::InvalidRequestId, "request_id", problem));
    }
    Ok(Some(id).filter(|id| !id.is_empty()))
}
