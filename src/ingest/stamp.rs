//! When the store learnt a row: `_ingested_at` of each write, `_sequence` of each row in it.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;
use parking_lot::Mutex;
use uuid::Uuid;

use crate::clock::Clock;
use crate::error::Result;

/// Hands out `_ingested_at`, strictly increasing within a group even where the clock is not.
#[derive(Debug)]
pub(super) struct Stamps {
    clock: Arc<dyn Clock>,
    last_us: Mutex<HashMap<Uuid, i64>>,
}

impl Stamps {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, last_us: Mutex::default() }
    }

    /// From now on they are later than this one, which an earlier process may have handed out.
    pub(super) fn at_least(&self, group: Uuid, latest_us: Option<i64>) {
        let Some(latest_us) = latest_us else { return };
        let mut last_us = self.last_us.lock();
        let last = last_us.entry(group).or_insert(latest_us);
        *last = latest_us.max(*last);
    }

    /// `committed` is the property of the newest snapshot, which another process may have written.
    pub(super) fn next(&self, group: Uuid, committed: Option<&str>) -> i64 {
        self.next_of(group, committed, 1)
    }

    /// As many that follow one another; returns the first.
    pub(super) fn next_of(&self, group: Uuid, committed: Option<&str>, count: usize) -> i64 {
        let committed = committed.and_then(|text| text.parse().ok()).unwrap_or(i64::MIN);
        let mut last_us = self.last_us.lock();
        let last = last_us.get(&group).copied().unwrap_or(i64::MIN).max(committed);
        let next = self.clock.now_us().max(last.saturating_add(1));
        last_us.insert(group, next.saturating_add(count.max(1) as i64 - 1));
        next
    }
}

/// Adds the system columns behind the declared ones.
pub(super) fn stamped(
    rows: SendableRecordBatchStream,
    history: SchemaRef,
    ingested_at_us: i64,
) -> SendableRecordBatchStream {
    let schema = Arc::clone(&history);
    let mut sequence = 0_i64;
    let batches = rows.map(move |batch| Ok(stamp(&batch?, &history, ingested_at_us, &mut sequence)?));
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

pub(super) fn stamp(
    batch: &RecordBatch,
    history: &SchemaRef,
    ingested_at_us: i64,
    sequence: &mut i64,
) -> Result<RecordBatch> {
    let rows = batch.num_rows();
    let first = *sequence;
    *sequence += rows as i64;
    let ingested_at = TimestampMicrosecondArray::from_value(ingested_at_us, rows).with_timezone("UTC");
    let sequences = Int64Array::from_iter_values(first..*sequence);
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    columns.extend([Arc::new(ingested_at) as ArrayRef, Arc::new(sequences)]);
    Ok(RecordBatch::try_new(Arc::clone(history), columns)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_clock_that_goes_back_does_not_take_stamps_with_it() {
        let clock = Arc::new(ManualClock::new(100));
        let stamps = Stamps::new(Arc::clone(&clock) as Arc<dyn Clock>);
        let group = Uuid::nil();
        assert_eq!(stamps.next(group, None), 100);
        assert_eq!(stamps.next(group, None), 101);
        clock.set(50);
        assert_eq!(stamps.next(group, None), 102);
        assert_eq!(stamps.next(group, Some("500")), 501);
        assert_eq!(stamps.next(Uuid::max(), Some("not a number")), 50);
    }
}
