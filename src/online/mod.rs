//! The latest values: one entry per entity, newer wins.
//!
//! Iceberg is the truth and a store is a view of it, so a store may lose what it holds as long as
//! [`OnlineStore::applied_snapshot`] never speaks for rows that are gone.

mod cached;
mod changes;
mod embedded;
mod entries;
mod found;
mod redis;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use futures::stream::BoxStream;
use uuid::Uuid;

use crate::clock::Clock;
use crate::error::Result;
use crate::model::{EntityKey, FeatureGroup};
use changes::Changes;
pub(crate) use found::{Entries, Found};

/// Which store keeps the latest values.
#[derive(Debug, Clone)]
pub(crate) enum Backend {
    /// A key-value file of this server's own, created when it does not exist.
    Embedded {
        /// The file.
        path: PathBuf,
    },
    /// A Redis or Valkey server that others may share.
    Redis {
        /// `redis://[user:password@]host[:port][/db]` or `redis+unix:///path[?db=…&user=…&pass=…]`.
        url: String,
    },
    /// A Redis Cluster that others may share.
    RedisCluster {
        /// Some of its nodes, each as `redis://[user:password@]host[:port]`; the first one's credentials are used.
        seeds: Vec<String>,
    },
}

/// How the store is opened.
#[derive(Debug, Clone)]
pub(crate) struct OnlineOptions {
    pub(crate) backend: Backend,
    /// How long any one call to Redis may take, connecting included; and how long to wait for the embedded file while
    /// another holds it.
    pub(crate) timeout: Duration,
    /// `None` goes to the store for every look-up.
    pub(crate) cache: Option<CacheOptions>,
}

/// The cache in front of the store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheOptions {
    /// How much it may hold, in bytes of keys and entries.
    pub(crate) capacity_bytes: u64,
    /// How old an answer may be. What this server writes is seen at once, and what others write as soon as Redis tells
    /// of it; this bounds how long a change stays unseen that was told to nobody.
    pub(crate) ttl: Duration,
}

/// Opens the store that `options` name. Redis need not be up: calls fail with `Unavailable` until it is.
///
/// # Errors
/// `Invalid` for a URL that is none, `Unavailable` for a file that another process holds, `Corrupt` for a damaged one.
pub(crate) async fn open(options: OnlineOptions, clock: Arc<dyn Clock>) -> Result<Arc<dyn OnlineStore>> {
    let store: Arc<dyn OnlineStore> = match options.backend {
        Backend::Embedded { path } => {
            Arc::new(embedded::EmbeddedStore::open(path, options.timeout, Arc::clone(&clock)).await?)
        }
        Backend::Redis { url } => {
            Arc::new(redis::RedisStore::open(&url, options.timeout, Arc::clone(&clock))?)
        }
        Backend::RedisCluster { seeds } => {
            Arc::new(redis::RedisStore::open_cluster(&seeds, options.timeout, Arc::clone(&clock))?)
        }
    };
    Ok(match options.cache {
        Some(cache) => Arc::new(cached::CachedStore::new(store, cache, clock)),
        None => store,
    })
}

/// What a cache has done since the server started, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheStatistics {
    /// Keys that the cache answered, absent ones included.
    pub(crate) hits: u64,
    /// Keys that were looked for in the cache and not in it.
    pub(crate) misses: u64,
    /// Misses that waited for a read already under way.
    pub(crate) joined: u64,
    /// Entries held now, absent ones included.
    pub(crate) entries: u64,
    /// What they weigh, the cost of keeping them included.
    pub(crate) bytes: u64,
    /// Entries that the store told were changed, by whomever, held or not.
    pub(crate) invalidations: u64,
    /// How often everything was dropped: a connection lost or made, a store emptied, a group dropped.
    pub(crate) clears: u64,
    /// Whether the store is telling of changes, without which the cache is not used; `None` where no other server can
    /// make any.
    pub(crate) tracking: Option<bool>,
}

/// A bounded part of a scan.
pub(crate) type ScannedEntries = Vec<(EntityKey, Bytes)>;

/// Where the latest values are kept.
#[async_trait]
pub(crate) trait OnlineStore: Debug + Send + Sync {
    /// What it is and where, for people: `embedded`, `redis 127.0.0.1:6379`. Never a password.
    fn describe(&self) -> String;

    /// Applies rows of the group's history, a batch in `group.history_schema()`. Newer wins, whatever the order of
    /// writes and whoever else writes; applying a batch again changes nothing. Rows with a NULL key or a NULL event
    /// time are passed over: no look-up could ever find them.
    ///
    /// When it fails, some of the rows may have been applied: apply the batch again.
    async fn write(&self, group: &Arc<FeatureGroup>, history: &RecordBatch) -> Result<()>;

    /// Forgets the entries of these keys, whoever wrote them.
    async fn remove(&self, group: Uuid, keys: &[EntityKey]) -> Result<()>;

    /// The history's snapshot up to which everything has been applied.
    async fn applied_snapshot(&self, group: Uuid) -> Result<Option<i64>>;

    /// Notes that everything up to this snapshot has been applied. Never survives a crash that the rows written
    /// before it do not.
    async fn set_applied_snapshot(&self, group: Uuid, snapshot_id: i64) -> Result<()>;

    /// Forgets the group's entries and its applied snapshot.
    async fn drop_group(&self, group: Uuid) -> Result<()>;

    /// The entries of `keys`, in that order, none older than `max_staleness` when that is given.
    async fn get(
        &self,
        group: &Arc<FeatureGroup>,
        keys: &[EntityKey],
        max_staleness: Option<Duration>,
    ) -> Result<Found>;

    /// Every entry that is there from beginning to end of the scan, exactly once, in parts of bounded size, in no
    /// order; what is written meanwhile may or may not be seen.
    fn scan(&self, group: &Arc<FeatureGroup>) -> BoxStream<'static, Result<ScannedEntries>>;

    /// The changes that whoever else uses the store makes to it, this server's own among them, for a cache to follow;
    /// `None` where nobody else does. Must be called within a Tokio runtime.
    fn changes(&self) -> Option<Changes> {
        None
    }

    /// Whether other servers may write to it.
    fn is_shared(&self) -> bool {
        false
    }

    /// Whether entries go when they have had their life; see [`FeatureGroup::online_lifetime`].
    fn expires(&self) -> bool {
        false
    }

    /// Calls that were not answered as they should have been, since this server started; of a store within the process 0.
    fn failures(&self) -> u64 {
        0
    }

    /// `None` where there is no cache.
    fn cache_statistics(&self) -> Option<CacheStatistics> {
        None
    }
}

#[cfg(test)]
mod tests;
