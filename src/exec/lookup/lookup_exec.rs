//! The look-up as a physical operator.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::{Result, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, RecordOutput,
};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, EmptyRecordBatchStream, ExecutionPlan, ExecutionPlanProperties,
    PlanProperties,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::answer::{Answerer, Missing, show_ttl};
use super::columns::LatestColumn;
use super::logical::{LookupRequest, show_keys};
use crate::clock::Clock;
use crate::error::Error;
use crate::model::{EntityKey, encode_keys};
use crate::online::OnlineStore;

/// Rows looked up at a time: what one read of the store and one answer hold.
const ROWS_MAX: usize = 8192;

/// One column of the output.
#[derive(Debug, Clone)]
pub(crate) enum Output {
    /// An expression over the input.
    Input(Arc<dyn PhysicalExpr>),
    /// Column `.0` of `latest_schema`.
    Latest(usize),
}

/// Looks up one entity per input row. See the room's `mod.rs`.
#[derive(Debug)]
pub(crate) struct LookupExec {
    input: Arc<dyn ExecutionPlan>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    output: Vec<Output>,
    request: LookupRequest,
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
    schema: SchemaRef,
    /// Partitions behind the input's that stay empty. With as many partitions as the session wants, the optimizer
    /// adds no round-robin above, which would lose the order of the keys asked.
    idle_partitions: usize,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl LookupExec {
    /// `keys`: one expression over `input` per key column, of its type; `schema`: one field per `output`.
    pub(crate) fn new(
        input: Arc<dyn ExecutionPlan>,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        output: Vec<Output>,
        request: LookupRequest,
        (store, clock): (Arc<dyn OnlineStore>, Arc<dyn Clock>),
        schema: SchemaRef,
    ) -> Self {
        let metrics = ExecutionPlanMetricsSet::new();
        let properties = properties(&input, &schema, 0);
        Self { input, keys, output, request, store, clock, schema, idle_partitions: 0, properties, metrics }
    }

    /// Keeps the output in the order of a single-partition input, however long it is, in a session that spreads its
    /// work over `partitions`.
    pub(crate) fn keeping_order(self, partitions: usize) -> Self {
        let idle_partitions = partitions.saturating_sub(self.input.output_partitioning().partition_count());
        let properties = properties(&self.input, &self.schema, idle_partitions);
        Self { idle_partitions, properties, ..self }
    }

    fn with_output(&self, input: Arc<dyn ExecutionPlan>, output: Vec<Output>, schema: SchemaRef) -> Self {
        Self {
            properties: properties(&input, &schema, self.idle_partitions),
            input,
            keys: self.keys.clone(),
            output,
            request: self.request.clone(),
            store: Arc::clone(&self.store),
            clock: Arc::clone(&self.clock),
            schema,
            idle_partitions: self.idle_partitions,
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }
}

fn properties(input: &Arc<dyn ExecutionPlan>, schema: &SchemaRef, idle: usize) -> Arc<PlanProperties> {
    let partitions = input.output_partitioning().partition_count() + idle;
    Arc::new(PlanProperties::new(
        EquivalenceProperties::new(Arc::clone(schema)),
        Partitioning::UnknownPartitioning(partitions),
        input.pipeline_behavior(),
        input.boundedness(),
    ))
}

impl DisplayAs for LookupExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (group, missing) = (&self.request.group, self.request.missing.as_str());
        write!(
            f,
            "LookupExec: group={}, keys=[{}], ttl={}, store={}, missing={missing}",
            group.name,
            show_keys(&self.request, &self.keys),
            show_ttl(group.ttl),
            self.store.describe()
        )?;
        match self.request.max_staleness {
            Some(max) => write!(f, ", max_staleness={}", humantime::format_duration(max)),
            None => Ok(()),
        }
    }
}

impl ExecutionPlan for LookupExec {
    fn name(&self) -> &'static str {
        "LookupExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let input = children.pop().ok_or_else(|| Error::internal("a look-up lost its input"))?;
        Ok(Arc::new(self.with_output(input, self.output.clone(), Arc::clone(&self.schema))))
    }

    /// A projection of plain columns becomes part of the look-up: features that nobody asked for are not decoded.
    fn try_swapping_with_projection(
        &self,
        projection: &ProjectionExec,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let columns = projection.expr().iter().map(|p| p.expr.as_any().downcast_ref::<Column>());
        let output = columns.map(|c| Some(self.output[c?.index()].clone())).collect::<Option<Vec<_>>>();
        Ok(output.map(|output| {
            Arc::new(self.with_output(Arc::clone(&self.input), output, projection.schema())) as _
        }))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition >= self.input.output_partitioning().partition_count() {
            return Ok(Box::pin(EmptyRecordBatchStream::new(Arc::clone(&self.schema))));
        }
        let lookup = Arc::new(Lookup {
            keys: self.keys.clone(),
            output: self.output.clone(),
            answerer: Answerer::new(Arc::clone(&self.request.group), self.request.missing)?,
            request: self.request.clone(),
            store: Arc::clone(&self.store),
            schema: Arc::clone(&self.schema),
            now_us: self.clock.now_us(),
            metrics: LookupMetrics::new(&self.metrics, partition),
        });
        let batches = self.input.execute(partition, context)?;
        let batches = batches.map_ok(|batch| stream::iter(parts(batch)).map(Ok)).try_flatten();
        let answers = batches.and_then(move |batch| {
            let lookup = Arc::clone(&lookup);
            async move { Ok(lookup.run(&batch).await?) }
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), answers)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Statistics> {
        let inputs = self.input.output_partitioning().partition_count();
        let mut statistics = Statistics::new_unknown(&self.schema);
        let num_rows = match partition {
            Some(partition) if partition >= inputs => Precision::Exact(0),
            other => self.input.partition_statistics(other)?.num_rows,
        };
        statistics.num_rows = match self.request.missing {
            Missing::Drop => num_rows.to_inexact(),
            Missing::Explain | Missing::Null => num_rows,
        };
        Ok(statistics)
    }
}

fn parts(batch: RecordBatch) -> impl Iterator<Item = RecordBatch> {
    let rows = batch.num_rows();
    (0..rows).step_by(ROWS_MAX).map(move |start| batch.slice(start, ROWS_MAX.min(rows - start)))
}

struct LookupMetrics {
    baseline: BaselineMetrics,
    cache_hits: Count,
    cache_misses: Count,
    store_reads: Count,
}

impl LookupMetrics {
    fn new(metrics: &ExecutionPlanMetricsSet, partition: usize) -> Self {
        let counter = |name: &'static str| MetricBuilder::new(metrics).counter(name, partition);
        Self {
            baseline: BaselineMetrics::new(metrics, partition),
            cache_hits: counter("cache_hits"),
            cache_misses: counter("cache_misses"),
            store_reads: counter("store_reads"),
        }
    }
}

/// One running partition.
struct Lookup {
    keys: Vec<Arc<dyn PhysicalExpr>>,
    output: Vec<Output>,
    answerer: Answerer,
    request: LookupRequest,
    store: Arc<dyn OnlineStore>,
    schema: SchemaRef,
    now_us: i64,
    metrics: LookupMetrics,
}

impl Lookup {
    async fn run(&self, batch: &RecordBatch) -> crate::error::Result<RecordBatch> {
        let evaluate = |expr: &Arc<dyn PhysicalExpr>| expr.evaluate(batch)?.into_array(batch.num_rows());
        let key_columns = self.keys.iter().map(evaluate).collect::<Result<Vec<ArrayRef>>>()?;
        let (asked, distinct) = distinct_keys(encode_keys(&key_columns)?);
        let found = self.store.get(&self.request.group, &distinct, self.request.max_staleness).await?;

        let _timer = self.metrics.baseline.elapsed_compute().timer();
        self.metrics.cache_hits.add(found.cache_hits);
        self.metrics.cache_misses.add(found.cache_misses);
        self.metrics.store_reads.add(found.store_reads);
        let entries: Vec<_> = asked.iter().map(|i| i.and_then(|i| found.entries[i].clone())).collect();
        let answer = self.answerer.answer(&entries, self.now_us)?;
        let wanted: Vec<LatestColumn> = self
            .output
            .iter()
            .filter_map(|output| match output {
                Output::Latest(i) => Some(LatestColumn::at(&self.request.group, *i)),
                Output::Input(_) => None,
            })
            .collect();
        let mut latest = answer.columns(&wanted, &key_columns)?.into_iter();
        let mut columns = Vec::with_capacity(self.output.len());
        for output in &self.output {
            columns.push(match output {
                Output::Input(expr) => answer.input(&evaluate(expr)?)?,
                Output::Latest(_) => {
                    latest.next().ok_or_else(|| Error::internal("a look-up lost a column"))?
                }
            });
        }
        let rows = RecordBatchOptions::new().with_row_count(Some(answer.len()));
        let batch = RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &rows)?;
        Ok(batch.record_output(&self.metrics.baseline))
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
