//! The physical plan of ASOF joins against sorted files.

use std::any::Any;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::stats::Precision;
use datafusion::common::{Result, Statistics, internal_err};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{EquivalenceProperties, Partitioning, PhysicalExprRef};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties, SendableRecordBatchStream,
};
use futures::stream;
use parking_lot::Mutex;

use super::keys::{Encoded, Integers, KeyKind, Keys};
use super::labels::LabelExprs;
use super::range::{self, Joined};
use super::right::Right;
use super::source::{Metrics, Source};

/// See the module's description. Columns: the left ones, then the outputs of each right side.
#[derive(Debug)]
pub(in crate::exec::asof) struct AsofHistoryExec {
    left: Arc<dyn ExecutionPlan>,
    exprs: Arc<LabelExprs>,
    kind: KeyKind,
    rights: Vec<Arc<Right>>,
    /// Label columns that are put out.
    label_columns: Arc<[usize]>,
    /// For each column its place among the label columns and, behind them, the outputs of each right side.
    order: Arc<[usize]>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
    /// Made by the first partition that runs; all of them claim their work from it.
    source: Mutex<Option<AnySource>>,
}

#[derive(Debug, Clone)]
enum AnySource {
    Integers(Arc<Source<Integers>>),
    Encoded(Arc<Source<Encoded>>),
}

impl AsofHistoryExec {
    pub(in crate::exec::asof) fn new(
        left: Arc<dyn ExecutionPlan>,
        exprs: Arc<LabelExprs>,
        kind: KeyKind,
        rights: Vec<Arc<Right>>,
        schema: SchemaRef,
        partitions: usize,
    ) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(partitions.max(1)),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        let label_columns: Arc<[usize]> = (0..left.schema().fields().len()).collect();
        let order = (0..schema.fields().len()).collect();
        Self {
            left,
            exprs,
            kind,
            rights,
            label_columns,
            order,
            schema,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
            source: Mutex::new(None),
        }
    }

    /// The same join, to run anew.
    fn fresh(&self) -> Self {
        Self {
            left: Arc::clone(&self.left),
            exprs: Arc::clone(&self.exprs),
            kind: self.kind,
            rights: self.rights.clone(),
            label_columns: Arc::clone(&self.label_columns),
            order: Arc::clone(&self.order),
            schema: Arc::clone(&self.schema),
            properties: Arc::clone(&self.properties),
            metrics: ExecutionPlanMetricsSet::new(),
            source: Mutex::new(None),
        }
    }

    /// The same join with `columns` of its own alone; `schema` has them. What is not needed is neither read nor kept.
    fn projected(&self, columns: &[usize], schema: SchemaRef) -> Self {
        let needed: BTreeSet<usize> = columns.iter().map(|column| self.order[*column]).collect();
        let labels = self.label_columns.len();
        let label_columns: Arc<[usize]> = needed
            .iter()
            .take_while(|place| **place < labels)
            .map(|place| self.label_columns[*place])
            .collect();
        let mut start = labels;
        let rights = { self.rights.iter() }
            .map(|right| {
                let places = start..start + right.outputs.len();
                start = places.end;
                let outputs = { right.outputs.iter().zip(places) }
                    .filter(|(_, place)| needed.contains(place))
                    .map(|(output, _)| output.clone())
                    .collect();
                Arc::new(Right { outputs, ..Right::clone(right) })
            })
            .collect();
        let order = columns.iter().map(|column| needed.range(..self.order[*column]).count()).collect();
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            self.properties.partitioning.clone(),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Self { rights, label_columns, order, schema, properties: Arc::new(properties), ..self.fresh() }
    }

    /// The same join with one more right side, whose columns follow; `schema` has them.
    pub(in crate::exec::asof) fn with_right(&self, right: Arc<Right>, schema: SchemaRef) -> Self {
        let mut rights = self.rights.clone();
        rights.push(right);
        let partitions = self.properties.partitioning.partition_count();
        Self::new(Arc::clone(&self.left), Arc::clone(&self.exprs), self.kind, rights, schema, partitions)
    }

    /// Whether another join's labels, which are this join's rows, have the same keys and time as this join's labels.
    pub(in crate::exec::asof) fn sorts_as(&self, exprs: &LabelExprs) -> bool {
        self.exprs.keys == exprs.keys && self.exprs.time.eq(&exprs.time)
    }

    /// Whether an expression over this join's rows reads label columns only.
    pub(in crate::exec::asof) fn is_of_labels(&self, expr: &PhysicalExprRef) -> bool {
        let labels = self.left.schema().fields().len();
        collect_columns(expr).iter().all(|column| column.index() < labels)
    }

    fn start<K: Keys>(&self, context: &Arc<TaskContext>) -> Result<Arc<Source<K>>> {
        let files = self.rights.iter().map(|right| right.files.len()).sum();
        let metrics = Metrics::new(&self.metrics, files);
        let (exprs, columns) = (Arc::clone(&self.exprs), &self.label_columns);
        let source = Source::start(&self.left, exprs, self.rights.clone(), columns, metrics, context)?;
        Ok(Arc::new(source))
    }

    fn run<K: Keys>(
        &self,
        source: Arc<Source<K>>,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> SendableRecordBatchStream {
        let run = Run {
            source,
            joined: None,
            schema: Arc::clone(&self.schema),
            order: Arc::clone(&self.order),
            context,
            baseline: BaselineMetrics::new(&self.metrics, partition),
        };
        let batches =
            stream::try_unfold(run, |mut run| async move { Ok(run.next().await?.map(|batch| (batch, run))) });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}

/// One partition: claims ranges until none is left.
struct Run<K: Keys> {
    source: Arc<Source<K>>,
    joined: Option<Joined>,
    schema: SchemaRef,
    order: Arc<[usize]>,
    context: Arc<TaskContext>,
    baseline: BaselineMetrics,
}

impl<K: Keys> Run<K> {
    async fn next(&mut self) -> Result<Option<datafusion::arrow::array::RecordBatch>> {
        loop {
            if let Some(joined) = &mut self.joined {
                let _timer = self.source.metrics.output_time.timer();
                let batch_rows = self.context.session_config().batch_size();
                if let Some(batch) = joined.next(&self.schema, &self.order, batch_rows)? {
                    self.baseline.record_output(batch.num_rows());
                    return Ok(Some(batch));
                }
                self.joined = None;
            }
            let Some((pass, range)) = self.source.claim(&self.context).await? else {
                return Ok(None);
            };
            self.joined = Some(range::join(&self.source, &pass, range, &self.context).await?);
        }
    }
}

impl DisplayAs for AsofHistoryExec {
    fn fmt_as(&self, t: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if matches!(t, DisplayFormatType::Default | DisplayFormatType::Verbose) {
            write!(f, "AsofHistoryExec: ")?;
        }
        for (index, right) in self.rights.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            let columns: Vec<&str> = right.outputs.iter().map(|output| output.column.name.as_str()).collect();
            write!(f, "{separator}{}, columns=[{}]", right.description, columns.join(", "))?;
        }
        Ok(())
    }
}

impl ExecutionPlan for AsofHistoryExec {
    fn name(&self) -> &'static str {
        "AsofHistoryExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![false]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        vec![false]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.left]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(left), 0) = (children.pop(), children.len()) else {
            return internal_err!("an ASOF join against sorted files has one input");
        };
        Ok(Arc::new(Self { left, ..self.fresh() }))
    }

    fn try_swapping_with_projection(
        &self,
        projection: &ProjectionExec,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let columns: Option<Vec<usize>> = { projection.expr().iter() }
            .map(|expr| expr.expr.as_any().downcast_ref::<Column>().map(Column::index))
            .collect();
        Ok(columns.map(|columns| Arc::new(self.projected(&columns, projection.schema())) as _))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let source = {
            let mut started = self.source.lock();
            match &*started {
                Some(source) => source.clone(),
                None => {
                    let source = match self.kind {
                        KeyKind::Integer => AnySource::Integers(self.start(&context)?),
                        KeyKind::Encoded => AnySource::Encoded(self.start(&context)?),
                    };
                    *started = Some(source.clone());
                    source
                }
            }
        };
        Ok(match source {
            AnySource::Integers(source) => self.run(source, partition, context),
            AnySource::Encoded(source) => self.run(source, partition, context),
        })
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Statistics> {
        let mut statistics = Statistics::new_unknown(&self.schema);
        if partition.is_none() {
            let rows = self.left.partition_statistics(None)?.num_rows;
            let inner = self.rights.iter().any(|right| right.inner);
            statistics.num_rows = if inner { rows.to_inexact() } else { rows };
        } else {
            statistics.num_rows = Precision::Absent;
        }
        Ok(statistics)
    }
}
