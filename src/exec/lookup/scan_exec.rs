//! Everything that is being served, as a physical operator.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, Partitioning};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::metrics::{
    BaselineMetrics, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet, RecordOutput,
};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties};
use futures::TryStreamExt;

use super::answer::{Answerer, Missing, show_ttl};
use super::columns::{LatestColumn, latest_schema};
use crate::clock::Clock;
use crate::model::{EntityKey, FeatureGroup, decode_keys};
use crate::online::{Entries, OnlineStore, ScannedEntries};

/// Scans the store for the entities of one group that have a row to serve, in no order.
#[derive(Debug)]
pub(crate) struct LatestScanExec {
    group: Arc<FeatureGroup>,
    /// Columns of `latest_schema`.
    columns: Vec<usize>,
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl LatestScanExec {
    pub(crate) fn try_new(
        group: Arc<FeatureGroup>,
        columns: Vec<usize>,
        store: Arc<dyn OnlineStore>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let schema = Arc::new(latest_schema(&group).project(&columns)?);
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        let metrics = ExecutionPlanMetricsSet::new();
        Ok(Self { group, columns, store, clock, schema, properties, metrics })
    }
}

impl DisplayAs for LatestScanExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns: Vec<&str> = self.schema.fields().iter().map(|f| f.name().as_str()).collect();
        write!(
            f,
            "LatestScanExec: group={}, columns=[{}], ttl={}, store={}",
            self.group.name,
            columns.join(", "),
            show_ttl(self.group.ttl),
            self.store.describe()
        )
    }
}

impl ExecutionPlan for LatestScanExec {
    fn name(&self) -> &'static str {
        "LatestScanExec"
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, _context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let answerer = Answerer::new(Arc::clone(&self.group), Missing::Drop)?;
        let (group, schema, clock) =
            (Arc::clone(&self.group), Arc::clone(&self.schema), Arc::clone(&self.clock));
        let now_us = clock.now_us();
        let wanted: Vec<_> = self.columns.iter().map(|i| LatestColumn::at(&self.group, *i)).collect();
        let baseline = BaselineMetrics::new(&self.metrics, partition);
        let store_reads = MetricBuilder::new(&self.metrics).counter("store_reads", partition);
        let batches =
            self.store.scan(&self.group).map_err(Into::into).and_then(move |part: ScannedEntries| {
                store_reads.add(part.len());
                let _timer = baseline.elapsed_compute().timer();
                let batch = served(&group, &answerer, part, &wanted, &schema, (now_us, clock.now_us()));
                std::future::ready(batch.map(|b| b.record_output(&baseline)).map_err(Into::into))
            });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

fn served(
    group: &FeatureGroup,
    answerer: &Answerer,
    part: ScannedEntries,
    wanted: &[LatestColumn],
    schema: &SchemaRef,
    (now_us, read_us): (i64, i64),
) -> crate::error::Result<RecordBatch> {
    let (keys, entries): (Vec<EntityKey>, Vec<Bytes>) = part.into_iter().unzip();
    let entries: Entries = entries.into_iter().map(Some).collect();
    let keys = decode_keys(&group.key_fields(), &keys)?;
    let answer = answerer.answer(&entries, now_us, read_us)?;
    let rows = RecordBatchOptions::new().with_row_count(Some(answer.len()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), answer.columns(wanted, &keys)?, &rows)?)
}
