//! Many small files in the place of which come few sorted ones, with the same rows.
//!
//! 1. [`OfflineStore::layout`] chooses: files that are small, and files that are not in the table's order.
//! 2. Their rows are read in the order of event time, and written as any rows are: split by day or month, sorted.
//! 3. [`OfflineStore::rewrite`] commits a snapshot of operation `replace`. What others add meanwhile stays as it is;
//!    where they take away a file that was read, nothing is changed.
//!
//! Whoever reads an older snapshot goes on reading the old files, which only [`OfflineStore::vacuum`] deletes.

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryPool;
use iceberg::spec::DataFile;

use super::scan::IcebergTable;
use super::snapshot::Change;
use super::store::OfflineStore;
use super::table::OfflineTable;
use super::write::{SMALL_FILE_BYTES, SMALL_FILE_ROWS, write_files};
use crate::error::{Error, Result};

/// Which files are written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Small ones and unsorted ones.
    Needed,
    /// All.
    Full,
}

/// The files of a table, and those of them that are to be written anew.
#[derive(Debug)]
pub(crate) struct Layout {
    files: Vec<DataFile>,
    chosen: Vec<DataFile>,
    /// Whether it is all the same how many files there are then.
    is_due: bool,
}

/// What became of the files of a table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Optimized {
    pub(crate) files_before: u64,
    pub(crate) files_after: u64,
    pub(crate) bytes_before: u64,
    pub(crate) bytes_after: u64,
    /// Rows of the files that were written anew.
    pub(crate) rows_rewritten: u64,
}

impl Layout {
    fn new(table: &OfflineTable, files: Vec<DataFile>, extent: Extent) -> Self {
        let is_ordered = !table.sort_columns().is_empty();
        let unsorted = |file: &DataFile| is_ordered && !table.is_sorted(file);
        let small = |file: &DataFile| {
            let few = !is_ordered || file.record_count() < SMALL_FILE_ROWS as u64;
            few && file.file_size_in_bytes() < SMALL_FILE_BYTES
        };
        let is_chosen = |file: &&DataFile| extent == Extent::Full || unsorted(file) || small(file);
        let mut chosen: Vec<DataFile> = files.iter().filter(is_chosen).cloned().collect();
        let is_due = extent == Extent::Full || chosen.iter().any(unsorted);
        if !is_due && chosen.len() < 2 {
            chosen.clear(); // one alone stays one
        }
        Self { files, chosen, is_due }
    }

    /// Whether nothing is to be done.
    pub(crate) fn is_good(&self) -> bool {
        self.chosen.is_empty()
    }

    /// How many files are to be written anew.
    pub(crate) fn chosen(&self) -> usize {
        self.chosen.len()
    }

    /// The rows of the chosen files of `table`, whose layout this is.
    pub(crate) fn rows(&self, store: &Arc<OfflineStore>, table: &OfflineTable) -> IcebergTable {
        IcebergTable::of_files(Arc::clone(store), table.clone(), self.chosen.clone())
    }

    /// What it is when nothing is done.
    pub(crate) fn unchanged(&self) -> Optimized {
        let (files, bytes) = (self.files.len() as u64, bytes(&self.files));
        Optimized {
            files_before: files,
            files_after: files,
            bytes_before: bytes,
            bytes_after: bytes,
            rows_rewritten: 0,
        }
    }
}

fn bytes(files: &[DataFile]) -> u64 {
    files.iter().map(DataFile::file_size_in_bytes).sum()
}

impl OfflineTable {
    /// The columns in whose order rows are to be rewritten, so that files are far apart where readers look for that: the
    /// event time; all that files are sorted by where there is none; none for rows that come as they are.
    pub(crate) fn rewrite_order(&self) -> &[String] {
        match self.time_column() {
            Some(time) => std::slice::from_ref(time),
            None => self.sort_columns(),
        }
    }
}

impl OfflineStore {
    /// How the files of `table` lie.
    pub(crate) async fn layout(&self, table: &OfflineTable, extent: Extent) -> Result<Layout> {
        Ok(Layout::new(table, self.data_files(table, None).await?, extent))
    }

    /// Puts files of `rows`, which are those of the chosen files of `layout`, in their place, and returns the table as it
    /// is then. `memory` is asked for what is sorted at a time.
    ///
    /// # Errors
    /// `Conflict` where one of the files is not there any more, or the table stays contended. Nothing is changed then.
    pub(crate) async fn rewrite(
        &self,
        table: &OfflineTable,
        layout: &Layout,
        rows: SendableRecordBatchStream,
        memory: &Arc<dyn MemoryPool>,
    ) -> Result<(OfflineTable, Optimized)> {
        let written = write_files(&self.io, &table.metadata, rows, memory).await?;
        let expected: u64 = layout.chosen.iter().map(DataFile::record_count).sum();
        if written.rows != expected {
            written.discard(&self.io).await;
            return Err(Error::corrupt(format!(
                "files of table '{}' hold {} rows where its manifests count {expected}: nothing was changed",
                table.name, written.rows
            )));
        }
        let unchanged = layout.unchanged();
        if written.files.len() >= layout.chosen.len() && !layout.is_due {
            written.discard(&self.io).await;
            return Ok((table.clone(), unchanged));
        }
        let optimized = Optimized {
            files_after: unchanged.files_before - layout.chosen.len() as u64 + written.files.len() as u64,
            bytes_after: unchanged.bytes_before - bytes(&layout.chosen) + bytes(&written.files),
            rows_rewritten: written.rows,
            ..unchanged
        };
        let replaced = layout.chosen.iter().map(|file| file.file_path().to_owned()).collect();
        let (table, _) = self.commit(table, &written, &Change::Replace(replaced)).await?;
        Ok((table, optimized))
    }
}
