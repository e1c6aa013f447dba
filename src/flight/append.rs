//! `DoPut` of many writes by one call: each batch is a write by itself, acknowledged as soon as it is durable.
//!
//! The first message carries the schema of the rows, and in its descriptor what they are appended to:
//!
//! ```text
//! {"append": "user_purchases"}
//! ```
//!
//! Each batch is written wholly or not at all, in the order of the stream, and may carry its idempotency key as
//! `app_metadata`. It is answered by one `PutResult` whose `app_metadata` is the `DoPutUpdateResult` of Flight SQL. A client
//! may wait for the answer, or send on and read the answers meanwhile: small writes that have come together are made
//! together. The first write that fails ends the stream; those without an answer may have been made or not, and can be sent
//! again with their keys.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow_flight::{FlightData, PutResult};
use futures::stream::{self, BoxStream, StreamExt};
use serde::Deserialize;
use tonic::{Status, Streaming};

use super::decode::{Tagged, tagged, together};
use super::drain::Drain;
use super::put::affected_rows;
use super::stream::Answers;
use crate::error::{Error, Result};
use crate::ingest::Append;
use crate::model::IdempotencyKey;
use crate::sql::{Appends, Session};

/// How the descriptor looks, for the errors.
const FORM: &str = r#"write {"append": "table"}, or ask a {"query": …} through DoGet or DoExchange"#;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    append: String,
}

/// Makes the writes of one stream; `command` is that of its descriptor.
pub(super) async fn append(
    session: &Arc<Session>,
    drain: Arc<Drain>,
    command: &[u8],
    first: FlightData,
    rest: Streaming<FlightData>,
) -> Result<Answers<PutResult>> {
    let request: Request = serde_json::from_slice(command)
        .map_err(|error| Error::invalid(format!("the request is not understood: {error}; {FORM}")))?;
    let appends = session.begin_appends(&request.append).await?;
    let arriving = together(tagged(first, rest));
    let open = Open { appends, drain, arriving, arrived: VecDeque::new(), broken: Ok(()) };
    let answers = stream::unfold(Some(open), async |open| {
        let mut open = open?;
        match open.next().await {
            Ok(Some(answers)) => Some((answers, Some(open))),
            Ok(None) => {
                open.appends.finish();
                None
            }
            Err((mut answers, error)) => {
                answers.push(Err(open.appends.fail(error).into()));
                Some((answers, None))
            }
        }
    });
    Ok(answers.flat_map(stream::iter).boxed())
}

type Acknowledged = Vec<Result<PutResult, Status>>;

/// A stream that goes on.
struct Open {
    appends: Appends,
    drain: Arc<Drain>,
    arriving: BoxStream<'static, Vec<Result<Tagged>>>,
    /// Writes that are still to be made.
    arrived: VecDeque<Append>,
    /// Whether something that is no write came behind them.
    broken: Result<()>,
}

impl Open {
    /// Makes the next writes, and answers them; `None` at the end. With an error come the answers of those that were made.
    async fn next(&mut self) -> Result<Option<Acknowledged>, (Acknowledged, Error)> {
        if self.arrived.is_empty() {
            std::mem::replace(&mut self.broken, Ok(())).map_err(|error| (Vec::new(), error))?;
            match self.arrive().await.map_err(|error| (Vec::new(), error))? {
                true if self.arrived.is_empty() => return Ok(Some(Vec::new())), // it is broken, as the next call says
                true => {}
                false => return Ok(None),
            }
        }
        let (added, ended) = self.appends.write_some(&mut self.arrived).await;
        let answers = added.into_iter().map(|rows| Ok(affected_rows(rows))).collect();
        match ended {
            Ok(()) => Ok(Some(answers)),
            Err(error) => Err((answers, error)),
        }
    }

    /// Waits for writes, as long as the server takes any; whether there were some, or something else.
    async fn arrive(&mut self) -> Result<bool> {
        let arrived = tokio::select! {
            biased;
            () = self.drain.draining() => return Err(stopping()),
            arrived = self.appends.until_cancelled(self.arriving.next()) => arrived?,
        };
        let Some(arrived) = arrived else { return Ok(false) };
        for write in arrived {
            match write.and_then(named) {
                Ok(write) => self.arrived.push_back(write),
                Err(error) => {
                    self.broken = Err(error);
                    break;
                }
            }
        }
        Ok(true)
    }
}

fn named(Tagged { rows, metadata, bytes }: Tagged) -> Result<Append> {
    if metadata.is_empty() {
        return Ok(Append { rows, key: None, bytes });
    }
    let text = std::str::from_utf8(&metadata).map_err(|_| {
        Error::invalid("the app_metadata of a batch is its idempotency key, and this is not text")
    })?;
    Ok(Append { rows, key: Some(IdempotencyKey::parse(text)?), bytes })
}

fn stopping() -> Error {
    Error::unavailable(
        "the server is stopping: send what it has not acknowledged to another, or again when it is back",
    )
}
