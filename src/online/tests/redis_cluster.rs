//! A Redis Cluster of the test's own, on loopback; its nodes are gone when it is dropped.

use std::time::{Duration, Instant};

use ::redis::{Value, from_redis_value};
use tempfile::TempDir;

use super::redis_server::{RedisServer, free_port};

/// How long anything that a cluster does by itself may take.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct RedisCluster {
    /// Masters first, then the replicas, of which the first follows the first master.
    pub(crate) nodes: Vec<RedisServer>,
    masters: usize,
    directory: TempDir,
    arguments: Vec<String>,
    bus_ports: Vec<u16>,
}

impl RedisCluster {
    /// A cluster of so many masters with all slots among them, and so many replicas, ready to take commands.
    pub(crate) fn start(masters: usize, replicas: usize, arguments: &[&str]) -> Self {
        let mut cluster = Self {
            nodes: Vec::new(),
            masters,
            directory: TempDir::new().unwrap(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            bus_ports: Vec::new(),
        };
        for number in 0..masters + replicas {
            cluster.bus_ports.push(free_port());
            let arguments = cluster.arguments(number);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            cluster.nodes.push(RedisServer::start(&arguments));
        }
        cluster.join();
        cluster
    }

    fn arguments(&self, number: usize) -> Vec<String> {
        let file = self.directory.path().join(format!("nodes-{number}.conf"));
        let own = [
            ("--cluster-enabled", "yes".to_owned()),
            ("--cluster-config-file", file.to_str().unwrap().to_owned()),
            ("--cluster-port", self.bus_ports[number].to_string()),
            ("--cluster-node-timeout", "1000".to_owned()),
            ("--cluster-replica-validity-factor", "0".to_owned()),
            ("--dir", self.directory.path().to_str().unwrap().to_owned()),
            ("--repl-diskless-sync-delay", "0".to_owned()),
        ];
        let own = own.into_iter().flat_map(|(name, value)| [name.to_owned(), value]);
        own.chain(self.arguments.iter().cloned()).collect()
    }

    fn join(&self) {
        for (number, range) in self.ranges().into_iter().enumerate() {
            let (first, last) = (range.0.to_string(), range.1.to_string());
            self.nodes[number].ask(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).unwrap();
            let epoch = (number + 1).to_string();
            self.nodes[number].ask(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).unwrap();
        }
        for (node, bus) in self.nodes.iter().zip(&self.bus_ports).skip(1) {
            let (port, bus) = (node.port().to_string(), bus.to_string());
            self.nodes[0].ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).unwrap();
        }
        let all = self.nodes.len();
        let knows_all = |node: &RedisServer| info(node, "cluster_known_nodes") == all.to_string();
        eventually("the nodes know each other", || self.nodes.iter().all(knows_all));
        let master = id(&self.nodes[0]);
        for replica in &self.nodes[self.masters..] {
            eventually("a replica follows", || replica.ask(&["CLUSTER", "REPLICATE", &master]).is_ok());
            eventually("a replica is in step", || {
                let info: String = from_redis_value(replica.ask(&["INFO", "replication"]).unwrap()).unwrap();
                info.contains("master_link_status:up")
            });
        }
        self.await_ok();
    }

    fn ranges(&self) -> Vec<(usize, usize)> {
        let bound = |number: usize| number * 16384 / self.masters;
        (0..self.masters).map(|number| (bound(number), bound(number + 1) - 1)).collect()
    }

    /// Waits until every node says that the cluster works.
    pub(crate) fn await_ok(&self) {
        let ok = |node: &RedisServer| info(node, "cluster_state") == "ok";
        eventually("the cluster works", || self.nodes.iter().all(ok));
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(RedisServer::url).collect()
    }

    /// Empties all masters.
    pub(crate) fn flush(&self) {
        self.nodes[..self.masters].iter().for_each(|node| drop(node.ask(&["FLUSHALL"]).unwrap()));
    }

    /// Starts a node that was stopped, with its place in the cluster and without its data.
    pub(crate) fn restart(&mut self, number: usize) {
        let arguments = self.arguments(number);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.nodes[number].restart_with(&arguments);
    }

    /// Slots of a master that hold keys.
    pub(crate) fn slots_in_use(&self, master: usize) -> Vec<usize> {
        let (first, last) = self.ranges()[master];
        let count = |slot: &usize| {
            let count = self.nodes[master].ask(&["CLUSTER", "COUNTKEYSINSLOT", &slot.to_string()]).unwrap();
            from_redis_value::<i64>(count).unwrap() > 0
        };
        (first..=last).filter(count).collect()
    }

    /// Moves a slot key by key, as redis-cli does; calls `halfway` between two keys.
    pub(crate) fn move_slot(&self, slot: usize, from: usize, to: usize, mut halfway: impl FnMut()) {
        let (source, target, slot) = (&self.nodes[from], &self.nodes[to], slot.to_string());
        let (source_id, target_id) = (id(source), id(target));
        target.ask(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source_id]).unwrap();
        source.ask(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target_id]).unwrap();
        loop {
            let keys = source.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "1"]).unwrap();
            let keys: Vec<Vec<u8>> = from_redis_value(keys).unwrap();
            let Some(key) = keys.first() else { break };
            let port = target.port().to_string();
            let command: [&[u8]; 6] = [b"MIGRATE", b"127.0.0.1", port.as_bytes(), key, b"0", b"5000"];
            let moved = source.tell(command.into_iter()).unwrap();
            assert!(matches!(moved, Value::Okay | Value::SimpleString(_)), "{moved:?}");
            halfway();
        }
        for node in [target, source] {
            node.ask(&["CLUSTER", "SETSLOT", &slot, "NODE", &target_id]).unwrap();
        }
    }
}

fn id(node: &RedisServer) -> String {
    from_redis_value(node.ask(&["CLUSTER", "MYID"]).unwrap()).unwrap()
}

fn info(node: &RedisServer, name: &str) -> String {
    let Ok(info) = node.ask(&["CLUSTER", "INFO"]) else { return String::new() };
    let info: String = from_redis_value(info).unwrap();
    let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_default().trim().to_owned()
}

/// Polls until it is so.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "in {PATIENCE:?} it never came to be that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
