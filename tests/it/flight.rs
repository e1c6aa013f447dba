//! The wire, by a Rust client that sees every message: what drivers hide, these tests pin down.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{Int64Type, Schema};
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    Any, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetPrimaryKeys,
    CommandGetTables, CommandGetXdbcTypeInfo, CommandStatementIngest, CommandStatementQuery,
    CommandStatementUpdate, ProstMessageExt, SqlInfo, TableDefinitionOptions, TableExistsOption,
    TableNotExistOption,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, Empty, FlightDescriptor,
    FlightInfo, IpcMessage, Ticket,
};
use fletching::clock::ManualClock;
use fletching::{Server, Settings};
use futures::TryStreamExt;
use prost::Message;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::{START_US, connect, start_server};

pub(crate) type Client = FlightSqlServiceClient<Channel>;

/// A server on a data directory that goes with it.
pub(crate) struct House {
    pub(crate) server: Server,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) _data: TempDir,
}

impl House {
    pub(crate) async fn open() -> Self {
        Self::with(|_| {}).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(START_US));
        let mut settings = Settings::for_data_dir(data.path()).unwrap();
        change(&mut settings);
        let server = Server::start(settings, clock.clone()).await.unwrap();
        Self { server, clock, _data: data }
    }

    pub(crate) async fn client(&self) -> Client {
        connect(&self.server).await
    }

    /// A client below Flight SQL.
    pub(crate) async fn raw(&self) -> FlightServiceClient<Channel> {
        self.client().await.into_inner()
    }
}

pub(crate) async fn fetch(client: &mut Client, info: FlightInfo) -> Result<Vec<RecordBatch>, FlightError> {
    assert_eq!(info.endpoint.len(), 1, "always exactly one endpoint");
    assert!(info.endpoint[0].location.is_empty(), "fetch it where you asked for it");
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let mut stream = client.do_get(ticket).await?;
    let mut batches = Vec::new();
    while let Some(batch) = stream.try_next().await? {
        batches.push(batch);
    }
    let announced = info.try_decode_schema().unwrap();
    assert_eq!(stream.schema().map(|schema| schema.as_ref()), Some(&announced), "as announced");
    Ok(batches)
}

pub(crate) async fn query(client: &mut Client, sql: &str) -> Result<Vec<RecordBatch>, FlightError> {
    let info = client.execute(sql.to_owned(), None).await?;
    fetch(client, info).await
}

/// The first column of a result of BIGINTs.
pub(crate) async fn numbers(client: &mut Client, sql: &str) -> Vec<i64> {
    let batches = query(client, sql).await.unwrap();
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

/// A column of text.
pub(crate) fn texts(batches: &[RecordBatch], column: &str) -> Vec<String> {
    let column = |batch: &RecordBatch| batch.column_by_name(column).unwrap().clone();
    batches
        .iter()
        .flat_map(|batch| {
            column(batch).as_string::<i32>().iter().flatten().map(str::to_owned).collect::<Vec<_>>()
        })
        .collect()
}

pub(crate) fn status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("not a status: {other}"),
    }
}

pub(crate) fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

pub(crate) fn ids(values: impl IntoIterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

pub(crate) async fn update(client: &mut Client, sql: &str) -> i64 {
    client.execute_update(sql.to_owned(), None).await.unwrap()
}

const GROUP: &str = "CREATE FEATURE GROUP purchases (user_id BIGINT, at TIMESTAMP, total DOUBLE COMMENT 'in euros', \
                     ENTITY KEY (user_id), EVENT TIME (at)) COMMENT 'how a user buys'";

#[tokio::test(flavor = "multi_thread")]
async fn an_update_runs_once_whoever_asks_how_often() {
    let house = House::open().await;
    let mut client = house.client().await;
    assert_eq!(update(&mut client, "CREATE TABLE t (x BIGINT)").await, 0);
    let insert = "INSERT INTO t VALUES (1), (2)";

    // Preparing and asking for a schema runs nothing.
    let prepared = client.prepare(insert.to_owned(), None).await.unwrap();
    assert!(prepared.dataset_schema().unwrap().fields().is_empty());
    let command = CommandStatementQuery { query: insert.to_owned(), transaction_id: None };
    let descriptor = FlightDescriptor::new_cmd(command.as_any().encode_to_vec());
    let schema = house.raw().await.get_schema(descriptor).await.unwrap().into_inner();
    assert!(Schema::try_from(IpcMessage(schema.schema)).unwrap().fields().is_empty());
    assert_eq!(numbers(&mut client, "SELECT count(*) FROM t").await, [0]);

    // Asking for the flight runs it; fetching it, or not, or twice, makes no difference.
    let info = client.execute(insert.to_owned(), None).await.unwrap();
    assert_eq!(info.total_records, 2);
    assert_eq!(numbers(&mut client, "SELECT count(*) FROM t").await, [2]);
    for _ in 0..2 {
        assert!(fetch(&mut client, info.clone()).await.unwrap().is_empty());
    }
    assert_eq!(numbers(&mut client, "SELECT count(*) FROM t").await, [2]);

    assert_eq!(update(&mut client, insert).await, 2);
    assert_eq!(numbers(&mut client, "SELECT count(*) FROM t").await, [4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn prepared_statements_carry_their_parameters() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE TABLE t (x BIGINT, y VARCHAR)").await;
    let rows = batch(vec![
        ("a", ids(0..5)),
        ("b", Arc::new(StringArray::from(vec![Some("a"), None, Some("c"), Some("d"), Some("e")]))),
    ]);

    let mut insert = client.prepare("INSERT INTO t VALUES ($1, $2)".into(), None).await.unwrap();
    insert.set_parameters(rows).unwrap();
    assert_eq!(insert.execute_update().await.unwrap(), 5);
    assert_eq!(numbers(&mut client, "SELECT count(*) FROM t").await, [5]);
    assert_eq!(numbers(&mut client, "SELECT x FROM t WHERE y IS NULL").await, [1]);

    // The rows of a bound batch are executed one after another.
    let mut select = client.prepare("SELECT x * 10 AS ten FROM t WHERE x = ?".into(), None).await.unwrap();
    assert_eq!(select.parameter_schema().unwrap().fields().len(), 1);
    let unbound = status(select.execute().await.unwrap_err());
    assert_eq!(unbound.code(), Code::InvalidArgument);
    assert!(unbound.message().contains("1 parameter"), "{unbound}");
    select.set_parameters(batch(vec![("0", ids([4, 2, 99, 2]))])).unwrap();
    let info = select.execute().await.unwrap();

    // The ticket holds everything: it outlives the statement, and any connection can fetch it.
    select.close().await.unwrap();
    let mut elsewhere = house.client().await;
    for client in [&mut client, &mut elsewhere] {
        let batches = fetch(client, info.clone()).await.unwrap();
        let tens: Vec<i64> = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec())
            .collect();
        assert_eq!(tens, [40, 20, 20]);
    }
}

pub(crate) fn ingest(
    table: &str,
    exists: TableExistsOption,
    not_exists: TableNotExistOption,
) -> CommandStatementIngest {
    CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: not_exists as i32,
            if_exists: exists as i32,
        }),
        table: table.to_owned(),
        schema: None,
        catalog: None,
        temporary: false,
        transaction_id: None,
        options: HashMap::new(),
    }
}

pub(crate) async fn put(
    client: &mut Client,
    command: CommandStatementIngest,
    rows: i64,
) -> Result<i64, FlightError> {
    let batches = [Ok(batch(vec![("x", ids(0..rows))])), Ok(batch(vec![("x", ids(0..rows))]))];
    client.execute_ingest(command, futures::stream::iter(batches)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mode_of_ingest() {
    use TableExistsOption as Exists;
    use TableNotExistOption as NotExist;
    let house = House::open().await;
    let mut client = house.client().await;
    let count = "SELECT count(*) FROM t";

    let append = ingest("t", Exists::Append, NotExist::Fail);
    assert_eq!(status(put(&mut client, append.clone(), 3).await.unwrap_err()).code(), Code::NotFound);
    let create = ingest("t", Exists::Fail, NotExist::Create);
    assert_eq!(put(&mut client, create.clone(), 3).await.unwrap(), 6);
    assert_eq!(status(put(&mut client, create, 3).await.unwrap_err()).code(), Code::AlreadyExists);
    assert_eq!(put(&mut client, append, 1).await.unwrap(), 2);
    assert_eq!(numbers(&mut client, count).await, [8]);
    let replace = ingest("t", Exists::Replace, NotExist::Create);
    assert_eq!(put(&mut client, replace, 2).await.unwrap(), 4);
    assert_eq!(numbers(&mut client, count).await, [4]);
    let create_append = ingest("t", Exists::Append, NotExist::Create);
    assert_eq!(put(&mut client, create_append, 1).await.unwrap(), 2);
    assert_eq!(numbers(&mut client, count).await, [6]);

    let elsewhere = CommandStatementIngest {
        catalog: Some("nowhere".into()),
        ..ingest("t", Exists::Append, NotExist::Create)
    };
    assert_eq!(status(put(&mut client, elsewhere, 1).await.unwrap_err()).code(), Code::NotFound);
    let nameless = ingest("", Exists::Append, NotExist::Create);
    assert_eq!(status(put(&mut client, nameless, 1).await.unwrap_err()).code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_tables_live_with_their_connection_or_cookie() {
    let house = House::open().await;
    let mut client = house.client().await;
    let temporary = CommandStatementIngest {
        temporary: true,
        ..ingest("labels", TableExistsOption::Fail, TableNotExistOption::Create)
    };
    put(&mut client, temporary, 2).await.unwrap();
    let count = "SELECT count(*) FROM labels";
    assert_eq!(numbers(&mut client, count).await, [4]);
    assert!(query(&mut house.client().await, count).await.is_err(), "another connection sees nothing of it");

    // A cookie makes one session of many connections, until it lies idle.
    let with_cookie = async |cookie: &str| {
        let mut client = house.client().await;
        client.set_header("cookie", format!("a=b; arrow_flight_session_id={cookie}"));
        client
    };
    update(&mut with_cookie("mine").await, "CREATE TEMP TABLE labels AS SELECT 1 AS x").await;
    house.clock.advance(Duration::from_secs(29 * 60).as_micros() as i64);
    assert_eq!(numbers(&mut with_cookie("mine").await, count).await, [1]);
    assert!(query(&mut with_cookie("yours").await, count).await.is_err());
    house.clock.advance(Duration::from_secs(31 * 60).as_micros() as i64);
    assert!(query(&mut with_cookie("mine").await, count).await.is_err(), "idle for half an hour");
    let bad = query(&mut with_cookie("").await, count).await.unwrap_err();
    assert_eq!(status(bad).code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn cookies_are_bounded() {
    let house = House::with(|settings| settings.limits.sessions_max = 2).await;
    let mut codes = Vec::new();
    for cookie in ["a", "b", "c", "a"] {
        let mut client = house.client().await;
        client.set_header("cookie", format!("arrow_flight_session_id={cookie}"));
        codes.push(query(&mut client, "SELECT 1").await.map_err(|error| status(error).code()).err());
    }
    assert_eq!(codes, [None, None, Some(Code::ResourceExhausted), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_exists_is_described() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, GROUP).await;
    update(&mut client, "CREATE TABLE labels (user_id BIGINT)").await;

    let info = client.get_catalogs().await.unwrap();
    assert_eq!(texts(&fetch(&mut client, info).await.unwrap(), "catalog_name"), ["fletching"]);
    let info = client.get_db_schemas(CommandGetDbSchemas::default()).await.unwrap();
    let schemas = texts(&fetch(&mut client, info).await.unwrap(), "db_schema_name");
    assert!(schemas.contains(&"public".to_owned()) && schemas.is_sorted(), "{schemas:?}");

    let command = CommandGetTables {
        db_schema_filter_pattern: Some("public".into()),
        table_name_filter_pattern: Some("purchas%".into()),
        include_schema: true,
        ..CommandGetTables::default()
    };
    let info = client.get_tables(command).await.unwrap();
    let tables = fetch(&mut client, info).await.unwrap();
    assert_eq!(texts(&tables, "table_name"), ["purchases"]);
    assert_eq!(texts(&tables, "table_type"), ["FEATURE GROUP"]);
    let bytes = tables[0].column_by_name("table_schema").unwrap().as_binary::<i32>().value(0).to_vec();
    let columns = Schema::try_from(IpcMessage(bytes.into())).unwrap();
    let types: Vec<_> =
        columns.fields().iter().map(|field| field.metadata()["ARROW:FLIGHT:SQL:TYPE_NAME"].clone()).collect();
    assert_eq!(types, ["BIGINT", "TIMESTAMP", "DOUBLE"]);
    assert_eq!(columns.field(2).metadata()["ARROW:FLIGHT:SQL:REMARKS"], "in euros");

    let keys = CommandGetPrimaryKeys { table: "purchases".into(), ..CommandGetPrimaryKeys::default() };
    let info = client.get_primary_keys(keys).await.unwrap();
    assert_eq!(texts(&fetch(&mut client, info).await.unwrap(), "column_name"), ["user_id", "at"]);

    let info = client.get_table_types().await.unwrap();
    assert!(texts(&fetch(&mut client, info).await.unwrap(), "table_type").contains(&"TABLE".to_owned()));
    let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerName]).await.unwrap();
    assert_eq!(fetch(&mut client, info).await.unwrap()[0].num_rows(), 1);
    let info = client.get_sql_info(vec![]).await.unwrap();
    assert!(fetch(&mut client, info).await.unwrap()[0].num_rows() > 60);
    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await.unwrap();
    assert!(!fetch(&mut client, info).await.unwrap().is_empty());
    let exported = CommandGetExportedKeys { table: "purchases".into(), ..CommandGetExportedKeys::default() };
    let info = client.get_exported_keys(exported).await.unwrap();
    assert!(fetch(&mut client, info).await.unwrap().is_empty());
    let reference = CommandGetCrossReference::default();
    let info = client.get_cross_reference(reference).await.unwrap();
    assert!(fetch(&mut client, info).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_have_the_code_that_says_whose_they_are() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE TABLE t (x BIGINT)").await;
    for (sql, code, words) in [
        ("SELEC 1", Code::InvalidArgument, "SELEC"),
        ("SELECT nope FROM t", Code::InvalidArgument, "nope"),
        ("SELECT * FROM nope", Code::NotFound, "nope"),
        ("CREATE TABLE t (x BIGINT)", Code::AlreadyExists, "t"),
        ("DROP TABLE nope", Code::NotFound, "nope"),
        ("UPDATE t SET x = 1", Code::Unimplemented, "t"),
        ("SELECT 1 / 0", Code::InvalidArgument, "zero"),
        ("SELECT CAST(value AS TINYINT) FROM generate_series(1, 100000)", Code::InvalidArgument, "int8"),
    ] {
        let status = status(query(&mut client, sql).await.unwrap_err());
        assert_eq!(status.code(), code, "{sql}: {status}");
        assert!(status.message().to_lowercase().contains(&words.to_lowercase()), "{sql}: {status}");
    }
    let begin = client.begin_transaction().await.unwrap_err();
    assert_eq!(status(begin).code(), Code::Unimplemented);
    let in_transaction = client.execute("SELECT 1".into(), Some(b"t1".to_vec().into())).await.unwrap_err();
    assert_eq!(status(in_transaction).code(), Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_bytes_are_the_callers_mistake() {
    let house = House::open().await;
    let mut raw = house.raw().await;
    let select = CommandStatementQuery { query: "SELECT 1".into(), transaction_id: None }.as_any();
    let update = CommandStatementUpdate { query: "SELECT 1".into(), transaction_id: None }.as_any();
    let info =
        raw.get_flight_info(FlightDescriptor::new_cmd(select.encode_to_vec())).await.unwrap().into_inner();
    let ticket = info.endpoint[0].ticket.clone().unwrap().ticket.to_vec();
    let unknown = Any { type_url: "type.googleapis.com/nobody.Knows".into(), value: Default::default() };

    let mut inputs = vec![vec![], vec![0xff; 64], update.encode_to_vec(), unknown.encode_to_vec()];
    for position in 0..ticket.len() {
        inputs.push(ticket[..position].to_vec());
        let mut changed = ticket.clone();
        changed[position] ^= 0x55;
        inputs.push(changed);
    }
    let callers = [Code::InvalidArgument, Code::NotFound, Code::Unimplemented];
    for input in inputs {
        // A changed byte may still make a good ticket; then it is answered, and that is fine too.
        if let Err(status) = raw.do_get(Ticket::new(input.clone())).await {
            assert!(callers.contains(&status.code()), "{input:?}: {status}");
        }
        if let Err(status) = raw.get_flight_info(FlightDescriptor::new_cmd(input.clone())).await {
            assert!(callers.contains(&status.code()), "{input:?}: {status}");
        }
        let action = Action::new("CreatePreparedStatement", input.clone());
        if let Err(status) = raw.do_action(action).await {
            assert!(callers.contains(&status.code()), "{input:?}: {status}");
        }
    }
    let by_path = raw.get_flight_info(FlightDescriptor::new_path(vec!["t".into()])).await.unwrap_err();
    assert_eq!(by_path.code(), Code::InvalidArgument);
    let actions: Vec<_> = raw.list_actions(Empty {}).await.unwrap().into_inner().try_collect().await.unwrap();
    assert!(actions.iter().any(|action| action.r#type == "CancelFlightInfo"), "{actions:?}");
}

async fn cancel(raw: &mut FlightServiceClient<Channel>, info: FlightInfo) -> CancelStatus {
    let body = CancelFlightInfoRequest { info: Some(info) }.encode_to_vec();
    let answers = raw.do_action(Action::new("CancelFlightInfo", body)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.try_collect().await.unwrap();
    CancelFlightInfoResult::decode(answers[0].body.clone()).unwrap().status()
}

/// Never ends by itself, and gives a first batch at once.
const ENDLESS: &str = "SELECT value FROM generate_series(1, 1000000000000)";

#[tokio::test(flavor = "multi_thread")]
async fn a_running_query_can_be_cancelled_from_elsewhere() {
    let house = House::open().await;
    let mut client = house.client().await;
    let mut raw = house.raw().await;
    let info = client.execute(ENDLESS.into(), None).await.unwrap();
    assert_eq!(cancel(&mut raw, info.clone()).await, CancelStatus::NotCancellable, "it does not run yet");

    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert!(stream.try_next().await.unwrap().is_some());
    assert_eq!(cancel(&mut raw, info.clone()).await, CancelStatus::Cancelled);
    let ended = loop {
        match stream.try_next().await {
            Ok(Some(_)) => {} // what was under way
            Ok(None) => panic!("a cancelled result must not look complete"),
            Err(error) => break status(error),
        }
    };
    assert_eq!(ended.code(), Code::Cancelled);
    assert_eq!(cancel(&mut raw, info).await, CancelStatus::NotCancellable, "it does not run any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_lets_results_finish_and_refuses_new_work() {
    let house = House::open().await;
    let mut client = house.client().await;
    let sql = "SELECT value FROM generate_series(1, 3000000)";
    let info = client.execute(sql.into(), None).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let mut rows = stream.try_next().await.unwrap().unwrap().num_rows();

    let House { server, _data, .. } = house;
    let stopping = tokio::spawn(server.shutdown());
    let refused = loop {
        match client.execute("SELECT 1".into(), None).await {
            Ok(_) => tokio::task::yield_now().await, // not yet draining
            Err(error) => break status(error),
        }
    };
    assert_eq!(refused.code(), Code::Unavailable);
    while let Some(batch) = stream.try_next().await.unwrap() {
        rows += batch.num_rows();
    }
    assert_eq!(rows, 3_000_000);
    stopping.await.unwrap().unwrap();
    assert!(client.execute("SELECT 1".into(), None).await.is_err(), "nobody is there");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_finish_in_time_ends_with_an_error() {
    let house = House::with(|settings| settings.drain_timeout = Duration::ZERO).await;
    let mut client = house.client().await;
    let info = client.execute(ENDLESS.into(), None).await.unwrap();
    let mut stream = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert!(stream.try_next().await.unwrap().is_some());
    let House { server, _data, .. } = house;
    let stopping = tokio::spawn(server.shutdown());
    let ended = loop {
        match stream.try_next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a stopped result must not look complete"),
            Err(error) => break status(error),
        }
    };
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    stopping.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_bounded() {
    let house = House::with(|settings| settings.limits.connections_max = 1).await;
    let mut first = house.client().await;
    assert_eq!(numbers(&mut first, "SELECT 1").await, [1]);
    let address = format!("http://{}", house.server.local_addr());
    let endpoint = tonic::transport::Endpoint::from_shared(address).unwrap();
    let second = match endpoint.connect().await {
        Ok(channel) => query(&mut FlightSqlServiceClient::new(channel), "SELECT 1").await.is_err(),
        Err(_) => true,
    };
    assert!(second, "a second connection is not served");
    assert_eq!(numbers(&mut first, "SELECT 1").await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_are_bounded() {
    let house = House::with(|settings| settings.limits.message_bytes_max = 1 << 16).await;
    let mut client = house.client().await;
    let long = format!("SELECT '{}'", "x".repeat(1 << 17));
    let code = status(query(&mut client, &long).await.unwrap_err()).code();
    assert!([Code::OutOfRange, Code::ResourceExhausted].contains(&code), "{code:?}");
    assert_eq!(numbers(&mut client, "SELECT 1").await, [1], "the connection is as good as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_same_data_says_so() {
    let data = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(START_US));
    let first = start_server(data.path(), Arc::clone(&clock)).await.unwrap();
    let error = start_server(data.path(), Arc::clone(&clock)).await.unwrap_err().to_string();
    assert!(error.contains("another") && !error.contains('\n'), "{error}");
    first.shutdown().await.unwrap();
    start_server(data.path(), clock).await.unwrap().shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let house = House::open().await;
    let other = tempfile::tempdir().unwrap();
    let mut settings = Settings::for_data_dir(other.path()).unwrap();
    settings.listen = house.server.local_addr();
    let error = Server::start(settings, house.clock.clone()).await.unwrap_err().to_string();
    assert!(error.contains(&house.server.local_addr().to_string()) && error.contains("--listen"), "{error}");
}
