//! Statements: described, run when they change something, fetched when they answer something.
//!
//! ADBC runs every statement through `GetFlightInfo`, and may never fetch the result of one that changes something.
//! So `GetFlightInfo` runs it, once, and the ticket has nothing left to do; a query runs when its ticket is fetched, as
//! of the moment when the ticket was made.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::{FlightDescriptor, FlightInfo, IpcMessage, SchemaAsIpc};
use bytes::Bytes;
use futures::StreamExt;
use uuid::Uuid;

use super::direct::Direct;
use super::endpoints::{Endpoints, info};
use super::handle::{Statement, Ticket};
use super::message::Message;
use super::stream::{Answers, Encoder};
use crate::error::{Error, Result};
use crate::model::IdempotencyKey;
use crate::sql::{Prepared, Session, StatementKind};

/// Every endpoint has a ticket, and each ticket the statement and its parameters.
const SPLIT_BYTES_MAX: usize = 4 << 20;

/// Runs what changes something, describes what answers something.
pub(super) async fn flight_info(
    session: &Arc<Session>,
    endpoints: &Endpoints,
    statement: Statement,
    key: Option<IdempotencyKey>,
    descriptor: FlightDescriptor,
) -> Result<FlightInfo> {
    let parameters = statement.parameters()?;
    let described = session.describe(&statement.sql, parameters.as_ref()).await?;
    let prepared = &described.prepared;
    require_bound(prepared, parameters.as_ref())?;
    if prepared.kind == StatementKind::Update {
        let affected = session.update_once(&statement.sql, parameters.as_ref(), key).await?;
        let records = i64::try_from(affected).unwrap_or(i64::MAX);
        return info(&prepared.schema, vec![endpoints.here(&Ticket::Done)], descriptor, records, false);
    }
    let (id, is_here_only) = (Uuid::new_v4(), described.is_here_only);
    let mut moments = described.moments;
    if moments.len() > 1 && moments.len() * statement.size_bytes() > SPLIT_BYTES_MAX {
        moments.truncate(1);
        moments.iter_mut().for_each(|moment| moment.part = None);
    }
    let parts = moments.into_iter().map(|moment| {
        let ticket = Ticket::Query { id, statement: statement.clone(), moment };
        if is_here_only { endpoints.here(&ticket) } else { endpoints.anywhere(&ticket) }
    });
    info(&described.prepared.schema, parts.collect(), descriptor, -1, described.ordered)
}

/// The result of a ticket. The query runs as fast as the client reads, and stops when it goes.
pub(super) async fn fetch(session: &Session, encoder: &Encoder, ticket: Ticket) -> Result<Answers<Message>> {
    match ticket {
        Ticket::Query { id, statement, moment } => {
            let parameters = statement.parameters()?;
            let batches = session.query_at(Some(id), &statement.sql, parameters.as_ref(), &moment).await?;
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
