//! The server or the cluster behind the store: which commands go where, and what is tried before giving up.
//!
//! Every call ends within the timeout, in all its answers or in one error. Whatever is asked may be asked again
//! without harm, so what met a broken connection, a script the server had forgotten or a slot on the move is repeated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use ::redis::{Client, Cmd, IntoConnectionInfo, Pipeline, RedisError, Value};
use tokio::runtime::Handle;
use tokio::time::Instant;

use super::cluster::{Census, Cluster};
use super::keys::StoredKeys;
use super::node::{Connected, Node, Trouble, brief};
use crate::error::{Error, Result};

/// Keys per step of a scan.
const SCAN_KEYS: usize = 1000;
/// How often a scan goes round a cluster at most. While slots move, a key may slip from a node that is still to be
/// scanned to one that has been; the second round finds it where it went.
const ROUNDS_MAX: usize = 2;

pub(super) struct Server {
    topology: Topology,
    /// `redis host:port` or `redis cluster host:port,…`, without credentials.
    name: String,
    timeout: Duration,
    /// Calls that ended in an error.
    failures: AtomicU64,
}

enum Topology {
    Alone(Arc<Node>),
    Cluster(Box<Cluster>),
}

/// Commands on keys, which may be split among calls and servers at will.
pub(super) struct Batch<'a> {
    pub(super) keys: &'a StoredKeys,
    /// Most keys of one command.
    pub(super) together_max: usize,
    /// The command for some of the keys, by their indices; in a cluster they are all of one slot.
    pub(super) command: &'a (dyn Fn(&[usize]) -> Cmd + Send + Sync),
    /// What the commands need loaded.
    pub(super) script: Option<&'static str>,
}

/// What a server answered to the command for these keys.
pub(super) struct Answer {
    pub(super) keys: Vec<usize>,
    pub(super) value: Value,
}

impl Server {
    /// Connects on first use. Must be called within the Tokio runtime that is to serve its connections.
    pub(super) fn open(url: &str, timeout: Duration) -> Result<Self> {
        let node = node(url)?;
        let database = node.client().get_connection_info().redis_settings().db();
        let name = match database {
            0 => format!("redis {}", node.address()),
            _ => format!("redis {}/{database}", node.address()),
        };
        Ok(Self::new(Topology::Alone(Arc::new(node)), name, timeout))
    }

    /// A cluster of which `seeds` are some nodes, as URLs of single servers.
    pub(super) fn open_cluster(seeds: &[String], timeout: Duration) -> Result<Self> {
        let seeds = seeds.iter().map(|url| node(url).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let addresses: Vec<&str> = seeds.iter().map(|seed| seed.address()).collect();
        let name = format!("redis cluster {}", addresses.join(","));
        let cluster = Cluster::new(seeds, timeout)
            .ok_or_else(|| Error::invalid("the online store's cluster has no node to begin with"))?;
        Ok(Self::new(Topology::Cluster(Box::new(cluster)), name, timeout))
    }

    fn new(topology: Topology, name: String, timeout: Duration) -> Self {
        Self { topology, name, timeout, failures: AtomicU64::new(0) }
    }

    /// How many calls ended in an error since it was opened.
    pub(super) fn failures(&self) -> u64 {
        self.failures.load(Relaxed)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The next call to a single server makes a new connection; a cluster tells by itself who its masters are.
    pub(super) fn reconnect(&self) {
        if let Topology::Alone(node) = &self.topology {
            node.disconnect();
        }
    }

    /// How long any one call may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Runs the batch to its end: together the answers speak for every key, each once, in no order.
    pub(super) async fn run(&self, batch: &Batch<'_>) -> Result<Vec<Answer>> {
        if batch.keys.len() == 0 {
            return Ok(Vec::new());
        }
        let deadline = self.deadline();
        let outcome = match &self.topology {
            Topology::Alone(node) => run_alone(node, batch, deadline).await,
            Topology::Cluster(cluster) => cluster.run(batch, deadline).await,
        };
        outcome.map_err(|trouble| self.failed(trouble))
    }

    /// A client of the server, or of each master that the cluster has now, with the credentials of this one.
    pub(super) async fn masters(&self) -> Result<Vec<Client>> {
        let nodes = match &self.topology {
            Topology::Alone(node) => vec![Arc::clone(node)],
            Topology::Cluster(cluster) => match cluster.census(self.deadline()).await {
                Ok(census) => census.masters,
                // One is down: what another knows of them will do.
                Err(_) => {
                    let map = cluster.fresh_map(self.deadline()).await.map_err(|t| self.failed(t))?;
                    map.masters().to_vec()
                }
            },
        };
        Ok(nodes.iter().map(|node| node.client().clone()).collect())
    }

    /// One slot of each master, `None` for a server that has no slots.
    pub(super) async fn a_slot_of_each_master(&self) -> Result<Vec<Option<u16>>> {
        match &self.topology {
            Topology::Alone(_) => Ok(vec![None]),
            Topology::Cluster(cluster) => {
                let map = cluster.fresh_map(self.deadline()).await.map_err(|t| self.failed(t))?;
                Ok(map.first_slots().into_iter().map(Some).collect())
            }
        }
    }

    pub(super) fn scan(self: &Arc<Self>, pattern: String) -> Scan {
        Scan { server: Arc::clone(self), pattern, rounds: 0, left: Vec::new(), place: None, census: None }
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    fn failed(&self, trouble: Trouble) -> Error {
        self.failures.fetch_add(1, Relaxed);
        let place = match &self.topology {
            Topology::Alone(_) => self.name.clone(),
            Topology::Cluster(_) => format!("{}: node {}", self.name, trouble.at()),
        };
        trouble.into_error(&place, self.timeout)
    }
}

/// The URL may hold a password, so no error repeats it.
fn node(url: &str) -> Result<Node> {
    let bad = |error: RedisError| {
        Error::invalid(
            "the online store's URL is not one of Redis: write redis://[user:password@]host[:port][/db] or \
             redis+unix:///path[?db=…&user=…&pass=…]",
        )
        .with_source(brief(&error))
    };
    Node::new(url.into_connection_info().map_err(bad)?, Handle::current()).map_err(bad)
}

async fn run_alone(node: &Node, batch: &Batch<'_>, deadline: Instant) -> Result<Vec<Answer>, Trouble> {
    let all: Vec<usize> = (0..batch.keys.len()).collect();
    let groups: Vec<&[usize]> = all.chunks(batch.together_max).collect();
    let mut commands = Pipeline::with_capacity(groups.len());
    for group in &groups {
        commands.add_command((batch.command)(group));
    }
    let (mut connected_anew, mut loaded) = (false, false);
    loop {
        let connected = match node.connected(deadline).await {
            Err(trouble) if trouble.is_broken() && !connected_anew => {
                connected_anew = true;
                continue;
            }
            other => other?,
        };
        let trouble = match node.ask_on(&connected, &commands, deadline).await {
            Ok(values) => match first_error(node, &values) {
                Some(trouble) => trouble,
                None => {
                    let answers = groups.iter().zip(values);
                    return Ok(answers.map(|(keys, value)| Answer { keys: keys.to_vec(), value }).collect());
                }
            },
            Err(trouble) => trouble,
        };
        match trouble.code() {
            "NOSCRIPT" if !loaded => {
                loaded = true;
                load(node, batch.script, deadline).await?;
            }
            // After a failover behind one address the connection still leads to the former master.
            "READONLY" if !connected_anew => {
                connected_anew = true;
                node.forget(&connected);
            }
            _ if trouble.is_broken() && !connected_anew => connected_anew = true,
            _ => return Err(trouble),
        }
    }
}

fn first_error(node: &Node, values: &[Value]) -> Option<Trouble> {
    values.iter().find_map(|value| match value {
        Value::ServerError(error) => Some(Trouble::said(node.address(), error.clone().into())),
        _ => None,
    })
}

/// Teaches a server the script that it has never seen, or forgot when it was restarted or flushed.
pub(super) async fn load(node: &Node, script: Option<&str>, deadline: Instant) -> Result<(), Trouble> {
    let mut commands = Pipeline::new();
    commands.cmd("SCRIPT").arg("LOAD").arg(script.unwrap_or_default());
    let values = node.ask(&commands, deadline).await?;
    first_error(node, &values).map_or(Ok(()), Err)
}

/// A walk through the keys that match a pattern, on every master.
pub(super) struct Scan {
    server: Arc<Server>,
    pattern: String,
    /// How often all masters were set out for.
    rounds: usize,
    left: Vec<Arc<Node>>,
    /// The node being scanned, and from where it goes on. Cursors mean something to one run of a server only, so the
    /// connection must stay the same: over a restart the walk would skip keys.
    place: Option<(Arc<Node>, Connected, u64)>,
    /// Who had what when the round began.
    census: Option<Census>,
}

impl Scan {
    /// Some keys, perhaps none and perhaps some again; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Vec<u8>>>> {
        let server = Arc::clone(&self.server);
        self.step(server.deadline()).await.map_err(|trouble| server.failed(trouble))
    }

    async fn step(&mut self, deadline: Instant) -> Result<Option<Vec<Vec<u8>>>, Trouble> {
        loop {
            if let Some((node, connected, cursor)) = self.place.take() {
                let (next, keys) = scan_step(&node, &connected, &self.pattern, cursor, deadline).await?;
                self.place = (next != 0).then_some((node, connected, next));
                return Ok(Some(keys));
            }
            if let Some(node) = self.left.pop() {
                let (connected, (next, keys)) = self.first_step(&node, deadline).await?;
                self.place = (next != 0).then_some((node, connected, next));
                return Ok(Some(keys));
            }
            if !self.begin_round(deadline).await? {
                return Ok(None);
            }
        }
    }

    /// The connection may have broken since it was last used: nothing has been seen through it, so a new one does.
    async fn first_step(
        &self,
        node: &Node,
        deadline: Instant,
    ) -> Result<(Connected, (u64, Vec<Vec<u8>>)), Trouble> {
        let connected = node.connected(deadline).await?;
        match scan_step(node, &connected, &self.pattern, 0, deadline).await {
            Err(trouble) if trouble.is_broken() => {
                let connected = node.connected(deadline).await?;
                let step = scan_step(node, &connected, &self.pattern, 0, deadline).await?;
                Ok((connected, step))
            }
            other => Ok((connected, other?)),
        }
    }

    /// `false` when what was seen is all there is.
    async fn begin_round(&mut self, deadline: Instant) -> Result<bool, Trouble> {
        if self.rounds == ROUNDS_MAX {
            return Ok(false);
        }
        match &self.server.topology {
            Topology::Alone(_) if self.rounds > 0 => return Ok(false),
            Topology::Alone(node) => self.left = vec![Arc::clone(node)],
            Topology::Cluster(cluster) => {
                let census = cluster.census(deadline).await?;
                if self.census.as_ref().is_some_and(|before| census.settled_since(before)) {
                    return Ok(false);
                }
                self.left = census.masters.clone();
                self.census = Some(census);
            }
        }
        self.rounds += 1;
        Ok(true)
    }
}

async fn scan_step(
    node: &Node,
    connected: &Connected,
    pattern: &str,
    cursor: u64,
    deadline: Instant,
) -> Result<(u64, Vec<Vec<u8>>), Trouble> {
    let mut commands = Pipeline::new();
    commands.cmd("SCAN").arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(SCAN_KEYS);
    let values = node.ask_on(connected, &commands, deadline).await?;
    if let Some(trouble) = first_error(node, &values) {
        return Err(trouble);
    }
    let value = values.into_iter().next().unwrap_or_default();
    ::redis::from_redis_value(value).map_err(|error| Trouble::said(node.address(), RedisError::from(error)))
}
