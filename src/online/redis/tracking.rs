//! What changes in Redis, told by Redis: client-side caching in its broadcasting mode.
//!
//! One connection per master asks to be told of every change below the prefix of our keys, whoever makes it. As
//! connections break without saying so, each is pinged all the time; when one of them fails, when there are other
//! masters than those connected to, or when more is told than is taken, everything may have changed unseen: that is
//! `Change::Lost`, and all connections are made anew. `Change::Watching` says that all masters are listened to.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{
    AsyncConnectionConfig, Client, ErrorKind, ProtocolVersion, PushInfo, PushKind, RedisError, RedisResult,
    Value, cmd,
};
use futures::future::try_join_all;
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{info, warn};

use super::keys;
use super::node::brief;
use super::server::Server;
use crate::error::{Error, Result};
use crate::online::changes::{Change, Changes};

/// Messages that wait to be taken; each tells what changed in one round of Redis' event loop.
const QUEUED_MAX: usize = 4096;
/// Between pings, and between looks at which masters there are.
const PERIOD: Duration = Duration::from_secs(1);
/// Between attempts to connect, at first and at last.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// The changes of every entry on `server`.
pub(super) fn changes(server: Arc<Server>) -> Changes {
    Changes::watch(QUEUED_MAX, |sender| watch(server, sender))
}

/// Watches until nobody listens any more.
async fn watch(server: Arc<Server>, sender: mpsc::Sender<Change>) {
    let (mut pause, mut told) = (PAUSE_MIN, false);
    loop {
        let error = match Watch::begin(&server, &sender).await {
            Ok(watch) => {
                if sender.send(Change::Watching).await.is_err() {
                    return;
                }
                info!(store = server.name(), "redis tells of changes: the cache is in use");
                (pause, told) = (PAUSE_MIN, false);
                let error = watch.until_lost(&server).await;
                if sender.send(Change::Lost).await.is_err() {
                    return;
                }
                error
            }
            Err(error) => error,
        };
        // Reads may go through a connection that leads to the same wrong place.
        server.reconnect();
        if !told {
            warn!(
                store = server.name(), %error,
                "redis cannot be reached, or does not tell of changes (which takes version 6 and a user who may call CLIENT \
                 TRACKING): until it does, nothing is answered from the cache"
            );
            told = true;
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// One connection to each master.
struct Watch {
    masters: Vec<String>,
    connections: Vec<MultiplexedConnection>,
    lost: Arc<Notify>,
}

impl Watch {
    async fn begin(server: &Server, sender: &mpsc::Sender<Change>) -> Result<Self> {
        let clients = server.masters().await?;
        let lost = Arc::new(Notify::new());
        let track = clients.iter().map(|client| track(client, server.timeout(), sender, &lost));
        let connections = try_join_all(track).await.map_err(|e| failed(server, &e))?;
        Ok(Self { masters: names(&clients), connections, lost })
    }

    async fn until_lost(mut self, server: &Server) -> Error {
        let lost = Arc::clone(&self.lost);
        tokio::select! {
            () = lost.notified() => {
                Error::unavailable("its connection broke, or more changed than could be taken")
            }
            error = self.until_silent(server) => error,
        }
    }

    async fn until_silent(&mut self, server: &Server) -> Error {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            period.tick().await;
            let pings = self.connections.iter_mut().map(ping);
            if let Err(error) = try_join_all(pings).await {
                return failed(server, &error);
            }
            match server.masters().await {
                Ok(clients) if names(&clients) == self.masters => {}
                Ok(_) => return Error::unavailable("other servers have become its masters"),
                Err(error) => return error,
            }
        }
    }
}

fn failed(server: &Server, error: &RedisError) -> Error {
    Error::unavailable(format!("online store {} is not available", server.name())).with_source(brief(error))
}

/// Asks whether it is there, and a master still: behind one address a failover puts another in its place, and leaves
/// the connections to the former one open.
async fn ping(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    let said: HashMap<String, Value> = cmd("HELLO").query_async(connection).await?;
    match said.get("role") {
        Some(Value::BulkString(role)) if role != b"master" => Err(not_a_master()),
        Some(Value::SimpleString(role)) if role != "master" => Err(not_a_master()),
        _ => Ok(()),
    }
}

fn not_a_master() -> RedisError {
    (ErrorKind::Io, "it is no master any more").into()
}

fn names(clients: &[Client]) -> Vec<String> {
    let mut names: Vec<String> = clients.iter().map(|c| c.get_connection_info().addr().to_string()).collect();
    names.sort();
    names
}

/// Connects to a master and asks it to tell what changes.
async fn track(
    client: &Client,
    timeout: Duration,
    sender: &mpsc::Sender<Change>,
    lost: &Arc<Notify>,
) -> RedisResult<MultiplexedConnection> {
    let info = client.get_connection_info().clone();
    // Only the third version of the protocol can tell anything unasked.
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let client = Client::open(info.set_redis_settings(settings))?;
    let (sender, lost) = (sender.clone(), Arc::clone(lost));
    let listen = move |push: PushInfo| {
        let told = match push.kind {
            PushKind::Invalidate => sender.try_send(change(push.data)).is_ok(),
            PushKind::Disconnection => false,
            _ => true,
        };
        if !told {
            lost.notify_one();
        }
        Ok::<(), ()>(())
    };
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(timeout))
        .set_response_timeout(Some(timeout))
        .set_push_sender(listen);
    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
    ping(&mut connection).await?;
    let mut track = cmd("CLIENT");
    track.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg(keys::LETTER.as_slice());
    track.query_async::<()>(&mut connection).await?;
    Ok(connection)
}

/// What a message tells: the keys that changed, or nil when all are gone.
fn change(data: Vec<Value>) -> Change {
    let mut changed = Vec::new();
    for value in data {
        let Value::Array(stored) = value else { return Change::Everything };
        for key in stored {
            match key {
                // Some of what lies below the prefix is not an entry.
                Value::BulkString(key) => changed.extend(keys::changed(&key.into())),
                _ => return Change::Everything,
            }
        }
    }
    Change::Keys(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::online::changes::ChangedKey;
    use uuid::Uuid;

    #[test]
    fn messages_name_entries_or_everything() {
        let group = Uuid::new_v4();
        let bulk = |key: &[u8]| Value::BulkString(key.to_vec());
        let key = [0, 1, b'}', b':'];
        let stored = [&keys::prefix(group)[..], &key].concat();
        let note = keys::snapshot(group, None);
        let all = [&stored[..], note.as_bytes(), b"f{x", b"elsewhere"];
        let told = change(vec![Value::Array(all.map(bulk).to_vec())]);
        let expected = ChangedKey { group: group.into(), key: key.to_vec().into() };
        assert_eq!(told, Change::Keys(vec![expected]));
        assert_eq!(change(vec![Value::Nil]), Change::Everything);
        assert_eq!(change(vec![Value::Array(vec![Value::Int(1)])]), Change::Everything);
    }
}
