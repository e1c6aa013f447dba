//! Who a call comes from. Every call is asked, before anybody else sees it ([`layer`]); what it answers is a header:
//!
//! 1. `authorization: Basic …`, a name and a password of the users file. The answer brings a bearer token, so that the
//!    password, which takes long to check, need not come again. Clients send it with `Handshake`, or with any call.
//! 2. `authorization: Bearer …`, such a token, or one that the users file knows.
//! 3. Nothing, where signing in is a matter of the client's certificate, or of nobody.

mod basic;
mod certificate;
mod layer;
mod verify;

use std::fmt;
use std::net::SocketAddr;
use std::str;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::http::{HeaderMap, HeaderValue};

use self::basic::Basic;
use self::verify::Verifier;
use super::listener::ConnectionId;
use super::seal::{Refused, Seal};
use crate::access::{Known, Password, Users};
use crate::clock::Clock;
use crate::error::{Error, Result};

pub(super) use self::layer::AuthLayer;

/// How clients of the older protocol send the token that `Handshake` gave them.
const OLDER_TOKEN_HEADER: &str = "auth-token-bin";

/// Where a call comes from. The layer gives it to every call as an extension.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) connection: ConnectionId,
    /// `None` where nobody is asked.
    pub(super) user: Option<Arc<str>>,
}

/// By what a call is admitted.
#[derive(Debug)]
enum Identity {
    /// Where nobody is asked.
    Anybody,
    User(Arc<str>),
    /// A user whose token has lived half its life, and a fresh one.
    Renewed(Arc<str>, Token),
    /// A password must be checked first.
    Unproven(Basic),
    /// No credentials came.
    Silent,
}

/// What proves a user, by the settings.
#[derive(Debug)]
pub(super) enum Method {
    /// Nobody is asked.
    Open,
    /// The client's certificate, which TLS has checked.
    Certificate,
    /// Passwords and tokens of the users file.
    Users(Users),
}

/// A bearer token.
#[derive(Clone)]
pub(super) struct Token(String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl Token {
    /// As clients send it back.
    pub(super) fn header(&self) -> HeaderValue {
        let mut header =
            HeaderValue::try_from(format!("Bearer {}", self.0)).expect("base64 may stand in a header");
        header.set_sensitive(true);
        header
    }

    /// As clients of the older protocol take it.
    pub(super) fn into_bytes(self) -> Bytes {
        self.0.into()
    }
}

/// Knows who a call comes from.
pub(super) struct Authenticator {
    method: Method,
    tokens: Seal,
    verifier: Verifier,
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authenticator").field("method", &self.method).finish_non_exhaustive()
    }
}

/// What a token carries: whose it is, and a mark of the password that it was given for. A new password, like a
/// removed user, ends it.
///
/// ```text
/// ┌────────────────────────────────┬──────────────────┐
/// │ mark of the password: [u8; 8]  │ user name, UTF-8 │   sealed, and as base64 without padding
/// └────────────────────────────────┴──────────────────┘
/// ```
type Mark = [u8; 8];

impl Authenticator {
    pub(super) fn new(method: Method, tokens: Seal, clock: Arc<dyn Clock>) -> Self {
        Self { method, tokens, verifier: Verifier::new(clock) }
    }

    /// Whom the headers of a call name, as far as that can be told at once.
    fn identify(&self, headers: &HeaderMap) -> Result<Identity> {
        let Method::Users(users) = &self.method else { return Ok(Identity::Anybody) };
        if let Some(given) = headers.get(AUTHORIZATION) {
            return match scheme(given) {
                Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer") => self.bearer(users, token),
                Some((scheme, text)) if scheme.eq_ignore_ascii_case(b"basic") => {
                    Basic::of_header(text).map(Identity::Unproven)
                }
                _ => Err(Error::unauthenticated("the authorization header is neither Basic nor Bearer")),
            };
        }
        match headers.get(OLDER_TOKEN_HEADER) {
            Some(given) => self.bearer(users, &basic::decode(given.as_bytes())?),
            None => Ok(Identity::Silent),
        }
    }

    fn bearer(&self, users: &Users, token: &[u8]) -> Result<Identity> {
        let known = users.current();
        let sealed = BASE64_URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
        match self.tokens.open(&sealed) {
            Ok((message, left)) => {
                let (user, password) = self.holder(&known, message).ok_or_else(unknown_token)?;
                if left < self.tokens.life() / 2 {
                    return Ok(Identity::Renewed(Arc::clone(user), self.token(user, password)));
                }
                Ok(Identity::User(Arc::clone(user)))
            }
            Err(Refused::Expired) => Err(Error::unauthenticated(
                "the token has expired: sign in again with user name and password",
            )),
            Err(Refused::Forged) => {
                let user = known.user_of_token(token).ok_or_else(unknown_token)?;
                Ok(Identity::User(Arc::clone(user)))
            }
        }
    }

    /// Whose token it is, if it still is.
    fn holder<'a>(&self, known: &'a Known, message: &[u8]) -> Option<(&'a Arc<str>, &'a Arc<Password>)> {
        let (mark, name) = message.split_first_chunk::<{ size_of::<Mark>() }>()?;
        let (user, password) = known.password(str::from_utf8(name).ok()?)?;
        // Both were sealed here: nobody can learn anything from the time that this takes.
        (self.mark(password) == *mark).then_some((user, password))
    }

    fn mark(&self, password: &Password) -> Mark {
        let digest = self.tokens.digest([b"mark of the password ", password.as_bytes()]);
        *digest.first_chunk().expect("a digest is longer")
    }

    /// A fresh token.
    fn token(&self, user: &str, password: &Password) -> Token {
        let mark = self.mark(password);
        let sealed = self.tokens.close(mark.len() + user.len(), |message| {
            message.extend_from_slice(&mark);
            message.extend_from_slice(user.as_bytes());
        });
        Token(BASE64_URL_SAFE_NO_PAD.encode(sealed))
    }

    /// The user whose name and password these are, and a token for the next calls.
    async fn verify(&self, basic: Basic, client: SocketAddr) -> Result<(Arc<str>, Token)> {
        let Method::Users(users) = &self.method else {
            return Err(Error::internal("a password where nobody is asked for one"));
        };
        let known = users.current();
        let (user, password) = match known.password(&basic.user) {
            Some((user, password)) => (Some(user), password),
            None => (None, known.decoy()),
        };
        // The name is in it, its length before it: what is remembered of one name must not answer for another.
        let (length, name) = (basic.user.len().to_be_bytes(), basic.user.as_bytes());
        let given = basic.password.as_bytes();
        let digest = self.tokens.digest([b"password ", &length[..], name, password.as_bytes(), b" ", given]);
        let name = user.map(|user| &**user);
        let right = self.verifier.check(digest, name, password, basic.password, client).await?;
        match user.filter(|_| right) {
            Some(user) => Ok((Arc::clone(user), self.token(user, password))),
            None => Err(Error::unauthenticated("wrong user name or password")),
        }
    }

    /// The user who greets with name and password in the message of `Handshake`, as clients of the older protocol do;
    /// the token, which they send back as `auth-token-bin`.
    pub(super) async fn greet(&self, message: &[u8], client: SocketAddr) -> Result<Token> {
        let basic = Basic::of_handshake(message).ok_or_else(nameless)?;
        Ok(self.verify(basic, client).await?.1)
    }
}

/// Reads bytes as each of the ways to say a name and a password; for fuzzers.
pub(super) fn read_greetings(bytes: &[u8]) {
    let _ = (Basic::of_header(bytes), Basic::of_handshake(bytes));
}

/// The scheme of an authorization header, and what follows it.
fn scheme(header: &HeaderValue) -> Option<(&[u8], &[u8])> {
    let bytes = header.as_bytes();
    let space = bytes.iter().position(|byte| *byte == b' ')?;
    Some((&bytes[..space], bytes[space + 1..].trim_ascii()))
}

fn unknown_token() -> Error {
    Error::unauthenticated("the token is not valid here, or no longer: sign in again")
}

fn nameless() -> Error {
    Error::unauthenticated("sign in: this server asks for a user name and a password, or a bearer token")
}

#[cfg(test)]
mod tests;
