//! Values of one column at chosen rows of its pages, gathered into an Arrow array.

use bytes::Bytes;
use datafusion::arrow::array::{ArrayData, ArrayRef, BooleanBufferBuilder, make_array};
use datafusion::arrow::buffer::{Buffer, NullBuffer};
use datafusion::arrow::datatypes::DataType;
use parquet::basic::{Encoding, Type};
use parquet::column::page::Page;

use super::runs::{Runs, corrupt};
use crate::error::{Error, Result};

/// Whether the values of a column chunk with these encodings can be read out of order; see [`Gather`].
pub(super) fn is_random_access(
    physical: Type,
    data_type: &DataType,
    encodings: impl Iterator<Item = Encoding>,
) -> bool {
    let type_fits = match physical {
        Type::BOOLEAN => matches!(data_type, DataType::Boolean),
        Type::INT32 => matches!(data_type, DataType::Int32 | DataType::Date32),
        Type::INT64 => {
            matches!(data_type, DataType::Int64 | DataType::Timestamp(..) | DataType::Time64(_))
        }
        Type::FLOAT => matches!(data_type, DataType::Float32),
        Type::DOUBLE => matches!(data_type, DataType::Float64),
        Type::BYTE_ARRAY => matches!(data_type, DataType::Utf8 | DataType::Binary),
        Type::INT96 | Type::FIXED_LEN_BYTE_ARRAY => false,
    };
    // RLE is how levels are encoded, too, so it says nothing about values but for booleans, which know it.
    let known = |encoding| {
        matches!(
            encoding,
            Encoding::PLAIN | Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY | Encoding::RLE
        )
    };
    type_fits && { encodings }.all(known)
}

/// Collects values of a flat column, page by page.
#[derive(Debug)]
pub(super) struct Gather {
    data_type: DataType,
    values: Values,
    nullable: bool,
    validity: Option<BooleanBufferBuilder>,
    rows: usize,
    indices: Vec<u32>,
}

impl Gather {
    /// For a column whose chunks [`is_random_access`]; `nullable` says whether its pages carry definition levels.
    pub(super) fn new(physical: Type, data_type: DataType, nullable: bool, capacity: usize) -> Self {
        let values = match physical {
            Type::BOOLEAN => Values::Bits(BooleanBufferBuilder::new(capacity)),
            Type::INT32 | Type::FLOAT => Values::Four(Fixed::with_capacity(capacity)),
            Type::BYTE_ARRAY => Values::Bytes(Strings::with_capacity(capacity)),
            _ => Values::Eight(Fixed::with_capacity(capacity)),
        };
        Self { data_type, values, nullable, validity: None, rows: 0, indices: Vec::new() }
    }

    /// The dictionary of the pages to come.
    pub(super) fn dictionary(&mut self, page: &Page) -> Result<()> {
        let (bytes, count) = (page.buffer().clone(), page.num_values() as usize);
        match &mut self.values {
            Values::Bits(_) => return Err(corrupt("a dictionary of booleans")),
            Values::Four(values) => values.dictionary = bytes,
            Values::Eight(values) => values.dictionary = bytes,
            Values::Bytes(values) => values.set_dictionary(bytes, count)?,
        }
        Ok(())
    }

    /// Appends the values at `rows` of a data page; rows count from its beginning and never decrease.
    pub(super) fn page(&mut self, page: &Page, rows: &[u32]) -> Result<()> {
        let count = page.num_values() as usize;
        if rows.last().is_some_and(|row| *row as usize >= count) {
            return Err(corrupt("fewer rows than its index says"));
        }
        let (levels, body) = split_levels(page, self.nullable)?;
        let ranks = match levels {
            Some(levels) => Runs::new(levels, 1)?.ranks_at(rows, count)?,
            None => None,
        };
        self.rows += rows.len();
        let Some(ranks) = ranks else {
            if let Some(validity) = &mut self.validity {
                validity.append_n(rows.len(), true);
            }
            return self.values(page.encoding(), body, rows);
        };
        let before = self.rows - rows.len();
        let validity = self.validity.get_or_insert_with(|| {
            let mut validity = BooleanBufferBuilder::new(before + rows.len());
            validity.append_n(before, true);
            validity
        });
        validity.append_slice(&ranks.set);
        self.values(page.encoding(), body, &ranks.ranks)?;
        self.values.spread(before, &ranks.set);
        Ok(())
    }

    fn values(&mut self, encoding: Encoding, body: &[u8], at: &[u32]) -> Result<()> {
        match encoding {
            Encoding::PLAIN => self.values.push_plain(body, at),
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY => {
                let [width, runs @ ..] = body else {
                    return if at.is_empty() { Ok(()) } else { Err(corrupt("no dictionary indices")) };
                };
                self.indices.clear();
                Runs::new(runs, *width)?.values_at(at, &mut self.indices)?;
                self.values.push_indexed(&self.indices)
            }
            Encoding::RLE => match &mut self.values {
                Values::Bits(bits) => {
                    let (runs, _) = length_prefixed(body)?;
                    self.indices.clear();
                    Runs::new(runs, 1)?.values_at(at, &mut self.indices)?;
                    self.indices.iter().for_each(|value| bits.append(*value == 1));
                    Ok(())
                }
                _ => Err(corrupt("run-length encoded values that are not booleans")),
            },
            other => Err(Error::internal(format!("values encoded as {other} cannot be read out of order"))),
        }
    }

    /// Everything gathered, in the order of the rows.
    pub(super) fn finish(mut self) -> Result<ArrayRef> {
        let nulls = self.validity.as_mut().map(|validity| NullBuffer::new(validity.finish()));
        let data = ArrayData::builder(self.data_type).len(self.rows).nulls(nulls);
        let data = match self.values {
            Values::Bits(mut bits) => data.add_buffer(bits.finish().into_inner()),
            Values::Four(values) => data.add_buffer(Buffer::from_vec(values.values)),
            Values::Eight(values) => data.add_buffer(Buffer::from_vec(values.values)),
            Values::Bytes(values) => {
                data.add_buffer(Buffer::from_vec(values.offsets)).add_buffer(Buffer::from_vec(values.data))
            }
        };
        Ok(make_array(data.build()?))
    }
}

/// Definition levels, where the page has them, and what is behind them.
fn split_levels(page: &Page, nullable: bool) -> Result<(Option<&[u8]>, &[u8])> {
    match page {
        Page::DataPage { buf, .. } if nullable => {
            let (levels, body) = length_prefixed(buf)?;
            Ok((Some(levels), body))
        }
        Page::DataPage { buf, .. } => Ok((None, buf)),
        Page::DataPageV2 { buf, def_levels_byte_len, rep_levels_byte_len, .. } => {
            let (from, length) = (*rep_levels_byte_len as usize, *def_levels_byte_len as usize);
            let levels = buf.get(from..from + length).ok_or_else(|| corrupt("levels longer than itself"))?;
            Ok((nullable.then_some(levels), &buf[from + length..]))
        }
        Page::DictionaryPage { .. } => Err(corrupt("a dictionary where data should be")),
    }
}

fn length_prefixed(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_at_checked(4).ok_or_else(|| corrupt("levels cut short"))?;
    let length = u32::from_le_bytes(length.try_into().unwrap_or_default()) as usize;
    rest.split_at_checked(length).ok_or_else(|| corrupt("levels longer than itself"))
}

#[derive(Debug)]
enum Values {
    Bits(BooleanBufferBuilder),
    Four(Fixed<4, u32>),
    Eight(Fixed<8, u64>),
    Bytes(Strings),
}

impl Values {
    fn push_plain(&mut self, body: &[u8], at: &[u32]) -> Result<()> {
        match self {
            Values::Bits(bits) => {
                for &at in at {
                    let byte = body.get(at as usize / 8).ok_or_else(too_few)?;
                    bits.append(byte >> (at % 8) & 1 == 1);
                }
                Ok(())
            }
            Values::Four(values) => values.push(body, at, u32::from_le_bytes),
            Values::Eight(values) => values.push(body, at, u64::from_le_bytes),
            Values::Bytes(values) => values.push_plain(body, at),
        }
    }

    fn push_indexed(&mut self, indices: &[u32]) -> Result<()> {
        match self {
            Values::Bits(_) => Err(corrupt("a dictionary of booleans")),
            Values::Four(values) => {
                let dictionary = values.dictionary.clone();
                values.push(&dictionary, indices, u32::from_le_bytes)
            }
            Values::Eight(values) => {
                let dictionary = values.dictionary.clone();
                values.push(&dictionary, indices, u64::from_le_bytes)
            }
            Values::Bytes(values) => values.push_indexed(indices),
        }
    }

    /// Makes room for the NULLs among what was pushed since `before`: `set` has one entry per row.
    fn spread(&mut self, before: usize, set: &[bool]) {
        match self {
            Values::Bits(bits) => {
                let pushed: Vec<bool> = (before..bits.len()).map(|index| bits.get_bit(index)).collect();
                bits.truncate(before);
                let mut pushed = pushed.into_iter();
                set.iter().for_each(|set| bits.append(*set && pushed.next().unwrap_or_default()));
            }
            Values::Four(values) => values.spread(before, set),
            Values::Eight(values) => values.spread(before, set),
            Values::Bytes(values) => values.spread(before, set),
        }
    }
}

/// Values of `N` bytes, kept as their bits: the same for integers, floats and times.
#[derive(Debug)]
struct Fixed<const N: usize, T> {
    dictionary: Bytes,
    values: Vec<T>,
}

impl<const N: usize, T: Copy + Default> Fixed<N, T> {
    fn with_capacity(capacity: usize) -> Self {
        Self { dictionary: Bytes::new(), values: Vec::with_capacity(capacity) }
    }

    fn push(&mut self, body: &[u8], at: &[u32], value: impl Fn([u8; N]) -> T) -> Result<()> {
        let (all, _) = body.as_chunks::<N>();
        for &at in at {
            self.values.push(value(*all.get(at as usize).ok_or_else(too_few)?));
        }
        Ok(())
    }

    fn spread(&mut self, before: usize, set: &[bool]) {
        let pushed = self.values.split_off(before);
        let mut pushed = pushed.into_iter();
        self.values.extend(set.iter().map(|set| if *set { pushed.next() } else { None }.unwrap_or_default()));
    }
}

/// Strings and other values of any length, with `i32` offsets as Arrow has them.
#[derive(Debug)]
struct Strings {
    dictionary: Bytes,
    /// Start and length of each entry of the dictionary.
    entries: Vec<(u32, u32)>,
    offsets: Vec<i32>,
    data: Vec<u8>,
}

impl Strings {
    fn with_capacity(capacity: usize) -> Self {
        let mut offsets = Vec::with_capacity(capacity + 1);
        offsets.push(0);
        Self {
            dictionary: Bytes::new(),
            entries: Vec::new(),
            offsets,
            data: Vec::with_capacity(capacity * 8),
        }
    }

    fn set_dictionary(&mut self, bytes: Bytes, count: usize) -> Result<()> {
        self.entries.clear();
        let mut entries = Entries { bytes: &bytes, next: 0 };
        for _ in 0..count {
            self.entries.push(entries.next()?);
        }
        self.dictionary = bytes;
        Ok(())
    }

    fn push(&mut self, value: &[u8]) -> Result<()> {
        self.data.extend_from_slice(value);
        let end = i32::try_from(self.data.len()).map_err(|_| {
            Error::exhausted(
                "the values of one text column for one batch exceed 2 GiB: join fewer rows at a time",
            )
        })?;
        self.offsets.push(end);
        Ok(())
    }

    fn push_plain(&mut self, body: &[u8], at: &[u32]) -> Result<()> {
        let mut entries = Entries { bytes: body, next: 0 };
        let (mut index, mut current) = (0_u32, None);
        for &at in at {
            while current.is_none() || index <= at {
                current = Some(entries.next()?);
                index += 1;
            }
            let (start, length) = current.unwrap_or_default();
            self.push(&body[start as usize..][..length as usize])?;
        }
        Ok(())
    }

    fn push_indexed(&mut self, indices: &[u32]) -> Result<()> {
        let dictionary = self.dictionary.clone();
        for &index in indices {
            let (start, length) = *self.entries.get(index as usize).ok_or_else(too_few)?;
            self.push(&dictionary[start as usize..][..length as usize])?;
        }
        Ok(())
    }

    fn spread(&mut self, before: usize, set: &[bool]) {
        let ends = self.offsets.split_off(before + 1);
        let (mut ends, mut end) = (ends.into_iter(), self.offsets.last().copied().unwrap_or(0));
        for set in set {
            if *set {
                end = ends.next().unwrap_or(end);
            }
            self.offsets.push(end);
        }
    }
}

/// Values one after the other, each behind its length.
struct Entries<'a> {
    bytes: &'a [u8],
    next: usize,
}

impl Entries<'_> {
    fn next(&mut self) -> Result<(u32, u32)> {
        let length = self.bytes.get(self.next..self.next + 4).ok_or_else(too_few)?;
        let length = u32::from_le_bytes(length.try_into().unwrap_or_default());
        let start = self.next + 4;
        self.next = start + length as usize;
        if self.next > self.bytes.len() {
            return Err(too_few());
        }
        Ok((start as u32, length))
    }
}

fn too_few() -> Error {
    corrupt("fewer values than its header says")
}
