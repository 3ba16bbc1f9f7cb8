//! Reading, against a model of a stream: shards that split, gaps, failures.

use std::collections::BTreeMap;

use async_trait::async_trait;
use aws_sdk_dynamodb::types::AttributeValue;
use cells_streams::{ChangeKind, Record, RecordPage, SequenceNumber, ShardPage};

use super::*;

const ARN: &str = "arn:aws:dynamodb:eu-west-1:1:table/Orders/stream/2026";
const MARKERS: &str = "\u{1}mark#00#";
const NOW: i64 = 1_000_000;

/// Shards with their records, of which each says its partition. An empty partition is a gap of one read.
#[derive(Default)]
struct Fake {
    shards: Mutex<BTreeMap<String, Vec<&'static str>>>,
    closed: Mutex<HashSet<String>>,
    /// What each call is answered with, once.
    failure: Mutex<Option<StreamsError>>,
    /// Records of a page.
    page: usize,
    /// When all records were written.
    created: Option<i64>,
}

impl Fake {
    fn new(shards: &[(&str, &[&'static str])]) -> Self {
        let shards = shards.iter().map(|(id, records)| ((*id).to_owned(), records.to_vec()));
        Self { shards: Mutex::new(shards.collect()), page: 1000, ..Self::default() }
    }

    fn add(&self, shard: &str, partition: &'static str) {
        self.shards.lock().get_mut(shard).unwrap().push(partition);
    }

    fn fail(&self) -> Result<(), StreamsError> {
        self.failure.lock().take().map_or(Ok(()), Err)
    }
}

fn record(number: usize, partition: &str, created_secs: Option<i64>) -> Record {
    Record {
        id: String::new(),
        kind: ChangeKind::Modify,
        sequence: SequenceNumber::new(number.to_string()).unwrap(),
        created_secs,
        keys: [("PK".to_owned(), AttributeValue::S(partition.to_owned()))].into(),
        old: None,
        new: None,
        expired: false,
    }
}

#[async_trait]
impl Streams for Fake {
    async fn describe(
        &self,
        _: &StreamArn,
        _: Option<&ShardId>,
    ) -> Result<ShardPage, StreamsError> {
        unreachable!("listed by the test")
    }

    async fn iterator(
        &self,
        _: &StreamArn,
        shard: &ShardId,
        from: &ReadFrom,
    ) -> Result<ShardIterator, StreamsError> {
        self.fail()?;
        let number = match from {
            ReadFrom::TrimHorizon => 0,
            ReadFrom::After(number) => number.as_str().parse().unwrap(),
        };
        Ok(ShardIterator::new(format!("{shard}/{number}")))
    }

    /// A record's number is its place, from 1.
    async fn records(&self, iterator: &ShardIterator) -> Result<RecordPage, StreamsError> {
        self.fail()?;
        let (shard, number) = iterator.as_str().split_once('/').unwrap();
        let number: usize = number.parse().unwrap();
        let shards = self.shards.lock();
        let all = &shards[shard];
        let left = all.get(number..).unwrap_or_default();
        let gap = left.first() == Some(&"");
        let count =
            if gap { 0 } else { left.iter().take(self.page).take_while(|p| !p.is_empty()).count() };
        let records = (0..count).map(|n| record(number + n + 1, left[n], self.created)).collect();
        let next = number + count + usize::from(gap);
        let over = next == all.len() && self.closed.lock().contains(shard);
        let next = (!over).then(|| ShardIterator::new(format!("{shard}/{next}")));
        Ok(RecordPage { records, next })
    }
}

fn shard(id: &str, parents: &[&str]) -> Shard {
    let parents = parents.iter().map(|id| ShardId::new(*id)).collect();
    Shard { id: ShardId::new(id), parents, start: None, end: None }
}

struct Reading {
    fake: Fake,
    iterators: Iterators,
    place: TablePosition,
}

impl Reading {
    fn new(fake: Fake, listed: &[Shard]) -> Self {
        let place = TablePosition::listen(ARN.to_owned(), listed);
        Self { fake, iterators: Mutex::default(), place }
    }

    async fn read(&mut self, listed: &[Shard]) -> Result<TableRead, Failure> {
        let (streams, iterators, table) = (&self.fake, &self.iterators, "Orders");
        // Those that begin so are other tenants'.
        let ours = |touched: &Touched| !touched.key["PK"].as_s().unwrap().starts_with('x');
        let reader = Reader { streams, iterators, markers: MARKERS, table, ours: &ours, now: NOW };
        reader.table(&mut self.place, listed).await
    }

    async fn partitions(&mut self, listed: &[Shard]) -> Vec<String> {
        let read = self.read(listed).await.unwrap();
        let keys = read.touched.iter().map(|touched| touched.key["PK"].as_s().unwrap().clone());
        let mut keys: Vec<_> = keys.collect();
        keys.sort();
        keys
    }
}

#[tokio::test]
async fn each_record_is_read_once_and_from_where_the_position_says() {
    let listed = [shard("a", &[]), shard("b", &[])];
    let fake = Fake::new(&[("a", &["1", "2"]), ("b", &["3"])]);
    let mut reading = Reading::new(fake, &listed);
    assert_eq!(reading.partitions(&listed).await, ["1", "2", "3"]);
    assert!(reading.partitions(&listed).await.is_empty());
    reading.fake.add("b", "4");
    let before = reading.place.clone();
    assert_eq!(reading.partitions(&listed).await, ["4"]);
    // What was read and not applied is read again; by another worker, too, who has no iterators.
    for iterators in [std::mem::take(&mut reading.iterators), Mutex::default()] {
        (reading.iterators, reading.place) = (iterators, before.clone());
        assert_eq!(reading.partitions(&listed).await, ["4"]);
    }
}

#[tokio::test]
async fn gaps_are_crossed_however_long_they_are() {
    let listed = [shard("a", &[])];
    let mut records = vec!["1"];
    records.extend([""; 30]);
    records.push("2");
    let mut reading = Reading::new(Fake::new(&[("a", &records)]), &listed);
    let mut found = Vec::new();
    for look in 0..40 {
        let read = reading.read(&listed).await.unwrap();
        // So many empty reads are no end, for all that is known; but it is never taken for the end of the shard.
        assert!(!read.ended, "look {look}");
        found.extend(read.touched);
    }
    assert_eq!(found.len(), 2);
}

#[tokio::test]
async fn children_are_read_after_their_parents_and_nothing_is_current_before() {
    let before = [shard("a", &[])];
    let fake = Fake::new(&[("a", &["1"]), ("b", &["2"]), ("c", &["3"])]);
    let mut reading = Reading::new(fake, &before);
    assert_eq!(reading.partitions(&before).await, ["1"]);
    let split = [shard("a", &[]), shard("b", &["a"]), shard("c", &["a"])];
    reading.place.learn(&split);
    // Still open: its children wait.
    assert!(reading.partitions(&split).await.is_empty());
    reading.fake.closed.lock().insert("a".to_owned());
    let read = reading.read(&split).await.unwrap();
    assert!(read.ended && !read.current && read.touched.is_empty());
    assert_eq!(reading.partitions(&split).await, ["2", "3"]);
}

#[tokio::test]
async fn a_marker_is_seen_in_the_shard_where_it_is_and_those_of_others_are_none() {
    let listed = [shard("a", &[]), shard("b", &[])];
    let fake = Fake::new(&[
        ("a", &["1", "\u{1}mark#00#3#1#f", "\u{1}mark#00#3#2#e", "\u{1}mark#00#2#9#e"]),
        ("b", &["\u{1}mark#01#3#2#e", "mark#00#3#2#e", "\u{1}mark#00#x"]),
    ]);
    let mut reading = Reading::new(fake, &listed);
    reading.read(&listed).await.unwrap();
    assert_eq!(reading.place.without((3, 2), &listed), 1);
    reading.fake.add("b", "\u{1}mark#00#3#2#d");
    reading.read(&listed).await.unwrap();
    assert_eq!(reading.place.without((3, 2), &listed), 0);
    assert_eq!(reading.place.without((3, 1), &listed), 2);
}

#[tokio::test]
async fn a_long_way_is_read_in_looks_that_say_that_there_is_more() {
    let listed = [shard("a", &[])];
    let records = vec!["1"; 3 * FULL_PAGE * MAX_PAGES];
    let fake = Fake { page: FULL_PAGE, ..Fake::new(&[("a", &records)]) };
    let mut reading = Reading::new(fake, &listed);
    let mut all = 0;
    for _ in 0..3 {
        let read = reading.read(&listed).await.unwrap();
        assert!(read.more && !read.current);
        all += read.touched.len();
    }
    assert_eq!(all, records.len());
    for look in 1..=TIP_PAGES {
        let read = reading.read(&listed).await.unwrap();
        assert!(!read.more);
        assert_eq!(read.current, look == TIP_PAGES, "{look}");
    }
}

#[tokio::test]
async fn what_is_gone_is_told_and_what_fails_for_now_is_read_later() {
    let listed = [shard("a", &[])];
    for error in [StreamsError::Trimmed, StreamsError::NotFound] {
        let mut reading = Reading::new(Fake::new(&[("a", &["1"])]), &listed);
        *reading.fake.failure.lock() = Some(error);
        assert_eq!(reading.read(&listed).await.err(), Some(Failure::Trimmed));
    }
    let passing = [
        (StreamsError::Throttled, StoreError::Throttled),
        (StreamsError::Failed("broken".to_owned()), StoreError::Unreachable),
    ];
    for (error, told) in passing {
        let mut reading = Reading::new(Fake::new(&[("a", &["1"])]), &listed);
        reading.read(&listed).await.unwrap();
        reading.fake.add("a", "2");
        *reading.fake.failure.lock() = Some(error);
        let mut sum = Sum::default();
        sum.add(reading.read(&listed).await.unwrap());
        assert_eq!(sum.in_vain(), Some(told));
        assert!(!sum.current && sum.found() > 0, "nobody knows that there is no more");
        assert_eq!(reading.partitions(&listed).await, ["2"]);
    }
}

#[tokio::test]
async fn a_shard_that_fails_leaves_the_others_what_they_have() {
    let listed = [shard("a", &[]), shard("b", &[])];
    let mut reading = Reading::new(Fake::new(&[("a", &["1"]), ("b", &["2"])]), &listed);
    *reading.fake.failure.lock() = Some(StreamsError::Throttled);
    let mut sum = Sum::default();
    sum.add(reading.read(&listed).await.unwrap());
    assert_eq!((sum.in_vain(), sum.touched.len(), sum.found()), (None, 1, u64::MAX));
    // Neither is what was read read again, nor what was not left out.
    sum.add(reading.read(&listed).await.unwrap());
    assert_eq!(sum.touched.len(), 2);
    assert!(reading.partitions(&listed).await.is_empty());
}

#[tokio::test]
async fn where_reading_stopped_too_long_ago_it_goes_on_all_the_same() {
    let listed = [shard("a", &[])];
    let mut reading = Reading::new(Fake::new(&[("a", &["1"])]), &listed);
    reading.read(&listed).await.unwrap();
    for look in 2..TIP_PAGES {
        assert!(!reading.read(&listed).await.unwrap().current, "{look}");
    }
    reading.fake.add("a", "2");
    *reading.fake.failure.lock() = Some(StreamsError::ExpiredIterator);
    assert_eq!(reading.partitions(&listed).await, ["2"]);
    // From behind the last record a gap begins anew.
    *reading.fake.failure.lock() = Some(StreamsError::ExpiredIterator);
    for look in 1..TIP_PAGES {
        let read = reading.read(&listed).await.unwrap();
        assert!(read.failed.is_none() && !read.current, "{look}");
    }
    assert!(reading.read(&listed).await.unwrap().current);
}

#[tokio::test]
async fn few_records_to_a_page_are_no_end_where_they_are_old() {
    let listed = [shard("a", &[])];
    for (created, more) in [(NOW - LAG_SECS - 1, true), (NOW - LAG_SECS, false)] {
        let records = vec!["1"; 20 * MAX_PAGES];
        let fake = Fake { page: 10, created: Some(created), ..Fake::new(&[("a", &records)]) };
        let mut reading = Reading::new(fake, &listed);
        let mut sum = Sum::default();
        sum.add(reading.read(&listed).await.unwrap());
        assert_eq!((sum.more, sum.ours), (more, 10 * MAX_PAGES as u64));
        // So many records of one key: few enough for a fence, were it not for what comes behind them.
        assert_eq!(sum.found(), if more { u64::MAX } else { 1 });
        // A look that comes to the end is one.
        reading.read(&listed).await.unwrap();
        assert!(!reading.read(&listed).await.unwrap().more);
    }
}

#[tokio::test]
async fn what_is_not_the_tenants_is_read_and_not_kept() {
    let listed = [shard("a", &[])];
    let fake = Fake::new(&[("a", &["x1", "1", "x2", "\u{1}mark#00#3#2#f"])]);
    let mut reading = Reading::new(fake, &listed);
    let read = reading.read(&listed).await.unwrap();
    assert_eq!(read.touched.len(), 2);
    assert_eq!(reading.place.without((3, 2), &listed), 0);
    let mut reading = Reading::new(Fake::new(&[("a", &["x1", "x2"])]), &listed);
    let read = reading.read(&listed).await.unwrap();
    assert!(read.touched.is_empty() && read.any);
    assert!(reading.partitions(&listed).await.is_empty());
}
