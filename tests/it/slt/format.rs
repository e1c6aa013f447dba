//! Values as slt files show them, after DataFusion's own: NULL, (empty), ISO times, floats without noise.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Float32Type, Float64Type, Schema};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use sqllogictest::ColumnType;

/// One letter per column: B boolean, I integer, R float or decimal, T text, D date or time, P timestamp, ? anything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Letter(char);

impl ColumnType for Letter {
    fn from_char(value: char) -> Option<Self> {
        "BIRTDP?".contains(value).then_some(Self(value))
    }

    fn to_char(&self) -> char {
        self.0
    }
}

pub(super) fn letters(schema: &Schema) -> Vec<Letter> {
    schema.fields().iter().map(|field| Letter(letter(field.data_type()))).collect()
}

fn letter(data_type: &DataType) -> char {
    match data_type {
        DataType::Boolean => 'B',
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => 'T',
        DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => 'D',
        DataType::Timestamp(..) => 'P',
        DataType::Decimal128(..) | DataType::Decimal256(..) => 'R',
        other if other.is_integer() => 'I',
        other if other.is_floating() => 'R',
        _ => '?',
    }
}

/// Rows of a batch; a row whose last cell has several lines (a plan) becomes several.
pub(super) fn rows(batch: &RecordBatch) -> Result<Vec<Vec<String>>, ArrowError> {
    let options = FormatOptions::new().with_null("NULL");
    let formatters = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column.as_ref(), &options))
        .collect::<Result<Vec<_>, _>>()?;
    let mut rows = Vec::new();
    for row in 0..batch.num_rows() {
        let mut cells = Vec::with_capacity(formatters.len());
        for (column, formatter) in batch.columns().iter().zip(&formatters) {
            cells.push(cell(column.as_ref(), row, formatter)?);
        }
        expand(cells, &mut rows);
    }
    Ok(rows)
}

fn cell(column: &dyn Array, row: usize, formatter: &ArrayFormatter<'_>) -> Result<String, ArrowError> {
    if column.is_null(row) {
        return Ok("NULL".to_owned());
    }
    Ok(match column.data_type() {
        DataType::Float64 => float(column.as_primitive::<Float64Type>().value(row)),
        DataType::Float32 => float32(column.as_primitive::<Float32Type>().value(row)),
        _ => match formatter.value(row).try_to_string()? {
            empty if empty.is_empty() => "(empty)".to_owned(),
            text => text,
        },
    })
}

/// At most 12 digits behind the point, so that the order of a sum does not show.
fn float(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string();
    }
    if value.abs() >= 1e15 || (value != 0.0 && value.abs() < 1e-6) {
        return format!("{value:e}");
    }
    let text = format!("{value:.12}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn float32(value: f32) -> String {
    value.to_string()
}

fn expand(mut cells: Vec<String>, rows: &mut Vec<Vec<String>>) {
    let many = cells.last().filter(|cell| cell.contains('\n')).cloned();
    let Some(text) = many else {
        rows.push(cells);
        return;
    };
    cells.pop();
    rows.push(cells);
    for (number, line) in text.trim_end().lines().enumerate() {
        let content = line.trim_start();
        let indentation = "-".repeat(line.len() - content.len());
        rows.push(vec![format!("{:02}){indentation}{content}", number + 1)]);
    }
}

#[test]
fn values_are_shown_without_noise() {
    assert_eq!(float(0.1 + 0.2), "0.3");
    assert_eq!(float(-2.0), "-2");
    assert_eq!(float(1e300), "1e300");
    assert_eq!(float(f64::NAN), "NaN");
    let mut rows = Vec::new();
    expand(vec!["plan".to_owned(), "Sort\n  Scan\n".to_owned()], &mut rows);
    assert_eq!(rows, [vec!["plan"], vec!["01)Sort"], vec!["02)--Scan"]]);
}
