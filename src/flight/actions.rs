//! `DoAction`: prepared statements, cancellation and renewal, sessions.

use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionClosePreparedStatementRequest, ActionCreatePreparedStatementRequest, Any,
    ProstMessageExt,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo,
    RenewFlightEndpointRequest,
};
use bytes::Bytes;
use prost::Message;

use super::commands::{Request, refuse_transaction};
use super::endpoints::Endpoints;
use super::handle::{Statement, Ticket};
use super::options;
use super::query::schema_bytes;
use super::security::Seals;
use crate::error::{Error, Result};
use crate::sql::{Session, StatementKind};

/// An action that this server performs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    CreatePreparedStatement,
    ClosePreparedStatement,
    CancelFlightInfo,
    CancelQuery,
    RenewFlightEndpoint,
    SetSessionOptions,
    GetSessionOptions,
    CloseSession,
}

const ALL: [(Known, &str, &str); 8] = [
    (
        Known::CreatePreparedStatement,
        "CreatePreparedStatement",
        "ActionCreatePreparedStatementRequest to ActionCreatePreparedStatementResult: plans a statement",
    ),
    (
        Known::ClosePreparedStatement,
        "ClosePreparedStatement",
        "ActionClosePreparedStatementRequest to nothing: handles hold no resources, so this does nothing",
    ),
    (
        Known::CancelFlightInfo,
        "CancelFlightInfo",
        "CancelFlightInfoRequest to CancelFlightInfoResult: stops a query whose result is being fetched",
    ),
    (
        Known::CancelQuery,
        "CancelQuery",
        "ActionCancelQueryRequest to ActionCancelQueryResult: the older spelling of CancelFlightInfo",
    ),
    (
        Known::RenewFlightEndpoint,
        "RenewFlightEndpoint",
        "RenewFlightEndpointRequest to FlightEndpoint: the endpoint, good for as long as a new one",
    ),
    (
        Known::SetSessionOptions,
        "SetSessionOptions",
        "SetSessionOptionsRequest to SetSessionOptionsResult: changes settings, and names those it could not",
    ),
    (
        Known::GetSessionOptions,
        "GetSessionOptions",
        "GetSessionOptionsRequest to GetSessionOptionsResult: the settings of the session",
    ),
    (
        Known::CloseSession,
        "CloseSession",
        "CloseSessionRequest to CloseSessionResult: ends the session, with its temporary tables and settings",
    ),
];

/// For `ListActions`.
pub(super) fn list() -> Vec<ActionType> {
    let describe = |(_, name, text): &(Known, &str, &str)| ActionType {
        r#type: (*name).to_owned(),
        description: (*text).to_owned(),
    };
    ALL.iter().map(describe).collect()
}

impl Known {
    pub(super) fn of(action: &Action) -> Result<Self> {
        let name = action.r#type.as_str();
        let known = ALL.iter().find(|(_, known, _)| *known == name).map(|(known, ..)| *known);
        known.ok_or_else(|| match name {
            "BeginTransaction" | "EndTransaction" | "BeginSavepoint" | "EndSavepoint" => {
                Error::unsupported("transactions are not supported: every statement commits by itself")
            }
            _ => Error::unsupported(format!(
                "the action {name} is not supported; ListActions names those that are"
            )),
        })
    }

    /// Whether it is refused while the server shuts down.
    pub(super) fn begins_work(self) -> bool {
        self == Self::CreatePreparedStatement
    }
}

/// Performs the action; `None` for one that answers nothing.
pub(super) async fn perform(
    known: Known,
    session: &Session,
    seals: &Seals,
    endpoints: &Endpoints,
    action: Action,
) -> Result<Option<Bytes>> {
    match known {
        Known::CreatePreparedStatement => prepare(session, seals, unpack(&action.body)?).await.map(Some),
        Known::ClosePreparedStatement => {
            unpack::<ActionClosePreparedStatementRequest>(&action.body)?;
            Ok(None)
        }
        Known::CancelFlightInfo => {
            let request = CancelFlightInfoRequest::decode(action.body).map_err(undecodable)?;
            let info = request.info.ok_or_else(|| Error::invalid("the request names no flight to cancel"))?;
            let status = if cancel(session, seals, &info)? {
                CancelStatus::Cancelled
            } else {
                CancelStatus::NotCancellable
            };
            Ok(Some(CancelFlightInfoResult { status: status as i32 }.encode_to_vec().into()))
        }
        Known::CancelQuery => {
            let request: ActionCancelQueryRequest = unpack(&action.body)?;
            let info = FlightInfo::decode(request.info).map_err(undecodable)?;
            let result = if cancel(session, seals, &info)? { CANCELLED } else { NOT_CANCELLABLE };
            Ok(Some(CancelQueryResult { result }.as_any_bytes()))
        }
        Known::RenewFlightEndpoint => {
            let request = RenewFlightEndpointRequest::decode(action.body).map_err(undecodable)?;
            let endpoint = request.endpoint.unwrap_or_default();
            Ok(Some(endpoints.renewed(endpoint)?.encode_to_vec().into()))
        }
        Known::SetSessionOptions => options::set(session, action.body).await.map(Some),
        Known::GetSessionOptions => Ok(Some(options::get(session))),
        Known::CloseSession => Ok(Some(options::closed())),
    }
}

async fn prepare(
    session: &Session,
    seals: &Seals,
    request: ActionCreatePreparedStatementRequest,
) -> Result<Bytes> {
    refuse_transaction(request.transaction_id.as_ref())?;
    let prepared = session.prepare(&request.query).await?;
    let is_update = prepared.kind == StatementKind::Update;
    let result = CreatePreparedStatementResult {
        prepared_statement_handle: Statement::new(request.query).to_handle(seals),
        dataset_schema: if is_update { Bytes::new() } else { schema_bytes(&prepared.schema)? },
        parameter_schema: schema_bytes(&prepared.parameters)?,
        is_update: Some(is_update),
    };
    Ok(packed("ActionCreatePreparedStatementResult", &result))
}

/// Whether a query was running for one of the flight's endpoints, which now stops.
fn cancel(session: &Session, seals: &Seals, info: &FlightInfo) -> Result<bool> {
    let mut any = false;
    for ticket in info.endpoint.iter().filter_map(|endpoint| endpoint.ticket.as_ref()) {
        if let Request::Ticket(Ticket::Query { id, .. }) = Request::of_command(&ticket.ticket, seals)? {
            any |= session.cancel(id);
        }
    }
    Ok(any)
}

/// `ActionCreatePreparedStatementResult` with the field that arrow-flight 58 does not know yet, by which JDBC tells
/// a query from an update.
#[derive(Clone, PartialEq, Message)]
struct CreatePreparedStatementResult {
    #[prost(bytes = "bytes", tag = "1")]
    prepared_statement_handle: Bytes,
    #[prost(bytes = "bytes", tag = "2")]
    dataset_schema: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    parameter_schema: Bytes,
    #[prost(bool, optional, tag = "4")]
    is_update: Option<bool>,
}

/// `ActionCancelQueryResult`, whose enumeration arrow-flight keeps to itself.
#[derive(Clone, PartialEq, Message)]
struct CancelQueryResult {
    #[prost(int32, tag = "1")]
    result: i32,
}

const CANCELLED: i32 = 1;
const NOT_CANCELLABLE: i32 = 3;

impl CancelQueryResult {
    fn as_any_bytes(&self) -> Bytes {
        packed("ActionCancelQueryResult", self)
    }
}

fn packed(name: &str, message: &impl Message) -> Bytes {
    let type_url = format!("type.googleapis.com/arrow.flight.protocol.sql.{name}");
    Any { type_url, value: message.encode_to_vec().into() }.encode_to_vec().into()
}

fn unpack<M: ProstMessageExt>(body: &Bytes) -> Result<M> {
    let any = Any::decode(body.clone()).map_err(undecodable)?;
    any.unpack()?.ok_or_else(|| {
        Error::invalid(format!("the action's body is {}, not {}", any.type_url, M::type_url()))
    })
}

fn undecodable(error: prost::DecodeError) -> Error {
    Error::invalid(format!("the action's body does not decode: {error}"))
}
