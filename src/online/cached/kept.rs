//! What the cache holds: entries, and the reads under way that will bring more.
//!
//! moka decides what stays. It is asked by a key's hash alone, and what it evicts is dropped here. The entries
//! themselves lie in tables of our own: moka's `get` follows a chain of pointers (bucket, key, entry, counter of
//! references), each fetched from memory only when the one before has come, and leaves a note for the policy at every
//! hit; with 100,000 entries that is seven times what a hit costs here, two thirds of it waiting for memory. A sample
//! of the hits, and every miss, is enough for the policy.
//!
//! An entry lies in one allocation, from which a look-up copies it:
//!
//! ```text
//! group's id, 16 bytes | entity key | the store's entry
//! ```
//!
//! Every entry is known to moka: it goes into its table first and to moka then, and whatever moka lets go of, for
//! any reason but being replaced, is removed from the table. moka may know hashes whose entry is gone; they age away.
//! No lock of a table is held while moka is called, since moka calls back.

use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::quality::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use moka::notification::RemovalCause;
use moka::sync::Cache;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::flight::{Flight, FlightId, WeakFlight};
use crate::model::EntityKey;
use crate::online::Entries;
use crate::online::changes::GroupBits;

/// As many as a word has bits.
const SHARDS: usize = 64;
/// Keys looked up under one set of locks: enough to share them, few enough for writers not to wait.
const KEYS_PER_TURN_MAX: usize = 256;
/// What is fetched from memory at a time.
const LINE_BYTES: usize = 64;
/// One hit in so many is told to moka.
const SAMPLED: u64 = 64;
/// What an entry costs beside its own bytes: its place in the table, the allocations' heads, and moka's nodes.
const OVERHEAD_BYTES: usize = 184;
const GROUP_BYTES: usize = 16;

/// An entity of a group, borrowed, with its hash.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) hash: u64,
    group: [u8; GROUP_BYTES],
    key: &'a [u8],
}

impl Asked<'_> {
    fn is(&self, stored: &[u8]) -> bool {
        stored.len() == GROUP_BYTES + self.key.len()
            && stored[GROUP_BYTES..] == *self.key
            && stored[..GROUP_BYTES] == self.group
    }
}

/// One entry, or the knowledge that there is none.
struct Slot {
    hash: u64,
    bytes: Box<[u8]>,
    /// Where the store's entry begins in `bytes`.
    entry_at: u32,
    absent: bool,
    /// When the read that brought it began.
    read_at_us: i64,
}

impl Slot {
    fn key(&self) -> &[u8] {
        &self.bytes[..self.entry_at as usize]
    }

    fn entry(&self) -> Option<&[u8]> {
        (!self.absent).then(|| &self.bytes[self.entry_at as usize..])
    }

    fn weight(&self) -> u32 {
        u32::try_from(self.bytes.len() + OVERHEAD_BYTES).unwrap_or(u32::MAX)
    }
}

/// A key that a flight is reading.
struct Reading {
    hash: u64,
    key: Box<[u8]>,
    flight: FlightId,
    begun_us: i64,
    answer: WeakFlight,
    position: usize,
}

#[derive(Default)]
struct Content {
    /// Whether entries may be served and kept: changes made elsewhere are being told.
    open: bool,
    slots: HashTable<Slot>,
    bytes: u64,
    reading: HashTable<Reading>,
}

impl Content {
    fn slot(&self, asked: Asked<'_>) -> Option<&Slot> {
        self.slots.find(asked.hash, |slot| slot.hash == asked.hash && asked.is(slot.key()))
    }

    /// The slot of this hash: of one key, as a rule, but a hash is not a key.
    fn slot_of_hash(&self, hash: u64) -> Option<&Slot> {
        self.slots.find(hash, |slot| slot.hash == hash)
    }

    fn put(&mut self, slot: Slot) {
        self.bytes += u64::from(slot.weight());
        let same = |other: &Slot| other.hash == slot.hash && other.key() == slot.key();
        match self.slots.entry(slot.hash, same, |slot| slot.hash) {
            Entry::Occupied(mut place) => {
                self.bytes -= u64::from(place.get().weight());
                *place.get_mut() = slot;
            }
            Entry::Vacant(place) => {
                place.insert(slot);
            }
        }
    }

    /// Whether there was one.
    fn take(&mut self, hash: u64, is: impl Fn(&Slot) -> bool) -> bool {
        let Ok(place) = self.slots.find_entry(hash, |slot| slot.hash == hash && is(slot)) else {
            return false;
        };
        self.bytes -= u64::from(place.get().weight());
        place.remove();
        true
    }

    /// Strikes the key off the list of those being read; only if `of` reads it, where that is given.
    fn land(&mut self, asked: Asked<'_>, of: Option<FlightId>) -> bool {
        let is = |reading: &Reading| {
            reading.hash == asked.hash
                && asked.is(&reading.key)
                && of.is_none_or(|flight| flight == reading.flight)
        };
        self.reading.find_entry(asked.hash, is).map(|place| place.remove()).is_ok()
    }
}

/// Apart from its neighbours: a lock taken in one does not take the line of another.
#[derive(Default)]
#[repr(align(128))]
struct Shard(RwLock<Content>);

/// The keys are hashes already.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        // Nothing but a u64 is ever hashed; whatever else came would still be hashed, badly.
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// moka, as the one who decides what stays: hash → weight.
type Policy = Cache<u64, u32, BuildHasherDefault<AsIs>>;

/// Which way a key that was not found goes.
pub(super) enum Way {
    /// It has been brought meanwhile.
    Found(Option<Vec<u8>>),
    /// Another flight is reading it, and brings it at this position.
    Joined(FlightId, Flight, usize),
    /// The caller's own flight has to read it.
    Read,
}

/// A key that the caller's own flight would read.
pub(super) struct Wanted<'a> {
    pub(super) flight: FlightId,
    pub(super) answer: &'a WeakFlight,
    pub(super) position: usize,
}

/// What is fresh enough.
#[derive(Debug, Clone, Copy)]
pub(super) struct Freshness {
    pub(super) now_us: i64,
    pub(super) age_max_us: i64,
}

impl Freshness {
    fn admits(self, read_at_us: i64) -> bool {
        self.now_us.saturating_sub(read_at_us).max(0) < self.age_max_us
    }
}

pub(super) struct Kept {
    shards: Arc<[Shard]>,
    policy: RwLock<Policy>,
    capacity_bytes: u64,
    hasher: RandomState,
    turns: AtomicU64,
}

impl Kept {
    /// `open`: whether it may be used at once, with nobody to tell of changes.
    pub(super) fn new(capacity_bytes: u64, open: bool) -> Self {
        let shards: Arc<[Shard]> = (0..SHARDS).map(|_| Shard::default()).collect();
        shards.iter().for_each(|shard| shard.0.write().open = open);
        let policy = RwLock::new(policy(capacity_bytes, &shards));
        Self { shards, policy, capacity_bytes, hasher: RandomState::default(), turns: AtomicU64::new(0) }
    }

    pub(super) fn asked<'a>(&self, group: GroupBits, key: &'a [u8]) -> Asked<'a> {
        let group = group.to_bytes();
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u128(u128::from_ne_bytes(group));
        hasher.write(key);
        Asked { hash: hasher.finish(), group, key }
    }

    fn shard(&self, hash: u64) -> &Shard {
        &self.shards[shard_of(hash)]
    }

    fn content(&self, hash: u64) -> RwLockWriteGuard<'_, Content> {
        self.shard(hash).0.write()
    }

    /// Writes what is held of `keys` to `entries`, and returns which keys are not held.
    pub(super) fn find(
        &self,
        group: GroupBits,
        keys: &[EntityKey],
        fresh: Freshness,
        entries: &mut Entries,
    ) -> Vec<usize> {
        let (mut missed, mut sampled) = (Vec::new(), Vec::new());
        let turn = self.turns.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        for (nth, part) in keys.chunks(KEYS_PER_TURN_MAX).enumerate() {
            let asked: Vec<Asked<'_>> = part.iter().map(|key| self.asked(group, key.as_bytes())).collect();
            let touched = asked.iter().fold(0u64, |touched, asked| touched | 1 << shard_of(asked.hash));
            // In the order of the shards: whoever holds several waits for later ones only, so nobody waits in a circle.
            let guards: [Option<RwLockReadGuard<'_, Content>>; SHARDS] =
                std::array::from_fn(|shard| (touched >> shard & 1 == 1).then(|| self.shards[shard].0.read()));
            // What lies in no cache of the CPU's is the most of the time, so it is asked for side by side: no step of
            // a key's waits for memory that another key's step could have been waiting for meanwhile.
            let content =
                |asked: &Asked<'_>| guards[shard_of(asked.hash)].as_deref().filter(|content| content.open);
            let likely: Vec<Option<&Slot>> =
                asked.iter().map(|asked| content(asked)?.slot_of_hash(asked.hash)).collect();
            entries.reserve(likely.iter().flatten().map(|slot| slot.bytes.len()).sum());
            likely.iter().flatten().for_each(|slot| touch(&slot.bytes));
            for (i, (asked, likely)) in asked.iter().zip(likely).enumerate() {
                let at = nth * KEYS_PER_TURN_MAX + i;
                let slot = match likely {
                    Some(slot) if !asked.is(slot.key()) => content(asked).and_then(|all| all.slot(*asked)),
                    other => other,
                };
                match slot.filter(|slot| fresh.admits(slot.read_at_us)) {
                    Some(slot) => entries.put(at, slot.entry()),
                    None => missed.push(at),
                }
                if slot.is_none() || (asked.hash ^ turn).is_multiple_of(SAMPLED) {
                    sampled.push(asked.hash);
                }
            }
        }
        if !sampled.is_empty() {
            let policy = self.policy();
            for hash in &sampled {
                let _ = policy.get(hash);
            }
        }
        missed
    }

    /// Which way a key goes that `find` did not find. It is on the list of those being read from here on when the
    /// caller has to read it, unless changes are not being told.
    pub(super) fn board(&self, asked: Asked<'_>, fresh: Freshness, wanted: Wanted<'_>) -> Way {
        let mut content = self.content(asked.hash);
        if !content.open {
            return Way::Read;
        }
        if let Some(slot) = content.slot(asked).filter(|slot| fresh.admits(slot.read_at_us)) {
            return Way::Found(slot.entry().map(<[u8]>::to_vec));
        }
        let reading = Reading {
            hash: asked.hash,
            key: [&asked.group[..], asked.key].concat().into(),
            flight: wanted.flight,
            begun_us: fresh.now_us,
            answer: wanted.answer.clone(),
            position: wanted.position,
        };
        let same = |other: &Reading| other.hash == asked.hash && asked.is(&other.key);
        match content.reading.entry(asked.hash, same, |reading| reading.hash) {
            Entry::Occupied(mut place) => {
                let other = place.get();
                if fresh.admits(other.begun_us)
                    && let Some(answer) = other.answer.upgrade()
                {
                    return Way::Joined(other.flight, answer, other.position);
                }
                *place.get_mut() = reading;
            }
            Entry::Vacant(place) => {
                place.insert(reading);
            }
        }
        Way::Read
    }

    /// Ends a flight's reading of a key. Keeps what it brought, unless the key was changed since it was put on the
    /// list, or another flight has taken it over.
    pub(super) fn land(&self, asked: Asked<'_>, flight: FlightId, brought: Option<(Option<&[u8]>, i64)>) {
        let slot = brought.map(|(entry, read_at_us)| slot(asked, entry, read_at_us));
        let mut content = self.content(asked.hash);
        let unchanged = content.land(asked, Some(flight));
        let Some(slot) = slot.filter(|_| unchanged) else { return };
        let weight = slot.weight();
        content.put(slot);
        drop(content);
        self.policy().insert(asked.hash, weight);
    }

    /// Drops an entry that changed, and detaches the flight that is reading it.
    pub(super) fn forget(&self, asked: Asked<'_>) {
        let held = {
            let mut content = self.content(asked.hash);
            content.land(asked, None);
            content.take(asked.hash, |slot| asked.is(slot.key()))
        };
        if held {
            self.policy().invalidate(&asked.hash);
        }
    }

    /// Drops everything and detaches every flight. `open`: whether it may be used afterwards; `None` leaves that.
    pub(super) fn clear(&self, open: Option<bool>) {
        // The new policy comes first: an entry that enters a cleared table is then told to the new one.
        let old = std::mem::replace(&mut *self.policy.write(), policy(self.capacity_bytes, &self.shards));
        for shard in self.shards.iter() {
            let mut content = shard.0.write();
            let open = open.unwrap_or(content.open);
            let cleared = std::mem::replace(&mut *content, Content { open, ..Content::default() });
            drop(content);
            drop(cleared);
        }
        drop(old);
    }

    pub(super) fn is_open(&self) -> bool {
        self.shards.iter().all(|shard| shard.0.read().open)
    }

    /// How many entries are held, and what they weigh.
    pub(super) fn size(&self) -> (u64, u64) {
        self.policy().run_pending_tasks();
        let sizes = self.shards.iter().map(|shard| {
            let content = shard.0.read();
            (content.slots.len() as u64, content.bytes)
        });
        sizes.fold((0, 0), |(entries, bytes), (n, b)| (entries + n, bytes + b))
    }

    /// How many keys are being read.
    #[cfg(test)]
    pub(super) fn reading(&self) -> usize {
        self.shards.iter().map(|shard| shard.0.read().reading.len()).sum()
    }

    /// A handle to it; no lock is held.
    fn policy(&self) -> Policy {
        self.policy.read().clone()
    }
}

/// Looks at every line of memory once.
fn touch(bytes: &[u8]) {
    let sum = bytes.iter().step_by(LINE_BYTES).fold(0, |sum: u8, byte| sum ^ byte);
    std::hint::black_box(sum);
}

fn shard_of(hash: u64) -> usize {
    // The tables and moka use the bits at both ends.
    (hash >> 32) as usize % SHARDS
}

fn slot(asked: Asked<'_>, entry: Option<&[u8]>, read_at_us: i64) -> Slot {
    let entry_at = (GROUP_BYTES + asked.key.len()) as u32;
    let bytes = [&asked.group[..], asked.key, entry.unwrap_or_default()].concat().into();
    Slot { hash: asked.hash, bytes, entry_at, absent: entry.is_none(), read_at_us }
}

fn policy(capacity_bytes: u64, shards: &Arc<[Shard]>) -> Policy {
    let shards = Arc::clone(shards);
    let evict = move |hash: Arc<u64>, _: u32, cause: RemovalCause| {
        if cause != RemovalCause::Replaced {
            shards[shard_of(*hash)].0.write().take(*hash, |_| true);
        }
    };
    Cache::builder()
        .max_capacity(capacity_bytes)
        .weigher(|_, weight| *weight)
        .eviction_listener(evict)
        .build_with_hasher(BuildHasherDefault::default())
}
