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
pub(in crate::exec::asof) struct Window {
    pub(in crate::exec::asof) near: i64,
    pub(in crate::exec::asof) far: i64,
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

/// The row chosen for a label so far.
#[derive(Debug, Clone, Copy)]
pub(in crate::exec::asof) struct Choice {
    pub(in crate::exec::asof) time: i64,
    pub(in crate::exec::asof) file: u32,
    pub(in crate::exec::asof) row: u32,
}

impl Choice {
    pub(in crate::exec::asof) const NONE: Self = Self { time: 0, file: u32::MAX, row: 0 };

    pub(super) fn is_none(self) -> bool {
        self.file == u32::MAX
    }
}

/// A label that is looked up, with all that the search reads of it in one place: lists of labels are walked file after
/// file, and jumping to what lies elsewhere would cost more than the search.
#[derive(Debug, Clone, Copy)]
pub(in crate::exec::asof) struct Sought<Key> {
    pub(in crate::exec::asof) key: Key,
    pub(in crate::exec::asof) window: Window,
    pub(in crate::exec::asof) label: u32,
    /// Whether it has been found in some file.
    pub(in crate::exec::asof) has_choice: bool,
}

/// Rows of one file in the order of (key, time); rows of equal key and time in the order of ingestion.
pub(in crate::exec::asof) struct Rows<'a, K> {
    pub(in crate::exec::asof) keys: &'a K,
    pub(in crate::exec::asof) times: &'a [i64],
}

/// Calls `found` with each label that has a row, and the row. Labels ascend by (key, near bound); those that are not
/// `wanted` are passed over.
pub(in crate::exec::asof) fn search<'a, K: Keys>(
    labels: &mut [Sought<K::Key<'a>>],
    rows: &Rows<'_, K>,
    backward: bool,
    wanted: impl Fn(&Sought<K::Key<'a>>) -> bool,
    mut found: impl FnMut(&mut Sought<K::Key<'a>>, usize),
) {
    let end = rows.times.len();
    let mut next = 0;
    for label in labels {
        if !wanted(label) {
            continue;
        }
        let (key, window) = (label.key, label.window);
        let before = |row: usize| match rows.keys.compare_at(row, key) {
            Ordering::Less => true,
            Ordering::Greater => false,
            Ordering::Equal if backward => rows.times[row] <= window.near,
            Ordering::Equal => rows.times[row] < window.near,
        };
        next = advance(next, end, before);
        let row = if backward { next.checked_sub(1) } else { (next < end).then_some(next) };
        let Some(row) = row.filter(|row| rows.keys.compare_at(*row, key).is_eq()) else { continue };
        let time = rows.times[row];
        if backward {
            if time >= window.far {
                found(label, row);
            }
        } else if time <= window.far {
            let same = |row: usize| rows.keys.compare_at(row, key).is_eq() && rows.times[row] == time;
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

/// The pages that may hold keys of `wanted` labels, as ranges of rows; neighbours are joined. Labels and pages ascend by
/// key.
pub(super) fn pages<'a, K: Keys>(
    labels: &[Sought<K::Key<'a>>],
    wanted: impl Fn(&Sought<K::Key<'a>>) -> bool,
    rows: &[Range<u32>],
    min: &[Option<K::Bound>],
    max: &[Option<K::Bound>],
) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    let mut labels = labels.iter().filter(|label| wanted(label)).peekable();
    for ((rows, min), max) in rows.iter().zip(min).zip(max) {
        if let Some(min) = min {
            while labels.next_if(|label| K::compare(label.key, min) == Ordering::Less).is_some() {}
        }
        let Some(next) = labels.peek() else { break };
        if max.as_ref().is_some_and(|max| K::compare(next.key, max) == Ordering::Greater) {
            continue;
        }
        match ranges.last_mut() {
            Some(last) if last.end == rows.start => last.end = rows.end,
            _ => ranges.push(rows.clone()),
        }
    }
    ranges
}
