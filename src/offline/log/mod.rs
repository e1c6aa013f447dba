//! The log in front of the history: small writes are durable in it at once, and come into a snapshot together.
//!
//! 1. [`OfflineStore::log`] writes the rows of many writes to disk by one transaction ([`journal`]), and keeps them in
//!    memory ([`tail`]). They are durable, and every query that begins now sees them.
//! 2. A query reads a snapshot and, beside its files, those of the rows that are logged behind it:
//!    [`OfflineStore::logged_files`] writes them, sorted, the first time that somebody wants them. To everything that
//!    reads files they are files like others.
//! 3. [`OfflineStore::fold`] commits those files, writes what has none yet, and notes in the table's properties up to
//!    which number of this log it has the rows, in the same commit. Then the log forgets them.
//!
//! A crash loses nothing: what was acknowledged is in the log, and read from it at the next start; what is in a snapshot
//! already is told by the table's property. A write whose idempotency key another server's snapshot has by the time of
//! the fold is left out of it.

mod fold;
mod journal;
mod tail;

use std::path::Path;

use datafusion::arrow::array::RecordBatch;
use iceberg::spec::{DataFile, TableMetadata};
use moka::sync::Cache;
use uuid::Uuid;

use super::store::OfflineStore;
use super::table::OfflineTable;
use crate::error::{Error, Result};
use crate::model::{IdempotencyKey, TableName};

use journal::Journal;
pub(crate) use tail::Extent as LogExtent;
use tail::Tails;

/// Rows of one table, of one or several writes.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    /// Its place in the log; 0 until it has one.
    pub(crate) number: u64,
    pub(crate) table_id: Uuid,
    pub(crate) name: TableName,
    /// The Iceberg schema whose columns the rows have, system columns included.
    pub(crate) schema_id: i32,
    pub(crate) rows: RecordBatch,
    /// What they were written by, in their order.
    pub(crate) writes: Vec<LoggedWrite>,
    /// The latest of the rows, in µs since 1970.
    pub(crate) ingested_at_us: i64,
}

/// One write within [`Logged`] rows.
#[derive(Debug, Clone)]
pub(crate) struct LoggedWrite {
    pub(crate) rows: usize,
    pub(crate) key: Option<IdempotencyKey>,
}

/// So many data files of logged rows are remembered, for tickets that name them.
const FILES_MAX: u64 = 4096;

/// The log of a store; without files of its own where it has none.
#[derive(Debug)]
pub(super) struct WriteLog {
    /// The first of them is written to.
    logs: Vec<Log>,
    /// Data files of logged rows, by path.
    files: Cache<String, DataFile>,
}

impl Default for WriteLog {
    fn default() -> Self {
        Self { logs: Vec::new(), files: Cache::new(FILES_MAX) }
    }
}

/// One file, and what it holds in memory.
#[derive(Debug)]
struct Log {
    journal: Journal,
    tails: Tails,
}

impl Log {
    /// The property of a table that says up to which number it has the rows of this log.
    fn property(&self) -> String {
        format!("fletching.log.{}", self.journal.id)
    }

    fn folded_in(&self, metadata: &TableMetadata) -> u64 {
        metadata.properties().get(&self.property()).and_then(|number| number.parse().ok()).unwrap_or(0)
    }
}

impl OfflineStore {
    /// The same store with a log in that directory, and what servers that ended have left there.
    ///
    /// # Errors
    /// `Unavailable` where it cannot be used, `Corrupt` where it is damaged.
    pub(crate) async fn with_log(mut self, directory: &Path) -> Result<Self> {
        let directory = directory.to_owned();
        let opened = tokio::task::spawn_blocking(move || Journal::open_all(&directory)).await;
        for (journal, logged) in
            opened.map_err(|e| Error::internal("a log was not opened").with_source(e))??
        {
            let tails = Tails::default();
            logged.into_iter().for_each(|logged| tails.push(logged));
            self.log.logs.push(Log { journal, tails });
        }
        Ok(self)
    }

    /// Whether [`Self::log`] may be asked.
    pub(crate) fn has_log(&self) -> bool {
        !self.log.logs.is_empty()
    }

    /// Makes rows durable and visible, all or, on an error, none.
    ///
    /// # Errors
    /// `Unavailable` where the log cannot be written.
    pub(crate) async fn log(&self, rows: Vec<Logged>) -> Result<()> {
        let log = self.log.logs.first().ok_or_else(|| Error::internal("there is no log to write to"))?;
        let rows = log.journal.append(rows).await?;
        rows.into_iter().for_each(|logged| log.tails.push(logged));
        Ok(())
    }

    /// Deletes files of logged rows that were merged with others before that time (µs since 1970); of one table, or of all.
    /// Tickets that name them end with them.
    pub(crate) async fn delete_superseded(&self, table: Option<Uuid>, before_us: i64) {
        for log in &self.log.logs {
            for id in log.tails.with_superseded() {
                if table.is_some_and(|table| table != id) {
                    continue;
                }
                for file in log.tails.superseded(id, before_us) {
                    let path = file.file_path();
                    // Each write's files have a directory of their own.
                    let directory = path.rsplit_once('/').map_or(path, |(directory, _)| directory);
                    if let Err(error) = self.io.delete_prefix(format!("{directory}/")).await {
                        tracing::warn!(path, %error, "a file of logged rows was not removed");
                    }
                }
            }
        }
    }

    /// A write with that `_ingested_at` goes past the log; those that are logged have earlier ones, or later ones.
    pub(crate) fn cut_log(&self, table: Uuid, ingested_at_us: i64) {
        self.log.logs.iter().for_each(|log| log.tails.cut(table, ingested_at_us));
    }

    /// The rows of an earlier write with that key that is logged, and in no snapshot that the caller did not see.
    pub(crate) fn rows_logged_with(&self, table: Uuid, key: &str) -> Option<u64> {
        self.log.logs.iter().find_map(|log| log.tails.rows_written_with(table, key))
    }

    /// How much of a table the log of this server holds.
    pub(crate) fn logged(&self, table: Uuid) -> LogExtent {
        self.log.logs.first().map_or_else(LogExtent::default, |log| log.tails.extent(table))
    }

    /// The tables of which rows are logged.
    pub(crate) fn tables_logged(&self) -> Vec<(Uuid, TableName, LogExtent)> {
        self.log.logs.iter().flat_map(|log| log.tails.extents()).collect()
    }
}

/// Where a reader's snapshot is too old for what memory still has.
fn gone(table: &OfflineTable) -> Error {
    Error::conflict(format!(
        "table '{}' took in many writes between the statement's planning and its run: run it again",
        table.name
    ))
}

#[cfg(test)]
mod tests;
