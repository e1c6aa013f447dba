//! What a look-up finds.

use crate::error::{Error, Result};

/// What a look-up found, and what it cost.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// One per key asked, in that order.
    pub(crate) entries: Entries,
    /// Keys that the cache answered, absent ones included.
    pub(crate) cache_hits: usize,
    /// Keys that were looked for in the cache and not in it.
    pub(crate) cache_misses: usize,
    /// Keys that were read from the store behind the cache.
    pub(crate) store_reads: usize,
}

impl Found {
    /// The entries, which must be of so many keys.
    ///
    /// # Errors
    /// `Internal` where the store answered another number of them.
    pub(crate) fn checked(self, keys: usize) -> Result<Entries> {
        match self.entries.len() {
            answered if answered == keys => Ok(self.entries),
            answered => Err(Error::internal(format!("the online store answered {answered} of {keys} keys"))),
        }
    }
}

/// Entities' entries (`model::pick` chooses the row in one), one or none for each key, side by side in one buffer: none
/// costs an allocation, and whoever reads one after the other reads memory in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entries {
    bytes: Vec<u8>,
    /// Where in `bytes` each entry begins and ends.
    places: Vec<Option<(usize, usize)>>,
}

impl Entries {
    /// Without an entry for any of so many keys.
    pub(crate) fn absent(keys: usize) -> Self {
        Self { bytes: Vec::new(), places: vec![None; keys] }
    }

    /// Notes the entry of the key at `at`.
    pub(crate) fn put(&mut self, at: usize, entry: Option<&[u8]>) {
        self.places[at] = entry.map(|entry| {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(entry);
            (start, self.bytes.len())
        });
    }

    /// Adds the keys of another, behind those that are there.
    pub(crate) fn append(&mut self, other: Self) {
        if self.len() == 0 {
            *self = other;
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&other.bytes);
        self.places.extend(other.places.iter().map(|place| place.map(|(s, e)| (start + s, start + e))));
    }

    /// Makes room for so many bytes of entries to come.
    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.bytes.reserve(bytes);
    }

    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The entry of the key at `at`; `None` where it has none, or nobody asked so much.
    pub(crate) fn get(&self, at: usize) -> Option<&[u8]> {
        let (start, end) = (*self.places.get(at)?)?;
        Some(&self.bytes[start..end])
    }

    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = Option<&[u8]>> {
        self.places.iter().map(|place| place.map(|(start, end)| &self.bytes[start..end]))
    }

    /// Those of the keys at `order`, of which each may come often or never; `None` for a key that was not asked.
    pub(crate) fn arranged(self, order: impl Iterator<Item = Option<usize>>) -> Self {
        let places = order.map(|at| self.places.get(at?).copied().flatten()).collect();
        Self { bytes: self.bytes, places }
    }
}

impl<E: AsRef<[u8]>> FromIterator<Option<E>> for Entries {
    fn from_iter<I: IntoIterator<Item = Option<E>>>(entries: I) -> Self {
        let mut all = Self::default();
        for entry in entries {
            all.places.push(None);
            all.put(all.len() - 1, entry.as_ref().map(AsRef::as_ref));
        }
        all
    }
}

/// Whether both have the same entries for the same keys, wherever these lie.
impl PartialEq for Entries {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}
