//! Names in Redis, byte by byte.
//!
//! ```text
//! f <group, 21 characters> <entity key>   →   entry
//! fletching:snapshot:<group's id>         →   snapshot id in decimal
//! fletching:snapshot:<group's id>{<n>}    →   the same, once on each node of a cluster
//! ```
//!
//! The 21 characters are base64url of the group's id without the six bits that are the same in every UUID of its
//! version, 122 bits from the high end, then four zeros:
//!
//! ```text
//! bit of the id   0 … 47   48 … 51   52 … 63   64 65     66 … 127
//!                 kept     version   kept      variant   kept
//! ```
//!
//! So a key of one BIGINT takes 30 bytes, which Redis keeps in an allocation of 32. There is no hash tag in it: the
//! entities of a group spread over the slots of a cluster. All entries share their first letter, which is what client
//! tracking asks for, and no letter means anything to the pattern of a SCAN.

use bytes::Bytes;
use uuid::Uuid;

use crate::online::changes::{ChangedKey, GroupBits};

/// Length of what stands before the entity key.
pub(super) const PREFIX: usize = 22;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// What the keys of all entries begin with.
pub(super) const LETTER: [u8; 1] = [b'f'];

/// What the keys of a group's entries begin with.
pub(super) fn prefix(group: Uuid) -> [u8; PREFIX] {
    let bits = GroupBits::from(group).bits() << 4;
    let mut prefix = [LETTER[0]; PREFIX];
    for (i, letter) in prefix[1..].iter_mut().enumerate() {
        *letter = ALPHABET[(bits >> (120 - 6 * i)) as usize & 63];
    }
    prefix
}

/// The entry that a key in Redis is for; `None` for keys of other things.
pub(super) fn changed(stored: &Bytes) -> Option<ChangedKey> {
    let (prefix, entity) = stored.split_first_chunk::<PREFIX>()?;
    let mut bits = 0u128;
    for letter in prefix.strip_prefix(&LETTER)? {
        bits = bits << 6 | ALPHABET.iter().position(|known| known == letter)? as u128;
    }
    let is_entry = !entity.is_empty() && bits & 0xf == 0;
    is_entry.then(|| ChangedKey { group: GroupBits::new(bits >> 4), key: stored.slice_ref(entity) })
}

/// Where the applied snapshot of a group is noted: on a single server, or on the node of a cluster that has this slot.
pub(super) fn snapshot(group: Uuid, slot: Option<u16>) -> String {
    format!("fletching:snapshot:{group}{}", slot.map(tag_of).unwrap_or_default())
}

/// A hash tag that puts a key into this slot.
fn tag_of(wanted: u16) -> String {
    let mut tags = (0u32..).map(|n| format!("{{{n}}}"));
    tags.find(|tag| slot(tag.as_bytes()) == wanted).unwrap_or_default()
}

/// Keys of entries, one after the other in one buffer.
pub(super) struct StoredKeys {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl StoredKeys {
    pub(super) fn new<'a>(group: Uuid, entities: impl ExactSizeIterator<Item = &'a [u8]>) -> Self {
        let prefix = prefix(group);
        let mut keys = Self {
            bytes: Vec::with_capacity(entities.len() * (PREFIX + 8)),
            ends: Vec::with_capacity(entities.len()),
        };
        for entity in entities {
            keys.push(&[&prefix, entity]);
        }
        keys
    }

    /// Keys as they stand in Redis.
    pub(super) fn of<'a>(stored: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut keys = Self { bytes: Vec::new(), ends: Vec::new() };
        stored.into_iter().for_each(|key| keys.push(&[key]));
        keys
    }

    fn push(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
        self.ends.push(self.bytes.len());
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn get(&self, index: usize) -> &[u8] {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.bytes[start..self.ends[index]]
    }
}

/// The slot of a cluster that keeps `key`: CRC-16/XMODEM of its hash tag, or of all of it, modulo 16384.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&b| b == b'{').and_then(|open| {
        let length = key[open + 1..].iter().position(|&b| b == b'}').filter(|length| *length > 0)?;
        Some(&key[open + 1..open + 1 + length])
    });
    tag.unwrap_or(key).iter().fold(0u16, |crc, &byte| crc << 8 ^ CRC[usize::from((crc >> 8) as u8 ^ byte)])
        % SLOTS as u16
}

/// How many slots a cluster has.
pub(super) const SLOTS: usize = 16384;

const CRC: [u16; 256] = {
    let mut table = [0u16; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = ((byte as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_as_drawn() {
        let shown = |id: u128| String::from_utf8(prefix(Uuid::from_u128(id)).to_vec()).unwrap();
        assert_eq!(shown(0), "fAAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(shown(u128::MAX), "f____________________w");
        assert_eq!(shown(1 << 127), "fgAAAAAAAAAAAAAAAAAAAA");
        assert_eq!(shown(1), "fAAAAAAAAAAAAAAAAAAAAQ");
        // Version and variant make no difference, their neighbours do.
        for bit in 0..128 {
            let left_out = (76..80).contains(&bit) || (62..64).contains(&bit);
            assert_eq!(shown(1 << bit) == shown(0), left_out, "bit {bit}");
        }
    }

    #[test]
    fn keys_read_back() {
        let group = Uuid::from_u128(0x0192_1234_5678_7abc_8def_0123_4567_89ab);
        let keys = StoredKeys::new(group, [b"12345678".as_slice(), b"x"].into_iter());
        assert_eq!((keys.len(), keys.get(0).len()), (2, 30));
        let entity = |key: &[u8]| changed(&Bytes::copy_from_slice(key));
        let expected = |key: &[u8]| ChangedKey { group: group.into(), key: Bytes::copy_from_slice(key) };
        assert_eq!(entity(keys.get(0)), Some(expected(b"12345678")));
        assert_eq!(entity(keys.get(1)), Some(expected(b"x")));
        for other in
            [b"f".as_slice(), &prefix(group), snapshot(group, None).as_bytes(), b"g1234567890123456789012"]
        {
            assert_eq!(entity(other), None);
        }
    }

    /// The examples of the cluster's specification, and its rules for hash tags.
    #[test]
    fn slots_are_those_of_redis() {
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo"), 12182);
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_ne!(slot(b"foo{}{bar}"), slot(b"bar"));
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_eq!(slot(b"foo{bar}{zap}"), slot(b"bar"));
        for wanted in [0, 5461, 16383] {
            assert_eq!(slot(snapshot(Uuid::nil(), Some(wanted)).as_bytes()), wanted);
        }
    }
}
