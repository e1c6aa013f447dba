//! A cache in front of a store.
//!
//! It keeps whole entries, rows dated in the future included, and the absence of entries: which row is served is
//! decided when it is read, so nothing in it goes stale by the clock alone. What this server writes is dropped from
//! it before the write is acknowledged. A look-up that was already reading the store then must not put the older
//! entry back: each key belongs to a stripe with an epoch, a write moves the epoch on, and a look-up keeps what it
//! read only when the epoch is the one it saw before reading.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use futures::stream::BoxStream;
use moka::sync::Cache;
use parking_lot::Mutex;
use uuid::Uuid;

use super::{CacheOptions, Found, OnlineStore, ScannedEntries};
use crate::clock::Clock;
use crate::error::Result;
use crate::model::{EntityKey, FeatureGroup, encode_keys};

const STRIPES: usize = 1024;
/// What an entry costs beside its own bytes: the cache's nodes, counters and pointers.
const OVERHEAD_BYTES: usize = 160;

type CacheKey = (Uuid, EntityKey);

#[derive(Clone)]
struct CachedEntry {
    entry: Option<Bytes>,
    loaded_at_us: i64,
}

pub(super) struct CachedStore {
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
    ttl: Duration,
    cache: Cache<CacheKey, CachedEntry>,
    epochs: Vec<Mutex<u64>>,
    hasher: RandomState,
}

impl CachedStore {
    pub(super) fn new(store: Arc<dyn OnlineStore>, options: CacheOptions, clock: Arc<dyn Clock>) -> Self {
        let weigh = |key: &CacheKey, value: &CachedEntry| {
            let bytes = key.1.as_bytes().len() + value.entry.as_ref().map_or(0, Bytes::len) + OVERHEAD_BYTES;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let cache = Cache::builder()
            .max_capacity(options.capacity_bytes)
            .weigher(weigh)
            .time_to_live(options.ttl.max(Duration::from_millis(1)))
            .build();
        let epochs = (0..STRIPES).map(|_| Mutex::new(0)).collect();
        Self { store, clock, ttl: options.ttl, cache, epochs, hasher: RandomState::new() }
    }

    /// Bytes held now, after what is due has been evicted.
    #[cfg(test)]
    pub(super) fn weighted_bytes(&self) -> u64 {
        self.cache.run_pending_tasks();
        self.cache.weighted_size()
    }

    fn stripe(&self, key: &CacheKey) -> &Mutex<u64> {
        &self.epochs[self.hasher.hash_one(key) as usize % STRIPES]
    }

    fn fresh(&self, key: &CacheKey, now_us: i64, max_age: Duration) -> Option<CachedEntry> {
        let cached = self.cache.get(key)?;
        let age_us = now_us.saturating_sub(cached.loaded_at_us).max(0) as u128;
        (age_us < max_age.as_micros()).then_some(cached)
    }

    /// Keeps what the store answered, unless the key was written since `epoch`.
    fn keep(&self, key: CacheKey, epoch: u64, value: CachedEntry) {
        let now = self.stripe(&key).lock();
        if *now == epoch {
            self.cache.insert(key, value);
        }
    }

    fn forget(&self, key: &CacheKey) {
        let mut epoch = self.stripe(key).lock();
        *epoch += 1;
        self.cache.invalidate(key);
    }
}

/// Forgets the keys when the write is over, however it ends: answered, failed half-way or abandoned.
struct ForgetWritten<'a> {
    cached: &'a CachedStore,
    keys: Vec<CacheKey>,
}

impl Drop for ForgetWritten<'_> {
    fn drop(&mut self) {
        self.keys.iter().for_each(|key| self.cached.forget(key));
    }
}

impl fmt::Debug for CachedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStore")
            .field("store", &self.store)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl OnlineStore for CachedStore {
    fn describe(&self) -> String {
        format!("{}, cached", self.store.describe())
    }

    async fn write(&self, group: &Arc<FeatureGroup>, history: &RecordBatch) -> Result<()> {
        let columns: Vec<ArrayRef> = group.entity_key.iter().map(|&i| history.column(i).clone()).collect();
        let mut keys: Vec<CacheKey> =
            encode_keys(&columns)?.into_iter().flatten().map(|key| (group.id, key)).collect();
        keys.sort_unstable();
        keys.dedup();
        let _forget = ForgetWritten { cached: self, keys };
        self.store.write(group, history).await
    }

    async fn applied_snapshot(&self, group: Uuid) -> Result<Option<i64>> {
        self.store.applied_snapshot(group).await
    }

    async fn set_applied_snapshot(&self, group: Uuid, snapshot_id: i64) -> Result<()> {
        self.store.set_applied_snapshot(group, snapshot_id).await
    }

    async fn drop_group(&self, group: Uuid) -> Result<()> {
        let dropped = self.store.drop_group(group).await;
        for epoch in &self.epochs {
            *epoch.lock() += 1;
        }
        self.cache.invalidate_all();
        dropped
    }

    async fn get(
        &self,
        group: &Arc<FeatureGroup>,
        keys: &[EntityKey],
        max_staleness: Option<Duration>,
    ) -> Result<Found> {
        let now_us = self.clock.now_us();
        let max_age = max_staleness.map_or(self.ttl, |max| max.min(self.ttl));
        let mut found = Found { entries: vec![None; keys.len()], ..Found::default() };
        let mut missed = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            let key = (group.id, key.clone());
            match self.fresh(&key, now_us, max_age) {
                Some(cached) => found.entries[i] = cached.entry,
                None => missed.push((i, *self.stripe(&key).lock())),
            }
        }
        (found.cache_hits, found.cache_misses) = (keys.len() - missed.len(), missed.len());
        if missed.is_empty() {
            return Ok(found);
        }
        let wanted: Vec<EntityKey> = missed.iter().map(|(i, _)| keys[*i].clone()).collect();
        let read = self.store.get(group, &wanted, max_staleness).await?;
        found.store_reads = read.store_reads;
        for ((i, epoch), entry) in missed.into_iter().zip(read.entries) {
            let value = CachedEntry { entry: entry.clone(), loaded_at_us: now_us };
            self.keep((group.id, keys[i].detached()), epoch, value);
            found.entries[i] = entry;
        }
        Ok(found)
    }

    fn scan(&self, group: &Arc<FeatureGroup>) -> BoxStream<'static, Result<ScannedEntries>> {
        self.store.scan(group)
    }
}
