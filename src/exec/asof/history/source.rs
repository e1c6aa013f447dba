//! What the partitions of the join share: the labels, in passes and ranges that each partition claims one of.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::compute::cast;
use datafusion::common::stats::Precision;
use datafusion::common::{Result, internal_err, resources_datafusion_err};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryReservation};
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, Time};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::{StreamExt, TryStreamExt};
use parking_lot::Mutex;

use super::keys::Keys;
use super::labels::{LabelColumns, LabelExprs, Labels, Range, slice_bytes};
use super::range::label_bytes;
use super::right::{HistoryColumn, Origin, Output, Right};
use crate::offline::{Buffers, RowFile};

/// A range takes at most about this much, its labels included, so that a few of them fit into memory at a time.
const RANGE_BYTES_MAX: usize = 192 << 20;
/// Ranges smaller than this cost more to look up than they spare.
const RANGE_LABELS_MIN: usize = 16 * 1024;
/// Labels of one pass, counted in 32 bits.
const PASS_LABELS_MAX: usize = 1 << 31;
/// Room that is made for labels before they come.
const EXPECTED_LABELS_MAX: usize = 1 << 24;
/// Of a bounded memory, the part that the labels of a pass may take.
const LABELS_SHARE: usize = 3;
/// What is held of a label beside its columns.
const LABEL_BYTES: usize = 20;
/// How many files are opened at a time.
const OPENING_MAX: usize = 8;

/// Metrics of all partitions.
#[derive(Debug, Clone)]
pub(super) struct Metrics {
    pub(super) labels: Count,
    pub(super) passes: Count,
    pub(super) matched: Count,
    pub(super) files_read: Count,
    pub(super) rows_searched: Count,
    pub(super) rows_gathered: Count,
    pub(super) bytes_read: Count,
    pub(super) collect_time: Time,
    pub(super) sort_time: Time,
    pub(super) search_time: Time,
    pub(super) gather_time: Time,
    pub(super) output_time: Time,
}

impl Metrics {
    pub(super) fn new(set: &ExecutionPlanMetricsSet, files: usize) -> Self {
        let counter = |name| MetricBuilder::new(set).global_counter(name);
        let timer = |name| MetricBuilder::new(set).subset_time(name, 0);
        counter("files_total").add(files);
        Self {
            labels: counter("labels"),
            passes: counter("passes"),
            matched: counter("matched_rows"),
            files_read: counter("files_read"),
            rows_searched: counter("rows_searched"),
            rows_gathered: counter("rows_gathered"),
            bytes_read: counter("bytes_read"),
            collect_time: timer("collect_time"),
            sort_time: timer("sort_time"),
            search_time: timer("search_time"),
            gather_time: timer("gather_time"),
            output_time: timer("output_time"),
        }
    }
}

/// Rows of each page, and bounds of the first key column in it.
#[derive(Debug)]
pub(super) struct Pages<B> {
    pub(super) rows: Vec<std::ops::Range<u32>>,
    pub(super) min: Vec<Option<B>>,
    pub(super) max: Vec<Option<B>>,
}

/// A data file, opened, and where its columns are.
#[derive(Debug)]
pub(super) struct OpenFile<K: Keys> {
    pub(super) rows: RowFile,
    /// The key columns, in the sort order, and the time.
    pub(super) keys: Vec<usize>,
    pub(super) time: Option<usize>,
    /// Keys and time, in the order of the file.
    pub(super) search_columns: Vec<usize>,
    /// Of outputs that come from the file; `None` for others and where the file lacks the column.
    pub(super) outputs: Vec<Option<usize>>,
    pub(super) pages: Pages<K::Bound>,
    was_read: AtomicBool,
}

impl<K: Keys> OpenFile<K> {
    async fn open(context: &TaskContext, encoder: &K::Encoder, right: &Right, index: usize) -> Result<Self> {
        let runtime = context.runtime_env();
        let rows = right.files[index].file.open(&runtime).await?;
        let column = |column: &HistoryColumn| rows.column(column.id, &column.name);
        let keys: Option<Vec<usize>> = right.keys.iter().map(column).collect();
        let mut pages = Pages { rows: Vec::new(), min: Vec::new(), max: Vec::new() };
        let (mut keys, mut time) = (keys.unwrap_or_default(), column(&right.time));
        // A file from before a column of the keys or the time was added holds NULL there, and so matches nothing.
        if let (Some(first), Some(_)) = (keys.first(), time) {
            let bounds = rows.page_bounds(*first)?;
            let of_key = |values: &ArrayRef| K::bounds(encoder, &cast(values, &right.keys[0].data_type)?);
            pages = Pages { min: of_key(&bounds.min)?, max: of_key(&bounds.max)?, rows: bounds.rows };
        } else {
            (keys, time) = (Vec::new(), None);
        }
        let mut search_columns: Vec<usize> = keys.iter().copied().chain(time).collect();
        search_columns.sort_unstable();
        let from_file = |output: &&Output| output.origin == Origin::File;
        let outputs = { right.outputs.iter() }
            .map(|o| Some(o).filter(from_file).and_then(|o| column(&o.column)))
            .collect();
        Ok(Self { rows, keys, time, search_columns, outputs, pages, was_read: AtomicBool::new(false) })
    }

    /// True the first time.
    pub(super) fn mark_read(&self) -> bool {
        !self.was_read.swap(true, Ordering::Relaxed)
    }
}

/// Labels that are joined together.
#[derive(Debug)]
pub(super) struct Pass<K> {
    pub(super) labels: Labels<K>,
    ranges: Mutex<Vec<Range>>,
    _reservation: MemoryReservation,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Source<K: Keys> {
    pub(super) exprs: Arc<LabelExprs>,
    pub(super) rights: Vec<Arc<Right>>,
    /// Label columns that are put out.
    pub(super) label_columns: LabelColumns,
    pub(super) encoder: K::Encoder,
    pub(super) metrics: Metrics,
    /// What files are read into.
    pub(super) buffers: Buffers,
    partitions: usize,
    state: tokio::sync::Mutex<State<K>>,
    files: tokio::sync::OnceCell<Vec<Vec<OpenFile<K>>>>,
}

struct State<K> {
    left: Option<SendableRecordBatchStream>,
    /// How many labels are still to come, if the left side knows.
    expected: usize,
    /// A batch that did not fit into the pass before.
    waiting: Option<RecordBatch>,
    pass: Option<Arc<Pass<K>>>,
    /// Whether labels are being read; found set by the next one to ask where whoever read them was dropped.
    is_collecting: bool,
}

impl<K> std::fmt::Debug for State<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("ended", &self.left.is_none()).finish_non_exhaustive()
    }
}

impl<K: Keys> Source<K> {
    /// Starts to read the labels.
    pub(super) fn start(
        left: &Arc<dyn ExecutionPlan>,
        exprs: Arc<LabelExprs>,
        rights: Vec<Arc<Right>>,
        label_columns: &[usize],
        metrics: Metrics,
        context: &Arc<TaskContext>,
    ) -> Result<Self> {
        let partitions = context.session_config().target_partitions().max(1);
        let label_columns = LabelColumns::new::<K>(label_columns, &exprs, &left.schema());
        let expected = match left.partition_statistics(None)?.num_rows {
            Precision::Exact(rows) => rows,
            _ => 0,
        };
        let left = match left.output_partitioning().partition_count() {
            1 => left.execute(0, Arc::clone(context))?,
            _ => CoalescePartitionsExec::new(Arc::clone(left)).execute(0, Arc::clone(context))?,
        };
        let state = State { left: Some(left), expected, waiting: None, pass: None, is_collecting: false };
        Ok(Self {
            encoder: K::encoder(&exprs.key_types)?,
            exprs,
            rights,
            label_columns,
            metrics,
            buffers: Buffers::default(),
            partitions,
            state: tokio::sync::Mutex::new(state),
            files: tokio::sync::OnceCell::new(),
        })
    }

    /// The files of each right side.
    pub(super) async fn files(&self, context: &TaskContext) -> Result<&Vec<Vec<OpenFile<K>>>> {
        let open = || async {
            let mut opened = Vec::new();
            for right in &self.rights {
                let files = futures::stream::iter(0..right.files.len())
                    .map(|index| OpenFile::open(context, &self.encoder, right, index))
                    .buffered(OPENING_MAX);
                opened.push(files.try_collect().await?);
            }
            Ok(opened)
        };
        self.files.get_or_try_init(open).await
    }

    /// The next range that nobody works on, or `None` when all are taken and no label is left.
    pub(super) async fn claim(&self, context: &TaskContext) -> Result<Option<(Arc<Pass<K>>, Range)>> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            // Somebody reads labels: the files can be opened meanwhile.
            Err(_) => {
                self.files(context).await?;
                self.state.lock().await
            }
        };
        loop {
            if let Some(pass) = &state.pass {
                let range = pass.ranges.lock().pop();
                if let Some(range) = range {
                    return Ok(Some((Arc::clone(pass), range)));
                }
                state.pass = None;
            }
            if std::mem::replace(&mut state.is_collecting, true) {
                return internal_err!(
                    "the labels of an ASOF join were lost when a partition of it was dropped"
                );
            }
            let pass = self.collect(&mut state, context).await;
            state.is_collecting = false;
            match pass? {
                Some(pass) => state.pass = Some(Arc::new(pass)),
                None => return Ok(None),
            }
        }
    }

    async fn collect(&self, state: &mut State<K>, context: &TaskContext) -> Result<Option<Pass<K>>> {
        let pool = context.memory_pool();
        let reservation = MemoryConsumer::new("AsofHistoryExec labels").register(pool);
        let budget = match pool.memory_limit() {
            MemoryLimit::Finite(limit) => limit / LABELS_SHARE,
            _ => usize::MAX,
        };
        let expected = state.expected.min(budget / (2 * LABEL_BYTES)).min(EXPECTED_LABELS_MAX);
        let mut labels = Labels::new(&self.encoder, &self.rights, expected);
        let timer = self.metrics.collect_time.timer();
        loop {
            let next = match (state.waiting.take(), &mut state.left) {
                (Some(batch), _) => Some(batch),
                (None, Some(left)) => left.next().await.transpose().inspect_err(|_| state.left = None)?,
                (None, None) => None,
            };
            let Some(batch) = next else {
                state.left = None;
                break;
            };
            if batch.num_rows() == 0 {
                continue;
            }
            let more = slice_bytes(&batch) + batch.num_rows() * LABEL_BYTES;
            let wanted = labels.bytes() + more;
            let full = labels.len() + batch.num_rows() > PASS_LABELS_MAX || wanted > budget;
            if (full && labels.len() > 0) || reservation.try_resize(wanted).is_err() {
                if labels.len() == 0 {
                    return Err(resources_datafusion_err!(
                        "an ASOF join cannot hold a batch of {more} bytes of labels: raise --memory-limit"
                    ));
                }
                state.waiting = Some(batch);
                break;
            }
            labels.push(&batch, &self.exprs, &self.encoder, &self.rights)?;
            labels.keep(&batch, &self.label_columns)?;
        }
        drop(timer);
        if labels.len() == 0 {
            return Ok(None);
        }
        state.expected = state.expected.saturating_sub(labels.len());
        self.metrics.passes.add(1);
        self.metrics.labels.add(labels.len());
        let ranges = {
            let _timer = self.metrics.sort_time.timer();
            let count = self.range_count(&labels, pool.memory_limit());
            let mut ranges = labels.split(&self.encoder, count, self.partitions)?;
            ranges.reverse();
            ranges
        };
        Ok(Some(Pass { labels, ranges: Mutex::new(ranges), _reservation: reservation }))
    }

    fn range_count(&self, labels: &Labels<K>, limit: MemoryLimit) -> usize {
        let outputs: usize = self.rights.iter().map(|right| right.row_bytes()).sum();
        let width = outputs + label_bytes::<K>() + labels.bytes() / labels.len();
        let range_bytes = match limit {
            MemoryLimit::Finite(limit) => RANGE_BYTES_MAX.min(limit / (8 * self.partitions)),
            _ => RANGE_BYTES_MAX,
        };
        let by_bytes = (labels.len() * width).div_ceil(range_bytes.max(1));
        let by_cores = (self.partitions * 2).min(labels.len().div_ceil(RANGE_LABELS_MIN));
        by_bytes.max(by_cores).max(1)
    }
}

/// Columns of `batch` in the order of `wanted`, as `types`; the batch has them in the file's order.
pub(super) fn in_order(
    batch: &RecordBatch,
    columns: &[usize],
    wanted: &[(usize, &HistoryColumn)],
) -> Result<Vec<ArrayRef>> {
    wanted
        .iter()
        .map(|(column, as_column)| {
            let index = columns.binary_search(column).unwrap_or_default();
            let array = batch.column(index);
            if array.data_type() == &as_column.data_type {
                return Ok(Arc::clone(array));
            }
            Ok(cast(array, &as_column.data_type)?)
        })
        .collect()
}
