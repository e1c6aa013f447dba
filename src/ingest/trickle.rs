//! Small writes into feature groups, many at a time.
//!
//! 1. A write that is small ([`Few`]) is conformed by its caller, and waits in a queue.
//! 2. Whoever finds the queue empty begins a round, which takes all that waits by the time the round before is through: the
//!    more writers there are, the more writes share what follows.
//! 3. A round looks at each table once, stamps the rows, and logs them by one transaction ([`crate::offline`], `log`).
//!    They are durable then, and in every query of this server.
//! 4. It brings them online, while the next round logs, and answers its writers.
//! 5. [`Ingest::fold_due`] puts them into snapshots, by how many there are and how old.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{RecordBatch, UInt32Array};
use datafusion::arrow::compute::{concat_batches, take_record_batch};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use uuid::Uuid;

use super::few::{Append, Few, bytes_of};
use super::stamp::stamp;
use super::{Conform, Ingest};
use crate::error::{Error, Result};
use crate::model::{FeatureGroup, IdempotencyKey, TableName};
use crate::offline::{LogExtent, Logged, LoggedWrite, OfflineTable};
use crate::registry::Object;

/// So much of a table is worth a snapshot, however young.
const FOLD_ROWS: usize = 100_000;
const FOLD_BYTES: usize = 32 << 20;
/// Idempotency keys lie in the snapshot's summary, which all later metadata files repeat.
const FOLD_KEYS: usize = 2000;
/// So many times that, and writers wait for the fold.
const FOLDS_BEHIND_MAX: usize = 4;

/// Files of logged rows that were merged with others may still be read that long: tickets name them.
const SUPERSEDED_AGE_US: i64 = 24 * 60 * 60 * 1_000_000;

/// How often a write is tried under a definition that changes each time.
const DEFINITIONS_TRIED_MAX: usize = 8;
const GROUPS_KNOWN_MAX: u64 = 4096;

/// What all small writes share.
#[derive(Debug)]
pub(super) struct Trickle {
    queue: Mutex<Vec<Write>>,
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Held for reading by rounds, from the log to the online store: see [`Ingest::rounds_served`].
    serving: Arc<tokio::sync::RwLock<()>>,
    /// Groups as the last round that wrote to them found them.
    known: Cache<TableName, (Arc<FeatureGroup>, OfflineTable)>,
    /// Groups whose logged rows the online store did not take.
    unserved: Mutex<HashSet<Uuid>>,
    /// Told when something should be folded before its time.
    wanted: Notify,
}

impl Default for Trickle {
    fn default() -> Self {
        Self {
            queue: Mutex::default(),
            turn: Arc::default(),
            serving: Arc::default(),
            known: Cache::new(GROUPS_KNOWN_MAX),
            unserved: Mutex::default(),
            wanted: Notify::new(),
        }
    }
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    /// The rows that were given.
    pub(crate) rows: u64,
    /// Those that it, or an earlier write with its key, has added.
    pub(crate) written: u64,
}

/// One write that waits for its round.
#[derive(Debug)]
struct Write {
    group: Arc<FeatureGroup>,
    table: OfflineTable,
    rows: RecordBatch,
    key: Option<IdempotencyKey>,
    /// Whether the group must be as it was when the rows were conformed; else they came before the change.
    is_exact: bool,
    done: oneshot::Sender<Result<Outcome>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Rows(u64),
    /// The group is not what the write took it for: conform the rows again.
    Stale,
}

impl Write {
    fn answer(self, outcome: Result<Outcome>) {
        let _ = self.done.send(outcome); // who asked may have gone
    }
}

impl Ingest {
    /// Appends few rows to a feature group that was written to before; `Err` gives the rows back where that is not so.
    pub(crate) async fn append_few(
        self: &Arc<Self>,
        name: &TableName,
        rows: SendableRecordBatchStream,
        key: Option<&IdempotencyKey>,
    ) -> Result<Result<Appended, SendableRecordBatchStream>> {
        if !self.offline.has_log() || !self.trickle.known.contains_key(name) {
            return Ok(Err(rows));
        }
        let rows = match Few::of(rows).await? {
            Few::Rows(rows) => rows,
            many => return Ok(Err(many.into_stream())),
        };
        let write = Append { bytes: bytes_of(&rows), rows, key: key.cloned() };
        match self.append_few_each(name, std::slice::from_ref(&write)).await.pop() {
            Some(appended) => appended.map(Ok),
            None => Ok(Err(Few::Rows(write.rows).into_stream())),
        }
    }

    /// Makes writes of few rows each into a feature group that was written to before, in their order. There are fewer
    /// outcomes than writes where one fails, whose error is the last, or where the next is not for this: it has many rows,
    /// or its group has to be found first.
    pub(crate) async fn append_few_each(
        self: &Arc<Self>,
        name: &TableName,
        writes: &[Append],
    ) -> Vec<Result<Appended>> {
        let few = match self.offline.has_log() {
            true => writes.iter().take_while(|write| write.is_few()).count(),
            false => 0,
        };
        let mut appended = Vec::with_capacity(few);
        for _ in 0..DEFINITIONS_TRIED_MAX {
            let left = &writes[appended.len()..few];
            if left.is_empty() {
                break;
            }
            let Some((group, table)) = self.trickle.known.get(name) else { break };
            let (outcomes, unfit) = self.log_writes(&group, &table, left, true).await;
            let unfit_has_key = left.get(outcomes.len()).is_some_and(|write| write.key.is_some());
            let mut outcomes = left.iter().zip(outcomes).peekable();
            while let Some((write, Ok(Outcome::Rows(written)))) =
                outcomes.next_if(|(_, outcome)| matches!(outcome, Ok(Outcome::Rows(_))))
            {
                appended.push(Ok(Appended { rows: write.rows.num_rows() as u64, written }));
            }
            match (outcomes.next(), unfit) {
                (Some((_, Err(error))), _) => {
                    appended.push(Err(error));
                    break;
                }
                // The round has put down what the group is now. Those behind it were not made either, or it is not for us
                // to make it once they were.
                (Some((_, Ok(_))), _)
                    if outcomes
                        .any(|(_, outcome)| !matches!(outcome, Ok(Outcome::Stale | Outcome::Rows(0)))) =>
                {
                    appended.push(Err(Error::conflict(format!(
                        "the definition of '{name}' changed while rows were written into it: write them again"
                    ))));
                    break;
                }
                (Some(_), _) | (None, None) => {}
                (None, Some(unfit)) => {
                    let refused = match self.is_now(name, &group).await {
                        Ok(false) => continue, // they may fit what it is by now
                        // They may have fitted what it was: whoever looks for their group looks for the key first.
                        Ok(true) if unfit_has_key => break,
                        Ok(true) => unfit,
                        Err(error) => error,
                    };
                    appended.push(Err(refused));
                    break;
                }
            }
        }
        appended
    }

    /// Whether the group is still as it was known; if it is not, what it is now is known then.
    async fn is_now(&self, name: &TableName, known: &Arc<FeatureGroup>) -> Result<bool> {
        Ok(self.writable(name).await?.is_some_and(|(group, _)| group == *known))
    }

    /// Appends to a feature group by the log where the rows are few and there is a log; `Err` gives them back.
    pub(super) async fn append_logged(
        self: &Arc<Self>,
        group: &Arc<FeatureGroup>,
        table: &OfflineTable,
        rows: SendableRecordBatchStream,
        key: Option<&IdempotencyKey>,
    ) -> Result<Result<u64, SendableRecordBatchStream>> {
        if !self.offline.has_log() {
            return Ok(Err(rows));
        }
        match Few::of(rows).await? {
            Few::Rows(rows) => {
                let write = Append { bytes: bytes_of(&rows), rows, key: key.cloned() };
                let (mut outcomes, unfit) =
                    self.log_writes(group, table, std::slice::from_ref(&write), false).await;
                match (outcomes.pop(), unfit) {
                    (Some(Ok(Outcome::Rows(count))), _) => Ok(Ok(count)),
                    (Some(Err(error)), _) | (None, Some(error)) => Err(error),
                    (Some(Ok(Outcome::Stale)) | None, _) => {
                        Err(Error::internal("a write of any definition was refused for its own"))
                    }
                }
            }
            many => Ok(Err(many.into_stream())),
        }
    }

    /// Makes the writes in one round, in their order, up to the first whose rows do not fit the group, and why they do not.
    async fn log_writes(
        self: &Arc<Self>,
        group: &Arc<FeatureGroup>,
        table: &OfflineTable,
        writes: &[Append],
        is_exact: bool,
    ) -> (Vec<Result<Outcome>>, Option<Error>) {
        let (mut queued, mut answers) = (Vec::with_capacity(writes.len()), Vec::with_capacity(writes.len()));
        let mut conforming: Option<(SchemaRef, Conform)> = None;
        let mut unfit = None;
        for Append { rows, key, .. } in writes {
            let rows = match conformed(group, rows, &mut conforming) {
                Ok(rows) => rows,
                Err(error) => {
                    unfit = Some(error);
                    break;
                }
            };
            let (done, answer) = oneshot::channel();
            let (group, table, key) = (Arc::clone(group), table.clone(), key.clone());
            let write = Write { group, table, rows, key, is_exact, done };
            match write.rows.num_rows() {
                0 => write.answer(Ok(Outcome::Rows(0))),
                _ => queued.push(write),
            }
            answers.push(answer);
        }
        self.queue(queued);
        let mut outcomes = Vec::with_capacity(writes.len());
        for answer in answers {
            let unanswered = |_| Err(Error::internal("a round of writes did not end: see the log"));
            outcomes.push(answer.await.unwrap_or_else(unanswered));
        }
        (outcomes, unfit)
    }

    /// Has the writes made, in the round that is to come.
    fn queue(self: &Arc<Self>, writes: Vec<Write>) {
        let is_first = {
            let mut queue = self.trickle.queue.lock();
            let was_empty = queue.is_empty();
            queue.extend(writes);
            was_empty && !queue.is_empty()
        };
        if is_first {
            // Not the caller's, who may go away: it is for all that wait.
            tokio::spawn(Arc::clone(self).round());
        }
    }

    /// Writes all that waits.
    async fn round(self: Arc<Self>) {
        let turn = Arc::clone(&self.trickle.turn).lock_owned().await;
        let writes = std::mem::take(&mut *self.trickle.queue.lock());
        let mut tables: HashMap<TableName, Vec<Write>> = HashMap::new();
        for write in writes {
            tables.entry(write.group.name.clone()).or_default().push(write);
        }
        let (mut accepted, mut again) = (Vec::new(), Vec::new());
        for (name, writes) in tables {
            accepted.extend(self.accept(&name, writes, &mut again).await);
        }
        let rows = accepted.iter().map(|round| round.logged.clone()).collect();
        let _serving = Arc::clone(&self.trickle.serving).read_owned().await;
        if let Err(error) = self.offline.log(rows).await {
            accepted.into_iter().for_each(|round| refuse(round.writes, &error));
            refuse(again, &error);
            return;
        }
        self.queue(again);
        drop(turn);
        for round in accepted {
            self.finish(round).await;
        }
    }

    /// Sees which writes into one table can be made now, and answers the others.
    async fn accept(&self, name: &TableName, writes: Vec<Write>, again: &mut Vec<Write>) -> Vec<Accepted> {
        // Before the table is looked at: what is folded in between is then in what it says.
        let logged: Vec<Option<u64>> = writes
            .iter()
            .map(|write| self.offline.rows_logged_with(write.group.id, write.key.as_ref()?.as_str()))
            .collect();
        let now = match self.writable(name).await {
            Ok(now) => now,
            Err(error) => {
                refuse(writes, &error);
                return Vec::new();
            }
        };
        let mut keys: HashSet<IdempotencyKey> = HashSet::new();
        let mut fit = Vec::with_capacity(writes.len());
        for (write, logged) in writes.into_iter().zip(logged) {
            let is_exact = write.is_exact;
            let Some((group, table)) = now.as_ref().filter(|(group, _)| group.id == write.group.id) else {
                write.answer(if is_exact { Ok(Outcome::Stale) } else { Err(replaced(name)) });
                continue;
            };
            let key = write.key.as_ref();
            if let Some(rows) = logged.or_else(|| table.rows_written_with(key?.as_str())) {
                write.answer(Ok(Outcome::Rows(rows)));
            } else if is_exact && write.group != *group {
                write.answer(Ok(Outcome::Stale));
            } else if key.is_some_and(|key| !keys.insert(key.clone())) {
                again.push(write); // the same write twice: the second finds the first logged
            } else {
                fit.push((write, Arc::clone(group), table.snapshot_property(super::INGESTED_AT)));
            }
        }
        let Some((_, group, committed)) = fit.first() else { return Vec::new() };
        self.stamps.at_least(group.id, self.offline.logged(group.id).latest_us);
        // In one go, so that no other write of the group lies between them.
        let first_us = self.stamps.next_of(group.id, *committed, fit.len());
        let mut by_schema: Vec<Accepted> = Vec::new();
        for ((write, group, _), ingested_at_us) in fit.into_iter().zip(first_us..) {
            match by_schema.iter_mut().find(|round| round.takes(&write)) {
                Some(round) => round.add(write, ingested_at_us),
                None => by_schema.push(Accepted::new(write, group, ingested_at_us)),
            }
        }
        by_schema.into_iter().filter_map(Accepted::concatenated).collect()
    }

    /// The group of that name as it is now, which the log has room for; `None` where there is none.
    async fn writable(&self, name: &TableName) -> Result<Option<(Arc<FeatureGroup>, OfflineTable)>> {
        let object = self.registry.object(name).await?;
        let Some(Object::FeatureGroup(group, table)) = object else {
            self.trickle.known.invalidate(name);
            return Ok(None);
        };
        let extent = self.offline.logged(group.id);
        if is_large(&extent, FOLDS_BEHIND_MAX) {
            self.commit_logged(group.id, name).await?; // and who catches up serves it
        } else if is_large(&extent, 1) {
            self.trickle.wanted.notify_one();
        }
        self.trickle.known.insert(name.clone(), (Arc::clone(&group), table.clone()));
        Ok(Some((group, table)))
    }

    /// Brings logged rows online, and answers who wrote them.
    async fn finish(&self, round: Accepted) {
        let group = &round.group;
        let served = match group.history_schema() == round.schema {
            true if group.online => self.online.write(group, &round.logged.rows).await,
            true => Ok(()),
            false => Err(Error::conflict("the group changed while rows were written into it")),
        };
        if let Err(error) = served {
            tracing::warn!(group = %group.name, %error, "online store is behind until it answers");
            self.trickle.unserved.lock().insert(group.id);
            self.trickle.wanted.notify_one();
        }
        for write in round.writes {
            let rows = write.rows.num_rows() as u64;
            write.answer(Ok(Outcome::Rows(rows)));
        }
    }

    /// Waits until the rounds that have logged something have brought it online.
    pub(super) async fn rounds_served(&self) {
        drop(self.trickle.serving.write().await);
    }

    /// Waits until something should be folded before its time.
    pub(crate) async fn fold_wanted(&self) {
        self.trickle.wanted.notified().await;
    }

    /// Puts logged rows into snapshots: of tables of which much is logged, or for longer than `age`, or that the online
    /// store has not taken. What does not succeed is told of in the log, and stays there. Returns how many tables have
    /// rows that could not be folded.
    pub(crate) async fn fold_due(&self, age: Duration) -> usize {
        let age_us = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
        let cutoff_us = self.clock.now_us().saturating_sub(age_us);
        let unserved = std::mem::take(&mut *self.trickle.unserved.lock());
        let superseded_us = self.clock.now_us().saturating_sub(SUPERSEDED_AGE_US);
        self.offline.delete_superseded(None, superseded_us).await;
        let mut failed = 0;
        for (id, name, extent) in self.offline.tables_logged() {
            let is_old = extent.oldest_us.is_some_and(|oldest_us| oldest_us <= cutoff_us);
            let is_due = is_old || is_large(&extent, 1) || unserved.contains(&id);
            if !is_due {
                continue;
            }
            let folded = match unserved.contains(&id) {
                true => self.fold(id, &name).await,
                false => self.commit_logged(id, &name).await.map(|_| ()), // who catches up notes it
            };
            if let Err(error) = folded {
                tracing::warn!(table = %name, %error, "logged rows are not in a snapshot yet; retrying");
                failed += 1;
            }
        }
        failed
    }

    /// Puts what is logged of a table, or of all, into snapshots. Returns whether there was something.
    ///
    /// # Errors
    /// Those of a commit; the rows stay in the log then.
    pub(crate) async fn checkpoint(&self, name: Option<&TableName>) -> Result<bool> {
        let mut folded = false;
        for (id, logged, _) in self.offline.tables_logged() {
            if name.is_none_or(|name| logged == *name) {
                self.fold(id, &logged).await?;
                folded = true;
            }
        }
        Ok(folded)
    }

    async fn fold(&self, table: Uuid, name: &TableName) -> Result<()> {
        if let Some(table) = self.commit_logged(table, name).await? {
            Box::pin(self.serve(table)).await;
        }
        Ok(())
    }

    async fn commit_logged(&self, table: Uuid, name: &TableName) -> Result<Option<OfflineTable>> {
        let lock = self.folds.of(table);
        let _one_at_a_time = lock.lock().await;
        // Its future is large, and those that await it lie in others.
        Box::pin(self.offline.fold(table, name)).await
    }
}

/// Writes of one round into one table, under one schema.
struct Accepted {
    /// As it is now.
    group: Arc<FeatureGroup>,
    /// As the rows have it, system columns included.
    schema: SchemaRef,
    writes: Vec<Write>,
    batches: Vec<RecordBatch>,
    logged: Logged,
}

impl Accepted {
    fn new(write: Write, group: Arc<FeatureGroup>, ingested_at_us: i64) -> Self {
        let schema = write.group.history_schema();
        let logged = Logged {
            number: 0,
            table_id: group.id,
            name: group.name.clone(),
            schema_id: write.table.iceberg_schema().schema_id(),
            rows: RecordBatch::new_empty(Arc::clone(&schema)),
            writes: Vec::new(),
            ingested_at_us,
        };
        let mut round = Self { group, schema, writes: Vec::new(), batches: Vec::new(), logged };
        round.add(write, ingested_at_us);
        round
    }

    fn takes(&self, write: &Write) -> bool {
        self.logged.schema_id == write.table.iceberg_schema().schema_id()
    }

    fn add(&mut self, write: Write, ingested_at_us: i64) {
        match stamp(&write.rows, &self.schema, ingested_at_us, &mut 0) {
            Ok(rows) => {
                self.logged.writes.push(LoggedWrite { rows: rows.num_rows(), key: write.key.clone() });
                self.logged.ingested_at_us = ingested_at_us;
                self.batches.push(rows);
                self.writes.push(write);
            }
            Err(error) => write.answer(Err(error)),
        }
    }

    /// With its rows as one batch; `None` where that fails, or there are none.
    fn concatenated(mut self) -> Option<Self> {
        let batches = std::mem::take(&mut self.batches);
        let rows = match batches.as_slice() {
            // Concatenated it stays what it was, and may be a part of a message or of a larger batch: this is to be kept.
            [only] => take_record_batch(only, &UInt32Array::from_iter_values(0..only.num_rows() as u32)),
            several => concat_batches(&self.schema, several),
        };
        match rows {
            Ok(rows) => {
                self.logged.rows = rows;
                (!self.writes.is_empty()).then_some(self)
            }
            Err(error) => {
                refuse(self.writes, &error.into());
                None
            }
        }
    }
}

/// The rows as the group has them; `conforming` is how that is done for rows of the schema of those before.
fn conformed(
    group: &FeatureGroup,
    rows: &RecordBatch,
    conforming: &mut Option<(SchemaRef, Conform)>,
) -> Result<RecordBatch> {
    let conform = match conforming {
        Some((schema, conform)) if *schema == rows.schema() => conform,
        other => {
            let conform = Conform::to_group(group, rows.schema_ref())?;
            &other.insert((rows.schema(), conform)).1
        }
    };
    conform.batch(rows)
}

fn is_large(extent: &LogExtent, times: usize) -> bool {
    extent.rows >= FOLD_ROWS * times || extent.bytes >= FOLD_BYTES * times || extent.keys >= FOLD_KEYS * times
}

fn refuse(writes: Vec<Write>, error: &Error) {
    for write in writes {
        write.answer(Err(Error::new(error.kind(), error.message())));
    }
}

fn replaced(name: &TableName) -> Error {
    Error::conflict(format!("table '{name}' was dropped or replaced meanwhile"))
}
