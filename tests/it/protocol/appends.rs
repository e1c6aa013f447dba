//! `DoPut` as a stream of writes: each batch is one, acknowledged by itself.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow_flight::sql::DoPutUpdateResult;
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{FlightData, FlightDescriptor, PutResult};
use futures::{StreamExt, stream};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status, Streaming};

use super::Raw;
use crate::flight::{House, batch, ids, numbers, query, texts, update};
use crate::support::START_US;

const GROUP: &str =
    "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))";

fn at(rows: usize) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_value(START_US - 1, rows))
}

/// Rows of these ids, all of one time, with a value of their own.
fn rows(ids: impl IntoIterator<Item = Option<i64>>, value: i64) -> RecordBatch {
    let ids: Int64Array = ids.into_iter().collect();
    let at = at(ids.len());
    let values: ArrayRef = Arc::new(Int64Array::from_value(value, ids.len()));
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(ids) as ArrayRef, true),
        ("at", at, false),
        ("v", values, false),
    ])
    .unwrap()
}

fn one(id: i64, value: i64) -> RecordBatch {
    rows([Some(id)], value)
}

/// The messages of a stream of writes, each with its key if that is not empty.
fn messages(command: &str, writes: Vec<(RecordBatch, &str)>) -> Vec<FlightData> {
    let keys: Vec<String> = writes.iter().map(|(_, key)| (*key).to_owned()).collect();
    let schema = writes.first().map_or_else(|| one(0, 0).schema(), |(rows, _)| rows.schema());
    let rows = writes.into_iter().map(|(rows, _)| rows).collect();
    let mut messages = batches_to_flight_data(&schema, rows).unwrap();
    messages[0].flight_descriptor = Some(FlightDescriptor::new_cmd(command.to_owned()));
    let keys = std::iter::once(String::new()).chain(keys);
    messages.into_iter().zip(keys).map(|(message, key)| message.with_app_metadata(key)).collect()
}

fn rows_of(answer: PutResult) -> i64 {
    DoPutUpdateResult::decode(answer.app_metadata).unwrap().record_count
}

/// What was acknowledged, and the error that ended it, if one did.
async fn acknowledged(mut answers: Streaming<PutResult>) -> (Vec<i64>, Option<Status>) {
    let mut rows = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(answer) => rows.push(rows_of(answer)),
            Err(status) => return (rows, Some(status)),
        }
    }
    (rows, None)
}

async fn put(raw: &mut Raw, messages: Vec<FlightData>) -> (Vec<i64>, Option<Status>) {
    match raw.do_put(stream::iter(messages)).await {
        Ok(answers) => acknowledged(answers.into_inner()).await,
        Err(status) => (Vec::new(), Some(status)),
    }
}

/// A stream that has said what it is about, and takes writes one by one.
async fn open(house: &House, opening: FlightData) -> (mpsc::Sender<FlightData>, Streaming<PutResult>) {
    let (sender, receiver) = mpsc::channel(1);
    sender.send(opening).await.unwrap();
    let answers = house.raw().await.do_put(ReceiverStream::new(receiver)).await.unwrap();
    (sender, answers.into_inner())
}

const APPEND: &str = r#"{"append": "g"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn each_write_is_acknowledged_before_the_next_is_sent() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, GROUP).await;
    let mut messages = messages(APPEND, (0..40).map(|n| (one(n % 3, n), "")).collect()).into_iter();
    let (sender, mut answers) = open(&house, messages.next().unwrap()).await;
    for (n, write) in messages.enumerate() {
        sender.send(write).await.unwrap();
        assert_eq!(rows_of(answers.message().await.unwrap().unwrap()), 1);
        let written = n as i64 + 1;
        assert_eq!(numbers(&mut client, "SELECT count(*) FROM g").await, [written]);
        let id = n % 3;
        let latest = numbers(&mut client, &format!("SELECT v FROM LATEST(g, {id})")).await;
        assert_eq!(latest, [n as i64], "of the same key and time the later write wins");
    }
    let listed = numbers(&mut client, "SELECT count(*) FROM system.jobs WHERE kind = 'stream' AND rows = 40");
    assert_eq!(listed.await, [1], "the stream is one job while it is open");
    drop(sender);
    assert!(answers.message().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_are_sent_ahead_are_made_in_their_order() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, GROUP).await;
    // Small, empty, and larger than the log takes; all write the row with id 0, and others.
    let sizes: Vec<i64> = (0..300).map(|n| [1, 0, 3, 1, 700][n % 5]).chain([1500, 2, 1500, 1]).collect();
    let mut next = 1;
    let writes = sizes.iter().zip(0..).map(|(size, n)| {
        let others = next..next + (size - 1).max(0);
        next = others.end;
        (rows((*size > 0).then_some(0).into_iter().chain(others).map(Some), n), "")
    });
    let messages = messages(APPEND, writes.collect());
    let (added, error) = put(&mut house.raw().await, messages).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(added, sizes);
    let total: i64 = sizes.iter().sum();
    assert_eq!(numbers(&mut client, "SELECT count(*) FROM g").await, [total]);
    assert_eq!(numbers(&mut client, "SELECT count(DISTINCT id) FROM g").await, [next]);
    let last = sizes.len() as i64 - 1;
    let offline = "SELECT f.v FROM (SELECT 0 AS id, TIMESTAMP '2100-01-01' AS at) l ASOF JOIN g f \
                   MATCH_CONDITION (l.at >= f.at) ON l.id = f.id";
    for sql in ["SELECT v FROM LATEST(g, 0)", offline] {
        assert_eq!(numbers(&mut client, sql).await, [last], "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_let_a_stream_be_sent_again() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, GROUP).await;
    update(&mut client, "CREATE TABLE plain (id BIGINT, at TIMESTAMP, v BIGINT)").await;
    for table in ["g", "plain", r#"\"fletching\".public.G"#] {
        let before = numbers(&mut client, "SELECT count(*) FROM g").await[0];
        let command = format!(r#"{{"append": "{table}"}}"#);
        let write = |n: i64| (rows([Some(n), Some(n + 100)], n), ["a", "b", "c", "d"][n as usize]);
        // The stream breaks after two, of which the client hears nothing; then it sends all four.
        let first = messages(&command, (0..2).map(write).collect());
        assert_eq!(put(&mut house.raw().await, first).await.0, [2, 2]);
        let again = messages(&command, (0..4).chain([1]).map(write).collect());
        let (added, error) = put(&mut house.raw().await, again.clone()).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(added, [2, 2, 2, 2, 2], "{table}");
        update(&mut client, "CHECKPOINT").await;
        assert_eq!(put(&mut house.raw().await, again).await.0, [2, 2, 2, 2, 2], "from the snapshot");
        let counted = if table == "plain" { "plain" } else { "g" };
        let expected = if before > 0 && counted == "g" { before } else { 8 };
        let count = format!("SELECT count(*) FROM {counted}");
        assert_eq!(numbers(&mut client, &count).await, [expected], "{table}");
        // A key twice at once, and writes without one behind it.
        let key = format!("twice-in-{}", table.len());
        let twice = vec![(one(5, 5), &*key), (one(5, 5), &*key), (one(6, 6), ""), (one(6, 6), "")];
        let (added, error) = put(&mut house.raw().await, messages(&command, twice)).await;
        assert!(error.is_none(), "{error:?}");
        assert_eq!(added, [1, 1, 1, 1]);
        let count = format!("SELECT count(*) FROM {counted} WHERE id IN (5, 6)");
        assert_eq!(numbers(&mut client, &count).await, [3], "{table}");
        update(&mut client, "DELETE FROM g WHERE id IN (5, 6)").await;
        // Another write under a key that is taken.
        let taken = vec![(one(7, 7), "e"), (one(8, 8), "a"), (one(9, 9), "f")];
        let (added, error) = put(&mut house.raw().await, messages(&command, taken)).await;
        assert_eq!(added, [1]);
        let error = error.unwrap();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("an earlier write of 2 rows, and these are 1"), "{error}");
        update(&mut client, "DELETE FROM g WHERE id IN (7, 9)").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_does_not_fit_ends_the_stream_where_it_is() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, GROUP).await;
    let bad = vec![(one(1, 1), ""), (rows([Some(2), None], 2), ""), (one(3, 3), "")];
    // The first write of all, and those into a group that is known by then.
    for times in 1..3 {
        let (added, error) = put(&mut house.raw().await, messages(APPEND, bad.clone())).await;
        assert_eq!(added, [1]);
        let error = error.unwrap();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains("entity key 'id' of 'public.g' is NULL (first in row 1"), "{error}");
        assert_eq!(numbers(&mut client, "SELECT id FROM g").await, vec![1; times], "nothing behind it");
    }

    // The group changes under an open stream, which goes on by what it is now.
    let mut writes = messages(APPEND, vec![(one(4, 4), ""), (one(5, 5), "")]).into_iter();
    let (sender, mut answers) = open(&house, writes.next().unwrap()).await;
    sender.send(writes.next().unwrap()).await.unwrap();
    assert_eq!(rows_of(answers.message().await.unwrap().unwrap()), 1);
    update(&mut client, "ALTER FEATURE GROUP g ADD FEATURE w BIGINT DEFAULT 9").await;
    sender.send(writes.next().unwrap()).await.unwrap();
    assert_eq!(rows_of(answers.message().await.unwrap().unwrap()), 1);
    assert_eq!(numbers(&mut client, "SELECT w FROM g WHERE id = 5").await, [9]);
    let wide = batch(vec![("id", ids([7])), ("at", at(1)), ("v", ids([7])), ("w", ids([8]))]);
    for _ in 0..2 {
        let (added, error) = put(&mut house.raw().await, messages(APPEND, vec![(wide.clone(), "")])).await;
        assert_eq!((added, error.map(|error| error.to_string())), (vec![1], None), "as the group is now");
    }
    // What landed before a change is known by its key after it, and an empty write beside others is none.
    update(&mut client, "ALTER FEATURE GROUP g ADD FEATURE x BIGINT").await;
    let wider =
        batch(vec![("id", ids([7])), ("at", at(1)), ("v", ids([7])), ("w", ids([8])), ("x", ids([8]))]);
    let now = vec![(wider.clone(), "before"), (wider.slice(0, 0), ""), (wider, "")];
    assert_eq!(put(&mut house.raw().await, messages(APPEND, now.clone())).await.0, [1, 0, 1]);
    update(&mut client, "ALTER FEATURE GROUP g DROP FEATURE x").await;
    let (added, error) = put(&mut house.raw().await, messages(APPEND, now)).await;
    assert_eq!(added[0], 1, "the first was there");
    assert!(error.unwrap().message().contains("column 'x' that the table does not have"), "the last is new");
    update(&mut client, "DROP FEATURE GROUP g").await;
    update(&mut client, &GROUP.replace("v BIGINT", "u BIGINT")).await;
    let other = batch(vec![("id", ids([9])), ("at", at(1)), ("u", ids([7]))]);
    let (added, error) = put(&mut house.raw().await, messages(APPEND, vec![(other, "")])).await;
    assert_eq!((added, error.map(|error| error.to_string())), (vec![1], None), "another of the name");
    update(&mut client, "DROP FEATURE GROUP g").await;
    sender.send(messages(APPEND, vec![(one(6, 6), "")]).remove(1)).await.unwrap();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_stream_of_writes_is_refused_in_words() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, GROUP).await;
    let write = || vec![(one(1, 1), "")];
    let mut broken = messages(APPEND, write());
    broken[1].data_header = broken[1].data_header.slice(..20);
    let mut two_schemas = messages(APPEND, write());
    let other = batch(vec![("id", ids([1]))]);
    two_schemas.push(batches_to_flight_data(&other.schema(), vec![other]).unwrap().remove(0));
    let mut binary = messages(APPEND, write());
    binary[1].app_metadata = vec![0xFF, 0xFE].into();
    for (messages, code, expected) in [
        (
            messages(r#"{"append": "nothing"}"#, write()),
            Code::NotFound,
            "no table or feature group 'public.nothing'",
        ),
        (
            messages(r#"{"append": "a b"}"#, write()),
            Code::InvalidArgument,
            "'a b' is not the name of a table",
        ),
        (messages(r#"{"append": ""}"#, write()), Code::InvalidArgument, "'' is not the name of a table"),
        (
            messages(r#"{"query": "SELECT 1"}"#, write()),
            Code::InvalidArgument,
            r#"write {"append": "table"}, or ask"#,
        ),
        (messages(r#"{"append": "#, write()), Code::InvalidArgument, r#"write {"append": "table"}, or ask"#),
        (messages(APPEND, vec![(one(1, 1), "two words")]), Code::InvalidArgument, "1 to 128 letters"),
        (
            messages(APPEND, vec![(batch(vec![("id", ids([1]))]), "")]),
            Code::InvalidArgument,
            "lack columns 'at', 'v'",
        ),
        (binary, Code::InvalidArgument, "this is not text"),
        (broken, Code::InvalidArgument, "is not an Arrow stream"),
        (two_schemas, Code::InvalidArgument, "the schema changed in the middle of the stream"),
    ] {
        let (_, error) = put(&mut house.raw().await, messages).await;
        let error = error.unwrap();
        assert_eq!(error.code(), code, "{expected}: {error}");
        assert!(error.message().contains(expected), "{expected}: {error}");
    }
    let mut keyed = Request::new(stream::iter(messages(APPEND, write())));
    keyed.metadata_mut().insert("fletching-idempotency-key", MetadataValue::from_static("k"));
    let error = house.raw().await.do_put(keyed).await.unwrap_err();
    assert!(error.message().contains("give each batch its own key"), "{error}");
    assert_eq!(
        put(&mut house.raw().await, messages(APPEND, vec![])).await.0,
        [0_i64; 0],
        "none is no mistake"
    );
    // What came whole before a mistake is there.
    assert_eq!(numbers(&mut client, "SELECT count(*) FROM g").await, [1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_ends_an_idle_stream() {
    let house = House::open().await;
    update(&mut house.client().await, GROUP).await;
    let mut writes = messages(APPEND, vec![(one(1, 1), "")]).into_iter();
    let (sender, mut answers) = open(&house, writes.next().unwrap()).await;
    sender.send(writes.next().unwrap()).await.unwrap();
    assert_eq!(rows_of(answers.message().await.unwrap().unwrap()), 1);
    let House { server, _data, .. } = house;
    let stopping = tokio::spawn(server.shutdown());
    let error = answers.message().await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("send what it has not acknowledged to another"), "{error}");
    stopping.await.unwrap().unwrap();
    drop(sender);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_stream_can_be_ended_and_holds_up_no_upkeep() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, GROUP).await;
    let mut writes = messages(APPEND, vec![(one(1, 1), ""), (one(2, 2), "")]).into_iter();
    let (sender, mut answers) = open(&house, writes.next().unwrap()).await;
    for write in writes {
        sender.send(write).await.unwrap();
        assert_eq!(rows_of(answers.message().await.unwrap().unwrap()), 1);
        update(&mut client, "CHECKPOINT").await;
        house.clock.advance(1_000_000);
    }
    let snapshots = r#"SELECT count(*) FROM "g$snapshots""#;
    assert_eq!(numbers(&mut client, snapshots).await, [2]);
    query(&mut client, "VACUUM g RETAIN '0 seconds'").await.unwrap();
    assert_eq!(numbers(&mut client, snapshots).await, [1], "the stream reads nothing of before");
    let listed = query(&mut client, "SELECT job_id FROM system.jobs WHERE kind = 'stream'").await.unwrap();
    let id = texts(&listed, "job_id").remove(0);
    update(&mut client, &format!("KILL QUERY '{id}'")).await;
    assert_eq!(answers.message().await.unwrap_err().code(), Code::Cancelled, "though nothing was sent");
    assert_eq!(numbers(&mut client, "SELECT count(*) FROM g").await, [2], "what was acknowledged stays");
    drop(sender);
}
