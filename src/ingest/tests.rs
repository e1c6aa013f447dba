use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, TimeUnit};
use datafusion::execution::context::SessionContext;
use futures::stream::BoxStream;
use uuid::Uuid;

use super::*;
use crate::clock::ManualClock;
use crate::error::ErrorKind;
use crate::model::{Change, Column, EntityKey, RowLayout, decode_features, encode_keys, pick};
use crate::offline::{Fault, IcebergTable};
use crate::online::{self, Backend, Found, OnlineOptions, ScannedEntries};
use crate::registry::table_of;

/// The embedded store, whose writes fail while it is `down`.
#[derive(Debug)]
struct Faulty {
    store: Arc<dyn OnlineStore>,
    down: AtomicBool,
}

impl Faulty {
    fn check(&self) -> Result<()> {
        match self.down.load(Ordering::SeqCst) {
            true => Err(Error::unavailable("the online store is down")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl OnlineStore for Faulty {
    fn describe(&self) -> String {
        self.store.describe()
    }

    async fn write(&self, group: &Arc<FeatureGroup>, history: &RecordBatch) -> Result<()> {
        self.check()?;
        self.store.write(group, history).await
    }

    async fn remove(&self, group: Uuid, keys: &[EntityKey]) -> Result<()> {
        self.check()?;
        self.store.remove(group, keys).await
    }

    async fn applied_snapshot(&self, group: Uuid) -> Result<Option<i64>> {
        self.store.applied_snapshot(group).await
    }

    async fn set_applied_snapshot(&self, group: Uuid, snapshot_id: i64) -> Result<()> {
        self.check()?;
        self.store.set_applied_snapshot(group, snapshot_id).await
    }

    async fn drop_group(&self, group: Uuid) -> Result<()> {
        self.store.drop_group(group).await
    }

    async fn get(
        &self,
        group: &Arc<FeatureGroup>,
        keys: &[EntityKey],
        age: Option<Duration>,
    ) -> Result<Found> {
        self.store.get(group, keys, age).await
    }

    fn scan(&self, group: &Arc<FeatureGroup>) -> BoxStream<'static, Result<ScannedEntries>> {
        self.store.scan(group)
    }
}

struct Fixture {
    ingest: Arc<Ingest>,
    online: Arc<Faulty>,
    clock: Arc<ManualClock>,
    name: TableName,
    dir: tempfile::TempDir,
}

fn definition() -> FeatureGroup {
    let field = |name: &str, data_type, nullable| Column {
        field: Arc::new(Field::new(name, data_type, nullable)),
        default: None,
        description: None,
    };
    FeatureGroup {
        id: Uuid::nil(),
        name: TableName::new("public", "g"),
        version: 1,
        columns: vec![
            field("k", DataType::Int64, false),
            field("ts", DataType::Timestamp(TimeUnit::Microsecond, None), false),
            field("v", DataType::Int64, true),
        ],
        entity_key: vec![0],
        event_time: 1,
        ttl: None,
        owner: None,
        description: None,
        tags: Vec::new(),
        online: true,
        schemas: vec![],
    }
}

async fn ingest(dir: &Path, online: Arc<dyn OnlineStore>, clock: Arc<ManualClock>) -> Arc<Ingest> {
    let offline = OfflineStore::open(&dir.join("catalog.db"), &dir.join("warehouse"), clock.clone()).await;
    let offline = Arc::new(offline.unwrap());
    let registry = Arc::new(Registry::new(Arc::clone(&offline)));
    Ingest::new(registry, offline, online, Arc::new(RuntimeEnv::default()), clock)
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(1_000));
    let backend = Backend::Embedded { path: dir.path().join("online.redb") };
    let options = OnlineOptions { backend, timeout: Duration::from_secs(5), cache: None };
    let store = online::open(options, clock.clone()).await.unwrap();
    let online = Arc::new(Faulty { store, down: AtomicBool::new(false) });
    let group = definition();
    let ingest = ingest(dir.path(), online.clone(), Arc::clone(&clock)).await;
    ingest.offline.create(&table_of(&group).unwrap(), None, ingest.memory()).await.unwrap();
    Fixture { ingest, online, clock, name: group.name, dir }
}

fn batch(keys: Vec<i64>) -> SendableRecordBatchStream {
    let batch = batch_of(keys);
    Box::pin(RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)])))
}

fn batch_of(keys: Vec<i64>) -> RecordBatch {
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_value(10, keys.len()));
    let values: ArrayRef = Arc::new(Int64Array::from(keys.clone()));
    let keys: ArrayRef = Arc::new(Int64Array::from(keys));
    RecordBatch::try_from_iter([("k", keys), ("ts", times), ("v", values)]).unwrap()
}

fn keys_of(keys: Vec<i64>) -> Vec<EntityKey> {
    let keys = encode_keys(&[Arc::new(Int64Array::from(keys)) as ArrayRef]).unwrap();
    keys.into_iter().map(|key| key.expect("no NULL among the keys")).collect()
}

impl Fixture {
    async fn append(&self, keys: Vec<i64>) -> Result<u64> {
        self.ingest.append(&self.name, batch(keys), None).await
    }

    /// How often each key is there offline.
    async fn stored(&self) -> BTreeMap<i64, usize> {
        let table = self.ingest.offline.load(&self.name).await.unwrap().unwrap();
        let table = IcebergTable::current(Arc::clone(&self.ingest.offline), table);
        let batches = SessionContext::new().read_table(Arc::new(table)).unwrap().collect().await.unwrap();
        let mut stored = BTreeMap::new();
        for key in batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values()) {
            *stored.entry(*key).or_default() += 1;
        }
        stored
    }

    /// Snapshots and rows behind, and for how many microseconds; or why that is not known.
    async fn lag(&self) -> (u64, u64, i64) {
        let known = self.ingest.freshness().await.unwrap();
        let lag = known[0].applied.as_ref().unwrap();
        (lag.snapshots, lag.rows, lag.age_us)
    }

    async fn served(&self, keys: Vec<i64>) -> Vec<bool> {
        let Some(Object::FeatureGroup(group, _)) = self.ingest.registry.object(&self.name).await.unwrap()
        else {
            panic!("the group is gone")
        };
        let found = self.online.get(&group, &keys_of(keys), None).await.unwrap();
        found.entries.iter().map(|entry| entry.is_some()).collect()
    }
}

#[tokio::test]
async fn a_write_is_acknowledged_while_the_online_store_is_down_and_served_after() {
    let fixture = fixture().await;
    assert_eq!(fixture.append(vec![1]).await.unwrap(), 1);
    assert_eq!(fixture.served(vec![1, 2]).await, [true, false]);

    fixture.online.down.store(true, Ordering::SeqCst);
    assert_eq!(fixture.append(vec![2, 3]).await.unwrap(), 2, "durable offline is enough");
    assert_eq!(fixture.ingest.catch_up_all().await.unwrap(), 1, "still down, still behind");
    assert_eq!(fixture.served(vec![1, 2, 3]).await, [true, false, false]);

    fixture.online.down.store(false, Ordering::SeqCst);
    assert_eq!(fixture.ingest.catch_up_all().await.unwrap(), 0);
    assert_eq!(fixture.served(vec![1, 2, 3]).await, [true, true, true]);
}

#[tokio::test]
async fn a_definition_that_changes_under_a_write_keeps_its_rows_and_not_their_meaning() {
    let fixture = fixture().await;
    fixture.append(vec![1]).await.unwrap();
    let registry = Arc::clone(&fixture.ingest.registry);
    let Some(Object::FeatureGroup(_, table)) = registry.object(&fixture.name).await.unwrap() else {
        panic!("the group is gone")
    };
    // Between two batches of a write `v` goes, and another of its type takes its place.
    let replace = move || async move {
        let w = Column {
            field: Arc::new(Field::new("w", DataType::Int64, true)),
            ..definition().columns[2].clone()
        };
        let dropped = Change::DropFeature { name: "v".to_owned(), if_exists: false };
        let changes = [dropped, Change::AddFeature { column: w, if_not_exists: false }];
        registry.alter(&table, &changes).await.unwrap();
        batch_of(vec![3])
    };
    let first = batch_of(vec![2]);
    let schema = first.schema();
    let batches =
        futures::stream::iter([Ok(first)]).chain(futures::stream::once(async move { Ok(replace().await) }));
    let rows = RecordBatchStreamAdapter::new(schema, batches);
    assert_eq!(fixture.ingest.append(&fixture.name, Box::pin(rows), None).await.unwrap(), 2);

    let Some(Object::FeatureGroup(group, table)) =
        fixture.ingest.registry.object(&fixture.name).await.unwrap()
    else {
        panic!("the group is gone")
    };
    assert_eq!(fixture.served(vec![1, 2, 3]).await, [true, true, true]);
    let keys = keys_of(vec![1, 2, 3]);
    let found = fixture.online.get(&group, &keys, None).await.unwrap();
    let rows: Vec<Option<&[u8]>> =
        found.entries.iter().map(|entry| pick(entry.unwrap(), 1_000).unwrap().map(|row| row.bytes)).collect();
    let w = decode_features(&RowLayout::new(&group).unwrap(), &rows, &[0]).unwrap();
    assert_eq!(w[0].null_count(), 3, "nothing of v is read as w");
    let applied = fixture.ingest.rebuild(&group, &table, &|_| ()).await.unwrap();
    assert_eq!(applied, 3, "the history has every row");
    assert_eq!(fixture.append(vec![4]).await.unwrap_err().kind(), ErrorKind::Invalid, "v is no more");
}

#[tokio::test]
async fn a_store_that_missed_writes_or_was_wiped_is_rebuilt() {
    let fixture = fixture().await;
    fixture.append(vec![1]).await.unwrap();
    fixture.online.down.store(true, Ordering::SeqCst);
    fixture.append(vec![2]).await.unwrap();
    fixture.online.down.store(false, Ordering::SeqCst);
    assert_eq!(fixture.ingest.catch_up_all().await.unwrap(), 0);
    assert_eq!(fixture.served(vec![1, 2]).await, [true, true], "as after a crash between the two stores");

    let Some(Object::FeatureGroup(group, table)) =
        fixture.ingest.registry.object(&fixture.name).await.unwrap()
    else {
        panic!("the group is gone")
    };
    fixture.online.drop_group(group.id).await.unwrap();
    assert_eq!(fixture.served(vec![1, 2]).await, [false, false]);
    assert_eq!(fixture.ingest.catch_up(&group, &table, &|_| ()).await.unwrap(), 2);
    assert_eq!(
        fixture.ingest.catch_up(&group, &table, &|_| ()).await.unwrap(),
        0,
        "nothing is left to apply"
    );
    assert_eq!(fixture.served(vec![1, 2]).await, [true, true]);
}

#[tokio::test]
async fn freshness_counts_what_is_not_served_yet() {
    let fixture = fixture().await;
    assert_eq!(fixture.lag().await, (0, 0, 0), "nothing was written");
    fixture.clock.set(5_000_000);
    fixture.append(vec![1]).await.unwrap();
    assert_eq!(fixture.lag().await, (0, 0, 0));

    fixture.online.down.store(true, Ordering::SeqCst);
    fixture.append(vec![2, 3]).await.unwrap();
    fixture.clock.advance(3_000_000);
    fixture.append(vec![4]).await.unwrap();
    fixture.clock.advance(1_500_000);
    assert_eq!(fixture.lag().await, (2, 3, 4_500_000), "as old as the oldest that is missing");

    fixture.online.down.store(false, Ordering::SeqCst);
    fixture.ingest.catch_up_all().await.unwrap();
    assert_eq!(fixture.lag().await, (0, 0, 0));
    let group = fixture.ingest.freshness().await.unwrap().remove(0).group;
    fixture.online.drop_group(group.id).await.unwrap();
    assert_eq!(fixture.lag().await, (3, 4, 4_500_000), "of a store that was wiped all of it is missing");
}

/// Numbers that look random and are the same in every run.
fn random(mut state: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_rows_are_there_once_whatever_the_catalog_and_the_online_store_do() {
    const WRITERS: i64 = 4;
    const WRITES: i64 = 6;
    let fixture = fixture().await;
    let servers = [
        &fixture.ingest,
        &ingest(fixture.dir.path(), fixture.online.clone(), Arc::clone(&fixture.clock)).await,
    ];
    for (seed, server) in (1..).zip(servers) {
        let mut random = random(seed);
        server.offline.faults.follow(move || match random(8) {
            0 => Fault::Before,
            1 => Fault::After,
            2 | 3 => Fault::Slow,
            _ => Fault::None,
        });
    }
    let keys_of = |writer: i64, write: i64| vec![writer * 1000 + write * 10, writer * 1000 + write * 10 + 1];
    let (name, online) = (&fixture.name, &fixture.online);
    let writers = (0..WRITERS).map(|writer| async move {
        let mut random = random(100 + writer as u64);
        for write in 0..WRITES {
            let key = IdempotencyKey::parse(&format!("{writer}/{write}")).unwrap();
            let mut tries = 0;
            loop {
                online.down.store(random(3) == 0, Ordering::SeqCst);
                // The next try may go to the other server.
                let server = servers[random(2) as usize];
                let done = server.append(name, batch(keys_of(writer, write)), Some(&key)).await;
                match done {
                    Ok(rows) => break assert_eq!(rows, 2),
                    Err(error) => {
                        let may_retry = [ErrorKind::Unavailable, ErrorKind::Conflict];
                        assert!(may_retry.contains(&error.kind()), "{error}");
                    }
                }
                tries += 1;
                assert!(tries < 100, "writer {writer} never got its write {write} through");
            }
        }
    });
    futures::future::join_all(writers).await;
    servers.iter().for_each(|server| server.offline.faults.next(&[]));
    online.down.store(false, Ordering::SeqCst);
    for server in servers {
        assert_eq!(server.catch_up_all().await.unwrap(), 0);
    }
    let written: Vec<i64> =
        (0..WRITERS).flat_map(|writer| (0..WRITES).flat_map(move |write| keys_of(writer, write))).collect();
    assert_eq!(fixture.stored().await, written.iter().map(|key| (*key, 1)).collect());
    assert_eq!(fixture.served(written.clone()).await, vec![true; written.len()]);
    assert_eq!(fixture.lag().await, (0, 0, 0));
}

#[tokio::test]
async fn a_repeated_write_is_served_though_the_first_was_not() {
    let fixture = fixture().await;
    let key = IdempotencyKey::parse("k").unwrap();
    fixture.online.down.store(true, Ordering::SeqCst);
    fixture.ingest.append(&fixture.name, batch(vec![7]), Some(&key)).await.unwrap();
    fixture.online.down.store(false, Ordering::SeqCst);
    assert_eq!(fixture.ingest.earlier(&fixture.name, Some(&key)).await.unwrap(), Some(1));
    assert_eq!(fixture.served(vec![7]).await, [true]);
}

#[tokio::test]
async fn a_rebuild_brings_back_what_the_online_store_lost() {
    let fixture = fixture().await;
    fixture.append(vec![1, 2]).await.unwrap();
    let Some(Object::FeatureGroup(group, table)) =
        fixture.ingest.registry.object(&fixture.name).await.unwrap()
    else {
        panic!("the group is gone")
    };
    // As a store does that evicts entries, or came back from an old copy: the note says that all is well.
    let applied = fixture.online.applied_snapshot(group.id).await.unwrap().unwrap();
    fixture.online.drop_group(group.id).await.unwrap();
    fixture.online.set_applied_snapshot(group.id, applied).await.unwrap();
    assert_eq!(fixture.ingest.catch_up(&group, &table, &|_| ()).await.unwrap(), 0);
    assert_eq!(fixture.served(vec![1, 2]).await, [false, false]);
    assert_eq!(fixture.ingest.rebuild(&group, &table, &|_| ()).await.unwrap(), 2);
    assert_eq!(fixture.served(vec![1, 2]).await, [true, true]);
    assert_eq!(fixture.online.applied_snapshot(group.id).await.unwrap(), Some(applied));
}

#[tokio::test]
async fn what_was_written_before_files_were_merged_is_served_after() {
    use crate::offline::Extent;
    let fixture = fixture().await;
    fixture.append(vec![1]).await.unwrap();
    fixture.online.down.store(true, Ordering::SeqCst);
    fixture.append(vec![2]).await.unwrap();
    fixture.append(vec![3]).await.unwrap();
    let sorting = Arc::new(RuntimeEnv::default());
    let optimized = fixture.ingest.optimize(&fixture.name, Extent::Needed, sorting).await.unwrap();
    assert_eq!((optimized.files_before, optimized.files_after, optimized.rows_rewritten), (3, 1, 3));
    fixture.append(vec![4]).await.unwrap();
    let vacuumed = fixture.ingest.vacuum(&fixture.name, i64::MAX, &[]).await.unwrap();
    assert_eq!((vacuumed.snapshots_expired, vacuumed.data_files_deleted), (0, 0), "they are not applied");
    assert_eq!(fixture.served(vec![1, 2, 3, 4]).await, [true, false, false, false]);

    fixture.online.down.store(false, Ordering::SeqCst);
    let Some(Object::FeatureGroup(group, table)) =
        fixture.ingest.registry.object(&fixture.name).await.unwrap()
    else {
        panic!("the group is gone")
    };
    assert_eq!(fixture.ingest.catch_up(&group, &table, &|_| ()).await.unwrap(), 3, "each row once");
    assert_eq!(fixture.served(vec![1, 2, 3, 4]).await, [true, true, true, true]);
    let vacuumed = fixture.ingest.vacuum(&fixture.name, i64::MAX, &[]).await.unwrap();
    assert_eq!((vacuumed.snapshots_expired, vacuumed.data_files_deleted), (4, 3));
    assert_eq!(fixture.append(vec![5]).await.unwrap(), 1);
    assert_eq!(fixture.served(vec![5]).await, [true]);
}

mod trickle;
