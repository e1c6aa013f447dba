//! Turns marked joins into ASOF joins, with what the right side's feature group says.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DFSchema, JoinType, Result, ScalarValue, internal_err};
use datafusion::logical_expr::logical_plan::Join;
use datafusion::logical_expr::{Cast, Expr, ExprSchemable, Extension, LogicalPlan, Operator, binary_expr};
use datafusion::optimizer::AnalyzerRule;

use super::marker::Marker;
use super::trace::{trace, with_stored_rows, with_system_columns};
use crate::error::Error;
use crate::exec::asof::{AsofJoin, AsofSpec, KnownAt, Reach, is_instant};
use crate::model::{INGESTED_AT, SEQUENCE, system_fields};

/// See the module's description; to run after type coercion, which gives keys their common type.
#[derive(Debug)]
pub(super) struct LowerAsofJoin;

impl AnalyzerRule for LowerAsofJoin {
    fn analyze(&self, plan: LogicalPlan, _config: &ConfigOptions) -> Result<LogicalPlan> {
        plan.transform_up_with_subqueries(|plan| match plan {
            LogicalPlan::Join(join) if join.filter.as_ref().is_some_and(|f| Marker::find(f).is_some()) => {
                Ok(Transformed::yes(lower(join)?))
            }
            other => Ok(Transformed::no(other)),
        })
        .map(|transformed| transformed.data)
    }

    fn name(&self) -> &str {
        "lower_asof_join"
    }
}

fn lower(join: Join) -> Result<LogicalPlan> {
    let Some((marker, [left_time, right_time, bound @ ..])) = join.filter.as_ref().and_then(Marker::find)
    else {
        return internal_err!("an ASOF join lost its times");
    };
    let mut on = join.on.clone();
    if marker.time_is_last_key {
        on.pop();
    }
    let on = on
        .into_iter()
        .map(|(left, right)| Ok((key(left, join.left.schema())?, key(right, join.right.schema())?)))
        .collect::<Result<Vec<_>>>()?;
    let right = History::of(&join.right)?;
    let known_at = match (marker.known_at_strict, bound) {
        (Some(strict), [bound]) => {
            let bound = instant(bound.clone(), join.left.schema())?;
            Some(KnownAt { bound, strict, column: right.ingested_at()? })
        }
        _ => None,
    };
    let group = as_cast_column(right_time)
        .and_then(|column| trace(&join.right, column))
        .filter(|source| source.column == source.group.event_time)
        .map(|source| source.group);
    let ttl = group.and_then(|group| group.ttl).filter(|_| marker.op.is_backward());
    let spec = AsofSpec {
        join_type: join.join_type,
        on,
        left_time: left_time.clone(),
        op: marker.op,
        right_time: right_time.clone(),
        tolerance: marker.tolerance,
        ttl: ttl.map(|ttl| Reach { max: ttl.as_nanos().cast_signed(), strict: false, instants: true }),
        known_at,
        ties: right.ties,
        hidden: right.hidden,
        defaults: if join.join_type == JoinType::Left { defaults(&join.right) } else { Vec::new() },
    };
    let node = AsofJoin::try_new(Arc::unwrap_or_clone(join.left), right.plan, spec)?;
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

/// The right side, with the columns that order its ties where it has them.
struct History {
    plan: LogicalPlan,
    ties: Vec<Column>,
    hidden: Vec<Column>,
}

impl History {
    fn of(right: &LogicalPlan) -> Result<Self> {
        if let Some(ingested_at) = shown(right.schema(), INGESTED_AT) {
            let ties = [Some(ingested_at), shown(right.schema(), SEQUENCE)].into_iter().flatten().collect();
            return Ok(Self { plan: right.clone(), ties, hidden: Vec::new() });
        }
        Ok(match with_system_columns(right)? {
            Some(extended) => {
                let ties = vec![extended.ingested_at, extended.sequence];
                Self { plan: extended.plan, hidden: ties.clone(), ties }
            }
            None => Self { plan: with_stored_rows(right)?, ties: Vec::new(), hidden: Vec::new() },
        })
    }

    fn ingested_at(&self) -> Result<Column> {
        match self.ties.first() {
            Some(column) => Ok(column.clone()),
            None => Err(Error::invalid(format!(
                "{INGESTED_AT} is not known for the right side of this ASOF JOIN: it must be a feature group or a \
                 selection from one, without aggregates, joins or DISTINCT"
            ))
            .into()),
        }
    }
}

/// The one column of this system column's name and type.
fn shown(schema: &DFSchema, name: &str) -> Option<Column> {
    let [ingested_at, sequence] = system_fields();
    let expected = if name == INGESTED_AT { ingested_at } else { sequence };
    let mut columns = schema
        .iter()
        .filter(|(_, field)| {
            field.name() == name
                && (field.data_type() == expected.data_type()
                    || is_instant(field.data_type()) && is_instant(expected.data_type()))
        })
        .map(Column::from);
    match (columns.next(), columns.next()) {
        (Some(column), None) => Some(column),
        _ => None,
    }
}

/// The defaults of the right columns that are features passed on unchanged.
fn defaults(right: &LogicalPlan) -> Vec<(Column, ScalarValue)> {
    right
        .schema()
        .columns()
        .into_iter()
        .filter_map(|column| {
            let source = trace(right, &column)?;
            let default = source.group.columns.get(source.column)?.default.clone()?;
            Some((column, default))
        })
        .collect()
}

/// The column under casts between times, which keep the instant.
fn as_cast_column(expr: &Expr) -> Option<&Column> {
    match expr {
        Expr::Column(column) => Some(column),
        Expr::Cast(Cast { expr, data_type }) if is_instant(data_type) => as_cast_column(expr),
        _ => None,
    }
}

/// A key as the operator compares it: dictionaries by their values, both zeros as one.
fn key(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    let data_type = expr.get_type(schema)?;
    Ok(match data_type {
        DataType::Dictionary(_, value) => Expr::Cast(Cast::new(Box::new(expr), *value)),
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let zero = ScalarValue::new_zero(&data_type)?;
            binary_expr(expr, Operator::Plus, Expr::Literal(zero, None))
        }
        _ => expr,
    })
}

fn instant(bound: Expr, schema: &DFSchema) -> Result<Expr> {
    let data_type = bound.get_type(schema)?;
    if is_instant(&data_type) {
        return Ok(bound);
    }
    let [ingested_at, _] = system_fields();
    Ok(Expr::Cast(Cast::new(Box::new(bound), ingested_at.data_type().clone())))
}
