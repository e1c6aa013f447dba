//! What a commit is about to name must outlive a power failure: files and the directories that list them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Syncs the metadata file at `location`, if it `is_ours`, and every directory between the warehouse and it or one of
/// `data_files`. Data files, manifests and manifest lists are synced when their writers close.
pub(super) async fn make_durable(
    warehouse: &Path,
    location: &str,
    is_ours: bool,
    data_files: Vec<PathBuf>,
) -> Result<()> {
    let metadata = local_path(location);
    let mut directories = BTreeSet::new();
    for file in data_files.iter().chain([&metadata]) {
        let above = file.ancestors().skip(1);
        directories.extend(above.take_while(|d| d.starts_with(warehouse)).map(Path::to_path_buf));
    }
    let sync = move || -> io::Result<()> {
        if is_ours {
            File::open(&metadata)?.sync_all()?;
        }
        directories.iter().try_for_each(|directory| File::open(directory)?.sync_all())
    };
    tokio::task::spawn_blocking(sync)
        .await
        .map_err(|e| Error::internal("a sync did not finish").with_source(e))?
        .map_err(|e| Error::unavailable(format!("cannot make '{location}' durable")).with_source(e))
}

/// The path of a `file://` location, of a `file:` one as Hadoop writes it, or of a plain path.
pub(super) fn local_path(location: &str) -> PathBuf {
    let path = ["file://", "file:"].iter().find_map(|scheme| location.strip_prefix(scheme));
    PathBuf::from(path.unwrap_or(location))
}
