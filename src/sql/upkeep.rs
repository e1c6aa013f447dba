//! `OPTIMIZE`, `VACUUM` and `PURGE`: work on a stored table that is done when its one row is fetched, and not before.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{Int64Array, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::TableReference;
use datafusion::datasource::provider_as_source;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::LogicalPlanBuilder;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::sql::sqlparser::ast::ObjectName;

use super::engine::Engine;
use super::jobs::{Job, JobKind};
use super::memory::BoundedPool;
use super::session::{Planned, Session, default_schema, table_name};
use crate::error::{Error, Result};
use crate::metrics::Kind;
use crate::model::TableName;
use crate::offline::Extent;

/// How long snapshots are kept that are no longer current, where a `VACUUM` does not say.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// What sorting rows takes in memory before it goes to disk.
pub(super) const SORT_BYTES_MAX: usize = 512 << 20;

const OPTIMIZED: [&str; 5] = ["files_before", "files_after", "bytes_before", "bytes_after", "rows_rewritten"];

const VACUUMED: [&str; 5] = [
    "snapshots_expired",
    "data_files_deleted",
    "metadata_files_deleted",
    "orphan_files_deleted",
    "bytes_deleted",
];

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Upkeep {
    Optimize(Extent),
    /// Keeps what was current so long ago; `None` is [`RETENTION`].
    Vacuum(Option<Duration>),
    /// Keeps only what is there now.
    Purge,
}

impl Upkeep {
    fn kind(self) -> JobKind {
        match self {
            Self::Optimize(_) => JobKind::Optimize,
            Self::Vacuum(_) => JobKind::Vacuum,
            Self::Purge => JobKind::Purge,
        }
    }

    /// The names of its columns.
    fn columns(self) -> [&'static str; 5] {
        match self {
            Self::Optimize(_) => OPTIMIZED,
            Self::Vacuum(_) | Self::Purge => VACUUMED,
        }
    }
}

impl Session {
    /// The plan of an `OPTIMIZE`, `VACUUM` or `PURGE`.
    ///
    /// # Errors
    /// `NotFound` where there is no stored table of that name.
    pub(super) async fn plan_upkeep(
        &self,
        state: &SessionState,
        name: &ObjectName,
        upkeep: Upkeep,
    ) -> Result<Planned> {
        let table = table_name(name, default_schema(state))?;
        if self.catalog.object(&table).await?.is_none() {
            return Err(Error::not_found(format!("table '{table}' does not exist")));
        }
        let fields = upkeep.columns().map(|name| Field::new(name, DataType::Int64, false));
        let schema = Arc::new(Schema::new(fields.to_vec()));
        let shown = TableReference::partial(table.schema.clone(), upkeep.kind().name());
        let job = Job { kind: upkeep.kind(), target: table.clone() };
        let work = Work { engine: Arc::clone(&self.engine), table, upkeep, schema: Arc::clone(&schema) };
        let rows = StreamingTable::try_new(schema, vec![Arc::new(work)])?;
        let plan = LogicalPlanBuilder::scan(shown, provider_as_source(Arc::new(rows)), None)?.build()?;
        Ok(Planned::Upkeep(plan, job))
    }
}

/// The one partition of the result, whose row is there when the work is done.
#[derive(Clone)]
struct Work {
    engine: Arc<Engine>,
    table: TableName,
    upkeep: Upkeep,
    schema: SchemaRef,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {}", self.upkeep, self.table)
    }
}

impl Work {
    async fn run(self, runtime: Arc<RuntimeEnv>) -> Result<RecordBatch> {
        let counts = match self.upkeep {
            Upkeep::Optimize(extent) => {
                let done = self.engine.optimize(&self.table, extent, &runtime).await?;
                let files = [done.files_before, done.files_after];
                [files[0], files[1], done.bytes_before, done.bytes_after, done.rows_rewritten]
            }
            Upkeep::Vacuum(retain) => {
                vacuumed(self.engine.vacuum(&self.table, retain.unwrap_or(RETENTION)).await?)
            }
            Upkeep::Purge => vacuumed(self.engine.purge(&self.table).await?),
        };
        let counts = counts.map(|count| i64::try_from(count).unwrap_or(i64::MAX));
        let columns = counts.map(|count| Arc::new(Int64Array::from_value(count, 1)) as _);
        Ok(RecordBatch::try_new(self.schema, columns.to_vec())?)
    }
}

fn vacuumed(done: crate::offline::Vacuumed) -> [u64; 5] {
    let files = [done.data_files_deleted, done.metadata_files_deleted, done.orphan_files_deleted];
    [done.snapshots_expired, files[0], files[1], files[2], done.bytes_deleted]
}

impl PartitionStream for Work {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (work, runtime) = (self.clone(), context.runtime_env());
        let done = async move { Ok(work.run(runtime).await?) };
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), futures::stream::once(done)))
    }
}

impl Engine {
    /// Merges files of every table that has many small ones, one table after the other; returns how many that were. What
    /// does not succeed is told of in the log.
    pub(crate) async fn optimize_due(self: &Arc<Self>) -> Result<usize> {
        let engine = Arc::clone(self);
        let work = async move {
            let mut optimized = 0;
            for table in engine.ingest.due_for_optimize().await? {
                match engine.optimize(&table, Extent::Needed, &engine.runtime).await {
                    Ok(_) => optimized += 1,
                    Err(error) => tracing::warn!(%table, %error, "small files stay as they are"),
                }
            }
            Ok(optimized)
        };
        self.compute.run(work).await
    }

    /// Expires snapshots of every table that were last current so long ago, one table after the other. What does not succeed
    /// is told of in the log.
    pub(crate) async fn vacuum_all(self: &Arc<Self>, retain: Duration) -> Result<()> {
        let engine = Arc::clone(self);
        let work = async move {
            for table in engine.registry.listing().await?.tables.keys() {
                if let Err(error) = engine.vacuum(table, retain).await {
                    tracing::warn!(%table, %error, "old snapshots stay");
                }
            }
            Ok(())
        };
        self.compute.run(work).await
    }

    /// Merges files of a table; see [`crate::ingest::Ingest::optimize`].
    async fn optimize(
        &self,
        table: &TableName,
        extent: Extent,
        runtime: &Arc<RuntimeEnv>,
    ) -> Result<crate::offline::Optimized> {
        let memory_pool = Arc::new(BoundedPool::new(Arc::clone(&runtime.memory_pool), SORT_BYTES_MAX));
        let sorting = Arc::new(RuntimeEnv { memory_pool, ..runtime.as_ref().clone() });
        self.ingest.optimize(table, extent, sorting).await
    }

    /// Deletes all but what is there now.
    ///
    /// # Errors
    /// `Conflict` where something holds an older snapshot; others are gone then.
    async fn purge(&self, table: &TableName) -> Result<crate::offline::Vacuumed> {
        self.checkpoint(Some(table)).await?;
        let before = self.offline.load(table).await?;
        let deletions = before.map(|before| before.deletions_since(None)).unwrap_or_default();
        let purged = self.vacuum(table, Duration::ZERO).await?;
        let Some(now) = self.offline.load(table).await? else { return Ok(purged) };
        self.offline.delete_superseded(Some(now.metadata().uuid()), i64::MAX).await;
        // Writers may have made snapshots since; what they hold is not what was deleted.
        let newest = deletions.first().map_or(0, |deletion| deletion.sequence_number());
        match now.metadata().snapshots().filter(|kept| kept.sequence_number() < newest).count() {
            0 => Ok(purged),
            held => Err(Error::conflict(format!(
                "{held} earlier snapshots of '{table}' are still kept, and with them rows that were deleted since: by \
                 statements that began before, by the online store where it is behind (REFRESH ONLINE {table}), or by a tag or \
                 branch of another engine; PURGE again when they are not"
            ))),
        }
    }

    /// Deletes what was last current so long ago, and is nothing to any statement that runs here.
    async fn vacuum(&self, table: &TableName, retain: Duration) -> Result<crate::offline::Vacuumed> {
        let retain_us = i64::try_from(retain.as_micros()).unwrap_or(i64::MAX);
        let retained_us = self.clock.now_us().saturating_sub(retain_us);
        let id = self.offline.load(table).await?.map(|table| table.metadata().uuid());
        let running = self.running.list();
        // A stream of writes may go on for weeks, and reads nothing of before.
        let readers = running.iter().filter(|(run, _)| run.kind != Kind::Stream);
        let started_us = readers.map(|(run, _)| run.started_us).min().unwrap_or(i64::MAX);
        let read: Vec<i64> =
            running.iter().flat_map(|(run, _)| id.map(|id| run.read_of(id)).unwrap_or_default()).collect();
        self.ingest.vacuum(table, retained_us.min(started_us), &read).await
    }
}
