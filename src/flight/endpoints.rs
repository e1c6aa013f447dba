//! How a result is fetched: by which tickets, where, and until when.

use std::sync::Arc;

use arrow::datatypes::Schema;
use arrow_flight::sql::{ProstMessageExt, TicketStatementQuery};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo};
use bytes::Bytes;
use prost::Message as _;
use prost_types::Timestamp;

use super::commands::Request;
use super::handle::Ticket;
use super::security::Seals;
use crate::error::{Error, Result};

/// Makes every endpoint that this server gives away.
#[derive(Debug, Clone)]
pub(super) struct Endpoints {
    /// URIs of servers on the same stores; none is the server that was asked.
    locations: Vec<String>,
    seals: Arc<Seals>,
}

impl Endpoints {
    pub(super) fn new(locations: Vec<String>, seals: Arc<Seals>) -> Self {
        Self { locations, seals }
    }

    /// One that any server answers.
    pub(super) fn anywhere(&self, ticket: &Ticket) -> FlightEndpoint {
        let locate = |endpoint: FlightEndpoint, uri: &String| endpoint.with_location(uri);
        self.locations.iter().fold(self.here(ticket), locate)
    }

    /// One that only the session answers that asked for it.
    pub(super) fn here(&self, ticket: &Ticket) -> FlightEndpoint {
        let until_us = self.seals.tickets.until_us(); // read first: the ticket holds a little longer, never less
        let statement_handle = ticket.to_bytes(&self.seals);
        let ticket = TicketStatementQuery { statement_handle }.as_any().encode_to_vec();
        let nanos = until_us.rem_euclid(1_000_000) as i32 * 1_000;
        let until = Timestamp { seconds: until_us.div_euclid(1_000_000), nanos };
        self.of_command(ticket.into()).with_expiration_time(until)
    }

    /// One whose ticket is the command itself.
    pub(super) fn of_command(&self, command: Bytes) -> FlightEndpoint {
        FlightEndpoint::new().with_ticket(arrow_flight::Ticket::new(command))
    }

    /// The same endpoint, good for as long as one that is new.
    pub(super) fn renewed(&self, endpoint: FlightEndpoint) -> Result<FlightEndpoint> {
        let no_ticket = || Error::invalid("the request names no endpoint with a ticket");
        let bytes = &endpoint.ticket.as_ref().ok_or_else(no_ticket)?.ticket;
        let renewed = match Request::of_command(bytes, &self.seals)? {
            Request::Ticket(ticket) => self.here(&ticket),
            Request::Metadata(_) | Request::Direct(_) => self.of_command(bytes.clone()),
            Request::Query(_)
            | Request::Prepared(_)
            | Request::Update(_)
            | Request::PreparedUpdate(_)
            | Request::Ingest(_) => return Err(no_ticket()),
        };
        let FlightEndpoint { location, app_metadata, .. } = endpoint;
        Ok(FlightEndpoint { location, app_metadata, ..renewed })
    }
}

/// The answer to who asks for a flight.
pub(super) fn info(
    schema: &Schema,
    endpoints: Vec<FlightEndpoint>,
    descriptor: FlightDescriptor,
    records: i64,
    ordered: bool,
) -> Result<FlightInfo> {
    Ok(FlightInfo::new()
        .try_with_schema(schema)?
        .with_descriptor(descriptor)
        .with_endpoints(endpoints)
        .with_total_records(records)
        .with_ordered(ordered))
}
