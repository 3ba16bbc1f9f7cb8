//! Metric points as they were last received.

use opentelemetry_proto::tonic::metrics::v1::{metric::Data, number_data_point};

use super::attributes::{Attrs, attrs};

/// A data point as it was last received.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricPoint {
    pub name: String,
    pub unit: String,
    pub attributes: Attrs,
    pub resource: Attrs,
    pub value: MetricValue,
}

#[derive(Clone, Debug, PartialEq)]
pub enum MetricValue {
    Sum { value: f64, monotonic: bool },
    Gauge(f64),
    Histogram { count: u64, sum: f64, bounds: Vec<f64>, bucket_counts: Vec<u64> },
}

impl MetricPoint {
    /// The value of a sum or gauge, the count of a histogram.
    pub fn count(&self) -> f64 {
        match &self.value {
            MetricValue::Sum { value, .. } | MetricValue::Gauge(value) => *value,
            MetricValue::Histogram { count, .. } => *count as f64,
        }
    }

    /// Whether the point has these attributes, and maybe others.
    pub fn has(&self, attributes: &[(&str, &str)]) -> bool {
        attributes.iter().all(|(name, value)| {
            self.attributes.get(*name).is_some_and(|attr| attr.to_string() == *value)
        })
    }
}

pub(super) fn values(data: Data) -> Vec<(Attrs, MetricValue)> {
    let number = |value: Option<number_data_point::Value>| match value {
        Some(number_data_point::Value::AsDouble(value)) => value,
        Some(number_data_point::Value::AsInt(value)) => value as f64,
        None => f64::NAN,
    };
    match data {
        Data::Sum(sum) => {
            let monotonic = sum.is_monotonic;
            let value = |point| MetricValue::Sum { value: number(point), monotonic };
            sum.data_points
                .into_iter()
                .map(|point| (attrs(point.attributes), value(point.value)))
                .collect()
        }
        Data::Gauge(gauge) => {
            let value = |point| MetricValue::Gauge(number(point));
            gauge
                .data_points
                .into_iter()
                .map(|point| (attrs(point.attributes), value(point.value)))
                .collect()
        }
        Data::Histogram(histogram) => histogram
            .data_points
            .into_iter()
            .map(|point| {
                let value = MetricValue::Histogram {
                    count: point.count,
                    sum: point.sum.unwrap_or_default(),
                    bounds: point.explicit_bounds,
                    bucket_counts: point.bucket_counts,
                };
                (attrs(point.attributes), value)
            })
            .collect(),
        Data::ExponentialHistogram(_) | Data::Summary(_) => Vec::new(),
    }
}
