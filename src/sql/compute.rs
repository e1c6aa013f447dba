//! Where heavy statements run: on threads of their own, so that a plan that keeps its cores for seconds keeps nobody
//! waiting at the door, neither a look-up nor who wants to see what runs, and to end it.

use std::future::Future;
use std::num::NonZero;
use std::panic::AssertUnwindSafe;
use std::thread::available_parallelism;
use std::time::Duration;

use datafusion::arrow::array::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use futures::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::stack::STACK_BYTES;

const THREADS_PER_CORE: usize = 4;
/// Batches that a plan may be ahead of its reader.
const BATCHES_AHEAD: usize = 2;
/// How long work that was told to end may take to.
const END_MAX: Duration = Duration::from_secs(2);

/// The threads of all plans.
#[derive(Debug)]
pub(super) struct Compute {
    handle: Handle,
    /// `None` once it is stopped.
    threads: Mutex<Option<Runtime>>,
}

impl Drop for Compute {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.get_mut().take() {
            threads.shutdown_background();
        }
    }
}

impl Compute {
    /// More threads than cores: a plan may keep a thread for seconds, and the system shares the cores among threads.
    ///
    /// # Errors
    /// `Unavailable` where the system gives none.
    pub(super) fn start() -> Result<Self> {
        let cores = available_parallelism().map_or(1, NonZero::get);
        let mut threads = Builder::new_multi_thread();
        let threads = { threads.worker_threads(cores * THREADS_PER_CORE) }
            .thread_name("fletching-plan")
            .thread_stack_size(STACK_BYTES)
            .enable_all()
            .build()
            .map_err(|error| Error::unavailable(format!("cannot start threads for queries: {error}")))?;
        Ok(Self { handle: threads.handle().clone(), threads: Mutex::new(Some(threads)) })
    }

    /// Ends all work, and returns when it has let go of what it held, or is too slow to.
    pub(super) async fn stop(&self) {
        let threads = self.threads.lock().take();
        let Some(threads) = threads else { return };
        // A wait for threads; one that panics has nothing to tell here.
        let _ = tokio::task::spawn_blocking(move || threads.shutdown_timeout(END_MAX)).await;
    }

    /// Does the work, which is told to end when this is dropped.
    ///
    /// # Errors
    /// Those of the work; `Internal` where it panics, and `Unavailable` once this is stopped.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let mut task = JoinSet::new();
        task.spawn_on(work, &self.handle);
        match task.join_next().await {
            Some(Ok(done)) => done,
            Some(Err(failed)) if failed.is_panic() => Err(unforeseen()),
            _ => Err(Error::unavailable("the server is shutting down; connect to another or retry later")),
        }
    }

    /// Takes the rows as they come, a little ahead of who reads them, until the stream is dropped; `held` lives as long
    /// as that work.
    pub(super) fn rows(
        &self,
        mut rows: SendableRecordBatchStream,
        held: impl Send + 'static,
    ) -> SendableRecordBatchStream {
        let mut ahead = RecordBatchReceiverStreamBuilder::new(rows.schema(), BATCHES_AHEAD);
        let reader = ahead.tx();
        let work = async move {
            let _held = held;
            // Batches, or at last why there are no more.
            while let Some(next) =
                AssertUnwindSafe(rows.next()).catch_unwind().await.unwrap_or_else(|_| panicked())
            {
                let is_last = next.is_err();
                if reader.send(next).await.is_err() || is_last {
                    break; // or nobody reads any more
                }
            }
            Ok(())
        };
        ahead.spawn_on(work, &self.handle);
        ahead.build()
    }
}

fn panicked() -> Option<Result<RecordBatch, DataFusionError>> {
    Some(Err(unforeseen().into()))
}

fn unforeseen() -> Error {
    Error::internal("the statement failed in a way that nobody foresaw: see the log")
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    use crate::error::ErrorKind;
    use datafusion::arrow::array::{ArrayRef, Int64Array};
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn work_that_keeps_its_thread_keeps_nobody_else_waiting() {
        let compute = Compute::start().unwrap();
        let (begun, has_begun) = oneshot::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let mut busy = Box::pin(compute.run(async move {
            begun.send(()).unwrap();
            released.recv().unwrap(); // blocks the thread, as a join may that has much to do
            Ok(7)
        }));
        // This test has one thread, which the work would block if it ran here.
        tokio::select! {
            _ = &mut busy => panic!("it ended before it was let go"),
            begun = has_begun => begun.unwrap(),
        }
        release.send(()).unwrap();
        assert_eq!(busy.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_what_comes_after_the_end_is_refused() {
        let compute = Compute::start().unwrap();
        let panicked = compute.run::<()>(async { panic!("on purpose") }).await;
        assert_eq!(panicked.unwrap_err().kind(), ErrorKind::Internal);
        let columns: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let batch = RecordBatch::try_from_iter([("n", columns)]).unwrap();
        let schema = batch.schema();
        let rows = futures::stream::iter(0..)
            .map(move |n| if n == 0 { Ok(batch.clone()) } else { panic!("on purpose") });
        let mut rows = compute.rows(Box::pin(RecordBatchStreamAdapter::new(schema, rows)), ());
        assert!(rows.next().await.unwrap().is_ok());
        let panicked = Error::from(rows.next().await.unwrap().unwrap_err());
        assert_eq!(panicked.kind(), ErrorKind::Internal);
        assert!(rows.next().await.is_none());
        compute.stop().await;
        let refused = compute.run(async { Ok(()) }).await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
    }

    #[tokio::test]
    async fn rows_come_in_order_and_no_further_than_they_are_read() {
        let compute = Compute::start().unwrap();
        let (taken, mut counted) = tokio::sync::mpsc::unbounded_channel();
        let batch = |n: i64| {
            let column: ArrayRef = Arc::new(Int64Array::from(vec![n]));
            RecordBatch::try_from_iter([("n", column)]).unwrap()
        };
        let batches = futures::stream::iter(0..).map(move |n| {
            taken.send(n).unwrap();
            Ok(batch(n))
        });
        let rows = Box::pin(RecordBatchStreamAdapter::new(batch(0).schema(), batches));
        let (held, let_go) = oneshot::channel::<()>();
        let mut rows = compute.rows(rows, held);
        for n in 0..10 {
            assert_eq!(rows.next().await.unwrap().unwrap(), batch(n));
        }
        drop(rows);
        assert!(let_go.await.is_err(), "what it held is gone");
        let mut last = 0;
        while let Some(n) = counted.recv().await {
            last = n;
        }
        assert!(last <= 9 + BATCHES_AHEAD as i64 + 1, "{last}");
    }
}
