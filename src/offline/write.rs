//! Record batches to Parquet data files with Iceberg statistics. Nothing is visible before a commit names the files.

mod chunk;
mod format;
mod sorted;

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryPool;
use futures::TryStreamExt;
use iceberg::arrow::{FieldMatchMode, schema_to_arrow_schema};
use iceberg::io::FileIO;
use iceberg::spec::{DataFile, DataFileFormat, TableMetadata};
use iceberg::writer::file_writer::ParquetWriterBuilder;
use iceberg::writer::file_writer::location_generator::{DefaultFileNameGenerator, DefaultLocationGenerator};
use iceberg::writer::file_writer::rolling_writer::RollingFileWriterBuilder;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::order::TableOrder;
use crate::error::{Error, Result};
use chunk::Chunk;
use format::{data_file, properties};
use sorted::{Encoded, write_sorted};

const FILE_BYTES_TARGET: usize = 256 * 1024 * 1024;

/// Of fewer rows, and of fewer bytes, are files that are worth merging: sorted ones by both, others by bytes.
pub(super) const SMALL_FILE_ROWS: usize = sorted::FILE_ROWS_MIN;
/// See [`SMALL_FILE_ROWS`].
pub(super) const SMALL_FILE_BYTES: u64 = 32 * 1024 * 1024;

/// Files that are written and not yet committed, all under one directory of their own.
#[derive(Debug)]
pub(super) struct WrittenFiles {
    directory: String,
    pub(super) files: Vec<DataFile>,
    pub(super) rows: u64,
}

impl WrittenFiles {
    /// Removes files that will never be committed. Failure leaves orphans, which harm nobody but the disk.
    pub(super) async fn discard(&self, io: &FileIO) {
        discard(io, &self.directory).await;
    }
}

/// Writes all of `batches`, whose schema is the table's as SQL sees it: sorted where the table has an order, else as
/// they come. `memory` is asked for what is sorted at a time. Where it fails, or its caller drops it, nothing remains.
pub(super) async fn write_files(
    io: &FileIO,
    metadata: &TableMetadata,
    batches: SendableRecordBatchStream,
    memory: &Arc<dyn MemoryPool>,
) -> Result<WrittenFiles> {
    write_files_under(io, metadata, metadata.current_schema(), batches, memory).await
}

/// As [`write_files`], of rows under another of the table's schemas than the current one.
pub(super) async fn write_files_under(
    io: &FileIO,
    metadata: &TableMetadata,
    schema: &iceberg::spec::SchemaRef,
    batches: SendableRecordBatchStream,
    memory: &Arc<dyn MemoryPool>,
) -> Result<WrittenFiles> {
    let target = Arc::new(Target::new(io, metadata, schema)?);
    let mut unfinished = Unfinished::new(&target);
    let written = match target.order {
        Some(_) => write_sorted(Arc::clone(&target), batches, memory, &mut unfinished.tasks).await,
        None => write_as_they_come(&target, batches).await,
    };
    unfinished.is_over = true;
    let directory = target.directory.clone();
    match written {
        Ok((files, rows)) => Ok(WrittenFiles { directory, files, rows }),
        Err(error) => {
            discard(io, &directory).await;
            Err(error)
        }
    }
}

/// The tasks of a write that is not over, and where their files are. Dropped, it has the tasks stopped, then the files
/// removed.
struct Unfinished {
    io: FileIO,
    directory: String,
    tasks: JoinSet<Encoded>,
    runtime: Handle,
    is_over: bool,
}

impl Unfinished {
    fn new(target: &Target) -> Self {
        let (io, directory) = (target.io.clone(), target.directory.clone());
        Self { io, directory, tasks: JoinSet::new(), runtime: Handle::current(), is_over: false }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut tasks = std::mem::take(&mut self.tasks);
        let (io, directory) = (self.io.clone(), self.directory.clone());
        self.runtime.spawn(async move {
            tasks.shutdown().await;
            discard(&io, &directory).await;
        });
    }
}

async fn discard(io: &FileIO, directory: &str) {
    if let Err(error) = io.delete_prefix(format!("{directory}/")).await {
        tracing::warn!(directory, %error, "uncommitted data files were not removed");
    }
}

/// Where files go, and how they are written.
struct Target {
    io: FileIO,
    directory: String,
    schema: SchemaRef,
    table_schema: iceberg::spec::SchemaRef,
    partition_spec_id: i32,
    order: Option<TableOrder>,
}

impl Target {
    fn new(io: &FileIO, metadata: &TableMetadata, table_schema: &iceberg::spec::SchemaRef) -> Result<Self> {
        if !metadata.default_partition_spec().is_unpartitioned() {
            return Err(Error::unsupported(
                "another engine has partitioned the table, which is read here but not written: write with that engine",
            ));
        }
        let schema: SchemaRef = Arc::new(schema_to_arrow_schema(table_schema).map_err(failed)?);
        let order = TableOrder::of(metadata, table_schema, &schema);
        Ok(Self {
            io: io.clone(),
            directory: format!("{}/data/{}", metadata.location(), Uuid::now_v7()),
            schema,
            table_schema: Arc::clone(table_schema),
            partition_spec_id: metadata.default_partition_spec_id(),
            order,
        })
    }

    /// What writes a file that begins with these rows.
    fn parquet(&self, sample: Option<&RecordBatch>) -> ParquetWriterBuilder {
        let properties = properties(&self.schema, self.order.as_ref(), sample);
        ParquetWriterBuilder::new_with_match_mode(
            properties,
            Arc::clone(&self.table_schema),
            FieldMatchMode::Name,
        )
    }

    /// Re-labels a batch with the table's own Arrow types (field ids, `+00:00` for UTC): values do not change.
    fn conform(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let columns: Result<Vec<_>, _> = batch
            .columns()
            .iter()
            .zip(self.schema.fields())
            .map(|(column, field)| cast(column, field.data_type()))
            .collect();
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns?)?)
    }

    /// Conformed batches as a chunk to be sorted.
    fn chunk(&self, batches: Vec<RecordBatch>) -> Result<Chunk> {
        let order = self.order.as_ref();
        let columns = order.iter().flat_map(|order| &order.columns);
        let columns = columns.map(|name| self.schema.index_of(name)).collect::<Result<Vec<_>, _>>()?;
        let time = order.and_then(|order| order.time).map(|at| columns[at]);
        Ok(Chunk::new(batches, columns, time))
    }
}

async fn write_as_they_come(
    target: &Target,
    mut batches: SendableRecordBatchStream,
) -> Result<(Vec<DataFile>, u64)> {
    let locations = DefaultLocationGenerator::with_data_location(target.directory.clone());
    let names = DefaultFileNameGenerator::new("part".to_owned(), None, DataFileFormat::Parquet);
    let (parquet, io) = (target.parquet(None), target.io.clone());
    let mut writer = RollingFileWriterBuilder::new(parquet, FILE_BYTES_TARGET, io, locations, names).build();
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        if batch.num_rows() > 0 {
            rows += batch.num_rows() as u64;
            writer.write(&None, &target.conform(&batch)?).await.map_err(failed)?;
        }
    }
    let files = writer.close().await.map_err(failed)?.into_iter();
    let files = files.map(|file| data_file(file, target.partition_spec_id, None)).collect::<Result<_>>()?;
    Ok((files, rows))
}

fn failed(error: iceberg::Error) -> Error {
    Error::unavailable("cannot write data files to the warehouse").with_source(error)
}

#[cfg(test)]
mod tests;
