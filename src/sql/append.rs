//! A stream of writes into one table, each of which is one by itself: all of it or nothing, and acknowledged by itself.

use std::collections::VecDeque;
use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

use super::bulk::{IfExists, IfNotExists, IngestTarget, as_many};
use super::jobs::{Job, JobKind};
use super::running::{Turn, Watch};
use super::session::{Session, table_name};
use super::statement::name_of_table;
use crate::error::{Error, Result};
use crate::ingest::Append;
use crate::metrics::Kind;
use crate::model::TableName;

/// The writes of one client into one table, in their order. It is listed as one job from its beginning to its end.
pub(crate) struct Appends {
    session: Arc<Session>,
    name: TableName,
    watch: Watch,
    _turn: Turn,
}

impl Session {
    /// Begins writes into a table, which is named as in a statement.
    ///
    /// # Errors
    /// `NotFound` where it does not exist; `Invalid` for what is no name, and where the session has named the one write that
    /// is to come by `SET idempotency_key`.
    pub(crate) async fn begin_appends(self: &Arc<Self>, table: &str) -> Result<Appends> {
        let name = table_name(&name_of_table(table)?, &self.catalog.schema())?;
        let watch = self.watch(Kind::Stream, None, &format!("-- stream of writes into {name}"));
        match self.check_appendable(&name).await {
            Ok(()) => {
                watch.run.is_job(Job { kind: JobKind::Stream, target: name.clone() });
                let turn = watch.unqueued();
                Ok(Appends { session: Arc::clone(self), name, watch, _turn: turn })
            }
            Err(error) => Err(watch.failed(error)),
        }
    }

    async fn check_appendable(&self, name: &TableName) -> Result<()> {
        if self.take_idempotency_key()?.is_some() {
            return Err(Error::invalid(
                "SET idempotency_key names one write, and a stream has many: give each batch its own, as its app_metadata",
            ));
        }
        self.catalog.refresh().await?;
        match self.catalog.object(name).await? {
            Some(_) => Ok(()),
            None => Err(Error::not_found(format!(
                "there is no table or feature group '{name}' to append to: create it first"
            ))),
        }
    }
}

impl Appends {
    /// What is to come, unless somebody ends the stream.
    pub(crate) async fn until_cancelled<T>(&mut self, coming: impl Future<Output = T>) -> Result<T> {
        self.watch.until_cancelled(async { Ok(coming.await) }).await
    }

    /// Makes the first of the writes, and those behind it that are made together with it, and takes them away. Returns how
    /// many rows each has added, or one with its key before, up to the first that fails, and why that did: those behind it
    /// may have been made or not.
    pub(crate) async fn write_some(&mut self, writes: &mut VecDeque<Append>) -> (Vec<u64>, Result<()>) {
        let Self { session, name, watch, .. } = self;
        let mut added = Vec::new();
        let ended =
            watch.until_cancelled(write_some(session, name, writes.make_contiguous(), &mut added)).await;
        let made = writes.drain(..added.len());
        made.for_each(|write| watch.count(write.rows.num_rows(), write.bytes));
        (added, ended)
    }

    /// All is written.
    pub(crate) fn finish(self) {
        let rows = self.watch.run.rows();
        let _ = self.watch.changed(Ok(rows)); // what is given is returned
    }

    /// They end with an error.
    pub(crate) fn fail(self, error: Error) -> Error {
        self.watch.failed(error)
    }
}

async fn write_some(
    session: &Arc<Session>,
    name: &TableName,
    writes: &[Append],
    added: &mut Vec<u64>,
) -> Result<()> {
    let engine = &session.engine;
    let started_us = engine.clock.now_us();
    let few = engine.ingest.append_few_each(name, writes).await;
    if few.is_empty()
        && let Some(write) = writes.first()
    {
        added.push(write_one(session, name, write).await?);
    }
    let duration_us = engine.clock.now_us().saturating_sub(started_us);
    for appended in few {
        let done = appended.and_then(|appended| as_many(appended.rows, appended.written));
        engine.metrics.rows_received.inc_by(done.as_ref().map_or(0, |rows| *rows));
        engine.metrics.statement_ended(Kind::Ingest, done.as_ref().err().map(Error::kind), duration_us);
        added.push(done?);
    }
    Ok(())
}

/// A write by itself, as any ingest is.
async fn write_one(session: &Arc<Session>, name: &TableName, write: &Append) -> Result<u64> {
    let target = IngestTarget {
        schema: Some(name.schema.clone()),
        table: name.name.clone(),
        temporary: false,
        if_not_exists: IfNotExists::Fail,
        if_exists: IfExists::Append,
        idempotency_key: write.key.clone(),
    };
    let rows = futures::stream::iter([Ok(write.rows.clone())]);
    let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(write.rows.schema(), rows));
    session.ingest_named(target, rows).await
}
