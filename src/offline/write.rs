//! Record batches to Parquet data files with Iceberg statistics. Nothing is visible before a commit names the files.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;
use iceberg::arrow::{FieldMatchMode, schema_to_arrow_schema};
use iceberg::io::FileIO;
use iceberg::spec::{DataContentType, DataFile, DataFileFormat, Struct, TableMetadata};
use iceberg::writer::file_writer::ParquetWriterBuilder;
use iceberg::writer::file_writer::location_generator::{DefaultFileNameGenerator, DefaultLocationGenerator};
use iceberg::writer::file_writer::rolling_writer::{RollingFileWriter, RollingFileWriterBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use uuid::Uuid;

use crate::error::{Error, Result};

const FILE_BYTES_TARGET: usize = 256 * 1024 * 1024;
const ROW_GROUP_ROWS_MAX: usize = 256 * 1024;
const PAGE_ROWS_MAX: usize = 20_000;

type Writer = RollingFileWriter<ParquetWriterBuilder, DefaultLocationGenerator, DefaultFileNameGenerator>;

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

/// Writes all of `batches`, whose schema is the table's as SQL sees it. On an error nothing remains; a caller that
/// drops the call leaves files that no snapshot names.
pub(super) async fn write_files(
    io: &FileIO,
    metadata: &TableMetadata,
    batches: SendableRecordBatchStream,
) -> Result<WrittenFiles> {
    let directory = format!("{}/data/{}", metadata.location(), Uuid::now_v7());
    match write_into(io, metadata, &directory, batches).await {
        Ok((files, rows)) => Ok(WrittenFiles { directory, files, rows }),
        Err(error) => {
            discard(io, &directory).await;
            Err(error)
        }
    }
}

async fn discard(io: &FileIO, directory: &str) {
    if let Err(error) = io.delete_prefix(format!("{directory}/")).await {
        tracing::warn!(directory, %error, "uncommitted data files were not removed");
    }
}

async fn write_into(
    io: &FileIO,
    metadata: &TableMetadata,
    directory: &str,
    mut batches: SendableRecordBatchStream,
) -> Result<(Vec<DataFile>, u64)> {
    let file_schema: SchemaRef = Arc::new(schema_to_arrow_schema(metadata.current_schema()).map_err(failed)?);
    let mut writer = writer(io, metadata, directory);
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        if batch.num_rows() > 0 {
            rows += batch.num_rows() as u64;
            writer.write(&None, &conform(&batch, &file_schema)?).await.map_err(failed)?;
        }
    }
    let spec = metadata.default_partition_spec_id();
    let files = writer
        .close()
        .await
        .map_err(failed)?
        .into_iter()
        .map(|mut file| {
            file.content(DataContentType::Data).partition(Struct::empty()).partition_spec_id(spec);
            file.build().map_err(|e| Error::internal("a data file is incomplete").with_source(e))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok((files, rows))
}

fn writer(io: &FileIO, metadata: &TableMetadata, directory: &str) -> Writer {
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        .set_data_page_row_count_limit(PAGE_ROWS_MAX)
        .set_statistics_enabled(EnabledStatistics::Page)
        .build();
    let schema = metadata.current_schema().clone();
    let parquet = ParquetWriterBuilder::new_with_match_mode(properties, schema, FieldMatchMode::Name);
    let locations = DefaultLocationGenerator::with_data_location(directory.to_owned());
    let names = DefaultFileNameGenerator::new("part".to_owned(), None, DataFileFormat::Parquet);
    RollingFileWriterBuilder::new(parquet, FILE_BYTES_TARGET, io.clone(), locations, names).build()
}

/// Re-labels a batch with the table's own Arrow types (field ids, `+00:00` for UTC): values do not change.
fn conform(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns: Result<Vec<_>, _> = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| cast(column, field.data_type()))
        .collect();
    Ok(RecordBatch::try_new(Arc::clone(schema), columns?)?)
}

fn failed(error: iceberg::Error) -> Error {
    Error::unavailable("cannot write data files to the warehouse").with_source(error)
}
