//! What each form means, on tables small enough to read.

use std::time::Duration;

use datafusion::common::ScalarValue;
use datafusion::prelude::SessionContext;

use super::{Group, check, context, lines, run};

pub(super) const DAY: Duration = Duration::from_secs(86_400);

async fn register(context: &SessionContext, group: Group, history: &str) {
    let batches = run(context, history).await.unwrap();
    let schema = batches[0].schema();
    context.register_table(group.name, group.table(&schema, vec![batches])).unwrap();
}

/// Labels `l`, a feature group `f` with a TTL of three days and a default, a group `g` with neither, a plain table `p`.
pub(super) async fn store() -> SessionContext {
    let context = context(2, 8192);
    for sql in [
        "CREATE TABLE l AS SELECT column1::INT AS user_id, column2::TIMESTAMP AS ts, column3 AS label FROM VALUES
            (1, '2024-01-05', 'a'), (1, '2024-01-02', 'b'), (2, '2024-01-05', 'c'), (3, '2024-01-05', 'd'),
            (NULL, '2024-01-05', 'e'), (1, NULL, 'f'), (1, '2024-01-05', 'a')",
        "CREATE TABLE p AS SELECT column1 AS user_id, column2::TIMESTAMP AS ts, column3 AS price FROM VALUES
            (1, '2024-01-04', 10), (1, '2024-01-06', 20), (2, '2024-01-05', 30), (9, '2024-01-01', 40)",
    ] {
        run(&context, sql).await.unwrap();
    }
    let f = Group {
        name: "f",
        keys: vec![0],
        event_time: 1,
        ttl: Some(3 * DAY),
        defaults: vec![(2, ScalarValue::Int64(Some(0)))],
    };
    register(
        &context,
        f,
        "SELECT column1 AS user_id, arrow_cast(column2, 'Timestamp(Microsecond, None)') AS ts, column3 AS clicks,
            column4 AS city, arrow_cast(column5, 'Timestamp(Microsecond, Some(\"UTC\"))') AS _ingested_at, column6 AS _sequence
         FROM VALUES
            (1, '2024-01-01', 1, 'x', '2024-01-01', 0),
            (1, '2024-01-04', 2, 'y', '2024-01-04', 0),
            (1, '2024-01-04', NULL, 'z', '2024-01-07', 1),
            (1, '2024-01-04', 3, 'w', '2024-01-07', 0),
            (2, '2024-01-01', 4, 'v', '2024-01-01', 0),
            (NULL, '2024-01-05', 5, 'u', '2024-01-01', 0),
            (1, NULL, 6, 't', '2024-01-01', 0)",
    )
    .await;
    let g = Group { name: "g", keys: vec![0], event_time: 1, ttl: None, defaults: vec![] };
    register(
        &context,
        g,
        "SELECT column1 AS user_id, arrow_cast(column2, 'Timestamp(Microsecond, None)') AS ts, column3 AS score,
            arrow_cast(column4, 'Timestamp(Microsecond, Some(\"UTC\"))') AS _ingested_at, column5 AS _sequence
         FROM VALUES (1, '2024-01-01', 0.5, '2024-01-02', 0), (2, '2024-01-01', 0.7, '2024-01-09', 0),
            (1, '2024-01-03', 0.9, NULL, 0)",
    )
    .await;
    context
}

#[tokio::test]
async fn left_rows_are_kept_with_ttl_ties_nulls_and_defaults() {
    let context = store().await;
    // The last ingested of three rows of 4 January has no clicks: the NULL stays. Day 2 − 3 days reaches day 1; user 2's
    // row is four days old on day 5. NULL keys and times keep their rows.
    let expected = ["a - z", "a - z", "b 1 x", "c 0 -", "d 0 -", "e 0 -", "f 0 -"];
    for join in [
        "ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) ON l.user_id = f.user_id",
        "ASOF JOIN f MATCH_CONDITION (f.ts <= l.ts) ON f.user_id = l.user_id",
        "ASOF LEFT JOIN f MATCH_CONDITION (l.ts >= f.ts) USING (user_id)",
        "ASOF LEFT JOIN f ON l.user_id = f.user_id AND l.ts >= f.ts",
        "ASOF LEFT OUTER JOIN f ON f.ts <= l.ts AND l.user_id = f.user_id",
        "ASOF LEFT JOIN f USING (user_id, ts)",
    ] {
        check(&context, &format!("SELECT label, clicks, city FROM l {join} ORDER BY label"), &expected).await;
    }
}

#[tokio::test]
async fn inner_joins_keep_matches_only() {
    let context = store().await;
    for join in [
        "ASOF JOIN f ON l.user_id = f.user_id AND l.ts >= f.ts",
        "ASOF INNER JOIN f USING (user_id, ts)",
        "ASOF INNER JOIN f MATCH_CONDITION (l.ts >= f.ts) ON l.user_id = f.user_id",
    ] {
        let sql = format!("SELECT label, clicks, city FROM l {join} ORDER BY label");
        check(&context, &sql, &["a - z", "a - z", "b 1 x"]).await;
    }
}

#[tokio::test]
async fn strict_and_forward_matches() {
    let context = store().await;
    let query = |op: &str| {
        format!(
            "SELECT label, price FROM l ASOF LEFT JOIN p ON l.user_id = p.user_id AND l.ts {op} p.ts ORDER BY label"
        )
    };
    check(&context, &query(">="), &["a 10", "a 10", "b -", "c 30", "d -", "e -", "f -"]).await;
    check(&context, &query(">"), &["a 10", "a 10", "b -", "c -", "d -", "e -", "f -"]).await;
    check(&context, &query("<="), &["a 20", "a 20", "b 10", "c 30", "d -", "e -", "f -"]).await;
    check(&context, &query("<"), &["a 20", "a 20", "b 10", "c -", "d -", "e -", "f -"]).await;
}

#[tokio::test]
async fn tolerance_in_every_spelling() {
    let context = store().await;
    for tolerance in [
        "l.ts <= g.ts + INTERVAL '3 days'",
        "l.ts <= INTERVAL '72 hours' + g.ts",
        "l.ts - INTERVAL '3 days' <= g.ts",
        "g.ts >= l.ts - INTERVAL '3' DAY",
        "l.ts - g.ts <= INTERVAL '3 days'",
        "'3 days'::INTERVAL >= l.ts - g.ts",
        "l.ts < g.ts + INTERVAL '3 days 1 second'",
    ] {
        let sql = format!(
            "SELECT label, score FROM l ASOF JOIN g MATCH_CONDITION (l.ts >= g.ts AND {tolerance}) USING (user_id) \
             WHERE label < 'd' ORDER BY label"
        );
        check(&context, &sql, &["a 0.9", "a 0.9", "b 0.5", "c -"]).await;
    }
    let sql = "SELECT label, price FROM l ASOF JOIN p MATCH_CONDITION (l.ts <= p.ts AND p.ts < l.ts + INTERVAL '2 days') \
               USING (user_id) WHERE label < 'd' ORDER BY label";
    check(&context, sql, &["a 20", "a 20", "b -", "c 30"]).await;
    let sql = "SELECT a.x, b.y FROM (VALUES (5), (9)) a(x) ASOF JOIN (VALUES (1), (3)) b(y) \
               MATCH_CONDITION (a.x >= b.y AND a.x - b.y <= 2) ORDER BY 1";
    check(&context, sql, &["5 3", "9 -"]).await;
}

#[tokio::test]
async fn as_known_at_in_every_spelling() {
    let context = store().await;
    for known in [
        "l.ts >= f._ingested_at",
        "f._ingested_at <= l.ts",
        "l.ts > f._ingested_at",
        "TIMESTAMP '2024-01-05' >= f._ingested_at",
        "f._ingested_at < TIMESTAMP '2024-01-07'",
        "f._ingested_at <= '2024-01-05T12:00:00Z'",
        "l.ts + INTERVAL '1 day' >= _ingested_at",
        "DATE '2024-01-06' > f._ingested_at",
    ] {
        let sql = format!(
            "SELECT label, clicks FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts AND {known}) \
             ON l.user_id = f.user_id WHERE label < 'd' ORDER BY label"
        );
        check(&context, &sql, &["a 2", "a 2", "b 1", "c 0"]).await;
    }
    // A NULL ingestion is never known, a NULL bound knows nothing.
    let sql = "SELECT label, score FROM l ASOF JOIN g MATCH_CONDITION (l.ts >= g.ts AND l.ts >= g._ingested_at \
               AND l.ts <= g.ts + INTERVAL '9 days') USING (user_id) WHERE label < 'd' ORDER BY label";
    check(&context, sql, &["a 0.5", "a 0.5", "b 0.5", "c -"]).await;
    let sql = "SELECT label, score FROM l ASOF JOIN g MATCH_CONDITION (l.ts >= g.ts AND \
               CASE WHEN label = 'a' THEN NULL ELSE l.ts END >= g._ingested_at) USING (user_id) WHERE label < 'd' ORDER BY label";
    check(&context, sql, &["a -", "a -", "b 0.5", "c -"]).await;
}

#[tokio::test]
async fn groups_are_recognised_below_selections() {
    let context = store().await;
    run(
        &context,
        "CREATE VIEW v AS SELECT user_id AS u, ts AS t, clicks AS c, city FROM f WHERE city <> 'z'",
    )
    .await
    .unwrap();
    for (with, right) in [
        ("", "(SELECT user_id AS u, ts AS t, clicks AS c FROM f WHERE city <> 'z') r"),
        (
            "",
            "(SELECT * FROM (SELECT user_id, ts, clicks FROM f WHERE city <> 'z' ORDER BY ts) x) r(u, t, c)",
        ),
        ("WITH w AS (SELECT user_id u, ts t, clicks c FROM f WHERE city <> 'z')", "w r"),
        ("", "v r"),
        ("", "(SELECT * FROM v) AS r"),
    ] {
        let sql = format!(
            "{with} SELECT label, r.c FROM l ASOF JOIN {right} MATCH_CONDITION (l.ts >= r.t AND DATE '2024-01-08' >= r._ingested_at) \
             ON l.user_id = r.u ORDER BY label"
        );
        check(&context, &sql, &["a 3", "a 3", "b 1", "c 0", "d 0", "e 0", "f 0"]).await;
    }
    // An aggregate is another table: no TTL, no default.
    let sql = "SELECT label, c FROM l ASOF JOIN (SELECT user_id, ts, sum(clicks) AS c FROM f GROUP BY 1, 2) r \
               MATCH_CONDITION (l.ts >= r.ts) ON l.user_id = r.user_id WHERE label IN ('a', 'c', 'd') ORDER BY label";
    check(&context, sql, &["a 5", "a 5", "c 4", "d -"]).await;
}

#[tokio::test]
async fn joins_compose() {
    let context = store().await;
    let chained = "SELECT label, clicks, score, price FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) USING (user_id) \
                   ASOF LEFT JOIN g ON g.user_id = l.user_id AND g.ts < l.ts \
                   LEFT JOIN (SELECT max(price) AS price, user_id AS u FROM p GROUP BY user_id) m ON m.u = l.user_id \
                   WHERE label < 'e' AND l.ts IS NOT NULL ORDER BY label";
    check(&context, chained, &["a - 0.9 20", "a - 0.9 20", "b 1 0.5 20", "c 0 0.7 30", "d 0 - -"]).await;
    let nested = "SELECT label, n.clicks, n.score FROM l ASOF JOIN (SELECT g.ts, g.user_id, score, clicks FROM g ASOF JOIN f \
                  MATCH_CONDITION (g.ts >= f.ts) ON g.user_id = f.user_id) n \
                  MATCH_CONDITION (l.ts >= n.ts) USING (user_id) WHERE label < 'd' ORDER BY label";
    check(&context, nested, &["a 1 0.9", "a 1 0.9", "b 1 0.5", "c 4 0.7"]).await;
    let grouped = "SELECT count(*), sum(clicks) FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) USING (user_id) \
                   HAVING count(*) > 1";
    check(&context, grouped, &["7 1"]).await;
    let union = "SELECT label FROM l ASOF JOIN f USING (user_id, ts) UNION ALL SELECT 'z' FROM l ASOF JOIN g USING (user_id, ts) ORDER BY 1";
    check(&context, union, &["a", "a", "b", "z", "z", "z", "z"]).await;
    let subquery = "SELECT count(*) FROM p WHERE price IN (SELECT price FROM l ASOF JOIN p ON l.user_id = p.user_id AND l.ts >= p.ts)";
    check(&context, subquery, &["2"]).await;
    let two = "SELECT count(*) FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts), p";
    check(&context, two, &["28"]).await;
    run(&context, "CREATE VIEW t AS SELECT l.*, f.clicks FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) USING (user_id)").await.unwrap();
    check(&context, "SELECT clicks FROM t WHERE label = 'b'", &["1"]).await;
    run(&context, "CREATE TABLE made AS SELECT label, clicks FROM l ASOF JOIN f USING (user_id, ts)")
        .await
        .unwrap();
    check(&context, "SELECT count(*) FROM made", &["3"]).await;
}

#[tokio::test]
async fn star_shows_left_keys() {
    let context = store().await;
    let sql = "SELECT * FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) USING (user_id) WHERE label = 'd'";
    check(&context, sql, &["3 2024-01-05T00:00:00 d - 0 -"]).await;
    let sql = "SELECT * FROM l ASOF LEFT JOIN f USING (user_id, ts) WHERE label = 'd'";
    check(&context, sql, &["3 2024-01-05T00:00:00 d 0 -"]).await;
    let sql = "SELECT user_id, ts FROM l ASOF LEFT JOIN f USING (user_id, ts) WHERE label = 'd'";
    check(&context, sql, &["3 2024-01-05T00:00:00"]).await;
    let sql = "SELECT f.user_id IS NULL, f.* FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) USING (user_id) WHERE label = 'd'";
    check(&context, sql, &["true - - 0 -"]).await;
    let sql = "SELECT * EXCLUDE (ts) FROM (SELECT user_id, ts AS at, label FROM l) ASOF JOIN f MATCH_CONDITION (at >= ts) USING (user_id) WHERE label = 'd'";
    let rows = lines(&context, sql).await;
    assert_eq!(rows, ["2024-01-05T00:00:00 d 3 0 -"]);
}

#[tokio::test]
async fn keys_and_times_are_expressions_of_mixed_types() {
    let context = store().await;
    let sql = "SELECT label, price FROM l ASOF JOIN p MATCH_CONDITION (l.ts - INTERVAL '1 day' >= date_trunc('day', p.ts)) \
               ON l.user_id + 0 = abs(p.user_id) WHERE label < 'd' ORDER BY label";
    check(&context, sql, &["a 10", "a 10", "b -", "c -"]).await;
    let cases = [
        // Floats: zeros are equal, NaN is not below anything.
        ("(VALUES (-0.0::DOUBLE, 5)) a(k, t)", "(VALUES (0.0::DOUBLE, 3)) b(k, v)", "a.t >= b.v", "3"),
        ("(VALUES (1, 2.5)) a(k, t)", "(VALUES (1::SMALLINT, 2)) b(k, v)", "a.t >= b.v", "2"),
        ("(VALUES (true, 2::INT)) a(k, t)", "(VALUES (true, 1::BIGINT)) b(k, v)", "a.t > b.v", "1"),
        (
            "(VALUES (1, 1.5::DOUBLE)) a(k, t)",
            "(VALUES (1, 1.25::REAL), (1, 1.75)) b(k, v)",
            "a.t >= b.v",
            "1.25",
        ),
        (
            "(VALUES (DATE '2024-01-01', DATE '2024-01-02')) a(k, t)",
            "(VALUES (TIMESTAMP '2024-01-01', TIMESTAMP '2024-01-01T23:00:00Z')) b(k, v)",
            "a.t >= b.v",
            "2024-01-01T23:00:00",
        ),
        (
            "(VALUES (1, TIMESTAMP '1960-01-01T00:00:00Z')) a(k, t)",
            "(VALUES (1, DATE '1959-12-31'), (1, DATE '1960-01-02')) b(k, v)",
            "a.t >= b.v",
            "1959-12-31",
        ),
        // Seconds far beyond what nanoseconds hold.
        (
            "(VALUES (1, arrow_cast(9000000000000, 'Timestamp(Second, None)'))) a(k, t)",
            "(VALUES (1, arrow_cast(1, 'Timestamp(Nanosecond, None)'))) b(k, v)",
            "a.t >= b.v",
            "1970-01-01T00:00:00.000000001",
        ),
        (
            "(VALUES (1, '12:00:00'::TIME)) a(k, t)",
            "(VALUES (1, '11:00:00'::TIME)) b(k, v)",
            "a.t >= b.v",
            "11:00:00",
        ),
        (
            "(VALUES (1)) a(k)",
            "(VALUES (1, TIMESTAMP '2024-01-01')) b(k, v)",
            "'2024-01-02' >= b.v",
            "2024-01-01T00:00:00",
        ),
    ];
    for (left, right, matching, expected) in cases {
        let sql =
            format!("SELECT b.v FROM {left} ASOF JOIN {right} MATCH_CONDITION ({matching}) ON a.k = b.k");
        check(&context, &sql, &[expected]).await;
    }
}

#[tokio::test]
async fn empty_sides_keep_the_schema() {
    let context = store().await;
    for (left, right, rows) in [("l WHERE false", "f", 0), ("l", "f WHERE false", 7)] {
        let sql = format!(
            "SELECT l.*, f.clicks FROM (SELECT * FROM {left}) l ASOF JOIN (SELECT * FROM {right}) f \
             MATCH_CONDITION (l.ts >= f.ts) USING (user_id)"
        );
        let plan = run(&context, &sql).await.unwrap();
        assert_eq!(plan.iter().map(|batch| batch.num_rows()).sum::<usize>(), rows, "{sql}");
        assert!(plan.iter().all(|batch| batch.num_columns() == 4));
    }
    check(
        &context,
        "SELECT count(*) FROM l ASOF JOIN (SELECT ts FROM f WHERE false) f MATCH_CONDITION (l.ts >= f.ts)",
        &["7"],
    )
    .await;
}
