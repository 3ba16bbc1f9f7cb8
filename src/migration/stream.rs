//! Follows the streams of a cell's tables for one migration: what writers changed that know nothing of guards.
//!
//! A record only says that a key is to be looked at again; what is written at the target is read from the source after that. So records may
//! come twice, and those of different keys in any order.
//!
//! A stream never says that nothing more comes. What does is a [`Marker`]: items that are written, and removed, in partitions that are no
//! tenant's, until there is one in *every* open shard. Within a shard records come in the order of their writes.

mod position;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use cells_guard::{Item, Touched};
use cells_migration::{Cursor, Marker, MigrationId};
use cells_streams::{
    ReadFrom, Record, RecordPage, Shard, ShardId, ShardIterator, StreamArn, Streams, StreamsError,
};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::time::Instant;

use self::position::{At, Position, TablePosition, marker_of};
use super::access::CellAccess;
use super::copier;
use crate::store::StoreError;

/// Shards that are read at the same time.
const SIDE_BY_SIDE: usize = 8;

/// Pages of one shard that one look reads at most, of 1,000 records or 1 MB each.
const MAX_PAGES: usize = 5;

/// A last page of so many records is taken to have more behind it, and one whose last record is so old: records are large, so that few of
/// them make a page, or it is a long way. DynamoDB Local rounds their times down to the minute, and clocks differ.
const FULL_PAGE: usize = 500;
const LAG_SECS: i64 = 90;

/// Empty reads in a row by which the open end of a shard is known: DynamoDB has gaps.
const TIP_PAGES: u32 = 10;

/// How long a listing of shards is used.
const LISTING: Duration = Duration::from_secs(10);

/// Markers that one look leaves in a table at most, and what pages of shards are listed at most.
const MAX_MARKERS: usize = 64;
const MAX_LISTINGS: usize = 1000;

/// What one look at streams found.
#[derive(Debug, PartialEq)]
pub struct Read {
    /// Keys of the tenant that records named; where there surely is more to be read, more than any number.
    pub found: u64,
    /// Records of the tenant.
    pub ours: u64,
    /// The tenant's keys that they named, each once.
    pub touched: Vec<Touched>,
    /// Behind what was read. To be told once the keys are written in the other cell.
    pub next: Cursor,
    /// Whether the marker that was asked for is before that, in every shard of every table.
    pub past: bool,
}

/// Why streams were not read.
#[derive(Debug, PartialEq)]
pub enum Failure {
    /// What follows the position may be gone.
    Trimmed,
    Store(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<StreamsError> for Failure {
    fn from(error: StreamsError) -> Self {
        match error {
            // Of a stream that was switched off, too.
            StreamsError::Trimmed | StreamsError::NotFound => Self::Trimmed,
            StreamsError::ExpiredIterator | StreamsError::Throttled => {
                Self::Store(StoreError::Throttled)
            }
            // Nothing is written by reading.
            StreamsError::Failed(_) => Self::Store(StoreError::Unreachable),
            StreamsError::Rejected(detail) => Self::Store(StoreError::Rejected { detail }),
        }
    }
}

/// The streams of one cell.
pub struct Tail {
    cell: CellAccess,
    migration: MigrationId,
    streams: Arc<dyn Streams>,
    /// Shards as listed last, by the table's name.
    listed: Mutex<HashMap<String, Listed>>,
    iterators: Iterators,
}

#[derive(Clone)]
struct Listed {
    at: Instant,
    stream: String,
    shards: Vec<Shard>,
}

/// Where reading goes on, by stream and shard: a gap takes more reads than one look makes.
type Iterators = Mutex<HashMap<(String, ShardId), Going>>;

#[derive(Clone)]
struct Going {
    /// It goes on from there.
    at: At,
    iterator: Option<ShardIterator>,
    /// How many reads in a row were empty.
    empty: u32,
}

impl Tail {
    pub fn new(cell: CellAccess, migration: MigrationId, streams: Arc<dyn Streams>) -> Self {
        Self { cell, migration, streams, listed: Mutex::default(), iterators: Mutex::default() }
    }

    /// A position behind which is all that is written from now on. `now`: seconds of the Unix epoch.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] for a table without a stream.
    pub async fn listen(&self, now: i64) -> Result<Cursor, StoreError> {
        let mut tables = BTreeMap::new();
        for table in &self.cell.tables.tables {
            let listed = self.list(&table.name).await?.ok_or_else(|| StoreError::Rejected {
                detail: format!("the table {} has no stream", table.table_name),
            })?;
            tables.insert(table.name.clone(), TablePosition::listen(listed.stream, &listed.shards));
        }
        Position::new(now, tables).cursor()
    }

    /// Reads some of what follows a position. `ours`: whether a key is the tenant's. `past`: a marker, and when it was left.
    pub async fn read(
        &self,
        position: &Cursor,
        past: Option<(Marker, Instant)>,
        now: i64,
        ours: impl Fn(&Touched) -> bool + Sync,
    ) -> Result<Read, Failure> {
        let mut position = Position::read(position).map_err(|_| Failure::Trimmed)?;
        if !position.kept(now) {
            return Err(Failure::Trimmed);
        }
        let mut sum = Sum::default();
        let mut unmarked = 0;
        for table in &self.cell.tables.tables {
            // A table that came since was not listened to.
            let Some(place) = position.tables.get_mut(&table.name) else {
                return Err(Failure::Trimmed);
            };
            let listed = self.listed(&table.name, past.map(|(_, left)| left)).await?;
            let listed = listed.filter(|listed| listed.stream == place.stream);
            let Some(listed) = listed else { return Err(Failure::Trimmed) };
            place.learn(&listed.shards);
            let streams = Reader {
                streams: &*self.streams,
                iterators: &self.iterators,
                markers: &markers(self.migration),
                table: &table.name,
                ours: &ours,
                now,
            };
            let read = streams.table(place, &listed.shards).await?;
            if read.ended {
                self.listed.lock().remove(&table.name);
            }
            let more = read.more;
            sum.add(read);
            if let Some((marker, _)) = past {
                let without = place.without(marker_of(marker), &listed.shards);
                unmarked += without;
                // Chance has it in which shard a key is.
                if without > 0 && !more {
                    self.leave(&table.name, marker, (2 * without).min(MAX_MARKERS)).await?;
                }
            }
        }
        if let Some(failed) = sum.in_vain() {
            return Err(failed.into());
        }
        if sum.current {
            position.current(now);
        }
        Ok(Read {
            found: sum.found(),
            ours: sum.ours,
            touched: sum.touched,
            next: position.cursor()?,
            past: past.is_some() && unmarked == 0,
        })
    }

    /// Leaves a marker in the stream of each table.
    pub async fn mark(&self, marker: Marker) -> Result<(), StoreError> {
        for table in &self.cell.tables.tables {
            self.leave(&table.name, marker, 1).await?;
        }
        Ok(())
    }

    async fn leave(&self, table: &str, marker: Marker, times: usize) -> Result<(), StoreError> {
        let left = (0..times).map(|_| async move {
            let partition = format!("{}{:032x}", prefix(marker), rand::random::<u128>());
            self.cell.come_and_go(table, &partition).await
        });
        // All of them come to their end: one that is dropped half-way stays.
        let left: Vec<_> = stream::iter(left).buffer_unordered(SIDE_BY_SIDE).collect().await;
        left.into_iter().collect()
    }

    /// A listing that is not older than `after`, nor than [`LISTING`]. `None`: the table has no stream.
    async fn listed(
        &self,
        table: &str,
        after: Option<Instant>,
    ) -> Result<Option<Listed>, StoreError> {
        let known = self.listed.lock().get(table).cloned();
        let fresh = |listed: &Listed| {
            listed.at.elapsed() < LISTING && after.is_none_or(|after| listed.at >= after)
        };
        match known.filter(fresh) {
            Some(listed) => Ok(Some(listed)),
            None => self.list(table).await,
        }
    }

    async fn list(&self, table: &str) -> Result<Option<Listed>, StoreError> {
        let at = Instant::now();
        let Some(arn) = self.cell.stream(table).await? else { return Ok(None) };
        let unreadable = |_| StoreError::Unreadable { detail: "a stream's ARN".into() };
        let stream = StreamArn::new(arn).map_err(unreadable)?;
        let mut shards = Vec::new();
        let mut after = None;
        for _ in 0..MAX_LISTINGS {
            let page = match self.streams.describe(&stream, after.as_ref()).await {
                Ok(page) => page,
                // It is just being switched on.
                Err(StreamsError::NotFound) => return Ok(None),
                Err(error) => return Err(store_error(error)),
            };
            shards.extend(page.shards);
            after = page.next;
            if after.is_none() {
                let listed = Listed { at, stream: stream.as_str().to_owned(), shards };
                self.listed.lock().insert(table.to_owned(), listed.clone());
                return Ok(Some(listed));
            }
        }
        let detail = format!("the stream of {table} has more shards than a migration can follow");
        Err(StoreError::Rejected { detail })
    }
}

fn store_error(error: StreamsError) -> StoreError {
    match Failure::from(error) {
        Failure::Store(error) => error,
        Failure::Trimmed => StoreError::Throttled,
    }
}

/// How the partitions of a migration's markers begin: as no tenant's does.
fn markers(migration: MigrationId) -> String {
    format!("\u{1}mark#{}#", cells_guard::guard::migration_name(migration))
}

/// The partitions of a marker, but for chance.
fn prefix(marker: Marker) -> String {
    let (worker, number) = marker_of(marker);
    format!("{}{worker}#{number}#", markers(marker.holder.migration))
}

/// Which of the markers that begin so a key is of: worker and number.
fn marker_in(key: &Item, markers: &str) -> Option<(u64, u32)> {
    let texts = key.values().filter_map(|value| value.as_s().ok());
    let mut fields = texts.filter_map(|text| text.strip_prefix(markers)).next()?.split('#');
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// What was read of all tables.
struct Sum {
    ours: u64,
    /// Some was read, whosever it is.
    any: bool,
    more: bool,
    current: bool,
    failed: Option<StoreError>,
    seen: HashSet<(String, Vec<String>)>,
    touched: Vec<Touched>,
}

impl Default for Sum {
    fn default() -> Self {
        Self {
            ours: 0,
            any: false,
            more: false,
            current: true,
            failed: None,
            seen: HashSet::new(),
            touched: Vec::new(),
        }
    }
}

impl Sum {
    /// Why nothing was read. What was read of some shards counts, whatever became of others.
    fn in_vain(&self) -> Option<StoreError> {
        self.failed.clone().filter(|_| !self.any)
    }

    fn found(&self) -> u64 {
        if self.more { u64::MAX } else { self.touched.len() as u64 }
    }

    fn add(&mut self, read: TableRead) {
        self.any |= read.any;
        self.more |= read.more;
        self.current &= read.current;
        self.failed = self.failed.take().or(read.failed);
        for touched in read.touched {
            self.ours += 1;
            if self.seen.insert(copier::name(&touched)) {
                self.touched.push(touched);
            }
        }
    }
}

/// What was read of a table.
#[derive(Default)]
struct TableRead {
    /// The tenant's keys, as records named them.
    touched: Vec<Touched>,
    /// Some was read, whosever it is.
    any: bool,
    /// There surely is more, or it is not known.
    more: bool,
    /// All shards were read to their open end.
    current: bool,
    /// A shard came to its end, so there are others.
    ended: bool,
    /// Why a shard was not read further.
    failed: Option<StoreError>,
}

/// What was read of a shard.
struct ShardRead {
    touched: Vec<Touched>,
    any: bool,
    at: At,
    marker: Option<(u64, u32)>,
    more: bool,
    current: bool,
    failed: Option<StoreError>,
}

/// Reads shards.
struct Reader<'a> {
    streams: &'a dyn Streams,
    iterators: &'a Iterators,
    /// How the partitions of the migration's markers begin.
    markers: &'a str,
    /// By the name that the table set has for it.
    table: &'a str,
    /// Whether a key is the tenant's.
    ours: &'a (dyn Fn(&Touched) -> bool + Sync),
    /// Seconds of the Unix epoch.
    now: i64,
}

impl Reader<'_> {
    /// Reads some of each shard that can be read. One that fails for a passing reason leaves the others what they have.
    async fn table(
        &self,
        place: &mut TablePosition,
        listed: &[Shard],
    ) -> Result<TableRead, Failure> {
        let arn = StreamArn::new(place.stream.clone()).map_err(|_| Failure::Trimmed)?;
        let readable = place.readable(listed);
        let arn = &arn;
        let reads = readable.into_iter().map(|(shard, at)| async move {
            let read = self.shard(arn, &shard, at).await;
            read.map(|read| (shard, read))
        });
        let reads: Vec<_> = stream::iter(reads).buffer_unordered(SIDE_BY_SIDE).collect().await;
        let mut sum = TableRead { current: true, ..TableRead::default() };
        for read in reads {
            let (shard, read) = read?;
            sum.touched.extend(read.touched);
            sum.any |= read.any;
            sum.more |= read.more || read.failed.is_some();
            sum.current &= read.current;
            sum.ended |= read.at == At::End;
            sum.failed = sum.failed.or(read.failed);
            place.reached(&shard, read.at, read.marker);
        }
        // What has just ended has children, which were not read.
        sum.current &= !sum.ended;
        Ok(sum)
    }

    async fn shard(&self, arn: &StreamArn, shard: &ShardId, at: At) -> Result<ShardRead, Failure> {
        let name = (arn.as_str().to_owned(), shard.clone());
        // Not there while it is read: who is dropped in between begins anew.
        let known = self.iterators.lock().remove(&name).filter(|going| going.at == at);
        let mut going = known.unwrap_or(Going { at: at.clone(), iterator: None, empty: 0 });
        let mut read = ShardRead::at(at);
        for page in 1..=MAX_PAGES {
            let records = match self.page(arn, shard, &mut going).await {
                Ok(records) => records,
                Err(Failure::Store(error)) if error.transient() => {
                    read.failed = Some(error);
                    break;
                }
                Err(failure) => return Err(failure),
            };
            let count = records.records.len();
            let old = self.take(&mut read, records.records);
            let Some(next) = records.next else {
                (read.any, read.at) = (true, At::End);
                return Ok(read);
            };
            let empty = if count == 0 { going.empty.saturating_add(1) } else { 0 };
            going = Going { at: read.at.clone(), iterator: Some(next), empty };
            if count == 0 {
                break;
            }
            read.more = page == MAX_PAGES && (count >= FULL_PAGE || old);
        }
        read.current = read.failed.is_none() && going.empty >= TIP_PAGES;
        self.iterators.lock().insert(name, going);
        Ok(read)
    }

    /// The next page of a shard.
    async fn page(
        &self,
        arn: &StreamArn,
        shard: &ShardId,
        going: &mut Going,
    ) -> Result<RecordPage, Failure> {
        if let Some(iterator) = &going.iterator {
            match self.streams.records(iterator).await {
                // It is older than 15 minutes. How much of a gap it had crossed is lost with it.
                Err(StreamsError::ExpiredIterator) => going.empty = 0,
                answer => return Ok(answer?),
            }
        }
        let from = going.at.sequence()?.map_or(ReadFrom::TrimHorizon, ReadFrom::After);
        let iterator = self.streams.iterator(arn, shard, &from).await?;
        let iterator = going.iterator.insert(iterator);
        Ok(self.streams.records(iterator).await?)
    }

    /// Takes note of a page's records. Answers whether the last one is old.
    fn take(&self, read: &mut ShardRead, records: Vec<Record>) -> bool {
        let mut old = false;
        for record in records {
            (read.any, read.at) = (true, At::After(record.sequence.as_str().to_owned()));
            read.marker = read.marker.max(marker_in(&record.keys, self.markers));
            old = record.created_secs.is_some_and(|created| created < self.now - LAG_SECS);
            let touched = Touched { table: self.table.to_owned(), key: record.keys };
            if (self.ours)(&touched) {
                read.touched.push(touched);
            }
        }
        old
    }
}

impl ShardRead {
    fn at(at: At) -> Self {
        let (touched, any, marker) = (Vec::new(), false, None);
        Self { touched, any, at, marker, more: false, current: false, failed: None }
    }
}

#[cfg(test)]
mod tests;
