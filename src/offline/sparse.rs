//! A scan of which a filter keeps few rows, which lie anywhere: the filter's columns are decoded from end to end, and the
//! others' values are picked out of their slots.
//!
//! ```text
//! filter's columns   ▇▇▇▇▇▇▇▇▇▇▇▇▇▇   decoded, filtered
//! others             ·▇···▇▇·····▇·   the rows that are left
//! ```
//!
//! Values without slots of their own (packed keys and times) are decoded like the filter's.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, RecordBatch, RecordBatchOptions, UInt32Array, new_null_array,
};
use datafusion::arrow::compute::{cast, concat, filter, prep_null_mask_filter, take};
use datafusion::arrow::datatypes::{DataType, Schema as ArrowSchema, SchemaRef};
use datafusion::common::stats::Precision;
use datafusion::common::{DataFusionError, Result, Statistics};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::utils::{collect_columns, reassign_expr_columns};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
};
use futures::stream::{self, Stream, StreamExt, TryStreamExt};

use super::rows::{Buffers, RowFile, ranges_of};
use crate::error::Error;

/// Of so many rows about one is kept, as whoever plans such a scan expects.
const ROWS_PER_KEPT: usize = 20;
/// Rows that are filtered at a time.
const UNIT_ROWS_MAX: u32 = 64 * 1024;

/// A data file, and where the columns of the table are in it.
#[derive(Debug)]
pub(super) struct SparseFile {
    pub(super) rows: RowFile,
    pub(super) columns: Vec<Option<usize>>,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct SparseScanExec {
    reader: Arc<Reader>,
    /// For each partition the files and rows that it reads.
    units: Vec<Vec<(usize, Range<u32>)>>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
    /// How many rows the filter keeps, about.
    rows_kept: usize,
}

#[derive(Debug)]
struct Reader {
    files: Vec<SparseFile>,
    /// The table's columns.
    table: SchemaRef,
    /// Columns of the table that are decoded from end to end, and the filter over them.
    dense: Vec<usize>,
    predicate: Arc<dyn PhysicalExpr>,
    /// Columns of the table that are put out.
    projection: Vec<usize>,
    schema: SchemaRef,
    buffers: Buffers,
}

impl SparseScanExec {
    /// `predicate` is over `table`, `projection` of its columns are put out. `None` where a column without a fixed width
    /// would have to be decoded from end to end.
    pub(super) fn try_new(
        files: Vec<SparseFile>,
        table: SchemaRef,
        predicate: Arc<dyn PhysicalExpr>,
        projection: Vec<usize>,
        partitions: usize,
        metrics: ExecutionPlanMetricsSet,
    ) -> Result<Option<Self>> {
        let has_slots = |column: usize| {
            files.iter().all(|file| file.columns[column].is_none_or(|column| file.rows.has_slots(column)))
        };
        let filtered = collect_columns(&predicate).into_iter().map(|column| column.index());
        let packed = projection.iter().copied().filter(|column| !has_slots(*column));
        let mut dense: Vec<usize> = filtered.chain(packed).collect();
        dense.sort_unstable();
        dense.dedup();
        let is_fixed = |column: &usize| {
            let data_type = table.field(*column).data_type();
            data_type.primitive_width().is_some() || *data_type == DataType::Boolean
        };
        if !dense.iter().all(is_fixed) {
            return Ok(None);
        }
        let predicate = reassign_expr_columns(predicate, &table.project(&dense)?)?;
        let schema = Arc::new(table.project(&projection)?);
        let all: Vec<(usize, Range<u32>)> = { files.iter().enumerate() }
            .flat_map(|(index, file)| {
                file.rows.units(UNIT_ROWS_MAX).into_iter().map(move |rows| (index, rows))
            })
            .collect();
        let rows: usize = all.iter().map(|(_, rows)| rows.len()).sum();
        let partitions = partitions.min(all.len()).max(1);
        let mut units = vec![Vec::new(); partitions];
        all.into_iter().enumerate().for_each(|(index, unit)| units[index % partitions].push(unit));
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(partitions),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let buffers = Buffers::default();
        let reader = Arc::new(Reader { files, table, dense, predicate, projection, schema, buffers });
        Ok(Some(Self {
            reader,
            units,
            properties: Arc::new(properties),
            metrics,
            rows_kept: rows / ROWS_PER_KEPT,
        }))
    }
}

impl Reader {
    /// Where the columns in `of_table` are in a file: each once, in the file's order.
    fn columns_in(&self, file: &SparseFile, of_table: impl Iterator<Item = usize>) -> Vec<usize> {
        let mut columns: Vec<usize> = of_table.filter_map(|column| file.columns[column]).collect();
        columns.sort_unstable();
        columns.dedup();
        columns
    }

    /// Rows of a file whose dense columns are decoded, in batches of at most `batch_rows`.
    fn batches(
        self: Arc<Self>,
        file: usize,
        dense: Vec<ArrayRef>,
        chosen: Vec<u32>,
        batch_rows: usize,
        bytes: Count,
    ) -> impl Stream<Item = Result<RecordBatch>> {
        let starts = (0..chosen.len()).step_by(batch_rows);
        let shared = Arc::new((dense, chosen));
        stream::iter(starts).then(move |start| {
            let (reader, shared, bytes) = (Arc::clone(&self), Arc::clone(&shared), bytes.clone());
            async move {
                let (dense, chosen) = &*shared;
                let end = chosen.len().min(start + batch_rows);
                reader.batch(file, dense, start, &chosen[start..end], &bytes).await
            }
        })
    }

    /// The rows `chosen`, whose values in the dense columns begin at `start`.
    async fn batch(
        &self,
        file: usize,
        dense: &[ArrayRef],
        start: usize,
        chosen: &[u32],
        bytes: &Count,
    ) -> Result<RecordBatch> {
        let file = &self.files[file];
        let others = self.projection.iter().copied().filter(|column| !self.dense.contains(column));
        let others = self.columns_in(file, others);
        let fetched = file.rows.fetch(&others, &ranges_of(chosen), &self.buffers).await?;
        bytes.add(fetched.bytes());
        // Copied: a slice would hold on to all of them.
        let places = UInt32Array::from_iter_values(start as u32..(start + chosen.len()) as u32);
        let column = |column: &usize| -> Result<ArrayRef> {
            match self.dense.binary_search(column) {
                Ok(place) => Ok(take(&dense[place], &places, None)?),
                Err(_) => {
                    let data_type = self.table.field(*column).data_type();
                    Ok(file.rows.take(&fetched, file.columns[*column], chosen, data_type)?)
                }
            }
        };
        let columns = self.projection.iter().map(column).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(chosen.len()));
        Ok(RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?)
    }

    /// The dense columns at the rows that the filter keeps, and those rows' numbers.
    async fn filtered(
        &self,
        file: usize,
        rows: Range<u32>,
        bytes: &Count,
    ) -> Result<(Vec<ArrayRef>, Vec<u32>)> {
        let file = &self.files[file];
        let columns = self.columns_in(file, self.dense.iter().copied());
        let ranges = [rows.clone()];
        let fetched = file.rows.fetch(&columns, &ranges, &self.buffers).await?;
        bytes.add(fetched.bytes());
        let schema = Arc::new(self.table.project(&self.dense)?);
        let mut parts: Vec<Vec<ArrayRef>> = vec![Vec::new(); self.dense.len()];
        let (mut chosen, mut start) = (Vec::new(), rows.start);
        let mut filter_batch = |decoded: Option<RecordBatch>, length: usize| -> Result<()> {
            let batch = self.dense_batch(file, &schema, &columns, decoded, length)?;
            let keep = self.predicate.evaluate(&batch)?.into_array(length)?;
            let keep = match keep.as_boolean() {
                keep if keep.null_count() > 0 => prep_null_mask_filter(keep),
                keep => keep.clone(),
            };
            chosen.extend(keep.values().set_indices_u32().map(|row| start + row));
            start += length as u32;
            for (parts, column) in parts.iter_mut().zip(batch.columns()) {
                parts.push(filter(column, &keep)?);
            }
            Ok(())
        };
        if columns.is_empty() {
            filter_batch(None, rows.len())?;
        } else {
            for batch in file.rows.scan(&fetched, &columns, &ranges, rows.len())? {
                let batch = batch.map_err(Error::from)?;
                let length = batch.num_rows();
                filter_batch(Some(batch), length)?;
            }
        }
        let dense = parts.into_iter().map(|parts| {
            let parts: Vec<&dyn Array> = parts.iter().map(|part| part.as_ref()).collect();
            Ok(concat(&parts)?)
        });
        Ok((dense.collect::<Result<Vec<_>>>()?, chosen))
    }

    /// What a file's columns hold as those of the table; NULLs where it lacks one.
    fn dense_batch(
        &self,
        file: &SparseFile,
        schema: &Arc<ArrowSchema>,
        columns: &[usize],
        decoded: Option<RecordBatch>,
        length: usize,
    ) -> Result<RecordBatch> {
        let column = |column: &usize| -> Result<ArrayRef> {
            let data_type = self.table.field(*column).data_type();
            let place = file.columns[*column].and_then(|column| columns.binary_search(&column).ok());
            match (&decoded, place) {
                (Some(decoded), Some(place)) => Ok(cast(decoded.column(place), data_type)?),
                _ => Ok(new_null_array(data_type, length)),
            }
        };
        let columns = self.dense.iter().map(column).collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(length));
        Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?)
    }
}

impl DisplayAs for SparseScanExec {
    fn fmt_as(&self, t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = |columns: &[usize]| {
            let names = columns.iter().map(|column| self.reader.table.field(*column).name().as_str());
            names.collect::<Vec<_>>().join(", ")
        };
        if matches!(t, DisplayFormatType::Default | DisplayFormatType::Verbose) {
            write!(f, "SparseScanExec: ")?;
        }
        let (all, dense) = (columns(&self.reader.projection), columns(&self.reader.dense));
        let (files, predicate) = (self.reader.files.len(), &self.reader.predicate);
        write!(f, "files={files}, columns=[{all}], decoded whole=[{dense}], predicate={predicate}")
    }
}

impl ExecutionPlan for SparseScanExec {
    fn name(&self) -> &'static str {
        "SparseScanExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        Vec::new()
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let bytes = MetricBuilder::new(&self.metrics).counter("bytes_scanned", partition);
        let searched = MetricBuilder::new(&self.metrics).counter("rows_searched", partition);
        let batch_rows = context.session_config().batch_size().max(1);
        let (reader, units) = (Arc::clone(&self.reader), self.units[partition].clone());
        let batches = stream::iter(units)
            .then(move |(file, rows)| {
                let (reader, bytes) = (Arc::clone(&reader), bytes.clone());
                searched.add(rows.len());
                async move {
                    let (dense, chosen) = reader.filtered(file, rows, &bytes).await?;
                    Ok::<_, DataFusionError>(reader.batches(file, dense, chosen, batch_rows, bytes))
                }
            })
            .try_flatten()
            .inspect_ok(move |batch: &RecordBatch| baseline.record_output(batch.num_rows()));
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.reader.schema), batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Statistics> {
        let mut statistics = Statistics::new_unknown(&self.reader.schema);
        if partition.is_none() {
            statistics.num_rows = Precision::Inexact(self.rows_kept);
        }
        Ok(statistics)
    }
}
