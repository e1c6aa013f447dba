//! The queries that stream right now, so that one can be cancelled by name.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use uuid::Uuid;

/// Queries by the id that their ticket carries. A ticket may be fetched more than once, even at the same time.
#[derive(Debug, Default)]
pub(super) struct Running {
    fetches: Mutex<HashMap<Uuid, Vec<Cancellable>>>,
}

/// The serial number of a fetch, and how to stop it.
type Cancellable = (u64, oneshot::Sender<()>);

/// One fetch of a query's result; dropped when it ends.
#[derive(Debug)]
pub(super) struct Fetch {
    running: Arc<Running>,
    query: Uuid,
    serial: u64,
}

impl Drop for Fetch {
    fn drop(&mut self) {
        let mut fetches = self.running.fetches.lock();
        if let Some(of_query) = fetches.get_mut(&self.query) {
            of_query.retain(|(serial, _)| *serial != self.serial);
            if of_query.is_empty() {
                fetches.remove(&self.query);
            }
        }
    }
}

impl Running {
    /// Enters a fetch; the receiver hears of its cancellation.
    pub(super) fn enter(self: &Arc<Self>, query: Uuid) -> (Fetch, oneshot::Receiver<()>) {
        let (cancel, cancelled) = oneshot::channel();
        let mut fetches = self.fetches.lock();
        let of_query = fetches.entry(query).or_default();
        let serial = of_query.last().map_or(0, |(serial, _)| serial + 1);
        of_query.push((serial, cancel));
        (Fetch { running: Arc::clone(self), query, serial }, cancelled)
    }

    /// Cancels every fetch of the query; returns whether there was one.
    pub(super) fn cancel(&self, query: Uuid) -> bool {
        let of_query = self.fetches.lock().remove(&query).unwrap_or_default();
        of_query.into_iter().fold(false, |any, (_, cancel)| cancel.send(()).is_ok() || any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_runs_is_cancelled_and_all_of_it() {
        let running = Arc::new(Running::default());
        let (query, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let (first, mut first_cancelled) = running.enter(query);
        let (_second, mut second_cancelled) = running.enter(query);
        let (_other, mut other_cancelled) = running.enter(other);
        drop(first);
        assert!(running.cancel(query));
        assert_eq!(second_cancelled.try_recv(), Ok(()));
        assert!(first_cancelled.try_recv().is_err());
        assert!(other_cancelled.try_recv().is_err());
        assert!(!running.cancel(query), "nothing runs any more");
    }

    #[test]
    fn nothing_is_left_behind() {
        let running = Arc::new(Running::default());
        drop(running.enter(Uuid::from_u128(1)));
        assert!(running.fetches.lock().is_empty());
    }
}
