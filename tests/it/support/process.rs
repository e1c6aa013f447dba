//! A server in a process of its own, whose memory, log and end are its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use arrow_flight::sql::client::FlightSqlServiceClient;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::http;

pub(crate) struct Process {
    child: Child,
    url: String,
    http: SocketAddr,
    settings: Settings,
    data: TempDir,
}

struct Settings {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

impl Drop for Process {
    fn drop(&mut self) {
        // It is done with, however it ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection to whoever listens there.
pub(crate) async fn connect_to(
    url: &str,
) -> Result<FlightSqlServiceClient<Channel>, tonic::transport::Error> {
    Ok(FlightSqlServiceClient::new(Endpoint::from_shared(url.to_owned())?.connect().await?))
}

/// How often a server that cannot reach its stores is started.
const STARTS_MAX: usize = 100;

/// Starts a server until it runs, as an orchestrator does; returns where it listens for Flight SQL and for HTTP.
fn serve(settings: &Settings, data: &Path) -> (Child, String, SocketAddr) {
    (0..STARTS_MAX).find_map(|_| try_serve(settings, data)).expect("the server starts")
}

fn try_serve(settings: &Settings, data: &Path) -> Option<(Child, String, SocketAddr)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fletching"));
    command.args(["serve", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--log-level", "warn"]);
    command.args(&settings.arguments).arg("--data-dir").arg(data).envs(settings.environment.iter().cloned());
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
    let Some(http) = http else {
        child.wait().unwrap();
        return None;
    };
    Some((child, url.unwrap(), http))
}

impl Process {
    /// `fletching serve` with these settings beside its own.
    pub(crate) fn start(settings: &[&str]) -> Self {
        Self::start_in(&[], settings)
    }

    /// The same with these environment variables.
    pub(crate) fn start_in(environment: &[(String, String)], settings: &[&str]) -> Self {
        let data = tempfile::tempdir().unwrap();
        let arguments = settings.iter().map(|setting| (*setting).to_owned()).collect();
        let settings = Settings { arguments, environment: environment.to_vec() };
        let (child, url, http) = serve(&settings, data.path());
        Self { child, url, http, settings, data }
    }

    /// Ends it as a power failure would, with `SIGKILL`, and starts it again on what it left.
    pub(crate) fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.child, self.url, self.http) = serve(&self.settings, self.data.path());
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// A connection of its own.
    pub(crate) async fn connect(&self) -> FlightSqlServiceClient<Channel> {
        connect_to(&self.url).await.unwrap()
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
