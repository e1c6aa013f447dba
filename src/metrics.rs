//! What is counted while it happens, for whoever scrapes: atomics that the rooms move, under the names of Prometheus.
//!
//! The labels that a quick look-up moves are found once, when the server starts. What can be asked for at any time
//! (what runs, what the cache holds, memory) is not kept here but read when it is scraped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::error::ErrorKind;

/// What a statement is to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Returns rows.
    Query,
    /// Returns rows, and is nothing but a look-up that is kept ready.
    Lookup,
    /// Changes data, definitions or the session.
    Update,
    /// Rows in bulk, or a write of a stream.
    Ingest,
    /// Writes one after the other, until their client has no more.
    Stream,
    /// A question of Flight SQL about what exists.
    Metadata,
}

const KINDS: [Kind; 6] =
    [Kind::Query, Kind::Lookup, Kind::Update, Kind::Ingest, Kind::Stream, Kind::Metadata];

impl Kind {
    /// Its name in logs, tables and labels.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Lookup => "lookup",
            Self::Update => "update",
            Self::Ingest => "ingest",
            Self::Stream => "stream",
            Self::Metadata => "metadata",
        }
    }
}

/// The name of an outcome: `ok`, or the kind of the error.
pub(crate) fn outcome(error: Option<ErrorKind>) -> &'static str {
    match error {
        None => "ok",
        Some(ErrorKind::Invalid) => "invalid",
        Some(ErrorKind::Unauthenticated) => "unauthenticated",
        Some(ErrorKind::NotFound) => "not_found",
        Some(ErrorKind::AlreadyExists) => "already_exists",
        Some(ErrorKind::Unsupported) => "unsupported",
        Some(ErrorKind::Conflict) => "conflict",
        Some(ErrorKind::Unavailable) => "unavailable",
        Some(ErrorKind::Exhausted) => "exhausted",
        Some(ErrorKind::Cancelled) => "cancelled",
        Some(ErrorKind::Corrupt) => "corrupt",
        Some(ErrorKind::Internal) => "internal",
    }
}

/// The calls of the wire, and `Other` for those beside Flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Handshake,
    ListFlights,
    GetFlightInfo,
    PollFlightInfo,
    GetSchema,
    DoGet,
    DoPut,
    DoExchange,
    DoAction,
    ListActions,
    Other,
}

const CALLS: [(Call, &str); 11] = [
    (Call::Handshake, "Handshake"),
    (Call::ListFlights, "ListFlights"),
    (Call::GetFlightInfo, "GetFlightInfo"),
    (Call::PollFlightInfo, "PollFlightInfo"),
    (Call::GetSchema, "GetSchema"),
    (Call::DoGet, "DoGet"),
    (Call::DoPut, "DoPut"),
    (Call::DoExchange, "DoExchange"),
    (Call::DoAction, "DoAction"),
    (Call::ListActions, "ListActions"),
    (Call::Other, "other"),
];

impl Call {
    /// The call of that name.
    pub(crate) fn named(name: &str) -> Self {
        CALLS.iter().find(|(_, known)| *known == name).map_or(Self::Other, |(call, _)| *call)
    }
}

/// Everything that is counted, of one server.
#[derive(Debug)]
pub(crate) struct Metrics {
    statements: Events,
    calls: Events,
    /// Calls from their first byte to their last.
    pub(crate) calls_in_flight: Gauge,
    /// Connections of clients.
    pub(crate) connections: Gauge,
    /// Sessions, those kept by cookie among them.
    pub(crate) sessions: Gauge,
    /// Rows of results.
    pub(crate) rows_sent: Counter,
    /// Rows of bulk ingest.
    pub(crate) rows_received: Counter,
    /// Bytes to clients, as they go over the wire.
    pub(crate) bytes_sent: Counter,
    /// Bytes from clients, as they come over the wire.
    pub(crate) bytes_received: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            statements: Events::new(["kind", "outcome"], &KINDS.map(Kind::name), "ok"),
            calls: Events::new(["method", "code"], &CALLS.map(|(_, name)| name), "OK"),
            calls_in_flight: Gauge::default(),
            connections: Gauge::default(),
            sessions: Gauge::default(),
            rows_sent: Counter::default(),
            rows_received: Counter::default(),
            bytes_sent: Counter::default(),
            bytes_received: Counter::default(),
        }
    }
}

impl Metrics {
    /// A statement is over.
    pub(crate) fn statement_ended(&self, kind: Kind, error: Option<ErrorKind>, duration_us: i64) {
        self.statements.ended(kind as usize, outcome(error), duration_us);
    }

    /// A call is over; `code` is the name of its gRPC status, `OK` where all is well.
    pub(crate) fn call_ended(&self, call: Call, code: &'static str, duration_us: i64) {
        self.calls.ended(call as usize, code, duration_us);
    }

    /// Enters everything under the names by which it is scraped.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let (total, seconds) = (self.statements.total.clone(), self.statements.seconds.clone());
        registry.register(
            "fletching_queries",
            "Statements that are over, by what they were and how they ended",
            total,
        );
        registry.register(
            "fletching_query_duration_seconds",
            "How long statements took, from their text to their last row",
            seconds,
        );
        let (total, seconds) = (self.calls.total.clone(), self.calls.seconds.clone());
        registry.register("fletching_calls", "gRPC calls that are over, by method and status", total);
        registry.register("fletching_call_duration_seconds", "How long gRPC calls took", seconds);
        let gauges = [
            ("fletching_calls_in_flight", "gRPC calls that are being answered", &self.calls_in_flight),
            ("fletching_connections", "Open connections of clients", &self.connections),
            ("fletching_sessions", "Sessions of connections and cookies", &self.sessions),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        let counters = [
            ("fletching_rows_sent", "Rows of results", &self.rows_sent),
            ("fletching_rows_received", "Rows of bulk ingest", &self.rows_received),
            ("fletching_sent_bytes", "Bytes to clients of Flight SQL", &self.bytes_sent),
            ("fletching_received_bytes", "Bytes from clients of Flight SQL", &self.bytes_received),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
    }
}

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Things that end, after a while, in one way or another.
#[derive(Debug)]
struct Events {
    /// By what they were and how they ended.
    total: Family<Labels<2>, Counter>,
    /// By what they were.
    seconds: Family<Labels<1>, Histogram>,
    labels: [&'static str; 2],
    /// The outcome that needs no search.
    usual: &'static str,
    known: Vec<Known>,
}

/// One thing that ends, with what its usual end moves.
#[derive(Debug)]
struct Known {
    name: &'static str,
    usual: Counter,
    seconds: Histogram,
}

impl Events {
    fn new(labels: [&'static str; 2], names: &[&'static str], usual: &'static str) -> Self {
        let (total, seconds) =
            (Family::<Labels<2>, Counter>::default(), Family::<Labels<1>, Histogram>::default());
        let known = names.iter().map(|&name| Known {
            name,
            usual: total.get_or_create_owned(&[(labels[0], name), (labels[1], usual)]),
            seconds: seconds.get_or_create_owned(&[(labels[0], name)]),
        });
        let known = known.collect();
        Self { total, seconds, labels, usual, known }
    }

    fn ended(&self, what: usize, how: &'static str, duration_us: i64) {
        let known = &self.known[what];
        if how == self.usual {
            known.usual.inc();
        } else {
            self.total.get_or_create(&[(self.labels[0], known.name), (self.labels[1], how)]).inc();
        }
        known.seconds.observe_us(u64::try_from(duration_us).unwrap_or(0));
    }
}

/// Upper bounds of the buckets, in microseconds: from a look-up in the cache to a training set.
const BOUNDS_US: [u64; 18] = [
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    60_000_000,
    600_000_000,
];

/// Durations by size. That of `prometheus_client` takes a lock to observe; this one does not.
#[derive(Debug, Clone, Default)]
struct Histogram(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    /// One for each bound, and the last for what is beyond.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    fn observe_us(&self, duration_us: u64) {
        let bucket = BOUNDS_US.partition_point(|bound| *bound < duration_us);
        self.0.counts[bucket].fetch_add(1, Relaxed);
        self.0.sum_us.fetch_add(duration_us, Relaxed);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> std::fmt::Result {
        let counts = self.0.counts.each_ref().map(|count| count.load(Relaxed));
        let seconds = |us: u64| us as f64 / 1e6;
        let buckets: Vec<(f64, u64)> = BOUNDS_US.iter().map(|us| seconds(*us)).zip(counts).collect();
        let sum = seconds(self.0.sum_us.load(Relaxed));
        encoder.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use prometheus_client::encoding::prometheus_text::encode;

    fn text(metrics: &Metrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    #[test]
    fn what_ends_is_counted_by_what_it_was_and_how_it_ended() {
        let metrics = Metrics::default();
        metrics.statement_ended(Kind::Lookup, None, 300);
        metrics.statement_ended(Kind::Lookup, None, 100);
        metrics.statement_ended(Kind::Query, Some(ErrorKind::NotFound), 2_000_000);
        metrics.call_ended(Call::named("DoGet"), "OK", 40);
        metrics.call_ended(Call::named("Check"), "Unavailable", 40);
        let text = text(&metrics);
        for line in [
            r#"fletching_queries_total{kind="lookup",outcome="ok"} 2"#,
            r#"fletching_queries_total{kind="query",outcome="not_found"} 1"#,
            r#"fletching_queries_total{kind="update",outcome="ok"} 0"#,
            r#"fletching_query_duration_seconds_bucket{kind="lookup",le="0.0001"} 1"#,
            r#"fletching_query_duration_seconds_bucket{kind="lookup",le="0.0005"} 2"#,
            r#"fletching_query_duration_seconds_bucket{kind="query",le="+Inf"} 1"#,
            r#"fletching_query_duration_seconds_sum{kind="query"} 2.0"#,
            r#"fletching_query_duration_seconds_count{kind="lookup"} 2"#,
            r#"fletching_calls_total{method="DoGet",code="OK"} 1"#,
            r#"fletching_calls_total{method="other",code="Unavailable"} 1"#,
            "fletching_sent_bytes_total 0",
            "# TYPE fletching_connections gauge",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn names_stand_where_their_values_index() {
        assert!(KINDS.iter().enumerate().all(|(i, kind)| *kind as usize == i));
        assert!(CALLS.iter().enumerate().all(|(i, (call, _))| *call as usize == i));
    }

    #[test]
    fn what_takes_longest_is_beyond_all_bounds() {
        let histogram = Histogram::default();
        histogram.observe_us(u64::MAX / 2);
        assert_eq!(histogram.0.counts[BOUNDS_US.len()].load(Relaxed), 1);
    }
}
