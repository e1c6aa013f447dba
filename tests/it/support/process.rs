//! A server in a process of its own, whose memory, log and end are its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use arrow_flight::sql::client::FlightSqlServiceClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::http;

pub(crate) struct Process {
    child: Child,
    url: String,
    http: SocketAddr,
    _data: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It is done with, however it ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    /// `fletching serve` with these settings beside its own.
    pub(crate) fn start(settings: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_fletching"));
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--http-listen",
            "127.0.0.1:0",
            "--log-level",
            "warn",
        ]);
        command.args(settings).arg("--data-dir").arg(data.path());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut url, mut http) = (None, None);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let flight = line.split_once(" Arrow Flight SQL at grpc://");
            url = url.or_else(|| flight.map(|(_, address)| format!("http://{address}")));
            http = line.split_once("http://").and_then(|(_, at)| at.split_once("/metrics")?.0.parse().ok());
            if http.is_some() {
                break;
            }
        }
        Self { child, url: url.unwrap(), http: http.unwrap(), _data: data }
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> FlightSqlServiceClient<Channel> {
        let endpoint = Endpoint::from_shared(self.url.clone()).unwrap();
        FlightSqlServiceClient::new(endpoint.connect().await.unwrap())
    }

    /// The value of a line of the metrics.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let (_, text) = http::get(self.http, "/metrics").await;
        http::metric(&text, name)
    }

    /// Waits until the metric is what it should be.
    pub(crate) async fn until_metric(&self, name: &str, is: impl Fn(f64) -> bool) {
        http::until(name, async || is(self.metric(name).await)).await;
    }

    /// Asks it to end, as an orchestrator does, and waits until it has.
    pub(crate) fn stop(mut self) {
        let asked = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(asked.success());
        assert!(self.child.wait().unwrap().success());
    }
}
