//! Look-ups through one `DoExchange` stream: messages of keys go out while answers to earlier ones are on their way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::ipc::writer::{CompressionContext, DictionaryTracker, IpcDataGenerator, IpcWriteOptions};
use arrow_flight::{FlightData, FlightDescriptor, SchemaAsIpc};
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::Failure;
use crate::answers::{Checker, parse};
use crate::calls::Target;
use crate::entities::Entities;
use crate::record::Record;

#[derive(Debug, Args)]
pub(crate) struct ExchangeArgs {
    #[command(flatten)]
    target: Target,
    /// Messages in flight
    #[arg(long, default_value_t = 64)]
    window: usize,
}

/// Exchanges, and says what happened; a call is a message.
pub(crate) async fn run(args: ExchangeArgs) -> Result<Value, Failure> {
    let target = &args.target;
    let mut client = Target::client(target.server.connect().await?);
    // Never full: the schema, and as many messages as are in flight.
    let (sender, receiver) = mpsc::channel(args.window + 1);
    let mut questions = Questions::new(target, sender)?;
    for _ in 0..args.window {
        questions.ask()?;
    }
    let window = target.window();
    let request = target.server.request(ReceiverStream::new(receiver))?;
    let mut answers = client.do_exchange(request).await?.into_inner();
    let mut checker = target.checker();
    let schema = answers.message().await?.ok_or("the stream ended before its schema")?;
    checker.check_schema(&schema)?;
    let mut record = Record::new(window)?;
    while let Some(asked) = questions.asked.pop_front() {
        let answer = answers.message().await?.ok_or("the stream ended before all was answered")?;
        record.ended(asked.at, asked.check(&checker, &answer))?;
        if Instant::now() < window.until {
            questions.ask()?;
        }
    }
    drop(questions);
    if answers.message().await?.is_some() {
        return Err("more answers than questions".into());
    }
    Ok(record.to_json(target.keys))
}

/// A message that waits for its answer.
struct Asked {
    at: Instant,
    number: u64,
    keys: Vec<u64>,
}

impl Asked {
    fn check(&self, checker: &Checker, answer: &FlightData) -> Result<(), Failure> {
        if answer.app_metadata[..] != self.number.to_be_bytes() {
            return Err(format!("answer {:?} where {} was due", answer.app_metadata, self.number).into());
        }
        let rows = checker.check_batch(answer, &self.keys)?;
        if rows != self.keys.len() {
            return Err(format!("{rows} rows for {} keys", self.keys.len()).into());
        }
        Ok(())
    }
}

/// Messages of random keys. All are of one shape, so one is encoded, and the others differ from it in their keys.
struct Questions {
    sender: mpsc::Sender<FlightData>,
    asked: VecDeque<Asked>,
    count: u64,
    entities: Entities,
    keys: usize,
    header: Bytes,
    body: Vec<u8>,
    /// Where in the body the keys begin.
    keys_at: usize,
}

impl Questions {
    fn new(target: &Target, sender: mpsc::Sender<FlightData>) -> Result<Self, Failure> {
        let keys: ArrayRef = Arc::new(Int64Array::from(vec![0; target.keys]));
        let batch = RecordBatch::try_from_iter([("$1", keys)])?;
        let command = json!({ "query": target.query }).to_string();
        let opening = FlightData::from(SchemaAsIpc::new(&batch.schema(), &IpcWriteOptions::default()))
            .with_descriptor(FlightDescriptor::new_cmd(command));
        sender.try_send(opening)?;
        let message = encode(&batch)?;
        let header = parse(&message)?.header_as_record_batch().ok_or("not a batch")?;
        let keys_at = header.buffers().ok_or("no buffers")?.get(1).offset() as usize;
        Ok(Self {
            sender,
            asked: VecDeque::new(),
            count: 0,
            entities: target.entities(0),
            keys: target.keys,
            header: message.data_header,
            body: message.data_body.to_vec(),
            keys_at,
        })
    }

    fn ask(&mut self) -> Result<(), Failure> {
        let keys: Vec<u64> = (0..self.keys).map(|_| self.entities.draw()).collect();
        for (slot, key) in self.body[self.keys_at..].chunks_exact_mut(8).zip(&keys) {
            slot.copy_from_slice(&key.to_le_bytes());
        }
        self.count += 1;
        let message = FlightData::new()
            .with_data_header(self.header.clone())
            .with_app_metadata(Bytes::copy_from_slice(&self.count.to_be_bytes()))
            .with_data_body(Bytes::copy_from_slice(&self.body));
        self.asked.push_back(Asked { at: Instant::now(), number: self.count, keys });
        self.sender.try_send(message).map_err(|error| format!("the stream takes no more: {error}"))?;
        Ok(())
    }
}

/// A batch as one message.
pub(crate) fn encode(batch: &RecordBatch) -> Result<FlightData, Failure> {
    let (_, message) = IpcDataGenerator::default().encode(
        batch,
        &mut DictionaryTracker::new(true),
        &IpcWriteOptions::default(),
        &mut CompressionContext::default(),
    )?;
    Ok(message.into())
}
