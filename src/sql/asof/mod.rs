//! `ASOF JOIN` from text to plan, in both dialects.
//!
//! The parts, in the order a query meets them; each only works after the one before:
//! 1. [`rewrite_tokens`] on the tokens, before parsing.
//! 2. [`rewrite_statement`] on the syntax tree, before planning.
//! 3. A relation planner plans both sides and emits an ordinary join that carries a marker in its filter.
//! 4. An analyzer rule, after DataFusion's type coercion, turns the marked join into [`AsofJoin`] and adds
//!    what the right side's feature group says: TTL, defaults, ingestion order.
//! 5. An optimizer rule pushes filters on left columns below the join.
//! 6. [`AsofExtensionPlanner`] makes the physical plan.
//!
//! [`install`] adds 3, 4 and 5 to a session.

mod condition;
mod lower;
mod marker;
mod planner;
mod pushdown;
mod statement;
#[cfg(test)]
mod tests;
mod tokens;
mod trace;

use std::sync::Arc;

use datafusion::execution::session_state::SessionStateBuilder;

use crate::exec::SessionOptions;
pub(crate) use crate::exec::asof::AsofExtensionPlanner;
use crate::exec::asof::AsofJoin;
pub(crate) use statement::rewrite_statement;
pub(crate) use tokens::rewrite_tokens;

/// Adds the relation planner and the rules to a session. The session's query planner must also know
/// [`AsofExtensionPlanner`], and DataFusion's default analyzer rules must stay in front of ours.
pub(crate) fn install(mut builder: SessionStateBuilder) -> SessionStateBuilder {
    // A side that is partitioned on a subset of the keys would count as partitioned on them, differently from the
    // other side: DataFusion keeps its own joins from that, and no one else's.
    let config = builder.config().get_or_insert_default();
    config.options_mut().optimizer.subset_repartition_threshold = usize::MAX;
    if config.options().extensions.get::<SessionOptions>().is_none() {
        config.options_mut().extensions.insert(SessionOptions::default());
    }
    let planners = builder.relation_planners().get_or_insert_default();
    planners.push(Arc::new(planner::AsofRelationPlanner));
    builder
        .with_analyzer_rule(Arc::new(lower::LowerAsofJoin))
        .with_optimizer_rule(Arc::new(pushdown::PushFilterBelowAsofJoin))
}
