//! The body of an answer whose messages are ready to be sent.
//!
//! tonic copies each message that it encodes into a buffer of its own. So `DoGet` answers with a stream that says
//! nothing, and the messages beside it, which [`attach`] makes the body once tonic has written the headers.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::Stream;
use futures::stream::{self, StreamExt};
use http_body::Frame;
use parking_lot::Mutex;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Response as HttpResponse};
use tonic::{Response, Status};

use super::message::Message;
use super::stream::Answers;

/// Messages on their way past tonic's encoder.
#[derive(Clone)]
struct Beside(Arc<Mutex<Option<Answers<Message>>>>);

/// An answer of `messages`, for [`attach`] to complete.
pub(super) fn answer<T: Send + 'static>(messages: Answers<Message>) -> Response<Answers<T>> {
    let mut response = Response::new(stream::empty().boxed());
    response.extensions_mut().insert(Beside(Arc::new(Mutex::new(Some(messages)))));
    response
}

/// Gives an [`answer`] its messages; other answers stay as they are.
pub(super) fn attach(mut response: HttpResponse<Body>) -> HttpResponse<Body> {
    let beside = response.extensions_mut().remove::<Beside>();
    match beside.and_then(|Beside(messages)| messages.lock().take()) {
        Some(messages) => response.map(|_| Body::new(Messages { messages: Some(messages), parts: None })),
        None => response,
    }
}

/// Messages part by part, and the status as trailers.
struct Messages {
    /// `None` at the end.
    messages: Option<Answers<Message>>,
    /// What is left of the current message.
    parts: Option<std::vec::IntoIter<Bytes>>,
}

impl http_body::Body for Messages {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(part) = self.parts.as_mut().and_then(Iterator::next) {
                return Poll::Ready(Some(Ok(Frame::data(part))));
            }
            let Some(messages) = &mut self.messages else { return Poll::Ready(None) };
            match ready!(Pin::new(messages).poll_next(cx)) {
                Some(Ok(message)) => self.parts = Some(message.into_parts()),
                end_or_error => {
                    self.messages = None; // what it holds goes now, not with the connection
                    let status = match end_or_error {
                        Some(Err(status)) => status,
                        _ => Status::ok(""),
                    };
                    let mut trailers = HeaderMap::new();
                    let added = status.add_header(&mut trailers);
                    return Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.messages.is_none()
    }
}
