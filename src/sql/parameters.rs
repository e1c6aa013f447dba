//! Parameters as clients are told to send them.
//!
//! Binding takes whatever fits without loss; what a client is told matters to one that makes its values fit, and the
//! JDBC driver is such a one. It writes milliseconds into timestamps and times of every unit, so it is told of
//! milliseconds; and into a parameter of type Null it lets nothing but NULL, so no parameter is told to be one.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Cast, Expr, LogicalPlan, TryCast};

use super::bind;
use super::output::wire_type;
use crate::error::Result;

/// One field for each parameter of the plan, in order. Where the plan leaves the type open, it is the one that the
/// parameter is cast to, or else text.
pub(super) fn told(plan: &LogicalPlan) -> Result<SchemaRef> {
    let (parameters, casts) = (bind::parameters(plan)?, casts(plan)?);
    let fields: Vec<FieldRef> = parameters
        .fields()
        .iter()
        .zip(1..)
        .map(|(field, number)| {
            let data_type = match field.data_type() {
                DataType::Null => casts.get(&format!("${number}")).unwrap_or(&DataType::Utf8),
                known => known,
            };
            Arc::new(Field::new(field.name(), in_milliseconds(wire_type(data_type)), true))
        })
        .collect();
    Ok(Arc::new(Schema::new(fields)))
}

fn in_milliseconds(data_type: DataType) -> DataType {
    match data_type {
        DataType::Timestamp(_, zone) => DataType::Timestamp(TimeUnit::Millisecond, zone),
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time32(TimeUnit::Millisecond),
        other => other,
    }
}

/// What parameters are cast to, by name: by CAST, and by LIMIT and OFFSET, which take whole numbers.
fn casts(plan: &LogicalPlan) -> Result<HashMap<String, DataType>> {
    let mut casts = HashMap::new();
    let mut note = |expr: &Expr, data_type: &DataType| {
        if let Expr::Placeholder(parameter) = expr {
            casts.entry(parameter.id.clone()).or_insert_with(|| data_type.clone());
        }
    };
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Limit(limit) = node {
            limit.skip.iter().chain(&limit.fetch).for_each(|expr| note(expr, &DataType::Int64));
        }
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::Cast(Cast { expr, data_type }) | Expr::TryCast(TryCast { expr, data_type }) =
                    expr
                {
                    note(expr, data_type);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    Ok(casts)
}
