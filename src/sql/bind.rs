//! Parameters into a plan: their types, and as many executions as there are rows of values.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::metadata::ScalarAndMetadata;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::{Expr, LogicalPlan, Values};

use super::latest::bind_latest_rows;
use crate::error::{Error, Result};

/// One field for each parameter, in order, named `$1`, `$2`, …; its type is Null where the plan does not tell.
pub(super) fn parameters(plan: &LogicalPlan) -> Result<SchemaRef> {
    let mut types: Vec<(usize, DataType)> = Vec::new();
    for (name, data_type) in plan.get_parameter_types()? {
        let index = name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()).filter(|n| *n > 0);
        let index =
            index.ok_or_else(|| Error::invalid(format!("parameter '{name}' is not one of $1, $2, …")))?;
        types.push((index, data_type.unwrap_or(DataType::Null)));
    }
    let count = types.iter().map(|(i, _)| *i).max().unwrap_or(0);
    if count > types.len() {
        return Err(Error::invalid(format!(
            "the statement uses parameter ${count} but not all before it: number them from $1 without gaps"
        )));
    }
    let unknown: FieldRef = Arc::new(Field::new("", DataType::Null, true));
    let mut fields = vec![unknown; count];
    for (index, data_type) in types {
        fields[index - 1] = Arc::new(Field::new(format!("${index}"), data_type, true));
    }
    Ok(Arc::new(Schema::new(fields)))
}

/// The plans that together run `plan` once for each row of `values`: one plan where `LATEST` or a single
/// `VALUES` list can take all rows, else one for each row.
pub(super) fn bind(plan: LogicalPlan, values: Option<&RecordBatch>) -> Result<Vec<LogicalPlan>> {
    let parameters = parameters(&plan)?;
    let given = values.map_or(0, RecordBatch::num_columns);
    if given != parameters.fields().len() {
        return Err(Error::invalid(format!(
            "the statement has {} parameter{}, and {given} {} given",
            parameters.fields().len(),
            if parameters.fields().len() == 1 { "" } else { "s" },
            if given == 1 { "is" } else { "are" },
        )));
    }
    let Some(values) = values.filter(|_| given > 0) else { return Ok(vec![plan]) };
    if let Some(looked_up) = bind_latest_rows(&plan, values)? {
        return Ok(vec![looked_up]);
    }
    let rows: Vec<Vec<ScalarValue>> = (0..values.num_rows())
        .map(|row| {
            let cells = values.columns().iter().zip(parameters.fields());
            cells.map(|(column, field)| cell(column, row, field)).collect::<Result<_>>()
        })
        .collect::<Result<_>>()?;
    if rows.len() != 1
        && let Some(widened) = widen_values(&plan, &rows)?
    {
        return Ok(vec![widened]);
    }
    rows.into_iter().map(|row| bind_row(plan.clone(), row)).collect()
}

fn cell(
    column: &datafusion::arrow::array::ArrayRef,
    row: usize,
    parameter: &FieldRef,
) -> Result<ScalarValue> {
    let value = ScalarValue::try_from_array(column, row)?;
    match parameter.data_type() {
        DataType::Null => Ok(value),
        wanted if *wanted == value.data_type() => Ok(value),
        wanted => value.cast_to(wanted).map_err(|e| {
            Error::invalid(format!("parameter {} takes {wanted}, not {value}: {e}", parameter.name()))
        }),
    }
}

fn bind_row(plan: LogicalPlan, row: Vec<ScalarValue>) -> Result<LogicalPlan> {
    let values = row.into_iter().map(|value| ScalarAndMetadata::new(value, None)).collect();
    Ok(plan.with_param_values(ParamValues::List(values))?)
}

/// `… VALUES ($1, $2) …` with n rows is `VALUES` of n rows, where nothing else has a parameter and every
/// node above keeps rows apart.
fn widen_values(plan: &LogicalPlan, rows: &[Vec<ScalarValue>]) -> Result<Option<LogicalPlan>> {
    if !rows_stay_apart(plan) || count_placeholders(plan)? != values_placeholders(plan)? {
        return Ok(None);
    }
    let widened = plan.clone().transform_down(|node| match node {
        LogicalPlan::Values(Values { schema, values: list }) if has_placeholder(&list)? => {
            let mut bound = Vec::with_capacity(list.len() * rows.len());
            for row in rows {
                let one = LogicalPlan::Values(Values { schema: Arc::clone(&schema), values: list.clone() });
                if let LogicalPlan::Values(one) = bind_row(one, row.clone())? {
                    bound.extend(one.values);
                }
            }
            Ok(Transformed::yes(LogicalPlan::Values(Values { schema, values: bound })))
        }
        other => Ok(Transformed::no(other)),
    })?;
    Ok(Some(widened.data))
}

/// Whether the plan is a chain of nodes that treat each row alone, down to its one leaf.
fn rows_stay_apart(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Values(_) => true,
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Dml(_) => {
            let inputs = plan.inputs();
            inputs.len() == 1 && rows_stay_apart(inputs[0])
        }
        _ => false,
    }
}

fn values_placeholders(plan: &LogicalPlan) -> Result<usize> {
    let mut count = 0;
    plan.apply(|node| {
        if let LogicalPlan::Values(_) = node {
            count += count_placeholders(node)?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(count)
}

fn count_placeholders(plan: &LogicalPlan) -> datafusion::common::Result<usize> {
    let mut count = 0;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|e| {
                count += usize::from(matches!(e, Expr::Placeholder(_)));
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(count)
}

fn has_placeholder(list: &[Vec<Expr>]) -> datafusion::common::Result<bool> {
    for expr in list.iter().flatten() {
        if expr.exists(|e| Ok(matches!(e, Expr::Placeholder(_))))? {
            return Ok(true);
        }
    }
    Ok(false)
}
