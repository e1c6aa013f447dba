use proptest::prelude::*;

use super::*;

/// A server with a log, over the stores of `fixture`.
async fn logging(fixture: &Fixture, log: &str) -> Arc<Ingest> {
    let dir = fixture.dir.path();
    let offline =
        OfflineStore::open(&dir.join("catalog.db"), &dir.join("warehouse"), fixture.clock.clone()).await;
    let offline = Arc::new(offline.unwrap().with_log(&dir.join(log)).await.unwrap());
    let registry = Arc::new(Registry::new(Arc::clone(&offline)));
    let runtime = Arc::new(RuntimeEnv::default());
    Ingest::new(registry, offline, fixture.online.clone(), runtime, fixture.clock.clone())
}

async fn logged_fixture() -> Fixture {
    let fixture = fixture().await;
    let ingest = logging(&fixture, "log").await;
    Fixture { ingest, ..fixture }
}

impl Fixture {
    async fn snapshots(&self) -> usize {
        let table = self.ingest.offline.load(&self.name).await.unwrap().unwrap();
        table.ancestors().count()
    }

    fn logged(&self) -> usize {
        self.ingest.offline.tables_logged().iter().map(|(_, _, extent)| extent.rows).sum()
    }

    /// Ends the server without a word and starts another in its place.
    async fn restart(self) -> Self {
        let Self { ingest, online, clock, name, dir } = self;
        drop(ingest);
        let between = Self {
            ingest: super::ingest(dir.path(), online.clone(), clock.clone()).await,
            online,
            clock,
            name,
            dir,
        };
        let ingest = logging(&between, "log").await;
        Self { ingest, ..between }
    }
}

fn key(name: &str) -> IdempotencyKey {
    IdempotencyKey::parse(name).unwrap()
}

fn once(keys: impl IntoIterator<Item = i64>) -> BTreeMap<i64, usize> {
    keys.into_iter().map(|key| (key, 1)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_small_writes_share_a_snapshot_and_are_seen_before_it() {
    let fixture = logged_fixture().await;
    let writes = (0..64).map(|n| {
        let (ingest, name) = (Arc::clone(&fixture.ingest), fixture.name.clone());
        tokio::spawn(async move {
            for k in (n * 10)..(n * 10 + 10) {
                assert_eq!(ingest.append(&name, batch(vec![k]), None).await.unwrap(), 1);
            }
        })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    assert_eq!((fixture.snapshots().await, fixture.logged()), (0, 640));
    assert_eq!(fixture.stored().await, once(0..640));
    assert_eq!(fixture.served(vec![0, 639, 640]).await, [true, true, false]);

    fixture.append(vec![640]).await.unwrap();
    assert_eq!(fixture.stored().await, once(0..641), "beside a file that was read");
    assert!(fixture.ingest.checkpoint(None).await.unwrap());
    assert!(!fixture.ingest.checkpoint(None).await.unwrap());
    assert_eq!((fixture.snapshots().await, fixture.logged()), (1, 0));
    assert_eq!(fixture.stored().await, once(0..641));
    assert_eq!(fixture.lag().await, (0, 0, 0));
}

#[tokio::test]
async fn a_large_write_goes_past_the_log_and_an_empty_one_nowhere() {
    let fixture = logged_fixture().await;
    assert_eq!(fixture.append(vec![]).await.unwrap(), 0);
    assert_eq!(fixture.append((0..1000).collect()).await.unwrap(), 1000);
    assert_eq!((fixture.snapshots().await, fixture.logged()), (0, 1000));
    assert_eq!(fixture.append((1000..2001).collect()).await.unwrap(), 1001);
    assert_eq!((fixture.snapshots().await, fixture.logged()), (1, 1000));
    assert_eq!(fixture.stored().await, once(0..2001));
    let error = fixture.ingest.append(&fixture.name, values(), None).await.unwrap_err();
    assert!(error.message().contains("lack columns 'k', 'ts'"), "{error}");
}

fn values() -> SendableRecordBatchStream {
    let values: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let batch = RecordBatch::try_from_iter([("v", values)]).unwrap();
    Box::pin(RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)])))
}

#[tokio::test]
async fn rows_are_folded_when_they_are_old_or_the_online_store_lacks_them() {
    let fixture = logged_fixture().await;
    fixture.append(vec![1]).await.unwrap();
    let age = Duration::from_millis(60);
    assert_eq!(fixture.ingest.fold_due(age).await, 0);
    assert_eq!(fixture.logged(), 1, "too young");
    fixture.clock.set(1_000 + 60_000);
    assert_eq!(fixture.ingest.fold_due(age).await, 0);
    assert_eq!((fixture.snapshots().await, fixture.logged()), (1, 0));

    fixture.online.down.store(true, Ordering::SeqCst);
    assert_eq!(fixture.append(vec![2]).await.unwrap(), 1, "durable offline is enough");
    assert_eq!(fixture.served(vec![2]).await, [false]);
    fixture.online.down.store(false, Ordering::SeqCst);
    fixture.ingest.fold_wanted().await;
    assert_eq!(fixture.ingest.fold_due(age).await, 0);
    assert_eq!(fixture.served(vec![1, 2]).await, [true, true]);
    assert_eq!(fixture.stored().await, once([1, 2]));
}

#[tokio::test]
async fn what_was_logged_outlives_the_server_and_a_fold_of_which_nobody_heard() {
    let fixture = logged_fixture().await;
    fixture.append(vec![1, 2]).await.unwrap();
    let fixture = fixture.restart().await;
    assert_eq!(fixture.logged(), 2);
    assert_eq!(fixture.stored().await, once([1, 2]));
    fixture.append(vec![3]).await.unwrap();

    // The commit takes effect, its answer is lost, and the catalog says nothing more: the rows stay in the log too.
    fixture.ingest.offline.faults.follow({
        let mut calls = 0;
        move || {
            calls += 1;
            if calls == 1 { Fault::None } else { Fault::After }
        }
    });
    assert!(fixture.ingest.checkpoint(None).await.is_err());
    fixture.ingest.offline.faults.next(&[]);
    assert_eq!(fixture.logged(), 3);
    assert_eq!(fixture.stored().await, once([1, 2, 3]), "by the snapshot, and not by the log again");
    fixture.append(vec![4]).await.unwrap();
    assert_eq!(fixture.stored().await, once([1, 2, 3, 4]));

    let fixture = fixture.restart().await;
    assert_eq!(fixture.stored().await, once([1, 2, 3, 4]));
    assert!(fixture.ingest.checkpoint(None).await.unwrap());
    assert_eq!(fixture.stored().await, once([1, 2, 3, 4]));
    assert_eq!(fixture.restart().await.stored().await, once([1, 2, 3, 4]));
}

#[tokio::test]
async fn a_key_counts_in_the_log_in_its_snapshot_and_between_servers() {
    let fixture = logged_fixture().await;
    let other = logging(&fixture, "log-of-another").await;
    let write = async |ingest: &Arc<Ingest>, keys: Vec<i64>, name: &str| {
        ingest.append(&fixture.name, batch(keys), Some(&key(name))).await.unwrap()
    };
    assert_eq!(write(&fixture.ingest, vec![1, 2], "a").await, 2);
    assert_eq!(write(&fixture.ingest, vec![1, 2], "a").await, 2);
    assert_eq!(fixture.stored().await, once([1, 2]));
    // Another server knows nothing of what is only logged here, and takes the same write again.
    assert_eq!(write(&other, vec![1, 2], "a").await, 2);
    assert_eq!(write(&other, vec![3], "b").await, 1);
    assert!(other.checkpoint(None).await.unwrap());
    assert_eq!(write(&fixture.ingest, vec![4], "c").await, 1);
    assert!(fixture.ingest.checkpoint(None).await.unwrap());
    assert_eq!(fixture.stored().await, once([1, 2, 3, 4]), "the fold leaves out what another has folded");
    for (keys, name) in [(vec![1, 2], "a"), (vec![3], "b"), (vec![4], "c")] {
        let rows = keys.len() as u64;
        assert_eq!(write(&fixture.ingest, keys.clone(), name).await, rows);
        assert_eq!(write(&other, keys, name).await, rows);
    }
    // A large write with the key of a small one, and a small one with that of a large.
    assert_eq!(write(&fixture.ingest, (0..2000).collect(), "c").await, 1);
    assert_eq!(write(&fixture.ingest, (10_000..12_000).collect(), "d").await, 2000);
    assert_eq!(write(&fixture.ingest, vec![10_000], "d").await, 2000);
    assert_eq!(fixture.stored().await, once([1, 2, 3, 4].into_iter().chain(10_000..12_000)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_write_many_times_at_once_is_one() {
    let fixture = logged_fixture().await;
    let writes = (0..32).map(|n| {
        let (ingest, name) = (Arc::clone(&fixture.ingest), fixture.name.clone());
        let key = key(&format!("k{}", n % 2));
        tokio::spawn(async move { ingest.append(&name, batch(vec![n % 2]), Some(&key)).await })
    });
    for write in writes.collect::<Vec<_>>() {
        assert_eq!(write.await.unwrap().unwrap(), 1);
    }
    assert_eq!(fixture.stored().await, once([0, 1]));
}

#[tokio::test]
async fn a_group_that_changes_or_goes_takes_what_was_logged_with_it() {
    let fixture = logged_fixture().await;
    fixture.append(vec![1]).await.unwrap();
    let Some(Object::FeatureGroup(group, table)) =
        fixture.ingest.registry.object(&fixture.name).await.unwrap()
    else {
        panic!("the group is gone")
    };
    let planned = Object::FeatureGroup(group, table.clone());
    let w =
        Column { field: Arc::new(Field::new("w", DataType::Int64, true)), ..definition().columns[2].clone() };
    let change = Change::AddFeature { column: w, if_not_exists: false };
    fixture.ingest.registry.alter(&table, &[change]).await.unwrap();

    // Planned before the change: its rows came before it. A new write must have the column.
    assert_eq!(fixture.ingest.append_planned(&planned, batch(vec![2]), None).await.unwrap(), 1);
    let error = fixture.append(vec![3]).await.unwrap_err();
    assert!(error.message().contains("lack column 'w'"), "{error}");
    assert_eq!(fixture.stored().await, once([1, 2]), "under two schemas");
    assert!(fixture.ingest.checkpoint(None).await.unwrap());
    assert_eq!(fixture.stored().await, once([1, 2]));
    assert_eq!(fixture.served(vec![1, 2]).await, [true, true]);

    fixture.ingest.append_planned(&planned, batch(vec![4]), None).await.unwrap();
    fixture.ingest.offline.drop_table(&table).await.unwrap();
    let error = fixture.ingest.append_planned(&planned, batch(vec![5]), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(fixture.ingest.checkpoint(None).await.unwrap());
    assert_eq!(fixture.logged(), 0);
    let fixture = fixture.restart().await;
    assert_eq!(fixture.logged(), 0, "the log forgot it too");
}

#[tokio::test]
async fn while_the_catalog_is_gone_writes_are_refused_and_nothing_is_lost() {
    let fixture = logged_fixture().await;
    fixture.append(vec![1]).await.unwrap();
    fixture.ingest.offline.faults.follow(|| Fault::Before);
    let error = fixture.append(vec![2]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(fixture.ingest.fold_due(Duration::ZERO).await, 1);
    fixture.ingest.offline.faults.next(&[]);
    assert_eq!(fixture.ingest.fold_due(Duration::ZERO).await, 0);
    fixture.append(vec![3]).await.unwrap();
    assert_eq!(fixture.stored().await, once([1, 3]));
}

/// What may happen to a server.
#[derive(Debug, Clone)]
enum Step {
    /// A write of so many rows, sent `sends` times with the same key if it has one.
    Write {
        rows: usize,
        sends: usize,
    },
    Read,
    Fold,
    /// A fold whose calls of the catalog go as told.
    FoldWith(Vec<Fault>),
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![Just(Fault::None), Just(Fault::Before), Just(Fault::After)];
    prop_oneof![
        5 => (1..4_usize, 0..3_usize).prop_map(|(rows, sends)| Step::Write { rows, sends }),
        1 => (1001..1003_usize, 0..3_usize).prop_map(|(rows, sends)| Step::Write { rows, sends }),
        3 => Just(Step::Read),
        1 => Just(Step::Fold),
        2 => proptest::collection::vec(fault, 1..24).prop_map(Step::FoldWith),
        2 => Just(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Every row that was acknowledged is there once, by whatever way it came, after every step.
    #[test]
    fn acknowledged_rows_are_there_once(steps in proptest::collection::vec(step(), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut fixture = logged_fixture().await;
            let mut next = 0;
            for (n, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Write { rows, sends } => {
                        let keys: Vec<i64> = (next..next + rows as i64).collect();
                        next += rows as i64;
                        let key = (sends > 0).then(|| key(&format!("write-{n}")));
                        for _ in 0..sends.max(1) {
                            let written = fixture.ingest.append(&fixture.name, batch(keys.clone()), key.as_ref());
                            assert_eq!(written.await.unwrap(), rows as u64);
                        }
                    }
                    Step::Read => {}
                    Step::Fold => fixture.ingest.checkpoint(None).await.map(|_| ()).unwrap(),
                    Step::FoldWith(faults) => {
                        fixture.ingest.offline.faults.next(&faults);
                        let _ = fixture.ingest.checkpoint(None).await; // it may fail, and must not lose
                        fixture.ingest.offline.faults.next(&[]);
                    }
                    Step::Crash => fixture = fixture.restart().await,
                }
                assert_eq!(fixture.stored().await, once(0..next));
            }
            fixture.ingest.checkpoint(None).await.unwrap();
            fixture.ingest.catch_up_all().await.unwrap();
            assert_eq!((fixture.logged(), fixture.stored().await), (0, once(0..next)));
            assert!(fixture.served((0..next).collect()).await.iter().all(|served| *served));
        });
    }
}
