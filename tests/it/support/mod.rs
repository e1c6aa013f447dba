//! Starts the parts that tests run against, on data directories and ports of their own.

pub(crate) mod faulty;
pub(crate) mod http;
pub(crate) mod object_storage;
pub(crate) mod process;

use std::path::Path;
use std::sync::Arc;

use arrow_flight::sql::client::FlightSqlServiceClient;
use fletching::clock::ManualClock;
use fletching::error::Result;
use fletching::{Server, Settings};
use tonic::transport::{Channel, Endpoint};

/// Where a test's clock stands at first: 2026-01-31T00:00:00Z.
pub(crate) const START_US: i64 = 1_769_817_600_000_000;

pub(crate) async fn start_server(data: &Path, clock: Arc<ManualClock>) -> Result<Server> {
    start_server_with(data, clock, |_| {}).await
}

/// The same with other settings.
pub(crate) async fn start_server_with(
    data: &Path,
    clock: Arc<ManualClock>,
    change: impl FnOnce(&mut Settings),
) -> Result<Server> {
    let mut settings = Settings::for_data_dir(data)?;
    change(&mut settings);
    Server::start(settings, clock).await
}

/// A connection of its own, and so a session of its own.
pub(crate) async fn connect(server: &Server) -> FlightSqlServiceClient<Channel> {
    let endpoint =
        Endpoint::from_shared(format!("http://{}", server.local_addr())).expect("an address is a URL");
    FlightSqlServiceClient::new(endpoint.connect().await.expect("the server listens"))
}
