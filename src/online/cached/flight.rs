//! One read of the store that several look-ups wait for.
//!
//! Whoever waits drives it, so it goes on when the look-up that began it is abandoned, and ends when nobody waits any
//! more; nothing runs detached. The list of keys being read holds it weakly for that reason.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::oneshot;

use super::kept::Kept;
use crate::error::{Error, Result};
use crate::model::{EntityKey, FeatureGroup};
use crate::online::changes::GroupBits;
use crate::online::{Entries, OnlineStore};

pub(super) type FlightId = u64;
/// One entry per key of the flight.
type Answer = Result<Arc<Entries>, Arc<Error>>;
pub(super) type Flight = Shared<BoxFuture<'static, Answer>>;
pub(super) type WeakFlight = WeakShared<BoxFuture<'static, Answer>>;

/// The keys that a flight reads. They are on the list of those being read; however the flight ends, they leave it.
pub(super) struct Orders {
    pub(super) kept: Arc<Kept>,
    pub(super) group: GroupBits,
    pub(super) flight: FlightId,
    pub(super) begun_us: i64,
    pub(super) keys: Vec<EntityKey>,
}

impl Orders {
    fn land(mut self, entries: &Entries) {
        let keys = std::mem::take(&mut self.keys);
        for (key, entry) in keys.iter().zip(entries.iter()) {
            let asked = self.kept.asked(self.group, key.as_bytes());
            self.kept.land(asked, self.flight, Some((entry, self.begun_us)));
        }
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        for key in &self.keys {
            self.kept.land(self.kept.asked(self.group, key.as_bytes()), self.flight, None);
        }
    }
}

/// A flight that begins when it is first waited for, with the orders it has been given by then: others may join it
/// while its list of keys still grows.
pub(super) fn depart(
    store: Arc<dyn OnlineStore>,
    group: Arc<FeatureGroup>,
    orders: oneshot::Receiver<Orders>,
) -> Flight {
    let read = async move {
        let abandoned = |_| Arc::new(Error::internal("a read of the online store was given no keys"));
        let orders = orders.await.map_err(abandoned)?;
        let found = store.get(&group, &orders.keys, Some(Duration::ZERO)).await.map_err(Arc::new)?;
        let entries = found.checked(orders.keys.len()).map_err(Arc::new)?;
        orders.land(&entries);
        Ok(Arc::new(entries))
    };
    read.boxed().shared()
}

/// A flight's error, as each of those who waited gets it: its kind, its message and its cause.
pub(super) fn error_of(shared: &Arc<Error>) -> Error {
    let error = Error::new(shared.kind(), shared.message());
    match shared.source() {
        Some(_) => error.with_source(SharedCause(Arc::clone(shared))),
        None => error,
    }
}

/// The cause of an error that several hold.
#[derive(Debug)]
struct SharedCause(Arc<Error>);

impl fmt::Display for SharedCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.source().map_or(Ok(()), |cause| write!(f, "{cause}"))
    }
}

impl StdError for SharedCause {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source().and_then(StdError::source)
    }
}
