//! Log records as they were received.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;

use super::attributes::{Attr, Attrs, attr, attrs};

/// A log record as it was received.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    pub body: Option<Attr>,
    pub severity: i32,
    /// Seconds of the Unix epoch; 0: none was given.
    pub time_secs: u64,
    pub attributes: Attrs,
    pub resource: Attrs,
}

impl Log {
    /// An attribute as text; empty if there is none.
    pub fn text(&self, name: &str) -> String {
        self.attributes.get(name).map(ToString::to_string).unwrap_or_default()
    }
}

pub(super) fn logs(request: ExportLogsServiceRequest) -> Vec<Log> {
    let mut logs = Vec::new();
    for of_resource in request.resource_logs {
        let resource = attrs(of_resource.resource.map(|r| r.attributes).unwrap_or_default());
        for record in of_resource.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
            logs.push(Log {
                body: record.body.and_then(|body| body.value).map(attr),
                severity: record.severity_number,
                time_secs: record.time_unix_nano / 1_000_000_000,
                attributes: attrs(record.attributes),
                resource: resource.clone(),
            });
        }
    }
    logs
}
