//! The body of an answer whose messages are ready to be sent.
//!
//! tonic copies each message that it encodes into a buffer of its own. So `DoGet` answers with a stream that says
//! nothing, and the messages beside it, which [`attach`] makes the body once tonic has written the headers.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use futures::stream::{self, StreamExt};
use http_body::Frame;
use parking_lot::Mutex;
use tonic::body::Body;
use tonic::codegen::http::Response as HttpResponse;
use tonic::{Response, Status};

use super::message::Message;
use super::status::trailers;
use super::stream::Answers;
use crate::error::Error;

/// A part of more bytes is not copied.
const PART_BYTES_MIN: usize = 4 << 10;
/// Small parts leave when they are so many bytes, ready or not: what HTTP/2 takes for a frame by default.
const FRAME_BYTES_MAX: usize = 16 << 10;

/// Messages on their way past tonic's encoder.
#[derive(Clone)]
struct Beside(Arc<Mutex<Option<Answers<Message>>>>);

/// An answer of `messages`, for [`attach`] to complete. One that panics ends with a status, not with the connection.
pub(super) fn answer<T: Send + 'static>(messages: Answers<Message>) -> Response<Answers<T>> {
    let panicked =
        |_| Err(Error::internal("the query failed in a way that nobody foresaw: see the log").into());
    let messages = AssertUnwindSafe(messages).catch_unwind().map(move |m| m.unwrap_or_else(panicked)).boxed();
    let mut response = Response::new(stream::empty().boxed());
    response.extensions_mut().insert(Beside(Arc::new(Mutex::new(Some(messages)))));
    response
}

/// Gives an [`answer`] its messages; other answers stay as they are.
pub(super) fn attach(mut response: HttpResponse<Body>) -> HttpResponse<Body> {
    let beside = response.extensions_mut().remove::<Beside>();
    match beside.and_then(|Beside(messages)| messages.lock().take()) {
        Some(messages) => response.map(|_| Body::new(Messages::new(messages))),
        None => response,
    }
}

/// Messages part by part, and the status as trailers. Small parts that are ready together leave together: a frame of
/// its own costs more than they do.
struct Messages {
    /// `None` at the end.
    messages: Option<Answers<Message>>,
    /// What is left of the current message.
    parts: Option<std::vec::IntoIter<Bytes>>,
    /// Small parts that are to leave.
    small: BytesMut,
    /// A part that follows them.
    held: Option<Bytes>,
    /// What the end was, until it is told.
    end: Option<Status>,
}

impl Messages {
    fn new(messages: Answers<Message>) -> Self {
        Self { messages: Some(messages), parts: None, small: BytesMut::new(), held: None, end: None }
    }

    /// The small parts, if there are any.
    fn take_small(&mut self) -> Option<Bytes> {
        (!self.small.is_empty()).then(|| self.small.split().freeze())
    }

    /// The next part of the current message that is to leave by itself; small ones join the others.
    fn next_part(&mut self) -> Option<Bytes> {
        while let Some(part) = self.parts.as_mut()?.next() {
            if part.len() > PART_BYTES_MIN || self.small.len() + part.len() > FRAME_BYTES_MAX {
                let Some(small) = self.take_small() else { return Some(part) };
                self.held = Some(part);
                return Some(small);
            }
            self.small.extend_from_slice(&part);
        }
        None
    }
}

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            let part = self.held.take().or_else(|| self.next_part());
            if let Some(part) = part {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            let next = match &mut self.messages {
                Some(messages) => Pin::new(messages).poll_next(cx),
                None => Poll::Ready(None),
            };
            match next {
                Poll::Ready(Some(Ok(message))) => self.parts = Some(message.into_parts()),
                Poll::Ready(end_or_error) => {
                    if self.messages.take().is_some() {
                        // What it holds goes now, not with the connection.
                        let failed = end_or_error.and_then(Result::err);
                        self.end = Some(failed.unwrap_or_else(|| Status::ok("")));
                    }
                    if let Some(small) = self.take_small() {
                        return Poll::Ready(Some(Ok(Frame::data(small))));
                    }
                    let Some(status) = self.end.take() else { return Poll::Ready(None) };
                    return Poll::Ready(Some(trailers(&status)));
                }
                Poll::Pending => {
                    return self
                        .take_small()
                        .map_or(Poll::Pending, |small| Poll::Ready(Some(Ok(Frame::data(small)))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.messages.is_none() && self.end.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use http_body::Body as _;
    use tonic::Code;

    /// All data, and the status that the trailers carry.
    async fn received(messages: Answers<Message>) -> (Vec<u8>, Status) {
        let (metadata, body, extensions) = answer::<()>(messages).into_parts();
        drop((metadata, body));
        let mut response = HttpResponse::new(Body::empty());
        *response.extensions_mut() = extensions;
        let mut body = attach(response).into_body();
        let mut data = Vec::new();
        loop {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            match frame.into_data() {
                Ok(part) => data.extend(part),
                Err(trailers) => {
                    let status = Status::from_header_map(&trailers.into_trailers().unwrap()).unwrap();
                    assert!(body.is_end_stream());
                    return (data, status);
                }
            }
        }
    }

    fn message() -> Message {
        arrow_flight::FlightData::new().with_data_body(vec![7; 20_000]).try_into().unwrap()
    }

    #[tokio::test]
    async fn messages_arrive_and_the_status_behind_them() {
        let whole: Vec<u8> = message().into_parts().flatten().collect();
        let (data, status) = received(stream::iter([Ok(message()), Ok(message())]).boxed()).await;
        assert_eq!((data, status.code()), ([whole.clone(), whole.clone()].concat(), Code::Ok));
        let error = Err(Status::resource_exhausted("it is full"));
        let (data, status) = received(stream::iter([Ok(message()), error, Ok(message())]).boxed()).await;
        assert_eq!((data, status.code(), status.message()), (whole, Code::ResourceExhausted, "it is full"));
    }

    #[tokio::test]
    async fn a_panic_is_an_error() {
        let messages =
            stream::iter([1, 0]).map(|n| if n == 0 { panic!("on purpose") } else { Ok(message()) });
        assert_eq!(received(messages.boxed()).await.1.code(), Code::Internal);
    }

    #[test]
    fn other_answers_stay() {
        assert!(attach(HttpResponse::new(Body::empty())).into_body().is_end_stream());
    }
}
