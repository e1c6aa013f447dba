//! Commits: tables are created, appended to, replaced and dropped, each by one compare-and-swap in the catalog.
//!
//! A catalog that fails may or may not have done what it was asked: the answer to a COMMIT can be lost. So a commit that
//! fails is not believed, and not guessed: [`OfflineStore::settled`] reads back what the catalog names now.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryPool;
use iceberg::spec::{DataFile, TableMetadata};

use super::snapshot::{self, Change};
use super::store::{Built, OfflineStore, TableSpec, next_location};
use super::table::OfflineTable;
use super::write::{WrittenFiles, write_files};
use crate::error::{Error, ErrorKind, Result};
use crate::model::TableName;

/// How often a commit starts again from fresh metadata when others commit to the same table.
pub(super) const COMMIT_ATTEMPTS_MAX: usize = 32;
/// How often a catalog that fails is asked again, and how long it is left alone at first; each time twice as long, 2.5 s
/// in all.
const CATALOG_ATTEMPTS_MAX: u32 = 9;
const CATALOG_PAUSE: Duration = Duration::from_millis(10);
/// How long that may take where the catalog does not fail but is silent.
const CATALOG_PATIENCE: Duration = Duration::from_secs(30);

/// Snapshot property: the idempotency key of the write that made it. A write with a key that one of a table's snapshots
/// has adds nothing; see [`OfflineTable::rows_written_with`] for how far back that is looked for.
pub(crate) const IDEMPOTENCY_KEY: &str = "fletching.idempotency-key";
/// The same of a snapshot of many writes: a JSON object of keys and how many rows each write added.
pub(crate) const IDEMPOTENCY_KEYS: &str = "fletching.idempotency-keys";
/// Snapshot property: the latest `_ingested_at` of its rows, in µs since 1970.
pub(crate) const INGESTED_AT: &str = "fletching.ingested-at-us";

impl OfflineStore {
    /// Creates a table, with rows if `rows` is given: both or neither become visible. Returns the rows written, for
    /// which `memory` is asked.
    ///
    /// # Errors
    /// `AlreadyExists` where the name is taken.
    pub(crate) async fn create(
        &self,
        spec: &TableSpec,
        rows: Option<SendableRecordBatchStream>,
        memory: &Arc<dyn MemoryPool>,
    ) -> Result<u64> {
        let built = self.build(spec, rows, memory).await?;
        let insert = || self.catalog.insert(&spec.name, &built.location);
        let refused = match self.settled(&spec.name, insert, |now| is_built(&built, now)).await {
            Ok(true) => return Ok(built.rows),
            Ok(false) => Error::already_exists(format!("table '{}' exists already", spec.name)),
            Err(error) if is_refusal(&error) => error,
            Err(error) => return Err(error),
        };
        self.discard(&built).await;
        Err(refused)
    }

    /// Puts a new table in the place of `old`, in one step.
    ///
    /// # Errors
    /// `Conflict` where `old` changed meanwhile.
    pub(crate) async fn replace(
        &self,
        old: &OfflineTable,
        spec: &TableSpec,
        rows: SendableRecordBatchStream,
        memory: &Arc<dyn MemoryPool>,
    ) -> Result<u64> {
        let built = self.build(spec, Some(rows), memory).await?;
        let replace = || self.catalog.replace(old, &built.location);
        let refused = match self.settled(&spec.name, replace, |now| is_built(&built, now)).await {
            Ok(true) => {
                self.delete_files(&old.metadata).await;
                return Ok(built.rows);
            }
            Ok(false) => {
                Error::conflict(format!("table '{}' changed while it was replaced: try again", spec.name))
            }
            Err(error) if is_refusal(&error) => error,
            Err(error) => return Err(error),
        };
        self.discard(&built).await;
        Err(refused)
    }

    /// Appends rows to `table`, at whatever metadata it has by then, and returns it with them, and how many they are.
    /// `properties` go into the snapshot's summary; where a snapshot has their [`IDEMPOTENCY_KEY`] already, nothing is
    /// appended, and the rows are those that it added.
    ///
    /// # Errors
    /// `Conflict` where the table was dropped or replaced meanwhile, or stays contended. Nothing is appended then.
    /// `Unavailable` where the catalog does not say what became of the commit: the rows may be there or not.
    pub(crate) async fn append(
        &self,
        table: &OfflineTable,
        rows: SendableRecordBatchStream,
        properties: HashMap<String, String>,
        memory: &Arc<dyn MemoryPool>,
    ) -> Result<(OfflineTable, u64)> {
        let written = write_files(&self.io, &table.metadata, rows, memory).await?;
        if written.files.is_empty() {
            return Ok((table.clone(), 0));
        }
        let (table, earlier) = self.commit(table, &written, &Change::Append(properties)).await?;
        Ok((table, earlier.unwrap_or(written.rows)))
    }

    /// Makes `change` with the files that are written, at whatever metadata `table` has by then. Returns the table after
    /// it, and how many rows an earlier write with the same key added, where there was one. Where it is certain that the
    /// files are not committed, they are removed.
    pub(super) async fn commit(
        &self,
        table: &OfflineTable,
        written: &WrittenFiles,
        change: &Change,
    ) -> Result<(OfflineTable, Option<u64>)> {
        let committed = self.try_commit(table, written, change).await;
        let is_named = match &committed {
            Ok((_, earlier)) => earlier.is_none(),
            // What became of others is not known, so their files must stay.
            Err(error) => !matches!(error.kind(), ErrorKind::Conflict | ErrorKind::Unsupported),
        };
        if !is_named {
            written.discard(&self.io).await;
        }
        committed
    }

    async fn try_commit(
        &self,
        table: &OfflineTable,
        written: &WrittenFiles,
        change: &Change,
    ) -> Result<(OfflineTable, Option<u64>)> {
        let key = match change {
            Change::Append(properties) => properties.get(IDEMPOTENCY_KEY),
            Change::Replace(_) | Change::Fold { .. } | Change::Delete(..) => None,
        };
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let current = self.current(table).await?;
            if let Some(rows) = key.and_then(|key| self.rows_written_with(&current, key)) {
                return Ok((current, Some(rows)));
            }
            let now_ms = self.clock.now_us().div_euclid(1000);
            let (io, files) = (&self.io, &written.files);
            let next =
                snapshot::changed(io, &self.manifests, &current.metadata, files, change, now_ms).await?;
            let ours = next.current_snapshot_id();
            let is_in = |now: &TableMetadata| ours.is_some_and(|ours| now.snapshot_by_id(ours).is_some());
            if let Some(committed) = self.swap(&current, next, files, is_in).await? {
                return Ok((committed, None));
            }
        }
        Err(contended(&table.name))
    }

    /// The rows that an earlier write with that key added to `table`, in a snapshot that is kept or in the log.
    pub(crate) fn rows_written_with(&self, table: &OfflineTable, key: &str) -> Option<u64> {
        let logged = self.rows_logged_with(table.metadata.uuid(), key);
        logged.or_else(|| table.rows_written_with(key))
    }

    /// What `table` is by now.
    pub(super) async fn current(&self, table: &OfflineTable) -> Result<OfflineTable> {
        let current = self.load(&table.name).await?;
        current.filter(|now| now.metadata.uuid() == table.metadata.uuid()).ok_or_else(|| {
            Error::conflict(format!("table '{}' was dropped or replaced meanwhile", table.name))
        })
    }

    /// Puts `next`, which names `new_files`, in the place of the metadata of `current`; `None` where somebody else was
    /// first. `is_in` says of later metadata whether it has what `next` brings.
    pub(super) async fn swap(
        &self,
        current: &OfflineTable,
        next: TableMetadata,
        new_files: &[DataFile],
        is_in: impl Fn(&TableMetadata) -> bool,
    ) -> Result<Option<OfflineTable>> {
        let name = &current.name;
        let (location, next) = match self.catalog.writes_metadata() {
            true => {
                let somewhere = format!("{}/metadata/next", current.metadata.location());
                self.warehouse.make_durable(&somewhere, false, new_files).await?;
                (somewhere, Arc::new(next))
            }
            false => self.write_metadata(next, next_location(current)?, new_files).await?,
        };
        let swap = || self.catalog.swap(current, &next, &location);
        if !self.settled(name, swap, |now| now.is_some_and(|now| is_in(&now.metadata))).await? {
            return Ok(None);
        }
        match self.catalog.writes_metadata() {
            // Its files are named by now, whatever this says.
            true => self.current(current).await.map(Some).map_err(|error| {
                Error::unavailable(format!(
                    "the change of table '{name}' took effect, but not more is known of it"
                ))
                .with_source(error)
            }),
            false => OfflineTable::new(name.clone(), &location, next).map(Some),
        }
    }

    /// Removes a table from the catalog, then its files.
    pub(crate) async fn drop_table(&self, table: &OfflineTable) -> Result<()> {
        let mut current = table.clone();
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let remove = || self.catalog.remove(&current.name, &current.location);
            let is_other = |now: Option<&OfflineTable>| {
                now.is_none_or(|now| now.metadata.uuid() != table.metadata.uuid())
            };
            if self.settled(&table.name, remove, is_other).await? {
                self.delete_files(&current.metadata).await;
                return Ok(());
            }
            match self.load(&table.name).await? {
                Some(newer) if newer.metadata.uuid() == table.metadata.uuid() => current = newer,
                _ => return Ok(()),
            }
        }
        Err(contended(&table.name))
    }

    /// Makes one change of the catalog's entry for `name`; returns whether it took effect. Where the catalog fails, what
    /// it names by then tells (`is_done`), and until it does, the change is asked for again: that is safe, because it
    /// depends on what the catalog names, so that of the same change sent twice one takes effect.
    ///
    /// # Errors
    /// `Unavailable` where the catalog keeps failing: the change may have taken effect or not, or may still do so.
    /// `Invalid` or `Unsupported` where the catalog takes no such change, and then it has not.
    async fn settled<F: Future<Output = Result<bool>>>(
        &self,
        name: &TableName,
        change: impl Fn() -> F,
        is_done: impl Fn(Option<&OfflineTable>) -> bool,
    ) -> Result<bool> {
        let settled = self.try_to_settle(name, change, is_done);
        let silent = |_| Err(unsettled(name, Error::unavailable("the catalog does not answer")));
        tokio::time::timeout(CATALOG_PATIENCE, settled).await.unwrap_or_else(silent)
    }

    async fn try_to_settle<F: Future<Output = Result<bool>>>(
        &self,
        name: &TableName,
        change: impl Fn() -> F,
        is_done: impl Fn(Option<&OfflineTable>) -> bool,
    ) -> Result<bool> {
        // A server may be asked twice by whoever stands before it, and tell of the second time.
        let (mut attempt, mut is_in_doubt) = (0, self.catalog.writes_metadata());
        loop {
            let change = change();
            #[cfg(test)]
            let change = self.faults.changing(change);
            let error = match change.await {
                Ok(true) => return Ok(true),
                Ok(false) if !is_in_doubt => return Ok(false),
                Ok(false) => match self.load(name).await {
                    Ok(now) => return Ok(is_done(now.as_ref())),
                    Err(error) => error,
                },
                Err(error) if is_refusal(&error) && !is_in_doubt => return Err(error),
                Err(error) => match self.load(name).await {
                    Ok(now) if is_done(now.as_ref()) => return Ok(true),
                    Ok(_) if is_refusal(&error) => return Err(error),
                    _ => error,
                },
            };
            is_in_doubt = true;
            attempt += 1;
            if attempt == CATALOG_ATTEMPTS_MAX {
                return Err(unsettled(name, error));
            }
            tracing::debug!(table = %name, %error, "the catalog is asked what became of a commit");
            tokio::time::sleep(CATALOG_PAUSE * 2_u32.pow(attempt - 1)).await;
        }
    }
}

/// Whether the catalog says that it takes no such change.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported)
}

fn unsettled(name: &TableName, error: Error) -> Error {
    Error::unavailable(format!(
        "the catalog does not say whether the change of table '{name}' took effect: look when it answers again, or send a \
         write again with the same idempotency key"
    ))
    .with_source(error)
}

fn is_built(built: &Built, now: Option<&OfflineTable>) -> bool {
    now.is_some_and(|now| now.metadata.uuid() == built.metadata.uuid())
}

pub(super) fn contended(name: &TableName) -> Error {
    Error::conflict(format!("table '{name}' is being written by too many at once: try again"))
}

#[cfg(test)]
mod tests;
