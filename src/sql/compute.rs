//! Where heavy statements run: on threads of their own, so that a plan that keeps its cores for seconds keeps nobody
//! waiting at the door, neither a look-up nor who wants to see what runs, and to end it.

use std::future::Future;
use std::time::Duration;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchReceiverStreamBuilder;
use futures::StreamExt;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::JoinSet;

use crate::error::{Error, Result};

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
    /// As many threads as there are cores.
    ///
    /// # Errors
    /// `Unavailable` where the system gives none.
    pub(super) fn start() -> Result<Self> {
        let threads = Builder::new_multi_thread().thread_name("fletching-plan").enable_all().build();
        let threads = threads
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
            Some(Err(failed)) if failed.is_panic() => {
                Err(Error::internal("the statement failed in a way that nobody foresaw: see the log"))
            }
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
            while let Some(batch) = rows.next().await {
                if reader.send(batch).await.is_err() {
                    break; // nobody reads any more
                }
            }
            Ok(())
        };
        ahead.spawn_on(work, &self.handle);
        ahead.build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::Arc;

    use crate::error::ErrorKind;
    use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch};
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
