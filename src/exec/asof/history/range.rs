//! One range of labels: search, choose, gather, put out.

use std::sync::Arc;

use datafusion::arrow::array::{BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array};
use datafusion::arrow::compute::and;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};

use super::column::Column;
use super::gather::Gather;
use super::keys::Keys;
use super::labels::Range;
use super::lookup::Lookup;
use super::search::{Choice, Sought};
use super::slots::Slots;
use super::source::{Pass, Source};

/// A range whose rows are gathered, to be put out in batches.
#[derive(Debug)]
pub(super) struct Joined {
    labels: Vec<Column>,
    /// The outputs of each right side.
    gathered: Vec<Slots>,
    /// Of an inner join, which of what was gathered is put out.
    kept: Option<Arc<UInt32Array>>,
    /// The rows that are still to come.
    rows: std::ops::Range<usize>,
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
        let gather = Gather { source, right, files, labels, reservation };
        gathered.push(gather.slots(&choices, rows.len() + range.unusable.len()).await?);
    }
    let mut rows = range.rows.len() + range.unusable.len();
    let mut labels = {
        let _timer = source.metrics.output_time.timer();
        pass.labels.columns(&source.label_columns, &range, labels)?
    };
    let kept = keep.map(|keep| Arc::new(UInt32Array::from_iter_values(keep.values().set_indices_u32())));
    if let Some(kept) = &kept {
        rows = kept.len();
        labels = labels.into_iter().map(|column| column.filtered(kept)).collect::<Result<_>>()?;
    }
    Ok(Joined { labels, gathered, kept, rows: 0..rows, reservation })
}

impl Joined {
    /// The next batch of at most `batch_rows`, or `None` at the end. `order` says which of the columns comes where.
    pub(super) fn next(
        &mut self,
        schema: &SchemaRef,
        order: &[usize],
        batch_rows: usize,
    ) -> Result<Option<RecordBatch>> {
        if self.rows.is_empty() {
            self.reservation.free();
            return Ok(None);
        }
        let rows = self.rows.start..self.rows.end.min(self.rows.start + batch_rows.max(1));
        self.rows.start = rows.end;
        let labels = self.labels.iter().map(|column| column.batch(rows.clone()));
        let mut columns = labels.collect::<Result<Vec<_>>>()?;
        for slots in &self.gathered {
            columns.extend(slots.batch(rows.clone(), self.kept.as_deref())?);
        }
        let columns = order.iter().map(|column| Arc::clone(&columns[*column])).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?))
    }
}
