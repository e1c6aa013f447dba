//! Sessions: options by action and settings by SQL are the same, and a cookie finds them again.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::{Message, Oneof};
use tonic::Code;
use tonic::metadata::MetadataMap;

use super::{Raw, act};
use crate::flight::{Client, House, numbers, query, status, texts, update};

// The messages as the protocol has them; the client that the tests use does not know them.

#[derive(Clone, PartialEq, Message)]
struct OptionValue {
    #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Truth(bool),
    #[prost(sfixed64, tag = "3")]
    Whole(i64),
    #[prost(double, tag = "4")]
    Real(f64),
    #[prost(message, tag = "5")]
    List(Words),
}

#[derive(Clone, PartialEq, Message)]
struct Words {
    #[prost(string, repeated, tag = "1")]
    values: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(btree_map = "string, message", tag = "1")]
    options: BTreeMap<String, OptionValue>,
}

#[derive(Clone, PartialEq, Message)]
struct Refusals {
    #[prost(btree_map = "string, message", tag = "1")]
    errors: BTreeMap<String, Refusal>,
}

#[derive(Clone, PartialEq, Message)]
struct Refusal {
    #[prost(int32, tag = "1")]
    value: i32,
}

const INVALID_NAME: i32 = 1;
const INVALID_VALUE: i32 = 2;

fn text(value: &str) -> Option<Value> {
    Some(Value::Text(value.into()))
}

/// Sets options; returns what was refused and why, and the headers of the answer.
async fn set(raw: &mut Raw, options: &[(&str, Option<Value>)]) -> (Vec<(String, i32)>, MetadataMap) {
    let option =
        |(name, value): &(&str, Option<Value>)| ((*name).to_owned(), OptionValue { value: value.clone() });
    let request = Options { options: options.iter().map(option).collect() };
    let (answers, headers) = act(raw, "SetSessionOptions", request.encode_to_vec()).await.unwrap();
    let refused = Refusals::decode(answers[0].clone()).unwrap().errors;
    (refused.into_iter().map(|(name, refusal)| (name, refusal.value)).collect(), headers)
}

async fn get(raw: &mut Raw, name: &str) -> Option<Value> {
    let (answers, _) = act(raw, "GetSessionOptions", Vec::new()).await.unwrap();
    let options = Options::decode(answers[0].clone()).unwrap().options;
    options.get(name).unwrap_or_else(|| panic!("{name} among {options:?}")).value.clone()
}

async fn shown(client: &mut Client, name: &str) -> String {
    texts(&query(client, &format!("SHOW {name}")).await.unwrap(), "value").remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn options_and_settings_are_the_same() {
    let house = House::open().await;
    let mut client = house.client().await;
    let mut raw: Raw = client.inner().clone();
    update(&mut client, "CREATE SCHEMA shop").await;
    let cases = [
        ("catalog", text("fletching"), "datafusion.catalog.default_catalog", text("fletching")),
        ("schema", text("shop"), "datafusion.catalog.default_schema", text("shop")),
        ("time_zone", text("+02:00"), "datafusion.execution.time_zone", text("+02:00")),
        ("batch_size", Some(Value::Whole(100)), "datafusion.execution.batch_size", Some(Value::Whole(100))),
        ("target_partitions", text("3"), "datafusion.execution.target_partitions", Some(Value::Whole(3))),
        ("asof_strategy", text("files"), "fletching.asof_strategy", text("files")),
        ("endpoints", Some(Value::Real(4.0)), "fletching.endpoints", Some(Value::Whole(4))),
        ("rows_max", Some(Value::Whole(7)), "fletching.rows_max", Some(Value::Whole(7))),
        ("memory_limit", text("32MiB"), "fletching.memory_limit", Some(Value::Whole(32 << 20))),
        ("idempotency_key", text("job-7"), "fletching.idempotency_key", text("job-7")),
    ];
    for (name, value, long_name, expected) in cases {
        let before = get(&mut raw, name).await;
        assert!(set(&mut raw, &[(name, value)]).await.0.is_empty(), "{name}");
        assert_eq!(get(&mut raw, name).await, expected, "{name}");
        let expected = match expected.unwrap() {
            Value::Text(text) => text,
            Value::Whole(number) => number.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(shown(&mut client, name).await, expected, "{name}");
        assert_eq!(shown(&mut client, long_name).await, expected, "{long_name}");
        // An option without a value is back to what it was, and so is a setting that is reset.
        assert!(set(&mut raw, &[(name, None)]).await.0.is_empty(), "{name}");
        assert_eq!(get(&mut raw, name).await, before, "{name}");
        update(&mut client, &format!("SET {name} = '{expected}'")).await;
        assert_eq!(shown(&mut client, long_name).await, expected, "{name}");
        update(&mut client, &format!("RESET {long_name}")).await;
        assert_eq!(get(&mut raw, name).await, before, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_option_is_refused_by_itself() {
    let house = House::open().await;
    let mut raw = house.raw().await;
    let words = Some(Value::List(Words { values: vec!["a".into()] }));
    let (refused, _) = set(
        &mut raw,
        &[
            ("nonsense", text("x")),
            ("catalog", text("elsewhere")),
            ("schema", text("nowhere")),
            ("time_zone", text("nonsense")),
            ("batch_size", Some(Value::Truth(true))),
            ("rows_max", words),
            ("endpoints", Some(Value::Whole(2))),
        ],
    )
    .await;
    let expected = [
        ("batch_size", INVALID_VALUE),
        ("catalog", INVALID_VALUE),
        ("nonsense", INVALID_NAME),
        ("rows_max", INVALID_VALUE),
        ("schema", INVALID_VALUE),
        ("time_zone", INVALID_VALUE),
    ];
    assert_eq!(refused, expected.map(|(name, why)| (name.to_owned(), why)));
    assert_eq!(get(&mut raw, "endpoints").await, Some(Value::Whole(2)), "the good one is set");
    assert_eq!(get(&mut raw, "schema").await, text("public"), "the bad one is as before");

    let mut client = house.client().await;
    for (sql, code, words) in [
        ("SET nonsense = 1", Code::InvalidArgument, "no setting 'nonsense': there are catalog, schema"),
        ("RESET nonsense", Code::InvalidArgument, "no setting 'nonsense'"),
        ("SHOW nonsense", Code::InvalidArgument, "nonsense"),
        ("SET schema = nowhere", Code::NotFound, "schema 'nowhere' does not exist"),
        ("USE nowhere", Code::NotFound, "schema 'nowhere' does not exist"),
        ("USE elsewhere.public", Code::NotFound, "catalog 'elsewhere' does not exist"),
        ("SET datafusion.optimizer.max_passes = 1", Code::Unimplemented, "cannot be changed"),
        ("SET endpoints = 1000", Code::InvalidArgument, "a number from 1 to 64"),
        ("SET memory_limit = '1MB'", Code::InvalidArgument, "at least 16MiB"),
        ("SET idempotency_key = 'a b'", Code::InvalidArgument, "an idempotency key is 1 to 128 letters"),
    ] {
        let status = status(query(&mut client, sql).await.unwrap_err());
        assert_eq!(status.code(), code, "{sql}: {status}");
        assert!(status.message().contains(words), "{sql}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_without_a_schema_are_found_in_the_current_one() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE SCHEMA shop").await;
    update(&mut client, "CREATE TABLE t AS SELECT 1 AS x").await;
    for enter in
        ["USE shop", "USE SCHEMA shop", "USE fletching.shop", "SET schema = shop", "SET search_path TO shop"]
    {
        update(&mut client, enter).await;
        update(&mut client, "CREATE TABLE t AS SELECT 2 AS x").await;
        update(&mut client, "INSERT INTO t VALUES (3)").await;
        assert_eq!(numbers(&mut client, "SELECT sum(x) FROM t").await, [5], "{enter}");
        assert_eq!(numbers(&mut client, "SELECT x FROM public.t").await, [1], "{enter}");
        assert_eq!(
            numbers(&mut client, "SELECT x FROM public.t WHERE x IN (SELECT 1)").await,
            [1],
            "{enter}"
        );
        assert_eq!(query(&mut client, "DESCRIBE t").await.unwrap()[0].num_rows(), 1, "{enter}");
        // A temporary table stands in front of both.
        update(&mut client, "CREATE TEMP TABLE t AS SELECT 7 AS x").await;
        assert_eq!(numbers(&mut client, "SELECT x FROM t").await, [7], "{enter}");
        update(&mut client, "DROP TABLE t").await;
        update(&mut client, "DROP TABLE t").await;
        assert_eq!(status(query(&mut client, "SELECT x FROM t").await.unwrap_err()).code(), Code::NotFound);
        update(&mut client, "USE fletching").await; // the catalog: nothing changes
        update(&mut client, "USE public").await;
        assert_eq!(numbers(&mut client, "SELECT x FROM t").await, [1], "{enter}");
    }
    update(&mut client, "USE system").await;
    let read_only = status(query(&mut client, "INSERT INTO features VALUES (1)").await.unwrap_err());
    assert!([Code::InvalidArgument, Code::Unimplemented].contains(&read_only.code()), "{read_only}");
}

#[tokio::test(flavor = "multi_thread")]
async fn look_ups_kept_ready_are_those_of_the_current_schema() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE SCHEMA shop").await;
    for (schema, total) in [("public", 1), ("shop", 2)] {
        update(
            &mut client,
            &format!("CREATE FEATURE GROUP {schema}.g (id BIGINT, at TIMESTAMP, n BIGINT, ENTITY KEY (id), EVENT TIME (at))"),
        )
        .await;
        update(&mut client, &format!("INSERT INTO {schema}.g VALUES (7, TIMESTAMP '2026-01-01', {total})"))
            .await;
    }
    for (schema, total) in [("public", 1), ("shop", 2), ("public", 1), ("shop", 2)] {
        update(&mut client, &format!("USE {schema}")).await;
        for _ in 0..2 {
            assert_eq!(numbers(&mut client, "SELECT n FROM LATEST(g, 7)").await, [total], "{schema}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_session_end_a_query_with_an_error() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "SET rows_max = 10").await;
    let series = |rows| format!("SELECT value FROM generate_series(1, {rows})");
    assert_eq!(numbers(&mut client, &series(10)).await.len(), 10);
    let more = status(query(&mut client, &series(11)).await.unwrap_err());
    assert_eq!(more.code(), Code::ResourceExhausted);
    assert!(more.message().contains("rows_max"), "{more}");
    update(&mut client, "SET rows_max = 0").await;
    assert_eq!(numbers(&mut client, &series(11)).await.len(), 11);

    update(&mut client, "SET memory_limit = '16MiB'").await;
    let side = "(SELECT value AS x FROM generate_series(1, 3000000))";
    let hungry = format!("SELECT count(*) FROM {side} a JOIN {side} b USING (x)");
    let hungry = status(query(&mut client, &hungry).await.unwrap_err());
    assert_eq!(hungry.code(), Code::ResourceExhausted, "{hungry}");
    assert!(hungry.message().contains("memory_limit of this session"), "{hungry}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_finds_the_session_again() {
    let house = House::open().await;
    let mut client = house.client().await;
    let mut raw: Raw = client.inner().clone();
    update(&mut client, "CREATE SCHEMA shop").await;
    let (_, headers) = set(&mut raw, &[("schema", text("shop"))]).await;
    let cookie = headers.get("set-cookie").unwrap().to_str().unwrap().to_owned();
    assert!(cookie.starts_with("arrow_flight_session_id=") && cookie.len() > 50, "{cookie}");
    let (_, again) = set(&mut raw, &[("endpoints", text("2"))]).await;
    assert_eq!(again.get("set-cookie").unwrap().to_str().unwrap(), cookie, "one session has one cookie");

    // The connection that set the option needs no cookie; any other connection finds the session by it.
    assert_eq!(shown(&mut client, "schema").await, "shop");
    update(&mut client, "CREATE TEMP TABLE mine AS SELECT 5 AS x").await;
    let mut elsewhere = house.client().await;
    elsewhere.set_header("cookie", &cookie);
    assert_eq!(shown(&mut elsewhere, "schema").await, "shop");
    assert_eq!(numbers(&mut elsewhere, "SELECT x FROM mine").await, [5]);
    drop((client, raw));
    house.clock.advance(Duration::from_secs(60).as_micros() as i64);
    assert_eq!(numbers(&mut elsewhere, "SELECT x FROM mine").await, [5], "it outlives its first connection");
    assert_eq!(
        shown(&mut house.client().await, "schema").await,
        "public",
        "without the cookie it is not found"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_session_ends_it() {
    let house = House::open().await;
    let mut client = house.client().await;
    let mut raw: Raw = client.inner().clone();
    update(&mut client, "CREATE TEMP TABLE mine AS SELECT 5 AS x").await;
    set(&mut raw, &[("time_zone", text("+01:00"))]).await;
    let (answers, headers) = act(&mut raw, "CloseSession", Vec::new()).await.unwrap();
    assert_eq!(answers[0].as_ref(), [0x08, 0x01], "CLOSED");
    let forget = headers.get("set-cookie").unwrap().to_str().unwrap();
    assert!(forget.starts_with("arrow_flight_session_id=;") && forget.contains("Max-Age=0"), "{forget}");
    assert_eq!(get(&mut raw, "time_zone").await, text("UTC"), "the next call is in a new session");
    assert_eq!(status(query(&mut client, "SELECT x FROM mine").await.unwrap_err()).code(), Code::NotFound);
}
