//! `LATEST(…)` in a FROM clause to a logical plan.

use std::sync::Arc;
use std::time::Duration;

use datafusion::common::{Column, DFSchema, TableReference};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::logical_expr::planner::{
    PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning,
};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, LogicalPlanBuilder};
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, FunctionArg, FunctionArgExpr, TableFactor, TableFunctionArgs, Value,
};

use super::keys::plan_keys;
use super::rewrite::{as_carrier, as_latest};
use super::table::LatestTable;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::{LookupNode, LookupOutput, LookupRequest, Missing, latest_schema};
use crate::model::{FeatureGroup, RowLayout};
use crate::online::OnlineStore;
use crate::sql::FeatureGroupTable;

const USAGE: &str = "write LATEST(feature_group), LATEST(feature_group, key, …) or, for a composite key, \
                     LATEST(feature_group, (key1, key2), …); max_staleness => '5s' may follow";

/// Plans `LATEST` against one store. Statements must have gone through `rewrite_statement`.
#[derive(Debug)]
pub(super) struct LatestPlanner {
    store: Arc<dyn OnlineStore>,
    clock: Arc<dyn Clock>,
}

impl LatestPlanner {
    pub(super) fn new(store: Arc<dyn OnlineStore>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock }
    }

    fn plan(
        &self,
        table: TableFactor,
        arguments: &TableFunctionArgs,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<LogicalPlan> {
        let group = served_group(table, context)?;
        let arguments = Arguments::read(&group, arguments)?;
        // The columns are the group's: without an alias they go by its name.
        let qualifier = TableReference::bare(group.name.name.as_str());
        if arguments.keys.is_empty() {
            let table = LatestTable::new(
                group,
                arguments.max_staleness,
                Arc::clone(&self.store),
                Arc::clone(&self.clock),
            );
            let scan = LogicalPlanBuilder::scan(qualifier, provider_as_source(Arc::new(table)), None);
            return Ok(scan?.build()?);
        }
        let input = plan_keys(&group, arguments.keys, context)?;
        lookup(group, input, arguments.max_staleness, qualifier)
    }
}

impl RelationPlanner for LatestPlanner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> datafusion::common::Result<RelationPlanning> {
        if as_latest(&relation).is_some() {
            return Err(Error::invalid(format!("LATEST names no feature group: {USAGE}")).into());
        }
        let Some((table, call)) = as_carrier(&relation) else {
            return Ok(RelationPlanning::Original(Box::new(relation)));
        };
        let plan = self.plan(table.clone(), call.arguments, context)?;
        Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, call.alias.cloned()))))
    }
}

/// The look-up of the keys that `input` lists.
fn lookup(
    group: Arc<FeatureGroup>,
    input: LogicalPlan,
    max_staleness: Option<Duration>,
    qualifier: TableReference,
) -> Result<LogicalPlan> {
    let schema = latest_schema(&group);
    let node = LookupNode {
        keys: input.schema().columns().into_iter().map(|c: Column| Expr::Column(c)).collect(),
        output: (0..schema.fields().len()).map(LookupOutput::Latest).collect(),
        request: LookupRequest { group, missing: Missing::Explain, max_staleness },
        schema: Arc::new(DFSchema::try_from_qualified_schema(qualifier, &schema)?),
        input,
    };
    Ok(LogicalPlan::Extension(Extension { node: Arc::new(node) }))
}

/// The feature group behind the table's name, if it is one and is served.
fn served_group(table: TableFactor, context: &mut dyn RelationPlannerContext) -> Result<Arc<FeatureGroup>> {
    let shown = table.to_string();
    let no_group = || {
        Error::invalid(format!(
            "'{shown}' is not a feature group, and LATEST serves feature groups only: {USAGE}"
        ))
    };
    let TableFactor::Table { name, .. } = &table else { return Err(no_group()) };
    let reference = context.object_name_to_table_reference(name.clone())?;
    let plan = context.plan(table).map_err(|e| {
        // What DataFusion says about a table that it cannot find is a planning error in its own words.
        let known = context.context_provider().get_table_source(reference.clone()).is_ok();
        match Error::from(e) {
            error if known || !matches!(error.kind(), ErrorKind::Invalid | ErrorKind::NotFound) => error,
            _ => Error::not_found(format!(
                "feature group '{shown}' does not exist: SHOW FEATURE GROUPS lists those that do"
            )),
        }
    })?;
    let LogicalPlan::TableScan(scan) = &plan else { return Err(no_group()) };
    let provider = source_as_provider(&scan.source).map_err(|_| no_group())?;
    let group = provider.as_any().downcast_ref::<FeatureGroupTable>().ok_or_else(no_group)?;
    let group = Arc::clone(&group.definition);
    if !group.online {
        return Err(Error::invalid(format!(
            "feature group '{}' has online = false, so LATEST has nothing to serve: ALTER FEATURE GROUP … SET \
             (online = true)",
            group.name
        )));
    }
    RowLayout::new(&group)?;
    Ok(group)
}

/// What stands between the parentheses, behind the group.
struct Arguments {
    keys: Vec<SqlExpr>,
    max_staleness: Option<Duration>,
}

impl Arguments {
    fn read(group: &FeatureGroup, arguments: &TableFunctionArgs) -> Result<Self> {
        let mut read = Self { keys: Vec::new(), max_staleness: None };
        for argument in arguments.args.iter().skip(1) {
            match argument {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(SqlExpr::Array(list))) => {
                    read.keys.extend(list.elem.iter().cloned());
                }
                FunctionArg::Unnamed(FunctionArgExpr::Expr(key)) => read.keys.push(key.clone()),
                FunctionArg::Named { name, arg, .. } => read.option(group, &name.value, arg)?,
                FunctionArg::ExprNamed { name: SqlExpr::Identifier(name), arg, .. } => {
                    read.option(group, &name.value, arg)?;
                }
                other => {
                    let group = &group.name;
                    return Err(Error::invalid(format!("LATEST({group}, …) cannot take {other}: {USAGE}")));
                }
            }
        }
        Ok(read)
    }

    fn option(&mut self, group: &FeatureGroup, name: &str, value: &FunctionArgExpr) -> Result<()> {
        let group = &group.name;
        if !name.eq_ignore_ascii_case("max_staleness") {
            return Err(Error::invalid(format!("LATEST({group}, …) has no option '{name}': {USAGE}")));
        }
        let text = match value {
            FunctionArgExpr::Expr(SqlExpr::Value(value)) => match &value.value {
                Value::SingleQuotedString(text) => Some(text),
                _ => None,
            },
            _ => None,
        };
        let duration = text.and_then(|text| humantime::parse_duration(text).ok());
        self.max_staleness = Some(duration.ok_or_else(|| {
            Error::invalid(format!(
                "max_staleness of LATEST({group}, …) is {value}: write a duration such as '5s'"
            ))
        })?);
        Ok(())
    }
}
