//! Packed rows to Arrow columns.

use datafusion::arrow::array::ArrayRef;

use super::builder::{ColumnBuilder, is_present, take, too_short};
use super::{FORMAT, HEADER, ORDER, RowLayout};
use crate::error::{Error, Result};

/// The columns of the features `wanted` (positions among the group's features), one value per row; `None` gives NULLs.
///
/// # Errors
/// `Corrupt`, saying what is wrong with the row, for bytes that were not written under `layout`. Never panics,
/// whatever the bytes.
pub(crate) fn decode_features(
    layout: &RowLayout,
    rows: &[Option<&[u8]>],
    wanted: &[usize],
) -> Result<Vec<ArrayRef>> {
    for row in rows.iter().flatten() {
        check_header(layout, row)?;
    }
    let mut columns = Vec::with_capacity(wanted.len());
    for &feature in wanted {
        let mut column = ColumnBuilder::new(layout.features[feature].field.data_type(), rows.len());
        for row in rows {
            match row {
                Some(row) if is_present(&row[HEADER..], feature) => {
                    append_feature(layout, row, feature, &mut column)?;
                }
                _ => column.append_null(),
            }
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

fn append_feature(layout: &RowLayout, row: &[u8], feature: usize, column: &mut ColumnBuilder) -> Result<()> {
    let slot = &layout.features[feature];
    if !column.is_variable() {
        return column.append_body(&mut &row[slot.offset..]);
    }
    let end_at =
        |offset: usize| -> Result<usize> { Ok(u32::from_le_bytes(take(&mut &row[offset..])?) as usize) };
    let start = slot.variable_before.map_or(Ok(0), end_at)?;
    let value = row[layout.tail..].get(start..end_at(slot.offset)?).ok_or_else(too_short)?;
    column.append_tail(value)
}
