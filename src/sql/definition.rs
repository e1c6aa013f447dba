//! `CREATE FEATURE GROUP` as written, to the definition it means; columns and options as `ALTER` has them too.

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema};
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
use crate::model::{Change, Column, FeatureGroup, RowLayout, TableName};
use crate::offline::storage_type;

/// The definition, validated. Its id is not the table's yet: the table is created from it.
pub(super) async fn feature_group(
    state: &SessionState,
    name: TableName,
    create: CreateFeatureGroup,
) -> Result<FeatureGroup> {
    let mut columns = columns(state, &create.columns).await?;
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
    let options = options(&name, &create.options)?;
    let mut group = FeatureGroup {
        id: Uuid::nil(),
        name,
        version: 1,
        columns,
        entity_key,
        event_time,
        ttl: None,
        owner: None,
        description: create.comment,
        tags: Vec::new(),
        online: true,
        schemas: Vec::new(),
    };
    options.iter().try_for_each(|option| option.apply(&mut group))?;
    group.validate()?;
    if group.online {
        RowLayout::new(&group)?;
    }
    Ok(group)
}

/// Columns with the types that are stored.
pub(super) async fn columns(state: &SessionState, written: &[ColumnDef]) -> Result<Vec<Column>> {
    let (schema, defaults) = planned_columns(state, written).await?;
    let column = |(field, written): (&FieldRef, &ColumnDef)| {
        let data_type = storage_type(field.name(), field.data_type())?;
        let default = defaults.iter().find(|(n, _)| n == field.name());
        let default = default.map(|(_, e)| constant(state, field.name(), e, &data_type)).transpose()?;
        let field = Arc::new(Field::new(field.name(), data_type, field.is_nullable()));
        Ok(Column { field, default, description: comment_of(written) })
    };
    schema.fields().iter().zip(written).map(column).collect()
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

/// `WITH (…)` and `SET (…)` of a feature group.
pub(super) fn options(group: &TableName, options: &[SqlOption]) -> Result<Vec<Change>> {
    let mut changes = Vec::with_capacity(options.len());
    for option in options {
        let SqlOption::KeyValue { key, value } = option else {
            return Err(Error::invalid(format!(
                "option {option} of '{group}' is not of the form key = value"
            )));
        };
        let key = key.value.to_lowercase();
        let value = option_text(&key, value)?;
        changes.push(match key.as_str() {
            "ttl" => Change::Ttl(value.as_deref().map(duration).transpose()?),
            "owner" => Change::Owner(value),
            "description" => Change::Description(value),
            "tags" => {
                let tags = value.unwrap_or_default();
                Change::Tags(tags.split(',').map(|t| t.trim().to_owned()).filter(|t| !t.is_empty()).collect())
            }
            "online" => Change::Online(boolean(&key, value.as_deref())?),
            "offline" if boolean(&key, value.as_deref())? => continue,
            "offline" => {
                return Err(Error::unsupported(
                    "offline = false is not supported: history is what the online store is built from",
                ));
            }
            _ => {
                return Err(Error::invalid(format!(
                    "option '{key}' of '{group}' is not known: there are ttl, owner, description, tags, online and offline"
                )));
            }
        });
    }
    Ok(changes)
}

/// `None` for NULL, which takes away what there is.
fn option_text(key: &str, value: &SqlExpr) -> Result<Option<String>> {
    match value {
        SqlExpr::Value(value) => match &value.value {
            Value::SingleQuotedString(text) | Value::Number(text, _) => Ok(Some(text.clone())),
            Value::Boolean(value) => Ok(Some(value.to_string())),
            Value::Null => Ok(None),
            _ => Err(Error::invalid(format!("option '{key}' takes a constant, not {value}"))),
        },
        SqlExpr::Identifier(ident) => Ok(Some(ident.value.clone())),
        other => Err(Error::invalid(format!("option '{key}' takes a constant, not {other}"))),
    }
}

fn boolean(key: &str, text: Option<&str>) -> Result<bool> {
    match text.unwrap_or("NULL").to_lowercase().as_str() {
        "true" | "on" | "1" => Ok(true),
        "false" | "off" | "0" => Ok(false),
        other => Err(Error::invalid(format!("option '{key}' is true or false, not '{other}'"))),
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
