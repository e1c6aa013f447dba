//! A server from start to stop.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::upkeep::Upkeep;
use super::{logging, open_engine};
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::error::{Error, Result};
use crate::flight::{Door, DoorLimits, Security};
use crate::http::Http;
use crate::sql::Engine;

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    engine: Arc<Engine>,
    door: Door,
    http: Option<Http>,
    drain_timeout: Duration,
    upkeep: Upkeep,
}

impl Server {
    /// Takes the port, opens the stores and serves.
    ///
    /// # Errors
    /// `Invalid` for a file of users, keys or certificates that cannot be used; `Unavailable` when the port is taken,
    /// the data directory cannot be written or a store does not answer.
    pub async fn start(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self> {
        let security = Security::load(&settings.security, &clock)?;
        let listener = bind(settings.listen, "choose another address with --listen").await?;
        let http = match settings.http_listen {
            Some(address) => {
                let hint = "choose another address for HTTP with --http-listen, or turn it off there";
                Some(Http::open(bind(address, hint).await?)?)
            }
            None => None,
        };
        let local_addr = listener.local_addr().map_err(|error| Error::unavailable(error.to_string()))?;
        require_writable(&settings.data_dir)?;
        let engine = Box::pin(open_engine(&settings, Arc::clone(&clock))).await?;
        let limits = DoorLimits {
            connections_max: settings.limits.connections_max,
            streams_per_connection_max: settings.limits.streams_per_connection_max,
            message_bytes_max: settings.limits.message_bytes_max,
            sessions_max: settings.limits.sessions_max,
            session_idle_timeout: settings.limits.session_idle_timeout,
            authentication_timeout: settings.security.authentication_timeout,
            locations: settings.advertise.clone(),
        };
        let door = Door::open(listener, Arc::clone(&engine), clock, security, &limits).await?;
        http.iter().for_each(|http| http.serves(&engine));
        let upkeep = Upkeep::start(Arc::clone(&engine), door.sessions(), &settings);
        Ok(Self { local_addr, engine, door, http, drain_timeout: settings.drain_timeout, upkeep })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Where it tells of its health and its metrics; `None` where it does not.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.as_ref().map(Http::local_addr)
    }

    /// What it serves.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Stops: refuses what is new, lets what runs finish for up to the drain timeout.
    pub async fn shutdown(self) -> Result<()> {
        self.http.iter().for_each(Http::drains);
        let closed = self.door.close(self.drain_timeout).await;
        self.upkeep.stop().await;
        // So that a server that is gone keeps nothing to itself; what fails is there at the next start.
        let folded = self.engine.fold_due(Duration::ZERO).await;
        self.engine.stop().await;
        if let Some(http) = self.http {
            http.close().await;
        }
        closed.and(folded.map(|_| ()))
    }
}

/// `fletching serve`: serves until SIGTERM or SIGINT, then drains; a second signal ends it at once.
pub async fn serve(settings: Settings) -> Result<()> {
    let telemetry = logging::install(&settings)?;
    // Every connection is an open file, and most systems allow few by default, but as many as one asks for.
    if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let served = serve_until_signalled(settings).await;
    if let (Ok(()), Some(telemetry)) = (&served, telemetry) {
        telemetry.stop().await;
    }
    served
}

async fn serve_until_signalled(settings: Settings) -> Result<()> {
    let unhandled = |error: io::Error| Error::internal(format!("cannot handle signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(unhandled)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(unhandled)?;
    let mut next_signal = async || {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    let server = tokio::select! {
        started = Server::start(settings.clone(), Arc::new(SystemClock)) => started?,
        cause = next_signal() => {
            tracing::info!(cause, "stopped while starting");
            return Ok(());
        }
    };
    // Nobody may be reading; that is no reason not to serve.
    let _ = io::stdout().write_all(greeting(&settings, &server).as_bytes());
    let _ = io::stdout().flush();
    if settings.security.is_readable_on_the_way(settings.listen) {
        tracing::warn!(
            "without TLS, passwords and tokens can be read by whoever sees the network: name tls_cert and tls_key, \
             unless something in front of this server speaks TLS"
        );
    }
    tracing::info!(
        listen = %server.local_addr(), catalog = %settings.catalog, warehouse = %settings.warehouse,
        online = %settings.online, "serving"
    );
    let cause = next_signal().await;
    tracing::info!(cause, drain_timeout = ?settings.drain_timeout, "draining");
    tokio::select! {
        stopped = server.shutdown() => stopped?,
        again = next_signal() => return Err(Error::cancelled(format!("{again} while draining: stopped at once"))),
    }
    tracing::info!("stopped");
    Ok(())
}

/// What is served, where, and how to connect.
fn greeting(settings: &Settings, server: &Server) -> String {
    let mut text = String::new();
    let address = server.local_addr();
    let version = env!("CARGO_PKG_VERSION");
    let (scheme, jdbc) = match settings.security.tls {
        Some(_) => ("grpc+tls", ""),
        None => ("grpc", "?useEncryption=false"),
    };
    let (python, shell) = match settings.security.users_file {
        Some(_) => (", db_kwargs={\"username\": …, \"password\": …}", " --user …"),
        None => ("", ""),
    };
    let url = format!("{scheme}://{address}");
    // Writing to a String does not fail.
    let _ = writeln!(text, "Fletching {version} serves Arrow Flight SQL at {url}");
    let _ = writeln!(text, "  history  {}", settings.warehouse);
    let _ = writeln!(text, "  latest   {}", settings.online);
    let _ =
        writeln!(text, "  python   adbc_driver_flightsql.dbapi.connect(\"{url}\"{python}, autocommit=True)");
    let _ = writeln!(text, "  jdbc     jdbc:arrow-flight-sql://{address}{jdbc}");
    let _ = writeln!(text, "  shell    fletching sql --url {url}{shell}");
    if let Some(http) = server.http_addr() {
        let _ = writeln!(text, "  watch    http://{http}/metrics and /health/ready");
    }
    text
}

async fn bind(address: SocketAddr, hint: &str) -> Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| Error::unavailable(format!("cannot listen on {address}: {error}; {hint}")))
}

fn require_writable(directory: &Path) -> Result<()> {
    let attempt = || {
        fs::create_dir_all(directory)?;
        let probe = directory.join(".fletching-write-probe");
        fs::write(&probe, b"")?;
        fs::remove_file(probe)
    };
    attempt().map_err(|error| {
        Error::unavailable(format!(
            "cannot write to the data directory {}: {error}; name another with --data-dir",
            directory.display()
        ))
    })
}
