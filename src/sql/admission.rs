//! Who may run: as many heavy statements as there are slots, and the others in the order in which they came.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ddl::RESERVED_SCHEMAS;
use crate::error::{Error, Result};

/// Functions that make much of little.
const MULTIPLIERS: [&str; 7] =
    ["array_repeat", "array_resize", "generate_series", "lpad", "range", "repeat", "rpad"];

/// Slots and the queue for them.
#[derive(Debug)]
pub(super) struct Admission {
    slots: Arc<Semaphore>,
    queries_max: usize,
    queued: AtomicUsize,
    queued_max: usize,
    timeout: Duration,
}

/// Leave to run, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

/// A place in the queue; whoever leaves it, in whatever way, makes room.
struct Queued<'a>(&'a AtomicUsize);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Admission {
    pub(super) fn new(queries_max: usize, queued_max: usize, timeout: Duration) -> Self {
        let queries_max = queries_max.min(Semaphore::MAX_PERMITS);
        let slots = Arc::new(Semaphore::new(queries_max));
        Self { slots, queries_max, queued: AtomicUsize::new(0), queued_max, timeout }
    }

    /// A slot, if there is one and nobody waits for it.
    pub(super) fn try_slot(&self) -> Option<Slot> {
        Arc::clone(&self.slots).try_acquire_owned().ok().map(Slot)
    }

    /// A slot as soon as it is this caller's turn.
    ///
    /// # Errors
    /// `Exhausted` where the queue is full, `Unavailable` after too long a wait.
    pub(super) async fn slot(&self) -> Result<Slot> {
        if let Some(slot) = self.try_slot() {
            return Ok(slot);
        }
        let before = self.queued.fetch_add(1, Relaxed);
        let _queued = Queued(&self.queued);
        let running = self.queries_max;
        if before >= self.queued_max {
            return Err(Error::exhausted(format!(
                "{running} queries run and {before} wait, and queries_queued_max allows no more: retry later"
            )));
        }
        match tokio::time::timeout(self.timeout, Arc::clone(&self.slots).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Slot(permit)),
            Ok(Err(_)) => Err(Error::internal("the queue of queries is closed")),
            Err(_) => Err(Error::unavailable(format!(
                "the query waited {} for one of the {running} that run to end: retry later, or raise queries_max",
                humantime::format_duration(self.timeout)
            ))),
        }
    }
}

/// Whether the plan reads nothing but constants and what the store says of itself: such a statement needs no slot, so
/// that one can see what runs, and end it, when there is none. Constants alone can be made into much, too: by joins, and
/// by functions.
pub(super) fn is_light(plan: &LogicalPlan, default_schema: &str) -> Result<bool> {
    let (mut light, mut of_store, mut makes_much) = (true, false, false);
    plan.apply_with_subqueries(|node| {
        light = match node {
            LogicalPlan::TableScan(scan) => {
                of_store = RESERVED_SCHEMAS.contains(&scan.table_name.schema().unwrap_or(default_schema));
                of_store
            }
            LogicalPlan::Join(_) => {
                makes_much = true;
                true
            }
            LogicalPlan::RecursiveQuery(_) | LogicalPlan::Extension(_) | LogicalPlan::Unnest(_) => false,
            _ => true,
        };
        node.apply_expressions(|expr| {
            expr.apply(|expr| {
                if let Expr::ScalarFunction(function) = expr {
                    makes_much |= !function.args.is_empty();
                    light &= !MULTIPLIERS.contains(&function.name());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        Ok(if light { TreeNodeRecursion::Continue } else { TreeNodeRecursion::Stop })
    })?;
    Ok(light && (of_store || !makes_much))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::error::ErrorKind;

    fn admission(queries_max: usize, queued_max: usize) -> Arc<Admission> {
        Arc::new(Admission::new(queries_max, queued_max, Duration::from_secs(60)))
    }

    /// Returns when so many wait.
    async fn until_queued(admission: &Admission, count: usize) {
        while admission.queued.load(Relaxed) != count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_came_first_goes_first() {
        let admission = admission(1, 10);
        let running = admission.slot().await.unwrap();
        let (told, mut order) = tokio::sync::mpsc::unbounded_channel();
        for place in 0..3 {
            let (queue, told) = (Arc::clone(&admission), told.clone());
            tokio::spawn(async move {
                let _slot = queue.slot().await.unwrap();
                told.send(place).unwrap();
            });
            until_queued(&admission, place + 1).await;
        }
        drop(running);
        for place in 0..3 {
            assert_eq!(order.recv().await, Some(place));
        }
        until_queued(&admission, 0).await;
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_who_leaves_makes_room() {
        let admission = admission(1, 1);
        let running = admission.slot().await.unwrap();
        let queue = Arc::clone(&admission);
        let waiting = tokio::spawn(async move { queue.slot().await });
        until_queued(&admission, 1).await;
        let refused = admission.slot().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Exhausted);
        assert!(refused.message().contains("queries_queued_max"), "{refused}");
        waiting.abort();
        until_queued(&admission, 0).await;
        drop(running);
        admission.slot().await.unwrap();
    }

    #[tokio::test]
    async fn a_wait_ends() {
        let admission = Admission::new(1, 1, Duration::ZERO);
        let _running = admission.slot().await.unwrap();
        assert_eq!(admission.slot().await.unwrap_err().kind(), ErrorKind::Unavailable);
    }
}
