//! What no client of good will sends: bytes cut short, altered, made up and far too long, in every call. Each is answered
//! by a status that says whose mistake it is, and the server is as well afterwards as it was before.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
    TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int32Type};
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedStatementResult, Any, Command, CommandGetCatalogs, CommandGetCrossReference,
    CommandGetDbSchemas, CommandGetExportedKeys, CommandGetPrimaryKeys, CommandGetSqlInfo,
    CommandGetTableTypes, CommandGetTables, CommandGetXdbcTypeInfo, CommandPreparedStatementQuery,
    CommandPreparedStatementUpdate, CommandStatementIngest, CommandStatementQuery, CommandStatementUpdate,
    ProstMessageExt, TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{
    Action, CancelFlightInfoRequest, Criteria, FlightData, FlightDescriptor, HandshakeRequest, Ticket,
};
use bytes::Bytes;
use fletching::Server;
use fletching::clock::ManualClock;
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::process::Process;
use crate::support::{START_US, connect, start_server};

type Client = FlightServiceClient<Channel>;

const CASES: u64 = 100_000;
const CLIENTS: u64 = 4;
const CALLS_AT_A_TIME: usize = 16;
/// More than this of one answer is not looked at.
const MESSAGES_MAX: usize = 100;

/// SplitMix64: the same bytes in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end.max(1) as u64) as usize
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.roll() as u8).collect()
    }

    fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    /// `bytes` as somebody might get them wrong, now and then even right.
    fn spoilt(&mut self, bytes: &[u8], others: &[Bytes]) -> Bytes {
        let mut spoilt = bytes.to_vec();
        for _ in 0..=self.below(3) {
            let at = self.below(spoilt.len() + 1);
            match self.below(8) {
                0 => spoilt.truncate(at),
                1 if !spoilt.is_empty() => {
                    let at = self.below(spoilt.len());
                    spoilt[at] ^= 1 << self.below(8);
                }
                2 => {
                    let more = self.below(9);
                    let more = self.bytes(more);
                    spoilt.splice(at..at, more);
                }
                // A length of 4 GiB or 2^63 where a small one may be.
                3 => {
                    let huge = *self.one_of(&[&[0xff_u8, 0xff, 0xff, 0xff, 0x0f][..], &[0xff; 9][..]]);
                    spoilt.splice(at..at, huge.iter().copied());
                }
                4 => {
                    let other = self.one_of(others);
                    spoilt.truncate(at);
                    spoilt.extend_from_slice(&other[self.below(other.len() + 1).min(other.len())..]);
                }
                5 => {
                    let length = self.below(300);
                    spoilt = self.bytes(length);
                }
                6 if spoilt.len() >= 4 => {
                    let at = self.below(spoilt.len() - 3);
                    let value = *self.one_of(&[0_u32, 1, 0x7fff_ffff, 0x8000_0000, u32::MAX]);
                    spoilt[at..at + 4].copy_from_slice(&value.to_le_bytes());
                }
                _ => {}
            }
        }
        spoilt.into()
    }
}

/// What a client of good will sends.
struct Seeds {
    /// Commands and tickets.
    commands: Vec<Bytes>,
    actions: Vec<Action>,
    /// Streams of batches, without a descriptor.
    rows: Vec<Vec<FlightData>>,
    /// What descriptors of puts and exchanges say.
    puts: Vec<Bytes>,
    exchanges: Vec<Bytes>,
}

/// A client whose session has a small table of its own.
async fn client_with_table(server: &Server) -> FlightSqlServiceClient<Channel> {
    let mut client = connect(server).await;
    client.execute_update("CREATE TEMP TABLE t AS SELECT 1 AS x".into(), None).await.unwrap();
    client
}

fn command(message: impl ProstMessageExt) -> Bytes {
    message.as_any().encode_to_vec().into()
}

fn ingest(table: &str) -> Bytes {
    command(CommandStatementIngest {
        table_definition_options: Some(TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Create as i32,
            if_exists: TableExistsOption::Replace as i32,
        }),
        table: table.to_owned(),
        temporary: true,
        ..CommandStatementIngest::default()
    })
}

fn batches() -> Vec<RecordBatch> {
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(0..5));
    let names: ArrayRef =
        Arc::new(StringArray::from(vec![Some("a"), None, Some("ccc"), Some(""), Some("é")]));
    let flags: ArrayRef = Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), None, Some(true)]));
    let lists: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>([
        Some(vec![Some(1), None]),
        None,
        Some(vec![]),
        Some(vec![Some(3)]),
        None,
    ]));
    let field = Arc::new(Field::new("f", DataType::Float64, true));
    let numbers: ArrayRef =
        Arc::new(Float64Array::from_iter((0..5).map(|n| (n != 2).then_some(f64::from(n)))));
    let pairs: ArrayRef = Arc::new(StructArray::from(vec![(field, numbers)]));
    let times: ArrayRef = Arc::new(TimestampMicrosecondArray::from_iter_values(0..5).with_timezone("UTC"));
    vec![
        RecordBatch::try_from_iter([("0", Arc::clone(&keys))]).unwrap(),
        RecordBatch::try_from_iter([
            ("k", keys),
            ("name", names),
            ("flag", flags),
            ("list", lists),
            ("pair", pairs),
            ("at", times),
        ])
        .unwrap(),
    ]
}

impl Seeds {
    async fn of(server: &Server) -> Self {
        let mut client = client_with_table(server).await;
        let info = client.execute("SELECT x FROM t WHERE x > 1".into(), None).await.unwrap();
        let ticket = info.endpoint[0].ticket.clone().unwrap().ticket;
        let prepare = ActionCreatePreparedStatementRequest {
            query: "SELECT x FROM t WHERE x = ?".into(),
            transaction_id: None,
        };
        let prepare = Action::new("CreatePreparedStatement", prepare.as_any().encode_to_vec());
        let mut answers = client.inner_mut().do_action(prepare.clone()).await.unwrap().into_inner();
        let answer = Any::decode(answers.message().await.unwrap().unwrap().body).unwrap();
        let Command::ActionCreatePreparedStatementResult(ActionCreatePreparedStatementResult {
            prepared_statement_handle: handle,
            ..
        }) = Command::try_from(answer).unwrap()
        else {
            panic!("a prepared statement")
        };
        let close = ActionClosePreparedStatementRequest { prepared_statement_handle: handle.clone() };
        let cancel = CancelFlightInfoRequest { info: Some(info) };
        let update = |query: &str| CommandStatementUpdate { query: query.into(), transaction_id: None };
        let query = |query: &str| CommandStatementQuery { query: query.into(), transaction_id: None };
        let direct = Bytes::from_static(br#"{"query": "SELECT * FROM LATEST(g, ?)", "parameters": [1, 2]}"#);
        let exchange = Bytes::from_static(br#"{"query": "SELECT * FROM LATEST(g, ?)"}"#);
        let bind = command(CommandPreparedStatementQuery { prepared_statement_handle: handle.clone() });
        let run = command(CommandPreparedStatementUpdate { prepared_statement_handle: handle });
        let commands = vec![
            ticket,
            direct.clone(),
            command(query("SELECT x, count(*) FROM t GROUP BY x")),
            command(query("SELECT * FROM LATEST(g, 1, 2)")),
            command(update("INSERT INTO t VALUES (2)")),
            bind.clone(),
            run.clone(),
            command(CommandGetCatalogs {}),
            command(CommandGetDbSchemas {
                catalog: Some("fletching".into()),
                db_schema_filter_pattern: Some("pub%".into()),
            }),
            command(CommandGetTables {
                catalog: None,
                db_schema_filter_pattern: Some("p_blic".into()),
                table_name_filter_pattern: Some("%".into()),
                table_types: vec!["TABLE".into()],
                include_schema: true,
            }),
            command(CommandGetTableTypes {}),
            command(CommandGetPrimaryKeys { table: "g".into(), ..Default::default() }),
            command(CommandGetExportedKeys { table: "g".into(), ..Default::default() }),
            command(CommandGetCrossReference {
                pk_table: "g".into(),
                fk_table: "t".into(),
                ..Default::default()
            }),
            command(CommandGetSqlInfo { info: vec![0, 500] }),
            command(CommandGetXdbcTypeInfo { data_type: Some(12) }),
            ingest("i"),
        ];
        let rows = batches().into_iter().map(|batch| {
            let schema = batch.schema();
            batches_to_flight_data(&schema, vec![batch.clone(), batch]).unwrap()
        });
        Self {
            actions: vec![
                prepare,
                Action::new("ClosePreparedStatement", close.as_any().encode_to_vec()),
                Action::new("CancelFlightInfo", cancel.encode_to_vec()),
                Action::new("CancelQuery", cancel.encode_to_vec()),
                Action::new("SetSessionOptions", vec![]),
                Action::new("BeginTransaction", vec![]),
            ],
            rows: rows.collect(),
            puts: vec![
                bind,
                run,
                ingest("i"),
                command(update("INSERT INTO t VALUES (3)")),
                commands[2].clone(),
                Bytes::from_static(br#"{"append": "g"}"#),
                Bytes::from_static(br#"{"append": "public.i"}"#),
            ],
            exchanges: vec![exchange, direct],
            commands,
        }
    }

    /// A stream of batches, spoilt somewhere.
    fn spoilt_rows(&self, dice: &mut Dice, descriptor: Bytes) -> Vec<FlightData> {
        let mut messages = dice.one_of(&self.rows).clone();
        messages[0].flight_descriptor = Some(FlightDescriptor::new_cmd(descriptor));
        let others: Vec<Bytes> =
            self.rows.iter().flatten().map(|message| message.data_header.clone()).collect();
        for _ in 0..dice.below(3) {
            let place = dice.below(messages.len());
            let message = &mut messages[place];
            match dice.below(4) {
                0 => message.data_header = dice.spoilt(&message.data_header, &others),
                1 => message.data_body = dice.spoilt(&message.data_body, &others),
                2 => message.app_metadata = dice.spoilt(&message.app_metadata, &others),
                _ => {
                    messages.swap_remove(place);
                }
            }
            if messages.is_empty() {
                break;
            }
        }
        messages
    }
}

/// One call that is somehow wrong.
async fn call(client: &mut Client, seeds: &Seeds, dice: &mut Dice) -> Result<(), Status> {
    let seed = dice.one_of(&seeds.commands).clone();
    let command = dice.spoilt(&seed, &seeds.commands);
    match dice.below(10) {
        0 => client.get_flight_info(FlightDescriptor::new_cmd(command)).await.map(drop),
        1 => client.get_schema(FlightDescriptor::new_cmd(command)).await.map(drop),
        2 => client.poll_flight_info(FlightDescriptor::new_cmd(command)).await.map(drop),
        3 | 4 => drained(client.do_get(Ticket::new(command)).await?.into_inner()).await,
        5 => {
            let mut action = dice.one_of(&seeds.actions).clone();
            action.body = dice.spoilt(&action.body, &seeds.commands);
            if dice.below(20) == 0 {
                action.r#type =
                    String::from_utf8_lossy(&dice.spoilt(action.r#type.as_bytes(), &seeds.commands)).into();
            }
            drained(client.do_action(action).await?.into_inner()).await
        }
        6 | 7 => {
            let put = dice.one_of(&seeds.puts).clone();
            let put = if dice.below(4) == 0 { dice.spoilt(&put, &seeds.puts) } else { put };
            let messages = seeds.spoilt_rows(dice, put);
            drained(client.do_put(stream::iter(messages)).await?.into_inner()).await
        }
        8 => {
            let asked = dice.one_of(&seeds.exchanges).clone();
            let asked = if dice.below(4) == 0 { dice.spoilt(&asked, &seeds.exchanges) } else { asked };
            let messages = seeds.spoilt_rows(dice, asked);
            drained(client.do_exchange(stream::iter(messages)).await?.into_inner()).await
        }
        _ => match dice.below(3) {
            0 => {
                let greeting = HandshakeRequest { protocol_version: 0, payload: command };
                drained(client.handshake(stream::iter([greeting])).await?.into_inner()).await
            }
            1 => drained(client.list_flights(Criteria { expression: command }).await?.into_inner()).await,
            _ => {
                let path = vec![String::from_utf8_lossy(&command).into_owned()];
                client.get_flight_info(FlightDescriptor::new_path(path)).await.map(drop)
            }
        },
    }
}

async fn drained<T>(answers: tonic::Streaming<T>) -> Result<(), Status> {
    answers.take(MESSAGES_MAX).try_for_each(|_| std::future::ready(Ok(()))).await
}

/// Whether the status says that the caller is wrong, or asks too much; or has cancelled what others fetch, as some do.
fn is_the_callers(status: &Status) -> bool {
    use Code::{
        AlreadyExists, Cancelled, FailedPrecondition, InvalidArgument, NotFound, OutOfRange,
        PermissionDenied, ResourceExhausted, Unauthenticated, Unimplemented,
    };
    let cancelled = status.code() == Cancelled && status.message() == "the query was cancelled";
    let of_caller = matches!(
        status.code(),
        AlreadyExists
            | FailedPrecondition
            | InvalidArgument
            | NotFound
            | OutOfRange
            | PermissionDenied
            | ResourceExhausted
            | Unauthenticated
            | Unimplemented
    );
    cancelled || of_caller
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_is_answered_and_the_server_stays_well() {
    let data = tempfile::tempdir().unwrap();
    let server = start_server(data.path(), Arc::new(ManualClock::new(START_US))).await.unwrap();
    let session = server.engine().session();
    for sql in [
        "CREATE FEATURE GROUP g (user_id BIGINT, at TIMESTAMP, clicks BIGINT, ENTITY KEY (user_id), EVENT TIME (at))",
        "INSERT INTO g VALUES (1, TIMESTAMP '2026-01-30', 7)",
    ] {
        session.update(sql, None).await.unwrap();
    }
    let seeds = Arc::new(Seeds::of(&server).await);
    let workers = (0..CLIENTS).map(|worker| {
        let seeds = Arc::clone(&seeds);
        let server = &server;
        async move {
            let client = client_with_table(server).await.into_inner();
            let cases = stream::iter(worker * CASES / CLIENTS..(worker + 1) * CASES / CLIENTS);
            let answers = cases.map(|case| {
                let (mut client, seeds) = (client.clone(), Arc::clone(&seeds));
                async move { (case, call(&mut client, &seeds, &mut Dice(case)).await) }
            });
            let wrong = |(case, answer): (u64, Result<(), Status>)| async move {
                answer.err().filter(|status| !is_the_callers(status)).map(|status| (case, status))
            };
            answers.buffer_unordered(CALLS_AT_A_TIME).filter_map(wrong).take(5).collect::<Vec<_>>().await
        }
    });
    let wrong: Vec<(u64, Status)> = futures::future::join_all(workers).await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let alive = session.prepare("SELECT * FROM LATEST(g, 1)").await.unwrap();
    assert_eq!(alive.schema.fields().len(), 4);
    server.shutdown().await.unwrap();
}

/// Expressions are walked by functions that call themselves: what is too deep for a stack would end the whole server.
#[tokio::test(flavor = "multi_thread")]
async fn statements_that_are_nested_deeply_are_answered() {
    let server = Process::start(&[]);
    let mut client = server.connect().await;
    let shapes: [fn(usize) -> String; 7] = [
        |n| format!("SELECT {}", vec!["1"; n].join(" + ")),
        |n| format!("SELECT {}", vec!["'a'"; n].join(" || ")),
        |n| format!("SELECT 1 FROM (SELECT 1 AS x) WHERE {}", vec!["x = 7"; n].join(" OR ")),
        |n| format!("SELECT 1 FROM (SELECT 1 AS x) WHERE {}", vec!["(x = 7 AND x = 8)"; n].join(" OR ")),
        |n| vec!["SELECT 1"; n].join(" UNION ALL "),
        |n| format!("SELECT {}true", "NOT ".repeat(n)),
        |n| format!("SELECT {}1{}", "abs(".repeat(n), ")".repeat(n)),
    ];
    for shape in shapes {
        for levels in [300, 5000] {
            let answer = client.execute(shape(levels), None).await;
            match answer {
                Ok(info) => {
                    let rows = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
                    rows.try_collect::<Vec<_>>().await.unwrap();
                    assert_eq!(levels, 300, "{}", &shape(3));
                }
                Err(FlightError::Tonic(status)) => {
                    assert_eq!(status.code(), Code::InvalidArgument, "{status}")
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    server.stop();
}
