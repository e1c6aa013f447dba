//! Accepts connections: bounded in number, without Nagle's delay, each with an identity of its own, and none that stays
//! without asking for anything.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

use super::drain::Drain;
use super::gathered::Gathered;
use super::sessions::Sessions;
use crate::metrics::Metrics;

/// Tells connections apart for as long as the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ConnectionId {
    pub(super) serial: u64,
    /// Who is at the other end.
    pub(super) peer: SocketAddr,
}

#[cfg(test)]
impl ConnectionId {
    pub(super) fn for_test(serial: u64) -> Self {
        Self { serial, peer: ([127, 0, 0, 1], 1).into() }
    }
}

/// What the calls of a connection know of it.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) connection: ConnectionId,
    admitted: Arc<AtomicBool>,
}

impl Peer {
    /// A call of the connection was let in: it may stay.
    pub(super) fn admitted(&self) {
        self.admitted.store(true, Ordering::Relaxed);
    }
}

/// One accepted connection. When it closes, its session ends.
pub(super) struct Connection {
    stream: Gathered<TcpStream>,
    id: ConnectionId,
    admitted: Arc<AtomicBool>,
    /// By when a call must have been let in; `None` once one was.
    deadline: Option<Pin<Box<Sleep>>>,
    sessions: Arc<Sessions>,
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        tracing::debug!(connection = self.id.serial, peer = %self.id.peer, "disconnected");
        self.metrics.connections.dec();
        self.sessions.disconnected(self.id);
    }
}

impl Connection {
    /// Counts what goes out.
    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.metrics.bytes_sent.inc_by(*bytes as u64);
        }
        written
    }
}

/// tonic hands it to every call of the connection as a request extension.
impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer { connection: self.id, admitted: Arc::clone(&self.admitted) }
    }
}

/// Accepts until the door drains; then closes the listener and stays silent, because tonic takes the end of this
/// stream for a reason to abandon the connections it has.
pub(super) fn incoming(
    listener: TcpListener,
    connections_max: usize,
    silence_max: Duration,
    is_tls: bool,
    sessions: Arc<Sessions>,
    drain: Arc<Drain>,
    metrics: Arc<Metrics>,
) -> impl Stream<Item = io::Result<Connection>> {
    let room = Arc::new(Semaphore::new(connections_max));
    let acceptor = Acceptor { listener, sessions, drain, metrics, last: 0, silence_max, is_tls, room };
    futures::stream::unfold(acceptor, |mut acceptor| async move {
        loop {
            let drain = Arc::clone(&acceptor.drain);
            let accepted = tokio::select! {
                accepted = acceptor.listener.accept() => accepted,
                () = drain.draining() => {
                    drop(acceptor);
                    return std::future::pending().await;
                }
            };
            if let Some(connection) = acceptor.admit(accepted).await {
                return Some((Ok(connection), acceptor));
            }
        }
    })
}

struct Acceptor {
    listener: TcpListener,
    sessions: Arc<Sessions>,
    drain: Arc<Drain>,
    metrics: Arc<Metrics>,
    last: u64,
    silence_max: Duration,
    is_tls: bool,
    room: Arc<Semaphore>,
}

impl Acceptor {
    async fn admit(&mut self, accepted: io::Result<(TcpStream, SocketAddr)>) -> Option<Connection> {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, as a rule: give others time to close theirs.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                return None;
            }
        };
        let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
            tracing::warn!(%peer, "connection refused: connections_max is reached");
            return None;
        };
        // Small answers must not wait for the acknowledgement of earlier ones.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, %peer, "connection closed before it was served");
            return None;
        }
        self.last += 1;
        let id = ConnectionId { serial: self.last, peer };
        tracing::debug!(connection = id.serial, %peer, "connected");
        self.sessions.connected(id);
        self.metrics.connections.inc();
        Some(Connection {
            stream: Gathered::new(stream, !self.is_tls),
            id,
            admitted: Arc::default(),
            deadline: Some(Box::pin(tokio::time::sleep(self.silence_max))),
            sessions: Arc::clone(&self.sessions),
            metrics: Arc::clone(&self.metrics),
            _permit: permit,
        })
    }
}

impl Connection {
    /// Whether the connection may stay. TLS and HTTP/2 have no end to their patience, so all of what comes before a
    /// call has its end here.
    fn check_silence(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(deadline) = &mut self.deadline else { return Ok(()) };
        if self.admitted.load(Ordering::Relaxed) {
            self.deadline = None;
        } else if deadline.as_mut().poll(cx).is_ready() {
            tracing::info!(connection = self.id.serial, peer = %self.id.peer, "closed: it made no call that could be let in");
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        // What is due leaves first: perhaps it says why the connection may not stay.
        let read = self.stream.poll_read(cx, buffer);
        self.metrics.bytes_received.inc_by((buffer.filled().len() - before) as u64);
        self.check_silence(cx)?;
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.stream.poll_write(cx, slices);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let others = self.metrics.calls_in_flight.get() > 1;
        self.stream.poll_flush(cx, others)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_shutdown(cx)
    }
}
