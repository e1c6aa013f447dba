//! What is refused, and how it is said.

use super::failure;
use super::rules::store;
use crate::error::ErrorKind::{self, Invalid, Unsupported};

const ON: &str = "ON l.user_id = f.user_id";

#[tokio::test]
async fn wrong_joins_say_what_to_do() {
    let context = store().await;
    let cases: &[(&str, ErrorKind, &str)] = &[
        ("ASOF JOIN f", Invalid, "has no condition"),
        (
            "ASOF JOIN f ON l.user_id = f.user_id",
            Invalid,
            "exactly one inequality between the times, found 0",
        ),
        (
            "ASOF JOIN f ON l.ts >= f.ts AND l.ts < f.ts",
            Invalid,
            "exactly one inequality between the times, found 2",
        ),
        ("ASOF JOIN f MATCH_CONDITION (l.ts = f.ts)", Invalid, "cannot match on 'l.ts = f.ts'"),
        ("ASOF JOIN f MATCH_CONDITION (l.ts >= l.ts)", Invalid, "compare an expression of the left side"),
        ("ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts OR true)", Invalid, "cannot match on"),
        ("ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts + (l.ts - f.ts))", Invalid, "cannot match on"),
        (
            "ASOF JOIN f MATCH_CONDITION (l.user_id >= f.ts)",
            Invalid,
            "compare two timestamps or dates, or two numbers",
        ),
        (
            "ASOF JOIN f MATCH_CONDITION (l.label >= f.city)",
            Invalid,
            "compare two timestamps or dates, or two numbers",
        ),
        ("ASOF JOIN f MATCH_CONDITION (l.ts >= f.nothing)", Invalid, "nothing"),
        (
            "ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) ON l.label = f.user_id",
            Invalid,
            "cannot compare key l.label (Utf8) with f.user_id (Int64): cast",
        ),
        ("ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) ON l.user_id > f.user_id", Invalid, "only equality"),
        (
            "ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) ON f.city = 'x'",
            Invalid,
            "filter one side in a subquery",
        ),
        ("ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) USING (label)", Invalid, "label"),
        (
            "ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts AND f.clicks > 3)",
            Invalid,
            "at most a tolerance such as",
        ),
        (
            "ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts AND l.ts <= f.ts + INTERVAL '1 month')",
            Invalid,
            "use days",
        ),
        (
            "ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts AND l.ts <= f.ts + INTERVAL '-1 day')",
            Invalid,
            "negative",
        ),
        (
            "ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts AND l.ts <= f.ts + f.clicks * INTERVAL '1 day')",
            Invalid,
            "must be a constant",
        ),
        (
            "ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts AND l.ts >= f.ts - INTERVAL '1 day')",
            Invalid,
            "at most a tolerance",
        ),
        (
            "ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts AND l.ts <= f.ts + INTERVAL '1 day' AND l.ts <= f.ts + INTERVAL '2 day')",
            Invalid,
            "two tolerances",
        ),
        ("ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts AND l.ts <= f._ingested_at)", Invalid, "from below"),
        ("ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts AND 3 >= f._ingested_at)", Invalid, "give a TIMESTAMP"),
        (
            "ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts AND l.ts >= f._ingested_at AND l.ts > f._ingested_at)",
            Invalid,
            "bounds _ingested_at twice",
        ),
        ("ASOF JOIN f MATCH_CONDITION (l.ts >= f._ingested_at)", Invalid, "can only bound what was known"),
        (
            "ASOF JOIN p MATCH_CONDITION (l.ts >= p.ts AND l.ts >= p._ingested_at)",
            Invalid,
            "_ingested_at is not known for the right side",
        ),
        (
            "ASOF JOIN (SELECT user_id, max(ts) AS ts FROM f GROUP BY 1) f MATCH_CONDITION (l.ts >= f.ts AND l.ts >= f._ingested_at)",
            Invalid,
            "without aggregates",
        ),
        (
            "ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts AND (SELECT max(ts) FROM p) >= f._ingested_at)",
            Unsupported,
            "a subquery",
        ),
        (
            "ASOF JOIN f MATCH_CONDITION (l.ts + random() * INTERVAL '1 day' >= f.ts)",
            Unsupported,
            "a volatile function",
        ),
        ("ASOF RIGHT JOIN f ON l.ts >= f.ts", Unsupported, "use ASOF JOIN or ASOF LEFT JOIN"),
        (
            "ASOF JOIN LATERAL (SELECT * FROM f WHERE f.user_id = l.user_id) f MATCH_CONDITION (l.ts >= f.ts)",
            Unsupported,
            "LATERAL",
        ),
        ("GLOBAL JOIN f ON true", Unsupported, "GLOBAL JOIN"),
    ];
    for (join, kind, message) in cases {
        let sql = format!("SELECT 1 FROM l {join}");
        let error = failure(&context, &sql).await;
        assert!(error.to_string().contains(message), "{sql}: {error}");
        assert_eq!(error.kind(), *kind, "{sql}: {error}");
    }
}

#[tokio::test]
async fn ingestion_is_not_a_column_of_a_group() {
    let context = store().await;
    for select in ["f._ingested_at", "_sequence"] {
        let sql = format!("SELECT {select} FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) {ON}");
        assert_eq!(failure(&context, &sql).await.kind(), Invalid, "{sql}");
    }
    let sql =
        format!("SELECT 1 FROM l ASOF JOIN f MATCH_CONDITION (l.ts >= f.ts) {ON} AND l.ts = f._ingested_at");
    assert!(failure(&context, &sql).await.to_string().contains("can only bound what was known"));
}
