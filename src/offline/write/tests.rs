use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use datafusion::arrow::array::{
    ArrayRef, AsArray, Float64Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};
use datafusion::execution::memory_pool::{FairSpillPool, UnboundedMemoryPool};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use iceberg::spec::{Datum, PrimitiveLiteral};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::PageIndexPolicy;

use super::*;
use crate::clock::ManualClock;
use crate::error::ErrorKind;
use crate::model::TableName;
use crate::offline::durable::local_path;
use crate::offline::{OfflineStore, OfflineTable, TableSpec};

const DAY_US: i64 = 86_400_000_000;
const ORDER: [&str; 5] = ["user", "item", "ts", "_ingested_at", "_sequence"];

fn schema() -> SchemaRef {
    let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("item", DataType::Utf8, false),
        Field::new("user", DataType::Int64, false),
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), false),
        Field::new("score", DataType::Float64, true),
        Field::new("_ingested_at", utc, true),
        Field::new("_sequence", DataType::Int64, true),
    ]))
}

/// Rows in no order of user or time, and in order of sequence.
fn batch(rows: std::ops::Range<i64>, days: i64) -> RecordBatch {
    let mixed = |row: i64| row.wrapping_mul(0x9e37_79b9_7f4a_7c15_u64 as i64).rotate_left(17);
    let user = |row: i64| mixed(row).rem_euclid(1000);
    let time = |row: i64| mixed(row + 7).rem_euclid(days * DAY_US);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.clone().map(|r| format!("item-{}", user(r) % 7)))),
        Arc::new(Int64Array::from_iter_values(rows.clone().map(user))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.clone().map(time))),
        Arc::new(Float64Array::from_iter_values(rows.clone().map(|r| r as f64))),
        Arc::new(
            TimestampMicrosecondArray::from_value(5_000_000, (rows.end - rows.start) as usize)
                .with_timezone("UTC"),
        ),
        Arc::new(Int64Array::from_iter_values(rows)),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn stream(rows: i64, days: i64) -> SendableRecordBatchStream {
    let batches = (0..rows).step_by(8192).map(move |at| Ok(batch(at..(at + 8192).min(rows), days)));
    Box::pin(RecordBatchStreamAdapter::new(schema(), futures::stream::iter(batches)))
}

fn unbounded() -> Arc<dyn MemoryPool> {
    Arc::new(UnboundedMemoryPool::default())
}

async fn store(dir: &Path) -> OfflineStore {
    let clock = Arc::new(ManualClock::new(1_000_000));
    OfflineStore::open(&dir.join("catalog.db"), &dir.join("warehouse"), clock).await.unwrap()
}

/// An empty table, sorted by `order`.
async fn table(store: &OfflineStore, order: &[&str]) -> OfflineTable {
    let sort_columns = order.iter().map(|&c| c.to_owned()).collect();
    let spec = TableSpec { sort_columns, ..TableSpec::plain(TableName::new("public", "t"), schema()) };
    store.create(&spec, None, &unbounded()).await.unwrap();
    store.load(&spec.name).await.unwrap().unwrap()
}

fn read(file: &DataFile) -> RecordBatch {
    let open = File::open(local_path(file.file_path())).unwrap();
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(open).unwrap().with_batch_size(1 << 20).build().unwrap();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    datafusion::arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap()
}

fn keys(batch: &RecordBatch) -> Vec<(i64, String, i64, i64)> {
    let number = |c: usize| batch.column(c).as_primitive::<Int64Type>().values();
    let times = batch.column(2).as_primitive::<TimestampMicrosecondType>().values();
    let text = batch.column(0).as_string::<i32>();
    (0..batch.num_rows()).map(|r| (number(1)[r], text.value(r).to_owned(), times[r], number(5)[r])).collect()
}

fn bound(bounds: &HashMap<i32, Datum>, id: i32) -> i64 {
    match bounds[&id].literal() {
        PrimitiveLiteral::Long(value) => *value,
        other => panic!("{other:?}"),
    }
}

fn files_under(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().map(|e| if e.path().is_dir() { files_under(&e.path()) } else { 1 }).sum()
}

#[tokio::test]
async fn files_are_sorted_stamped_and_bounded_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let empty = table(&store, &ORDER).await;
    let (table, rows) = store.append(&empty, stream(800_000, 3), HashMap::new(), &unbounded()).await.unwrap();
    assert_eq!(rows, 800_000);
    let table = store.load(table.name()).await.unwrap().unwrap();
    assert_eq!(table.sort_columns(), ORDER);

    let files = store.data_files(&table, None).await.unwrap();
    assert_eq!(files.len(), 3, "a file per day");
    let mut sequences = Vec::new();
    for file in &files {
        assert!(table.is_sorted(file));
        let id = |name: &str| table.metadata().current_schema().field_by_name(name).unwrap().id;
        let (lower, upper) = (|n| bound(file.lower_bounds(), id(n)), |n| bound(file.upper_bounds(), id(n)));
        assert_eq!(lower("ts").div_euclid(DAY_US), upper("ts").div_euclid(DAY_US));
        assert_eq!((lower("_ingested_at"), upper("_ingested_at")), (5_000_000, 5_000_000));
        let rows = keys(&read(file));
        assert!(rows.is_sorted(), "{}", file.file_path());
        let of_file: Vec<i64> = rows.iter().map(|r| r.3).collect();
        assert_eq!(Some(&lower("_sequence")), of_file.iter().min());
        assert_eq!(Some(&upper("_sequence")), of_file.iter().max());
        sequences.extend(of_file);
    }
    sequences.sort_unstable();
    assert!(sequences.into_iter().eq(0..800_000), "each row once");
}

#[tokio::test]
async fn pages_are_small_and_keys_packed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let empty = table(&store, &ORDER).await;
    let (table, _) = store.append(&empty, stream(300_000, 30), HashMap::new(), &unbounded()).await.unwrap();
    let files = store.data_files(&table, None).await.unwrap();
    let [file] = files.as_slice() else { panic!("{} files", files.len()) };
    let open = File::open(local_path(file.file_path())).unwrap();
    let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Required);
    let footer = ArrowReaderMetadata::load(&open, options).unwrap();
    let groups = footer.metadata().row_groups();
    assert_eq!(groups.iter().map(|g| g.num_rows()).collect::<Vec<_>>(), [131_072, 131_072, 37_856]);
    let offsets = footer.metadata().offset_index().unwrap();
    assert!(footer.metadata().column_index().is_some());
    for (group, columns) in groups.iter().zip(offsets) {
        for (column, pages) in group.columns().iter().zip(columns) {
            let name = column.column_path().string();
            let starts = pages.page_locations().iter().map(|p| p.first_row_index);
            let starts: Vec<i64> = starts.chain([group.num_rows()]).collect();
            let most = starts.windows(2).map(|two| two[1] - two[0]).max().unwrap();
            assert!(most <= 20_480, "{name}: {most} rows in a page");
            assert_eq!(column.compression(), Compression::LZ4_RAW);
            let packed = ["user", "ts", "_ingested_at", "_sequence"].contains(&name.as_str());
            let encodings: Vec<Encoding> = column.encodings().collect();
            assert_eq!(encodings.contains(&Encoding::DELTA_BINARY_PACKED), packed, "{name}: {encodings:?}");
            let repeats = !packed && name != "score";
            assert_eq!(encodings.contains(&Encoding::RLE_DICTIONARY), repeats, "{name}: {encodings:?}");
            assert_eq!(column.bloom_filter_offset().is_some(), name == "item", "{name}");
        }
    }
}

#[tokio::test]
async fn little_memory_makes_more_files_and_none_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let empty = table(&store, &ORDER).await;
    let pool: Arc<dyn MemoryPool> = Arc::new(FairSpillPool::new(4 << 20));
    let (table, rows) = store.append(&empty, stream(100_000, 30), HashMap::new(), &pool).await.unwrap();
    assert_eq!(rows, 100_000);
    assert_eq!(pool.reserved(), 0);
    let files = store.data_files(&table, None).await.unwrap();
    assert!(files.len() > 2, "{} files", files.len());
    assert!(files.iter().all(|file| keys(&read(file)).is_sorted()));
    assert_eq!(files.iter().map(DataFile::record_count).sum::<u64>(), 100_000);

    let before = files_under(dir.path());
    let pool: Arc<dyn MemoryPool> = Arc::new(FairSpillPool::new(100_000));
    let error = store.append(&table, stream(100_000, 30), HashMap::new(), &pool).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
    assert_eq!(files_under(dir.path()), before);
}

#[tokio::test]
async fn a_table_without_order_is_written_as_rows_come() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let empty = table(&store, &[]).await;
    let (table, _) = store.append(&empty, stream(20_000, 3), HashMap::new(), &unbounded()).await.unwrap();
    assert!(table.sort_columns().is_empty());
    let files = store.data_files(&table, None).await.unwrap();
    let [file] = files.as_slice() else { panic!("{} files", files.len()) };
    assert_eq!(file.sort_order_id(), None);
    assert!(!table.is_sorted(file));
    assert!(keys(&read(file)).into_iter().map(|row| row.3).eq(0..20_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_breaks_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let empty = table(&store, &ORDER).await;
    let before = files_under(dir.path());
    let pool: Arc<dyn MemoryPool> = Arc::new(FairSpillPool::new(4 << 20));
    let broken = futures::stream::once(async { Err(Error::invalid("the source broke").into()) });
    let rows = RecordBatchStreamAdapter::new(schema(), stream(100_000, 3).chain(broken));
    let error = store.append(&empty, Box::pin(rows), HashMap::new(), &pool).await.unwrap_err();
    assert_eq!(error.message(), "the source broke");
    assert_eq!(files_under(dir.path()), before);
    assert_eq!(pool.reserved(), 0);
}

#[tokio::test]
async fn a_write_that_is_dropped_stops() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let empty = table(&store, &ORDER).await;
    let pool: Arc<dyn MemoryPool> = Arc::new(FairSpillPool::new(4 << 20));
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let endless = stream(1_000_000, 3).inspect(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
    });
    let rows = RecordBatchStreamAdapter::new(schema(), endless);
    {
        let write = store.append(&empty, Box::pin(rows), HashMap::new(), &pool);
        tokio::pin!(write);
        while asked.load(Ordering::SeqCst) < 20 {
            assert!(futures::poll!(&mut write).is_pending());
            tokio::task::yield_now().await;
        }
    }
    while pool.reserved() > 0 {
        tokio::task::yield_now().await;
    }
    assert!(asked.load(Ordering::SeqCst) < 123);
}

#[tokio::test]
async fn bounds_hold_where_row_groups_have_long_values() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("v", DataType::Utf8, true)]));
    let spec = TableSpec::plain(TableName::new("public", "t"), Arc::clone(&schema));
    let (short, long) = ("k".to_owned(), ["a".repeat(100), "z".repeat(100)]);
    let batch = |value: &str, rows: usize| {
        let values: ArrayRef = Arc::new(StringArray::from(vec![value; rows]));
        Ok(RecordBatch::try_new(Arc::clone(&schema), vec![values]).unwrap())
    };
    let batches = vec![batch(&short, 262_144), batch(&long[0], 10), batch(&long[1], 10)];
    let rows = RecordBatchStreamAdapter::new(Arc::clone(&schema), futures::stream::iter(batches));
    store.create(&spec, Some(Box::pin(rows)), &unbounded()).await.unwrap();
    let table = store.load(&spec.name).await.unwrap().unwrap();
    let files = store.data_files(&table, None).await.unwrap();
    let bound = |bounds: &HashMap<i32, Datum>| match bounds[&1].literal() {
        PrimitiveLiteral::String(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(bound(files[0].lower_bounds()), "a".repeat(64));
    assert_eq!(bound(files[0].upper_bounds()), format!("{}{{", "z".repeat(63)));
}
