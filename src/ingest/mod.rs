//! Batches to the offline store, then online: conformed, stamped, committed, and applied.

mod catch_up;
mod conform;
mod stamp;

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::StreamExt;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::model::{FeatureGroup, TableName};
use crate::offline::{OfflineStore, OfflineTable, TableSpec, storage_schema};
use crate::online::OnlineStore;
use crate::registry::{Object, Registry};

use catch_up::Locks;
pub(crate) use conform::{Conform, lossless};
use stamp::{INGESTED_AT_PROPERTY, Stamps};

/// The one way rows get in: from SQL and from bulk ingest.
#[derive(Debug)]
pub(crate) struct Ingest {
    registry: Arc<Registry>,
    offline: Arc<OfflineStore>,
    online: Arc<dyn OnlineStore>,
    runtime: Arc<RuntimeEnv>,
    stamps: Stamps,
    locks: Locks,
}

impl Ingest {
    pub(crate) fn new(
        registry: Arc<Registry>,
        offline: Arc<OfflineStore>,
        online: Arc<dyn OnlineStore>,
        runtime: Arc<RuntimeEnv>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self { registry, offline, online, runtime, stamps: Stamps::new(clock), locks: Locks::default() }
    }

    /// Appends rows, matched to the table's columns by name. Returns how many, once they are durable
    /// offline; for a feature group they are then in the online store too, or will be as soon as it answers.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` where a column is missing, unknown, of the wrong type, or NULL where it must
    /// not be. Nothing is written then.
    pub(crate) async fn append(&self, name: &TableName, rows: SendableRecordBatchStream) -> Result<u64> {
        match self.registry.object(name).await? {
            None => Err(Error::not_found(format!("table '{name}' does not exist: create it first"))),
            Some(object) => self.append_to(&object, rows, None).await,
        }
    }

    /// As [`Self::append`], under the columns of `planned`, for which the rows were made: where they have changed since,
    /// the rows came before the change.
    ///
    /// # Errors
    /// `Conflict` where the table was dropped or replaced since.
    pub(crate) async fn append_planned(
        &self,
        planned: &Object,
        rows: SendableRecordBatchStream,
    ) -> Result<u64> {
        let (Object::FeatureGroup(_, table) | Object::Table(table)) = planned;
        let newest = self.offline.load(table.name()).await?;
        self.append_to(planned, rows, newest.as_ref()).await
    }

    /// `newest` is the table as it is by now, where `object` is an earlier state of it.
    async fn append_to(
        &self,
        object: &Object,
        rows: SendableRecordBatchStream,
        newest: Option<&OfflineTable>,
    ) -> Result<u64> {
        match object {
            Object::Table(table) => {
                let conform = Conform::to_table(table.name(), table.schema(), &rows.schema())?;
                let rows = conformed(rows, conform, Arc::clone(table.schema()));
                Ok(self.offline.append(table, rows, HashMap::new(), self.memory()).await?.1)
            }
            Object::FeatureGroup(group, table) => {
                let newest = newest.unwrap_or(table);
                self.append_to_group(group, table, rows, newest.snapshot_property(INGESTED_AT_PROPERTY)).await
            }
        }
    }

    async fn append_to_group(
        &self,
        group: &Arc<FeatureGroup>,
        table: &OfflineTable,
        rows: SendableRecordBatchStream,
        ingested: Option<&str>,
    ) -> Result<u64> {
        let conform = Conform::to_group(group, &rows.schema())?;
        let rows = conformed(rows, conform, group.schema());
        let ingested_at_us = self.stamps.next(group.id, ingested);
        let rows = stamp::stamped(rows, group.history_schema(), ingested_at_us);
        let properties = HashMap::from([(INGESTED_AT_PROPERTY.to_owned(), ingested_at_us.to_string())]);
        let (table, count) = self.offline.append(table, rows, properties, self.memory()).await?;
        if count > 0
            && let Err(error) = self.follow(table).await
        {
            // The rows are durable and acknowledged; the online store is behind until it answers again.
            tracing::warn!(group = %group.name, %error, "online store is behind until it answers");
        }
        Ok(count)
    }

    /// Creates a plain table of `rows`: all of it or nothing.
    ///
    /// # Errors
    /// `AlreadyExists`; `Invalid` where a type has no place in Iceberg.
    pub(crate) async fn create_table(
        &self,
        name: &TableName,
        rows: SendableRecordBatchStream,
    ) -> Result<u64> {
        let spec = table_spec(name, &rows.schema())?;
        let conform = Conform::to_table(name, &spec.schema, &rows.schema())?;
        let rows = conformed(rows, conform, Arc::clone(&spec.schema));
        self.offline.create(&spec, Some(rows), self.memory()).await
    }

    /// Puts a plain table of `rows` in the place of a plain table, or creates it: all of it or nothing.
    ///
    /// # Errors
    /// `Invalid` where `name` is a feature group, whose definition and history would be lost.
    pub(crate) async fn replace_table(
        &self,
        name: &TableName,
        rows: SendableRecordBatchStream,
    ) -> Result<u64> {
        let old = match self.registry.object(name).await? {
            None => return self.create_table(name, rows).await,
            Some(Object::Table(old)) => old,
            Some(Object::FeatureGroup(..)) => {
                return Err(Error::invalid(format!(
                    "'{name}' is a feature group: replacing it would lose its definition and history; \
                     append to it, or DROP FEATURE GROUP first"
                )));
            }
        };
        let spec = table_spec(name, &rows.schema())?;
        let conform = Conform::to_table(name, &spec.schema, &rows.schema())?;
        let rows = conformed(rows, conform, Arc::clone(&spec.schema));
        self.offline.replace(&old, &spec, rows, self.memory()).await
    }

    fn memory(&self) -> &Arc<dyn MemoryPool> {
        &self.runtime.memory_pool
    }
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
