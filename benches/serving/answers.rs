//! Checks answers at a cost that leaves the machine to the server: by their headers, without making arrays of them.

use arrow::datatypes::{DataType, Schema};
use arrow::ipc::{self, convert::fb_to_schema, root_as_message};
use arrow_flight::FlightData;
use bytes::Bytes;
use clap::ValueEnum;

use crate::Failure;
use crate::entities::{FEATURES, feature, name};

/// What of an answer must be right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Check {
    /// How many rows it has
    Rows,
    /// And the first feature of each batch's first row, the last of its last row
    Values,
}

/// Knows the schema that answers had so far.
#[derive(Debug)]
pub(crate) struct Checker {
    check: Check,
    schema: Bytes,
    /// Which buffers of a batch hold the first and the last feature.
    features: [usize; 2],
}

impl Checker {
    pub(crate) fn new(check: Check) -> Self {
        Self { check, schema: Bytes::new(), features: [0; 2] }
    }

    /// The message that an answer begins with.
    pub(crate) fn check_schema(&mut self, data: &FlightData) -> Result<(), Failure> {
        if data.data_header == self.schema {
            return Ok(());
        }
        let message = parse(data)?;
        let schema = message.header_as_schema().ok_or("an answer does not begin with its schema")?;
        if self.check == Check::Values {
            let schema = fb_to_schema(schema);
            self.features = [data_buffer(&schema, &name(0))?, data_buffer(&schema, &name(FEATURES - 1))?];
        }
        self.schema = data.data_header.clone();
        Ok(())
    }

    /// How many rows a batch has, which must be those of the first so many of `entities`.
    pub(crate) fn check_batch(&self, data: &FlightData, entities: &[u64]) -> Result<usize, Failure> {
        let message = parse(data)?;
        let batch = message.header_as_record_batch().ok_or("a message is no record batch")?;
        let rows = batch.length() as usize;
        if rows > entities.len() {
            return Err(format!("{rows} rows where {} were expected", entities.len()).into());
        }
        if self.check == Check::Values && rows > 0 {
            let last = rows - 1;
            let [first_buffer, last_buffer] = self.features;
            expect(double(data, &batch, first_buffer, 0)?, feature(entities[0], 0), entities[0])?;
            let expected = feature(entities[last], FEATURES - 1);
            expect(double(data, &batch, last_buffer, last)?, expected, entities[last])?;
        }
        Ok(rows)
    }
}

/// The message that a header holds.
pub(crate) fn parse(data: &FlightData) -> Result<ipc::Message<'_>, Failure> {
    Ok(root_as_message(&data.data_header).map_err(|error| format!("not an IPC message: {error}"))?)
}

fn expect(found: f64, expected: f64, entity: u64) -> Result<(), Failure> {
    if found.to_bits() != expected.to_bits() {
        return Err(format!("entity {entity} has {expected}, the answer says {found}").into());
    }
    Ok(())
}

/// The number of the buffer with the values of a column of doubles.
fn data_buffer(schema: &Schema, name: &str) -> Result<usize, Failure> {
    let mut buffers = 0;
    for field in schema.fields() {
        if field.name() == name {
            let double = *field.data_type() == DataType::Float64;
            return if double { Ok(buffers + 1) } else { Err(format!("{name} is not DOUBLE").into()) };
        }
        buffers += match field.data_type() {
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary => 3,
            DataType::Boolean | DataType::Dictionary(..) => 2,
            flat if flat.primitive_width().is_some() => 2,
            other => return Err(format!("{}: {other} is not among what answers hold", field.name()).into()),
        };
    }
    Err(format!("no column {name}").into())
}

fn double(
    data: &FlightData,
    batch: &ipc::RecordBatch<'_>,
    buffer: usize,
    row: usize,
) -> Result<f64, Failure> {
    let buffers = batch.buffers().ok_or("a batch has no buffers")?;
    if buffer >= buffers.len() {
        return Err("a batch has fewer buffers than its schema says".into());
    }
    let start = buffers.get(buffer).offset() as usize + row * 8;
    let bytes = data.data_body.get(start..start + 8).ok_or("a batch ends before its buffers do")?;
    Ok(f64::from_le_bytes(bytes.try_into()?))
}
