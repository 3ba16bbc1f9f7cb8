//! Spans as they were received.

use std::fmt;
use std::time::Duration;

use opentelemetry_proto::tonic::trace::v1::{
    Span as ProtoSpan, span::SpanKind, status::StatusCode,
};

use super::attributes::{Attr, Attrs, attrs};

/// A span as it was received. Ids are lower-case hex.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    pub name: String,
    pub kind: SpanKind,
    pub trace_id: String,
    pub span_id: String,
    /// `None` for the root of a trace.
    pub parent_span_id: Option<String>,
    pub trace_state: String,
    /// Bit 0 is the sampled flag; bits 8 and 9 say whether the parent is remote.
    pub flags: u32,
    pub start_unix_nanos: u64,
    pub end_unix_nanos: u64,
    pub attributes: Attrs,
    pub events: Vec<Event>,
    pub links: Vec<Link>,
    pub is_error: bool,
    pub status_message: String,
    pub resource: Attrs,
    pub scope: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub name: String,
    pub attributes: Attrs,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    pub trace_id: String,
    pub span_id: String,
    pub attributes: Attrs,
}

impl Span {
    pub fn attr(&self, name: &str) -> Option<&Attr> {
        self.attributes.get(name)
    }

    /// A string attribute.
    pub fn str(&self, name: &str) -> Option<&str> {
        match self.attr(name) {
            Some(Attr::Str(value)) => Some(value),
            _ => None,
        }
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attr(name) {
            Some(Attr::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// A boolean attribute.
    pub fn bool(&self, name: &str) -> Option<bool> {
        match self.attr(name) {
            Some(Attr::Bool(value)) => Some(*value),
            _ => None,
        }
    }

    pub fn duration(&self) -> Duration {
        Duration::from_nanos(self.end_unix_nanos.saturating_sub(self.start_unix_nanos))
    }
}

/// The spans received so far, to be searched and walked. Printed as trees by `{}`.
#[derive(Clone, Debug, Default)]
pub struct Spans(pub Vec<Span>);

impl Spans {
    pub fn named(&self, name: &str) -> Vec<&Span> {
        self.0.iter().filter(|span| span.name == name).collect()
    }

    /// The only span of that name.
    #[track_caller]
    pub fn one(&self, name: &str) -> &Span {
        match self.named(name)[..] {
            [span] => span,
            ref found => panic!("expected one span {name:?}, got {}:\n{self}", found.len()),
        }
    }

    pub fn with_attr(&self, name: &str, value: impl Into<Attr>) -> Vec<&Span> {
        let value = value.into();
        self.0.iter().filter(|span| span.attr(name) == Some(&value)).collect()
    }

    pub fn in_trace(&self, trace_id: &str) -> Self {
        Self(self.0.iter().filter(|span| span.trace_id == trace_id).cloned().collect())
    }

    /// The parent, if it was received: a remote parent was not.
    pub fn parent(&self, of: &Span) -> Option<&Span> {
        let parent = of.parent_span_id.as_ref()?;
        self.0.iter().find(|span| span.trace_id == of.trace_id && &span.span_id == parent)
    }

    /// The children, in the order in which they began.
    pub fn children(&self, of: &Span) -> Vec<&Span> {
        let mut children: Vec<_> = self
            .0
            .iter()
            .filter(|span| {
                span.trace_id == of.trace_id && span.parent_span_id.as_ref() == Some(&of.span_id)
            })
            .collect();
        children.sort_by_key(|span| span.start_unix_nanos);
        children
    }

    /// The names from the local root down to `span`.
    pub fn path(&self, span: &Span) -> Vec<&str> {
        let found = self.0.iter().find(|other| *other == span);
        let mut path: Vec<_> = std::iter::successors(found, |span| self.parent(span))
            .map(|span| span.name.as_str())
            .collect();
        path.reverse();
        path
    }

    fn write_tree(&self, f: &mut fmt::Formatter<'_>, span: &Span, depth: usize) -> fmt::Result {
        write!(
            f,
            "{:width$}{} [{}/{}]",
            "",
            span.name,
            span.trace_id,
            span.span_id,
            width = 2 * depth
        )?;
        if span.is_error {
            write!(f, " error={:?}", span.status_message)?;
        }
        for (name, value) in &span.attributes {
            write!(f, " {name}={value}")?;
        }
        writeln!(f)?;
        self.children(span).into_iter().try_for_each(|child| self.write_tree(f, child, depth + 1))
    }
}

impl fmt::Display for Spans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .filter(|span| self.parent(span).is_none())
            .try_for_each(|root| self.write_tree(f, root, 0))
    }
}

pub(super) fn span(proto: ProtoSpan, resource: &Attrs, scope: &str) -> Span {
    let status = proto.status.clone().unwrap_or_default();
    Span {
        kind: proto.kind(),
        trace_id: hex(&proto.trace_id),
        span_id: hex(&proto.span_id),
        parent_span_id: (!proto.parent_span_id.is_empty()).then(|| hex(&proto.parent_span_id)),
        trace_state: proto.trace_state,
        flags: proto.flags,
        start_unix_nanos: proto.start_time_unix_nano,
        end_unix_nanos: proto.end_time_unix_nano,
        attributes: attrs(proto.attributes),
        events: proto
            .events
            .into_iter()
            .map(|event| Event { name: event.name, attributes: attrs(event.attributes) })
            .collect(),
        links: proto
            .links
            .into_iter()
            .map(|link| Link {
                trace_id: hex(&link.trace_id),
                span_id: hex(&link.span_id),
                attributes: attrs(link.attributes),
            })
            .collect(),
        is_error: status.code() == StatusCode::Error,
        status_message: status.message,
        name: proto.name,
        resource: resource.clone(),
        scope: scope.to_owned(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
