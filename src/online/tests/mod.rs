//! One suite for every store, each with and without the cache; and what only one of them can show.

mod cache;
mod cache_speed;
mod cluster;
mod expiry;
mod faults;
mod history;
pub(super) mod redis_cluster;
mod redis_server;
mod suite;
mod tracking;

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{ArrayRef, AsArray, Int64Array, StringArray, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::{DataType, Field, Int64Type, TimeUnit};
use futures::TryStreamExt;
use tempfile::TempDir;

use redis_cluster::RedisCluster;
use redis_server::RedisServer;

use super::*;
use crate::clock::ManualClock;
use crate::error::ErrorKind;
use crate::model::{Column, RowLayout, TableName, decode_features, decode_keys, encode_keys, pick};

const NOW: i64 = 1_000;

/// A store under test, and what must outlive it.
struct Stage {
    store: Arc<dyn OnlineStore>,
    clock: Arc<ManualClock>,
    group: Arc<FeatureGroup>,
    redis: Option<RedisServer>,
    _directory: Option<TempDir>,
}

const CACHE: CacheOptions = CacheOptions { capacity_bytes: 1 << 20, ttl: Duration::from_secs(60) };

impl Stage {
    async fn embedded(cache: Option<CacheOptions>) -> Self {
        let directory = TempDir::new().unwrap();
        let backend = Backend::Embedded { path: directory.path().join("online.redb") };
        Self { _directory: Some(directory), ..Self::open(backend, cache).await }
    }

    async fn redis(cache: Option<CacheOptions>) -> Self {
        let redis = RedisServer::start(&[]);
        let backend = Backend::Redis { url: redis.url() };
        Self { redis: Some(redis), ..Self::open(backend, cache).await }
    }

    /// On a cluster that the test keeps.
    async fn cluster(cluster: &RedisCluster, cache: Option<CacheOptions>) -> Self {
        Self::open(Backend::RedisCluster { seeds: cluster.urls() }, cache).await
    }

    async fn open(backend: Backend, cache: Option<CacheOptions>) -> Self {
        Self::open_within(Duration::from_secs(20), backend, cache).await
    }

    async fn open_within(timeout: Duration, backend: Backend, cache: Option<CacheOptions>) -> Self {
        let clock = Arc::new(ManualClock::new(NOW));
        let options = OnlineOptions { backend, timeout, cache };
        let store = open(options, Arc::clone(&clock) as _).await.unwrap();
        Self { store, clock, group: Arc::new(group(1)), redis: None, _directory: None }
    }

    async fn write(&self, rows: &[Row]) {
        self.store.write(&self.group, &batch(&self.group, rows)).await.unwrap();
    }

    /// Event time and amount served for each user.
    async fn served(&self, users: &[i64]) -> Vec<Option<(i64, i64)>> {
        let found = self.store.get(&self.group, &keys(users), None).await.unwrap();
        served(&self.group, &found.entries, self.clock.now_us())
    }

    /// User and amount of every entity served, by user.
    async fn scanned(&self) -> Vec<(i64, i64)> {
        let parts: Vec<ScannedEntries> = self.store.scan(&self.group).try_collect().await.unwrap();
        let (keys, entries): (Vec<_>, Vec<_>) = parts.into_iter().flatten().unzip();
        let entries: Entries = entries.into_iter().map(Some).collect();
        let users = decode_keys(&self.group.key_fields(), &keys).unwrap();
        let served = served(&self.group, &entries, self.clock.now_us());
        let users = users[0].as_primitive::<Int64Type>().values().iter();
        let mut rows: Vec<_> = users.zip(served).filter_map(|(u, row)| Some((*u, row?.1))).collect();
        rows.sort_unstable();
        rows
    }
}

/// One row of history: key, event time, ingested at, sequence, amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Row(Option<i64>, Option<i64>, i64, i64, i64);

fn row(user: i64, time: i64, ingested: i64, sequence: i64, amount: i64) -> Row {
    Row(Some(user), Some(time), ingested, sequence, amount)
}

fn group(id: u128) -> FeatureGroup {
    let column = |name: &str, data_type| Column {
        field: Arc::new(Field::new(name, data_type, true)),
        default: None,
        description: None,
    };
    FeatureGroup {
        id: Uuid::from_u128(id),
        name: TableName::new("public", "purchases"),
        version: 1,
        columns: vec![
            column("amount", DataType::Int64),
            column("user_id", DataType::Int64),
            column("ts", DataType::Timestamp(TimeUnit::Microsecond, None)),
            column("note", DataType::Utf8),
        ],
        entity_key: vec![1],
        event_time: 2,
        ttl: None,
        owner: None,
        description: None,
        tags: vec![],
        online: true,
        schemas: vec![],
    }
}

fn batch(group: &FeatureGroup, rows: &[Row]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.4))),
        Arc::new(Int64Array::from_iter(rows.iter().map(|r| r.0))),
        Arc::new(TimestampMicrosecondArray::from_iter(rows.iter().map(|r| r.1))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| format!("{r:?}")))),
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.2)).with_timezone("UTC")),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.3))),
    ];
    RecordBatch::try_new(group.history_schema(), columns).unwrap()
}

fn keys(users: &[i64]) -> Vec<EntityKey> {
    let column: ArrayRef = Arc::new(Int64Array::from(users.to_vec()));
    encode_keys(&[column]).unwrap().into_iter().map(Option::unwrap).collect()
}

fn served(group: &FeatureGroup, entries: &Entries, now_us: i64) -> Vec<Option<(i64, i64)>> {
    let rows: Vec<_> = entries.iter().map(|e| e.and_then(|e| pick(e, now_us).unwrap())).collect();
    let bytes: Vec<_> = rows.iter().map(|row| row.map(|r| r.bytes)).collect();
    let columns = decode_features(&RowLayout::new(group).unwrap(), &bytes, &[0]).unwrap();
    let amounts = columns[0].as_primitive::<Int64Type>();
    rows.iter().enumerate().map(|(i, row)| row.map(|r| (r.order.event_time_us, amounts.value(i)))).collect()
}

fn options(backend: Backend) -> OnlineOptions {
    OnlineOptions { backend, timeout: Duration::from_millis(300), cache: None }
}

#[tokio::test]
async fn the_embedded_store_survives_reopening_and_is_locked_meanwhile() {
    let directory = TempDir::new().unwrap();
    let backend = Backend::Embedded { path: directory.path().join("online.redb") };
    let clock: Arc<ManualClock> = Arc::new(ManualClock::new(NOW));
    let group = Arc::new(group(1));
    {
        let store = open(options(backend.clone()), clock.clone()).await.unwrap();
        store.write(&group, &batch(&group, &[row(1, 10, 1, 0, 7)])).await.unwrap();
        store.set_applied_snapshot(group.id, 42).await.unwrap();
        let second = open(options(backend.clone()), clock.clone()).await.unwrap_err();
        assert_eq!(second.kind(), ErrorKind::Unavailable);
        assert!(second.to_string().contains("in use by another server"), "{second}");
    }
    let store = open(options(backend), clock).await.unwrap();
    assert_eq!(store.applied_snapshot(group.id).await.unwrap(), Some(42));
    let found = store.get(&group, &keys(&[1]), None).await.unwrap();
    assert_eq!(served(&group, &found.entries, NOW), [Some((10, 7))]);
}

/// The script on the server and `merge` are two hands that must write the same.
#[tokio::test]
async fn the_script_merges_like_the_library() {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let on_redis = Stage::redis(None).await;
    let embedded = Stage::embedded(None).await;
    let extreme = prop_oneof![
        NOW - 3..NOW + 4,
        Just(i64::MIN),
        Just(i64::MAX),
        Just(-1),
        Just(1 << 32),
        Just((1 << 32) - 1)
    ];
    let any_row = (0..4i64, extreme, 0..3i64, 0..3i64).prop_map(|(user, time, ingested, sequence)| {
        row(user, time, ingested, sequence, ingested * 10 + sequence)
    });
    let batches = prop::collection::vec(prop::collection::vec(any_row, 1..6), 60);
    let mut runner = TestRunner::deterministic();
    let batches = batches.new_tree(&mut runner).unwrap().current();
    for rows in &batches {
        on_redis.write(rows).await;
        embedded.write(rows).await;
        let users = keys(&[0, 1, 2, 3]);
        let (a, b) = (
            on_redis.store.get(&on_redis.group, &users, None).await.unwrap(),
            embedded.store.get(&embedded.group, &users, None).await.unwrap(),
        );
        assert_eq!(a.entries, b.entries, "after {rows:?}");
    }
    let many: Vec<Row> = (0..400).map(|i| row(9, NOW + 1 + i, 0, 0, i)).collect();
    for part in many.chunks(37) {
        on_redis.write(part).await;
        embedded.write(part).await;
    }
    let found = on_redis.store.get(&on_redis.group, &keys(&[9]), None).await.unwrap();
    let expected = embedded.store.get(&embedded.group, &keys(&[9]), None).await.unwrap();
    assert_eq!(found.entries, expected.entries);
    on_redis.clock.set(i64::MAX);
    assert_eq!(on_redis.served(&[9]).await, [Some((NOW + 256, 255))]);
}
