//! The label side of one pass: as many labels as fit, sorted by (entity key, time) in ranges.

use std::cell::LazyCell;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, UInt32Array};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::{cast, concat, concat_batches, interleave, take};
use datafusion::arrow::datatypes::{DataType, Int64Type, Schema};
use datafusion::common::{DataFusionError, Result, internal_datafusion_err};
use datafusion::physical_expr::PhysicalExprRef;
use datafusion::physical_expr::expressions::Column;

use super::column::Column as Output;
use super::keys::{Keys, Sorted};
use super::right::Right;

/// Batches of fewer labels are joined.
const BATCH_ROWS_MIN: usize = 4096;
/// How many labels per range are looked at to place the ranges' borders.
const SAMPLES_PER_RANGE: usize = 64;
/// Fewer labels are not worth a thread to split them.
const SHARE_LABELS_MIN: u32 = 256 * 1024;

/// The label columns that the join reads.
#[derive(Debug)]
pub(in crate::exec::asof) struct LabelExprs {
    pub(in crate::exec::asof) keys: Vec<PhysicalExprRef>,
    pub(in crate::exec::asof) key_types: Vec<DataType>,
    pub(in crate::exec::asof) time: PhysicalExprRef,
}

/// The label columns to put out: those that the join sorts by anyway need not be kept twice.
#[derive(Debug)]
pub(super) struct LabelColumns {
    /// For each column where its values come from.
    places: Vec<Place>,
    /// Columns of the left side that are kept as they came.
    kept: Vec<usize>,
    /// Columns of the left side that are known from the sort, and their types.
    known: Vec<(usize, Known, DataType)>,
}

#[derive(Debug, Clone, Copy)]
enum Place {
    /// The next of the kept columns.
    Kept,
    Known(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Key,
    Time,
}

impl LabelColumns {
    /// `columns` of the left side, whose schema is `schema`.
    pub(super) fn new<K: Keys>(columns: &[usize], exprs: &LabelExprs, schema: &Schema) -> Self {
        let (mut kept, mut known) = (Vec::new(), Vec::new());
        let places = { columns.iter() }
            .map(|column| {
                let is = |expr: &PhysicalExprRef| {
                    expr.as_any().downcast_ref::<Column>().is_some_and(|expr| expr.index() == *column)
                };
                let data_type = schema.field(*column).data_type();
                let from = match data_type {
                    DataType::Int64 | DataType::Timestamp(..) if is(&exprs.time) => Some(Known::Time),
                    DataType::Int64 | DataType::Timestamp(..) if K::ARE_INTEGERS && is(&exprs.keys[0]) => {
                        Some(Known::Key)
                    }
                    _ => None,
                };
                match from {
                    Some(from) => {
                        known.push((*column, from, data_type.clone()));
                        Place::Known(known.len() - 1)
                    }
                    None => {
                        kept.push(*column);
                        Place::Kept
                    }
                }
            })
            .collect();
        Self { places, kept, known }
    }
}

/// Labels as they came, with their keys and times at hand.
#[derive(Debug)]
pub(super) struct Labels<K> {
    batches: Vec<RecordBatch>,
    /// Batches that are still to be joined into one.
    small: Vec<RecordBatch>,
    /// First label of each batch.
    starts: Vec<u32>,
    pub(super) keys: K,
    /// In the unit of the label time's type.
    pub(super) times: Vec<i64>,
    /// Labels whose key or time is NULL.
    unusable: Vec<u32>,
    /// What they have in the columns that are known of others, part by part; one part once split.
    of_unusable: Vec<Vec<ArrayRef>>,
    /// For each right side with as-known-at: the latest visible ingestion in µs since 1970, `None` for a NULL bound.
    pub(super) known_us: Vec<Option<Vec<Option<i64>>>>,
    bytes: usize,
}

/// The labels between two (key, time), in the order in which they came; those that match nothing are apart.
#[derive(Debug)]
pub(super) struct Range {
    pub(super) rows: Vec<u32>,
    pub(super) unusable: Vec<u32>,
}

impl<K: Keys> Labels<K> {
    /// None yet, with room for `expected` of them: to grow would touch twice the memory.
    pub(super) fn new(encoder: &K::Encoder, rights: &[Arc<Right>], expected: usize) -> Self {
        Self {
            batches: Vec::new(),
            small: Vec::new(),
            starts: Vec::new(),
            keys: K::empty(encoder, expected),
            times: Vec::with_capacity(expected),
            unusable: Vec::new(),
            of_unusable: Vec::new(),
            known_us: rights.iter().map(|right| right.known_by.as_ref().map(|_| Vec::new())).collect(),
            bytes: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.times.len()
    }

    /// Bytes held, and those that sorting and searching will take.
    pub(super) fn bytes(&self) -> usize {
        let known = self.known_us.iter().flatten().map(|known| known.len() * 16).sum::<usize>();
        self.bytes + self.keys.bytes() + known + self.len() * (size_of::<i64>() + size_of::<u32>())
    }

    pub(super) fn push(
        &mut self,
        batch: &RecordBatch,
        exprs: &LabelExprs,
        encoder: &K::Encoder,
        rights: &[Arc<Right>],
    ) -> Result<()> {
        let (start, rows) = (self.len() as u32, batch.num_rows());
        let evaluate =
            |expr: &PhysicalExprRef| -> Result<ArrayRef> { expr.evaluate(batch)?.into_array(rows) };
        let keys = exprs.keys.iter().map(evaluate).collect::<Result<Vec<_>>>()?;
        let time = evaluate(&exprs.time)?;
        let nulls = keys.iter().fold(NullBuffer::union(time.nulls(), None), |nulls, key| {
            NullBuffer::union(nulls.as_ref(), key.nulls())
        });
        self.keys.append(encoder, &keys)?;
        self.times.extend_from_slice(whole(&time)?.as_primitive::<Int64Type>().values());
        if let Some(nulls) = nulls {
            let unusable = (0..rows).filter(|row| nulls.is_null(*row));
            self.unusable.extend(unusable.map(|row| start + row as u32));
        }
        for (right, known_us) in rights.iter().zip(&mut self.known_us) {
            if let (Some(known_by), Some(known_us)) = (&right.known_by, known_us) {
                let bounds = whole(&evaluate(&known_by.bound)?)?;
                let bounds = bounds.as_primitive::<Int64Type>();
                known_us.extend(bounds.iter().map(|bound| Some(Right::latest_known_us(known_by, bound?))));
            }
        }
        Ok(())
    }

    /// Keeps what is to be put out of the batch that was pushed.
    pub(super) fn keep(&mut self, batch: &RecordBatch, columns: &LabelColumns) -> Result<()> {
        let start = self.len() - batch.num_rows();
        let first = self.unusable.partition_point(|row| (*row as usize) < start);
        if first < self.unusable.len() {
            let rows = self.unusable[first..].iter().map(|row| row - start as u32);
            let rows = UInt32Array::from_iter_values(rows);
            let known =
                columns.known.iter().map(|(column, ..)| Ok(take(batch.column(*column), &rows, None)?));
            self.of_unusable.push(known.collect::<Result<_>>()?);
        }
        let kept = batch.project(&columns.kept)?;
        self.bytes += slice_bytes(&kept);
        self.small.push(kept);
        let rows: usize = self.small.iter().map(RecordBatch::num_rows).sum();
        if rows >= BATCH_ROWS_MIN { self.join_small() } else { Ok(()) }
    }

    /// Every output gathers from every batch, so there should not be many.
    fn join_small(&mut self) -> Result<()> {
        let small = std::mem::take(&mut self.small);
        let Some(first) = small.first() else { return Ok(()) };
        let start = self.starts.last().copied().unwrap_or(0);
        let before = self.batches.last().map_or(0, |batch| batch.num_rows() as u32);
        self.starts.push(start + before);
        self.batches.push(if small.len() == 1 {
            first.clone()
        } else {
            concat_batches(&first.schema(), &small)?
        });
        Ok(())
    }

    /// Splits the labels into about `count` ranges by (key, time); each is still to be sorted. `threads` share the work.
    pub(super) fn split(&mut self, encoder: &K::Encoder, count: usize, threads: usize) -> Result<Vec<Range>> {
        self.join_small()?;
        if let Some(columns) = self.of_unusable.first().map(Vec::len) {
            let one = (0..columns).map(|column| {
                let parts: Vec<&dyn Array> =
                    self.of_unusable.iter().map(|part| part[column].as_ref()).collect();
                Ok(concat(&parts)?)
            });
            self.of_unusable = vec![one.collect::<Result<_>>()?];
        }
        let borders = self.borders(encoder, count.max(1));
        let all = self.len() as u32;
        let share = all.div_ceil(threads.max(1) as u32).max(SHARE_LABELS_MIN);
        let shares: Vec<_> =
            (0..all).step_by(share as usize).map(|first| first..all.min(first + share)).collect();
        let labels = &*self;
        let shares: Vec<Vec<Vec<u32>>> = std::thread::scope(|scope| {
            let split = |rows: &std::ops::Range<u32>| labels.by_range(&borders, rows.clone());
            let begin = |rows| std::thread::Builder::new().spawn_scoped(scope, move || split(rows));
            let others: Vec<_> = shares.iter().skip(1).map(|rows| (rows, begin(rows))).collect();
            let mut done: Vec<_> = shares.first().map(split).into_iter().collect();
            for (rows, other) in others {
                done.push(match other {
                    Ok(other) => {
                        other.join().map_err(|_| internal_datafusion_err!("labels were not split"))?
                    }
                    Err(_) => split(rows), // there is no thread to be had
                });
            }
            Ok::<_, DataFusionError>(done)
        })?;
        let mut ranges: Vec<Range> = (0..=borders.len())
            .map(|range| {
                let rows: Vec<&[u32]> = shares.iter().map(|share| share[range].as_slice()).collect();
                Range { rows: rows.concat(), unusable: Vec::new() }
            })
            .collect();
        for (index, row) in self.unusable.iter().enumerate() {
            let index = index % ranges.len();
            ranges[index].unusable.push(*row);
        }
        ranges.retain(|range| !range.rows.is_empty() || !range.unusable.is_empty());
        Ok(ranges)
    }

    /// Labels between which lie about as many others, in their order: one less than `count`.
    fn borders(&self, encoder: &K::Encoder, count: usize) -> Vec<u32> {
        let (all, usable) = (self.len() as u32, self.len() - self.unusable.len());
        let stride = (usable / (count * SAMPLES_PER_RANGE)).max(1);
        let is_usable = |row: &u32| self.unusable.binary_search(row).is_err();
        let sample: Vec<u32> = (0..all).step_by(stride).filter(is_usable).collect();
        let sorted = self.keys.sorted(encoder, &self.times, &sample).order;
        (1..count)
            .filter_map(|range| sorted.get(range * sorted.len() / count))
            .map(|place| sample[*place as usize])
            .collect()
    }

    /// The usable ones of `rows` by the range that they are in.
    fn by_range(&self, borders: &[u32], rows: std::ops::Range<u32>) -> Vec<Vec<u32>> {
        let place = |row: u32| (self.keys.get(row as usize), self.times[row as usize]);
        let borders: Vec<_> = borders.iter().map(|border| place(*border)).collect();
        let count = borders.len() + 1;
        let room = rows.len() / count + rows.len() / (4 * count);
        let mut ranges = vec![Vec::new(); count];
        ranges.iter_mut().for_each(|range| range.reserve(room));
        let first = self.unusable.partition_point(|row| *row < rows.start);
        let mut unusable = self.unusable[first..].iter().peekable();
        for row in rows {
            if unusable.next_if_eq(&&row).is_none() {
                let at = place(row);
                ranges[borders.partition_point(|border| *border <= at)].push(row);
            }
        }
        ranges
    }

    /// The columns of `range`, whose labels are `sorted`: first the usable ones in that order, then the others.
    pub(super) fn columns(
        &self,
        columns: &LabelColumns,
        range: &Range,
        sorted: Sorted<K>,
    ) -> Result<Vec<Output>> {
        let Sorted { mut order, keys, times } = sorted;
        let (keys, times) = (keys.into_integers(), Arc::new(Int64Array::from(times)) as ArrayRef);
        let unusable = &range.unusable;
        let places = self.places(&range.rows, unusable);
        order.extend(range.rows.len() as u32..places.len() as u32);
        let kept = self.kept_columns(&places, order)?;
        let as_it_is = Arc::new(UInt32Array::from_iter_values(0..places.len() as u32));
        let tail = unusable.iter().map(|row| self.unusable.partition_point(|other| other < row) as u32);
        let tail = UInt32Array::from_iter_values(tail);
        let known = columns.known.iter().enumerate().map(|(index, (_, known, data_type))| {
            let values = match known {
                Known::Time => Some(&times),
                Known::Key => keys.as_ref(),
            };
            let values = values.ok_or_else(|| internal_datafusion_err!("the keys were lost"))?;
            let values = cast(values, data_type)?;
            if tail.is_empty() {
                return Ok(values);
            }
            Ok(concat(&[&values, &take(&self.of_unusable[0][index], &tail, None)?])?)
        });
        let known = known.collect::<Result<Vec<ArrayRef>>>()?;
        let mut kept = kept.into_iter();
        let column = |place: &Place| match place {
            Place::Kept => kept.next().ok_or_else(|| internal_datafusion_err!("a label column was lost")),
            Place::Known(index) => Ok(Output::ByIndex(Arc::clone(&known[*index]), Arc::clone(&as_it_is))),
        };
        columns.places.iter().map(column).collect()
    }

    /// Batch and row in it of `rows`, which ascend, and behind them of `others`.
    fn places(&self, rows: &[u32], others: &[u32]) -> Vec<(usize, usize)> {
        let mut batch = 0;
        let mut places = Vec::with_capacity(rows.len() + others.len());
        for row in rows {
            while self.starts.get(batch + 1).is_some_and(|next| next <= row) {
                batch += 1;
            }
            places.push((batch, (row - self.starts[batch]) as usize));
        }
        places.extend(others.iter().map(|row| {
            let batch = self.starts.partition_point(|start| start <= row) - 1;
            (batch, (row - self.starts[batch]) as usize)
        }));
        places
    }

    /// The kept columns at `places`, in that order's `order`. Those of fixed width are copied together first, in the
    /// order in which they lie; others, which may be large, only batch by batch.
    fn kept_columns(&self, places: &[(usize, usize)], order: Vec<u32>) -> Result<Vec<Output>> {
        let columns = self.batches.first().map_or(0, RecordBatch::num_columns);
        let order = Arc::new(UInt32Array::from(order));
        let in_order = || order.values().iter().map(|place| places[*place as usize]).collect();
        let scattered: LazyCell<Arc<[(usize, usize)]>, _> = LazyCell::new(in_order);
        let column = |column: usize| {
            let arrays = self.batches.iter().map(|batch| Arc::clone(batch.column(column)));
            let arrays: Vec<ArrayRef> = arrays.collect();
            let data_type = arrays[0].data_type();
            if data_type.primitive_width().is_none() && *data_type != DataType::Boolean {
                return Ok(Output::Scattered(arrays, Arc::clone(&scattered)));
            }
            let arrays: Vec<&dyn Array> = arrays.iter().map(|array| array.as_ref()).collect();
            Ok(Output::ByIndex(interleave(&arrays, places)?, Arc::clone(&order)))
        };
        (0..columns).map(column).collect()
    }
}

/// Bytes of a batch's own rows: batches may be slices that share their buffers.
pub(super) fn slice_bytes(batch: &RecordBatch) -> usize {
    let bytes = |column: &ArrayRef| {
        column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
    };
    batch.columns().iter().map(bytes).sum()
}

/// Times and integers as the whole numbers that they are stored as.
fn whole(array: &ArrayRef) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        DataType::Int64 => ArrayRef::clone(array),
        _ => cast(array, &DataType::Int64)?,
    })
}
