//! Results in the format asked for, row batch by row batch.

use std::io::Write;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::csv;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow::json::LineDelimitedWriter;
use arrow::json::writer::{LineDelimited, WriterBuilder};

use super::Failure;
use super::progress::human;
use super::table::TableWriter;
use crate::config::OutputFormat;
use crate::error::Error;

/// Writes one result.
pub(super) struct Writer<W: Write> {
    format: Format<W>,
    rows: u64,
}

enum Format<W: Write> {
    Table(TableWriter<W>),
    Csv { schema: SchemaRef, writer: Box<csv::Writer<W>> },
    Json(LineDelimitedWriter<W>),
    Arrow(Result<Box<StreamWriter<W>>, Option<ArrowError>>),
}

impl<W: Write> Writer<W> {
    pub(super) fn new(format: OutputFormat, schema: &SchemaRef, out: W) -> Self {
        let format = match format {
            OutputFormat::Table => Format::Table(TableWriter::new(schema, out)),
            OutputFormat::Csv => Format::Csv {
                schema: schema.clone(),
                writer: Box::new(csv::WriterBuilder::new().with_header(true).build(out)),
            },
            OutputFormat::Json => {
                Format::Json(WriterBuilder::new().with_explicit_nulls(true).build::<_, LineDelimited>(out))
            }
            OutputFormat::Arrow => {
                Format::Arrow(StreamWriter::try_new(out, schema).map(Box::new).map_err(Some))
            }
        };
        Self { format, rows: 0 }
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), Failure> {
        self.rows += batch.num_rows() as u64;
        match &mut self.format {
            Format::Table(table) => table.write(batch),
            Format::Csv { writer, .. } => writer.write(batch).map_err(failure),
            Format::Json(writer) => writer.write(batch).map_err(failure),
            Format::Arrow(Ok(writer)) => writer.write(batch).map_err(failure),
            Format::Arrow(Err(error)) => Err(error.take().map_or(Failure::OutputClosed, failure)),
        }
    }

    /// Writes what is still held back; a table says how many rows it has and, if given, the time they took.
    pub(super) fn finish(self, took: Option<Duration>) -> Result<(), Failure> {
        match self.format {
            Format::Table(table) => {
                let mut out = table.finish()?;
                writeln!(out, "({}{})", counted(self.rows), elapsed(took))?;
                out.flush()?;
            }
            Format::Csv { schema, mut writer } => {
                if self.rows == 0 {
                    writer.write(&RecordBatch::new_empty(schema)).map_err(failure)?; // the header
                }
                writer.into_inner().flush()?;
            }
            Format::Json(mut writer) => {
                writer.finish().map_err(failure)?;
                writer.into_inner().flush()?;
            }
            Format::Arrow(Ok(writer)) => writer.into_inner().map_err(failure)?.flush()?,
            Format::Arrow(Err(error)) => return Err(error.map_or(Failure::OutputClosed, failure)),
        }
        Ok(())
    }
}

fn counted(rows: u64) -> String {
    if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") }
}

/// `, 3 rows`, or nothing when the number is not known.
pub(super) fn affected(rows: i64) -> String {
    u64::try_from(rows).map_or_else(|_| String::new(), |rows| format!(", {}", counted(rows)))
}

/// `, 12.3 ms`, or nothing.
pub(super) fn elapsed(took: Option<Duration>) -> String {
    took.map_or_else(String::new, |took| format!(", {}", human(took)))
}

/// arrow's writers hide what the output said inside their own error.
fn failure(error: ArrowError) -> Failure {
    match error {
        ArrowError::IoError(_, error) => error.into(),
        ArrowError::CsvError(message) if message.contains("Broken pipe") => Failure::OutputClosed,
        other => Failure::Error(Error::unsupported(format!(
            "this result cannot be written in that format: {other}; try another --format"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    fn written(format: OutputFormat, batches: &[RecordBatch], schema: &SchemaRef) -> String {
        let mut memory = io::Cursor::new(Vec::new());
        let mut writer = Writer::new(format, schema, &mut memory);
        for batch in batches {
            assert!(writer.write(batch).is_ok());
        }
        assert!(writer.finish(None).is_ok());
        String::from_utf8_lossy(&memory.into_inner()).into_owned()
    }

    fn batch() -> RecordBatch {
        let ids: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
        let names: ArrayRef = Arc::new(StringArray::from(vec![Some("a,\"b\""), None]));
        RecordBatch::try_from_iter([("id", ids), ("name", names)]).unwrap()
    }

    #[test]
    fn formats() {
        let (batch, schema) = (batch(), batch().schema());
        let batches = [batch.clone()];
        assert_eq!(written(OutputFormat::Csv, &batches, &schema), "id,name\n1,\"a,\"\"b\"\"\"\n,\n");
        assert_eq!(
            written(OutputFormat::Json, &batches, &schema),
            "{\"id\":1,\"name\":\"a,\\\"b\\\"\"}\n{\"id\":null,\"name\":null}\n"
        );
        assert_eq!(
            written(OutputFormat::Table, &batches, &schema),
            "   id | name\n------+-------\n    1 | a,\"b\"\n NULL | NULL\n(2 rows)\n"
        );
    }

    #[test]
    fn an_empty_result_still_names_its_columns() {
        let schema = batch().schema();
        assert_eq!(written(OutputFormat::Csv, &[], &schema), "id,name\n");
        assert_eq!(written(OutputFormat::Json, &[], &schema), "");
        assert_eq!(written(OutputFormat::Table, &[], &schema), " id | name\n----+------\n(0 rows)\n");
    }

    #[test]
    fn a_closed_pipe_is_told_from_other_failures() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        for format in [OutputFormat::Table, OutputFormat::Csv, OutputFormat::Json, OutputFormat::Arrow] {
            let mut writer = Writer::new(format, &batch().schema(), Closed);
            let result = writer.write(&batch()).and_then(|()| writer.finish(None));
            assert!(matches!(result, Err(Failure::OutputClosed)), "{format:?}");
        }
    }
}
