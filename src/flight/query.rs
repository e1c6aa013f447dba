//! Statements: described, run when they change something, fetched when they answer something.
//!
//! ADBC runs every statement through `GetFlightInfo`, and may never fetch the result of one that changes something.
//! So `GetFlightInfo` runs it, once, and the ticket has nothing left to do; a query runs when its ticket is fetched.

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::sql::{ProstMessageExt, TicketStatementQuery};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, IpcMessage, SchemaAsIpc};
use bytes::Bytes;
use futures::StreamExt;
use prost::Message as _;
use uuid::Uuid;

use super::direct::Direct;
use super::handle::{Statement, Ticket};
use super::message::Message;
use super::security::Seals;
use super::stream::{Answers, Encoder};
use crate::error::{Error, Result};
use crate::sql::{Prepared, Session, StatementKind};

/// Runs what changes something, describes what answers something.
pub(super) async fn flight_info(
    session: &Session,
    seals: &Seals,
    statement: Statement,
    descriptor: FlightDescriptor,
) -> Result<FlightInfo> {
    let parameters = statement.parameters()?;
    let prepared = session.prepare_bound(&statement.sql, parameters.as_ref()).await?;
    require_bound(&prepared, parameters.as_ref())?;
    let (ticket, records) = match prepared.kind {
        StatementKind::Query => (Ticket::Query { id: Uuid::new_v4(), statement }, -1),
        StatementKind::Update => {
            let affected = session.update(&statement.sql, parameters.as_ref()).await?;
            (Ticket::Done, i64::try_from(affected).unwrap_or(i64::MAX))
        }
    };
    let ticket = TicketStatementQuery { statement_handle: ticket.to_bytes(seals) }.as_any().encode_to_vec();
    info(&prepared.schema, ticket.into(), descriptor, records)
}

/// The answer that every client understands: one endpoint, fetched from the server that was asked.
pub(super) fn info(
    schema: &Schema,
    ticket: Bytes,
    descriptor: FlightDescriptor,
    records: i64,
) -> Result<FlightInfo> {
    let endpoint = FlightEndpoint::new().with_ticket(arrow_flight::Ticket::new(ticket));
    Ok(FlightInfo::new()
        .try_with_schema(schema)?
        .with_descriptor(descriptor)
        .with_endpoint(endpoint)
        .with_total_records(records)
        .with_ordered(true))
}

/// The result of a ticket. The query runs as fast as the client reads, and stops when it goes.
pub(super) async fn fetch(session: &Session, encoder: &Encoder, ticket: Ticket) -> Result<Answers<Message>> {
    match ticket {
        Ticket::Query { id, statement } => {
            let parameters = statement.parameters()?;
            let batches = session.query_as(Some(id), &statement.sql, parameters.as_ref()).await?;
            Ok(encoder.encode(batches.schema(), batches.map(|batch| batch.map_err(Error::from))))
        }
        Ticket::Done => Ok(encoder.encode(SchemaRef::new(Schema::empty()), futures::stream::empty())),
    }
}

/// The result of a query that the client wrote into its ticket.
pub(super) async fn fetch_direct(
    session: &Session,
    encoder: &Encoder,
    direct: &Direct,
) -> Result<Answers<Message>> {
    let declared = match direct.is_without_rows() {
        true => session.prepare(&direct.query).await?.parameters,
        false => SchemaRef::new(Schema::empty()),
    };
    let values = direct.values(&declared)?;
    let batches = session.query(&direct.query, values.as_ref()).await?;
    Ok(encoder.encode(batches.schema(), batches.map(|batch| batch.map_err(Error::from))))
}

/// The result schema of a statement, which does not run.
pub(super) async fn schema(session: &Session, statement: &Statement) -> Result<SchemaRef> {
    Ok(session.prepare_bound(&statement.sql, statement.parameters()?.as_ref()).await?.schema)
}

/// A schema as an encapsulated IPC message.
pub(super) fn schema_bytes(schema: &Schema) -> Result<Bytes> {
    let options = IpcWriteOptions::default();
    let message: Result<IpcMessage, ArrowError> = SchemaAsIpc::new(schema, &options).try_into();
    Ok(message?.0)
}

/// Refuses a statement whose placeholders have no values, before anything runs.
fn require_bound(prepared: &Prepared, parameters: Option<&RecordBatch>) -> Result<()> {
    match prepared.parameters.fields().len() {
        wanted @ 1.. if parameters.is_none() => Err(Error::invalid(format!(
            "the statement has {wanted} parameter{}, and none is bound",
            if wanted == 1 { "" } else { "s" }
        ))),
        _ => Ok(()),
    }
}
