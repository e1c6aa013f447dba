//! The keys that `LATEST(group, …)` lists: as many columns as the entity key has, of its types, one row per key.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef};
use datafusion::arrow::compute::kernels::cmp::not_distinct;
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::planner::RelationPlannerContext;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::Expr as SqlExpr;

use crate::error::{Error, Result};
use crate::model::FeatureGroup;

/// The plan that lists `keys`.
///
/// # Errors
/// `Invalid` for a key with too few or too many parts, of the wrong type, or that is no constant.
pub(super) fn plan_keys(
    group: &FeatureGroup,
    keys: Vec<SqlExpr>,
    context: &mut dyn RelationPlannerContext,
) -> Result<LogicalPlan> {
    let fields = key_fields(group);
    let mut values = Vec::with_capacity(keys.len());
    for key in keys {
        let parts = match key {
            SqlExpr::Tuple(parts) => parts,
            SqlExpr::Nested(part) => vec![*part],
            part => vec![part],
        };
        if parts.len() != fields.len() {
            return Err(wrong_arity(group, &parts));
        }
        let row = parts.into_iter().zip(&fields).map(|(part, field)| plan_part(group, part, field, context));
        values.push(row.collect::<Result<Vec<_>>>()?);
    }
    // DataFusion names the columns, and would again whenever it binds a value.
    Ok(LogicalPlanBuilder::values(values)?.build()?)
}

/// The key's columns as they are asked for: any of them may be NULL, and then nothing is found.
pub(super) fn key_fields(group: &FeatureGroup) -> Vec<FieldRef> {
    group.key_fields().iter().map(|f| Arc::new(Field::new(f.name(), f.data_type().clone(), true))).collect()
}

fn wrong_arity(group: &FeatureGroup, parts: &[SqlExpr]) -> Error {
    let columns: Vec<&str> =
        group.entity_key.iter().map(|i| group.columns[*i].field.name().as_str()).collect();
    let (columns, got) = (columns.join(", "), parts.len());
    let shown: Vec<String> = parts.iter().map(SqlExpr::to_string).collect();
    let shown = shown.join(", ");
    let (name, wanted) = (&group.name, group.entity_key.len());
    let hint = match wanted {
        1 => format!("write LATEST({name}, {columns}, …) with one value per entity"),
        _ => format!("write LATEST({name}, ({columns}), …) with one tuple per entity"),
    };
    Error::invalid(format!("key ({shown}) of LATEST({name}, …) has {got} of {wanted} columns: {hint}"))
}

fn plan_part(
    group: &FeatureGroup,
    part: SqlExpr,
    field: &FieldRef,
    context: &mut dyn RelationPlannerContext,
) -> Result<Expr> {
    let shown = part.to_string();
    let constant = |expr: Expr| {
        let columns = expr.column_refs();
        match columns.is_empty() && !expr.contains_outer() {
            true => Ok(expr),
            false => Err(not_constant(group, &shown)),
        }
    };
    let expr = match context.sql_to_expr(part.clone(), &DFSchema::empty()) {
        Ok(expr) => constant(expr)?,
        // A bare name is no column here; the planner's words about that would not help.
        Err(_) if matches!(part, SqlExpr::Identifier(_) | SqlExpr::CompoundIdentifier(_)) => {
            return Err(not_constant(group, &shown));
        }
        Err(error) => return Err(error.into()),
    };
    let wanted = field.data_type();
    match expr {
        Expr::Literal(value, _) => {
            let cast = cast_keys(group, field, &value.to_array()?)?;
            Ok(Expr::Literal(ScalarValue::try_from_array(&cast, 0)?, None))
        }
        // The cast lets a value of another width be bound; `field` tells clients the type to bind.
        Expr::Placeholder(placeholder) => {
            let typed =
                Expr::Placeholder(Placeholder::new_with_field(placeholder.id, Some(Arc::clone(field))));
            Ok(Expr::Cast(Cast::new(Box::new(typed), wanted.clone())))
        }
        expr => {
            let got = expr.get_type(&DFSchema::empty())?;
            match got == *wanted {
                true => Ok(expr),
                false if accepts(&got, wanted) => Ok(Expr::Cast(Cast::new(Box::new(expr), wanted.clone()))),
                false => Err(wrong_type(group, field, &shown, &got)),
            }
        }
    }
}

fn not_constant(group: &FeatureGroup, shown: &str) -> Error {
    Error::invalid(format!(
        "key {shown} of LATEST({name}, …) is not a constant: quote it if it is text, or join with LATEST({name})",
        name = group.name
    ))
}

fn wrong_type(group: &FeatureGroup, field: &Field, shown: &str, got: &DataType) -> Error {
    Error::invalid(format!(
        "key {shown} of LATEST({}, …) is {got}, and '{}' is {}",
        group.name,
        field.name(),
        field.data_type()
    ))
}

/// `values` as the key column `field`.
///
/// # Errors
/// `Invalid` when the types do not go together, or a value would not stay the same.
pub(super) fn cast_keys(group: &FeatureGroup, field: &Field, values: &ArrayRef) -> Result<ArrayRef> {
    let (got, wanted) = (values.data_type(), field.data_type());
    if got == wanted {
        return Ok(Arc::clone(values));
    }
    let shown = || match values.len() {
        1 => ScalarValue::try_from_array(values, 0).map_or_else(|_| "given".to_owned(), |v| v.to_string()),
        rows => format!("column of {rows} rows"),
    };
    if !accepts(got, wanted) {
        return Err(wrong_type(group, field, &shown(), got));
    }
    let unfit = || {
        let (name, column) = (&group.name, field.name());
        Error::invalid(format!(
            "key {} of LATEST({name}, …) does not fit '{column}', which is {wanted}",
            shown()
        ))
    };
    let options = CastOptions { safe: false, ..CastOptions::default() };
    let cast = cast_with_options(values, wanted, &options).map_err(|e| unfit().with_source(e))?;
    // Text has many spellings of one date; of everything else a key must come back as it was.
    if !got.is_string() && !got.is_null() {
        let back = cast_with_options(&cast, got, &options).map_err(|e| unfit().with_source(e))?;
        if not_distinct(&back, values)?.false_count() > 0 {
            return Err(unfit());
        }
    }
    Ok(cast)
}

/// Whether values of type `got` may stand for keys of type `wanted`, if they fit.
fn accepts(got: &DataType, wanted: &DataType) -> bool {
    use DataType::{Binary, Boolean, Date32, Decimal128, Int32, Int64, Timestamp, Utf8};
    let wanted_is_time = matches!(wanted, Timestamp(_, _) | Date32);
    match (got, wanted) {
        _ if got == wanted || got.is_null() => true,
        (DataType::Dictionary(_, values), _) => accepts(values, wanted),
        (_, Boolean) => false,
        (_, Int32 | Int64 | Decimal128(_, _)) => got.is_numeric(),
        (_, Utf8) => got.is_string(),
        (_, Binary) => got.is_binary(),
        _ if wanted_is_time => got.is_string() || matches!(got, Timestamp(_, _) | Date32 | DataType::Date64),
        _ => false,
    }
}
