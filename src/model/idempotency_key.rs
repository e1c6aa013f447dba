//! What a client calls a write, so that sending it again does not write it twice.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};

/// A name of one write to one table: 1 to 128 ASCII letters, digits and `-_.:/+=`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// Longest key, in bytes.
    pub const BYTES_MAX: usize = 128;

    /// The key that a client gave.
    ///
    /// # Errors
    /// `Invalid` where it is empty, too long, or has other characters.
    pub fn parse(text: &str) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=".contains(&byte);
        if text.is_empty() || text.len() > Self::BYTES_MAX || !text.bytes().all(allowed) {
            return Err(Error::invalid(format!(
                "an idempotency key is 1 to {} letters, digits and - _ . : / + =, such as a UUID, not {:?}",
                Self::BYTES_MAX,
                text.chars().take(Self::BYTES_MAX).collect::<String>()
            )));
        }
        Ok(Self(text.into()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn length_and_characters_are_bounded() {
        let longest = "k".repeat(IdempotencyKey::BYTES_MAX);
        for good in ["a", "550e8400-e29b-41d4-a716-446655440000", "jobs/2026-01-31T00:00:00+01:00", &longest]
        {
            assert_eq!(IdempotencyKey::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "a b", "a#1", "ключ", "a'b", "a\n", &format!("{longest}k")] {
            let error = IdempotencyKey::parse(bad).unwrap_err();
            assert!(error.message().contains("1 to 128 letters"), "{error}");
        }
    }
}
