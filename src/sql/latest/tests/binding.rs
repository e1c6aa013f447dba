use super::*;

fn parameters(columns: Vec<ArrayRef>) -> RecordBatch {
    let fields: Vec<Field> = columns
        .iter()
        .enumerate()
        .map(|(i, c)| Field::new(format!("${}", i + 1), c.data_type().clone(), true))
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

async fn bound(stage: &Stage, sql: &str, columns: Vec<ArrayRef>) -> Result<Option<Vec<String>>> {
    let plan = stage.plan(sql).await?;
    match bind_latest_rows(&plan, &parameters(columns))? {
        Some(plan) => Ok(Some(lines(&stage.run(plan).await?))),
        None => Ok(None),
    }
}

#[tokio::test]
async fn n_bound_keys_give_n_rows_in_order() {
    let stage = with_purchases().await;
    let keys: ArrayRef = Arc::new(Int64Array::from(vec![Some(5), Some(1), None, Some(1), Some(8)]));
    let sql = "SELECT user_id, amount + 1, _status FROM LATEST(purchases, $1) p";
    let rows = bound(&stage, sql, vec![keys]).await.unwrap().unwrap();
    assert_eq!(rows, ["5|51|PRESENT", "1|11|PRESENT", "|1|NOT_FOUND", "1|11|PRESENT", "8|1|NOT_FOUND"]);
}

#[tokio::test]
async fn several_keys_of_one_statement_stay_together() {
    let stage = with_purchases().await;
    let first: ArrayRef = Arc::new(Int32Array::from(vec![5, 1]));
    let second: ArrayRef = Arc::new(Int64Array::from(vec![7, 8]));
    let sql = "SELECT user_id FROM LATEST(purchases, $2, 3, $1) WHERE user_id <> 8";
    let rows = bound(&stage, sql, vec![first, second]).await.unwrap().unwrap();
    assert_eq!(rows, ["7", "3", "5", "3", "1"]);
}

#[tokio::test]
async fn no_binding_gives_no_row_and_many_keep_their_order() {
    let stage = with_purchases().await;
    let sql = "SELECT user_id * 2 FROM LATEST(purchases, $1) WHERE _status = 'NOT_FOUND'";
    let none: ArrayRef = Arc::new(Int64Array::from(Vec::<i64>::new()));
    assert!(bound(&stage, sql, vec![none]).await.unwrap().unwrap().is_empty());
    let many: ArrayRef = Arc::new(Int64Array::from_iter_values((100..30_000).rev()));
    let rows = bound(&stage, sql, vec![many]).await.unwrap().unwrap();
    assert!(rows == (100..30_000).rev().map(|k| (k * 2).to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn placeholders_have_the_types_of_the_key() {
    let stage = with_purchases().await;
    let plan = stage.plan("SELECT * FROM LATEST(purchases, $1)").await.unwrap();
    let fields = plan.get_parameter_fields().unwrap();
    assert_eq!(fields["$1"].as_ref().unwrap().data_type(), &DataType::Int64);
    // A session that substitutes them one by one gets the same rows.
    let plan = plan.with_param_values(vec![ScalarValue::Int32(Some(1))]).unwrap();
    assert_eq!(lines(&stage.run(plan).await.unwrap()), ["1|1970-01-01T00:00:00.000995|10|now|PRESENT"]);
}

#[tokio::test]
async fn other_plans_are_left_to_run_row_by_row() {
    let stage = with_purchases().await;
    let key = || -> Vec<ArrayRef> { vec![Arc::new(Int64Array::from(vec![1]))] };
    for sql in [
        "SELECT count(*) FROM LATEST(purchases, $1)",
        "SELECT amount FROM LATEST(purchases, $1) WHERE amount > $1",
        "SELECT amount + $1 FROM LATEST(purchases, 1)",
        "SELECT amount FROM LATEST(purchases, $1) ORDER BY amount",
        "SELECT amount FROM LATEST(purchases, $1) LIMIT 1",
        "SELECT amount FROM LATEST(purchases) WHERE user_id = $1",
        "SELECT DISTINCT amount FROM LATEST(purchases, $1)",
        "SELECT amount FROM LATEST(purchases, $1 + 1)",
        "SELECT amount FROM LATEST(purchases, $1) WHERE amount > (SELECT 1)",
        "SELECT 1",
    ] {
        assert_eq!(bound(&stage, sql, key()).await.unwrap(), None, "{sql}");
    }
}

#[tokio::test]
async fn wrong_values_are_refused() {
    let stage = with_purchases().await;
    let sql = "SELECT amount FROM LATEST(purchases, $1)";
    let wrong: [(ArrayRef, &str); 2] = [
        (Arc::new(StringArray::from(vec!["x"])), "'user_id' is Int64"),
        (Arc::new(datafusion::arrow::array::Float64Array::from(vec![1.0, 1.5])), "does not fit 'user_id'"),
    ];
    for (column, words) in wrong {
        let error = bound(&stage, sql, vec![column]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(words), "{error}");
    }
    let key: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let error = bound(&stage, "SELECT amount FROM LATEST(purchases, $2)", vec![key]).await.unwrap_err();
    assert!(error.to_string().contains("$2"), "{error}");
}
