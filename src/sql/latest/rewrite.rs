//! Makes the group inside `LATEST(group, …)` visible as a table.
//!
//! DataFusion resolves the tables of a statement before planning, by looking for relations in the syntax tree, and an
//! argument of a function is none. So `LATEST(g, 42)` becomes the join `(g CROSS JOIN LATEST(g, 42))`, in parentheses
//! as SQL has it, and [`super::LatestPlanner`] takes exactly such a pair apart again.

use std::ops::ControlFlow;

use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr, FunctionArg, FunctionArgExpr, Join, JoinOperator, ObjectName, TableAlias, TableFactor,
    TableFunctionArgs, TableWithJoins, VisitorMut,
};

use crate::sql::walk::walk;

/// Rewrites every `LATEST(…)` of a statement, inside EXPLAIN and COPY too. Call it once.
pub(crate) fn rewrite_statement(statement: &mut Statement) {
    walk(statement, &mut Carriers);
}

struct Carriers;

impl VisitorMut for Carriers {
    type Break = ();

    fn post_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let Some(carrier) = carrier(factor) {
            *factor = carrier;
        }
        ControlFlow::Continue(())
    }
}

fn carrier(factor: &TableFactor) -> Option<TableFactor> {
    let call = as_latest(factor)?;
    let group = group_name(call.arguments.args.first()?)?;
    let mut table = factor.clone();
    let mut latest = factor.clone();
    if let TableFactor::Table { name, alias, args, .. } = &mut table {
        (*name, *alias, *args) = (group, None, None);
    }
    if let TableFactor::Table { alias, .. } = &mut latest {
        *alias = None;
    }
    let pair = Join {
        relation: latest,
        global: false,
        join_operator: JoinOperator::CrossJoin(datafusion::sql::sqlparser::ast::JoinConstraint::None),
    };
    let table_with_joins = Box::new(TableWithJoins { relation: table, joins: vec![pair] });
    Some(TableFactor::NestedJoin { table_with_joins, alias: call.alias.cloned() })
}

/// A call of `LATEST` in a FROM clause.
pub(super) struct LatestCall<'a> {
    pub(super) arguments: &'a TableFunctionArgs,
    pub(super) alias: Option<&'a TableAlias>,
}

pub(super) fn as_latest(factor: &TableFactor) -> Option<LatestCall<'_>> {
    let TableFactor::Table { name, alias, args: Some(arguments), .. } = factor else { return None };
    let [part] = name.0.as_slice() else { return None };
    let ident = part.as_ident()?;
    (ident.quote_style.is_none() && ident.value.eq_ignore_ascii_case("latest"))
        .then_some(LatestCall { arguments, alias: alias.as_ref() })
}

/// What [`rewrite_statement`] made: the group's table, the call, and the alias of both.
pub(super) fn as_carrier(factor: &TableFactor) -> Option<(&TableFactor, LatestCall<'_>)> {
    let TableFactor::NestedJoin { table_with_joins, alias } = factor else { return None };
    let TableWithJoins { relation, joins } = table_with_joins.as_ref();
    let [join] = joins.as_slice() else { return None };
    let call = as_latest(&join.relation)?;
    Some((relation, LatestCall { alias: alias.as_ref(), ..call }))
}

fn group_name(argument: &FunctionArg) -> Option<ObjectName> {
    match argument {
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::Identifier(name))) => {
            Some(ObjectName::from(vec![name.clone()]))
        }
        FunctionArg::Unnamed(FunctionArgExpr::Expr(Expr::CompoundIdentifier(parts))) => {
            Some(ObjectName::from(parts.clone()))
        }
        _ => None,
    }
}
