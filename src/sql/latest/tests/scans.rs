use super::*;

#[tokio::test]
async fn without_keys_it_gives_what_is_being_served() {
    let stage = with_purchases().await;
    let rows = stage.sorted("SELECT user_id, amount, note, _status FROM LATEST(purchases)").await;
    assert_eq!(rows, ["1|10|now|PRESENT", "2||two|PRESENT", "5|50|just|PRESENT"]);
    assert_eq!(stage.rows("SELECT count(*) FROM LATEST(purchases)").await, ["3"]);
    assert_eq!(stage.rows("SELECT 1 FROM LATEST(purchases) LIMIT 2").await, ["1", "1"]);
    stage.clock.set(NOW + 5);
    assert_eq!(stage.sorted("SELECT user_id, amount FROM LATEST(purchases)").await, ["1|11", "2|", "3|30"]);
}

#[tokio::test]
async fn filters_on_the_key_become_look_ups() {
    let stage = with_purchases().await;
    for (filter, rows) in [
        ("user_id = 1", vec!["1"]),
        ("1 = user_id", vec!["1"]),
        ("user_id IN (2, 1, 3, 99)", vec!["1", "2"]),
        ("user_id IN (1, 2, 3, 4, 5, 6)", vec!["1", "2", "5"]),
        ("user_id = 1 OR user_id = 5", vec!["1", "5"]),
        ("user_id IN (1, 2) AND user_id IN (2, 5)", vec!["2"]),
        ("user_id = 1 AND user_id = 2", vec![]),
        ("user_id IN (1, 5) AND amount > 20", vec!["5"]),
        ("user_id = 1 AND note = 'now'", vec!["1"]),
    ] {
        let sql = format!("SELECT user_id FROM LATEST(purchases) WHERE {filter}");
        assert_eq!(stage.sorted(&sql).await, rows, "{filter}");
        let plan = stage.explain(&sql).await;
        assert!(!plan.contains("LatestScanExec"), "{filter}: {plan}");
    }
}

#[tokio::test]
async fn other_filters_are_plain_sql() {
    let stage = with_purchases().await;
    for (filter, rows) in [
        ("user_id > 1", vec!["2", "5"]),
        ("amount > 20", vec!["5"]),
        ("user_id NOT IN (1, 2)", vec!["5"]),
        ("user_id = 1 OR amount = 50", vec!["1", "5"]),
        ("user_id IS NULL", vec![]),
        ("_status = 'NOT_FOUND'", vec![]),
        ("amount IS NULL", vec!["2"]),
    ] {
        let sql = format!("SELECT user_id FROM LATEST(purchases) WHERE {filter}");
        assert_eq!(stage.sorted(&sql).await, rows, "{filter}");
    }
    let plan = stage.explain("SELECT user_id FROM LATEST(purchases) WHERE user_id > 1").await;
    assert!(plan.contains("LatestScanExec: group=public.purchases, columns=[user_id]"), "{plan}");
}

#[tokio::test]
async fn every_part_of_a_composite_key_must_be_named_to_look_it_up() {
    let stage = Stage::new().await;
    let columns = vec![
        column("a", DataType::Int64, None),
        column("b", DataType::Int64, None),
        column("ts", time(), None),
    ];
    let group = group("pairs", columns, vec![1, 0], None);
    let all: Vec<(i64, i64)> = (0..4).flat_map(|a| (0..4).map(move |b| (a, b))).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(all.iter().map(|p| p.0))),
        Arc::new(Int64Array::from_iter_values(all.iter().map(|p| p.1))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(all.iter().map(|_| 1))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(all.iter().map(|_| 1)).with_timezone("UTC")),
        Arc::new(Int64Array::from_iter_values(0..16)),
    ];
    let batch = RecordBatch::try_new(group.history_schema(), columns).unwrap();
    stage.define(group, vec![batch]).await;
    let named = "SELECT a, b FROM LATEST(pairs) WHERE a IN (1, 3, 9) AND b IN (0, 2)";
    assert_eq!(stage.sorted(named).await, ["1|0", "1|2", "3|0", "3|2"]);
    assert!(!stage.explain(named).await.contains("LatestScanExec"));
    let half = "SELECT a, b FROM LATEST(pairs) WHERE a = 1";
    assert_eq!(stage.sorted(half).await, ["1|0", "1|1", "1|2", "1|3"]);
    assert!(stage.explain(half).await.contains("LatestScanExec"));
}
