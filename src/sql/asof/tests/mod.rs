//! ASOF joins from SQL text to rows, over tables in memory.

mod errors;
mod oracle;
mod plans;
mod rules;
mod stored;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use datafusion::arrow::array::{ArrayRef, RecordBatch};
use datafusion::arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::catalog::TableProvider;
use datafusion::common::ScalarValue;
use datafusion::datasource::MemTable;
use datafusion::execution::context::QueryPlanner;
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion::prelude::{SessionConfig, SessionContext};
use datafusion::sql::parser::DFParserBuilder;
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::Parser;
use datafusion::sql::sqlparser::tokenizer::Tokenizer;
use uuid::Uuid;

use super::{AsofExtensionPlanner, install, rewrite_statement, rewrite_tokens};
use crate::error::{Error, Result};
use crate::model::{Column, FeatureGroup, TableName};
use crate::sql::FeatureGroupTable;

#[derive(Debug)]
struct Planner;

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        state: &SessionState,
    ) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
        let planner = DefaultPhysicalPlanner::with_extension_planners(vec![Arc::new(AsofExtensionPlanner)]);
        planner.create_physical_plan(plan, state).await
    }
}

fn context(partitions: usize, batch_size: usize) -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(partitions).with_batch_size(batch_size);
    let builder = SessionStateBuilder::new()
        .with_config(config)
        .with_default_features()
        .with_query_planner(Arc::new(Planner));
    SessionContext::new_with_state(install(builder).build())
}

static DIALECT: GenericDialect = GenericDialect {};

async fn run(context: &SessionContext, sql: &str) -> Result<Vec<RecordBatch>> {
    let tokens = Tokenizer::new(&DIALECT, sql).tokenize_with_location().unwrap();
    let tokens = rewrite_tokens(tokens)?;
    let mut parser = DFParserBuilder::new("").with_dialect(&DIALECT).build()?;
    parser.parser = Parser::new(&DIALECT).with_tokens_with_locations(tokens);
    let mut statement = parser.parse_statement()?;
    rewrite_statement(&mut statement);
    let plan = context.state().statement_to_plan(statement).await?;
    Ok(context.execute_logical_plan(plan).await?.collect().await?)
}

async fn text(context: &SessionContext, sql: &str) -> String {
    match run(context, sql).await {
        Ok(batches) => pretty_format_batches(&batches).unwrap().to_string(),
        Err(error) => panic!("{sql}: {error}"),
    }
}

/// Runs a statement that returns rows as `a b c` lines.
async fn lines(context: &SessionContext, sql: &str) -> Vec<String> {
    let table = text(context, sql).await;
    table
        .lines()
        .filter(|line| line.starts_with('|'))
        .skip(1)
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            cells.iter().map(|cell| if cell.is_empty() { "-" } else { cell }).collect::<Vec<_>>().join(" ")
        })
        .collect()
}

async fn check(context: &SessionContext, sql: &str, expected: &[&str]) {
    assert_eq!(lines(context, sql).await, expected, "{sql}");
}

async fn failure(context: &SessionContext, sql: &str) -> Error {
    match run(context, sql).await {
        Err(error) => error,
        Ok(batches) => panic!("{sql} gives\n{}", pretty_format_batches(&batches).unwrap()),
    }
}

/// What a test says about a feature group.
struct Group {
    name: &'static str,
    keys: Vec<usize>,
    event_time: usize,
    ttl: Option<Duration>,
    defaults: Vec<(usize, ScalarValue)>,
}

impl Group {
    /// The group over history columns; the last two are `_ingested_at` and `_sequence`.
    fn table(self, schema: &Schema, batches: Vec<Vec<RecordBatch>>) -> Arc<FeatureGroupTable> {
        let history = MemTable::try_new(Arc::new(schema.clone()), batches).unwrap();
        self.over(schema, Arc::new(history))
    }

    fn over(self, schema: &Schema, history: Arc<dyn TableProvider>) -> Arc<FeatureGroupTable> {
        let declared = schema.fields().len() - 2;
        let columns = schema.fields()[..declared]
            .iter()
            .enumerate()
            .map(|(index, field)| Column {
                field: Arc::clone(field),
                default: self.defaults.iter().find(|(i, _)| *i == index).map(|(_, value)| value.clone()),
                description: None,
            })
            .collect();
        let definition = FeatureGroup {
            id: Uuid::nil(),
            name: TableName::new("public", self.name),
            version: 1,
            columns,
            entity_key: self.keys,
            event_time: self.event_time,
            ttl: self.ttl,
            owner: None,
            description: None,
            tags: Vec::new(),
            online: false,
            schemas: vec![],
        };
        Arc::new(FeatureGroupTable::new(Arc::new(definition), history))
    }
}

fn timestamp(unit: TimeUnit, zone: Option<&str>) -> DataType {
    DataType::Timestamp(unit, zone.map(Into::into))
}

fn micros(zone: Option<&str>) -> DataType {
    timestamp(TimeUnit::Microsecond, zone)
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), true)).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns.into_iter().map(|(_, array)| array).collect())
        .unwrap()
}
