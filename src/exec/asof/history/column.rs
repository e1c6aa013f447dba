//! Label columns of a range, put out batch by batch.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, UInt32Array};
use datafusion::arrow::compute::{interleave, take};
use datafusion::arrow::datatypes::UInt32Type;
use datafusion::common::Result;

/// A column of a range's rows, while it is put out.
#[derive(Debug)]
pub(super) enum Column {
    /// Values, and for each row the index of its own.
    ByIndex(ArrayRef, Arc<UInt32Array>),
    /// Values in many arrays, and for each row the array and the index in it.
    Scattered(Vec<ArrayRef>, Arc<[(usize, usize)]>),
}

impl Column {
    /// The values of a batch, which has the rows `range`. They share no memory with those of other batches:
    /// whoever keeps a few rows keeps no more than them.
    pub(super) fn batch(&self, range: Range<usize>) -> Result<ArrayRef> {
        Ok(match self {
            Column::ByIndex(values, index) => take(values, &index.slice(range.start, range.len()), None)?,
            Column::Scattered(arrays, places) => {
                let arrays: Vec<&dyn Array> = arrays.iter().map(|array| array.as_ref()).collect();
                interleave(&arrays, &places[range])?
            }
        })
    }

    /// The rows at `kept` alone.
    pub(super) fn filtered(self, kept: &Arc<UInt32Array>) -> Result<Self> {
        Ok(match self {
            Column::ByIndex(values, index) => {
                let index = take(index.as_ref(), kept.as_ref(), None)?;
                Column::ByIndex(values, Arc::new(index.as_primitive::<UInt32Type>().clone()))
            }
            Column::Scattered(arrays, places) => {
                let places = kept.values().iter().map(|row| places[*row as usize]).collect();
                Column::Scattered(arrays, places)
            }
        })
    }
}
