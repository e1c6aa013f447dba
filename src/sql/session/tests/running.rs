//! What of a statement is seen while it runs, and told when it is over.

use std::io;
use std::sync::Mutex;

use tracing::Level;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::metrics::Metrics;
use crate::spans;
use crate::sql::moment::Moment;
use crate::sql::running::Running;

const LATEST: &str = "SELECT user_id, purchase_count_7d FROM LATEST(user_purchases, ?)";

async fn stage(dir: &Path) -> Arc<Session> {
    let session = engine(dir).await.session();
    session.update(GROUP, None).await.unwrap();
    session.update("INSERT INTO user_purchases VALUES (1, '2025-12-31', 3, 'books')", None).await.unwrap();
    session.update("CREATE TABLE t AS SELECT 1 AS x", None).await.unwrap();
    session
}

fn keys(count: i64) -> RecordBatch {
    let keys = Arc::new(Int64Array::from_iter_values(0..count)) as _;
    RecordBatch::try_from_iter([("0", keys)]).unwrap()
}

#[tokio::test]
async fn a_light_statement_reads_nothing_that_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let session = stage(dir.path()).await;
    let state = session.state().await.unwrap();
    for (sql, light) in [
        ("SELECT 1", true),
        ("SELECT 1 + 1 AS two, now(), CAST('1' AS INT)", true),
        ("SELECT lower(table_name) FROM information_schema.tables", true),
        ("SELECT array_length(generate_series(1, 20000000))", false),
        ("SELECT repeat(table_name, 1000000) FROM information_schema.tables", false),
        ("SELECT * FROM system.queries CROSS JOIN (SELECT unnest([1, 2]))", false),
        ("SELECT * FROM system.queries", true),
        ("SELECT * FROM fletching.system.features CROSS JOIN information_schema.columns", true),
        ("DESCRIBE t", true),
        ("SHOW FEATURE GROUPS", true),
        ("EXPLAIN ANALYZE SELECT 1", true),
        ("INSERT INTO t VALUES (1)", true),
        ("SELECT * FROM t", false),
        ("SELECT * FROM system.queries WHERE EXISTS (SELECT * FROM t)", false),
        ("SELECT (SELECT max(x) FROM t)", false),
        ("SELECT * FROM generate_series(1, 10)", false),
        ("WITH RECURSIVE r AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM r) SELECT * FROM r", false),
        ("SELECT * FROM LATEST(user_purchases, 1)", false),
        ("INSERT INTO t SELECT x FROM t", false),
        ("CREATE TABLE u AS SELECT x FROM t", false),
        ("EXPLAIN ANALYZE SELECT * FROM t", false),
    ] {
        let (Planned::Query(plan) | Planned::Update(plan)) = session.plan(&state, sql).await.unwrap() else {
            panic!("{sql} has no plan")
        };
        assert_eq!(is_light(&plan, "main").unwrap(), light, "{sql}");
    }
}

#[tokio::test]
async fn a_look_up_of_many_keys_is_seen_and_one_of_few_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let session = stage(dir.path()).await;
    session.prepare(LATEST).await.unwrap(); // from now on it is kept ready
    let kinds = "SELECT kind, state FROM system.queries WHERE kind <> 'query'";
    let few = session.query(LATEST, Some(&keys(8192))).await.unwrap();
    assert!(!table(&session, kinds).await.contains("lookup"));
    drop(few);

    let id = Uuid::from_u128(7);
    let mut many = session.query_at(Some(id), LATEST, Some(&keys(20_000)), &Moment::default()).await.unwrap();
    assert!(table(&session, kinds).await.contains("| lookup | running |"));
    assert_eq!(many.try_next().await.unwrap().unwrap().num_rows(), 8192);
    assert!(session.cancel(id) && !session.cancel(id));
    let ended = Error::from(many.try_next().await.unwrap_err());
    assert_eq!(ended.kind(), ErrorKind::Cancelled);
    assert!(many.try_next().await.unwrap().is_none());
    assert!(!table(&session, kinds).await.contains("lookup"), "over, though its stream is kept");
}

#[tokio::test]
async fn a_statement_that_fails_leaves_the_list() {
    let dir = tempfile::tempdir().unwrap();
    let session = stage(dir.path()).await;
    for sql in ["SELEC", "SELECT * FROM nowhere", "SELECT 1 / 0"] {
        if let Ok(rows) = session.query(sql, None).await {
            rows.try_collect::<Vec<_>>().await.unwrap_err();
        }
    }
    session.update("DROP TABLE nowhere", None).await.unwrap_err();
    assert!(session.engine.running.list().is_empty());
}

/// Lines of a log.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Lines {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
    }
}

#[tokio::test]
async fn the_log_tells_of_every_statement_but_quick_look_ups() {
    let dir = tempfile::tempdir().unwrap();
    let session = stage(dir.path()).await;
    let lines = Lines::default();
    let log = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(lines.clone());
    let log =
        log.with_filter(filter_fn(|metadata| !spans::are(metadata) && *metadata.level() <= Level::INFO));
    let _log = tracing::subscriber::set_default(tracing_subscriber::registry().with(log));
    // Where another test is just the first to log a statement, tracing may not have seen this log, and must look again.
    for _ in 0..1000 {
        session.update("DROP TABLE IF EXISTS nowhere", None).await.unwrap();
        if !lines.take().is_empty() {
            break;
        }
        tracing::callsite::rebuild_interest_cache();
    }

    let sql = format!("SELECT x, '{}' AS y FROM t WHERE x < ?", "é".repeat(5000));
    let secret = RecordBatch::try_from_iter([("0", Arc::new(Int64Array::from(vec![424_242])) as _)]).unwrap();
    assert!(table_of(&session, &sql, &secret).await.contains("| 1 "));
    let line = lines.take();
    for part in [
        r#""target":"fletching::query""#,
        r#""kind":"query""#,
        r#""sql":"SELECT x, 'é"#,
        "é…\"",
        r#""outcome":"ok""#,
        r#""rows":1"#,
        r#""duration_ms":0.0"#,
    ] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(line.len() < 5000 && !line.contains("424242"), "{line}");

    session.update("DROP TABLE nowhere", None).await.unwrap_err();
    let line = lines.take();
    assert!(line.contains(r#""outcome":"not_found""#) && line.contains("nowhere"), "{line}");

    session.prepare(LATEST).await.unwrap();
    table_of(&session, LATEST, &keys(3)).await;
    assert_eq!(lines.take(), "");

    let clock = Arc::new(ManualClock::new(NOW_US));
    let (limits, metrics) = (RunLimits::default(), Arc::new(Metrics::default()));
    let slow_us = limits.slow_lookup.as_micros() as i64;
    let running = Arc::new(Running::new(&limits, metrics, clock.clone()));
    for (takes_us, told) in [(slow_us - 1, false), (slow_us, true)] {
        let lookup = running.begin_unlisted(&LATEST.into(), &session.owner);
        clock.advance(takes_us);
        drop(lookup);
        assert_eq!(lines.take().contains(r#""kind":"lookup""#), told, "{takes_us} µs");
    }
}

#[tokio::test]
async fn a_result_that_nobody_reads_is_let_go_of_when_it_is_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let session = stage(dir.path()).await;
    let (id, sql) = (Uuid::from_u128(8), "SELECT value FROM generate_series(1, 1000000)");
    let mut rows = session.query_at(Some(id), sql, None, &Moment::default()).await.unwrap();
    rows.try_next().await.unwrap().unwrap();
    assert!(session.cancel(id) && !session.cancel(id));
    // Soon, though the stream is kept.
    while let [(run, _)] = session.engine.running.list().as_slice() {
        assert_eq!(run.state(), "ending");
        tokio::task::yield_now().await;
    }
    let ended = Error::from(rows.try_next().await.unwrap_err());
    assert_eq!(ended.kind(), ErrorKind::Cancelled);
    assert!(rows.try_next().await.unwrap().is_none());
}
