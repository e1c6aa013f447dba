//! Plans the table factors that hold an ASOF join: both sides, and a marked join of them.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::common::{Column, DFSchema, JoinType, NullEquality, Result};
use datafusion::logical_expr::expr_rewriter::normalize_col_with_schemas_and_ambiguity_check;
use datafusion::logical_expr::logical_plan::Join as LogicalJoin;
use datafusion::logical_expr::planner::{
    PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning,
};
use datafusion::logical_expr::{Expr, JoinConstraint as LogicalConstraint, LogicalPlan};
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, Join, JoinConstraint, JoinOperator, ObjectName, ObjectNamePart, TableFactor,
    TableWithJoins,
};

use super::condition::{Condition, Sides};
use super::marker::Marker;
use super::statement::is_asof;
use crate::error::Error;
use crate::model::{INGESTED_AT, system_fields};

/// Plans what [`rewrite_statement`](super::rewrite_statement) set apart.
#[derive(Debug)]
pub(super) struct AsofRelationPlanner;

impl RelationPlanner for AsofRelationPlanner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<RelationPlanning> {
        if !is_asof(&relation) {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        }
        let TableFactor::NestedJoin { table_with_joins, alias } = relation else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let TableWithJoins { relation, mut joins } = *table_with_joins;
        let Some(join) = joins.pop() else {
            return context.plan(relation).map(|plan| planned(plan, alias));
        };
        let left = if joins.is_empty() {
            relation
        } else {
            let table_with_joins = Box::new(TableWithJoins { relation, joins });
            TableFactor::NestedJoin { table_with_joins, alias: None }
        };
        let left = context.plan(left)?;
        let plan = plan_join(left, join, context)?;
        Ok(planned(plan, alias))
    }
}

fn planned(
    plan: LogicalPlan,
    alias: Option<datafusion::sql::sqlparser::ast::TableAlias>,
) -> RelationPlanning {
    RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias)))
}

fn plan_join(left: LogicalPlan, join: Join, context: &mut dyn RelationPlannerContext) -> Result<LogicalPlan> {
    if let TableFactor::Derived { lateral: true, .. } | TableFactor::Function { lateral: true, .. } =
        &join.relation
    {
        return Err(Error::unsupported("the right side of an ASOF JOIN cannot be LATERAL").into());
    }
    let inner_flag = join.global;
    let right = context.plan(join.relation)?;
    let mut names = Names::new(&left, &right, context)?;
    let (join_type, condition, constraint) = match join.join_operator {
        JoinOperator::AsOf { match_condition, constraint } => {
            let join_type = if inner_flag { JoinType::Inner } else { JoinType::Left };
            (join_type, names.match_condition(match_condition, &constraint)?, constraint)
        }
        JoinOperator::Join(constraint) | JoinOperator::Inner(constraint) => {
            (JoinType::Inner, names.inequality(&constraint)?, constraint)
        }
        JoinOperator::Left(constraint) | JoinOperator::LeftOuter(constraint) => {
            (JoinType::Left, names.inequality(&constraint)?, constraint)
        }
        _ => return Err(Error::unsupported("an ASOF JOIN is inner or left").into()),
    };
    let is_using = matches!(constraint, JoinConstraint::Using(_));
    marked_join(left, right, join_type, condition, is_using)
}

fn marked_join(
    left: LogicalPlan,
    right: LogicalPlan,
    join_type: JoinType,
    condition: Condition,
    is_using: bool,
) -> Result<LogicalPlan> {
    let marker = Marker::new(
        condition.op,
        condition.tolerance,
        condition.known_at.as_ref().map(|(_, strict)| *strict),
        condition.time_is_last_key,
    );
    let mut arguments = vec![condition.left_time, condition.right_time];
    arguments.extend(condition.known_at.map(|(bound, _)| bound));
    let join = LogicalJoin::try_new(
        Arc::new(left),
        Arc::new(right),
        condition.on,
        Some(marker.call(arguments)),
        join_type,
        if is_using { LogicalConstraint::Using } else { LogicalConstraint::On },
        NullEquality::NullEqualsNothing,
        false,
    )?;
    Ok(LogicalPlan::Join(join))
}

/// Resolves the names of a join's conditions.
struct Names<'a> {
    context: &'a mut dyn RelationPlannerContext,
    left: Arc<DFSchema>,
    /// The right columns and, where they are not shown, the `_ingested_at` columns that as-known-at may name.
    right: Arc<DFSchema>,
    right_shown: Arc<DFSchema>,
    both: DFSchema,
    using: Vec<HashSet<Column>>,
}

impl<'a> Names<'a> {
    fn new(
        left: &LogicalPlan,
        right: &LogicalPlan,
        context: &'a mut dyn RelationPlannerContext,
    ) -> Result<Self> {
        let mut using = left.using_columns()?;
        using.extend(right.using_columns()?);
        let right_shown = Arc::clone(right.schema());
        let right = Arc::new(with_ingested_at(&right_shown)?);
        let left = Arc::clone(left.schema());
        let both = left.join(&right)?;
        Ok(Self { context, left, right, right_shown, both, using })
    }

    /// `MATCH_CONDITION (…)` with the equalities of `ON` or `USING`.
    fn match_condition(&mut self, condition: SqlExpr, constraint: &JoinConstraint) -> Result<Condition> {
        let condition = self.resolve(condition)?;
        match constraint {
            JoinConstraint::None => self.sides().match_condition(condition, None),
            JoinConstraint::On(on) => {
                let on = self.resolve(on.clone())?;
                self.sides().match_condition(condition, Some(on))
            }
            JoinConstraint::Using(names) => {
                let on = self.using_pairs(names)?;
                let condition = self.sides().match_condition(condition, None)?;
                Ok(Condition { on: self.sides().checked_keys(on)?, ..condition })
            }
            JoinConstraint::Natural => {
                Err(Error::unsupported("NATURAL ASOF JOIN is not supported: name the keys").into())
            }
        }
    }

    /// `ON` or `USING` that hold the inequality.
    fn inequality(&mut self, constraint: &JoinConstraint) -> Result<Condition> {
        match constraint {
            JoinConstraint::On(on) => {
                let on = self.resolve(on.clone())?;
                self.sides().inequality(on)
            }
            JoinConstraint::Using(names) => {
                let pairs = self.using_pairs(names)?;
                self.sides().using_with_time(pairs)
            }
            JoinConstraint::None | JoinConstraint::Natural => Err(Error::invalid(
                "ASOF JOIN needs MATCH_CONDITION (left.time >= right.time), or ON or USING with the times",
            )
            .into()),
        }
    }

    fn sides(&self) -> Sides<'_> {
        Sides { left: &self.left, right: &self.right, right_shown: &self.right_shown }
    }

    fn resolve(&mut self, expr: SqlExpr) -> Result<Expr> {
        let expr = self.context.sql_to_expr(expr, &self.both)?;
        let schemas: &[&[&DFSchema]] = &[&[self.left.as_ref(), self.right.as_ref()]];
        normalize_col_with_schemas_and_ambiguity_check(expr, schemas, &self.using)
    }

    fn using_pairs(&self, names: &[ObjectName]) -> Result<Vec<(Expr, Expr)>> {
        let mut pairs = Vec::with_capacity(names.len());
        for name in names {
            let [ObjectNamePart::Identifier(ident)] = name.0.as_slice() else {
                return Err(Error::invalid(format!("USING takes column names, not '{name}'")).into());
            };
            let name = self.context.normalize_ident(ident.clone());
            let find = |schema: &DFSchema| {
                let column = Column::from_name(&name);
                column.normalize_with_schemas_and_ambiguity_check(&[&[schema]], &self.using).map(Expr::Column)
            };
            pairs.push((find(&self.left)?, find(&self.right_shown)?));
        }
        Ok(pairs)
    }
}

/// The right columns, with `_ingested_at` for each of its tables that does not show it.
fn with_ingested_at(right: &DFSchema) -> Result<DFSchema> {
    let mut fields: Vec<_> = right.iter().map(|(q, f)| (q.cloned(), Arc::clone(f))).collect();
    let shown: HashSet<_> =
        fields.iter().filter(|(_, field)| field.name() == INGESTED_AT).map(|(q, _)| q.clone()).collect();
    let mut tables: Vec<_> = Vec::new();
    for (qualifier, _) in &fields {
        if !shown.contains(qualifier) && !tables.contains(qualifier) {
            tables.push(qualifier.clone());
        }
    }
    if shown.is_empty() {
        let [ingested_at, _] = system_fields();
        fields.extend(tables.into_iter().map(|table| (table, Arc::clone(&ingested_at))));
    }
    DFSchema::new_with_metadata(fields, right.metadata().clone())
}
