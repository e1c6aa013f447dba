//! Columns as SQL names their types, in the field metadata where Flight SQL clients look.

use std::collections::HashMap;

use arrow::datatypes::{DataType, Field, IntervalUnit, Schema};

use super::CATALOG;
use crate::sql::TableEntry;

/// The table's schema, each field with its SQL type name, precision, scale and the like.
pub(super) fn described(table: &TableEntry) -> Schema {
    let fields: Vec<Field> = table
        .columns
        .fields()
        .iter()
        .map(|field| {
            let mut metadata = field.metadata().clone();
            metadata.extend(column_metadata(table, field));
            field.as_ref().clone().with_metadata(metadata)
        })
        .collect();
    Schema::new_with_metadata(fields, table.columns.metadata().clone())
}

fn column_metadata(table: &TableEntry, field: &Field) -> HashMap<String, String> {
    let data_type = field.data_type();
    let is_text = matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
    let mut pairs = vec![
        ("CATALOG_NAME", CATALOG.to_owned()),
        ("SCHEMA_NAME", table.schema.clone()),
        ("TABLE_NAME", table.name.clone()),
        ("TYPE_NAME", type_name(data_type)),
        ("IS_AUTO_INCREMENT", "0".to_owned()),
        ("IS_CASE_SENSITIVE", u8::from(is_text).to_string()),
        ("IS_READ_ONLY", u8::from(table.kind == "SYSTEM TABLE").to_string()),
        ("IS_SEARCHABLE", "1".to_owned()),
    ];
    if let Some((precision, scale)) = precision_and_scale(data_type) {
        pairs.push(("PRECISION", precision.to_string()));
        pairs.push(("SCALE", scale.to_string()));
    }
    if let Some(comment) = field.metadata().get("comment") {
        pairs.push(("REMARKS", comment.clone()));
    }
    pairs.into_iter().map(|(key, value)| (format!("ARROW:FLIGHT:SQL:{key}"), value)).collect()
}

/// The name under which `CREATE TABLE` takes the type, or the closest to it.
pub(super) fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Null => "NULL".into(),
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INTEGER".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::UInt8 => "TINYINT UNSIGNED".into(),
        DataType::UInt16 => "SMALLINT UNSIGNED".into(),
        DataType::UInt32 => "INTEGER UNSIGNED".into(),
        DataType::UInt64 => "BIGINT UNSIGNED".into(),
        DataType::Float16 | DataType::Float32 => "REAL".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "VARCHAR".into(),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
            "BYTEA".into()
        }
        DataType::Date32 | DataType::Date64 => "DATE".into(),
        DataType::Time32(_) | DataType::Time64(_) => "TIME".into(),
        DataType::Timestamp(_, None) => "TIMESTAMP".into(),
        DataType::Timestamp(_, Some(_)) => "TIMESTAMP WITH TIME ZONE".into(),
        DataType::Duration(_)
        | DataType::Interval(IntervalUnit::DayTime | IntervalUnit::MonthDayNano | IntervalUnit::YearMonth) => {
            "INTERVAL".into()
        }
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => format!("{}[]", type_name(item.data_type())),
        DataType::Struct(fields) => {
            let field =
                |field: &std::sync::Arc<Field>| format!("{} {}", field.name(), type_name(field.data_type()));
            format!("STRUCT({})", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
        DataType::Map(..) => "MAP".into(),
        DataType::Union(..) => "UNION".into(),
        DataType::Dictionary(_, value) => type_name(value),
        DataType::RunEndEncoded(_, value) => type_name(value.data_type()),
    }
}

/// Decimal digits in all and after the point.
fn precision_and_scale(data_type: &DataType) -> Option<(u8, i8)> {
    match data_type {
        DataType::Int8 | DataType::UInt8 => Some((3, 0)),
        DataType::Int16 | DataType::UInt16 => Some((5, 0)),
        DataType::Int32 | DataType::UInt32 => Some((10, 0)),
        DataType::Int64 => Some((19, 0)),
        DataType::UInt64 => Some((20, 0)),
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => Some((*precision, *scale)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use arrow::datatypes::TimeUnit;

    #[test]
    fn types_are_named_as_sql_writes_them() {
        let embedding = DataType::List(Arc::new(Field::new("item", DataType::Float32, true)));
        let point = DataType::Struct(vec![Field::new("x", DataType::Float64, true)].into());
        for (data_type, expected) in [
            (DataType::Int64, "BIGINT"),
            (DataType::Decimal128(10, 2), "DECIMAL(10, 2)"),
            (DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), "TIMESTAMP WITH TIME ZONE"),
            (embedding, "REAL[]"),
            (point, "STRUCT(x DOUBLE)"),
        ] {
            assert_eq!(type_name(&data_type), expected);
        }
    }

    #[test]
    fn columns_carry_what_clients_ask_for() {
        let comment = HashMap::from([("comment".to_owned(), "what it cost".to_owned())]);
        let price = Field::new("price", DataType::Decimal128(10, 2), true).with_metadata(comment);
        let table = TableEntry {
            schema: "public".into(),
            name: "t".into(),
            kind: "TABLE",
            columns: Arc::new(Schema::new(vec![price])),
            comment: None,
            primary_key: vec![],
        };
        let schema = described(&table);
        let metadata = schema.field(0).metadata();
        for (key, value) in [
            ("TYPE_NAME", "DECIMAL(10, 2)"),
            ("PRECISION", "10"),
            ("SCALE", "2"),
            ("REMARKS", "what it cost"),
        ] {
            assert_eq!(metadata[&format!("ARROW:FLIGHT:SQL:{key}")], value);
        }
    }
}
