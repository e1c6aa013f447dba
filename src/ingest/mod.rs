//! Batches to the offline store, then online: conformed, stamped, committed, and applied.

mod catch_up;
mod conform;
mod delete;
mod erase;
mod few;
mod freshness;
mod stamp;
mod trickle;
mod upkeep;

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;

use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{FeatureGroup, IdempotencyKey, TableName};
use crate::offline::{IDEMPOTENCY_KEY, INGESTED_AT, OfflineStore, OfflineTable, TableSpec, storage_schema};
use crate::online::OnlineStore;
use crate::registry::{Object, Registry};

use catch_up::Locks;
pub(crate) use conform::{Conform, lossless};
pub(crate) use few::{Append, bytes_of};
pub(crate) use freshness::{Freshness, Lag};
use stamp::Stamps;
pub(crate) use trickle::Appended;
use trickle::Trickle;

/// The one way rows get in: from SQL and from bulk ingest.
#[derive(Debug)]
pub(crate) struct Ingest {
    registry: Arc<Registry>,
    offline: Arc<OfflineStore>,
    online: Arc<dyn OnlineStore>,
    runtime: Arc<RuntimeEnv>,
    clock: Arc<dyn Clock>,
    stamps: Stamps,
    locks: Locks,
    /// Of tables that are being optimized.
    rewrites: Locks,
    /// Of tables whose logged rows are being folded.
    folds: Locks,
    trickle: Trickle,
}

impl Ingest {
    pub(crate) fn new(
        registry: Arc<Registry>,
        offline: Arc<OfflineStore>,
        online: Arc<dyn OnlineStore>,
        runtime: Arc<RuntimeEnv>,
        clock: Arc<dyn Clock>,
    ) -> Arc<Self> {
        let stamps = Stamps::new(Arc::clone(&clock));
        let (locks, rewrites, folds) = (Locks::default(), Locks::default(), Locks::default());
        let trickle = Trickle::default();
        Arc::new(Self { registry, offline, online, runtime, clock, stamps, locks, rewrites, folds, trickle })
    }

    /// Appends rows, matched to the table's columns by name. Returns how many, once they are durable
    /// offline; for a feature group they are then in the online store too, or will be as soon as it answers. A write
    /// whose key an earlier one had adds nothing, and returns what that one added.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` where a column is missing, unknown, of the wrong type, or NULL where it must
    /// not be. Nothing is written then.
    pub(crate) async fn append(
        self: &Arc<Self>,
        name: &TableName,
        rows: SendableRecordBatchStream,
        key: Option<&IdempotencyKey>,
    ) -> Result<u64> {
        match self.registry.object(name).await? {
            None => Err(Error::not_found(format!("table '{name}' does not exist: create it first"))),
            Some(object) => self.append_to(&object, rows, None, key).await,
        }
    }

    /// As [`Self::append`], under the columns of `planned`, for which the rows were made: where they have changed since,
    /// the rows came before the change.
    ///
    /// # Errors
    /// `Conflict` where the table was dropped or replaced since.
    pub(crate) async fn append_planned(
        self: &Arc<Self>,
        planned: &Object,
        rows: SendableRecordBatchStream,
        key: Option<&IdempotencyKey>,
    ) -> Result<u64> {
        let (Object::FeatureGroup(_, table) | Object::Table(table)) = planned;
        let newest = self.offline.load(table.name()).await?;
        self.append_to(planned, rows, newest.as_ref(), key).await
    }

    /// `newest` is the table as it is by now, where `object` is an earlier state of it.
    async fn append_to(
        self: &Arc<Self>,
        object: &Object,
        rows: SendableRecordBatchStream,
        newest: Option<&OfflineTable>,
        key: Option<&IdempotencyKey>,
    ) -> Result<u64> {
        match object {
            Object::Table(table) => {
                let conform = Conform::to_table(table.name(), table.schema(), &rows.schema())?;
                let rows = conformed(rows, conform, Arc::clone(table.schema()));
                Ok(self.offline.append(table, rows, properties(key), self.memory()).await?.1)
            }
            Object::FeatureGroup(group, table) => {
                match Box::pin(self.append_logged(group, table, rows, key)).await? {
                    Ok(count) => Ok(count),
                    Err(rows) => {
                        let newest = newest.unwrap_or(table).snapshot_property(INGESTED_AT);
                        self.append_to_group(group, table, rows, newest, key).await
                    }
                }
            }
        }
    }

    async fn append_to_group(
        &self,
        group: &Arc<FeatureGroup>,
        table: &OfflineTable,
        rows: SendableRecordBatchStream,
        ingested: Option<&str>,
        key: Option<&IdempotencyKey>,
    ) -> Result<u64> {
        let conform = Conform::to_group(group, &rows.schema())?;
        let rows = conformed(rows, conform, group.schema());
        self.stamps.at_least(group.id, self.offline.logged(group.id).latest_us);
        let ingested_at_us = self.stamps.next(group.id, ingested);
        self.offline.cut_log(group.id, ingested_at_us);
        let rows = stamp::stamped(rows, group.history_schema(), ingested_at_us);
        let mut properties = properties(key);
        properties.insert(INGESTED_AT.to_owned(), ingested_at_us.to_string());
        let (table, count) = self.offline.append(table, rows, properties, self.memory()).await?;
        if count > 0 {
            self.serve(table).await;
        }
        Ok(count)
    }

    /// Brings online what is durable and acknowledged; a store that does not answer is behind until it does.
    async fn serve(&self, table: OfflineTable) {
        let name = table.name().clone();
        if let Err(error) = self.follow(table).await {
            tracing::warn!(group = %name, %error, "online store is behind until it answers");
        }
    }

    /// The rows that an earlier write with this key added to the table, if there was one; then it is served too.
    pub(crate) async fn earlier(
        &self,
        name: &TableName,
        key: Option<&IdempotencyKey>,
    ) -> Result<Option<u64>> {
        let Some(key) = key else { return Ok(None) };
        match self.registry.object(name).await? {
            None => Ok(None),
            Some(Object::Table(table)) => Ok(self.offline.rows_written_with(&table, key.as_str())),
            Some(Object::FeatureGroup(_, table)) => {
                let rows = self.offline.rows_written_with(&table, key.as_str());
                if rows.is_some() {
                    self.serve(table).await;
                }
                Ok(rows)
            }
        }
    }

    /// Creates a plain table of `rows`: all of it or nothing. If a write with the same key did so before, returns what
    /// that one wrote.
    ///
    /// # Errors
    /// `AlreadyExists`; `Invalid` where a type has no place in Iceberg.
    pub(crate) async fn create_table(
        &self,
        name: &TableName,
        rows: SendableRecordBatchStream,
        key: Option<&IdempotencyKey>,
    ) -> Result<u64> {
        let spec = TableSpec { snapshot_properties: properties(key), ..table_spec(name, &rows.schema())? };
        let conform = Conform::to_table(name, &spec.schema, &rows.schema())?;
        let rows = conformed(rows, conform, Arc::clone(&spec.schema));
        match self.offline.create(&spec, Some(rows), self.memory()).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                self.earlier(name, key).await?.ok_or(error)
            }
            created => created,
        }
    }

    /// Puts a plain table of `rows` in the place of a plain table, or creates it: all of it or nothing. Sent again it does
    /// the same again, and the table has the key for writes that append.
    ///
    /// # Errors
    /// `Invalid` where `name` is a feature group, whose definition and history would be lost.
    pub(crate) async fn replace_table(
        &self,
        name: &TableName,
        rows: SendableRecordBatchStream,
        key: Option<&IdempotencyKey>,
    ) -> Result<u64> {
        let old = match self.registry.object(name).await? {
            None => return self.create_table(name, rows, key).await,
            Some(Object::Table(old)) => old,
            Some(Object::FeatureGroup(..)) => {
                return Err(Error::invalid(format!(
                    "'{name}' is a feature group: replacing it would lose its definition and history; \
                     append to it, or DROP FEATURE GROUP first"
                )));
            }
        };
        let spec = TableSpec { snapshot_properties: properties(key), ..table_spec(name, &rows.schema())? };
        let conform = Conform::to_table(name, &spec.schema, &rows.schema())?;
        let rows = conformed(rows, conform, Arc::clone(&spec.schema));
        self.offline.replace(&old, &spec, rows, self.memory()).await
    }

    fn memory(&self) -> &Arc<dyn MemoryPool> {
        &self.runtime.memory_pool
    }
}

/// What the summary of a write's snapshot says of it.
fn properties(key: Option<&IdempotencyKey>) -> HashMap<String, String> {
    key.map(|key| (IDEMPOTENCY_KEY.to_owned(), key.to_string())).into_iter().collect()
}

fn table_spec(name: &TableName, schema: &SchemaRef) -> Result<TableSpec> {
    let schema = storage_schema(schema)?;
    Ok(TableSpec::plain(name.clone(), schema))
}

fn conformed(
    rows: SendableRecordBatchStream,
    conform: Conform,
    schema: SchemaRef,
) -> SendableRecordBatchStream {
    let batches = rows.map(move |batch| Ok(conform.batch(&batch?)?));
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

#[cfg(test)]
mod tests;
