//! The outputs of one right side for the labels of a range: filled file by file, put out batch by batch.
//!
//! What a file has for the labels lies anywhere among them, so all of a label's values lie side by side: to write them
//! touches one or two lines of memory, not one for each column.
//!
//! ```text
//! label 0  ┌ valid: a bit per output ┬ values of fixed width, one after the other ┬ part: u32 ┬ index: u32 ┐
//! label 1  └ …
//! ```
//!
//! Values of other widths, which may be large, stay in the parts in which they came; `part` and `index` say where.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayData, ArrayRef, UInt32Array, make_array};
use datafusion::arrow::buffer::{BooleanBuffer, Buffer, NullBuffer};
use datafusion::arrow::compute::interleave;
use datafusion::arrow::datatypes::{ArrowNativeType, DataType};
use datafusion::arrow::util::bit_util::get_bit;
use datafusion::common::{Result, ScalarValue, exec_datafusion_err};

/// Labels whose values are written column by column before the next ones are: as many as a core's cache holds.
const BLOCK_LABELS: usize = 2048;
/// The part of a label without a match.
const NOWHERE: u32 = u32::MAX;
/// A part and an index in it.
const PART_BYTES: usize = 2 * size_of::<u32>();

/// Where an output's values are.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// Of so many bytes, at this byte of each label's.
    Fixed { start: usize, width: usize },
    /// A boolean, in the lowest bit of this byte.
    Bit { start: usize },
    /// In its own parts, of which it has this number.
    Parts(usize),
}

/// Where outputs that have `absent` for a label without a match are, and the bytes of each label.
fn places(absent: &[&ScalarValue]) -> (Vec<Place>, usize) {
    let (mut places, mut end, mut parts) = (Vec::with_capacity(absent.len()), absent.len().div_ceil(8), 0);
    for value in absent {
        let data_type = value.data_type();
        let start = end;
        places.push(match data_type.primitive_width() {
            _ if data_type == DataType::Boolean => {
                end += 1;
                Place::Bit { start }
            }
            Some(width @ (1 | 2 | 4 | 8 | 16)) => {
                end += width;
                Place::Fixed { start, width }
            }
            _ => {
                parts += 1;
                Place::Parts(parts - 1)
            }
        });
    }
    (places, if parts == 0 { end } else { end + PART_BYTES })
}

/// See the module's description.
#[derive(Debug)]
pub(super) struct Slots {
    types: Vec<DataType>,
    places: Vec<Place>,
    /// Bytes of each label, and how many of them are the valid bits.
    stride: usize,
    valid_bytes: usize,
    /// The part and the index of each label are here, where some output needs them.
    part_start: Option<usize>,
    /// Whether what stands in for each output is no NULL.
    absent_valid: Vec<bool>,
    /// Whether any value that was put in is NULL, so that valid bits differ between outputs.
    has_nulls: bool,
    bytes: Vec<u8>,
    /// For each output without fixed width: its parts, and behind them what stands in.
    parts: Vec<Vec<ArrayRef>>,
    absent_parts: Vec<ArrayRef>,
}

impl Slots {
    /// Bytes of each label.
    pub(super) fn stride(absent: &[&ScalarValue]) -> usize {
        places(absent).1
    }

    /// For `len` labels, each with `absent`, one per output.
    pub(super) fn new(absent: &[&ScalarValue], len: usize) -> Result<Self> {
        let (places, stride) = places(absent);
        let is_part = |place: &Place| matches!(place, Place::Parts(_));
        let absent_parts = absent.iter().zip(&places).filter(|(_, place)| is_part(place));
        let absent_parts = absent_parts.map(|(value, _)| value.to_array()).collect::<Result<Vec<_>>>()?;
        let mut slots = Self {
            types: absent.iter().map(|value| value.data_type()).collect(),
            places,
            stride,
            valid_bytes: absent.len().div_ceil(8),
            part_start: (!absent_parts.is_empty()).then(|| stride - PART_BYTES),
            absent_valid: absent.iter().map(|value| !value.is_null()).collect(),
            has_nulls: false,
            bytes: Vec::new(),
            parts: vec![Vec::new(); absent_parts.len()],
            absent_parts,
        };
        let standing_in = slots.standing_in(absent)?;
        slots.bytes.reserve_exact(len * stride);
        (0..len).for_each(|_| slots.bytes.extend_from_slice(&standing_in));
        Ok(slots)
    }

    /// The bytes of a label without a match.
    fn standing_in(&self, absent: &[&ScalarValue]) -> Result<Vec<u8>> {
        let mut bytes = vec![0; self.stride];
        for (output, (value, place)) in absent.iter().zip(&self.places).enumerate() {
            if value.is_null() {
                continue;
            }
            bytes[output / 8] |= 1 << (output % 8);
            let data = value.to_array()?.to_data();
            match *place {
                Place::Fixed { start, width } => {
                    bytes[start..start + width].copy_from_slice(&data.buffers()[0].as_slice()[..width]);
                }
                Place::Bit { start } => bytes[start] = data.buffers()[0].as_slice()[0] & 1,
                Place::Parts(_) => {}
            }
        }
        if let Some(start) = self.part_start {
            bytes[start..start + 4].copy_from_slice(&NOWHERE.to_ne_bytes());
        }
        Ok(bytes)
    }

    /// Puts row `from[i]` of `columns`, one per output, in the place of label `to[i]`, for all `i`. Returns how many bytes
    /// more are held.
    pub(super) fn put(&mut self, columns: &[ArrayRef], from: &[u32], to: &[u32]) -> Result<usize> {
        let data: Vec<ArrayData> = columns.iter().map(|column| column.to_data()).collect();
        self.has_nulls |= data.iter().any(|data| data.null_count() > 0);
        let part = self.parts.first().map_or(0, |parts| parts.len() as u32);
        for (from, to) in from.chunks(BLOCK_LABELS).zip(to.chunks(BLOCK_LABELS)) {
            self.put_valid(&data, from, to);
            for (place, data) in self.places.iter().zip(&data) {
                let (bytes, stride) = (self.bytes.as_mut_slice(), self.stride);
                match *place {
                    Place::Fixed { start, width: 1 } => put_fixed::<1>(bytes, stride, start, data, from, to),
                    Place::Fixed { start, width: 2 } => put_fixed::<2>(bytes, stride, start, data, from, to),
                    Place::Fixed { start, width: 4 } => put_fixed::<4>(bytes, stride, start, data, from, to),
                    Place::Fixed { start, width: 8 } => put_fixed::<8>(bytes, stride, start, data, from, to),
                    Place::Fixed { start, .. } => put_fixed::<16>(bytes, stride, start, data, from, to),
                    Place::Bit { start } => {
                        let values = data.buffers()[0].as_slice();
                        for (from, to) in from.iter().zip(to) {
                            let set = get_bit(values, data.offset() + *from as usize);
                            bytes[*to as usize * stride + start] = u8::from(set);
                        }
                    }
                    Place::Parts(_) => {}
                }
            }
            if let Some(start) = self.part_start {
                for (from, to) in from.iter().zip(to) {
                    let at = *to as usize * self.stride + start;
                    self.bytes[at..at + 4].copy_from_slice(&part.to_ne_bytes());
                    self.bytes[at + 4..at + 8].copy_from_slice(&from.to_ne_bytes());
                }
            }
        }
        let mut held = 0;
        for (place, column) in self.places.iter().zip(columns) {
            if let Place::Parts(index) = place {
                held += column.get_array_memory_size();
                self.parts[*index].push(Arc::clone(column));
            }
        }
        Ok(held)
    }

    fn put_valid(&mut self, data: &[ArrayData], from: &[u32], to: &[u32]) {
        let (stride, width) = (self.stride, self.valid_bytes);
        for to in to {
            let at = *to as usize * stride;
            self.bytes[at..at + width].fill(u8::MAX);
        }
        for (output, data) in data.iter().enumerate() {
            let Some(nulls) = data.nulls().filter(|nulls| nulls.null_count() > 0) else { continue };
            let mask = !(1_u8 << (output % 8));
            for (from, to) in from.iter().zip(to) {
                if nulls.is_null(*from as usize) {
                    self.bytes[*to as usize * stride + output / 8] &= mask;
                }
            }
        }
    }

    /// The outputs of the labels `rows`, or, where some were left out, of those of `kept` at `rows`. They share no memory
    /// with those of other batches: whoever keeps a few rows keeps no more than them.
    pub(super) fn batch(&self, rows: Range<usize>, kept: Option<&UInt32Array>) -> Result<Vec<ArrayRef>> {
        match kept {
            Some(kept) => self.outputs(kept.values()[rows].iter().map(|row| *row as usize)),
            None => self.outputs(rows),
        }
    }

    fn outputs(&self, rows: impl ExactSizeIterator<Item = usize> + Clone) -> Result<Vec<ArrayRef>> {
        let at: Vec<&[u8]> = rows.map(|row| &self.bytes[row * self.stride..][..self.stride]).collect();
        // Without NULLs among the values a label has either all of them or what stands in for all of them.
        let shared = match self.absent_valid.iter().position(|valid| !valid) {
            Some(output) if !self.has_nulls => valid_bits(&at, output),
            _ => None,
        };
        let scattered: Option<Vec<(usize, usize)>> = self.part_start.map(|start| {
            let absent = self.parts.first().map_or(0, Vec::len);
            let place = |label: &&[u8]| match native(label, start, u32::from_ne_bytes) {
                NOWHERE => (absent, 0),
                part => (part as usize, native(label, start + 4, u32::from_ne_bytes) as usize),
            };
            at.iter().map(place).collect()
        });
        let column = |output: usize| {
            let nulls = match self.has_nulls {
                true => valid_bits(&at, output),
                false => shared.clone().filter(|_| !self.absent_valid[output]),
            };
            let values = match self.places[output] {
                Place::Parts(index) => {
                    let parts = self.parts[index].iter().chain([&self.absent_parts[index]]);
                    let parts: Vec<&dyn Array> = parts.map(|part| part.as_ref()).collect();
                    return Ok(interleave(&parts, scattered.as_deref().unwrap_or_default())?);
                }
                Place::Bit { start } => {
                    BooleanBuffer::collect_bool(at.len(), |row| at[row][start] == 1).into_inner()
                }
                Place::Fixed { start, width: 1 } => collect(&at, start, u8::from_ne_bytes),
                Place::Fixed { start, width: 2 } => collect(&at, start, u16::from_ne_bytes),
                Place::Fixed { start, width: 4 } => collect(&at, start, u32::from_ne_bytes),
                Place::Fixed { start, width: 8 } => collect(&at, start, u64::from_ne_bytes),
                Place::Fixed { start, .. } => collect(&at, start, i128::from_ne_bytes),
            };
            let data = ArrayData::builder(self.types[output].clone()).len(at.len()).nulls(nulls);
            let data = data.add_buffer(values).build();
            Ok(make_array(data.map_err(|e| exec_datafusion_err!("an output of an ASOF join: {e}"))?))
        };
        (0..self.places.len()).map(column).collect()
    }
}

fn put_fixed<const N: usize>(
    bytes: &mut [u8],
    stride: usize,
    start: usize,
    data: &ArrayData,
    from: &[u32],
    to: &[u32],
) {
    let (values, _) = data.buffers()[0].as_slice()[data.offset() * N..].as_chunks::<N>();
    for (from, to) in from.iter().zip(to) {
        let at = *to as usize * stride + start;
        bytes[at..at + N].copy_from_slice(&values[*from as usize]);
    }
}

fn native<const N: usize, T>(label: &[u8], start: usize, value: impl Fn([u8; N]) -> T) -> T {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&label[start..start + N]);
    value(bytes)
}

fn collect<const N: usize, T: ArrowNativeType>(
    labels: &[&[u8]],
    start: usize,
    value: impl Fn([u8; N]) -> T,
) -> Buffer {
    Buffer::from_vec(labels.iter().map(|label| native(label, start, &value)).collect::<Vec<T>>())
}

/// Which labels' values of an output are no NULL; `None` where all are.
fn valid_bits(labels: &[&[u8]], output: usize) -> Option<NullBuffer> {
    let (byte, bit) = (output / 8, output % 8);
    let valid = BooleanBuffer::collect_bool(labels.len(), |row| labels[row][byte] >> bit & 1 == 1);
    Some(NullBuffer::new(valid)).filter(|nulls| nulls.null_count() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    use datafusion::arrow::array::new_empty_array;
    use proptest::prelude::*;

    fn value(data_type: &DataType, seed: i64) -> ScalarValue {
        let none = seed % 5 == 0;
        let some = |value: ScalarValue| match none {
            true => ScalarValue::try_from(data_type).unwrap(),
            false => value,
        };
        some(match data_type {
            DataType::Boolean => ScalarValue::Boolean(Some(seed % 2 == 0)),
            DataType::Int8 => ScalarValue::Int8(Some(seed as i8)),
            DataType::Int16 => ScalarValue::Int16(Some(seed as i16)),
            DataType::Date32 => ScalarValue::Date32(Some(seed as i32)),
            DataType::Float64 => ScalarValue::Float64(Some(seed as f64 / 3.0)),
            DataType::Decimal128(precision, scale) => {
                ScalarValue::Decimal128(Some(i128::from(seed)), *precision, *scale)
            }
            _ => ScalarValue::Utf8(Some("é".repeat(seed.rem_euclid(4) as usize))),
        })
    }

    const TYPES: [DataType; 7] = [
        DataType::Boolean,
        DataType::Int8,
        DataType::Int16,
        DataType::Date32,
        DataType::Float64,
        DataType::Decimal128(12, 2),
        DataType::Utf8,
    ];

    /// What each label has, one output after the other, put together value by value.
    fn expected(values: &[Vec<ScalarValue>], labels: &[usize]) -> Vec<ArrayRef> {
        let of_output = |output: &Vec<ScalarValue>| match labels {
            [] => new_empty_array(&output[0].data_type()),
            labels => ScalarValue::iter_to_array(labels.iter().map(|label| output[*label].clone())).unwrap(),
        };
        values.iter().map(of_output).collect()
    }

    proptest! {
        #[test]
        fn every_label_has_what_was_put_in_its_place(
            types in prop::collection::vec(prop::sample::select(&TYPES[..]), 1..20),
            absent in any::<i64>(),
            len in 1_usize..300,
            files in prop::collection::vec(prop::collection::vec((any::<bool>(), any::<i64>()), 300), 0..4),
            keep in prop::collection::vec(any::<bool>(), 300),
            with_nulls in any::<bool>(),
        ) {
            let of = |output: usize, seed: i64| {
                let seed = seed.wrapping_add(output as i64);
                let seed = if with_nulls || seed % 5 != 0 { seed } else { seed.wrapping_add(1) };
                value(&types[output], seed)
            };
            let standing_in: Vec<ScalarValue> =
                types.iter().enumerate().map(|(output, data_type)| value(data_type, absent.wrapping_add(output as i64))).collect();
            let mut slots = Slots::new(&standing_in.iter().collect::<Vec<_>>(), len).unwrap();
            let mut values: Vec<Vec<ScalarValue>> = standing_in.iter().map(|value| vec![value.clone(); len]).collect();
            for file in &files {
                let (mut to, mut from, mut rows) = (Vec::new(), Vec::new(), Vec::new());
                for (label, (chosen, seed)) in file.iter().enumerate().take(len) {
                    if *chosen {
                        // Neighbours share a row now and then.
                        if rows.is_empty() || seed % 3 != 0 {
                            rows.push(*seed);
                        }
                        to.push(label as u32);
                        from.push(rows.len() as u32 - 1);
                    }
                }
                if rows.is_empty() {
                    continue;
                }
                let columns: Vec<ArrayRef> = (0..types.len())
                    .map(|output| ScalarValue::iter_to_array(rows.iter().map(|seed| of(output, *seed))).unwrap())
                    .collect();
                slots.put(&columns, &from, &to).unwrap();
                for (output, values) in values.iter_mut().enumerate() {
                    to.iter().zip(&from).for_each(|(to, from)| values[*to as usize] = of(output, rows[*from as usize]));
                }
            }
            let all: Vec<usize> = (0..len).collect();
            prop_assert_eq!(slots.batch(0..len, None).unwrap(), expected(&values, &all));
            let half = len / 2;
            prop_assert_eq!(slots.batch(half..len, None).unwrap(), expected(&values, &all[half..]));
            let kept: Vec<usize> = all.iter().copied().filter(|label| keep[*label]).collect();
            let index = UInt32Array::from_iter_values(kept.iter().map(|label| *label as u32));
            prop_assert_eq!(slots.batch(0..kept.len(), Some(&index)).unwrap(), expected(&values, &kept));
        }
    }
}
