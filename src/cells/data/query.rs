//! A tenant's items in the current cell, and in those where the tenant lived before.
//!
//! Each partition of the tenant is read from all cells at once whose table has its key template, merged by sort key (see
//! [`super::merge`]): a previous cell's table set may be another version, with other templates or in another order. What is filtered is filtered
//! after that: were it done below, an older cell's copy would show where the newest one does not fit. The same goes for items whose TTL
//! has passed: DynamoDB may not have deleted them yet, and they hide older copies all the same.

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::AttributeValue;

use super::merge::{Merge, Source};
use super::{CellData, DataError, Item, Lives, Place};
use crate::cells::table_set::{KeyAttribute, KeyType};
use crate::cells::template::KeyTemplate;
use crate::directory::{Error, Refused};
use crate::domain::{CellId, PartitionKey, PlacementEvent, Timestamp};
use crate::store::StoreError;
use crate::store::dynamodb::from_sdk;

/// Items that one page of one cell holds at most.
const PAGE: i32 = 100;

/// Items that are looked at for one answer: one that filters much may be empty and not the last.
const MAX_LOOKED_AT: usize = 5_000;

/// Previous cells that are asked.
const MAX_PREVIOUS: usize = 20;

/// What to read.
#[derive(Debug, Clone)]
pub struct Query {
    pub tenant: PartitionKey,
    pub table: String,
    pub sort_key_prefix: Option<String>,
    pub entity_type: Option<String>,
    pub all_cells: bool,
    pub consistent: bool,
    pub limit: usize,
}

/// Where a query goes on: after this sort key of this of the tenant's partitions.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    /// Its key template, as it is written.
    pub partition: String,
    pub after: Option<AttributeValue>,
}

/// A cell that could not be asked.
#[derive(Debug, Clone, PartialEq)]
pub struct CellFailure {
    pub cell: CellId,
    pub error: DataError,
}

/// A part of what there is.
#[derive(Debug, Default)]
pub struct Found {
    /// Each with its cell and whether that is a previous one.
    pub items: Vec<(Item, CellId, bool)>,
    pub failures: Vec<CellFailure>,
    /// `None`: there is no more.
    pub next: Option<Position>,
}

/// One cell's partition.
struct Lane {
    client: Client,
    table: String,
    key: (String, String),
    sort: Option<(String, Option<String>)>,
    from: Option<Item>,
    limit: i32,
    consistent: bool,
    ended: bool,
}

#[async_trait]
impl Source for Lane {
    async fn page(&mut self) -> Result<(Vec<Item>, bool), DataError> {
        if self.ended {
            return Ok((Vec::new(), true));
        }
        let mut query = self
            .client
            .query()
            .table_name(&self.table)
            .consistent_read(self.consistent)
            .limit(self.limit)
            .expression_attribute_names("#pk", &self.key.0)
            .expression_attribute_values(":pk", AttributeValue::S(self.key.1.clone()))
            .set_exclusive_start_key(self.from.take());
        query = match &self.sort {
            Some((sort, Some(prefix))) => query
                .key_condition_expression("#pk = :pk AND begins_with(#sk, :prefix)")
                .expression_attribute_names("#sk", sort)
                .expression_attribute_values(":prefix", AttributeValue::S(prefix.clone())),
            _ => query.key_condition_expression("#pk = :pk"),
        };
        let page = match query.send().await {
            Ok(page) => page,
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(|e| e.is_resource_not_found_exception()) =>
            {
                // The caller knows which cell it is.
                return Err(DataError::Store(StoreError::Rejected {
                    detail: "no such table".into(),
                }));
            }
            Err(error) => return Err(from_sdk(&error).into()),
        };
        self.from = page.last_evaluated_key;
        self.ended = self.from.is_none();
        Ok((page.items.unwrap_or_default(), self.ended))
    }
}

impl CellData {
    /// A part of a tenant's items.
    ///
    /// # Errors
    /// Those of the current cell, and [`DataError::PositionGone`]. A previous cell's are in [`Found::failures`].
    pub async fn query(&self, query: &Query, from: Option<Position>) -> Result<Found, DataError> {
        let home = self.home(&query.tenant).await?;
        let current = self.place(&home.cell, &query.table).await?;
        let string =
            current.spec.sort_key.as_ref().is_some_and(|key| key.key_type == KeyType::String);
        if query.sort_key_prefix.is_some() && !string {
            let problem = "needs a sort key that is a string; the table has none";
            return Err(DataError::invalid("sort_key_prefix", problem));
        }
        let mut found = Found::default();
        let mut places = vec![current];
        if query.all_cells {
            let previous = self.previous(&query.tenant, &home).await?;
            for cell in previous.asked {
                match self.place(&cell, &query.table).await {
                    Ok(place) if sort_key(&place) == sort_key(&places[0]) => places.push(place),
                    Ok(_) => {
                        let error = DataError::KeysDiffer { cell: cell.clone() };
                        found.failures.push(CellFailure { cell, error });
                    }
                    Err(error) => found.failures.push(CellFailure { cell, error }),
                }
            }
            let passed_over = previous.passed_over.into_iter();
            found.failures.extend(
                passed_over.map(|cell| CellFailure { cell, error: DataError::TooManyCells }),
            );
        }
        let templates = templates(&places);
        let (mut at, mut after) = match from {
            None => (0, None),
            Some(from) => {
                let at = templates.iter().position(|template| template.text() == from.partition);
                (at.ok_or(DataError::PositionGone)?, from.after)
            }
        };
        let mut looked_at = 0;
        while let Some(template) = templates.get(at) {
            let full = found.items.len() >= query.limit || looked_at >= MAX_LOOKED_AT;
            if full
                || !self
                    .partition(query, template, &mut places, &mut after, &mut found, &mut looked_at)
                    .await?
            {
                found.next = Some(Position { partition: template.text(), after });
                return Ok(found);
            }
            (at, after) = (at + 1, None);
        }
        Ok(found)
    }

    /// Reads one partition from after a sort key, and moves that on. Answers whether the partition has ended.
    async fn partition(
        &self,
        query: &Query,
        template: &KeyTemplate,
        places: &mut Vec<Place>,
        after: &mut Option<AttributeValue>,
        found: &mut Found,
        looked_at: &mut usize,
    ) -> Result<bool, DataError> {
        let sort_key = sort_key(&places[0]).map(|key| key.name.clone());
        let mut lanes = Vec::new();
        let mut asked = Vec::new();
        for (number, place) in places.iter().enumerate() {
            if place.spec.tenant_keys.contains(template) {
                let partition = template.partition(&query.tenant);
                lanes.push(self.lane(place, query, partition, after.as_ref()));
                asked.push(number);
            }
        }
        let mut merge = Merge::new(sort_key.clone(), lanes.into_iter());
        let mut failed = Vec::new();
        let mut full = false;
        while let Some(next) = merge.next().await {
            let (lane, item) = match next {
                Ok((lane, item)) => (lane, item),
                Err((lane, error)) => {
                    let number = asked[lane];
                    let cell = places[number].cell.id.clone();
                    let missing = matches!(error, DataError::Store(StoreError::Rejected { .. }));
                    let error = if missing {
                        DataError::TableMissing { cell: cell.clone() }
                    } else {
                        error
                    };
                    if number == 0 {
                        return Err(error);
                    }
                    found.failures.push(CellFailure { cell, error });
                    failed.push(number);
                    continue;
                }
            };
            *looked_at += 1;
            *after = sort_key.as_ref().and_then(|name| item.get(name).cloned());
            let number = asked[lane];
            let place = &places[number];
            if self.wanted(&item, query, place.spec.ttl_attribute.as_deref()) {
                found.items.push((item, place.cell.id.clone(), number > 0));
            }
            // Without a sort key there is no second item, and no position after the first.
            if after.is_some() && (found.items.len() >= query.limit || *looked_at >= MAX_LOOKED_AT)
            {
                full = true;
                break;
            }
        }
        // One that failed is not asked for the next partition, and is reported once.
        failed.sort_unstable();
        for number in failed.into_iter().rev() {
            places.remove(number);
        }
        Ok(!full)
    }

    fn lane(
        &self,
        place: &Place,
        query: &Query,
        partition: String,
        after: Option<&AttributeValue>,
    ) -> Lane {
        let spec = &place.spec;
        let key = (spec.partition_key.name.clone(), partition);
        let sort = spec.sort_key.as_ref().map(|key| key.name.clone());
        let from = match (after, &sort) {
            (Some(after), Some(sort)) => Some(Item::from([
                (key.0.clone(), AttributeValue::S(key.1.clone())),
                (sort.clone(), after.clone()),
            ])),
            _ => None,
        };
        Lane {
            client: self.client(place),
            table: place.name.clone(),
            key,
            sort: sort.map(|sort| (sort, query.sort_key_prefix.clone())),
            ended: false,
            from,
            // What is read and not answered is read again for the next part.
            limit: i32::try_from(query.limit + 1).map_or(PAGE, |limit| limit.min(PAGE)),
            consistent: query.consistent,
        }
    }

    fn wanted(&self, item: &Item, query: &Query, ttl: Option<&str>) -> bool {
        let expires = ttl.and_then(|name| item.get(name)).and_then(|value| value.as_n().ok());
        let expires = expires.and_then(|seconds| seconds.parse::<i64>().ok());
        let expires = expires.and_then(Timestamp::from_seconds);
        if expires.is_some_and(|expires| expires <= self.directory.now()) {
            return false;
        }
        query.entity_type.as_ref().is_none_or(|wanted| {
            item.get("EntityType").and_then(|value| value.as_s().ok()) == Some(wanted)
        })
    }

    /// The cells where a tenant lived before, the newest first, each once.
    pub(super) async fn previous(
        &self,
        tenant: &PartitionKey,
        home: &Lives,
    ) -> Result<Previous, DataError> {
        let mut previous = Previous::default();
        let mut after = None;
        loop {
            let page = self.directory.history(tenant, 100, after.as_ref()).await?;
            for record in page.items {
                // The cell that was just left is kept as the present one is: it has nothing of its own, and what is deleted goes there late.
                let left = record.ended_by == PlacementEvent::Moved
                    && home.moving == Some(record.epoch.next());
                if left || record.cell == home.cell || previous.asked.contains(&record.cell) {
                    continue;
                }
                if previous.asked.len() == MAX_PREVIOUS {
                    previous.passed_over = Some(record.cell);
                    return Ok(previous);
                }
                previous.asked.push(record.cell);
            }
            after = page.next;
            if after.is_none() {
                return Ok(previous);
            }
        }
    }
}

/// Where a tenant lived before.
#[derive(Debug, Default)]
pub(super) struct Previous {
    pub asked: Vec<CellId>,
    /// The first of those that are too many.
    pub passed_over: Option<CellId>,
}

fn sort_key(place: &Place) -> Option<&KeyAttribute> {
    place.spec.sort_key.as_ref()
}

/// The key templates of all places, those of the first one first.
fn templates(places: &[Place]) -> Vec<KeyTemplate> {
    let mut templates = Vec::new();
    for template in places.iter().flat_map(|place| &place.spec.tenant_keys) {
        if !templates.contains(template) {
            templates.push(template.clone());
        }
    }
    templates
}

impl DataError {
    /// For a [`CellFailure`], whether the cell is not registered any more.
    pub fn cell_not_found(&self) -> bool {
        matches!(self, DataError::Directory(Error::Refused(Refused::CellNotFound { .. })))
    }
}
