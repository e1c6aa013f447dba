//! What a scan reads and what it skips, as EXPLAIN ANALYZE tells it.

use super::*;

/// Rows of `users` entities on one day, as many as fill three pages.
async fn fill(session: &Arc<Session>, day: u32, users: std::ops::Range<u32>) {
    let insert = format!(
        "INSERT INTO g SELECT {} + value % {}, to_timestamp_seconds(1767225600 + {} + value), value, 'x' \
         FROM generate_series(1, 60000)",
        users.start,
        users.len(),
        (day - 1) * 86_400
    );
    assert_eq!(session.update(&insert, None).await.unwrap(), 60_000);
}

async fn filled() -> (tempfile::TempDir, Arc<Session>) {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    let create = "CREATE FEATURE GROUP g (user_id BIGINT, ts TIMESTAMP, n BIGINT, s VARCHAR, ENTITY KEY (user_id), \
                  EVENT TIME (ts))";
    session.update(create, None).await.unwrap();
    session.update("SET datafusion.execution.target_partitions = 2", None).await.unwrap();
    (dir, session)
}

/// All of `parts` must be in the plan that ran, which read some of the rows of a file and not all.
async fn check(session: &Session, sql: &str, parts: &[&str]) {
    let plan = table(session, sql).await;
    for part in parts.iter().chain(&["page_index_rows_pruned=60.00 K total → "]) {
        assert!(plan.contains(part), "{part} is missing in\n{plan}");
    }
    assert!(!plan.contains("60.00 K total → 60.00 K matched"), "{plan}");
}

#[tokio::test]
async fn a_filter_skips_files_by_time_and_pages_by_entity() {
    let (_dir, session) = filled().await;
    fill(&session, 1, 0..1000).await;
    fill(&session, 2, 0..1000).await;
    let sql = "EXPLAIN ANALYZE SELECT * FROM g WHERE user_id = 420 AND ts < TIMESTAMP '2026-01-02'";
    check(
        &session,
        sql,
        &[
            "files_ranges_pruned_statistics=2 total → 1 matched",
            "row_groups_pruned_statistics=1 total → 1 matched",
            "predicate=user_id@0 = 420 AND ts@1 < 1767312000000000,",
        ],
    )
    .await;
    let count = "SELECT count(*), sum(n) FROM g WHERE user_id = 420 AND ts < TIMESTAMP '2026-01-02'";
    assert!(table(&session, count).await.contains("| 60       | 1795200  |"));
}

/// Each filter, known to keep few rows and hidden from whoever would know.
#[tokio::test]
async fn rows_that_lie_scattered_are_picked_out() {
    let (_dir, session) = filled().await;
    fill(&session, 1, 0..1000).await;
    fill(&session, 2, 0..500).await;
    let odd = "INSERT INTO g VALUES (0, TIMESTAMP '2026-01-01 00:30:00', NULL, NULL), \
               (2000, TIMESTAMP '2026-01-01 00:30:00', 3, ''), (7, TIMESTAMP '2026-01-02 03:00:00', -1, 'älter')";
    session.update(odd, None).await.unwrap();
    let minutes = |from: u32, to: u32| {
        format!("ts >= TIMESTAMP '2026-01-01 00:{from:02}:00' AND ts < TIMESTAMP '2026-01-01 00:{to:02}:00'")
    };
    let filters = [
        minutes(30, 59),
        minutes(30, 31) + " AND n IS NULL",
        minutes(1, 50) + " AND n % 2 = 1",
        "ts = TIMESTAMP '2026-01-02 03:00:00'".to_owned(),
        "TIMESTAMP '2026-01-01 00:01:00' > ts AND n IN (1, 7)".to_owned(),
        "ts < TIMESTAMP '2026-01-01 00:30:00' AND ts > TIMESTAMP '2026-01-01 00:30:00'".to_owned(),
    ];
    let all = "count(*), count(n), sum(n), sum(user_id), min(ts), max(ts), min(s), max(s)";
    for filter in &filters {
        let plan = table(&session, &format!("EXPLAIN SELECT {all} FROM g WHERE {filter}")).await;
        assert!(plan.contains("SparseScanExec: ") || plan.contains("EmptyExec"), "{filter}:\n{plan}");
        let hidden = format!("(({filter}) OR random() < 0)");
        let plan = table(&session, &format!("EXPLAIN SELECT {all} FROM g WHERE {hidden}")).await;
        assert!(!plan.contains("SparseScanExec: "), "{plan}");
        for columns in [all, "count(*)", "sum(length(s))", "sum(n), max(s), count(s)"] {
            let select = |filter: &str| format!("SELECT {columns} FROM g WHERE {filter}");
            assert_eq!(
                table(&session, &select(filter)).await,
                table(&session, &select(&hidden)).await,
                "{filter}"
            );
        }
    }
    let others = [
        "ts < TIMESTAMP '2026-01-01 12:00:00'".to_owned(),
        "n < 100".to_owned(),
        minutes(10, 11) + " AND user_id > 10",
        minutes(10, 11) + " AND s = 'x'",
    ];
    for filter in others {
        let plan = table(&session, &format!("EXPLAIN SELECT * FROM g WHERE {filter}")).await;
        assert!(!plan.contains("SparseScanExec: "), "{plan}");
    }
}

/// Whoever keeps a batch keeps no more than its rows, and is not charged for more.
#[tokio::test]
async fn batches_own_what_they_hold() {
    let (_dir, session) = filled().await;
    fill(&session, 1, 0..1000).await;
    fill(&session, 2, 0..1000).await;
    session.update("CREATE TABLE l AS SELECT user_id, ts, n, s FROM g", None).await.unwrap();
    let join = |kind: &str| {
        format!(
            "SELECT l.user_id, l.ts, l.n, f.n AS value, f.ts AS at FROM l ASOF {kind} JOIN g f \
             MATCH_CONDITION (l.ts >= f.ts) ON l.user_id = f.user_id"
        )
    };
    let narrow =
        "SELECT user_id, ts, n, n + 1, user_id + 1 FROM g WHERE ts < TIMESTAMP '2026-01-01 02:00:00'";
    for sql in [join("LEFT"), join("INNER"), narrow.to_owned()] {
        let batches: Vec<RecordBatch> = session.query(&sql, None).await.unwrap().try_collect().await.unwrap();
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let held: usize = batches.iter().map(RecordBatch::get_array_memory_size).sum();
        assert!(rows > 7000 && held < rows * 5 * 8 * 2, "{sql}: {rows} rows hold {held} bytes");
    }
}

#[tokio::test]
async fn a_join_skips_what_its_other_side_cannot_match() {
    let (_dir, session) = filled().await;
    fill(&session, 1, 0..1000).await;
    fill(&session, 2, 5000..6000).await;
    session.update("CREATE TABLE l AS SELECT * FROM (VALUES (7), (7), (9)) t(user_id)", None).await.unwrap();
    let sql = "EXPLAIN ANALYZE SELECT sum(n) FROM l JOIN g ON l.user_id = g.user_id";
    check(
        &session,
        sql,
        &[
            "DynamicFilter [ user_id@0 >= 7 AND user_id@0 <= 9",
            "files_ranges_pruned_statistics=2 total → 1 matched",
        ],
    )
    .await;
    let sum = "SELECT count(*), sum(n) FROM l JOIN g ON l.user_id = g.user_id";
    assert!(table(&session, sum).await.contains("| 180      | 5311380  |"));
}

#[tokio::test]
async fn one_sorted_file_needs_no_sort_and_two_do() {
    let (_dir, session) = filled().await;
    fill(&session, 1, 0..1000).await;
    let sql = "EXPLAIN SELECT * FROM g ORDER BY user_id, ts";
    let sorts = async || table(&session, sql).await.contains("SortExec");
    assert!(!sorts().await);
    let in_order = "SELECT count(*) FROM (SELECT user_id, ts, lag(user_id) OVER () AS u, lag(ts) OVER () AS t \
                    FROM (SELECT * FROM g ORDER BY user_id, ts)) WHERE (user_id, ts) < (u, t)";
    assert!(table(&session, in_order).await.contains("| 0 "));
    fill(&session, 2, 0..1000).await;
    assert!(sorts().await);
}
