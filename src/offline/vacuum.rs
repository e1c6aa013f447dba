//! What nobody reads any more goes: old snapshots, the files that only they name, and files that no snapshot names.
//!
//! ```text
//! a snapshot stays    while it is current, was current within the retention, is named by a branch or tag, or the
//!                     online store has not applied all that came after it
//! a file goes         if only snapshots that went name it;
//!                     if no snapshot names it, and nothing in its directory was written for ORPHAN_AGE;
//!                     if it is metadata before the last METADATA_VERSIONS, and older than the retention
//! ```
//! The files of a write are all in a directory of its own, so a write that goes on keeps all of them.

use std::collections::{HashMap, HashSet};

use iceberg::spec::{DataFile, SnapshotRef, TableMetadata, TableMetadataBuilder};
use object_store::ObjectMeta;
use object_store::path::Path;

use super::commit::COMMIT_ATTEMPTS_MAX;
use super::files::manifest_list;
use super::store::{OfflineStore, updated_at};
use super::table::OfflineTable;
use super::warehouse::Warehouse;
use crate::error::{Error, Result};

/// A write whose files lie still for so long is not under way any more.
const ORPHAN_AGE_US: i64 = 3 * 24 * 60 * 60 * 1_000_000;

/// Metadata files that stay however old they are: servers that found one in the catalog may still read it.
const METADATA_VERSIONS: u64 = 10;

/// What went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Vacuumed {
    pub(crate) snapshots_expired: u64,
    /// Of snapshots that went.
    pub(crate) data_files_deleted: u64,
    /// Metadata, manifests, and lists of manifests.
    pub(crate) metadata_files_deleted: u64,
    /// Files of writes that never ended.
    pub(crate) orphan_files_deleted: u64,
    pub(crate) bytes_deleted: u64,
}

/// Paths of files that snapshots name.
#[derive(Debug, Default)]
struct Named {
    data: HashSet<Path>,
    /// Manifests, and lists of them.
    metadata: HashSet<Path>,
}

impl OfflineStore {
    /// Expires snapshots of `table` that were last current before `cutoff_us` (µs since 1970), but for those that are
    /// `read`, and for `applied` and what came after it, and deletes files that nobody needs.
    ///
    /// # Errors
    /// `Conflict` where the table was dropped or replaced meanwhile, or stays contended. Nothing is deleted then.
    pub(crate) async fn vacuum(
        &self,
        table: &OfflineTable,
        cutoff_us: i64,
        applied: Option<i64>,
        read: &[i64],
    ) -> Result<Vacuumed> {
        let Some(directory) = self.directory(&table.metadata) else {
            return Err(Error::unsupported(format!(
                "table '{}' lies outside the warehouse: vacuum it with the engine that made it",
                table.name
            )));
        };
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let current = self.load(&table.name).await?;
            let Some(current) = current.filter(|t| t.metadata.uuid() == table.metadata.uuid()) else {
                return Err(Error::conflict(format!(
                    "table '{}' was dropped or replaced meanwhile",
                    table.name
                )));
            };
            let mut kept = kept(&current, cutoff_us.div_euclid(1000), applied)?;
            kept.extend(read);
            let (kept, expired): (Vec<&SnapshotRef>, Vec<_>) =
                current.metadata.snapshots().partition(|snapshot| kept.contains(&snapshot.snapshot_id()));
            let named = self.named(&current.metadata, &kept).await?;
            let mut gone = self.named(&current.metadata, &expired).await?;
            gone.data.retain(|path| !named.data.contains(path));
            gone.metadata.retain(|path| !named.metadata.contains(path));
            let expired: Vec<i64> = expired.iter().map(|snapshot| snapshot.snapshot_id()).collect();
            let Some(current) = self.expire(&current, &expired).await? else { continue };
            let vacuumed = Vacuumed { snapshots_expired: expired.len() as u64, ..Vacuumed::default() };
            let undeletable = |e| {
                Error::unavailable(format!("cannot delete old files of table '{}'", table.name))
                    .with_source(e)
            };
            let found = self.warehouse.list(&directory).await.map_err(undeletable)?;
            let sizes = found.iter().map(|file| (file.location.clone(), file.size)).collect();
            let sweep = Sweep { warehouse: &self.warehouse, found, sizes, named, gone, vacuumed };
            let known = self.known(&current, &sweep.named)?;
            return sweep.run(&current, known, cutoff_us, self.clock.now_us()).await.map_err(undeletable);
        }
        Err(Error::conflict(format!(
            "table '{}' is being written by too many at once: try again",
            table.name
        )))
    }

    /// The table without the `expired` snapshots; `None` where others committed to it first.
    async fn expire(&self, table: &OfflineTable, expired: &[i64]) -> Result<Option<OfflineTable>> {
        if expired.is_empty() {
            return Ok(Some(table.clone()));
        }
        let built = TableMetadataBuilder::new_from_metadata(table.metadata.as_ref().clone(), None)
            .remove_snapshots(expired)
            .build()
            .map_err(|e| {
                Error::corrupt(format!("snapshots of table '{}' cannot be expired", table.name))
                    .with_source(e)
            })?;
        let now_ms = self.clock.now_us().div_euclid(1000).max(table.metadata.last_updated_ms());
        let metadata = updated_at(&built.metadata, now_ms)?;
        let are_gone =
            |now: &TableMetadata| expired.iter().all(|snapshot| now.snapshot_by_id(*snapshot).is_none());
        self.swap(table, metadata, &[], are_gone).await
    }

    /// The files that these snapshots of a table name.
    async fn named(&self, metadata: &TableMetadata, snapshots: &[&SnapshotRef]) -> Result<Named> {
        let mut named = Named::default();
        for snapshot in snapshots {
            named.metadata.insert(self.warehouse.path(snapshot.manifest_list())?);
            for manifest in manifest_list(&self.io, metadata, snapshot).await?.entries() {
                if !named.metadata.insert(self.warehouse.path(&manifest.manifest_path)?) {
                    continue;
                }
                let loaded = self.manifests.load(&self.io, manifest).await?;
                for entry in loaded.entries().iter().filter(|entry| entry.is_alive()) {
                    named.data.insert(self.warehouse.path(DataFile::file_path(entry.data_file()))?);
                }
            }
        }
        Ok(named)
    }

    /// All that the table's metadata names: the first, what must be in its directory.
    fn known(&self, table: &OfflineTable, named: &Named) -> Result<Known> {
        let metadata = &table.metadata;
        let current = self.warehouse.path(&table.location)?;
        let mut there: HashSet<Path> = named.data.union(&named.metadata).cloned().collect();
        there.insert(current.clone());
        let log = metadata.metadata_log().iter().map(|entry| &entry.metadata_file);
        let statistics = metadata.statistics_iter().map(|file| &file.statistics_path);
        let of_partitions = metadata.partition_statistics_iter().map(|file| &file.statistics_path);
        let others = log.chain(statistics).chain(of_partitions);
        let others = others.filter_map(|location| self.warehouse.path(location).ok()).collect();
        Ok(Known { current, there, others })
    }
}

/// Ids of the snapshots that stay.
fn kept(table: &OfflineTable, cutoff_ms: i64, applied: Option<i64>) -> Result<HashSet<i64>> {
    let metadata = &table.metadata;
    let log = metadata.history();
    let since = log.iter().rposition(|entry| entry.timestamp_ms() <= cutoff_ms).unwrap_or(0);
    let mut kept: HashSet<i64> = log[since..].iter().map(|entry| entry.snapshot_id).collect();
    kept.extend(metadata.current_snapshot_id());
    let young = metadata.snapshots().filter(|snapshot| snapshot.timestamp_ms() > cutoff_ms);
    kept.extend(young.map(|snapshot| snapshot.snapshot_id()));
    // iceberg-rust has names of branches and tags, but does not tell them.
    let json = serde_json::to_value(metadata.as_ref())
        .map_err(|e| Error::internal("table metadata does not survive JSON").with_source(e))?;
    let refs = json["refs"].as_object().into_iter().flat_map(|refs| refs.values());
    kept.extend(refs.filter_map(|of| of["snapshot-id"].as_i64()));
    if let Some(applied) = applied {
        let ancestors: Vec<i64> = table.ancestors().map(|snapshot| snapshot.snapshot_id()).collect();
        if let Some(at) = ancestors.iter().position(|id| *id == applied) {
            kept.extend(&ancestors[..=at]);
        }
    }
    Ok(kept)
}

/// Files that must stay.
struct Known {
    current: Path,
    /// Those that are needed to read the table, the current metadata among them.
    there: HashSet<Path>,
    others: HashSet<Path>,
}

/// The deletion of files, once the snapshots are gone.
struct Sweep<'a> {
    warehouse: &'a Warehouse,
    /// What is in the table's directory.
    found: Vec<ObjectMeta>,
    sizes: HashMap<Path, u64>,
    named: Named,
    gone: Named,
    vacuumed: Vacuumed,
}

impl Sweep<'_> {
    async fn run(
        mut self,
        table: &OfflineTable,
        known: Known,
        cutoff_us: i64,
        now_us: i64,
    ) -> object_store::Result<Vacuumed> {
        for path in std::mem::take(&mut self.gone.data) {
            self.vacuumed.data_files_deleted += self.delete(&path).await?;
        }
        for path in std::mem::take(&mut self.gone.metadata) {
            self.vacuumed.metadata_files_deleted += self.delete(&path).await?;
        }
        if let Some(elsewhere) = known.there.iter().find(|path| !self.sizes.contains_key(path)) {
            let (table, file) = (table.name.to_string(), elsewhere.to_string());
            tracing::info!(table, file, "a table with files elsewhere keeps those that no snapshot names");
            return Ok(self.vacuumed);
        }
        let version = version_of(&known.current);
        let found = std::mem::take(&mut self.found);
        let last_write = last_writes(&found);
        let stale = |file: &ObjectMeta| last_write(file) < now_us - ORPHAN_AGE_US;
        let is_known = |path: &Path| known.there.contains(path) || known.others.contains(path);
        for file in found.iter().filter(|file| !is_known(&file.location)) {
            match version_of(&file.location) {
                Some(of_file) => {
                    let last = version.unwrap_or(0).saturating_sub(METADATA_VERSIONS);
                    if of_file < last && modified_us(file) < cutoff_us {
                        self.vacuumed.metadata_files_deleted += self.delete(&file.location).await?;
                    }
                }
                None if stale(file) => {
                    self.vacuumed.orphan_files_deleted += self.delete(&file.location).await?;
                }
                None => {}
            }
        }
        Ok(self.vacuumed)
    }

    /// Deletes a file of the table's directory. Returns how many went.
    async fn delete(&mut self, path: &Path) -> object_store::Result<u64> {
        let Some(bytes) = self.sizes.get(path).copied() else { return Ok(0) };
        if !self.warehouse.delete(path).await? {
            return Ok(0);
        }
        self.vacuumed.bytes_deleted += bytes;
        Ok(1)
    }
}

/// Of a metadata file, which version of the table it is: `00012-….metadata.json`.
fn version_of(path: &Path) -> Option<u64> {
    let name = path.filename()?;
    if !name.ends_with(".metadata.json") {
        return None;
    }
    name.split_once('-')?.0.parse().ok()
}

fn modified_us(file: &ObjectMeta) -> i64 {
    file.last_modified.timestamp_micros()
}

/// The path of a file's directory.
fn directory(file: &ObjectMeta) -> &str {
    file.location.as_ref().rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// When the write last wrote that a file is of: its directory's, but in `metadata`, where all writes meet, its own.
fn last_writes(found: &[ObjectMeta]) -> impl Fn(&ObjectMeta) -> i64 {
    let mut by_directory: HashMap<&str, i64> = HashMap::new();
    for file in found {
        let last = by_directory.entry(directory(file)).or_insert(i64::MIN);
        *last = modified_us(file).max(*last);
    }
    move |file| match directory(file) {
        directory if directory.ends_with("/metadata") => modified_us(file),
        directory => by_directory.get(directory).copied().unwrap_or_else(|| modified_us(file)),
    }
}
