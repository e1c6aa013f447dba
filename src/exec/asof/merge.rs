//! The join's pure algorithm: a merge of two sides in (key, time) order, free of polling and I/O.
//!
//! The left side is read once. For the current left key, right rows at or before the left time are
//! pushed on a stack in their order, so the top is the one to pick:
//!
//! ```text
//! key 7   right times   1   3   3'  8        (3' was ingested after 3)
//!         left times          2     4  9
//!         picks               1     3' 8
//! ```
//!
//! Without an as-known-at bound only the top is kept. With one, a row that was learnt no later than an
//! older row hides it for good, so the older row is popped: times and ingestion both grow along the stack,
//! and the pick is found by binary search.
//!
//! Looking forward in time is the same merge on negated times.

use std::cmp::Ordering;
use std::collections::VecDeque;

use datafusion::arrow::buffer::NullBuffer;
use datafusion::arrow::row::Rows;

/// One batch of a side, sorted by key, then time, then (right side only) the order of ties.
pub(super) struct Side {
    /// Comparable keys; `None` when the join has no keys.
    pub(super) keys: Option<Rows>,
    /// Rows that can match: no NULL among key, time and mark. `None` when all can.
    pub(super) usable: Option<NullBuffer>,
    /// Times; never decreasing within a key among usable rows.
    pub(super) times: Vec<i128>,
    /// As-known-at: the bound of left rows, the ingestion of right rows. Empty when the join has no bound.
    pub(super) marks: Vec<i128>,
}

impl Side {
    fn is_usable(&self, row: usize) -> bool {
        self.usable.as_ref().is_none_or(|usable| usable.is_valid(row))
    }

    fn mark(&self, row: usize) -> i128 {
        self.marks.get(row).copied().unwrap_or(0)
    }

    fn key(&self, row: usize) -> &[u8] {
        self.keys.as_ref().map_or(&[], |keys| keys.row(row).data())
    }
}

/// A right row: which batch, and which row in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) batch: u64,
    pub(super) row: usize,
}

/// Whether right rows must have been known, and what the left bounds promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knowledge {
    /// No as-known-at bound.
    Ignored,
    /// Bounds of one key may go up and down.
    AnyBound,
    /// Bounds of one key never decrease, so rows below a pick are never needed again.
    GrowingBound,
}

/// How the merge picks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Equal times do not match.
    pub(super) strict: bool,
    /// Greatest distance of a match, itself included.
    pub(super) reach: Option<i128>,
    pub(super) knowledge: Knowledge,
}

/// What the merge needs to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Every row of the left batch has its pick.
    LeftDone,
    /// The right batch is used up.
    RightDone,
}

struct Candidate {
    time: i128,
    known: i128,
    place: Place,
}

/// The state of the merge between batches.
pub(super) struct Merge {
    rules: Rules,
    left_row: usize,
    right_row: usize,
    /// Key of the rows on the stack, and the last left key seen.
    key: Vec<u8>,
    stack: VecDeque<Candidate>,
}

impl Merge {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, left_row: 0, right_row: 0, key: Vec::new(), stack: VecDeque::new() }
    }

    /// The lowest batch whose rows may still be picked without being pushed again.
    pub(super) fn oldest_batch(&self) -> Option<u64> {
        self.stack.front().map(|candidate| candidate.place.batch)
    }

    /// Goes on with the current left batch and right batch (`None`: the right side has ended), appending one pick
    /// per finished left row. After `LeftDone` the next call starts a new left batch, after `RightDone` a new right one.
    pub(super) fn step(
        &mut self,
        left: &Side,
        right: Option<(u64, &Side)>,
        picks: &mut Vec<Option<Place>>,
    ) -> Step {
        while self.left_row < left.times.len() {
            let row = self.left_row;
            if !left.is_usable(row) {
                picks.push(None);
                self.left_row += 1;
                continue;
            }
            let key = left.key(row);
            if self.key != key {
                self.key.clear();
                self.key.extend_from_slice(key);
                self.stack.clear();
            }
            if let Some((batch, side)) = right
                && !self.advance(left.times[row], batch, side)
            {
                return Step::RightDone;
            }
            picks.push(self.pick(left.times[row], left.mark(row)));
            self.left_row += 1;
        }
        self.left_row = 0;
        Step::LeftDone
    }

    /// Pushes right rows up to the current key and `time`; false when the batch ends before a later row is seen.
    fn advance(&mut self, time: i128, batch: u64, right: &Side) -> bool {
        let rows = right.times.len();
        if self.right_row == 0 && rows > 0 && right.key(rows - 1) < self.key.as_slice() {
            return false;
        }
        while self.right_row < rows {
            let row = self.right_row;
            if right.is_usable(row) {
                match right.key(row).cmp(&self.key) {
                    Ordering::Less => {}
                    Ordering::Greater => return true,
                    Ordering::Equal => {
                        let right_time = right.times[row];
                        if right_time > time || (self.rules.strict && right_time == time) {
                            return true;
                        }
                        self.push(Candidate {
                            time: right_time,
                            known: right.mark(row),
                            place: Place { batch, row },
                        });
                    }
                }
            }
            self.right_row += 1;
        }
        self.right_row = 0;
        false
    }

    fn push(&mut self, candidate: Candidate) {
        while self.stack.back().is_some_and(|top| top.known >= candidate.known) {
            self.stack.pop_back();
        }
        self.stack.push_back(candidate);
    }

    fn pick(&mut self, time: i128, bound: i128) -> Option<Place> {
        if let Some(reach) = self.rules.reach {
            while self.stack.front().is_some_and(|oldest| time - oldest.time > reach) {
                self.stack.pop_front();
            }
        }
        match self.rules.knowledge {
            Knowledge::Ignored => self.stack.back().map(|top| top.place),
            knowledge => {
                let known = self.stack.partition_point(|candidate| candidate.known <= bound);
                let index = known.checked_sub(1)?;
                let place = self.stack[index].place;
                if knowledge == Knowledge::GrowingBound {
                    self.stack.drain(..index);
                }
                Some(place)
            }
        }
    }
}
