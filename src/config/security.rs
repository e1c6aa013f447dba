//! Settings of who may connect, and how they prove it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{Given, Why, duration, get, is_loopback};
use crate::error::{Error, Result};

/// Who may connect, and how they prove it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecuritySettings {
    /// Users and the hashes of their passwords and tokens; without one nobody is asked for a password.
    pub users_file: Option<PathBuf>,
    /// What tokens, handles and tickets are sealed with; without one it is drawn anew with every start.
    pub secret_file: Option<PathBuf>,
    /// How long a token holds that a client was given for its password.
    pub token_ttl: Duration,
    /// How long the handle of a prepared statement holds.
    pub handle_ttl: Duration,
    /// How long a ticket holds.
    pub ticket_ttl: Duration,
    /// How long a connection may take until its first call is let in.
    pub authentication_timeout: Duration,
    /// `None`: clients talk in clear.
    pub tls: Option<TlsSettings>,
}

/// Files of PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// The server's certificate, with those between it and its authority.
    pub cert: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// Who signs the certificates of clients; with it, clients without one are refused.
    pub client_ca: Option<PathBuf>,
}

/// The settings as given.
pub(super) struct GivenSecurity {
    pub(super) users_file: Option<Given>,
    pub(super) secret_file: Option<Given>,
    pub(super) token_ttl: Option<Given>,
    pub(super) handle_ttl: Option<Given>,
    pub(super) ticket_ttl: Option<Given>,
    pub(super) authentication_timeout: Option<Given>,
    pub(super) tls_cert: Option<Given>,
    pub(super) tls_key: Option<Given>,
    pub(super) tls_client_ca: Option<Given>,
}

impl GivenSecurity {
    pub(super) fn validate(self, listen: SocketAddr, insecure: bool) -> Result<SecuritySettings> {
        let settings = SecuritySettings {
            users_file: file("users_file", self.users_file)?,
            secret_file: file("secret_file", self.secret_file)?,
            token_ttl: get("token_ttl", self.token_ttl, "7d", life)?,
            handle_ttl: get("handle_ttl", self.handle_ttl, "30d", life)?,
            ticket_ttl: get("ticket_ttl", self.ticket_ttl, "1d", life)?,
            authentication_timeout: get(
                "authentication_timeout",
                self.authentication_timeout,
                "30s",
                duration,
            )?,
            tls: tls(self.tls_cert, self.tls_key, self.tls_client_ca)?,
        };
        if !insecure && !is_loopback(listen.ip()) && !settings.asks_who_connects() {
            return Err(Error::invalid(format!(
                "listen: {listen} can be reached from other machines, and nobody is asked who they are: name a \
                 users_file or a tls_client_ca, or accept that with --insecure"
            )));
        }
        Ok(settings)
    }
}

impl SecuritySettings {
    fn asks_who_connects(&self) -> bool {
        self.users_file.is_some() || self.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())
    }

    /// Whether passwords and tokens can be read by whoever sees the network.
    pub(crate) fn is_readable_on_the_way(&self, listen: SocketAddr) -> bool {
        self.users_file.is_some() && self.tls.is_none() && !is_loopback(listen.ip())
    }
}

fn file(key: &str, given: Option<Given>) -> Result<Option<PathBuf>> {
    given.map(|given| get(key, Some(given), "", named)).transpose()
}

fn named(text: &str) -> Result<PathBuf, Why> {
    if text.is_empty() { Err("an empty path names no file".into()) } else { Ok(PathBuf::from(text)) }
}

fn life(text: &str) -> Result<Duration, Why> {
    match duration(text)? {
        life if life >= Duration::from_secs(1) => Ok(life),
        _ => Err(format!("'{text}' is less than a second, and nobody could use it in time")),
    }
}

fn tls(cert: Option<Given>, key: Option<Given>, client_ca: Option<Given>) -> Result<Option<TlsSettings>> {
    match (file("tls_cert", cert)?, file("tls_key", key)?, file("tls_client_ca", client_ca)?) {
        (Some(cert), Some(key), client_ca) => Ok(Some(TlsSettings { cert, key, client_ca })),
        (None, None, None) => Ok(None),
        (Some(_), None, _) => {
            Err(Error::invalid("tls_key: a certificate is of no use without its key: name both"))
        }
        (None, Some(_), _) => {
            Err(Error::invalid("tls_cert: a key is of no use without its certificate: name both"))
        }
        (None, None, Some(_)) => Err(Error::invalid(
            "tls_client_ca: clients show certificates over TLS only: name tls_cert and tls_key, too",
        )),
    }
}
