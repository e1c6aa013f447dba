use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, Field, TimeUnit};
use futures::stream::BoxStream;
use uuid::Uuid;

use super::*;
use crate::clock::ManualClock;
use crate::model::{Column, EntityKey, encode_keys};
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
    ingest: Ingest,
    online: Arc<Faulty>,
    name: TableName,
    _dir: tempfile::TempDir,
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

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(1_000));
    let path = |name: &str| -> std::path::PathBuf { Path::new(dir.path()).join(name) };
    let offline =
        OfflineStore::open(&path("catalog.db"), &path("warehouse"), Arc::clone(&clock)).await.unwrap();
    let offline = Arc::new(offline);
    let backend = Backend::Embedded { path: path("online.redb") };
    let options = OnlineOptions { backend, timeout: Duration::from_secs(5), cache: None };
    let store = online::open(options, Arc::clone(&clock)).await.unwrap();
    let online = Arc::new(Faulty { store, down: AtomicBool::new(false) });
    let group = definition();
    let runtime = Arc::new(RuntimeEnv::default());
    offline.create(&table_of(&group).unwrap(), None, &runtime.memory_pool).await.unwrap();
    let registry = Arc::new(Registry::new(Arc::clone(&offline)));
    let store: Arc<dyn OnlineStore> = Arc::clone(&online) as _;
    let ingest = Ingest::new(registry, offline, store, runtime, clock);
    Fixture { ingest, online, name: group.name, _dir: dir }
}

impl Fixture {
    async fn append(&self, keys: Vec<i64>) -> Result<u64> {
        let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_value(10, keys.len()));
        let values: ArrayRef = Arc::new(Int64Array::from(keys.clone()));
        let keys: ArrayRef = Arc::new(Int64Array::from(keys));
        let batch = RecordBatch::try_from_iter([("k", keys), ("ts", times), ("v", values)]).unwrap();
        let rows = RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)]));
        self.ingest.append(&self.name, Box::pin(rows)).await
    }

    async fn served(&self, keys: Vec<i64>) -> Vec<bool> {
        let Some(Object::FeatureGroup(group, _)) = self.ingest.registry.object(&self.name).await.unwrap()
        else {
            panic!("the group is gone")
        };
        let keys: Vec<EntityKey> = encode_keys(&[Arc::new(Int64Array::from(keys)) as ArrayRef])
            .unwrap()
            .into_iter()
            .map(|k| k.expect("no NULL among the keys"))
            .collect();
        let found = self.online.get(&group, &keys, None).await.unwrap();
        found.entries.iter().map(Option::is_some).collect()
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
    assert_eq!(fixture.ingest.catch_up(&group, &table).await.unwrap(), 2);
    assert_eq!(fixture.ingest.catch_up(&group, &table).await.unwrap(), 0, "nothing is left to apply");
    assert_eq!(fixture.served(vec![1, 2]).await, [true, true]);
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
    let vacuumed = fixture.ingest.vacuum(&fixture.name, i64::MAX).await.unwrap();
    assert_eq!((vacuumed.snapshots_expired, vacuumed.data_files_deleted), (0, 0), "they are not applied");
    assert_eq!(fixture.served(vec![1, 2, 3, 4]).await, [true, false, false, false]);

    fixture.online.down.store(false, Ordering::SeqCst);
    let Some(Object::FeatureGroup(group, table)) =
        fixture.ingest.registry.object(&fixture.name).await.unwrap()
    else {
        panic!("the group is gone")
    };
    assert_eq!(fixture.ingest.catch_up(&group, &table).await.unwrap(), 3, "each row once");
    assert_eq!(fixture.served(vec![1, 2, 3, 4]).await, [true, true, true, true]);
    let vacuumed = fixture.ingest.vacuum(&fixture.name, i64::MAX).await.unwrap();
    assert_eq!((vacuumed.snapshots_expired, vacuumed.data_files_deleted), (4, 3));
    assert_eq!(fixture.append(vec![5]).await.unwrap(), 1);
    assert_eq!(fixture.served(vec![5]).await, [true]);
}
