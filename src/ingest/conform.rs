//! Incoming columns to a table's columns: by name, without losing a bit, or one clear error.

use std::sync::Arc;

use datafusion::arrow::array::{Array, ArrayRef, RecordBatch, new_null_array};
use datafusion::arrow::compute::{CastOptions, cast_with_options};
use datafusion::arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::arrow::util::display::array_value_to_string;
use datafusion::common::ScalarValue;

use crate::error::{Error, Result};
use crate::model::{FeatureGroup, TableName};
use crate::offline::storage_type;

const STRICT: CastOptions<'static> =
    CastOptions { safe: false, format_options: datafusion::arrow::util::display::FormatOptions::new() };

/// Where a target column's values come from.
#[derive(Debug)]
enum Source {
    Input(usize),
    Default(ScalarValue),
}

/// As which Arrow knows the index of a pandas frame that has no name.
const PANDAS_INDEX: &str = "__index_level_";

/// How batches of one schema become batches of a table.
#[derive(Debug)]
pub(crate) struct Conform {
    table: TableName,
    target: SchemaRef,
    sources: Vec<Source>,
    /// Columns whose NULL is refused with this word for what they are.
    roles: Vec<&'static str>,
}

impl Conform {
    /// For a plain table: every column must be given.
    pub(crate) fn to_table(table: &TableName, target: &SchemaRef, input: &Schema) -> Result<Self> {
        let none = vec![None; target.fields().len()];
        Self::new(table, Arc::clone(target), input, none, vec!["column"; target.fields().len()])
    }

    /// For a feature group: a column with a DEFAULT may be left out.
    pub(crate) fn to_group(group: &FeatureGroup, input: &Schema) -> Result<Self> {
        let defaults = group.columns.iter().map(|c| c.default.clone()).collect();
        let role = |i: usize| match i {
            i if i == group.event_time => "event time",
            i if group.entity_key.contains(&i) => "entity key",
            _ => "feature",
        };
        let roles = (0..group.columns.len()).map(role).collect();
        Self::new(&group.name, group.schema(), input, defaults, roles)
    }

    fn new(
        table: &TableName,
        target: SchemaRef,
        input: &Schema,
        defaults: Vec<Option<ScalarValue>>,
        roles: Vec<&'static str>,
    ) -> Result<Self> {
        let mut sources = Vec::with_capacity(target.fields().len());
        let mut missing = Vec::new();
        for (field, default) in target.fields().iter().zip(defaults) {
            match (position(table, input, field.name())?, default) {
                (Some(index), _) => {
                    check_types(table, field, input.field(index).data_type())?;
                    sources.push(Source::Input(index));
                }
                (None, Some(default)) => sources.push(Source::Default(default)),
                (None, None) => missing.push(field.name().as_str()),
            }
        }
        if !missing.is_empty() {
            return Err(Error::invalid(format!(
                "rows for '{table}' lack column{} {}: the table has {}",
                if missing.len() == 1 { "" } else { "s" },
                quoted(missing),
                quoted(target.fields().iter().map(|f| f.name().as_str())),
            )));
        }
        let unknown: Vec<&str> = input
            .fields()
            .iter()
            .enumerate()
            .filter(|(i, _)| !sources.iter().any(|s| matches!(s, Source::Input(used) if used == i)))
            .map(|(_, f)| f.name().as_str())
            .collect();
        if !unknown.is_empty() {
            let is_index = unknown.iter().any(|name| name.starts_with(PANDAS_INDEX));
            return Err(Error::invalid(format!(
                "rows for '{table}' have column{} {} that the table does not have: it has {}{}",
                if unknown.len() == 1 { "" } else { "s" },
                quoted(unknown),
                quoted(target.fields().iter().map(|f| f.name().as_str())),
                if is_index {
                    "; pa.Table.from_pandas(frame, preserve_index=False) leaves the index out"
                } else {
                    ""
                },
            )));
        }
        Ok(Self { table: table.clone(), target, sources, roles })
    }

    /// The batch with the table's columns, types and order.
    ///
    /// # Errors
    /// `Invalid`, naming column and row, where a value does not fit or is NULL where it must not be.
    pub(crate) fn batch(&self, batch: &RecordBatch) -> Result<RecordBatch> {
        let mut columns = Vec::with_capacity(self.sources.len());
        for ((source, field), role) in self.sources.iter().zip(self.target.fields()).zip(&self.roles) {
            let column = match source {
                Source::Default(value) => value.to_array_of_size(batch.num_rows())?,
                Source::Input(index) => lossless(batch.column(*index), field.data_type()).map_err(|e| {
                    Error::invalid(format!("column '{}' of '{}': {}", field.name(), self.table, e.message()))
                })?,
            };
            if !field.is_nullable() && column.null_count() > 0 {
                let row = (0..column.len()).find(|&i| column.is_null(i)).unwrap_or(0);
                return Err(Error::invalid(format!(
                    "{role} '{}' of '{}' is NULL (first in row {row} of its batch): it must have a value in every row",
                    field.name(),
                    self.table
                )));
            }
            columns.push(column);
        }
        Ok(RecordBatch::try_new(Arc::clone(&self.target), columns)?)
    }
}

/// The input column of that name: exact first, then the only one that differs in case alone.
fn position(table: &TableName, input: &Schema, name: &str) -> Result<Option<usize>> {
    let matching = |same: &dyn Fn(&str) -> bool| -> Vec<usize> {
        input.fields().iter().enumerate().filter(|(_, f)| same(f.name())).map(|(i, _)| i).collect()
    };
    let exact = matching(&|n| n == name);
    let found = if exact.is_empty() { matching(&|n| n.eq_ignore_ascii_case(name)) } else { exact };
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        _ => Err(Error::invalid(format!("rows for '{table}' have more than one column '{name}'"))),
    }
}

fn quoted<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ")
}

/// Whether some value of `from` fits `field`; single values are checked when they come.
fn check_types(table: &TableName, field: &FieldRef, from: &DataType) -> Result<()> {
    let to = field.data_type();
    let stored = match from {
        DataType::Null => return Ok(()),
        other => storage_type(field.name(), other)?,
    };
    if fits(&stored, to) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "column '{}' of '{table}' is {to}, but the rows give {from}: CAST it to {to}",
        field.name()
    )))
}

fn fits(from: &DataType, to: &DataType) -> bool {
    use DataType as D;
    let number =
        |t: &DataType| matches!(t, D::Int32 | D::Int64 | D::Float32 | D::Float64 | D::Decimal128(_, _));
    match (from, to) {
        (from, to) if from == to => true,
        (from, to) if number(from) && number(to) => true,
        (D::Timestamp(_, _) | D::Date32, D::Timestamp(_, _)) => true,
        (D::List(from), D::List(to)) => fits(from.data_type(), to.data_type()),
        (D::Struct(from), D::Struct(to)) => {
            from.len() == to.len()
                && from
                    .iter()
                    .zip(to)
                    .all(|(f, t)| f.name() == t.name() && fits(f.data_type(), t.data_type()))
        }
        (D::Binary, D::FixedSizeBinary(_)) | (D::FixedSizeBinary(_), D::Binary) => true,
        _ => false,
    }
}

/// The same values as `to`. A time without zone is UTC.
///
/// # Errors
/// `Invalid` where a value would overflow, or lose a fraction, digits or nanoseconds.
pub(crate) fn lossless(array: &ArrayRef, to: &DataType) -> Result<ArrayRef> {
    let from = array.data_type();
    if from == to {
        return Ok(Arc::clone(array));
    }
    if from == &DataType::Null {
        return Ok(new_null_array(to, array.len()));
    }
    let mut cast = cast_with_options(array, to, &STRICT)?;
    if cast.data_type() != to {
        // A list of fixed size keeps the name of its items; a list takes on the name that it is given.
        cast = cast_with_options(&cast, to, &STRICT)?;
    }
    if !rounds(from, to) {
        return Ok(cast);
    }
    let back = cast_with_options(&cast, from, &STRICT)?;
    let changed = (0..array.len()).find(|&row| back.slice(row, 1).to_data() != array.slice(row, 1).to_data());
    match changed {
        None => Ok(cast),
        Some(row) => {
            let value = array_value_to_string(array, row)?;
            Err(Error::invalid(format!("{value} does not fit {to} without loss: round or CAST it first")))
        }
    }
}

/// Whether a cast may change a value without failing. Rounding to the nearest float of a column of floats is what
/// such a column is for.
fn rounds(from: &DataType, to: &DataType) -> bool {
    use DataType as D;
    match (from, to) {
        (D::Float16 | D::Float32 | D::Float64 | D::Decimal128(_, _), D::Float32 | D::Float64) => false,
        (D::Dictionary(_, from), to) => rounds(from, to),
        (from, to) if from.is_numeric() || to.is_numeric() => true,
        (D::Timestamp(from, _), D::Timestamp(to, _)) => from != to,
        (D::Time32(_) | D::Time64(_) | D::Date64, _) => true,
        (from, to) => from.is_nested() || to.is_nested(),
    }
}

#[cfg(test)]
mod tests;
