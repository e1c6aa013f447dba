//! Which data files a snapshot holds, read from its manifests through a cache.

use std::sync::Arc;

use iceberg::io::FileIO;
use iceberg::spec::{
    DataFile, Manifest, ManifestContentType, ManifestFile, ManifestList, Snapshot, TableMetadata,
};
use moka::sync::Cache;

use super::warehouse::unreadable;
use crate::error::{Error, Result};

const MANIFESTS_MAX: u64 = 4096;
/// Each names all manifests of a snapshot.
const LISTS_MAX: u64 = 256;

/// Manifests and lists of them, by path: they never change once written.
#[derive(Debug, Clone)]
pub(super) struct ManifestCache {
    manifests: Cache<String, Arc<Manifest>>,
    lists: Cache<String, Arc<ManifestList>>,
}

impl Default for ManifestCache {
    fn default() -> Self {
        Self { manifests: Cache::new(MANIFESTS_MAX), lists: Cache::new(LISTS_MAX) }
    }
}

impl ManifestCache {
    pub(super) async fn load(&self, io: &FileIO, file: &ManifestFile) -> Result<Arc<Manifest>> {
        if let Some(manifest) = self.manifests.get(&file.manifest_path) {
            return Ok(manifest);
        }
        let manifest = file
            .load_manifest(io)
            .await
            .map_err(|e| unreadable(format!("cannot read Iceberg manifest '{}'", file.manifest_path), e))?;
        let manifest = Arc::new(manifest);
        self.manifests.insert(file.manifest_path.clone(), Arc::clone(&manifest));
        Ok(manifest)
    }

    async fn list(
        &self,
        io: &FileIO,
        metadata: &TableMetadata,
        snapshot: &Snapshot,
    ) -> Result<Arc<ManifestList>> {
        if let Some(list) = self.lists.get(snapshot.manifest_list()) {
            return Ok(list);
        }
        let list = Arc::new(manifest_list(io, metadata, snapshot).await?);
        self.lists.insert(snapshot.manifest_list().to_owned(), Arc::clone(&list));
        Ok(list)
    }
}

pub(super) async fn manifest_list(
    io: &FileIO,
    metadata: &TableMetadata,
    snapshot: &Snapshot,
) -> Result<ManifestList> {
    let path = snapshot.manifest_list();
    let failed = |e| unreadable(format!("cannot read Iceberg manifest list '{path}'"), e);
    let bytes = io.new_input(path).map_err(failed)?.read().await.map_err(failed)?;
    ManifestList::parse_with_version(&bytes, metadata.format_version()).map_err(failed)
}

/// The live data files of `snapshot`; with `added_by`, only those that the named snapshots added.
///
/// # Errors
/// `Unsupported` where the snapshot has delete files: reading past them would return deleted rows.
pub(super) async fn data_files(
    io: &FileIO,
    cache: &ManifestCache,
    metadata: &TableMetadata,
    snapshot: &Snapshot,
    added_by: Option<&[i64]>,
) -> Result<Vec<DataFile>> {
    let mut files = Vec::new();
    for manifest in cache.list(io, metadata, snapshot).await?.entries() {
        refuse_deletes(metadata, manifest)?;
        if added_by.is_some_and(|ids| !ids.contains(&manifest.added_snapshot_id)) {
            continue;
        }
        let loaded = cache.load(io, manifest).await?;
        for entry in loaded.entries().iter().filter(|e| e.is_alive()) {
            let wanted = match (added_by, entry.snapshot_id()) {
                (None, _) => true,
                (Some(ids), Some(id)) => ids.contains(&id),
                (Some(_), None) => true,
            };
            if wanted {
                files.push(entry.data_file().clone());
            }
        }
    }
    Ok(files)
}

/// Refuses a manifest of delete files.
pub(super) fn refuse_deletes(metadata: &TableMetadata, manifest: &ManifestFile) -> Result<()> {
    match manifest.content {
        ManifestContentType::Data => Ok(()),
        ManifestContentType::Deletes => Err(Error::unsupported(format!(
            "the table at '{}' has Iceberg delete files, which are not read yet: rewrite it without them",
            metadata.location()
        ))),
    }
}
