//! One schema: what preparing, describing and fetching a query tell of its columns is the same.

use arrow::datatypes::{DataType, Schema};
use arrow_flight::sql::{ActionCreatePreparedStatementRequest, Any, ProstMessageExt};
use arrow_flight::{FlightData, IpcMessage};
use futures::TryStreamExt;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use prost::Message;

use super::{Raw, act, asked};
use crate::flight::{House, update};

/// The schema as each of the four ways tells it.
async fn told(raw: &mut Raw, sql: &str) -> [Schema; 4] {
    let request = ActionCreatePreparedStatementRequest { query: sql.into(), transaction_id: None };
    let (answers, _) = act(raw, "CreatePreparedStatement", request.as_any().encode_to_vec()).await.unwrap();
    let any = Any::decode(answers[0].clone()).unwrap();
    let prepared: arrow_flight::sql::ActionCreatePreparedStatementResult = any.unpack().unwrap().unwrap();
    let schema = |bytes: bytes::Bytes| Schema::try_from(IpcMessage(bytes)).unwrap();
    let by_schema = raw.get_schema(asked(sql)).await.unwrap().into_inner().schema;
    let info = raw.get_flight_info(asked(sql)).await.unwrap().into_inner();
    let described = info.clone().try_decode_schema().unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let stream = raw.do_get(ticket).await.unwrap_or_else(|status| panic!("{sql}: {status}")).into_inner();
    let messages: Vec<FlightData> =
        stream.try_collect().await.unwrap_or_else(|status| panic!("{sql}: {status}"));
    let streamed = Schema::try_from(&messages[0]).unwrap();
    // And the batches are of that schema, or they would not decode under it.
    let data = futures::stream::iter(messages.into_iter().map(Ok));
    let decoded = arrow_flight::decode::FlightRecordBatchStream::new_from_flight_data(data);
    let batches: Vec<_> = decoded.try_collect().await.unwrap();
    assert!(batches.iter().all(|batch| *batch.schema() == streamed), "{sql}");
    [schema(prepared.dataset_schema), schema(by_schema), described, streamed]
}

fn assert_hydrated(sql: &str, schema: &Schema) {
    for field in schema.fields() {
        let leaks = matches!(
            field.data_type(),
            DataType::Utf8View
                | DataType::BinaryView
                | DataType::Dictionary(..)
                | DataType::RunEndEncoded(..)
        );
        assert!(!leaks, "{sql}: {field:?}");
    }
}

/// Expressions over a table's columns, of which each may come out of the plan with another nullability or type than it
/// went in: aggregates answered from statistics, views, dictionaries, constants folded.
fn queries() -> impl Strategy<Value = String> {
    let plain = vec![
        "id",
        "name",
        "price",
        "at",
        "flag",
        "tags",
        "id + 1",
        "left(name, 2)",
        "replace(name, 'a', 'b')",
        "name || '!'",
        "coalesce(name, 'none')",
        "CASE WHEN id > 1 THEN name END",
        "NULL",
        "1",
        "'text'",
        "arrow_cast(name, 'Dictionary(Int32, Utf8)')",
        "arrow_cast(name, 'Utf8View')",
        "date_trunc('day', at)",
        "now()",
        "CAST(id AS DECIMAL(12, 3))",
        "row_number() OVER (ORDER BY id)",
        "tags[1]",
        "id IS NULL",
        "(SELECT max(id) FROM filled)",
        "make_array(id, 2)",
        "struct(id, name)",
        "random()",
    ];
    let aggregates = vec![
        "min(id)",
        "max(name)",
        "count(*)",
        "count(name)",
        "sum(price)",
        "avg(id)",
        "max(at)",
        "min(flag)",
        "array_agg(name)",
        "count(DISTINCT name)",
        "first_value(name)",
        "sum(id)",
        "median(id)",
    ];
    let tables = prop::sample::select(vec!["filled", "empty", "grouped", "scratch"]);
    let filters =
        prop::sample::select(vec!["", "WHERE id > 1", "WHERE false", "WHERE name LIKE 'a%'", "WHERE id = 1"]);
    let endings = prop::sample::select(vec!["", "LIMIT 1", "LIMIT 0", "ORDER BY 1"]);
    let lists = |of: Vec<&'static str>| prop::collection::vec(prop::sample::select(of), 1..4);
    let listed = |expressions: Vec<&str>| {
        { expressions.iter().enumerate() }
            .map(|(place, expression)| format!("{expression} AS c{place}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let select = prop_oneof![
        lists(plain.clone()).prop_map(move |list| (listed(list), "")),
        lists(aggregates.clone()).prop_map(move |list| (listed(list), "")),
        lists(aggregates).prop_map(move |list| (format!("flag AS f, {}", listed(list)), "GROUP BY flag")),
    ];
    (select, tables, filters, endings).prop_map(|((list, group), table, filter, ending)| {
        // Not every type has an order.
        let unordered = ["struct(", "tags", "array", "NULL AS", "arrow_cast"];
        let is_unordered = ending.starts_with("ORDER") && unordered.iter().any(|word| list.contains(word));
        let ending = if is_unordered { "" } else { ending };
        format!("SELECT {list} FROM {table} {filter} {group} {ending}")
    })
}

#[test]
fn every_way_tells_the_same_schema() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let house = runtime.block_on(House::open());
    let mut client = runtime.block_on(house.client());
    let columns =
        "id BIGINT NOT NULL, name VARCHAR, price DECIMAL(10, 2), at TIMESTAMP, flag BOOLEAN, tags VARCHAR[]";
    let group = "CREATE FEATURE GROUP grouped (id BIGINT, at TIMESTAMP, name VARCHAR, price DECIMAL(10, 2), \
                 flag BOOLEAN, tags VARCHAR[], ENTITY KEY (id), EVENT TIME (at))";
    let rows = "(1, 'ab', 1.25, TIMESTAMP '2026-01-01', true, make_array('x')), \
                (2, NULL, NULL, TIMESTAMP '2026-01-02', NULL, NULL)";
    for sql in [
        format!("CREATE TABLE filled ({columns})"),
        format!("CREATE TABLE empty ({columns})"),
        format!("INSERT INTO filled VALUES {rows}"),
        group.to_owned(),
        "INSERT INTO grouped (id, name, price, at, flag, tags) SELECT * FROM filled".to_owned(),
        "CREATE TEMP TABLE scratch AS SELECT * FROM filled".to_owned(),
    ] {
        runtime.block_on(update(&mut client, &sql));
    }
    let mut raw = client.inner().clone();
    let mut runner = TestRunner::new(ProptestConfig::default());
    let strategy = queries();
    for _ in 0..250 {
        let sql = strategy.new_tree(&mut runner).unwrap().current();
        let [prepared, by_schema, described, streamed] = runtime.block_on(told(&mut raw, &sql));
        assert_eq!(prepared, by_schema, "{sql}");
        assert_eq!(prepared, described, "{sql}");
        assert_eq!(prepared, streamed, "{sql}");
        assert_hydrated(&sql, &prepared);
    }
}
