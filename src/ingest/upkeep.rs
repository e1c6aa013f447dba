//! History kept fit to be read: small files merged into sorted ones, and what nobody reads any more deleted. The rows
//! are the same before and after, offline and online.

use std::sync::Arc;

use datafusion::arrow::compute::SortOptions;
use datafusion::catalog::TableProvider;
use datafusion::execution::context::SessionContext;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_expr::expressions::col;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::sorts::sort::SortExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionConfig;

use super::Ingest;
use crate::error::{Error, Result};
use crate::model::{FeatureGroup, TableName};
use crate::offline::{Extent, OfflineTable, Optimized, Vacuumed};
use crate::registry::Object;

/// So many files to merge in a table are worth the work without being asked for it.
const DUE_FILES_MIN: usize = 32;

impl Ingest {
    /// The tables with many files to merge, but for those that cannot be read.
    pub(crate) async fn due_for_optimize(&self) -> Result<Vec<TableName>> {
        let mut due = Vec::new();
        for (name, location) in &self.registry.listing().await?.tables {
            let layout = async {
                let table = self.offline.load_at(name, location).await?;
                self.offline.layout(&table, Extent::Needed).await
            };
            match layout.await {
                Ok(layout) if layout.chosen() >= DUE_FILES_MIN => due.push(name.clone()),
                Ok(_) => {}
                Err(error) => tracing::debug!(table = %name, %error, "a table is not optimized"),
            }
        }
        Ok(due)
    }

    /// Merges small and unsorted data files of a table into sorted ones; of two calls for one table the second waits for
    /// the first. Rows are brought into order by `sorting`, in as much memory as that has, and on disk beyond.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for a table that is not written here; `Conflict` where files that were read were replaced
    /// or removed meanwhile. Nothing is changed then.
    pub(crate) async fn optimize(
        &self,
        name: &TableName,
        extent: Extent,
        sorting: Arc<RuntimeEnv>,
    ) -> Result<Optimized> {
        Box::pin(self.checkpoint(Some(name))).await?;
        let lock = self.rewrites.of(self.existing(name).await?.1.metadata().uuid());
        let _one_at_a_time = lock.lock().await;
        let (_, table) = self.existing(name).await?;
        let layout = self.offline.layout(&table, extent).await?;
        if layout.is_good() {
            return Ok(layout.unchanged());
        }
        let config = SessionConfig::new().with_target_partitions(1);
        let state = SessionContext::new_with_config_rt(config, sorting).state();
        let scan = layout.rows(&self.offline, &table).scan(&state, None, &[], None).await?;
        let rows = execute_stream(in_order(scan, table.rewrite_order())?, state.task_ctx())?;
        let (table, optimized) = self.offline.rewrite(&table, &layout, rows, self.memory()).await?;
        tracing::info!(table = %name, ?optimized, "data files merged");
        self.serve(table).await;
        Ok(optimized)
    }

    /// Expires snapshots that were last current before `cutoff_us` (µs since 1970), that the online store has applied, and
    /// that are not `read`, and deletes the files that only they name, and those of writes that never ended.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported` for a table outside the warehouse; `Unavailable` where the online store does not say what
    /// it has applied; `Conflict` where the table changed too often meanwhile. Nothing is deleted then.
    pub(crate) async fn vacuum(&self, name: &TableName, cutoff_us: i64, read: &[i64]) -> Result<Vacuumed> {
        Box::pin(self.checkpoint(Some(name))).await?;
        let (group, table) = self.existing(name).await?;
        let applied = match group.filter(|group| group.online) {
            Some(group) => self.online.applied_snapshot(group.id).await?,
            None => None,
        };
        let vacuumed = self.offline.vacuum(&table, cutoff_us, applied, read).await?;
        tracing::info!(table = %name, ?vacuumed, "old snapshots and files removed");
        Ok(vacuumed)
    }

    pub(super) async fn existing(
        &self,
        name: &TableName,
    ) -> Result<(Option<Arc<FeatureGroup>>, OfflineTable)> {
        match self.registry.object(name).await? {
            Some(Object::FeatureGroup(group, table)) => Ok((Some(group), table)),
            Some(Object::Table(table)) => Ok((None, table)),
            None => Err(Error::not_found(format!("table '{name}' does not exist"))),
        }
    }
}

/// `rows` sorted by these columns, ascending and NULLs first; as they come where there are none.
pub(super) fn in_order(rows: Arc<dyn ExecutionPlan>, columns: &[String]) -> Result<Arc<dyn ExecutionPlan>> {
    let options = SortOptions { descending: false, nulls_first: true };
    let mut order = Vec::with_capacity(columns.len());
    for column in columns {
        order.push(PhysicalSortExpr::new(col(column, &rows.schema())?, options));
    }
    Ok(match LexOrdering::new(order) {
        Some(order) => Arc::new(SortExec::new(order, rows)),
        None => rows,
    })
}
