//! What is logged, on disk: one file that one server holds.
//!
//! ```text
//! table "log"     "id"  →  16 bytes that no other log has         "next"  →  u64, the number of the next record
//! table "records" number, u64  →  record                          (numbers of a log only grow, over restarts too)
//!
//! record   the rows as an Arrow IPC stream, whose schema's metadata says under "fletching.record" in JSON what they are
//! ```
//! A record is there once its transaction is durable, and whole or not at all: redb sees to that.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::arrow::compute::concat_batches;
use datafusion::arrow::ipc::reader::StreamReader;
use datafusion::arrow::ipc::writer::StreamWriter;
use parking_lot::Mutex;
use redb::{Database, DatabaseError, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Logged, LoggedWrite};
use crate::error::{Error, Result};
use crate::model::{IdempotencyKey, TableName};

const LOG: TableDefinition<&str, &[u8]> = TableDefinition::new("log");
const RECORDS: TableDefinition<u64, &[u8]> = TableDefinition::new("records");
/// In the metadata of a record's schema: see [`Record`].
const RECORD: &str = "fletching.record";
const CACHE_BYTES: usize = 16 << 20;
/// Servers that share a directory have a file each.
const FILES_MAX: usize = 64;

/// One file of the log.
#[derive(Debug)]
pub(super) struct Journal {
    file: Arc<File>,
    pub(super) id: Uuid,
}

#[derive(Debug)]
struct File {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` after an error: a full disk, say, leaves redb unable to go on until the file is opened again.
    database: Option<Database>,
    /// The number of the next record. What the file has from there on is of writes that were refused.
    next: u64,
    /// Records that are in snapshots, and could not be removed yet.
    forgotten: Vec<u64>,
}

impl File {
    fn with<T>(&self, work: impl FnOnce(&Database, &mut State) -> Result<T, redb::Error>) -> Result<T> {
        let mut state = self.state.lock();
        let database = match state.database.take() {
            Some(database) => database,
            None => open(&self.path).map_err(|e| failed(&self.path, e.into()))?,
        };
        let done = work(&database, &mut state).map_err(|e| failed(&self.path, e))?;
        state.database = Some(database);
        Ok(done)
    }
}

fn open(path: &Path) -> Result<Database, DatabaseError> {
    Database::builder().set_cache_size(CACHE_BYTES).create(path)
}

/// What a record says of its rows.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    table_id: String,
    schema: String,
    name: String,
    schema_id: i32,
    /// Of each write how many rows are its, in their order, and its idempotency key.
    writes: Vec<(usize, Option<String>)>,
    ingested_at_us: i64,
}

impl Journal {
    /// Opens all files of the directory that no other server holds, with what is in them. The first of them is this
    /// server's to write to; the others are of servers that ended, and are here to be folded.
    pub(super) fn open_all(directory: &Path) -> Result<Vec<(Self, Vec<Logged>)>> {
        std::fs::create_dir_all(directory).map_err(|e| {
            Error::unavailable(format!("cannot use the directory of the log '{}'", directory.display()))
                .with_source(e)
        })?;
        let mut opened = Vec::new();
        for number in 0..FILES_MAX {
            let path = directory.join(format!("{number}.redb"));
            if !opened.is_empty() && !path.exists() {
                continue;
            }
            match open(&path) {
                Ok(database) => opened.push(Self::of(database, path)?),
                Err(DatabaseError::DatabaseAlreadyOpen) => {}
                Err(error) => return Err(failed(&path, error.into())),
            }
        }
        match opened.is_empty() {
            false => Ok(opened),
            true => Err(Error::unavailable(format!(
                "all {FILES_MAX} files of the log in '{}' are in use by other servers: choose another data directory",
                directory.display()
            ))),
        }
    }

    fn of(database: Database, path: PathBuf) -> Result<(Self, Vec<Logged>)> {
        let (id, next) = identity(&database).map_err(|e| failed(&path, e))?;
        let state = State { database: Some(database), next, forgotten: Vec::new() };
        let journal = Self { file: Arc::new(File { path, state: Mutex::new(state) }), id };
        let records = journal.records()?;
        Ok((journal, records))
    }

    fn records(&self) -> Result<Vec<Logged>> {
        let records = self.file.with(|database, _| {
            let records = database.begin_read()?.open_table(RECORDS)?;
            let record = |entry: Result<(redb::AccessGuard<'_, u64>, redb::AccessGuard<'_, &[u8]>), _>| {
                let (number, bytes) = entry?;
                Ok((number.value(), bytes.value().to_vec()))
            };
            records.iter()?.map(record).collect::<Result<Vec<_>, redb::Error>>()
        });
        let logged = |(number, bytes)| {
            decoded(number, bytes).map_err(|error| {
                let path = self.file.path.display();
                Error::corrupt(format!("record {number} of the log '{path}' is not as it was written"))
                    .with_source(error)
            })
        };
        records?.into_iter().map(logged).collect()
    }

    /// Writes rows of one or several tables, and returns when they are durable: all of them, or on an error none. Gives
    /// them their numbers.
    pub(super) async fn append(&self, mut rows: Vec<Logged>) -> Result<Vec<Logged>> {
        let file = Arc::clone(&self.file);
        let write = move || {
            let encoded = rows.iter().map(encoded).collect::<Result<Vec<_>>>()?;
            let first = file.with(|database, state| {
                let (first, behind) = (state.next, state.next + encoded.len() as u64);
                let transaction = database.begin_write()?;
                transaction.open_table(LOG)?.insert("next", behind.to_be_bytes().as_slice())?;
                {
                    let mut records = transaction.open_table(RECORDS)?;
                    records.retain_in(first.., |_, _| false)?;
                    for (number, record) in (first..).zip(&encoded) {
                        records.insert(number, record.as_slice())?;
                    }
                }
                transaction.commit()?;
                state.next = behind;
                Ok(first)
            })?;
            for (number, logged) in (first..).zip(&mut rows) {
                logged.number = number;
            }
            Ok(rows)
        };
        blocking(write).await
    }

    /// Forgets records. A crash may bring them back: their tables know that they have them. What fails is done with the next
    /// ones.
    pub(super) async fn remove(&self, numbers: Vec<u64>) -> Result<()> {
        let file = Arc::clone(&self.file);
        let remove = move || {
            file.with(|database, state| {
                state.forgotten.extend(numbers);
                let mut transaction = database.begin_write()?;
                transaction.set_durability(Durability::None)?;
                {
                    let mut records = transaction.open_table(RECORDS)?;
                    for number in &state.forgotten {
                        records.remove(number)?;
                    }
                }
                transaction.commit()?;
                state.forgotten.clear();
                Ok(())
            })
        };
        blocking(remove).await
    }
}

#[cfg(test)]
impl Journal {
    /// Records that are on disk although their write was refused, as after an error of unknown outcome; the file is to be
    /// opened again.
    pub(super) fn lose(&self, records: Vec<Logged>) {
        let write = |database: &Database, _: &mut State| {
            let transaction = database.begin_write()?;
            for record in records {
                let bytes = encoded(&record).expect("it is one of ours");
                transaction.open_table(RECORDS)?.insert(record.number, bytes.as_slice())?;
            }
            Ok(transaction.commit()?)
        };
        self.file.with(write).expect("the disk is not full");
        self.file.state.lock().database = None;
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Error::internal("a task of the log did not finish").with_source(e))?
}

/// What the log is called, and the number of its next record. Numbers begin with 1: a table that has folded nothing has
/// folded up to 0.
fn identity(database: &Database) -> Result<(Uuid, u64), redb::Error> {
    let transaction = database.begin_write()?;
    let identity = {
        transaction.open_table(RECORDS)?;
        let mut log = transaction.open_table(LOG)?;
        let known = log.get("id")?.and_then(|id| Uuid::from_slice(id.value()).ok());
        let next = log.get("next")?.and_then(|next| next.value().try_into().ok());
        let id = known.unwrap_or_else(Uuid::now_v7);
        log.insert("id", id.as_bytes().as_slice())?;
        (id, next.map_or(1, u64::from_be_bytes))
    };
    transaction.commit()?;
    Ok(identity)
}

fn encoded(logged: &Logged) -> Result<Vec<u8>> {
    let write = |write: &LoggedWrite| (write.rows, write.key.as_ref().map(ToString::to_string));
    let record = Record {
        table_id: logged.table_id.to_string(),
        schema: logged.name.schema.clone(),
        name: logged.name.name.clone(),
        schema_id: logged.schema_id,
        writes: logged.writes.iter().map(write).collect(),
        ingested_at_us: logged.ingested_at_us,
    };
    let record = serde_json::to_string(&record);
    let record = record.map_err(|e| Error::internal("a record of the log is no JSON").with_source(e))?;
    let mut schema = logged.rows.schema().as_ref().clone();
    schema.metadata.insert(RECORD.to_owned(), record);
    let mut bytes = Vec::new();
    let mut writer = StreamWriter::try_new(&mut bytes, &schema)?;
    writer.write(&logged.rows)?;
    writer.finish()?;
    drop(writer);
    Ok(bytes)
}

fn decoded(number: u64, bytes: Vec<u8>) -> Result<Logged> {
    let wrong = || Error::corrupt("it does not decode");
    let reader = StreamReader::try_new(Cursor::new(bytes), None)?;
    let mut schema = reader.schema().as_ref().clone();
    let record = schema.metadata.remove(RECORD).ok_or_else(wrong)?;
    let record: Record = serde_json::from_str(&record).map_err(|e| wrong().with_source(e))?;
    let schema = Arc::new(schema);
    let rows = concat_batches(&schema, &reader.collect::<Result<Vec<_>, _>>()?)?;
    let write = |(rows, key): (usize, Option<String>)| {
        let key = key.map(|key| IdempotencyKey::parse(&key)).transpose()?;
        Ok(LoggedWrite { rows, key })
    };
    let logged = Logged {
        number,
        table_id: record.table_id.parse().map_err(|e: uuid::Error| wrong().with_source(e))?,
        name: TableName::new(record.schema, record.name),
        schema_id: record.schema_id,
        rows,
        writes: record.writes.into_iter().map(write).collect::<Result<_>>()?,
        ingested_at_us: record.ingested_at_us,
    };
    match logged.writes.iter().map(|write| write.rows).sum::<usize>() == logged.rows.num_rows() {
        true => Ok(logged),
        false => Err(wrong()),
    }
}

fn failed(path: &Path, error: redb::Error) -> Error {
    let path = path.display();
    match error {
        redb::Error::Corrupted(_) | redb::Error::RepairAborted | redb::Error::UpgradeRequired(_) => {
            Error::corrupt(format!(
                "the log '{path}' is damaged: it may hold writes that no snapshot has; restore it, or move it away to \
                 go on without them"
            ))
            .with_source(error)
        }
        other => Error::unavailable(format!(
            "the log '{path}' cannot be read or written: look whether its disk is full or read-only"
        ))
        .with_source(other),
    }
}
