//! Schemas, tables and keys.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow_flight::sql::{CommandGetDbSchemas, CommandGetPrimaryKeys, CommandGetTableTypes, CommandGetTables};

use super::CATALOG;
use super::type_names::described;
use crate::error::Result;
use crate::flight::status::from_decoder;
use crate::sql::TableEntry;

/// Every kind that `Session::tables` may name, sorted.
const TABLE_TYPES: [&str; 5] = ["FEATURE GROUP", "LOCAL TEMPORARY", "SYSTEM TABLE", "TABLE", "VIEW"];

pub(super) fn schemas(command: CommandGetDbSchemas, schemas: &[String]) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    for schema in schemas {
        builder.append(CATALOG, schema);
    }
    builder.build().map_err(from_decoder)
}

pub(super) fn tables(mut command: CommandGetTables, tables: Vec<TableEntry>) -> Result<RecordBatch> {
    // Tools that know the word TABLE only must find feature groups too.
    if command.table_types.iter().any(|kind| kind == "TABLE" || kind == "BASE TABLE") {
        command.table_types.extend(["TABLE".to_owned(), "FEATURE GROUP".to_owned()]);
    }
    let mut builder = command.into_builder();
    for table in tables {
        let columns = described(&table);
        builder.append(CATALOG, &table.schema, &table.name, table.kind, &columns).map_err(from_decoder)?;
    }
    builder.build().map_err(from_decoder)
}

pub(super) fn table_types(command: CommandGetTableTypes) -> Result<RecordBatch> {
    let mut builder = command.into_builder();
    for kind in TABLE_TYPES {
        builder.append(kind);
    }
    builder.build().map_err(from_decoder)
}

/// One row per key column, in the order of the key.
pub(super) fn primary_keys(command: &CommandGetPrimaryKeys, tables: Vec<TableEntry>) -> Result<RecordBatch> {
    let wanted = |filter: &Option<String>, name: &str| filter.as_deref().is_none_or(|filter| filter == name);
    let mut tables: Vec<TableEntry> = tables
        .into_iter()
        .filter(|table| {
            table.name == command.table
                && wanted(&command.db_schema, &table.schema)
                && wanted(&command.catalog, CATALOG)
        })
        .collect();
    tables.sort_by(|a, b| a.schema.cmp(&b.schema));
    let keys: Vec<(&TableEntry, &String, i32)> = tables
        .iter()
        .flat_map(|table| {
            table.primary_key.iter().zip(1..).map(move |(column, place)| (table, column, place))
        })
        .collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(keys.iter().map(|_| CATALOG))),
        Arc::new(StringArray::from_iter_values(keys.iter().map(|(table, ..)| &table.schema))),
        Arc::new(StringArray::from_iter_values(keys.iter().map(|(table, ..)| &table.name))),
        Arc::new(StringArray::from_iter_values(keys.iter().map(|(_, column, _)| column))),
        Arc::new(StringArray::new_null(keys.len())),
        Arc::new(Int32Array::from_iter_values(keys.iter().map(|(.., place)| *place))),
    ];
    Ok(RecordBatch::try_new(primary_keys_schema(), columns)?)
}

fn primary_keys_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("catalog_name", DataType::Utf8, true),
        Field::new("db_schema_name", DataType::Utf8, true),
        Field::new("table_name", DataType::Utf8, false),
        Field::new("column_name", DataType::Utf8, false),
        Field::new("key_name", DataType::Utf8, true),
        Field::new("key_sequence", DataType::Int32, false),
    ]))
}

/// Exported keys, imported keys and cross references: one shape, and nothing in it.
pub(super) fn no_foreign_keys() -> RecordBatch {
    RecordBatch::new_empty(Arc::new(Schema::new(vec![
        Field::new("pk_catalog_name", DataType::Utf8, true),
        Field::new("pk_db_schema_name", DataType::Utf8, true),
        Field::new("pk_table_name", DataType::Utf8, false),
        Field::new("pk_column_name", DataType::Utf8, false),
        Field::new("fk_catalog_name", DataType::Utf8, true),
        Field::new("fk_db_schema_name", DataType::Utf8, true),
        Field::new("fk_table_name", DataType::Utf8, false),
        Field::new("fk_column_name", DataType::Utf8, false),
        Field::new("key_sequence", DataType::Int32, false),
        Field::new("fk_key_name", DataType::Utf8, true),
        Field::new("pk_key_name", DataType::Utf8, true),
        Field::new("update_rule", DataType::UInt8, false),
        Field::new("delete_rule", DataType::UInt8, false),
    ])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::util::pretty::pretty_format_batches;

    fn entries() -> Vec<TableEntry> {
        let columns = Arc::new(Schema::new(vec![
            Field::new("user_id", DataType::Int64, false),
            Field::new(
                "event_timestamp",
                DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None),
                false,
            ),
        ]));
        let entry = |name: &str, kind, primary_key: &[&str]| TableEntry {
            schema: "public".into(),
            name: name.into(),
            kind,
            columns: Arc::clone(&columns),
            comment: None,
            primary_key: primary_key.iter().map(|&column| column.into()).collect(),
        };
        vec![
            entry("user_purchases", "FEATURE GROUP", &["user_id", "event_timestamp"]),
            entry("labels", "TABLE", &[]),
            entry("scratch", "LOCAL TEMPORARY", &[]),
        ]
    }

    fn names(batch: &RecordBatch, column: &str) -> Vec<String> {
        let values = batch.column_by_name(column).unwrap().as_string::<i32>();
        values.iter().flatten().map(str::to_owned).collect()
    }

    #[test]
    fn a_filter_for_tables_finds_feature_groups_too() {
        for (kinds, expected) in [
            (vec![], vec!["labels", "scratch", "user_purchases"]),
            (vec!["TABLE"], vec!["labels", "user_purchases"]),
            (vec!["LOCAL TEMPORARY"], vec!["scratch"]),
            (vec!["VIEW"], vec![]),
        ] {
            let table_types = kinds.iter().map(|&kind| kind.into()).collect();
            let command = CommandGetTables { table_types, ..Default::default() };
            assert_eq!(names(&tables(command, entries()).unwrap(), "table_name"), expected, "{kinds:?}");
        }
    }

    #[test]
    fn names_are_patterns() {
        for (pattern, expected) in
            [("user%", vec!["user_purchases"]), ("_abels", vec!["labels"]), ("x", vec![])]
        {
            let command =
                CommandGetTables { table_name_filter_pattern: Some(pattern.into()), ..Default::default() };
            assert_eq!(names(&tables(command, entries()).unwrap(), "table_name"), expected, "{pattern}");
        }
    }

    #[test]
    fn the_primary_key_is_entity_key_and_event_time() {
        let command = CommandGetPrimaryKeys { table: "user_purchases".into(), ..Default::default() };
        let batch = primary_keys(&command, entries()).unwrap();
        assert_eq!(names(&batch, "column_name"), ["user_id", "event_timestamp"]);
        let table = pretty_format_batches(&[batch]).unwrap().to_string();
        assert!(table.contains("| event_timestamp |          | 2 "), "{table}");
        let elsewhere = CommandGetPrimaryKeys { db_schema: Some("other".into()), ..command };
        assert_eq!(primary_keys(&elsewhere, entries()).unwrap().num_rows(), 0);
    }
}
