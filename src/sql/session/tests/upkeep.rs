//! `OPTIMIZE` and `VACUUM` change nothing that a query can tell.

use proptest::test_runner::{Config, TestRunner};

use super::*;

const CREATE: &str = "CREATE FEATURE GROUP g (k BIGINT, ts TIMESTAMP, v BIGINT DEFAULT -1, ENTITY KEY (k), EVENT TIME (ts)) \
     WITH (ttl = '5 hours')";

const HISTORY: &str = "SELECT * FROM \"g$history\" ORDER BY k, ts, _ingested_at, _sequence";
const ASOF: &str = "SELECT l.k, l.at, g.ts, g.v FROM (SELECT k, to_timestamp_micros(1767225600000000 - n * 3600000000) AS at FROM \
     (VALUES (0), (1), (2), (3)) keys(k), (VALUES (0), (2), (5), (7)) hours(n)) l \
     ASOF JOIN g MATCH_CONDITION (l.at >= g.ts) ON l.k = g.k ORDER BY l.k, l.at";
const AT_NOW: &str = "SELECT l.k, g.v FROM (SELECT k, now() AS at FROM (VALUES (0), (1), (2), (3)) keys(k)) l \
     ASOF JOIN g MATCH_CONDITION (l.at >= g.ts) ON l.k = g.k ORDER BY 1";
const LATEST: &str = "SELECT k, v FROM LATEST(g, 0, 1, 2, 3) ORDER BY 1";

async fn counts(session: &Session, sql: &str) -> Vec<i64> {
    let rows: Vec<RecordBatch> = session.query(sql, None).await.unwrap().try_collect().await.unwrap();
    assert_eq!(rows.iter().map(RecordBatch::num_rows).sum::<usize>(), 1, "{sql}");
    let column = |column: &datafusion::arrow::array::ArrayRef| {
        column.as_any().downcast_ref::<Int64Array>().unwrap().value(0)
    };
    rows[0].columns().iter().map(column).collect()
}

/// Writes of rows (key, hours before now, value), and after each one of the three kinds of upkeep, or none.
type Steps = Vec<(Vec<(u8, u8, u8)>, u8)>;

async fn check(steps: Steps) {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update(CREATE, None).await.unwrap();
    for (rows, upkeep) in steps {
        let row = |(k, hours, v): (u8, u8, u8)| format!("({k}, now() - INTERVAL '{hours} hours', {v})");
        let rows = rows.into_iter().map(row).collect::<Vec<_>>().join(", ");
        session.update(&format!("INSERT INTO g VALUES {rows}"), None).await.unwrap();
        let statement =
            ["OPTIMIZE g", "OPTIMIZE g FULL", "VACUUM g RETAIN '0 days'"].get(usize::from(upkeep));
        let Some(statement) = statement else { continue };
        let mut before = Vec::new();
        for query in [HISTORY, ASOF, LATEST] {
            before.push(table(&session, query).await);
        }
        counts(&session, statement).await;
        for (query, before) in [HISTORY, ASOF, LATEST].into_iter().zip(before) {
            assert_eq!(table(&session, query).await, before, "{statement}: {query}");
        }
    }
    assert_eq!(table(&session, LATEST).await, table(&session, AT_NOW).await);
}

#[test]
fn upkeep_changes_no_answer() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let rows = proptest::collection::vec((0..4_u8, 0..8_u8, 0..100_u8), 1..6);
    let steps = proptest::collection::vec((rows, 0..5_u8), 1..7);
    let mut runner = TestRunner::new(Config { cases: 10, failure_persistence: None, ..Config::default() });
    runner
        .run(&steps, |steps| {
            runtime.block_on(check(steps));
            Ok(())
        })
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_fits_in_memory_is_merged_into_files_apart_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update(CREATE, None).await.unwrap();
    for write in 0..6 {
        // Every write has rows of all of ten days.
        let insert = format!(
            "INSERT INTO g SELECT i % 977, to_timestamp_micros({NOW_US} - (i % 240) * 3600000000), i * 7919 % 1000003 \
             FROM generate_series({}, {}) AS s(i)",
            write * 200_000,
            write * 200_000 + 199_999
        );
        session.update(&insert, None).await.unwrap();
    }
    let sums = "SELECT count(*), sum(v), sum(k * v % 1009), sum(_sequence) FROM \"g$history\"";
    let before = table(&session, sums).await;
    session.update("SET memory_limit = '16MiB'", None).await.unwrap();
    let done = counts(&session, "OPTIMIZE g").await;
    session.update("RESET memory_limit", None).await.unwrap();
    assert_eq!((done[0], done[4]), (6, 1_200_000), "{done:?}");
    assert!(done[1] < 6, "{done:?}");
    assert_eq!(table(&session, sums).await, before);
    let sorted = "SELECT count(*) FROM \"g$files\" WHERE sort_order_id IS NULL OR sort_order_id = 0";
    assert_eq!(counts(&session, sorted).await, [0]);
    assert_eq!(counts(&session, "OPTIMIZE g").await[4], 0, "nothing is left to do");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_with_many_small_files_are_due() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let session = engine.session();
    session.update("CREATE TABLE many AS SELECT 0 AS id", None).await.unwrap();
    session.update("CREATE TABLE few AS SELECT 0 AS id", None).await.unwrap();
    session.update("INSERT INTO few VALUES (1)", None).await.unwrap();
    for id in 1..32 {
        session.update(&format!("INSERT INTO many VALUES ({id})"), None).await.unwrap();
    }
    assert_eq!(engine.optimize_due().await.unwrap(), 1);
    assert_eq!(counts(&session, "SELECT count(*), sum(id) FROM many").await, [32, 496]);
    assert_eq!(counts(&session, "SELECT count(*) FROM \"many$files\"").await, [1]);
    assert_eq!(counts(&session, "SELECT count(*) FROM \"few$files\"").await, [2]);
    assert_eq!(engine.optimize_due().await.unwrap(), 0);

    let snapshots = "SELECT (SELECT count(*) FROM \"many$snapshots\") AS many, (SELECT count(*) FROM \"few$snapshots\") AS few";
    engine.vacuum_all(std::time::Duration::from_secs(3600)).await.unwrap();
    assert_eq!(counts(&session, snapshots).await, [33, 2], "all of them are of this hour");
    engine.vacuum_all(std::time::Duration::ZERO).await.unwrap();
    assert_eq!(counts(&session, snapshots).await, [1, 1]);
    assert_eq!(counts(&session, "SELECT count(*), sum(id) FROM many").await, [32, 496]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vacuum_leaves_what_a_running_statement_reads_of_the_past() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let session = engine.session();
    session.update("CREATE TABLE t (x BIGINT)", None).await.unwrap();
    let mut versions = Vec::new();
    for x in 0..3 {
        session.update(&format!("INSERT INTO t VALUES ({x})"), None).await.unwrap();
        let newest = "SELECT snapshot_id FROM \"t$snapshots\" WHERE snapshot_id NOT IN \
             (SELECT parent_id FROM \"t$snapshots\" WHERE parent_id IS NOT NULL)";
        versions.extend(counts(&session, newest).await);
    }
    let past = format!("SELECT count(*) FROM t FOR VERSION AS OF {}", versions[1]);
    let running = session.query(&past, None).await.unwrap();
    let snapshots = "SELECT count(*) FROM \"t$snapshots\"";
    engine.vacuum_all(std::time::Duration::ZERO).await.unwrap();
    assert_eq!(counts(&session, snapshots).await, [2], "the first is nothing to anybody");
    let rows: Vec<RecordBatch> = running.try_collect().await.unwrap();
    assert_eq!(rows[0].column(0).as_any().downcast_ref::<Int64Array>().unwrap().value(0), 2);
    engine.vacuum_all(std::time::Duration::ZERO).await.unwrap();
    assert_eq!(counts(&session, snapshots).await, [1]);
}
