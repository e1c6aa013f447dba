//! Handles and tickets carry everything they stand for, so the server keeps nothing between two calls.
//!
//! ```text
//! ┌────────────┬───────────────────────────────┐
//! │ format: u8 │ protobuf (Statement | Ticket) │
//! └────────────┴───────────────────────────────┘
//! ```

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use crate::error::{Error, Result};

/// Changes whenever the messages below change their meaning.
const FORMAT: u8 = 1;

/// A ticket must fit into the answers that clients accept, 16 MiB for the strictest, with room to spare.
const PARAMETER_BYTES_MAX: usize = 8 << 20;

/// A statement and what is bound to its placeholders: the handle of a prepared statement.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Statement {
    #[prost(string, tag = "1")]
    pub(super) sql: String,
    /// One batch as an Arrow IPC stream: a row per execution, a column per placeholder.
    #[prost(bytes = "bytes", optional, tag = "2")]
    bound: Option<Bytes>,
}

impl Statement {
    pub(super) fn new(sql: String) -> Self {
        Self { sql, bound: None }
    }

    /// The same statement with other values bound.
    pub(super) fn bound_to(&self, parameters: &RecordBatch) -> Result<Self> {
        let mut writer = StreamWriter::try_new(Vec::new(), parameters.schema_ref())?;
        writer.write(parameters)?;
        let bytes = writer.into_inner()?;
        if bytes.len() > PARAMETER_BYTES_MAX {
            return Err(Error::exhausted(format!(
                "the bound parameters take {} bytes and a query may carry {PARAMETER_BYTES_MAX}; bind fewer rows, \
                 or ingest them as a temporary table and join it",
                bytes.len()
            )));
        }
        Ok(Self { sql: self.sql.clone(), bound: Some(bytes.into()) })
    }

    pub(super) fn parameters(&self) -> Result<Option<RecordBatch>> {
        let Some(bytes) = &self.bound else { return Ok(None) };
        let mut batches = StreamReader::try_new(bytes.as_ref(), None).map_err(|_| malformed())?;
        let batch = batches.next().ok_or_else(malformed)?.map_err(|_| malformed())?;
        Ok(Some(batch))
    }

    pub(super) fn to_handle(&self) -> Bytes {
        encode(self)
    }

    pub(super) fn from_handle(handle: &[u8]) -> Result<Self> {
        decode(handle)
    }
}

/// What a statement's ticket stands for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ticket {
    /// Run the query; the id names it for cancellation.
    Query { id: Uuid, statement: Statement },
    /// The statement ran when its ticket was made; nothing is left but to say so.
    Done,
}

#[derive(Clone, PartialEq, Message)]
struct TicketMessage {
    #[prost(bytes = "bytes", tag = "1")]
    id: Bytes,
    /// Absent: done.
    #[prost(message, optional, tag = "2")]
    statement: Option<Statement>,
}

impl Ticket {
    pub(super) fn to_bytes(&self) -> Bytes {
        encode(&match self {
            Self::Query { id, statement } => TicketMessage {
                id: Bytes::copy_from_slice(id.as_bytes()),
                statement: Some(statement.clone()),
            },
            Self::Done => TicketMessage::default(),
        })
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let TicketMessage { id, statement } = decode(bytes)?;
        match statement {
            Some(statement) => {
                Ok(Self::Query { id: Uuid::from_slice(&id).map_err(|_| malformed())?, statement })
            }
            None => Ok(Self::Done),
        }
    }
}

fn encode(message: &impl Message) -> Bytes {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(FORMAT);
    message.encode_raw(&mut bytes);
    bytes.into()
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M> {
    match bytes.split_first() {
        Some((&FORMAT, message)) => M::decode(message).map_err(|_| malformed()),
        _ => Err(malformed()),
    }
}

fn malformed() -> Error {
    Error::invalid(
        "this handle or ticket was not made by this version of the server; prepare the statement again",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    fn batch(rows: i64) -> RecordBatch {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        let names: ArrayRef =
            Arc::new(StringArray::from_iter((0..rows).map(|row| (row % 2 == 0).then_some("é"))));
        RecordBatch::try_from_iter([("0", ids), ("1", names)]).unwrap()
    }

    #[test]
    fn handles_and_tickets_carry_everything() {
        let statement = Statement::new("SELECT $1".into());
        assert_eq!(statement.parameters().unwrap(), None);
        for rows in [0, 1, 1000] {
            let bound = statement.bound_to(&batch(rows)).unwrap();
            let again = Statement::from_handle(&bound.to_handle()).unwrap();
            assert_eq!((again.sql.as_str(), again.parameters().unwrap()), ("SELECT $1", Some(batch(rows))));
            for ticket in [Ticket::Query { id: Uuid::from_u128(7), statement: bound }, Ticket::Done] {
                assert_eq!(Ticket::from_bytes(&ticket.to_bytes()).unwrap(), ticket);
            }
        }
    }

    #[test]
    fn a_binding_that_no_client_could_receive_is_refused() {
        let error = Statement::new("SELECT $1".into()).bound_to(&batch(1 << 20)).unwrap_err();
        assert!(error.to_string().contains("temporary table"), "{error}");
    }

    #[test]
    fn foreign_bytes_are_the_callers_mistake() {
        let good = Statement::new("SELECT 1".into()).bound_to(&batch(3)).unwrap().to_handle();
        assert!(Statement::from_handle(b"").is_err());
        for end in 0..good.len() {
            // No prefix may panic; whether it still decodes is another matter.
            let _ = Statement::from_handle(&good[..end]).and_then(|statement| statement.parameters());
            let _ = Ticket::from_bytes(&good[..end]);
        }
        let mut other_format = good.to_vec();
        other_format[0] = FORMAT + 1;
        assert!(Statement::from_handle(&other_format).is_err());
    }
}
