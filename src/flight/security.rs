//! What the settings say about security, read and checked before anything is served.

use std::sync::Arc;
use std::time::Duration;

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
        let tokens = Seal::new(&secret, Purpose::Token, settings.token_ttl, Arc::clone(clock));
        let seals = Seals::new(&secret, settings.handle_ttl, settings.ticket_ttl, clock);
        let auth = Authenticator::new(method, tokens, Arc::clone(clock));
        Ok(Self { auth: Arc::new(auth), seals: Arc::new(seals), tls })
    }
}

impl Seals {
    fn new(secret: &Secret, handle_ttl: Duration, ticket_ttl: Duration, clock: &Arc<dyn Clock>) -> Self {
        let seal = |purpose, life| Seal::new(secret, purpose, life, Arc::clone(clock));
        Self { handles: seal(Purpose::Handle, handle_ttl), tickets: seal(Purpose::Ticket, ticket_ttl) }
    }

    /// Seals of nobody else, that hold for a day of this clock: for tests and fuzzers.
    pub(super) fn for_a_day(clock: &Arc<dyn Clock>) -> Self {
        let day = Duration::from_secs(86_400);
        Self::new(&Secret::random(), day, day, clock)
    }

    #[cfg(test)]
    pub(super) fn for_test() -> (Self, Arc<crate::clock::ManualClock>) {
        let clock = Arc::new(crate::clock::ManualClock::new(0));
        (Self::for_a_day(&(clock.clone() as _)), clock)
    }
}
