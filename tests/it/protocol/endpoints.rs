//! Several endpoints: together they are the whole result, each does its part, and order is told truthfully.

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use arrow_flight::FlightInfo;
use futures::TryStreamExt;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::info;
use crate::flight::{Client, House, ids, ingest, query, update};

const ROWS: i64 = 400;

/// A table of several files, and a feature group.
async fn filled(house: &House) -> Client {
    let mut client = house.client().await;
    update(&mut client, "CREATE TABLE t (x BIGINT, y VARCHAR)").await;
    for file in 0..5 {
        let from = file * ROWS / 5;
        let rows = format!(
            "INSERT INTO t SELECT value, 'row ' || CAST(value % 7 AS VARCHAR) FROM generate_series({from}, {})",
            from + ROWS / 5 - 1
        );
        update(&mut client, &rows).await;
    }
    update(&mut client, "CREATE TABLE other AS SELECT value AS x, 'o' AS y FROM generate_series(1, 10)")
        .await;
    client
}

/// The rows of each endpoint, as text, sorted.
async fn fetched(client: &mut Client, info: &FlightInfo) -> Vec<Vec<String>> {
    let mut parts = Vec::new();
    for endpoint in &info.endpoint {
        let stream = client.do_get(endpoint.ticket.clone().unwrap()).await.unwrap();
        let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
        parts.push(rows(&batches));
    }
    parts
}

fn rows(batches: &[RecordBatch]) -> Vec<String> {
    let text = |batch: &RecordBatch, row: usize| {
        let cells = batch
            .columns()
            .iter()
            .map(|column| arrow::util::display::array_value_to_string(column, row).unwrap());
        cells.collect::<Vec<_>>().join("|")
    };
    let mut rows: Vec<String> =
        { batches.iter() }.flat_map(|batch| (0..batch.num_rows()).map(move |row| text(batch, row))).collect();
    rows.sort();
    rows
}

/// Queries that may be split, and such as may not.
fn queries() -> impl Strategy<Value = String> {
    let columns = prop::sample::select(vec![
        "*",
        "x",
        "y, x + 1 AS z",
        "x, upper(y) AS y",
        "count(*) AS n",
        "DISTINCT y",
    ]);
    let filters = (0..ROWS, 0..ROWS).prop_flat_map(|(a, b)| {
        prop::sample::select(vec![
            String::new(),
            format!("WHERE x >= {a}"),
            format!("WHERE x BETWEEN {a} AND {b} OR y = 'row 3'"),
            format!("WHERE x = {a}"),
            format!("WHERE x IN (SELECT x FROM other) OR x < {b}"),
            "WHERE y LIKE '%5'".to_owned(),
            "WHERE false".to_owned(),
        ])
    });
    let tables = prop::sample::select(vec![
        "t",
        "(SELECT * FROM t UNION ALL SELECT * FROM other)",
        "(SELECT t.x, o.y FROM t JOIN other o ON t.x = o.x)",
        "(SELECT x, y FROM t WHERE x % 2 = 0)",
    ]);
    (columns, tables, filters)
        .prop_map(|(columns, table, filter)| format!("SELECT {columns} FROM {table} AS q {filter}"))
}

#[test]
fn the_endpoints_together_are_the_whole_result() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (house, mut client) = runtime.block_on(async {
        let house = House::open().await;
        let client = filled(&house).await;
        (house, client)
    });
    let mut raw = client.inner().clone();
    let mut split = 0;
    let (mut runner, strategy) = (TestRunner::new(ProptestConfig::default()), queries());
    for case in 0..150 {
        let (sql, wanted) = (strategy.new_tree(&mut runner).unwrap().current(), 2 + case % 7);
        runtime.block_on(async {
            update(&mut client, "SET endpoints = 1").await;
            let whole = rows(&query(&mut client, &sql).await.unwrap());
            update(&mut client, &format!("SET endpoints = {wanted}")).await;
            let info = info(&mut raw, &sql).await;
            assert!((1..=wanted).contains(&info.endpoint.len()), "{sql}: {}", info.endpoint.len());
            let parts = fetched(&mut client, &info).await;
            split += usize::from(parts.len() > 1);
            assert!(parts.len() == 1 || !info.ordered, "{sql}");
            let mut together: Vec<String> = parts.into_iter().flatten().collect();
            together.sort();
            assert_eq!(together, whole, "{sql} in {wanted}");
        });
    }
    assert!(split > 20, "only {split} queries were split");
    drop(house);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_endpoint_has_its_part_and_stays_as_it_was() {
    let house = House::with(|settings| settings.endpoints = 3).await;
    let mut client = filled(&house).await;
    let mut raw = client.inner().clone();
    let flight = info(&mut raw, "SELECT x FROM t WHERE x >= 0").await;
    assert_eq!(flight.endpoint.len(), 3);
    assert!(!flight.ordered);
    // Rows that come later, on whatever connection, change nothing.
    update(&mut client, "INSERT INTO t SELECT value, 'late' FROM generate_series(1000, 2000)").await;
    let mut elsewhere = house.client().await;
    update(&mut elsewhere, "SET target_partitions = 7").await;
    for client in [&mut client, &mut elsewhere] {
        let parts = fetched(client, &flight).await;
        assert!(parts.iter().all(|part| part.len() >= 80), "each has files of its own");
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), ROWS as usize);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_split_has_one_endpoint_and_tells_its_order() {
    let house = House::with(|settings| settings.endpoints = 4).await;
    let mut client = filled(&house).await;
    update(&mut client, "CREATE TEMP TABLE temp AS SELECT x FROM t").await;
    let mut raw = client.inner().clone();
    for (sql, ordered) in [
        ("SELECT x FROM t ORDER BY x", true),
        ("SELECT y FROM (SELECT * FROM t ORDER BY x LIMIT 10)", true),
        ("SELECT x FROM t LIMIT 100", false),
        ("SELECT x FROM t LIMIT 100 OFFSET 5", false),
        ("SELECT count(*) FROM t", false),
        ("SELECT y, sum(x) FROM t GROUP BY y", false),
        ("SELECT t.x FROM t JOIN other USING (x)", false),
        ("SELECT x, row_number() OVER (ORDER BY x) FROM t", false),
        ("SELECT x FROM temp", false),
        ("SELECT 1", false),
        ("SELECT value FROM generate_series(1, 100000)", false),
        ("EXPLAIN SELECT x FROM t", false),
    ] {
        let info = info(&mut raw, sql).await;
        assert_eq!((info.endpoint.len(), info.ordered), (1, ordered), "{sql}");
    }
    // Parameters that are not bound yet are bound before it is split.
    let mut prepared = client.prepare("SELECT x FROM t WHERE x >= ?".into(), None).await.unwrap();
    prepared.set_parameters(RecordBatch::try_from_iter([("0", ids([10]))]).unwrap()).unwrap();
    let split = prepared.execute().await.unwrap();
    assert_eq!(split.endpoint.len(), 3, "five files, no more than two in each");
    assert_eq!(fetched(&mut client, &split).await.concat().len(), ROWS as usize - 10);
    prepared.set_parameters(RecordBatch::try_from_iter([("0", ids([10, 20]))]).unwrap()).unwrap();
    assert_eq!(prepared.execute().await.unwrap().endpoint.len(), 1, "one execution after the other");
}

#[tokio::test(flavor = "multi_thread")]
async fn locations_are_advertised_where_any_server_can_answer() {
    let uris = ["grpc://a:1", "grpc+tls://b:2"];
    let house = House::with(|settings| settings.advertise = uris.map(str::to_owned).to_vec()).await;
    let mut client = filled(&house).await;
    let mut raw = client.inner().clone();
    let told = |info: &FlightInfo| -> Vec<String> {
        info.endpoint[0].location.iter().map(|location| location.uri.clone()).collect()
    };
    assert_eq!(told(&info(&mut raw, "SELECT x FROM t").await), uris);
    assert!(told(&info(&mut raw, "INSERT INTO t VALUES (1, 'a')").await).is_empty(), "it is done");
    update(&mut client, "CREATE TEMP TABLE temp AS SELECT 1 AS x").await;
    assert!(told(&info(&mut raw, "SELECT x FROM temp").await).is_empty(), "only this session has it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_is_cut_for_its_endpoints() {
    use arrow_flight::sql::{TableExistsOption, TableNotExistOption};
    let house = House::with(|settings| settings.endpoints = 4).await;
    let mut client = house.client().await;
    let command = ingest("big", TableExistsOption::Fail, TableNotExistOption::Create);
    let numbers: Vec<i64> =
        (0..1_000_000_i64).map(|row| row.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64)).collect();
    let sum = numbers.iter().fold(0_i64, |sum, number| sum.wrapping_add(*number));
    let batches = numbers
        .chunks(1 << 17)
        .map(|chunk| Ok(RecordBatch::try_from_iter([("x", ids(chunk.iter().copied()))]).unwrap()));
    let batches: Vec<_> = batches.collect();
    client.execute_ingest(command, futures::stream::iter(batches)).await.unwrap();
    let mut raw = client.inner().clone();
    let flight = info(&mut raw, "SELECT x FROM big").await;
    assert_eq!(flight.endpoint.len(), 4);
    let (mut rows, mut total) = (Vec::new(), 0_i64);
    for endpoint in &flight.endpoint {
        let stream = client.do_get(endpoint.ticket.clone().unwrap()).await.unwrap();
        let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
        rows.push(batches.iter().map(RecordBatch::num_rows).sum::<usize>());
        for batch in &batches {
            let values = batch.column(0).as_primitive::<Int64Type>().values();
            total = values.iter().fold(total, |total, value| total.wrapping_add(*value));
        }
    }
    assert_eq!((rows.iter().sum::<usize>(), total), (1_000_000, sum), "{rows:?}");
}
