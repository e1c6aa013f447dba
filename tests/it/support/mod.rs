//! Starts the parts that tests run against, on data directories and ports of their own.

use std::path::Path;
use std::sync::Arc;

use arrow_flight::sql::client::FlightSqlServiceClient;
use fletching::clock::ManualClock;
use fletching::config::{Cli, Settings};
use fletching::error::Result;
pub(crate) use fletching::server::Server;
use fletching::sql::Engine;
use tonic::transport::{Channel, Endpoint};

/// Where a test's clock stands at first: 2026-01-31T00:00:00Z.
pub(crate) const START_US: i64 = 1_769_817_600_000_000;

fn settings(data: &Path) -> Result<Settings> {
    let data = data.to_str().expect("temporary directories have plain names");
    Settings::from_args(["--data-dir", data, "--listen", "127.0.0.1:0"])
}

pub(crate) async fn open_engine(data: &Path, clock: Arc<ManualClock>) -> Result<Arc<Engine>> {
    fletching::server::open_engine(&settings(data)?, clock).await
}

pub(crate) async fn start_server(data: &Path, clock: Arc<ManualClock>) -> Result<Server> {
    Server::start(settings(data)?, clock).await
}

/// A connection of its own, and so a session of its own.
pub(crate) async fn connect(server: &Server) -> FlightSqlServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.local_addr())).expect("an address is a URL");
    FlightSqlServiceClient::new(endpoint.connect().await.expect("the server listens"))
}
