//! Record batches as Flight messages: as many at a time as the client takes, each of a size that it accepts.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::{FlightData, SchemaAsIpc};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use moka::sync::Cache;
use tonic::Status;

use super::compression::Compressor;
use super::message::Message;
use crate::error::{Error, Result};

/// Above this, a batch is halved. gRPC clients accept 4 MiB (most) or 16 MiB (ADBC) by default.
const MESSAGE_BYTES_TARGET: usize = 2 << 20;

/// A stream of answers, or the status that ends it.
pub(super) type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// How many schemas are kept encoded.
const SCHEMAS_MAX: u64 = 256;

/// Turns results into messages. Statements that run again and again have one schema, which is encoded once.
pub(super) struct Encoder {
    /// By the schema's address, which stays its own as long as it is kept here.
    schemas: Cache<usize, (SchemaRef, Message)>,
    /// How the rows of results are compressed, if they are.
    compression: Option<IpcWriteOptions>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { schemas: Cache::new(SCHEMAS_MAX), compression: None }
    }
}

impl Encoder {
    /// The same for an answer that is to be compressed.
    pub(super) fn compressing(&self, compression: IpcWriteOptions) -> Self {
        Self { schemas: self.schemas.clone(), compression: Some(compression) }
    }

    /// The message that opens a stream of batches of this schema.
    pub(super) fn schema(&self, schema: &SchemaRef) -> Result<Message> {
        let address = Arc::as_ptr(schema) as usize;
        if let Some((_, message)) = self.schemas.get(&address) {
            return Ok(message);
        }
        let message: Message =
            FlightData::from(SchemaAsIpc::new(schema, &IpcWriteOptions::default())).try_into()?;
        self.schemas.insert(address, (Arc::clone(schema), message.clone()));
        Ok(message)
    }

    /// Encodes `batches`, whose schema is `schema`. The schema goes first, also when no batch follows.
    pub(super) fn encode(
        &self,
        schema: SchemaRef,
        batches: impl Stream<Item = Result<RecordBatch>> + Send + Unpin + 'static,
    ) -> Answers<Message> {
        let opening = stream::iter([self.schema(&schema)]);
        let pieces = Pieces { batches, waiting: VecDeque::new() };
        let mut compressor = self.compression.clone().map(Compressor::new);
        let messages = pieces.map(move |piece| match &mut compressor {
            None => Message::of_batch(&piece?, &[]),
            Some(compressor) => compressor.message(&piece?),
        });
        opening.chain(messages).map(|message| message.map_err(Status::from)).boxed()
    }
}

/// Halves batches until each piece is small enough, one batch at a time.
struct Pieces<S> {
    batches: S,
    waiting: VecDeque<RecordBatch>,
}

impl<S: Stream<Item = Result<RecordBatch>> + Unpin> Stream for Pieces<S> {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(piece) = self.waiting.pop_front() {
                return Poll::Ready(Some(Ok(piece)));
            }
            match ready!(self.batches.poll_next_unpin(cx)) {
                Some(Ok(batch)) if batch.num_rows() == 0 => {}
                Some(Ok(batch)) => self.waiting = pieces(batch),
                end_or_error => return Poll::Ready(end_or_error),
            }
        }
    }
}

/// The batch in pieces that clients accept; they share its memory.
pub(super) fn pieces(batch: RecordBatch) -> VecDeque<RecordBatch> {
    let mut whole = vec![batch];
    let mut pieces = VecDeque::new();
    while let Some(piece) = whole.pop() {
        let rows = piece.num_rows();
        if rows <= 1 || piece.columns().iter().map(bytes_of).sum::<usize>() <= MESSAGE_BYTES_TARGET {
            pieces.push_back(piece);
        } else {
            whole.push(piece.slice(rows / 2, rows - rows / 2));
            whole.push(piece.slice(0, rows / 2));
        }
    }
    pieces
}

/// The bytes of an array's own rows. Arrow counts all children of a sliced list; here only those of its rows count,
/// as only they are sent.
pub(super) fn bytes_of(array: &Arc<dyn Array>) -> usize {
    if let Some(width) = array.data_type().primitive_width() {
        return array.len() * width;
    }
    let own = array.len() * 8;
    match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            let (start, end) = (list.value_offsets()[0] as usize, list.value_offsets()[list.len()] as usize);
            own + bytes_of(&list.values().slice(start, end - start))
        }
        DataType::LargeList(_) => {
            let list = array.as_list::<i64>();
            let (start, end) = (list.value_offsets()[0] as usize, list.value_offsets()[list.len()] as usize);
            own + bytes_of(&list.values().slice(start, end - start))
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let (start, end) = (map.value_offsets()[0] as usize, map.value_offsets()[map.len()] as usize);
            let entries: Arc<dyn Array> = Arc::new(map.entries().slice(start, end - start));
            own + bytes_of(&entries)
        }
        DataType::FixedSizeList(..) => own + bytes_of(array.as_fixed_size_list().values()),
        DataType::Struct(_) => array.as_struct().columns().iter().map(bytes_of).sum(),
        _ => array.to_data().get_slice_memory_size().unwrap_or_else(|_| array.get_buffer_memory_size()),
    }
}

/// A stream of answers that ends, with an error, when something says stop; `held` lives as long as the stream.
pub(super) struct Stoppable<T, H> {
    answers: Answers<T>,
    stop: Option<BoxFuture<'static, Error>>,
    _held: H,
}

impl<T, H: Unpin> Stoppable<T, H> {
    pub(super) fn new(answers: Answers<T>, stop: BoxFuture<'static, Error>, held: H) -> Self {
        Self { answers, stop: Some(stop), _held: held }
    }
}

impl<T: Send + 'static, H: Unpin> Stream for Stoppable<T, H> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(stop) = &mut self.stop else { return Poll::Ready(None) };
        if let Poll::Ready(error) = stop.as_mut().poll(cx) {
            self.stop = None;
            self.answers = stream::empty().boxed(); // drops the query now, not with the connection
            return Poll::Ready(Some(Err(error.into())));
        }
        self.answers.poll_next_unpin(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use arrow::array::{ArrayRef, Float64Array, Int64Array, ListArray, StringArray};
    use arrow::datatypes::Float64Type;
    use arrow::ipc::CompressionType;
    use arrow_flight::decode::FlightRecordBatchStream;
    use futures::TryStreamExt;
    use prost::Message as _;

    /// The message as a client decodes it.
    fn received(message: Message) -> FlightData {
        let bytes = message.into_parts().flatten().collect::<Vec<u8>>();
        assert_eq!(
            (bytes[0], u32::from_be_bytes(bytes[1..5].try_into().unwrap())),
            (0, bytes.len() as u32 - 5)
        );
        FlightData::decode(&bytes[5..]).unwrap()
    }

    async fn round_trip(batches: Vec<RecordBatch>) -> (Vec<usize>, Vec<RecordBatch>) {
        round_trip_by(&Encoder::default(), batches).await
    }

    async fn round_trip_by(encoder: &Encoder, batches: Vec<RecordBatch>) -> (Vec<usize>, Vec<RecordBatch>) {
        let schema = batches[0].schema();
        let messages: Vec<Message> =
            encoder.encode(schema, stream::iter(batches.into_iter().map(Ok))).try_collect().await.unwrap();
        let messages: Vec<FlightData> = messages.into_iter().map(received).collect();
        let sizes = messages.iter().map(|message| message.data_body.len()).collect();
        let messages = stream::iter(messages.into_iter().map(Ok));
        (sizes, FlightRecordBatchStream::new_from_flight_data(messages).try_collect().await.unwrap())
    }

    fn column(array: impl Array + 'static) -> RecordBatch {
        RecordBatch::try_from_iter([("c", Arc::new(array) as ArrayRef)]).unwrap()
    }

    #[tokio::test]
    async fn messages_stay_within_what_clients_accept() {
        let embedding = vec![Some(0.5); 768];
        let cases = [
            column(Int64Array::from_iter_values(0..3_000_000)),
            column(StringArray::from_iter_values((0..100).map(|row| "x".repeat(row * 2000)))),
            column(ListArray::from_iter_primitive::<Float64Type, _, _>(
                (0..5000).map(|_| Some(embedding.clone())),
            )),
        ];
        for batch in cases {
            let (sizes, batches) = round_trip(vec![batch.clone()]).await;
            assert!(sizes.iter().all(|size| *size <= 4 << 20), "{sizes:?}");
            let sent: usize = sizes.iter().sum();
            assert!(sizes.len() <= 2 + sent / (MESSAGE_BYTES_TARGET / 4), "too small: {sizes:?}");
            let again = arrow::compute::concat_batches(&batch.schema(), &batches).unwrap();
            assert_eq!(again, batch);
        }
    }

    #[tokio::test]
    async fn slices_of_a_large_buffer_are_not_cut_small() {
        let batch = column(Float64Array::from_iter_values((0..1_000_000).map(f64::from)));
        let slices = (0..10).map(|slice| batch.slice(slice * 8192, 8192)).collect();
        assert_eq!(round_trip(slices).await.0.len(), 1 + 10);
    }

    #[tokio::test]
    async fn compressed_messages_are_smaller_and_say_the_same() {
        let numbers = column(Int64Array::from_iter_values((0..100_000).map(|row| row / 100)));
        let texts = column(StringArray::from_iter((0..1000).map(|row| (row % 3 > 0).then_some("the same"))));
        for codec in [CompressionType::LZ4_FRAME, CompressionType::ZSTD] {
            let codec = IpcWriteOptions::default().try_with_compression(Some(codec)).unwrap();
            let encoder = Encoder::default().compressing(codec);
            for batch in [&numbers, &texts] {
                let (plain, _) = round_trip(vec![batch.clone()]).await;
                let (compressed, batches) = round_trip_by(&encoder, vec![batch.clone()]).await;
                assert!(compressed.iter().sum::<usize>() * 3 < plain.iter().sum::<usize>(), "{compressed:?}");
                assert_eq!(batches, std::slice::from_ref(batch));
            }
        }
    }

    #[tokio::test]
    async fn an_empty_result_still_has_a_schema() {
        let (sizes, batches) = round_trip(vec![column(Int64Array::from_iter_values([]))]).await;
        assert_eq!((sizes.len(), batches.len()), (1, 0));
    }

    #[tokio::test]
    async fn a_stopped_stream_ends_with_the_error() {
        let endless = stream::repeat_with(|| Ok(1)).boxed();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let reason = Box::pin(async move {
            let _ = stopped.await;
            Error::cancelled("enough")
        });
        let mut answers = Stoppable::new(endless, reason, ());
        assert!(answers.next().await.unwrap().is_ok());
        stop.send(()).unwrap();
        assert_eq!(answers.next().await.unwrap().unwrap_err().message(), "enough");
        assert!(answers.next().await.is_none());
    }
}
