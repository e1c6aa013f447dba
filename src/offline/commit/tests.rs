use std::collections::BTreeMap;
use std::path::Path;

use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use datafusion::arrow::datatypes::Int64Type;
use datafusion::execution::context::SessionContext;
use datafusion::execution::memory_pool::UnboundedMemoryPool;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

use super::*;
use crate::clock::ManualClock;
use crate::offline::catalog::places;
use crate::offline::{CatalogLocation, Fault, IcebergTable, storage_schema};

use Fault::{After, Before, Slow};

fn rows(values: impl IntoIterator<Item = i64>) -> SendableRecordBatchStream {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    let batch = RecordBatch::try_from_iter_with_nullable([("v", column, true)]).unwrap();
    Box::pin(RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)])))
}

fn name() -> TableName {
    TableName::new("public", "t")
}

fn spec() -> TableSpec {
    TableSpec::plain(name(), storage_schema(&rows([]).schema()).unwrap())
}

fn unbounded() -> Arc<dyn MemoryPool> {
    Arc::new(UnboundedMemoryPool::default())
}

fn keyed(key: impl Into<String>) -> HashMap<String, String> {
    HashMap::from([(IDEMPOTENCY_KEY.to_owned(), key.into())])
}

async fn store(dir: &Path) -> Arc<OfflineStore> {
    store_in(&(&dir.join("catalog.db")).into(), dir).await
}

async fn store_in(catalog: &CatalogLocation, dir: &Path) -> Arc<OfflineStore> {
    let clock = Arc::new(ManualClock::new(1_000_000));
    Arc::new(OfflineStore::open(catalog.clone(), &dir.join("warehouse"), clock).await.unwrap())
}

async fn table(store: &OfflineStore) -> OfflineTable {
    store.load(&name()).await.unwrap().unwrap()
}

/// How often each value is there.
async fn counted(store: &Arc<OfflineStore>) -> BTreeMap<i64, usize> {
    let scanned = IcebergTable::current(Arc::clone(store), table(store).await);
    let batches = SessionContext::new().read_table(Arc::new(scanned)).unwrap().collect().await.unwrap();
    let mut counted = BTreeMap::new();
    for value in batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values()) {
        *counted.entry(*value).or_default() += 1;
    }
    counted
}

fn once(values: impl IntoIterator<Item = i64>) -> BTreeMap<i64, usize> {
    values.into_iter().map(|value| (value, 1)).collect()
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_read_back() {
    for place in places() {
        let dir = tempfile::tempdir().unwrap();
        let store = store_in(&place.location, dir.path()).await;
        // The catalog is called in turns: a change, and where that fails a read of what became of it.
        for faults in [
            &[After][..],
            &[Before],
            &[After, After],
            &[After, Before, After],
            &[Before, After, After],
            &[Slow],
        ] {
            store.faults.next(faults);
            assert_eq!(store.create(&spec(), Some(rows([1])), &unbounded()).await.unwrap(), 1, "{faults:?}");
            assert_eq!(counted(&store).await, once([1]), "{faults:?}");

            let seen = table(&store).await;
            // An append reads once before.
            store.faults.next(&[&[Fault::None], faults].concat());
            let (seen, count) =
                store.append(&seen, rows([2, 3]), HashMap::new(), &unbounded()).await.unwrap();
            assert_eq!((count, counted(&store).await), (2, once([1, 2, 3])), "{faults:?}");

            store.faults.next(faults);
            assert_eq!(
                store.replace(&seen, &spec(), rows([4]), &unbounded()).await.unwrap(),
                1,
                "{faults:?}"
            );
            assert_eq!(counted(&store).await, once([4]), "{faults:?}");

            let last = table(&store).await;
            store.faults.next(faults);
            store.drop_table(&last).await.unwrap();
            assert!(store.load(&name()).await.unwrap().is_none(), "{faults:?}");
        }
    }
}

#[tokio::test]
async fn others_win_or_lose_while_an_answer_is_lost() {
    for place in places() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) =
            (store_in(&place.location, dir.path()).await, store_in(&place.location, dir.path()).await);
        one.create(&spec(), None, &unbounded()).await.unwrap();
        let taken = {
            one.faults.next(&[Before]);
            one.create(&spec(), Some(rows([9])), &unbounded()).await.unwrap_err()
        };
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
        let stale = table(&one).await;
        two.append(&table(&two).await, rows([1]), HashMap::new(), &unbounded()).await.unwrap();
        one.faults.next(&[Before]);
        let changed = one.replace(&stale, &spec(), rows([9]), &unbounded()).await.unwrap_err();
        assert_eq!(changed.kind(), ErrorKind::Conflict);
        // Ours was made and its answer lost; another is on top of it before we look.
        one.append(&stale, rows([2]), HashMap::new(), &unbounded()).await.unwrap();
        assert_eq!(counted(&one).await, once([1, 2]));
    }
}

#[tokio::test]
async fn a_commit_that_stays_unknown_says_so_and_its_key_settles_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    store.create(&spec(), None, &unbounded()).await.unwrap();
    let empty = table(&store).await;
    for (first, value) in [(After, 1), (Before, 2)] {
        let mut faults = [Fault::None, first].into_iter();
        store.faults.follow(move || faults.next().unwrap_or(Before));
        let key = || keyed(value.to_string());
        let unknown = store.append(&empty, rows([value]), key(), &unbounded()).await.unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::Unavailable);
        assert!(unknown.message().contains("same idempotency key"), "{unknown}");
        store.faults.next(&[]);
        let (_, count) = store.append(&empty, rows([value]), key(), &unbounded()).await.unwrap();
        assert_eq!(count, 1);
    }
    assert_eq!(counted(&store).await, once([1, 2]));
}

#[tokio::test]
async fn a_key_lands_once_however_many_send_it() {
    for place in places() {
        let dir = tempfile::tempdir().unwrap();
        let stores =
            [store_in(&place.location, dir.path()).await, store_in(&place.location, dir.path()).await];
        stores[0].create(&spec(), None, &unbounded()).await.unwrap();
        let empty = table(&stores[0]).await;
        let writes = (0..8).map(|n| {
            let (store, seen) = (&stores[n % 2], &empty);
            store.faults.follow(|| Slow);
            let width = 1 + n as i64; // they would differ, so that it shows whose is there
            async move { store.append(seen, rows(0..width), keyed("k"), &unbounded()).await.unwrap().1 }
        });
        let counts = futures::future::join_all(writes).await;
        assert_eq!(counts, vec![counts[0]; 8], "all are told the same");
        assert_eq!(counted(&stores[0]).await, once(0..counts[0] as i64));
        assert_eq!(table(&stores[1]).await.metadata().snapshots().count(), 1);

        let (later, _) = stores[0].append(&empty, rows([100]), keyed("other"), &unbounded()).await.unwrap();
        assert_eq!(
            later.rows_written_with("k"),
            Some(counts[0]),
            "not only the newest snapshot is looked at"
        );
        assert_eq!(later.rows_written_with("K"), None);
        let files = || std::fs::read_dir(dir.path().join("warehouse/public")).unwrap().flatten();
        let data = |entry: std::fs::DirEntry| std::fs::read_dir(entry.path().join("data")).unwrap().count();
        assert_eq!(files().map(data).sum::<usize>(), 2, "what was not needed is removed");
    }
}

#[tokio::test]
async fn a_table_that_is_created_with_rows_has_their_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path()).await;
    let created = TableSpec { snapshot_properties: keyed("k"), ..spec() };
    store.create(&created, Some(rows([1, 2])), &unbounded()).await.unwrap();
    let (_, count) =
        store.append(&table(&store).await, rows([1, 2]), keyed("k"), &unbounded()).await.unwrap();
    assert_eq!((count, counted(&store).await), (2, once([1, 2])));
}
