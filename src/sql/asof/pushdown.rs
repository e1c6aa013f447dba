//! Moves filters on left columns below an ASOF join, where scans can use them.

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{DFSchema, Result};
use datafusion::logical_expr::utils::{conjunction, split_conjunction_owned};
use datafusion::logical_expr::{Expr, Extension, Filter, LogicalPlan, Projection};
use datafusion::optimizer::{ApplyOrder, OptimizerConfig, OptimizerRule};

use super::AsofJoin;

/// A left row's fate depends on no other left row, so a filter on left columns may go first. A filter on right columns
/// must not: it would not drop the picked row, but make way for another one.
#[derive(Debug)]
pub(super) struct PushFilterBelowAsofJoin;

impl OptimizerRule for PushFilterBelowAsofJoin {
    fn name(&self) -> &str {
        "push_filter_below_asof_join"
    }

    fn apply_order(&self) -> Option<ApplyOrder> {
        Some(ApplyOrder::TopDown)
    }

    fn rewrite(&self, plan: LogicalPlan, _config: &dyn OptimizerConfig) -> Result<Transformed<LogicalPlan>> {
        let LogicalPlan::Filter(filter) = plan else {
            return Ok(Transformed::no(plan));
        };
        let Some(join) = as_asof_join(&filter.input) else {
            return Ok(Transformed::no(LogicalPlan::Filter(filter)));
        };
        let (below, above): (Vec<Expr>, Vec<Expr>) = split_conjunction_owned(filter.predicate.clone())
            .into_iter()
            .partition(|conjunct| reads_only(conjunct, join.left().schema(), join.right().schema()));
        let Some(below) = conjunction(below) else {
            return Ok(Transformed::no(LogicalPlan::Filter(filter)));
        };
        let left = LogicalPlan::Filter(Filter::try_new(below, Arc::new(join.left().clone()))?);
        let node = AsofJoin::try_new(left, join.right().clone(), join.spec().clone())?;
        let mut plan = LogicalPlan::Extension(Extension { node: Arc::new(node) });
        if let LogicalPlan::Projection(projection) = filter.input.as_ref() {
            let projection = Projection::try_new(projection.expr.clone(), Arc::new(plan))?;
            plan = LogicalPlan::Projection(projection);
        }
        Ok(Transformed::yes(match conjunction(above) {
            Some(above) => LogicalPlan::Filter(Filter::try_new(above, Arc::new(plan))?),
            None => plan,
        }))
    }
}

/// The join, also below a selection of columns, which the optimizer puts there.
fn as_asof_join(plan: &LogicalPlan) -> Option<&AsofJoin> {
    match plan {
        LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref(),
        LogicalPlan::Projection(projection)
            if projection.expr.iter().all(|expr| matches!(expr, Expr::Column(_))) =>
        {
            match projection.input.as_ref() {
                LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref(),
                _ => None,
            }
        }
        _ => None,
    }
}

fn reads_only(expr: &Expr, left: &DFSchema, right: &DFSchema) -> bool {
    let columns = expr.column_refs();
    !expr.is_volatile()
        && !columns.is_empty()
        && columns.iter().all(|c| left.is_column_from_schema(c) && !right.is_column_from_schema(c))
}
