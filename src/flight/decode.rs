//! Rows that clients send, decoded. Arrow's reader takes what a message says of its buffers for true, and panics where it
//! is not; so that is checked before, and a panic over something else is the end of the one stream.

use std::io::{self, Read};
use std::panic::AssertUnwindSafe;

use arrow::array::RecordBatch;
use arrow::ipc::{CompressionType, RecordBatch as BatchHeader, root_as_message};
use arrow_flight::FlightData;
use arrow_flight::decode::{DecodedFlightData, DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use bytes::Bytes;
use futures::FutureExt;
use futures::stream::{self, BoxStream, Stream, StreamExt, TryStreamExt};
use lz4_flex::frame::FrameDecoder;
use tonic::Streaming;

use super::status::from_decoder;
use crate::error::{Error, Result};
use crate::ingest::bytes_of;

/// What a compressed batch may grow to.
const UNCOMPRESSED_BYTES_MAX: u64 = 1 << 30;

/// The schema and the batches of a client's stream.
pub(super) fn decoded(
    messages: impl Stream<Item = Result<FlightData, FlightError>> + Send + 'static,
) -> BoxStream<'static, Result<DecodedFlightData>> {
    let checked = messages.map(|message| {
        let message = message?;
        check(&message).map_err(|why| FlightError::ExternalError(Box::new(why)))?;
        Ok(message)
    });
    let decoder = AssertUnwindSafe(FlightDataDecoder::new(checked)).catch_unwind();
    let decoded = decoder.map(|decoded| match decoded {
        Ok(decoded) => decoded.map_err(from_decoder),
        Err(_) => Err(Error::invalid("the data sent is not an Arrow stream: it cannot be decoded")),
    });
    decoded.boxed()
}

/// So many batches that have come together are taken together, and no more once they take so much.
const TOGETHER_MAX: usize = 64;
const TOGETHER_BYTES_MAX: usize = 1 << 20;

/// A batch, and the metadata that came with it.
pub(super) struct Tagged {
    pub(super) rows: RecordBatch,
    pub(super) metadata: Bytes,
    /// What the rows take.
    pub(super) bytes: usize,
}

/// The batches of a client's stream behind the schema that it begins with.
pub(super) fn tagged(first: FlightData, rest: Streaming<FlightData>) -> BoxStream<'static, Result<Tagged>> {
    // The descriptor, and metadata, may come in messages that hold nothing else.
    let messages = stream::iter([Ok(first)]).chain(rest.map_err(FlightError::from));
    let messages = messages.try_filter(|message| std::future::ready(!message.data_header.is_empty()));
    let mut begun = false;
    let batches = decoded(messages).try_filter_map(move |message| {
        let batch = match message.payload {
            DecodedPayload::None => Ok(None),
            DecodedPayload::Schema(_) if !std::mem::replace(&mut begun, true) => Ok(None),
            DecodedPayload::Schema(_) => {
                Err(Error::invalid("the schema changed in the middle of the stream"))
            }
            DecodedPayload::RecordBatch(rows) => {
                let bytes = bytes_of(&rows);
                Ok(Some(Tagged { rows, metadata: message.inner.app_metadata, bytes }))
            }
        };
        std::future::ready(batch)
    });
    batches.boxed()
}

/// The next of the batches, and those that are there behind it.
pub(super) fn together<E: Send + 'static>(
    batches: impl Stream<Item = Result<Tagged, E>> + Send + Unpin + 'static,
) -> BoxStream<'static, Vec<Result<Tagged, E>>> {
    let together = stream::unfold(batches.fuse(), |mut batches| async move {
        let mut together = vec![batches.next().await?];
        let mut bytes = 0;
        loop {
            bytes += together.last().and_then(|last| last.as_ref().ok()).map_or(0, |last| last.bytes);
            if together.len() == TOGETHER_MAX || bytes > TOGETHER_BYTES_MAX {
                break;
            }
            // Whoever waits for the next asks again.
            let Some(Some(next)) = batches.next().now_or_never() else { break };
            together.push(next);
        }
        Some((together, batches))
    });
    together.boxed()
}

/// Whether the buffers of a batch lie within its body.
fn check(message: &FlightData) -> Result<()> {
    // What is no message the decoder refuses by itself.
    let Ok(header) = root_as_message(&message.data_header) else { return Ok(()) };
    if let Some(batch) = header.header_as_record_batch() {
        return check_batch(&batch, &message.data_body);
    }
    match header.header_as_dictionary_batch().and_then(|dictionary| dictionary.data()) {
        Some(batch) => check_batch(&batch, &message.data_body),
        None => Ok(()),
    }
}

fn check_batch(batch: &BatchHeader<'_>, body: &[u8]) -> Result<()> {
    let bad = |what: &str| Error::invalid(format!("the data sent is not an Arrow stream: {what}"));
    if batch.length() < 0 || batch.nodes().into_iter().flatten().any(|n| n.length() < 0 || n.null_count() < 0)
    {
        return Err(bad("a batch of less than no rows"));
    }
    let compression = batch.compression().map(|compression| compression.codec());
    let mut uncompressed = 0_u64;
    for buffer in batch.buffers().into_iter().flatten() {
        let outside = || bad("a buffer of a batch is not within its body");
        let (start, length) = usize::try_from(buffer.offset())
            .ok()
            .zip(usize::try_from(buffer.length()).ok())
            .ok_or_else(outside)?;
        let end = start.checked_add(length).ok_or_else(outside)?;
        let bytes = body.get(start..end).ok_or_else(outside)?;
        if matches!(compression, Some(CompressionType::LZ4_FRAME | CompressionType::ZSTD))
            && !bytes.is_empty()
        {
            let (size, _) =
                bytes.split_first_chunk::<8>().ok_or_else(|| bad("a compressed buffer without a length"))?;
            let Ok(size) = u64::try_from(i64::from_le_bytes(*size)) else { continue }; // as it is
            uncompressed = uncompressed.saturating_add(size);
            // Arrow reads such a frame to its end, whatever it was said to hold.
            if uncompressed <= UNCOMPRESSED_BYTES_MAX && compression == Some(CompressionType::LZ4_FRAME) {
                let mut frame = FrameDecoder::new(&bytes[8..]).take(size.saturating_add(1));
                let held = io::copy(&mut frame, &mut io::sink());
                if held.is_ok_and(|held| held > size) {
                    return Err(bad("a compressed buffer holds more than it says"));
                }
            }
        }
    }
    if uncompressed > UNCOMPRESSED_BYTES_MAX {
        return Err(Error::exhausted(format!(
            "a compressed batch would take {uncompressed} bytes and may take {UNCOMPRESSED_BYTES_MAX}: send smaller ones"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    use crate::error::ErrorKind;
    use arrow::array::{ArrayRef, Int64Array};
    use arrow::ipc::writer::IpcWriteOptions;
    use arrow_flight::encode::FlightDataEncoderBuilder;

    #[tokio::test]
    async fn a_compressed_buffer_that_holds_more_than_it_says_is_refused() {
        let zeros: ArrayRef = Arc::new(Int64Array::from(vec![0; 100_000]));
        let batch = RecordBatch::try_from_iter([("n", zeros)]).unwrap();
        for codec in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
            let options = IpcWriteOptions::default().try_with_compression(Some(codec)).unwrap();
            let encoder = FlightDataEncoderBuilder::new().with_options(options);
            let honest: Vec<FlightData> =
                encoder.build(stream::iter([Ok(batch.clone())])).try_collect().await.unwrap();
            let mut lying = honest.clone();
            let mut body = lying[1].data_body.to_vec();
            let said = i64::from_le_bytes(*body.first_chunk().unwrap());
            assert_eq!(said, 800_000, "the first buffer is that of the values");
            body[..8].copy_from_slice(&1000_i64.to_le_bytes());
            lying[1].data_body = body.into();
            let read = |messages: Vec<FlightData>| {
                decoded(stream::iter(messages.into_iter().map(Ok))).try_collect::<Vec<_>>()
            };
            assert_eq!(read(honest).await.unwrap().len(), 2);
            assert_eq!(read(lying).await.unwrap_err().kind(), ErrorKind::Invalid);
        }
    }
}
