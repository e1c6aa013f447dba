//! Accepts connections: bounded in number, without Nagle's delay, each with an identity of its own.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::transport::server::Connected;

use super::drain::Drain;
use super::sessions::Sessions;

/// Tells connections apart for as long as the server runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ConnectionId(u64);

/// One accepted connection. When it closes, its session ends.
pub(super) struct Connection {
    stream: TcpStream,
    id: ConnectionId,
    peer: SocketAddr,
    sessions: Arc<Sessions>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Connection {
    fn drop(&mut self) {
        tracing::debug!(connection = self.id.0, peer = %self.peer, "disconnected");
        self.sessions.disconnected(self.id);
    }
}

/// tonic hands it to every call of the connection as a request extension.
impl Connected for Connection {
    type ConnectInfo = ConnectionId;

    fn connect_info(&self) -> ConnectionId {
        self.id
    }
}

/// Accepts until the door drains; then closes the listener and stays silent, because tonic takes the end of this
/// stream for a reason to abandon the connections it has.
pub(super) fn incoming(
    listener: TcpListener,
    connections_max: usize,
    sessions: Arc<Sessions>,
    drain: Arc<Drain>,
) -> impl Stream<Item = io::Result<Connection>> {
    let acceptor =
        Acceptor { listener, sessions, drain, last: 0, room: Arc::new(Semaphore::new(connections_max)) };
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
    last: u64,
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
        let id = ConnectionId(self.last);
        tracing::debug!(connection = id.0, %peer, "connected");
        self.sessions.connected(id);
        Some(Connection { stream, id, peer, sessions: Arc::clone(&self.sessions), _permit: permit })
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
