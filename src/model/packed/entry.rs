//! An entity's stored rows: which of them are kept, and which one is served.

use std::cmp::Reverse;

use super::builder::{take, take_slice, too_short};
use super::{ORDER, RowOrder};
use crate::error::{Error, Result};

/// How many rows dated in the future an entry keeps: those due first. What would be due later than these is not
/// kept online (it stays in the history), so that one entity cannot grow without bound.
pub(crate) const MAX_FUTURE_ROWS: usize = 256;

/// First byte of an entry of exactly one row, which follows bare.
const ONE_ROW: u8 = 2;
/// First byte of an entry of several rows, each behind its length.
const SEVERAL_ROWS: u8 = 3;

/// One row of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoredRow<'a> {
    /// Where it stands among the rows of its entity.
    pub(crate) order: RowOrder,
    /// The packed row.
    pub(crate) bytes: &'a [u8],
}

/// The row that an entry serves at `now_us`: the newest one not dated in the future.
///
/// # Errors
/// `Corrupt` for bytes that are no entry.
pub(crate) fn pick(entry: &[u8], now_us: i64) -> Result<Option<StoredRow<'_>>> {
    for row in rows(entry) {
        let row = row?;
        if row.order.event_time_us <= now_us {
            return Ok(Some(row));
        }
    }
    Ok(None)
}

/// The entry that holds the rows of both, as of `now_us`: one row per event time still to come, and of the rows
/// at or before `now_us` only the newest. The outcome does not depend on the order in which rows are merged.
///
/// `existing` and `incoming` are entries; where both hold a row of the same order, `incoming`'s stays.
///
/// # Errors
/// `Corrupt` when either is no entry.
pub(crate) fn merge(existing: &[u8], incoming: &[u8], now_us: i64) -> Result<Vec<u8>> {
    let mut all = rows(incoming).chain(rows(existing)).collect::<Result<Vec<_>>>()?;
    all.sort_by_key(|row| Reverse(row.order));
    let orders: Vec<RowOrder> = all.iter().map(|row| row.order).collect();
    let mut merged = Vec::with_capacity(existing.len() + incoming.len());
    let kept = select_rows(&orders, now_us);
    for &row in &kept {
        push_row(&mut merged, kept.len(), |out| {
            out.extend_from_slice(all[row].bytes);
            Ok(())
        })?;
    }
    Ok(merged)
}

/// Which of an entity's rows an entry keeps as of `now_us`: indices into `newest_first`, in that order.
pub(crate) fn select_rows(newest_first: &[RowOrder], now_us: i64) -> Vec<usize> {
    let mut kept: Vec<usize> = Vec::new();
    for (i, order) in newest_first.iter().enumerate() {
        // Of several rows with one event time the first is the newest: no later moment picks another.
        if kept.last().is_some_and(|last| newest_first[*last].event_time_us == order.event_time_us) {
            continue;
        }
        kept.push(i);
        if order.event_time_us <= now_us {
            break;
        }
    }
    let due = kept.last().is_some_and(|last| newest_first[*last].event_time_us <= now_us);
    let future = kept.len() - usize::from(due);
    kept.drain(..future.saturating_sub(MAX_FUTURE_ROWS));
    kept
}

/// Appends one of an entry's `rows` rows, newest first: what `write` appends, behind its length when it is one of
/// several.
///
/// # Errors
/// Those of `write`, and `Exhausted` for a row of 4 GiB or more.
pub(crate) fn push_row(
    entry: &mut Vec<u8>,
    rows: usize,
    write: impl FnOnce(&mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    if entry.is_empty() {
        entry.push(if rows == 1 { ONE_ROW } else { SEVERAL_ROWS });
    }
    if rows == 1 {
        return write(entry);
    }
    let start = entry.len();
    entry.extend_from_slice(&[0; 4]);
    write(entry)?;
    let length = u32::try_from(entry.len() - start - 4)
        .map_err(|_| Error::exhausted("a row of 4 GiB or more does not fit the online store"))?;
    entry[start..start + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

/// The rows of an entry in stored order; ends after the first error.
fn rows(entry: &[u8]) -> impl Iterator<Item = Result<StoredRow<'_>>> {
    let (tag, mut rest) = entry.split_first().map_or((0, entry), |(tag, rest)| (*tag, rest));
    let mut begun = entry.is_empty();
    std::iter::from_fn(move || {
        if std::mem::replace(&mut begun, true) && rest.is_empty() {
            return None;
        }
        let row = match tag {
            ONE_ROW => stored_row(std::mem::take(&mut rest)),
            SEVERAL_ROWS => next_row(&mut rest),
            other => Err(Error::corrupt(format!("it has format {other}, which this version does not read"))),
        };
        if row.is_err() {
            rest = &[];
        }
        Some(row)
    })
}

fn next_row<'a>(entry: &mut &'a [u8]) -> Result<StoredRow<'a>> {
    let length = u32::from_be_bytes(take(entry)?) as usize;
    stored_row(take_slice(entry, length)?)
}

fn stored_row(bytes: &[u8]) -> Result<StoredRow<'_>> {
    let order = bytes.first_chunk::<ORDER>().ok_or_else(too_short)?;
    Ok(StoredRow { order: RowOrder::from_bytes(order), bytes })
}
