//! `LATEST` through SQL, over the embedded store with a cache.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, AsArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::context::{QueryPlanner, SessionState};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::prelude::{SessionConfig, SessionContext};
use proptest::prelude::*;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::clock::{Clock, ManualClock};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::LookupPlanner;
use crate::model::{Column, FeatureGroup, TableName};
use crate::online::{Backend, CacheOptions, OnlineOptions, OnlineStore, open};
use crate::sql::FeatureGroupTable;

mod binding;
mod joins;
mod keys;
mod oracle;
mod scans;

const NOW: i64 = 1_000;

#[derive(Debug)]
struct Planner(Arc<dyn OnlineStore>, Arc<dyn Clock>);

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        state: &SessionState,
    ) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
        let lookups = LookupPlanner::new(Arc::clone(&self.0), Arc::clone(&self.1));
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(lookups)]);
        planner.create_physical_plan(plan, state).await
    }
}

/// A session with a store, and groups in both.
struct Stage {
    context: SessionContext,
    store: Arc<dyn OnlineStore>,
    clock: Arc<ManualClock>,
    _directory: TempDir,
}

impl Stage {
    async fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let clock = Arc::new(ManualClock::new(NOW));
        let options = OnlineOptions {
            backend: Backend::Embedded { path: directory.path().join("online.redb") },
            timeout: Duration::from_secs(5),
            cache: Some(CacheOptions { capacity_bytes: 1 << 22, ttl: Duration::from_secs(60) }),
        };
        let store = open(options, Arc::clone(&clock) as Arc<dyn Clock>).await.unwrap();
        let time: Arc<dyn Clock> = Arc::clone(&clock) as _;
        let config = SessionConfig::new().with_target_partitions(4);
        let builder = SessionStateBuilder::new_with_default_features()
            .with_config(config)
            .with_query_planner(Arc::new(Planner(Arc::clone(&store), Arc::clone(&time))));
        let state = install(builder, Arc::clone(&store), time).build();
        Self { context: SessionContext::new_with_state(state), store, clock, _directory: directory }
    }

    /// Registers the group and applies `history` (in its history schema) to the store.
    async fn define(&self, group: FeatureGroup, history: Vec<RecordBatch>) -> Arc<FeatureGroup> {
        let group = Arc::new(group);
        for batch in &history {
            self.store.write(&group, batch).await.unwrap();
        }
        let table = MemTable::try_new(group.history_schema(), vec![history]).unwrap();
        let table = FeatureGroupTable::new(Arc::clone(&group), Arc::new(table));
        self.context.register_table(group.name.name.as_str(), Arc::new(table)).unwrap();
        group
    }

    async fn plan(&self, sql: &str) -> Result<LogicalPlan> {
        let state = self.context.state();
        let mut statement = state.sql_to_statement(sql, &datafusion::config::Dialect::Generic)?;
        rewrite_statement(&mut statement);
        Ok(state.statement_to_plan(statement).await?)
    }

    async fn query(&self, sql: &str) -> Result<Vec<RecordBatch>> {
        self.run(self.plan(sql).await?).await
    }

    async fn run(&self, plan: LogicalPlan) -> Result<Vec<RecordBatch>> {
        Ok(self.context.execute_logical_plan(plan).await?.collect().await?)
    }

    /// The rows as text, one line each, in their order.
    async fn rows(&self, sql: &str) -> Vec<String> {
        lines(&self.query(sql).await.unwrap())
    }

    async fn sorted(&self, sql: &str) -> Vec<String> {
        let mut rows = self.rows(sql).await;
        rows.sort_unstable();
        rows
    }

    async fn explain(&self, sql: &str) -> String {
        self.rows(&format!("EXPLAIN {sql}")).await.join("\n")
    }

    async fn error(&self, sql: &str) -> Error {
        match self.query(sql).await {
            Ok(rows) => panic!("{sql} gave {}", pretty_format_batches(&rows).unwrap()),
            Err(error) => error,
        }
    }
}

fn lines(batches: &[RecordBatch]) -> Vec<String> {
    let shown = pretty_format_batches(batches).unwrap().to_string();
    let rows = shown.lines().skip(3).filter(|line| line.starts_with('|'));
    rows.map(|line| {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        cells.join("|")
    })
    .collect()
}

fn column(name: &str, data_type: DataType, default: Option<ScalarValue>) -> Column {
    Column { field: Arc::new(Field::new(name, data_type, true)), default, description: None }
}

fn group(name: &str, columns: Vec<Column>, entity_key: Vec<usize>, ttl_us: Option<u64>) -> FeatureGroup {
    let event_time = columns.iter().position(|c| c.field.name() == "ts").unwrap();
    FeatureGroup {
        id: Uuid::new_v4(),
        name: TableName::new("public", name),
        version: 1,
        columns,
        entity_key,
        event_time,
        ttl: ttl_us.map(Duration::from_micros),
        owner: None,
        description: None,
        tags: vec![],
        online: true,
        schemas: vec![],
    }
}

fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

/// Features first, to see that `LATEST` puts the key and the time before them.
fn purchases(ttl_us: Option<u64>) -> FeatureGroup {
    let columns = vec![
        column("amount", DataType::Int64, Some(ScalarValue::Int64(Some(0)))),
        column("user_id", DataType::Int64, None),
        column("ts", time(), None),
        column("note", DataType::Utf8, None),
    ];
    group("purchases", columns, vec![1], ttl_us)
}

/// Rows of `purchases`: user, event time, amount, note; sequences count up, all ingested at 1.
fn purchase_rows(rows: &[(i64, i64, Option<i64>, &str)]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter(rows.iter().map(|r| r.2))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.0))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.1))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| r.3))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|_| 1)).with_timezone("UTC")),
        Arc::new(Int64Array::from_iter_values(0..rows.len() as i64)),
    ];
    RecordBatch::try_new(purchases(None).history_schema(), columns).unwrap()
}

/// 1 has an old row, a present one and a future one; 2 a NULL feature; 3 only the future; 4 is beyond the TTL of 500.
async fn with_purchases() -> Stage {
    let stage = Stage::new().await;
    let rows = purchase_rows(&[
        (1, 990, Some(9), "old"),
        (1, 995, Some(10), "now"),
        (1, NOW + 5, Some(11), "later"),
        (2, NOW, None, "two"),
        (3, NOW + 1, Some(30), "future"),
        (4, 499, Some(40), "stale"),
        (5, 500, Some(50), "just"),
    ]);
    stage.define(purchases(Some(500)), vec![rows]).await;
    stage
}
