use futures::stream::BoxStream;

use super::*;
use crate::model::EntityKey;
use crate::online::{Found, ScannedEntries};

/// Requests for known, unknown, stale, repeated and NULL users, in several batches and partitions.
async fn with_requests() -> Stage {
    let stage = with_purchases().await;
    let schema = Arc::new(Schema::new(vec![
        Field::new("user_id", DataType::Int64, true),
        Field::new("small", DataType::Int32, true),
        Field::new("name", DataType::Utf8, true),
    ]));
    let batch = |users: Vec<Option<i64>>| {
        let small = users.iter().map(|u| u.map(|u| u as i32));
        let names = users.iter().map(|u| u.map(|u| format!("n{u}")));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(users.clone())),
            Arc::new(Int32Array::from_iter(small)),
            Arc::new(StringArray::from_iter(names)),
        ];
        RecordBatch::try_new(Arc::clone(&schema), columns).unwrap()
    };
    let partitions = vec![
        vec![batch(vec![Some(1), Some(9), Some(2)]), batch(vec![None, Some(4)])],
        vec![batch(vec![Some(1), Some(5), Some(3), Some(1)])],
    ];
    let table = MemTable::try_new(Arc::clone(&schema), partitions).unwrap();
    stage.context.register_table("requests", Arc::new(table)).unwrap();
    // The same rows behind a table that no rule knows: what any join must give.
    let rows = stage.query("SELECT * FROM LATEST(purchases)").await.unwrap();
    let plain = MemTable::try_new(rows[0].schema(), vec![rows]).unwrap();
    stage.context.register_table("plain", Arc::new(plain)).unwrap();
    stage
}

const LOOKED_UP: [&str; 16] = [
    "SELECT e.*, f.* FROM requests e JOIN $L f USING (user_id)",
    "SELECT * FROM requests e JOIN $L f USING (user_id)",
    "SELECT * FROM requests e LEFT JOIN $L f USING (user_id)",
    "SELECT e.name, f.amount FROM requests e JOIN $L f ON e.user_id = f.user_id",
    "SELECT e.name, f.user_id, f._status FROM requests e LEFT JOIN $L f ON e.user_id = f.user_id",
    "SELECT e.name, f.amount FROM $L f JOIN requests e ON e.user_id = f.user_id",
    "SELECT f.*, e.name FROM $L f RIGHT JOIN requests e ON e.user_id = f.user_id",
    "SELECT e.name, f.amount FROM requests e JOIN $L f ON e.small = f.user_id",
    "SELECT e.name, f.amount FROM requests e JOIN $L f ON e.user_id + 1 = f.user_id",
    "SELECT e.name FROM requests e JOIN $L f USING (user_id) WHERE f.amount > 10",
    "SELECT e.name, f.note FROM requests e JOIN $L f USING (user_id) WHERE f.amount > 9 AND e.name <> 'n5'",
    "SELECT e.name, f.note FROM requests e JOIN $L f ON e.user_id = f.user_id AND f.amount > e.small * 10 - 1",
    "SELECT count(*) FROM requests e JOIN $L f USING (user_id)",
    "SELECT e.name, f.m FROM requests e JOIN (SELECT user_id AS u, amount AS m FROM $L) f ON e.user_id = f.u",
    "SELECT a.amount, b.note FROM requests e JOIN $L a ON e.user_id = a.user_id JOIN $L b ON e.small = b.user_id",
    "SELECT e.name, f.note FROM requests e, $L f WHERE e.user_id = f.user_id AND e.small > 1",
];

const JOINED: [&str; 8] = [
    "SELECT e.name, f.amount FROM requests e FULL JOIN $L f USING (user_id)",
    "SELECT e.name, f.amount FROM requests e RIGHT JOIN $L f USING (user_id)",
    "SELECT e.name, f.amount FROM requests e JOIN $L f ON e.user_id < f.user_id",
    "SELECT e.name, f.amount FROM requests e JOIN $L f ON e.user_id = f.amount",
    "SELECT e.name, f.amount FROM requests e JOIN $L f ON e.user_id = f.user_id AND e.name = f.note",
    "SELECT e.name, f.amount FROM requests e LEFT JOIN $L f ON e.user_id = f.user_id AND f.amount > 10",
    "SELECT e.name, f.amount FROM requests e LEFT JOIN (SELECT * FROM $L WHERE amount > 10) f USING (user_id)",
    "SELECT e.name, f.m FROM requests e JOIN (SELECT user_id, max(amount) m FROM $L GROUP BY 1) f USING (user_id)",
];

#[tokio::test]
async fn a_join_gives_what_it_gives_over_any_table() {
    let stage = with_requests().await;
    for (sql, looked_up) in LOOKED_UP.iter().map(|s| (s, true)).chain(JOINED.iter().map(|s| (s, false))) {
        let latest = sql.replace("$L", "LATEST(purchases)");
        assert_eq!(stage.sorted(&latest).await, stage.sorted(&sql.replace("$L", "plain")).await, "{sql}");
        let plan = stage.explain(&latest).await;
        assert_eq!(!plan.contains("LatestScanExec"), looked_up, "{sql}: {plan}");
        assert_eq!(
            plan.contains("missing=drop") || plan.contains("missing=null"),
            looked_up,
            "{sql}: {plan}"
        );
    }
}

#[tokio::test]
async fn a_join_asks_for_each_user_of_a_batch_once() {
    let stage = with_requests().await;
    let users: Vec<String> = (0..3000).map(|i| format!("({})", i % 3)).collect();
    let sql = format!(
        "EXPLAIN ANALYZE SELECT v.u, f.amount FROM (VALUES {}) v(u) JOIN LATEST(purchases) f ON v.u = f.user_id",
        users.join(",")
    );
    let text = stage.rows(&sql).await.join("\n");
    assert!(text.contains("output_rows=2.00 K") || text.contains("output_rows=2000"), "{text}");
    assert!(text.contains("store_reads=3"), "{text}");
}

#[tokio::test]
async fn a_stale_cache_can_be_ruled_out_in_a_join() {
    let stage = with_requests().await;
    let sql =
        "SELECT f.amount FROM requests e JOIN LATEST(purchases, max_staleness => '0s') f USING (user_id)";
    assert!(stage.explain(sql).await.contains("max_staleness=0s"));
}

/// A store that answers nobody before two ask at the same time.
#[derive(Debug)]
struct InPairs {
    store: Arc<dyn OnlineStore>,
    both: tokio::sync::Barrier,
}

#[async_trait]
impl OnlineStore for InPairs {
    fn describe(&self) -> String {
        self.store.describe()
    }

    async fn write(&self, group: &Arc<FeatureGroup>, history: &RecordBatch) -> Result<()> {
        self.store.write(group, history).await
    }

    async fn remove(&self, group: Uuid, keys: &[EntityKey]) -> Result<()> {
        self.store.remove(group, keys).await
    }

    async fn applied_snapshot(&self, group: Uuid) -> Result<Option<i64>> {
        self.store.applied_snapshot(group).await
    }

    async fn set_applied_snapshot(&self, group: Uuid, snapshot_id: i64) -> Result<()> {
        self.store.set_applied_snapshot(group, snapshot_id).await
    }

    async fn drop_group(&self, group: Uuid) -> Result<()> {
        self.store.drop_group(group).await
    }

    async fn get(
        &self,
        group: &Arc<FeatureGroup>,
        keys: &[EntityKey],
        max_staleness: Option<Duration>,
    ) -> Result<Found> {
        tokio::time::timeout(Duration::from_secs(60), self.both.wait()).await.expect("the other asks too");
        self.store.get(group, keys, max_staleness).await
    }

    fn scan(&self, group: &Arc<FeatureGroup>) -> BoxStream<'static, Result<ScannedEntries>> {
        self.store.scan(group)
    }
}

#[tokio::test]
async fn groups_in_one_query_are_read_in_one_go() {
    let stage = with_requests().await;
    let other =
        FeatureGroup { id: Uuid::new_v4(), name: TableName::new("public", "other"), ..purchases(None) };
    stage
        .define(
            other,
            vec![purchase_rows(&[(1, 7, Some(70), "a"), (2, 8, Some(80), "b"), (9, 9, Some(90), "c")])],
        )
        .await;
    let store = InPairs { store: Arc::clone(&stage.store), both: tokio::sync::Barrier::new(2) };
    let (store, clock): (Arc<dyn OnlineStore>, Arc<dyn Clock>) =
        (Arc::new(store), Arc::clone(&stage.clock) as _);
    let cases = [
        (
            "SELECT e.name, a.amount, b.amount FROM requests e JOIN LATEST(purchases) a USING (user_id) \
             JOIN LATEST(other) b ON e.user_id = b.user_id ORDER BY 1",
            vec!["n1|10|70", "n1|10|70", "n1|10|70", "n2||80"],
        ),
        (
            "SELECT e.name, a.amount, b.amount FROM requests e LEFT JOIN LATEST(purchases) a USING (user_id) \
             LEFT JOIN LATEST(other) b ON e.user_id = b.user_id WHERE e.user_id IN (2, 9) ORDER BY 1",
            vec!["n2||80", "n9||90"],
        ),
        (
            "SELECT a.user_id, a.amount, b.amount FROM LATEST(purchases, 2, 9, 1) a JOIN LATEST(other) b USING (user_id)",
            vec!["2||80", "9|0|90", "1|10|70"],
        ),
    ];
    for (sql, expected) in cases {
        let planner = Planner(Arc::clone(&store), Arc::clone(&clock));
        let state = SessionStateBuilder::new_from_existing(stage.context.state())
            .with_query_planner(Arc::new(planner));
        let context = SessionContext::new_with_state(state.build());
        let plan = stage.plan(sql).await.unwrap();
        // One partition: pairs of partitions would do for pairs of groups.
        context.state_ref().write().config_mut().options_mut().execution.target_partitions = 1;
        let rows = context.execute_logical_plan(plan).await.unwrap().collect().await.unwrap();
        assert_eq!(lines(&rows), expected, "{sql}");
    }
}
