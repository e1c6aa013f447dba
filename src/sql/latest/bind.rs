//! Bound keys into the plan of a prepared look-up.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use datafusion::arrow::compute::interleave;
use datafusion::arrow::datatypes::{Field, Schema};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, TableReference};
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::logical_expr::{Cast, Expr, Extension, LogicalPlan, LogicalPlanBuilder, Values};

use super::keys::{cast_keys, key_fields};
use crate::error::{Error, Result};
use crate::exec::{LookupNode, Missing};
use crate::model::FeatureGroup;

/// The plan that looks up the keys of every row of `parameters` at once and gives their answers in order, as running
/// the statement row by row would: for `plan`s whose placeholders all stand among the keys of one `LATEST(group, …)`
/// and that treat each of its rows on its own. `None` for any other plan.
///
/// `parameters`: column k holds the values of `$k+1`.
///
/// # Errors
/// `Invalid` when a bound value does not fit its key column, or a placeholder has no column.
pub(crate) fn bind_latest_rows(plan: &LogicalPlan, parameters: &RecordBatch) -> Result<Option<LogicalPlan>> {
    if let LogicalPlan::Extension(extension) = plan {
        let Some(node) = extension.node.as_any().downcast_ref::<LookupNode>() else { return Ok(None) };
        return bind_lookup(node, parameters);
    }
    let row_wise =
        matches!(plan, LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_));
    if !row_wise || !is_closed(plan)? {
        return Ok(None);
    }
    let Some(input) = plan.inputs().first().map(|input| bind_latest_rows(input, parameters)) else {
        return Ok(None);
    };
    Ok(match input? {
        Some(input) => Some(plan.with_new_exprs(plan.expressions(), vec![input])?),
        None => None,
    })
}

/// Whether the node's own expressions are free of placeholders and subqueries.
fn is_closed(plan: &LogicalPlan) -> Result<bool> {
    let mut closed = true;
    plan.apply_expressions(|expr| {
        expr.apply(|part| {
            use Expr::{Exists, InSubquery, Placeholder, ScalarSubquery};
            closed &= !matches!(part, Placeholder(_) | ScalarSubquery(_) | InSubquery(_) | Exists(_));
            Ok(TreeNodeRecursion::Continue)
        })
    })?;
    Ok(closed)
}

fn bind_lookup(node: &LookupNode, parameters: &RecordBatch) -> Result<Option<LogicalPlan>> {
    let LogicalPlan::Values(values) = &node.input else { return Ok(None) };
    if node.request.missing != Missing::Explain {
        return Ok(None);
    }
    let Some(keys) = bound_keys(&node.request.group, values, parameters)? else { return Ok(None) };
    let schema = keys.schema();
    let table = MemTable::try_new(schema, vec![vec![keys]])?;
    let qualifier = TableReference::bare("keys");
    let input =
        LogicalPlanBuilder::scan(qualifier.clone(), provider_as_source(Arc::new(table)), None)?.build()?;
    let keys = input.schema().fields().iter();
    let keys = keys.map(|f| Expr::Column(Column::new(Some(qualifier.clone()), f.name()))).collect();
    let node = LookupNode { input, keys, ..node.clone() };
    Ok(Some(LogicalPlan::Extension(Extension { node: Arc::new(node) })))
}

/// For each row of `parameters`, each row of `values` with its placeholders filled in; `None` where a part of a key is
/// neither placeholder nor literal.
pub(super) fn bound_keys(
    group: &FeatureGroup,
    values: &Values,
    parameters: &RecordBatch,
) -> Result<Option<RecordBatch>> {
    let bindings = parameters.num_rows();
    let fields = key_fields(group);
    let mut columns = Vec::with_capacity(fields.len());
    for (position, field) in fields.iter().enumerate() {
        let mut parts = Vec::with_capacity(values.values.len());
        for row in &values.values {
            let Some(part) = bound_part(group, field, &row[position], parameters)? else { return Ok(None) };
            parts.push(part);
        }
        columns.push(match parts.as_slice() {
            [only] => Arc::clone(only),
            _ => {
                let arrays: Vec<&dyn datafusion::arrow::array::Array> =
                    parts.iter().map(|p| p.as_ref()).collect();
                let places =
                    (0..bindings).flat_map(|binding| (0..arrays.len()).map(move |row| (row, binding)));
                interleave(&arrays, &places.collect::<Vec<_>>())?
            }
        });
    }
    let rows = RecordBatchOptions::new().with_row_count(Some(bindings * values.values.len()));
    Ok(Some(RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &rows)?))
}

/// One value per row of `parameters`; `None` for an expression that is neither a placeholder nor a literal.
fn bound_part(
    group: &FeatureGroup,
    field: &Field,
    part: &Expr,
    parameters: &RecordBatch,
) -> Result<Option<ArrayRef>> {
    match part {
        Expr::Literal(value, _) => Ok(Some(value.to_array_of_size(parameters.num_rows())?)),
        Expr::Cast(Cast { expr, .. }) => match expr.as_ref() {
            Expr::Placeholder(placeholder) => {
                let position = placeholder.id.trim_start_matches('$').parse::<usize>().ok();
                let column =
                    position.and_then(|p| p.checked_sub(1)).and_then(|p| parameters.columns().get(p));
                let column = column.ok_or_else(|| {
                    Error::invalid(format!("parameter {} of the statement is not bound", placeholder.id))
                })?;
                Ok(Some(cast_keys(group, field, column)?))
            }
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}
