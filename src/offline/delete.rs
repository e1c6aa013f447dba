//! Rows are deleted by copy-on-write: files that hold some are written anew without them, files that hold nothing else
//! are taken out, in one snapshot of operation `overwrite` or `delete`. Whoever reads an older snapshot still sees them, until
//! [`OfflineStore::vacuum`] deletes its files.
//!
//! The commit is a compare-and-swap against the metadata in which the files were looked for: where others committed
//! since, nothing is changed, and who deletes looks again, in the files that are new. So no row that was committed before it
//! survives it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryPool;
use iceberg::spec::{DataFile, ManifestStatus, Operation, SnapshotRef, TableMetadata};

use super::files::manifest_list;
use super::snapshot::{self, Change};
use super::store::OfflineStore;
use super::table::OfflineTable;
use super::write::{WrittenFiles, write_files};
use crate::error::{Error, ErrorKind, Result};

/// Snapshot property: how many rows a deletion of ours took away. All rows of the files that it added were there before.
pub(super) const DELETED_ROWS: &str = "fletching.deleted-rows";

/// What is known of a table's files: how many rows of each are to go, by path.
pub(crate) type Verdict = HashMap<String, u64>;

/// Files that were written anew without the rows that are to go.
#[derive(Debug)]
pub(crate) struct Rewritten {
    /// The paths of the files in whose place they come.
    sources: HashSet<String>,
    written: WrittenFiles,
}

impl Rewritten {
    /// Whether all files in whose place these come are among `live`.
    pub(crate) fn replaces_only(&self, live: &HashSet<String>) -> bool {
        self.sources.is_subset(live)
    }

    /// Whether these come in the place of that file too.
    pub(crate) fn replaces(&self, path: &str) -> bool {
        self.sources.contains(path)
    }
}

/// The data files that a snapshot took away and added.
#[derive(Debug, Default)]
pub(crate) struct Exchanged {
    pub(crate) removed: Vec<DataFile>,
    pub(crate) added: Vec<DataFile>,
}

impl OfflineStore {
    /// Writes `rows`, which are those of the files of `sources` that stay.
    ///
    /// # Errors
    /// `Corrupt` where they are not as many as `verdict` lets stay. Nothing remains then.
    pub(crate) async fn rewritten(
        &self,
        table: &OfflineTable,
        sources: &[DataFile],
        verdict: &Verdict,
        rows: SendableRecordBatchStream,
        memory: &Arc<dyn MemoryPool>,
    ) -> Result<Rewritten> {
        let written = write_files(&self.io, &table.metadata, rows, memory).await?;
        let deleted = |file: &DataFile| verdict.get(file.file_path()).copied().unwrap_or(0);
        let expected: u64 =
            sources.iter().map(|file| file.record_count().saturating_sub(deleted(file))).sum();
        if written.rows != expected {
            written.discard(&self.io).await;
            return Err(Error::corrupt(format!(
                "files of table '{}' hold {} rows to keep where {expected} were expected: nothing was deleted",
                table.name, written.rows
            )));
        }
        let sources = sources.iter().map(|file| file.file_path().to_owned()).collect();
        Ok(Rewritten { sources, written })
    }

    /// Takes the files at `paths` out of `table`, and puts in those that come in the place of some. Returns the table as it
    /// is then; `None` where others committed to it since it was loaded, and nothing was changed.
    pub(crate) async fn commit_deletion(
        &self,
        table: &OfflineTable,
        paths: HashSet<String>,
        rows: u64,
        rewritten: &[Rewritten],
    ) -> Result<Option<OfflineTable>> {
        let files = rewritten.iter().flat_map(|rewritten| &rewritten.written.files);
        let files: Vec<DataFile> = files.cloned().collect();
        let change = Change::Delete(paths, rows);
        let now_ms = self.clock.now_us().div_euclid(1000);
        let (io, manifests) = (&self.io, &self.manifests);
        let next = snapshot::changed(io, manifests, &table.metadata, &files, &change, now_ms).await?;
        let ours = next.current_snapshot_id();
        let is_in = |now: &TableMetadata| ours.is_some_and(|ours| now.snapshot_by_id(ours).is_some());
        self.swap(table, next, &files, is_in).await
    }

    /// Removes files that will never be committed; after an error only where it tells that they were not.
    pub(crate) async fn discard_rewritten(
        &self,
        rewritten: impl IntoIterator<Item = Rewritten>,
        error: Option<&Error>,
    ) {
        if error.is_some_and(|error| error.kind() == ErrorKind::Unavailable) {
            return;
        }
        for rewritten in rewritten {
            rewritten.written.discard(&self.io).await;
        }
    }

    /// What a snapshot of `table` did to its data files.
    pub(crate) async fn exchanged(&self, table: &OfflineTable, snapshot: &SnapshotRef) -> Result<Exchanged> {
        let id = snapshot.snapshot_id();
        let mut exchanged = Exchanged::default();
        for manifest in manifest_list(&self.io, &table.metadata, snapshot).await?.entries() {
            if manifest.added_snapshot_id != id {
                continue;
            }
            for entry in self.manifests.load(&self.io, manifest).await?.entries() {
                let is_its = entry.snapshot_id().is_none_or(|by| by == id);
                match entry.status() {
                    ManifestStatus::Deleted if is_its => exchanged.removed.push(entry.data_file().clone()),
                    ManifestStatus::Added if is_its => exchanged.added.push(entry.data_file().clone()),
                    _ => {}
                }
            }
        }
        Ok(exchanged)
    }
}

impl OfflineTable {
    /// The snapshots after `since` that took rows away, newest first; all that are kept where `since` is none of the
    /// ancestors. Of the first one kept nobody knows what it took away.
    pub(crate) fn deletions_since(&self, since: Option<i64>) -> Vec<SnapshotRef> {
        let later = self.ancestors().take_while(|snapshot| Some(snapshot.snapshot_id()) != since);
        let is_known = |snapshot: &&SnapshotRef| {
            snapshot.parent_snapshot_id().is_some_and(|id| self.metadata.snapshot_by_id(id).is_some())
        };
        later.filter(|snapshot| takes_away(snapshot)).filter(is_known).cloned().collect()
    }

    /// The table as it was before one of its snapshots, under the schema of now.
    pub(crate) fn before(&self, snapshot: &SnapshotRef) -> Option<Self> {
        let parent = self.metadata.snapshot_by_id(snapshot.parent_snapshot_id()?)?;
        Some(self.with_snapshot(parent))
    }
}

/// Whether a snapshot took rows away, or may have.
fn takes_away(snapshot: &SnapshotRef) -> bool {
    matches!(snapshot.summary().operation, Operation::Delete | Operation::Overwrite)
}

/// Whether it is a deletion of ours, which adds no row that was not there.
pub(super) fn is_deletion(snapshot: &SnapshotRef) -> bool {
    takes_away(snapshot) && snapshot.summary().additional_properties.contains_key(DELETED_ROWS)
}
