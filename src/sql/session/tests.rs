mod alter;
mod delete;
mod running;
mod scans;
mod upkeep;

use std::path::Path;

use datafusion::arrow::array::{AsArray, Int64Array, StringArray};
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::arrow::util::pretty::pretty_format_batches;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::error::ErrorKind;
use crate::offline::OfflineStore;
use crate::online::{self, Backend, OnlineOptions};
use crate::sql::{CopyDirectories, EngineParts, IfExists, IfNotExists, IngestTarget, RunLimits};

const NOW_US: i64 = 1_767_225_600_000_000; // 2026-01-01T00:00:00Z

pub(in crate::sql) async fn engine(dir: &Path) -> Arc<Engine> {
    engine_serving(dir, "online").await
}

/// A server with an online store of its own over the same catalog and warehouse.
async fn engine_serving(dir: &Path, online: &str) -> Arc<Engine> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(NOW_US));
    let offline = OfflineStore::open(&dir.join("catalog.db"), &dir.join("warehouse"), Arc::clone(&clock))
        .await
        .unwrap();
    let options = OnlineOptions {
        backend: Backend::Embedded { path: dir.join(format!("{online}.redb")) },
        timeout: std::time::Duration::from_secs(5),
        cache: None,
    };
    let online = online::open(options, Arc::clone(&clock)).await.unwrap();
    let spill_dir = dir.join("spill");
    let parts = EngineParts {
        offline: Arc::new(offline),
        online,
        clock,
        memory_limit_bytes: Some(1 << 30),
        spill_dir,
        run_limits: RunLimits::default(),
        endpoints: 1,
        copy_directories: CopyDirectories::new(&[dir.to_owned()]).unwrap(),
    };
    let engine = Engine::new(parts).unwrap();
    engine.catch_up().await.unwrap();
    engine
}

pub(in crate::sql) async fn table(session: &Session, sql: &str) -> String {
    let rows: Vec<RecordBatch> = session.query(sql, None).await.unwrap().try_collect().await.unwrap();
    pretty_format_batches(&rows).unwrap().to_string()
}

const GROUP: &str = "CREATE FEATURE GROUP user_purchases (
    user_id BIGINT, event_timestamp TIMESTAMP, purchase_count_7d BIGINT DEFAULT 0 COMMENT 'last 7 days',
    favorite_category VARCHAR, ENTITY KEY (user_id), EVENT TIME (event_timestamp)
) COMMENT 'how a user buys' WITH (ttl = '30 days', owner = 'ml-platform', tags = 'ecommerce,churn')";

#[tokio::test]
async fn what_is_written_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let before = {
        let session = engine(dir.path()).await.session();
        session.update(GROUP, None).await.unwrap();
        let insert = "INSERT INTO user_purchases VALUES (1, '2025-12-31T10:00:00', 3, 'books'), (2, '2025-12-31T11:00:00', NULL, NULL)";
        assert_eq!(session.update(insert, None).await.unwrap(), 2);
        session
            .update("CREATE TABLE labels AS SELECT user_id, 1 AS y FROM user_purchases", None)
            .await
            .unwrap();
        table(&session, "SELECT * FROM user_purchases ORDER BY user_id").await
    };
    let session = engine(dir.path()).await.session();
    assert_eq!(table(&session, "SELECT * FROM user_purchases ORDER BY user_id").await, before);
    assert!(table(&session, "SELECT count(*) FROM labels").await.contains("| 2 "));
    let history =
        table(&session, "SELECT _ingested_at, _sequence FROM \"user_purchases$history\" ORDER BY 2").await;
    assert!(history.contains("2026-01-01T00:00:00Z"), "{history}");
    assert!(table(&session, "DESCRIBE user_purchases").await.contains("entity key"));
    assert!(table(&session, "SHOW FEATURE GROUPS").await.contains("ml-platform"));
}

#[tokio::test]
async fn a_bound_batch_inserts_all_rows_in_one_write() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update("CREATE TABLE t (id BIGINT NOT NULL, name VARCHAR)", None).await.unwrap();
    let prepared = session.prepare("INSERT INTO t VALUES (?, ?)").await.unwrap();
    assert_eq!(prepared.kind, StatementKind::Update);
    assert_eq!(prepared.parameters.field(0).data_type(), &DataType::Int64);
    let ids = Arc::new(Int64Array::from(vec![1, 2, 3])) as _;
    let names = Arc::new(StringArray::from(vec![Some("a"), None, Some("c")])) as _;
    let batch = RecordBatch::try_from_iter_with_nullable([("0", ids, true), ("1", names, true)]).unwrap();
    assert_eq!(session.update("INSERT INTO t VALUES (?, ?)", Some(&batch)).await.unwrap(), 3);
    let one = batch.slice(1, 1);
    assert!(table_of(&session, "SELECT ? + 1 AS a, ? AS b", &one).await.contains("| 3 "));
    let both = table_of(&session, "SELECT name FROM t WHERE id = ? AND (? IS NULL OR TRUE)", &batch).await;
    assert!(both.contains("| a ") && both.contains("| c "), "{both}");
    let commits = session.catalog.stored(&TableName::new("public", "t"), &[]).await.unwrap();
    assert!(commits.is_some());
}

#[tokio::test]
async fn parameters_are_told_as_drivers_can_send_them() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update("CREATE TABLE t (id BIGINT, at TIMESTAMP, price DECIMAL(10, 2))", None).await.unwrap();
    let milliseconds = DataType::Timestamp(TimeUnit::Millisecond, None);
    for (sql, expected) in [
        ("SELECT * FROM t WHERE id = ?", DataType::Int64),
        ("SELECT * FROM t WHERE at > ?", milliseconds.clone()),
        ("SELECT CAST(? AS TIMESTAMP)", milliseconds),
        ("SELECT CAST(? AS TIME)", DataType::Time32(TimeUnit::Millisecond)),
        ("SELECT TRY_CAST(? AS BIGINT)", DataType::Int64),
        ("SELECT id FROM t WHERE price = (SELECT CAST(? AS DECIMAL(10, 2)))", DataType::Decimal128(10, 2)),
        ("SELECT id FROM t LIMIT ?", DataType::Int64),
        ("SELECT id FROM t OFFSET ?", DataType::Int64),
        ("SELECT ?", DataType::Utf8),
    ] {
        let prepared = session.prepare(sql).await.unwrap();
        let types: Vec<_> = prepared.parameters.fields().iter().map(|field| field.data_type()).collect();
        assert_eq!(types, [&expected], "{sql}");
    }
}

#[tokio::test]
async fn decimals_carry_their_digits_where_jdbc_looks() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    let prepared = session.prepare("SELECT CAST(1 AS DECIMAL(10, 2)) AS price, 1 AS n").await.unwrap();
    let metadata = prepared.schema.field(0).metadata();
    assert_eq!((&*metadata["ARROW:FLIGHT:SQL:PRECISION"], &*metadata["ARROW:FLIGHT:SQL:SCALE"]), ("10", "2"));
    assert!(prepared.schema.field(1).metadata().is_empty());
}

async fn table_of(session: &Session, sql: &str, values: &RecordBatch) -> String {
    let rows: Vec<RecordBatch> = session.query(sql, Some(values)).await.unwrap().try_collect().await.unwrap();
    pretty_format_batches(&rows).unwrap().to_string()
}

#[tokio::test]
async fn a_failed_write_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update(GROUP, None).await.unwrap();
    let bad = "INSERT INTO user_purchases (user_id, event_timestamp) VALUES (1, '2025-01-01'), (NULL, '2025-01-01')";
    let error = session.update(bad, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("user_id"), "{error}");
    assert!(table(&session, "SELECT count(*) AS n FROM user_purchases").await.contains("| 0 "));
}

#[tokio::test]
async fn bulk_ingest_follows_its_modes() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    let target = |if_not_exists, if_exists, temporary| IngestTarget {
        schema: None,
        table: "t".into(),
        temporary,
        if_not_exists,
        if_exists,
        idempotency_key: None,
    };
    let rows = || -> SendableRecordBatchStream {
        let ids = Arc::new(Int64Array::from(vec![1, 2])) as _;
        let batch = RecordBatch::try_from_iter([("id", ids)]).unwrap();
        Box::pin(RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)])))
    };
    for temporary in [false, true] {
        use {IfExists as E, IfNotExists as N};
        let ingest = |n, e| session.ingest(target(n, e, temporary), rows());
        assert_eq!(ingest(N::Fail, E::Append).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(ingest(N::Create, E::Fail).await.unwrap(), 2);
        assert_eq!(ingest(N::Create, E::Fail).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(ingest(N::Fail, E::Append).await.unwrap(), 2);
        assert!(table(&session, "SELECT count(*) FROM t").await.contains("| 4 "));
        assert_eq!(ingest(N::Create, E::Replace).await.unwrap(), 2);
        assert!(table(&session, "SELECT count(*) FROM t").await.contains("| 2 "));
    }
    session.update("DROP TABLE t", None).await.unwrap();
    assert!(table(&session, "SELECT count(*) FROM t").await.contains("| 2 "), "the stored table shows again");
    session.update("DROP TABLE t", None).await.unwrap();
    assert!(session.query("SELECT * FROM t", None).await.is_err());
}

#[tokio::test]
async fn two_writers_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    engine.session().update("CREATE TABLE t (id BIGINT)", None).await.unwrap();
    let writers = (0..8).map(|i| {
        let session = engine.session();
        async move { session.update(&format!("INSERT INTO t VALUES ({i})"), None).await }
    });
    futures::future::try_join_all(writers).await.unwrap();
    let sum = table(&engine.session(), "SELECT count(*) AS n, sum(id) AS s FROM t").await;
    assert!(sum.contains("| 8 | 28 |"), "{sum}");
}

#[tokio::test]
async fn a_point_in_time_join_over_stored_tables() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update(GROUP, None).await.unwrap();
    session
        .update(
            "INSERT INTO user_purchases VALUES (1, '2025-12-01', 3, 'books'), (1, '2025-12-05', 5, 'toys')",
            None,
        )
        .await
        .unwrap();
    session
        .update("CREATE TEMP TABLE labels AS SELECT * FROM (VALUES (1, TIMESTAMP '2025-12-03'), (1, TIMESTAMP '2026-03-01'), (9, TIMESTAMP '2025-12-09')) AS l (user_id, ts)", None)
        .await
        .unwrap();
    let join = "SELECT l.user_id, l.ts, f.purchase_count_7d, f.favorite_category FROM labels l \
                ASOF JOIN user_purchases f MATCH_CONDITION (l.ts >= f.event_timestamp) ON l.user_id = f.user_id ORDER BY l.ts";
    let rows = table(&session, join).await;
    assert!(
        rows.contains("| 1       | 2025-12-03T00:00:00 | 3                 | books             |"),
        "{rows}"
    );
    assert!(
        rows.contains("| 1       | 2026-03-01T00:00:00 | 0                 |                   |"),
        "TTL: {rows}"
    );
    assert!(
        rows.contains("| 9       | 2025-12-09T00:00:00 | 0                 |                   |"),
        "DEFAULT: {rows}"
    );
    let explained = table(&session, &format!("EXPLAIN {join}")).await;
    assert!(explained.contains("AsofHistoryExec") && explained.contains("ttl"), "{explained}");
}

#[tokio::test]
async fn latest_serves_what_was_inserted() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update(GROUP, None).await.unwrap();
    session
        .update(
            "INSERT INTO user_purchases VALUES (1, '2025-12-30', 3, 'books'), (2, '2025-01-01', 5, 'toys')",
            None,
        )
        .await
        .unwrap();
    let rows = table(&session, "SELECT * FROM LATEST(user_purchases, 2, 1, 7)").await;
    let statuses: Vec<&str> = ["OUTSIDE_MAX_AGE", "PRESENT", "NOT_FOUND"].into();
    let found: Vec<&str> =
        rows.lines().filter_map(|l| statuses.iter().find(|s| l.contains(**s)).copied()).collect();
    assert_eq!(found, statuses, "{rows}");
    let keys = Arc::new(Int64Array::from(vec![1, 7, 1])) as _;
    let batch = RecordBatch::try_from_iter([("k", keys)]).unwrap();
    let bound =
        table_of(&session, "SELECT user_id, purchase_count_7d FROM LATEST(user_purchases, ?)", &batch).await;
    assert_eq!(bound.matches("| 1       | 3 ").count(), 2, "{bound}");
    assert_eq!(bound.matches("| 7       | 0 ").count(), 1, "{bound}");
    let joined = table(
        &session,
        "SELECT e.*, f.* FROM (VALUES (1), (2)) AS e (user_id) JOIN LATEST(user_purchases) f USING (user_id)",
    )
    .await;
    assert!(joined.contains("books") && !joined.contains("toys"), "{joined}");
}

#[tokio::test]
async fn an_insert_of_many_bound_rows_is_one_write() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update("CREATE TABLE t (id BIGINT NOT NULL)", None).await.unwrap();
    let bound = |ids: Vec<Option<i64>>| {
        let ids = Arc::new(Int64Array::from(ids)) as _;
        RecordBatch::try_from_iter_with_nullable([("id", ids, true)]).unwrap()
    };
    for insert in ["INSERT INTO t VALUES (?)", "INSERT INTO t SELECT CAST(? AS BIGINT)"] {
        let bad = session.update(insert, Some(&bound(vec![Some(1), None, Some(3)]))).await;
        assert_eq!(bad.unwrap_err().kind(), ErrorKind::Invalid, "{insert}");
        assert!(table(&session, "SELECT count(*) FROM t").await.contains("| 0 "), "{insert}");
        assert_eq!(session.update(insert, Some(&bound(vec![]))).await.unwrap(), 0, "{insert}");
        assert_eq!(
            session.update(insert, Some(&bound(vec![Some(1), Some(3)]))).await.unwrap(),
            2,
            "{insert}"
        );
        session.update("DROP TABLE t", None).await.unwrap();
        session.update("CREATE TABLE t (id BIGINT NOT NULL)", None).await.unwrap();
    }
}

#[tokio::test]
async fn settings_out_of_bounds_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    for (setting, value, good) in [
        ("datafusion.execution.batch_size", "0", false),
        ("datafusion.execution.batch_size", "100", true),
        ("datafusion.execution.target_partitions", "20000", false),
        ("datafusion.execution.time_zone", "'nonsense'", false),
        ("datafusion.execution.time_zone", "'+02:00'", true),
        ("datafusion.optimizer.subset_repartition_threshold", "1", false),
    ] {
        let set = session.update(&format!("SET {setting} = {value}"), None).await;
        assert_eq!(set.is_ok(), good, "{setting} = {value}: {set:?}");
    }
}

#[tokio::test]
async fn every_snapshot_can_be_read_by_its_id() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update(GROUP, None).await.unwrap();
    session.update("CREATE TABLE t AS SELECT 1 AS n", None).await.unwrap();
    for n in 2..5 {
        let insert = format!("INSERT INTO user_purchases VALUES ({n}, '2025-12-31', {n}, NULL)");
        session.update(&insert, None).await.unwrap();
        session.update(&format!("INSERT INTO t VALUES ({n})"), None).await.unwrap();
    }
    for (name, column) in
        [("t", "n"), ("user_purchases", "user_id"), ("\"user_purchases$history\"", "user_id")]
    {
        let base = name.trim_matches('"').split('$').next().unwrap();
        let snapshots = format!("SELECT snapshot_id FROM \"{base}$history\" ORDER BY made_current_at");
        let snapshots = match base {
            "t" => snapshots,
            _ => format!("SELECT snapshot_id FROM \"{base}$snapshots\" ORDER BY summary['total-records']"),
        };
        let rows: Vec<RecordBatch> =
            session.query(&snapshots, None).await.unwrap().try_collect().await.unwrap();
        let ids: Vec<i64> = rows
            .iter()
            .flat_map(|b| {
                b.column(0).as_primitive::<datafusion::arrow::datatypes::Int64Type>().values().to_vec()
            })
            .collect();
        assert_eq!(ids.len(), if base == "t" { 4 } else { 3 });
        for (at, id) in ids.iter().enumerate() {
            let sql =
                format!("SELECT count({column}) FROM {name} FOR VERSION AS OF {id} v WHERE v.{column} > 0");
            assert!(table(&session, &sql).await.contains(&format!("| {} ", at + 1)), "{sql}");
            let system = format!("SELECT count(*) FROM {name} FOR SYSTEM_VERSION AS OF {id}");
            assert!(table(&session, &system).await.contains(&format!("| {} ", at + 1)), "{system}");
        }
    }
}
