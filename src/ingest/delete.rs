//! `DELETE`: rows that match go from every data file, in one commit, and from what is served.
//!
//! ```text
//! look for them in every file ─▶ write files anew that hold others too ─▶ commit, if nobody else did meanwhile
//!      ▲ in files that are new alone                                        │ if somebody did
//!      └────────────────────────────────────────────────────────────────────┘
//! ```
//! What was committed before the deletion is looked through, so nothing that matches survives it unnoticed.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::dataframe::DataFrame;
use datafusion::datasource::provider_as_source;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::execute_stream;
use futures::{StreamExt, TryStreamExt};

use super::Ingest;
use super::upkeep::in_order;
use crate::error::{Error, Result};
use crate::model::TableName;
use crate::offline::{DataFile, IcebergTable, OfflineTable, Rewritten, Verdict};

/// How often a deletion is begun again when others commit to the table.
const ATTEMPTS_MAX: usize = 64;
/// Files that are looked through at a time.
const FILES_AT_A_TIME: usize = 4;

impl Ingest {
    /// Deletes the rows of a table for which `predicate`, over its columns without qualifiers, is true; all where there is
    /// none. It is planned and run by `state`. Returns how many rows that were, once they are gone offline and, if it
    /// answers, from the online store.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` where the table was dropped or replaced meanwhile, or stays contended. Nothing is deleted then.
    pub(crate) async fn delete(
        &self,
        name: &TableName,
        predicate: Option<&Expr>,
        state: &SessionState,
    ) -> Result<u64> {
        Box::pin(self.checkpoint(Some(name))).await?;
        let table = self.existing(name).await?.1;
        let lock = self.rewrites.of(table.metadata().uuid());
        let _one_at_a_time = lock.lock().await;
        let mut rewritten = Vec::new();
        let deleted = self.try_delete(&table, predicate, state, &mut rewritten).await;
        match deleted {
            Ok((rows, committed)) => {
                match committed {
                    Some(table) => {
                        // A row that was logged, folded and deleted may not be online yet: then it must not come behind.
                        self.rounds_served().await;
                        self.serve(table).await;
                    }
                    None => self.offline.discard_rewritten(rewritten, None).await,
                }
                tracing::info!(table = %name, rows, "rows deleted");
                Ok(rows)
            }
            Err(error) => {
                self.offline.discard_rewritten(rewritten, Some(&error)).await;
                Err(error)
            }
        }
    }

    /// Returns how many rows were deleted, and the table without them where there were any.
    async fn try_delete(
        &self,
        first: &OfflineTable,
        predicate: Option<&Expr>,
        state: &SessionState,
        rewritten: &mut Vec<Rewritten>,
    ) -> Result<(u64, Option<OfflineTable>)> {
        let name = first.name();
        let mut verdict = Verdict::new();
        for _ in 0..ATTEMPTS_MAX {
            let table = self.existing(name).await?.1;
            if table.metadata().uuid() != first.metadata().uuid() {
                return Err(Error::conflict(format!("table '{name}' was dropped or replaced meanwhile")));
            }
            let files = self.offline.data_files(&table, None).await?;
            self.look(&table, &files, predicate, state, &mut verdict).await?;
            let rows_of = |file: &DataFile| verdict.get(file.file_path()).copied().unwrap_or(0);
            let found: Vec<&DataFile> = files.iter().filter(|file| rows_of(file) > 0).collect();
            if found.is_empty() {
                return Ok((0, None));
            }
            let live: HashSet<String> = files.iter().map(|file| file.file_path().to_owned()).collect();
            let stale =
                rewritten.extract_if(.., |rewritten| !rewritten.replaces_only(&live)).collect::<Vec<_>>();
            self.offline.discard_rewritten(stale, None).await;
            let is_to_do = |file: &&DataFile| {
                rows_of(file) < file.record_count()
                    && !rewritten.iter().any(|done| done.replaces(file.file_path()))
            };
            let to_do: Vec<DataFile> = found.iter().copied().filter(is_to_do).cloned().collect();
            if let (false, Some(predicate)) = (to_do.is_empty(), predicate) {
                rewritten.push(self.rewrite_without(&table, to_do, predicate, state, &verdict).await?);
            }
            let rows = found.iter().map(|file| rows_of(file)).sum();
            let paths = found.iter().map(|file| file.file_path().to_owned()).collect();
            if let Some(committed) = self.offline.commit_deletion(&table, paths, rows, rewritten).await? {
                return Ok((rows, Some(committed)));
            }
        }
        Err(Error::conflict(format!("table '{name}' is being written by too many at once: try again")))
    }

    /// Looks for rows that match in the files that have not been looked through.
    async fn look(
        &self,
        table: &OfflineTable,
        files: &[DataFile],
        predicate: Option<&Expr>,
        state: &SessionState,
        verdict: &mut Verdict,
    ) -> Result<()> {
        let unknown = files.iter().filter(|file| !verdict.contains_key(file.file_path()));
        let counts = unknown.map(|file| async move {
            let rows = match predicate {
                None => file.record_count(),
                Some(predicate) => {
                    let rows = self.filtered(table, vec![file.clone()], predicate.clone())?;
                    DataFrame::new(state.clone(), rows).count().await? as u64
                }
            };
            Ok::<_, Error>((file.file_path().to_owned(), rows))
        });
        let counts: Vec<_> = counts.collect();
        let found: Vec<(String, u64)> =
            futures::stream::iter(counts).buffer_unordered(FILES_AT_A_TIME).try_collect().await?;
        verdict.extend(found);
        Ok(())
    }

    /// Writes the rows of these files that do not match.
    async fn rewrite_without(
        &self,
        table: &OfflineTable,
        files: Vec<DataFile>,
        predicate: &Expr,
        state: &SessionState,
        verdict: &Verdict,
    ) -> Result<Rewritten> {
        let mut state = state.clone();
        state.config_mut().options_mut().execution.target_partitions = 1;
        // What is not true stays: false, and NULL.
        let kept = Expr::IsNotTrue(Box::new(predicate.clone()));
        let kept = self.filtered(table, files.clone(), kept)?;
        let rows = in_order(state.create_physical_plan(&kept).await?, table.rewrite_order())?;
        let rows = execute_stream(rows, state.task_ctx())?;
        self.offline.rewritten(table, &files, verdict, rows, self.memory()).await
    }

    fn filtered(&self, table: &OfflineTable, files: Vec<DataFile>, predicate: Expr) -> Result<LogicalPlan> {
        let rows = IcebergTable::of_files(Arc::clone(&self.offline), table.clone(), files);
        let scan = LogicalPlanBuilder::scan("rows", provider_as_source(Arc::new(rows)), None)?;
        Ok(scan.filter(predicate)?.build()?)
    }
}
