//! What a file's statements talk to: a server on a data directory of its own, by sessions of its engine or by the wire.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow_flight::FlightInfo;
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use async_trait::async_trait;
use chrono::DateTime;
use fletching::clock::ManualClock;
use fletching::error::{Error, ErrorKind};
use fletching::{Server, Session, StatementKind};
use futures::TryStreamExt;
use sqllogictest::{AsyncDB, DBOutput};
use tempfile::TempDir;
use tokio::sync::Mutex;
use tonic::Code;
use tonic::transport::Channel;

use super::format::{Letter, letters, rows};
use crate::support;

/// How statements reach the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    InProcess,
    OverFlight,
}

impl Way {
    /// For `onlyif` and `skipif`.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::InProcess => "in_process",
            Self::OverFlight => "over_flight",
        }
    }
}

/// Why a statement failed, in the words its caller saw.
#[derive(Debug)]
pub(super) struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// A caller's mistake must not read as a defect of ours; this text matches no expected message.
fn defect(code: impl fmt::Debug, message: &str) -> Failure {
    eprintln!("reported as {code:?}: {message}");
    Failure(format!("[{code:?}] (the message is on standard error)"))
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Internal => defect(error.kind(), &error.to_string()),
            _ => Self(error.to_string()),
        }
    }
}

impl From<FlightError> for Failure {
    fn from(error: FlightError) -> Self {
        match error {
            FlightError::Tonic(status) if [Code::Internal, Code::Unknown].contains(&status.code()) => {
                defect(status.code(), status.message())
            }
            FlightError::Tonic(status) => Self(status.message().to_owned()),
            other => Self(format!("the answer is not Flight SQL: {other}")),
        }
    }
}

impl From<arrow::error::ArrowError> for Failure {
    fn from(error: arrow::error::ArrowError) -> Self {
        Self(format!("the result does not decode: {error}"))
    }
}

type Outcome<T> = Result<T, Failure>;

struct Current {
    server: Option<Server>,
    /// Counts restarts: sessions of an earlier run are gone.
    run: u64,
}

/// A server, its clock and its data directory.
pub(super) struct Node {
    way: Way,
    data: TempDir,
    clock: Arc<ManualClock>,
    current: Mutex<Current>,
}

impl Node {
    pub(super) async fn start(way: Way) -> Outcome<Self> {
        let node = Self {
            way,
            data: tempfile::tempdir().unwrap(),
            clock: Arc::new(ManualClock::new(support::START_US)),
            current: Mutex::new(Current { server: None, run: 0 }),
        };
        node.restart().await?;
        Ok(node)
    }

    pub(super) async fn stop(&self) {
        if let Some(server) = self.current.lock().await.server.take() {
            server.shutdown().await.expect("the server stops in time");
        }
    }

    async fn restart(&self) -> Outcome<()> {
        self.stop().await;
        let server = support::start_server_with(self.data.path(), self.clock.clone(), |settings| {
            settings.copy_from = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt/files")];
        })
        .await?;
        let mut current = self.current.lock().await;
        current.server = Some(server);
        current.run += 1;
        Ok(())
    }

    async fn connect(&self) -> Outcome<(u64, Door)> {
        let current = self.current.lock().await;
        let Some(server) = current.server.as_ref() else {
            return Err(Failure("nothing runs".to_owned()));
        };
        let door = match self.way {
            Way::InProcess => Door::Session(server.engine().session()),
            Way::OverFlight => Door::Wire(Box::new(support::connect(server).await)),
        };
        Ok((current.run, door))
    }
}

enum Door {
    Session(Arc<Session>),
    Wire(Box<FlightSqlServiceClient<Channel>>),
}

/// One session of a file; `connection` records open more.
pub(super) struct Connection {
    node: Arc<Node>,
    door: Option<(u64, Door)>,
}

impl Connection {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node, door: None }
    }

    /// Does what a statement that is only a comment asks of the harness.
    async fn obey(&mut self, directive: &str) -> Outcome<()> {
        if directive == "restart" {
            self.door = None;
            return self.node.restart().await;
        }
        let time =
            directive.strip_prefix("clock:").unwrap_or_else(|| panic!("no such directive: {directive}"));
        let time = DateTime::parse_from_rfc3339(time.trim()).expect("-- clock: takes an RFC 3339 time");
        self.node.clock.set(time.timestamp_micros());
        Ok(())
    }

    async fn door(&mut self) -> Outcome<&mut Door> {
        let run = self.node.current.lock().await.run;
        if self.door.as_ref().is_none_or(|(of, _)| *of != run) {
            self.door = Some(self.node.connect().await?);
        }
        Ok(&mut self.door.as_mut().expect("just set").1)
    }
}

#[async_trait]
impl AsyncDB for Connection {
    type Error = Failure;
    type ColumnType = Letter;

    async fn run(&mut self, sql: &str) -> Outcome<DBOutput<Letter>> {
        if let Some(directive) = sql.trim().strip_prefix("-- ")
            && !directive.contains('\n')
        {
            self.obey(directive.trim()).await?;
            return Ok(DBOutput::StatementComplete(0));
        }
        match self.door().await? {
            Door::Session(session) => in_process(session, sql).await,
            Door::Wire(client) => over_flight(client, sql).await,
        }
    }

    async fn shutdown(&mut self) {
        self.door = None;
    }

    fn engine_name(&self) -> &str {
        "fletching"
    }
}

async fn in_process(session: &Arc<Session>, sql: &str) -> Outcome<DBOutput<Letter>> {
    let prepared = session.prepare(sql).await?;
    if prepared.kind == StatementKind::Update {
        return Ok(DBOutput::StatementComplete(session.update(sql, None).await?));
    }
    let stream = session.query(sql, None).await?;
    same_schema("the stream of", sql, &prepared.schema, &stream.schema());
    let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(Error::from)?;
    output(sql, &prepared.schema, &batches)
}

async fn over_flight(client: &mut FlightSqlServiceClient<Channel>, sql: &str) -> Outcome<DBOutput<Letter>> {
    let mut statement = client.prepare(sql.to_owned(), None).await?;
    let schema: SchemaRef = Arc::new(statement.dataset_schema()?.clone());
    if schema.fields().is_empty() {
        let affected = statement.execute_update().await?;
        statement.close().await?;
        return Ok(DBOutput::StatementComplete(u64::try_from(affected).unwrap_or(0)));
    }
    let info = statement.execute().await?;
    same_schema("the FlightInfo of", sql, &schema, &info.clone().try_decode_schema()?);
    let batches = fetch(client, info, sql, &schema).await?;
    statement.close().await?;
    output(sql, &schema, &batches)
}

async fn fetch(
    client: &mut FlightSqlServiceClient<Channel>,
    info: FlightInfo,
    sql: &str,
    schema: &SchemaRef,
) -> Outcome<Vec<RecordBatch>> {
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        let ticket = endpoint.ticket.expect("an endpoint has a ticket");
        let mut stream = client.do_get(ticket).await?;
        while let Some(batch) = stream.try_next().await? {
            batches.push(batch);
        }
        let streamed = stream.schema().expect("a stream starts with its schema");
        same_schema("the Flight stream of", sql, schema, streamed);
    }
    Ok(batches)
}

/// A statement has one schema, nullability included, whoever asks for it and when.
fn same_schema(what: &str, sql: &str, prepared: &Schema, streamed: &Schema) {
    assert_eq!(streamed, prepared, "left: the schema of {what} {sql}; right: as prepared");
}

fn output(sql: &str, schema: &SchemaRef, batches: &[RecordBatch]) -> Outcome<DBOutput<Letter>> {
    let mut all = Vec::new();
    for batch in batches {
        same_schema("a batch of", sql, schema, &batch.schema());
        all.extend(rows(batch)?);
    }
    Ok(DBOutput::Rows { types: letters(schema), rows: all })
}
