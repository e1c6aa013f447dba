//! Rows to sorted files: gathered in memory by the chunk, split by time, sorted, and encoded side by side.
//!
//! ```text
//!            chunk, bounded in bytes         one task per file, as many at a time as there are cores
//! rows ──▶ [ batch batch batch … ] ──┬─▶ day 1: sort by (key, time, …) ─▶ take a slice, encode it ─▶ part-00000
//!                                    ├─▶ day 2: sort                   ─▶ take a slice, encode it ─▶ part-00001
//!                                    └─▶ …
//! ```
//! While one chunk is encoded the next is gathered, and begins to be encoded as soon as there is a core without work; no
//! more than that. Every row is in one file with all rows of
//! its day (or month, or chunk, where days are small), so a file's bounds on event time say what a partition would,
//! and no reader has to know a partition spec. Files of one table overlap in everything but time; each is sorted
//! for itself.

use std::sync::Arc;

use datafusion::arrow::array::{Array, RecordBatch};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryPool, MemoryReservation};
use futures::TryStreamExt;
use iceberg::spec::DataFile;
use iceberg::writer::file_writer::{FileWriter, FileWriterBuilder};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::chunk::Chunk;
use super::format::data_file;
use super::{Target, failed};
use crate::error::{Error, Result};

/// Bytes of rows that are sorted at a time.
const CHUNK_BYTES_MAX: usize = 256 * 1024 * 1024;
/// What sorting a row takes beside the row: its sort columns, gathered, and its number, three times over.
const SORT_BYTES_PER_ROW: usize = 64;
/// Files of fewer rows cost more to open than what their tighter times save.
pub(super) const FILE_ROWS_MIN: usize = 250_000;
/// Rows that are taken out of a chunk at a time: more would hold rows twice, fewer cost more per row.
const SLICE_ROWS: usize = 16 * 1024;

/// A file that is written, and of which chunk.
pub(super) type Encoded = Result<(usize, DataFile)>;

/// Writes all of `batches` in the target's order, by `tasks`. When it returns they are over; where it fails, files are
/// left.
pub(super) async fn write_sorted(
    target: Arc<Target>,
    mut batches: SendableRecordBatchStream,
    memory: &Arc<dyn MemoryPool>,
    tasks: &mut JoinSet<Encoded>,
) -> Result<(Vec<DataFile>, u64)> {
    let mut encoders = Encoders::new(target, tasks);
    let written = encoders.write(&mut batches, memory).await;
    encoders.running.shutdown().await;
    let rows = written?;
    encoders.files.sort_by(|a, b| a.file_path().cmp(b.file_path()));
    Ok((encoders.files, rows))
}

/// Rows on their way into a chunk, and the memory they have been granted.
struct Gathered {
    batches: Vec<RecordBatch>,
    granted: MemoryReservation,
    /// Of a consumer of its own, for every other chunk: pools grant to each consumer apart, and two chunks are held.
    other: MemoryReservation,
}

impl Gathered {
    fn new(memory: &Arc<dyn MemoryPool>) -> Self {
        let register = || MemoryConsumer::new("sorted write").with_can_spill(true).register(memory);
        Self { batches: Vec::new(), granted: register(), other: register() }
    }

    fn take(&mut self) -> (Vec<RecordBatch>, MemoryReservation) {
        let granted = self.granted.take();
        std::mem::swap(&mut self.granted, &mut self.other);
        (std::mem::take(&mut self.batches), granted)
    }
}

/// The tasks that write the files of a chunk, and of the one before, and the files that are written.
struct Encoders<'a> {
    target: Arc<Target>,
    slots: Arc<Semaphore>,
    running: &'a mut JoinSet<Encoded>,
    started: usize,
    /// The last chunk, and how many of its files are not written yet.
    chunk: usize,
    of_chunk: usize,
    files: Vec<DataFile>,
}

impl<'a> Encoders<'a> {
    fn new(target: Arc<Target>, running: &'a mut JoinSet<Encoded>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let slots = Arc::new(Semaphore::new(cores));
        Self { target, slots, running, started: 0, chunk: 0, of_chunk: 0, files: Vec::new() }
    }

    async fn write(
        &mut self,
        batches: &mut SendableRecordBatchStream,
        memory: &Arc<dyn MemoryPool>,
    ) -> Result<u64> {
        let mut gathered = Gathered::new(memory);
        let mut rows = 0;
        while let Some(batch) = batches.try_next().await? {
            if batch.num_rows() == 0 {
                continue;
            }
            rows += batch.num_rows() as u64;
            let batch = self.target.conform(&batch)?;
            self.make_room(&mut gathered, footprint(&batch)?).await?;
            gathered.batches.push(batch);
        }
        self.encode(gathered.take()).await?;
        self.finish().await?;
        Ok(rows)
    }

    /// Grants `bytes` more to what is gathered. Where there is no room, first lets the chunk before be written to the
    /// end, then what is gathered so far.
    async fn make_room(&mut self, gathered: &mut Gathered, bytes: usize) -> Result<()> {
        let full = gathered.granted.size() + bytes > CHUNK_BYTES_MAX;
        if full && !gathered.batches.is_empty() {
            self.encode(gathered.take()).await?;
        }
        if gathered.granted.try_grow(bytes).is_ok() {
            return Ok(());
        }
        self.finish().await?;
        if gathered.granted.try_grow(bytes).is_ok() {
            return Ok(());
        }
        self.encode(gathered.take()).await?;
        self.finish().await?;
        Ok(gathered.granted.try_grow(bytes)?)
    }

    /// Starts writing what is gathered, and returns once the chunk before is written.
    async fn encode(&mut self, (batches, granted): (Vec<RecordBatch>, MemoryReservation)) -> Result<()> {
        if batches.is_empty() {
            return Ok(());
        }
        let chunk = self.target.chunk(batches)?;
        let files = chunk.files(FILE_ROWS_MIN)?;
        let shared = Arc::new((chunk, granted));
        self.chunk += 1;
        self.of_chunk = files.len();
        let number_of_chunk = self.chunk;
        for rows in files {
            let (target, shared, slots) =
                (Arc::clone(&self.target), Arc::clone(&shared), Arc::clone(&self.slots));
            let number = self.started;
            self.started += 1;
            self.running.spawn(async move {
                let _slot = slots.acquire_owned().await;
                Ok((number_of_chunk, write_file(&target, shared, rows, number).await?))
            });
        }
        drop(shared);
        while self.running.len() > self.of_chunk {
            self.finish_one().await?;
        }
        Ok(())
    }

    /// Waits for all files.
    async fn finish(&mut self) -> Result<()> {
        while !self.running.is_empty() {
            self.finish_one().await?;
        }
        Ok(())
    }

    async fn finish_one(&mut self) -> Result<()> {
        if let Some(file) = self.running.join_next().await {
            let (chunk, file) = file.map_err(stopped)??;
            self.of_chunk -= usize::from(chunk == self.chunk);
            self.files.push(file);
        }
        Ok(())
    }
}

/// What a batch takes while it is in a chunk.
fn footprint(batch: &RecordBatch) -> Result<usize> {
    let mut bytes = batch.num_rows() * SORT_BYTES_PER_ROW;
    for column in batch.columns() {
        bytes += column.to_data().get_slice_memory_size()?;
    }
    Ok(bytes)
}

/// Writes `rows` of the chunk as one file; the chunk's memory is given back with the last of its files.
async fn write_file(
    target: &Target,
    chunk: Arc<(Chunk, MemoryReservation)>,
    rows: Vec<u32>,
    number: usize,
) -> Result<DataFile> {
    let sorting = Arc::clone(&chunk);
    let rows = tokio::task::spawn_blocking(move || sorting.0.sorted(rows)).await.map_err(stopped)??;
    let output = target.io.new_output(format!("{}/part-{number:05}.parquet", target.directory));
    let (first, others) = rows.split_at(rows.len().min(SLICE_ROWS));
    let first = chunk.0.take(first)?;
    let mut writer = target.parquet(Some(&first)).build(output.map_err(failed)?).await.map_err(failed)?;
    writer.write(&first).await.map_err(failed)?;
    drop(first);
    for slice in others.chunks(SLICE_ROWS) {
        writer.write(&chunk.0.take(slice)?).await.map_err(failed)?;
        tokio::task::yield_now().await;
    }
    let file = writer.close().await.map_err(failed)?.pop();
    let file = file.ok_or_else(|| Error::internal("a data file was written without rows"))?;
    data_file(file, target.partition_spec_id, target.order.as_ref())
}

fn stopped(error: tokio::task::JoinError) -> Error {
    Error::internal("writing a data file did not finish").with_source(error)
}
