//! From the logical node to the physical plan: which strategy, and why.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::{DFSchema, Result, ScalarValue, internal_err};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{Expr, LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_expr::PhysicalExprRef;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{ExtensionPlanner, PhysicalPlanner};

use super::choice::{Choice, Side, choose};
use super::exec::{AsofJoinExec, KnownAtExprs, Params};
use super::history::AsofHistoryExec;
use super::merge::{Knowledge, Rules};
use super::node::AsofJoin;
use super::spec::AsofSpec;

/// Plans [`AsofJoin`] nodes.
#[derive(Debug, Default)]
pub(crate) struct AsofExtensionPlanner;

#[async_trait]
impl ExtensionPlanner for AsofExtensionPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session_state: &SessionState,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(node) = node.as_any().downcast_ref::<AsofJoin>() else {
            return Ok(None);
        };
        let ([left_plan, right_plan], [left, right]) = (logical_inputs, physical_inputs) else {
            return internal_err!("an ASOF join has two inputs");
        };
        let on_left = |expr: &Expr| planner.create_physical_expr(expr, left_plan.schema(), session_state);
        let on_right = |expr: &Expr| planner.create_physical_expr(expr, right_plan.schema(), session_state);
        let schema = Arc::clone(UserDefinedLogicalNode::schema(node).inner());
        let side = Side { plan: left, on_left: &on_left };
        let why_not = match choose(node, &side, session_state).await? {
            Choice::Files { exprs, kind, right } => {
                let right = Arc::new(*right);
                if let Some(inner) = left.as_any().downcast_ref::<AsofHistoryExec>()
                    && inner.sorts_as(&exprs)
                    && right.known_by.as_ref().is_none_or(|known| inner.is_of_labels(&known.bound))
                {
                    return Ok(Some(Arc::new(inner.with_right(right, schema))));
                }
                let partitions = session_state.config().target_partitions();
                let (left, exprs) = (Arc::clone(left), Arc::new(exprs));
                let exec = AsofHistoryExec::new(left, exprs, kind, vec![right], schema, partitions);
                return Ok(Some(Arc::new(exec)));
            }
            Choice::Partitioned(reason) => reason,
        };
        let params = physical_params(node, right_plan.schema(), &on_left, &on_right, why_not)?;
        let exec = AsofJoinExec::try_new(Arc::clone(left), Arc::clone(right), Arc::new(params), schema)?;
        Ok(Some(Arc::new(exec)))
    }
}

fn physical_params(
    node: &AsofJoin,
    right: &DFSchema,
    on_left: &dyn Fn(&Expr) -> Result<PhysicalExprRef>,
    on_right: &dyn Fn(&Expr) -> Result<PhysicalExprRef>,
    why: &str,
) -> Result<Params> {
    let spec = node.spec();
    let on = spec.on.iter().map(|(l, r)| Ok((on_left(l)?, on_right(r)?))).collect::<Result<Vec<_>>>()?;
    let known_at = match &spec.known_at {
        None => None,
        Some(known) => Some(KnownAtExprs {
            bound: on_left(&known.bound)?,
            strict: known.strict,
            column: on_right(&Expr::Column(known.column.clone()))?,
        }),
    };
    let ties = spec.ties.iter().map(|tie| on_right(&Expr::Column(tie.clone()))).collect::<Result<_>>()?;
    let right_output = node.right_output();
    let absent = right_output.iter().map(|&index| absent_value(spec, right, index)).collect::<Result<_>>()?;
    Ok(Params {
        join_type: spec.join_type,
        on,
        left_time: on_left(&spec.left_time)?,
        right_time: on_right(&spec.right_time)?,
        backward: spec.op.is_backward(),
        rules: Rules { strict: spec.op.is_strict(), reach: spec.reach(), knowledge: knowledge(spec) },
        known_at,
        ties,
        right_output,
        absent,
        description: format!("type={}, {spec}, strategy=partitioned merge ({why})", spec.join_type),
    })
}

fn knowledge(spec: &AsofSpec) -> Knowledge {
    match &spec.known_at {
        None => Knowledge::Ignored,
        Some(known) if matches!(known.bound, Expr::Literal(..)) => Knowledge::GrowingBound,
        Some(known) if spec.op.is_backward() && known.bound == spec.left_time => Knowledge::GrowingBound,
        Some(_) => Knowledge::AnyBound,
    }
}

/// What stands in for a right column when no row matches.
pub(super) fn absent_value(spec: &AsofSpec, right: &DFSchema, index: usize) -> Result<ScalarValue> {
    let default = spec.defaults.iter().find(|(column, _)| right.maybe_index_of_column(column) == Some(index));
    match default {
        Some((_, value)) => Ok(value.clone()),
        None => ScalarValue::try_new_null(right.field(index).data_type()),
    }
}
