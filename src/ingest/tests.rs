use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, Field, TimeUnit};
use futures::stream::BoxStream;
use uuid::Uuid;

use super::*;
use crate::clock::ManualClock;
use crate::error::ErrorKind;
use crate::model::{Change, Column, EntityKey, RowLayout, decode_features, encode_keys, pick};
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
        let batch = batch_of(keys);
        let rows = RecordBatchStreamAdapter::new(batch.schema(), futures::stream::iter([Ok(batch)]));
        self.ingest.append(&self.name, Box::pin(rows)).await
    }

    async fn served(&self, keys: Vec<i64>) -> Vec<bool> {
        let Some(Object::FeatureGroup(group, _)) = self.ingest.registry.object(&self.name).await.unwrap()
        else {
            panic!("the group is gone")
        };
        let found = self.online.get(&group, &keys_of(keys), None).await.unwrap();
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
    assert_eq!(fixture.ingest.append(&fixture.name, Box::pin(rows)).await.unwrap(), 2);

    let Some(Object::FeatureGroup(group, table)) =
        fixture.ingest.registry.object(&fixture.name).await.unwrap()
    else {
        panic!("the group is gone")
    };
    assert_eq!(fixture.served(vec![1, 2, 3]).await, [true, true, true]);
    let keys = keys_of(vec![1, 2, 3]);
    let found = fixture.online.get(&group, &keys, None).await.unwrap();
    let rows: Vec<Option<&[u8]>> = found
        .entries
        .iter()
        .map(|entry| pick(entry.as_ref().unwrap(), 1_000).unwrap().map(|row| row.bytes))
        .collect();
    let w = decode_features(&RowLayout::new(&group).unwrap(), &rows, &[0]).unwrap();
    assert_eq!(w[0].null_count(), 3, "nothing of v is read as w");
    assert_eq!(fixture.ingest.replay(&group, &table).await.unwrap(), 3, "the history has every row");
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
    assert_eq!(fixture.ingest.catch_up(&group, &table).await.unwrap(), 2);
    assert_eq!(fixture.ingest.catch_up(&group, &table).await.unwrap(), 0, "nothing is left to apply");
    assert_eq!(fixture.served(vec![1, 2]).await, [true, true]);
}
