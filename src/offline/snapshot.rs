//! A new Iceberg snapshot: manifest, manifest list, and the metadata that points at them.
//!
//! ```text
//! metadata.json ─ snapshot ─ manifest list ─┬─ manifest of this write ─ data files
//!                                           └─ manifests of the parent, carried over
//! ```
//! iceberg-rust's own transaction only appends and keeps its commit private; writing the files here
//! lets create, append and replace share one compare-and-swap.

use std::collections::HashMap;

use iceberg::io::FileIO;
use iceberg::spec::{
    DataFile, MAIN_BRANCH, ManifestFile, ManifestListWriter, ManifestWriterBuilder, Operation, Snapshot,
    SnapshotSummaryCollector, Summary, TableMetadata, TableMetadataBuilder,
};
use uuid::Uuid;

use super::files::manifest_list;
use crate::error::{Error, Result};

const TOTALS: [(&str, &str); 3] = [
    ("total-records", "added-records"),
    ("total-data-files", "added-data-files"),
    ("total-files-size", "added-files-size"),
];

/// Adds a snapshot that appends `files` to the current one; `properties` go into its summary.
/// Returns the new metadata, not yet written or committed.
pub(super) async fn append(
    io: &FileIO,
    metadata: &TableMetadata,
    files: Vec<DataFile>,
    properties: HashMap<String, String>,
    timestamp_ms: i64,
) -> Result<TableMetadata> {
    let snapshot_id = fresh_snapshot_id(metadata);
    let commit = Uuid::new_v4();
    let sequence_number = metadata.next_sequence_number();
    let summary = summary(metadata, &files, properties);

    let mut manifests: Vec<ManifestFile> = match metadata.current_snapshot() {
        Some(current) => manifest_list(io, metadata, current).await?.entries().to_vec(),
        None => Vec::new(),
    };
    manifests.push(write_manifest(io, metadata, snapshot_id, commit, files).await?);

    let list_path = format!("{}/metadata/snap-{snapshot_id}-0-{commit}.avro", metadata.location());
    let output = io.new_output(&list_path).map_err(failed)?.writer().await.map_err(failed)?;
    let parent = metadata.current_snapshot_id();
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
    let built = TableMetadataBuilder::new_from_metadata(metadata.clone(), None)
        .set_branch_snapshot(snapshot, MAIN_BRANCH)
        .and_then(TableMetadataBuilder::build)
        .map_err(failed)?;
    Ok(built.metadata)
}

async fn write_manifest(
    io: &FileIO,
    metadata: &TableMetadata,
    snapshot_id: i64,
    commit: Uuid,
    files: Vec<DataFile>,
) -> Result<ManifestFile> {
    let path = format!("{}/metadata/{commit}-m0.avro", metadata.location());
    let mut writer = ManifestWriterBuilder::new(
        io.new_output(path).map_err(failed)?,
        Some(snapshot_id),
        metadata.current_schema().clone(),
        metadata.default_partition_spec().as_ref().clone(),
    )
    .build_v2_data();
    for file in files {
        writer.add_file(file, metadata.next_sequence_number()).map_err(failed)?;
    }
    writer.write_manifest_file().await.map_err(failed)
}

fn summary(metadata: &TableMetadata, files: &[DataFile], properties: HashMap<String, String>) -> Summary {
    let mut collector = SnapshotSummaryCollector::default();
    for file in files {
        collector.add_file(
            file,
            metadata.current_schema().clone(),
            metadata.default_partition_spec().clone(),
        );
    }
    let mut all = properties;
    all.extend(collector.build());
    let previous = metadata.current_snapshot().map(|s| &s.summary().additional_properties);
    for (total, added) in TOTALS {
        let read = |map: Option<&HashMap<String, String>>, key: &str| -> u64 {
            map.and_then(|m| m.get(key)).and_then(|v| v.parse().ok()).unwrap_or(0)
        };
        let sum = read(previous, total) + read(Some(&all), added);
        all.insert(total.to_owned(), sum.to_string());
    }
    Summary { operation: Operation::Append, additional_properties: all }
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
