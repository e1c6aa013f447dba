//! `DELETE` against a model: what it counts, what is left, offline and online, on the server that did it and on another.

use datafusion::arrow::array::Array;
use proptest::option;
use proptest::test_runner::{Config, TestRunner};

use super::*;

const CREATE: &str =
    "CREATE FEATURE GROUP g (k BIGINT, ts TIMESTAMP, v BIGINT, ENTITY KEY (k), EVENT TIME (ts))";
const ROWS: &str = "SELECT k, CAST((1767225600000000 - CAST(CAST(ts AS TIMESTAMP(6)) AS BIGINT)) / 3600000000 AS BIGINT), v \
     FROM g ORDER BY 1, 2, 3 NULLS FIRST";
const LATEST: &str = "SELECT k, v, _status FROM LATEST(g, 0, 1, 2, 3) ORDER BY 1";
const SERVED: &str = "SELECT k, v FROM LATEST(g) ORDER BY 1";
const AT_NOW: &str = "SELECT l.k, g.v FROM (SELECT k, now() AS at FROM (VALUES (0), (1), (2), (3)) keys(k)) l \
     ASOF JOIN g MATCH_CONDITION (l.at >= g.ts) ON l.k = g.k ORDER BY 1";

/// Key, hours before now, value.
type Row = (i64, i64, Option<i64>);

async fn found(session: &Session, sql: &str) -> Vec<Row> {
    let batches: Vec<RecordBatch> = session.query(sql, None).await.unwrap().try_collect().await.unwrap();
    let mut rows = Vec::new();
    for batch in &batches {
        let column = |at: usize| batch.column(at).as_primitive::<datafusion::arrow::datatypes::Int64Type>();
        for row in 0..batch.num_rows() {
            let value = (!column(2).is_null(row)).then(|| column(2).value(row));
            rows.push((column(0).value(row), column(1).value(row), value));
        }
    }
    rows
}

/// Whether a condition is true for a row.
type IsTrue = Box<dyn Fn(&Row) -> bool>;

/// A condition in SQL, and as a function.
fn condition(kind: u8, n: i64) -> (String, IsTrue) {
    match kind {
        0 => (format!("WHERE k = {n}"), Box::new(move |row| row.0 == n)),
        1 => (format!("WHERE NOT (v < {n})"), Box::new(move |row| row.2.is_some_and(|v| v >= n))),
        2 => ("WHERE v IS NULL".to_owned(), Box::new(|row| row.2.is_none())),
        3 => (
            format!("WHERE g.k IN (SELECT column1 FROM (VALUES ({n}), (NULL)))"),
            Box::new(move |row| row.0 == n),
        ),
        4 => ("WHERE k NOT IN (SELECT column1 FROM (VALUES (1), (NULL)))".to_owned(), Box::new(|_| false)),
        5 => (
            format!("WHERE k = {n} AND ts < now() - INTERVAL '3 hours'"),
            Box::new(move |row| row.0 == n && row.1 > 3),
        ),
        6 => (
            format!("WHERE v > (SELECT {n}) AND EXISTS (SELECT 1)"),
            Box::new(move |row| row.2.is_some_and(|v| v > n)),
        ),
        _ => (String::new(), Box::new(|_| true)),
    }
}

/// Rows that are written, then what is deleted (kind, number), and what else happens.
type Steps = Vec<(Vec<(u8, u8, Option<u8>)>, (u8, u8), u8)>;

async fn check(steps: Steps) {
    let dir = tempfile::tempdir().unwrap();
    let one = engine(dir.path()).await;
    let other = engine_serving(dir.path(), "other").await;
    let (session, elsewhere) = (one.session(), other.session());
    session.update(CREATE, None).await.unwrap();
    let mut model: Vec<Row> = Vec::new();
    for (rows, (kind, n), then) in steps {
        let value = |v: Option<u8>| v.map_or("NULL".to_owned(), |v| v.to_string());
        let row = |&(k, hours, v): &(u8, u8, Option<u8>)| {
            format!("({k}, now() - INTERVAL '{hours} hours', {})", value(v))
        };
        let values = rows.iter().map(row).collect::<Vec<_>>().join(", ");
        let (writer, eraser) = if then % 2 == 0 { (&session, &elsewhere) } else { (&elsewhere, &session) };
        writer.update(&format!("INSERT INTO g VALUES {values}"), None).await.unwrap();
        model.extend(rows.iter().map(|&(k, hours, v)| (i64::from(k), i64::from(hours), v.map(i64::from))));
        if then == 0 {
            session.query("OPTIMIZE g", None).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
        }
        if then > 4 {
            continue; // several writes before the next deletion, and a store that is behind
        }
        let before = model.len() as u64;
        let (sql, is_true) = condition(kind, i64::from(n));
        model.retain(|row| !is_true(row));
        let deleted = eraser.update(&format!("DELETE FROM g {sql}"), None).await.unwrap();
        assert_eq!(deleted, before - model.len() as u64, "{sql}");
        assert_eq!(table(eraser, SERVED).await, served(eraser).await, "at once: {sql}");
    }
    model.sort_by_key(|&(k, hours, v)| (k, hours, v));
    for (engine, session) in [(&one, &session), (&other, &elsewhere)] {
        engine.catch_up().await.unwrap();
        assert_eq!(found(session, ROWS).await, model);
        assert_eq!(table(session, SERVED).await, served(session).await);
        session.update("REFRESH ONLINE g FULL", None).await.unwrap();
        assert_eq!(table(session, SERVED).await, served(session).await);
    }
    session.query("PURGE g", None).await.unwrap().try_collect::<Vec<_>>().await.unwrap();
    assert!(table(&session, "SELECT count(*) FROM \"g$snapshots\"").await.contains("| 1 "));
    assert_eq!(found(&session, ROWS).await, model);
}

/// What is to be served: of the entities that have rows the one that a point-in-time join picks now.
async fn served(session: &Session) -> String {
    let picked = "SELECT p.k, p.v FROM (SELECT l.k, g.v FROM (SELECT DISTINCT k, now() AS at FROM g) l \
         ASOF JOIN g MATCH_CONDITION (l.at >= g.ts) ON l.k = g.k) p ORDER BY 1";
    table(session, picked).await
}

#[test]
fn deletions_leave_what_a_model_leaves() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let row = (0..4_u8, 0..8_u8, option::of(0..6_u8));
    let step = (proptest::collection::vec(row, 1..6), (0..10_u8, 0..4_u8), 0..8_u8);
    let mut runner = TestRunner::new(Config { cases: 12, failure_persistence: None, ..Config::default() });
    runner
        .run(&proptest::collection::vec(step, 1..6), |steps| {
            runtime.block_on(check(steps));
            Ok(())
        })
        .unwrap();
}

/// Writers go on while rows of one entity are deleted: what was acknowledged before a deletion began is gone for good, all
/// else is there once, and what is served is what history says.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_survives_a_deletion_beside_writers() {
    let dir = tempfile::tempdir().unwrap();
    let engines = [engine(dir.path()).await, engine_serving(dir.path(), "other").await];
    let eraser = engines[0].session();
    eraser.update(CREATE, None).await.unwrap();
    eraser.update("INSERT INTO g VALUES (1, now(), 0), (2, now(), 0)", None).await.unwrap();
    let mut writing = tokio::task::JoinSet::new();
    for writer in 0..4_i64 {
        let session = engines[writer as usize % 2].session();
        writing.spawn(async move {
            for turn in 0..8_i64 {
                let v = 1 + writer * 100 + turn;
                let insert = format!("INSERT INTO g VALUES (1, now(), {v}), (2, now(), {v})");
                session.update(&insert, None).await.unwrap();
            }
        });
    }
    let mut deleted = 0;
    while !writing.is_empty() {
        deleted += eraser.update("DELETE FROM g WHERE k = 1", None).await.unwrap();
        while writing.try_join_next().is_some() {}
        tokio::task::yield_now().await;
    }
    deleted += eraser.update("DELETE FROM g WHERE k = 1", None).await.unwrap();
    assert_eq!(deleted, 33, "each once");
    let left = found(&eraser, ROWS).await;
    assert_eq!(left.len(), 33);
    assert!(left.iter().all(|row| row.0 == 2));
    for engine in &engines {
        engine.catch_up().await.unwrap();
        let session = engine.session();
        assert_eq!(table(&session, SERVED).await, served(&session).await);
        let latest = table(&session, LATEST).await;
        assert!(latest.contains("| 1 |   | NOT_FOUND |"), "{latest}");
    }
}

#[tokio::test]
async fn who_cannot_be_told_the_same_twice_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update(CREATE, None).await.unwrap();
    session.update("INSERT INTO g VALUES (1, now(), 0)", None).await.unwrap();
    for (sql, kind) in [
        ("DELETE FROM g WHERE random() > 2", ErrorKind::Unsupported),
        ("DELETE FROM g WHERE k IN (SELECT k FROM g AS o WHERE o.v = g.v)", ErrorKind::Unsupported),
        ("DELETE FROM g WHERE k = (SELECT column1 FROM (VALUES (1), (2)))", ErrorKind::Invalid),
        ("DELETE FROM g WHERE nothing = 1", ErrorKind::Invalid),
        ("DELETE FROM g WHERE v", ErrorKind::Invalid),
        ("DELETE FROM nothing", ErrorKind::NotFound),
        ("DELETE FROM \"g$history\"", ErrorKind::Invalid),
    ] {
        let error = session.update(sql, None).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{sql}: {error}");
    }
    let one = RecordBatch::try_from_iter([("1", Arc::new(Int64Array::from(vec![1])) as _)]).unwrap();
    assert_eq!(session.update("DELETE FROM g WHERE k = ?", Some(&one)).await.unwrap(), 1);
    let operation =
        table(&session, "SELECT operation FROM \"g$snapshots\" WHERE operation <> 'append'").await;
    assert!(operation.contains("delete"), "{operation}");
    assert!(table(&session, AT_NOW).await.contains("| 1 |   |"));
}
