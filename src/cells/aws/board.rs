//! PutMetricData, and what DescribeTable says of a table's limits and size.

use async_trait::async_trait;
use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{Dimension, MetricDatum, StandardUnit};
use aws_sdk_dynamodb::types::{
    GlobalSecondaryIndexDescription, OnDemandThroughput, ProvisionedThroughputDescription,
    TableDescription,
};

use super::{AwsCloud, cloud_error, observe};
use crate::cells::cloud::{CloudError, TableRef};
use crate::metering::{Board, Datum, NAMESPACE, ON_DEMAND_QUOTA, Size, Sizes, Unit};

/// CloudWatch in the Region of the control tables, where the metrics of all cells are together.
pub struct AwsBoard(pub(super) aws_sdk_cloudwatch::Client);

#[async_trait]
impl Board for AwsBoard {
    async fn put(&self, data: &[Datum]) -> Result<(), CloudError> {
        let data = data.iter().map(datum).collect();
        let client = &self.0;
        let request = client.put_metric_data().namespace(NAMESPACE).set_metric_data(Some(data));
        request.send().await.map(|_| ()).map_err(|error| cloud_error(&error))
    }
}

fn datum(datum: &Datum) -> MetricDatum {
    let dimensions = datum.dimensions.iter();
    let dimensions =
        dimensions.map(|(name, value)| Dimension::builder().name(*name).value(value).build());
    MetricDatum::builder()
        .metric_name(datum.name)
        .set_dimensions(Some(dimensions.collect()))
        .timestamp(DateTime::from_secs(datum.minute))
        .value(datum.value)
        .unit(match datum.unit {
            Unit::Count => StandardUnit::Count,
            Unit::Bytes => StandardUnit::Bytes,
            Unit::Percent => StandardUnit::Percent,
        })
        .build()
}

#[async_trait]
impl Sizes for AwsCloud {
    async fn size(&self, table: &TableRef) -> Result<Option<Size>, CloudError> {
        let clients = self.0.clients(&table.region);
        Ok(observe::describe(&clients, &table.name).await?.map(|description| size(&description)))
    }
}

fn size(table: &TableDescription) -> Size {
    let counted = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
    let indexes = table.global_secondary_indexes();
    let own = limits(table.provisioned_throughput(), table.on_demand_throughput());
    let index_bytes = indexes.iter().filter_map(|index| counted(index.index_size_bytes())).sum();
    let index = |index: &GlobalSecondaryIndexDescription| {
        let limits = limits(index.provisioned_throughput(), index.on_demand_throughput());
        index.index_name().map(|name| (name.to_owned(), limits))
    };
    Size {
        items: counted(table.item_count()).unwrap_or(0),
        bytes: counted(table.table_size_bytes()).unwrap_or(0).saturating_add(index_bytes),
        index_bytes,
        limits: own,
        indexes: indexes.iter().filter_map(index).collect(),
    }
}

/// Units a second: what is provisioned, or on demand the most that was allowed, or the quota. Where nothing is provisioned DynamoDB says
/// 0, and where nothing is limited, −1.
fn limits(
    provisioned: Option<&ProvisionedThroughputDescription>,
    on_demand: Option<&OnDemandThroughput>,
) -> (f64, f64) {
    let first = |candidates: [Option<i64>; 2]| {
        let limit = candidates.into_iter().flatten().find(|units| *units > 0);
        limit.map_or(ON_DEMAND_QUOTA, |units| units as f64)
    };
    (
        first([
            provisioned.and_then(|units| units.read_capacity_units()),
            on_demand.and_then(|most| most.max_read_request_units()),
        ]),
        first([
            provisioned.and_then(|units| units.write_capacity_units()),
            on_demand.and_then(|most| most.max_write_request_units()),
        ]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_what_is_provisioned_or_allowed_or_the_quota() {
        let provisioned = |read, write| {
            let builder = ProvisionedThroughputDescription::builder();
            builder.read_capacity_units(read).write_capacity_units(write).build()
        };
        let most = |read, write| {
            let builder = OnDemandThroughput::builder();
            builder.max_read_request_units(read).max_write_request_units(write).build()
        };
        assert_eq!(limits(Some(&provisioned(5, 7)), None), (5.0, 7.0));
        assert_eq!(limits(Some(&provisioned(0, 0)), Some(&most(100, -1))), (100.0, 40_000.0));
        assert_eq!(limits(None, None), (40_000.0, 40_000.0));
    }
}
