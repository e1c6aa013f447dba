//! Parts of a result, which clients fetch in parallel: each is some partitions of one and the same plan.
//!
//! ```text
//! ProjectionExec      part 0 of 2   part 1 of 2
//!   FilterExec          │      │      │      │
//!     file scan        p0     p2     p1     p3
//! ```
//! A part must do its own share of the work and no more, and the parts together must be the whole. So only plans are
//! split whose partitions have nothing in common: scans of files with filters and projections above. An exchange, a sort
//! or an aggregate would run whole for every part; a join that shares what it has built would build it again.

use std::sync::Arc;

use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use futures::{TryStreamExt, stream};

use crate::error::{Error, Result};
use crate::offline::is_file_scan;

/// The setting by which every server splits the scans of a plan alike.
pub(super) const PARTITIONS: &str = "target_partitions";

/// One part of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Which one, from 0.
    pub index: usize,
    /// Of how many.
    pub parts: usize,
    /// How many partitions the plan has: `index` and every `parts`-th after it are this part's.
    pub partitions: usize,
}

/// Keeps the planner from spreading the rows of few files over more partitions.
pub(super) fn without_exchange(state: &mut SessionState) {
    state.config_mut().options_mut().optimizer.enable_round_robin_repartition = false;
}

/// How many partitions the plan has, if each does its own work and nothing but that.
pub(super) fn partitions_apart(plan: &Arc<dyn ExecutionPlan>) -> Option<usize> {
    fn is_apart(plan: &dyn ExecutionPlan) -> bool {
        let any = plan.as_any();
        let passes_on = any.is::<FilterExec>()
            || any.is::<ProjectionExec>()
            || any.is::<CooperativeExec>()
            || any.is::<UnionExec>();
        plan.fetch().is_none()
            && (passes_on || is_file_scan(plan))
            && plan.children().iter().all(|child| is_apart(child.as_ref()))
    }
    is_apart(plan.as_ref()).then(|| plan.output_partitioning().partition_count())
}

/// Runs one part of a plan.
///
/// # Errors
/// `Conflict` where the plan is not the one that was split.
pub(super) fn run_part(
    plan: Arc<dyn ExecutionPlan>,
    part: Part,
    context: Arc<TaskContext>,
) -> Result<SendableRecordBatchStream> {
    if partitions_apart(&plan) != Some(part.partitions) || part.index >= part.parts {
        return Err(Error::conflict("the result is no longer split as it was: run the query again"));
    }
    let schema = plan.schema();
    let partitions = (part.index..part.partitions).step_by(part.parts);
    let rows = stream::iter(partitions.map(move |partition| plan.execute(partition, Arc::clone(&context))));
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows.try_flatten())))
}
