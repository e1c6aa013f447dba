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
//! may wait for the answer, or send on: writes that have come together are made together. The first that fails ends the
//! stream; those without an answer may have been made or not, and can be sent again with their keys.

use std::sync::Arc;

use arrow_flight::{FlightData, PutResult};
use futures::stream::{self, StreamExt};
use serde::Deserialize;
use tonic::{Status, Streaming};

use super::decode::{Tagged, tagged};
use super::drain::Drain;
use super::put::affected_rows;
use super::stream::Answers;
use crate::error::{Error, Result};
use crate::ingest::Append;
use crate::model::IdempotencyKey;
use crate::sql::{Appends, Session};

/// So many writes are made together.
const TOGETHER_MAX: usize = 64;

/// How the descriptor looks, for the errors.
const FORM: &str = r#"write {"append": "table"}"#;

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
    let arrived = tagged(first, rest).ready_chunks(TOGETHER_MAX);
    let answers = stream::unfold(Some((appends, arrived)), move |open| {
        let drain = Arc::clone(&drain);
        async move {
            let (mut appends, mut arrived) = open?;
            let together = tokio::select! {
                biased;
                () = drain.draining() => vec![Err(stopping())],
                together = arrived.next() => match together {
                    Some(together) => together,
                    None => {
                        appends.finish();
                        return None;
                    }
                },
            };
            let (answers, ended) = write(&mut appends, together).await;
            let mut answers: Vec<Result<PutResult, Status>> = answers.into_iter().map(Ok).collect();
            match ended {
                Ok(()) => Some((answers, Some((appends, arrived)))),
                Err(error) => {
                    answers.push(Err(appends.fail(error).into()));
                    Some((answers, None))
                }
            }
        }
    });
    Ok(answers.flat_map(stream::iter).boxed())
}

/// Makes writes that came together, up to the first that fails or did not come whole. Returns the answers of those that
/// were made.
async fn write(appends: &mut Appends, together: Vec<Result<Tagged>>) -> (Vec<PutResult>, Result<()>) {
    let mut writes = Vec::with_capacity(together.len());
    let mut broken = Ok(());
    for arrived in together {
        match arrived.and_then(named) {
            Ok(write) => writes.push(write),
            Err(error) => {
                broken = Err(error);
                break;
            }
        }
    }
    let (added, ended) = appends.write(&writes).await;
    (added.into_iter().map(affected_rows).collect(), ended.and(broken))
}

fn named((rows, metadata): Tagged) -> Result<Append> {
    if metadata.is_empty() {
        return Ok(Append { rows, key: None });
    }
    let text = std::str::from_utf8(&metadata).map_err(|_| {
        Error::invalid("the app_metadata of a batch is its idempotency key, and this is not text")
    })?;
    Ok(Append { rows, key: Some(IdempotencyKey::parse(text)?) })
}

fn stopping() -> Error {
    Error::unavailable(
        "the server is stopping: send what it has not acknowledged to another, or again when it is back",
    )
}
