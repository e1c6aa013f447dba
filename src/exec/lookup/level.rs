//! Look-ups while they run: one, or several over each other whose keys are all known at the start.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::filter;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, RecordOutput,
};
use futures::future::try_join_all;

use super::answer::Answerer;
use super::columns::LatestColumn;
use super::logical::LookupRequest;
use super::lookup_exec::Output;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::model::{EntityKey, encode_keys};
use crate::online::{Entries, OnlineStore};

/// Rows looked up at a time: what one read of the store and one answer hold.
const ROWS_MAX: usize = 8192;

/// The batch in parts that are looked up one after the other.
pub(crate) fn parts(batch: RecordBatch) -> impl Iterator<Item = RecordBatch> + Send {
    let rows = batch.num_rows();
    (0..rows).step_by(ROWS_MAX).map(move |start| batch.slice(start, ROWS_MAX.min(rows - start)))
}

pub(super) struct LookupMetrics {
    baseline: BaselineMetrics,
    cache_hits: Count,
    cache_misses: Count,
    store_reads: Count,
}

impl LookupMetrics {
    pub(super) fn new(metrics: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let counter = |name: &'static str| MetricBuilder::new(metrics).counter(name, partition);
        Self {
            baseline: BaselineMetrics::new(metrics, partition),
            cache_hits: counter("cache_hits"),
            cache_misses: counter("cache_misses"),
            store_reads: counter("store_reads"),
        }
    }
}

/// One look-up of a stack of them.
pub(super) struct Level {
    /// The keys, over the input of the lowest look-up.
    pub(super) keys: Vec<Arc<dyn PhysicalExpr>>,
    pub(super) output: Vec<Output>,
    pub(super) answerer: Answerer,
    pub(super) request: LookupRequest,
    pub(super) store: Arc<dyn OnlineStore>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) schema: SchemaRef,
    pub(super) metrics: LookupMetrics,
}

/// The answers of `levels`, the lowest first, for the rows of `batch`. All of them are read for at once, so that one
/// round trip serves them, however many feature groups there are.
pub(super) async fn look_up(levels: &[Level], batch: RecordBatch, now_us: i64) -> Result<RecordBatch> {
    let mut found = try_join_all(levels.iter().map(|level| level.read(&batch))).await?;
    let mut batch = batch;
    for (i, level) in levels.iter().enumerate() {
        let (answer, kept) = level.answer(&batch, &found[i], now_us)?;
        if let Some(kept) = kept {
            found[i + 1..].iter_mut().try_for_each(|above| above.retain(&kept))?;
        }
        batch = answer;
    }
    Ok(batch)
}

/// What one look-up asked for and got: a key and an entry per row.
struct Read {
    keys: Vec<ArrayRef>,
    entries: Entries,
    read_us: i64,
}

impl Read {
    /// Leaves out the rows that a look-up below leaves out.
    fn retain(&mut self, kept: &BooleanArray) -> Result<()> {
        for key in &mut self.keys {
            *key = filter(key, kept)?;
        }
        self.entries = std::mem::take(&mut self.entries).arranged(kept.values().set_indices().map(Some));
        Ok(())
    }
}

impl Level {
    async fn read(&self, batch: &RecordBatch) -> Result<Read> {
        let evaluate =
            |expr: &Arc<dyn PhysicalExpr>| Ok(expr.evaluate(batch)?.into_array(batch.num_rows())?);
        let keys = self.keys.iter().map(evaluate).collect::<Result<Vec<ArrayRef>>>()?;
        let (asked, distinct) = distinct_keys(encode_keys(&keys)?);
        let found = self.store.get(&self.request.group, &distinct, self.request.max_staleness).await?;
        self.metrics.cache_hits.add(found.cache_hits);
        self.metrics.cache_misses.add(found.cache_misses);
        self.metrics.store_reads.add(found.store_reads);
        let entries = found.checked(distinct.len())?.arranged(asked.into_iter());
        Ok(Read { keys, entries, read_us: self.clock.now_us() })
    }

    /// The rows of the output, and which rows of the input they are where some are left out.
    fn answer(
        &self,
        batch: &RecordBatch,
        read: &Read,
        now_us: i64,
    ) -> Result<(RecordBatch, Option<BooleanArray>)> {
        let _timer = self.metrics.baseline.elapsed_compute().timer();
        let answer = self.answerer.answer(&read.entries, now_us, read.read_us)?;
        let latest = self.output.iter().filter_map(|output| match output {
            Output::Latest(i) => Some(LatestColumn::at(&self.request.group, *i)),
            Output::Input(_) => None,
        });
        let mut latest = answer.columns(&latest.collect::<Vec<_>>(), &read.keys)?.into_iter();
        let mut columns = Vec::with_capacity(self.output.len());
        for output in &self.output {
            columns.push(match output {
                Output::Input(expr) => answer.input(&expr.evaluate(batch)?.into_array(batch.num_rows())?)?,
                Output::Latest(_) => {
                    latest.next().ok_or_else(|| Error::internal("a look-up lost a column"))?
                }
            });
        }
        let rows = RecordBatchOptions::new().with_row_count(Some(answer.len()));
        let output = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &rows)?;
        let kept = (answer.len() < batch.num_rows()).then(|| answer.present().clone());
        Ok((output.record_output(&self.metrics.baseline), kept))
    }
}

/// Each key once, and for every row asked where its key stands; `None` where the key is NULL.
fn distinct_keys(keys: Vec<Option<EntityKey>>) -> (Vec<Option<usize>>, Vec<EntityKey>) {
    let mut places: HashMap<EntityKey, usize> = HashMap::with_capacity(keys.len());
    let mut distinct = Vec::with_capacity(keys.len());
    let mut place = |key: EntityKey| {
        *places.entry(key).or_insert_with_key(|key| {
            distinct.push(key.clone());
            distinct.len() - 1
        })
    };
    let asked = keys.into_iter().map(|key| key.map(&mut place)).collect();
    (asked, distinct)
}
