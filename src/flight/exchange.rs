//! `DoExchange`: one query, asked again for every batch of parameters that comes, as fast as they come.
//!
//! The first message carries the query in its descriptor (see [`super::direct`]) and the schema of the parameters:
//! column k holds the values of placeholder k. Each batch is answered by the result of the query for its rows, in the
//! order of the batches, by at least one batch; every batch of an answer carries the `app_metadata` of its question.

use std::future::ready;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow_flight::FlightData;
use datafusion::common::runtime::SpawnedTask;
use datafusion::execution::SendableRecordBatchStream;
use futures::FutureExt;
use futures::stream::{self, StreamExt, TryStreamExt};
use tonic::{Status, Streaming};
use tracing::Instrument;

use super::decode::{Tagged, tagged, together};
use super::direct::Direct;
use super::drain::Drain;
use super::message::Message;
use super::status::from_client_stream;
use super::stream::{Answers, Encoder, Stoppable, pieces};
use crate::error::{Error, Result};
use crate::sql::{Session, StatementKind};

/// Answers that are in the making at a time, beside each other; the client's next questions wait in its stream.
const IN_FLIGHT_MAX: usize = 4;
/// Small questions that have come together are answered together, up to so many rows.
const TOGETHER_ROWS_MAX: usize = 256;

/// Answers the questions of one stream.
pub(super) async fn exchange(
    session: Arc<Session>,
    encoder: &Encoder,
    drain: Arc<Drain>,
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
    let opening = stream::iter([encoder.schema(&schema).map_err(Status::from)]);
    // A server that is stopping answers what it has been asked, and hears no more questions.
    let stopping = Box::pin(async move {
        drain.draining().await;
        Error::unavailable("the server is stopping: ask another, or again when it is back")
    });
    let questions = Stoppable::new(tagged(first, messages).map_err(Status::from).boxed(), stopping, ());
    let asked = Arc::new(Asked { session, sql: direct.query, schema });
    // Without parameters the rows of a question say nothing of those of its answer.
    let rows_each = prepared.rows_each.filter(|_| !prepared.parameters.fields().is_empty());
    if let Some(rows_each) = rows_each {
        let parts = together(questions).flat_map(move |some| stream::iter(parts(some, rows_each)));
        let parts = parts.scan(false, |is_over, part| {
            ready((!std::mem::replace(is_over, part.is_err())).then_some(part)) // nothing behind an error
        });
        let answers = parts.map(move |part| Arc::clone(&asked).answer_part(part, rows_each));
        let messages = answers.buffered(IN_FLIGHT_MAX).map_ok(|part| stream::iter(part).map(Ok));
        return Ok(opening.chain(messages.try_flatten()).boxed());
    }
    // One after the other: an answer keeps its turn among the queries until it is read, and a later one must not have
    // it while an earlier one waits.
    let answers = questions.then(move |question| {
        let asked = Arc::clone(&asked);
        async move { asked.answer(question?).await }
    });
    Ok(opening.chain(answers.try_flatten()).boxed())
}

/// The questions in parts that are answered beside each other, in their order; an error is one of its own.
fn parts(questions: Vec<Result<Tagged, Status>>, rows_each: usize) -> Vec<Result<Vec<Tagged>, Status>> {
    let (mut parts, mut rows) = (Vec::<Result<Vec<Tagged>, Status>>::new(), 0_usize);
    for question in questions {
        let more = question.as_ref().map_or(0, |question| question.rows.num_rows().saturating_mul(rows_each));
        match (question, parts.last_mut()) {
            (Ok(question), Some(Ok(part))) if rows.saturating_add(more) <= TOGETHER_ROWS_MAX => {
                rows += more;
                part.push(question);
            }
            (question, _) => {
                rows = more;
                parts.push(question.map(|question| vec![question]));
            }
        }
    }
    parts
}

/// What an exchange asks for.
struct Asked {
    session: Arc<Session>,
    sql: String,
    schema: SchemaRef,
}

impl Asked {
    /// The answer to one question, of which the first batch is there already.
    /// The metadata of the question goes back with its answer.
    async fn answer(
        &self,
        Tagged { rows: parameters, metadata, .. }: Tagged,
    ) -> Result<Answers<Message>, Status> {
        let mut batches = self.ask(&parameters).await?;
        let first = match batches.try_next().await.map_err(Error::from)? {
            Some(first) => first,
            None => RecordBatch::new_empty(Arc::clone(&self.schema)),
        };
        let batches = stream::iter([Ok(first)]).chain(batches.map_err(Error::from));
        let parts = batches.map_ok(|batch| stream::iter(pieces(batch)).map(Ok)).try_flatten();
        let messages = parts.and_then(move |part| ready(Message::of_batch(&part, &metadata)));
        Ok(messages.map_err(Status::from).boxed())
    }

    /// The answers to questions of which each row has `rows_each` rows: read for at once. A large one has a task of its own,
    /// so that a stream is not kept to one core; small ones are answered before it would have begun.
    fn answer_part(
        self: Arc<Self>,
        questions: Result<Vec<Tagged>, Status>,
        rows_each: usize,
    ) -> impl Future<Output = Result<Vec<Message>, Status>> + Send {
        let is_large = questions.as_ref().is_ok_and(|questions| match questions.as_slice() {
            [question] => question.rows.num_rows().saturating_mul(rows_each) > TOGETHER_ROWS_MAX,
            _ => false,
        });
        let answers = async move {
            match questions?.as_slice() {
                [question] => self.answer_alone(question, rows_each).await,
                questions => self.answer_together(questions, rows_each).await,
            }
        };
        if !is_large {
            return answers.left_future();
        }
        // It begins here, whoever waits for it when.
        let task = SpawnedTask::spawn(answers.in_current_span());
        let stopped = |_| Err(Error::unavailable("the server is shutting down: ask another").into());
        async move { task.join_unwind().await.unwrap_or_else(stopped) }.right_future()
    }

    async fn answer_alone(&self, question: &Tagged, rows_each: usize) -> Result<Vec<Message>, Status> {
        let mut batches = self.ask(&question.rows).await?;
        let (mut messages, mut rows) = (Vec::new(), 0);
        let message = |rows: &RecordBatch| Message::of_batch(rows, &question.metadata);
        while let Some(batch) = batches.try_next().await.map_err(Error::from)? {
            rows += batch.num_rows();
            for piece in pieces(batch) {
                messages.push(message(&piece)?);
            }
        }
        if rows != question.rows.num_rows().saturating_mul(rows_each) {
            return Err(changed().into());
        }
        if messages.is_empty() {
            messages.push(message(&RecordBatch::new_empty(Arc::clone(&self.schema)))?);
        }
        Ok(messages)
    }

    async fn answer_together(&self, questions: &[Tagged], rows_each: usize) -> Result<Vec<Message>, Status> {
        let Some(Tagged { rows: first, .. }) = questions.first() else { return Ok(Vec::new()) };
        let parameters = concat_batches(first.schema_ref(), questions.iter().map(|question| &question.rows))
            .map_err(Error::from)?;
        let batches: Vec<RecordBatch> =
            self.ask(&parameters).await?.try_collect().await.map_err(Error::from)?;
        let answers = match batches.as_slice() {
            [only] => only.clone(),
            _ => concat_batches(&self.schema, &batches).map_err(Error::from)?,
        };
        if answers.num_rows() != parameters.num_rows() * rows_each {
            return Err(changed().into());
        }
        let (mut messages, mut start) = (Vec::with_capacity(questions.len()), 0);
        for Tagged { rows: parameters, metadata, .. } in questions {
            let rows = parameters.num_rows() * rows_each;
            for piece in pieces(answers.slice(start, rows)) {
                messages.push(Message::of_batch(&piece, metadata)?);
            }
            start += rows;
        }
        Ok(messages)
    }

    /// The rows of the query, of the schema that the exchange has begun with.
    async fn ask(&self, parameters: &RecordBatch) -> Result<SendableRecordBatchStream, Status> {
        let batches = self.session.query(&self.sql, Some(parameters)).await?;
        match batches.schema() == self.schema {
            true => Ok(batches),
            false => Err(self.other_schema().await?.into()),
        }
    }

    /// Why the result of the query is not what the opening of the exchange said.
    async fn other_schema(&self) -> Result<Error> {
        Ok(match self.session.prepare(&self.sql).await?.schema == self.schema {
            true => Error::invalid(
                "the types of the result depend on those of the parameters: CAST the placeholders of the query",
            ),
            false => changed(),
        })
    }
}

fn changed() -> Error {
    Error::conflict("the definition of what is asked has changed: begin the exchange anew")
}

#[cfg(test)]
mod tests {
    use super::*;

    use arrow::array::{ArrayRef, Int64Array};
    use bytes::Bytes;

    fn question(rows: usize) -> Result<Tagged, Status> {
        let values: ArrayRef = Arc::new(Int64Array::from(vec![0; rows]));
        let rows = RecordBatch::try_from_iter([("$1", values)]).unwrap();
        Ok(Tagged { rows, metadata: Bytes::new(), bytes: 0 })
    }

    /// The rows of the questions in each part; -1 for an error.
    fn rows(questions: Vec<Result<Tagged, Status>>, rows_each: usize) -> Vec<Vec<i64>> {
        let of = |part: Vec<Tagged>| part.iter().map(|question| question.rows.num_rows() as i64).collect();
        parts(questions, rows_each).into_iter().map(|part| part.map_or_else(|_| vec![-1], of)).collect()
    }

    #[test]
    fn small_questions_are_answered_together_and_large_ones_beside_each_other() {
        let asked = |rows: &[usize]| rows.iter().map(|rows| question(*rows)).collect();
        assert_eq!(rows(asked(&[]), 1), Vec::<Vec<i64>>::new());
        assert_eq!(rows(asked(&[1, 0, 254, 1]), 1), [vec![1, 0, 254, 1]]);
        assert_eq!(rows(asked(&[200, 57, 199, 1]), 1), [vec![200], vec![57, 199], vec![1]]);
        assert_eq!(
            rows(asked(&[1000, 1000, 1, 1, 1000]), 1),
            [vec![1000], vec![1000], vec![1, 1], vec![1000]]
        );
        assert_eq!(rows(asked(&[100, 100, 100]), 2), [vec![100], vec![100], vec![100]]);
    }

    #[test]
    fn an_error_keeps_its_place() {
        let questions = vec![question(1), question(2), Err(Status::cancelled("")), question(3), question(4)];
        assert_eq!(rows(questions, 1), [vec![1, 2], vec![-1], vec![3, 4]]);
    }
}
