//! `LATEST(group, …)`: what is being served, as a relation.
//!
//! 1. `rewrite` makes the group's name visible to the planner as a table, because DataFusion collects the tables of
//!    a statement before it plans it.
//! 2. `planner` turns `LATEST(group, key, …)` into a look-up over the keys, and `LATEST(group)` into a scan of
//!    [`LatestTable`], which becomes a look-up where a filter names the keys.
//! 3. `join` turns a join with such a scan on exactly the entity key into a look-up over the other side.
//! 4. `bind` puts a whole batch of bound keys into the plan of a prepared look-up, so n keys are one read.
//! 5. `compiled` keeps a statement that is nothing but a look-up ready, so that running it again needs none of the above.
//!
//! [`install`] adds 2 and 3 to a session.

mod bind;
mod compiled;
mod join;
mod keys;
mod planner;
mod rewrite;
mod table;

use std::sync::Arc;

use datafusion::datasource::source_as_provider;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::LogicalPlan;

use crate::clock::Clock;
use crate::exec::LookupNode;
use crate::online::OnlineStore;

pub(crate) use bind::bind_latest_rows;
pub(crate) use compiled::CompiledLatest;
pub(crate) use rewrite::rewrite_statement;

/// Adds the relation planner and the rule to a session. The session's query planner must also know
/// `exec::LookupPlanner`, and DataFusion's default optimizer rules must stay in front of ours.
pub(crate) fn install(
    mut builder: SessionStateBuilder,
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
) -> SessionStateBuilder {
    let planners = builder.relation_planners().get_or_insert_default();
    planners.push(Arc::new(planner::LatestPlanner::new(store, clock)));
    builder.with_optimizer_rule(Arc::new(join::LookupJoin))
}

/// Whether a node of a plan gives what is the latest when it runs.
pub(crate) fn serves_now(node: &LogicalPlan) -> bool {
    match node {
        LogicalPlan::Extension(extension) => extension.node.as_any().is::<LookupNode>(),
        LogicalPlan::TableScan(scan) => {
            source_as_provider(&scan.source).is_ok_and(|table| table.as_any().is::<table::LatestTable>())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
