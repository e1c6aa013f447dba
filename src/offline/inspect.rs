//! What Iceberg's metadata says of a table, as rows: its snapshots, which of them were current when, and its files.
//! Names and types of columns are those of Iceberg's metadata tables in other engines, but for field ids, which are
//! BIGINT, so that `lower_bounds[1]` reads one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Int32Array, Int64Array, Int64Builder, ListBuilder, MapBuilder, RecordBatch,
    StringArray, StringBuilder, TimestampMicrosecondArray,
};
use iceberg::spec::{DataFile, Datum};

use super::store::OfflineStore;
use super::table::OfflineTable;
use crate::error::Result;

/// `"name$snapshots"`: every snapshot that is kept, oldest first.
pub(crate) fn snapshots(table: &OfflineTable) -> Result<RecordBatch> {
    let mut snapshots: Vec<_> = table.metadata().snapshots().collect();
    snapshots.sort_by_key(|s| (s.timestamp_ms(), s.sequence_number()));
    let mut summaries = MapBuilder::new(None, StringBuilder::new(), StringBuilder::new());
    for snapshot in &snapshots {
        for (key, value) in snapshot.summary().additional_properties.iter().collect::<BTreeMap<_, _>>() {
            summaries.keys().append_value(key);
            summaries.values().append_value(value);
        }
        summaries.append(true)?;
    }
    let ids = snapshots.iter().map(|s| s.snapshot_id());
    let operations = snapshots.iter().map(|s| s.summary().operation.as_str());
    batch(vec![
        ("committed_at", times(snapshots.iter().map(|s| s.timestamp_ms()))),
        ("snapshot_id", Arc::new(Int64Array::from_iter_values(ids))),
        ("parent_id", Arc::new(snapshots.iter().map(|s| s.parent_snapshot_id()).collect::<Int64Array>())),
        ("operation", Arc::new(StringArray::from_iter_values(operations))),
        (
            "manifest_list",
            Arc::new(StringArray::from_iter_values(snapshots.iter().map(|s| s.manifest_list()))),
        ),
        ("summary", Arc::new(summaries.finish())),
    ])
}

/// `"name$history"`: which snapshot became current when.
pub(crate) fn history(table: &OfflineTable) -> Result<RecordBatch> {
    let log = table.metadata().history();
    let ancestors: HashSet<i64> = table.ancestors().map(|s| s.snapshot_id()).collect();
    let parent = |id: i64| table.metadata().snapshot_by_id(id).and_then(|s| s.parent_snapshot_id());
    let current = log.iter().map(|entry| Some(ancestors.contains(&entry.snapshot_id)));
    batch(vec![
        ("made_current_at", times(log.iter().map(|entry| entry.timestamp_ms()))),
        ("snapshot_id", Arc::new(Int64Array::from_iter_values(log.iter().map(|entry| entry.snapshot_id)))),
        ("parent_id", Arc::new(log.iter().map(|entry| parent(entry.snapshot_id)).collect::<Int64Array>())),
        ("is_current_ancestor", Arc::new(current.collect::<BooleanArray>())),
    ])
}

/// `"name$files"`: the live data files.
pub(crate) async fn files(store: &OfflineStore, table: &OfflineTable) -> Result<RecordBatch> {
    let files = store.data_files(table, None).await?;
    let number = |of: fn(&DataFile) -> i64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(files.iter().map(of)))
    };
    let counts = |of: fn(&DataFile) -> &HashMap<i32, u64>| counts(files.iter().map(of));
    let bounds = |of: fn(&DataFile) -> &HashMap<i32, Datum>| bounds(files.iter().map(of));
    let mut offsets = ListBuilder::new(Int64Builder::new());
    for file in &files {
        offsets.append_option(file.split_offsets().map(|o| o.iter().map(|o| Some(*o)).collect::<Vec<_>>()));
    }
    let formats = files.iter().map(|file| file.file_format().to_string().to_uppercase());
    let contents = files.iter().map(|file| file.content_type() as i32);
    batch(vec![
        ("content", Arc::new(Int32Array::from_iter_values(contents))),
        ("file_path", Arc::new(StringArray::from_iter_values(files.iter().map(DataFile::file_path)))),
        ("file_format", Arc::new(StringArray::from_iter_values(formats))),
        ("record_count", number(|file| file.record_count() as i64)),
        ("file_size_in_bytes", number(|file| file.file_size_in_bytes() as i64)),
        ("column_sizes", counts(DataFile::column_sizes)?),
        ("value_counts", counts(DataFile::value_counts)?),
        ("null_value_counts", counts(DataFile::null_value_counts)?),
        ("nan_value_counts", counts(DataFile::nan_value_counts)?),
        ("lower_bounds", bounds(DataFile::lower_bounds)?),
        ("upper_bounds", bounds(DataFile::upper_bounds)?),
        ("split_offsets", Arc::new(offsets.finish())),
        ("sort_order_id", Arc::new(files.iter().map(DataFile::sort_order_id).collect::<Int32Array>())),
    ])
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
    let columns = columns.into_iter().map(|(name, array)| (name, array, true));
    Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
}

fn times(times_ms: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(times_ms.map(|ms| ms * 1000)).with_timezone("UTC"))
}

/// Numbers by field id.
fn counts<'a>(of_files: impl Iterator<Item = &'a HashMap<i32, u64>>) -> Result<ArrayRef> {
    let mut maps = MapBuilder::new(None, Int64Builder::new(), Int64Builder::new());
    for of_file in of_files {
        for (id, count) in of_file.iter().collect::<BTreeMap<_, _>>() {
            maps.keys().append_value(i64::from(*id));
            maps.values().append_value(*count as i64);
        }
        maps.append(true)?;
    }
    Ok(Arc::new(maps.finish()))
}

/// Bounds as text by field id.
fn bounds<'a>(of_files: impl Iterator<Item = &'a HashMap<i32, Datum>>) -> Result<ArrayRef> {
    let mut maps = MapBuilder::new(None, Int64Builder::new(), StringBuilder::new());
    for of_file in of_files {
        for (id, bound) in of_file.iter().collect::<BTreeMap<_, _>>() {
            maps.keys().append_value(i64::from(*id));
            maps.values().append_value(bound.to_human_string());
        }
        maps.append(true)?;
    }
    Ok(Arc::new(maps.finish()))
}
