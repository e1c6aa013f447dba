//! The shell's side of the wire.

use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::CommandGetTables;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::{FlightInfo, Ticket};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, ErrorKind, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a server.
pub(super) struct Client {
    flight: FlightSqlServiceClient<Channel>,
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
    pub(super) async fn connect(url: &str) -> Result<Self> {
        let endpoint = endpoint(url)?;
        let channel = endpoint.connect().await.map_err(|error| {
            Error::unavailable(format!(
                "cannot connect to {url}: {}; is `fletching serve` running there?",
                root_cause(&error)
            ))
        })?;
        let flight = FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX);
        Ok(Self { flight: FlightSqlServiceClient::new_from_inner(flight) })
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

fn endpoint(url: &str) -> Result<Endpoint> {
    let address = match url.split_once("://") {
        None => url,
        Some(("grpc" | "grpc+tcp" | "http", address)) => address,
        Some((scheme, _)) => {
            return Err(Error::unsupported(format!("{scheme}:// is not supported; use grpc://host:port")));
        }
    };
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| Error::invalid(format!("'{url}' is no URL such as grpc://127.0.0.1:8815")))?;
    Ok(endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true))
}

/// What the server said, in its own words.
fn said(error: FlightError) -> Error {
    match error {
        FlightError::Tonic(status) => {
            let kind = match status.code() {
                Code::Unavailable => ErrorKind::Unavailable,
                Code::Cancelled => ErrorKind::Cancelled,
                Code::Internal => ErrorKind::Internal,
                _ => ErrorKind::Invalid,
            };
            Error::new(kind, status.message())
        }
        other => Error::internal(format!("the server's answer cannot be read: {other}")),
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for url in ["grpc://127.0.0.1:8815", "grpc+tcp://localhost:1", "http://[::1]:8815", "localhost:8815"]
        {
            assert!(endpoint(url).is_ok(), "{url}");
        }
        for url in ["grpc+tls://h:1", "ftp://h", "grpc://"] {
            assert!(endpoint(url).is_err(), "{url}");
        }
    }
}
