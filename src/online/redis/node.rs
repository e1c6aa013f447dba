//! One Redis server and the connection to it.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisResult, Value,
};
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::error::Error;

/// Longest part of an error of Redis that is passed on.
const CAUSE_CHARS_MAX: usize = 200;

/// A server. Its one connection is made when first needed, shared by all callers, and made anew after it broke or kept
/// a caller waiting beyond the deadline.
pub(super) struct Node {
    client: Client,
    /// Host and port, or the path of its socket.
    address: String,
    /// Where the connection is served: where the store was opened, whoever needs it first. A plan's own threads may be
    /// kept for seconds.
    runtime: Handle,
    connection: Arc<Connection>,
}

/// The connection, if there is one, and the turn of who makes the next.
#[derive(Default)]
struct Connection {
    connected: RwLock<Option<Connected>>,
    connecting: Mutex<()>,
    generations: AtomicU64,
}

/// A connection, told from those before and after it.
#[derive(Clone)]
pub(super) struct Connected {
    generation: u64,
    connection: MultiplexedConnection,
}

impl Node {
    pub(super) fn new(info: ConnectionInfo, runtime: Handle) -> RedisResult<Self> {
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
                address_of(host, *port)
            }
            other => other.to_string(),
        };
        Ok(Self { client: Client::open(info)?, address, runtime, connection: Arc::default() })
    }

    /// The node that a cluster calls `address`.
    pub(super) fn at(
        address: &str,
        settings: &RedisConnectionInfo,
        runtime: &Handle,
    ) -> Result<Arc<Self>, Trouble> {
        let (host, port) = address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?)))
            .ok_or_else(|| Trouble::odd(address, "is no address of a node"))?;
        let node = ConnectionAddr::Tcp(host, port)
            .into_connection_info()
            .and_then(|info| Self::new(info.set_redis_settings(settings.clone()), runtime.clone()));
        node.map(Arc::new).map_err(|error| Trouble::said(address, error))
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) async fn connected(&self, deadline: Instant) -> Result<Connected, Trouble> {
        if let Some(connected) = self.connection.connected.read().clone() {
            return Ok(connected);
        }
        // A task of its own: whoever waits here may be left alone for long, as where a client does not read, and must not
        // have the turn that all others wait for.
        let mut connecting = JoinSet::new();
        connecting.spawn_on(Arc::clone(&self.connection).connect(self.client.clone()), &self.runtime);
        let gone = || RedisError::from(io::Error::other("connecting was given up"));
        let connect = async { connecting.join_next().await.and_then(Result::ok).ok_or_else(gone)? };
        self.by(deadline, connect).await
    }

    /// The next caller connects anew, unless somebody has done so already.
    pub(super) fn forget(&self, used: &Connected) {
        let mut current = self.connection.connected.write();
        if current.as_ref().is_some_and(|current| current.generation == used.generation) {
            *current = None;
        }
    }

    /// The next caller connects anew.
    pub(super) fn disconnect(&self) {
        *self.connection.connected.write() = None;
    }

    /// One answer per command; an answer may be an error of the server's.
    pub(super) async fn ask(&self, commands: &Pipeline, deadline: Instant) -> Result<Vec<Value>, Trouble> {
        let connected = self.connected(deadline).await?;
        self.ask_on(&connected, commands, deadline).await
    }

    /// Like [`Self::ask`], for callers who must notice when the connection is another one.
    pub(super) async fn ask_on(
        &self,
        connected: &Connected,
        commands: &Pipeline,
        deadline: Instant,
    ) -> Result<Vec<Value>, Trouble> {
        let mut connection = connected.connection.clone();
        let count = commands.len();
        let answered = self.by(deadline, connection.send_packed_commands(commands, 0, count)).await;
        match answered {
            Ok(values) if values.len() == count => Ok(values),
            Ok(values) => {
                self.forget(connected);
                let (got, address) = (values.len(), &self.address);
                Err(Trouble::odd(address, &format!("answered {got} of {count} commands")))
            }
            Err(trouble) => {
                self.forget(connected);
                Err(trouble)
            }
        }
    }

    async fn by<T>(
        &self,
        deadline: Instant,
        call: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, Trouble> {
        match timeout_at(deadline, call).await {
            Ok(outcome) => outcome.map_err(|error| Trouble::said(&self.address, error)),
            Err(_) => Err(Trouble { at: self.address.clone(), what: What::Late }),
        }
    }
}

impl Connection {
    async fn connect(self: Arc<Self>, client: Client) -> RedisResult<Connected> {
        let _turn = self.connecting.lock().await;
        if let Some(connected) = self.connected.read().clone() {
            return Ok(connected);
        }
        // The caller's deadline bounds both.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let connected = Connected { generation, connection };
        *self.connected.write() = Some(connected.clone());
        Ok(connected)
    }
}

pub(super) fn address_of(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Why a server gave no answer.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    /// Host and port.
    at: String,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Late,
    Said(RedisError),
    Odd(String),
}

impl Trouble {
    pub(super) fn said(at: &str, error: RedisError) -> Self {
        Self { at: at.to_owned(), what: What::Said(error) }
    }

    pub(super) fn odd(at: &str, what: &str) -> Self {
        Self { at: at.to_owned(), what: What::Odd(what.to_owned()) }
    }

    pub(super) fn is_late(&self) -> bool {
        matches!(self.what, What::Late)
    }

    /// Whether the connection broke, or could not be made: another attempt may fare better.
    pub(super) fn is_broken(&self) -> bool {
        matches!(&self.what, What::Said(error) if error.kind() == ErrorKind::Io)
    }

    /// What the server began its error with: `OOM`, `MOVED`, …
    pub(super) fn code(&self) -> &str {
        match &self.what {
            What::Said(error) => error.code().unwrap_or_default(),
            _ => "",
        }
    }

    /// Where MOVED and ASK point.
    pub(super) fn redirect(&self) -> Option<String> {
        let What::Said(error) = &self.what else { return None };
        let (address, _slot) = error.redirect_node()?;
        match address.strip_prefix(':') {
            // A node that does not know its own name means the one that it was asked by.
            Some(port) => Some(format!("{}:{port}", self.at.rsplit_once(':')?.0)),
            None => Some(address.to_owned()),
        }
    }

    /// Host and port of the server.
    pub(super) fn at(&self) -> &str {
        &self.at
    }

    /// The error for the caller. `place` names the store and the server, `timeout` is what bounded the call.
    pub(super) fn into_error(self, place: &str, timeout: Duration) -> Error {
        let (what, cause) = match &self.what {
            What::Late => {
                return Error::unavailable(format!(
                    "online store {place} did not answer within {timeout:?}: see whether it is up and keeps up, or \
                     raise online_timeout"
                ));
            }
            What::Odd(what) => (what.as_str(), None),
            What::Said(error) => (advice(error), Some(brief(error))),
        };
        let error = Error::unavailable(format!("online store {place} {what}"));
        match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        }
    }
}

/// What the server's error means, and what to do.
fn advice(error: &RedisError) -> &'static str {
    if error.kind() == ErrorKind::AuthenticationFailed {
        return "refused the user or the password: correct them in the setting 'online'";
    }
    match error.code().unwrap_or_default() {
        "NOAUTH" | "WRONGPASS" => "refused the user or the password: correct them in the setting 'online'",
        "NOPERM" => "does not allow its user this: grant it, or name another user in the setting 'online'",
        "OOM" => "is out of memory: raise its maxmemory, or give feature groups a TTL so that entries expire",
        "LOADING" => "is still loading its data: retry in a moment",
        "READONLY" => "is a replica, which takes no writes: name its master in the setting 'online'",
        "CLUSTERDOWN" | "MASTERDOWN" => "has slots that no master serves: see CLUSTER INFO on its nodes",
        "MOVED" | "ASK" => "is a node of a cluster: write redis-cluster:// in the setting 'online'",
        "TRYAGAIN" => "is moving a slot: retry in a moment",
        "BUSY" => "is busy with somebody's script: retry, or end that one with SCRIPT KILL",
        _ if error.to_string().contains("cluster support disabled") => {
            "is no cluster: write redis:// in the setting 'online'"
        }
        _ if error.kind() == ErrorKind::Io => "cannot be reached: see whether it is up",
        _ => "is not available",
    }
}

pub(super) fn brief(error: &RedisError) -> String {
    error.to_string().chars().take(CAUSE_CHARS_MAX).collect()
}
