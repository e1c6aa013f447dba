//! Parquet's run-length / bit-packed hybrid, read at chosen positions instead of from end to end.
//!
//! ```text
//! run      = varint header, then its values
//! header   = count << 1            one value, repeated: ceil(width / 8) bytes, little endian
//! header   = (groups << 1) | 1     8 × groups values of `width` bits each, least significant bit first
//! ```
//!
//! A repeated run answers for all its positions at once, and a packed one is an array: the values between two chosen
//! positions cost nothing.

use crate::error::{Error, Result};

/// No page holds more values.
const RUN_MAX: usize = i32::MAX as usize / 8;

/// Encoded values, all of the same width.
#[derive(Debug, Clone, Copy)]
pub(super) struct Runs<'a> {
    data: &'a [u8],
    width: u32,
}

/// One run: where it ends, and what it holds.
#[derive(Debug, Clone, Copy)]
enum Run<'a> {
    Repeated { count: usize, value: u32 },
    Packed { count: usize, bytes: &'a [u8] },
}

impl<'a> Runs<'a> {
    /// # Errors
    /// `Corrupt` where `width`, in bits, is more than 32.
    pub(super) fn new(data: &'a [u8], width: u8) -> Result<Self> {
        if width > 32 {
            return Err(corrupt("a bit width of more than 32"));
        }
        Ok(Self { data, width: u32::from(width) })
    }

    fn next_run(&mut self) -> Result<Run<'a>> {
        let header = self.varint()?;
        let count = usize::try_from(header >> 1).unwrap_or(usize::MAX);
        if count == 0 || count > RUN_MAX {
            return Err(corrupt("a run without values or with too many"));
        }
        if header & 1 == 0 {
            let bytes = self.split(self.width.div_ceil(8) as usize)?;
            return Ok(Run::Repeated { count, value: little_endian(bytes) });
        }
        // The last group of a page may be cut short where its padding would be.
        let bytes = self.split((count * self.width as usize).min(self.data.len()))?;
        Ok(Run::Packed { count: count * 8, bytes })
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0_u64;
        for shift in (0..63).step_by(7) {
            let [byte, rest @ ..] = self.data else {
                return Err(corrupt("fewer values than its header says"));
            };
            self.data = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(corrupt("a run header without end"))
    }

    fn split(&mut self, length: usize) -> Result<&'a [u8]> {
        let (bytes, rest) =
            self.data.split_at_checked(length).ok_or_else(|| corrupt("fewer values than its header says"))?;
        self.data = rest;
        Ok(bytes)
    }

    /// Appends the values at `positions`, which never decrease.
    pub(super) fn values_at(mut self, positions: &[u32], values: &mut Vec<u32>) -> Result<()> {
        if self.width == 0 {
            values.resize(values.len() + positions.len(), 0);
            return Ok(());
        }
        let (mut rest, mut start) = (positions, 0_usize);
        while !rest.is_empty() {
            let run = self.next_run()?;
            let end = start + run.count();
            let inside = rest.partition_point(|position| (*position as usize) < end);
            let (here, later) = rest.split_at(inside);
            match run {
                Run::Repeated { value, .. } => values.resize(values.len() + here.len(), value),
                Run::Packed { bytes, .. } => {
                    for position in here {
                        values.push(unpack(bytes, *position as usize - start, self.width)?);
                    }
                }
            }
            (rest, start) = (later, end);
        }
        Ok(())
    }

    /// For values of one bit: whether each of `rows` (never decreasing) is set, and for those that are, how many set
    /// ones come before. `None` where all of the `count` values are set, as one run says at once.
    pub(super) fn ranks_at(mut self, rows: &[u32], count: usize) -> Result<Option<Ranks>> {
        let mut ranks = Ranks { set: Vec::with_capacity(rows.len()), ranks: Vec::new() };
        let (mut rest, mut start, mut ones) = (rows, 0_usize, 0_u32);
        while !rest.is_empty() {
            let run = self.next_run()?;
            if let Run::Repeated { count: all, value: 1 } = run
                && start == 0
                && all >= count
            {
                return Ok(None);
            }
            let end = start + run.count();
            let inside = rest.partition_point(|row| (*row as usize) < end);
            let (here, later) = rest.split_at(inside);
            ones = match run {
                Run::Repeated { count, value } => {
                    for row in here {
                        ranks.push(value == 1, ones.wrapping_add((*row - start as u32).wrapping_mul(value)));
                    }
                    ones.wrapping_add((count as u32).wrapping_mul(value))
                }
                Run::Packed { bytes, .. } => ranks.push_packed(bytes, here, start, ones)?,
            };
            (rest, start) = (later, end);
        }
        Ok(Some(ranks))
    }
}

impl Run<'_> {
    fn count(&self) -> usize {
        match self {
            Run::Repeated { count, .. } | Run::Packed { count, .. } => *count,
        }
    }
}

/// What [`Runs::ranks_at`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ranks {
    /// One entry per row asked.
    pub(super) set: Vec<bool>,
    /// One entry per row that is set.
    pub(super) ranks: Vec<u32>,
}

impl Ranks {
    fn push(&mut self, set: bool, rank: u32) {
        self.set.push(set);
        if set {
            self.ranks.push(rank);
        }
    }

    /// Returns how many ones come before the end of the run.
    fn push_packed(&mut self, bytes: &[u8], rows: &[u32], start: usize, before: u32) -> Result<u32> {
        let (mut byte, mut ones) = (0, before);
        for row in rows {
            let bit = *row as usize - start;
            while byte < bit / 8 {
                ones += bytes.get(byte).map_or(0, |byte| byte.count_ones());
                byte += 1;
            }
            let last = *bytes.get(bit / 8).ok_or_else(|| corrupt("fewer values than its header says"))?;
            let below = (last & ((1_u8 << (bit % 8)) - 1)).count_ones();
            self.push(last >> (bit % 8) & 1 == 1, ones + below);
        }
        Ok(before + bytes.iter().map(|byte| byte.count_ones()).sum::<u32>())
    }
}

fn unpack(bytes: &[u8], index: usize, width: u32) -> Result<u32> {
    let bit = index * width as usize;
    let (first, shift) = (bit / 8, bit % 8);
    let word = match bytes.get(first..first + 8) {
        Some(word) => u64::from_le_bytes(word.try_into().unwrap_or_default()),
        None => {
            let rest = bytes.get(first..).unwrap_or_default();
            if rest.len() * 8 < shift + width as usize {
                return Err(corrupt("fewer values than its header says"));
            }
            rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
        }
    };
    Ok((word >> shift & ((1 << width) - 1)) as u32)
}

fn little_endian(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

pub(super) fn corrupt(what: &str) -> Error {
    Error::corrupt(format!("a Parquet page holds {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Runs as a writer may choose them: each chunk packed (padded to whole groups) or repeated.
    fn encode(chunks: &[(bool, Vec<u32>)], width: u8) -> (Vec<u8>, Vec<u32>) {
        let (mut data, mut values) = (Vec::new(), Vec::new());
        let varint = |data: &mut Vec<u8>, mut value: usize| {
            while value >= 0x80 {
                data.push(value as u8 | 0x80);
                value >>= 7;
            }
            data.push(value as u8);
        };
        for (packed, chunk) in chunks {
            let mask = ((1_u64 << width) - 1) as u32;
            if *packed {
                let groups = chunk.len().div_ceil(8);
                let mut padded: Vec<u32> = chunk.iter().map(|value| value & mask).collect();
                padded.resize(groups * 8, 0);
                varint(&mut data, groups << 1 | 1);
                let mut bits = vec![0_u8; groups * width as usize];
                for (index, value) in padded.iter().enumerate() {
                    for bit in 0..width as usize {
                        let at = index * width as usize + bit;
                        bits[at / 8] |= ((value >> bit & 1) as u8) << (at % 8);
                    }
                }
                data.extend(bits);
                values.extend(padded);
            } else {
                let value = chunk[0] & mask;
                varint(&mut data, chunk.len() << 1);
                data.extend(&value.to_le_bytes()[..width.div_ceil(8) as usize]);
                values.extend(vec![value; chunk.len()]);
            }
        }
        (data, values)
    }

    fn chunks() -> impl Strategy<Value = Vec<(bool, Vec<u32>)>> {
        let chunk = (any::<bool>(), prop::collection::vec(any::<u32>(), 1..40));
        prop::collection::vec(chunk, 1..6)
    }

    fn chosen(all: usize, keep: &[bool]) -> Vec<u32> {
        (0..all as u32).filter(|at| keep[*at as usize % keep.len()]).collect()
    }

    proptest! {
        #[test]
        fn any_positions_of_any_runs(chunks in chunks(), width in 1_u8..=32, keep in prop::collection::vec(any::<bool>(), 1..9)) {
            let (data, all) = encode(&chunks, width);
            let positions = chosen(all.len(), &keep);
            let mut values = Vec::new();
            Runs::new(&data, width).unwrap().values_at(&positions, &mut values).unwrap();
            let expected: Vec<u32> = positions.iter().map(|at| all[*at as usize]).collect();
            prop_assert_eq!(values, expected);
        }

        #[test]
        fn ranks_count_the_ones_before(chunks in chunks(), keep in prop::collection::vec(any::<bool>(), 1..9)) {
            let (data, all) = encode(&chunks, 1);
            let rows = chosen(all.len(), &keep);
            let set: Vec<bool> = rows.iter().map(|row| all[*row as usize] == 1).collect();
            let rank = |row: u32| all[..row as usize].iter().sum::<u32>();
            let ranks: Vec<u32> = rows.iter().filter(|row| all[**row as usize] == 1).map(|row| rank(*row)).collect();
            match Runs::new(&data, 1).unwrap().ranks_at(&rows, all.len()).unwrap() {
                Some(found) => prop_assert_eq!(found, Ranks { set, ranks }),
                None => prop_assert!(all.iter().all(|value| *value == 1)),
            }
        }

        #[test]
        fn bytes_that_are_no_runs_are_an_error_or_values(data in prop::collection::vec(any::<u8>(), 0..40), width in 0_u8..=40) {
            let positions: Vec<u32> = (0..50).collect();
            if let Ok(runs) = Runs::new(&data, width) {
                let mut values = Vec::new();
                let _ = runs.values_at(&positions, &mut values);
                let _ = runs.ranks_at(&positions, 50);
            }
        }
    }

    #[test]
    fn no_bits_are_zeros_and_wide_bits_an_error() {
        let mut values = Vec::new();
        Runs::new(&[], 0).unwrap().values_at(&[0, 5], &mut values).unwrap();
        assert_eq!(values, [0, 0]);
        assert!(Runs::new(&[], 33).is_err());
    }
}
