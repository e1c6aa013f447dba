//! Small writes: writers that each write a row, or a few, and wait until it is acknowledged: by a `DoPut` of its own, or as
//! the next batch of one `DoPut` for all writes of the writer.

use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::{
    Any, CommandStatementIngest, DoPutUpdateResult, ProstMessageExt, TableDefinitionOptions,
};
use arrow_flight::{FlightData, FlightDescriptor, PutResult, SchemaAsIpc};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use futures::future::try_join_all;
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::Failure;
use crate::answers::parse;
use crate::calls::Server;
use crate::entities::{Entities, feature, name};
use crate::exchange::encode;
use crate::record::{Record, Window};

/// 2026-01-01 in µs since 1970: the event time of the first row; each row has one of its own.
const FIRST_TIME_US: u64 = 1_767_225_600_000_000;

/// `CREATE FEATURE GROUP … (user_id BIGINT, event_timestamp TIMESTAMP WITH TIME ZONE, f00 DOUBLE, f01 DOUBLE, …,
/// ENTITY KEY (user_id), EVENT TIME (event_timestamp))` makes what this writes into.
#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    #[command(flatten)]
    server: Server,
    /// The feature group: user_id, event_timestamp, and features f00, f01, …
    #[arg(long, default_value = "user_features")]
    group: String,
    /// Its features
    #[arg(long, default_value_t = 10)]
    features: usize,
    /// Rows of each write
    #[arg(long, default_value_t = 1)]
    rows: usize,
    /// Entities there are: keys are drawn from 0 up to here, each as likely
    #[arg(long, default_value_t = 100_000)]
    entities: u64,
    /// How many write at a time
    #[arg(long, default_value_t = 64)]
    writers: u64,
    /// Connections they share
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// How each write goes
    #[arg(long, value_enum, default_value = "call")]
    by: By,
    /// Seconds before anything counts
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Seconds that count
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum By {
    /// A bulk ingest of its own
    Call,
    /// The next batch of a stream of writes
    Stream,
}

/// Writes, and says what happened: `acknowledged_rows` are all that the group must have now, of these writers.
pub(crate) async fn run(args: WriteArgs) -> Result<Value, Failure> {
    if args.rows == 0 || args.connections == 0 || args.writers == 0 {
        return Err("a write has a row at least, and there are writers and connections".into());
    }
    let channels = try_join_all((0..args.connections).map(|_| args.server.connect())).await?;
    let window = Window::starting_now(args.warm_up, args.seconds);
    let shape = Arc::new(Shape::new(&args)?);
    let writing = (0..args.writers).zip(channels.iter().cycle()).map(|(number, channel)| {
        let writer = Writer {
            server: args.server.clone(),
            by: args.by,
            client: FlightServiceClient::new(channel.clone()),
            shape: Arc::clone(&shape),
            entities: Entities::new(args.entities, number),
            time_us: FIRST_TIME_US + number,
            step_us: args.writers,
            acknowledged: 0,
        };
        async move { tokio::spawn(writer.run(window)).await? }
    });
    let (mut all, mut acknowledged) = (Record::new(window)?, 0);
    for (writes, record) in try_join_all(writing).await? {
        all.add(record)?;
        acknowledged += writes;
    }
    let mut found = all.to_json(args.rows);
    found["acknowledged_rows"] = json!(acknowledged * args.rows as u64);
    Ok(found)
}

fn ingest(group: &str) -> Any {
    let command = CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions::default()),
        table: group.to_owned(),
        schema: None,
        catalog: None,
        temporary: false,
        transaction_id: None,
        options: std::collections::HashMap::new(),
    };
    command.as_any()
}

/// What all writes have in common. They are of one shape, so one is encoded, and the others differ in their values.
struct Shape {
    opening: FlightData,
    header: Bytes,
    body: Vec<u8>,
    rows: usize,
    /// Where in the body the values of each column begin: key, time, features.
    columns: Vec<usize>,
}

impl Shape {
    fn new(args: &WriteArgs) -> Result<Self, Failure> {
        let zeros = vec![0; args.rows];
        let time = TimestampMicrosecondArray::from(zeros.clone()).with_timezone("UTC");
        let mut columns: Vec<(String, ArrayRef)> = vec![
            ("user_id".to_owned(), Arc::new(Int64Array::from(zeros))),
            ("event_timestamp".to_owned(), Arc::new(time)),
        ];
        for number in 0..args.features {
            columns.push((name(number), Arc::new(Float64Array::from(vec![0.0; args.rows]))));
        }
        let batch = RecordBatch::try_from_iter(columns)?;
        let command = match args.by {
            By::Call => ingest(&args.group).encode_to_vec(),
            By::Stream => json!({ "append": args.group }).to_string().into_bytes(),
        };
        let opening = FlightData::from(SchemaAsIpc::new(&batch.schema(), &IpcWriteOptions::default()))
            .with_descriptor(FlightDescriptor::new_cmd(command));
        let message = encode(&batch)?;
        let header = parse(&message)?.header_as_record_batch().ok_or("not a batch")?;
        let buffers = header.buffers().ok_or("no buffers")?;
        // Each has a buffer that says which values are NULL, and one of values.
        let columns = (0..batch.num_columns()).map(|column| buffers.get(2 * column + 1).offset() as usize);
        let (columns, rows) = (columns.collect(), args.rows);
        Ok(Self { opening, header: message.data_header, body: message.data_body.to_vec(), rows, columns })
    }

    /// The rows that `row` makes, each a key and a time.
    fn message(&self, mut row: impl FnMut() -> (u64, u64)) -> FlightData {
        let mut body = self.body.clone();
        for at in 0..self.rows {
            let (key, time_us) = row();
            for (column, start) in self.columns.iter().enumerate() {
                let value = match column {
                    0 => key.to_le_bytes(),
                    1 => time_us.to_le_bytes(),
                    feature_behind => feature(key, feature_behind - 2).to_le_bytes(),
                };
                let start = start + at * value.len();
                body[start..start + value.len()].copy_from_slice(&value);
            }
        }
        FlightData::new().with_data_header(self.header.clone()).with_data_body(body)
    }
}

struct Writer {
    server: Server,
    by: By,
    client: FlightServiceClient<Channel>,
    shape: Arc<Shape>,
    entities: Entities,
    /// Of the next row; each writer has every so many-th.
    time_us: u64,
    step_us: u64,
    acknowledged: u64,
}

impl Writer {
    /// Writes again as soon as it has its answer. A write that fails ends it all: what became of it nobody knows.
    async fn run(mut self, window: Window) -> Result<(u64, Record), Failure> {
        let mut record = Record::new(window)?;
        match self.by {
            By::Call => self.call(window, &mut record).await?,
            By::Stream => self.stream(window, &mut record).await?,
        }
        Ok((self.acknowledged, record))
    }

    async fn call(&mut self, window: Window, record: &mut Record) -> Result<(), Failure> {
        while let Some(started) = begins(window) {
            let messages = tokio_stream::iter([self.shape.opening.clone(), self.rows()]);
            let mut answers = self.client.do_put(self.server.request(messages)?).await?.into_inner();
            self.acknowledge(answers.message().await?)?;
            record.ended(started, Ok(()))?;
        }
        Ok(())
    }

    async fn stream(&mut self, window: Window, record: &mut Record) -> Result<(), Failure> {
        let (sender, receiver) = mpsc::channel(1);
        sender.try_send(self.shape.opening.clone())?;
        let request = self.server.request(ReceiverStream::new(receiver))?;
        let mut answers = self.client.do_put(request).await?.into_inner();
        while let Some(started) = begins(window) {
            sender.send(self.rows()).await?;
            self.acknowledge(answers.message().await?)?;
            record.ended(started, Ok(()))?;
        }
        drop(sender);
        match answers.message().await? {
            None => Ok(()),
            Some(_) => Err("more was acknowledged than was written".into()),
        }
    }

    /// The next write.
    fn rows(&mut self) -> FlightData {
        let (entities, time_us, step_us) = (&mut self.entities, &mut self.time_us, self.step_us);
        self.shape.message(|| {
            *time_us += step_us;
            (entities.draw(), *time_us)
        })
    }

    fn acknowledge(&mut self, answer: Option<PutResult>) -> Result<(), Failure> {
        let answer = answer.ok_or("a write was not acknowledged")?;
        let written = DoPutUpdateResult::decode(answer.app_metadata)?.record_count;
        if written != self.shape.rows as i64 {
            return Err(format!("{written} rows were acknowledged of {}", self.shape.rows).into());
        }
        self.acknowledged += 1;
        Ok(())
    }
}

/// When the next write begins, if one does.
fn begins(window: Window) -> Option<Instant> {
    let now = Instant::now();
    (now < window.until).then_some(now)
}
