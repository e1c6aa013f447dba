//! Record batches as Flight messages: as many at a time as the client takes, each of a size that it accepts.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::{FlightData, SchemaAsIpc};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, Stream, StreamExt};
use tonic::Status;

use super::message::Message;
use super::status::from_encoder;
use crate::error::{Error, Result};

/// Above this, a batch is halved. gRPC clients accept 4 MiB (most) or 16 MiB (ADBC) by default.
const MESSAGE_BYTES_TARGET: usize = 2 << 20;

/// A stream of answers, or the status that ends it.
pub(super) type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// Encodes `batches`, whose schema is `schema`. The schema goes first, also when no batch follows.
pub(super) fn encode(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch>> + Send + Unpin + 'static,
) -> Answers<Message> {
    let pieces = Pieces { batches, waiting: VecDeque::new() };
    if Message::takes(&schema) {
        let first = FlightData::from(SchemaAsIpc::new(&schema, &IpcWriteOptions::default()));
        let batches = pieces.map(|piece| Message::of_batch(&piece?));
        let messages = stream::iter([first.try_into()]).chain(batches);
        return messages.map(|message| message.map_err(Status::from)).boxed();
    }
    let pieces = pieces.map(|piece| piece.map_err(|error| FlightError::from_external_error(Box::new(error))));
    FlightDataEncoderBuilder::new()
        .with_schema(schema)
        // Its own splitting counts the buffers that slices share, and so cuts slices far too small.
        .with_max_flight_data_size(usize::MAX)
        .build(pieces)
        .map(|message| Ok(message.map_err(from_encoder)?.try_into()?))
        .boxed()
}

/// Halves batches until each piece is small enough, one piece at a time.
struct Pieces<S> {
    batches: S,
    waiting: VecDeque<RecordBatch>,
}

impl<S: Stream<Item = Result<RecordBatch>> + Unpin> Stream for Pieces<S> {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some(piece) = self.waiting.pop_front() else {
                match ready!(self.batches.poll_next_unpin(cx)) {
                    Some(Ok(batch)) if batch.num_rows() == 0 => continue,
                    Some(Ok(batch)) => self.waiting.push_back(batch),
                    end_or_error => return Poll::Ready(end_or_error),
                }
                continue;
            };
            let rows = piece.num_rows();
            if rows == 1 || piece.columns().iter().map(bytes_of).sum::<usize>() <= MESSAGE_BYTES_TARGET {
                return Poll::Ready(Some(Ok(piece)));
            }
            self.waiting.push_front(piece.slice(rows / 2, rows - rows / 2));
            self.waiting.push_front(piece.slice(0, rows / 2));
        }
    }
}

/// The bytes of an array's own rows. Arrow counts all children of a sliced list; here only those of its rows count,
/// as only they are sent.
fn bytes_of(array: &Arc<dyn Array>) -> usize {
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
        let schema = batches[0].schema();
        let messages: Vec<Message> =
            encode(schema, stream::iter(batches.into_iter().map(Ok))).try_collect().await.unwrap();
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
