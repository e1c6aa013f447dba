//! The store in Redis (7.0 and later) or Valkey, one server or a cluster, which several servers of ours may share.
//!
//! A write sends each entity's new rows to a script on the server that merges them into its entry, which makes
//! newer-wins atomic whoever else writes. An entry expires when its group no longer needs it: twice the TTL after the
//! event time of its newest row, by our clock. Every call ends within the timeout, with all of its answer or none.
//!
//! 1. `keys` names an entity's entry.
//! 2. `server` turns keys into commands for the one server, or hands them to `cluster`, which finds the node of each.
//! 3. `node` holds the connection to one server and says what its errors mean.

mod cluster;
mod keys;
mod node;
mod server;
mod tracking;

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Cmd, FromRedisValue, Script, Value};
use async_trait::async_trait;
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use futures::future::ready;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tracing::warn;
use uuid::Uuid;

use self::keys::{PREFIX, StoredKeys};
use self::server::{Answer, Batch, Server};
use super::changes::Changes;
use super::entries::{Incoming, PackedEntry};
use super::{Entries, Found, OnlineStore, ScannedEntries};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::model::{EntityKey, FeatureGroup, MAX_FUTURE_ROWS};

const MERGE: &str = include_str!("merge.lua");
/// Keys that one call reads, writes or deletes at most.
const KEYS_PER_CALL_MAX: usize = 1000;
/// Entries that one run of the script merges: about a hundred microseconds in which the server hears nobody else.
const KEYS_PER_SCRIPT_MAX: usize = 32;
/// Calls of one request in flight: while the server works on some, the next are packed.
const CALLS_IN_FLIGHT_MAX: usize = 4;

pub(super) struct RedisStore {
    server: Arc<Server>,
    /// The same by connections of their own, for merges: on one connection a look-up would wait behind all that was sent
    /// before it.
    writer: Server,
    merge: Script,
    clock: Arc<dyn Clock>,
}

impl RedisStore {
    /// Connects on first use. Must be used within a Tokio runtime.
    pub(super) fn open(url: &str, timeout: Duration, clock: Arc<dyn Clock>) -> Result<Self> {
        Ok(Self::on(Server::open(url, timeout)?, Server::open(url, timeout)?, clock))
    }

    /// The same for a cluster of which `seeds` are some nodes, as URLs of single servers.
    pub(super) fn open_cluster(seeds: &[String], timeout: Duration, clock: Arc<dyn Clock>) -> Result<Self> {
        let open = || Server::open_cluster(seeds, timeout);
        Ok(Self::on(open()?, open()?, clock))
    }

    fn on(server: Server, writer: Server, clock: Arc<dyn Clock>) -> Self {
        Self { server: Arc::new(server), writer, merge: Script::new(MERGE), clock }
    }

    /// Merges the entries; returns how many values gave way because they were no entries.
    async fn merge(&self, group: &FeatureGroup, entries: &[PackedEntry], now_us: i64) -> Result<i64> {
        let keys = StoredKeys::new(group.id, entries.iter().map(|entry| entry.key.as_bytes()));
        let now = (now_us ^ i64::MIN).to_be_bytes();
        let expires = group.online_lifetime().is_some();
        let command = |some: &[usize]| {
            let mut command = Cmd::with_capacity(6 + 3 * some.len(), 256 + 256 * some.len());
            command.arg("EVALSHA").arg(self.merge.get_hash()).arg(some.len());
            some.iter().for_each(|&i| {
                command.arg(keys.get(i));
            });
            command.arg(now.as_slice()).arg(MAX_FUTURE_ROWS).arg(u8::from(expires));
            for &i in some {
                command.arg(entries[i].bytes.as_slice());
                if expires {
                    command.arg(entries[i].lives_ms.unwrap_or(i64::MAX));
                }
            }
            command
        };
        let batch =
            Batch { keys: &keys, together_max: KEYS_PER_SCRIPT_MAX, command: &command, script: Some(MERGE) };
        let answers = self.writer.run(&batch).await?;
        answers.into_iter().map(|answer| self.read::<i64>(answer.value)).sum()
    }

    async fn one<T: FromRedisValue>(&self, key: &str, command: Cmd) -> Result<T> {
        let keys = StoredKeys::of([key.as_bytes()]);
        let command = |_: &[usize]| command.clone();
        let batch = Batch { keys: &keys, together_max: 1, command: &command, script: None };
        let answer = self.server.run(&batch).await?.pop();
        self.read(answer.map_or(Value::Nil, |answer| answer.value))
    }

    fn read<T: FromRedisValue>(&self, value: Value) -> Result<T> {
        T::from_redis_value(value).map_err(|error| odd(&self.server, &error.to_string()))
    }

    async fn unlink(&self, keys: StoredKeys) -> Result<()> {
        let command = |some: &[usize]| {
            let mut command = ::redis::cmd("UNLINK");
            some.iter().for_each(|&i| {
                command.arg(keys.get(i));
            });
            command
        };
        let batch = Batch { keys: &keys, together_max: KEYS_PER_CALL_MAX, command: &command, script: None };
        self.server.run(&batch).await.map(|_| ())
    }

    /// Where the applied snapshot is noted: in a cluster on every master, for each may lose its rows on its own, and
    /// no note must speak for the rows of another.
    async fn notes(&self, group: Uuid) -> Result<Vec<String>> {
        let slots = self.server.a_slot_of_each_master().await?;
        Ok(slots.into_iter().map(|slot| keys::snapshot(group, slot)).collect())
    }
}

impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore").field("server", &self.server.name()).finish_non_exhaustive()
    }
}

fn odd(server: &Server, what: &str) -> Error {
    Error::unavailable(format!("online store {} gave an answer that is none: {what}", server.name()))
}

async fn read_entries(server: &Server, keys: StoredKeys) -> Result<Entries> {
    let command = |some: &[usize]| {
        let mut command = Cmd::with_capacity(1 + some.len(), 8 + 32 * some.len());
        command.arg("MGET");
        some.iter().for_each(|&i| {
            command.arg(keys.get(i));
        });
        command
    };
    let batch = Batch { keys: &keys, together_max: KEYS_PER_CALL_MAX, command: &command, script: None };
    let mut entries = Entries::absent(keys.len());
    let mut answered = 0;
    for Answer { keys: asked, value } in server.run(&batch).await? {
        let Value::Array(values) = value else { return Err(odd(server, "MGET without a list")) };
        if values.len() != asked.len() {
            return Err(odd(server, &format!("{} values for {} keys", values.len(), asked.len())));
        }
        answered += asked.len();
        let bytes = values.iter().map(|value| match value {
            Value::BulkString(bytes) => bytes.len(),
            _ => 0,
        });
        entries.reserve(bytes.sum());
        for (key, value) in asked.into_iter().zip(values) {
            match value {
                Value::BulkString(bytes) => entries.put(key, Some(&bytes)),
                Value::Nil => {}
                _ => return Err(odd(server, "a value that is no string")),
            }
        }
    }
    match answered == keys.len() {
        true => Ok(entries),
        false => Err(odd(server, &format!("{answered} of {} keys", keys.len()))),
    }
}

#[async_trait]
impl OnlineStore for RedisStore {
    fn describe(&self) -> String {
        self.server.name().to_owned()
    }

    fn expires(&self) -> bool {
        true
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn write(&self, group: &Arc<FeatureGroup>, history: &RecordBatch) -> Result<()> {
        let now_us = self.clock.now_us();
        let incoming = Incoming::new(group, history, now_us, group.online_lifetime())?;
        let packed = incoming.parts(KEYS_PER_CALL_MAX).map(|part| incoming.pack(part));
        let merged =
            stream::iter(packed).map(|entries| async move { self.merge(group, &entries?, now_us).await });
        let replaced: i64 =
            merged.buffer_unordered(CALLS_IN_FLIGHT_MAX).try_fold(0, |sum, one| ready(Ok(sum + one))).await?;
        if replaced > 0 {
            let (name, store) = (&group.name, self.server.name());
            warn!(group = %name, store, replaced, "unreadable online values were replaced");
        }
        Ok(())
    }

    async fn remove(&self, group: Uuid, keys: &[EntityKey]) -> Result<()> {
        for part in keys.chunks(KEYS_PER_CALL_MAX) {
            self.unlink(StoredKeys::new(group, part.iter().map(EntityKey::as_bytes))).await?;
        }
        Ok(())
    }

    async fn applied_snapshot(&self, group: Uuid) -> Result<Option<i64>> {
        let mut noted = HashSet::new();
        for note in self.notes(group).await? {
            let snapshot: Option<i64> = self.one(&note, ::redis::cmd("GET").arg(&note).to_owned()).await?;
            noted.insert(snapshot);
        }
        // Nodes that disagree have not all kept what was written.
        Ok(if noted.len() == 1 { noted.into_iter().next().flatten() } else { None })
    }

    async fn set_applied_snapshot(&self, group: Uuid, snapshot_id: i64) -> Result<()> {
        for note in self.notes(group).await? {
            let command = ::redis::cmd("SET").arg(&note).arg(snapshot_id).to_owned();
            let _: Value = self.one(&note, command).await?;
        }
        Ok(())
    }

    async fn drop_group(&self, group: Uuid) -> Result<()> {
        // The notes go first: they never say that dropped rows are there.
        for note in self.notes(group).await? {
            let _: i64 = self.one(&note, ::redis::cmd("DEL").arg(&note).to_owned()).await?;
        }
        let mut scan = self.server.scan(pattern(group));
        while let Some(found) = scan.next().await? {
            self.unlink(StoredKeys::of(found.iter().map(Vec::as_slice))).await?;
        }
        Ok(())
    }

    async fn get(
        &self,
        group: &Arc<FeatureGroup>,
        keys: &[EntityKey],
        _max_staleness: Option<Duration>,
    ) -> Result<Found> {
        let mut reads = Vec::with_capacity(keys.len().div_ceil(KEYS_PER_CALL_MAX));
        for part in keys.chunks(KEYS_PER_CALL_MAX) {
            let stored = StoredKeys::new(group.id, part.iter().map(EntityKey::as_bytes));
            reads.push(read_entries(&self.server, stored));
        }
        let read = stream::iter(reads).buffered(CALLS_IN_FLIGHT_MAX);
        let appended = |mut all: Entries, part| {
            all.append(part);
            ready(Ok(all))
        };
        let entries = read.try_fold(Entries::default(), appended).await?;
        Ok(Found { entries, store_reads: keys.len(), ..Found::default() })
    }

    fn scan(&self, group: &Arc<FeatureGroup>) -> BoxStream<'static, Result<ScannedEntries>> {
        let server = Arc::clone(&self.server);
        let start = (server.scan(pattern(group.id)), SeenKeys::default());
        stream::try_unfold(start, move |(mut scan, mut seen)| {
            let server = Arc::clone(&server);
            async move {
                let Some(mut keys) = scan.next().await? else { return Ok(None) };
                keys.retain(|key| seen.insert(key));
                let stored = StoredKeys::of(keys.iter().map(Vec::as_slice));
                let entries = read_entries(&server, stored).await?;
                let part = keys.into_iter().zip(entries.iter()).filter_map(|(key, entry)| {
                    let key = EntityKey::from_stored(Bytes::from(key).slice(PREFIX..));
                    Some((key, Bytes::copy_from_slice(entry?)))
                });
                Ok(Some((part.collect(), (scan, seen))))
            }
        })
        .boxed()
    }

    fn failures(&self) -> u64 {
        self.server.failures() + self.writer.failures()
    }

    fn changes(&self) -> Option<Changes> {
        Some(tracking::changes(Arc::clone(&self.server)))
    }
}

fn pattern(group: Uuid) -> String {
    format!("{}*", String::from_utf8_lossy(&keys::prefix(group)))
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

#[cfg(test)]
mod tests;
