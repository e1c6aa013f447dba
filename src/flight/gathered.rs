//! What a connection says in one turn, in one write.
//!
//! HTTP/2 as we have it writes whenever a frame of data is full, and flushes each time: an answer of one message leaves
//! in two writes, one of a hundred rows in five, and at each the kernel wakes the client. Here a flush only notes that
//! something is to leave, and wakes the connection's task: everything that is said before its next turn leaves
//! together, when that begins with a read, as every turn does.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered at most, in bytes; more leaves at once.
const GATHERED_BYTES_MAX: usize = 64 << 10;

/// A stream that gathers writes.
#[derive(Debug)]
pub(super) struct Gathered<T> {
    stream: T,
    gathered: Vec<u8>,
    /// How much of it has left.
    left: usize,
    /// Whether it has been flushed.
    due: bool,
}

impl<T> Gathered<T> {
    pub(super) fn new(stream: T) -> Self {
        Self { stream, gathered: Vec::new(), left: 0, due: false }
    }
}

impl<T: AsyncWrite + Unpin> Gathered<T> {
    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.left < self.gathered.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.gathered[self.left..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.left += written,
            }
        }
        self.gathered.clear();
        (self.left, self.due) = (0, false);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.due
            && let Poll::Ready(Err(error)) = self.poll_leave(cx)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        if self.gathered.len() + bytes > GATHERED_BYTES_MAX {
            ready!(self.poll_leave(cx))?;
        }
        if bytes > GATHERED_BYTES_MAX {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        }
        slices.iter().for_each(|slice| self.gathered.extend_from_slice(slice));
        Poll::Ready(Ok(bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.gathered.is_empty() && !self.due {
            self.due = true;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_leave(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// Remembers each write, and takes so many bytes at a time.
    #[derive(Debug)]
    struct Remembering {
        writes: Vec<Vec<u8>>,
        bytes_max: usize,
        broken: bool,
    }

    impl AsyncRead for Remembering {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Remembering {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            if self.broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let taken = bytes.len().min(self.bytes_max);
            self.writes.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn gathered(bytes_max: usize) -> Gathered<Remembering> {
        Gathered::new(Remembering { writes: Vec::new(), bytes_max, broken: false })
    }

    fn say(gathered: &mut Gathered<Remembering>, bytes: &[u8]) {
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Ok(taken)) = Pin::new(&mut *gathered).poll_write(&mut cx, bytes) else { panic!() };
        assert_eq!(taken, bytes.len());
        assert!(matches!(Pin::new(gathered).poll_flush(&mut cx), Poll::Ready(Ok(()))));
    }

    /// Begins a turn; whether it failed.
    fn turn(gathered: &mut Gathered<Remembering>) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        Pin::new(gathered).poll_read(&mut cx, &mut ReadBuf::new(&mut [])).is_ready()
    }

    #[test]
    fn what_is_said_in_a_turn_leaves_together_in_the_next() {
        let mut gathered = gathered(usize::MAX);
        say(&mut gathered, b"headers");
        say(&mut gathered, b" and trailers");
        assert!(gathered.stream.writes.is_empty());
        assert!(!turn(&mut gathered) && !turn(&mut gathered));
        assert_eq!(gathered.stream.writes, [b"headers and trailers"]);
    }

    #[test]
    fn what_is_not_flushed_stays() {
        let mut gathered = gathered(usize::MAX);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut gathered).poll_write(&mut cx, b"half").is_ready());
        turn(&mut gathered);
        assert!(gathered.stream.writes.is_empty());
        assert!(Pin::new(&mut gathered).poll_shutdown(&mut cx).is_ready());
        assert_eq!(gathered.stream.writes, [b"half"]);
    }

    #[test]
    fn much_leaves_at_once_and_in_order() {
        let mut gathered = gathered(1000);
        let mut said = Vec::new();
        for length in [10, GATHERED_BYTES_MAX - 10, 1, GATHERED_BYTES_MAX, 7] {
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            say(&mut gathered, &bytes);
            said.extend(bytes);
            assert!(gathered.gathered.len() <= GATHERED_BYTES_MAX);
        }
        turn(&mut gathered);
        assert_eq!(gathered.stream.writes.concat(), said);
    }

    #[test]
    fn a_broken_stream_is_told_when_it_is_read() {
        let mut gathered = gathered(usize::MAX);
        gathered.stream.broken = true;
        say(&mut gathered, b"lost");
        assert!(turn(&mut gathered));
    }

    #[tokio::test]
    async fn a_slow_reader_gets_everything() {
        let (ours, mut theirs) = duplex(100);
        let mut ours = Gathered::new(ours);
        let said: Vec<u8> = (0..500_000).map(|i| (i % 253) as u8).collect();
        let expected = said.clone();
        let saying = tokio::spawn(async move {
            for part in said.chunks(90_000) {
                ours.write_all(part).await.unwrap();
                ours.flush().await.unwrap();
            }
            // As a connection does, it reads until there is no more to read.
            assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 1);
        });
        let mut heard = vec![0; expected.len()];
        theirs.read_exact(&mut heard).await.unwrap();
        theirs.write_all(b".").await.unwrap();
        saying.await.unwrap();
        assert_eq!(heard, expected);
    }
}
