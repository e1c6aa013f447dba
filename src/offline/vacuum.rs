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
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use iceberg::spec::{DataFile, SnapshotRef, TableMetadata, TableMetadataBuilder};

use super::commit::COMMIT_ATTEMPTS_MAX;
use super::durable::local_path;
use super::files::manifest_list;
use super::store::{OfflineStore, next_location, updated_at};
use super::table::OfflineTable;
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
    data: HashSet<PathBuf>,
    /// Manifests, and lists of them.
    metadata: HashSet<PathBuf>,
}

/// A file that is there.
#[derive(Debug)]
struct Found {
    path: PathBuf,
    modified_us: i64,
}

impl OfflineStore {
    /// Expires snapshots of `table` that were last current before `cutoff_us` (µs since 1970), but for `applied` and what
    /// came after it, and deletes files that nobody needs.
    ///
    /// # Errors
    /// `Conflict` where the table was dropped or replaced meanwhile, or stays contended. Nothing is deleted then.
    pub(crate) async fn vacuum(
        &self,
        table: &OfflineTable,
        cutoff_us: i64,
        applied: Option<i64>,
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
            let kept = kept(&current, cutoff_us.div_euclid(1000), applied)?;
            let (kept, expired): (Vec<&SnapshotRef>, Vec<_>) =
                current.metadata.snapshots().partition(|snapshot| kept.contains(&snapshot.snapshot_id()));
            let named = self.named(&current.metadata, &kept).await?;
            let mut gone = self.named(&current.metadata, &expired).await?;
            gone.data.retain(|path| !named.data.contains(path));
            gone.metadata.retain(|path| !named.metadata.contains(path));
            let expired: Vec<i64> = expired.iter().map(|snapshot| snapshot.snapshot_id()).collect();
            let Some(current) = self.expire(&current, &expired).await? else { continue };
            let vacuumed = Vacuumed { snapshots_expired: expired.len() as u64, ..Vacuumed::default() };
            let sweep = Sweep { directory, named, gone, vacuumed };
            let sweep = (sweep, current, cutoff_us, self.clock.now_us());
            let swept = tokio::task::spawn_blocking(move || {
                let (sweep, current, cutoff_us, now_us) = sweep;
                sweep.run(&current, cutoff_us, now_us)
            });
            let swept = swept.await.map_err(|e| Error::internal("a vacuum did not finish").with_source(e))?;
            return swept.map_err(|e| {
                Error::unavailable(format!("cannot delete old files of table '{}'", table.name))
                    .with_source(e)
            });
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
        let (location, metadata) = self.write_metadata(metadata, next_location(table)?, &[]).await?;
        match self.catalog.swap(&table.name, &table.location, &location).await? {
            true => OfflineTable::new(table.name.clone(), &location, metadata).map(Some),
            false => Ok(None),
        }
    }

    /// The files that these snapshots of a table name.
    async fn named(&self, metadata: &TableMetadata, snapshots: &[&SnapshotRef]) -> Result<Named> {
        let mut named = Named::default();
        for snapshot in snapshots {
            named.metadata.insert(local_path(snapshot.manifest_list()));
            for manifest in manifest_list(&self.io, metadata, snapshot).await?.entries() {
                if !named.metadata.insert(local_path(&manifest.manifest_path)) {
                    continue;
                }
                let loaded = self.manifests.load(&self.io, manifest).await?;
                let files = loaded.entries().iter().filter(|entry| entry.is_alive());
                named.data.extend(files.map(|entry| local_path(DataFile::file_path(entry.data_file()))));
            }
        }
        Ok(named)
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

/// The deletion of files, once the snapshots are gone.
struct Sweep {
    directory: PathBuf,
    named: Named,
    gone: Named,
    vacuumed: Vacuumed,
}

impl Sweep {
    fn run(mut self, table: &OfflineTable, cutoff_us: i64, now_us: i64) -> io::Result<Vacuumed> {
        let mut found = Vec::new();
        files_under(&self.directory, &mut found)?;
        for path in std::mem::take(&mut self.gone.data) {
            self.vacuumed.data_files_deleted += self.delete(&path)?;
        }
        for path in std::mem::take(&mut self.gone.metadata) {
            self.vacuumed.metadata_files_deleted += self.delete(&path)?;
        }
        let metadata = &table.metadata;
        let mut known: HashSet<PathBuf> = self.named.data.union(&self.named.metadata).cloned().collect();
        known.insert(local_path(&table.location));
        let there: HashSet<&Path> = found.iter().map(|file| file.path.as_path()).collect();
        if let Some(elsewhere) = known.iter().find(|path| !there.contains(path.as_path())) {
            let (table, file) = (table.name.to_string(), elsewhere.display().to_string());
            tracing::info!(table, file, "a table with files elsewhere keeps those that no snapshot names");
            return Ok(self.vacuumed);
        }
        let log = metadata.metadata_log().iter().map(|entry| &entry.metadata_file);
        let statistics = metadata.statistics_iter().map(|file| &file.statistics_path);
        let of_partitions = metadata.partition_statistics_iter().map(|file| &file.statistics_path);
        known.extend(log.chain(statistics).chain(of_partitions).map(|path| local_path(path)));

        let version = version_of(&local_path(&table.location));
        let last_write = last_writes(&found);
        let stale = |file: &Found| last_write(file) < now_us - ORPHAN_AGE_US;
        for file in found.iter().filter(|file| !known.contains(&file.path)) {
            match version_of(&file.path) {
                Some(of_file) => {
                    let last = version.unwrap_or(0).saturating_sub(METADATA_VERSIONS);
                    if of_file < last && file.modified_us < cutoff_us {
                        self.vacuumed.metadata_files_deleted += self.delete(&file.path)?;
                    }
                }
                None if stale(file) => self.vacuumed.orphan_files_deleted += self.delete(&file.path)?,
                None => {}
            }
        }
        Ok(self.vacuumed)
    }

    /// Deletes a file of the table, and its directory if that is empty then. Returns how many went.
    fn delete(&mut self, path: &Path) -> io::Result<u64> {
        if !path.starts_with(&self.directory) || path.components().any(|c| c.as_os_str() == "..") {
            return Ok(0);
        }
        let bytes = match std::fs::metadata(path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error),
        };
        std::fs::remove_file(path)?;
        self.vacuumed.bytes_deleted += bytes;
        if let Some(parent) = path.parent() {
            let _ = std::fs::remove_dir(parent); // fails, as it should, where others are in it
        }
        Ok(1)
    }
}

/// Of a metadata file, which version of the table it is: `00012-….metadata.json`.
fn version_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?;
    if !name.ends_with(".metadata.json") {
        return None;
    }
    name.split_once('-')?.0.parse().ok()
}

/// When the write last wrote that a file is of: its directory's, but in `metadata`, where all writes meet, its own.
fn last_writes(found: &[Found]) -> impl Fn(&Found) -> i64 {
    let mut by_directory: HashMap<PathBuf, i64> = HashMap::new();
    for file in found {
        if let Some(directory) = file.path.parent() {
            let last = by_directory.entry(directory.to_owned()).or_insert(i64::MIN);
            *last = file.modified_us.max(*last);
        }
    }
    move |file| match file.path.parent() {
        Some(directory) if !directory.ends_with("metadata") => {
            by_directory.get(directory).copied().unwrap_or(file.modified_us)
        }
        _ => file.modified_us,
    }
}

fn files_under(directory: &Path, found: &mut Vec<Found>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            files_under(&path, found)?;
        } else if kind.is_file() {
            let modified_us = match entry.metadata() {
                Ok(metadata) => micros(metadata.modified()?),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            found.push(Found { path, modified_us });
        }
    }
    Ok(())
}

fn micros(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros());
    i64::try_from(since).unwrap_or(i64::MAX)
}
