//! The store in Redis (7.0 and later) or Valkey, which several servers may share.
//!
//! ```text
//! fletching:{<group's id>}:e:<entity key>   →   entry
//! fletching:{<group's id>}:snapshot         →   snapshot id in decimal
//! ```
//!
//! A write sends each entity's new rows to a script on the server that merges them into its entry, which makes
//! newer-wins atomic whoever else writes. Every call ends within the deadline, the connection restores itself, and
//! since each call may be repeated without harm, one that met a broken connection is tried once more.

mod tracking;

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::{ConnectionManager, ConnectionManagerConfig};
use ::redis::{Client, Cmd, ConnectionAddr, FromRedisValue, Pipeline, RedisError, RedisResult, Script};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use futures::stream::{self, BoxStream, StreamExt};
use uuid::Uuid;

use super::changes::{ChangedKey, Changes};
use super::entries::entries_of;
use super::{Found, OnlineStore, ScannedEntries};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::model::{EntityKey, FeatureGroup, MAX_FUTURE_ROWS};

const MERGE: &str = include_str!("merge.lua");
/// Keys per MGET, merges per pipeline, keys per step of a scan: what one call asks of the server at most.
const KEYS_PER_CALL_MAX: usize = 1000;
/// What the keys of all entries begin with.
const TRACKED_PREFIX: &str = "fletching:{";
/// Longest part of an error of Redis that is passed on; a failed pipeline repeats itself for every command.
const CAUSE_CHARS_MAX: usize = 200;

pub(super) struct RedisStore {
    server: Server,
    merge: Script,
    clock: Arc<dyn Clock>,
}

/// The connection, and how long a call on it may take.
#[derive(Clone)]
struct Server {
    client: Client,
    connection: ConnectionManager,
    /// Host and port, without credentials.
    address: String,
    timeout: Duration,
}

impl RedisStore {
    /// Connects on first use. Must be called within a Tokio runtime.
    pub(super) fn open(url: &str, timeout: Duration, clock: Arc<dyn Clock>) -> Result<Self> {
        // The URL may hold a password, so no error repeats it.
        let client = Client::open(url).map_err(|e| {
            Error::invalid(
                "the online store's URL is not one of Redis: write redis://[user:password@]host[:port][/db]",
            )
            .with_source(brief(&e))
        })?;
        let info = client.get_connection_info();
        let mut address = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                format!("{host}:{port}")
            }
            other => other.to_string(),
        };
        if info.redis_settings().db() != 0 {
            address = format!("{address}/{}", info.redis_settings().db());
        }
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(timeout))
            .set_response_timeout(Some(timeout))
            .set_number_of_retries(0);
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), config)
            .map_err(|e| failed(&address, &e))?;
        let server = Server { client, connection, address, timeout };
        Ok(Self { server, merge: Script::new(MERGE), clock })
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("address", &self.server.address).finish_non_exhaustive()
    }
}

impl Server {
    async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        self.within_deadline(|mut connection| async move { command.query_async(&mut connection).await }).await
    }

    async fn pipeline(&self, pipeline: &Pipeline) -> Result<()> {
        self.within_deadline(|mut connection| async move { pipeline.exec_async(&mut connection).await }).await
    }

    async fn within_deadline<T, F: Future<Output = RedisResult<T>>>(
        &self,
        call: impl Fn(ConnectionManager) -> F,
    ) -> Result<T> {
        let attempts = async {
            match call(self.connection.clone()).await {
                Err(error) if error.is_connection_dropped() => call(self.connection.clone()).await,
                other => other,
            }
        };
        match tokio::time::timeout(self.timeout, attempts).await {
            Ok(outcome) => outcome.map_err(|e| failed(&self.address, &e)),
            Err(_) => Err(Error::unavailable(format!(
                "online store redis {} did not answer within {:?}",
                self.address, self.timeout
            ))),
        }
    }

    /// One client for each server that takes writes.
    async fn masters(&self) -> Result<Vec<Client>> {
        Ok(vec![self.client.clone()])
    }

    async fn mget(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>> {
        let mut entries = Vec::with_capacity(keys.len());
        for part in keys.chunks(KEYS_PER_CALL_MAX) {
            let mut command = ::redis::cmd("MGET");
            part.iter().for_each(|key| {
                command.arg(key);
            });
            let mut values: Vec<Option<Bytes>> = self.command(&command).await?;
            if values.len() != part.len() {
                let (got, want) = (values.len(), part.len());
                return Err(Error::unavailable(format!(
                    "online store redis {} answered {got} of {want} keys",
                    self.address
                )));
            }
            entries.append(&mut values);
        }
        Ok(entries)
    }

    /// One step of a scan: some keys below `prefix`, perhaps none or some again, and where to go on, if anywhere.
    async fn scan_keys(&self, prefix: &str, cursor: u64) -> Result<(Option<u64>, Vec<Vec<u8>>)> {
        let mut command = ::redis::cmd("SCAN");
        command.arg(cursor).arg("MATCH").arg(format!("{prefix}*")).arg("COUNT").arg(KEYS_PER_CALL_MAX);
        let (next, keys): (u64, Vec<Vec<u8>>) = self.command(&command).await?;
        Ok(((next != 0).then_some(next), keys))
    }
}

fn failed(address: &str, error: &RedisError) -> Error {
    Error::unavailable(format!("online store redis {address} is not available")).with_source(brief(error))
}

fn brief(error: &RedisError) -> String {
    error.to_string().chars().take(CAUSE_CHARS_MAX).collect()
}

fn entries_prefix(group: Uuid) -> String {
    format!("fletching:{{{group}}}:e:")
}

fn snapshot_key(group: Uuid) -> String {
    format!("fletching:{{{group}}}:snapshot")
}

fn stored_key(prefix: &str, key: &EntityKey) -> Vec<u8> {
    [prefix.as_bytes(), key.as_bytes()].concat()
}

/// The entry that a key in Redis is for; `None` for keys of other things.
fn parse_stored_key(stored: Bytes) -> Option<ChangedKey> {
    let rest = stored.strip_prefix(TRACKED_PREFIX.as_bytes())?;
    let (group, rest) = rest.split_at_checked(uuid::fmt::Hyphenated::LENGTH)?;
    let key = rest.strip_prefix(b"}:e:")?;
    let group = Uuid::try_parse_ascii(group).ok()?;
    Some(ChangedKey { group: group.into(), key: stored.slice_ref(key) })
}

#[async_trait]
impl OnlineStore for RedisStore {
    fn describe(&self) -> String {
        format!("redis {}", self.server.address)
    }

    async fn write(&self, group: &Arc<FeatureGroup>, history: &RecordBatch) -> Result<()> {
        let now_us = self.clock.now_us();
        let now = (now_us ^ i64::MIN).to_be_bytes();
        let prefix = entries_prefix(group.id);
        for part in entries_of(group, history, now_us)?.chunks(KEYS_PER_CALL_MAX) {
            let mut pipeline = Pipeline::with_capacity(part.len() + 1);
            // The script travels with every pipeline: a server that was restarted or flushed has forgotten it.
            pipeline.cmd("SCRIPT").arg("LOAD").arg(MERGE).ignore();
            for (key, entry) in part {
                pipeline
                    .cmd("EVALSHA")
                    .arg(self.merge.get_hash())
                    .arg(1)
                    .arg(stored_key(&prefix, key))
                    .arg(entry.as_ref())
                    .arg(now.as_slice())
                    .arg(MAX_FUTURE_ROWS)
                    .ignore();
            }
            self.server.pipeline(&pipeline).await?;
        }
        Ok(())
    }

    async fn applied_snapshot(&self, group: Uuid) -> Result<Option<i64>> {
        self.server.command(::redis::cmd("GET").arg(snapshot_key(group))).await
    }

    async fn set_applied_snapshot(&self, group: Uuid, snapshot_id: i64) -> Result<()> {
        self.server.command(::redis::cmd("SET").arg(snapshot_key(group)).arg(snapshot_id)).await
    }

    async fn drop_group(&self, group: Uuid) -> Result<()> {
        // The note goes first: it never says that dropped rows are there.
        let _: i64 = self.server.command(::redis::cmd("DEL").arg(snapshot_key(group))).await?;
        let prefix = entries_prefix(group);
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            let (next, keys) = self.server.scan_keys(&prefix, at).await?;
            if !keys.is_empty() {
                let mut command = ::redis::cmd("UNLINK");
                keys.iter().for_each(|key| {
                    command.arg(key);
                });
                let _: i64 = self.server.command(&command).await?;
            }
            cursor = next;
        }
        Ok(())
    }

    async fn get(
        &self,
        group: &Arc<FeatureGroup>,
        keys: &[EntityKey],
        _max_staleness: Option<Duration>,
    ) -> Result<Found> {
        let prefix = entries_prefix(group.id);
        let stored: Vec<Vec<u8>> = keys.iter().map(|key| stored_key(&prefix, key)).collect();
        let entries = self.server.mget(&stored).await?;
        Ok(Found { entries, store_reads: keys.len(), ..Found::default() })
    }

    fn scan(&self, group: &Arc<FeatureGroup>) -> BoxStream<'static, Result<ScannedEntries>> {
        let server = self.server.clone();
        let start = (Some(0), SeenKeys::default());
        let prefix = entries_prefix(group.id);
        stream::try_unfold(start, move |(cursor, mut seen)| {
            let (server, prefix) = (server.clone(), prefix.clone());
            async move {
                let Some(cursor) = cursor else { return Ok(None) };
                let (next, mut keys) = server.scan_keys(&prefix, cursor).await?;
                keys.retain(|key| seen.insert(key));
                let entries = server.mget(&keys).await?;
                let part = keys.into_iter().zip(entries).filter_map(|(key, entry)| {
                    let key = Bytes::from(key).slice(prefix.len()..);
                    Some((EntityKey::from_stored(key), entry?))
                });
                Ok(Some((part.collect(), (next, seen))))
            }
        })
        .boxed()
    }

    fn changes(&self) -> Option<Changes> {
        Some(tracking::changes(self.server.clone()))
    }
}

/// Keys that a scan has given out: SCAN may name a key twice. Sixteen bytes a key stand for it.
#[derive(Default)]
struct SeenKeys {
    hashers: (RandomState, RandomState),
    seen: HashSet<(u64, u64)>,
}

impl SeenKeys {
    /// Whether the key is new.
    fn insert(&mut self, key: &[u8]) -> bool {
        self.seen.insert((self.hashers.0.hash_one(key), self.hashers.1.hash_one(key)))
    }
}
