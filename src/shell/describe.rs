//! `\d`: what exists, from Flight SQL's own metadata.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{Field, Schema};
use arrow_flight::IpcMessage;

use super::client::Client;
use crate::error::{Error, Result};

/// One table as the server describes it.
struct Described {
    schema: String,
    name: String,
    kind: String,
    columns: Schema,
}

/// Every table; those of the system only if asked for.
pub(super) async fn tables(client: &mut Client, system: bool) -> Result<RecordBatch> {
    let mut tables = all(client).await?;
    tables.retain(|table| system || table.kind != "SYSTEM TABLE");
    let column = |value: fn(&Described) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(tables.iter().map(value)))
    };
    Ok(RecordBatch::try_from_iter([
        ("schema", column(|table| &table.schema)),
        ("name", column(|table| &table.name)),
        ("kind", column(|table| &table.kind)),
    ])?)
}

/// The columns of one table, named as `table` or `schema.table`.
pub(super) async fn columns(client: &mut Client, name: &str) -> Result<RecordBatch> {
    let (schema, table) = match name.trim_matches('"').split_once('.') {
        Some((schema, table)) => (Some(schema), table),
        None => (None, name.trim_matches('"')),
    };
    let wanted = |described: &Described| {
        described.name == table && schema.is_none_or(|schema| described.schema == schema)
    };
    let described = all(client).await?.into_iter().find(wanted);
    let described =
        described.ok_or_else(|| Error::not_found(format!("there is no table '{name}'; \\d lists them")))?;
    let fields = described.columns.fields();
    let column = |value: fn(&Field) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(fields.iter().map(|field| value(field))))
    };
    Ok(RecordBatch::try_from_iter([
        ("column", column(|field| field.name().clone())),
        ("type", column(|field| said(field, "TYPE_NAME").unwrap_or_else(|| field.data_type().to_string()))),
        ("null", column(|field| if field.is_nullable() { "yes" } else { "no" }.to_owned())),
        ("comment", column(|field| said(field, "REMARKS").unwrap_or_default())),
    ])?)
}

fn said(field: &Field, key: &str) -> Option<String> {
    field.metadata().get(&format!("ARROW:FLIGHT:SQL:{key}")).cloned()
}

async fn all(client: &mut Client) -> Result<Vec<Described>> {
    let mut tables = Vec::new();
    for batch in client.tables().await? {
        let text = |name: &str| batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
        let schemas = batch.column_by_name("table_schema").and_then(|column| column.as_binary_opt::<i32>());
        let (Some(db_schemas), Some(names), Some(kinds), Some(schemas)) =
            (text("db_schema_name"), text("table_name"), text("table_type"), schemas)
        else {
            return Err(Error::internal(
                "the server describes its tables in another shape than Flight SQL's",
            ));
        };
        for row in 0..batch.num_rows() {
            tables.push(Described {
                schema: db_schemas.value(row).to_owned(),
                name: names.value(row).to_owned(),
                kind: kinds.value(row).to_owned(),
                columns: Schema::try_from(IpcMessage(schemas.value(row).to_vec().into()))?,
            });
        }
    }
    Ok(tables)
}
