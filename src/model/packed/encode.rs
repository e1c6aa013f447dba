//! Arrow columns to packed rows.

use std::ops::Range;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, StringArray};
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};

use super::codes::{self, NULL, put_varint};
use super::{RowLayout, RowOrder};
use crate::error::{Error, Result};

/// Packs rows of one batch.
pub(crate) struct RowEncoder<'a> {
    layout: &'a RowLayout,
    columns: Vec<(Source<'a>, &'a ArrayRef)>,
}

impl<'a> RowEncoder<'a> {
    /// `columns` are the features' columns of a batch, in the layout's order and types.
    ///
    /// # Errors
    /// `Internal` when a column has another type than its feature.
    pub(crate) fn new(layout: &'a RowLayout, columns: &'a [ArrayRef]) -> Result<Self> {
        if columns.len() != layout.fields.len() {
            let (got, want) = (columns.len(), layout.fields.len());
            return Err(Error::internal(format!("a row of {want} features was given {got} columns")));
        }
        let mut sources = Vec::with_capacity(columns.len());
        for (field, column) in layout.fields.iter().zip(columns) {
            let (want, got) = (field.data_type(), column.data_type());
            if !want.equals_datatype(got) {
                let name = field.name();
                return Err(Error::internal(format!("feature '{name}' is {want} and was given {got}")));
            }
            sources.push((Source::new(column), column));
        }
        Ok(Self { layout, columns: sources })
    }

    /// Appends row `row` of the batch to `out`.
    ///
    /// # Errors
    /// `Exhausted` when the row would be 4 GiB or longer.
    pub(crate) fn append(&self, row: usize, order: RowOrder, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&order.to_bytes());
        put_varint(self.layout.current().id, out);
        let codes_at = out.len();
        out.resize(codes_at + self.columns.len().div_ceil(2), 0);
        for (i, (source, column)) in self.columns.iter().enumerate() {
            let code = match source {
                _ if column.is_null(row) => NULL,
                Source::Bool(array) => codes::put_bool(array.value(row)),
                Source::I32(values) => codes::put_int(values[row].into(), out),
                Source::I64(values) => codes::put_int(values[row], out),
                Source::F32(values) => codes::put_float(values[row], out),
                Source::F64(values) => codes::put_double(values[row], out),
                Source::I128(values) => codes::put_decimal(values[row], out),
                Source::Utf8(array) => {
                    codes::put_variable(|out| out.extend_from_slice(array.value(row).as_bytes()), out)?
                }
                Source::Binary(array) => {
                    codes::put_variable(|out| out.extend_from_slice(array.value(row)), out)?
                }
                Source::Nested => {
                    codes::put_variable(|out| append_bodies(column.as_ref(), row..row + 1, out), out)?
                }
            };
            out[codes_at + i / 2] |= code << (i % 2 * 4);
        }
        Ok(())
    }
}

/// A column, seen as what goes into a row.
enum Source<'a> {
    Bool(&'a BooleanArray),
    I32(&'a [i32]),
    I64(&'a [i64]),
    F32(&'a [f32]),
    F64(&'a [f64]),
    I128(&'a [i128]),
    Utf8(&'a StringArray),
    Binary(&'a BinaryArray),
    Nested,
}

impl<'a> Source<'a> {
    fn new(array: &'a dyn Array) -> Self {
        match array.data_type() {
            DataType::Boolean => Self::Bool(array.as_boolean()),
            DataType::Int32 => Self::I32(array.as_primitive::<Int32Type>().values()),
            DataType::Date32 => Self::I32(array.as_primitive::<Date32Type>().values()),
            DataType::Int64 => Self::I64(array.as_primitive::<Int64Type>().values()),
            DataType::Timestamp(_, _) => Self::I64(array.as_primitive::<TimestampMicrosecondType>().values()),
            DataType::Float32 => Self::F32(array.as_primitive::<Float32Type>().values()),
            DataType::Float64 => Self::F64(array.as_primitive::<Float64Type>().values()),
            DataType::Decimal128(_, _) => Self::I128(array.as_primitive::<Decimal128Type>().values()),
            DataType::Utf8 => Self::Utf8(array.as_string()),
            DataType::Binary => Self::Binary(array.as_binary()),
            _ => Self::Nested,
        }
    }
}

/// Appends the bodies of those of `rows` that are not NULL.
fn append_bodies(array: &dyn Array, rows: Range<usize>, out: &mut Vec<u8>) {
    let source = Source::new(array);
    for row in rows.filter(|row| array.is_valid(*row)) {
        match &source {
            Source::Bool(array) => out.push(u8::from(array.value(row))),
            Source::I32(values) => out.extend_from_slice(&values[row].to_le_bytes()),
            Source::I64(values) => out.extend_from_slice(&values[row].to_le_bytes()),
            Source::F32(values) => out.extend_from_slice(&values[row].to_le_bytes()),
            Source::F64(values) => out.extend_from_slice(&values[row].to_le_bytes()),
            Source::I128(values) => out.extend_from_slice(&values[row].to_le_bytes()),
            Source::Utf8(array) => append_counted(array.value(row).as_bytes(), out),
            Source::Binary(array) => append_counted(array.value(row), out),
            Source::Nested => append_nested(array, row, out),
        }
    }
}

fn append_counted(value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(value.len() as u32).to_le_bytes());
    out.extend_from_slice(value);
}

fn append_nested(array: &dyn Array, row: usize, out: &mut Vec<u8>) {
    if let Some(list) = array.as_list_opt::<i32>() {
        let offsets = list.value_offsets();
        let items = offsets[row] as usize..offsets[row + 1] as usize;
        out.extend_from_slice(&(items.len() as u32).to_le_bytes());
        append_present(items.clone().map(|i| list.values().is_valid(i)), out);
        append_bodies(list.values().as_ref(), items, out);
    } else if let Some(fields) = array.as_struct_opt() {
        append_present(fields.columns().iter().map(|c| c.is_valid(row)), out);
        for column in fields.columns() {
            append_bodies(column.as_ref(), row..row + 1, out);
        }
    }
}

fn append_present(present: impl ExactSizeIterator<Item = bool>, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + present.len().div_ceil(8), 0);
    for (i, present) in present.enumerate() {
        out[start + i / 8] |= u8::from(present) << (i % 8);
    }
}
