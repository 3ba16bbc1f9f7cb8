//! CloudWatch before moto: answers GetMetricData in the protocol that the SDK speaks (RPC v2, CBOR), of which moto knows nothing, from what
//! a test says was counted. Refuses Cost Explorer's GetCostAndUsage where a test says so. Everything else goes on to moto.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

pub struct CloudWatch {
    endpoint: String,
    counted: Arc<Mutex<Counted>>,
    deny_billing: Arc<AtomicBool>,
    _moto: Moto,
}

impl CloudWatch {
    pub async fn start() -> Self {
        let engine = Moto::start();
        let moto = engine.endpoint();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let counted = Arc::new(Mutex::new(Counted::new()));
        let answers = counted.clone();
        let deny_billing = Arc::new(AtomicBool::new(false));
        let denies = deny_billing.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (moto, counted, denies) = (moto.clone(), answers.clone(), denies.clone());
                let service = service_fn(move |request| {
                    answer(request, moto.clone(), counted.clone(), denies.clone())
                });
                tokio::spawn(async move {
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self { endpoint, counted, deny_billing, _moto: engine }
    }

    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// From now on Cost Explorer answers as it does to those who may not ask it.
    pub fn deny_billing(&self) {
        self.deny_billing.store(true, Ordering::SeqCst);
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
        self.counted.lock().insert(key, sums);
    }
}

async fn answer(
    request: Request<Incoming>,
    moto: String,
    counted: Arc<Mutex<Counted>>,
    denies: Arc<AtomicBool>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    if parts.uri.path().ends_with("/operation/GetMetricData") {
        let asked: Value = ciborium::from_reader(body.as_ref()).unwrap();
        let mut answer = Vec::new();
        ciborium::into_writer(&metrics(&asked, &counted.lock()), &mut answer).unwrap();
        let response = Response::builder()
            .header("content-type", "application/cbor")
            .header("smithy-protocol", "rpc-v2-cbor");
        return Ok(response.body(Full::new(answer.into())).unwrap());
    }
    let target = parts.headers.get("x-amz-target").and_then(|target| target.to_str().ok());
    if target == Some("AWSInsightsIndexService.GetCostAndUsage") && denies.load(Ordering::SeqCst) {
        let refusal = r#"{"__type":"AccessDeniedException","Message":"User: arn:aws:iam::123456789012:user/u is not authorized to perform: ce:GetCostAndUsage"}"#;
        let response =
            Response::builder().status(400).header("content-type", "application/x-amz-json-1.1");
        return Ok(response.body(Full::new(refusal.into())).unwrap());
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut onward = Request::from_parts(parts, Full::new(body));
    let path = onward.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    *onward.uri_mut() = format!("{moto}{path}").parse().unwrap();
    let Ok(response) = client.request(onward).await else {
        // moto ends with the test.
        return Ok(Response::builder().status(502).body(Full::default()).unwrap());
    };
    let (mut parts, body) = response.into_parts();
    parts.headers.remove("transfer-encoding");
    Ok(Response::from_parts(parts, Full::new(body.collect().await.unwrap().to_bytes())))
}

fn get<'a>(map: &'a Value, name: &str) -> Option<&'a Value> {
    let fields = map.as_map()?.iter();
    fields.into_iter().find(|(key, _)| key.as_text() == Some(name)).map(|(_, value)| value)
}

/// What CloudWatch answers: of each query the periods in the window, as its API reference says.
fn metrics(asked: &Value, counted: &Counted) -> Value {
    let time = |name| match get(asked, name).unwrap() {
        Value::Tag(1, time) => match &**time {
            Value::Float(seconds) => *seconds as i64,
            whole => i64::try_from(i128::from(whole.as_integer().unwrap())).unwrap(),
        },
        other => panic!("{other:?}"),
    };
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
            let sums: Vec<_> = sums.filter(|(start, _)| (from..until).contains(start)).collect();
            let times = sums.iter().map(|(start, _)| Value::Tag(1, Box::new(Value::from(*start))));
            let values = sums.iter().map(|(_, sum)| Value::from(*sum));
            Value::Map(vec![
                text("Id", get(query, "Id").unwrap().as_text().unwrap()),
                text("Label", &key.0),
                (Value::from("Timestamps"), Value::Array(times.collect())),
                (Value::from("Values"), Value::Array(values.collect())),
                text("StatusCode", "Complete"),
            ])
        });
    Value::Map(vec![
        (Value::from("MetricDataResults"), Value::Array(results.collect())),
        (Value::from("Messages"), Value::Array(Vec::new())),
    ])
}
