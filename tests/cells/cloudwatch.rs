//! CloudWatch before another engine: answers GetMetricData and PutMetricData in the protocol that the SDK speaks (RPC v2, CBOR), of which moto
//! knows nothing, from what a test says was counted, and keeps what was put. Everything else goes on to the engine, and what its
//! answers say of consumed capacity is added up on the way.
//! Refuses Cost Explorer's GetCostAndUsage where a test says so.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use ciborium::Value;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpListener;

use crate::moto::Moto;

/// Sums by metric, table and index, each with the second at which its period starts.
type Counted = HashMap<(String, String, Option<String>), Vec<(i64, f64)>>;

/// A datum that was put.
#[derive(Debug, Clone, PartialEq)]
pub struct Datum {
    pub metric: String,
    pub dimensions: BTreeMap<String, String>,
    pub minute: i64,
    pub value: f64,
    pub unit: String,
}

#[derive(Default)]
struct State {
    counted: Counted,
    put: Vec<Datum>,
    /// Capacity units by table, and by whether they were read.
    reported: BTreeMap<(String, bool), f64>,
    dead: bool,
    partial: bool,
    denies_billing: bool,
}

pub struct CloudWatch {
    endpoint: String,
    state: Arc<Mutex<State>>,
    _moto: Option<Moto>,
}

impl CloudWatch {
    pub async fn start() -> Self {
        let moto = Moto::start();
        let behind = moto.endpoint();
        Self { _moto: Some(moto), ..Self::before(behind).await }
    }

    /// Before an engine of DynamoDB's.
    pub async fn before(engine: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State::default()));
        let answers = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (engine, state) = (engine.clone(), answers.clone());
                let service =
                    service_fn(move |request| answer(request, engine.clone(), state.clone()));
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { endpoint, state, _moto: None }
    }

    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// From now on Cost Explorer answers as it does to those who may not ask it.
    pub fn deny_billing(&self) {
        self.state.lock().denies_billing = true;
    }

    /// Makes moto's Cost Explorer answer the next new question with these costs, a day each.
    pub async fn bill(&self, amounts: &[&str]) {
        let day = |amount: &&str| {
            serde_json::json!({
                "TimePeriod": {"Start": "2026-01-01", "End": "2026-01-02"},
                "Total": {"UnblendedCost": {"Amount": amount, "Unit": "USD"}},
                "Groups": [], "Estimated": false
            })
        };
        let days: Vec<_> = amounts.iter().map(day).collect();
        let body = serde_json::json!({ "results": [{ "ResultsByTime": days }] }).to_string();
        let request =
            Request::post(format!("{}/moto-api/static/ce/cost-and-usage-results", self.endpoint))
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body)))
                .unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        assert_eq!(client.request(request).await.unwrap().status(), 201);
    }

    pub fn count(&self, metric: &str, table: &str, index: Option<&str>, sums: Vec<(i64, f64)>) {
        let key = (metric.to_owned(), table.to_owned(), index.map(str::to_owned));
        self.state.lock().counted.insert(key, sums);
    }

    /// From now on, whether it answers with errors.
    pub fn die(&self, dead: bool) {
        self.state.lock().dead = dead;
    }

    /// From now on, whether it leaves out the last point of a metric, and says so.
    pub fn answer_in_part(&self, partial: bool) {
        self.state.lock().partial = partial;
    }

    /// All that was put.
    pub fn put(&self) -> Vec<Datum> {
        self.state.lock().put.clone()
    }

    /// What the engine's answers said since the last call: units by table, and by whether they were read.
    pub fn take_reported(&self) -> BTreeMap<(String, bool), f64> {
        std::mem::take(&mut self.state.lock().reported)
    }
}

async fn answer(
    request: Request<Incoming>,
    engine: String,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    if let Some((_, operation)) = parts.uri.path().split_once("/operation/") {
        assert_eq!(parts.headers.get("content-encoding"), None, "not unpacked here");
        let asked: Value = ciborium::from_reader(body.as_ref()).unwrap();
        let mut state = state.lock();
        if state.dead {
            return Ok(Response::builder().status(503).body(Full::default()).unwrap());
        }
        let answered = match operation {
            "GetMetricData" => metrics(&asked, &state.counted, state.partial),
            "PutMetricData" => {
                state.put.extend(data(&asked));
                Value::Map(Vec::new())
            }
            other => panic!("{other}"),
        };
        let mut answer = Vec::new();
        ciborium::into_writer(&answered, &mut answer).unwrap();
        let response = Response::builder()
            .header("content-type", "application/cbor")
            .header("smithy-protocol", "rpc-v2-cbor");
        return Ok(response.body(Full::new(answer.into())).unwrap());
    }
    let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    let operation = target.and_then(|target| target.rsplit('.').next()).unwrap_or("").to_owned();
    if target == Some("AWSInsightsIndexService.GetCostAndUsage") && state.lock().denies_billing {
        let refusal = r#"{"__type":"AccessDeniedException","Message":"User: arn:aws:iam::123456789012:user/u is not authorized to perform: ce:GetCostAndUsage"}"#;
        let response =
            Response::builder().status(400).header("content-type", "application/x-amz-json-1.1");
        return Ok(response.body(Full::new(refusal.into())).unwrap());
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut onward = Request::from_parts(parts, Full::new(body));
    let path = onward.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    *onward.uri_mut() = format!("{engine}{path}").parse().unwrap();
    let Ok(response) = client.request(onward).await else {
        // The engine ends with the test.
        return Ok(Response::builder().status(502).body(Full::default()).unwrap());
    };
    let (mut parts, body) = response.into_parts();
    parts.headers.remove("transfer-encoding");
    let body = body.collect().await.unwrap().to_bytes();
    if let Ok(answer) = serde_json::from_slice::<serde_json::Value>(&body) {
        let read = ["GetItem", "BatchGetItem", "Query", "Scan"].contains(&operation.as_str());
        let mut state = state.lock();
        if parts.status.is_success() && ITEM_CALLS.contains(&operation.as_str()) {
            // Who did not ask for the capacity cannot count it.
            if answer["ConsumedCapacity"].is_null() {
                *state.reported.entry((format!("an unasked {operation}"), read)).or_insert(0.0) +=
                    1.0;
            }
        }
        for (table, units) in consumed(&answer) {
            *state.reported.entry((table, read)).or_insert(0.0) += units;
        }
    }
    Ok(Response::from_parts(parts, Full::new(body)))
}

/// Calls whose answers tell of capacity, if they are asked.
const ITEM_CALLS: [&str; 10] = [
    "GetItem",
    "BatchGetItem",
    "Query",
    "Scan",
    "PutItem",
    "UpdateItem",
    "DeleteItem",
    "BatchWriteItem",
    "TransactWriteItems",
    "TransactGetItems",
];

/// What an answer of DynamoDB says of consumed capacity, by table.
fn consumed(answer: &serde_json::Value) -> Vec<(String, f64)> {
    let told = &answer["ConsumedCapacity"];
    let each = told.as_array().cloned().unwrap_or_else(|| vec![told.clone()]);
    let each = each.iter().filter_map(|one| {
        Some((one["TableName"].as_str()?.to_owned(), one["CapacityUnits"].as_f64()?))
    });
    each.collect()
}

/// The data of a PutMetricData, within CloudWatch's limits.
fn data(asked: &Value) -> Vec<Datum> {
    let text = |of: &Value, name| get(of, name).unwrap().as_text().unwrap().to_owned();
    assert_eq!(text(asked, "Namespace"), "CellBasedArchitecture/DynamoDB");
    let data = get(asked, "MetricData").unwrap().as_array().unwrap();
    assert!((1..=1000).contains(&data.len()), "{}", data.len());
    let datum = |datum: &Value| {
        let dimensions = get(datum, "Dimensions").unwrap().as_array().unwrap().iter();
        Datum {
            metric: text(datum, "MetricName"),
            dimensions: dimensions.map(|d| (text(d, "Name"), text(d, "Value"))).collect(),
            minute: seconds(get(datum, "Timestamp").unwrap()),
            value: number(get(datum, "Value").unwrap()),
            unit: text(datum, "Unit"),
        }
    };
    data.iter().map(datum).collect()
}

fn number(value: &Value) -> f64 {
    match value {
        Value::Float(number) => *number,
        whole => i128::from(whole.as_integer().unwrap()) as f64,
    }
}

fn seconds(time: &Value) -> i64 {
    match time {
        Value::Tag(1, time) => number(time) as i64,
        other => panic!("{other:?}"),
    }
}

fn get<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    let fields = map.as_map()?.iter();
    fields.into_iter().find(|(key, _)| key.as_text() == Some(name)).map(|(_, value)| value)
}

/// What CloudWatch answers: of each query the periods in the window, as its API reference says.
fn metrics(asked: &Value, counted: &Counted, partial: bool) -> Value {
    let time = |name| seconds(get(asked, name).unwrap());
    let (from, until) = (time("StartTime"), time("EndTime"));
    let text = |name: &str, value: &str| (Value::from(name), Value::from(value));
    let results =
        get(asked, "MetricDataQueries").unwrap().as_array().unwrap().iter().map(|query| {
            let stat = get(query, "MetricStat").unwrap();
            assert_eq!(get(stat, "Stat").unwrap().as_text(), Some("Sum"));
            let metric = get(stat, "Metric").unwrap();
            assert_eq!(get(metric, "Namespace").unwrap().as_text(), Some("AWS/DynamoDB"));
            let dimensions: HashMap<_, _> = get(metric, "Dimensions")
                .unwrap()
                .as_array()
                .unwrap()
                .iter()
                .map(|d| {
                    (
                        get(d, "Name").unwrap().as_text().unwrap(),
                        get(d, "Value").unwrap().as_text().unwrap(),
                    )
                })
                .collect();
            let key = (
                get(metric, "MetricName").unwrap().as_text().unwrap().to_owned(),
                dimensions["TableName"].to_owned(),
                dimensions.get("GlobalSecondaryIndexName").map(|index| (*index).to_owned()),
            );
            let sums = counted.get(&key).into_iter().flatten();
            let mut sums: Vec<_> =
                sums.filter(|(start, _)| (from..until).contains(start)).collect();
            let left_out = sums.pop_if(|_| partial).is_some();
            let times = sums.iter().map(|(start, _)| Value::Tag(1, Box::new(Value::from(*start))));
            let values = sums.iter().map(|(_, sum)| Value::from(*sum));
            Value::Map(vec![
                text("Id", get(query, "Id").unwrap().as_text().unwrap()),
                text("Label", &key.0),
                (Value::from("Timestamps"), Value::Array(times.collect())),
                (Value::from("Values"), Value::Array(values.collect())),
                text("StatusCode", if left_out { "PartialData" } else { "Complete" }),
            ])
        });
    Value::Map(vec![
        (Value::from("MetricDataResults"), Value::Array(results.collect())),
        (Value::from("Messages"), Value::Array(Vec::new())),
    ])
}
