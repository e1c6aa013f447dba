//! Every command by every call: answered, or refused with the code that says why.

use arrow::array::AsArray;
use arrow_flight::sql::{
    ActionBeginSavepointRequest, ActionBeginTransactionRequest, ActionCancelQueryRequest,
    ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest,
    ActionCreatePreparedSubstraitPlanRequest, ActionEndSavepointRequest, ActionEndTransactionRequest, Any,
    CommandGetCatalogs, CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys,
    CommandGetImportedKeys, CommandGetPrimaryKeys, CommandGetSqlInfo, CommandGetTableTypes, CommandGetTables,
    CommandGetXdbcTypeInfo, CommandPreparedStatementQuery, CommandPreparedStatementUpdate,
    CommandStatementIngest, CommandStatementQuery, CommandStatementSubstraitPlan, CommandStatementUpdate,
    DoPutUpdateResult, ProstMessageExt, SqlInfo, TicketStatementQuery,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, Criteria, FlightData, FlightDescriptor, RenewFlightEndpointRequest,
    Ticket,
};
use bytes::Bytes;
use futures::TryStreamExt;
use prost::Message;
use tonic::Code;

use super::{Raw, act, info};
use crate::flight::{House, fetch, query, texts, update};

const OK: Code = Code::Ok;
const BAD: Code = Code::InvalidArgument;
const NOT_DONE: Code = Code::Unimplemented;

/// A command, and what GetFlightInfo (and PollFlightInfo), GetSchema, DoGet and DoPut answer to it.
type Case = (&'static str, Any, [Code; 4]);

fn metadata() -> Vec<Case> {
    let answers = [OK, OK, OK, BAD];
    vec![
        ("catalogs", CommandGetCatalogs {}.as_any(), answers),
        ("schemas", CommandGetDbSchemas::default().as_any(), answers),
        ("tables", CommandGetTables { include_schema: true, ..Default::default() }.as_any(), answers),
        ("table types", CommandGetTableTypes {}.as_any(), answers),
        ("primary keys", CommandGetPrimaryKeys { table: "t".into(), ..Default::default() }.as_any(), answers),
        (
            "exported keys",
            CommandGetExportedKeys { table: "t".into(), ..Default::default() }.as_any(),
            answers,
        ),
        (
            "imported keys",
            CommandGetImportedKeys { table: "t".into(), ..Default::default() }.as_any(),
            answers,
        ),
        ("cross reference", CommandGetCrossReference::default().as_any(), answers),
        ("sql info", CommandGetSqlInfo::default().as_any(), answers),
        ("type info", CommandGetXdbcTypeInfo::default().as_any(), answers),
    ]
}

fn statements(query_handle: Bytes, update_handle: Bytes, ticket: Bytes) -> Vec<Case> {
    let query = CommandStatementQuery { query: "SELECT x FROM t".into(), transaction_id: None };
    let in_transaction =
        CommandStatementQuery { transaction_id: Some(b"t".to_vec().into()), ..query.clone() };
    let change = CommandStatementUpdate { query: "INSERT INTO t VALUES (1)".into(), transaction_id: None };
    let changed_as_query = CommandStatementQuery { query: change.query.clone(), transaction_id: None };
    let ingest = CommandStatementIngest { table: "t".into(), ..Default::default() };
    let prepared = CommandPreparedStatementQuery { prepared_statement_handle: query_handle };
    let prepared_update = CommandPreparedStatementUpdate { prepared_statement_handle: update_handle };
    let forged = CommandPreparedStatementQuery { prepared_statement_handle: b"forged".to_vec().into() };
    let substrait = CommandStatementSubstraitPlan { plan: None, transaction_id: None };
    let unknown = Any { type_url: "type.googleapis.com/nobody.Knows".into(), value: Bytes::new() };
    let fetched = TicketStatementQuery { statement_handle: ticket };
    vec![
        ("query", query.as_any(), [OK, OK, BAD, BAD]),
        ("query in a transaction", in_transaction.as_any(), [NOT_DONE; 4]),
        ("update", change.as_any(), [BAD, OK, BAD, OK]),
        ("update sent as a query", changed_as_query.as_any(), [OK, OK, BAD, BAD]),
        ("prepared query", prepared.as_any(), [OK, OK, BAD, OK]),
        ("prepared update", prepared_update.as_any(), [BAD, OK, BAD, OK]),
        ("forged handle", forged.as_any(), [BAD; 4]),
        ("ingest without rows", ingest.as_any(), [BAD, BAD, BAD, BAD]),
        ("ticket", fetched.as_any(), [BAD, BAD, OK, BAD]),
        ("substrait", substrait.as_any(), [NOT_DONE; 4]),
        ("a result for a command", DoPutUpdateResult { record_count: 1 }.as_any(), [BAD; 4]),
        ("an action for a command", ActionBeginTransactionRequest {}.as_any(), [BAD; 4]),
        ("unknown", unknown, [NOT_DONE; 4]),
    ]
}

fn code<T>(answer: Result<T, tonic::Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn prepared(raw: &mut Raw, sql: &str) -> Bytes {
    let request = ActionCreatePreparedStatementRequest { query: sql.into(), transaction_id: None };
    let (answers, _) = act(raw, "CreatePreparedStatement", request.as_any().encode_to_vec()).await.unwrap();
    let any = Any::decode(answers[0].clone()).unwrap();
    let result: arrow_flight::sql::ActionCreatePreparedStatementResult = any.unpack().unwrap().unwrap();
    result.prepared_statement_handle
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_by_every_call() {
    let house = House::open().await;
    update(&mut house.client().await, "CREATE TABLE t (x BIGINT)").await;
    let mut raw = house.raw().await;
    let query_handle = prepared(&mut raw, "SELECT x FROM t").await;
    let update_handle = prepared(&mut raw, "INSERT INTO t VALUES (2)").await;
    let ticket = info(&mut raw, "SELECT x FROM t").await.endpoint[0].ticket.clone().unwrap().ticket;
    let ticket: TicketStatementQuery = Any::decode(ticket).unwrap().unpack().unwrap().unwrap();

    let cases =
        metadata().into_iter().chain(statements(query_handle, update_handle, ticket.statement_handle));
    for (name, command, expected) in cases {
        let bytes = command.encode_to_vec();
        let descriptor = || FlightDescriptor::new_cmd(bytes.clone());
        let got = code(raw.get_flight_info(descriptor()).await);
        assert_eq!(got, expected[0], "GetFlightInfo of {name}");
        let polled = raw.poll_flight_info(descriptor()).await;
        if let Ok(polled) = &polled {
            let polled = polled.get_ref();
            assert!(
                polled.info.is_some() && polled.flight_descriptor.is_none(),
                "{name} is complete at once"
            );
            assert_eq!(polled.progress, Some(1.0), "{name}");
        }
        assert_eq!(code(polled), expected[0], "PollFlightInfo of {name}");
        assert_eq!(code(raw.get_schema(descriptor()).await), expected[1], "GetSchema of {name}");
        let fetched = raw.do_get(Ticket::new(bytes.clone())).await;
        let fetched = match fetched {
            Ok(stream) => stream.into_inner().try_collect::<Vec<_>>().await.map(|_| ()),
            Err(status) => Err(status),
        };
        assert_eq!(code(fetched), expected[2], "DoGet of {name}");
        let put = FlightData { flight_descriptor: Some(descriptor()), ..Default::default() };
        assert_eq!(code(raw.do_put(futures::stream::iter([put])).await), expected[3], "DoPut of {name}");
        let exchanged = FlightData { flight_descriptor: Some(descriptor()), ..Default::default() };
        let exchanged = code(raw.do_exchange(futures::stream::iter([exchanged])).await);
        assert_eq!(exchanged, BAD, "DoExchange of {name}");
    }
    assert_eq!(code(raw.list_flights(Criteria::default()).await), NOT_DONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_action() {
    let house = House::open().await;
    update(&mut house.client().await, "CREATE TABLE t (x BIGINT)").await;
    let mut raw = house.raw().await;
    let flight = info(&mut raw, "SELECT x FROM t").await;
    let handle = prepared(&mut raw, "SELECT x FROM t").await;
    let create = ActionCreatePreparedStatementRequest { query: "SELECT 1".into(), transaction_id: None };
    let in_transaction =
        ActionCreatePreparedStatementRequest { transaction_id: Some(b"t".to_vec().into()), ..create.clone() };
    let close = ActionClosePreparedStatementRequest { prepared_statement_handle: handle };
    let cancel_query = ActionCancelQueryRequest { info: flight.encode_to_vec().into() };
    let cancel = CancelFlightInfoRequest { info: Some(flight.clone()) }.encode_to_vec();
    let renew = RenewFlightEndpointRequest { endpoint: Some(flight.endpoint[0].clone()) }.encode_to_vec();
    let end = ActionEndTransactionRequest { transaction_id: Bytes::new(), action: 1 };
    let end_savepoint = ActionEndSavepointRequest { savepoint_id: Bytes::new(), action: 1 };
    let plan = ActionCreatePreparedSubstraitPlanRequest { plan: None, transaction_id: None };
    let cases = [
        ("CreatePreparedStatement", create.as_any().encode_to_vec(), OK),
        ("CreatePreparedStatement", in_transaction.as_any().encode_to_vec(), NOT_DONE),
        ("CreatePreparedStatement", close.as_any().encode_to_vec(), BAD),
        ("ClosePreparedStatement", close.as_any().encode_to_vec(), OK),
        ("CreatePreparedSubstraitPlan", plan.as_any().encode_to_vec(), NOT_DONE),
        ("BeginTransaction", ActionBeginTransactionRequest {}.as_any().encode_to_vec(), NOT_DONE),
        ("EndTransaction", end.as_any().encode_to_vec(), NOT_DONE),
        ("BeginSavepoint", ActionBeginSavepointRequest::default().as_any().encode_to_vec(), NOT_DONE),
        ("EndSavepoint", end_savepoint.as_any().encode_to_vec(), NOT_DONE),
        ("CancelQuery", cancel_query.as_any().encode_to_vec(), OK),
        ("CancelFlightInfo", cancel, OK),
        ("CancelFlightInfo", Vec::new(), BAD),
        ("RenewFlightEndpoint", renew, OK),
        ("RenewFlightEndpoint", Vec::new(), BAD),
        ("SetSessionOptions", Vec::new(), OK),
        ("SetSessionOptions", b"\xff".to_vec(), BAD),
        ("GetSessionOptions", Vec::new(), OK),
        ("CloseSession", Vec::new(), OK),
        ("Nonsense", Vec::new(), NOT_DONE),
    ];
    for (name, body, expected) in cases {
        assert_eq!(code(act(&mut raw, name, body.clone()).await), expected, "{name} of {body:?}");
    }
    let listed: Vec<_> =
        raw.list_actions(arrow_flight::Empty {}).await.unwrap().into_inner().try_collect().await.unwrap();
    for action in listed {
        let refused = raw.do_action(Action::new(action.r#type.clone(), b"\xff".to_vec())).await;
        assert_ne!(code(refused), NOT_DONE, "{} is listed", action.r#type);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_in_words() {
    let house = House::open().await;
    let mut raw = house.raw().await;
    let long = format!("SELECT '{}'", "x".repeat(3 << 20));
    let status = raw.get_flight_info(super::asked(&long)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("the statement takes"), "{status}");
    let request = ActionCreatePreparedStatementRequest { query: long, transaction_id: None };
    let status =
        act(&mut raw, "CreatePreparedStatement", request.as_any().encode_to_vec()).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let status = raw.do_get(Ticket::new(vec![0x0a; 17 << 20])).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("the command or ticket takes"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_functions_and_types_it_names_exist() {
    let house = House::open().await;
    let mut client = house.client().await;
    let infos = vec![
        SqlInfo::SqlNumericFunctions,
        SqlInfo::SqlStringFunctions,
        SqlInfo::SqlSystemFunctions,
        SqlInfo::SqlDatetimeFunctions,
    ];
    let info = client.get_sql_info(infos).await.unwrap();
    let lists = fetch(&mut client, info).await.unwrap();
    let lists = lists[0].column(1).as_union().child(4).as_list::<i32>().values().clone();
    let known =
        query(&mut client, "SELECT DISTINCT routine_name FROM information_schema.routines").await.unwrap();
    let known = texts(&known, "routine_name");
    let named: Vec<&str> = lists.as_string::<i32>().iter().flatten().collect();
    assert!(named.len() > 50, "{named:?}");
    let missing: Vec<&&str> = named.iter().filter(|name| !known.contains(&name.to_lowercase())).collect();
    assert!(missing.is_empty(), "{missing:?}");

    let info = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await.unwrap();
    for (place, name) in texts(&fetch(&mut client, info).await.unwrap(), "type_name").iter().enumerate() {
        update(&mut client, &format!("CREATE TABLE typed_{place} (c {name})")).await;
    }
}
