//! What is counted about tables: by CloudWatch, by reading them, and on the bill.

use std::collections::HashMap;

use async_trait::async_trait;
use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{
    Dimension, Metric, MetricDataQuery, MetricDataResult, MetricStat, ScanBy, StatusCode,
};
use cells_cost::Window;

use super::{AwsCloud, billed, cloud_error, stored};
use crate::cells::capacity::share::{Billed, Stored};
use crate::cells::capacity::{Accounts, Metered, Meters};
use crate::cells::cloud::{CloudError, TableRef};
use crate::domain::CellId;

const NAMESPACE: &str = "AWS/DynamoDB";

/// In the order of [`Metered`]'s fields.
const METRICS: [&str; 4] = [
    "ConsumedReadCapacityUnits",
    "ConsumedWriteCapacityUnits",
    "ReadThrottleEvents",
    "WriteThrottleEvents",
];

/// Most answers to one question, of up to 100,800 points each.
const MAX_PAGES: usize = 64;

#[async_trait]
impl Meters for AwsCloud {
    async fn metered(
        &self,
        table: &TableRef,
        indexes: &[String],
        window: &Window,
    ) -> Result<Vec<Metered>, CloudError> {
        let client = self.0.clients(&table.region).cloudwatch;
        let resources: Vec<_> = [None].into_iter().chain(indexes.iter().map(Some)).collect();
        let queries: Vec<_> = resources
            .iter()
            .enumerate()
            .flat_map(|(number, index)| {
                METRICS.iter().enumerate().map(move |(at, metric)| {
                    query(&format!("m{number}_{at}"), metric, table, *index, window)
                })
            })
            .collect();
        let seconds = i64::try_from(window.seconds()).unwrap_or(i64::MAX);
        let mut metered = vec![Metered::default(); resources.len()];
        let (mut from, mut statuses) = (None, HashMap::new());
        for _ in 0..MAX_PAGES {
            let page = client
                .get_metric_data()
                .set_metric_data_queries(Some(queries.clone()))
                .start_time(DateTime::from_secs(window.start))
                .end_time(DateTime::from_secs(window.start.saturating_add(seconds)))
                .scan_by(ScanBy::TimestampAscending)
                .set_next_token(from)
                .send()
                .await
                .map_err(|error| cloud_error(&error))?;
            for result in page.metric_data_results() {
                take(result, &mut metered);
                statuses.extend(status(result));
            }
            from = page.next_token;
            if from.is_none() {
                return complete(&statuses).map(|()| metered);
            }
        }
        Err(CloudError::Busy { code: "more answers than are read".to_owned() })
    }
}

#[async_trait]
impl Accounts for AwsCloud {
    async fn stored(
        &self,
        table: &TableRef,
        key: &str,
        partition: &str,
        pages: usize,
    ) -> Result<Stored, CloudError> {
        let clients = self.0.clients(&table.region);
        stored::stored(&clients, &table.name, key, partition, pages).await
    }

    async fn billed(&self, cell: &CellId, from: i64, until: i64) -> Billed {
        billed::billed(&self.0, cell, from, until).await
    }
}

fn query(
    id: &str,
    metric: &str,
    table: &TableRef,
    index: Option<&String>,
    window: &Window,
) -> MetricDataQuery {
    let dimension = |name: &str, value: &str| Dimension::builder().name(name).value(value).build();
    let metric = Metric::builder()
        .namespace(NAMESPACE)
        .metric_name(metric)
        .dimensions(dimension("TableName", &table.name));
    let metric = match index {
        Some(index) => metric.dimensions(dimension("GlobalSecondaryIndexName", index)),
        None => metric,
    };
    let period = i32::try_from(window.period_seconds).unwrap_or(i32::MAX);
    let stat = MetricStat::builder().metric(metric.build()).period(period).stat("Sum").build();
    MetricDataQuery::builder().id(id).metric_stat(stat).return_data(true).build()
}

/// What a page says of how whole a metric's points are by now, by the metric's id.
fn status(result: &MetricDataResult) -> Option<(String, StatusCode)> {
    Some((result.id()?.to_owned(), result.status_code()?.clone()))
}

/// Whether the last page left every metric whole. Points that are missing must not be taken for minutes without work.
fn complete(statuses: &HashMap<String, StatusCode>) -> Result<(), CloudError> {
    match statuses.values().find(|status| **status != StatusCode::Complete) {
        Some(status) => {
            Err(CloudError::Busy { code: format!("GetMetricData: {}", status.as_str()) })
        }
        None => Ok(()),
    }
}

/// Adds a result to the resource and the metric that its id names.
fn take(result: &MetricDataResult, metered: &mut [Metered]) {
    let id = result.id().and_then(|id| id.strip_prefix('m')?.split_once('_'));
    let Some((number, at)) = id else { return };
    let Some(metered) = number.parse().ok().and_then(|number: usize| metered.get_mut(number))
    else {
        return;
    };
    let series = match at {
        "0" => &mut metered.reads,
        "1" => &mut metered.writes,
        "2" => &mut metered.throttled_reads,
        _ => &mut metered.throttled_writes,
    };
    let points = result.timestamps().iter().zip(result.values());
    series.extend(points.map(|(time, value)| (time.secs(), *value)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_last_page_left_whole_is_taken() {
        let told = |pages: &[(&str, StatusCode)]| {
            let mut statuses = HashMap::new();
            for (id, code) in pages {
                let result = MetricDataResult::builder().id(*id).status_code(code.clone()).build();
                statuses.extend(status(&result));
            }
            complete(&statuses).is_ok()
        };
        let (partial, whole) = (StatusCode::PartialData, StatusCode::Complete);
        assert!(told(&[]));
        assert!(told(&[
            ("m0_0", partial.clone()),
            ("m0_1", whole.clone()),
            ("m0_0", whole.clone())
        ]));
        assert!(!told(&[("m0_0", partial), ("m0_1", whole.clone())]));
        assert!(!told(&[("m0_0", StatusCode::InternalError), ("m0_1", whole)]));
    }
}
