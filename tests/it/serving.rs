//! Feature vectors over the wire in one round trip, and as a stream.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema};
use arrow_flight::decode::DecodedPayload;
use arrow_flight::decode::FlightDataDecoder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{FlightData, FlightDescriptor, Ticket};
use fletching::Server;
use fletching::clock::ManualClock;
use futures::{TryStreamExt, stream};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::{START_US, connect, start_server};

const GROUP: &str = "CREATE FEATURE GROUP activity (user_id BIGINT, at TIMESTAMP, clicks BIGINT DEFAULT 0, spend DOUBLE, \
                     ENTITY KEY (user_id), EVENT TIME (at)) WITH (ttl = '30 days')";
const LATEST: &str = "SELECT user_id, clicks, spend, _status FROM LATEST(activity, ?)";

struct Stage {
    server: Server,
    clock: Arc<ManualClock>,
    _data: TempDir,
}

impl Stage {
    /// Users 0 to 99 with as many clicks each.
    async fn open() -> Self {
        let data = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(START_US));
        let server = start_server(data.path(), clock.clone()).await.unwrap();
        let stage = Self { server, clock, _data: data };
        stage.update(GROUP).await;
        let rows: Vec<String> =
            (0..100).map(|u| format!("({u}, TIMESTAMP '2026-01-30', {u}, {u}.25)")).collect();
        stage.update(&format!("INSERT INTO activity VALUES {}", rows.join(", "))).await;
        stage
    }

    async fn update(&self, sql: &str) {
        self.server.engine().session().update(sql, None).await.unwrap();
    }

    async fn client(&self) -> FlightServiceClient<Channel> {
        connect(&self.server).await.into_inner()
    }

    async fn get(&self, ticket: &str) -> Result<Vec<RecordBatch>, Status> {
        let messages = self.client().await.do_get(Ticket::new(ticket.to_owned())).await?.into_inner();
        let messages = messages.map_err(FlightError::from);
        let batches = arrow_flight::decode::FlightRecordBatchStream::new_from_flight_data(messages);
        batches.try_collect().await.map_err(status)
    }
}

fn status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("not a status: {other}"),
    }
}

fn ticket(query: &str, parameters: &str) -> String {
    format!(r#"{{"query": {query:?}, "parameters": {parameters}}}"#)
}

fn column(batches: &[RecordBatch], name: &str) -> Vec<Option<i64>> {
    let column =
        |batch: &RecordBatch| batch.column_by_name(name).unwrap().as_primitive::<Int64Type>().clone();
    batches.iter().flat_map(|batch| column(batch).iter().collect::<Vec<_>>()).collect()
}

fn statuses(batches: &[RecordBatch]) -> Vec<String> {
    let column = |batch: &RecordBatch| batch.column_by_name("_status").unwrap().as_string::<i32>().clone();
    batches.iter().flat_map(|b| column(b).iter().map(|s| s.unwrap().to_owned()).collect::<Vec<_>>()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_round_trip_answers_keys_in_their_order() {
    let stage = Stage::open().await;
    for _ in 0..2 {
        let answer = stage.get(&ticket(LATEST, "[7, null, 500, 3, 7]")).await.unwrap();
        assert_eq!(column(&answer, "user_id"), [Some(7), None, Some(500), Some(3), Some(7)]);
        assert_eq!(column(&answer, "clicks"), [Some(7), Some(0), Some(0), Some(3), Some(7)]);
        assert_eq!(statuses(&answer), ["PRESENT", "NOT_FOUND", "NOT_FOUND", "PRESENT", "PRESENT"]);
        assert!(stage.get(&ticket(LATEST, "[]")).await.unwrap().is_empty());
    }
    let spend = stage.get(&ticket("SELECT spend s FROM LATEST(activity, ?, 5)", "[[4], [6]]")).await.unwrap();
    assert_eq!(spend[0].column(0).as_primitive::<Float64Type>().values(), &[4.25, 5.25, 6.25, 5.25]);
    // Any query will do, with parameters or without.
    let count = r#"{"query": "SELECT count(*) n FROM activity"}"#;
    assert_eq!(column(&stage.get(count).await.unwrap(), "n"), [Some(100)]);
    let above = ticket("SELECT count(*) n FROM activity WHERE clicks >= ? AND clicks < ?", "[[10, 20]]");
    assert_eq!(column(&stage.get(&above).await.unwrap(), "n"), [Some(10)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_ticket_cannot_do_is_the_callers_mistake() {
    let stage = Stage::open().await;
    for (ticket, expected) in [
        (ticket(LATEST, r#"["a"]"#), "is Utf8, and 'user_id' is Int64"),
        (ticket(LATEST, "[1.5]"), "does not fit 'user_id'"),
        (ticket(LATEST, "[[1, 2]]"), "has 1 parameter, and 2 are given"),
        (format!(r#"{{"query": {LATEST:?}}}"#), "has 1 parameter, and 0 are given"),
        (ticket("INSERT INTO activity VALUES (?, now(), 1, 1)", "[1]"), "run it as an update"),
        (ticket("SELECT * FROM LATEST(nobody, ?)", "[1]"), "does not exist"),
        ("{".to_owned(), "is not understood"),
    ] {
        let error = stage.get(&ticket).await.unwrap_err();
        assert!(matches!(error.code(), Code::InvalidArgument | Code::NotFound), "{ticket}: {error}");
        assert!(error.message().contains(expected), "{ticket}: {error}");
    }
    assert_eq!(
        column(&stage.get(r#"{"query": "SELECT count(*) n FROM activity"}"#).await.unwrap(), "n"),
        [Some(100)]
    );
}

/// What is kept ready follows what it was made of: definitions, temporary tables, and the clock.
#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_is_kept_ready_means_what_it_would_mean_now() {
    let stage = Stage::open().await;
    let seven = ticket(LATEST, "[7]");
    assert_eq!(statuses(&stage.get(&seven).await.unwrap()), ["PRESENT"]);
    stage.clock.advance(31 * 86_400_000_000);
    assert_eq!(statuses(&stage.get(&seven).await.unwrap()), ["OUTSIDE_MAX_AGE"]);
    stage.update("DROP FEATURE GROUP activity").await;
    assert_eq!(stage.get(&seven).await.unwrap_err().code(), Code::NotFound);
    stage.update(&GROUP.replace("DEFAULT 0", "DEFAULT 9").replace("BIGINT, at", "VARCHAR, at")).await;
    let error = stage.get(&seven).await.unwrap_err();
    assert!(error.message().contains("'user_id' is Utf8"), "{error}");
    assert_eq!(column(&stage.get(&ticket(LATEST, r#"["7"]"#)).await.unwrap(), "clicks"), [Some(9)]);
    // A session that hides the group behind a table of its own.
    let session = stage.server.engine().session();
    session.update("CREATE TEMP TABLE activity (user_id VARCHAR)", None).await.unwrap();
    let keys =
        RecordBatch::try_from_iter([("k", Arc::new(StringArray::from(vec!["7"])) as ArrayRef)]).unwrap();
    let error =
        session.query(LATEST, Some(&keys)).await.err().expect("a temporary table is no feature group");
    assert!(error.to_string().contains("is not a feature group"), "{error}");
}

/// Batches of users and their metadata, as a client sends them.
fn questions(query: &str, batches: Vec<(Vec<i64>, &str)>) -> Vec<FlightData> {
    let schema = Arc::new(Schema::new(vec![Field::new("user_id", DataType::Int64, true)]));
    let (users, metadata): (Vec<_>, Vec<String>) =
        batches.into_iter().map(|(users, metadata)| (users, metadata.to_owned())).unzip();
    let rows = users.into_iter().map(|users| {
        RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from(users))]).unwrap()
    });
    let mut messages = batches_to_flight_data(&schema, rows.collect()).unwrap();
    let descriptor = FlightDescriptor::new_cmd(format!(r#"{{"query": {query:?}}}"#));
    messages[0].flight_descriptor = Some(descriptor);
    let mut metadata = std::iter::once(String::new()).chain(metadata);
    let with = |message: FlightData| message.with_app_metadata(metadata.next().unwrap_or_default());
    messages.into_iter().map(with).collect()
}

/// Metadata and clicks of every batch that comes back.
async fn exchange(
    stage: &Stage,
    messages: Vec<FlightData>,
) -> Result<Vec<(String, Vec<Option<i64>>)>, Status> {
    match exchange_to_its_end(stage, messages).await {
        (answers, None) => Ok(answers),
        (_, Some(error)) => Err(error),
    }
}

/// The same, and the error that it ends with.
async fn exchange_to_its_end(
    stage: &Stage,
    messages: Vec<FlightData>,
) -> (Vec<(String, Vec<Option<i64>>)>, Option<Status>) {
    let answers = match stage.client().await.do_exchange(stream::iter(messages)).await {
        Ok(answers) => answers.into_inner(),
        Err(error) => return (vec![], Some(error)),
    };
    let mut decoded = FlightDataDecoder::new(answers.map_err(FlightError::from));
    let mut batches = Vec::new();
    loop {
        match decoded.try_next().await {
            Ok(None) => return (batches, None),
            Ok(Some(message)) => {
                if let DecodedPayload::RecordBatch(batch) = message.payload {
                    let metadata = String::from_utf8(message.inner.app_metadata.to_vec()).unwrap();
                    batches.push((metadata, column(&[batch], "clicks")));
                }
            }
            Err(error) => return (batches, Some(status(error))),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_questions_is_answered_in_order() {
    let stage = Stage::open().await;
    let batches = vec![(vec![5, 6], "a"), (vec![], "empty"), (vec![500, 7], "b")];
    let answers = exchange(&stage, questions(LATEST, batches)).await.unwrap();
    let expected = [("a", vec![Some(5), Some(6)]), ("empty", vec![]), ("b", vec![Some(0), Some(7)])];
    assert_eq!(answers, expected.map(|(m, c)| (m.to_owned(), c)));
    let many: Vec<_> = (0..2000).map(|i| (vec![i % 100], "")).collect();
    let answers = exchange(&stage, questions(LATEST, many)).await.unwrap();
    assert_eq!(answers.len(), 2000);
    assert!(answers.iter().zip(0..).all(|((_, clicks), i)| clicks == &[Some(i % 100)]));
    // Some clients send the descriptor ahead of the schema.
    let mut ahead = questions(LATEST, vec![(vec![4], "x")]);
    let descriptor = ahead[0].flight_descriptor.take();
    ahead.insert(0, FlightData { flight_descriptor: descriptor, ..FlightData::default() });
    assert_eq!(exchange(&stage, ahead).await.unwrap(), [("x".to_owned(), vec![Some(4)])]);
    // A query that needs planning, too; and no question at all.
    let sum = "SELECT sum(clicks) clicks FROM activity WHERE user_id < ?";
    let answers = exchange(&stage, questions(sum, vec![(vec![3], "x"), (vec![2], "y")])).await.unwrap();
    assert_eq!(answers, [("x".to_owned(), vec![Some(3)]), ("y".to_owned(), vec![Some(1)])]);
    assert!(exchange(&stage, questions(LATEST, vec![])).await.unwrap().is_empty());
    // A question of more rows than one message may answer.
    let wide = exchange(&stage, questions(LATEST, vec![((0..200_000).map(|i| i % 100).collect(), "w")]))
        .await
        .unwrap();
    assert!(wide.len() > 1 && wide.iter().all(|(metadata, _)| metadata == "w"));
    let clicks: Vec<Option<i64>> = wide.into_iter().flat_map(|(_, clicks)| clicks).collect();
    assert!(clicks.len() == 200_000 && clicks.iter().zip(0..).all(|(c, i)| *c == Some(i % 100)));
}

/// Large questions are answered beside each other, and small ones together.
#[tokio::test(flavor = "multi_thread")]
async fn answers_to_large_and_small_questions_keep_their_order() {
    let stage = Stage::open().await;
    let sizes = [1000, 1, 1000, 0, 20_000, 2, 3, 1000, 1000, 257, 256, 1];
    let names: Vec<String> = (0..sizes.len()).map(|i| i.to_string()).collect();
    let users = |question: usize| (0..sizes[question]).map(move |i| (i + question as i64) % 100);
    let asked =
        |query| questions(query, names.iter().enumerate().map(|(i, n)| (users(i).collect(), &**n)).collect());
    for (query, each) in [(LATEST, 1), ("SELECT clicks FROM LATEST(activity, ?, 7)", 2)] {
        let mut broken = asked(query);
        broken.push(broken[1].clone());
        let last = broken.last_mut().unwrap();
        last.data_header = last.data_header.slice(..20);
        broken.push(broken[1].clone());
        for (messages, is_broken) in [(asked(query), false), (broken, true)] {
            let (answers, error) = exchange_to_its_end(&stage, messages).await;
            assert_eq!(error.map(|error| error.code()), is_broken.then_some(Code::InvalidArgument));
            let mut answered: Vec<(String, Vec<Option<i64>>)> = Vec::new();
            for (name, clicks) in answers {
                match answered.last_mut().filter(|(last, _)| *last == name) {
                    Some((_, all)) => all.extend(clicks),
                    None => answered.push((name, clicks)),
                }
            }
            let clicks = |i| users(i).flat_map(|user| [Some(user), Some(7)].into_iter().take(each)).collect();
            assert_eq!(
                answered,
                names.iter().enumerate().map(|(i, n)| (n.clone(), clicks(i))).collect::<Vec<_>>()
            );
        }
    }
}

/// The rows of a question without parameters are one execution, however many they are said to be.
#[tokio::test(flavor = "multi_thread")]
async fn questions_without_parameters_are_answered_one_by_one() {
    let stage = Stage::open().await;
    let query = "SELECT clicks FROM LATEST(activity, 7, 8)";
    let rows = |rows| RecordBatchOptions::new().with_row_count(Some(rows));
    let none = Arc::new(Schema::empty());
    let batches =
        [1, 1, 2].map(|n| RecordBatch::try_new_with_options(Arc::clone(&none), vec![], &rows(n)).unwrap());
    let mut messages = batches_to_flight_data(&none, batches.to_vec()).unwrap();
    messages[0].flight_descriptor = Some(FlightDescriptor::new_cmd(format!(r#"{{"query": {query:?}}}"#)));
    let answers = exchange(&stage, messages).await.unwrap();
    assert_eq!(answers, vec![(String::new(), vec![Some(7), Some(8)]); 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_ends_with_the_first_mistake() {
    let stage = Stage::open().await;
    let asked = |query: &str| questions(query, vec![(vec![1], "")]);
    let mut no_descriptor = asked(LATEST);
    no_descriptor[0].flight_descriptor = None;
    let mut with_parameters = asked(LATEST);
    with_parameters[0].flight_descriptor = Some(FlightDescriptor::new_cmd(ticket(LATEST, "[1]")));
    let mut broken = asked(LATEST);
    broken[1].data_header = broken[1].data_header.slice(..20);
    for (messages, expected) in [
        (no_descriptor, "must carry a descriptor"),
        (with_parameters, "are the batches that follow"),
        (asked("INSERT INTO activity VALUES (?, now(), 1, 1)"), "through DoPut"),
        (asked("SELECT * FROM LATEST(activity, ?, ?)"), "has 2 parameters"),
        (asked("SELECT ? AS x"), "CAST the placeholders"),
        (vec![], "ended before its first message"),
        (broken, "is not an Arrow stream"),
    ] {
        let error = exchange(&stage, messages).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
        assert!(error.message().contains(expected), "{expected}: {error}");
    }
}
