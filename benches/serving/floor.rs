//! The floor: tonic and arrow-flight as they come, answering with constant batches or with what one `MGET` finds.
//! Tickets are not read. What Fletching adds to this is what serving costs beyond the protocol.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::{
    Action, ActionType, Criteria, Empty, FlightData, FlightDescriptor, FlightInfo, HandshakeRequest,
    HandshakeResponse, PollInfo, PutResult, SchemaAsIpc, SchemaResult, Ticket,
};
use clap::Args;
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use redis::aio::MultiplexedConnection;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::Failure;
use crate::answers::parse;
use crate::entities::{Entities, batch, feature, fetch, schema};
use crate::exchange::encode;

#[derive(Debug, Args)]
pub(crate) struct FloorArgs {
    /// HOST:PORT
    #[arg(long)]
    listen: SocketAddr,
    /// Rows of every answer to DoGet; DoExchange gives as many as it is asked for
    #[arg(long, default_value_t = 1)]
    rows: usize,
    /// Fetch each answer's rows from here, by one MGET
    #[arg(long)]
    redis: Option<String>,
    /// Entries to fetch from
    #[arg(long, default_value_t = 100_000)]
    entities: u64,
}

/// Rows of a constant answer through DoExchange.
const ROWS_MAX: usize = 1000;

/// Serves until it is killed.
pub(crate) async fn serve(args: FloorArgs) -> Result<(), Failure> {
    let schema = schema();
    let source = match args.redis {
        None => {
            let constant = |rows| batch(&schema, rows, |row, number| feature(row as u64, number));
            Source::Constant { usual: constant(args.rows), most: constant(ROWS_MAX) }
        }
        Some(url) => {
            let redis = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
            Source::Redis { redis, entities: args.entities, calls: AtomicU64::new(0) }
        }
    };
    let floor = Floor { rows: args.rows, schema, source: Arc::new(source) };
    let listener = TcpListener::bind(args.listen).await?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = FlightServiceServer::new(floor);
    Ok(Server::builder().add_service(service).serve_with_incoming(incoming).await?)
}

struct Floor {
    rows: usize,
    schema: SchemaRef,
    source: Arc<Source>,
}

/// Where rows come from.
enum Source {
    /// What DoGet gives, and what others are cut from.
    Constant {
        usual: RecordBatch,
        most: RecordBatch,
    },
    Redis {
        redis: MultiplexedConnection,
        entities: u64,
        calls: AtomicU64,
    },
}

impl Source {
    async fn rows(&self, rows: usize, schema: &SchemaRef) -> Result<RecordBatch, Status> {
        match self {
            Self::Constant { usual, .. } if rows == usual.num_rows() => Ok(usual.clone()),
            Self::Constant { most, .. } if rows <= ROWS_MAX => Ok(most.slice(0, rows)),
            Self::Constant { .. } => Err(Status::invalid_argument(format!("more than {ROWS_MAX} keys"))),
            Self::Redis { redis, entities, calls } => {
                let mut entities = Entities::new(*entities, calls.fetch_add(1, Ordering::Relaxed));
                let drawn = (0..rows).map(|_| entities.draw());
                let fetched = fetch(&mut redis.clone(), schema, drawn).await;
                fetched.map_err(|error| Status::unavailable(error.to_string()))
            }
        }
    }
}

/// The answer to one message of keys.
async fn answer(source: &Source, schema: &SchemaRef, question: FlightData) -> Result<FlightData, Failure> {
    let keys = parse(&question)?.header_as_record_batch().ok_or("no batch of keys")?.length();
    let rows = source.rows(keys as usize, schema).await?;
    Ok(encode(&rows)?.with_app_metadata(question.app_metadata))
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

const NOTHING_ELSE: &str = "a floor knows DoGet and DoExchange";

#[tonic::async_trait]
impl FlightService for Floor {
    type HandshakeStream = Answers<HandshakeResponse>;
    type ListFlightsStream = Answers<FlightInfo>;
    type DoGetStream = Answers<FlightData>;
    type DoPutStream = Answers<PutResult>;
    type DoExchangeStream = Answers<FlightData>;
    type DoActionStream = Answers<arrow_flight::Result>;
    type ListActionsStream = Answers<ActionType>;

    async fn do_get(&self, _: Request<Ticket>) -> Result<Response<Self::DoGetStream>, Status> {
        let rows = self.source.rows(self.rows, &self.schema).await?;
        let encoder = FlightDataEncoderBuilder::new()
            .with_schema(Arc::clone(&self.schema))
            .build(stream::once(async { Ok(rows) }));
        Ok(Response::new(encoder.map_err(Status::from).boxed()))
    }

    async fn do_exchange(
        &self,
        request: Request<Streaming<FlightData>>,
    ) -> Result<Response<Self::DoExchangeStream>, Status> {
        let (source, schema) = (Arc::clone(&self.source), Arc::clone(&self.schema));
        let opening = FlightData::from(SchemaAsIpc::new(&schema, &IpcWriteOptions::default()));
        let answers = request.into_inner().skip(1).then(move |question| {
            let (source, schema) = (Arc::clone(&source), Arc::clone(&schema));
            async move {
                let answered = pin!(answer(&source, &schema, question?)).await;
                answered.map_err(|error| Status::invalid_argument(error.to_string()))
            }
        });
        Ok(Response::new(stream::iter([Ok(opening)]).chain(answers).boxed()))
    }

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented(NOTHING_ELSE))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented(NOTHING_ELSE))
    }

    async fn get_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        Err(Status::unimplemented(NOTHING_ELSE))
    }

    async fn poll_flight_info(&self, _: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        Err(Status::unimplemented(NOTHING_ELSE))
    }

    async fn get_schema(&self, _: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        Err(Status::unimplemented(NOTHING_ELSE))
    }

    async fn do_put(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        Err(Status::unimplemented(NOTHING_ELSE))
    }

    async fn do_action(&self, _: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        Err(Status::unimplemented(NOTHING_ELSE))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        Err(Status::unimplemented(NOTHING_ELSE))
    }
}
