//! Arrow types to the types that Iceberg v2 keeps, and back.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::{
    DataType, Field, FieldRef, Fields, Schema as ArrowSchema, SchemaRef, TimeUnit,
};
use iceberg::arrow::{arrow_schema_to_schema_auto_assign_ids, schema_to_arrow_schema};
use iceberg::spec::Schema;

use crate::error::{Error, Result};

/// Key under which Iceberg's converter carries a field's documentation in Arrow metadata.
const DOC: &str = "doc";

/// The Arrow type under which a value of type `data_type` is stored and read back.
///
/// # Errors
/// `Invalid`, naming `column`, where Iceberg v2 has no such type.
pub(crate) fn storage_type(column: &str, data_type: &DataType) -> Result<DataType> {
    use DataType as D;
    Ok(match data_type {
        D::Boolean | D::Int32 | D::Int64 | D::Float32 | D::Float64 | D::Utf8 | D::Binary | D::Date32 => {
            data_type.clone()
        }
        D::Decimal128(_, scale) if *scale >= 0 => data_type.clone(),
        D::Int8 | D::Int16 | D::UInt8 | D::UInt16 => D::Int32,
        D::UInt32 => D::Int64,
        D::UInt64 => D::Decimal128(20, 0),
        D::Float16 => D::Float32,
        D::LargeUtf8 | D::Utf8View => D::Utf8,
        D::LargeBinary | D::BinaryView => D::Binary,
        D::FixedSizeBinary(_) => data_type.clone(),
        D::Date64 => D::Date32,
        D::Time32(_) | D::Time64(_) => D::Time64(TimeUnit::Microsecond),
        D::Timestamp(_, None) => D::Timestamp(TimeUnit::Microsecond, None),
        D::Timestamp(_, Some(_)) => utc(),
        D::Dictionary(_, value) => storage_type(column, value)?,
        D::RunEndEncoded(_, value) => storage_type(column, value.data_type())?,
        D::List(item)
        | D::LargeList(item)
        | D::FixedSizeList(item, _)
        | D::ListView(item)
        | D::LargeListView(item) => {
            let inner = storage_type(column, item.data_type())?;
            D::List(Arc::new(Field::new("element", inner, true)))
        }
        D::Struct(fields) => {
            let fields: Result<Fields> = fields
                .iter()
                .map(|f| Ok(Field::new(f.name(), storage_type(column, f.data_type())?, true)))
                .collect();
            D::Struct(fields?)
        }
        other => {
            return Err(Error::invalid(format!(
                "column '{column}' has type {other}, which Iceberg cannot keep: CAST it to another type"
            )));
        }
    })
}

fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

/// The schema under which rows of `schema` are stored: types by [`storage_type`], no metadata.
pub(crate) fn storage_schema(schema: &ArrowSchema) -> Result<SchemaRef> {
    let fields: Result<Vec<FieldRef>> = schema
        .fields()
        .iter()
        .map(|f| Ok(Arc::new(Field::new(f.name(), storage_type(f.name(), f.data_type())?, f.is_nullable()))))
        .collect();
    Ok(Arc::new(ArrowSchema::new(fields?)))
}

/// The Iceberg schema of stored columns, with fresh field ids. `docs` maps top-level columns to their descriptions.
pub(super) fn iceberg_schema(schema: &ArrowSchema, docs: &HashMap<String, String>) -> Result<Schema> {
    let fields: Vec<FieldRef> = schema
        .fields()
        .iter()
        .map(|f| {
            let metadata = docs.get(f.name()).map(|doc| (DOC.to_owned(), doc.clone())).into_iter().collect();
            Arc::new(f.as_ref().clone().with_metadata(metadata))
        })
        .collect();
    arrow_schema_to_schema_auto_assign_ids(&ArrowSchema::new(fields))
        .map_err(|e| Error::invalid("the table's schema does not fit Iceberg").with_source(e))
}

/// The schema under which SQL sees an Iceberg schema: the types of [`storage_type`], no metadata.
pub(super) fn arrow_schema(schema: &Schema) -> Result<SchemaRef> {
    let arrow = schema_to_arrow_schema(schema).map_err(|e| {
        Error::unsupported("the table has a type that Fletching does not read").with_source(e)
    })?;
    let fields: Vec<FieldRef> = arrow.fields().iter().map(plain_field).collect();
    Ok(Arc::new(ArrowSchema::new(fields)))
}

fn plain_field(field: &FieldRef) -> FieldRef {
    Arc::new(Field::new(field.name(), plain_type(field.data_type()), field.is_nullable()))
}

fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("UTC".into())),
        DataType::LargeBinary => DataType::Binary,
        DataType::List(item) => DataType::List(plain_field(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(plain_field).collect()),
        DataType::Map(entries, sorted) => DataType::Map(plain_field(entries), *sorted),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_types_survive_iceberg() {
        let item = |t| Arc::new(Field::new("item", t, true));
        let types = [
            DataType::Boolean,
            DataType::Int16,
            DataType::Int32,
            DataType::Int64,
            DataType::UInt64,
            DataType::Float32,
            DataType::Float64,
            DataType::Decimal128(12, 3),
            DataType::Utf8View,
            DataType::LargeBinary,
            DataType::Date32,
            DataType::Timestamp(TimeUnit::Nanosecond, None),
            DataType::Timestamp(TimeUnit::Second, Some("Europe/Berlin".into())),
            DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)),
            DataType::FixedSizeList(item(DataType::Float32), 3),
            DataType::Struct(Fields::from(vec![Field::new("x", DataType::LargeUtf8, false)])),
            DataType::List(item(DataType::Struct(Fields::from(vec![Field::new("y", DataType::Int8, true)])))),
        ];
        let fields: Vec<Field> = types
            .iter()
            .enumerate()
            .map(|(i, t)| Field::new(format!("c{i}"), t.clone(), i % 2 == 0))
            .collect();
        let stored = storage_schema(&ArrowSchema::new(fields)).unwrap();
        let docs = HashMap::from([("c3".to_owned(), "a number".to_owned())]);
        let iceberg = iceberg_schema(&stored, &docs).unwrap();
        assert_eq!(iceberg.field_by_name("c3").unwrap().doc.as_deref(), Some("a number"));
        assert_eq!(arrow_schema(&iceberg).unwrap(), stored);
    }

    #[test]
    fn what_iceberg_cannot_keep_is_named() {
        for bad in [DataType::Null, DataType::Duration(TimeUnit::Second), DataType::Decimal128(5, -2)] {
            let error = storage_type("price", &bad).unwrap_err();
            assert!(error.to_string().contains("column 'price'"), "{error}");
        }
    }
}
