//! Packed rows to Arrow columns.
//!
//! Rows whose codes are the same have their values at the same places. So rows are taken in runs of equal codes, and a
//! run is decoded column by column; where every value differs in length, a run is a row.

use datafusion::arrow::array::ArrayRef;

use super::builder::{ColumnBuilder, take_slice, too_short};
use super::codes::{Kind, take_varint};
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
    let mut run = Run::default();
    for row in rows {
        let Some(row) = row else {
            run.end(plan.as_ref(), &mut columns)?;
            columns.iter_mut().for_each(|column| column.append_nulls(1));
            continue;
        };
        let mut rest = row.get(ORDER..).ok_or_else(too_short)?;
        let id = take_varint(&mut rest)?;
        if plan.as_ref().is_none_or(|plan| plan.schema.id != id) {
            run.end(plan.as_ref(), &mut columns)?;
            plan = Some(Plan::new(layout, id, &place)?);
        }
        if let Some(plan) = &plan
            && !run.goes_on(row, rest)
        {
            run.end(Some(plan), &mut columns)?;
            run.begin(plan, row, rest)?;
        }
        run.rows.push(row);
    }
    run.end(plan.as_ref(), &mut columns)?;
    let columns = columns.into_iter().map(ColumnBuilder::finish).collect::<Result<Vec<_>>>()?;
    // Every wanted feature has a place by now.
    Ok(wanted.iter().filter_map(|&feature| Some(columns[place[feature]?].clone())).collect())
}

/// A run is no longer than that its rows stay in the first cache while column after column is read from them.
const RUN_ROWS_MAX: usize = 64;

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
                "it was written under schema {id}, which is not known here: the definition has changed, ask again; if that \
                 does not help, write the entity again"
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
}

/// A value in a row: its column, and where its bytes stand from the start of the row.
struct Value {
    target: usize,
    kind: Kind,
    code: u8,
    start: usize,
    end: usize,
}

/// Rows of one schema, one length and the same codes.
#[derive(Default)]
struct Run<'a> {
    rows: Vec<&'a [u8]>,
    codes: &'a [u8],
    /// Whether the codes say all lengths: then rows of the same codes have the same places.
    is_fixed: bool,
    values: Vec<Value>,
}

impl<'a> Run<'a> {
    /// Whether a row, of which `rest` begins with the codes, belongs to it.
    fn goes_on(&self, row: &[u8], rest: &[u8]) -> bool {
        let same_length = self.rows.first().is_some_and(|first| first.len() == row.len());
        self.is_fixed && same_length && self.rows.len() < RUN_ROWS_MAX && rest.starts_with(self.codes)
    }

    fn begin(&mut self, plan: &Plan<'_>, row: &'a [u8], mut rest: &'a [u8]) -> Result<()> {
        let slots = &plan.schema.slots;
        self.codes = take_slice(&mut rest, slots.len().div_ceil(2))?;
        self.is_fixed = true;
        self.values.clear();
        for (i, (slot, target)) in slots.iter().zip(&plan.targets).enumerate() {
            let code = self.codes[i / 2] >> (i % 2 * 4) & 0xf;
            self.is_fixed &= slot.kind.says_length(code);
            let value = slot.kind.take(code, &mut rest)?;
            if let Some(target) = *target {
                let end = row.len() - rest.len();
                self.values.push(Value { target, kind: slot.kind, code, start: end - value.len(), end });
            }
        }
        match rest.is_empty() {
            true => Ok(()),
            false => Err(Error::corrupt("it is longer than it says")),
        }
    }

    /// Appends what it holds to the columns.
    fn end(&mut self, plan: Option<&Plan<'_>>, columns: &mut [ColumnBuilder]) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        for value in &self.values {
            // Every row of the run is as long as the one that the places were found in.
            let bytes = self.rows.iter().map(|row| &row[value.start..value.end]);
            columns[value.target].append_stored(value.kind, value.code, bytes)?;
        }
        let absent = plan.map_or(&[][..], |plan| &plan.absent);
        absent.iter().for_each(|column| columns[*column].append_nulls(self.rows.len()));
        self.rows.clear();
        Ok(())
    }
}
