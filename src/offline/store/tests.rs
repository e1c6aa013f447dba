mod evolution;
mod upkeep;

use std::path::{Path, PathBuf};

use datafusion::arrow::array::{Int64Array, RecordBatch};
use datafusion::catalog::TableProvider;
use datafusion::execution::context::SessionContext;
use datafusion::execution::memory_pool::UnboundedMemoryPool;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{collect, displayable};
use datafusion::prelude::{col, lit};

use futures::StreamExt;

use super::*;
use crate::clock::ManualClock;
use crate::error::ErrorKind;
use crate::offline::{IcebergTable, Optimized, Vacuumed, storage_schema};

fn rows(values: impl IntoIterator<Item = i64>) -> SendableRecordBatchStream {
    let column = Arc::new(Int64Array::from_iter_values(values)) as _;
    let batch = RecordBatch::try_from_iter_with_nullable([("v", column, true)]).unwrap();
    Box::pin(RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)])))
}

fn spec(name: &str) -> TableSpec {
    TableSpec::plain(TableName::new("public", name), storage_schema(&rows([]).schema()).unwrap())
}

fn unbounded() -> Arc<dyn MemoryPool> {
    Arc::new(UnboundedMemoryPool::default())
}

async fn store(dir: &Path) -> Arc<OfflineStore> {
    let clock = Arc::new(ManualClock::new(1_000_000));
    Arc::new(OfflineStore::open(&dir.join("catalog.db"), &dir.join("warehouse"), clock).await.unwrap())
}

async fn sum(table: &IcebergTable) -> i64 {
    let context = SessionContext::new();
    let rows = context.read_table(Arc::new(table.clone())).unwrap().collect().await.unwrap();
    let values =
        |b: &RecordBatch| b.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec();
    rows.iter().flat_map(values).sum()
}

fn files_under(dir: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries.flatten().map(|e| if e.path().is_dir() { files_under(&e.path()) } else { 1 }).sum()
}

#[tokio::test]
async fn a_scan_reads_only_files_whose_bounds_fit() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.create(&spec("t"), None, &unbounded()).await.unwrap();
    let mut table = store.load(&spec("t").name).await.unwrap().unwrap();
    for start in [0, 100, 200] {
        table = store.append(&table, rows(start..start + 10), HashMap::new(), &unbounded()).await.unwrap().0;
    }
    let scanned = IcebergTable::current(Arc::clone(&store), table);
    let state = SessionContext::new().state();
    let cases = [
        (col("v").gt(lit(150_i64)), 1, (200..210).sum::<i64>()),
        (col("v").between(lit(5_i64), lit(103_i64)), 2, (0..10).chain(100..110).sum()),
        (col("v").eq(lit(50_i64)), 0, 0),
        (col("v").is_null(), 0, 0),
    ];
    for (filter, files, expected) in cases {
        let plan = scanned.scan(&state, None, std::slice::from_ref(&filter), None).await.unwrap();
        let shown = displayable(plan.as_ref()).indent(true).to_string();
        assert_eq!(shown.matches(".parquet").count(), files, "{filter}: {shown}");
        let read = collect(plan, state.task_ctx()).await.unwrap();
        let total: i64 = read
            .iter()
            .flat_map(|b| b.column(0).as_any().downcast_ref::<Int64Array>().unwrap().values().to_vec())
            .sum();
        assert_eq!(total, expected, "{filter}");
    }
}

#[tokio::test]
async fn what_some_snapshots_added_can_be_read_alone() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.create(&spec("t"), Some(rows([1, 2])), &unbounded()).await.unwrap();
    let first = store.load(&spec("t").name).await.unwrap().unwrap();
    let (second, _) = store.append(&first, rows([10]), HashMap::new(), &unbounded()).await.unwrap();
    let (third, _) = store.append(&second, rows([100]), HashMap::new(), &unbounded()).await.unwrap();
    let applied = first.metadata().current_snapshot_id().unwrap();
    let (then, since) = third.writes_since(applied).unwrap().remove(0);
    assert_eq!(since.len(), 2);
    assert_eq!(sum(&IcebergTable::added_by(Arc::clone(&store), then, since)).await, 110);
    assert_eq!(sum(&IcebergTable::current(Arc::clone(&store), third.clone())).await, 113);
    assert_eq!(
        sum(&IcebergTable::current(Arc::clone(&store), first)).await,
        3,
        "an old version stays readable"
    );
    assert!(third.writes_since(applied.wrapping_add(1)).is_none());
}

#[tokio::test]
async fn a_failed_write_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.create(&spec("t"), None, &unbounded()).await.unwrap();
    let table = store.load(&spec("t").name).await.unwrap().unwrap();
    let before = files_under(dir.path());
    let good = rows(0..5);
    let schema = good.schema();
    let batches = good.chain(futures::stream::once(async { Err(Error::invalid("the source broke").into()) }));
    let broken = Box::pin(RecordBatchStreamAdapter::new(schema, batches));
    let error = store.append(&table, broken, HashMap::new(), &unbounded()).await.unwrap_err();
    assert_eq!(error.message(), "the source broke");
    assert_eq!(files_under(dir.path()), before);
}

#[tokio::test]
async fn names_are_taken_once_and_stale_views_conflict() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.create(&spec("t"), Some(rows([1])), &unbounded()).await.unwrap();
    let files = files_under(&dir.path().join("warehouse"));
    let taken = store.create(&spec("t"), Some(rows([2])), &unbounded()).await.unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    assert_eq!(files_under(&dir.path().join("warehouse")), files, "the loser's files are removed");

    let stale = store.load(&spec("t").name).await.unwrap().unwrap();
    let (current, _) = store.append(&stale, rows([2]), HashMap::new(), &unbounded()).await.unwrap();
    let conflict = store.replace(&stale, &spec("t"), rows([3]), &unbounded()).await.unwrap_err();
    assert_eq!(conflict.kind(), ErrorKind::Conflict);
    store.replace(&current, &spec("t"), rows([3]), &unbounded()).await.unwrap();
    let gone = store.append(&current, rows([4]), HashMap::new(), &unbounded()).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Conflict);
    let replaced = store.load(&spec("t").name).await.unwrap().unwrap();
    assert_eq!(sum(&IcebergTable::current(Arc::clone(&store), replaced.clone())).await, 3);
    store.drop_table(&replaced).await.unwrap();
    assert_eq!(files_under(&dir.path().join("warehouse")), 0);
}

#[tokio::test]
async fn metadata_and_snapshots_have_the_stores_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.create(&spec("t"), None, &unbounded()).await.unwrap();
    let empty = store.load(&spec("t").name).await.unwrap().unwrap();
    let metadata = empty.metadata();
    assert_eq!(metadata.last_updated_ms(), 1000);
    assert_eq!(&updated_at(metadata, 1000).unwrap(), metadata.as_ref());
    let (table, _) = store.append(&empty, rows([1]), HashMap::new(), &unbounded()).await.unwrap();
    assert_eq!(table.snapshot().unwrap().timestamp_ms(), 1000);
    assert_eq!(sum(&IcebergTable::current(Arc::clone(&store), table.at_time(1_000_000).unwrap())).await, 1);
    assert_eq!(table.at_time(999_999).unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn odd_names_stay_inside_the_warehouse() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    for name in ["../../escape", "a/b c", "ünïcode", &"x".repeat(300), "100%"] {
        store.create(&spec(name), Some(rows([7])), &unbounded()).await.unwrap();
        let table = store.load(&spec(name).name).await.unwrap().unwrap();
        assert_eq!(sum(&IcebergTable::current(Arc::clone(&store), table)).await, 7, "{name}");
    }
    assert!(files_under(&dir.path().join("warehouse")) >= 15);
}
