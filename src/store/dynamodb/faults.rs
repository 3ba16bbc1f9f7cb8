//! Tests of what the store makes of an endpoint that misbehaves, against a scripted one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::field::{Field, Visit};
use tracing::span;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use super::{
    ByTable, DynamoDbOptions, DynamoDbStore, StoreSettings, TableNames, batch_get, connect,
};
use crate::domain::{
    CellId, Epoch, JournalEntry, Mapping, MigrationId, Nonce, PartitionKey, Placement,
    PlacementEvent, Sequence, Timestamp, WriteMode,
};
use crate::migration::{MigrationRecords, Order};
use crate::store::{
    Commit, CommitOutcome, Expected, Found, Journal, Placements, Refusal, StoreError, Write,
};

#[derive(Clone)]
enum Behavior {
    Reply(u16, String),
    /// The first answer so often, and then the second.
    Then(usize, String, String),
    /// Reads the request and hangs up.
    HangUp,
    /// Reads the request and never answers.
    Hang,
}

const READ_TIMEOUT: Duration = Duration::from_millis(300);
const COMMIT_TIMEOUT: Duration = Duration::from_millis(900);

async fn store_at(endpoint: String) -> DynamoDbStore {
    let client = connect(&DynamoDbOptions {
        endpoint: Some(endpoint),
        read_timeout: READ_TIMEOUT,
        ..DynamoDbOptions::default()
    })
    .await;
    let settings = StoreSettings { commit_timeout: COMMIT_TIMEOUT, ..StoreSettings::default() };
    DynamoDbStore::new(client, TableNames::with_prefix("x-").unwrap(), settings)
}

/// A store on an endpoint that behaves so, and how many requests that has had.
async fn facing(behavior: Behavior) -> (DynamoDbStore, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&requests);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, behavior.clone(), Arc::clone(&counted)));
        }
    });
    (store_at(endpoint).await, requests)
}

async fn serve(mut stream: TcpStream, behavior: Behavior, requests: Arc<AtomicUsize>) {
    while read_request(&mut stream).await {
        let before = requests.fetch_add(1, Ordering::SeqCst);
        let (status, body) = match &behavior {
            Behavior::HangUp => return,
            Behavior::Hang => std::future::pending().await,
            Behavior::Reply(status, body) => (*status, body),
            Behavior::Then(times, first, _) if before < *times => (200, first),
            Behavior::Then(_, _, then) => (200, then),
        };
        let head = format!(
            "HTTP/1.1 {status} X\r\ncontent-type: application/x-amz-json-1.0\r\n\
             x-amzn-requestid: request-7\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
    }
}

async fn read_request(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let length = head.split("content-length: ").nth(1).unwrap();
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.is_ok()
}

fn key() -> PartitionKey {
    PartitionKey::new("secret-tenant").unwrap()
}

fn commit() -> Commit {
    let placement = Placement {
        key: key(),
        cell: CellId::new("cell-a").unwrap(),
        epoch: Epoch::FIRST,
        write_mode: WriteMode::Direct,
        began_by: PlacementEvent::Assigned,
        created: None,
        updated: None,
        expires: None,
        migration: None,
    };
    let now = Timestamp::from_seconds(0).unwrap();
    Commit {
        entry: JournalEntry {
            sequence: Sequence::new(1),
            nonce: Nonce::new(7),
            written: now,
            changes: vec![],
        },
        writes: vec![
            Write::Place { placement, expect: Expected::Absent },
            Write::AddToCount { cell: CellId::new("cell-a").unwrap(), delta: 1 },
        ],
    }
}

fn service_error(code: &str) -> String {
    format!(r#"{{"__type":"com.amazonaws.dynamodb.v20120810#{code}","message":"no"}}"#)
}

/// The errors of a read and of a commit; each must have come to at most one request.
async fn errors(behavior: Behavior) -> [StoreError; 2] {
    let (store, requests) = facing(behavior).await;
    let read = store.mapping(&key()).await.unwrap_err();
    assert!(requests.swap(0, Ordering::SeqCst) <= 1);
    let write = store.commit(&commit()).await.unwrap_err();
    assert!(requests.load(Ordering::SeqCst) <= 1);
    [read, write]
}

#[tokio::test]
async fn nothing_was_done_where_nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    for endpoint in [nobody, "http://no-such-host.invalid".into()] {
        let store = store_at(endpoint.clone()).await;
        assert_eq!(store.mapping(&key()).await, Err(StoreError::Unreachable), "{endpoint}");
        assert_eq!(store.commit(&commit()).await, Err(StoreError::Unreachable), "{endpoint}");
    }
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_open_what_was_done() {
    assert_eq!(errors(Behavior::HangUp).await, [StoreError::Failed, StoreError::Failed]);
}

#[tokio::test]
async fn reads_and_commits_have_deadlines_of_their_own() {
    let (store, _) = facing(Behavior::Hang).await;
    let began = Instant::now();
    assert_eq!(store.mapping(&key()).await, Err(StoreError::Timeout));
    let read = began.elapsed();
    assert_eq!(store.commit(&commit()).await, Err(StoreError::Timeout));
    let commit = began.elapsed() - read;
    assert!(read >= READ_TIMEOUT && read < COMMIT_TIMEOUT, "{read:?}");
    assert!(commit >= COMMIT_TIMEOUT, "{commit:?}");
}

#[tokio::test]
async fn answers_of_the_service_are_told_apart() {
    for (status, body, expected) in [
        (500, service_error("InternalServerError"), StoreError::Failed),
        (503, "<html>unavailable</html>".into(), StoreError::Failed),
        (400, service_error("ThrottlingException"), StoreError::Throttled),
        (400, service_error("ProvisionedThroughputExceededException"), StoreError::Throttled),
        (400, service_error("RequestLimitExceeded"), StoreError::Throttled),
        (400, service_error("TransactionConflictException"), StoreError::Throttled),
        (429, "slow down".into(), StoreError::Throttled),
        (200, "{\"Item\": garbage".into(), StoreError::Failed),
    ] {
        let [read, write] = errors(Behavior::Reply(status, body.clone())).await;
        assert_eq!([&read, &write], [&expected; 2], "{body}");
    }
    for code in ["AccessDeniedException", "ResourceNotFoundException", "ExpiredTokenException"] {
        let expected = StoreError::Rejected { detail: format!("{code}: no") };
        let answers = errors(Behavior::Reply(400, service_error(code))).await;
        assert_eq!(answers, [expected.clone(), expected]);
    }
}

fn cancellation(reasons: &str) -> Behavior {
    let error = r#""__type":"com.amazonaws.dynamodb.v20120810#TransactionCanceledException""#;
    let body = format!(r#"{{{error},"Message":"cancelled","CancellationReasons":[{reasons}]}}"#);
    Behavior::Reply(400, body)
}

async fn cancelled(reasons: &str) -> Result<CommitOutcome, StoreError> {
    let (store, _) = facing(cancellation(reasons)).await;
    store.commit(&commit()).await
}

/// What will never be done is not taken for what passes: a migration with it would be tried for ever.
#[tokio::test]
async fn a_transaction_without_an_entry_is_cancelled_for_good_or_for_a_while() {
    let told = async |code: &str| {
        let reasons = format!(r#"{{"Code":"None"}},{{"Code":"{code}","Message":"no"}}"#);
        let (store, _) = facing(cancellation(&reasons)).await;
        store.order(MigrationId::new(1), Order::Unpark, Timestamp::from_seconds(0).unwrap()).await
    };
    for code in ["TransactionConflict", "ThrottlingError", "ProvisionedThroughputExceeded"] {
        assert_eq!(told(code).await, Err(StoreError::Throttled), "{code}");
    }
    let detail = "the transaction was cancelled: ValidationError: no".to_owned();
    assert_eq!(told("ValidationError").await, Err(StoreError::Rejected { detail }));
    assert_eq!(told("ConditionalCheckFailed").await, Ok(false));
}

#[tokio::test]
async fn cancelled_transactions_are_told_apart() {
    let none = r#"{"Code":"None"}"#;
    let refused = r#"{"Code":"ConditionalCheckFailed","Message":"no"}"#;
    let conflict = r#"{"Code":"TransactionConflict","Message":"no"}"#;
    let throttled = r#"{"Code":"ThrottlingError","Message":"no"}"#;
    let exceeded = r#"{"Code":"ProvisionedThroughputExceeded","Message":"no"}"#;
    let invalid = r#"{"Code":"ValidationError","Message":"no"}"#;
    let found = r#"{"Code":"ConditionalCheckFailed","Message":"no","Item":{
        "PartitionKey":{"S":"secret-tenant"},"Epoch":{"N":"4"}}}"#;
    let at = |reasons: [&str; 4]| reasons.join(",");
    let absent = Refusal { write: 0, found: Found::Mapping(Mapping::Absent) };
    let vacated = Mapping::Vacated(Epoch::new(4).unwrap());
    let vacated = Refusal { write: 0, found: Found::Mapping(vacated) };
    for (reasons, expected) in [
        ([refused, none, none, none], Ok(CommitOutcome::HeadMoved)),
        ([none, refused, none, none], Ok(CommitOutcome::HeadMoved)),
        ([refused, refused, found, conflict], Ok(CommitOutcome::HeadMoved)),
        ([none, none, refused, none], Ok(CommitOutcome::Refused(vec![absent]))),
        ([conflict, none, found, throttled], Ok(CommitOutcome::Refused(vec![vacated]))),
        ([conflict, none, none, none], Ok(CommitOutcome::Contended)),
        ([none, none, none, conflict], Ok(CommitOutcome::Contended)),
        ([none, none, throttled, none], Err(StoreError::Throttled)),
        ([exceeded, none, none, none], Err(StoreError::Throttled)),
    ] {
        assert_eq!(cancelled(&at(reasons)).await, expected, "{reasons:?}");
    }
    let rejected = cancelled(&at([none, none, none, invalid])).await;
    let detail = "the transaction was cancelled: ValidationError: no".to_owned();
    assert_eq!(rejected, Err(StoreError::Rejected { detail }));
}

#[tokio::test]
async fn a_transaction_that_is_still_at_work_may_yet_be_done() {
    let [_, write] =
        errors(Behavior::Reply(400, service_error("TransactionInProgressException"))).await;
    assert!(write.ambiguous(), "{write:?}");
}

/// An answer to a query of the index and to the read of what it named: parsers pass over what they do not know.
fn index_and_table(cell: &str, more: &str) -> Behavior {
    let item =
        |cell| format!(r#"{{"PartitionKey":{{"S":"secret-tenant"}},"CellId":{{"S":"{cell}"}}}}"#);
    let (index, table) = (item("cell-a"), item(cell));
    let body = format!(
        r#"{{"Items":[{index}],"Count":1,"Responses":{{"x-CellMappings":[{table}]}}{more}}}"#
    );
    Behavior::Reply(200, body)
}

#[tokio::test]
async fn the_index_is_not_believed_in_what_it_says_of_a_key() {
    let cell = CellId::new("cell-a").unwrap();
    for (now_in, expected) in [("cell-a", 1), ("cell-b", 0)] {
        let (store, requests) = facing(index_and_table(now_in, "")).await;
        let page = store.list(Some(&cell), 9, None).await.unwrap();
        assert_eq!(page.items.len(), expected, "{now_in}");
        assert_eq!(requests.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn keys_that_a_batch_leaves_over_are_asked_for_again_but_not_for_ever() {
    let left = r#","UnprocessedKeys":{"x-CellMappings":{"Keys":[{"PartitionKey":{"S":"k"}}]}}"#;
    let (store, requests) = facing(index_and_table("cell-a", left)).await;
    let cell = CellId::new("cell-a").unwrap();
    assert_eq!(store.list(Some(&cell), 9, None).await, Err(StoreError::Throttled));
    assert_eq!(requests.load(Ordering::SeqCst), 7);
}

#[tokio::test]
async fn a_batch_that_the_last_round_completes_is_whole() {
    let key = r#"{"PartitionKey":{"S":"k"}}"#;
    let left = format!(r#"{{"UnprocessedKeys":{{"x-CellMappings":{{"Keys":[{key}]}}}}}}"#);
    let done = format!(r#"{{"Responses":{{"x-CellMappings":[{key}]}}}}"#);
    let (store, requests) = facing(Behavior::Then(5, left, done)).await;
    let key = [("PartitionKey".to_owned(), super::attributes::text("k"))].into();
    let wanted = ByTable::from([("x-CellMappings".to_owned(), vec![key])]);
    assert_eq!(batch_get(&store.client, wanted.clone()).await, Ok(wanted));
    assert_eq!(requests.load(Ordering::SeqCst), 6);
}

/// Spans by their names, with all that was recorded on them.
#[derive(Clone, Default)]
struct Recorded(Arc<Mutex<Vec<(String, String)>>>);

impl Visit for &Recorded {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let pair = (field.name().to_owned(), format!("{value:?}").trim_matches('"').to_owned());
        self.0.lock().unwrap().push(pair);
    }
}

impl<S: tracing::Subscriber> Layer<S> for Recorded {
    fn on_new_span(&self, attributes: &span::Attributes<'_>, _: &span::Id, _: Context<'_, S>) {
        attributes.record(&mut &*self);
    }
    fn on_record(&self, _: &span::Id, values: &span::Record<'_>, _: Context<'_, S>) {
        values.record(&mut &*self);
    }
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        event.record(&mut &*self);
    }
}

#[tokio::test]
async fn spans_say_what_was_asked_but_not_about_whom() {
    let recorded = Recorded::default();
    let subscriber = tracing_subscriber::registry()
        .with(recorded.clone().with_filter(tracing_subscriber::filter::LevelFilter::INFO));
    let _guard = tracing::subscriber::set_default(subscriber);
    let (store, _) = facing(Behavior::Reply(400, service_error("AccessDeniedException"))).await;
    store.mapping(&key()).await.unwrap_err();
    let _ = cancelled(r#"{"Code":"ConditionalCheckFailed"},{"Code":"None"}"#).await.unwrap();
    let fields = recorded.0.lock().unwrap().clone();
    let has = |name: &str, value: &str| {
        assert!(fields.iter().any(|(n, v)| n == name && v == value), "{name}={value}: {fields:?}");
    };
    has("otel.name", "GetItem x-CellMappings");
    has("otel.kind", "client");
    has("db.system.name", "aws.dynamodb");
    has("db.operation.name", "GetItem");
    has("db.collection.name", "x-CellMappings");
    has("aws.dynamodb.consistent_read", "true");
    has("aws.request_id", "request-7");
    has("error.type", "AccessDeniedException");
    has("otel.name", "TransactWriteItems");
    has("db.response.status_code", "TransactionCanceledException");
    // A precondition that does not hold is an outcome.
    assert_eq!(fields.iter().filter(|(name, _)| name == "error.type").count(), 1);
    assert!(fields.iter().all(|(_, value)| !value.contains("secret")), "{fields:?}");
}
