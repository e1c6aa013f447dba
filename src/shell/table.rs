//! Aligned columns for people.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use unicode_width::UnicodeWidthStr;

use super::Failure;
use crate::error::Error;

/// Column widths follow this many rows at a time, so that any result is written in bounded memory.
const BLOCK_ROWS: usize = 10_000;
const NULL: &str = "NULL";

/// Writes rows under a header; NULL is visible, numbers stand to the right.
pub(super) struct TableWriter<W> {
    out: W,
    names: Vec<String>,
    right: Vec<bool>,
    widths: Vec<usize>,
    waiting: Vec<Vec<String>>,
    header_written: bool,
}

impl<W: Write> TableWriter<W> {
    pub(super) fn new(schema: &SchemaRef, out: W) -> Self {
        let names: Vec<String> = schema.fields().iter().map(|field| printable(field.name())).collect();
        let right = schema.fields().iter().map(|field| field.data_type().is_numeric()).collect();
        let widths = names.iter().map(|name| width(name)).collect();
        Self { out, names, right, widths, waiting: Vec::new(), header_written: false }
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        let options = FormatOptions::new().with_null(NULL);
        let formatters = batch
            .columns()
            .iter()
            .map(|column: &Arc<dyn Array>| ArrayFormatter::try_new(column.as_ref(), &options))
            .collect::<Result<Vec<_>, _>>()
            .map_err(Error::from)?;
        for row in 0..batch.num_rows() {
            let cells =
                formatters.iter().map(|formatter| Ok(printable(&formatter.value(row).try_to_string()?)));
            let cells: Vec<String> =
                cells.collect::<Result<_, arrow::error::ArrowError>>().map_err(Error::from)?;
            self.waiting.push(cells);
            if self.waiting.len() == BLOCK_ROWS {
                self.write_waiting()?;
            }
        }
        Ok(())
    }

    /// Writes what is left and gives the output back.
    pub(super) fn finish(mut self) -> Result<W, Failure> {
        self.write_waiting()?;
        Ok(self.out)
    }

    fn write_waiting(&mut self) -> Result<(), Failure> {
        let rows = std::mem::take(&mut self.waiting);
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(self::width(cell));
            }
        }
        if !self.header_written {
            self.header_written = true;
            write_row(&mut self.out, &self.names, &self.widths, &self.right)?;
            let rule: Vec<String> = self.widths.iter().map(|width| "-".repeat(width + 2)).collect();
            writeln!(self.out, "{}", rule.join("+"))?;
        }
        for row in &rows {
            write_row(&mut self.out, row, &self.widths, &self.right)?;
        }
        Ok(())
    }
}

/// Writes a row, in as many lines as its highest cell has.
fn write_row(
    out: &mut impl Write,
    cells: &[String],
    widths: &[usize],
    right: &[bool],
) -> std::io::Result<()> {
    let last = cells.len().saturating_sub(1);
    let height = cells.iter().map(|cell| cell.split('\n').count()).max().unwrap_or(1);
    let mut cells: Vec<_> = cells.iter().map(|cell| cell.split('\n')).collect();
    for _ in 0..height {
        for (column, lines) in cells.iter_mut().enumerate() {
            let line = lines.next().unwrap_or_default();
            let padding = widths[column].saturating_sub(line.width());
            let separator = if column == 0 { " " } else { " | " };
            match (right[column], column == last) {
                (true, _) => write!(out, "{separator}{:padding$}{line}", "")?,
                (false, true) => write!(out, "{separator}{line}")?,
                (false, false) => write!(out, "{separator}{line}{:padding$}", "")?,
            }
        }
        writeln!(out)?;
    }
    Ok(())
}

/// The width of a cell: its widest line's.
fn width(cell: &str) -> usize {
    cell.split('\n').map(UnicodeWidthStr::width).max().unwrap_or_default()
}

/// A cell's text. It keeps its line breaks but for the last; other control characters would break the table.
fn printable(text: &str) -> String {
    let text = text.strip_suffix('\n').unwrap_or(text);
    let breaks = |c: char| c.is_control() && c != '\n';
    if !text.contains(breaks) {
        return text.to_owned();
    }
    text.chars().map(|c| if breaks(c) { c.escape_default().to_string() } else { c.to_string() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use arrow::array::{ArrayRef, Float64Array, StringArray};

    fn written(batch: &RecordBatch) -> String {
        let mut table = TableWriter::new(&batch.schema(), Vec::new());
        assert!(table.write(batch).is_ok());
        let Ok(bytes) = table.finish() else { panic!("memory takes everything") };
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn wide_characters_and_control_characters_keep_the_columns() {
        let names: ArrayRef = Arc::new(StringArray::from(vec!["日本", "a\tb", "é"]));
        let values: ArrayRef = Arc::new(Float64Array::from(vec![1.5, -20.25, 3.0]));
        let batch = RecordBatch::try_from_iter([("name", names), ("value", values)]).unwrap();
        let expected = " name |  value\n------+--------\n 日本 |    1.5\n a\\tb | -20.25\n é    |    3.0\n";
        assert_eq!(written(&batch), expected);
    }

    #[test]
    fn a_cell_of_several_lines_stays_in_its_column() {
        let kinds: ArrayRef = Arc::new(StringArray::from(vec!["logical", "physical"]));
        let plans: ArrayRef = Arc::new(StringArray::from(vec!["Sort\n  Scan: t\n", "Scan"]));
        let rows: ArrayRef = Arc::new(Float64Array::from(vec![1.0, 2.0]));
        let batch = RecordBatch::try_from_iter([("kind", kinds), ("plan", plans), ("rows", rows)]).unwrap();
        let expected = [
            " kind     | plan      | rows",
            "----------+-----------+------",
            " logical  | Sort      |  1.0",
            "          |   Scan: t |     ",
            " physical | Scan      |  2.0",
            "",
        ];
        assert_eq!(written(&batch), expected.join("\n"));
    }
}
