//! The strategies, forced one by one, over a feature group in sorted files, against the oracle and against each other.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use datafusion::arrow::array::{Float64Array, Int64Array, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::compute::cast;
use datafusion::execution::memory_pool::{FairSpillPool, MemoryPool, UnboundedMemoryPool};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use super::oracle::{Case, case};
use super::*;
use crate::clock::ManualClock;
use crate::offline::{IcebergTable, OfflineStore, TableSpec, storage_schema};

const STRATEGIES: [&str; 3] = ["auto", "files", "partitioned_merge"];

async fn store(dir: &Path) -> Arc<OfflineStore> {
    let clock = Arc::new(ManualClock::new(0));
    Arc::new(OfflineStore::open(&dir.join("catalog.db"), &dir.join("warehouse"), clock).await.unwrap())
}

/// A table in sorted files, from one write for each batch.
async fn stored(
    store: &Arc<OfflineStore>,
    sort_columns: &[&str],
    writes: Vec<RecordBatch>,
    empty: &RecordBatch,
) -> Arc<IcebergTable> {
    let memory: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
    let name = TableName::new("public", "f");
    let spec = TableSpec {
        sort_columns: sort_columns.iter().map(|name| (*name).to_owned()).collect(),
        ..TableSpec::plain(name.clone(), storage_schema(&empty.schema()).unwrap())
    };
    store.create_schema("public").await.unwrap();
    store.create(&spec, None, &memory).await.unwrap();
    let mut table = store.load(&name).await.unwrap().unwrap();
    for write in writes {
        let columns = { write.columns().iter().zip(spec.schema.fields()) }
            .map(|(column, field)| cast(column, field.data_type()).unwrap())
            .collect();
        let write = RecordBatch::try_new(Arc::clone(&spec.schema), columns).unwrap();
        let rows = futures::stream::iter([Ok(write)]);
        let rows = Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&spec.schema), rows));
        table = store.append(&table, rows, HashMap::new(), &memory).await.unwrap().0;
    }
    Arc::new(IcebergTable::current(Arc::clone(store), table))
}

async fn check_stored(case: Case) -> Result<(), TestCaseError> {
    let case = case.stored();
    let dir = tempfile::tempdir().unwrap();
    let features = case.features();
    let ingested_at = case.ingested_at();
    let mut writes = Vec::new();
    let mut start = 0;
    while start < ingested_at.len() {
        let length = ingested_at[start..].iter().take_while(|at| **at == ingested_at[start]).count();
        writes.push(features.slice(start, length));
        start += length;
    }
    let keys = if case.keys == 2 { vec!["number", "word"] } else { vec!["number"] };
    let order = [keys.as_slice(), &["ts", "_ingested_at", "_sequence"]].concat();
    let history = stored(&store(dir.path()).await, &order, writes, &features).await;
    for strategy in STRATEGIES {
        if strategy == "files" && case.keys == 0 {
            continue;
        }
        let context = context(case.partitions, case.batch_size);
        run(&context, &format!("SET fletching.asof_strategy = '{strategy}'")).await.unwrap();
        let schema = datafusion::catalog::TableProvider::schema(history.as_ref());
        let group = case.definition().over(&schema, Arc::clone(&history) as _);
        case.check(&case.results_from(&context, group).await)?;
    }
    Ok(())
}

/// A plain table in files as they come, NULLs and all: ties may go either way.
async fn check_unsorted(case: Case) -> Result<(), TestCaseError> {
    let case = case.plain();
    let dir = tempfile::tempdir().unwrap();
    let features = case.features().project(&[0, 1, 2, 3, 4]).unwrap();
    let writes = (0..features.num_rows())
        .step_by(7)
        .map(|start| features.slice(start, 7.min(features.num_rows() - start)));
    let table = stored(&store(dir.path()).await, &[], writes.collect(), &features).await;
    let strategies: &[&str] = if case.keys == 0 { &["auto"] } else { &["files", "partitioned_merge"] };
    for strategy in strategies {
        let context = context(case.partitions, case.batch_size);
        run(&context, &format!("SET fletching.asof_strategy = '{strategy}'")).await.unwrap();
        case.check(&case.results_from(&context, Arc::clone(&table) as _).await)?;
    }
    Ok(())
}

#[test]
fn unsorted_files_equal_the_oracle() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: 100, failure_persistence: None, ..Config::default() });
    if let Err(error) = runner.run(&case(), |case| runtime.block_on(check_unsorted(case))) {
        panic!("{error}");
    }
}

#[test]
fn every_strategy_equals_the_oracle() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: 150, failure_persistence: None, ..Config::default() });
    if let Err(error) = runner.run(&case(), |case| runtime.block_on(check_stored(case))) {
        panic!("{error}");
    }
}

/// Deterministic numbers that look random.
fn scattered(index: usize, below: i64) -> i64 {
    let mixed = (index as u64).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20).rem_euclid(below.cast_unsigned()) as i64
}

const ENTITIES: i64 = 700;
const SPAN_US: i64 = 40 * 86_400_000_000;

fn history(rows: usize, ingested_at: i64) -> RecordBatch {
    let at = |row: usize| row + ingested_at as usize * 1_000_003;
    let column = |f: &dyn Fn(usize) -> i64| Int64Array::from_iter_values((0..rows).map(f));
    let value =
        |row: usize| (scattered(at(row), 5) > 0).then(|| scattered(at(row) * 3, 100_000) as f64 / 4.0);
    batch(vec![
        ("number", Arc::new(column(&|row| scattered(at(row), ENTITIES)))),
        (
            "ts",
            Arc::new(TimestampMicrosecondArray::from_iter_values(
                (0..rows).map(|row| scattered(at(row) * 7, SPAN_US / 60_000_000) * 60_000_000),
            )),
        ),
        ("value", Arc::new(Float64Array::from_iter((0..rows).map(value)))),
        (
            "word",
            Arc::new(StringArray::from_iter_values(
                (0..rows).map(|row| format!("w{}", scattered(at(row), 9))),
            )),
        ),
        ("_ingested_at", cast(&column(&|_| ingested_at), &micros(Some("UTC"))).unwrap()),
        ("_sequence", Arc::new(column(&|row| row as i64))),
    ])
}

fn labels(rows: usize) -> RecordBatch {
    batch(vec![
        ("id", Arc::new(Int64Array::from_iter_values(0..rows as i64))),
        (
            "number",
            Arc::new(Int64Array::from_iter_values((0..rows).map(|row| scattered(row * 11, ENTITIES + 20)))),
        ),
        (
            "ts",
            Arc::new(TimestampMicrosecondArray::from_iter_values(
                (0..rows).map(|row| scattered(row * 13, SPAN_US)),
            )),
        ),
    ])
}

/// The answer under a strategy and a memory limit, and the plan with its metrics.
async fn answer(
    strategy: &str,
    runtime: Arc<RuntimeEnv>,
    group: &Arc<FeatureGroupTable>,
    labels: &RecordBatch,
    sql: &str,
) -> (String, String) {
    let config = SessionConfig::new()
        .with_target_partitions(2)
        .with_batch_size(1024)
        .with_sort_spill_reservation_bytes(100_000);
    let builder = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(runtime)
        .with_default_features()
        .with_query_planner(Arc::new(Planner));
    let context = SessionContext::new_with_state(install(builder).build());
    let parts =
        (0..8).map(|part| labels.slice(part * labels.num_rows() / 8, labels.num_rows() / 8)).collect();
    context.register_table("l", Arc::new(MemTable::try_new(labels.schema(), vec![parts]).unwrap())).unwrap();
    context.register_table("f", Arc::clone(group) as _).unwrap();
    run(&context, &format!("SET fletching.asof_strategy = '{strategy}'")).await.unwrap();
    let rows = text(&context, sql).await;
    (rows, text(&context, &format!("EXPLAIN ANALYZE {sql}")).await)
}

fn group(history: &Arc<IcebergTable>, ttl: Option<u64>) -> Arc<FeatureGroupTable> {
    let schema = datafusion::catalog::TableProvider::schema(history.as_ref());
    let ttl = ttl.map(|days| Duration::from_secs(days * 86_400));
    let defaults = vec![(2, ScalarValue::Float64(Some(-1.0)))];
    Group { name: "f", keys: vec![0], event_time: 1, ttl, defaults }.over(&schema, Arc::clone(history) as _)
}

async fn written(dir: &Path) -> Arc<IcebergTable> {
    let writes: Vec<RecordBatch> = (1..=3).map(|at| history(20_000, at)).collect();
    let empty = writes[0].slice(0, 0);
    stored(&store(dir).await, &["number", "ts", "_ingested_at", "_sequence"], writes, &empty).await
}

fn bounded(bytes: usize) -> Arc<RuntimeEnv> {
    let pool = Arc::new(FairSpillPool::new(bytes));
    RuntimeEnvBuilder::new().with_memory_pool(pool).build_arc().unwrap()
}

/// The number after `name=` in a plan with metrics; thousands are written as K.
fn metric(plan: &str, name: &str) -> f64 {
    let (_, rest) = plan.split_once(&format!("{name}=")).unwrap_or_else(|| panic!("no {name} in {plan}"));
    let text: String = rest.chars().take_while(|c| !",]|".contains(*c)).collect();
    let mut parts = text.split_whitespace();
    let number: f64 = parts.next().unwrap().parse().unwrap();
    number
        * match parts.next() {
            Some("K") => 1e3,
            Some("M") => 1e6,
            _ => 1.0,
        }
}

const CHECK: &str = "SELECT count(*), sum(l.id), sum(f.value), count(f.value), max(f.word), count(DISTINCT f.ts), \
    sum(CAST(l.ts AS BIGINT) - CAST(f.ts AS BIGINT)) \
    FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) ON l.number = f.number";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strategies_agree_in_passes_and_across_spill() {
    let dir = tempfile::tempdir().unwrap();
    let table = group(&written(dir.path()).await, None);
    let labels = labels(60_000);
    let (expected, plan) = answer("files", Arc::new(RuntimeEnv::default()), &table, &labels, CHECK).await;
    assert!(plan.contains("strategy=sorted files"), "{plan}");
    assert_eq!(metric(&plan, "passes"), 1.0, "{plan}");
    assert_eq!(metric(&plan, "labels"), 60_000.0, "{plan}");
    let (merged, _) =
        answer("partitioned_merge", Arc::new(RuntimeEnv::default()), &table, &labels, CHECK).await;
    assert_eq!(merged, expected);
    let (in_passes, plan) = answer("files", bounded(3 << 20), &table, &labels, CHECK).await;
    assert_eq!(in_passes, expected);
    assert!(metric(&plan, "passes") > 1.0, "{plan}");
    let (spilled, plan) = answer("partitioned_merge", bounded(6 << 20), &table, &labels, CHECK).await;
    assert_eq!(spilled, expected);
    let spills: f64 =
        plan.match_indices("spill_count=").map(|(at, _)| metric(&plan[at..], "spill_count")).sum();
    assert!(spills > 0.0, "{plan}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_that_cannot_fit_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let table = group(&written(dir.path()).await, None);
    let labels = labels(60_000);
    let config = SessionConfig::new().with_target_partitions(2);
    let builder = SessionStateBuilder::new()
        .with_config(config)
        .with_runtime_env(bounded(100_000))
        .with_default_features()
        .with_query_planner(Arc::new(Planner));
    let context = SessionContext::new_with_state(install(builder).build());
    context
        .register_table("l", Arc::new(MemTable::try_new(labels.schema(), vec![vec![labels]]).unwrap()))
        .unwrap();
    context.register_table("f", table).unwrap();
    assert_eq!(failure(&context, CHECK).await.kind(), crate::error::ErrorKind::Exhausted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_files_and_pages_that_labels_need_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let history = written(dir.path()).await;
    let all = labels(60_000);
    let runtime = || Arc::new(RuntimeEnv::default());
    let table = group(&history, None);
    let (_, plan) = answer("auto", runtime(), &table, &all, CHECK).await;
    let (files, searched) = (metric(&plan, "files_total"), metric(&plan, "rows_searched"));
    assert_eq!(metric(&plan, "files_read"), files, "{plan}");
    let one = all.slice(0, 8);
    let (_, plan) = answer("auto", runtime(), &table, &one, CHECK).await;
    assert!(metric(&plan, "rows_searched") * 2.0 < searched, "{plan}");
    let early = "SELECT count(f.value) FROM (SELECT * FROM l WHERE ts < TIMESTAMP '1969-12-01') l \
        ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) ON l.number = f.number";
    let (_, plan) = answer("auto", runtime(), &table, &all, early).await;
    assert!(!plan.contains("files_read=") || metric(&plan, "files_read") == 0.0, "{plan}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_of_the_same_labels_run_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let table = group(&written(dir.path()).await, Some(3));
    let labels = labels(20_000);
    let chained = "SELECT count(*), sum(a.value), sum(b.value), sum(c.value), count(b.ts), count(c.ts) FROM l \
        ASOF JOIN f a MATCH_CONDITION (l.ts >= a.ts) ON l.number = a.number \
        ASOF JOIN f b MATCH_CONDITION (l.ts < b.ts) ON l.number = b.number \
        ASOF LEFT JOIN f c ON l.number = c.number AND l.ts > c.ts";
    let inner = "SELECT count(*), sum(a.value), sum(b.value) FROM l \
        ASOF INNER JOIN f a ON l.number = a.number AND l.ts >= a.ts \
        ASOF JOIN f b MATCH_CONDITION (l.ts >= b.ts AND l.ts <= b.ts + INTERVAL '1 hour') ON l.number = b.number";
    let dependent = "SELECT count(*), sum(b.value), count(b.ts) FROM l \
        ASOF JOIN f a MATCH_CONDITION (l.ts >= a.ts) ON l.number = a.number \
        ASOF JOIN f b MATCH_CONDITION (a.ts >= b.ts) ON l.number = b.number";
    for (sql, operators) in [(chained, 1), (inner, 1), (dependent, 2)] {
        let runtime = || Arc::new(RuntimeEnv::default());
        let (expected, _) = answer("partitioned_merge", runtime(), &table, &labels, sql).await;
        let (rows, plan) = answer("files", runtime(), &table, &labels, sql).await;
        assert_eq!(rows, expected, "{sql}");
        assert_eq!(plan.matches("AsofHistoryExec: ").count(), operators, "{plan}");
    }
}

/// A column that the query calls `_ingested_at` orders ties and bounds knowledge, whatever the store knows.
#[tokio::test]
async fn another_ingestion_time_is_not_the_tables_own() {
    let dir = tempfile::tempdir().unwrap();
    let table = written(dir.path()).await;
    let labels = labels(400);
    let sql = "SELECT count(*), count(r.value), sum(r.value) FROM l ASOF JOIN \
        (SELECT number, ts, value, to_timestamp_micros(CAST(value AS BIGINT)) AS _ingested_at, _sequence FROM h) r \
        MATCH_CONDITION (l.ts >= r.ts AND to_timestamp_micros(9000) >= r._ingested_at) ON l.number = r.number";
    let renamed = "SELECT count(*), sum(r.value) FROM l ASOF JOIN \
        (SELECT number, ts, value, ts AS _ingested_at FROM h) r MATCH_CONDITION (l.ts >= r.ts) ON l.number = r.number";
    let mut answers = Vec::new();
    for strategy in ["auto", "partitioned_merge"] {
        let context = context(2, 1024);
        let source = MemTable::try_new(labels.schema(), vec![vec![labels.clone()]]).unwrap();
        context.register_table("l", Arc::new(source)).unwrap();
        context.register_table("h", Arc::clone(&table) as _).unwrap();
        run(&context, &format!("SET fletching.asof_strategy = '{strategy}'")).await.unwrap();
        let plan = text(&context, &format!("EXPLAIN {renamed}")).await;
        assert!(plan.contains("strategy=partitioned merge"), "{plan}");
        answers.push(text(&context, sql).await);
    }
    assert_eq!(answers[0], answers[1]);
}

#[tokio::test]
async fn why_a_strategy_was_not_taken_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let table = group(&written(dir.path()).await, None);
    let context = context(2, 1024);
    context
        .register_table("l", Arc::new(MemTable::try_new(labels(8).schema(), vec![vec![labels(8)]]).unwrap()))
        .unwrap();
    context.register_table("f", table).unwrap();
    let cases = [
        (
            "(SELECT * FROM f WHERE value > 1) r",
            "l.number = r.number",
            "right side is not just a stored table",
        ),
        (
            "(SELECT number + 1 AS number, ts, value FROM f) r",
            "l.number = r.number",
            "right side is not just a stored table",
        ),
        (
            "f r",
            "CAST(l.number AS VARCHAR) = r.word",
            "files are not sorted by keys and time, which leaves ties open",
        ),
    ];
    for (right, on, reason) in cases {
        let sql = format!("SELECT r.value FROM l ASOF JOIN {right} MATCH_CONDITION (l.ts >= r.ts) ON {on}");
        let plan = text(&context, &format!("EXPLAIN {sql}")).await;
        assert!(plan.contains(&format!("strategy=partitioned merge ({reason})")), "{plan}");
        run(&context, "SET fletching.asof_strategy = 'files'").await.unwrap();
        let error = failure(&context, &sql).await;
        assert!(error.to_string().contains(reason), "{error}");
        run(&context, "SET fletching.asof_strategy = 'auto'").await.unwrap();
    }
    assert!(failure(&context, "SET fletching.asof_strategy = 'fastest'").await.to_string().contains("files"));
}
