//! An entity's stored rows: which of them are kept, and which one is served.

use std::cmp::Reverse;

use super::builder::{take, take_slice, too_short};
use super::{ORDER, RowOrder};
use crate::error::{Error, Result};

/// How many rows dated in the future an entry keeps: those due first. What would be due later than these is not
/// kept online (it stays in the history), so that one entity cannot grow without bound.
pub(crate) const MAX_FUTURE_ROWS: usize = 256;

/// The first byte of an entry. A row of its own has nothing else before it.
const ONE_ROW: u8 = 2;
const ROWS: u8 = 3;

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
/// `existing` and `incoming` are entries, or empty; where both hold a row of the same order, `incoming`'s stays.
///
/// # Errors
/// `Corrupt` when either is no entry.
pub(crate) fn merge(existing: &[u8], incoming: &[u8], now_us: i64) -> Result<Vec<u8>> {
    let mut all = rows(incoming).chain(rows(existing)).collect::<Result<Vec<_>>>()?;
    all.sort_by_key(|row| Reverse(row.order));
    let orders: Vec<RowOrder> = all.iter().map(|row| row.order).collect();
    let mut merged = Vec::with_capacity(existing.len() + incoming.len());
    let kept = select_rows(&orders, now_us);
    put_entry(&kept, &mut merged, |row, out| {
        out.extend_from_slice(all[row].bytes);
        Ok(())
    })?;
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

/// Appends the entry of `kept` rows, newest first, each as `write` appends it.
///
/// # Errors
/// Those of `write`, and `Exhausted` for a row of 4 GiB or more.
pub(crate) fn put_entry(
    kept: &[usize],
    entry: &mut Vec<u8>,
    mut write: impl FnMut(usize, &mut Vec<u8>) -> Result<()>,
) -> Result<()> {
    if let [only] = kept {
        entry.push(ONE_ROW);
        return write(*only, entry);
    }
    entry.extend((!kept.is_empty()).then_some(ROWS));
    for row in kept {
        let start = entry.len();
        entry.extend_from_slice(&[0; 4]);
        write(*row, entry)?;
        let length = u32::try_from(entry.len() - start - 4)
            .map_err(|_| Error::exhausted("a row of 4 GiB or more does not fit the online store"))?;
        entry[start..start + 4].copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

/// The rows of an entry in stored order; none of an empty one; ends after the first error.
fn rows(entry: &[u8]) -> impl Iterator<Item = Result<StoredRow<'_>>> {
    let (format, mut rest) = entry.split_first().map_or((ROWS, entry), |(format, rest)| (*format, rest));
    let mut more = !entry.is_empty();
    std::iter::from_fn(move || {
        if !more {
            return None;
        }
        let row = match format {
            ONE_ROW => stored_row(std::mem::take(&mut rest)),
            ROWS => next_row(&mut rest),
            other => Err(Error::corrupt(format!("it has format {other}, which this version does not read"))),
        };
        more = row.is_ok() && !rest.is_empty();
        Some(row)
    })
}

fn next_row<'a>(rest: &mut &'a [u8]) -> Result<StoredRow<'a>> {
    let length = u32::from_be_bytes(take(rest)?) as usize;
    stored_row(take_slice(rest, length)?)
}

fn stored_row(bytes: &[u8]) -> Result<StoredRow<'_>> {
    let order = bytes.first_chunk::<ORDER>().ok_or_else(too_short)?;
    Ok(StoredRow { order: RowOrder::from_bytes(order), bytes })
}
