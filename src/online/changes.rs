//! What others change behind a cache's back, told by the store that they share.

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

/// What a store's key may tell of a group's id: its 122 bits that are random or time, in their order, without those
/// that say which kind of UUID it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct GroupBits(u128);

impl From<Uuid> for GroupBits {
    fn from(id: Uuid) -> Self {
        let id = id.as_u128();
        let (high, middle, low) = (id >> 80, id >> 64 & 0xfff, id & ((1 << 62) - 1));
        Self(high << 74 | middle << 62 | low)
    }
}

impl GroupBits {
    pub(super) fn new(bits: u128) -> Self {
        Self(bits)
    }

    pub(super) fn bits(self) -> u128 {
        self.0
    }

    pub(super) fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

/// One entry that was written or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ChangedKey {
    pub(super) group: GroupBits,
    /// The bytes of the entity key.
    pub(super) key: Bytes,
}

/// What a store has to say to a cache in front of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// From now on every change is told. What was read before may have changed unseen.
    Watching,
    /// These entries changed, whoever did it, this server included.
    Keys(Vec<ChangedKey>),
    /// Any entry may have changed, as when the store was emptied; changes are still told.
    Everything,
    /// Changes are no longer told, until the next `Watching`.
    Lost,
}

/// The changes of one store, in order. Watching ends when this is dropped.
pub(crate) struct Changes {
    receiver: mpsc::Receiver<Change>,
    _watcher: JoinSet<()>,
}

impl Changes {
    /// Runs `watcher`, which sends what it sees; at most `queued_max` changes wait to be taken. Must be called within
    /// a Tokio runtime.
    pub(super) fn watch<F: Future<Output = ()> + Send + 'static>(
        queued_max: usize,
        watcher: impl FnOnce(mpsc::Sender<Change>) -> F,
    ) -> Self {
        let (sender, receiver) = mpsc::channel(queued_max);
        let mut tasks = JoinSet::new();
        tasks.spawn(watcher(sender));
        Self { receiver, _watcher: tasks }
    }

    /// The next change; `None` when nobody watches any more.
    pub(super) async fn next(&mut self) -> Option<Change> {
        self.receiver.recv().await
    }
}
