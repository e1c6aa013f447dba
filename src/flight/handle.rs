//! Handles and tickets carry everything they stand for, so the server keeps nothing between two calls. They are sealed:
//! what comes back is what was given out, and not too long ago.
//!
//! ```text
//! ┌────────────┬───────────────────────────────┐
//! │ format: u8 │ protobuf (Statement | Ticket) │   sealed, see `seal`
//! └────────────┴───────────────────────────────┘
//! ```
//!
//! Values bound to a prepared statement come with a handle of its own, sealed anew: one that is in use stays in time.

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::moment::MomentMessage;
use super::seal::{Refused, Seal};
use super::security::Seals;
use crate::error::{Error, Result};
use crate::sql::Moment;

/// Changes whenever the messages below change their meaning.
const FORMAT: u8 = 2;

/// The statement and its parameters come back twice, in the ticket and in the descriptor before it; both must fit into the
/// answers that clients accept, 16 MiB for the strictest, with room to spare.
const PARAMETER_BYTES_MAX: usize = 5 << 20;

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

    /// How much of a handle or ticket it takes, about.
    pub(super) fn size_bytes(&self) -> usize {
        self.sql.len() + self.bound.as_ref().map_or(0, Bytes::len)
    }

    pub(super) fn parameters(&self) -> Result<Option<RecordBatch>> {
        let Some(bytes) = &self.bound else { return Ok(None) };
        let mut batches = StreamReader::try_new(bytes.as_ref(), None).map_err(|_| foreign())?;
        let batch = batches.next().ok_or_else(foreign)?.map_err(|_| foreign())?;
        Ok(Some(batch))
    }

    pub(super) fn to_handle(&self, seals: &Seals) -> Bytes {
        encode(self, &seals.handles)
    }

    pub(super) fn from_handle(handle: &[u8], seals: &Seals) -> Result<Self> {
        decode(handle, &seals.handles)
    }
}

/// What a statement's ticket stands for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ticket {
    /// Run the query as of that moment; the id names it for cancellation.
    Query { id: Uuid, statement: Statement, moment: Moment },
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
    /// Absent: whenever it is fetched.
    #[prost(message, optional, tag = "3")]
    moment: Option<MomentMessage>,
}

impl Ticket {
    pub(super) fn to_bytes(&self, seals: &Seals) -> Bytes {
        let message = match self {
            Self::Query { id, statement, moment } => TicketMessage {
                id: Bytes::copy_from_slice(id.as_bytes()),
                statement: Some(statement.clone()),
                moment: (*moment != Moment::default()).then(|| moment.into()),
            },
            Self::Done => TicketMessage::default(),
        };
        encode(&message, &seals.tickets)
    }

    pub(super) fn from_bytes(bytes: &[u8], seals: &Seals) -> Result<Self> {
        let TicketMessage { id, statement, moment } = decode(bytes, &seals.tickets)?;
        match statement {
            Some(statement) => Ok(Self::Query {
                id: Uuid::from_slice(&id).map_err(|_| foreign())?,
                statement,
                moment: moment.unwrap_or_default().moment().ok_or_else(foreign)?,
            }),
            None => Ok(Self::Done),
        }
    }
}

/// A handle and a ticket of this content, as nobody could make them who has not the secret.
pub(super) fn sealed(content: &[u8], seals: &Seals) -> [Bytes; 2] {
    [&seals.handles, &seals.tickets].map(|seal| {
        seal.close(1 + content.len(), |bytes| {
            bytes.push(FORMAT);
            bytes.extend_from_slice(content);
        })
    })
}

fn encode(message: &impl Message, seal: &Seal) -> Bytes {
    seal.close(1 + message.encoded_len(), |bytes| {
        bytes.push(FORMAT);
        message.encode_raw(bytes);
    })
}

fn decode<M: Message + Default>(bytes: &[u8], seal: &Seal) -> Result<M> {
    let (message, _) = seal.open(bytes).map_err(|refused| match refused {
        Refused::Forged => foreign(),
        Refused::Expired => Error::invalid(
            "the time of this handle or ticket is over: prepare the statement again, or ask for a new ticket",
        ),
    })?;
    match message.split_first() {
        Some((&FORMAT, message)) => M::decode(message).map_err(|_| foreign()),
        _ => Err(foreign()),
    }
}

fn foreign() -> Error {
    Error::invalid(
        "this handle or ticket was not made by this server, or has been changed: prepare the statement again, or ask \
         for a new ticket (servers that share a secret_file accept each other's, and their own after a restart)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, StringArray};

    use crate::error::ErrorKind;
    use crate::model::{TableName, TableVersion};
    use crate::sql::Part;

    fn batch(rows: i64) -> RecordBatch {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        let names: ArrayRef =
            Arc::new(StringArray::from_iter((0..rows).map(|row| (row % 2 == 0).then_some("é"))));
        RecordBatch::try_from_iter([("0", ids), ("1", names)]).unwrap()
    }

    #[test]
    fn handles_and_tickets_carry_everything() {
        let (seals, _) = Seals::for_test();
        let statement = Statement::new("SELECT $1".into());
        assert_eq!(statement.parameters().unwrap(), None);
        for rows in [0, 1, 1000] {
            let bound = statement.bound_to(&batch(rows)).unwrap();
            let again = Statement::from_handle(&bound.to_handle(&seals), &seals).unwrap();
            assert_eq!((again.sql.as_str(), again.parameters().unwrap()), ("SELECT $1", Some(batch(rows))));
            let table = |snapshot_id| TableVersion {
                name: TableName::new("public", "t"),
                table_id: Uuid::from_u128(9),
                schema_id: 1,
                snapshot_id,
                ttl: snapshot_id.map(|_| std::time::Duration::from_micros(5)),
                logged: vec![crate::model::LoggedFile {
                    path: "file:///w/a.parquet".into(),
                    bytes: 70,
                    rows: 3,
                    sort_order_id: snapshot_id.map(|_| 1),
                }],
            };
            let moment = Moment {
                now_us: Some(-1),
                settings: Some(vec![("schema".into(), "shop".into())]),
                tables: vec![table(Some(i64::MAX)), table(None)],
                temporary: Some(vec![("labels".into(), Uuid::from_u128(3))]),
                part: Some(Part { index: 1, parts: 2, partitions: 5 }),
            };
            let ticket = |moment| Ticket::Query { id: Uuid::from_u128(7), statement: bound.clone(), moment };
            let unchanged = Moment { settings: Some(vec![]), ..Moment::default() };
            for ticket in [ticket(moment), ticket(unchanged), ticket(Moment::default()), Ticket::Done] {
                assert_eq!(Ticket::from_bytes(&ticket.to_bytes(&seals), &seals).unwrap(), ticket);
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
        let (seals, _) = Seals::for_test();
        let statement = Statement::new("SELECT 1".into()).bound_to(&batch(3)).unwrap();
        let handle = statement.to_handle(&seals);
        let (id, moment) = (Uuid::from_u128(7), Moment::default());
        let ticket = Ticket::Query { id, statement: statement.clone(), moment }.to_bytes(&seals);
        let other_format = seals.handles.close(1, |bytes| bytes.push(FORMAT + 1));
        let no_message = seals.handles.close(2, |bytes| bytes.extend([FORMAT, 0xff]));
        for bytes in
            [&b""[..], b"x", &handle[1..], &handle[..handle.len() - 1], &ticket, &other_format, &no_message]
        {
            let error = Statement::from_handle(bytes, &seals).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
            assert!(error.to_string().contains("was not made by this server"), "{error}");
        }
        assert!(Ticket::from_bytes(&handle, &seals).is_err(), "a handle is no ticket");
        assert!(Statement::from_handle(&handle, &Seals::for_test().0).is_err(), "another server's");
    }

    #[test]
    fn a_handle_in_use_stays_in_time_and_others_expire() {
        let (seals, clock) = Seals::for_test();
        let prepared = Statement::new("SELECT $1".into()).to_handle(&seals);
        let ticket = Ticket::Done.to_bytes(&seals);
        let hours = |hours: i64| clock.set(hours * 3_600_000_000);
        hours(23);
        let bound =
            Statement::from_handle(&prepared, &seals).unwrap().bound_to(&batch(1)).unwrap().to_handle(&seals);
        assert!(Ticket::from_bytes(&ticket, &seals).is_ok());
        hours(24);
        for error in [
            Statement::from_handle(&prepared, &seals).unwrap_err(),
            Ticket::from_bytes(&ticket, &seals).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains("is over: prepare the statement again"), "{error}");
        }
        assert!(Statement::from_handle(&bound, &seals).is_ok());
    }
}
