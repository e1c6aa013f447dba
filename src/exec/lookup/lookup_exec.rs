//! The look-up as a physical operator.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Result, Statistics};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExpr};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, EmptyRecordBatchStream, ExecutionPlan, ExecutionPlanProperties,
    PlanProperties,
};
use futures::{StreamExt, TryStreamExt, stream};

use super::answer::{Answerer, Missing, show_ttl};
use super::columns::LatestColumn;
use super::level::{Level, LookupMetrics, look_up, parts};
use super::logical::{LookupRequest, show_keys};
use crate::clock::Clock;
use crate::error::Error;
use crate::online::OnlineStore;

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

    /// One running partition of it.
    fn level(&self, partition: usize) -> Result<Level> {
        Ok(Level {
            asked: self.keys.clone(),
            keys: self.keys.clone(),
            output: self.output.clone(),
            answerer: Answerer::new(Arc::clone(&self.request.group), self.request.missing)?,
            request: self.request.clone(),
            store: Arc::clone(&self.store),
            schema: Arc::clone(&self.schema),
            metrics: LookupMetrics::new(&self.metrics, partition),
        })
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

/// Whether the keys of all `levels` (the topmost first) can be told from the input of `below`, on which the lowest of
/// them stands. If so they are.
fn keys_are_known_below(levels: &mut [Level], below: &LookupExec) -> Result<bool> {
    let mut told = Vec::with_capacity(levels.len());
    for level in levels.iter() {
        let keys =
            level.asked.iter().map(|key| over_input(key, below)).collect::<Result<Option<Vec<_>>>>()?;
        let Some(keys) = keys else { return Ok(false) };
        told.push(keys);
    }
    levels.iter_mut().zip(told).for_each(|(level, keys)| level.asked = keys);
    Ok(true)
}

/// The expression over the columns of `lookup` as one over its input's, if it uses nothing that is looked up.
fn over_input(expr: &Arc<dyn PhysicalExpr>, lookup: &LookupExec) -> Result<Option<Arc<dyn PhysicalExpr>>> {
    let mut known = true;
    let told = Arc::clone(expr).transform_down(|part| {
        let Some(column) = part.as_any().downcast_ref::<Column>() else { return Ok(Transformed::no(part)) };
        let told = match &lookup.output[column.index()] {
            Output::Input(expr) => Some(Arc::clone(expr)),
            Output::Latest(i) => match LatestColumn::at(&lookup.request.group, *i) {
                // Where nothing is found these show NULL, and others the key as it was asked.
                LatestColumn::Key(key) if lookup.request.missing != Missing::Null => {
                    Some(Arc::clone(&lookup.keys[key]))
                }
                _ => None,
            },
        };
        known &= told.is_some();
        // What was put in speaks of the input already.
        Ok(Transformed::new(told.unwrap_or(part), true, TreeNodeRecursion::Jump))
    })?;
    Ok(known.then_some(told.data))
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
        let now_us = self.clock.now_us();
        let mut levels = Vec::new();
        let mut bottom = self;
        loop {
            levels.push(bottom.level(partition)?);
            let Some(below) = bottom.input.as_any().downcast_ref::<Self>() else { break };
            let runs = partition < below.input.output_partitioning().partition_count();
            if !runs || !keys_are_known_below(&mut levels, below)? {
                break;
            }
            bottom = below;
        }
        levels.reverse();
        let levels = Arc::new(levels);
        let batches = bottom.input.execute(partition, context)?;
        let batches = batches.map_ok(|batch| stream::iter(parts(batch)).map(Ok)).try_flatten();
        let answers = batches.and_then(move |batch| {
            let levels = Arc::clone(&levels);
            async move { Ok(look_up(&levels, batch, now_us).await?) }
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
