//! Flight SQL as the specification has it: every command by every call, sessions, tickets and endpoints, one schema.

mod appends;
mod calls;
mod endpoints;
mod idempotency;
mod schemas;
mod sessions;
mod tickets;

use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt};
use arrow_flight::{Action, FlightDescriptor, FlightInfo};
use bytes::Bytes;
use futures::TryStreamExt;
use prost::Message;
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;

type Raw = FlightServiceClient<Channel>;

/// A query, as a descriptor.
fn asked(sql: &str) -> FlightDescriptor {
    let command = CommandStatementQuery { query: sql.to_owned(), transaction_id: None };
    FlightDescriptor::new_cmd(command.as_any().encode_to_vec())
}

async fn info(raw: &mut Raw, sql: &str) -> FlightInfo {
    raw.get_flight_info(asked(sql)).await.unwrap().into_inner()
}

/// The bodies that an action answers, and the headers before them.
async fn act(raw: &mut Raw, name: &str, body: Vec<u8>) -> Result<(Vec<Bytes>, MetadataMap), Status> {
    let response = raw.do_action(Action::new(name, body)).await?;
    let headers = response.metadata().clone();
    let answers: Vec<_> = response.into_inner().try_collect().await?;
    Ok((answers.into_iter().map(|answer| answer.body).collect(), headers))
}
