//! Files merged and deleted while others read and write.

use std::fs::{File, FileTimes};
use std::time::{Duration, UNIX_EPOCH};

use iceberg::spec::Operation;
use proptest::prelude::any;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::offline::Extent;
use crate::offline::durable::local_path;
use crate::offline::files::manifest_list;
use crate::offline::warehouse::absolute;

const DAY_US: i64 = 24 * 60 * 60 * 1_000_000;

struct Stage {
    store: Arc<OfflineStore>,
    clock: Arc<ManualClock>,
    dir: tempfile::TempDir,
}

impl Stage {
    /// A table of three files: 1 and 2, 10, 100.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(1_000_000));
        let (catalog, warehouse) = (dir.path().join("catalog.db"), dir.path().join("warehouse"));
        let store = OfflineStore::open(&catalog, &warehouse, Arc::clone(&clock) as _).await.unwrap();
        let stage = Self { store: Arc::new(store), clock, dir };
        stage.store.create(&spec("t"), Some(rows([1, 2])), &unbounded()).await.unwrap();
        stage.append([10]).await;
        stage.append([100]).await;
        stage
    }

    async fn table(&self) -> OfflineTable {
        self.store.load(&spec("t").name).await.unwrap().unwrap()
    }

    async fn append<const N: usize>(&self, values: [i64; N]) -> OfflineTable {
        let properties = HashMap::from([("fletching.note".to_owned(), format!("{values:?}"))]);
        self.clock.advance(1_000_000);
        let table = self.table().await;
        self.store.append(&table, rows(values), properties, &unbounded()).await.unwrap().0
    }

    async fn optimize(&self, table: &OfflineTable) -> Result<(OfflineTable, Optimized)> {
        let layout = self.store.layout(table, Extent::Needed).await?;
        let state = SessionContext::new().state();
        let scan = layout.rows(&self.store, table).scan(&state, None, &[], None).await.unwrap();
        let rows = datafusion::physical_plan::execute_stream(scan, state.task_ctx()).unwrap();
        self.clock.advance(1_000_000);
        self.store.rewrite(table, &layout, rows, &unbounded()).await
    }

    async fn vacuum(&self, cutoff_us: i64, applied: Option<i64>) -> Vacuumed {
        self.store.vacuum(&self.table().await, cutoff_us, applied, &[]).await.unwrap()
    }

    async fn sum(&self, table: &OfflineTable) -> i64 {
        sum(&IcebergTable::current(Arc::clone(&self.store), table.clone())).await
    }

    async fn files(&self) -> usize {
        self.store.data_files(&self.table().await, None).await.unwrap().len()
    }

    fn parquet_files(&self) -> usize {
        let mut found = Vec::new();
        paths_under(self.dir.path(), &mut found);
        found.iter().filter(|path| path.extension().is_some_and(|end| end == "parquet")).count()
    }
}

fn paths_under(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap().flatten() {
        match entry.path().is_dir() {
            true => paths_under(&entry.path(), found),
            false => found.push(entry.path()),
        }
    }
}

#[tokio::test]
async fn rows_move_and_readers_keep_their_files() {
    let stage = Stage::new().await;
    let before = stage.table().await;
    let (after, optimized) = stage.optimize(&before).await.unwrap();
    assert_eq!((optimized.files_before, optimized.files_after, optimized.rows_rewritten), (3, 1, 4));
    assert!(optimized.bytes_after < optimized.bytes_before);
    assert_eq!((stage.files().await, stage.parquet_files()), (1, 4));
    assert_eq!((stage.sum(&after).await, stage.sum(&before).await), (113, 113));

    let summary = after.snapshot().unwrap().summary();
    assert_eq!(summary.operation, Operation::Replace);
    let property = |key: &str| summary.additional_properties.get(key).map(String::as_str);
    assert_eq!(property("total-data-files"), Some("1"));
    assert_eq!(property("total-records"), Some("4"));
    assert_eq!(property("deleted-data-files"), Some("3"));
    assert_eq!(property("fletching.note"), Some("[100]"), "what is said of the newest rows holds on");
    assert!(stage.store.layout(&after, Extent::Needed).await.unwrap().is_good(), "nothing more to do");
    assert_eq!(stage.store.layout(&after, Extent::Full).await.unwrap().chosen(), 1);
}

#[tokio::test]
async fn what_others_add_meanwhile_stays_and_what_they_take_away_conflicts() {
    let stage = Stage::new().await;
    let before = stage.table().await;
    stage.append([1000]).await;
    let (after, _) = stage.optimize(&before).await.unwrap();
    assert_eq!((stage.sum(&after).await, stage.files().await), (1113, 2));

    let on_disk = stage.parquet_files();
    let error = stage.optimize(&before).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.message().contains("try again"), "{error}");
    assert_eq!(stage.parquet_files(), on_disk, "nothing of the failed one is left");
    assert_eq!(stage.sum(&stage.table().await).await, 1113);
}

#[tokio::test]
async fn writes_since_a_snapshot_are_seen_from_before_a_replacement() {
    let stage = Stage::new().await;
    let applied = stage.table().await.metadata().current_snapshot_id().unwrap();
    stage.append([1000]).await;
    let second = stage.append([10_000]).await;
    let optimized = stage.optimize(&second).await.unwrap().0;
    let replaced = optimized.metadata().current_snapshot_id().unwrap();
    assert!(optimized.writes_since(replaced).unwrap().is_empty());
    let third = stage.append([100_000]).await;
    for (applied, expected) in [(applied, vec![100_000, 11_000]), (replaced, vec![100_000])] {
        let mut sums = Vec::new();
        for (then, added) in third.writes_since(applied).unwrap() {
            sums.push(sum(&IcebergTable::added_by(Arc::clone(&stage.store), then, added)).await);
        }
        assert_eq!(sums, expected);
    }
    let since_second = second.metadata().current_snapshot_id().unwrap();
    assert!(optimized.writes_since(since_second).unwrap().is_empty(), "the rows are the same");
}

#[tokio::test]
async fn a_vacuum_keeps_what_was_current_within_the_retention() {
    let stage = Stage::new().await; // snapshots at 1 s, 2 s and 3 s
    let second = stage.table().await.at_time(2_000_000).unwrap();
    let optimized = stage.optimize(&stage.table().await).await.unwrap().0; // at 4 s
    assert_eq!(stage.vacuum(1_999_000, None).await, Vacuumed::default(), "the first was current then");

    let vacuumed = stage.vacuum(2_500_000, None).await;
    assert_eq!((vacuumed.snapshots_expired, vacuumed.data_files_deleted), (1, 0));
    assert_eq!(vacuumed.metadata_files_deleted, 1, "its list of manifests");
    assert_eq!(stage.sum(&second).await, 13, "as of 2.5 s");
    assert_eq!(stage.table().await.at_time(1_500_000).unwrap_err().kind(), ErrorKind::NotFound);

    let vacuumed = stage.vacuum(4_000_000, None).await;
    assert_eq!((vacuumed.snapshots_expired, vacuumed.data_files_deleted), (2, 3));
    assert!(vacuumed.bytes_deleted > 0);
    assert_eq!((stage.parquet_files(), stage.sum(&optimized).await), (1, 113));
    assert_eq!(stage.sum(&stage.append([1000]).await).await, 1113);
}

#[tokio::test]
async fn a_vacuum_keeps_what_the_online_store_has_not_applied() {
    let stage = Stage::new().await;
    let applied = stage.table().await.at_time(2_000_000).unwrap().snapshot().unwrap().snapshot_id();
    stage.optimize(&stage.table().await).await.unwrap();
    assert_eq!(stage.vacuum(i64::MAX, Some(applied)).await.snapshots_expired, 1);
    let writes = stage.table().await.writes_since(applied).unwrap();
    let (then, added) = writes.into_iter().next().unwrap();
    assert_eq!(sum(&IcebergTable::added_by(Arc::clone(&stage.store), then, added)).await, 100);
}

#[tokio::test]
async fn orphans_go_when_their_write_has_long_been_still() {
    let stage = Stage::new().await;
    let directory = absolute(&stage.store.directory(stage.table().await.metadata()).unwrap());
    let write = |name: &str, at_us: i64| {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let file = File::create(&path).unwrap();
        let at = UNIX_EPOCH + Duration::from_micros(at_us as u64);
        file.set_times(FileTimes::new().set_modified(at)).unwrap();
    };
    // All else is as old as this test, so this is the year 2100.
    let now_us = 4_102_444_800_000_000;
    let files = files_under(&directory);
    write("data/still/part-00000.parquet", now_us - 4 * DAY_US);
    write("data/going/part-00000.parquet", now_us - 9 * DAY_US);
    write("data/going/part-00001.parquet", now_us - 2 * DAY_US);
    write("metadata/lost-m0.avro", now_us - 4 * DAY_US);
    write("metadata/new-m0.avro", now_us - 2 * DAY_US);
    stage.clock.set(now_us);
    let vacuumed = stage.vacuum(0, None).await;
    assert_eq!((vacuumed.orphan_files_deleted, vacuumed.snapshots_expired), (2, 0));
    assert!(!directory.join("data/still").exists());
    assert_eq!(files_under(&directory), files + 3);
    assert_eq!(stage.sum(&stage.table().await).await, 113);

    // A file that is named and not there may be elsewhere under another name: then nothing is an orphan.
    let named = stage.store.data_files(&stage.table().await, None).await.unwrap();
    std::fs::remove_file(local_path(named[0].file_path())).unwrap();
    stage.clock.advance(90 * DAY_US);
    assert_eq!(stage.vacuum(0, None).await, Vacuumed::default());
}

#[tokio::test]
async fn old_metadata_files_go_but_for_the_last() {
    let stage = Stage::new().await;
    for value in 0..12 {
        stage.append([value]).await;
    }
    let versions = || {
        let mut found = Vec::new();
        paths_under(stage.dir.path(), &mut found);
        found.iter().filter(|path| path.to_string_lossy().ends_with(".metadata.json")).count()
    };
    assert_eq!(versions(), 15);
    assert_eq!(stage.vacuum(0, None).await.metadata_files_deleted, 0, "they are younger");
    stage.clock.set(4_102_444_800_000_000);
    let vacuumed = stage.vacuum(4_102_444_800_000_000, None).await;
    assert_eq!((vacuumed.snapshots_expired, vacuumed.data_files_deleted), (14, 0));
    assert_eq!(versions(), 11, "the current one and the ten before");
    let again = store(stage.dir.path()).await;
    let table = again.load(&spec("t").name).await.unwrap().unwrap();
    assert_eq!(sum(&IcebergTable::current(again, table)).await, 113 + 66);
}

/// Whatever is done, in whatever order: the rows are those that were added, and every kept snapshot reads as it did.
#[test]
fn any_upkeep_keeps_every_row() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut runner = TestRunner::new(Config { cases: 12, failure_persistence: None, ..Config::default() });
    let steps = proptest::collection::vec(any::<u8>(), 1..16);
    let outcome = runner.run(&steps, |steps| {
        runtime.block_on(async {
            let stage = Stage::new().await;
            let mut seen = HashMap::new();
            let mut expected = 113;
            for step in steps {
                match step % 4 {
                    0 | 1 => {
                        stage.append([i64::from(step)]).await;
                        expected += i64::from(step);
                    }
                    2 => drop(stage.optimize(&stage.table().await).await.unwrap()),
                    _ => drop(stage.vacuum(1_000_000 * i64::from(step / 4), None).await),
                }
                let table = stage.table().await;
                seen.insert(table.metadata().current_snapshot_id().unwrap(), expected);
                for snapshot in table.metadata().snapshots() {
                    let id = snapshot.snapshot_id();
                    let then = table.at_snapshot(id).unwrap();
                    let sum = stage.sum(&then).await;
                    assert_eq!(seen.get(&id).copied().unwrap_or(sum), sum);
                }
            }
        });
        Ok(())
    });
    outcome.unwrap();
}

#[tokio::test]
async fn appends_merge_the_manifests_of_many_before_them() {
    let stage = Stage::new().await;
    let (mut before, mut expected) = (stage.table().await, 113);
    let manifests = async |table: &OfflineTable| {
        let snapshot = table.snapshot().unwrap();
        manifest_list(&stage.store.io, &table.metadata, snapshot).await.unwrap().entries().len()
    };
    let mut most = 0;
    for value in 1..=220 {
        let table = stage.append([value]).await;
        expected += value;
        most = most.max(manifests(&table).await);
        if value == 50 {
            before = table;
        }
    }
    let now = stage.table().await;
    assert_eq!((most, manifests(&now).await < most), (100, true));
    assert_eq!((stage.files().await, stage.sum(&now).await), (223, expected));
    assert_eq!(stage.sum(&before).await, 113 + (1..=50).sum::<i64>());
    // Who was at an earlier snapshot finds what came since, whatever manifest it is in by now.
    let since: Vec<i64> = now.ancestors().map(|snapshot| snapshot.snapshot_id()).take(150).collect();
    assert_eq!(stage.store.data_files(&now, Some(&since)).await.unwrap().len(), 150);
}
