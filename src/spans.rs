//! Spans for OpenTelemetry: one for each call, from its first byte to its last, and within it one for each statement.
//!
//! They have a target of their own, which the log leaves out. Where no collector is configured nobody wants them, and
//! they cost next to nothing.

use std::net::SocketAddr;

use opentelemetry::global;
use opentelemetry::propagation::Extractor;
use tracing::field::{self, Empty};
use tracing::{Metadata, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::error::ErrorKind;
use crate::metrics::{Kind, outcome};

/// The target of all spans.
const TARGET: &str = "fletching::span";

/// Whether it is one of these spans, or an event in one.
pub(crate) fn are(metadata: &Metadata<'_>) -> bool {
    metadata.target() == TARGET
}

/// A call to `path`, which is a service and a method; within the trace that its headers name, if they do.
pub(crate) fn call(path: &str, client: Option<SocketAddr>, headers: &dyn Extractor) -> Span {
    let (service, method) = path.trim_start_matches('/').rsplit_once('/').unwrap_or_default();
    let span = tracing::info_span!(
        target: TARGET,
        parent: None,
        "call",
        otel.name = path.trim_start_matches('/'),
        otel.kind = "server",
        otel.status_code = Empty,
        rpc.system = "grpc",
        rpc.service = service,
        rpc.method = method,
        rpc.grpc.status_code = Empty,
        client.address = client.map(field::display),
    );
    if !span.is_disabled() {
        let parent = global::get_text_map_propagator(|propagator| propagator.extract(headers));
        // It fails where no collector is configured, and then the span is disabled.
        let _ = span.set_parent(parent);
    }
    span
}

/// The call ended with this code; `is_failure` where that is the server's.
pub(crate) fn call_ended(span: &Span, code: i32, is_failure: bool) {
    span.record("rpc.grpc.status_code", code);
    if is_failure {
        span.record("otel.status_code", "ERROR");
    }
}

/// A statement, within the call that brought it.
pub(crate) fn statement(kind: Kind, sql: &str, user: Option<&str>) -> Span {
    tracing::info_span!(
        target: TARGET,
        "statement",
        otel.name = kind.name(),
        otel.status_code = Empty,
        otel.status_description = Empty,
        db.system.name = "fletching",
        db.operation.name = kind.name(),
        db.query.text = sql,
        db.response.returned_rows = Empty,
        user.name = user,
        error.r#type = Empty,
    )
}

/// The statement is in this state from now on.
pub(crate) fn statement_is(span: &Span, state: &str) {
    span.in_scope(|| tracing::info!(target: TARGET, "{state}"));
}

/// The statement ended.
pub(crate) fn statement_ended(span: &Span, rows: u64, error: Option<(ErrorKind, &str)>) {
    if span.is_disabled() {
        return;
    }
    span.record("db.response.returned_rows", rows);
    if let Some((kind, message)) = error {
        span.record("error.type", outcome(Some(kind)));
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", message);
    }
}
