//! One partition of an ASOF join: reads both sides, drives the merge, puts out batches.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt64Array};
use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::compute::{BatchCoalescer, SortOptions, take_record_batch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::row::{RowConverter, SortField};
use datafusion::common::{JoinType, Result};
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::physical_expr::PhysicalExprRef;
use datafusion::physical_plan::SendableRecordBatchStream;
use datafusion::physical_plan::metrics::{BaselineMetrics, Count, RecordOutput};
use futures::StreamExt;

use super::exec::Params;
use super::gather::Gather;
use super::merge::{Knowledge, Merge, Place, Side, Step};
use super::ordinal::ordinals;

/// Metrics of one partition.
pub(super) struct Metrics {
    pub(super) baseline: BaselineMetrics,
    /// Left rows that found a right row.
    pub(super) matched: Count,
}

/// Everything one partition needs.
pub(super) struct Run {
    params: Arc<Params>,
    schema: SchemaRef,
    left: SendableRecordBatchStream,
    right: SendableRecordBatchStream,
    batch_size: usize,
    converter: Option<RowConverter>,
    merge: Merge,
    gather: Gather,
    left_rest: Option<RecordBatch>,
    right_side: Option<Side>,
    right_batch: u64,
    right_ended: bool,
    picks: Vec<Option<Place>>,
    matched_rows: Vec<u64>,
    left_row: u64,
    coalescer: Option<BatchCoalescer>,
    metrics: Metrics,
    reservation: MemoryReservation,
}

impl Run {
    pub(super) fn try_new(
        params: Arc<Params>,
        schema: SchemaRef,
        left: SendableRecordBatchStream,
        right: SendableRecordBatchStream,
        batch_size: usize,
        metrics: Metrics,
        reservation: MemoryReservation,
    ) -> Result<Self> {
        let mut fields = Vec::new();
        for (key, _) in &params.on {
            let options = SortOptions { descending: false, nulls_first: true };
            fields.push(SortField::new_with_options(key.data_type(&left.schema())?, options));
        }
        let converter = if fields.is_empty() { None } else { Some(RowConverter::new(fields)?) };
        let absent: Vec<ArrayRef> =
            params.absent.iter().map(|value| value.to_array()).collect::<Result<_>>()?;
        let coalescer = (params.join_type == JoinType::Inner)
            .then(|| BatchCoalescer::new(Arc::clone(&schema), batch_size));
        Ok(Self {
            merge: Merge::new(params.rules),
            gather: Gather::new(absent),
            params,
            schema,
            left,
            right,
            batch_size,
            converter,
            left_rest: None,
            right_side: None,
            right_batch: 0,
            right_ended: false,
            picks: Vec::new(),
            matched_rows: Vec::new(),
            left_row: 0,
            coalescer,
            metrics,
            reservation,
        })
    }

    /// The next output batch, or `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.coalescer.as_mut().and_then(BatchCoalescer::next_completed_batch) {
                return Ok(Some(batch.record_output(&self.metrics.baseline)));
            }
            let Some(left) = self.next_left().await? else {
                return self.finish();
            };
            let right = self.join(&left).await?;
            let elapsed = self.metrics.baseline.elapsed_compute().clone();
            let _timer = elapsed.timer();
            if let Some(batch) = self.assemble(left, right)? {
                return Ok(Some(batch.record_output(&self.metrics.baseline)));
            }
        }
    }

    fn finish(&mut self) -> Result<Option<RecordBatch>> {
        let Some(coalescer) = self.coalescer.as_mut() else {
            return Ok(None);
        };
        coalescer.finish_buffered_batch()?;
        Ok(coalescer.next_completed_batch().map(|batch| batch.record_output(&self.metrics.baseline)))
    }

    /// The next left rows, at most a batch of them and at least one.
    async fn next_left(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let batch = match self.left_rest.take() {
                Some(rest) => rest,
                None => match self.left.next().await.transpose()? {
                    Some(batch) => batch,
                    None => return Ok(None),
                },
            };
            if batch.num_rows() > self.batch_size {
                self.left_rest = Some(batch.slice(self.batch_size, batch.num_rows() - self.batch_size));
                return Ok(Some(batch.slice(0, self.batch_size)));
            }
            if batch.num_rows() > 0 {
                return Ok(Some(batch));
            }
        }
    }

    /// Picks a right row for each row of `batch` and gathers the right columns.
    async fn join(&mut self, batch: &RecordBatch) -> Result<Vec<ArrayRef>> {
        let left = self.left_side(batch)?;
        self.left_row = 0;
        self.matched_rows.clear();
        loop {
            if self.right_side.is_none() && !self.right_ended {
                self.fetch_right().await?;
            }
            let elapsed = self.metrics.baseline.elapsed_compute().clone();
            let _timer = elapsed.timer();
            let right = self.right_side.as_ref().map(|side| (self.right_batch, side));
            let step = self.merge.step(&left, right, &mut self.picks);
            if step == Step::LeftDone {
                self.collect()?;
                return self.gather.finish();
            }
            self.right_side = None;
            if self.gather.is_full() {
                self.collect()?;
            }
        }
    }

    /// Takes in the next right batch that has rows, or notes the end of the right side.
    async fn fetch_right(&mut self) -> Result<()> {
        while let Some(batch) = self.right.next().await.transpose()? {
            if batch.num_rows() == 0 {
                continue;
            }
            let elapsed = self.metrics.baseline.elapsed_compute().clone();
            let _timer = elapsed.timer();
            self.right_batch += 1;
            let columns = self.params.right_output.iter().map(|&i| Arc::clone(batch.column(i))).collect();
            self.gather.retain(self.right_batch, columns)?;
            self.reservation.try_resize(self.gather.bytes())?;
            self.right_side = Some(self.right_side(&batch)?);
            return Ok(());
        }
        self.right_ended = true;
        Ok(())
    }

    /// Copies out what was picked, then lets go of batches that can no longer be picked from.
    fn collect(&mut self) -> Result<()> {
        self.metrics.matched.add(self.picks.iter().flatten().count());
        if self.params.join_type == JoinType::Inner {
            for pick in &self.picks {
                if pick.is_some() {
                    self.matched_rows.push(self.left_row);
                }
                self.left_row += 1;
            }
            self.picks.retain(Option::is_some);
        }
        self.gather.collect(&self.picks)?;
        self.picks.clear();
        let in_hand = if self.right_side.is_some() { self.right_batch } else { self.right_batch + 1 };
        self.gather.release(self.merge.oldest_batch().map_or(in_hand, |oldest| oldest.min(in_hand)));
        self.reservation.try_resize(self.gather.bytes())?;
        Ok(())
    }

    fn assemble(&mut self, left: RecordBatch, right: Vec<ArrayRef>) -> Result<Option<RecordBatch>> {
        let left = match self.params.join_type {
            JoinType::Inner => take_record_batch(&left, &UInt64Array::from(self.matched_rows.clone()))?,
            _ => left,
        };
        let options = RecordBatchOptions::new().with_row_count(Some(left.num_rows()));
        let mut columns = left.columns().to_vec();
        columns.extend(right);
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        match self.coalescer.as_mut() {
            Some(coalescer) => {
                coalescer.push_batch(batch)?;
                Ok(None)
            }
            None => Ok(Some(batch)),
        }
    }

    fn left_side(&self, batch: &RecordBatch) -> Result<Side> {
        let keys: Vec<&PhysicalExprRef> = self.params.on.iter().map(|(left, _)| left).collect();
        let known = self.params.known_at.as_ref();
        let mut side = self.side(batch, &keys, &self.params.left_time, known.map(|known| &known.bound))?;
        if known.is_some_and(|known| known.strict) {
            side.marks.iter_mut().for_each(|mark| *mark -= 1);
        }
        Ok(side)
    }

    fn right_side(&self, batch: &RecordBatch) -> Result<Side> {
        let keys: Vec<&PhysicalExprRef> = self.params.on.iter().map(|(_, right)| right).collect();
        let known = self.params.known_at.as_ref();
        self.side(batch, &keys, &self.params.right_time, known.map(|known| &known.column))
    }

    fn side(
        &self,
        batch: &RecordBatch,
        keys: &[&PhysicalExprRef],
        time: &PhysicalExprRef,
        mark: Option<&PhysicalExprRef>,
    ) -> Result<Side> {
        let rows = batch.num_rows();
        let mut usable: Option<NullBuffer> = None;
        let mut evaluate = |expr: &PhysicalExprRef| -> Result<ArrayRef> {
            let array = expr.evaluate(batch)?.into_array(rows)?;
            usable = NullBuffer::union(usable.as_ref(), array.logical_nulls().as_ref());
            Ok(array)
        };
        let mut key_columns = Vec::with_capacity(keys.len());
        for key in keys {
            key_columns.push(evaluate(key)?);
        }
        let mut times = ordinals(&evaluate(time)?)?;
        if !self.params.backward {
            times.iter_mut().for_each(|time| *time = -*time);
        }
        let marks = match mark {
            Some(mark) if self.params.rules.knowledge != Knowledge::Ignored => ordinals(&evaluate(mark)?)?,
            _ => Vec::new(),
        };
        let keys = match &self.converter {
            Some(converter) => Some(converter.convert_columns(&key_columns)?),
            None => None,
        };
        Ok(Side { keys, usable, times, marks })
    }
}
