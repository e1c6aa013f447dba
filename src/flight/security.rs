//! What the settings say about security, read and checked before anything is served.

use std::sync::Arc;

use super::auth::{Authenticator, Method};
use super::seal::{Purpose, Seal, Secret};
use super::tls::Tls;
use crate::access::Users;
use crate::clock::Clock;
use crate::config::SecuritySettings;
use crate::error::Result;

/// Seals of what clients keep for the server.
#[derive(Debug)]
pub(super) struct Seals {
    pub(super) handles: Seal,
    pub(super) tickets: Seal,
}

/// How clients prove who they are, and how the door knows what it gave out itself.
#[derive(Debug)]
pub(crate) struct Security {
    pub(super) auth: Arc<Authenticator>,
    pub(super) seals: Arc<Seals>,
    pub(super) tls: Option<Tls>,
}

impl Security {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// `Invalid`, in one line that names the setting.
    pub(crate) fn load(settings: &SecuritySettings, clock: &Arc<dyn Clock>) -> Result<Self> {
        let secret = settings.secret_file.as_deref().map_or_else(|| Ok(Secret::random()), Secret::read)?;
        let tls = settings.tls.as_ref().map(Tls::load).transpose()?;
        let method = match &settings.users_file {
            Some(file) => Method::Users(Users::open(file, Arc::clone(clock))?),
            None if settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some()) => Method::Certificate,
            None => Method::Open,
        };
        let seal = |purpose, life| Seal::new(&secret, purpose, life, Arc::clone(clock));
        let tokens = seal(Purpose::Token, settings.token_ttl);
        let seals = Seals {
            handles: seal(Purpose::Handle, settings.handle_ttl),
            tickets: seal(Purpose::Ticket, settings.ticket_ttl),
        };
        let auth = Authenticator::new(method, tokens, Arc::clone(clock));
        Ok(Self { auth: Arc::new(auth), seals: Arc::new(seals), tls })
    }
}

#[cfg(test)]
impl Seals {
    /// Seals that hold for a day of this clock.
    pub(super) fn for_test() -> (Self, Arc<crate::clock::ManualClock>) {
        let clock = Arc::new(crate::clock::ManualClock::new(0));
        let (secret, day) = (Secret::random(), std::time::Duration::from_secs(86_400));
        let seal = |purpose| Seal::new(&secret, purpose, day, clock.clone());
        (Self { handles: seal(Purpose::Handle), tickets: seal(Purpose::Ticket) }, clock)
    }
}
