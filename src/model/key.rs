//! Entity keys as bytes: typed, column by column, so that two keys are equal exactly when their bytes are.
//!
//! A key is its columns in `ENTITY KEY (…)` order, one after the other with nothing in between:
//!
//! ```text
//! BOOLEAN              1 byte   0 or 1
//! INT, DATE            4 bytes  big-endian, sign bit flipped
//! BIGINT, TIMESTAMP    8 bytes  big-endian, sign bit flipped
//! DECIMAL             16 bytes  big-endian unscaled value, sign bit flipped
//! VARCHAR, BINARY      4 bytes  length, big-endian, then so many bytes
//!
//! ('u1', 7)  as (VARCHAR, BIGINT)   00 00 00 02 | 75 31 | 80 00 00 00 00 00 00 07
//! ```
//!
//! Every column is either of a fixed width or says its length first, so with the types known the bytes read back
//! in one way only: no two composite keys share bytes, whatever their strings hold.

use std::sync::Arc;

use bytes::Bytes;
use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryBuilder, BooleanArray, Date32Array, Decimal128Array,
    Int32Array, Int64Array, PrimitiveArray, StringArray, StringBuilder,
};
use datafusion::arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Decimal128Type, Field, FieldRef, Int32Type, Int64Type,
    TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};

use crate::error::{Error, Result};

/// The key of one entity. Cheap to clone; keys made together share one buffer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EntityKey(Bytes);

impl EntityKey {
    /// Takes bytes that [`encode_keys`] made, as they come back from a store.
    pub(crate) fn from_stored(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// One key per row of `columns` (the entity key's columns, in key order, equally long). `None` where a column is
/// NULL: NULL equals nothing, so no entity has such a key.
///
/// # Errors
/// `Unsupported` for a column type that cannot be a key.
pub(crate) fn encode_keys(columns: &[ArrayRef]) -> Result<Vec<Option<EntityKey>>> {
    let rows = columns.first().map_or(0, |c| c.len());
    let parts = columns.iter().map(KeyColumn::new).collect::<Result<Vec<_>>>()?;
    let mut ends = vec![0usize; rows];
    for part in &parts {
        part.add_widths(&mut ends);
    }
    let mut cursors = Vec::with_capacity(rows);
    let mut total = 0;
    for end in &mut ends {
        cursors.push(total);
        total += *end;
        *end = total;
    }
    let starts = cursors.clone();
    let mut bytes = vec![0u8; total];
    for part in &parts {
        part.write(&mut bytes, &mut cursors);
    }
    let bytes = Bytes::from(bytes);
    let keys = (0..rows).map(|row| {
        let known = columns.iter().all(|c| c.is_valid(row));
        known.then(|| EntityKey(bytes.slice(starts[row]..ends[row])))
    });
    Ok(keys.collect())
}

/// The key columns of `keys`, in the order and types of `fields`.
///
/// # Errors
/// `Corrupt` when a key does not hold exactly these columns.
pub(crate) fn decode_keys(fields: &[FieldRef], keys: &[EntityKey]) -> Result<Vec<ArrayRef>> {
    let mut rest: Vec<&[u8]> = keys.iter().map(EntityKey::as_bytes).collect();
    let columns = fields.iter().map(|f| decode_column(f, &mut rest)).collect::<Result<Vec<_>>>()?;
    match rest.iter().any(|r| !r.is_empty()) {
        true => Err(Error::corrupt("a stored entity key is longer than its columns")),
        false => Ok(columns),
    }
}

/// One key column, seen as the bits that go into the key.
enum KeyColumn<'a> {
    Bool(&'a BooleanArray),
    Four(&'a [i32]),
    Eight(&'a [i64]),
    Sixteen(&'a [i128]),
    Utf8(&'a StringArray),
    Binary(&'a BinaryArray),
}

impl<'a> KeyColumn<'a> {
    fn new(array: &'a ArrayRef) -> Result<Self> {
        use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
        Ok(match array.data_type() {
            DataType::Boolean => Self::Bool(array.as_boolean()),
            DataType::Int32 => Self::Four(array.as_primitive::<Int32Type>().values()),
            DataType::Date32 => Self::Four(array.as_primitive::<Date32Type>().values()),
            DataType::Int64 => Self::Eight(array.as_primitive::<Int64Type>().values()),
            DataType::Timestamp(unit, _) => Self::Eight(match unit {
                Second => array.as_primitive::<TimestampSecondType>().values(),
                Millisecond => array.as_primitive::<TimestampMillisecondType>().values(),
                Microsecond => array.as_primitive::<TimestampMicrosecondType>().values(),
                Nanosecond => array.as_primitive::<TimestampNanosecondType>().values(),
            }),
            DataType::Decimal128(_, _) => Self::Sixteen(array.as_primitive::<Decimal128Type>().values()),
            DataType::Utf8 => Self::Utf8(array.as_string()),
            DataType::Binary => Self::Binary(array.as_binary()),
            other => return Err(Error::unsupported(format!("{other} cannot be an entity key"))),
        })
    }

    fn add_widths(&self, widths: &mut [usize]) {
        let fixed = match self {
            Self::Bool(_) => 1,
            Self::Four(_) => 4,
            Self::Eight(_) => 8,
            Self::Sixteen(_) => 16,
            Self::Utf8(array) => return add_lengths(array.value_offsets(), widths),
            Self::Binary(array) => return add_lengths(array.value_offsets(), widths),
        };
        widths.iter_mut().for_each(|w| *w += fixed);
    }

    /// Writes each row at its cursor and moves the cursor behind it. NULL rows are written too: their room is
    /// reserved and nobody sees it.
    fn write(&self, bytes: &mut [u8], cursors: &mut [usize]) {
        let mut put = |row: usize, part: &[u8]| {
            let at = cursors[row];
            bytes[at..at + part.len()].copy_from_slice(part);
            cursors[row] += part.len();
        };
        match self {
            Self::Bool(array) => {
                (0..array.len()).for_each(|row| put(row, &[u8::from(array.value(row))]));
            }
            Self::Four(values) => {
                values.iter().enumerate().for_each(|(row, v)| put(row, &(v ^ i32::MIN).to_be_bytes()));
            }
            Self::Eight(values) => {
                values.iter().enumerate().for_each(|(row, v)| put(row, &(v ^ i64::MIN).to_be_bytes()));
            }
            Self::Sixteen(values) => {
                values.iter().enumerate().for_each(|(row, v)| put(row, &(v ^ i128::MIN).to_be_bytes()));
            }
            Self::Utf8(array) => (0..array.len()).for_each(|row| {
                let value = array.value(row).as_bytes();
                put(row, &(value.len() as u32).to_be_bytes());
                put(row, value);
            }),
            Self::Binary(array) => (0..array.len()).for_each(|row| {
                let value = array.value(row);
                put(row, &(value.len() as u32).to_be_bytes());
                put(row, value);
            }),
        }
    }
}

/// Arrow's 32-bit offsets bound a value to 2 GiB, so its length always fits the four bytes before it.
fn add_lengths(offsets: &[i32], widths: &mut [usize]) {
    for (width, ends) in widths.iter_mut().zip(offsets.windows(2)) {
        *width += 4 + (ends[1] - ends[0]) as usize;
    }
}

fn decode_column(field: &Field, rest: &mut [&[u8]]) -> Result<ArrayRef> {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    Ok(match field.data_type() {
        DataType::Boolean => {
            let values = rest.iter_mut().map(|r| Ok(take::<1>(r)?[0] != 0)).collect::<Result<Vec<_>>>()?;
            Arc::new(BooleanArray::from(values))
        }
        DataType::Int32 => Arc::new(Int32Array::from(fours(rest)?)),
        DataType::Date32 => Arc::new(Date32Array::from(fours(rest)?)),
        DataType::Int64 => Arc::new(Int64Array::from(eights(rest)?)),
        DataType::Timestamp(unit, zone) => {
            let zone = zone.clone();
            match unit {
                Second => Arc::new(timestamps::<TimestampSecondType>(rest)?.with_timezone_opt(zone)),
                Millisecond => {
                    Arc::new(timestamps::<TimestampMillisecondType>(rest)?.with_timezone_opt(zone))
                }
                Microsecond => {
                    Arc::new(timestamps::<TimestampMicrosecondType>(rest)?.with_timezone_opt(zone))
                }
                Nanosecond => Arc::new(timestamps::<TimestampNanosecondType>(rest)?.with_timezone_opt(zone)),
            }
        }
        DataType::Decimal128(precision, scale) => {
            let values = rest.iter_mut().map(|r| Ok(i128::from_be_bytes(take(r)?) ^ i128::MIN));
            let array = Decimal128Array::from_iter_values(values.collect::<Result<Vec<_>>>()?);
            Arc::new(array.with_precision_and_scale(*precision, *scale)?)
        }
        DataType::Utf8 => {
            let mut values = StringBuilder::with_capacity(rest.len(), rest.len() * 16);
            for r in rest {
                let text = std::str::from_utf8(take_counted(r)?);
                values.append_value(text.map_err(|_| Error::corrupt("a stored entity key is not UTF-8"))?);
            }
            Arc::new(values.finish())
        }
        DataType::Binary => {
            let mut values = BinaryBuilder::with_capacity(rest.len(), rest.len() * 16);
            for r in rest {
                values.append_value(take_counted(r)?);
            }
            Arc::new(values.finish())
        }
        other => return Err(Error::unsupported(format!("{other} cannot be an entity key"))),
    })
}

fn fours(rest: &mut [&[u8]]) -> Result<Vec<i32>> {
    rest.iter_mut().map(|r| Ok(i32::from_be_bytes(take(r)?) ^ i32::MIN)).collect()
}

fn eights(rest: &mut [&[u8]]) -> Result<Vec<i64>> {
    rest.iter_mut().map(|r| Ok(i64::from_be_bytes(take(r)?) ^ i64::MIN)).collect()
}

fn timestamps<T: ArrowPrimitiveType<Native = i64>>(rest: &mut [&[u8]]) -> Result<PrimitiveArray<T>> {
    Ok(PrimitiveArray::<T>::from_iter_values(eights(rest)?))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or_else(too_short)?;
    *rest = tail;
    Ok(*head)
}

fn take_counted<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8]> {
    let length = u32::from_be_bytes(take(rest)?) as usize;
    let (head, tail) = rest.split_at_checked(length).ok_or_else(too_short)?;
    *rest = tail;
    Ok(head)
}

fn too_short() -> Error {
    Error::corrupt("a stored entity key is shorter than its columns")
}

#[cfg(test)]
mod tests;
