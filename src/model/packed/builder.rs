//! An Arrow column built from packed values, without a scalar per cell on the way.

use std::sync::Arc;

use datafusion::arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, BooleanBufferBuilder, Date32Array, Decimal128Array, Float32Array,
    Float64Array, Int32Array, Int64Array, ListArray, NullBufferBuilder, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use datafusion::arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use datafusion::arrow::datatypes::DataType;

use super::codes::{self, Kind};
use crate::error::{Error, Result};

/// Grows one column of any type that a row can hold.
pub(super) struct ColumnBuilder {
    data_type: DataType,
    nulls: NullBufferBuilder,
    values: Values,
}

enum Values {
    Bool(BooleanBufferBuilder),
    I32(Vec<i32>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    I128(Vec<i128>),
    Bytes { offsets: Vec<i32>, data: Vec<u8> },
    List { offsets: Vec<i32>, items: Box<ColumnBuilder> },
    Struct(Vec<ColumnBuilder>),
}

impl ColumnBuilder {
    pub(super) fn new(data_type: &DataType, rows: usize) -> Self {
        let values = match data_type {
            DataType::Boolean => Values::Bool(BooleanBufferBuilder::new(rows)),
            DataType::Int64 | DataType::Timestamp(_, _) => Values::I64(Vec::with_capacity(rows)),
            DataType::Float32 => Values::F32(Vec::with_capacity(rows)),
            DataType::Float64 => Values::F64(Vec::with_capacity(rows)),
            DataType::Decimal128(_, _) => Values::I128(Vec::with_capacity(rows)),
            DataType::Utf8 | DataType::Binary => {
                Values::Bytes { offsets: first_offset(rows), data: Vec::with_capacity(rows * 8) }
            }
            DataType::List(item) => Values::List {
                offsets: first_offset(rows),
                items: Box::new(ColumnBuilder::new(item.data_type(), rows)),
            },
            DataType::Struct(fields) => {
                Values::Struct(fields.iter().map(|f| ColumnBuilder::new(f.data_type(), rows)).collect())
            }
            _ => Values::I32(Vec::with_capacity(rows)),
        };
        Self { data_type: data_type.clone(), nulls: NullBufferBuilder::new(rows), values }
    }

    fn append_null(&mut self) {
        self.append_nulls(1);
    }

    pub(super) fn append_nulls(&mut self, count: usize) {
        self.nulls.append_n_nulls(count);
        match &mut self.values {
            Values::Bool(values) => values.append_n(count, false),
            Values::I32(values) => values.resize(values.len() + count, 0),
            Values::I64(values) => values.resize(values.len() + count, 0),
            Values::F32(values) => values.resize(values.len() + count, 0.0),
            Values::F64(values) => values.resize(values.len() + count, 0.0),
            Values::I128(values) => values.resize(values.len() + count, 0),
            Values::Bytes { offsets, .. } | Values::List { offsets, .. } => {
                offsets.resize(offsets.len() + count, offsets.last().copied().unwrap_or_default());
            }
            Values::Struct(columns) => columns.iter_mut().for_each(|column| column.append_nulls(count)),
        }
    }

    /// Appends values as they stand in rows: the code that they have in common, and the bytes of each.
    ///
    /// # Errors
    /// `Corrupt` where they are no values of the column's type.
    #[inline]
    pub(super) fn append_stored<'a>(
        &mut self,
        kind: Kind,
        code: u8,
        bytes: impl ExactSizeIterator<Item = &'a [u8]>,
    ) -> Result<()> {
        let count = bytes.len();
        if code == codes::NULL {
            self.append_nulls(count);
            return Ok(());
        }
        match &mut self.values {
            // One loop for each meaning of the code: what most values are is most often asked for.
            Values::F64(values) if kind == Kind::Double && code == codes::RAW => {
                values.extend(bytes.map(|bytes| f64::from_le_bytes(codes::fixed(bytes))));
            }
            Values::F64(values) if kind == Kind::Double => {
                values.extend(bytes.map(|bytes| codes::double(code, bytes)));
            }
            Values::F64(values) => values.extend(bytes.map(|bytes| f64::from(codes::float(code, bytes)))),
            Values::I64(values) => values.extend(bytes.map(codes::int)),
            Values::Bool(values) => values.append_n(count, codes::bool(code)),
            Values::I32(values) => {
                for bytes in bytes {
                    let small = i32::try_from(codes::int(bytes));
                    values
                        .push(small.map_err(|_| Error::corrupt("a number in it is too large for its type"))?);
                }
            }
            Values::F32(values) => values.extend(bytes.map(|bytes| codes::float(code, bytes))),
            Values::I128(values) => values.extend(bytes.map(codes::decimal)),
            Values::Bytes { offsets, data } => {
                for bytes in bytes {
                    append_bytes(offsets, data, bytes)?;
                }
            }
            Values::List { .. } | Values::Struct(_) => {
                for mut bytes in bytes {
                    self.append_body(&mut bytes)?;
                    if !bytes.is_empty() {
                        return Err(Error::corrupt("a value is longer than it says"));
                    }
                }
                return Ok(());
            }
        }
        self.nulls.append_n_non_nulls(count);
        Ok(())
    }

    /// Appends the value whose body starts at `input`, and moves `input` behind it.
    pub(super) fn append_body(&mut self, input: &mut &[u8]) -> Result<()> {
        match &mut self.values {
            Values::Bool(values) => values.append(take::<1>(input)?[0] != 0),
            Values::I32(values) => values.push(i32::from_le_bytes(take(input)?)),
            Values::I64(values) => values.push(i64::from_le_bytes(take(input)?)),
            Values::F32(values) => values.push(f32::from_le_bytes(take(input)?)),
            Values::F64(values) => values.push(f64::from_le_bytes(take(input)?)),
            Values::I128(values) => values.push(i128::from_le_bytes(take(input)?)),
            Values::Bytes { offsets, data } => {
                let length = u32::from_le_bytes(take(input)?) as usize;
                append_bytes(offsets, data, take_slice(input, length)?)?;
            }
            Values::List { offsets, items } => {
                let count = u32::from_le_bytes(take(input)?) as usize;
                let present = take_slice(input, count.div_ceil(8))?;
                for i in 0..count {
                    match is_present(present, i) {
                        true => items.append_body(input)?,
                        false => items.append_null(),
                    }
                }
                push_offset(offsets, count)?;
            }
            Values::Struct(columns) => {
                let present = take_slice(input, columns.len().div_ceil(8))?;
                for (i, column) in columns.iter_mut().enumerate() {
                    match is_present(present, i) {
                        true => column.append_body(input)?,
                        false => column.append_null(),
                    }
                }
            }
        }
        self.nulls.append_non_null();
        Ok(())
    }

    /// The column.
    ///
    /// # Errors
    /// `Corrupt` when text is not UTF-8, or a NULL stands where the type allows none.
    pub(super) fn finish(mut self) -> Result<ArrayRef> {
        let rows = self.nulls.len();
        let nulls = self.nulls.finish();
        let corrupt = |e| Error::corrupt("a value does not fit its type").with_source(e);
        Ok(match (self.values, &self.data_type) {
            (Values::Bool(mut values), _) => Arc::new(BooleanArray::new(values.finish(), nulls)),
            (Values::I32(values), DataType::Date32) => Arc::new(Date32Array::new(values.into(), nulls)),
            (Values::I32(values), _) => Arc::new(Int32Array::new(values.into(), nulls)),
            (Values::I64(values), DataType::Timestamp(_, zone)) => {
                Arc::new(TimestampMicrosecondArray::new(values.into(), nulls).with_timezone_opt(zone.clone()))
            }
            (Values::I64(values), _) => Arc::new(Int64Array::new(values.into(), nulls)),
            (Values::F32(values), _) => Arc::new(Float32Array::new(values.into(), nulls)),
            (Values::F64(values), _) => Arc::new(Float64Array::new(values.into(), nulls)),
            (Values::I128(values), data_type) => {
                Arc::new(Decimal128Array::new(values.into(), nulls).with_data_type(data_type.clone()))
            }
            (Values::Bytes { offsets, data }, DataType::Utf8) => Arc::new(
                StringArray::try_new(offset_buffer(offsets), Buffer::from_vec(data), nulls)
                    .map_err(corrupt)?,
            ),
            (Values::Bytes { offsets, data }, _) => Arc::new(
                BinaryArray::try_new(offset_buffer(offsets), Buffer::from_vec(data), nulls)
                    .map_err(corrupt)?,
            ),
            (Values::List { offsets, items }, DataType::List(item)) => {
                let items = items.finish()?;
                let list = ListArray::try_new(Arc::clone(item), offset_buffer(offsets), items, nulls);
                Arc::new(list.map_err(corrupt)?)
            }
            (Values::Struct(columns), DataType::Struct(fields)) => {
                let columns = columns.into_iter().map(ColumnBuilder::finish).collect::<Result<Vec<_>>>()?;
                let array = StructArray::try_new_with_length(fields.clone(), columns, nulls, rows);
                Arc::new(array.map_err(corrupt)?)
            }
            (_, data_type) => return Err(Error::internal(format!("no column is built as {data_type}"))),
        })
    }
}

fn first_offset(rows: usize) -> Vec<i32> {
    let mut offsets = Vec::with_capacity(rows + 1);
    offsets.push(0);
    offsets
}

fn offset_buffer(offsets: Vec<i32>) -> OffsetBuffer<i32> {
    OffsetBuffer::new(ScalarBuffer::from(offsets))
}

fn append_bytes(offsets: &mut Vec<i32>, data: &mut Vec<u8>, value: &[u8]) -> Result<()> {
    push_offset(offsets, value.len())?;
    data.extend_from_slice(value);
    Ok(())
}

fn push_offset(offsets: &mut Vec<i32>, length: usize) -> Result<()> {
    let last = offsets.last().copied().unwrap_or_default();
    let end = i32::try_from(length).ok().and_then(|l| last.checked_add(l));
    offsets.push(
        end.ok_or_else(|| Error::exhausted("one column of the answer passes 2 GiB: ask for fewer keys"))?,
    );
    Ok(())
}

fn is_present(present: &[u8], i: usize) -> bool {
    present[i / 8] >> (i % 8) & 1 == 1
}

pub(super) fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N]> {
    let (head, rest) = input.split_first_chunk::<N>().ok_or_else(too_short)?;
    *input = rest;
    Ok(*head)
}

pub(super) fn take_slice<'a>(input: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (head, rest) = input.split_at_checked(length).ok_or_else(too_short)?;
    *input = rest;
    Ok(head)
}

pub(super) fn too_short() -> Error {
    Error::corrupt("it is shorter than it says")
}
