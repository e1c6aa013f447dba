//! Definitions that change between writes and under them: against a model, by servers at once, and for kept look-ups.

use std::collections::BTreeMap;

use datafusion::arrow::datatypes::Int64Type;
use proptest::prelude::*;

use super::*;

const NAMES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Step {
    /// Key, second, and a value for each feature there is.
    Insert(i64, i64, [Option<i64>; 3]),
    /// Feature, whether it is of floats, its default.
    Add(usize, bool, Option<i64>),
    Drop(usize),
    Widen(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let value = || prop::option::weighted(0.7, 0i64..100);
    prop_oneof![
        4 => (0i64..4, 0i64..50, [value(), value(), value()]).prop_map(|(k, s, v)| Step::Insert(k, s, v)),
        2 => (0usize..3, any::<bool>(), prop::option::of(100i64..200)).prop_map(|(f, r, d)| Step::Add(f, r, d)),
        1 => (0usize..3).prop_map(Step::Drop),
        1 => (0usize..3).prop_map(Step::Widen),
    ]
}

#[derive(Debug)]
struct Feature {
    is_float: bool,
    is_wide: bool,
    default: Option<i64>,
    /// Its values, by the number of the row; rows from before it have none.
    values: BTreeMap<usize, Option<i64>>,
}

/// What the group holds, as one would say it.
#[derive(Debug, Default)]
struct Model {
    rows: Vec<(i64, i64)>,
    features: BTreeMap<usize, Feature>,
}

impl Model {
    /// The statement for a step, and what it does here.
    fn take(&mut self, step: &Step) -> Option<String> {
        match step {
            Step::Insert(key, second, values) => {
                let (mut columns, mut given) = (String::new(), String::new());
                for (at, feature) in &mut self.features {
                    feature.values.insert(self.rows.len(), values[*at]);
                    columns += &format!(", {}", NAMES[*at]);
                    given += &values[*at].map_or_else(|| ", NULL".to_owned(), |value| format!(", {value}"));
                }
                self.rows.push((*key, *second));
                Some(format!(
                    "INSERT INTO g (id, ts{columns}) VALUES ({key}, TIMESTAMP '2025-12-31T00:00:{second:02}'{given})"
                ))
            }
            Step::Add(at, is_float, default) if !self.features.contains_key(at) => {
                let (is_wide, values) = (false, BTreeMap::new());
                self.features
                    .insert(*at, Feature { is_float: *is_float, is_wide, default: *default, values });
                let default = default.map_or_else(String::new, |default| format!(" DEFAULT {default}"));
                let data_type = if *is_float { "REAL" } else { "INT" };
                Some(format!("ALTER FEATURE GROUP g ADD FEATURE {} {data_type}{default}", NAMES[*at]))
            }
            Step::Drop(at) if self.features.remove(at).is_some() => {
                Some(format!("ALTER FEATURE GROUP g DROP FEATURE {}", NAMES[*at]))
            }
            Step::Widen(at) => {
                let feature = self.features.get_mut(at).filter(|feature| !feature.is_wide)?;
                feature.is_wide = true;
                let data_type = if feature.is_float { "DOUBLE" } else { "BIGINT" };
                Some(format!("ALTER FEATURE GROUP g ALTER FEATURE {} TYPE {data_type}", NAMES[*at]))
            }
            Step::Add(..) | Step::Drop(_) => None,
        }
    }

    /// The features as columns of a query, each behind a comma.
    fn columns(&self, table: &str) -> String {
        self.features.keys().map(|at| format!(", CAST({table}.{0} AS BIGINT) AS {0}", NAMES[*at])).collect()
    }

    fn scanned(&self) -> Vec<Vec<Option<i64>>> {
        let row = |(row, (key, _)): (usize, &(i64, i64))| {
            let values = self.features.values().map(|f| f.values.get(&row).copied().flatten());
            std::iter::once(Some(*key)).chain(values).collect()
        };
        let mut rows: Vec<_> = self.rows.iter().enumerate().map(row).collect();
        rows.sort();
        rows
    }

    /// For each key the features of the row that was written last among those of its greatest time.
    fn latest(&self) -> Vec<Vec<Option<i64>>> {
        let newest = |key: i64| {
            let rows = self.rows.iter().enumerate().filter(|(_, (of, _))| *of == key);
            rows.max_by_key(|(row, (_, second))| (*second, *row)).map(|(row, _)| row)
        };
        let of_key = |key: i64| {
            let values = self.features.values().map(|feature| match newest(key) {
                Some(row) => feature.values.get(&row).copied().flatten(),
                None => feature.default,
            });
            std::iter::once(Some(key)).chain(values).collect()
        };
        (0..4).map(of_key).collect()
    }
}

/// The rows of a query whose columns are all BIGINT.
async fn numbers(session: &Session, sql: &str) -> Vec<Vec<Option<i64>>> {
    let rows: Vec<RecordBatch> = session.query(sql, None).await.unwrap().try_collect().await.unwrap();
    let row = |batch: &RecordBatch, row: usize| -> Vec<Option<i64>> {
        let column = |c: &datafusion::arrow::array::ArrayRef| {
            c.as_primitive::<Int64Type>().slice(row, 1).iter().next()
        };
        batch.columns().iter().filter_map(column).collect()
    };
    rows.iter().flat_map(|batch| (0..batch.num_rows()).map(|r| row(batch, r)).collect::<Vec<_>>()).collect()
}

async fn check(steps: Vec<Step>) {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    let create = "CREATE FEATURE GROUP g (id BIGINT, ts TIMESTAMP, ENTITY KEY (id), EVENT TIME (ts))";
    session.update(create, None).await.unwrap();
    let labels =
        "CREATE TEMP TABLE l AS SELECT value AS id, TIMESTAMP '2026-01-01' AS at FROM generate_series(0, 3)";
    session.update(labels, None).await.unwrap();
    let mut model = Model::default();
    for step in &steps {
        let Some(sql) = model.take(step) else { continue };
        session.update(&sql, None).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
        let mut scanned = numbers(&session, &format!("SELECT g.id{} FROM g", model.columns("g"))).await;
        scanned.sort();
        assert_eq!(scanned, model.scanned(), "scanned after {sql}");
        let columns = model.columns("f");
        let latest = format!("SELECT f.id{columns} FROM LATEST(g, 0, 1, 2, 3) f");
        assert_eq!(numbers(&session, &latest).await, model.latest(), "{latest} after {sql}");
        let asof = format!(
            "SELECT l.id{columns} FROM l ASOF JOIN g f MATCH_CONDITION (l.at >= f.ts) ON l.id = f.id ORDER BY 1"
        );
        assert_eq!(numbers(&session, &asof).await, model.latest(), "{asof} after {sql}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn rows_of_every_definition_read_right(steps in prop::collection::vec(step(), 1..16)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(check(steps));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_and_writes_at_once_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let servers = [engine_serving(dir.path(), "one").await, engine_serving(dir.path(), "two").await];
    servers[0].session().update(GROUP, None).await.unwrap();
    let mut statements: Vec<String> = (0..8)
        .map(|id| {
            format!("INSERT INTO user_purchases (user_id, event_timestamp) VALUES ({id}, '2025-12-31')")
        })
        .collect();
    let alter = |action: &str| format!("ALTER FEATURE GROUP user_purchases {action}");
    statements.extend((0..4).map(|i| alter(&format!("ADD FEATURE f{i} BIGINT DEFAULT {i}"))));
    statements.push(alter("ADD FEATURE without_default BIGINT"));
    statements
        .extend([alter("DROP FEATURE favorite_category"), alter("SET (owner = 'both', ttl = '20 days')")]);
    let both = statements.iter().enumerate().map(|(i, sql)| {
        let session = servers[i % 2].session();
        async move { session.update(sql, None).await.map_err(|error| panic!("{sql}: {error}")) }
    });
    futures::future::try_join_all(both).await.unwrap_or_else(|()| unreachable!());
    for server in &servers {
        server.catch_up().await.unwrap();
        let session = server.session();
        let counted = "SELECT count(*) AS n, sum(user_id) AS s FROM ";
        for rows in ["user_purchases", "LATEST(user_purchases)"] {
            assert!(table(&session, &format!("{counted}{rows}")).await.contains("| 8 | 28 |"), "{rows}");
        }
        let group =
            table(&session, "SELECT owner, ttl, array_length(features) AS n FROM system.feature_groups")
                .await;
        assert!(group.contains("| both  | 20days"), "{group}");
        assert!(group.contains("| 6 |"), "{group}");
        let defaults = "SELECT f0, f1, f2, f3 FROM LATEST(user_purchases, 99)";
        assert!(table(&session, defaults).await.contains("| 0  | 1  | 2  | 3  |"));
    }
}

#[tokio::test]
async fn a_feature_is_added_once_by_those_who_add_it_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    engine.session().update(GROUP, None).await.unwrap();
    let add = |i: usize| {
        let session = engine.session();
        async move {
            session
                .update(&format!("ALTER FEATURE GROUP user_purchases ADD FEATURE f INT DEFAULT {i}"), None)
                .await
        }
    };
    let added = futures::future::join_all((0..4).map(add)).await;
    assert_eq!(added.iter().filter(|added| added.is_ok()).count(), 1);
    for error in added.into_iter().filter_map(Result::err) {
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    }
}

#[tokio::test]
async fn kept_look_ups_and_open_sessions_follow() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let (session, other) = (engine.session(), engine.session());
    session.update(GROUP, None).await.unwrap();
    session.update("INSERT INTO user_purchases VALUES (1, '2025-12-31', 3, 'books')", None).await.unwrap();
    let all = "SELECT * FROM LATEST(user_purchases, 1)";
    let columns = async |session: &Session| {
        let prepared = session.prepare(all).await.unwrap().schema;
        let rows: Vec<RecordBatch> = session.query(all, None).await.unwrap().try_collect().await.unwrap();
        assert_eq!(rows[0].schema(), prepared);
        prepared.fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>().join(" ")
    };
    let before = "user_id event_timestamp purchase_count_7d favorite_category _status";
    assert_eq!(columns(&session).await, before);
    assert_eq!(columns(&other).await, before);
    let alter = "ALTER FEATURE GROUP user_purchases DROP FEATURE favorite_category, ADD FEATURE score DOUBLE";
    session.update(alter, None).await.unwrap();
    let after = "user_id event_timestamp purchase_count_7d score _status";
    assert_eq!(columns(&other).await, after);
    assert_eq!(columns(&session).await, after);
    let prepared = session.prepare(alter).await.unwrap();
    assert_eq!(prepared.kind, StatementKind::Update);
}
