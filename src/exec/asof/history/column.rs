//! Columns of a range: filled file by file, whose rows lie anywhere among the labels, and put out batch by batch.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayData, ArrayRef, AsArray, BooleanBufferBuilder, UInt32Array, make_array,
};
use datafusion::arrow::buffer::{Buffer, NullBuffer};
use datafusion::arrow::compute::{concat, interleave, take};
use datafusion::arrow::datatypes::{ArrowNativeType, DataType, UInt32Type};
use datafusion::arrow::util::bit_util::get_bit;
use datafusion::common::{Result, ScalarValue, internal_datafusion_err};

/// A column of a range's rows, while it is put out.
#[derive(Debug)]
pub(super) enum Column {
    /// The batches to come.
    Ready(std::vec::IntoIter<ArrayRef>),
    /// Values, and for each row the index of its own.
    ByIndex(ArrayRef, Arc<UInt32Array>),
    /// Values in many arrays, and for each row the array and the index in it.
    Scattered(Vec<ArrayRef>, Arc<[(usize, usize)]>),
}

impl Column {
    /// The values of the next batch, which has the rows `range`. They share no memory with those of other batches:
    /// whoever keeps a few rows keeps no more than them.
    pub(super) fn next(&mut self, range: Range<usize>) -> Result<ArrayRef> {
        Ok(match self {
            Column::Ready(batches) => {
                batches.next().ok_or_else(|| internal_datafusion_err!("a batch was lost"))?
            }
            Column::ByIndex(values, index) => take(values, &index.slice(range.start, range.len()), None)?,
            Column::Scattered(arrays, places) => {
                let arrays: Vec<&dyn Array> = arrays.iter().map(|array| array.as_ref()).collect();
                interleave(&arrays, &places[range])?
            }
        })
    }

    /// The rows at `kept` alone.
    pub(super) fn filtered(self, kept: &Arc<UInt32Array>) -> Result<Self> {
        Ok(match self {
            Column::Ready(batches) if batches.len() == 0 => Column::Ready(batches),
            Column::Ready(batches) => {
                let batches: Vec<ArrayRef> = batches.collect();
                let batches: Vec<&dyn Array> = batches.iter().map(|batch| batch.as_ref()).collect();
                Column::ByIndex(concat(&batches)?, Arc::clone(kept))
            }
            Column::ByIndex(values, index) => {
                let index = take(index.as_ref(), kept.as_ref(), None)?;
                Column::ByIndex(values, Arc::new(index.as_primitive::<UInt32Type>().clone()))
            }
            Column::Scattered(arrays, places) => {
                let places = kept.values().iter().map(|row| places[*row as usize]).collect();
                Column::Scattered(arrays, places)
            }
        })
    }
}

/// A column that is being filled. Values of fixed width go to their label's place at once; of others, which may be large,
/// the parts are kept as they come.
#[derive(Debug)]
pub(super) enum Filling {
    /// One for each batch to put out, of so many rows as the batch.
    Slots(Vec<Slots>),
    Parts(Vec<ArrayRef>, ScalarValue),
}

/// How many rows each batch has.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchRows {
    shift: u32,
}

impl BatchRows {
    /// The power of two that is next below `rows`: to find a row's batch should be cheap.
    pub(super) fn at_most(rows: usize) -> Self {
        Self { shift: rows.max(1).ilog2() }
    }

    /// The rows of each batch of `len` rows.
    pub(super) fn ranges(self, len: usize) -> impl Iterator<Item = Range<usize>> {
        (0..len).step_by(1 << self.shift).map(move |start| start..len.min(start + (1 << self.shift)))
    }

    fn batch_of(self, row: u32) -> usize {
        (row >> self.shift) as usize
    }

    fn first_of(self, batch: usize) -> u32 {
        (batch << self.shift) as u32
    }
}

impl Filling {
    /// A column of `len` times `absent`.
    pub(super) fn new(absent: &ScalarValue, len: usize, batch_rows: BatchRows) -> Result<Self> {
        let slots = batch_rows.ranges(len).map(|rows| Slots::new(absent, rows.len()));
        Ok(match slots.collect::<Result<Option<Vec<_>>>>()? {
            Some(slots) => Filling::Slots(slots),
            None => Filling::Parts(Vec::new(), absent.clone()),
        })
    }

    /// Bytes held from the beginning.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Filling::Slots(batches) => batches.iter().map(Slots::bytes).sum(),
            Filling::Parts(..) => 0,
        }
    }

    /// Puts `values[from[i]]` at `to[i]`, for all `i`; `to` ascends. Returns how many bytes more are held.
    pub(super) fn add(&mut self, values: ArrayRef, from: &[u32], to: &[u32], batch_rows: BatchRows) -> usize {
        match self {
            Filling::Slots(batches) => {
                let (data, mut start) = (values.to_data(), 0);
                while let Some(first) = to.get(start) {
                    let batch = batch_rows.batch_of(*first);
                    let rest = &to[start..];
                    let end = start + rest.partition_point(|row| batch_rows.batch_of(*row) == batch);
                    let offset = batch_rows.first_of(batch);
                    let to = to[start..end].iter().map(|row| (row - offset) as usize);
                    batches[batch].place(&data, from[start..end].iter().map(|from| *from as usize).zip(to));
                    start = end;
                }
                0
            }
            Filling::Parts(parts, _) => {
                let bytes = values.get_array_memory_size();
                parts.push(values);
                bytes
            }
        }
    }

    /// `places` says which value of which part each row has; behind the parts comes what stands in.
    pub(super) fn finish(self, places: &Arc<[(usize, usize)]>) -> Result<Column> {
        Ok(match self {
            Filling::Slots(batches) => {
                let batches = batches.into_iter().map(Slots::finish).collect::<Result<Vec<_>>>()?;
                Column::Ready(batches.into_iter())
            }
            Filling::Parts(mut parts, absent) => {
                parts.push(absent.to_array()?);
                Column::Scattered(parts, Arc::clone(places))
            }
        })
    }
}

/// Values of fixed width, kept as their bits: the same for integers, floats and times.
#[derive(Debug)]
pub(super) struct Slots {
    data_type: DataType,
    rows: usize,
    values: Values,
    valid: BooleanBufferBuilder,
    /// Whether what stands in is no NULL.
    absent_is_valid: bool,
}

#[derive(Debug)]
enum Values {
    Bits(BooleanBufferBuilder),
    One(Vec<u8>),
    Two(Vec<u16>),
    Four(Vec<u32>),
    Eight(Vec<u64>),
}

impl Slots {
    fn new(absent: &ScalarValue, rows: usize) -> Result<Option<Self>> {
        let data_type = absent.data_type();
        let absent = absent.to_array()?;
        let (absent, absent_is_valid) = (absent.to_data(), absent.is_valid(0));
        let values = match data_type.primitive_width() {
            _ if data_type == DataType::Boolean => {
                let mut bits = BooleanBufferBuilder::new(rows);
                let set = absent_is_valid && absent.buffers()[0].as_slice()[0] & 1 == 1;
                bits.append_n(rows, set);
                Values::Bits(bits)
            }
            Some(1) => Values::One(vec![absent.buffer(0)[0]; rows]),
            Some(2) => Values::Two(vec![absent.buffer(0)[0]; rows]),
            Some(4) => Values::Four(vec![absent.buffer(0)[0]; rows]),
            Some(8) => Values::Eight(vec![absent.buffer(0)[0]; rows]),
            _ => return Ok(None),
        };
        let mut valid = BooleanBufferBuilder::new(rows);
        valid.append_n(rows, absent_is_valid);
        Ok(Some(Self { data_type, rows, values, valid, absent_is_valid }))
    }

    fn place(&mut self, data: &ArrayData, places: impl Iterator<Item = (usize, usize)> + Clone) {
        let from_bits = |buffer: &Buffer, from: usize| get_bit(buffer.as_slice(), data.offset() + from);
        match &mut self.values {
            Values::Bits(bits) => {
                let buffer = &data.buffers()[0];
                places.clone().for_each(|(from, to)| bits.set_bit(to, from_bits(buffer, from)));
            }
            Values::One(slots) => place(slots, data.buffer(0), places.clone()),
            Values::Two(slots) => place(slots, data.buffer(0), places.clone()),
            Values::Four(slots) => place(slots, data.buffer(0), places.clone()),
            Values::Eight(slots) => place(slots, data.buffer(0), places.clone()),
        }
        match data.nulls() {
            Some(nulls) => places.for_each(|(from, to)| self.valid.set_bit(to, nulls.is_valid(from))),
            None if !self.absent_is_valid => places.for_each(|(_, to)| self.valid.set_bit(to, true)),
            None => {}
        }
    }

    fn bytes(&self) -> usize {
        let width = self.data_type.primitive_width().unwrap_or_default();
        self.rows * width + 2 * self.rows.div_ceil(8)
    }

    fn finish(mut self) -> Result<ArrayRef> {
        let nulls = Some(NullBuffer::new(self.valid.finish())).filter(|nulls| nulls.null_count() > 0);
        let values = match self.values {
            Values::Bits(mut bits) => bits.finish().into_inner(),
            Values::One(values) => Buffer::from_vec(values),
            Values::Two(values) => Buffer::from_vec(values),
            Values::Four(values) => Buffer::from_vec(values),
            Values::Eight(values) => Buffer::from_vec(values),
        };
        let data = ArrayData::builder(self.data_type).len(self.rows).nulls(nulls).add_buffer(values);
        Ok(make_array(data.build()?))
    }
}

fn place<T: ArrowNativeType>(slots: &mut [T], values: &[T], places: impl Iterator<Item = (usize, usize)>) {
    places.for_each(|(from, to)| slots[to] = values[from]);
}
