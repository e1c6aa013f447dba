//! What EXPLAIN shows, and what the optimizer may and may not do.

use datafusion::prelude::SessionContext;

use super::rules::store;
use super::{context, lines, run, text};

#[tokio::test]
async fn explain_tells_how_the_join_works() {
    let context = store().await;
    let sql = "EXPLAIN FORMAT INDENT SELECT label, clicks FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts \
               AND l.ts <= f.ts + INTERVAL '36 hours' AND l.ts >= f._ingested_at) ON l.user_id = f.user_id";
    let plan = text(&context, sql).await;
    for part in [
        "AsofJoin: Left, on=[CAST(l.user_id AS Int64) = f.user_id], match=[l.ts >= f.ts], tolerance=1 day 12 hours, ttl=3 days, known_at=[l.ts >= f._ingested_at]",
        "AsofJoinExec: type=Left,",
        "strategy=partitioned merge (right side is not just a stored table)",
        "SortExec",
        "_ingested_at",
    ] {
        assert!(plan.contains(part), "{part} is missing in\n{plan}");
    }
    // Columns that nothing reads are not scanned.
    assert!(!plan.contains("city"), "{plan}");
}

#[tokio::test]
async fn explain_analyze_counts_matches() {
    let context = store().await;
    let plan = text(
        &context,
        "EXPLAIN ANALYZE SELECT * FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) USING (user_id)",
    )
    .await;
    assert!(plan.contains("matched_rows=3"), "{plan}");
    assert!(plan.contains("output_rows=7"), "{plan}");
}

#[tokio::test]
async fn groups_without_ttl_and_forward_matches_show_none() {
    let context = store().await;
    for (table, op) in [("g", ">="), ("f", "<="), ("p", ">=")] {
        let sql = format!(
            "EXPLAIN SELECT * FROM l ASOF JOIN {table} MATCH_CONDITION (l.ts {op} {table}.ts) USING (user_id)"
        );
        let plan = text(&context, &sql).await;
        assert!(!plan.contains("ttl="), "{plan}");
    }
}

/// Tables `a` and `b` for joins over several partitions.
async fn numbers(partitions: usize) -> SessionContext {
    let context = context(partitions, 16);
    for (table, rows) in [("a", 200), ("b", 300)] {
        let sql = format!(
            "CREATE TABLE {table} AS SELECT value % 7 AS x, value % 3 AS y, value AS t FROM generate_series(1, {rows})"
        );
        run(&context, &sql).await.unwrap();
    }
    context
}

#[tokio::test]
async fn sides_partitioned_by_other_operators_still_meet() {
    let queries = [
        "SELECT count(*), sum(q.t), sum(q.n) FROM (SELECT x, y, max(t) AS t FROM a GROUP BY x, y) q0 JOIN \
         (SELECT a.x, a.y, a.t, r.n FROM a ASOF JOIN (SELECT x, y, t, count(*) AS n FROM b GROUP BY x, y, t) r \
         MATCH_CONDITION (a.t >= r.t) ON a.x = r.x AND a.y = r.y) q ON q0.x = q.x AND q0.y = q.y",
        // The right side comes hashed on a subset of the keys, the left side not at all.
        "SELECT count(*), sum(r.m) FROM a ASOF JOIN (SELECT x, max(t) AS m, 1 AS y, min(t) AS t FROM b GROUP BY x) r \
         MATCH_CONDITION (a.t >= r.t) ON a.x = r.x AND a.y = r.y",
        "SELECT count(*), sum(b.t) FROM (SELECT x, max(t) AS t FROM a GROUP BY x) l ASOF JOIN b MATCH_CONDITION (l.t > b.t)",
    ];
    for sql in queries {
        let expected = lines(&numbers(1).await, sql).await;
        assert!(!expected[0].contains('-'), "{sql}: {expected:?}");
        for partitions in [2, 4, 7] {
            assert_eq!(lines(&numbers(partitions).await, sql).await, expected, "{sql}");
        }
    }
}

#[tokio::test]
async fn filters_go_below_on_the_left_only() {
    let context = store().await;
    let sql = "SELECT label, city FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) USING (user_id) \
               WHERE label <> 'b' AND (city <> 'z' OR city IS NULL) AND l.ts IS NOT NULL AND user_id < 3 ORDER BY label";
    // A filter on the picked row's city drops the label; it does not pick another row.
    super::check(&context, sql, &["c -"]).await;
    let plan = text(&context, &format!("EXPLAIN FORMAT INDENT {sql}")).await;
    let join = plan.find("AsofJoin:").unwrap();
    let above = &plan[..join];
    let below = &plan[join..plan.find("physical_plan").unwrap()];
    assert!(above.contains("f.city") && !above.contains("Filter: l."), "{plan}");
    assert!(below.contains("l.label !=") && below.contains("l.user_id <"), "{plan}");
    assert!(!below.contains("f.city !="), "{plan}");
}

/// Few labels over a long history, one label over a long stack of rows with growing ingestion, and wide right batches.
#[tokio::test]
async fn long_right_sides_are_read_in_pieces() {
    let context = numbers(1).await;
    let sql = "CREATE TABLE h AS SELECT 1 AS k, value AS t, arrow_cast(value, 'Timestamp(Second, None)') AS _ingested_at \
               FROM generate_series(1, 5000)";
    run(&context, sql).await.unwrap();
    let labels = "(SELECT 1 AS k, value * 1000 AS t, to_timestamp_seconds(value * 900) AS known FROM generate_series(1, 7)) l";
    for kind in ["LEFT", "INNER"] {
        let sql = format!(
            "SELECT count(*), sum(h.t), max(h.t) FROM {labels} ASOF {kind} JOIN h ON l.k = h.k AND l.t >= h.t"
        );
        assert_eq!(lines(&context, &sql).await, ["7 25000 5000"], "{sql}");
    }
    let sql = format!(
        "SELECT h.t FROM {labels} ASOF JOIN h MATCH_CONDITION (l.t >= h.t AND l.known >= h._ingested_at) USING (k) ORDER BY 1"
    );
    assert_eq!(lines(&context, &sql).await, ["900", "1800", "2700", "3600", "4500", "5000", "5000"]);
}
