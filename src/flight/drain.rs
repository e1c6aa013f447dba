//! How the door closes: first to new statements, then to connections, at last on those who do not finish.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::error::{Error, Result};

/// After its last result a client still closes its statement: wait this long for such calls.
const LINGER: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// Everything is served.
    Open,
    /// No new connection and no new statement; what runs goes on.
    Draining,
    /// Connections are told to go away.
    Closing,
    /// Whatever still runs ends with an error.
    Stopped,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    in_flight: usize,
    finished: u64,
}

/// The phase of the door and the calls in flight.
#[derive(Debug)]
pub(super) struct Drain {
    state: watch::Sender<State>,
}

/// A call in flight; dropped when its last byte is gone.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Drain>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.state.send_if_modified(|state| {
            state.in_flight -= 1;
            state.finished += 1;
            state.phase > Phase::Open // before that nobody waits for a call to end
        });
    }
}

impl Drain {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::new(State { phase: Phase::Open, in_flight: 0, finished: 0 }) })
    }

    /// Counts a call in. One that begins new work is refused once the door closes.
    pub(super) fn enter(self: &Arc<Self>, begins_work: bool) -> Result<InFlight> {
        let mut admitted = false;
        self.state.send_if_modified(|state| {
            admitted = state.phase == Phase::Open || (!begins_work && state.phase < Phase::Stopped);
            state.in_flight += usize::from(admitted);
            false // nobody waits for a call to begin
        });
        if admitted { Ok(InFlight(Arc::clone(self))) } else { Err(shutting_down()) }
    }

    /// Closes the door; returns whether everything in flight finished within `timeout`.
    pub(super) async fn drain(&self, timeout: Duration) -> bool {
        let busy = self.state.borrow().in_flight > 0;
        self.enter_phase(Phase::Draining);
        let finished = tokio::time::timeout(timeout, self.quiet(busy)).await.is_ok();
        self.enter_phase(if finished { Phase::Closing } else { Phase::Stopped });
        finished
    }

    /// Resolves when no new connection should be accepted.
    pub(super) async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    /// Resolves when connections should go away.
    pub(super) async fn closing(&self) {
        self.reached(Phase::Closing).await;
    }

    /// Resolves, with the error to end it with, when a running call must end.
    pub(super) async fn stopped(&self) -> Error {
        self.reached(Phase::Stopped).await;
        Error::unavailable("the server shut down before this finished; run it again elsewhere or later")
    }

    async fn quiet(&self, mut linger: bool) {
        let mut state = self.state.subscribe();
        loop {
            // The sender is `self`, so a wait cannot fail.
            let finished =
                state.wait_for(|state| state.in_flight == 0).await.map_or(0, |state| state.finished);
            if !linger {
                return;
            }
            let another = state.wait_for(|state| state.finished != finished);
            linger = tokio::time::timeout(LINGER, another).await.is_ok();
        }
    }

    async fn reached(&self, phase: Phase) {
        let _ = self.state.subscribe().wait_for(|state| state.phase >= phase).await;
    }

    fn enter_phase(&self, phase: Phase) {
        self.state.send_modify(|state| state.phase = phase);
    }
}

fn shutting_down() -> Error {
    Error::unavailable("the server is shutting down; connect to another or retry when it is back")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[tokio::test]
    async fn what_runs_finishes_and_new_work_is_refused() {
        let drain = Drain::new();
        let query = drain.enter(true).unwrap();
        let closing = tokio::spawn({
            let drain = Arc::clone(&drain);
            async move { drain.drain(Duration::from_secs(30)).await }
        });
        drain.draining().await;
        assert_eq!(drain.enter(true).unwrap_err().kind(), ErrorKind::Unavailable);
        let close_statement = drain.enter(false).unwrap();
        drop(query);
        drop(close_statement);
        assert!(closing.await.unwrap());
        drain.closing().await;
    }

    #[tokio::test]
    async fn what_does_not_finish_in_time_is_stopped() {
        let drain = Drain::new();
        let _query = drain.enter(true).unwrap();
        assert!(!drain.drain(Duration::ZERO).await);
        assert_eq!(drain.stopped().await.kind(), ErrorKind::Unavailable);
        assert!(drain.enter(false).is_err());
    }

    #[tokio::test]
    async fn an_idle_door_closes_at_once() {
        assert!(Drain::new().drain(Duration::ZERO).await);
    }
}
