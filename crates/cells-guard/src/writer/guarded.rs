//! Writes with a check of the tenant's guard, in one transaction. Needs no control plane: a guard that does not pass says what to do.

use aws_sdk_dynamodb::error::BuildError;
use aws_sdk_dynamodb::types::{Put, ReturnValuesOnConditionCheckFailure, TransactWriteItem};
use cells_migration::{GuardCheck, GuardState, MigrationId, WriteMode};

use super::error::{Busy, Error};
use super::identity::Identity;
use super::route::{Home, Route};
use super::send::{Layout, Sent};
use super::write::{Write, incomplete};
use super::{How, Job, Routes, Writer, Written};
use crate::{Condition, GuardTable, Item, LogRecord, StoredGuard, Touched, Unreadable, guard, log};

/// How often a call follows a tenant to another cell.
pub(super) const MAX_REDIRECTS: u32 = 4;

/// What a transaction asks of the guard, and where.
#[derive(Debug, Clone)]
pub(super) struct Form {
    home: Home,
    table: GuardTable,
    epoch: u64,
    /// In whose log it leaves a record; `None`: writes are direct.
    migration: Option<MigrationId>,
    shards: u8,
    shard: u8,
}

/// What is done next.
enum Next {
    /// Read the guard of this cell.
    Look(Home),
    Send(Form),
    Done(Form),
}

impl Form {
    /// By an open guard.
    pub fn of(
        home: &Home,
        table: &GuardTable,
        stored: &StoredGuard,
        identity: &Identity,
    ) -> Result<Self, Unreadable> {
        let migration = match stored.guard.mode {
            WriteMode::Direct => None,
            WriteMode::Logged => {
                let problem = "is missing, though writes are logged";
                let holder = stored.guard.holder;
                let unreadable = Unreadable { attribute: guard::MIGRATION, problem };
                Some(holder.ok_or(unreadable)?.migration)
            }
        };
        let mut form = Self {
            home: home.clone(),
            table: table.clone(),
            epoch: stored.guard.epoch,
            migration,
            shards: stored.shards,
            shard: 0,
        };
        form.draw(identity);
        Ok(form)
    }

    fn draw(&mut self, identity: &Identity) {
        self.shard = identity.shard(self.shards);
    }

    fn how(&self) -> How {
        if self.migration.is_some() { How::Logged } else { How::Guarded }
    }

    fn mode(&self) -> WriteMode {
        if self.migration.is_some() { WriteMode::Logged } else { WriteMode::Direct }
    }

    fn check(&self, tenant: &str) -> Result<TransactWriteItem, BuildError> {
        let Self { epoch, migration, .. } = *self;
        let open = GuardCheck::Open { epoch, mode: self.mode(), migration };
        let check = Condition::of(&open, &self.home.cell)
            .of_guard(&self.table, tenant, self.shard)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
        Ok(TransactWriteItem::builder().condition_check(check.build()?).build())
    }

    /// A record that names what is touched. There is none yet: if there is, all of this was done before.
    fn record(
        &self,
        migration: MigrationId,
        operation: u128,
        touched: Vec<Touched>,
    ) -> Result<TransactWriteItem, BuildError> {
        let record = LogRecord { operation, touched };
        let absent = format!("attribute_not_exists({})", log::KEYS);
        let put = Put::builder()
            .table_name(&self.table.table_name)
            .set_item(Some(log::item(&self.table, migration, self.shard, &record)))
            .condition_expression(absent);
        Ok(TransactWriteItem::builder().put(put.build()?).build())
    }
}

impl<R: Routes> Writer<R> {
    pub(super) async fn guarded(
        &self,
        job: &mut Job<'_>,
        route: Route<R::Lease>,
    ) -> Result<Written, Error<R::Error>> {
        let (cell, epoch) = (route.home.cell.clone(), route.epoch);
        let mut next = self.begin(job, route)?;
        loop {
            next = match next {
                Next::Look(home) => self.look(job, home).await?,
                Next::Send(form) => self.attempt(job, form).await?,
                Next::Done(form) => {
                    let stored = form.seen();
                    self.known.saw(job.tenant, &form.home, &stored, (&cell, epoch));
                    return Ok(job.guarded(form));
                }
            }
        }
    }

    /// By what is known, without asking.
    fn begin(&self, job: &mut Job<'_>, route: Route<R::Lease>) -> Result<Next, Error<R::Error>> {
        job.identity.reform(job.open);
        if let Some(known) = self.known.of(job.tenant) {
            let guard = &known.guard.guard;
            let same = *known.home.cell == *route.home.cell && Some(guard.epoch) == route.epoch;
            if (same || route.epoch.is_none_or(|epoch| epoch < guard.epoch))
                && let Some(table) = known.home.tables.guard_table()
            {
                let form = Form::of(&known.home, &table, &known.guard, &job.identity)?;
                return Ok(Next::Send(form));
            }
        }
        self.follow(job, route)
    }

    /// To where a route says.
    fn follow(&self, job: &mut Job<'_>, route: Route<R::Lease>) -> Result<Next, Error<R::Error>> {
        let home = route.home;
        let table = self.guard_table(job, &home)?;
        match (route.epoch, route.mode) {
            // One shard or more: there is always the first.
            (Some(epoch), WriteMode::Direct) => {
                Ok(Next::Send(Form { home, table, epoch, migration: None, shards: 1, shard: 0 }))
            }
            // Whose log it is only the guard says, and of a guess that too which epoch it is.
            (None, _) | (_, WriteMode::Logged) => Ok(Next::Look(home)),
        }
    }

    fn guard_table(&self, job: &Job<'_>, home: &Home) -> Result<GuardTable, Error<R::Error>> {
        let unguarded = || job.failed(Error::Unguarded { cell: home.cell.to_string() });
        home.tables.guard_table().ok_or_else(unguarded)
    }

    async fn look(&self, job: &mut Job<'_>, home: Home) -> Result<Next, Error<R::Error>> {
        let table = self.guard_table(job, &home)?;
        let stored = match self.read_guard(job, &home, &table).await {
            Ok(stored) => stored,
            Err(error) => return Err(job.failed(job.waited(error))),
        };
        self.judge(job, home, &table, stored).await
    }

    /// What a guard says is to be done.
    async fn judge(
        &self,
        job: &mut Job<'_>,
        home: Home,
        table: &GuardTable,
        stored: Option<StoredGuard>,
    ) -> Result<Next, Error<R::Error>> {
        // Another cell's guard came with a copy of its table.
        let Some(stored) = stored.filter(|stored| *stored.cell == *home.cell) else {
            return Err(job.failed(Error::GuardMissing { cell: home.cell.to_string() }));
        };
        match stored.guard.state {
            GuardState::Open => {
                job.identity.reform(job.open);
                let form = Form::of(&home, table, &stored, &job.identity);
                form.map(Next::Send).map_err(|error| job.failed(error.into()))
            }
            GuardState::Moved => self.redirect(job, &stored).await,
            GuardState::Fenced | GuardState::Incoming => {
                if let Some(route) = self.elsewhere(job, &home, &stored.guard).await {
                    return self.follow(job, route);
                }
                job.waits = Some(home.cell.clone());
                if !job.pace.look().await {
                    return Err(job.failed(Error::Fenced { cell: home.cell.to_string() }));
                }
                Ok(Next::Look(home))
            }
        }
    }

    /// Where a tenant is whose guard waits here: before a move here ends, in the cell that it is to leave.
    pub(super) async fn elsewhere(
        &self,
        job: &mut Job<'_>,
        home: &Home,
        guard: &cells_migration::Guard,
    ) -> Option<Route<R::Lease>> {
        if guard.state != GuardState::Incoming || job.redirects >= MAX_REDIRECTS {
            return None;
        }
        let least = guard.epoch.checked_sub(1).filter(|epoch| *epoch > 0);
        let route = self.routes.route(job.tenant, least).await.ok()?;
        let elsewhere = route.home.cell != home.cell;
        job.redirects += u32::from(elsewhere);
        elsewhere.then_some(route)
    }

    /// To the cell that a guard names, or else to where the tenant is said to live by then.
    async fn redirect(
        &self,
        job: &mut Job<'_>,
        moved: &StoredGuard,
    ) -> Result<Next, Error<R::Error>> {
        self.known.forget(job.tenant);
        job.redirects += 1;
        if job.redirects > MAX_REDIRECTS {
            return Err(job.failed(Error::Moving));
        }
        if let Some(next) = &moved.next
            && let Some(home) = self.routes.home(next).await
        {
            return Ok(Next::Look(home));
        }
        match self.routes.route(job.tenant, Some(moved.guard.epoch)).await {
            Ok(route) => self.follow(job, route),
            Err(error) => Err(job.failed(Error::Route(error))),
        }
    }

    async fn attempt(&self, job: &mut Job<'_>, mut form: Form) -> Result<Next, Error<R::Error>> {
        let writes = job.writes;
        job.how = form.how();
        let sent = match self.send_form(job, &form, &job.identity, writes).await {
            Ok(sent) => sent,
            Err(error) => return Err(job.failed(error)),
        };
        match sent {
            Sent::Done(()) | Sent::Recorded => Ok(Next::Done(form)),
            // Of an open attempt it is not known whether it made the condition fail, or will pass it yet.
            Sent::Condition(write) => Err(job.failed(Error::ConditionFailed { write })),
            Sent::Guard(item) => {
                job.identity.cancelled();
                if let Some(form) = self.recorded(job).await {
                    return Ok(Next::Done(form));
                }
                if job.open && !job.repeatable() {
                    return Err(Error::Unknown);
                }
                (job.refusals, job.again) = (job.refusals + 1, true);
                // Once is a route that is behind. Again and again is a guard that changes as fast as it is read.
                if job.refusals > 1 && !job.pace.again().await {
                    return Err(job.failed(Error::Busy(Busy::Contended)));
                }
                let Some(item) = item else { return Ok(Next::Look(form.home)) };
                match guard::read(&item) {
                    Ok(stored) => self.judge(job, form.home, &form.table, Some(stored)).await,
                    Err(error) => Err(job.failed(error.into())),
                }
            }
            Sent::TokenUsed => {
                if let Some(form) = self.recorded(job).await {
                    return Ok(Next::Done(form));
                }
                let repeatable = job.repeatable();
                if !job.identity.refused(job.open, repeatable) {
                    return Err(job.failed(Error::IdUsed));
                }
                form.draw(&job.identity);
                Ok(Next::Send(form))
            }
            Sent::Busy(busy) => {
                job.again = true;
                if !job.pace.again().await {
                    return Err(job.failed(Error::Busy(busy)));
                }
                job.identity.reform(job.open);
                form.draw(&job.identity);
                Ok(Next::Send(form))
            }
            Sent::Open => {
                job.open = true;
                job.recorded = Some((form.clone(), job.identity.operation()));
                if !job.pace.again().await {
                    return match self.recorded(job).await {
                        Some(form) => Ok(Next::Done(form)),
                        None => Err(Error::Unknown),
                    };
                }
                Ok(Next::Send(form))
            }
            Sent::Invalid(write) => Err(job.failed(job.invalid(write))),
            Sent::Refused(failure) => Err(job.failed(Error::Refused(failure))),
        }
    }

    /// The form of an open attempt of which there is a record in the log: it was done. None says nothing: a record goes when it has been
    /// read.
    async fn recorded(&self, job: &mut Job<'_>) -> Option<Form> {
        let (form, operation) = job.recorded.clone()?;
        let key = log::key(&form.table, form.migration?, form.shard, operation);
        let read = form.home.client.get_item().table_name(&form.table.table_name);
        let read = read.set_key(Some(key)).consistent_read(true).send();
        let found = job.pace.within(read).await?.ok()?;
        found.item.is_some().then_some(form)
    }

    /// One transaction: the guard's check, these writes, and where they are logged the record that all the job's keys are touched.
    pub(super) async fn send_form(
        &self,
        job: &Job<'_>,
        form: &Form,
        identity: &Identity,
        writes: &[Write],
    ) -> Result<Sent<()>, Error<R::Error>> {
        let incomplete_guard = |_| Error::invalid("writes", "cannot be put beside a guard");
        let mut items = vec![form.check(job.tenant).map_err(incomplete_guard)?];
        let mut touched = Vec::new();
        for (at, (write, table)) in job.place(&form.home)?.into_iter().enumerate() {
            if at < writes.len() {
                let part = write.part(table, &form.home.cell);
                items.push(part.map_err(|_| incomplete::<R>(write))?);
            }
            if !matches!(write.action, super::Action::Check(_)) {
                touched.push(Touched { table: table.name.clone(), key: write.key(table) });
            }
        }
        let log = form.migration.filter(|_| !touched.is_empty());
        if let Some(migration) = log {
            let record = form.record(migration, identity.operation(), touched);
            items.push(record.map_err(incomplete_guard)?);
        }
        let sent = form
            .home
            .client
            .transact_write_items()
            .set_transact_items(Some(items))
            .client_request_token(identity.token())
            .send();
        let layout = Layout { guard: true, log: log.is_some() };
        let sent = async { Sent::of_transaction(sent.await.map(|_| ()), layout) };
        Ok(job.pace.within(sent).await.unwrap_or(Sent::Open))
    }

    /// The first item of a guard: there is always one.
    pub(super) async fn read_guard(
        &self,
        job: &mut Job<'_>,
        home: &Home,
        table: &GuardTable,
    ) -> Result<Option<StoredGuard>, Error<R::Error>> {
        let key = guard::key(table, job.tenant, 0);
        let item = self.read_item(&mut job.pace, home, &table.table_name, key, true).await?;
        Ok(item.as_ref().map(guard::read).transpose()?)
    }
}

impl Form {
    /// The guard as it was when the transaction passed.
    fn seen(&self) -> StoredGuard {
        let holder =
            self.migration.map(|migration| cells_migration::Holder { migration, worker: 0 });
        let guard = cells_migration::Guard {
            state: GuardState::Open,
            epoch: self.epoch,
            mode: self.mode(),
            holder,
        };
        StoredGuard { guard, cell: self.home.cell.to_string(), shards: self.shards, next: None }
    }
}

impl Job<'_> {
    /// The deadline passed while it waited for a guard: that is why.
    pub(super) fn waited<E>(&self, error: Error<E>) -> Error<E> {
        match (error, &self.waits) {
            (Error::Busy(_), Some(cell)) => Error::Fenced { cell: cell.to_string() },
            (error, _) => error,
        }
    }

    fn guarded(&self, form: Form) -> Written {
        Written {
            how: form.how(),
            cell: form.home.cell,
            epoch: form.epoch,
            redirects: self.redirects,
            item: None::<Item>,
        }
    }
}
