//! A stored table as it was: `t FOR SYSTEM_TIME AS OF …` and `t FOR VERSION AS OF …`, wherever a table may stand.
//!
//! 1. [`rewrite_tokens`], before parsing: the SQL parser reads neither in our dialect, so what follows the table's
//!    name becomes the argument of a call: `t(for_system_time_as_of => …)`.
//! 2. [`rewrite_statement`], before planning: such a call becomes a table with a version again, so that DataFusion
//!    finds the table.
//! 3. A relation planner puts the table as of that version in the place of the current one.
//!
//! [`install`] adds 3 to a session. A feature group stays one, with its TTL and defaults; LATEST knows the present only.

use std::ops::ControlFlow;
use std::sync::Arc;

use chrono::DateTime;
use datafusion::arrow::datatypes::{DataType, TimeUnit};
use datafusion::catalog::TableProvider;
use datafusion::common::{DFSchema, ScalarValue, TableReference};
use datafusion::datasource::{provider_as_source, source_as_provider};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::planner::{
    PlannedRelation, RelationPlanner, RelationPlannerContext, RelationPlanning,
};
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::sql::parser::Statement;
use datafusion::sql::sqlparser::ast::{
    Expr as SqlExpr, FunctionArg, FunctionArgExpr, ObjectName, TableFactor, TableVersion, VisitorMut,
};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use super::feature_group_table::FeatureGroupTable;
use super::insert::PlainTable;
use super::moment::statement_time_us;
use super::walk::walk;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::offline::IcebergTable;
use crate::registry::{Object, object_of};

const BY_TIME: &str = "for_system_time_as_of";
const BY_SNAPSHOT: &str = "for_version_as_of";

/// Rewrites what follows a table's name to a call; positions stay those of the original text.
///
/// # Errors
/// `Invalid` where it does not follow a name, or no expression follows.
pub(super) fn rewrite_tokens(tokens: Vec<TokenWithSpan>) -> Result<Vec<TokenWithSpan>> {
    let words: Vec<usize> =
        (0..tokens.len()).filter(|&i| !matches!(tokens[i].token, Token::Whitespace(_))).collect();
    let mut rewritten = Vec::with_capacity(tokens.len());
    let (mut copied, mut at) = (0, 0);
    while let Some(window) = words.get(at..at + 4) {
        let Some(name) = version_kind(&tokens, window) else {
            at += 1;
            continue;
        };
        let (first, behind) = (&tokens[window[0]], window[3] + 1);
        let follows_name = at > 0 && matches!(tokens[words[at - 1]].token, Token::Word(_));
        let place = format!("line {}, column {}", first.span.start.line, first.span.start.column);
        if !follows_name {
            return Err(Error::invalid(format!(
                "FOR … AS OF at {place} does not follow the name of a table"
            )));
        }
        let mut parser =
            Parser::new(&GenericDialect {}).with_tokens_with_locations(tokens[behind..].to_vec());
        parser.parse_expr().map_err(|e| {
            Error::invalid(format!(
                "what follows FOR … AS OF at {place} is not an expression: write a timestamp, or the id of a \
                 snapshot"
            ))
            .with_source(e)
        })?;
        let end = behind + parser.index();
        let token = |token| TokenWithSpan { token, span: first.span };
        rewritten.extend_from_slice(&tokens[copied..window[0]]);
        rewritten.extend([Token::LParen, Token::make_word(name, None), Token::RArrow].map(token));
        rewritten.extend_from_slice(&tokens[behind..end]);
        rewritten.push(token(Token::RParen));
        copied = end;
        at = words.partition_point(|&word| word < end);
    }
    rewritten.extend_from_slice(&tokens[copied..]);
    Ok(rewritten)
}

/// `FOR SYSTEM_TIME AS OF` and, as Trino has it, `FOR TIMESTAMP AS OF`; the same by version.
fn version_kind(tokens: &[TokenWithSpan], window: &[usize]) -> Option<&'static str> {
    let keyword = |at: usize| match &tokens[window[at]].token {
        Token::Word(word) => word.keyword,
        _ => Keyword::NoKeyword,
    };
    if [keyword(0), keyword(2), keyword(3)] != [Keyword::FOR, Keyword::AS, Keyword::OF] {
        return None;
    }
    match &tokens[window[1]].token {
        Token::Word(word) => match word.value.to_ascii_uppercase().as_str() {
            "SYSTEM_TIME" | "TIMESTAMP" => Some(BY_TIME),
            "SYSTEM_VERSION" | "VERSION" => Some(BY_SNAPSHOT),
            _ => None,
        },
        _ => None,
    }
}

/// Turns calls that [`rewrite_tokens`] made into tables with a version, inside EXPLAIN and COPY too.
pub(super) fn rewrite_statement(statement: &mut Statement) {
    walk(statement, &mut Versions);
}

/// The tables of which a statement, as [`rewrite_statement`] leaves it, reads a version.
pub(super) fn versioned(statement: &mut Statement) -> Vec<ObjectName> {
    let mut named = Named(Vec::new());
    walk(statement, &mut named);
    named.0
}

struct Named(Vec<ObjectName>);

impl VisitorMut for Named {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { name, version: Some(_), .. } = factor {
            self.0.push(name.clone());
        }
        ControlFlow::Continue(())
    }
}

struct Versions;

impl VisitorMut for Versions {
    type Break = ();

    fn pre_visit_table_factor(&mut self, factor: &mut TableFactor) -> ControlFlow<()> {
        if let TableFactor::Table { args, version, .. } = factor
            && let Some(arguments) = args
            && let [FunctionArg::Named { name, arg: FunctionArgExpr::Expr(expr), .. }] =
                arguments.args.as_slice()
        {
            *version = match name.value.as_str() {
                BY_TIME => Some(TableVersion::ForSystemTimeAsOf(expr.clone())),
                BY_SNAPSHOT => Some(TableVersion::VersionAsOf(expr.clone())),
                _ => return ControlFlow::Continue(()),
            };
            *args = None;
        }
        ControlFlow::Continue(())
    }
}

/// Adds the relation planner to a session.
pub(super) fn install(mut builder: SessionStateBuilder, clock: Arc<dyn Clock>) -> SessionStateBuilder {
    builder.relation_planners().get_or_insert_default().push(Arc::new(TimeTravelPlanner { clock }));
    builder
}

/// The stored rows behind a table or a feature group, if that is what it is.
pub(super) fn stored_rows(table: &Arc<dyn TableProvider>) -> Option<IcebergTable> {
    let any = table.as_any();
    let rows = match (any.downcast_ref::<PlainTable>(), any.downcast_ref::<FeatureGroupTable>()) {
        (Some(plain), _) => return Some(plain.rows.as_ref().clone()),
        (None, Some(group)) => &group.history,
        (None, None) => table,
    };
    rows.as_any().downcast_ref::<IcebergTable>().cloned()
}

#[derive(Debug)]
struct TimeTravelPlanner {
    clock: Arc<dyn Clock>,
}

impl RelationPlanner for TimeTravelPlanner {
    fn plan_relation(
        &self,
        relation: TableFactor,
        context: &mut dyn RelationPlannerContext,
    ) -> datafusion::common::Result<RelationPlanning> {
        match relation {
            TableFactor::Table { name, alias, version: Some(version), .. } => {
                let reference = context.object_name_to_table_reference(name)?;
                let current = context.context_provider().get_table_source(reference.clone())?;
                let current = source_as_provider(&current)?;
                let (then, snapshot) = self.as_of(&reference, &current, version, context)?;
                // DataFusion takes scans of the same name for the same rows, so each version has a name of its own.
                let versioned = format!("{}@{snapshot}", reference.table());
                let plan = LogicalPlanBuilder::scan(versioned, provider_as_source(then), None)?
                    .alias(reference)?
                    .build()?;
                Ok(RelationPlanning::Planned(Box::new(PlannedRelation::new(plan, alias))))
            }
            other => Ok(RelationPlanning::Original(Box::new(other))),
        }
    }
}

impl TimeTravelPlanner {
    fn as_of(
        &self,
        name: &TableReference,
        current: &Arc<dyn TableProvider>,
        version: TableVersion,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<(Arc<dyn TableProvider>, String)> {
        let rows = stored_rows(current).ok_or_else(|| {
            Error::invalid(format!("'{name}' has no versions: only stored tables and feature groups have"))
        })?;
        let then = match version {
            TableVersion::VersionAsOf(expr) => {
                match self.constant(
                    expr,
                    &DataType::Int64,
                    "FOR VERSION AS OF takes the id of a snapshot",
                    context,
                )? {
                    ScalarValue::Int64(Some(id)) => rows.table().at_snapshot(id)?,
                    _ => {
                        return Err(Error::invalid("FOR VERSION AS OF takes the id of a snapshot, not NULL"));
                    }
                }
            }
            TableVersion::ForSystemTimeAsOf(expr) => {
                let utc = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
                match self.constant(expr, &utc, "FOR SYSTEM_TIME AS OF takes a timestamp", context)? {
                    ScalarValue::TimestampMicrosecond(Some(time_us), _) => rows.table().at_time(time_us)?,
                    _ => return Err(Error::invalid("FOR SYSTEM_TIME AS OF takes a timestamp, not NULL")),
                }
            }
            other => return Err(Error::unsupported(format!("'{name} {other}' is not supported"))),
        };
        let rows = Arc::new(rows.of(then.clone()));
        let snapshot = then.snapshot().map_or_else(|| "empty".to_owned(), |s| s.snapshot_id().to_string());
        let table: Arc<dyn TableProvider> =
            match (current.as_any().is::<FeatureGroupTable>(), object_of(then)?) {
                (true, Object::FeatureGroup(group, _)) => Arc::new(FeatureGroupTable::new(group, rows)),
                _ => rows,
            };
        Ok((table, snapshot))
    }

    /// The value of an expression without columns, where now is the statement's.
    fn constant(
        &self,
        expr: SqlExpr,
        data_type: &DataType,
        usage: &str,
        context: &mut dyn RelationPlannerContext,
    ) -> Result<ScalarValue> {
        let shown = expr.to_string();
        let wrong = || Error::invalid(format!("{usage} that is known before the query runs, not {shown}"));
        let schema = Arc::new(DFSchema::empty());
        let expr = context.sql_to_expr(expr, &schema).map_err(|e| wrong().with_source(e))?;
        let now_us = statement_time_us(context.context_provider().options());
        let now = DateTime::from_timestamp_micros(now_us.unwrap_or_else(|| self.clock.now_us()));
        let simplify = SimplifyContext::default().with_query_execution_start_time(now);
        let simplifier = ExprSimplifier::new(simplify);
        let expr = simplifier.coerce(expr, &schema).map_err(|e| wrong().with_source(e))?;
        match simplifier.simplify(expr)? {
            Expr::Literal(value, _) => value.cast_to(data_type).map_err(|e| wrong().with_source(e)),
            _ => Err(wrong()),
        }
    }
}
