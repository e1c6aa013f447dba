//! The shell's side of the wire.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, SchemaRef};
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::CommandGetTables;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::{FlightInfo, Ticket};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::connect::Server;
use crate::error::{Error, ErrorKind, Result};

/// A connection to a server.
pub(super) struct Client {
    flight: FlightSqlServiceClient<Channel>,
    channel: Channel,
    token: Option<String>,
}

/// What a statement gave.
pub(super) enum Answer {
    /// Rows that it changed.
    Affected(i64),
    /// Rows that it selected.
    Rows { schema: SchemaRef, batches: Batches },
}

pub(super) type Batches = BoxStream<'static, Result<RecordBatch, FlightError>>;

impl Client {
    /// Connects, and signs in where that is asked for.
    pub(super) async fn connect(server: Server) -> Result<Self> {
        let (channel, token) = server.connect().await?;
        Ok(Self::on(channel, token))
    }

    fn on(channel: Channel, token: Option<String>) -> Self {
        let flight = FlightServiceClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
        let mut flight = FlightSqlServiceClient::new_from_inner(flight);
        if let Some(token) = &token {
            flight.set_token(token.clone());
        }
        Self { flight, channel, token }
    }

    /// Another one of the same connection, to ask something while this one waits.
    pub(super) fn beside(&self) -> Self {
        Self::on(self.channel.clone(), self.token.clone())
    }

    /// The rows that a write of this text has come to, where such a one runs.
    pub(super) async fn rows_so_far(&mut self, sql: &str) -> Option<u64> {
        let asked = format!(
            "SELECT rows FROM system.jobs WHERE ended_at IS NULL AND sql = '{}' ORDER BY started_at DESC LIMIT 1",
            sql.trim().replace('\'', "''")
        );
        let Ok(Answer::Rows { mut batches, .. }) = self.run(&asked).await else { return None };
        let batch = next(&mut batches).await.ok()??;
        let rows = batch.column(0).as_primitive_opt::<Int64Type>()?;
        let some = rows.len() == 1 && rows.is_valid(0);
        some.then(|| rows.value(0)).and_then(|rows| u64::try_from(rows).ok())
    }

    pub(super) async fn run(&mut self, sql: &str) -> Result<Answer> {
        let info = self.flight.execute(sql.to_owned(), None).await.map_err(said)?;
        let schema = info.clone().try_decode_schema()?;
        // Statements that change something have run by now, and have no columns.
        if schema.fields().is_empty() {
            return Ok(Answer::Affected(info.total_records));
        }
        Ok(Answer::Rows { schema: schema.into(), batches: self.fetch(info).await? })
    }

    /// Tables with their columns, as Flight SQL describes them.
    pub(super) async fn tables(&mut self) -> Result<Vec<RecordBatch>> {
        let request = CommandGetTables { include_schema: true, ..CommandGetTables::default() };
        let info = self.flight.get_tables(request).await.map_err(said)?;
        self.fetch(info).await?.try_collect().await.map_err(said)
    }

    async fn fetch(&mut self, info: FlightInfo) -> Result<Batches> {
        let mut streams = Vec::new();
        for ticket in info.endpoint.into_iter().filter_map(|endpoint| endpoint.ticket) {
            streams.push(self.fetch_one(ticket).await?);
        }
        Ok(futures::stream::iter(streams).flatten().boxed())
    }

    async fn fetch_one(&mut self, ticket: Ticket) -> Result<Batches> {
        Ok(self.flight.do_get(ticket).await.map_err(said)?.boxed())
    }
}

/// The next batch of an answer.
pub(super) async fn next(batches: &mut Batches) -> Result<Option<RecordBatch>> {
    batches.try_next().await.map_err(said)
}

/// What the server said, in its own words.
fn said(error: FlightError) -> Error {
    match error {
        FlightError::Tonic(status) => refused(&status),
        other => Error::internal(format!("the server's answer cannot be read: {other}")),
    }
}

/// The same, of a call below Flight SQL.
pub(super) fn refused(status: &Status) -> Error {
    let kind = match status.code() {
        Code::Unavailable => ErrorKind::Unavailable,
        Code::Unauthenticated => ErrorKind::Unauthenticated,
        Code::Cancelled => ErrorKind::Cancelled,
        Code::Internal => ErrorKind::Internal,
        _ => ErrorKind::Invalid,
    };
    Error::new(kind, status.message())
}
