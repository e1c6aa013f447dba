//! One range of labels: search, choose, gather, put out.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatch, RecordBatchOptions, UInt32Array,
};
use datafusion::arrow::compute::{and, filter, take};
use datafusion::arrow::datatypes::{SchemaRef, UInt32Type};
use datafusion::common::Result;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};

use super::gather::Gather;
use super::keys::Keys;
use super::labels::Range;
use super::lookup::Lookup;
use super::search::{Choice, Sought};
use super::source::{Pass, Source};

/// A column of a range.
#[derive(Debug)]
pub(super) enum Column {
    /// One value per row.
    InOrder(ArrayRef),
    /// Values, and for each row the index of its own.
    ByIndex(ArrayRef, Arc<UInt32Array>),
}

/// A range whose rows are gathered, to be put out in batches.
#[derive(Debug)]
pub(super) struct Joined {
    rows: usize,
    /// Label columns and, behind them, the outputs of each right side.
    columns: Vec<Column>,
    next: usize,
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
        gathered.extend(gather.columns(&choices, rows.len() + range.unusable.len()).await?);
    }
    let mut rows = range.rows.len() + range.unusable.len();
    let mut columns = {
        let _timer = source.metrics.output_time.timer();
        pass.labels.columns(&source.label_columns, &range, labels)?
    };
    columns.extend(gathered);
    if let Some(keep) = keep {
        rows = keep.true_count();
        columns = columns.into_iter().map(|column| column.filtered(&keep)).collect::<Result<_>>()?;
    }
    Ok(Joined { columns, rows, next: 0, reservation })
}

impl Column {
    fn filtered(self, keep: &BooleanArray) -> Result<Self> {
        Ok(match self {
            Column::InOrder(values) => Column::InOrder(filter(&values, keep)?),
            Column::ByIndex(values, index) => {
                let index = filter(index.as_ref(), keep)?;
                Column::ByIndex(values, Arc::new(index.as_primitive::<UInt32Type>().clone()))
            }
        })
    }
}

impl Joined {
    /// The next batch of at most `rows` rows, or `None` at the end. `order` says which of the columns comes where.
    pub(super) fn next(
        &mut self,
        schema: &SchemaRef,
        order: &[usize],
        rows: usize,
    ) -> Result<Option<RecordBatch>> {
        let (start, length) = (self.next, rows.min(self.rows - self.next));
        if length == 0 {
            self.reservation.free();
            return Ok(None);
        }
        self.next += length;
        let columns = order.iter().map(|column| match &self.columns[*column] {
            Column::InOrder(values) => Ok(values.slice(start, length)),
            Column::ByIndex(values, index) => Ok(take(values, &index.slice(start, length), None)?),
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(length));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?))
    }
}
