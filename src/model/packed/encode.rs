//! Arrow columns to packed rows.

use std::ops::Range;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, StringArray};
use datafusion::arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type,
    TimestampMicrosecondType,
};

use super::{FORMAT, HEADER, RowLayout, RowOrder};
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
        if columns.len() != layout.features.len() {
            let (got, want) = (columns.len(), layout.features.len());
            return Err(Error::internal(format!("a row of {want} features was given {got} columns")));
        }
        let mut sources = Vec::with_capacity(columns.len());
        for (slot, column) in layout.features.iter().zip(columns) {
            let (want, got) = (slot.field.data_type(), column.data_type());
            if !want.equals_datatype(got) {
                let name = slot.field.name();
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
        let start = out.len();
        out.extend_from_slice(&order.to_bytes());
        out.push(FORMAT);
        out.extend_from_slice(&self.layout.fingerprint.to_le_bytes());
        out.resize(start + self.layout.tail, 0);
        for (i, ((source, column), slot)) in self.columns.iter().zip(&self.layout.features).enumerate() {
            let at = start + slot.offset;
            if column.is_valid(row) {
                out[start + HEADER + i / 8] |= 1 << (i % 8);
                match source {
                    Source::Bool(array) => out[at] = u8::from(array.value(row)),
                    Source::I32(values) => put(out, at, &values[row].to_le_bytes()),
                    Source::I64(values) => put(out, at, &values[row].to_le_bytes()),
                    Source::F32(values) => put(out, at, &values[row].to_le_bytes()),
                    Source::F64(values) => put(out, at, &values[row].to_le_bytes()),
                    Source::I128(values) => put(out, at, &values[row].to_le_bytes()),
                    Source::Utf8(array) => out.extend_from_slice(array.value(row).as_bytes()),
                    Source::Binary(array) => out.extend_from_slice(array.value(row)),
                    Source::Nested => append_bodies(column.as_ref(), row..row + 1, out),
                }
            }
            if source.is_variable() {
                let end = u32::try_from(out.len() - start - self.layout.tail)
                    .map_err(|_| Error::exhausted("a row of 4 GiB or more does not fit the online store"))?;
                put(out, at, &end.to_le_bytes());
            }
        }
        Ok(())
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    out[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A column, seen as what goes into its slot.
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

    fn is_variable(&self) -> bool {
        matches!(self, Self::Utf8(_) | Self::Binary(_) | Self::Nested)
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
