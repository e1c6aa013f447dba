//! Entity keys as the search compares them: one integer where that is all there is, else bytes that order like the key.

use std::cmp::Ordering;
use std::fmt::Debug;
use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use datafusion::arrow::compute::{SortOptions, cast};
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::Result;

/// How the keys of a join are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::exec::asof) enum KeyKind {
    /// One integer, date or instant.
    Integer,
    /// Anything else that Arrow's row format orders.
    Encoded,
}

impl KeyKind {
    /// How keys of these types compare, or `None` where an equal key may have two encodings.
    pub(in crate::exec::asof) fn of(types: &[DataType]) -> Option<Self> {
        use DataType as D;
        let integer = |data_type: &D| {
            matches!(
                data_type,
                D::Int8
                    | D::Int16
                    | D::Int32
                    | D::Int64
                    | D::UInt8
                    | D::UInt16
                    | D::UInt32
                    | D::Date32
                    | D::Timestamp(..)
            )
        };
        let plain = |data_type: &D| {
            integer(data_type)
                || matches!(
                    data_type,
                    D::Boolean
                        | D::Utf8
                        | D::LargeUtf8
                        | D::Utf8View
                        | D::Binary
                        | D::FixedSizeBinary(_)
                        | D::Decimal128(..)
                        | D::UInt64
                        | D::Time64(_)
                )
        };
        match types {
            [one] if integer(one) => Some(Self::Integer),
            [] => None,
            types => types.iter().all(plain).then_some(Self::Encoded),
        }
    }
}

/// Some rows in the order of (key, time).
#[derive(Debug)]
pub(in crate::exec::asof) struct Sorted<K> {
    /// Their places before.
    pub(in crate::exec::asof) order: Vec<u32>,
    pub(in crate::exec::asof) keys: K,
    pub(in crate::exec::asof) times: Vec<i64>,
}

/// Keys of many rows, one after the other.
pub(in crate::exec::asof) trait Keys: Sized + Send + Sync + Debug + 'static {
    type Key<'a>: Copy + Ord + Debug + Send + Sync;
    /// A bound of the first key column.
    type Bound: Debug + Send + Sync;
    /// What turns columns into keys.
    type Encoder: Debug + Send + Sync;
    /// Whether a key is one integer.
    const ARE_INTEGERS: bool;

    fn encoder(types: &[DataType]) -> Result<Self::Encoder>;
    /// No keys, with room for those of `rows` rows.
    fn empty(encoder: &Self::Encoder, rows: usize) -> Self;
    /// Appends one key of `other`.
    fn push(&mut self, other: &Self, index: usize);
    /// Appends the keys of rows that have no NULL among them; NULLs become any key.
    fn append(&mut self, encoder: &Self::Encoder, columns: &[ArrayRef]) -> Result<()>;
    /// Forgets all keys, and keeps their room.
    fn clear(&mut self);
    fn bytes(&self) -> usize;
    fn get(&self, index: usize) -> Self::Key<'_>;
    /// How the key at `index` compares to another one.
    fn compare_at(&self, index: usize, key: Self::Key<'_>) -> Ordering;
    /// `rows` by key, then time, then place.
    fn sorted(&self, encoder: &Self::Encoder, times: &[i64], rows: &[u32]) -> Sorted<Self>;

    /// The key columns of `rows`, of a type that casts to the key's own.
    fn columns(&self, encoder: &Self::Encoder, rows: &[u32]) -> Result<Vec<ArrayRef>>;

    /// All keys as one column of integers, if that is what they are.
    fn into_integers(self) -> Option<ArrayRef>;

    /// Bounds of the first key column; `None` where unknown.
    fn bounds(encoder: &Self::Encoder, values: &ArrayRef) -> Result<Vec<Option<Self::Bound>>>;
    /// How the first column of `key` compares to a bound.
    fn compare(key: Self::Key<'_>, bound: &Self::Bound) -> Ordering;
}

/// Keys that are integers.
#[derive(Debug)]
pub(in crate::exec::asof) struct Integers(Vec<i64>);

impl From<Vec<i64>> for Integers {
    fn from(keys: Vec<i64>) -> Self {
        Self(keys)
    }
}

fn integers(column: &ArrayRef) -> Result<ArrayRef> {
    Ok(match column.data_type() {
        DataType::Int64 => ArrayRef::clone(column),
        _ => cast(column, &DataType::Int64)?,
    })
}

impl Keys for Integers {
    type Key<'a> = i64;
    type Bound = i64;
    type Encoder = ();
    const ARE_INTEGERS: bool = true;

    fn encoder(_types: &[DataType]) -> Result<()> {
        Ok(())
    }

    fn empty(_encoder: &(), rows: usize) -> Self {
        Self(Vec::with_capacity(rows))
    }

    fn append(&mut self, _encoder: &(), columns: &[ArrayRef]) -> Result<()> {
        for column in columns {
            self.0.extend_from_slice(integers(column)?.as_primitive::<Int64Type>().values());
        }
        Ok(())
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<i64>()
    }

    fn push(&mut self, other: &Self, index: usize) {
        self.0.push(other.0[index]);
    }

    fn get(&self, index: usize) -> i64 {
        self.0[index]
    }

    fn compare_at(&self, index: usize, key: i64) -> Ordering {
        self.0[index].cmp(&key)
    }

    fn sorted(&self, _encoder: &(), times: &[i64], rows: &[u32]) -> Sorted<Self> {
        let at = |row: &u32| (self.0[*row as usize], times[*row as usize]);
        if let Some(packing) = Packing::of(rows.iter().map(at)) {
            return packing.sorted(rows.iter().map(at));
        }
        let place = |(place, row): (usize, &u32)| (self.0[*row as usize], times[*row as usize], place as u32);
        let mut sorted: Vec<(i64, i64, u32)> = rows.iter().enumerate().map(place).collect();
        sorted.sort_unstable();
        let keys = Self(sorted.iter().map(|(key, _, _)| *key).collect());
        let times = sorted.iter().map(|(_, time, _)| *time).collect();
        Sorted { order: sorted.into_iter().map(|(_, _, place)| place).collect(), keys, times }
    }

    fn columns(&self, _encoder: &(), rows: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| self.0[*row as usize])))])
    }

    fn into_integers(self) -> Option<ArrayRef> {
        Some(Arc::new(Int64Array::from(self.0)))
    }

    fn bounds(_encoder: &(), values: &ArrayRef) -> Result<Vec<Option<i64>>> {
        Ok(integers(values)?.as_primitive::<Int64Type>().iter().collect())
    }

    fn compare(key: i64, bound: &i64) -> Ordering {
        key.cmp(bound)
    }
}

/// Key, time and place as one number, which sorts in half the time of three: keys and times seldom need all their bits.
///
/// ```text
/// key − least key ┊ time − least time ┊ place: 32 bits
/// ```
struct Packing {
    least: (i64, i64),
    time_bits: u32,
}

impl Packing {
    /// For these keys and times, if they fit.
    fn of(rows: impl Iterator<Item = (i64, i64)>) -> Option<Self> {
        let (mut least, mut greatest) = ((i64::MAX, i64::MAX), (i64::MIN, i64::MIN));
        for (key, time) in rows {
            least = (least.0.min(key), least.1.min(time));
            greatest = (greatest.0.max(key), greatest.1.max(time));
        }
        let bits = |least: i64, greatest: i64| {
            u64::BITS - greatest.wrapping_sub(least).cast_unsigned().leading_zeros()
        };
        let (key_bits, time_bits) = (bits(least.0, greatest.0), bits(least.1, greatest.1));
        (key_bits + time_bits <= u128::BITS - u32::BITS).then_some(Self { least, time_bits })
    }

    fn sorted(&self, rows: impl Iterator<Item = (i64, i64)>) -> Sorted<Integers> {
        let ((least_key, least_time), bits) = (self.least, self.time_bits);
        let pack = |(place, (key, time)): (usize, (i64, i64))| {
            let key = u128::from(key.wrapping_sub(least_key).cast_unsigned());
            let time = u128::from(time.wrapping_sub(least_time).cast_unsigned());
            (key << bits | time) << u32::BITS | place as u128
        };
        let mut sorted: Vec<u128> = rows.enumerate().map(pack).collect();
        sorted.sort_unstable();
        let mask = (1_u128 << bits) - 1;
        let time =
            |packed: &u128| least_time.wrapping_add(((packed >> u32::BITS & mask) as u64).cast_signed());
        let key =
            |packed: &u128| least_key.wrapping_add(((packed >> u32::BITS >> bits) as u64).cast_signed());
        Sorted {
            order: sorted.iter().map(|packed| *packed as u32).collect(),
            keys: Integers(sorted.iter().map(key).collect()),
            times: sorted.iter().map(time).collect(),
        }
    }
}

/// Keys in Arrow's row format.
#[derive(Debug)]
pub(super) struct Encoded(Rows);

/// Converters of whole keys and of their first column.
#[derive(Debug)]
pub(super) struct RowEncoder {
    keys: RowConverter,
    first: RowConverter,
}

impl Keys for Encoded {
    type Key<'a> = &'a [u8];
    type Bound = Box<[u8]>;
    type Encoder = RowEncoder;
    const ARE_INTEGERS: bool = false;

    fn encoder(types: &[DataType]) -> Result<RowEncoder> {
        let options = SortOptions { descending: false, nulls_first: true };
        let field = |data_type: &DataType| SortField::new_with_options(data_type.clone(), options);
        let keys = RowConverter::new(types.iter().map(field).collect())?;
        let first = RowConverter::new(types.iter().take(1).map(field).collect())?;
        Ok(RowEncoder { keys, first })
    }

    fn empty(encoder: &RowEncoder, rows: usize) -> Self {
        Self(encoder.keys.empty_rows(rows, 0))
    }

    fn append(&mut self, encoder: &RowEncoder, columns: &[ArrayRef]) -> Result<()> {
        Ok(encoder.keys.append(&mut self.0, columns)?)
    }

    fn clear(&mut self) {
        self.0.clear();
    }

    fn bytes(&self) -> usize {
        self.0.size()
    }

    fn push(&mut self, other: &Self, index: usize) {
        self.0.push(other.0.row(index));
    }

    fn get(&self, index: usize) -> &[u8] {
        self.0.row(index).data()
    }

    fn compare_at(&self, index: usize, key: &[u8]) -> Ordering {
        self.get(index).cmp(key)
    }

    fn sorted(&self, encoder: &RowEncoder, times: &[i64], rows: &[u32]) -> Sorted<Self> {
        let mut order: Vec<u32> = (0..rows.len() as u32).collect();
        let row = |place: u32| rows[place as usize] as usize;
        order.sort_unstable_by(|a, b| {
            let by_key = self.get(row(*a)).cmp(self.get(row(*b)));
            by_key.then_with(|| (times[row(*a)], a).cmp(&(times[row(*b)], b)))
        });
        let bytes = rows.iter().map(|row| self.get(*row as usize).len()).sum();
        let mut keys = encoder.keys.empty_rows(rows.len(), bytes);
        order.iter().for_each(|place| keys.push(self.0.row(row(*place))));
        let times = order.iter().map(|place| times[row(*place)]).collect();
        Sorted { order, keys: Self(keys), times }
    }

    fn columns(&self, encoder: &RowEncoder, rows: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(encoder.keys.convert_rows(rows.iter().map(|row| self.0.row(*row as usize)))?)
    }

    fn into_integers(self) -> Option<ArrayRef> {
        None
    }

    fn bounds(encoder: &RowEncoder, values: &ArrayRef) -> Result<Vec<Option<Box<[u8]>>>> {
        let rows = encoder.first.convert_columns(std::slice::from_ref(values))?;
        Ok((0..rows.num_rows())
            .map(|index| values.is_valid(index).then(|| rows.row(index).data().into()))
            .collect())
    }

    fn compare(key: &[u8], bound: &Box<[u8]>) -> Ordering {
        // The encoding of a key begins with that of its first column.
        if key.starts_with(bound) { Ordering::Equal } else { key.cmp(bound) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    /// Numbers close together, far apart, and as far apart as there are.
    fn number() -> impl Strategy<Value = i64> {
        prop_oneof![
            -3_i64..3,
            any::<i64>(),
            Just(i64::MIN),
            Just(i64::MAX),
            1_700_000_000_000_000_i64..1_700_000_000_000_009
        ]
    }

    proptest! {
        #[test]
        fn packed_or_not_rows_sort_by_key_time_and_place(
            rows in prop::collection::vec((number(), number()), 0..60),
            narrow in any::<bool>(),
        ) {
            let rows: Vec<(i64, i64)> = { rows.into_iter() }
                .map(|(key, time)| if narrow { (key % 100, time) } else { (key, time) })
                .collect();
            let keys = Integers(rows.iter().map(|row| row.0).collect());
            let times: Vec<i64> = rows.iter().map(|row| row.1).collect();
            let chosen: Vec<u32> = (0..rows.len() as u32).filter(|row| row % 3 != 1).collect();
            let sorted = keys.sorted(&(), &times, &chosen);
            let mut expected: Vec<(i64, i64, u32)> = { chosen.iter().enumerate() }
                .map(|(place, row)| (rows[*row as usize].0, rows[*row as usize].1, place as u32))
                .collect();
            expected.sort_unstable();
            let found: Vec<(i64, i64, u32)> =
                (0..chosen.len()).map(|at| (sorted.keys.0[at], sorted.times[at], sorted.order[at])).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
