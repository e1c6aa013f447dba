//! Logical look-ups to physical ones.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::common::Result;
use datafusion::common::stats::Precision;
use datafusion::execution::context::SessionState;
use datafusion::logical_expr::{LogicalPlan, UserDefinedLogicalNode};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::physical_planner::{ExtensionPlanner, PhysicalPlanner};

use super::answer::Missing;
use super::logical::{LookupNode, LookupOutput};
use super::lookup_exec::{LookupExec, Output};
use crate::clock::Clock;
use crate::error::Error;
use crate::online::OnlineStore;

/// Plans [`LookupNode`]s against one store.
#[derive(Debug)]
pub(crate) struct LookupPlanner {
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
}

impl LookupPlanner {
    pub(crate) fn new(store: Arc<dyn OnlineStore>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock }
    }
}

#[async_trait]
impl ExtensionPlanner for LookupPlanner {
    async fn plan_extension(
        &self,
        planner: &dyn PhysicalPlanner,
        node: &dyn UserDefinedLogicalNode,
        _logical_inputs: &[&LogicalPlan],
        physical_inputs: &[Arc<dyn ExecutionPlan>],
        session_state: &SessionState,
    ) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let Some(node) = node.as_any().downcast_ref::<LookupNode>() else { return Ok(None) };
        let input = physical_inputs
            .first()
            .ok_or_else(|| Error::internal("a look-up was planned without its input"))?;
        let physical = |expr| planner.create_physical_expr(expr, node.input.schema(), session_state);
        let keys = node.keys.iter().map(physical).collect::<Result<Vec<_>>>()?;
        let output = node.output.iter().map(|output| match output {
            LookupOutput::Input(expr) => Ok(Output::Input(physical(expr)?)),
            LookupOutput::Latest(i) => Ok(Output::Latest(*i)),
        });
        let lookup = LookupExec::new(
            Arc::clone(input),
            keys,
            output.collect::<Result<Vec<_>>>()?,
            node.request.clone(),
            (Arc::clone(&self.store), Arc::clone(&self.clock)),
            Arc::clone(node.schema.inner()),
        );
        let config = session_state.config();
        let single = input.output_partitioning().partition_count() == 1;
        // Up to a batch of rows is never spread anyway, and needs no partitions to prevent it.
        let short = match input.partition_statistics(None)?.num_rows {
            Precision::Exact(rows) => rows <= config.batch_size(),
            _ => false,
        };
        Ok(Some(match node.request.missing {
            Missing::Explain if single && !short => {
                Arc::new(lookup.keeping_order(config.target_partitions()))
            }
            _ => Arc::new(lookup),
        }))
    }
}
