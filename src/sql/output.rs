//! The one schema of a result: as prepared, as advertised, and as streamed.
//!
//! DataFusion's logical and physical schemas differ in nullability, and views and dictionaries come and
//! go with the plan; clients compare schemas exactly. So every result is re-stamped: plain types, and
//! every column nullable, because no plan proves the contrary in all cases.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::array::RecordBatchOptions;
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;

use crate::error::Result;

/// The schema under which rows of `schema` leave the server.
pub(super) fn wire_schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<FieldRef> = schema
        .fields()
        .iter()
        .map(|f| Arc::new(with_digits(Field::new(f.name(), wire_type(f.data_type()), true))))
        .collect();
    Arc::new(Schema::new(fields))
}

/// JDBC looks for the digits of a decimal beside its type, and finds none in it.
fn with_digits(field: Field) -> Field {
    let (DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale)) = field.data_type()
    else {
        return field;
    };
    let digits = [("PRECISION", precision.to_string()), ("SCALE", scale.to_string())];
    field.with_metadata(digits.map(|(key, value)| (format!("ARROW:FLIGHT:SQL:{key}"), value)).into())
}

pub(super) fn wire_type(data_type: &DataType) -> DataType {
    let field = |f: &FieldRef| Arc::new(Field::new(f.name(), wire_type(f.data_type()), f.is_nullable()));
    match data_type {
        DataType::Utf8View => DataType::Utf8,
        DataType::BinaryView => DataType::Binary,
        DataType::Dictionary(_, value) => wire_type(value),
        DataType::RunEndEncoded(_, value) => wire_type(value.data_type()),
        DataType::List(f) | DataType::ListView(f) => DataType::List(field(f)),
        DataType::LargeList(f) | DataType::LargeListView(f) => DataType::LargeList(field(f)),
        DataType::FixedSizeList(f, n) => DataType::FixedSizeList(field(f), *n),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::Map(f, sorted) => DataType::Map(field(f), *sorted),
        other => other.clone(),
    }
}

/// Re-stamps a stream to `schema`, which [`wire_schema`] made from the plan's.
pub(super) fn to_wire(batches: SendableRecordBatchStream, schema: &SchemaRef) -> SendableRecordBatchStream {
    let target = Arc::clone(schema);
    let batches = batches.map(move |batch| Ok(restamp(&batch?, &target)?));
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), batches))
}

fn restamp(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns: Result<Vec<_>, _> = batch
        .columns()
        .iter()
        .zip(schema.fields())
        .map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(Arc::clone(column))
            } else {
                cast(column, field.data_type())
            }
        })
        .collect();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(RecordBatch::try_new_with_options(Arc::clone(schema), columns?, &options)?)
}
