//! A Redis Cluster: who has which slot, and calls that follow slots wherever they go.
//!
//! The client that the redis crate brings for clusters is not used: its MGET leaves out what it has no connection for,
//! and the answers of the other nodes then stand in the wrong places.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use ::redis::{Cmd, Pipeline, RedisConnectionInfo, Value};
use futures::future::join_all;
use parking_lot::{Mutex, RwLock};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout_at};

use super::keys::{SLOTS, slot};
use super::node::{Node, Trouble, address_of};
use super::server::{Answer, Batch, load};

/// Pauses between attempts while the cluster finds itself: a failover, a slot with no master.
const WAIT_MIN: Duration = Duration::from_millis(5);
const WAIT_MAX: Duration = Duration::from_millis(200);
/// Redirections that are followed at once; after so many attempts each one waits.
const ATTEMPTS_AT_ONCE: usize = 5;
/// Of the time a call may take, the part that one node has to say who has which slot.
const MAP_SHARE: u32 = 5;

pub(super) struct Cluster {
    seeds: Vec<Arc<Node>>,
    settings: RedisConnectionInfo,
    runtime: Handle,
    timeout: Duration,
    map: RwLock<Arc<SlotMap>>,
    /// Nodes by address, so that connections outlive changes of the map.
    nodes: Mutex<HashMap<String, Arc<Node>>>,
    /// Held while a node is asked for the map.
    asking_map: tokio::sync::Mutex<()>,
    /// A node kept silent: somebody else may have its slots by now.
    stale: AtomicBool,
    /// Who is asked for the map first: another node every time.
    turn: AtomicUsize,
}

/// Who has which slot.
pub(super) struct SlotMap {
    /// 0 before anything is known.
    version: u64,
    masters: Vec<Arc<Node>>,
    /// For each slot a position among `masters`.
    owners: Vec<Option<u16>>,
}

impl SlotMap {
    pub(super) fn masters(&self) -> &[Arc<Node>] {
        &self.masters
    }

    fn owner(&self, slot: u16) -> Option<&Arc<Node>> {
        self.masters.get(usize::from((*self.owners.get(usize::from(slot))?)?))
    }

    /// For each master the lowest of its slots.
    pub(super) fn first_slots(&self) -> Vec<u16> {
        let first = |master| self.owners.iter().position(|owner| *owner == Some(master));
        (0..self.masters.len() as u16).filter_map(|master| Some(first(master)? as u16)).collect()
    }
}

/// A key whose command has not been answered.
struct Open {
    key: usize,
    slot: u16,
    place: Place,
    /// Whether it is asked for in a command of its own: while a slot moves, its keys are on two nodes.
    alone: bool,
}

#[derive(Clone)]
enum Place {
    /// Whoever has the slot.
    Owner,
    /// Who has it now, says the node that had it.
    At(Arc<Node>),
    /// Where the slot is moving, for this once.
    Asking(Arc<Node>),
}

/// Commands for one node.
struct Parcel {
    node: Arc<Node>,
    commands: Pipeline,
    /// The keys of each command, and whether an ASKING stands before it.
    groups: Vec<(Vec<Open>, bool)>,
}

impl Parcel {
    fn add(&mut self, keys: Vec<Open>, asking: bool, command: Cmd) {
        if asking {
            self.commands.cmd("ASKING");
        }
        self.commands.add_command(command);
        self.groups.push((keys, asking));
    }
}

/// What came of one attempt.
#[derive(Default)]
struct Attempt {
    answers: Vec<Answer>,
    again: Vec<Open>,
    /// The map is not what it was.
    moved: bool,
    /// The cluster needs time.
    wait: bool,
    trouble: Option<Trouble>,
}

impl Attempt {
    fn retry(&mut self, keys: Vec<Open>, place: &Place, alone: bool) {
        let again =
            keys.into_iter().map(|open| Open { place: place.clone(), alone: alone || open.alone, ..open });
        self.again.extend(again);
    }
}

impl Cluster {
    /// `None` without seeds. Their credentials are those of every node.
    pub(super) fn new(seeds: Vec<Arc<Node>>, timeout: Duration) -> Option<Self> {
        let settings = seeds.first()?.client().get_connection_info().redis_settings().clone();
        let nothing = SlotMap { version: 0, masters: Vec::new(), owners: Vec::new() };
        Some(Self {
            nodes: Mutex::new(
                seeds.iter().map(|seed| (seed.address().to_owned(), Arc::clone(seed))).collect(),
            ),
            runtime: seeds.first()?.runtime().clone(),
            seeds,
            settings,
            timeout,
            map: RwLock::new(Arc::new(nothing)),
            asking_map: tokio::sync::Mutex::new(()),
            stale: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
        })
    }

    pub(super) async fn run(&self, batch: &Batch<'_>, deadline: Instant) -> Result<Vec<Answer>, Trouble> {
        let open = |key| Open { key, slot: slot(batch.keys.get(key)), place: Place::Owner, alone: false };
        let mut open: Vec<Open> = (0..batch.keys.len()).map(open).collect();
        let mut answers = Vec::with_capacity(open.len());
        let mut wait = WAIT_MIN;
        for attempts in 1.. {
            if open.is_empty() {
                break;
            }
            let map = self.known_map(deadline).await?;
            let mut attempt = Attempt::default();
            let parcels = self.pack(&map, open, batch, &mut attempt);
            let send = |parcel: Parcel| async move {
                let answered = parcel.node.ask(&parcel.commands, deadline).await;
                (parcel, answered)
            };
            for (parcel, answered) in join_all(parcels.into_iter().map(send)).await {
                self.settle(parcel, answered, batch, deadline, &mut attempt).await?;
            }
            answers.append(&mut attempt.answers);
            open = attempt.again;
            if attempt.moved
                && let Err(trouble) = self.refresh(map.version, deadline).await
            {
                (attempt.wait, attempt.trouble) = (true, Some(attempt.trouble.unwrap_or(trouble)));
            }
            if !open.is_empty() && (attempt.wait || attempts >= ATTEMPTS_AT_ONCE) {
                let trouble = attempt.trouble;
                if Instant::now() + wait >= deadline
                    && let Some(trouble) = trouble
                {
                    return Err(trouble);
                }
                sleep(wait).await;
                wait = (wait * 2).min(WAIT_MAX);
            }
        }
        Ok(answers)
    }

    /// The open keys as commands, a parcel for each node.
    fn pack(&self, map: &SlotMap, open: Vec<Open>, batch: &Batch<'_>, attempt: &mut Attempt) -> Vec<Parcel> {
        let mut placed = Vec::with_capacity(open.len());
        for key in open {
            let (node, asking) = match &key.place {
                Place::Owner => match map.owner(key.slot) {
                    Some(node) => (Arc::clone(node), false),
                    None => {
                        let place = self.seeds.first().map_or("", |seed| seed.address());
                        let trouble = Trouble::odd(place, &format!("knows no master of slot {}", key.slot));
                        attempt.trouble.get_or_insert(trouble);
                        (attempt.moved, attempt.wait) = (true, true);
                        attempt.again.push(key);
                        continue;
                    }
                },
                Place::At(node) => (Arc::clone(node), false),
                Place::Asking(node) => (Arc::clone(node), true),
            };
            placed.push((node, asking, key));
        }
        placed.sort_by_key(|(node, asking, key)| (Arc::as_ptr(node) as usize, *asking, key.alone, key.slot));
        let mut parcels: Vec<Parcel> = Vec::new();
        let mut rest = placed.into_iter().peekable();
        while let Some((node, asking, first)) = rest.next() {
            let (slot, alone) = (first.slot, first.alone);
            let mut keys = vec![first];
            while !alone
                && keys.len() < batch.together_max
                && let Some((_, _, key)) = rest.next_if(|(other, other_asking, key)| {
                    Arc::ptr_eq(other, &node) && *other_asking == asking && !key.alone && key.slot == slot
                })
            {
                keys.push(key);
            }
            let indices: Vec<usize> = keys.iter().map(|open| open.key).collect();
            let command = (batch.command)(&indices);
            match parcels.last_mut() {
                Some(parcel) if Arc::ptr_eq(&parcel.node, &node) => parcel.add(keys, asking, command),
                _ => {
                    let mut parcel = Parcel { node, commands: Pipeline::new(), groups: Vec::new() };
                    parcel.add(keys, asking, command);
                    parcels.push(parcel);
                }
            }
        }
        parcels
    }

    /// Sorts what a node answered into answers, and keys to ask for again. `Err` when there is no use in that.
    async fn settle(
        &self,
        parcel: Parcel,
        answered: Result<Vec<Value>, Trouble>,
        batch: &Batch<'_>,
        deadline: Instant,
        attempt: &mut Attempt,
    ) -> Result<(), Trouble> {
        let values = match answered {
            Ok(values) => values,
            Err(trouble) => {
                // A replica may be about to take over; or it has, and nobody knows yet.
                self.stale.store(true, Ordering::Relaxed);
                if trouble.is_late() || !trouble.is_broken() {
                    return Err(trouble);
                }
                (attempt.moved, attempt.wait) = (true, true);
                attempt.trouble = Some(trouble);
                for (keys, _) in parcel.groups {
                    attempt.retry(keys, &Place::Owner, false);
                }
                return Ok(());
            }
        };
        let mut values = values.into_iter();
        let mut loaded = false;
        for (keys, asking) in parcel.groups {
            let error = match values.nth(usize::from(asking)).unwrap_or_default() {
                Value::ServerError(error) => error,
                value => {
                    let keys = keys.into_iter().map(|open| open.key).collect();
                    attempt.answers.push(Answer { keys, value });
                    continue;
                }
            };
            let trouble = Trouble::said(parcel.node.address(), error.into());
            match trouble.code() {
                "MOVED" => {
                    attempt.moved = true;
                    let place = self.redirected(&trouble)?.map_or(Place::Owner, Place::At);
                    attempt.retry(keys, &place, false);
                }
                "ASK" => {
                    let place = self.redirected(&trouble)?.map_or(Place::Owner, Place::Asking);
                    attempt.retry(keys, &place, true);
                }
                "TRYAGAIN" => {
                    // Of keys that are asked for one by one each is in one place or the other.
                    attempt.wait |= keys.len() == 1;
                    attempt.retry(keys, &Place::Owner, true);
                }
                "NOSCRIPT" => {
                    if !std::mem::replace(&mut loaded, true) {
                        load(&parcel.node, batch.script, deadline).await?;
                    }
                    let place = keys.first().map_or(Place::Owner, |open| open.place.clone());
                    attempt.retry(keys, &place, false);
                }
                "CLUSTERDOWN" | "MASTERDOWN" | "LOADING" | "READONLY" => {
                    (attempt.moved, attempt.wait) = (true, true);
                    attempt.retry(keys, &Place::Owner, false);
                }
                _ => return Err(trouble),
            }
            attempt.trouble = Some(trouble);
        }
        Ok(())
    }

    fn redirected(&self, trouble: &Trouble) -> Result<Option<Arc<Node>>, Trouble> {
        trouble.redirect().map(|address| self.node(&address)).transpose()
    }

    fn node(&self, address: &str) -> Result<Arc<Node>, Trouble> {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get(address) {
            return Ok(Arc::clone(node));
        }
        let node = Node::at(address, &self.settings, &self.runtime)?;
        nodes.insert(address.to_owned(), Arc::clone(&node));
        Ok(node)
    }

    /// The map as of now.
    pub(super) async fn fresh_map(&self, deadline: Instant) -> Result<Arc<SlotMap>, Trouble> {
        let version = self.map.read().version;
        self.refresh(version, deadline).await?;
        Ok(Arc::clone(&self.map.read()))
    }

    /// The map, perhaps an old one: who no longer has a slot says so.
    async fn known_map(&self, deadline: Instant) -> Result<Arc<SlotMap>, Trouble> {
        let map = Arc::clone(&self.map.read());
        if map.version > 0 && !self.stale.load(Ordering::Relaxed) {
            return Ok(map);
        }
        match self.refresh(map.version, deadline).await {
            Err(trouble) if map.version == 0 => Err(trouble),
            _ => Ok(Arc::clone(&self.map.read())),
        }
    }

    /// Asks one node after the other for a map to stand in for the one of this version.
    async fn refresh(&self, version: u64, deadline: Instant) -> Result<(), Trouble> {
        let silent =
            || Trouble::odd(self.seeds.first().map_or("", |n| n.address()), "did not say who has which slot");
        let _turn = timeout_at(deadline, self.asking_map.lock()).await.map_err(|_| silent())?;
        let known = Arc::clone(&self.map.read());
        if known.version != version {
            return Ok(());
        }
        let mut candidates: Vec<Arc<Node>> = known.masters.clone();
        candidates.extend(
            self.seeds
                .iter()
                .filter(|seed| known.masters.iter().all(|master| master.address() != seed.address()))
                .cloned(),
        );
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % candidates.len().max(1);
        candidates.rotate_left(turn);
        let mut outcome = Err(silent());
        for node in candidates {
            let patience = deadline.min(Instant::now() + self.timeout / MAP_SHARE);
            outcome = self.ask_map(&node, version + 1, patience).await;
            if let Ok(map) = outcome {
                self.nodes.lock().retain(|address, _| {
                    map.masters.iter().chain(&self.seeds).any(|node| node.address() == address)
                });
                *self.map.write() = Arc::new(map);
                self.stale.store(false, Ordering::Relaxed);
                return Ok(());
            }
        }
        outcome.map(|_| ())
    }

    async fn ask_map(&self, node: &Node, version: u64, deadline: Instant) -> Result<SlotMap, Trouble> {
        let mut commands = Pipeline::new();
        commands.cmd("CLUSTER").arg("SLOTS");
        let value = node.ask(&commands, deadline).await?.pop().unwrap_or_default();
        if let Value::ServerError(error) = value {
            return Err(Trouble::said(node.address(), error.into()));
        }
        let mut map = SlotMap { version, masters: Vec::new(), owners: vec![None; SLOTS] };
        let mut positions: HashMap<String, u16> = HashMap::new();
        let ranges = parse_slots(value, node)
            .filter(|ranges| !ranges.is_empty())
            .ok_or_else(|| Trouble::odd(node.address(), "knows of no slots: it is in no cluster yet"))?;
        for (first, last, address) in ranges {
            let position = match positions.get(&address) {
                Some(position) => *position,
                None => {
                    map.masters.push(self.node(&address)?);
                    let position = (map.masters.len() - 1) as u16;
                    positions.insert(address, position);
                    position
                }
            };
            if let Some(owners) = map.owners.get_mut(first..=last) {
                owners.fill(Some(position));
            }
        }
        Ok(map)
    }

    /// Asks every master what it has itself. Of the others a node may know what was true a moment ago: after a slot has
    /// moved, the third to hear of it hears of it last.
    pub(super) async fn census(&self, deadline: Instant) -> Result<Census, Trouble> {
        let mut census = Census::default();
        let mut known = self.fresh_map(deadline).await?.masters.clone();
        let mut heard_of: BTreeMap<String, String> = BTreeMap::new();
        loop {
            let node = match known.pop() {
                Some(node) => node,
                None => match heard_of.pop_first() {
                    Some((id, _)) if census.own.contains_key(&id) => continue,
                    Some((_, address)) => self.node(&address)?,
                    None => return Ok(census),
                },
            };
            let mut commands = Pipeline::new();
            commands.cmd("CLUSTER").arg("NODES");
            let value = node.ask(&commands, deadline).await?.pop().unwrap_or_default();
            let listed: String = ::redis::from_redis_value(value)
                .map_err(|error| Trouble::said(node.address(), ::redis::RedisError::from(error)))?;
            for line in listed.lines().filter_map(NodeLine::parse) {
                if line.is("myself") {
                    census.moving |= line.slots.contains("-<-") || line.slots.contains("->-");
                    census.own.insert(line.id.to_owned(), line.slots.to_owned());
                    census.masters.extend(line.is("master").then(|| Arc::clone(&node)));
                } else if line.is("master") && !line.is_gone() {
                    heard_of.insert(line.id.to_owned(), line.address.to_owned());
                }
            }
        }
    }
}

/// Which masters there are, and what each says that it has.
#[derive(Default)]
pub(super) struct Census {
    pub(super) masters: Vec<Arc<Node>>,
    /// Slots by the node's id.
    own: BTreeMap<String, String>,
    /// Whether any has slots on their way in or out.
    moving: bool,
}

impl Census {
    /// Whether no key can have changed its node since `before` was taken.
    pub(super) fn settled_since(&self, before: &Self) -> bool {
        !self.moving && self.own == before.own
    }
}

/// A line of CLUSTER NODES: `id host:port@bus,hostname flags master ping pong epoch link slots…`, where a node's own line
/// ends in `[93-<-id]` for a slot that comes and `[77->-id]` for one that goes.
struct NodeLine<'a> {
    id: &'a str,
    address: &'a str,
    flags: &'a str,
    slots: &'a str,
}

impl<'a> NodeLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut parts = line.splitn(9, ' ');
        let (id, address, flags) = (parts.next()?, parts.next()?, parts.next()?);
        let address = address.split('@').next()?;
        Some(Self { id, address, flags, slots: parts.nth(5).unwrap_or_default() })
    }

    fn is(&self, flag: &str) -> bool {
        self.flags.split(',').any(|own| own == flag)
    }

    /// One that failed is not gone while it has slots that nobody took over.
    fn is_gone(&self) -> bool {
        self.is("noaddr") || self.is("handshake") || (self.is("fail") && self.slots.is_empty())
    }
}

/// First slot, last slot and address of the master of each range; `None` for what is no such list.
fn parse_slots(value: Value, asked: &Node) -> Option<Vec<(usize, usize, String)>> {
    let Value::Array(ranges) = value else { return None };
    let own_host = asked.address().rsplit_once(':').map_or("", |(host, _)| host.trim_matches(['[', ']']));
    let parse = |range: Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = parts.as_slice() else {
            return None;
        };
        let [host, Value::Int(port), ..] = master.as_slice() else { return None };
        let host = match host {
            Value::BulkString(host) => std::str::from_utf8(host).ok()?,
            Value::SimpleString(host) => host,
            // The node does not know by which name it was reached.
            _ => "",
        };
        let host = if host.is_empty() { own_host } else { host };
        let address = address_of(host, u16::try_from(*port).ok()?);
        Some((usize::try_from(*first).ok()?, usize::try_from(*last).ok()?, address))
    };
    ranges.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_about_nodes_are_read() {
        let line = "07c3 127.0.0.1:30001@31001,host myself,master - 0 0 1 connected 0-5460 [77->-e7d1]";
        let own = NodeLine::parse(line).unwrap();
        assert_eq!((own.id, own.address, own.slots), ("07c3", "127.0.0.1:30001", "0-5460 [77->-e7d1]"));
        assert!(own.is("myself") && own.is("master") && !own.is("slave") && !own.is_gone());
        let failed = "e7d1 127.0.0.1:30002@31002 master,fail - 1 2 3 connected";
        assert!(NodeLine::parse(failed).unwrap().is_gone());
        assert!(!NodeLine::parse(&format!("{failed} 5461-10922")).unwrap().is_gone());
        assert!(NodeLine::parse("vars currentEpoch").is_none());
    }
}
