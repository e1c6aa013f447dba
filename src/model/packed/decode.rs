//! Packed rows to Arrow columns.

use datafusion::arrow::array::ArrayRef;

use super::builder::{ColumnBuilder, is_present, take, too_short};
use super::{FORMAT, HEADER, ORDER, RowLayout};
use crate::error::{Error, Result};

/// One column per feature, one value per row; `None` gives NULLs.
///
/// # Errors
/// `Corrupt`, saying what is wrong with the row, for bytes that were not written under `layout`. Never panics,
/// whatever the bytes.
pub(crate) fn decode_features(layout: &RowLayout, rows: &[Option<&[u8]>]) -> Result<Vec<ArrayRef>> {
    for row in rows.iter().flatten() {
        check_header(layout, row)?;
    }
    let mut columns = Vec::with_capacity(layout.features.len());
    // Values of variable length start where the one before them ended, in each row.
    let mut starts = vec![0usize; rows.len()];
    for (i, slot) in layout.features.iter().enumerate() {
        let mut column = ColumnBuilder::new(slot.field.data_type(), rows.len());
        for (row, start) in rows.iter().zip(&mut starts) {
            let Some(row) = row else {
                column.append_null();
                continue;
            };
            append_feature(layout, row, i, start, &mut column)?;
        }
        columns.push(column.finish()?);
    }
    Ok(columns)
}

/// After this, every slot of the row can be read.
fn check_header(layout: &RowLayout, row: &[u8]) -> Result<()> {
    if row.len() < HEADER {
        return Err(too_short());
    }
    if row[ORDER] != FORMAT {
        return Err(Error::corrupt(format!("it has format {}, and this version reads {FORMAT}", row[ORDER])));
    }
    if row[ORDER + 1..HEADER] != layout.fingerprint.to_le_bytes() {
        return Err(Error::corrupt("it was written under another set of features"));
    }
    if row.len() < layout.tail {
        return Err(too_short());
    }
    Ok(())
}

fn append_feature(
    layout: &RowLayout,
    row: &[u8],
    feature: usize,
    start: &mut usize,
    column: &mut ColumnBuilder,
) -> Result<()> {
    let present = is_present(&row[HEADER..], feature);
    let mut slot = &row[layout.features[feature].offset..];
    if !column.is_variable() {
        match present {
            true => column.append_body(&mut slot)?,
            false => column.append_null(),
        }
        return Ok(());
    }
    let end = u32::from_le_bytes(take(&mut slot)?) as usize;
    let value = row[layout.tail..].get(*start..end).ok_or_else(too_short)?;
    *start = end;
    match present {
        true => column.append_tail(value)?,
        false => column.append_null(),
    }
    Ok(())
}
