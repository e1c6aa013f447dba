//! What a connection says in one turn, in one write.
//!
//! HTTP/2 as we have it writes and flushes after every frame of 256 bytes of data and more: an answer of one message leaves
//! in two writes, the second for its ten bytes of trailers, one of a hundred rows in five, and at each the kernel wakes the
//! client. Here what is written is gathered until the turn of the connection's task is over:
//!
//! - Such a frame is written as two slices, and flushed once more when nothing follows: h2 has its codec full behind it
//!   (`BufferStatus::CodecFull` in `Streams::poll_complete`, to be looked at when h2 is updated). So the flush after it
//!   waits for the next one.
//! - Where several calls are being answered, a flush waits for the connection's next turn, which it asks for: it comes after
//!   those of the answers that are ready. It begins with a read, as every turn does.
//!
//! Under TLS nothing is gathered: writes are records, and alerts are not flushed.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is gathered at most, in bytes; more leaves at once. The room it took is kept as long as the connection.
const GATHERED_BYTES_MAX: usize = 64 << 10;

/// A stream that gathers writes.
#[derive(Debug)]
pub(super) struct Gathered<T> {
    stream: T,
    /// Whether writes are frames of HTTP/2.
    is_framed: bool,
    gathered: Vec<u8>,
    /// How much of it has left.
    left: usize,
    /// Whether it has been flushed.
    due: bool,
    /// Whether the connection's task has been woken for it.
    is_turn_asked: bool,
    /// Whether the last that was written is a frame of data.
    ends_with_data: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Gathered<T> {
    pub(super) fn new(stream: T, is_framed: bool) -> Self {
        Self {
            stream,
            is_framed,
            gathered: Vec::new(),
            left: 0,
            due: false,
            is_turn_asked: false,
            ends_with_data: false,
        }
    }

    /// See [`AsyncRead::poll_read`].
    pub(super) fn poll_read(
        &mut self,
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

    /// See [`AsyncWrite::poll_write_vectored`].
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        if self.gathered.len() + bytes > GATHERED_BYTES_MAX {
            ready!(self.poll_leave(cx))?;
        }
        if bytes > GATHERED_BYTES_MAX || !self.is_framed {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        }
        slices.iter().for_each(|slice| self.gathered.extend_from_slice(slice));
        self.ends_with_data = slices.len() > 1;
        Poll::Ready(Ok(bytes))
    }

    /// Flushes, or promises to; `others`: whether other calls are being answered.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>, others: bool) -> Poll<io::Result<()>> {
        if self.gathered.is_empty() {
            return Poll::Ready(Ok(()));
        }
        // Should nobody flush again after all, it leaves with the next turn.
        self.due = true;
        if others {
            if !std::mem::replace(&mut self.is_turn_asked, true) {
                cx.waker().wake_by_ref();
            }
            return Poll::Ready(Ok(()));
        }
        match std::mem::take(&mut self.ends_with_data) {
            true => Poll::Ready(Ok(())),
            false => self.poll_leave(cx),
        }
    }

    /// See [`AsyncWrite::poll_shutdown`].
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_leave(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_leave(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.left < self.gathered.len() {
            match ready!(Pin::new(&mut self.stream).poll_write(cx, &self.gathered[self.left..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.left += written,
            }
        }
        self.gathered.clear();
        (self.left, self.due, self.is_turn_asked, self.ends_with_data) = (0, false, false, false);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

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
        Gathered::new(Remembering { writes: Vec::new(), bytes_max, broken: false }, true)
    }

    fn now<T>(poll: Poll<io::Result<T>>) -> T {
        let Poll::Ready(Ok(value)) = poll else { panic!("it should be over") };
        value
    }

    impl Gathered<Remembering> {
        fn says(&mut self, parts: &[&[u8]]) {
            let mut cx = Context::from_waker(Waker::noop());
            let slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
            assert_eq!(now(self.poll_write(&mut cx, &slices)), parts.concat().len());
        }

        fn flushes(&mut self, others: bool) {
            now(self.poll_flush(&mut Context::from_waker(Waker::noop()), others));
        }

        /// Begins a turn; whether it failed.
        fn turns(&mut self) -> bool {
            let mut cx = Context::from_waker(Waker::noop());
            self.poll_read(&mut cx, &mut ReadBuf::new(&mut [])).is_ready()
        }
    }

    #[test]
    fn data_waits_for_what_follows_in_its_turn() {
        let mut gathered = gathered(usize::MAX);
        gathered.says(&[b"headers, head, ", b"data, "]);
        gathered.flushes(false);
        assert!(gathered.stream.writes.is_empty());
        gathered.says(&[b"trailers"]);
        gathered.flushes(false);
        assert_eq!(gathered.stream.writes, [b"headers, head, data, trailers"]);
        // Nothing follows: it is flushed once more.
        gathered.says(&[b"head, ", b"data"]);
        gathered.flushes(false);
        gathered.flushes(false);
        assert_eq!(gathered.stream.writes[1..], [b"head, data"]);
        // It is not, and leaves with the next turn all the same.
        gathered.says(&[b"head, ", b"data"]);
        gathered.flushes(false);
        assert!(!gathered.turns());
        assert_eq!(gathered.stream.writes[2..], [b"head, data"]);
    }

    #[test]
    fn answers_of_several_calls_leave_together_in_the_next_turn() {
        let mut gathered = gathered(usize::MAX);
        for _ in 0..2 {
            gathered.says(&[b"head, ", b"data, "]);
            gathered.flushes(true);
            gathered.says(&[b"trailers, "]);
            gathered.flushes(true);
        }
        assert!(gathered.stream.writes.is_empty());
        assert!(!gathered.turns() && !gathered.turns());
        assert_eq!(gathered.stream.writes, [b"head, data, trailers, head, data, trailers, "]);
    }

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_next_turn_is_asked_for_once() {
        let (woken, mut gathered) = (Arc::<Woken>::default(), gathered(usize::MAX));
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        now(gathered.poll_flush(&mut cx, true));
        assert_eq!(woken.0.load(Ordering::Relaxed), 0, "nothing is to leave");
        // Data alone does not ask for it, whatever came before.
        gathered.says(&[b"head, ", b"data"]);
        now(gathered.poll_flush(&mut cx, false));
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        for _ in 0..3 {
            gathered.says(&[b"one"]);
            now(gathered.poll_flush(&mut cx, true));
        }
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn records_leave_when_they_are_written() {
        let mut gathered = gathered(usize::MAX);
        gathered.is_framed = false;
        gathered.says(&[b"an alert"]);
        assert_eq!(gathered.stream.writes, [b"an alert"]);
    }

    #[test]
    fn what_is_not_flushed_stays() {
        let mut gathered = gathered(usize::MAX);
        gathered.says(&[b"half"]);
        gathered.turns();
        assert!(gathered.stream.writes.is_empty());
        now(gathered.poll_shutdown(&mut Context::from_waker(Waker::noop())));
        assert_eq!(gathered.stream.writes, [b"half"]);
    }

    #[test]
    fn much_leaves_at_once_and_in_order() {
        let mut gathered = gathered(1000);
        let mut said = Vec::new();
        for length in [10, GATHERED_BYTES_MAX - 10, 1, GATHERED_BYTES_MAX, 7] {
            let bytes: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            gathered.says(&[&bytes]);
            gathered.flushes(true);
            said.extend(bytes);
            assert!(gathered.gathered.len() <= GATHERED_BYTES_MAX);
        }
        gathered.turns();
        assert_eq!(gathered.stream.writes.concat(), said);
    }

    #[test]
    fn a_broken_stream_is_told_when_it_is_read() {
        let mut gathered = gathered(usize::MAX);
        gathered.stream.broken = true;
        gathered.says(&[b"lost"]);
        gathered.flushes(true);
        assert!(gathered.turns());
    }

    /// As a connection writes: through the trait.
    struct Whole<T>(Gathered<T>, bool);

    impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Whole<T> {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.poll_write(cx, &[IoSlice::new(bytes)])
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            let others = self.1;
            self.0.poll_flush(cx, others)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.0.poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn a_slow_reader_gets_everything() {
        for others in [false, true] {
            let (ours, mut theirs) = duplex(100);
            let mut ours = Whole(Gathered::new(ours, true), others);
            let said: Vec<u8> = (0..500_000).map(|i| (i % 253) as u8).collect();
            let expected = said.clone();
            let saying = tokio::spawn(async move {
                for part in said.chunks(90_000) {
                    ours.write_all(part).await.unwrap();
                    ours.flush().await.unwrap();
                }
                ours.shutdown().await.unwrap();
            });
            let mut heard = Vec::new();
            theirs.read_to_end(&mut heard).await.unwrap();
            saying.await.unwrap();
            assert_eq!(heard, expected);
        }
    }
}
