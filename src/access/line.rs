//! A line of the users file: a name and what proves it.
//!
//! ```text
//! # people sign in with a password, services bring a token
//! ada:$argon2id$v=19$m=19456,t=2,p=1$<salt>$<hash>
//! model-server:sha256:<SHA-256 of the token, in hexadecimal>
//! ```
//!
//! A user has at most one password and any number of tokens, a line each. A token must be random, since its digest
//! is quick to compute. Empty lines and those that begin with `#` say nothing.

use std::fmt;
use std::sync::Arc;

use argon2::{Argon2, Params, PasswordHash, PasswordHasher, PasswordVerifier};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

const NAME_BYTES_MAX: usize = 128;

/// Each check of a password takes this much memory while it runs.
const MEMORY_KIB_MAX: u32 = 256 << 10;

/// By what tokens are known.
pub(crate) type TokenDigest = [u8; 32];

/// What proves that somebody is who they say.
#[derive(Debug)]
pub(super) enum Proof {
    Password(Arc<Password>),
    Token(TokenDigest),
}

/// The Argon2 hash of a password.
pub(crate) struct Password {
    text: String,
    hash: PasswordHash,
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Password {
    /// # Errors
    /// Says, behind the name of the line, why this is no hash that can be checked.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if !text.starts_with("$argon2") {
            return Err("neither $argon2id$… nor sha256:…; `fletching user NAME` writes such a line");
        }
        let bad = "a damaged Argon2 hash; write the line anew with `fletching user NAME`";
        let hash = PasswordHash::new(text).map_err(|_| bad)?;
        let params = Params::try_from(&hash).map_err(|_| bad)?;
        if hash.salt.is_none() || hash.hash.is_none() {
            return Err(bad);
        }
        if params.m_cost() > MEMORY_KIB_MAX {
            return Err("a hash that takes more than 256 MiB to check");
        }
        Ok(Self { text: text.to_owned(), hash })
    }

    /// Hashes a password with a salt of its own.
    pub(super) fn of(password: &str) -> Result<Self> {
        let hash: PasswordHash = Argon2::default()
            .hash_password(password.as_bytes())
            .map_err(|error| Error::internal(format!("the password cannot be hashed: {error}")))?;
        Ok(Self { text: hash.to_string(), hash })
    }

    /// Whether this is the password. Slow by intent, and takes memory: see the parameters of the hash.
    pub(crate) fn matches(&self, password: &[u8]) -> bool {
        Argon2::default().verify_password(password, &self.hash).is_ok()
    }

    /// The hash as it stands in the file.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// The user's line in the file.
    pub(super) fn line(&self, name: &str) -> String {
        format!("{name}:{}", self.text)
    }
}

/// By what a token is known.
pub(super) fn digest(token: &[u8]) -> TokenDigest {
    Sha256::digest(token).into()
}

/// The line for a user with this token.
pub(crate) fn of_token(name: &str, token: &str) -> String {
    let digits: String = digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name}:sha256:{digits}")
}

/// A name that a line can begin with, or why it is none.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    let bad = |c: char| c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.starts_with('#') || name.contains(bad) {
        return Err("a user name has 1 to 128 bytes, no colon and no white space, and begins with no #");
    }
    Ok(())
}

/// The name and the proof of a line, or why it has none; what it says is never repeated.
pub(super) fn parse(line: &str) -> Result<(&str, Proof), &'static str> {
    let (name, proof) = line.split_once(':').ok_or("no colon between a name and a hash")?;
    check_name(name)?;
    let proof = match proof.strip_prefix("sha256:") {
        Some(digits) => Proof::Token(parse_digest(digits).ok_or("sha256: takes 64 hexadecimal digits")?),
        None => Proof::Password(Arc::new(Password::parse(proof)?)),
    };
    Ok((name, proof))
}

fn parse_digest(digits: &str) -> Option<TokenDigest> {
    let mut digest = TokenDigest::default();
    if digits.len() != 2 * digest.len() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (place, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[2 * place..2 * place + 2], 16).ok()?;
    }
    Some(digest)
}

/// A line like that of the command, and quick to check.
#[cfg(test)]
pub(crate) fn quick_line(name: &str, password: &str) -> String {
    let params = Params::new(8, 1, 1, None).unwrap();
    let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let hash: PasswordHash = argon2.hash_password(password.as_bytes()).unwrap();
    format!("{name}:{hash}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_proves_what_it_was_made_of() {
        let line = Password::of("pässword with spaces").unwrap().line("ada@example.com");
        let (name, Proof::Password(password)) = parse(&line).unwrap() else { panic!("a password") };
        assert_eq!(name, "ada@example.com");
        assert!(password.matches("pässword with spaces".as_bytes()));
        assert!(!password.matches(b"password with spaces"));
        let line = of_token("service", "flt_x");
        let (name, Proof::Token(token)) = parse(&line).unwrap() else { panic!("a token") };
        assert_eq!((name, token), ("service", digest(b"flt_x")));
    }

    #[test]
    fn what_is_no_line_is_told_without_repeating_it() {
        let digest = "0".repeat(63);
        for (line, expected) in [
            ("hunter2", "no colon"),
            (":hunter2", "a user name has"),
            ("a b:hunter2", "a user name has"),
            ("ada:hunter2", "neither $argon2id$"),
            ("ada:$2y$05$hunter2", "neither $argon2id$"),
            ("ada:$argon2id$hunter2", "damaged"),
            ("ada:$argon2id$v=19$m=19456,t=2,p=1$c2FsdHNhbHRzYWx0", "damaged"),
            (
                "ada:$argon2id$v=19$m=4194304,t=2,p=1$c2FsdHNhbHRzYWx0$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
                "more than 256 MiB",
            ),
            (&format!("ada:sha256:{digest}"), "64 hexadecimal digits"),
            (&format!("ada:sha256:{digest}é"), "64 hexadecimal digits"),
        ] {
            let why = parse(line).unwrap_err();
            assert!(why.contains(expected) && !why.contains("hunter2"), "{line}: {why}");
        }
    }
}
