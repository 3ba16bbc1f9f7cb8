//! Reads of a tenant's items: bounded in their staleness by the lease of the route, or strict.

use aws_sdk_dynamodb::types::AttributeValue;
use cells_migration::{GuardState, WriteMode};

use super::error::{Busy, Error};
use super::pace::Pace;
use super::route::{Home, Route};
use super::send::Sent;
use super::write::{check_key, table};
use super::{Call, Expression, Job, Routes, Writer};
use crate::{Item, StoredGuard};

/// How current what is read must be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Reads {
    /// Of the cell that the route names, eventually consistent, at half the price.
    #[default]
    Eventual,
    /// Of the cell that the route names, consistent there. After a move a route may be behind by at most a lease.
    Consistent,
    /// What every write that was acknowledged before has left. Under a lease it costs nothing more; else the guard is read after it.
    Strict,
}

/// What to read of one of the tenant's partitions, in the order of the sort key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Query {
    /// As the table set names it.
    pub table: String,
    /// Which of the table's key templates makes the partition: its number from 0.
    pub template: usize,
    /// Only items whose sort key, a string, begins so.
    pub sort_key_prefix: Option<String>,
    /// What is answered of what is read.
    pub filter: Expression,
    /// Backwards.
    pub descending: bool,
    /// Items that are looked at, at most; `None`: as many as one answer of DynamoDB's holds (1 MB).
    pub limit: Option<u32>,
    /// [`Found::next`] of the page before.
    pub after: Option<Item>,
    pub reads: Reads,
}

/// A page of items.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    pub items: Vec<Item>,
    /// Where to go on; `None`: there is no more. There may be none in a page, and yet more to come.
    pub next: Option<Item>,
    pub cell: std::sync::Arc<str>,
}

impl<R: Routes> Writer<R> {
    /// One item.
    ///
    /// # Errors
    /// As of [`Writer::write`], but never [`Error::Unknown`].
    pub async fn get(
        &self,
        tenant: &str,
        name: &str,
        key: Item,
        reads: Reads,
        call: Call,
    ) -> Result<Option<Item>, Error<R::Error>> {
        let mut job = self.reading(tenant, &call);
        let mut route = self.route_to_read(&job).await?;
        loop {
            let table = table(&route.home, name)?;
            check_key(tenant, table, "key", &key)?;
            if key.len() != table.key_names().count() {
                return Err(Error::invalid("key", "holds more than the key"));
            }
            let (home, consistent) = (&route.home, reads != Reads::Eventual);
            let read =
                self.read_item(&mut job.pace, home, &table.table_name, key.clone(), consistent);
            let found = read.await;
            let found = found.map_err(|error| job.waited(error))?;
            match self.after_reading(&mut job, route, reads).await? {
                Ok(_) => return Ok(found),
                Err(next) => route = next,
            }
        }
    }

    /// A page of items.
    ///
    /// # Errors
    /// As of [`Writer::get`].
    pub async fn query(
        &self,
        tenant: &str,
        query: &Query,
        call: Call,
    ) -> Result<Found, Error<R::Error>> {
        let mut job = self.reading(tenant, &call);
        let mut route = self.route_to_read(&job).await?;
        loop {
            let page = self.page(&mut job.pace, &route.home, tenant, query).await;
            let (items, next) = page.map_err(|error| job.waited(error))?;
            match self.after_reading(&mut job, route, query.reads).await? {
                Ok(home) => return Ok(Found { items, next, cell: home.cell }),
                Err(next) => route = next,
            }
        }
    }

    fn reading<'a>(&self, tenant: &'a str, call: &Call) -> Job<'a> {
        self.job(tenant, &[], true, call)
    }

    /// Where to read first.
    async fn route_to_read(&self, job: &Job<'_>) -> Result<Route<R::Lease>, Error<R::Error>> {
        let route = self.routes.route(job.tenant, None).await.map_err(Error::Route)?;
        match self.known.of(job.tenant) {
            Some(known) if route.epoch.is_none_or(|epoch| epoch < known.guard.guard.epoch) => {
                Ok(Route {
                    home: known.home.clone(),
                    epoch: Some(known.guard.guard.epoch),
                    mode: known.guard.guard.mode,
                    lease: None,
                })
            }
            _ => Ok(route),
        }
    }

    /// Whether what was just read is as current as was asked: good, or where to read again.
    async fn after_reading(
        &self,
        job: &mut Job<'_>,
        route: Route<R::Lease>,
        reads: Reads,
    ) -> Result<Result<Home, Route<R::Lease>>, Error<R::Error>> {
        let leased = route.lease.filter(|_| route.mode == WriteMode::Direct);
        let current = leased.is_some_and(|lease| !self.routes.left(&lease).is_zero());
        let home = route.home;
        if reads != Reads::Strict || current {
            return Ok(Ok(home));
        }
        let missing = || Error::GuardMissing { cell: home.cell.to_string() };
        let Some(table) = home.tables.guard_table() else {
            return Err(Error::Unguarded { cell: home.cell.to_string() });
        };
        let stored = self.read_guard(job, &home, &table).await;
        let stored = stored.map_err(|error| job.waited(error))?;
        let stored = stored.filter(|stored| *stored.cell == *home.cell).ok_or_else(missing)?;
        let StoredGuard { guard, next, .. } = stored;
        match guard.state {
            GuardState::Open if route.epoch == Some(guard.epoch) => Ok(Ok(home)),
            // From here on its epoch is known.
            GuardState::Open => {
                Ok(Err(Route { home, epoch: Some(guard.epoch), mode: guard.mode, lease: None }))
            }
            GuardState::Fenced | GuardState::Incoming => {
                if let Some(elsewhere) = self.elsewhere(job, &home, &guard).await {
                    return Ok(Err(elsewhere));
                }
                job.waits = Some(home.cell.clone());
                if !job.pace.look().await {
                    return Err(Error::Fenced { cell: home.cell.to_string() });
                }
                Ok(Err(Route { home, epoch: route.epoch, mode: guard.mode, lease: None }))
            }
            GuardState::Moved => {
                job.redirects += 1;
                if job.redirects > super::guarded::MAX_REDIRECTS {
                    return Err(Error::Moving);
                }
                if let Some(next) = next
                    && let Some(home) = self.routes.home(&next).await
                {
                    let epoch = Some(guard.epoch);
                    return Ok(Err(Route { home, epoch, mode: guard.mode, lease: None }));
                }
                let route = self.routes.route(job.tenant, Some(guard.epoch)).await;
                route.map(Err).map_err(Error::Route)
            }
        }
    }

    /// One item, in as many attempts as there may be.
    pub(super) async fn read_item(
        &self,
        pace: &mut Pace,
        home: &Home,
        table: &str,
        key: Item,
        consistent: bool,
    ) -> Result<Option<Item>, Error<R::Error>> {
        loop {
            let read = home.client.get_item().table_name(table).set_key(Some(key.clone()));
            let read = read.consistent_read(consistent).send();
            let sent = async { Sent::of(read.await) };
            match answered(pace.within(sent).await.unwrap_or(Sent::Open)) {
                Ok(done) => return Ok(done.item),
                Err(error) => again(pace, error).await?,
            }
        }
    }

    async fn page(
        &self,
        pace: &mut Pace,
        home: &Home,
        tenant: &str,
        query: &Query,
    ) -> Result<(Vec<Item>, Option<Item>), Error<R::Error>> {
        let table = table(home, &query.table)?;
        let Some(partition) = table.partitions(tenant).nth(query.template) else {
            let problem = format!("is not below {}", table.tenant_keys.len());
            return Err(Error::invalid("template", problem));
        };
        let mut keys = "#readP = :readP".to_owned();
        let mut names = query.filter.names.clone();
        let mut values = query.filter.values.clone();
        names.insert("#readP".to_owned(), table.partition_key.clone());
        values.insert(":readP".to_owned(), AttributeValue::S(partition));
        if let Some(prefix) = &query.sort_key_prefix {
            let Some((sort, crate::KeyType::String)) = &table.sort_key else {
                return Err(Error::invalid("sort_key_prefix", "is for sort keys that are strings"));
            };
            keys.push_str(" AND begins_with(#readS, :readS)");
            names.insert("#readS".to_owned(), sort.clone());
            values.insert(":readS".to_owned(), AttributeValue::S(prefix.clone()));
        }
        let filter = Some(query.filter.text.clone()).filter(|text| !text.is_empty());
        loop {
            let read = home
                .client
                .query()
                .table_name(&table.table_name)
                .key_condition_expression(&keys)
                .set_filter_expression(filter.clone())
                .set_expression_attribute_names(Some(names.clone()))
                .set_expression_attribute_values(Some(values.clone()))
                .set_limit(query.limit.map(|limit| i32::try_from(limit).unwrap_or(i32::MAX)))
                .scan_index_forward(!query.descending)
                .set_exclusive_start_key(query.after.clone())
                .consistent_read(query.reads != Reads::Eventual)
                .send();
            let sent = async { Sent::of(read.await) };
            match answered(pace.within(sent).await.unwrap_or(Sent::Open)) {
                Ok(done) => return Ok((done.items.unwrap_or_default(), done.last_evaluated_key)),
                Err(error) => again(pace, error).await?,
            }
        }
    }
}

/// A read that was not answered may be made again.
fn answered<T, E>(sent: Sent<T>) -> Result<T, Error<E>> {
    match sent {
        Sent::Done(done) => Ok(done),
        Sent::Busy(busy) => Err(Error::Busy(busy)),
        Sent::Open => Err(Error::Busy(Busy::Unreachable)),
        Sent::Refused(failure) => Err(Error::Refused(failure)),
        _ => Err(Error::invalid(
            "query",
            "is not valid: look at the filter, and at what it is to go on after",
        )),
    }
}

async fn again<E>(pace: &mut Pace, error: Error<E>) -> Result<(), Error<E>> {
    match error {
        Error::Busy(_) if pace.again().await => Ok(()),
        error => Err(error),
    }
}
