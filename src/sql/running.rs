//! What runs now: every statement from its text to its last row, so that it can be seen, ended and counted.
//!
//! Look-ups that are kept ready take less than a millisecond, and come by the ten thousand in a second. Those of a few
//! keys are counted, but not listed.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use datafusion::arrow::array::{Array, RecordBatch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::Span;
use uuid::Uuid;

use super::admission::{Admission, Slot};
use super::jobs::{Ended, EndedJobs, Job};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::{Kind, Metrics, outcome};
use crate::spans;

/// Ingests of so few rows come as often as look-ups do, and are told of as they are.
const SMALL_WRITE_ROWS_MAX: u64 = 1000;

/// Longer statements are cut where they are shown.
const SQL_BYTES_MAX: usize = 4 << 10;

/// How statements run.
#[derive(Debug, Clone)]
pub(crate) struct RunLimits {
    /// Heavy statements at a time.
    pub(crate) queries_max: usize,
    /// Heavy statements that wait for others to end.
    pub(crate) queries_queued_max: usize,
    /// How long each may wait.
    pub(crate) queue_timeout: Duration,
    /// Look-ups that take so long are told of in the log.
    pub(crate) slow_lookup: Duration,
}

#[cfg(test)]
impl Default for RunLimits {
    fn default() -> Self {
        Self {
            queries_max: 64,
            queries_queued_max: 256,
            queue_timeout: Duration::from_secs(30),
            slow_lookup: Duration::from_millis(100),
        }
    }
}

/// Who a session belongs to, as far as that is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Owner {
    /// Who it is.
    pub(crate) user: Option<Arc<str>>,
    /// Where the calls come from.
    pub(crate) client: Option<SocketAddr>,
}

/// All statements that run.
#[derive(Debug)]
pub(super) struct Running {
    /// By the order in which they came.
    listed: Mutex<BTreeMap<u64, Arc<Run>>>,
    ended: EndedJobs,
    admission: Admission,
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
    slow_lookup_us: i64,
}

/// One statement that runs.
#[derive(Debug)]
pub(super) struct Run {
    /// By which it is cancelled. Of a look-up that is not listed it may be nil.
    pub(super) id: Uuid,
    pub(super) kind: Kind,
    /// Its text, or the beginning of it; never what is bound to it.
    pub(super) sql: Arc<str>,
    pub(super) owner: Arc<Owner>,
    pub(super) started_us: i64,
    /// The tables that it reads, and which snapshots of them.
    reads: Mutex<Vec<(Uuid, i64)>>,
    state: AtomicU8,
    rows: AtomicU64,
    bytes: AtomicU64,
    cancel: Mutex<Option<oneshot::Sender<()>>>,
    is_cancelled: AtomicBool,
    /// What is still to come of a listed one.
    result: Mutex<Weak<Kept>>,
    job: OnceLock<Job>,
}

const PLANNING: u8 = 0;
const QUEUED: u8 = 1;
const RUNNING: u8 = 2;
/// It has ended for who asked, and its work has yet to let go: a plan does so at its next pause.
const ENDING: u8 = 3;

/// The names of the states, by their numbers.
const STATES: [&str; 4] = ["planning", "queued", "running", "ending"];

impl Run {
    pub(super) fn state(&self) -> &'static str {
        STATES[usize::from(self.state.load(Relaxed))]
    }

    /// Says that it reads that snapshot of a table.
    pub(super) fn reads(&self, table: Uuid, snapshot: i64) {
        self.reads.lock().push((table, snapshot));
    }

    /// The snapshots of a table that it reads.
    pub(super) fn read_of(&self, table: Uuid) -> Vec<i64> {
        let reads = self.reads.lock();
        reads.iter().filter(|(read, _)| *read == table).map(|(_, snapshot)| *snapshot).collect()
    }

    /// Says that it is a write that may take long.
    pub(super) fn is_job(&self, job: Job) {
        let _ = self.job.set(job); // which is said once
    }

    pub(super) fn job(&self) -> Option<&Job> {
        self.job.get()
    }

    /// Rows of the result that were taken, or rows that came in.
    pub(super) fn rows(&self) -> u64 {
        self.rows.load(Relaxed)
    }

    /// What those rows take in memory.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    pub(super) fn count(&self, batch: &RecordBatch) {
        self.rows.fetch_add(batch.num_rows() as u64, Relaxed);
        let bytes = batch.columns().iter().map(|column| {
            column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
        });
        self.bytes.fetch_add(bytes.sum::<usize>() as u64, Relaxed);
    }
}

impl Running {
    pub(super) fn new(limits: &RunLimits, metrics: Arc<Metrics>, clock: Arc<dyn Clock>) -> Self {
        Self {
            listed: Mutex::default(),
            ended: EndedJobs::default(),
            admission: Admission::new(limits.queries_max, limits.queries_queued_max, limits.queue_timeout),
            metrics,
            clock,
            slow_lookup_us: i64::try_from(limits.slow_lookup.as_micros()).unwrap_or(i64::MAX),
        }
    }

    /// What runs, in the order in which it came, and for how long, in microseconds.
    pub(super) fn list(&self) -> Vec<(Arc<Run>, i64)> {
        let now_us = self.clock.now_us();
        let listed = self.listed.lock();
        listed.values().map(|run| (Arc::clone(run), now_us.saturating_sub(run.started_us))).collect()
    }

    /// The last jobs that have ended.
    pub(super) fn ended_jobs(&self) -> Vec<Arc<Ended>> {
        self.ended.list(self.clock.now_us())
    }

    /// How many are in each state.
    pub(super) fn count_by_state(&self) -> [(&'static str, usize); 4] {
        let listed = self.listed.lock();
        STATES.map(|state| (state, listed.values().filter(|run| run.state() == state).count()))
    }

    /// Ends what runs under this id; returns whether anything did.
    pub(super) fn cancel(&self, id: Uuid) -> bool {
        let found: Vec<_> = self.listed.lock().values().filter(|run| run.id == id).cloned().collect();
        found.iter().fold(false, |any, run| {
            let cancel = run.cancel.lock().take();
            let heard = cancel.is_some_and(|cancel| cancel.send(()).is_ok());
            run.is_cancelled.store(true, SeqCst);
            let result = run.result.lock().upgrade();
            result.iter().for_each(|result| let_go(result));
            heard || any
        })
    }

    /// Lists a statement that begins.
    pub(super) fn begin(self: &Arc<Self>, kind: Kind, id: Uuid, sql: &str, owner: &Arc<Owner>) -> Watch {
        let (cancel, cancelled) = oneshot::channel();
        let run = Arc::new(self.run(kind, id, bounded(sql), owner, Some(cancel)));
        let mut listed = self.listed.lock();
        let serial = listed.last_key_value().map_or(0, |(last, _)| last + 1);
        listed.insert(serial, Arc::clone(&run));
        drop(listed);
        let listing = Arc::new(Listing { running: Arc::clone(self), serial });
        let listed = Some(Listed { listing, cancelled });
        Watch::new(self, run, listed)
    }

    /// Counts a look-up that begins, and does not list it.
    pub(super) fn begin_unlisted(self: &Arc<Self>, sql: &Arc<str>, owner: &Arc<Owner>) -> Watch {
        let run = self.run(Kind::Lookup, Uuid::nil(), Arc::clone(sql), owner, None);
        Watch::new(self, Arc::new(run), None)
    }

    fn run(
        &self,
        kind: Kind,
        id: Uuid,
        sql: Arc<str>,
        owner: &Arc<Owner>,
        cancel: Option<oneshot::Sender<()>>,
    ) -> Run {
        Run {
            id,
            kind,
            sql,
            owner: Arc::clone(owner),
            started_us: self.clock.now_us(),
            reads: Mutex::default(),
            state: AtomicU8::new(PLANNING),
            rows: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            cancel: Mutex::new(cancel),
            is_cancelled: AtomicBool::new(false),
            result: Mutex::default(),
            job: OnceLock::new(),
        }
    }

    fn over(&self, run: &Arc<Run>, listed: bool, end: End) {
        let ended_us = self.clock.now_us();
        let duration_us = ended_us.saturating_sub(run.started_us);
        if run.job().is_some() {
            let (state, error) = match &end {
                Ok(()) => ("done", None),
                Err((ErrorKind::Cancelled, message)) => ("cancelled", Some(message.clone())),
                Err((_, message)) => ("failed", Some(message.clone())),
            };
            self.ended.keep(Ended { run: Arc::clone(run), ended_us, state, error });
        }
        let (error, message) = match end {
            Ok(()) => (None, None),
            Err((kind, message)) => (Some(kind), Some(message)),
        };
        self.metrics.statement_ended(run.kind, error, duration_us);
        // The level of an event is a constant.
        macro_rules! tell {
            ($level:ident) => {
                tracing::$level!(
                    target: "fletching::query",
                    query_id = listed.then(|| tracing::field::display(run.id)),
                    user = run.owner.user.as_deref(),
                    client = run.owner.client.map(tracing::field::display),
                    kind = run.kind.name(),
                    sql = &*run.sql,
                    duration_ms = duration_us as f64 / 1e3,
                    rows = run.rows(),
                    bytes = listed.then(|| run.bytes()),
                    outcome = outcome(error),
                    error = message,
                    "statement"
                )
            };
        }
        let is_small = run.rows() <= SMALL_WRITE_ROWS_MAX && error.is_none();
        match run.kind {
            Kind::Lookup if duration_us < self.slow_lookup_us => tell!(debug),
            Kind::Ingest if is_small && duration_us < self.slow_lookup_us => tell!(debug),
            _ => tell!(info),
        }
    }
}

/// The text as it is shown.
pub(super) fn bounded(sql: &str) -> Arc<str> {
    let sql = sql.trim();
    match sql.len() {
        0..=SQL_BYTES_MAX => sql.into(),
        _ => format!("{}…", &sql[..sql.floor_char_boundary(SQL_BYTES_MAX)]).into(),
    }
}

/// How it ended.
type End = Result<(), (ErrorKind, String)>;

/// A statement from its beginning to its end: that of its result, or where this is dropped.
#[derive(Debug)]
pub(super) struct Watch {
    running: Arc<Running>,
    pub(super) run: Arc<Run>,
    listed: Option<Listed>,
    span: Span,
    /// `None` until it is known.
    end: Option<End>,
}

/// The part of a statement that is listed.
#[derive(Debug)]
struct Listed {
    listing: Arc<Listing>,
    cancelled: oneshot::Receiver<()>,
}

/// A place in the list, until the last who holds it is gone.
#[derive(Debug)]
struct Listing {
    running: Arc<Running>,
    serial: u64,
}

impl Drop for Listing {
    fn drop(&mut self) {
        self.running.listed.lock().remove(&self.serial);
    }
}

/// What the work of a statement holds until it has let go of everything: its place in the list, and its slot.
#[derive(Debug)]
pub(super) struct Turn {
    _listing: Option<Arc<Listing>>,
    _slot: Option<Slot>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let listed = self.listed.take();
        self.run.state.store(ENDING, Relaxed);
        let gone = || Err((ErrorKind::Cancelled, "whoever asked went away".to_owned()));
        let end = self.end.take().unwrap_or_else(gone);
        let error = end.as_ref().err().map(|(kind, message)| (*kind, message.as_str()));
        spans::statement_ended(&self.span, self.run.rows(), error);
        self.running.over(&self.run, listed.is_some(), end);
    }
}

impl Watch {
    fn new(running: &Arc<Running>, run: Arc<Run>, listed: Option<Listed>) -> Self {
        let span = spans::statement(run.kind, &run.sql, run.owner.user.as_deref());
        Self { running: Arc::clone(running), run, listed, span, end: None }
    }

    fn is(&self, state: u8) {
        self.run.state.store(state, Relaxed);
        spans::statement_is(&self.span, self.run.state());
    }

    /// Waits for a slot, and begins to run.
    ///
    /// # Errors
    /// As [`Admission::slot`], and `Cancelled`.
    pub(super) async fn admitted(&mut self) -> Result<Turn> {
        let running = Arc::clone(&self.running);
        let slot = match running.admission.try_slot() {
            Some(slot) => slot,
            None => {
                self.is(QUEUED);
                self.until_cancelled(running.admission.slot()).await?
            }
        };
        Ok(self.turn(Some(slot)))
    }

    /// Begins to run without a slot.
    pub(super) fn unqueued(&self) -> Turn {
        self.turn(None)
    }

    /// It is planned, and begins to run.
    pub(super) fn runs(&self) {
        self.is(RUNNING);
    }

    fn turn(&self, slot: Option<Slot>) -> Turn {
        self.runs();
        Turn { _listing: self.listed.as_ref().map(|listed| Arc::clone(&listed.listing)), _slot: slot }
    }

    /// Does the work, unless somebody ends the statement.
    pub(super) async fn until_cancelled<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let Some(listed) = &mut self.listed else { return work.await };
        tokio::select! {
            biased;
            Ok(()) = &mut listed.cancelled => Err(cancelled()),
            done = work => done,
        }
    }

    /// It is over, and changed so many rows.
    pub(super) fn changed(mut self, done: Result<u64>) -> Result<u64> {
        if let Ok(rows) = &done {
            self.run.rows.store(*rows, Relaxed);
        }
        self.end = Some(end_of(done.as_ref().err()));
        done
    }

    /// It failed.
    pub(super) fn failed(mut self, error: Error) -> Error {
        self.end = Some(end_of(Some(&error)));
        error
    }

    /// Its result, which it ends with.
    pub(super) fn over(self, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        let (schema, run, is_listed) = (rows.schema(), Arc::clone(&self.run), self.listed.is_some());
        let held = Arc::new(Mutex::new(Some(Held { rows, watch: self })));
        if is_listed {
            *run.result.lock() = Arc::downgrade(&held);
        }
        Box::pin(Watched { schema, run, held, is_over: false })
    }

    /// Rows that come in for it, counted.
    pub(super) fn counting(&self, rows: SendableRecordBatchStream) -> SendableRecordBatchStream {
        let (run, metrics) = (Arc::clone(&self.run), Arc::clone(&self.running.metrics));
        let schema = rows.schema();
        let counted = rows.inspect_ok(move |batch| {
            run.count(batch);
            metrics.rows_received.inc_by(batch.num_rows() as u64);
        });
        Box::pin(RecordBatchStreamAdapter::new(schema, counted))
    }

    /// Counts rows that were written for it.
    pub(super) fn count(&self, rows: usize, bytes: usize) {
        self.run.rows.fetch_add(rows as u64, Relaxed);
        self.run.bytes.fetch_add(bytes as u64, Relaxed);
    }

    fn is_cancelled(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(listed) = &mut self.listed else { return false };
        listed.cancelled.poll_unpin(cx) == Poll::Ready(Ok(()))
    }

    fn passed(&self, batch: &RecordBatch) {
        match self.listed {
            Some(_) => self.run.count(batch),
            None => {
                self.run.rows.fetch_add(batch.num_rows() as u64, Relaxed);
            }
        }
        self.running.metrics.rows_sent.inc_by(batch.num_rows() as u64);
    }
}

fn end_of(error: Option<&Error>) -> End {
    error.map_or(Ok(()), |error| Err((error.kind(), error.to_string())))
}

fn cancelled() -> Error {
    Error::cancelled("the query was cancelled")
}

/// A result that is still to come, and its watch.
struct Held {
    rows: SendableRecordBatchStream,
    watch: Watch,
}

/// `None` when it is over: everything that it holds goes with its end, even if the stream itself is kept.
type Kept = Mutex<Option<Held>>;

/// Lets go of a cancelled result, unless somebody is just taking a batch of it, who then does so.
fn let_go(result: &Kept) {
    let held = result.try_lock().and_then(|mut held| held.take());
    if let Some(mut held) = held {
        held.watch.end = Some(end_of(Some(&cancelled())));
    }
}

/// The stream of a result. A client may keep it without reading on, so who cancels the statement takes the result away.
struct Watched {
    schema: SchemaRef,
    run: Arc<Run>,
    held: Arc<Kept>,
    is_over: bool,
}

impl Stream for Watched {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.is_over {
            return Poll::Ready(None);
        }
        let mut held = this.held.lock();
        let polled = match held.as_mut() {
            None => Poll::Ready(Some(Err(cancelled()))),
            Some(Held { rows, watch }) => match watch.is_cancelled(cx) {
                true => Poll::Ready(Some(Err(cancelled()))),
                false => rows.poll_next_unpin(cx).map(|next| {
                    let next = next?;
                    next.as_ref().iter().for_each(|batch| watch.passed(batch));
                    Some(next.map_err(Error::from))
                }),
            },
        };
        let end = match &polled {
            Poll::Ready(Some(Err(error))) => Some(end_of(Some(error))),
            Poll::Ready(None) => Some(end_of(None)),
            _ => None,
        };
        if let Some(end) = end {
            this.is_over = true;
            if let Some(mut held) = held.take() {
                held.watch.end = Some(end);
            }
        }
        drop(held);
        if this.run.is_cancelled.load(SeqCst) {
            let_go(&this.held); // who cancelled it while a batch was taken could not
        }
        polled.map(|next| next.map(|next| next.map_err(DataFusionError::from)))
    }
}

impl RecordBatchStream for Watched {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
