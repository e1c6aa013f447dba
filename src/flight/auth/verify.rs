//! Checks passwords: few at a time, because each takes time and memory by intent, and each once in a while only.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::{Semaphore, TryAcquireError};

use crate::access::Password;
use crate::clock::Clock;
use crate::error::{Error, Result};

/// How long a checked password need not be checked again: clients may send it with every call.
const RIGHT_FOR: Duration = Duration::from_secs(600);
/// The same for a wrong one: a client that tries it again and again must not cost more than one that does not.
const WRONG_FOR: Duration = Duration::from_secs(10);
const REMEMBERED_MAX: u64 = 4096;

/// Who comes when so many wait already is sent away.
const WAITING_MAX: usize = 128;

/// Of a password, the hash it was checked against, and the server's secret.
pub(super) type Digest = [u8; 32];

pub(super) struct Verifier {
    clock: Arc<dyn Clock>,
    /// Whether it was right, and until when that is remembered.
    remembered: Cache<Digest, (bool, i64)>,
    waiting: Semaphore,
    checking: Arc<Semaphore>,
}

impl Verifier {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        // The others go on serving.
        let at_a_time = available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        Self {
            clock,
            remembered: Cache::new(REMEMBERED_MAX),
            waiting: Semaphore::new(WAITING_MAX),
            checking: Arc::new(Semaphore::new(at_a_time)),
        }
    }

    /// Whether `given` is the password of `user`, who may be nobody; `digest` is of both.
    ///
    /// # Errors
    /// `Exhausted` when too many wait to be checked.
    pub(super) async fn check(
        &self,
        digest: Digest,
        user: Option<&str>,
        password: &Arc<Password>,
        given: String,
        client: SocketAddr,
    ) -> Result<bool> {
        if let Some(right) = self.recall(&digest) {
            return Ok(right);
        }
        let _waiting = self.waiting.try_acquire().map_err(|_: TryAcquireError| {
            Error::exhausted("too many clients sign in at the same time: try again in a few seconds")
        })?;
        let gone = |_| Error::internal("passwords are no longer checked");
        let turn = Arc::clone(&self.checking).acquire_owned().await.map_err(gone)?;
        // Many calls of one client come together, and the first of them may have been answered meanwhile.
        if let Some(right) = self.recall(&digest) {
            return Ok(right);
        }
        let (password, remembered) = (Arc::clone(password), self.remembered.clone());
        let clock = Arc::clone(&self.clock);
        let checked = tokio::task::spawn_blocking(move || {
            let right = password.matches(given.as_bytes());
            let valid = if right { RIGHT_FOR } else { WRONG_FOR };
            let valid_us = i64::try_from(valid.as_micros()).unwrap_or(i64::MAX);
            // Also where nobody waits for the answer any more, and before the next one has their turn.
            remembered.insert(digest, (right, clock.now_us().saturating_add(valid_us)));
            drop(turn);
            right
        });
        let right = checked.await.map_err(|error| Error::internal("a check panicked").with_source(error))?;
        // Of who is not known not even the name: it may be a password in the wrong place.
        match (right, user) {
            (true, Some(user)) => tracing::info!(user, %client, "signed in"),
            (false, Some(user)) => tracing::warn!(user, %client, "wrong password"),
            (_, None) => tracing::warn!(%client, "wrong user name"),
        }
        Ok(right)
    }

    fn recall(&self, digest: &Digest) -> Option<bool> {
        let (right, until_us) = self.remembered.get(digest)?;
        (self.clock.now_us() < until_us).then_some(right)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;

    use futures::future::join_all;

    use crate::access::{Users, quick_line};
    use crate::clock::ManualClock;
    use crate::error::ErrorKind;

    const DIGEST: Digest = [7; 32];

    /// Ada's password, which is "lovelace".
    fn stage() -> (Verifier, Arc<Password>, Arc<ManualClock>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), quick_line("ada", "lovelace")).unwrap();
        let clock = Arc::new(ManualClock::new(0));
        let known = Users::open(file.path(), clock.clone()).unwrap().current();
        let password = Arc::clone(known.password("ada").unwrap().1);
        (Verifier::new(clock.clone()), password, clock)
    }

    fn client() -> SocketAddr {
        ([127, 0, 0, 1], 1).into()
    }

    #[tokio::test]
    async fn a_password_is_checked_once_in_a_while() {
        let (verifier, password, clock) = stage();
        let check = async |given: &str| {
            verifier.check(DIGEST, None, &password, given.to_owned(), client()).await.unwrap()
        };
        assert!(check("lovelace").await);
        // The digest says that it is the same, and so nobody looks.
        assert!(check("byron").await);
        clock.advance(600_000_000);
        assert!(!check("byron").await);
        assert!(!check("lovelace").await);
        clock.advance(10_000_000);
        assert!(check("lovelace").await);
    }

    #[tokio::test]
    async fn who_comes_when_too_many_wait_is_sent_away() {
        let (verifier, password, _) = stage();
        let turns = verifier.checking.available_permits();
        let held = verifier.checking.acquire_many(turns as u32).await.unwrap();
        let checks = (0..WAITING_MAX + 10).map(|i| {
            let digest = [[i as u8; 16], (i as u128).to_be_bytes()].concat().try_into().unwrap();
            verifier.check(digest, None, &password, "wrong".to_owned(), client())
        });
        let all = async {
            tokio::task::yield_now().await;
            drop(held);
        };
        let (answers, ()) = tokio::join!(join_all(checks), all);
        let (answered, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        assert!(answered.into_iter().all(|answer| !answer.unwrap()));
        assert_eq!(refused.len(), 10);
        assert!(refused.into_iter().all(|answer| answer.unwrap_err().kind() == ErrorKind::Exhausted));
        assert_eq!(verifier.checking.available_permits(), turns);
        assert_eq!(verifier.waiting.available_permits(), WAITING_MAX);
    }

    #[tokio::test]
    async fn calls_that_come_together_are_checked_once() {
        let (verifier, password, _) = stage();
        let turns = verifier.checking.available_permits();
        let held = verifier.checking.acquire_many(turns as u32 - 1).await.unwrap();
        let given = (0..20).map(|i| if i == 0 { "lovelace" } else { "byron" });
        let answers =
            join_all(given.map(|given| verifier.check(DIGEST, None, &password, given.to_owned(), client())))
                .await;
        drop(held);
        assert!(answers.into_iter().all(Result::unwrap));
    }
}
