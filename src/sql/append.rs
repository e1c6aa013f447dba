//! A stream of writes into one table, each of which is one by itself: all of it or nothing, and acknowledged by itself.

use std::sync::Arc;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;

use super::bulk::{IfExists, IfNotExists, IngestTarget, as_many, missing};
use super::jobs::{Job, JobKind};
use super::running::{Turn, Watch};
use super::session::{Session, table_name};
use super::statement::name_of_table;
use crate::error::{Error, Result};
use crate::ingest::Append;
use crate::metrics::Kind;
use crate::model::TableName;

/// The writes of one client into one table, in their order. It is listed as one ingest from its beginning to its end.
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
        let watch = self.watch(Kind::Ingest, None, &format!("-- stream of writes into {name}"));
        match self.check_appendable(&name).await {
            Ok(()) => {
                watch.run.is_job(Job { kind: JobKind::Ingest, target: name.clone() });
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
            None => Err(missing(name)),
        }
    }
}

impl Appends {
    /// Makes writes in their order. Returns how many rows each has added, or one with its key before, up to the first
    /// that fails, and why that did; those behind it may have been made or not.
    pub(crate) async fn write(&mut self, writes: &[Append]) -> (Vec<u64>, Result<()>) {
        let Self { session, name, watch, .. } = self;
        writes.iter().for_each(|write| watch.count(&write.rows));
        let mut added = Vec::with_capacity(writes.len());
        let ended = watch.until_cancelled(append(session, name, writes, &mut added)).await;
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

async fn append(
    session: &Arc<Session>,
    name: &TableName,
    writes: &[Append],
    added: &mut Vec<u64>,
) -> Result<()> {
    while added.len() < writes.len() {
        for appended in session.engine.ingest.append_few_each(name, &writes[added.len()..]).await {
            let appended = appended?;
            added.push(as_many(appended.rows, appended.written)?);
        }
        if let Some(write) = writes.get(added.len()) {
            added.push(append_one(session, name, write).await?);
        }
    }
    Ok(())
}

/// A write by itself, as any ingest is.
async fn append_one(session: &Arc<Session>, name: &TableName, write: &Append) -> Result<u64> {
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
    let (own, name) = (Arc::clone(session), name.clone());
    session.engine.compute.run(async move { own.ingest_into(&name, target, rows).await }).await
}
