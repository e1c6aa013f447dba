//! `DoExchange`: one query, asked again for every batch of parameters that comes, as fast as they come.
//!
//! The first message carries the query in its descriptor (see [`super::direct`]) and the schema of the parameters:
//! column k holds the values of placeholder k. Each batch is answered by the result of the query for its rows, in the
//! order of the batches, by at least one batch; every batch of an answer carries the `app_metadata` of its question.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow_flight::FlightData;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::error::FlightError;
use bytes::Bytes;
use datafusion::execution::SendableRecordBatchStream;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use tonic::{Status, Streaming};

use super::direct::Direct;
use super::message::Message;
use super::status::{from_client_stream, from_decoder};
use super::stream::{Answers, Encoder, pieces};
use crate::error::{Error, Result};
use crate::sql::{Session, StatementKind};

/// Questions that are being answered at a time; the client's next ones wait in its stream.
const QUESTIONS_MAX: usize = 16;

/// A batch of parameters, and the metadata that goes back with its answer.
type Question = (RecordBatch, Bytes);

/// Answers the questions of one stream.
pub(super) async fn exchange(
    session: Arc<Session>,
    encoder: &Encoder,
    mut messages: Streaming<FlightData>,
) -> Result<Answers<Message>> {
    let first = messages.message().await.map_err(|status| from_client_stream(&status))?;
    let mut first = first.ok_or_else(|| Error::invalid("the stream ended before its first message"))?;
    let descriptor = first.flight_descriptor.take().unwrap_or_default();
    if !Direct::is(&descriptor.cmd) {
        return Err(Error::invalid(
            r#"the first message of an exchange must carry a descriptor whose command is {"query": "SELECT … ? …"}"#,
        ));
    }
    let direct = Direct::parse(&descriptor.cmd)?;
    if direct.has_parameters() {
        return Err(Error::invalid(
            "the parameters of an exchange are the batches that follow: leave them out of its descriptor",
        ));
    }
    let prepared = session.prepare(&direct.query).await?;
    if prepared.kind != StatementKind::Query {
        return Err(Error::invalid("an exchange asks a query: send what changes something through DoPut"));
    }
    let schema = prepared.schema;
    let opening = stream::iter([encoder.schema(&schema)]);
    let sql: Arc<str> = direct.query.into();
    let answers = questions(first, messages)
        .map(move |question| answer(Arc::clone(&session), Arc::clone(&sql), Arc::clone(&schema), question))
        .buffered(QUESTIONS_MAX)
        .try_flatten();
    Ok(opening.chain(answers).map_err(Status::from).boxed())
}

/// The batches of the client, without the schema before them.
fn questions(first: FlightData, rest: Streaming<FlightData>) -> BoxStream<'static, Result<Question>> {
    let messages = stream::iter([Ok(first)]).chain(rest.map_err(FlightError::from));
    let decoded = FlightDataDecoder::new(messages).map_err(from_decoder);
    let mut begun = false;
    let questions = decoded.try_filter_map(move |message| {
        let question = match message.payload {
            DecodedPayload::None => Ok(None),
            DecodedPayload::Schema(_) if !std::mem::replace(&mut begun, true) => Ok(None),
            DecodedPayload::Schema(_) => {
                Err(Error::invalid("the schema changed in the middle of an exchange"))
            }
            DecodedPayload::RecordBatch(batch) => Ok(Some((batch, message.inner.app_metadata))),
        };
        std::future::ready(question)
    });
    questions.boxed()
}

/// The answer to one question, of which the first batch is there already: so many questions are read for together.
async fn answer(
    session: Arc<Session>,
    sql: Arc<str>,
    schema: SchemaRef,
    question: Result<Question>,
) -> Result<BoxStream<'static, Result<Message>>> {
    let (parameters, metadata) = question?;
    let mut batches: SendableRecordBatchStream = session.query(&sql, Some(&parameters)).await?;
    if batches.schema() != schema {
        return Err(Error::invalid(
            "the types of the result depend on those of the parameters: CAST the placeholders of the query",
        ));
    }
    let first = match batches.try_next().await? {
        Some(first) => first,
        None => RecordBatch::new_empty(schema),
    };
    let batches = stream::iter([Ok(first)]).chain(batches.map_err(Error::from));
    let parts = batches.map_ok(|batch| stream::iter(pieces(batch)).map(Ok)).try_flatten();
    Ok(parts.and_then(move |part| std::future::ready(Message::of_batch(&part, &metadata))).boxed())
}
