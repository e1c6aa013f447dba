//! A catalog that fails, for tests: before a change, or after it took effect and before the answer.

use std::fmt;

use parking_lot::Mutex;

use crate::error::{Error, Result};

/// What happens to one call of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing; reads too.
    None,
    /// The change is not made; a read fails.
    Before,
    /// The change is made, and its answer lost; a read fails.
    After,
    /// The change is made after others had a turn, and answered after they had another.
    Slow,
}

type Plan = Box<dyn FnMut() -> Fault + Send>;

#[derive(Default)]
pub(crate) struct Faults(Mutex<Option<Plan>>);

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faults")
    }
}

impl Faults {
    /// From now on each call asks `plan` what happens to it.
    pub(crate) fn follow(&self, plan: impl FnMut() -> Fault + Send + 'static) {
        *self.0.lock() = Some(Box::new(plan));
    }

    /// These happen to the next calls, one each, and then nothing.
    pub(crate) fn next(&self, faults: &[Fault]) {
        let mut left: Vec<Fault> = faults.iter().rev().copied().collect();
        self.follow(move || left.pop().unwrap_or(Fault::None));
    }

    fn fault(&self) -> Fault {
        self.0.lock().as_mut().map_or(Fault::None, |plan| plan())
    }

    pub(super) async fn changing(&self, change: impl Future<Output = Result<bool>>) -> Result<bool> {
        match self.fault() {
            Fault::None => change.await,
            Fault::Before => Err(lost()),
            Fault::After => change.await.and_then(|_| Err(lost())),
            Fault::Slow => {
                others_turn().await;
                let done = change.await;
                others_turn().await;
                done
            }
        }
    }

    pub(super) fn reading(&self) -> Result<()> {
        match self.fault() {
            Fault::None | Fault::Slow => Ok(()),
            Fault::Before | Fault::After => Err(lost()),
        }
    }
}

async fn others_turn() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

fn lost() -> Error {
    Error::unavailable("the connection to the catalog was lost")
}
