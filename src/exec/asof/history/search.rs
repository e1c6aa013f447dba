//! The search's pure algorithms, free of polling and I/O.
//!
//! Both sides ascend by (key, time). Looking back, the row of a label is the last one whose (key, time) is not greater
//! than (the label's key, its near bound), if it has the same key and is within the far bound:
//!
//! ```text
//! rows     7@1   7@3   7@3'  7@8   9@2          (3' was ingested after 3, and so comes behind it)
//! labels       7@2         7@5        8@1
//! found        7@1         7@3'       none
//! ```
//!
//! Looking forward it is the first one not less, and of those at the same time the last.

use std::cmp::Ordering;
use std::ops::Range;

use super::keys::Keys;

/// Which times may match a label's: from one bound to the other, both included, in the unit of the event time.
/// Looking back, `near` is the greatest time and `far` the least; looking forward the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) near: i64,
    pub(super) far: i64,
}

impl Window {
    /// Matches nothing, in whatever direction.
    pub(super) fn empty(backward: bool) -> Self {
        if backward { Self { near: i64::MIN, far: i64::MAX } } else { Self { near: i64::MAX, far: i64::MIN } }
    }

    /// Whether a time between `min` and `max` may match.
    pub(super) fn overlaps(self, backward: bool, min: i64, max: i64) -> bool {
        let (low, high) = if backward { (self.far, self.near) } else { (self.near, self.far) };
        low <= high && low <= max && min <= high
    }
}

/// Labels in the order of (key, time), which is also that of (key, `near`).
pub(super) struct Labels<'a, K> {
    pub(super) keys: &'a K,
    pub(super) windows: &'a [Window],
}

/// Rows of one file in the order of (key, time); rows of equal key and time in the order of ingestion.
pub(super) struct Rows<'a, K> {
    pub(super) keys: &'a K,
    pub(super) times: &'a [i64],
}

/// Calls `found` with each label of `wanted` (ascending) that has a row, and the row.
pub(super) fn search<K: Keys>(
    labels: &Labels<'_, K>,
    wanted: &[u32],
    rows: &Rows<'_, K>,
    backward: bool,
    mut found: impl FnMut(u32, usize),
) {
    let end = rows.times.len();
    let mut next = 0;
    for &label in wanted {
        let (key, window) = (labels.keys.get(label as usize), labels.windows[label as usize]);
        let before = |row: usize| {
            let row_key = rows.keys.get(row);
            match row_key.cmp(&key) {
                Ordering::Less => true,
                Ordering::Greater => false,
                Ordering::Equal if backward => rows.times[row] <= window.near,
                Ordering::Equal => rows.times[row] < window.near,
            }
        };
        next = advance(next, end, before);
        let row = if backward { next.checked_sub(1) } else { (next < end).then_some(next) };
        let Some(row) = row.filter(|row| rows.keys.get(*row) == key) else { continue };
        let time = rows.times[row];
        if backward {
            if time >= window.far {
                found(label, row);
            }
        } else if time <= window.far {
            let same = |row: usize| rows.keys.get(row) == key && rows.times[row] == time;
            found(label, advance(row, end, same) - 1);
        }
    }
}

/// The first index from `start` on that is not `before`; step by step while near, then in growing strides.
fn advance(start: usize, end: usize, before: impl Fn(usize) -> bool) -> usize {
    const STEPS: usize = 8;
    for index in start..end.min(start + STEPS) {
        if !before(index) {
            return index;
        }
    }
    if start + STEPS >= end {
        return end;
    }
    let (mut low, mut stride) = (start + STEPS, STEPS);
    while low + stride < end && before(low + stride) {
        low += stride;
        stride *= 2;
    }
    let mut high = end.min(low + stride);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) { low = middle + 1 } else { high = middle }
    }
    low
}

/// The pages that may hold keys of `wanted` labels, as ranges of rows; neighbours are joined. Pages ascend by key.
pub(super) fn pages<K: Keys>(
    labels: &Labels<'_, K>,
    wanted: &[u32],
    rows: &[Range<u32>],
    min: &[Option<K::Bound>],
    max: &[Option<K::Bound>],
) -> Vec<Range<u32>> {
    let key = |index: usize| labels.keys.get(wanted[index] as usize);
    let mut ranges: Vec<Range<u32>> = Vec::new();
    let mut next = 0;
    for ((rows, min), max) in rows.iter().zip(min).zip(max) {
        if let Some(min) = min {
            next = advance(next, wanted.len(), |index| K::compare(key(index), min) == Ordering::Less);
        }
        if next == wanted.len() {
            break;
        }
        if max.as_ref().is_some_and(|max| K::compare(key(next), max) == Ordering::Greater) {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == rows.start => last.end = rows.end,
            _ => ranges.push(rows.clone()),
        }
    }
    ranges
}
