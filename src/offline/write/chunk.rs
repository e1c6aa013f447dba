//! A chunk of rows in memory: which file each row goes to, and in which order it stands there. Pure, and in slices.

use std::collections::BTreeMap;

use chrono::{DateTime, Datelike};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::compute::{cast, interleave};
use datafusion::arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use datafusion::arrow::row::{RowConverter, SortField};

use crate::error::{Error, Result};

const DAY_US: i64 = 86_400_000_000;

/// Rows in the order they arrived, numbered from 0.
#[derive(Debug)]
pub(super) struct Chunk {
    batches: Vec<RecordBatch>,
    /// The number of each batch's first row, then the number of rows.
    starts: Vec<usize>,
    /// Columns to sort by.
    order: Vec<usize>,
    /// The column (timestamp in µs) by which rows go into files.
    time: Option<usize>,
}

impl Chunk {
    pub(super) fn new(batches: Vec<RecordBatch>, order: Vec<usize>, time: Option<usize>) -> Self {
        let mut rows = 0;
        let ends = batches.iter().map(|batch| {
            rows += batch.num_rows();
            rows
        });
        let starts = std::iter::once(0).chain(ends).collect();
        Self { batches, starts, order, time }
    }

    pub(super) fn rows(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The rows of each file, in the order they arrived: one file per UTC day of event time, or per month, or just
    /// one, whichever is the first that leaves files of `file_rows_min` on average.
    pub(super) fn files(&self, file_rows_min: usize) -> Result<Vec<Vec<u32>>> {
        let rows = u32::try_from(self.rows())
            .map_err(|e| Error::exhausted("a batch has too many rows: send smaller ones").with_source(e))?;
        let by = |bucket| self.time.and_then(|time| self.split(time, bucket, self.rows() / file_rows_min));
        Ok(by(day).or_else(|| by(month)).unwrap_or_else(|| vec![(0..rows).collect()]))
    }

    /// Rows by the bucket of their time, if there are not too many. A NULL time is earlier than all.
    fn split(&self, time: usize, bucket: fn(i64) -> i64, buckets_max: usize) -> Option<Vec<Vec<u32>>> {
        let mut buckets: BTreeMap<i64, Vec<u32>> = BTreeMap::new();
        let mut row = 0;
        for batch in &self.batches {
            for time in batch.column(time).as_primitive_opt::<TimestampMicrosecondType>()? {
                buckets.entry(time.map_or(i64::MIN, bucket)).or_default().push(row);
                row += 1;
            }
            if buckets.len() > buckets_max {
                return None;
            }
        }
        Some(buckets.into_values().collect())
    }

    /// `rows`, which are in the order they arrived, in the chunk's order; equal rows stay as they are.
    pub(super) fn sorted(&self, rows: Vec<u32>) -> Result<Vec<u32>> {
        let at = self.positions(&rows);
        let mut columns = Vec::with_capacity(self.order.len());
        for &column in &self.order {
            columns.push(Values::new(self.gather(column, &at)?)?);
        }
        drop(at);
        let places = sorted_places(&columns, rows.len())?;
        Ok(places.into_iter().map(|place| rows[place as usize]).collect())
    }

    /// These rows as one batch.
    pub(super) fn take(&self, rows: &[u32]) -> Result<RecordBatch> {
        let at = self.positions(rows);
        let schema = self.batches[0].schema();
        let columns = (0..schema.fields().len()).map(|column| self.gather(column, &at));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        Ok(RecordBatch::try_new(schema, columns)?)
    }

    fn gather(&self, column: usize, at: &[(usize, usize)]) -> Result<ArrayRef> {
        let arrays: Vec<&dyn Array> = self.batches.iter().map(|b| b.column(column).as_ref()).collect();
        Ok(interleave(&arrays, at)?)
    }

    /// Batch and row within it of each row.
    fn positions(&self, rows: &[u32]) -> Vec<(usize, usize)> {
        let position = |&row: &u32| {
            let row = row as usize;
            let batch = self.starts.partition_point(|&start| start <= row) - 1;
            (batch, row - self.starts[batch])
        };
        rows.iter().map(position).collect()
    }
}

fn day(time_us: i64) -> i64 {
    time_us.div_euclid(DAY_US)
}

fn month(time_us: i64) -> i64 {
    DateTime::from_timestamp_micros(time_us)
        .map_or(i64::MAX, |t| i64::from(t.year()) * 12 + i64::from(t.month0()))
}

/// A column to compare by: numbers where they sort as it does.
enum Values {
    Numbers(ArrayRef),
    Other(ArrayRef),
}

impl Values {
    fn new(array: ArrayRef) -> Result<Self> {
        use DataType::{Boolean, Date32, Int32, Int64, Time64, Timestamp};
        Ok(match array.data_type() {
            Boolean | Int32 | Int64 | Date32 | Time64(_) | Timestamp(_, _) if array.null_count() == 0 => {
                Self::Numbers(cast(&array, &DataType::Int64)?)
            }
            _ => Self::Other(array),
        })
    }

    fn numbers(&self) -> Option<&[i64]> {
        match self {
            Self::Numbers(array) => Some(array.as_primitive::<Int64Type>().values()),
            Self::Other(_) => None,
        }
    }

    fn array(&self) -> &ArrayRef {
        match self {
            Self::Numbers(array) | Self::Other(array) => array,
        }
    }
}

/// The places `0..rows`, sorted by `columns`, then by themselves. Columns behind which rows are in order as they
/// arrived need no look, because a place says the same: `_ingested_at` and `_sequence` always, and the event time
/// where rows come in its order.
fn sorted_places(columns: &[Values], rows: usize) -> Result<Vec<u32>> {
    let numbers: Vec<Option<&[i64]>> = columns.iter().map(Values::numbers).collect();
    let in_order = |from: &usize| match numbers[*from..].iter().copied().collect::<Option<Vec<_>>>() {
        Some(rest) => is_sorted(&rest, rows),
        None => false,
    };
    let compared = (0..=columns.len()).find(in_order).unwrap_or(columns.len());
    let keys = numbers[..compared].iter().copied().collect::<Option<Vec<&[i64]>>>();
    Ok(match keys.as_deref() {
        Some([]) => (0..rows as u32).collect(),
        Some([a]) => by_numbers([a], rows),
        Some([a, b]) => by_numbers([a, b], rows),
        Some([a, b, c]) => by_numbers([a, b, c], rows),
        _ => by_rows(&columns[..compared], rows)?,
    })
}

fn is_sorted(columns: &[&[i64]], rows: usize) -> bool {
    let row = |at: usize| columns.iter().map(move |column| column[at]);
    (1..rows).all(|at| row(at - 1).le(row(at)))
}

/// Keys beside each other in memory: this is what makes the sort fast.
fn by_numbers<const N: usize>(columns: [&[i64]; N], rows: usize) -> Vec<u32> {
    let mut keyed: Vec<([i64; N], u32)> =
        (0..rows).map(|at| (columns.map(|column| column[at]), at as u32)).collect();
    keyed.sort_unstable();
    keyed.into_iter().map(|(_, at)| at).collect()
}

fn by_rows(columns: &[Values], rows: usize) -> Result<Vec<u32>> {
    let fields = columns.iter().map(|c| SortField::new(c.array().data_type().clone())).collect();
    let arrays: Vec<ArrayRef> = columns.iter().map(|c| c.array().clone()).collect();
    let keys = RowConverter::new(fields)?.convert_columns(&arrays)?;
    let mut places: Vec<u32> = (0..rows as u32).collect();
    places.sort_unstable_by(|&a, &b| keys.row(a as usize).cmp(&keys.row(b as usize)).then(a.cmp(&b)));
    Ok(places)
}

#[cfg(test)]
mod tests;
