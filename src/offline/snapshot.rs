//! A new Iceberg snapshot: manifest, manifest list, and the metadata that points at them.
//!
//! ```text
//! metadata.json ─ snapshot ─ manifest list ─┬─ manifest of this write ─ data files
//!                                           └─ manifests of the parent, carried over
//! ```
//! A replacement and a deletion take files out, so the manifests that name them are not carried over, nor are small ones:
//! what they hold beside goes into its own manifest, as files that exist already. An append does the same with small ones
//! when there are many.
//!
//! iceberg-rust's own transaction only appends and keeps its commit private; writing the files here
//! lets create, append and replace share one compare-and-swap.

use std::collections::{HashMap, HashSet};

use iceberg::io::FileIO;
use iceberg::spec::{
    DataFile, MAIN_BRANCH, ManifestContentType, ManifestEntry, ManifestFile, ManifestListWriter,
    ManifestWriter, ManifestWriterBuilder, Operation, Snapshot, SnapshotSummaryCollector, Summary,
    TableMetadata, TableMetadataBuilder,
};
use uuid::Uuid;

use super::commit::{IDEMPOTENCY_KEY, IDEMPOTENCY_KEYS};
use super::delete::DELETED_ROWS;
use super::files::{ManifestCache, manifest_list, refuse_deletes};
use crate::error::{Error, Result};

/// Manifests of fewer files are merged by a replacement.
const MANIFEST_FILES_MIN: usize = 1000;
/// So many of them are merged by an append. Readers that have them in memory read the merged one anew.
const SMALL_MANIFESTS_MAX: usize = 100;

/// Properties of summaries that are this store's own, such as when its newest rows were ingested.
const OWN_PROPERTIES: &str = "fletching.";

/// Counts of everything, with what adds to them and what takes away.
const TOTALS: [(&str, &str, &str); 3] = [
    ("total-records", "added-records", "deleted-records"),
    ("total-data-files", "added-data-files", "deleted-data-files"),
    ("total-files-size", "added-files-size", "removed-files-size"),
];

/// What a snapshot does with the files that were written for it.
#[derive(Debug)]
pub(super) enum Change {
    /// Adds them; the properties go into its summary.
    Append(HashMap<String, String>),
    /// Adds files of the log; the property goes into the table's.
    Fold { summary: HashMap<String, String>, property: (String, String) },
    /// Puts them in the place of the files at these paths, which hold the same rows.
    Replace(HashSet<String>),
    /// Puts them in the place of the files at these paths, of whose rows they hold all but so many.
    Delete(HashSet<String>, u64),
}

/// Adds a snapshot that makes `change` to the current one. Returns the new metadata, not yet written or committed.
///
/// # Errors
/// `Conflict` where a file that is to be replaced is not there any more.
pub(super) async fn changed(
    io: &FileIO,
    cache: &ManifestCache,
    metadata: &TableMetadata,
    files: &[DataFile],
    change: &Change,
    timestamp_ms: i64,
) -> Result<TableMetadata> {
    let snapshot_id = fresh_snapshot_id(metadata);
    let commit = Uuid::new_v4();
    let manifests: Vec<ManifestFile> = match metadata.current_snapshot() {
        Some(current) => manifest_list(io, metadata, current).await?.entries().to_vec(),
        None => Vec::new(),
    };
    // What names only files that are gone has said so to its own snapshot, and is nothing to this one.
    let manifests = manifests.into_iter().filter(|m| m.has_added_files() || m.has_existing_files()).collect();
    let mut contents = Contents { carried: manifests, existing: Vec::new(), deleted: Vec::new() };
    match change {
        Change::Replace(replaced) | Change::Delete(replaced, _) => {
            contents = contents.without(io, cache, metadata, replaced).await?;
        }
        Change::Append(_) | Change::Fold { .. } if contents.is_scattered(metadata) => {
            contents = contents.without(io, cache, metadata, &HashSet::new()).await?;
        }
        Change::Append(_) | Change::Fold { .. } => {}
    }
    let summary = summary(metadata, files, &contents.deleted, change);
    let mut manifests = contents.carried;
    let mut writer = manifest_writer(io, metadata, snapshot_id, commit)?;
    for file in files {
        writer.add_file(file.clone(), metadata.next_sequence_number()).map_err(failed)?;
    }
    add_known(&mut writer, contents.existing, contents.deleted)?;
    manifests.push(writer.write_manifest_file().await.map_err(failed)?);

    let list_path = format!("{}/metadata/snap-{snapshot_id}-0-{commit}.avro", metadata.location());
    let output = io.new_output(&list_path).map_err(failed)?.writer().await.map_err(failed)?;
    let (parent, sequence_number) = (metadata.current_snapshot_id(), metadata.next_sequence_number());
    let mut list = ManifestListWriter::v2(output, snapshot_id, parent, sequence_number);
    list.add_manifests(manifests.into_iter()).map_err(failed)?;
    list.close().await.map_err(failed)?;

    let snapshot = Snapshot::builder()
        .with_manifest_list(list_path)
        .with_snapshot_id(snapshot_id)
        .with_parent_snapshot_id(parent)
        .with_sequence_number(sequence_number)
        .with_summary(summary)
        .with_schema_id(metadata.current_schema_id())
        .with_timestamp_ms(timestamp_ms.max(metadata.last_updated_ms()))
        .build();
    let properties = match change {
        Change::Fold { property, .. } => HashMap::from([property.clone()]),
        Change::Append(_) | Change::Replace(_) | Change::Delete(..) => HashMap::new(),
    };
    let built = TableMetadataBuilder::new_from_metadata(metadata.clone(), None)
        .set_branch_snapshot(snapshot, MAIN_BRANCH)
        .and_then(|builder| builder.set_properties(properties))
        .and_then(TableMetadataBuilder::build)
        .map_err(failed)?;
    Ok(built.metadata)
}

/// What of a snapshot's parent becomes what.
struct Contents {
    /// Manifests that stay as they are.
    carried: Vec<ManifestFile>,
    /// Files that stay, of manifests that do not.
    existing: Vec<ManifestEntry>,
    /// Files that go.
    deleted: Vec<ManifestEntry>,
}

impl Contents {
    /// Whether there are many small manifests, all of which can be merged.
    fn is_scattered(&self, metadata: &TableMetadata) -> bool {
        let is_small = |manifest: &&ManifestFile| {
            let files = [manifest.added_files_count, manifest.existing_files_count];
            let files: u32 = files.into_iter().flatten().sum();
            manifest.partition_spec_id == metadata.default_partition_spec_id()
                && usize::try_from(files).is_ok_and(|files| files < MANIFEST_FILES_MIN)
        };
        let are_data = self.carried.iter().all(|manifest| manifest.content == ManifestContentType::Data);
        are_data && self.carried.iter().filter(is_small).count() >= SMALL_MANIFESTS_MAX
    }

    /// The same without the `replaced` files.
    async fn without(
        self,
        io: &FileIO,
        cache: &ManifestCache,
        metadata: &TableMetadata,
        replaced: &HashSet<String>,
    ) -> Result<Self> {
        let mut after = Self { carried: Vec::new(), existing: Vec::new(), deleted: Vec::new() };
        for manifest in self.carried {
            refuse_deletes(metadata, &manifest)?;
            let loaded = cache.load(io, &manifest).await?;
            let alive = loaded.entries().iter().filter(|entry| entry.is_alive());
            let (deleted, existing): (Vec<_>, Vec<_>) = alive
                .map(|entry| entry.as_ref().clone())
                .partition(|entry| replaced.contains(entry.data_file().file_path()));
            let ours = manifest.partition_spec_id == metadata.default_partition_spec_id();
            if !ours && !deleted.is_empty() {
                return Err(Error::unsupported(
                    "another engine had the table partitioned once, and its files of that time are not rewritten here: rewrite them with that engine",
                ));
            }
            if !ours || (deleted.is_empty() && existing.len() >= MANIFEST_FILES_MIN) {
                after.carried.push(manifest);
                continue;
            }
            after.existing.extend(existing);
            after.deleted.extend(deleted);
        }
        if after.deleted.len() != replaced.len() {
            return Err(Error::conflict(
                "files that were rewritten were replaced or removed meanwhile, so nothing was changed: try again",
            ));
        }
        Ok(after)
    }
}

fn manifest_writer(
    io: &FileIO,
    metadata: &TableMetadata,
    snapshot_id: i64,
    commit: Uuid,
) -> Result<ManifestWriter> {
    let path = format!("{}/metadata/{commit}-m0.avro", metadata.location());
    Ok(ManifestWriterBuilder::new(
        io.new_output(path).map_err(failed)?,
        Some(snapshot_id),
        metadata.current_schema().clone(),
        metadata.default_partition_spec().as_ref().clone(),
    )
    .build_v2_data())
}

/// Adds files that earlier snapshots have added, with the numbers that they got then.
fn add_known(
    writer: &mut ManifestWriter,
    existing: Vec<ManifestEntry>,
    deleted: Vec<ManifestEntry>,
) -> Result<()> {
    let unnumbered = || Error::corrupt("an Iceberg manifest has a file without a sequence number");
    for entry in existing {
        let (snapshot, number) = (entry.snapshot_id.zip(entry.sequence_number)).ok_or_else(unnumbered)?;
        let of_file = entry.file_sequence_number.or(Some(number));
        writer.add_existing_file(entry.data_file, snapshot, number, of_file).map_err(failed)?;
    }
    for entry in deleted {
        let number = entry.sequence_number.ok_or_else(unnumbered)?;
        let of_file = entry.file_sequence_number.or(Some(number));
        writer.add_delete_file(entry.data_file, number, of_file).map_err(failed)?;
    }
    Ok(())
}

fn summary(
    metadata: &TableMetadata,
    added: &[DataFile],
    deleted: &[ManifestEntry],
    change: &Change,
) -> Summary {
    let (schema, spec) = (metadata.current_schema(), metadata.default_partition_spec());
    let mut collector = SnapshotSummaryCollector::default();
    for file in added {
        collector.add_file(file, schema.clone(), spec.clone());
    }
    for entry in deleted {
        collector.remove_file(entry.data_file(), schema.clone(), spec.clone());
    }
    let previous = metadata.current_snapshot().map(|s| &s.summary().additional_properties);
    let (operation, mut all) = match change {
        Change::Append(summary) | Change::Fold { summary, .. } => (Operation::Append, summary.clone()),
        Change::Replace(_) => (Operation::Replace, lasting(previous)),
        Change::Delete(_, rows) => {
            let mut properties = lasting(previous);
            properties.insert(DELETED_ROWS.to_owned(), rows.to_string());
            (if added.is_empty() { Operation::Delete } else { Operation::Overwrite }, properties)
        }
    };
    all.extend(collector.build());
    for (total, added, removed) in TOTALS {
        let read = |map: Option<&HashMap<String, String>>, key: &str| -> u64 {
            map.and_then(|m| m.get(key)).and_then(|v| v.parse().ok()).unwrap_or(0)
        };
        let sum = read(previous, total) + read(Some(&all), added);
        all.insert(total.to_owned(), sum.saturating_sub(read(Some(&all), removed)).to_string());
    }
    Summary { operation, additional_properties: all }
}

/// What is said of rows that are there still, but for which write it was that brought or deleted some.
fn lasting(previous: Option<&HashMap<String, String>>) -> HashMap<String, String> {
    let stays = |key: &str| {
        key.starts_with(OWN_PROPERTIES) && ![IDEMPOTENCY_KEY, IDEMPOTENCY_KEYS, DELETED_ROWS].contains(&key)
    };
    let own = previous.into_iter().flatten().filter(|(key, _)| stays(key));
    own.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn fresh_snapshot_id(metadata: &TableMetadata) -> i64 {
    loop {
        let (high, low) = Uuid::new_v4().as_u64_pair();
        let id = ((high ^ low) & (i64::MAX as u64)) as i64;
        if metadata.snapshot_by_id(id).is_none() {
            return id;
        }
    }
}

fn failed(error: iceberg::Error) -> Error {
    Error::unavailable("cannot write table metadata to the warehouse").with_source(error)
}
