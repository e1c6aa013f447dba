//! What an operator sees and does: health, metrics, what runs; and the manners of a server under load.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow_flight::FlightInfo;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    CommandStatementIngest, ProstMessageExt, TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::{FlightDescriptor, Ticket};
use fletching::clock::ManualClock;
use fletching::{Server, Settings};
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::http::{get as http, metric as value, until};
use crate::support::{START_US, connect, start_server_with};

type Client = FlightSqlServiceClient<Channel>;

/// Never ends by itself, and gives a first batch at once.
const ENDLESS: &str = "SELECT value FROM generate_series(1, 1000000000000)";
/// Gives nothing for as long as there is memory and disk.
const LONG_SORT: &str =
    "SELECT value, -value % 1000003 AS k FROM generate_series(1, 1000000000000) ORDER BY 2";
/// What runs, but for the statement that asks.
const OTHERS: &str =
    "SELECT query_id, kind, state, sql, client, rows FROM system.queries WHERE state <> 'planning'";

struct House {
    server: Server,
    clock: Arc<ManualClock>,
    _data: TempDir,
}

impl House {
    async fn open() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(START_US));
        let server = start_server_with(data.path(), clock.clone(), |settings| {
            settings.memory_limit_bytes = Some(512 << 20);
            change(settings);
        });
        let server = server.await.unwrap();
        Self { server, clock, _data: data }
    }

    async fn client(&self) -> Client {
        connect(&self.server).await
    }

    async fn channel(&self) -> Channel {
        let address = format!("http://{}", self.server.local_addr());
        Channel::from_shared(address).unwrap().connect().await.unwrap()
    }

    /// The status and the text of an answer of the HTTP port.
    async fn http(&self, path: &str) -> (u16, String) {
        http(self.server.http_addr().unwrap(), path).await
    }

    /// The value of a line of the metrics.
    async fn metric(&self, name: &str) -> f64 {
        let (code, text) = self.http("/metrics").await;
        assert_eq!(code, 200, "{text}");
        value(&text, name)
    }

    /// Waits until the metric is what it should be.
    async fn until_metric(&self, name: &str, is: impl Fn(f64) -> bool) {
        until(name, async || is(self.metric(name).await)).await;
    }

    /// Waits until other statements run in these states, and returns their ids.
    async fn until_running(&self, states: &[&str]) -> Vec<String> {
        let mut client = self.client().await;
        let mut ids = Vec::new();
        until(&format!("statements in {states:?}"), async || {
            let rows = query(&mut client, OTHERS).await.unwrap();
            let mut seen = texts(&rows, "state");
            seen.sort();
            ids = texts(&rows, "query_id");
            seen == states
        })
        .await;
        ids
    }
}

async fn ticket(client: &mut Client, sql: &str) -> Ticket {
    let info: FlightInfo = client.execute(sql.to_owned(), None).await.unwrap();
    info.endpoint[0].ticket.clone().unwrap()
}

async fn query(client: &mut Client, sql: &str) -> Result<Vec<RecordBatch>, FlightError> {
    let info = client.execute(sql.to_owned(), None).await?;
    client.do_get(info.endpoint[0].ticket.clone().unwrap()).await?.try_collect().await
}

/// A query that is being read.
async fn begin(client: &mut Client, sql: &str) -> arrow_flight::decode::FlightRecordBatchStream {
    let ticket = ticket(client, sql).await;
    client.do_get(ticket).await.unwrap()
}

fn texts(batches: &[RecordBatch], column: &str) -> Vec<String> {
    let column = |batch: &RecordBatch| batch.column_by_name(column).unwrap().clone();
    batches
        .iter()
        .flat_map(|batch| {
            column(batch).as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

fn number(batches: &[RecordBatch]) -> i64 {
    batches[0].column(0).as_primitive::<Int64Type>().value(0)
}

/// A query that somebody else waits for.
fn waiting(mut client: Client, sql: &'static str) -> JoinHandle<Result<i64, FlightError>> {
    tokio::spawn(async move { query(&mut client, sql).await.map(|rows| number(&rows)) })
}

async fn update(client: &mut Client, sql: &str) -> Result<i64, FlightError> {
    client.execute_update(sql.to_owned(), None).await
}

fn status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("not a status: {other}"),
    }
}

/// How the stream ends, which must not be well.
async fn ended(mut stream: FlightRecordBatchStream) -> Status {
    loop {
        match stream.try_next().await {
            Ok(Some(_)) => {} // what was under way
            Ok(None) => panic!("a stopped result must not look complete"),
            Err(error) => return status(error),
        }
    }
}

fn ingest_of(table: &str) -> CommandStatementIngest {
    let options = TableDefinitionOptions {
        if_not_exist: TableNotExistOption::Create as i32,
        if_exists: TableExistsOption::Fail as i32,
    };
    CommandStatementIngest {
        table_definition_options: Some(options),
        table: table.to_owned(),
        ..CommandStatementIngest::default()
    }
}

fn ids(values: std::ops::Range<i64>) -> RecordBatch {
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    RecordBatch::try_from_iter([("id", ids)]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_follow_what_happens() {
    let house = House::open().await;
    let mut client = house.client().await;
    for sql in [
        "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))",
        "INSERT INTO g VALUES (1, TIMESTAMP '2026-01-30', 7), (2, TIMESTAMP '2026-01-30', 8)",
    ] {
        update(&mut client, sql).await.unwrap();
    }
    client.execute_ingest(ingest_of("t"), stream::iter([Ok(ids(0..1000))])).await.unwrap();
    query(&mut client, "SELECT id FROM t").await.unwrap();
    query(&mut client, "SELECT * FROM nowhere").await.unwrap_err();
    let lookup = r#"{"query": "SELECT v FROM LATEST(g, ?)", "parameters": [1, 2]}"#;
    for _ in 0..5 {
        let raw = client.inner_mut();
        let answer = raw.do_get(Ticket::new(lookup)).await.unwrap().into_inner();
        let messages: Vec<_> = answer.try_collect().await.unwrap();
        assert!(!messages.is_empty());
    }
    client.get_catalogs().await.unwrap();

    let (_, text) = house.http("/metrics").await;
    for (line, expected) in [
        (r#"fletching_queries_total{kind="update",outcome="ok"}"#, 2.0),
        (r#"fletching_queries_total{kind="ingest",outcome="ok"}"#, 1.0),
        // the first of the look-ups was planned
        (r#"fletching_queries_total{kind="query",outcome="ok"}"#, 2.0),
        (r#"fletching_queries_total{kind="lookup",outcome="ok"}"#, 4.0),
        (r#"fletching_queries_total{kind="metadata",outcome="ok"}"#, 1.0),
        (r#"fletching_queries_total{kind="query",outcome="not_found"}"#, 1.0),
        (r#"fletching_query_duration_seconds_count{kind="lookup"}"#, 4.0),
        (r#"fletching_calls_total{method="GetFlightInfo",code="NotFound"}"#, 1.0),
        (r#"fletching_calls_total{method="DoGet",code="OK"}"#, 6.0),
        ("fletching_rows_received_total", 1000.0),
        ("fletching_rows_sent_total", 1000.0 + 5.0 * 2.0),
        ("fletching_calls_in_flight", 0.0),
        ("fletching_connections", 1.0),
        ("fletching_sessions", 1.0),
        ("fletching_online_store_errors_total", 0.0),
        (r#"fletching_queries_running{state="running"}"#, 0.0),
        (concat!(r#"fletching_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""}"#), 1.0),
    ] {
        assert_eq!(value(&text, line), expected, "{line} in\n{text}");
    }
    for more in [
        "fletching_sent_bytes_total",
        "fletching_received_bytes_total",
        "fletching_online_cache_hits_total",
        "fletching_online_cache_misses_total",
        "fletching_online_cache_entries",
        "fletching_online_cache_bytes",
        "fletching_memory_limit_bytes",
        "process_resident_memory_bytes",
    ] {
        assert!(value(&text, more) > 0.0, "{more} in\n{text}");
    }
    drop(client);
    house.until_metric("fletching_connections", |open| open == 0.0).await;
    house.until_metric("fletching_sessions", |open| open == 0.0).await;
    assert_eq!(house.http("/nothing").await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_follows_the_server_from_ready_to_draining() {
    let house = House::open().await;
    assert_eq!(house.http("/health/live").await, (200, "live\n".to_owned()));
    assert_eq!(house.http("/health/ready").await, (200, "ready\nonline store: answers\n".to_owned()));
    let mut health = HealthClient::new(house.channel().await);
    let mut serving = async |service: &str| {
        let request = HealthCheckRequest { service: service.to_owned() };
        health.check(request).await.unwrap().into_inner().status()
    };
    let names = ["", "arrow.flight.protocol.FlightService"];
    for name in names {
        assert_eq!(serving(name).await, ServingStatus::Serving);
    }

    let mut client = house.client().await;
    let running = begin(&mut client, ENDLESS).await;
    let http_addr = house.server.http_addr().unwrap();
    let House { server, _data, .. } = house;
    let stopping = tokio::spawn(server.shutdown());
    until("draining", async || http(http_addr, "/health/ready").await.0 == 503).await;
    assert_eq!(http(http_addr, "/health/live").await.0, 200, "no reason to be killed");
    let (_, why) = http(http_addr, "/health/ready").await;
    assert!(why.starts_with("draining"), "{why}");
    for name in names {
        until("the health service", async || serving(name).await == ServingStatus::NotServing).await;
    }
    drop((running, client));
    stopping.await.unwrap().unwrap();
    assert!(TcpStream::connect(http_addr).await.is_err(), "nobody is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_online_store_that_is_away_is_told_of() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let house = House::with(|settings| {
        settings.online = fletching::OnlineSetting::Redis(url.parse().unwrap());
        settings.online_timeout = Duration::from_millis(300);
    })
    .await;
    let (code, text) = house.http("/health/ready").await;
    assert_eq!(code, 200, "history can be read all the same");
    assert!(text.contains("online store: does not answer"), "{text}");
    assert!(house.metric("fletching_online_store_errors_total").await > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_port_can_be_left_out() {
    let house = House::with(|settings| settings.http_listen = None).await;
    assert_eq!(house.server.http_addr(), None);
    assert_eq!(number(&query(&mut house.client().await, "SELECT 1").await.unwrap()), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_protocol_describes_itself() {
    let house = House::open().await;
    let mut reflection = ServerReflectionClient::new(house.channel().await);
    let mut ask = async |request: MessageRequest| {
        let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
        let mut answers =
            reflection.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
        answers.try_next().await.unwrap().unwrap().message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(services) =
        ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("no list of services")
    };
    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    for name in ["arrow.flight.protocol.FlightService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|found| found == name), "{name} is not in {names:?}");
    }
    for symbol in ["arrow.flight.protocol.FlightService", "arrow.flight.protocol.sql.CommandGetTables"] {
        let found = ask(MessageRequest::FileContainingSymbol(symbol.to_owned())).await;
        assert!(matches!(found, MessageResponse::FileDescriptorResponse(_)), "{symbol}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_seen_and_ended_by_sql() {
    let house = House::open().await;
    let (mut client, mut operator) = (house.client().await, house.client().await);
    let mut stream = begin(&mut client, ENDLESS).await;
    assert!(stream.try_next().await.unwrap().is_some());
    house.clock.advance(1_500_000);

    let all = query(&mut operator, "SELECT * FROM system.queries ORDER BY started_at").await.unwrap();
    assert_eq!(texts(&all, "kind"), ["query", "query"], "the one that asks sees itself");
    assert_eq!(texts(&all, "state"), ["running", "planning"]);
    assert_eq!(texts(&all, "sql")[0], ENDLESS);
    assert!(texts(&all, "client")[0].starts_with("127.0.0.1:"));
    assert!(texts(&all, "user_name").is_empty(), "nobody is known by name");
    let number_of =
        |column: &str| all[0].column_by_name(column).unwrap().as_primitive::<Int64Type>().value(0);
    assert_eq!(number_of("elapsed_ms"), 1500);
    assert!(number_of("rows") >= 8192 && number_of("bytes") >= 8 * 8192);

    let id = texts(&all, "query_id")[0].clone();
    let kill = format!("KILL QUERY '{id}'");
    let prepared = operator.prepare(kill.clone(), None).await.unwrap();
    assert!(prepared.dataset_schema().unwrap().fields().is_empty(), "it is an update");
    assert_eq!(update(&mut operator, &kill).await.unwrap(), 0);
    let ended = ended(stream).await;
    assert_eq!((ended.code(), ended.message()), (Code::Cancelled, "the query was cancelled"));
    house.until_running(&[]).await;
    let gone = status(update(&mut operator, &kill).await.unwrap_err());
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
    let wrong = status(update(&mut operator, "KILL QUERY 'seven'").await.unwrap_err());
    assert_eq!(wrong.code(), Code::InvalidArgument, "{wrong}");
    let count = r#"fletching_queries_total{kind="query",outcome="cancelled"}"#;
    assert_eq!(house.metric(count).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_sort_ends_when_it_is_cancelled_and_lets_its_memory_go() {
    let house = House::open().await;
    let (mut client, mut operator) = (house.client().await, house.client().await);
    let stream = begin(&mut client, LONG_SORT).await;
    house.until_metric("fletching_memory_reserved_bytes", |held| held > 16e6).await;
    let id = &house.until_running(&["running"]).await[0];
    update(&mut operator, &format!("KILL QUERY '{id}'")).await.unwrap();
    assert_eq!(ended(stream).await.code(), Code::Cancelled);
    house.until_running(&[]).await;
    house.until_metric("fletching_memory_reserved_bytes", |held| held == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_with_its_client() {
    let house = House::open().await;
    let mut client = house.client().await;
    let stream = begin(&mut client, LONG_SORT).await;
    house.until_running(&["running"]).await;
    drop((stream, client));
    house.until_running(&[]).await;
    house.until_metric("fletching_memory_reserved_bytes", |held| held == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_at_its_deadline() {
    let house = House::open().await;
    let mut client = house.client().await;
    for sql in [ENDLESS, LONG_SORT] {
        let mut request = Request::new(ticket(&mut client, sql).await);
        request.metadata_mut().insert("grpc-timeout", "2S".parse().unwrap());
        let mut answer = client.inner_mut().do_get(request).await.unwrap().into_inner();
        let ended = loop {
            match answer.try_next().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("a stopped result must not look complete"),
                Err(status) => break status,
            }
        };
        assert_eq!(ended.code(), Code::DeadlineExceeded, "{sql}: {ended}");
        house.until_running(&[]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_ends_at_its_deadline_though_nobody_reads_it() {
    let house = House::open().await;
    let mut client = house.client().await;
    let mut request = Request::new(ticket(&mut client, ENDLESS).await);
    request.metadata_mut().insert("grpc-timeout", "1S".parse().unwrap());
    let unread = client.inner_mut().do_get(request).await.unwrap();
    house.until_running(&[]).await;
    let expired = r#"fletching_calls_total{method="DoGet",code="DeadlineExceeded"}"#;
    house.until_metric(expired, |count| count == 1.0).await;
    drop(unread);
}

/// Each poll of it keeps a core for a while, to compare a batch with ten thousand rows, and gives nothing.
const BUSY: &str = "SELECT count(*) FROM generate_series(1, 10000) a JOIN generate_series(1, 1000000000) b \
                    ON a.value % 1000 + b.value % 1000 > 5000";

#[tokio::test(flavor = "multi_thread")]
async fn plans_that_keep_every_core_keep_nobody_waiting() {
    let cores = std::thread::available_parallelism().unwrap().get();
    let house = House::with(|settings| settings.limits.queries_max = cores + 1).await;
    let mut busy = Vec::new();
    for _ in 0..cores + 1 {
        busy.push(waiting(house.client().await, BUSY));
    }
    let mut operator = house.client().await;
    let ids = house.until_running(&vec!["running"; cores + 1]).await;
    assert_eq!(house.http("/health/live").await.0, 200);
    assert_eq!(number(&query(&mut operator, "SELECT 1").await.unwrap()), 1);
    for id in ids {
        update(&mut operator, &format!("KILL QUERY '{id}'")).await.unwrap();
    }
    for busy in busy {
        assert_eq!(status(busy.await.unwrap().unwrap_err()).code(), Code::Cancelled);
    }
    house.until_running(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ingest_can_be_ended_and_leaves_nothing() {
    let house = House::open().await;
    let (mut client, mut operator) = (house.client().await, house.client().await);
    // rows without end, from a client that is in no hurry
    let (more, rows) = tokio::sync::mpsc::channel(1);
    let rows = stream::unfold(rows, async |mut rows| rows.recv().await.map(|batch| (Ok(batch), rows)));
    let descriptor = FlightDescriptor::new_cmd(ingest_of("t").as_any().encode_to_vec());
    let messages = FlightDataEncoderBuilder::new().with_flight_descriptor(Some(descriptor)).build(rows);
    let messages = messages.map(Result::unwrap);
    let ingest = tokio::spawn(async move { client.inner_mut().do_put(messages).await.map(drop) });
    more.send(ids(0..10)).await.unwrap();
    let id = &house.until_running(&["running"]).await[0];
    until("the rows", async || {
        number(&query(&mut operator, "SELECT rows FROM system.queries WHERE kind = 'ingest'").await.unwrap())
            == 10
    })
    .await;
    update(&mut operator, &format!("KILL QUERY '{id}'")).await.unwrap();
    assert_eq!(ingest.await.unwrap().unwrap_err().code(), Code::Cancelled);
    let missing = query(&mut operator, "SELECT * FROM t").await.unwrap_err();
    assert_eq!(status(missing).code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_wait_for_their_turn_and_the_queue_is_bounded() {
    let house = House::with(|settings| {
        settings.limits.queries_max = 1;
        settings.limits.queries_queued_max = 1;
    })
    .await;
    let mut client = house.client().await;
    for sql in [
        "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))",
        "INSERT INTO g VALUES (1, TIMESTAMP '2026-01-30', 7)",
        "CREATE TABLE t AS SELECT 1 AS x",
    ] {
        update(&mut client, sql).await.unwrap();
    }
    let lookup = "SELECT v FROM LATEST(g, 1)";
    assert_eq!(number(&query(&mut client, lookup).await.unwrap()), 7);

    let running = begin(&mut client, ENDLESS).await;
    let count = "SELECT count(*) FROM t";
    let gone = waiting(house.client().await, count);
    house.until_running(&["queued", "running"]).await;

    let mut other = house.client().await;
    let refused = status(query(&mut other, count).await.unwrap_err());
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("queries_queued_max"), "{refused}");
    let refused = status(update(&mut other, "INSERT INTO t SELECT x + 1 FROM t").await.unwrap_err());
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    // What is quick does not wait: look-ups, constants, rows by value, and what the store says of itself.
    assert_eq!(number(&query(&mut other, lookup).await.unwrap()), 7);
    assert_eq!(number(&query(&mut other, "SELECT 1").await.unwrap()), 1);
    assert_eq!(update(&mut other, "INSERT INTO t VALUES (2)").await.unwrap(), 1);
    query(&mut other, "SHOW FEATURE GROUPS").await.unwrap();
    query(&mut other, "DESCRIBE t").await.unwrap();
    other.get_catalogs().await.unwrap();

    gone.abort(); // its client goes, and with it its place
    house.until_running(&["running"]).await;
    let next = waiting(house.client().await, count);
    house.until_running(&["queued", "running"]).await;
    drop(running);
    assert_eq!(next.await.unwrap().unwrap(), 2);

    // One that waits can be cancelled too.
    let running = begin(&mut client, ENDLESS).await;
    let waits = waiting(house.client().await, count);
    house.until_running(&["queued", "running"]).await;
    let queued = "SELECT query_id FROM system.queries WHERE state = 'queued'";
    let id = texts(&query(&mut other, queued).await.unwrap(), "query_id").remove(0);
    update(&mut other, &format!("KILL QUERY '{id}'")).await.unwrap();
    assert_eq!(status(waits.await.unwrap().unwrap_err()).code(), Code::Cancelled);
    drop(running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_a_turn_ends() {
    let house = House::with(|settings| {
        settings.limits.queries_max = 1;
        settings.limits.queue_timeout = Duration::ZERO;
    })
    .await;
    let mut client = house.client().await;
    let _running = begin(&mut client, ENDLESS).await;
    let late = status(query(&mut client, "SELECT value FROM generate_series(1, 2)").await.unwrap_err());
    assert_eq!(late.code(), Code::Unavailable, "{late}");
    assert!(late.message().contains("queries_max"), "{late}");
}
