//! `DoPut`: updates, bound parameters, bulk ingest, and streams of writes ([`super::append`]).

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow_flight::decode::DecodedPayload;
use arrow_flight::error::FlightError;
use arrow_flight::sql::{
    CommandStatementIngest, DoPutPreparedStatementResult, DoPutUpdateResult, TableDefinitionOptions,
    TableExistsOption, TableNotExistOption,
};
use arrow_flight::{FlightData, PutResult};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use tonic::Streaming;

use super::append::append;
use super::commands::Request;
use super::decode::decoded;
use super::direct::Direct;
use super::drain::Drain;
use super::handle::Statement;
use super::metadata::CATALOG;
use super::security::Seals;
use super::status::from_client_stream;
use super::stream::Answers;
use crate::error::{Error, Result};
use crate::model::IdempotencyKey;
use crate::sql::{IfExists, IfNotExists, IngestTarget, Session};

/// Parameters are held in memory; rows by the million belong into bulk ingest.
const PARAMETER_BYTES_MAX: usize = 256 << 20;

/// The descriptor comes with the first message, so nobody knows what it was about.
const NOTHING_PUT: &str = "the stream ended before its first message: some clients send nothing at all of a table \
                           that has no rows; ADBC does send a record batch without rows";

/// Runs what the first message of the stream asks for.
pub(super) async fn put(
    session: &Arc<Session>,
    seals: &Seals,
    drain: &Arc<Drain>,
    key: Option<IdempotencyKey>,
    mut messages: Streaming<FlightData>,
) -> Result<Put> {
    let first = messages.message().await.map_err(|status| from_client_stream(&status))?;
    let mut first = first.ok_or_else(|| Error::invalid(NOTHING_PUT))?;
    let descriptor = first
        .flight_descriptor
        .take()
        .ok_or_else(|| Error::invalid("the first message of a put must carry a descriptor"))?;
    if Direct::is(&descriptor.cmd) {
        if key.is_some() {
            return Err(Error::invalid(
                "the header fletching-idempotency-key names one write, and this stream has many: give each batch its \
                 own key, as its app_metadata",
            ));
        }
        let answers = append(session, Arc::clone(drain), &descriptor.cmd, first, messages).await?;
        return Ok(Put::Stream(answers));
    }
    let request = Request::of_descriptor(&descriptor, seals)?;
    put_one(session, seals, key, request, Rows::open(first, messages)).await.map(Put::Done)
}

/// What is answered.
pub(super) enum Put {
    /// Once, when all is done.
    Done(PutResult),
    /// For each write of a stream.
    Stream(Answers<PutResult>),
}

async fn put_one(
    session: &Arc<Session>,
    seals: &Seals,
    key: Option<IdempotencyKey>,
    request: Request,
    rows: impl Future<Output = Result<Rows>>,
) -> Result<PutResult> {
    match request {
        Request::Update(statement) => update(session, &statement, None, key).await,
        Request::PreparedUpdate(statement) => {
            let rows = rows.await?.collect().await?;
            let parameters = match rows {
                Some(rows) => Some(rows),
                None => statement.parameters()?,
            };
            update(session, &statement, parameters, key).await
        }
        Request::Prepared(statement) => bind(&statement, seals, rows.await?.collect().await?),
        Request::Ingest(command) => ingest(session, command, key, rows.await?).await,
        Request::Query(_) | Request::Metadata(_) | Request::Ticket(_) | Request::Direct(_) => {
            Err(Error::invalid("this command is no put; send it through GetFlightInfo"))
        }
    }
}

async fn update(
    session: &Arc<Session>,
    statement: &Statement,
    parameters: Option<RecordBatch>,
    key: Option<IdempotencyKey>,
) -> Result<PutResult> {
    let affected = session.update_once(&statement.sql, parameters.as_ref(), key).await?;
    Ok(affected_rows(affected))
}

pub(super) fn affected_rows(rows: u64) -> PutResult {
    let result = DoPutUpdateResult { record_count: i64::try_from(rows).unwrap_or(i64::MAX) };
    PutResult { app_metadata: result.encode_to_vec().into() }
}

/// Answers with a handle that carries the values: the one to execute from now on.
fn bind(statement: &Statement, seals: &Seals, parameters: Option<RecordBatch>) -> Result<PutResult> {
    let bound = match parameters {
        Some(parameters) => statement.bound_to(&parameters)?,
        None => Statement::new(statement.sql.clone()),
    };
    let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(bound.to_handle(seals)) };
    Ok(PutResult { app_metadata: result.encode_to_vec().into() })
}

async fn ingest(
    session: &Arc<Session>,
    command: CommandStatementIngest,
    key: Option<IdempotencyKey>,
    rows: Rows,
) -> Result<PutResult> {
    let target = IngestTarget { idempotency_key: key, ..ingest_target(command)? };
    let rows = rows.into_stream().ok_or_else(|| Error::invalid("an ingest without a schema"))?;
    Ok(affected_rows(session.ingest(target, rows).await?))
}

fn ingest_target(command: CommandStatementIngest) -> Result<IngestTarget> {
    if let Some(catalog) = command.catalog.filter(|catalog| !catalog.is_empty() && catalog != CATALOG) {
        return Err(Error::not_found(format!(
            "catalog '{catalog}' does not exist; the one catalog is {CATALOG}"
        )));
    }
    if command.table.is_empty() {
        return Err(Error::invalid("an ingest must name a table"));
    }
    let options = command.table_definition_options.unwrap_or_default();
    let (if_not_exists, if_exists) = ingest_mode(options)?;
    Ok(IngestTarget {
        schema: command.schema.filter(|schema| !schema.is_empty()),
        table: command.table,
        temporary: command.temporary,
        if_not_exists,
        if_exists,
        idempotency_key: None,
    })
}

/// Unspecified means what is least surprising: a table that is there gets more rows, one that is not is an error.
fn ingest_mode(options: TableDefinitionOptions) -> Result<(IfNotExists, IfExists)> {
    let unknown = || Error::invalid("an ingest mode that this version does not know");
    let if_not_exists = match TableNotExistOption::try_from(options.if_not_exist).map_err(|_| unknown())? {
        TableNotExistOption::Create => IfNotExists::Create,
        TableNotExistOption::Fail | TableNotExistOption::Unspecified => IfNotExists::Fail,
    };
    let if_exists = match TableExistsOption::try_from(options.if_exists).map_err(|_| unknown())? {
        TableExistsOption::Fail => IfExists::Fail,
        TableExistsOption::Append | TableExistsOption::Unspecified => IfExists::Append,
        TableExistsOption::Replace => IfExists::Replace,
    };
    Ok((if_not_exists, if_exists))
}

/// The rows of a put.
struct Rows {
    /// `None` when the client sent no rows, not even a schema.
    schema: Option<SchemaRef>,
    batches: BoxStream<'static, Result<RecordBatch>>,
}

impl Rows {
    /// Reads up to the schema. Clients without rows send a descriptor alone, or a schema without columns.
    async fn open(first: FlightData, rest: Streaming<FlightData>) -> Result<Self> {
        let rest = rest.map_err(FlightError::from);
        if first.data_header.is_empty() {
            return Ok(Self { schema: None, batches: stream::empty().boxed() });
        }
        let messages = stream::iter([Ok(first)]).chain(rest);
        let mut decoder = decoded(messages);
        let payload = decoder.try_next().await?.map(|message| message.payload);
        let Some(DecodedPayload::Schema(schema)) = payload else {
            return Err(Error::invalid("the first message of a put must carry the schema of its rows"));
        };
        let batches = decoder.try_filter_map(|message| async move {
            match message.payload {
                DecodedPayload::None => Ok(None),
                DecodedPayload::RecordBatch(batch) => Ok(Some(batch)),
                DecodedPayload::Schema(_) => Err(Error::invalid("the schema changed in the middle of a put")),
            }
        });
        Ok(Self { schema: Some(schema), batches: batches.boxed() })
    }

    /// All rows as one batch; `None` if there are no columns.
    async fn collect(mut self) -> Result<Option<RecordBatch>> {
        let Some(schema) = self.schema.filter(|schema| !schema.fields().is_empty()) else { return Ok(None) };
        let (mut batches, mut bytes) = (Vec::new(), 0);
        while let Some(batch) = self.batches.try_next().await? {
            bytes += batch.get_array_memory_size();
            if bytes > PARAMETER_BYTES_MAX {
                return Err(Error::exhausted(format!(
                    "the bound parameters take more than {PARAMETER_BYTES_MAX} bytes; use bulk ingest"
                )));
            }
            batches.push(batch);
        }
        Ok(Some(concat_batches(&schema, &batches)?))
    }

    fn into_stream(self) -> Option<SendableRecordBatchStream> {
        let batches = self.batches.map_err(Into::into);
        Some(Box::pin(RecordBatchStreamAdapter::new(self.schema?, batches)))
    }
}
