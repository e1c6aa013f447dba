//! A user name and a password, as clients send them.

use std::fmt;

use arrow_flight::BasicAuth;
use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use prost::Message;

use crate::error::{Error, Result};

/// Clients differ in whether they pad.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Not yet proven to belong together.
pub(super) struct Basic {
    pub(super) user: String,
    pub(super) password: String,
}

impl fmt::Debug for Basic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Basic {
    /// What follows `Basic` in an authorization header.
    pub(super) fn of_header(text: &[u8]) -> Result<Self> {
        let decoded = String::from_utf8(decode(text)?).ok();
        let (user, password) = decoded.as_deref().and_then(|text| text.split_once(':')).ok_or_else(bad)?;
        Ok(Self { user: user.to_owned(), password: password.to_owned() })
    }

    /// The message of a `Handshake`; `None` where it says nothing.
    pub(super) fn of_handshake(message: &[u8]) -> Option<Self> {
        let BasicAuth { username, password } = BasicAuth::decode(message).ok()?;
        (!username.is_empty()).then_some(Self { user: username, password })
    }
}

pub(super) fn decode(text: &[u8]) -> Result<Vec<u8>> {
    BASE64.decode(text).map_err(|_| bad())
}

/// Says nothing of what was sent.
fn bad() -> Error {
    Error::unauthenticated("the credentials are not base64 as a client writes it")
}
