//! Parameters into a plan: their types, and as many executions as there are rows of values.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::metadata::ScalarAndMetadata;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::logical_expr::{DmlStatement, EmptyRelation, Expr, LogicalPlan, Union, Values, WriteOp};

use super::latest::bind_latest_rows;
use crate::error::{Error, Result};
use crate::ingest::lossless;

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

/// How many executions of one INSERT … SELECT are planned as one.
const UNION_ROWS_MAX: usize = 1000;

/// A statement with its values: executions, in order, that together run it once for each row of values.
pub(super) enum Bound {
    /// All rows in one plan, because `LATEST`, a `VALUES` list or an INSERT can take them together.
    Together(LogicalPlan),
    /// Each row in a plan of its own, made when its turn comes.
    RowByRow { plan: LogicalPlan, values: RecordBatch },
}

impl Bound {
    /// How many plans there are.
    pub(super) fn executions(&self) -> usize {
        match self {
            Self::Together(_) => 1,
            Self::RowByRow { values, .. } => values.num_rows(),
        }
    }

    /// The plan of one execution.
    pub(super) fn plan(&self, execution: usize) -> Result<LogicalPlan> {
        match self {
            Self::Together(plan) => Ok(plan.clone()),
            Self::RowByRow { plan, values } => {
                bind_row(plan.clone(), row_of(parameters(plan)?.as_ref(), values, execution)?)
            }
        }
    }
}

/// Puts `values` (columns in parameter order) into `plan`.
///
/// # Errors
/// `Invalid` where their number or a type does not fit.
pub(super) fn bind(plan: LogicalPlan, values: Option<&RecordBatch>) -> Result<Bound> {
    let parameters = parameters(&plan)?;
    check_count(&parameters, values)?;
    let Some(values) = values.filter(|values| values.num_columns() > 0) else {
        return Ok(Bound::Together(plan));
    };
    if let Some(looked_up) = bind_latest_rows(&plan, values)? {
        return Ok(Bound::Together(looked_up));
    }
    if let LogicalPlan::Dml(insert) = &plan
        && matches!(insert.op, WriteOp::Insert(_))
        && values.num_rows() != 1
    {
        return insert_all(insert, &parameters, values).map(Bound::Together);
    }
    Ok(Bound::RowByRow { plan, values: values.clone() })
}

/// Refuses more or fewer values than there are parameters.
pub(super) fn check_count(parameters: &Schema, values: Option<&RecordBatch>) -> Result<()> {
    let (wanted, given) = (parameters.fields().len(), values.map_or(0, RecordBatch::num_columns));
    if given == wanted {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "the statement has {wanted} parameter{}, and {given} {} given",
        if wanted == 1 { "" } else { "s" },
        if given == 1 { "is" } else { "are" },
    )))
}

/// One INSERT of the rows of all executions: all of them or none, in one write.
fn insert_all(insert: &DmlStatement, parameters: &Schema, values: &RecordBatch) -> Result<LogicalPlan> {
    let rows = values.num_rows();
    if rows == 0 {
        let schema = Arc::clone(insert.input.schema());
        let none = LogicalPlan::EmptyRelation(EmptyRelation { produce_one_row: false, schema });
        return Ok(LogicalPlan::Dml(DmlStatement { input: Arc::new(none), ..insert.clone() }));
    }
    if let Some(widened) = widen_values(&insert.input, parameters, values)? {
        return Ok(LogicalPlan::Dml(DmlStatement { input: Arc::new(widened), ..insert.clone() }));
    }
    if rows > UNION_ROWS_MAX {
        return Err(Error::invalid(format!(
            "{rows} rows were bound to an INSERT that is not of the form INSERT … VALUES (?, …), which takes at most \
             {UNION_ROWS_MAX} at a time: use bulk ingest"
        )));
    }
    let inputs =
        (0..rows).map(|row| bind_row(insert.input.as_ref().clone(), row_of(parameters, values, row)?));
    let inputs: Vec<Arc<LogicalPlan>> = inputs.map(|plan| plan.map(Arc::new)).collect::<Result<_>>()?;
    let input = LogicalPlan::Union(Union { inputs, schema: Arc::clone(insert.input.schema()) });
    Ok(LogicalPlan::Dml(DmlStatement { input: Arc::new(input), ..insert.clone() }))
}

/// The values of one execution, of the parameters' types.
fn row_of(parameters: &Schema, values: &RecordBatch, row: usize) -> Result<Vec<ScalarValue>> {
    values.columns().iter().zip(parameters.fields()).map(|(column, field)| cell(column, row, field)).collect()
}

fn cell(
    column: &datafusion::arrow::array::ArrayRef,
    row: usize,
    parameter: &FieldRef,
) -> Result<ScalarValue> {
    let value = column.slice(row, 1);
    let value = match parameter.data_type() {
        DataType::Null => value,
        wanted => lossless(&value, wanted).map_err(|e| {
            Error::invalid(format!("parameter {} takes {wanted}: {}", parameter.name(), e.message()))
        })?,
    };
    Ok(ScalarValue::try_from_array(&value, 0)?)
}

fn bind_row(plan: LogicalPlan, row: Vec<ScalarValue>) -> Result<LogicalPlan> {
    let values = row.into_iter().map(|value| ScalarAndMetadata::new(value, None)).collect();
    Ok(plan.with_param_values(ParamValues::List(values))?)
}

/// `… VALUES ($1, $2) …` with n rows is `VALUES` of n rows, where nothing else has a parameter and every
/// node above keeps rows apart.
fn widen_values(
    plan: &LogicalPlan,
    parameters: &Schema,
    values: &RecordBatch,
) -> Result<Option<LogicalPlan>> {
    if !rows_stay_apart(plan) || count_placeholders(plan)? != values_placeholders(plan)? {
        return Ok(None);
    }
    let widened = plan.clone().transform_down(|node| match node {
        LogicalPlan::Values(Values { schema, values: list }) if has_placeholder(&list)? => {
            let mut bound = Vec::with_capacity(list.len() * values.num_rows());
            for row in 0..values.num_rows() {
                let one = LogicalPlan::Values(Values { schema: Arc::clone(&schema), values: list.clone() });
                if let LogicalPlan::Values(one) = bind_row(one, row_of(parameters, values, row)?)? {
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
        LogicalPlan::Projection(_) | LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => {
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
