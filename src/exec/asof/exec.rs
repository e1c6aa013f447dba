//! The physical plan of an ASOF join.
//!
//! Both sides are hash-partitioned on the keys (one partition without keys) and sorted by keys and time, the right
//! side also by what orders its ties, so DataFusion adds the repartitions and the (spilling) sorts, and each
//! partition is a streaming merge that holds a few right batches. Rows come out in any order.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::{JoinType, Result, ScalarValue, Statistics, internal_err};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::physical_expr::{
    Distribution, EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalExprRef, PhysicalSortExpr,
};
use datafusion::physical_plan::coop::make_cooperative;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
    SendableRecordBatchStream,
};
use futures::stream;

use super::merge::Rules;
use super::stream::{Metrics, Run};

/// As-known-at in physical expressions.
#[derive(Debug)]
pub(super) struct KnownAtExprs {
    /// Over the left side.
    pub(super) bound: PhysicalExprRef,
    pub(super) strict: bool,
    /// Over the right side.
    pub(super) column: PhysicalExprRef,
}

/// An ASOF join without its inputs, in physical expressions.
#[derive(Debug)]
pub(super) struct Params {
    pub(super) join_type: JoinType,
    pub(super) on: Vec<(PhysicalExprRef, PhysicalExprRef)>,
    pub(super) left_time: PhysicalExprRef,
    pub(super) right_time: PhysicalExprRef,
    pub(super) backward: bool,
    pub(super) rules: Rules,
    pub(super) known_at: Option<KnownAtExprs>,
    /// Right columns that order rows of equal key and time; the greatest wins.
    pub(super) ties: Vec<PhysicalExprRef>,
    /// Indices of the right columns that are output.
    pub(super) right_output: Vec<usize>,
    /// What an unmatched left row gets for each of `right_output`.
    pub(super) absent: Vec<ScalarValue>,
    /// Shown by `EXPLAIN`.
    pub(super) description: String,
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct AsofJoinExec {
    left: Arc<dyn ExecutionPlan>,
    right: Arc<dyn ExecutionPlan>,
    params: Arc<Params>,
    schema: SchemaRef,
    left_order: LexOrdering,
    right_order: LexOrdering,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl AsofJoinExec {
    /// `schema`: the left columns, then the right columns that are output.
    pub(super) fn try_new(
        left: Arc<dyn ExecutionPlan>,
        right: Arc<dyn ExecutionPlan>,
        params: Arc<Params>,
        schema: SchemaRef,
    ) -> Result<Self> {
        let left_keys = params.on.iter().map(|(left, _)| left);
        let left_order = side_order(left_keys, &params.left_time, params.backward, &[])?;
        let right_keys = params.on.iter().map(|(_, right)| right);
        let right_order = side_order(right_keys, &params.right_time, params.backward, &params.ties)?;
        // Left columns come first, so what the left side says of its partitions holds for the output.
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            left.output_partitioning().clone(),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Self {
            left,
            right,
            params,
            schema,
            left_order,
            right_order,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    /// DataFusion promises equal partitioning of both sides to its own joins only, so it is checked here: a side
    /// that is partitioned otherwise would lose matches without a trace.
    fn check_partitions(&self) -> Result<()> {
        let (left, right) = (self.left.output_partitioning(), self.right.output_partitioning());
        let (left_count, right_count) = (left.partition_count(), right.partition_count());
        if left_count != right_count {
            return internal_err!("ASOF join of {left_count} left with {right_count} right partitions");
        }
        let required = self.required_input_distribution();
        for (side, distribution) in [&self.left, &self.right].into_iter().zip(&required) {
            let properties = side.equivalence_properties();
            if !side.output_partitioning().satisfaction(distribution, properties, false).is_satisfied() {
                return internal_err!("a side of an ASOF join is not partitioned on the join's keys");
            }
        }
        Ok(())
    }
}

fn side_order<'a>(
    keys: impl Iterator<Item = &'a PhysicalExprRef>,
    time: &PhysicalExprRef,
    backward: bool,
    ties: &[PhysicalExprRef],
) -> Result<LexOrdering> {
    let ascending = SortOptions { descending: false, nulls_first: true };
    let along = SortOptions { descending: !backward, nulls_first: true };
    let keys = keys.map(|key| PhysicalSortExpr::new(Arc::clone(key), ascending));
    let time = PhysicalSortExpr::new(Arc::clone(time), along);
    let ties = ties.iter().map(|tie| PhysicalSortExpr::new(Arc::clone(tie), ascending));
    match LexOrdering::new(keys.chain([time]).chain(ties)) {
        Some(order) => Ok(order),
        None => internal_err!("an ASOF join without a time"),
    }
}

impl DisplayAs for AsofJoinExec {
    fn fmt_as(&self, t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match t {
            DisplayFormatType::Default | DisplayFormatType::Verbose => {
                write!(f, "AsofJoinExec: {}", self.params.description)
            }
            DisplayFormatType::TreeRender => write!(f, "{}", self.params.description),
        }
    }
}

impl ExecutionPlan for AsofJoinExec {
    fn name(&self) -> &'static str {
        "AsofJoinExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        if self.params.on.is_empty() {
            return vec![Distribution::SinglePartition, Distribution::SinglePartition];
        }
        let (left, right) = self.params.on.iter().cloned().unzip();
        vec![Distribution::HashPartitioned(left), Distribution::HashPartitioned(right)]
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        vec![
            Some(OrderingRequirements::from(self.left_order.clone())),
            Some(OrderingRequirements::from(self.right_order.clone())),
        ]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false, false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.left, &self.right]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(right), Some(left)) = (children.pop(), children.pop()) else {
            return internal_err!("an ASOF join has two inputs");
        };
        let (params, schema) = (Arc::clone(&self.params), Arc::clone(&self.schema));
        Ok(Arc::new(Self::try_new(left, right, params, schema)?))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        self.check_partitions()?;
        let metrics = Metrics {
            baseline: BaselineMetrics::new(&self.metrics, partition),
            matched: MetricBuilder::new(&self.metrics).counter("matched_rows", partition),
        };
        let reservation = MemoryConsumer::new("AsofJoinExec").register(context.memory_pool());
        let run = Run::try_new(
            Arc::clone(&self.params),
            Arc::clone(&self.schema),
            self.left.execute(partition, Arc::clone(&context))?,
            make_cooperative(self.right.execute(partition, Arc::clone(&context))?),
            context.session_config().batch_size(),
            metrics,
            reservation,
        )?;
        let batches =
            stream::try_unfold(run, |mut run| async move { Ok(run.next().await?.map(|batch| (batch, run))) });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Statistics> {
        let left = self.left.partition_statistics(partition)?.num_rows;
        let mut statistics = Statistics::new_unknown(&self.schema);
        statistics.num_rows = match self.params.join_type {
            JoinType::Left => left,
            _ => left.to_inexact(),
        };
        Ok(statistics)
    }
}
