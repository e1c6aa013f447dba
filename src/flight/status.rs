//! Errors meet gRPC here, once: what the caller should do next decides the code.

use arrow_flight::error::FlightError;
use bytes::Bytes;
use http_body::Frame;
use tonic::codegen::http::HeaderMap;
use tonic::{Code, Status};

use crate::error::{Error, ErrorKind};

/// Trailers are headers: peers refuse large ones, and percent-encoding can triple the text.
const MESSAGE_BYTES_MAX: usize = 4096;

/// The gRPC code for a kind of error.
fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::Unauthenticated => Code::Unauthenticated,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Conflict => Code::Aborted,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Internal => Code::Internal,
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Internal | ErrorKind::Corrupt => tracing::error!(%error, "request failed"),
            kind => tracing::debug!(?kind, %error, "request failed"),
        }
        Status::new(code(error.kind()), shortened(error.to_string()))
    }
}

/// The last frame of an answer.
pub(super) fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = HeaderMap::new();
    status.add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

/// What the decoder of a client's stream reports: the client's mistake, or its connection's.
pub(super) fn from_decoder(error: FlightError) -> Error {
    match error {
        FlightError::Tonic(status) => from_client_stream(&status),
        FlightError::ExternalError(inner) => match inner.downcast::<Error>() {
            Ok(own) => *own,
            Err(other) => Error::invalid(other.to_string()),
        },
        other => Error::invalid(format!("the data sent is not an Arrow stream: {other}")),
    }
}

/// What broke a client's stream, as the server saw it.
pub(super) fn from_client_stream(status: &Status) -> Error {
    let kind = match status.code() {
        Code::OutOfRange | Code::ResourceExhausted => ErrorKind::Exhausted,
        Code::InvalidArgument => ErrorKind::Invalid,
        _ => ErrorKind::Cancelled,
    };
    Error::new(kind, format!("the client's stream broke off: {}", status.message()))
}

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_mistake_is_never_internal() {
        let cases = [
            (Error::invalid("m"), Code::InvalidArgument),
            (Error::unauthenticated("m"), Code::Unauthenticated),
            (Error::not_found("m"), Code::NotFound),
            (Error::already_exists("m"), Code::AlreadyExists),
            (Error::unsupported("m"), Code::Unimplemented),
            (Error::conflict("m"), Code::Aborted),
            (Error::unavailable("m"), Code::Unavailable),
            (Error::exhausted("m"), Code::ResourceExhausted),
            (Error::cancelled("m"), Code::Cancelled),
            (Error::corrupt("m"), Code::DataLoss),
            (Error::internal("m"), Code::Internal),
        ];
        for (error, code) in cases {
            let direct = Status::from(error);
            assert_eq!((direct.code(), direct.message()), (code, "m"));
        }
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let status = Status::from(Error::invalid("é".repeat(10_000)));
        assert!(status.message().len() <= MESSAGE_BYTES_MAX + '…'.len_utf8());
        assert!(status.message().ends_with("é…"));
    }
}
