//! Packed rows to Arrow columns.

use datafusion::arrow::array::ArrayRef;

use super::builder::{ColumnBuilder, take_slice, too_short};
use super::codes::take_varint;
use super::{Now, ORDER, RowLayout, WrittenSchema};
use crate::error::{Error, Result};

/// The columns of the features `wanted` (positions among the group's features), one value per row; `None` gives NULLs,
/// and so does a row that was written before a feature was there.
///
/// # Errors
/// `Corrupt`, saying what is wrong with the row, for bytes that are no row of this layout; `Conflict` for a row of a
/// schema that the layout does not know. Never panics, whatever the bytes.
pub(crate) fn decode_features(
    layout: &RowLayout,
    rows: &[Option<&[u8]>],
    wanted: &[usize],
) -> Result<Vec<ArrayRef>> {
    let mut place = vec![None; layout.fields.len()];
    let mut columns: Vec<ColumnBuilder> = Vec::with_capacity(wanted.len());
    for &feature in wanted {
        if place[feature].is_none() {
            place[feature] = Some(columns.len());
            columns.push(ColumnBuilder::new(layout.fields[feature].data_type(), rows.len()));
        }
    }
    let mut plan: Option<Plan<'_>> = None;
    for row in rows {
        let Some(row) = row else {
            columns.iter_mut().for_each(ColumnBuilder::append_null);
            continue;
        };
        let mut rest = row.get(ORDER..).ok_or_else(too_short)?;
        let id = take_varint(&mut rest)?;
        let plan = match &mut plan {
            Some(plan) if plan.schema.id == id => plan,
            other => other.insert(Plan::new(layout, id, &place)?),
        };
        plan.append(rest, &mut columns)?;
    }
    let columns = columns.into_iter().map(ColumnBuilder::finish).collect::<Result<Vec<_>>>()?;
    // Every wanted feature has a place by now.
    Ok(wanted.iter().filter_map(|&feature| Some(columns[place[feature]?].clone())).collect())
}

/// Where the values of rows of one schema go.
struct Plan<'a> {
    schema: &'a WrittenSchema,
    /// For each slot its column, where it is wanted.
    targets: Vec<Option<usize>>,
    /// Columns that rows of this schema have no value for.
    absent: Vec<usize>,
}

impl<'a> Plan<'a> {
    fn new(layout: &'a RowLayout, id: u32, place: &[Option<usize>]) -> Result<Self> {
        let schema = layout.schemas.iter().find(|schema| schema.id == id).ok_or_else(|| {
            Error::conflict(format!(
                "it was written under schema {id}, which is not known here: the definition has changed, ask again"
            ))
        })?;
        let mut targets = Vec::with_capacity(schema.slots.len());
        for slot in &schema.slots {
            targets.push(match slot.is_now {
                Now::Feature(feature) => place[feature],
                Now::Other(feature) if place[feature].is_some() => {
                    let name = layout.fields[feature].name();
                    return Err(Error::corrupt(format!(
                        "feature '{name}' had another type when it was written"
                    )));
                }
                Now::Other(_) | Now::Dropped => None,
            });
        }
        let absent = place.iter().flatten().filter(|column| !targets.contains(&Some(**column)));
        Ok(Self { schema, absent: absent.copied().collect(), targets })
    }

    /// Appends a row from its codes on.
    fn append(&self, mut rest: &[u8], columns: &mut [ColumnBuilder]) -> Result<()> {
        let codes = take_slice(&mut rest, self.schema.slots.len().div_ceil(2))?;
        for (i, (slot, target)) in self.schema.slots.iter().zip(&self.targets).enumerate() {
            let code = codes[i / 2] >> (i % 2 * 4) & 0xf;
            let value = slot.kind.take(code, &mut rest)?;
            if let Some(target) = target {
                columns[*target].append_stored(slot.kind, code, value)?;
            }
        }
        if !rest.is_empty() {
            return Err(Error::corrupt("it is longer than it says"));
        }
        self.absent.iter().for_each(|column| columns[*column].append_null());
        Ok(())
    }
}
