//! The right rows that may still be output, and their gathering into columns.

use std::collections::VecDeque;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::compute::{concat, interleave};
use datafusion::common::{Result, internal_datafusion_err};

use super::merge::Place;

/// Batches retained before their picked rows are copied out, so that few left rows spread over a long right side
/// do not hold all of it.
const RETAINED_BATCHES_MAX: usize = 16;

struct Retained {
    batch: u64,
    columns: Vec<ArrayRef>,
    bytes: usize,
}

/// Output columns of the right side.
pub(super) struct Gather {
    /// One row per column: what an unmatched left row gets.
    absent: Vec<ArrayRef>,
    retained: VecDeque<Retained>,
    /// Columns of picks gathered so far for the left batch in hand.
    gathered: Vec<Vec<ArrayRef>>,
    bytes: usize,
}

impl Gather {
    pub(super) fn new(absent: Vec<ArrayRef>) -> Self {
        Self { absent, retained: VecDeque::new(), gathered: Vec::new(), bytes: 0 }
    }

    /// Bytes of the retained batches.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Retains the output columns of a right batch; batches come in ascending order.
    pub(super) fn retain(&mut self, batch: u64, columns: Vec<ArrayRef>) -> Result<()> {
        let mut bytes = 0;
        for column in &columns {
            bytes += column.to_data().get_slice_memory_size()?;
        }
        self.bytes += bytes;
        self.retained.push_back(Retained { batch, columns, bytes });
        Ok(())
    }

    pub(super) fn is_full(&self) -> bool {
        self.retained.len() > RETAINED_BATCHES_MAX
    }

    /// Drops the batches below `oldest`.
    pub(super) fn release(&mut self, oldest: u64) {
        while self.retained.front().is_some_and(|retained| retained.batch < oldest) {
            if let Some(retained) = self.retained.pop_front() {
                self.bytes -= retained.bytes;
            }
        }
    }

    /// Copies the picked rows out of the retained batches.
    pub(super) fn collect(&mut self, picks: &[Option<Place>]) -> Result<()> {
        if picks.is_empty() {
            return Ok(());
        }
        let first = self.retained.front().map_or(0, |retained| retained.batch);
        let mut indices = Vec::with_capacity(picks.len());
        for pick in picks {
            indices.push(match pick {
                None => (0, 0),
                Some(place) => (self.slot(first, place.batch)?, place.row),
            });
        }
        let mut columns = Vec::with_capacity(self.absent.len());
        for (column, absent) in self.absent.iter().enumerate() {
            let mut sources: Vec<&dyn Array> = Vec::with_capacity(self.retained.len() + 1);
            sources.push(absent.as_ref());
            sources.extend(self.retained.iter().map(|retained| retained.columns[column].as_ref()));
            columns.push(interleave(&sources, &indices)?);
        }
        self.gathered.push(columns);
        Ok(())
    }

    /// Position of a batch among the sources of [`Self::collect`]; 0 is the absent row.
    fn slot(&self, first: u64, batch: u64) -> Result<usize> {
        batch
            .checked_sub(first)
            .and_then(|offset| usize::try_from(offset).ok())
            .filter(|offset| *offset < self.retained.len())
            .map(|offset| offset + 1)
            .ok_or_else(|| internal_datafusion_err!("an ASOF join picked a row of a released batch"))
    }

    /// Everything collected for the left batch in hand.
    pub(super) fn finish(&mut self) -> Result<Vec<ArrayRef>> {
        let mut chunks = std::mem::take(&mut self.gathered);
        match chunks.len() {
            0 => return Ok(self.absent.iter().map(|absent| absent.slice(0, 0)).collect()),
            1 => return Ok(chunks.remove(0)),
            _ => {}
        }
        (0..self.absent.len())
            .map(|column| {
                let parts: Vec<&dyn Array> = chunks.iter().map(|chunk| chunk[column].as_ref()).collect();
                Ok(concat(&parts)?)
            })
            .collect()
    }
}
