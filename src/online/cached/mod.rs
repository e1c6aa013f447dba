//! A cache in front of a store.
//!
//! It keeps whole entries, rows dated in the future included, and the absence of entries: which row is served is
//! decided when it is read, so nothing in it goes stale by the clock alone. What this server writes is dropped from
//! it before the write is acknowledged; what others write, when the store tells of it. While the store cannot tell,
//! nothing is served from the cache and nothing kept in it, and it is empty when that time is over.
//!
//! What is not held is read from the store once, however many ask for it at the same time: each key being read is on
//! a list, and whoever asks for it meanwhile waits for that read. The list is also what holds older entries off: a
//! change takes its key off the list, so that the read brings the key to those who asked before the change, is not
//! joined by those who ask after it, and is not kept.

mod boarding;
mod flight;
mod kept;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use futures::stream::BoxStream;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::changes::{Change, Changes, GroupBits};
use super::{CacheOptions, CacheStatistics, Entries, Found, OnlineStore, ScannedEntries};
use crate::clock::Clock;
use crate::error::Result;
use crate::model::{EntityKey, FeatureGroup, encode_keys};
use boarding::Boarding;
use kept::{Freshness, Kept};

pub(super) struct CachedStore {
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
    ttl: Duration,
    kept: Arc<Kept>,
    counters: Arc<Counters>,
    /// Whether the store tells of changes made elsewhere; otherwise nobody else makes any.
    tracked: bool,
    _follower: JoinSet<()>,
}

/// Since the server started.
#[derive(Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    joined: AtomicU64,
    flights: AtomicU64,
    invalidations: AtomicU64,
    clears: AtomicU64,
}

impl CachedStore {
    /// Must be called within a Tokio runtime.
    pub(super) fn new(store: Arc<dyn OnlineStore>, options: CacheOptions, clock: Arc<dyn Clock>) -> Self {
        let changes = store.changes();
        let tracked = changes.is_some();
        let kept = Arc::new(Kept::new(options.capacity_bytes, !tracked));
        let counters = Arc::new(Counters::default());
        let mut follower = JoinSet::new();
        if let Some(changes) = changes {
            follower.spawn(follow(changes, Arc::clone(&kept), Arc::clone(&counters)));
        }
        Self { store, clock, ttl: options.ttl, kept, counters, tracked, _follower: follower }
    }

    /// How many keys are being read.
    #[cfg(test)]
    pub(super) fn reading(&self) -> usize {
        self.kept.reading()
    }
}

/// Applies what the store tells, for as long as it does.
async fn follow(mut changes: Changes, kept: Arc<Kept>, counters: Arc<Counters>) {
    let _close = CloseAtEnd(Arc::clone(&kept));
    while let Some(change) = changes.next().await {
        let clear = |open| {
            kept.clear(open);
            counters.clears.fetch_add(1, Relaxed);
        };
        match change {
            Change::Watching => clear(Some(true)),
            Change::Lost => clear(Some(false)),
            Change::Everything => clear(None),
            Change::Keys(keys) => {
                keys.iter().for_each(|changed| kept.forget(kept.asked(changed.group, &changed.key)));
                counters.invalidations.fetch_add(keys.len() as u64, Relaxed);
            }
        }
    }
}

/// Nothing is served once nobody follows the changes, whyever that is.
struct CloseAtEnd(Arc<Kept>);

impl Drop for CloseAtEnd {
    fn drop(&mut self) {
        self.0.clear(Some(false));
    }
}

/// Forgets the keys when the write is over, however it ends: answered, failed half-way or abandoned.
struct ForgetWritten<'a> {
    kept: &'a Kept,
    group: GroupBits,
    keys: Vec<Option<EntityKey>>,
}

impl Drop for ForgetWritten<'_> {
    fn drop(&mut self) {
        let keys = self.keys.iter().flatten();
        keys.for_each(|key| self.kept.forget(self.kept.asked(self.group, key.as_bytes())));
    }
}

/// Forgets everything when a group has been dropped, or half of it.
struct ForgetAll<'a>(&'a CachedStore);

impl Drop for ForgetAll<'_> {
    fn drop(&mut self) {
        self.0.kept.clear(None);
        self.0.counters.clears.fetch_add(1, Relaxed);
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
        let keys = encode_keys(&columns)?;
        let _forget = ForgetWritten { kept: &self.kept, group: group.id.into(), keys };
        self.store.write(group, history).await
    }

    async fn remove(&self, group: Uuid, keys: &[EntityKey]) -> Result<()> {
        let forgotten = keys.iter().cloned().map(Some).collect();
        let _forget = ForgetWritten { kept: &self.kept, group: group.into(), keys: forgotten };
        self.store.remove(group, keys).await
    }

    async fn applied_snapshot(&self, group: Uuid) -> Result<Option<i64>> {
        self.store.applied_snapshot(group).await
    }

    async fn set_applied_snapshot(&self, group: Uuid, snapshot_id: i64) -> Result<()> {
        self.store.set_applied_snapshot(group, snapshot_id).await
    }

    async fn drop_group(&self, group: Uuid) -> Result<()> {
        let _forget = ForgetAll(self);
        self.store.drop_group(group).await
    }

    async fn get(
        &self,
        group: &Arc<FeatureGroup>,
        keys: &[EntityKey],
        max_staleness: Option<Duration>,
    ) -> Result<Found> {
        let age_max = max_staleness.map_or(self.ttl, |max| max.min(self.ttl)).as_micros();
        let age_max_us = i64::try_from(age_max).unwrap_or(i64::MAX);
        let fresh = Freshness { now_us: self.clock.now_us(), age_max_us };
        let mut found = Found { entries: Entries::absent(keys.len()), ..Found::default() };
        let missed = self.kept.find(group.id.into(), keys, fresh, &mut found.entries);
        found.cache_misses = missed.len();
        if !missed.is_empty() {
            let flight = self.counters.flights.fetch_add(1, Relaxed);
            let mut boarding = Boarding::new(&self.kept, &self.store, group, flight, fresh)?;
            for at in missed {
                boarding.board(&keys[at], at, &mut found);
            }
            found.store_reads = boarding.own_keys();
            self.counters.joined.fetch_add(boarding.joined(), Relaxed);
            boarding.fly(&mut found).await?;
            self.counters.misses.fetch_add(found.cache_misses as u64, Relaxed);
        }
        found.cache_hits = keys.len() - found.cache_misses;
        self.counters.hits.fetch_add(found.cache_hits as u64, Relaxed);
        Ok(found)
    }

    fn scan(&self, group: &Arc<FeatureGroup>) -> BoxStream<'static, Result<ScannedEntries>> {
        self.store.scan(group)
    }

    fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    fn expires(&self) -> bool {
        self.store.expires()
    }

    fn failures(&self) -> u64 {
        self.store.failures()
    }

    fn cache_statistics(&self) -> Option<CacheStatistics> {
        let (entries, bytes) = self.kept.size();
        let open = self.kept.is_open();
        Some(CacheStatistics {
            hits: self.counters.hits.load(Relaxed),
            misses: self.counters.misses.load(Relaxed),
            joined: self.counters.joined.load(Relaxed),
            entries,
            bytes,
            invalidations: self.counters.invalidations.load(Relaxed),
            clears: self.counters.clears.load(Relaxed),
            tracking: self.tracked.then_some(open),
        })
    }
}
