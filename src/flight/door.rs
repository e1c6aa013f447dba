//! The open door: a gRPC server on a listener, until it is closed.

use std::sync::Arc;
use std::time::Duration;

use arrow_flight::flight_service_server::FlightServiceServer;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::server::NamedService;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tower::util::MapResponseLayer;

use super::auth::AuthLayer;
use super::body;
use super::drain::Drain;
use super::endpoints::Endpoints;
use super::listener::incoming;
use super::observed::Observe;
use super::security::Security;
use super::service::Service;
use super::sessions::Sessions;
use super::stream::Encoder;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::sql::Engine;

/// A peer that answers no ping for this long is gone, and its queries stop.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// Drivers put long things into headers: tokens, trace contexts, unknown URL parameters.
const HEADER_BYTES_MAX: u32 = 64 << 10;

/// What a client may have in flight towards the server, per call and per connection.
const STREAM_WINDOW_BYTES: u32 = 2 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;

/// After the last call is over or stopped, connections have this long to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// As whom health checks know it; the empty name is the server as a whole.
const FLIGHT: &str = <FlightServiceServer<Service> as NamedService>::NAME;

/// `Flight.proto` and `FlightSql.proto` of Apache Arrow, as `protoc --include_imports --descriptor_set_out` writes them.
const PROTOCOL: &[u8] = include_bytes!("protocol.bin");

/// What clients may ask for.
#[derive(Debug, Clone)]
pub(crate) struct DoorLimits {
    pub(crate) connections_max: usize,
    pub(crate) streams_per_connection_max: u32,
    pub(crate) message_bytes_max: usize,
    pub(crate) sessions_max: usize,
    pub(crate) session_idle_timeout: Duration,
    pub(crate) authentication_timeout: Duration,
    /// Where they may fetch results; none is here.
    pub(crate) locations: Vec<String>,
}

/// A Flight SQL server that runs.
#[derive(Debug)]
pub(crate) struct Door {
    drain: Arc<Drain>,
    sessions: Arc<Sessions>,
    health: HealthReporter,
    serving: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl Door {
    /// Serves `engine` on `listener` until it is closed.
    ///
    /// # Errors
    /// `Internal` where the protocol's description is none.
    pub(crate) async fn open(
        listener: TcpListener,
        engine: Arc<Engine>,
        clock: Arc<dyn Clock>,
        security: Security,
        limits: &DoorLimits,
    ) -> Result<Self> {
        let drain = Drain::new();
        let metrics = Arc::clone(engine.metrics());
        let observe = Observe::new(Arc::clone(&metrics), Arc::clone(&clock));
        let sessions =
            Arc::new(Sessions::new(engine, clock, limits.sessions_max, limits.session_idle_timeout));
        let connections = incoming(
            listener,
            limits.connections_max,
            limits.authentication_timeout,
            security.tls.is_some(),
            Arc::clone(&sessions),
            Arc::clone(&drain),
            metrics,
        );
        let service = Service {
            sessions: Arc::clone(&sessions),
            drain: Arc::clone(&drain),
            encoder: Encoder::default(),
            auth: Arc::clone(&security.auth),
            endpoints: Endpoints::new(limits.locations.clone(), Arc::clone(&security.seals)),
            seals: security.seals,
        };
        let service = FlightServiceServer::new(service)
            .max_decoding_message_size(limits.message_bytes_max)
            .max_encoding_message_size(usize::MAX);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_service_status(FLIGHT, ServingStatus::Serving).await;
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(PROTOCOL)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .map_err(|error| Error::internal("the protocol cannot describe itself").with_source(error))?;
        let mut server = Server::builder();
        if let Some(tls) = security.tls {
            let unusable = |error| Error::invalid("tls_cert: cannot be used").with_source(error);
            server = server.tls_config(tls.config()).map_err(unusable)?;
        }
        let server = server
            .max_concurrent_streams(limits.streams_per_connection_max)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
            .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .layer(observe)
            .layer(AuthLayer::new(security.auth))
            .layer(MapResponseLayer::new(body::attach))
            .add_service(service)
            .add_service(health_service)
            .add_service(reflection);
        let closing = Arc::clone(&drain);
        let serving = tokio::spawn(server.serve_with_incoming_shutdown(connections, async move {
            closing.closing().await;
        }));
        Ok(Self { drain, sessions, health, serving })
    }

    /// The sessions of its clients.
    pub(crate) fn sessions(&self) -> Arc<Sessions> {
        Arc::clone(&self.sessions)
    }

    /// Takes no new connection and no new statement, lets what runs finish for up to `drain_timeout`, and then ends
    /// it with an error.
    pub(crate) async fn close(mut self, drain_timeout: Duration) -> Result<()> {
        for service in ["", FLIGHT] {
            self.health.set_service_status(service, ServingStatus::NotServing).await;
        }
        if !self.drain.drain(drain_timeout).await {
            tracing::warn!(?drain_timeout, "queries that still ran were stopped");
        }
        match tokio::time::timeout(GOODBYE, &mut self.serving).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(error))) => Err(Error::unavailable("the listener failed").with_source(error)),
            Ok(Err(error)) => Err(Error::internal("the listener panicked").with_source(error)),
            Err(_) => {
                self.serving.abort();
                Ok(())
            }
        }
    }
}
