//! The store in a file of the server's own, for one server.
//!
//! ```text
//! table "entries.2"   group's id, 16 bytes | entity key   →   entry
//! table "applied.2"   group's id, 16 bytes                →   snapshot id, i64
//! ```
//!
//! The number is that of the entries' format: a file with tables of another one is as good as empty, and is filled
//! again from the history.
//!
//! Nothing expires: on disk it costs little to know that an entity is too old and not unknown.
//!
//! Rows are committed without waiting for the disk: a crash may lose the last of them. Noting a snapshot does wait,
//! and redb makes everything committed before it durable with it, so the note never outlives the rows it speaks for.

use std::fmt;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::arrow::array::RecordBatch;
use futures::stream::{self, BoxStream, StreamExt};
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    WriteTransaction,
};
use tracing::warn;
use uuid::Uuid;

use super::entries::{Incoming, PackedEntry};
use super::{Entries, Found, OnlineStore, ScannedEntries};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{EntityKey, FeatureGroup, merge};

const ENTRIES: TableDefinition<&[u8], &[u8]> = TableDefinition::new("entries.2");
const APPLIED: TableDefinition<&[u8], i64> = TableDefinition::new("applied.2");
/// Tables of former formats.
const FORMER: [&str; 2] = ["entries", "applied"];
/// Entries read per step of a scan; each step sees the file as it is then, and holds nothing between steps.
const SCAN_ENTRIES_MAX: usize = 1024;
/// Between attempts to open a file that another holds.
const RETRY: Duration = Duration::from_millis(20);
const CACHE_BYTES: usize = 64 << 20;

pub(super) struct EmbeddedStore {
    database: Arc<Database>,
    path: PathBuf,
    clock: Arc<dyn Clock>,
}

impl EmbeddedStore {
    /// Waits up to `patience` for another holder of the file to let go: a server that is just stopping, or the last
    /// of its queries.
    pub(super) async fn open(path: PathBuf, patience: Duration, clock: Arc<dyn Clock>) -> Result<Self> {
        let mut waited = Duration::ZERO;
        let database = loop {
            let path = path.clone();
            match blocking(move || create(&path)).await {
                Err(error) if error.kind() == ErrorKind::Unavailable && waited < patience => {
                    tokio::time::sleep(RETRY).await;
                    waited += RETRY;
                }
                other => break other?,
            }
        };
        Ok(Self { database: Arc::new(database), path, clock })
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T> {
        let (database, path) = (Arc::clone(&self.database), self.path.clone());
        blocking(move || work(&database).map_err(|e| failed(&path, e))).await
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore").field("path", &self.path).finish_non_exhaustive()
    }
}

fn create(path: &Path) -> Result<Database> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|e| match e {
        DatabaseError::DatabaseAlreadyOpen => Error::unavailable(format!(
            "online store '{}' is in use by another server: stop that one, or choose another data directory",
            path.display()
        )),
        other => failed(path, other.into()),
    })?;
    let tables = || -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        transaction.open_table(ENTRIES)?;
        transaction.open_table(APPLIED)?;
        for name in FORMER {
            transaction.delete_table(TableDefinition::<&[u8], &[u8]>::new(name))?;
        }
        Ok(transaction.commit()?)
    };
    tables().map_err(|e| failed(path, e))?;
    Ok(database)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal("a task of the online store did not finish").with_source(e))?
}

fn failed(path: &Path, error: redb::Error) -> Error {
    let path = path.display();
    match error {
        redb::Error::Corrupted(_) | redb::Error::RepairAborted | redb::Error::UpgradeRequired(_) => {
            Error::corrupt(format!(
                "online store '{path}' is damaged: stop the server and delete the file, it is rebuilt from the history"
            ))
            .with_source(error)
        }
        other => Error::unavailable(format!("online store '{path}' cannot be read or written")).with_source(other),
    }
}

fn stored_key(group: Uuid, key: &[u8]) -> Vec<u8> {
    [group.as_bytes(), key].concat()
}

/// Where a group's keys end: the first key of any greater id.
fn end_of(group: Uuid) -> Bound<Vec<u8>> {
    match group.as_u128().checked_add(1) {
        Some(next) => Bound::Excluded(next.to_be_bytes().to_vec()),
        None => Bound::Unbounded,
    }
}

fn merge_all(
    transaction: &WriteTransaction,
    id: Uuid,
    entries: &[PackedEntry],
    now_us: i64,
) -> Result<(), redb::Error> {
    let mut table = transaction.open_table(ENTRIES)?;
    for PackedEntry { key, bytes: incoming, .. } in entries {
        let key = stored_key(id, key.as_bytes());
        let existing = table.get(key.as_slice())?.map(|e| e.value().to_vec());
        let merged = existing.map(|existing| merge(&existing, incoming, now_us)).transpose();
        let merged = merged.unwrap_or_else(|error| {
            warn!(group = %id, %error, "an unreadable online value is replaced");
            None
        });
        table.insert(key.as_slice(), merged.as_ref().unwrap_or(incoming).as_slice())?;
    }
    Ok(())
}

#[async_trait]
impl OnlineStore for EmbeddedStore {
    fn describe(&self) -> String {
        "embedded".to_owned()
    }

    async fn write(&self, group: &Arc<FeatureGroup>, history: &RecordBatch) -> Result<()> {
        let now_us = self.clock.now_us();
        let incoming = Incoming::new(group, history, now_us, None)?;
        let entries = incoming.pack(incoming.all())?;
        let id = group.id;
        self.run(move |database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::None)?;
            merge_all(&transaction, id, &entries, now_us)?;
            Ok(transaction.commit()?)
        })
        .await
    }

    async fn remove(&self, group: Uuid, keys: &[EntityKey]) -> Result<()> {
        let keys: Vec<Vec<u8>> = keys.iter().map(|key| stored_key(group, key.as_bytes())).collect();
        self.run(move |database| {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(Durability::None)?;
            {
                let mut entries = transaction.open_table(ENTRIES)?;
                for key in &keys {
                    entries.remove(key.as_slice())?;
                }
            }
            Ok(transaction.commit()?)
        })
        .await
    }

    async fn applied_snapshot(&self, group: Uuid) -> Result<Option<i64>> {
        self.run(move |database| {
            let table = database.begin_read()?.open_table(APPLIED)?;
            Ok(table.get(group.as_bytes().as_slice())?.map(|v| v.value()))
        })
        .await
    }

    async fn set_applied_snapshot(&self, group: Uuid, snapshot_id: i64) -> Result<()> {
        self.run(move |database| {
            let transaction = database.begin_write()?;
            transaction.open_table(APPLIED)?.insert(group.as_bytes().as_slice(), snapshot_id)?;
            Ok(transaction.commit()?)
        })
        .await
    }

    async fn drop_group(&self, group: Uuid) -> Result<()> {
        self.run(move |database| {
            let transaction = database.begin_write()?;
            // The note goes with the rows, in one commit: it never says that dropped rows are there.
            transaction.open_table(APPLIED)?.remove(group.as_bytes().as_slice())?;
            {
                let mut entries = transaction.open_table(ENTRIES)?;
                let (start, end) = (stored_key(group, &[]), end_of(group));
                let range = (Bound::Included(start.as_slice()), end.as_ref().map(Vec::as_slice));
                entries.retain_in::<&[u8], _>(range, |_, _| false)?;
            }
            Ok(transaction.commit()?)
        })
        .await
    }

    async fn get(
        &self,
        group: &Arc<FeatureGroup>,
        keys: &[EntityKey],
        _max_staleness: Option<Duration>,
    ) -> Result<Found> {
        let (id, keys) = (group.id, keys.to_vec());
        self.run(move |database| {
            let table = database.begin_read()?.open_table(ENTRIES)?;
            let mut entries = Entries::absent(keys.len());
            for (at, key) in keys.iter().enumerate() {
                let entry = table.get(stored_key(id, key.as_bytes()).as_slice())?;
                entries.put(at, entry.as_ref().map(|entry| entry.value()));
            }
            Ok(Found { entries, store_reads: keys.len(), ..Found::default() })
        })
        .await
    }

    fn scan(&self, group: &Arc<FeatureGroup>) -> BoxStream<'static, Result<ScannedEntries>> {
        let (database, path, id) = (Arc::clone(&self.database), self.path.clone(), group.id);
        let start = Bound::Included(stored_key(id, &[]));
        stream::try_unfold(Some(start), move |start| {
            let (database, path) = (Arc::clone(&database), path.clone());
            async move {
                let Some(start) = start else { return Ok(None) };
                let part =
                    blocking(move || scan_part(&database, id, start).map_err(|e| failed(&path, e))).await?;
                Ok((!part.is_empty()).then(|| {
                    let full = part.len() == SCAN_ENTRIES_MAX;
                    let last = part.last().filter(|_| full);
                    let next = last.map(|(key, _)| Bound::Excluded(stored_key(id, key.as_bytes())));
                    (part, next)
                }))
            }
        })
        .boxed()
    }
}

fn scan_part(database: &Database, id: Uuid, start: Bound<Vec<u8>>) -> Result<ScannedEntries, redb::Error> {
    let table = database.begin_read()?.open_table(ENTRIES)?;
    let end = end_of(id);
    let range = (start.as_ref().map(Vec::as_slice), end.as_ref().map(Vec::as_slice));
    let read = |item: Result<_, StorageError>| {
        let (key, entry): (redb::AccessGuard<'_, &[u8]>, redb::AccessGuard<'_, &[u8]>) = item?;
        let key = EntityKey::from_stored(key.value()[16..].to_vec());
        Ok((key, Bytes::copy_from_slice(entry.value())))
    };
    table.range::<&[u8]>(range)?.take(SCAN_ENTRIES_MAX).map(read).collect()
}
