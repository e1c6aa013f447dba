//! Rows of data files by number: only the pages that hold them are fetched, and only their values decoded.
//!
//! ```text
//! file     row group 0                 row group 1
//!          page 0 | page 1 | page 2    page 0 | page 1
//! rows     0        20000    40000     60000    80000        (from the offset index)
//! ```
//!
//! [`RowFile::fetch`] brings the pages of some columns and rows into memory, [`RowFile::scan`] decodes all of those rows
//! with Parquet's own reader, and [`RowFile::take`] the values at single rows: where values lie in fixed slots (plain
//! values, dictionary indices) what lies between costs nothing, elsewhere Parquet's reader skips to them.

mod fetched;
mod file;
mod page;
mod runs;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub(crate) use fetched::{Buffers, Fetched};
pub(crate) use file::RowFile;

/// Rows that never decrease, as ranges.
pub(crate) fn ranges_of(rows: &[u32]) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for &row in rows {
        match ranges.last_mut() {
            Some(last) if row < last.end => {}
            Some(last) if row == last.end => last.end += 1,
            _ => ranges.push(row..row + 1),
        }
    }
    ranges
}

/// The values at `positions` (ascending) of runs of `width` bits, for benchmarks outside the crate.
///
/// # Errors
/// `Corrupt` where the runs end before the last position.
pub fn packed_values_at(runs: &[u8], width: u8, positions: &[u32]) -> crate::error::Result<Vec<u32>> {
    let mut values = Vec::with_capacity(positions.len());
    runs::Runs::new(runs, width)?.values_at(positions, &mut values)?;
    Ok(values)
}
