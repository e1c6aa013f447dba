//! Follows columns of the right side down to the feature group they come from.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, Result};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, Projection, SubqueryAlias, TableScan};

use crate::exec::asof::as_column;
use crate::model::{FeatureGroup, INGESTED_AT, SEQUENCE};
use crate::sql::{FeatureGroupTable, PlainTable};

/// A declared column of a feature group.
pub(super) struct Source {
    pub(super) group: Arc<FeatureGroup>,
    /// Index into the group's columns.
    pub(super) column: usize,
}

/// Where a column comes from, if it is passed on unchanged (but perhaps renamed) from a feature group's scan.
pub(super) fn trace(plan: &LogicalPlan, column: &Column) -> Option<Source> {
    let index = plan.schema().maybe_index_of_column(column)?;
    match plan {
        LogicalPlan::TableScan(scan) => {
            let group = feature_group(scan)?.definition;
            let column =
                scan.projection.as_ref().map_or(Some(index), |projection| projection.get(index).copied())?;
            (column < group.columns.len()).then_some(Source { group, column })
        }
        LogicalPlan::SubqueryAlias(alias) => {
            trace(&alias.input, &Column::from(alias.input.schema().qualified_field(index)))
        }
        LogicalPlan::Projection(projection) => {
            trace(&projection.input, as_column(projection.expr.get(index)?)?)
        }
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => {
            plan.inputs().first().and_then(|input| trace(input, column))
        }
        _ => None,
    }
}

fn feature_group(scan: &TableScan) -> Option<FeatureGroupTable> {
    let provider = source_as_provider(&scan.source).ok()?;
    provider.as_any().downcast_ref::<FeatureGroupTable>().cloned()
}

/// The same plan with the system columns of its feature group behind its own.
pub(super) struct WithSystemColumns {
    pub(super) plan: LogicalPlan,
    pub(super) ingested_at: Column,
    pub(super) sequence: Column,
}

/// Shows the system columns of the one feature group that `plan` reads, or `None` where it reads anything else
/// or where they cannot be passed on, as through an aggregate.
pub(super) fn with_system_columns(plan: &LogicalPlan) -> Result<Option<WithSystemColumns>> {
    let below = |input: &LogicalPlan| with_system_columns(input);
    Ok(match plan {
        LogicalPlan::TableScan(scan) => extend_scan(scan)?,
        LogicalPlan::SubqueryAlias(alias) => match below(&alias.input)? {
            Some(input) => {
                let plan = SubqueryAlias::try_new(Arc::new(input.plan), alias.alias.clone())?;
                let named = |name: &str| Column::new(Some(alias.alias.clone()), name);
                let (ingested_at, sequence) = (named(INGESTED_AT), named(SEQUENCE));
                Some(WithSystemColumns { plan: LogicalPlan::SubqueryAlias(plan), ingested_at, sequence })
            }
            None => None,
        },
        LogicalPlan::Projection(projection) => match below(&projection.input)? {
            Some(input) => {
                let mut exprs = projection.expr.clone();
                exprs
                    .extend([&input.ingested_at, &input.sequence].map(|column| Expr::Column(column.clone())));
                let plan = LogicalPlan::Projection(Projection::try_new(exprs, Arc::new(input.plan))?);
                Some(WithSystemColumns { plan, ..input })
            }
            None => None,
        },
        LogicalPlan::Filter(filter) => match below(&filter.input)? {
            Some(input) => {
                let plan = Filter::try_new(filter.predicate.clone(), Arc::new(input.plan))?;
                Some(WithSystemColumns { plan: LogicalPlan::Filter(plan), ..input })
            }
            None => None,
        },
        LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => match plan.inputs().first() {
            Some(input) => match below(input)? {
                Some(input) => {
                    let plan = plan.with_new_exprs(plan.expressions(), vec![input.plan])?;
                    Some(WithSystemColumns { plan, ..input })
                }
                None => None,
            },
            None => None,
        },
        _ => None,
    })
}

fn extend_scan(scan: &TableScan) -> Result<Option<WithSystemColumns>> {
    let Some(table) = feature_group(scan) else {
        return Ok(None);
    };
    let declared = table.definition.columns.len();
    let mut projection = scan.projection.clone().unwrap_or_else(|| (0..declared).collect());
    projection.extend([declared, declared + 1]);
    let name = scan.table_name.clone();
    let named = |column: &str| Column::new(Some(name.clone()), column);
    let (ingested_at, sequence) = (named(INGESTED_AT), named(SEQUENCE));
    let source = provider_as_source(table.history);
    let scan = TableScan::try_new(name.clone(), source, Some(projection), scan.filters.clone(), scan.fetch)?;
    Ok(Some(WithSystemColumns { plan: LogicalPlan::TableScan(scan), ingested_at, sequence }))
}

/// The same plan over the stored rows of its plain tables, which the join may read on its own.
pub(super) fn with_stored_rows(plan: &LogicalPlan) -> Result<LogicalPlan> {
    let stored = plan.clone().transform_up(|plan| match plan {
        LogicalPlan::TableScan(scan) => {
            let provider = source_as_provider(&scan.source)?;
            let Some(table) = provider.as_any().downcast_ref::<PlainTable>() else {
                return Ok(Transformed::no(LogicalPlan::TableScan(scan)));
            };
            let source = provider_as_source(Arc::clone(&table.rows) as _);
            Ok(Transformed::yes(LogicalPlan::TableScan(TableScan { source, ..scan })))
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok(stored.data)
}
