//! Rows taken one by one against Parquet's own reader, over every encoding that a writer may choose.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array,
    Int32Array, Int64Array, ListArray, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
};
use datafusion::arrow::compute::{concat_batches, take};
use datafusion::arrow::datatypes::{DataType, Int32Type};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::ObjectStoreExt;
use object_store::path::Path;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::{WriterProperties, WriterVersion};
use proptest::prelude::*;

use super::{Buffers, RowFile};

/// All types that the store keeps, with NULLs where `nulls` says so.
fn batch(rows: usize, distinct: i64, nulls: bool) -> RecordBatch {
    let at = |row: usize| (row as i64).wrapping_mul(0x9e37_79b9).rem_euclid(distinct.max(1));
    let some = |row: usize| !nulls || at(row * 7 + 3) % 4 != 0;
    let ints = |row| some(row).then_some(at(row));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("key", Arc::new(Int64Array::from_iter((0..rows).map(|row| Some(row as i64 / 3))))),
        ("long", Arc::new(Int64Array::from_iter((0..rows).map(ints)))),
        ("int", Arc::new(Int32Array::from_iter((0..rows).map(|row| ints(row).map(|v| v as i32))))),
        ("date", Arc::new(Date32Array::from_iter((0..rows).map(|row| ints(row).map(|v| v as i32))))),
        ("float", Arc::new(Float32Array::from_iter((0..rows).map(|row| ints(row).map(|v| v as f32 / 3.0))))),
        ("double", Arc::new(Float64Array::from_iter((0..rows).map(|row| ints(row).map(|v| v as f64 / 3.0))))),
        ("flag", Arc::new(BooleanArray::from_iter((0..rows).map(|row| ints(row).map(|v| v % 3 == 0))))),
        (
            "text",
            Arc::new(StringArray::from_iter(
                (0..rows).map(|row| ints(row).map(|v| "x".repeat(v as usize % 9) + &v.to_string())),
            )),
        ),
        ("bytes", Arc::new(BinaryArray::from_iter((0..rows).map(|row| ints(row).map(|v| v.to_le_bytes()))))),
        ("time", Arc::new(TimestampMicrosecondArray::from_iter((0..rows).map(ints)).with_timezone("UTC"))),
        (
            "money",
            Arc::new(
                Decimal128Array::from_iter((0..rows).map(|row| ints(row).map(i128::from)))
                    .with_precision_and_scale(12, 2)
                    .unwrap(),
            ),
        ),
        (
            "list",
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(
                (0..rows).map(|row| some(row).then(|| vec![Some(row as i32); row % 3])),
            )),
        ),
    ];
    RecordBatch::try_from_iter(columns).unwrap()
}

#[derive(Debug, Clone)]
struct Shape {
    rows: usize,
    distinct: i64,
    nulls: bool,
    dictionary: bool,
    version_2: bool,
    page_rows: usize,
    group_rows: usize,
}

fn shapes() -> impl Strategy<Value = Shape> {
    (1_usize..700, 1_i64..400, any::<[bool; 3]>(), 1_usize..120, 1_usize..400).prop_map(
        |(rows, distinct, [nulls, dictionary, version_2], page_rows, group_rows)| Shape {
            rows,
            distinct,
            nulls,
            dictionary,
            version_2,
            page_rows,
            group_rows,
        },
    )
}

fn file(batch: &RecordBatch, shape: &Shape) -> Vec<u8> {
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(shape.dictionary)
        .set_dictionary_page_size_limit(600)
        .set_writer_version(if shape.version_2 {
            WriterVersion::PARQUET_2_0
        } else {
            WriterVersion::PARQUET_1_0
        })
        .set_compression(Compression::LZ4_RAW)
        .set_write_batch_size(16)
        .set_data_page_row_count_limit(shape.page_rows)
        .set_max_row_group_row_count(Some(shape.group_rows))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), Some(properties)).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}

async fn open(bytes: Vec<u8>) -> (RowFile, tempfile::NamedTempFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let store = object_store::local::LocalFileSystem::new();
    let object = store.head(&Path::from_absolute_path(file.path()).unwrap()).await.unwrap();
    (RowFile::open(&RuntimeEnv::default(), &ObjectStoreUrl::local_filesystem(), object).await.unwrap(), file)
}

/// The same file in a store that is read by ranges.
async fn open_remote(bytes: Vec<u8>) -> RowFile {
    let (store, path) = (object_store::memory::InMemory::new(), Path::from("file"));
    store.put(&path, bytes.into()).await.unwrap();
    let object = store.head(&path).await.unwrap();
    let (runtime, url) = (RuntimeEnv::default(), ObjectStoreUrl::parse("s3://bucket").unwrap());
    runtime.register_object_store(url.as_ref(), Arc::new(store));
    RowFile::open(&runtime, &url, object).await.unwrap()
}

async fn check(shape: Shape, picks: Vec<prop::sample::Index>) {
    let batch = batch(shape.rows, shape.distinct, shape.nulls);
    let (local, _on_disk) = open(file(&batch, &shape)).await;
    let remote = open_remote(file(&batch, &shape)).await;
    for file in [local, remote] {
        check_file(&file, &batch, &shape, &picks).await;
    }
}

async fn check_file(file: &RowFile, batch: &RecordBatch, shape: &Shape, picks: &[prop::sample::Index]) {
    assert_eq!(file.rows() as usize, shape.rows);
    let mut rows: Vec<u32> = picks.iter().map(|pick| pick.index(shape.rows) as u32).collect();
    rows.sort_unstable();
    let ranges: Vec<_> = {
        let mut distinct = rows.clone();
        distinct.dedup();
        distinct.iter().map(|row| *row..row + 1).collect()
    };
    let columns: Vec<usize> = (0..batch.num_columns()).collect();
    let fetched = file.fetch(&columns, &ranges, &Buffers::default()).await.unwrap();
    for column in columns {
        let taken = file.take(&fetched, Some(column), &rows, batch.column(column).data_type()).unwrap();
        let expected = take(batch.column(column), &UInt32Array::from(rows.clone()), None).unwrap();
        assert_eq!(&taken, &expected, "{} of {shape:?}", batch.schema().field(column).name());
    }
    let some = [1_usize, 5, 7];
    let scanned: Vec<RecordBatch> =
        file.scan(&fetched, &some, &ranges, 64).unwrap().collect::<Result<_, _>>().unwrap();
    if !ranges.is_empty() {
        let scanned = concat_batches(&scanned[0].schema(), &scanned).unwrap();
        let distinct = UInt32Array::from_iter_values(ranges.iter().map(|range| range.start));
        for (index, column) in some.into_iter().enumerate() {
            assert_eq!(scanned.column(index), &take(batch.column(column), &distinct, None).unwrap());
        }
    }
    let bounds = file.page_bounds(0).unwrap();
    assert_eq!(bounds.rows.last().unwrap().end as usize, shape.rows);
    assert_eq!((bounds.min.len(), bounds.max.len()), (bounds.rows.len(), bounds.rows.len()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn taken_rows_are_the_rows(shape in shapes(), picks in prop::collection::vec(any::<prop::sample::Index>(), 0..60)) {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(check(shape, picks));
    }
}

#[tokio::test]
async fn only_the_pages_of_the_rows_are_fetched() {
    let shape = Shape {
        rows: 600,
        distinct: 300,
        nulls: false,
        dictionary: true,
        version_2: false,
        page_rows: 50,
        group_rows: 300,
    };
    let batch = batch(shape.rows, shape.distinct, shape.nulls);
    let (file, _on_disk) = open(file(&batch, &shape)).await;
    let buffers = Buffers::default();
    let one = file.fetch(&[0, 1], std::slice::from_ref(&(310..311)), &buffers).await.unwrap();
    let all = file.fetch(&[0, 1], std::slice::from_ref(&(0..600)), &buffers).await.unwrap();
    assert!(one.bytes() * 3 < all.bytes(), "{} of {}", one.bytes(), all.bytes());
    assert!(file.take(&one, Some(1), &[5], &DataType::Int64).is_err(), "its page was not fetched");
    let widened = file.take(&one, Some(2), &[], &DataType::Int64).unwrap();
    assert_eq!(widened.data_type(), &DataType::Int64);
    let missing = file.take(&one, None, &[1, 2], &DataType::Int64).unwrap();
    assert_eq!(missing.null_count(), 2);
}
