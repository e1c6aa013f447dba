//! A network that fails between a server and one of its stores: connections are refused, cut in the middle of a message,
//! and held up, each at random.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Of so many connections one is refused, and of so many pieces of a message one is held up.
const REFUSED_OF: u64 = 8;
const HELD_UP_OF: u64 = 16;
const HELD_UP_MS_MAX: u64 = 40;
const PIECE_BYTES: usize = 4096;

/// Passes on what is said to a port of this machine.
pub(crate) struct FaultyNetwork {
    port: u16,
    weather: Arc<Weather>,
    listens: JoinHandle<()>,
}

struct Weather {
    is_fair: AtomicBool,
    random: AtomicU64,
    cuts: AtomicU64,
    /// A connection carries at most so many bytes until it is cut.
    bytes_max: u64,
}

impl Drop for FaultyNetwork {
    fn drop(&mut self) {
        self.listens.abort();
    }
}

impl FaultyNetwork {
    /// In front of `port`; a connection carries up to `bytes_max` bytes.
    pub(crate) async fn before(port: u16, bytes_max: u64, seed: u64) -> Self {
        let (cuts, random) = (AtomicU64::new(0), AtomicU64::new(seed));
        let weather = Arc::new(Weather { is_fair: AtomicBool::new(true), random, cuts, bytes_max });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let listens = tokio::spawn(listen(listener, port, Arc::clone(&weather)));
        Self { port: own, weather, listens }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Whether everything is passed on from now on.
    pub(crate) fn set_fair(&self, is_fair: bool) {
        self.weather.is_fair.store(is_fair, Ordering::SeqCst);
    }

    /// How many connections were cut or refused.
    pub(crate) fn cuts(&self) -> u64 {
        self.weather.cuts.load(Ordering::SeqCst)
    }
}

impl Weather {
    fn is_fair(&self) -> bool {
        self.is_fair.load(Ordering::SeqCst)
    }

    /// A number below `end`: SplitMix64.
    fn below(&self, end: u64) -> u64 {
        let mut z = self.random.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::SeqCst);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }

    fn cut(&self) {
        self.cuts.fetch_add(1, Ordering::SeqCst);
    }
}

async fn listen(listener: TcpListener, port: u16, weather: Arc<Weather>) {
    loop {
        let Ok((near, _)) = listener.accept().await else { continue };
        if !weather.is_fair() && weather.below(REFUSED_OF) == 0 {
            weather.cut();
            continue;
        }
        tokio::spawn(pass(near, port, Arc::clone(&weather)));
    }
}

/// Both ways, until one side is done or the connection is cut: then neither hears the rest.
async fn pass(near: TcpStream, port: u16, weather: Arc<Weather>) {
    let Ok(far) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let left = AtomicU64::new(1 + weather.below(weather.bytes_max));
    tokio::select! {
        () = carry(near_in, far_out, &left, &weather) => {}
        () = carry(far_in, near_out, &left, &weather) => {}
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, left: &AtomicU64, weather: &Weather) {
    let mut piece = [0; PIECE_BYTES];
    loop {
        let Ok(read @ 1..) = from.read(&mut piece).await else { return };
        let carried = if weather.is_fair() {
            read
        } else {
            if weather.below(HELD_UP_OF) == 0 {
                tokio::time::sleep(Duration::from_millis(weather.below(HELD_UP_MS_MAX))).await;
            }
            let less = |left: u64| Some(left.saturating_sub(read as u64));
            let before = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).unwrap();
            read.min(usize::try_from(before).unwrap())
        };
        if to.write_all(&piece[..carried]).await.is_err() {
            return;
        }
        if carried < read {
            weather.cut();
            return;
        }
    }
}
