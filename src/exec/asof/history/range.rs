//! One range of labels: search, choose, gather, put out.

use std::sync::Arc;

use datafusion::arrow::array::{BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use datafusion::arrow::compute::and;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};

use super::column::{BatchRows, Column};
use super::gather::Gather;
use super::keys::Keys;
use super::labels::Range;
use super::lookup::Lookup;
use super::search::{Choice, Sought};
use super::source::{Pass, Source};

/// A range whose rows are gathered, to be put out in batches.
#[derive(Debug)]
pub(super) struct Joined {
    /// Label columns and, behind them, the outputs of each right side.
    columns: Vec<Column>,
    /// The rows of each batch to come.
    batches: std::vec::IntoIter<std::ops::Range<usize>>,
    reservation: MemoryReservation,
}

/// What sorting and looking up a label takes beside its columns.
pub(super) fn label_bytes<K: Keys>() -> usize {
    2 * size_of::<Sought<K::Key<'_>>>() + size_of::<Choice>() + 4 * size_of::<u64>()
}

/// Joins a range with every right side.
pub(super) async fn join<K: Keys>(
    source: &Source<K>,
    pass: &Pass<K>,
    mut range: Range,
    context: &TaskContext,
) -> Result<Joined> {
    let reservation = MemoryConsumer::new("AsofHistoryExec range").register(context.memory_pool());
    reservation.try_grow(range.rows.len() * label_bytes::<K>())?;
    let labels = {
        let _timer = source.metrics.sort_time.timer();
        pass.labels.keys.sorted(&source.encoder, &pass.labels.times, &range.rows)
    };
    if source.rights.iter().any(|right| right.inner) {
        range.unusable.clear();
    }
    let files = source.files(context).await?;
    let batch_rows = BatchRows::at_most(context.session_config().batch_size());
    let mut keep: Option<BooleanArray> = None;
    let mut gathered = Vec::new();
    for (index, (right, files)) in source.rights.iter().zip(files).enumerate() {
        let known_us = pass.labels.known_us[index].as_deref();
        let (reservation, labels, rows) = (&reservation, &labels, &range.rows);
        let choices = Lookup { source, right, files, labels, rows, known_us, reservation }.choose().await?;
        if right.inner {
            let matched: BooleanArray = choices.iter().map(|choice| Some(!choice.is_none())).collect();
            keep = Some(keep.map_or_else(|| Ok(matched.clone()), |keep| and(&keep, &matched))?);
        }
        let gather = Gather { source, right, files, labels, batch_rows, reservation };
        gathered.extend(gather.columns(&choices, rows.len() + range.unusable.len()).await?);
    }
    let mut rows = range.rows.len() + range.unusable.len();
    let mut columns = {
        let _timer = source.metrics.output_time.timer();
        pass.labels.columns(&source.label_columns, &range, labels)?
    };
    columns.extend(gathered);
    if let Some(keep) = keep {
        let kept = Arc::new(UInt32Array::from_iter_values(keep.values().set_indices_u32()));
        rows = kept.len();
        columns = columns.into_iter().map(|column| column.filtered(&kept)).collect::<Result<_>>()?;
    }
    let batches = batch_rows.ranges(rows).collect::<Vec<_>>().into_iter();
    Ok(Joined { columns, batches, reservation })
}

impl Joined {
    /// The next batch, or `None` at the end. `order` says which of the columns comes where.
    pub(super) fn next(&mut self, schema: &SchemaRef, order: &[usize]) -> Result<Option<RecordBatch>> {
        let Some(rows) = self.batches.next() else {
            self.reservation.free();
            return Ok(None);
        };
        let columns = self.columns.iter_mut().map(|column| column.next(rows.clone()));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let columns = order.iter().map(|column| Arc::clone(&columns[*column])).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?))
    }
}
