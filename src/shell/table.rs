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
        let names: Vec<String> = schema.fields().iter().map(|field| one_line(field.name())).collect();
        let right = schema.fields().iter().map(|field| field.data_type().is_numeric()).collect();
        let widths = names.iter().map(|name| name.width()).collect();
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
                formatters.iter().map(|formatter| Ok(one_line(&formatter.value(row).try_to_string()?)));
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
                *width = (*width).max(cell.width());
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

fn write_row(
    out: &mut impl Write,
    cells: &[String],
    widths: &[usize],
    right: &[bool],
) -> std::io::Result<()> {
    let last = cells.len().saturating_sub(1);
    for (column, cell) in cells.iter().enumerate() {
        let padding = widths[column].saturating_sub(cell.width());
        let separator = if column == 0 { " " } else { " | " };
        match (right[column], column == last) {
            (true, _) => write!(out, "{separator}{:padding$}{cell}", "")?,
            (false, true) => write!(out, "{separator}{cell}")?,
            (false, false) => write!(out, "{separator}{cell}{:padding$}", "")?,
        }
    }
    writeln!(out)
}

/// Line breaks and the like would break the table.
fn one_line(text: &str) -> String {
    if !text.contains(char::is_control) {
        return text.to_owned();
    }
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    use arrow::array::{ArrayRef, Float64Array, StringArray};

    #[test]
    fn wide_characters_and_line_breaks_keep_the_columns() {
        let names: ArrayRef = Arc::new(StringArray::from(vec!["日本", "a\nb", "é"]));
        let values: ArrayRef = Arc::new(Float64Array::from(vec![1.5, -20.25, 3.0]));
        let batch = RecordBatch::try_from_iter([("name", names), ("value", values)]).unwrap();
        let mut table = TableWriter::new(&batch.schema(), Vec::new());
        assert!(table.write(&batch).is_ok());
        let Ok(bytes) = table.finish() else { panic!("memory takes everything") };
        let expected = " name |  value\n------+--------\n 日本 |    1.5\n a\\nb | -20.25\n é    |    3.0\n";
        assert_eq!(String::from_utf8(bytes).unwrap(), expected);
    }
}
