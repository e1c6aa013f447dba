//! Record batches as gRPC messages whose body is the batches' own memory, but for small buffers and those that a slice
//! leaves unaligned.
//!
//! ```text
//! 0 | length of all that follows: 4 | FlightData { data_header = 2: the IPC message, data_body = 1000: … }
//!                                                    shared buffers, each padded to 64 bytes ───────┘
//! ```
//!
//! Small buffers and padding are copied together: a part of its own costs more than they do.

use arrow::array::{Array, ArrayData, ArrayRef, RecordBatch, downcast_primitive_array};
use arrow::buffer::Buffer;
use arrow::datatypes::{ArrowNativeType, DataType};
use arrow::ipc::writer::{CompressionContext, DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
use arrow::ipc::{self, MessageBuilder, MessageHeader, MetadataVersion, RecordBatchBuilder};
use arrow_flight::FlightData;
use bytes::{BufMut, Bytes, BytesMut};
use flatbuffers::FlatBufferBuilder;
use prost::encoding::{WireType, encode_key, encode_varint};

use super::stream::bytes_of;
use crate::error::{Error, Result};

/// Buffers in a message begin at multiples of this.
const ALIGNMENT: usize = 64;
/// Buffers of at least so many bytes are shared, smaller ones copied.
const SHARED_BYTES_MIN: usize = 4096;

/// A body that begins with so little goes with the head: a small answer is one part.
const COPIED_BYTES_MAX: usize = 16 * 1024;

/// Fields of `FlightData`.
const DATA_HEADER: u32 = 2;
const APP_METADATA: u32 = 3;
const DATA_BODY: u32 = 1000;

/// One gRPC message, ready to be sent, in parts.
#[derive(Debug, Clone)]
pub(super) struct Message(Vec<Bytes>);

impl Message {
    /// The parts, in order.
    pub(super) fn into_parts(self) -> std::vec::IntoIter<Bytes> {
        self.0.into_iter()
    }

    fn new(
        header: &[u8],
        app_metadata: &[u8],
        body: impl IntoIterator<Item = Bytes>,
        length: usize,
    ) -> Result<Self> {
        let copied = length.min(COPIED_BYTES_MAX);
        let mut head = BytesMut::with_capacity(header.len() + app_metadata.len() + copied + 32);
        head.put_bytes(0, 5);
        for (tag, field) in [(DATA_HEADER, header), (APP_METADATA, app_metadata)] {
            if !field.is_empty() {
                encode_key(tag, WireType::LengthDelimited, &mut head);
                encode_varint(field.len() as u64, &mut head);
                head.put_slice(field);
            }
        }
        encode_key(DATA_BODY, WireType::LengthDelimited, &mut head);
        encode_varint(length as u64, &mut head);
        let all = u32::try_from(head.len() - 5 + length).map_err(|_| {
            Error::exhausted(format!(
                "one row of {length} bytes cannot be sent: a gRPC message ends at 4 GiB"
            ))
        })?;
        head[1..5].copy_from_slice(&all.to_be_bytes());
        let mut body = body.into_iter().peekable();
        while let Some(part) = body.next_if(|part| part.len() < COPIED_BYTES_MAX) {
            head.put_slice(&part);
        }
        Ok(Self([head.freeze()].into_iter().chain(body).collect()))
    }

    /// The rows of a batch, with what goes along with them.
    ///
    /// # Errors
    /// `Exhausted` where they exceed what a message may hold.
    pub(super) fn of_batch(batch: &RecordBatch, app_metadata: &[u8]) -> Result<Self> {
        if !batch.schema_ref().fields().iter().all(|field| is_flat(field.data_type())) {
            let (options, mut context) = (IpcWriteOptions::default(), CompressionContext::default());
            return Self::copied(batch, app_metadata, &options, &mut context);
        }
        let mut body = Body::for_columns(batch.columns());
        let mut nodes = Vec::with_capacity(batch.num_columns());
        for column in batch.columns() {
            nodes.push(ipc::FieldNode::new(column.len() as i64, column.null_count() as i64));
            body.push_column(column);
        }
        let (parts, buffers, length) = body.finish();
        Self::new(&header(batch.num_rows(), &nodes, &buffers, length), app_metadata, parts, length)
    }

    /// The rows of any batch, copied as Arrow's writer does it: those with columns that have children, and those that
    /// are compressed. No dictionaries leave the house, so one message is all there is.
    pub(super) fn copied(
        batch: &RecordBatch,
        app_metadata: &[u8],
        options: &IpcWriteOptions,
        context: &mut CompressionContext,
    ) -> Result<Self> {
        let mut tracker = DictionaryTracker::new(false);
        let (_, encoded) = IpcDataGenerator::default().encode(batch, &mut tracker, options, context)?;
        let length = encoded.arrow_data.len();
        Self::new(&encoded.ipc_message, app_metadata, [encoded.arrow_data.into()], length)
    }
}

impl TryFrom<FlightData> for Message {
    type Error = Error;

    fn try_from(data: FlightData) -> Result<Self> {
        let length = data.data_body.len();
        Self::new(&data.data_header, &data.app_metadata, [data.data_body], length)
    }
}

/// A column without children.
fn is_flat(data_type: &DataType) -> bool {
    data_type.primitive_width().is_some() || matches!(data_type, DataType::Boolean) || is_text(data_type)
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::Binary | DataType::LargeUtf8 | DataType::LargeBinary)
}

/// The IPC message that describes a body.
fn header(rows: usize, nodes: &[ipc::FieldNode], buffers: &[ipc::Buffer], length: usize) -> Vec<u8> {
    let mut builder = FlatBufferBuilder::with_capacity(256 + 16 * (nodes.len() + buffers.len()));
    let buffers = builder.create_vector(buffers);
    let nodes = builder.create_vector(nodes);
    let mut batch = RecordBatchBuilder::new(&mut builder);
    batch.add_length(rows as i64);
    batch.add_nodes(nodes);
    batch.add_buffers(buffers);
    let batch = batch.finish().as_union_value();
    let mut message = MessageBuilder::new(&mut builder);
    message.add_version(MetadataVersion::V5);
    message.add_header_type(MessageHeader::RecordBatch);
    message.add_bodyLength(length as i64);
    message.add_header(batch);
    let message = message.finish();
    builder.finish(message, None);
    builder.finished_data().to_vec()
}

/// The buffers of a batch, one after the other.
#[derive(Debug, Default)]
struct Body {
    parts: Vec<Bytes>,
    /// Small buffers and padding that are not among the parts yet.
    small: BytesMut,
    buffers: Vec<ipc::Buffer>,
    length: usize,
}

/// Arrow's memory as that of `Bytes`.
struct Shared(Buffer);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl Body {
    /// With room for columns whose buffers are small.
    fn for_columns(columns: &[ArrayRef]) -> Self {
        let small = columns.iter().map(bytes_of).filter(|bytes| *bytes < SHARED_BYTES_MIN);
        Self {
            small: BytesMut::with_capacity(small.map(|bytes| bytes + ALIGNMENT).sum()),
            buffers: Vec::with_capacity(columns.len() * 2),
            ..Self::default()
        }
    }

    /// A flat column; numbers without a detour.
    fn push_column(&mut self, column: &ArrayRef) {
        downcast_primitive_array!(
            column => {
                match column.nulls() {
                    Some(nulls) if nulls.null_count() > 0 => self.push(&nulls.inner().sliced()),
                    _ => self.push_nothing(),
                }
                self.push(column.values().inner());
            },
            _ => self.push_array(&column.to_data())
        )
    }

    /// A flat column.
    fn push_array(&mut self, data: &ArrayData) {
        match data.nulls() {
            Some(nulls) if nulls.null_count() > 0 => self.push(&nulls.inner().sliced()),
            _ => self.push_nothing(),
        }
        match data.data_type() {
            DataType::Boolean => self.push(&data.buffers()[0].bit_slice(data.offset(), data.len())),
            DataType::Utf8 | DataType::Binary => self.push_text::<i32>(data),
            DataType::LargeUtf8 | DataType::LargeBinary => self.push_text::<i64>(data),
            fixed => {
                let width = fixed.primitive_width().unwrap_or_default();
                self.push(&data.buffers()[0].slice_with_length(data.offset() * width, data.len() * width));
            }
        }
    }

    /// Offsets from 0 on, and the bytes between the first and the last.
    fn push_text<O: ArrowNativeType + std::ops::Sub<Output = O>>(&mut self, data: &ArrayData) {
        if data.is_empty() {
            self.push_nothing();
            self.push_nothing();
            return;
        }
        let offsets = &data.buffer::<O>(0)[..=data.len()];
        let (first, last) = (offsets[0], offsets[data.len()]);
        self.push(&match first.as_usize() {
            0 => {
                let (from, length) = (data.offset() * size_of::<O>(), size_of_val(offsets));
                data.buffers()[0].slice_with_length(from, length)
            }
            _ => offsets.iter().map(|offset| *offset - first).collect::<Vec<O>>().into(),
        });
        let length = last.as_usize() - first.as_usize();
        self.push(&data.buffers()[1].slice_with_length(first.as_usize(), length));
    }

    fn push_nothing(&mut self) {
        self.buffers.push(ipc::Buffer::new(self.length as i64, 0));
    }

    fn push(&mut self, buffer: &Buffer) {
        let (length, padding) = (buffer.len(), buffer.len().next_multiple_of(ALIGNMENT) - buffer.len());
        self.buffers.push(ipc::Buffer::new(self.length as i64, length as i64));
        if length < SHARED_BYTES_MIN {
            self.small.put_slice(buffer);
        } else {
            self.end_small();
            self.parts.push(Bytes::from_owner(Shared(buffer.clone())));
        }
        self.small.put_bytes(0, padding);
        self.length += length + padding;
    }

    fn end_small(&mut self) {
        if !self.small.is_empty() {
            self.parts.push(self.small.split().freeze());
        }
    }

    fn finish(mut self) -> (Vec<Bytes>, Vec<ipc::Buffer>, usize) {
        self.end_small();
        (self.parts, self.buffers, self.length)
    }
}
