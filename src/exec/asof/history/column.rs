//! Columns that are filled file by file, whose rows lie anywhere among the labels of a range.

use datafusion::arrow::array::{Array, ArrayData, ArrayRef, AsArray, BooleanBufferBuilder, make_array};
use datafusion::arrow::buffer::{Buffer, NullBuffer};
use datafusion::arrow::compute::concat;
use datafusion::arrow::datatypes::{ArrowNativeType, DataType};
use datafusion::common::{Result, ScalarValue};

/// A column that is being filled. Values of fixed width go to their label's place at once; of others the parts are kept,
/// and an index says which label has which value.
#[derive(Debug)]
pub(super) enum Filling {
    Slots(Slots),
    Parts(Vec<ArrayRef>, ScalarValue),
}

/// A column of a range's labels.
#[derive(Debug)]
pub(super) enum Filled {
    /// One value per label.
    Slots(ArrayRef),
    /// Values in order of arrival, behind them the one that stands in where there is none.
    Parts(ArrayRef),
}

impl Filling {
    /// A column of `rows` times `absent`.
    pub(super) fn new(absent: &ScalarValue, rows: usize) -> Result<Self> {
        Ok(match Slots::new(absent, rows)? {
            Some(slots) => Filling::Slots(slots),
            None => Filling::Parts(Vec::new(), absent.clone()),
        })
    }

    /// Bytes held from the beginning.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Filling::Slots(slots) => slots.values.bytes() + slots.rows / 8,
            Filling::Parts(..) => 0,
        }
    }

    /// Puts `values[from[i]]` at `to[i]`, for all `i`. Returns how many bytes more are held.
    pub(super) fn add(&mut self, values: ArrayRef, from: &[u32], to: &[u32]) -> usize {
        match self {
            Filling::Slots(slots) => {
                slots.place(&values, from, to);
                0
            }
            Filling::Parts(parts, _) => {
                let bytes = values.get_array_memory_size();
                parts.push(values);
                bytes
            }
        }
    }

    pub(super) fn finish(self) -> Result<Filled> {
        Ok(match self {
            Filling::Slots(slots) => Filled::Slots(slots.finish()?),
            Filling::Parts(mut parts, absent) => {
                parts.push(absent.to_array()?);
                let parts: Vec<&dyn Array> = parts.iter().map(|part| part.as_ref()).collect();
                Filled::Parts(concat(&parts)?)
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

    fn place(&mut self, values: &ArrayRef, from: &[u32], to: &[u32]) {
        let places = || from.iter().zip(to).map(|(from, to)| (*from as usize, *to as usize));
        let data = values.to_data();
        match &mut self.values {
            Values::Bits(bits) => {
                let values = values.as_boolean().values();
                places().for_each(|(from, to)| bits.set_bit(to, values.value(from)));
            }
            Values::One(slots) => place(slots, data.buffer(0), places()),
            Values::Two(slots) => place(slots, data.buffer(0), places()),
            Values::Four(slots) => place(slots, data.buffer(0), places()),
            Values::Eight(slots) => place(slots, data.buffer(0), places()),
        }
        match values.nulls() {
            Some(nulls) => places().for_each(|(from, to)| self.valid.set_bit(to, nulls.is_valid(from))),
            None if !self.absent_is_valid => places().for_each(|(_, to)| self.valid.set_bit(to, true)),
            None => {}
        }
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

impl Values {
    fn bytes(&self) -> usize {
        match self {
            Values::Bits(bits) => bits.len() / 8,
            Values::One(values) => values.len(),
            Values::Two(values) => values.len() * 2,
            Values::Four(values) => values.len() * 4,
            Values::Eight(values) => values.len() * 8,
        }
    }
}

fn place<T: ArrowNativeType>(slots: &mut [T], values: &[T], places: impl Iterator<Item = (usize, usize)>) {
    places.for_each(|(from, to)| slots[to] = values[from]);
}
