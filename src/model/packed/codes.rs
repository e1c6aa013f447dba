//! How a value stands in a row: a code of four bits that says how many bytes it takes, and those bytes.
//!
//! Feature values are small more often than not: counts, amounts of money, rates rounded for people. So numbers take
//! the bytes that they need, and a double that is a decimal of few digits is kept as that decimal, when it reads back
//! to the very same bits.

use datafusion::arrow::datatypes::DataType;

use super::builder::{take, too_short};
use crate::error::{Error, Result};

/// NULL, for every kind.
pub(super) const NULL: u8 = 0;
/// A floating-point number that is +0.
const ZERO: u8 = 1;
/// A floating-point number in its own bits.
pub(super) const RAW: u8 = 2;
/// A double that a REAL holds as well.
const SINGLE: u8 = 3;
/// The first of the decimals: four lengths for each of [`SCALES`].
const DECIMAL: u8 = 4;
/// Divisors of the decimals.
const SCALES: [f64; 3] = [1.0, 100.0, 10_000.0];
/// The longest length that a code itself says, and the codes of those that stand in 1, 2 and 4 bytes before the value.
const LENGTH_MAX: usize = 11;
const LENGTH_U8: u8 = 13;
const LENGTH_U16: u8 = 14;
const LENGTH_U32: u8 = 15;
/// A DECIMAL in all its 16 bytes; of the lengths before it each has a code.
const WIDE: u8 = 15;

/// What decides the meaning of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// BOOLEAN
    Bool,
    /// INT, BIGINT, DATE, TIMESTAMP
    Int,
    /// REAL
    Float,
    /// DOUBLE
    Double,
    /// DECIMAL
    Decimal,
    /// VARCHAR, BINARY, lists and structs
    Variable,
}

impl Kind {
    pub(super) fn of(data_type: &DataType) -> Self {
        match data_type {
            DataType::Boolean => Self::Bool,
            DataType::Float32 => Self::Float,
            DataType::Float64 => Self::Double,
            DataType::Decimal128(_, _) => Self::Decimal,
            DataType::Utf8 | DataType::Binary | DataType::List(_) | DataType::Struct(_) => Self::Variable,
            _ => Self::Int,
        }
    }

    /// Whether a value of this code has the length that the code says, and nothing before it.
    pub(super) fn says_length(self, code: u8) -> bool {
        self != Self::Variable || code < LENGTH_U8
    }

    /// The bytes of a value with this code at the start of `rest`, which moves behind them.
    ///
    /// # Errors
    /// `Corrupt` for a code that the kind does not have, or too few bytes.
    #[inline]
    pub(super) fn take<'a>(self, code: u8, rest: &mut &'a [u8]) -> Result<&'a [u8]> {
        let width = match (self, code) {
            (_, NULL) => 0,
            (Self::Double, RAW) => 8,
            (Self::Double, SINGLE) | (Self::Float, RAW) => 4,
            (Self::Double | Self::Float, ZERO) | (Self::Bool, 1 | 2) => 0,
            (Self::Double | Self::Float, DECIMAL..) => usize::from((code - DECIMAL) % 4) + 1,
            (Self::Int, 1..=9) => usize::from(code) - 1,
            (Self::Decimal, WIDE) => 16,
            (Self::Decimal, _) => usize::from(code) - 1,
            (Self::Variable, LENGTH_U8) => usize::from(take::<1>(rest)?[0]),
            (Self::Variable, LENGTH_U16) => usize::from(u16::from_le_bytes(take(rest)?)),
            (Self::Variable, LENGTH_U32) => u32::from_le_bytes(take(rest)?) as usize,
            (Self::Variable, _) => usize::from(code) - 1,
            _ => {
                return Err(Error::corrupt(format!("it has a value of code {code}, which its type has not")));
            }
        };
        let (value, behind) = rest.split_at_checked(width).ok_or_else(too_short)?;
        *rest = behind;
        Ok(value)
    }
}

/// A number in its fewest bytes: those of its zigzag form, little-endian.
#[inline]
fn put_shortest(value: i128, out: &mut Vec<u8>) -> usize {
    let zigzag = ((value << 1) ^ (value >> 127)) as u128;
    let width = (u128::BITS - zigzag.leading_zeros()).div_ceil(8) as usize;
    out.extend_from_slice(&zigzag.to_le_bytes()[..width]);
    width
}

/// The number in so many bytes, 16 at the most.
#[inline]
fn shortest(bytes: &[u8]) -> i128 {
    let mut all = [0; 16];
    all[..bytes.len()].copy_from_slice(bytes);
    let zigzag = u128::from_le_bytes(all);
    (zigzag >> 1) as i128 ^ -((zigzag & 1) as i128)
}

/// As [`shortest`], for up to 8 bytes.
#[inline]
pub(super) fn int(bytes: &[u8]) -> i64 {
    let mut all = [0; 8];
    all[..bytes.len()].copy_from_slice(bytes);
    let zigzag = u64::from_le_bytes(all);
    (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64)
}

/// Appends an integer; its code.
#[inline]
pub(super) fn put_int(value: i64, out: &mut Vec<u8>) -> u8 {
    put_shortest(value.into(), out) as u8 + 1
}

pub(super) fn put_bool(value: bool) -> u8 {
    1 + u8::from(value)
}

pub(super) fn bool(code: u8) -> bool {
    code == 2
}

/// Appends a DECIMAL's unscaled value; its code.
pub(super) fn put_decimal(value: i128, out: &mut Vec<u8>) -> u8 {
    let start = out.len();
    match put_shortest(value, out) as u8 {
        width @ ..14 => width + 1,
        _ => {
            out.resize(start + 16, 0);
            WIDE
        }
    }
}

pub(super) fn decimal(bytes: &[u8]) -> i128 {
    shortest(bytes)
}

/// Appends a DOUBLE; its code.
pub(super) fn put_double(value: f64, out: &mut Vec<u8>) -> u8 {
    if value.to_bits() == 0 {
        return ZERO;
    }
    if let Some(code) = put_scaled(value, 4, out) {
        return code;
    }
    let single = value as f32;
    if f64::from(single).to_bits() == value.to_bits() {
        out.extend_from_slice(&single.to_le_bytes());
        return SINGLE;
    }
    out.extend_from_slice(&value.to_le_bytes());
    RAW
}

/// A DOUBLE of this code and bytes.
#[inline]
pub(super) fn double(code: u8, bytes: &[u8]) -> f64 {
    match code {
        RAW => f64::from_le_bytes(fixed(bytes)),
        ZERO => 0.0,
        SINGLE => f64::from(f32::from_le_bytes(fixed(bytes))),
        _ => int(bytes) as f64 / SCALES[usize::from((code - DECIMAL) / 4)],
    }
}

/// Appends a REAL; its code.
pub(super) fn put_float(value: f32, out: &mut Vec<u8>) -> u8 {
    if value.to_bits() == 0 {
        return ZERO;
    }
    let decimals = f64::from((f64::from(value) * 10_000.0).round() as i32) / 10_000.0;
    if decimals as f32 == value
        && let Some(code) = put_scaled(decimals, 3, out)
    {
        return code;
    }
    out.extend_from_slice(&value.to_le_bytes());
    RAW
}

/// A REAL of this code and bytes.
#[inline]
pub(super) fn float(code: u8, bytes: &[u8]) -> f32 {
    match code {
        RAW => f32::from_le_bytes(fixed(bytes)),
        _ => double(code, bytes) as f32,
    }
}

/// Appends the fewest digits that give exactly this double, if `width_max` bytes hold them; their code.
fn put_scaled(value: f64, width_max: usize, out: &mut Vec<u8>) -> Option<u8> {
    for (i, scale) in SCALES.iter().enumerate() {
        let digits = (value * scale).round();
        // Zero has a code of its own, and -0 has no digits.
        let fits = digits != 0.0 && digits.abs() < 2_147_483_648.0;
        if fits && (digits / scale).to_bits() == value.to_bits() {
            let start = out.len();
            let width = put_shortest(digits as i128, out);
            if width <= width_max {
                return Some(DECIMAL + 4 * i as u8 + width as u8 - 1);
            }
            out.truncate(start);
            return None;
        }
    }
    None
}

/// Appends the bytes that `write` appends, behind their length where the code does not say it; the code.
///
/// # Errors
/// `Exhausted` from 4 GiB on.
pub(super) fn put_variable(write: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) -> Result<u8> {
    let start = out.len();
    write(out);
    let length = out.len() - start;
    if length <= LENGTH_MAX {
        return Ok(length as u8 + 1);
    }
    let whole = u32::try_from(length)
        .map_err(|_| Error::exhausted("a row of 4 GiB or more does not fit the online store"))?;
    let bytes = whole.to_le_bytes();
    let (code, width) = match length {
        ..=0xff => (LENGTH_U8, 1),
        0x100..=0xffff => (LENGTH_U16, 2),
        _ => (LENGTH_U32, 4),
    };
    drop(out.splice(start..start, bytes[..width].iter().copied()));
    Ok(code)
}

/// The bytes of a value whose code [`Kind::take`] has already held to this width.
#[inline]
pub(super) fn fixed<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

/// Appends a small number that is rarely large: seven bits a byte, the lowest first.
pub(super) fn put_varint(mut value: u32, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn take_varint(rest: &mut &[u8]) -> Result<u32> {
    let mut value = 0u32;
    for shift in (0..35).step_by(7) {
        let [byte] = take(rest)?;
        value |= u32::from(byte & 0x7f) << shift.min(31);
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Error::corrupt("a number in it has no end"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn double_of(value: f64) -> (u8, usize, f64) {
        let mut out = vec![];
        let code = put_double(value, &mut out);
        let mut rest = out.as_slice();
        let bytes = Kind::Double.take(code, &mut rest).unwrap();
        assert!(rest.is_empty() && code < 16);
        (code, out.len(), double(code, bytes))
    }

    #[test]
    fn numbers_take_the_bytes_they_need() {
        let cases = [
            (0.0, 0),
            (-0.0, 4),
            (1.0, 1),
            (-64.0, 1),
            (19.99, 2),
            (1500.25, 3),
            (0.0909, 2),
            (0.1234, 2),
            (1e9, 4),
            (1e10, 4),
            (0.5, 1),
            (1.0 / 3.0, 8),
            (f64::MAX, 8),
            (f64::INFINITY, 4),
            (f64::NAN, 4),
            (f64::from_bits(0x7ff0_0000_0000_0001), 8),
            (123_456_789.12, 8),
        ];
        for (value, bytes) in cases {
            let (_, length, again) = double_of(value);
            assert_eq!((length, again.to_bits()), (bytes, value.to_bits()), "{value}");
        }
        for (value, bytes) in
            [(0, 0), (1, 1), (-64, 1), (63, 1), (64, 1), (128, 2), (i64::MIN, 8), (i64::MAX, 8)]
        {
            let mut out = vec![];
            let code = put_int(value, &mut out);
            assert_eq!((out.len(), code, int(&out)), (bytes, bytes as u8 + 1, value), "{value}");
        }
    }

    proptest! {
        #[test]
        fn every_number_reads_back_bit_by_bit(bits: u64, wide: i128, cents in -10_000_000i64..10_000_000, small: f32) {
            for value in [f64::from_bits(bits), cents as f64 / 100.0, cents as f64 / 10_000.0, cents as f64 * 1.1] {
                prop_assert_eq!(double_of(value).2.to_bits(), value.to_bits());
            }
            for value in [small, f32::from_bits(bits as u32), cents as f32 / 100.0] {
                let mut out = vec![];
                let code = put_float(value, &mut out);
                let mut rest = out.as_slice();
                let bytes = Kind::Float.take(code, &mut rest).unwrap();
                prop_assert_eq!(float(code, bytes).to_bits(), value.to_bits());
                prop_assert!(rest.is_empty());
            }
            for value in [wide, wide >> 64, wide >> 100, i128::MIN, i128::MAX] {
                let mut out = vec![];
                let code = put_decimal(value, &mut out);
                let mut rest = out.as_slice();
                prop_assert_eq!(decimal(Kind::Decimal.take(code, &mut rest).unwrap()), value);
                prop_assert!(rest.is_empty());
            }
            let mut out = vec![];
            put_varint(bits as u32, &mut out);
            prop_assert_eq!(take_varint(&mut out.as_slice()).unwrap(), bits as u32);
        }
    }
}
