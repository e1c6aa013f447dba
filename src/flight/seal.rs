//! Seals: what leaves the house to come back proves that it was made here, for what, and until when it holds.
//!
//! ```text
//! ┌──────────────────────────┬─────────┬────────────────────────────────────┐
//! │ expires: i64, µs, big-e. │ message │ HMAC-SHA256 of what stands before  │
//! └──────────────────────────┴─────────┴────────────────────────────────────┘
//! ```
//!
//! Handles, tickets and tokens are sealed with keys of their own, derived from one secret, so that none passes for
//! another. Sealed is not encrypted: who holds a message can read it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use uuid::Uuid;

use crate::clock::Clock;
use crate::error::{Error, Result};

type HmacSha256 = Hmac<Sha256>;

const EXPIRES_BYTES: usize = size_of::<i64>();
const MAC_BYTES: usize = 32;

/// What stands for 256 random bits takes 43 characters of base64.
const SECRET_BYTES_MIN: usize = 32;

/// What a message is sealed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Naming a prepared statement.
    Handle,
    /// Fetching a result.
    Ticket,
    /// Having signed in.
    Token,
}

impl Purpose {
    /// Never changes its meaning: what is drawn above does, this with it.
    fn label(self) -> &'static [u8] {
        match self {
            Self::Handle => b"fletching seal 1: handle",
            Self::Ticket => b"fletching seal 1: ticket",
            Self::Token => b"fletching seal 1: token",
        }
    }
}

/// What keys are made of. Servers that share it read what any of them sealed.
pub(super) struct Secret(Vec<Vec<u8>>);

impl Secret {
    /// One that dies with this process, and with it all that is sealed with it.
    pub(super) fn random() -> Self {
        let halves = [Uuid::new_v4(), Uuid::new_v4()];
        Self(vec![halves.iter().flat_map(|half| half.into_bytes()).collect()])
    }

    /// The lines of a file, each a secret: the first seals, and what was sealed with any of them is accepted, so
    /// that one can be replaced while servers run.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let bad = |why: String| Error::invalid(format!("secret_file: {} {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| bad(format!("cannot be read: {error}")))?;
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() || lines.iter().any(|line| line.len() < SECRET_BYTES_MIN) {
            return Err(bad(format!(
                "must hold a secret of at least {SECRET_BYTES_MIN} characters, such as `openssl rand -base64 32` gives"
            )));
        }
        Ok(Self(lines.into_iter().map(|line| line.as_bytes().to_vec()).collect()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Why a sealed message is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// It was not sealed here, or not for this purpose, or it has been changed since.
    Forged,
    /// It was sealed here, and its time is over.
    Expired,
}

/// Seals messages for one purpose, and opens what is sealed.
pub(super) struct Seal {
    /// The first seals, all open.
    keys: Vec<HmacSha256>,
    life_us: i64,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").field("life_us", &self.life_us).finish_non_exhaustive()
    }
}

impl Seal {
    /// What it seals holds for `life`.
    pub(super) fn new(secret: &Secret, purpose: Purpose, life: Duration, clock: Arc<dyn Clock>) -> Self {
        let key =
            |secret: &Vec<u8>| keyed(&keyed(secret).chain_update(purpose.label()).finalize().into_bytes());
        let life_us = i64::try_from(life.as_micros()).unwrap_or(i64::MAX);
        Self { keys: secret.0.iter().map(key).collect(), life_us, clock }
    }

    /// Seals the message that `write` appends, of some `len` bytes.
    pub(super) fn close(&self, len: usize, write: impl FnOnce(&mut Vec<u8>)) -> Bytes {
        let mut sealed = Vec::with_capacity(EXPIRES_BYTES + len + MAC_BYTES);
        sealed.extend_from_slice(&self.until_us().to_be_bytes());
        write(&mut sealed);
        let mac = self.digest([&sealed[..]]);
        sealed.extend_from_slice(&mac);
        sealed.into()
    }

    /// The message of what was sealed, and how long it still holds.
    pub(super) fn open<'a>(&self, sealed: &'a [u8]) -> Result<(&'a [u8], Duration), Refused> {
        let (signed, mac) = sealed.split_last_chunk::<MAC_BYTES>().ok_or(Refused::Forged)?;
        let (expires, message) = signed.split_first_chunk::<EXPIRES_BYTES>().ok_or(Refused::Forged)?;
        // Takes the same time wherever the first difference is.
        if !self.keys.iter().any(|key| key.clone().chain_update(signed).verify_slice(mac).is_ok()) {
            return Err(Refused::Forged);
        }
        match i64::from_be_bytes(*expires).saturating_sub(self.clock.now_us()) {
            left_us @ 1.. => Ok((message, Duration::from_micros(left_us.unsigned_abs()))),
            _ => Err(Refused::Expired),
        }
    }

    /// Until when what is sealed now holds, in µs since 1970.
    pub(super) fn until_us(&self) -> i64 {
        self.clock.now_us().saturating_add(self.life_us)
    }

    /// How long what it seals holds.
    pub(super) fn life(&self) -> Duration {
        Duration::from_micros(self.life_us.unsigned_abs())
    }

    /// A digest that only holders of the secret can make.
    pub(super) fn digest<'a>(&self, parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; MAC_BYTES] {
        let mac = self.keys[0].clone();
        parts.into_iter().fold(mac, Mac::chain_update).finalize().into_bytes().into()
    }
}

fn keyed(secret: &[u8]) -> HmacSha256 {
    HmacSha256::new_from_slice(secret).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::clock::ManualClock;

    const HOUR: Duration = Duration::from_secs(3600);

    fn seal(secret: &Secret, purpose: Purpose, clock: &Arc<ManualClock>) -> Seal {
        Seal::new(secret, purpose, HOUR, clock.clone())
    }

    fn closed(seal: &Seal, message: &[u8]) -> Bytes {
        seal.close(message.len(), |bytes| bytes.extend_from_slice(message))
    }

    #[test]
    fn what_was_sealed_opens_until_its_time_is_over() {
        let clock = Arc::new(ManualClock::new(0));
        let seal = seal(&Secret::random(), Purpose::Ticket, &clock);
        for message in [&b""[..], b"m", &[7; 100_000]] {
            clock.set(0);
            let sealed = closed(&seal, message);
            assert_eq!(seal.open(&sealed), Ok((message, HOUR)));
            clock.advance(3_599_999_999);
            assert_eq!(seal.open(&sealed), Ok((message, Duration::from_micros(1))));
            clock.advance(1);
            assert_eq!(seal.open(&sealed), Err(Refused::Expired));
        }
    }

    #[test]
    fn what_was_changed_or_cut_does_not() {
        let seal = seal(&Secret::random(), Purpose::Handle, &Arc::new(ManualClock::new(0)));
        let sealed = closed(&seal, b"SELECT 1");
        for at in 0..sealed.len() {
            let mut changed = sealed.to_vec();
            changed[at] ^= 1;
            assert_eq!(seal.open(&changed), Err(Refused::Forged), "bit at {at}");
            assert_eq!(seal.open(&sealed[..at]), Err(Refused::Forged), "cut at {at}");
        }
        assert_eq!(seal.open(&[sealed.as_ref(), &[0]].concat()), Err(Refused::Forged));
    }

    #[test]
    fn purposes_and_secrets_are_not_interchangeable() {
        let (secret, clock) = (Secret::random(), Arc::new(ManualClock::new(0)));
        let all = [Purpose::Handle, Purpose::Ticket, Purpose::Token];
        for made in all {
            let sealed = closed(&seal(&secret, made, &clock), b"m");
            for asked in all {
                assert_eq!(seal(&secret, asked, &clock).open(&sealed).is_ok(), made == asked);
            }
            assert_eq!(seal(&Secret::random(), made, &clock).open(&sealed), Err(Refused::Forged));
        }
    }

    #[test]
    fn a_secret_is_replaced_while_the_old_one_is_still_read() {
        let (old, new) = ("o".repeat(SECRET_BYTES_MIN), "n".repeat(SECRET_BYTES_MIN));
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: String| {
            std::fs::write(file.path(), text).unwrap();
            Secret::read(file.path())
        };
        let clock = Arc::new(ManualClock::new(0));
        let before = seal(&read(format!("{old}\n")).unwrap(), Purpose::Token, &clock);
        let between = seal(&read(format!("{new}\n\n  {old}\n")).unwrap(), Purpose::Token, &clock);
        let after = seal(&read(new.clone()).unwrap(), Purpose::Token, &clock);
        assert!(between.open(&closed(&before, b"m")).is_ok());
        assert!(after.open(&closed(&between, b"m")).is_ok());
        assert!(after.open(&closed(&before, b"m")).is_err());
        for text in [String::new(), "\n".into(), "short".into(), format!("{new}\nshort")] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with("secret_file: ") && error.contains("at least 32"), "{error}");
            assert!(!error.contains(&new), "{error}");
        }
    }
}
