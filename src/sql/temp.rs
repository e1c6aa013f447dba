//! Temporary tables and views: a session's own, in memory, gone with it.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::{MemTable, Session, TableProvider};
use datafusion::common::Result as DataFusionResult;
use datafusion::datasource::TableType;
use datafusion::datasource::sink::{DataSink, DataSinkExec};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan};
use futures::TryStreamExt;
use parking_lot::{Mutex, RwLock};
use uuid::Uuid;

use super::insert::append_only;
use crate::error::{Error, Result};
use crate::ingest::Conform;
use crate::model::TableName;
use crate::offline::storage_schema;

/// A session's temporary tables and views, by name.
#[derive(Debug, Default)]
pub(super) struct TempObjects(RwLock<BTreeMap<String, TempObject>>);

#[derive(Debug)]
struct TempObject {
    /// Another session, or this one later, may have another of its name.
    id: Uuid,
    provider: Arc<dyn TableProvider>,
}

impl TempObjects {
    pub(super) fn get(&self, name: &str) -> Option<Arc<dyn TableProvider>> {
        self.0.read().get(name).map(|object| Arc::clone(&object.provider))
    }

    pub(super) fn id(&self, name: &str) -> Option<Uuid> {
        self.0.read().get(name).map(|object| object.id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.read().is_empty()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.0.read().keys().cloned().collect()
    }

    /// Adds an object; `replace` lets it take the place of another.
    pub(super) fn insert(&self, name: &str, object: Arc<dyn TableProvider>, replace: bool) -> Result<()> {
        let mut objects = self.0.write();
        if !replace && objects.contains_key(name) {
            return Err(Error::already_exists(format!(
                "temporary table '{name}' exists already in this session"
            )));
        }
        objects.insert(name.to_owned(), TempObject { id: Uuid::new_v4(), provider: object });
        Ok(())
    }

    pub(super) fn remove(&self, name: &str) -> Option<Arc<dyn TableProvider>> {
        self.0.write().remove(name).map(|object| object.provider)
    }
}

/// Rows in memory, counted against the server's memory limit.
#[derive(Debug)]
pub(super) struct TempTable {
    name: TableName,
    schema: SchemaRef,
    rows: Arc<Mutex<Rows>>,
}

#[derive(Debug)]
struct Rows {
    batches: Vec<RecordBatch>,
    reservation: MemoryReservation,
}

impl TempTable {
    /// An empty table for rows of `schema`, kept under the types of a stored table.
    ///
    /// # Errors
    /// `Invalid`, naming the column, where a type has no place in a table.
    pub(super) fn new(name: &str, schema: &Schema, pool: &Arc<dyn MemoryPool>) -> Result<Self> {
        let reservation = MemoryConsumer::new(format!("temporary table '{name}'")).register(pool);
        let rows = Arc::new(Mutex::new(Rows { batches: Vec::new(), reservation }));
        Ok(Self { name: TableName::new("temp", name), schema: storage_schema(schema)?, rows })
    }

    /// Appends all rows, or none where one does not fit.
    pub(super) async fn append(&self, rows: SendableRecordBatchStream) -> Result<u64> {
        let conform = Conform::to_table(&self.name, &self.schema, &rows.schema())?;
        append(&self.rows, &conform, rows).await
    }
}

async fn append(table: &Mutex<Rows>, conform: &Conform, mut rows: SendableRecordBatchStream) -> Result<u64> {
    let mut added = Vec::new();
    let reservation = table.lock().reservation.new_empty();
    let mut count = 0;
    while let Some(batch) = rows.try_next().await? {
        let batch = conform.batch(&batch)?;
        reservation.try_grow(batch.get_array_memory_size())?;
        count += batch.num_rows() as u64;
        added.push(batch);
    }
    let mut table = table.lock();
    table.reservation.grow(reservation.size());
    reservation.free();
    table.batches.extend(added);
    Ok(count)
}

#[async_trait]
impl TableProvider for TempTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Temporary
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let batches = self.rows.lock().batches.clone();
        let partitions = spread(batches, state.config().target_partitions());
        MemTable::try_new(Arc::clone(&self.schema), partitions)?.scan(state, projection, filters, limit).await
    }

    async fn insert_into(
        &self,
        _state: &dyn Session,
        input: Arc<dyn ExecutionPlan>,
        insert_op: InsertOp,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        append_only(&self.name, insert_op)?;
        let sink = TempSink {
            conform: Conform::to_table(&self.name, &self.schema, &input.schema())?,
            schema: Arc::clone(&self.schema),
            rows: Arc::clone(&self.rows),
        };
        Ok(Arc::new(DataSinkExec::new(input, Arc::new(sink), None)))
    }
}

/// Batches dealt out to at most `partitions` partitions of about equal rows, in order.
fn spread(batches: Vec<RecordBatch>, partitions: usize) -> Vec<Vec<RecordBatch>> {
    let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
    let per_partition = rows.div_ceil(partitions.max(1)).max(1);
    let mut spread = vec![Vec::new()];
    let mut filled = 0;
    for batch in batches {
        if filled >= per_partition {
            spread.push(Vec::new());
            filled = 0;
        }
        filled += batch.num_rows();
        if let Some(last) = spread.last_mut() {
            last.push(batch);
        }
    }
    spread
}

#[derive(Debug)]
struct TempSink {
    conform: Conform,
    schema: SchemaRef,
    rows: Arc<Mutex<Rows>>,
}

impl DisplayAs for TempSink {
    fn fmt_as(&self, _t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TempTable")
    }
}

#[async_trait]
impl DataSink for TempSink {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    async fn write_all(
        &self,
        data: SendableRecordBatchStream,
        _context: &Arc<TaskContext>,
    ) -> DataFusionResult<u64> {
        Ok(append(&self.rows, &self.conform, data).await?)
    }
}
