//! Attributes of spans, metrics and resources.

use std::collections::BTreeMap;
use std::fmt;

use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value as ProtoValue};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    Str(String),
    Int(i64),
    Float(f64),
    Bool(bool),
    /// Arrays, maps and bytes, in their debug form.
    Other(String),
}

impl From<&str> for Attr {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}

impl From<i64> for Attr {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<bool> for Attr {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Str(value) | Self::Other(value) => value.fmt(f),
            Self::Int(value) => value.fmt(f),
            Self::Float(value) => value.fmt(f),
            Self::Bool(value) => value.fmt(f),
        }
    }
}

/// Attributes by name.
pub type Attrs = BTreeMap<String, Attr>;

pub(super) fn attrs(attributes: Vec<KeyValue>) -> Attrs {
    attributes
        .into_iter()
        .filter_map(|attribute| Some((attribute.key, attr(attribute.value?.value?))))
        .collect()
}

pub(super) fn attr(value: ProtoValue) -> Attr {
    match value {
        ProtoValue::StringValue(value) => Attr::Str(value),
        ProtoValue::IntValue(value) => Attr::Int(value),
        ProtoValue::DoubleValue(value) => Attr::Float(value),
        ProtoValue::BoolValue(value) => Attr::Bool(value),
        other => Attr::Other(format!("{other:?}")),
    }
}
