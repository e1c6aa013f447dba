//! Logged rows as data files, and their commit.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::memory_pool::{MemoryPool, UnboundedMemoryPool};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use iceberg::spec::{DataContentType, DataFile, DataFileBuilder, DataFileFormat, Struct};
use uuid::Uuid;

use super::tail::{Gone, Piece};
use super::{Log, Logged, LoggedWrite, gone};
use crate::error::{Error, Result};
use crate::model::{LoggedFile, TableName};
use crate::offline::commit::{COMMIT_ATTEMPTS_MAX, IDEMPOTENCY_KEYS, INGESTED_AT, contended};
use crate::offline::snapshot::{self, Change};
use crate::offline::store::OfflineStore;
use crate::offline::table::OfflineTable;
use crate::offline::write::write_files_under;

impl OfflineStore {
    /// The files of what is logged of a table and not in the snapshot that `table` is at.
    ///
    /// # Errors
    /// `Conflict` where `table` was loaded so long ago that memory no longer has all of it.
    pub(in crate::offline) async fn logged_files(&self, table: &OfflineTable) -> Result<Vec<DataFile>> {
        let mut files = Vec::new();
        for log in &self.log.logs {
            let folded = log.folded_in(&table.metadata);
            let pieces = log.tails.behind(table.metadata.uuid(), folded);
            let mut pieces = pieces.map_err(|Gone| gone(table))?;
            // Who planned before a column came does not see the rows that came with it.
            pieces.retain(|piece| table.metadata.schema_by_id(piece.schema_id()).is_some());
            for piece in without_known(pieces, table)? {
                files.extend_from_slice(self.files_of(&piece, table).await?);
            }
        }
        Ok(files)
    }

    /// Files of logged rows that somebody saw before, here or at another server, and that may be in a snapshot by now.
    pub(in crate::offline) fn given_files(
        &self,
        table: &OfflineTable,
        given: &[LoggedFile],
    ) -> Result<Vec<DataFile>> {
        let file = |file: &LoggedFile| match self.log.files.get(&file.path) {
            Some(known) => Ok(known),
            None => data_file(table, file),
        };
        given.iter().map(file).collect()
    }

    async fn files_of<'a>(&self, piece: &'a Piece, table: &OfflineTable) -> Result<&'a [DataFile]> {
        let files = piece.files.get_or_try_init(|| self.write_piece(piece, table)).await?;
        Ok(files)
    }

    async fn write_piece(&self, piece: &Piece, table: &OfflineTable) -> Result<Vec<DataFile>> {
        let id = piece.schema_id();
        let iceberg_schema = table.metadata.schema_by_id(id).ok_or_else(|| {
            Error::corrupt(format!("table '{}' no longer knows schema {id}, that of logged rows", table.name))
        })?;
        let Some(first) = piece.logged.first() else { return Ok(Vec::new()) };
        let schema: SchemaRef = first.rows.schema();
        let rows: Vec<_> = piece.logged.iter().map(|logged| Ok(logged.rows.clone())).collect();
        let rows = Box::pin(RecordBatchStreamAdapter::new(schema, futures::stream::iter(rows)));
        // The rows are in memory already, and bounded there.
        let memory: Arc<dyn MemoryPool> = Arc::new(UnboundedMemoryPool::default());
        let written = write_files_under(&self.io, &table.metadata, iceberg_schema, rows, &memory).await?;
        for file in &written.files {
            self.log.files.insert(file.file_path().to_owned(), file.clone());
        }
        Ok(written.files)
    }

    /// Commits everything that is logged of a table by now, and returns the table with it; `None` where there was nothing, or the table is gone. Of two
    /// calls for one table, the second must wait for the first.
    ///
    /// # Errors
    /// Those of a commit; the rows stay in the log then.
    pub(crate) async fn fold(&self, table_id: Uuid, name: &TableName) -> Result<Option<OfflineTable>> {
        let mut folded = None;
        for log in &self.log.logs {
            let now = self.find(table_id, name).await?;
            let before = now.map_or(0, |table| log.folded_in(&table.metadata));
            let pieces = log.tails.to_fold(table_id, before);
            let Some(upto) = pieces.last().map(|piece| piece.last()) else { continue };
            match self.commit_logged(log, table_id, name, &pieces, upto).await? {
                Some(now) => {
                    log.tails.folded(table_id, upto);
                    folded = Some(now);
                }
                None => {
                    tracing::info!(table = %name, "logged rows of a table that was dropped are forgotten");
                    log.tails.forget(table_id);
                }
            }
            let logged = pieces.iter().flat_map(|piece| &piece.logged);
            let numbers = logged.map(|logged| logged.number).collect();
            if let Err(error) = log.journal.remove(numbers).await {
                tracing::warn!(%error, "the log still has records that are in a snapshot");
            }
        }
        Ok(folded)
    }

    async fn commit_logged(
        &self,
        log: &Log,
        table_id: Uuid,
        name: &TableName,
        pieces: &[Arc<Piece>],
        upto: u64,
    ) -> Result<Option<OfflineTable>> {
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let Some(current) = self.find(table_id, name).await? else { return Ok(None) };
            // Some or all of it may be there, by a commit of which nobody heard.
            let folded = log.folded_in(&current.metadata);
            let pieces: Vec<_> = pieces.iter().filter(|piece| piece.last() > folded).cloned().collect();
            let pieces = without_known(pieces, &current)?;
            let mut files = Vec::new();
            for piece in &pieces {
                files.extend_from_slice(self.files_of(piece, &current).await?);
            }
            if files.is_empty() {
                return Ok(Some(current));
            }
            let latest_us = latest_us(&pieces);
            let property = (log.property(), upto.to_string());
            let change = Change::Fold { summary: summary(&pieces, latest_us, &current)?, property };
            // Its time is that of its writes: who asks for what was there after one of them finds it.
            let (metadata, at_ms) = (&current.metadata, latest_us.div_euclid(1000));
            let next = snapshot::changed(&self.io, &self.manifests, metadata, &files, &change, at_ms);
            let is_in = |now: &iceberg::spec::TableMetadata| log.folded_in(now) >= upto;
            if let Some(table) = self.swap(&current, next.await?, &files, is_in).await? {
                return Ok(Some(table));
            }
        }
        Err(contended(name))
    }

    /// The table with that id, which another engine may have renamed.
    async fn find(&self, id: Uuid, name: &TableName) -> Result<Option<OfflineTable>> {
        let is_it = |table: &OfflineTable| table.metadata.uuid() == id;
        if let Some(table) = self.load(name).await?.filter(is_it) {
            return Ok(Some(table));
        }
        let mut unreadable = None;
        for (name, location) in self.tables().await? {
            match self.load_at(&name, &location).await {
                Ok(table) if is_it(&table) => return Ok(Some(table)),
                Ok(_) => {}
                Err(error) => unreadable = Some(error),
            }
        }
        unreadable.map_or(Ok(None), Err) // it may be the one
    }
}

/// A file of which no more is known: it is read right, but nothing of it is passed over.
fn data_file(table: &OfflineTable, file: &LoggedFile) -> Result<DataFile> {
    let mut builder = DataFileBuilder::default();
    builder
        .content(DataContentType::Data)
        .file_path(file.path.clone())
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::empty())
        .partition_spec_id(table.metadata.default_partition_spec_id())
        .record_count(file.rows)
        .file_size_in_bytes(file.bytes);
    if let Some(order) = file.sort_order_id {
        builder.sort_order_id(order);
    }
    builder.build().map_err(|e| Error::internal("a file of logged rows is none").with_source(e))
}

impl From<&DataFile> for LoggedFile {
    fn from(file: &DataFile) -> Self {
        Self {
            path: file.file_path().to_owned(),
            bytes: file.file_size_in_bytes(),
            rows: file.record_count(),
            sort_order_id: file.sort_order_id(),
        }
    }
}

/// The pieces but for writes whose key a snapshot has by now: another server took the same write.
fn without_known(pieces: Vec<Arc<Piece>>, table: &OfflineTable) -> Result<Vec<Arc<Piece>>> {
    let writes = pieces.iter().flat_map(|piece| &piece.logged).flat_map(|logged| &logged.writes);
    if writes.into_iter().all(|write| write.key.is_none()) {
        return Ok(pieces);
    }
    let known = table.keys_written();
    let is_known = |write: &LoggedWrite| write.key.as_ref().is_some_and(|key| known.contains(key.as_str()));
    let mut kept = Vec::with_capacity(pieces.len());
    for piece in pieces {
        if !piece.logged.iter().any(|logged| logged.writes.iter().any(&is_known)) {
            kept.push(piece);
            continue;
        }
        let left = piece.logged.iter().map(|logged| left_of(logged, &is_known));
        let left: Vec<_> = left.filter_map(Result::transpose).collect::<Result<_>>()?;
        if !left.is_empty() {
            kept.push(Piece::new(left));
        }
    }
    Ok(kept)
}

/// The rows but for those of known writes.
fn left_of(logged: &Arc<Logged>, is_known: &impl Fn(&LoggedWrite) -> bool) -> Result<Option<Arc<Logged>>> {
    let (mut at, mut rows, mut writes) = (0, Vec::new(), Vec::new());
    for write in &logged.writes {
        if !is_known(write) {
            rows.push(logged.rows.slice(at, write.rows));
            writes.push(write.clone());
        }
        at += write.rows;
    }
    if writes.is_empty() {
        return Ok(None);
    }
    let rows = datafusion::arrow::compute::concat_batches(&logged.rows.schema(), &rows)?;
    Ok(Some(Arc::new(Logged { rows, writes, ..logged.as_ref().clone() })))
}

/// The latest `_ingested_at` of the rows.
fn latest_us(pieces: &[Arc<Piece>]) -> i64 {
    let logged = pieces.iter().flat_map(|piece| &piece.logged);
    logged.map(|logged| logged.ingested_at_us).max().unwrap_or(0)
}

/// What the snapshot's summary says of the writes.
fn summary(pieces: &[Arc<Piece>], latest_us: i64, current: &OfflineTable) -> Result<HashMap<String, String>> {
    let committed = current.snapshot_property(INGESTED_AT).and_then(|known| known.parse().ok());
    let latest_us = committed.map_or(latest_us, |committed: i64| committed.max(latest_us));
    let mut summary = HashMap::from([(INGESTED_AT.to_owned(), latest_us.to_string())]);
    let keyed = pieces.iter().flat_map(|piece| &piece.logged).flat_map(|logged| &logged.writes);
    let keyed = keyed.filter_map(|write| Some((write.key.as_ref()?.as_str(), write.rows)));
    let keys: HashMap<&str, usize> = keyed.collect();
    if !keys.is_empty() {
        let json = serde_json::to_string(&keys);
        let json = json.map_err(|e| Error::internal("idempotency keys are no JSON").with_source(e))?;
        summary.insert(IDEMPOTENCY_KEYS.to_owned(), json);
    }
    Ok(summary)
}
