//! The calls of Arrow Flight: each finds its session, is let in by the door, and goes to whom it concerns.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaResult, Ticket as FlightTicket,
};
use futures::stream::{self, StreamExt};
use tonic::{Request as Call, Response, Status, Streaming, async_trait};

use super::actions::{self, Known};
use super::auth::{Authenticator, Caller};
use super::body;
use super::commands::Request;
use super::compression;
use super::drain::{Drain, InFlight};
use super::endpoints::{Endpoints, info};
use super::exchange;
use super::idempotency;
use super::listener::Peer;
use super::message::Message;
use super::metadata;
use super::put::{self, Put};
use super::query;
use super::security::Seals;
use super::sessions::Sessions;
use super::status::from_client_stream;
use super::stream::{Answers, Encoder, Stoppable};
use crate::error::{Error, Result};
use crate::sql::Session;

/// Flight SQL, answered by the sessions of one engine.
pub(super) struct Service {
    pub(super) sessions: Arc<Sessions>,
    pub(super) drain: Arc<Drain>,
    pub(super) encoder: Encoder,
    pub(super) auth: Arc<Authenticator>,
    pub(super) seals: Arc<Seals>,
    pub(super) endpoints: Endpoints,
}

impl Service {
    /// The session of a call and its place among the calls in flight.
    fn enter<T>(&self, call: &Call<T>, begins_work: bool) -> Result<(Arc<Session>, InFlight)> {
        let in_flight = self.drain.enter(begins_work)?;
        Ok((self.sessions.of(caller_of(call)?, call.metadata())?, in_flight))
    }

    /// Runs to the end unless the door closes on it first.
    async fn until_stopped<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            done = work => done,
            stopped = self.drain.stopped() => Err(stopped),
        }
    }

    async fn info(&self, call: Call<FlightDescriptor>) -> Result<FlightInfo> {
        let request = Request::of_descriptor(call.get_ref(), &self.seals)?;
        let key = idempotency::key(call.metadata())?;
        let (session, _in_flight) = self.enter(&call, !matches!(request, Request::Metadata(_)))?;
        let descriptor = call.into_inner();
        self.until_stopped(async {
            match request {
                Request::Query(statement) | Request::Prepared(statement) => {
                    query::flight_info(&session, &self.endpoints, statement, key, descriptor).await
                }
                Request::Metadata(request) => {
                    let endpoint = self.endpoints.of_command(descriptor.cmd.clone());
                    let answer = metadata::answer(&session, request).await?;
                    let rows = i64::try_from(answer.num_rows()).unwrap_or(i64::MAX);
                    info(answer.schema_ref(), vec![endpoint], descriptor, rows, true)
                }
                Request::Update(_) | Request::PreparedUpdate(_) | Request::Ingest(_) => {
                    Err(Error::invalid("this command changes something; send it through DoPut"))
                }
                Request::Ticket(_) | Request::Direct(_) => {
                    Err(Error::invalid("a ticket is fetched through DoGet"))
                }
            }
        })
        .await
    }

    async fn schema(&self, call: Call<FlightDescriptor>) -> Result<SchemaResult> {
        let (session, _in_flight) = self.enter(&call, false)?;
        let schema: SchemaRef = self
            .until_stopped(async {
                match Request::of_descriptor(call.get_ref(), &self.seals)? {
                    Request::Query(statement)
                    | Request::Prepared(statement)
                    | Request::Update(statement)
                    | Request::PreparedUpdate(statement) => query::schema(&session, &statement).await,
                    Request::Metadata(request) => Ok(metadata::answer(&session, request).await?.schema()),
                    Request::Ingest(_) | Request::Ticket(_) | Request::Direct(_) => {
                        Err(Error::invalid("this command has no result schema"))
                    }
                }
            })
            .await?;
        Ok(SchemaResult { schema: query::schema_bytes(&schema)? })
    }

    async fn fetch(&self, call: Call<FlightTicket>) -> Result<Answers<Message>> {
        let request = Request::of_command(&call.get_ref().ticket, &self.seals)?;
        let compression = compression::asked(call.metadata())?;
        let compressing = compression.map(|options| self.encoder.compressing(options));
        let (session, in_flight) = self.enter(&call, matches!(request, Request::Direct(_)))?;
        let encoder = compressing.as_ref().unwrap_or(&self.encoder);
        let answers = self
            .until_stopped(async {
                match request {
                    Request::Ticket(ticket) => query::fetch(&session, encoder, ticket).await,
                    Request::Direct(direct) => query::fetch_direct(&session, encoder, &direct).await,
                    Request::Metadata(request) => {
                        let batch = metadata::answer(&session, request).await?;
                        Ok(encoder.encode(batch.schema(), stream::iter([Ok(batch)])))
                    }
                    Request::Query(_)
                    | Request::Prepared(_)
                    | Request::Update(_)
                    | Request::PreparedUpdate(_)
                    | Request::Ingest(_) => {
                        Err(Error::invalid("this is no ticket; ask GetFlightInfo for one"))
                    }
                }
            })
            .await?;
        Ok(self.stoppable(answers, (session, in_flight)))
    }

    async fn exchange(&self, call: Call<Streaming<FlightData>>) -> Result<Answers<Message>> {
        let (session, in_flight) = self.enter(&call, true)?;
        let answers = exchange::exchange(
            Arc::clone(&session),
            &self.encoder,
            Arc::clone(&self.drain),
            call.into_inner(),
        );
        let answers = self.until_stopped(answers).await?;
        Ok(self.stoppable(answers, (session, in_flight)))
    }

    /// Answers that end when the door closes.
    fn stoppable<T: Send + 'static>(
        &self,
        answers: Answers<T>,
        held: (Arc<Session>, InFlight),
    ) -> Answers<T> {
        let drain = Arc::clone(&self.drain);
        Stoppable::new(answers, Box::pin(async move { drain.stopped().await }), held).boxed()
    }

    async fn put(&self, call: Call<Streaming<FlightData>>) -> Result<Answers<PutResult>> {
        let key = idempotency::key(call.metadata())?;
        let (session, in_flight) = self.enter(&call, true)?;
        let put = put::put(&session, &self.seals, &self.drain, key, call.into_inner());
        Ok(match self.until_stopped(put).await? {
            Put::Done(result) => one(result),
            Put::Stream(answers) => self.stoppable(answers, (session, in_flight)),
        })
    }

    async fn act(&self, call: Call<Action>) -> Result<Response<Answers<arrow_flight::Result>>> {
        let known = Known::of(call.get_ref())?;
        let (session, _in_flight) = self.enter(&call, known.begins_work())?;
        let (caller, headers) = (caller_of(&call)?.clone(), call.metadata().clone());
        let performed = actions::perform(known, &session, &self.seals, &self.endpoints, call.into_inner());
        let body = self.until_stopped(performed).await?;
        let answers = stream::iter(body.map(|body| Ok(arrow_flight::Result { body }))).boxed();
        let mut response = Response::new(answers);
        let cookie = match known {
            Known::SetSessionOptions => self.sessions.name(&caller, &headers),
            Known::CloseSession => self.sessions.close(&caller, &headers),
            _ => None,
        };
        if let Some(cookie) = cookie.and_then(|cookie| cookie.parse().ok()) {
            response.metadata_mut().insert("set-cookie", cookie);
        }
        Ok(response)
    }
}

fn caller_of<T>(call: &Call<T>) -> Result<&Caller> {
    let caller = call.extensions().get::<Caller>();
    caller.ok_or_else(|| Error::internal("a call without a caller: the layer before it sets it"))
}

fn one<T: Send + 'static>(answer: T) -> Answers<T> {
    stream::iter([Ok(answer)]).boxed()
}

#[async_trait]
impl FlightService for Service {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    /// Clients with a user name greet first. Whose headers say who they are is known by now, and has a token in those
    /// of the answer; others say it in their first message, and take the token from that of the answer.
    async fn handshake(
        &self,
        call: Call<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        if call.extensions().get::<Caller>().is_some() {
            return Ok(Response::new(one(HandshakeResponse::default())));
        }
        let peer = call.extensions().get::<Peer>();
        let client = peer.ok_or_else(|| Error::internal("a call without a connection"))?.connection.peer;
        let first = call.into_inner().message().await.map_err(|status| from_client_stream(&status))?;
        let token = self.auth.greet(&first.unwrap_or_default().payload, client).await?;
        let payload = token.into_bytes();
        Ok(Response::new(one(HandshakeResponse { payload, ..HandshakeResponse::default() })))
    }

    async fn list_flights(&self, _: Call<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Error::unsupported("there are no named flights; ask for tables with CommandGetTables").into())
    }

    async fn get_flight_info(&self, call: Call<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        Ok(Response::new(self.info(call).await?))
    }

    /// Results are ready to be fetched as soon as they are described, so the first poll is the last.
    async fn poll_flight_info(&self, call: Call<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        let info = self.info(call).await?;
        Ok(Response::new(PollInfo { info: Some(info), progress: Some(1.0), ..PollInfo::default() }))
    }

    async fn get_schema(&self, call: Call<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        Ok(Response::new(self.schema(call).await?))
    }

    async fn do_get(&self, call: Call<FlightTicket>) -> Result<Response<Self::DoGetStream>, Status> {
        Ok(body::answer(self.fetch(call).await?))
    }

    async fn do_put(&self, call: Call<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        Ok(Response::new(self.put(call).await?))
    }

    async fn do_exchange(
        &self,
        call: Call<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        Ok(body::answer(self.exchange(call).await?))
    }

    async fn do_action(&self, call: Call<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        Ok(self.act(call).await?)
    }

    async fn list_actions(&self, _: Call<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Ok(Response::new(stream::iter(actions::list().into_iter().map(Ok)).boxed()))
    }
}
