//! `INSERT INTO`: DataFusion's rows handed to ingest.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::AsArray;
use datafusion::arrow::datatypes::{SchemaRef, UInt64Type};
use datafusion::catalog::{Session as CatalogSession, TableProvider};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{DFSchema, Result as DataFusionResult};
use datafusion::datasource::TableType;
use datafusion::datasource::sink::{DataSink, DataSinkExec};
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{DmlStatement, Expr, LogicalPlan, TableProviderFilterPushDown, Values};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};
use futures::TryStreamExt;

use super::ddl::RESERVED_SCHEMAS;
use super::running::Run;
use super::session::{Session, default_schema, referenced, run};
use crate::error::{Error, Result};
use crate::ingest::Ingest;
use crate::model::{IdempotencyKey, TableName};
use crate::offline::IcebergTable;
use crate::registry::Object;

impl Session {
    /// Runs an INSERT; with a key that an earlier one into the same table had, only tells what that one added.
    pub(super) async fn insert(
        &self,
        state: &SessionState,
        dml: DmlStatement,
        key: Option<&IdempotencyKey>,
        counted: &Arc<Run>,
    ) -> Result<u64> {
        let name = referenced(&dml.table_name, default_schema(state))?;
        // No table may be called so: see `check_creatable`.
        if name.name.contains('$') || RESERVED_SCHEMAS.contains(&name.schema.as_str()) {
            return Err(Error::invalid(format!("'{}' is read-only", dml.table_name)));
        }
        let plan = nulls_reach_ingest(LogicalPlan::Dml(dml))?;
        let mut state = state.clone();
        state.config_mut().set_extension(Arc::clone(counted)); // where the sink finds it, as it does the key
        let Some(key) = key else { return count(run(&state, &plan).await?).await };
        if self.catalog.holds_temp(&name.schema) && self.catalog.temp.get(&name.name).is_some() {
            return Err(key_on_temporary(&name));
        }
        if let Some(rows) = self.engine.ingest.earlier(&name, Some(key)).await? {
            return Ok(rows);
        }
        state.config_mut().set_extension(Arc::new(key.clone()));
        count(run(&state, &plan).await?).await
    }
}

/// A temporary table forgets its keys with everything else, so that no retry is safe.
pub(super) fn key_on_temporary(name: &TableName) -> Error {
    Error::unsupported(format!(
        "an idempotency key does not work for '{}', which is temporary and has no snapshots to keep it: leave it out",
        name.name
    ))
}

/// Drains an INSERT, whose one row says how many rows it added.
async fn count(mut rows: SendableRecordBatchStream) -> Result<u64> {
    let mut sum = 0;
    while let Some(batch) = rows.try_next().await? {
        let counts = batch.column(0).as_primitive_opt::<UInt64Type>();
        let counts = counts.ok_or_else(|| Error::internal("an INSERT did not return its count"))?;
        sum += (0..counts.len()).map(|i| counts.value(i)).sum::<u64>();
    }
    Ok(sum)
}

/// The plan that appends `input` to the stored table `object`, as it is when the plan is made.
pub(super) fn insert_plan(
    ingest: &Arc<Ingest>,
    object: Object,
    input: Arc<dyn ExecutionPlan>,
    insert_op: InsertOp,
) -> Result<Arc<dyn ExecutionPlan>> {
    let name = object.version().name;
    append_only(&name, insert_op)?;
    let sink = IngestSink { ingest: Arc::clone(ingest), name, object, schema: input.schema() };
    Ok(Arc::new(DataSinkExec::new(input, Arc::new(sink), None)))
}

/// `VALUES` of an INSERT take the nullability of the table's columns, and a NULL among them would fail in the
/// planner's words. Here they are nullable, and ingest names the column that must not be NULL.
pub(super) fn nulls_reach_ingest(insert: LogicalPlan) -> Result<LogicalPlan> {
    let relaxed = insert.transform_up(|node| match node {
        LogicalPlan::Values(Values { schema, values }) => {
            let fields =
                schema.iter().map(|(q, f)| (q.cloned(), Arc::new(f.as_ref().clone().with_nullable(true))));
            let schema = DFSchema::new_with_metadata(fields.collect(), schema.metadata().clone())?;
            Ok(Transformed::yes(LogicalPlan::Values(Values { schema: Arc::new(schema), values })))
        }
        other => Ok(Transformed::yes(other.recompute_schema()?)),
    })?;
    Ok(relaxed.data)
}

/// Refuses `INSERT OVERWRITE` and `REPLACE INTO`.
pub(super) fn append_only(name: &TableName, insert_op: InsertOp) -> Result<()> {
    match insert_op {
        InsertOp::Append => Ok(()),
        InsertOp::Overwrite | InsertOp::Replace => {
            Err(Error::unsupported(format!("{insert_op} into '{name}' is not supported: use INSERT INTO")))
        }
    }
}

#[derive(Debug)]
struct IngestSink {
    ingest: Arc<Ingest>,
    name: TableName,
    object: Object,
    schema: SchemaRef,
}

impl DisplayAs for IngestSink {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ingest(table={})", self.name)
    }
}

#[async_trait]
impl DataSink for IngestSink {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    async fn write_all(
        &self,
        data: SendableRecordBatchStream,
        context: &Arc<TaskContext>,
    ) -> DataFusionResult<u64> {
        let key = context.session_config().get_extension::<IdempotencyKey>();
        let counted = context.session_config().get_extension::<Run>();
        let schema = data.schema();
        let data = data.inspect_ok(move |batch| counted.iter().for_each(|run| run.count(batch)));
        let data = Box::pin(RecordBatchStreamAdapter::new(schema, data));
        Ok(self.ingest.append_planned(&self.object, data, key.as_deref()).await?)
    }
}

/// A plain stored table: reads as its Iceberg snapshot does, and takes inserts.
#[derive(Debug)]
pub(super) struct PlainTable {
    pub(super) rows: Arc<IcebergTable>,
    pub(super) ingest: Arc<Ingest>,
}

#[async_trait]
impl TableProvider for PlainTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        self.rows.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn CatalogSession,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        self.rows.scan(state, projection, filters, limit).await
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        self.rows.supports_filters_pushdown(filters)
    }

    async fn insert_into(
        &self,
        _state: &dyn CatalogSession,
        input: Arc<dyn ExecutionPlan>,
        insert_op: InsertOp,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(insert_plan(&self.ingest, Object::Table(self.rows.table().clone()), input, insert_op)?)
    }
}
