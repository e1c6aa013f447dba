use super::*;

#[tokio::test]
async fn one_row_per_key_asked_in_that_order() {
    let stage = with_purchases().await;
    let rows = stage.rows("SELECT * FROM LATEST(purchases, 4, 1, 99, 2, 1, 3, NULL, 5)").await;
    let expected = [
        "4|1970-01-01T00:00:00.000499|0||OUTSIDE_MAX_AGE",
        "1|1970-01-01T00:00:00.000995|10|now|PRESENT",
        "99||0||NOT_FOUND",
        "2|1970-01-01T00:00:00.001||two|PRESENT",
        "1|1970-01-01T00:00:00.000995|10|now|PRESENT",
        "3||0||NOT_FOUND",
        "||0||NOT_FOUND",
        "5|1970-01-01T00:00:00.000500|50|just|PRESENT",
    ];
    assert_eq!(rows, expected);
    stage.clock.advance(1);
    assert_eq!(
        stage.rows("SELECT amount, _status FROM LATEST(purchases, 3, 5)").await,
        ["30|PRESENT", "0|OUTSIDE_MAX_AGE"]
    );
}

#[tokio::test]
async fn the_schema_says_what_may_be_null() {
    let stage = with_purchases().await;
    let plan = stage.plan("SELECT * FROM LATEST(purchases, 1)").await.unwrap();
    let fields: Vec<(&str, bool)> =
        plan.schema().fields().iter().map(|f| (f.name().as_str(), f.is_nullable())).collect();
    assert_eq!(
        fields,
        [("user_id", true), ("ts", true), ("amount", true), ("note", true), ("_status", false)]
    );
}

#[tokio::test]
async fn it_stands_wherever_a_table_may() {
    let stage = with_purchases().await;
    for sql in [
        "SELECT amount FROM latest(purchases, 1)",
        "SELECT amount FROM LATEST(public.purchases, 1)",
        "SELECT amount FROM LATEST(\"public\".\"purchases\", 1)",
        "SELECT amount FROM LATEST(datafusion.public.purchases, 1)",
        "SELECT p.amount FROM LATEST(purchases, 1) p",
        "SELECT p.b FROM LATEST(purchases, 1) AS p(a, t, b, c, d)",
        "SELECT purchases.amount FROM LATEST(purchases, 1)",
        "WITH x AS (SELECT * FROM LATEST(purchases, 1)) SELECT amount FROM x",
        "SELECT * FROM (SELECT amount FROM LATEST(purchases, 1, 2)) WHERE amount IS NOT NULL",
        "SELECT max(amount) FROM LATEST(purchases, 1, 2, 4)",
        "SELECT amount FROM LATEST(purchases, 5, 1) WHERE user_id = 1",
        "SELECT a.amount FROM LATEST(purchases, 1) a CROSS JOIN LATEST(purchases, 2) b",
        "SELECT (SELECT amount FROM LATEST(purchases, 1))",
        "SELECT amount FROM LATEST(purchases, [1])",
        "SELECT amount FROM LATEST(purchases, (1))",
        "SELECT amount FROM LATEST(purchases, 2 - 1)",
        "SELECT amount FROM LATEST(purchases, CAST('1' AS BIGINT))",
        "SELECT amount FROM LATEST(purchases, 1.0)",
        "SELECT amount FROM LATEST(purchases, 1, max_staleness => '5s')",
    ] {
        assert_eq!(stage.rows(sql).await, ["10"], "{sql}");
    }
    stage.query("CREATE VIEW v AS SELECT * FROM LATEST(purchases, 1, 5)").await.unwrap();
    assert_eq!(stage.rows("SELECT amount FROM v").await, ["10", "50"]);
    assert_eq!(
        stage.sorted("SELECT sum(amount) FROM v UNION ALL SELECT amount FROM v").await,
        ["10", "50", "60"]
    );
}

async fn with_every_key_type() -> Stage {
    let stage = Stage::new().await;
    let columns = vec![
        column("s", DataType::Utf8, None),
        column("i", DataType::Int32, None),
        column("d", DataType::Date32, None),
        column("t", time(), None),
        column("b", DataType::Boolean, None),
        column("n", DataType::Decimal128(10, 2), None),
        column("x", DataType::Binary, None),
        column("ts", time(), None),
        column("v", DataType::Int64, None),
    ];
    let group = group("mixed", columns, vec![0, 1, 2, 3, 4, 5, 6], None);
    let schema = group.history_schema();
    let date = ScalarValue::Date32(Some(1));
    let row: Vec<ArrayRef> = [
        ScalarValue::from("u|1"),
        ScalarValue::Int32(Some(-7)),
        date,
        ScalarValue::TimestampMicrosecond(Some(-1), None),
        ScalarValue::Boolean(Some(true)),
        ScalarValue::Decimal128(Some(150), 10, 2),
        ScalarValue::Binary(Some(vec![0, 255])),
        ScalarValue::TimestampMicrosecond(Some(5), None),
        ScalarValue::Int64(Some(42)),
        ScalarValue::TimestampMicrosecond(Some(1), Some("UTC".into())),
        ScalarValue::Int64(Some(0)),
    ]
    .iter()
    .map(|v| v.to_array().unwrap())
    .collect();
    stage.define(group, vec![RecordBatch::try_new(schema, row).unwrap()]).await;
    stage
}

#[tokio::test]
async fn composite_keys_are_tuples_of_any_types() {
    let stage = with_every_key_type().await;
    let key = "('u|1', -7, DATE '1970-01-02', TIMESTAMP '1969-12-31T23:59:59.999999', true, 1.50, X'00ff')";
    let other = "('u', -7, '1970-01-02', '1969-12-31T23:59:59.999999', true, 1.5, X'00ff')";
    let sql = format!("SELECT v, _status FROM LATEST(mixed, {other}, {key})");
    assert_eq!(stage.rows(&sql).await, ["|NOT_FOUND", "42|PRESENT"]);
    let sql = "SELECT v FROM LATEST(mixed) WHERE s = 'u|1' AND i IN (1, -7) AND d = DATE '1970-01-02' AND b \
               AND t = TIMESTAMP '1969-12-31T23:59:59.999999' AND n = 1.5 AND x = X'00ff'";
    assert_eq!(stage.rows(sql).await, ["42"]);
}

#[tokio::test]
async fn mistakes_are_named() {
    let stage = with_purchases().await;
    stage.define(FeatureGroup { online: false, ..renamed("offline_only") }, vec![]).await;
    let pairs = group(
        "pairs",
        vec![
            column("a", DataType::Utf8, None),
            column("b", DataType::Int32, None),
            column("ts", time(), None),
        ],
        vec![0, 1],
        None,
    );
    stage.define(pairs, vec![]).await;
    stage.query("CREATE TABLE plain AS SELECT 1 AS user_id").await.unwrap();
    stage.query("CREATE VIEW seen AS SELECT * FROM purchases").await.unwrap();
    for (sql, kind, words) in [
        ("SELECT * FROM LATEST(nowhere, 1)", ErrorKind::NotFound, "feature group 'nowhere' does not exist"),
        ("SELECT * FROM LATEST(nowhere)", ErrorKind::NotFound, "feature group 'nowhere' does not exist"),
        ("SELECT * FROM LATEST(plain, 1)", ErrorKind::Invalid, "'plain' is not a feature group"),
        ("SELECT * FROM LATEST(seen, 1)", ErrorKind::Invalid, "'seen' is not a feature group"),
        ("SELECT * FROM LATEST(offline_only, 1)", ErrorKind::Invalid, "online = false"),
        ("SELECT * FROM LATEST()", ErrorKind::Invalid, "names no feature group"),
        ("SELECT * FROM LATEST(42)", ErrorKind::Invalid, "names no feature group"),
        ("SELECT * FROM LATEST(purchases, 'x')", ErrorKind::Invalid, "'user_id' is Int64"),
        ("SELECT * FROM LATEST(purchases, '42')", ErrorKind::Invalid, "'user_id' is Int64"),
        ("SELECT * FROM LATEST(purchases, true)", ErrorKind::Invalid, "'user_id' is Int64"),
        ("SELECT * FROM LATEST(purchases, 1.5)", ErrorKind::Invalid, "does not fit 'user_id'"),
        ("SELECT * FROM LATEST(purchases, upper('a'))", ErrorKind::Invalid, "'user_id' is Int64"),
        ("SELECT * FROM LATEST(purchases, (1, 2))", ErrorKind::Invalid, "has 2 of 1 columns"),
        ("SELECT * FROM LATEST(purchases, user_id)", ErrorKind::Invalid, "not a constant"),
        ("SELECT * FROM LATEST(pairs, 'a')", ErrorKind::Invalid, "LATEST(public.pairs, (a, b), …)"),
        ("SELECT * FROM LATEST(pairs, ('a', 3000000000))", ErrorKind::Invalid, "does not fit 'b'"),
        ("SELECT * FROM LATEST(pairs, (1, 1))", ErrorKind::Invalid, "'a' is Utf8"),
        (
            "SELECT * FROM LATEST(purchases, 1, max_stale => '1s')",
            ErrorKind::Invalid,
            "no option 'max_stale'",
        ),
        ("SELECT * FROM LATEST(purchases, max_staleness => 5)", ErrorKind::Invalid, "such as '5s'"),
        ("SELECT * FROM LATEST(purchases, *)", ErrorKind::Invalid, "cannot take *"),
    ] {
        let error = stage.error(sql).await;
        assert_eq!(error.kind(), kind, "{sql}: {error}");
        assert!(error.to_string().contains(words), "{sql}: {error}");
    }
}

fn renamed(name: &str) -> FeatureGroup {
    FeatureGroup { name: TableName::new("public", name), id: Uuid::new_v4(), ..purchases(None) }
}

#[tokio::test]
async fn explain_shows_what_is_looked_up_and_where() {
    let stage = with_purchases().await;
    let plan = stage.explain("SELECT amount FROM LATEST(purchases, 1, 2)").await;
    for part in ["group=public.purchases", "keys=[user_id", "ttl=500us", "store=embedded, cached"] {
        assert!(plan.contains(part), "{plan}");
    }
    // The projection is part of the look-up, and nothing spreads or sorts.
    assert!(!plan.contains("ProjectionExec") && !plan.contains("RepartitionExec"), "{plan}");
}

#[tokio::test]
async fn the_second_look_up_hits_the_cache_until_a_write_or_its_age_forbids() {
    let stage = with_purchases().await;
    let analyze = async |sql: &str| {
        let text = stage.rows(&format!("EXPLAIN ANALYZE {sql}")).await.join("\n");
        let count = |name: &str| -> usize {
            let at = text.find(&format!("{name}=")).unwrap_or_else(|| panic!("no {name} in {text}"));
            let digits: String =
                text[at + name.len() + 1..].chars().take_while(char::is_ascii_digit).collect();
            digits.parse().unwrap()
        };
        (count("cache_hits"), count("cache_misses"), count("store_reads"), count("output_rows"))
    };
    let sql = "SELECT * FROM LATEST(purchases, 1, 77, 1)";
    assert_eq!(analyze(sql).await, (0, 2, 2, 3));
    assert_eq!(analyze(sql).await, (2, 0, 0, 3));
    let group = Arc::new(purchases(Some(500)));
    let table = stage.context.table_provider("purchases").await.unwrap();
    let group =
        table.as_any().downcast_ref::<FeatureGroupTable>().map_or(group, |t| Arc::clone(&t.definition));
    stage.store.write(&group, &purchase_rows(&[(77, 999, Some(7), "new")])).await.unwrap();
    assert_eq!(stage.rows("SELECT amount FROM LATEST(purchases, 1, 77)").await, ["10", "7"]);
    assert_eq!(analyze(sql).await, (2, 0, 0, 3));
    stage.clock.advance(5_000_000);
    let fresh = "SELECT * FROM LATEST(purchases, 1, 77, max_staleness => '5s')";
    assert_eq!(analyze("SELECT * FROM LATEST(purchases, 1, 77, max_staleness => '6s')").await, (2, 0, 0, 2));
    assert_eq!(analyze(fresh).await, (0, 2, 2, 2));
    assert_eq!(analyze(fresh).await, (2, 0, 0, 2));
    stage.clock.advance(60_000_000);
    assert_eq!(analyze("SELECT * FROM LATEST(purchases, 1, 77)").await, (0, 2, 2, 2));
}

#[tokio::test]
async fn long_lists_of_keys_keep_their_order_under_filters_and_expressions() {
    let stage = with_purchases().await;
    let keys: Vec<String> = (0..20_000).rev().map(|k| k.to_string()).collect();
    let sql = format!("SELECT user_id + 1 FROM LATEST(purchases, {}) WHERE user_id % 2 = 0", keys.join(","));
    let got: Vec<i64> = stage.rows(&sql).await.iter().map(|row| row.parse().unwrap()).collect();
    let expected: Vec<i64> = (0..20_000).rev().filter(|k| k % 2 == 0).map(|k| k + 1).collect();
    assert!(got == expected);
}
