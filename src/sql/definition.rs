//! `CREATE FEATURE GROUP` as written, to the definition it means.

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::execution::SessionState;
use datafusion::logical_expr::{CreateMemoryTable, DdlStatement, Expr, LogicalPlan, Volatility};
use datafusion::physical_plan::ColumnarValue;
use datafusion::sql::parser::Statement as DataFusionStatement;
use datafusion::sql::sqlparser::ast::helpers::stmt_create_table::CreateTableBuilder;
use datafusion::sql::sqlparser::ast::{
    ColumnDef, ColumnOption, Expr as SqlExpr, Ident, SqlOption, Statement, Value,
};
use uuid::Uuid;

use super::statement::CreateFeatureGroup;
use crate::error::{Error, Result};
use crate::model::{Column, FeatureGroup, RowLayout, TableName};
use crate::offline::storage_type;

/// The definition, validated. Its id is not the table's yet: the table is created from it.
pub(super) async fn feature_group(
    state: &SessionState,
    name: TableName,
    create: CreateFeatureGroup,
) -> Result<FeatureGroup> {
    let descriptions: Vec<Option<String>> = create.columns.iter().map(comment_of).collect();
    let (schema, defaults) = planned_columns(state, &create.columns).await?;
    let mut columns = Vec::with_capacity(descriptions.len());
    for (field, description) in schema.fields().iter().zip(descriptions) {
        let data_type = storage_type(field.name(), field.data_type())?;
        let default = defaults.iter().find(|(n, _)| n == field.name());
        let default = default.map(|(_, e)| constant(state, field.name(), e, &data_type)).transpose()?;
        let field = Arc::new(Field::new(field.name(), data_type, field.is_nullable()));
        columns.push(Column { field, default, description });
    }
    let find = |what: &str, ident: &Ident| -> Result<usize> {
        let wanted = normalized(ident);
        columns.iter().position(|c| *c.field.name() == wanted).ok_or_else(|| {
            Error::invalid(format!(
                "{what} names '{wanted}', which is not a column of feature group '{name}'"
            ))
        })
    };
    let entity_key: Vec<usize> =
        create.entity_key.iter().map(|k| find("ENTITY KEY", k)).collect::<Result<_>>()?;
    let [event_time] = create.event_time.as_slice() else {
        return Err(Error::invalid(format!(
            "feature group '{name}' needs exactly one event time: add EVENT TIME (column)"
        )));
    };
    let event_time = find("EVENT TIME", event_time)?;
    for &required in entity_key.iter().chain([&event_time]) {
        let field = &columns[required].field;
        columns[required].field = Arc::new(field.as_ref().clone().with_nullable(false));
    }
    let options = Options::parse(&name, &create.options)?;
    let group = FeatureGroup {
        id: Uuid::nil(),
        name,
        version: 1,
        columns,
        entity_key,
        event_time,
        ttl: options.ttl,
        owner: options.owner,
        description: create.comment,
        tags: options.tags,
        online: options.online,
        schemas: Vec::new(),
    };
    group.validate()?;
    if group.online {
        RowLayout::new(&group)?;
    }
    Ok(group)
}

/// Types and defaults as DataFusion plans them for a `CREATE TABLE` of the same columns.
async fn planned_columns(
    state: &SessionState,
    columns: &[ColumnDef],
) -> Result<(Arc<Schema>, Vec<(String, Expr)>)> {
    let plain: Vec<ColumnDef> = columns
        .iter()
        .map(|column| {
            let mut column = column.clone();
            column.options.retain(|o| !matches!(o.option, ColumnOption::Comment(_)));
            column
        })
        .collect();
    let name = vec![Ident::new("feature_group")].into();
    let table: Statement = CreateTableBuilder::new(name).columns(plain).build().into();
    let plan = state.statement_to_plan(DataFusionStatement::Statement(Box::new(table))).await?;
    match plan {
        LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(CreateMemoryTable {
            input,
            column_defaults,
            constraints,
            ..
        })) => {
            if constraints.iter().next().is_some() {
                return Err(Error::invalid(
                    "a feature group takes no PRIMARY KEY or UNIQUE: ENTITY KEY and EVENT TIME say what a row is",
                ));
            }
            Ok((Arc::clone(input.schema().inner()), column_defaults))
        }
        _ => Err(Error::internal("CREATE TABLE did not plan as a table")),
    }
}

fn comment_of(column: &ColumnDef) -> Option<String> {
    column.options.iter().find_map(|o| match &o.option {
        ColumnOption::Comment(text) => Some(text.clone()),
        _ => None,
    })
}

/// The value of a constant expression, as `data_type`.
fn constant(state: &SessionState, column: &str, expr: &Expr, data_type: &DataType) -> Result<ScalarValue> {
    let varies = expr.exists(|part| {
        Ok(matches!(part, Expr::ScalarFunction(call) if call.func.signature().volatility != Volatility::Immutable))
    })?;
    if varies {
        return Err(Error::invalid(format!(
            "DEFAULT of column '{column}' is not constant: give a value, not {expr}"
        )));
    }
    let wrong =
        |e: Error| Error::invalid(format!("DEFAULT of column '{column}' is not a constant {data_type}: {e}"));
    let evaluate = || -> Result<ScalarValue> {
        let expr = state.create_physical_expr(expr.clone(), &DFSchema::empty())?;
        let empty = RecordBatch::try_new_with_options(
            Arc::new(Schema::empty()),
            vec![],
            &datafusion::arrow::array::RecordBatchOptions::new().with_row_count(Some(1)),
        )?;
        let value = match expr.evaluate(&empty)? {
            ColumnarValue::Scalar(value) => value,
            ColumnarValue::Array(array) => ScalarValue::try_from_array(&array, 0)?,
        };
        Ok(value.cast_to(data_type)?)
    };
    let value = evaluate().map_err(wrong)?;
    if value.is_null() {
        return Err(Error::invalid(format!("DEFAULT of column '{column}' is NULL: leave it out instead")));
    }
    Ok(value)
}

/// An identifier as DataFusion reads it: in lower case unless quoted.
pub(super) fn normalized(ident: &Ident) -> String {
    if ident.quote_style.is_some() { ident.value.clone() } else { ident.value.to_lowercase() }
}

/// `WITH (…)` of a feature group.
struct Options {
    ttl: Option<Duration>,
    owner: Option<String>,
    tags: Vec<String>,
    online: bool,
}

impl Options {
    fn parse(group: &TableName, options: &[SqlOption]) -> Result<Self> {
        let mut parsed = Self { ttl: None, owner: None, tags: Vec::new(), online: true };
        for option in options {
            let SqlOption::KeyValue { key, value } = option else {
                return Err(Error::invalid(format!(
                    "WITH option {option} of '{group}' is not of the form key = value"
                )));
            };
            let key = key.value.to_lowercase();
            let value = option_text(&key, value)?;
            match key.as_str() {
                "ttl" => parsed.ttl = Some(duration(&value)?),
                "owner" => parsed.owner = Some(value),
                "tags" => {
                    parsed.tags =
                        value.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect();
                }
                "online" => parsed.online = boolean(&key, &value)?,
                "offline" if !boolean(&key, &value)? => {
                    return Err(Error::unsupported(
                        "offline = false is not supported: history is what the online store is built from",
                    ));
                }
                "offline" => {}
                _ => {
                    return Err(Error::invalid(format!(
                        "WITH option '{key}' of '{group}' is not known: there are ttl, owner, tags, online and offline"
                    )));
                }
            }
        }
        Ok(parsed)
    }
}

fn option_text(key: &str, value: &SqlExpr) -> Result<String> {
    match value {
        SqlExpr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::Number(text, _) => Ok(text.clone()),
            Value::Boolean(value) => Ok(value.to_string()),
            _ => Err(Error::invalid(format!("WITH option '{key}' takes a constant, not {value}"))),
        },
        SqlExpr::Identifier(ident) => Ok(ident.value.clone()),
        other => Err(Error::invalid(format!("WITH option '{key}' takes a constant, not {other}"))),
    }
}

fn boolean(key: &str, text: &str) -> Result<bool> {
    match text.to_lowercase().as_str() {
        "true" | "on" | "1" => Ok(true),
        "false" | "off" | "0" => Ok(false),
        _ => Err(Error::invalid(format!("WITH option '{key}' is true or false, not '{text}'"))),
    }
}

/// A duration such as `30 days`, `1h 30min` or `90s`. Months and years have no fixed length and are refused.
pub(super) fn duration(text: &str) -> Result<Duration> {
    let calendar = ["month", "year"].iter().any(|unit| text.to_lowercase().contains(unit));
    match humantime::parse_duration(&text.to_lowercase()) {
        Ok(duration) if !calendar => Ok(duration),
        _ => Err(Error::invalid(format!(
            "'{text}' is not a duration: write days, hours, minutes or seconds, such as '30 days' or '12 hours'"
        ))),
    }
}
