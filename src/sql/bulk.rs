//! Bulk ingest into a named table, and the list of what a session sees.

use std::sync::Arc;

use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use futures::TryStreamExt;

use super::ddl::nullable;
use super::insert::key_on_temporary;
use super::jobs::{Job, JobKind};
use super::session::Session;
use super::system::{self, Known};
use super::temp::TempTable;
use crate::error::{Error, Result};
use crate::ingest::Appended;
use crate::metrics::Kind;
use crate::model::{FeatureGroup, IdempotencyKey, TableName};
use crate::registry::{DEFAULT_SCHEMA, Object};

/// What to do where the table of a bulk ingest does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfNotExists {
    /// Create a plain table of the rows' columns.
    Create,
    /// Fail with `NotFound`.
    Fail,
}

/// What to do where the table of a bulk ingest exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// Fail with `AlreadyExists`.
    Fail,
    /// Add the rows to it.
    Append,
    /// Put a new table in its place.
    Replace,
}

/// Where a bulk ingest goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngestTarget {
    /// Schema; the session's current one where `None`.
    pub schema: Option<String>,
    /// Table or feature group.
    pub table: String,
    /// A temporary table of the session.
    pub temporary: bool,
    /// What to do where it does not exist.
    pub if_not_exists: IfNotExists,
    /// What to do where it exists.
    pub if_exists: IfExists,
    /// What the write is called, so that it can be sent again: an ingest with the key of an earlier one into the same table
    /// adds nothing and returns what that one added.
    pub idempotency_key: Option<IdempotencyKey>,
}

/// One table as metadata calls list it.
#[derive(Debug, Clone)]
pub struct TableEntry {
    /// Schema.
    pub schema: String,
    /// Name within the schema.
    pub name: String,
    /// `TABLE`, `FEATURE GROUP`, `VIEW`, `SYSTEM TABLE` or `LOCAL TEMPORARY`.
    pub kind: &'static str,
    /// Columns as a query would return them, with declared nullability.
    pub columns: SchemaRef,
    /// What it is, in words.
    pub comment: Option<String>,
    /// Entity key and event time of a feature group; empty for others.
    pub primary_key: Vec<String>,
}

impl Session {
    /// Writes all batches to the table, or none. Returns the rows written.
    ///
    /// # Errors
    /// `NotFound` and `AlreadyExists` by the target's modes; `Invalid` where rows do not fit the table.
    pub async fn ingest(
        self: &Arc<Self>,
        mut target: IngestTarget,
        batches: SendableRecordBatchStream,
    ) -> Result<u64> {
        let pending = self.take_idempotency_key()?;
        target.idempotency_key = target.idempotency_key.or(pending);
        self.ingest_named(target, batches).await
    }

    /// As [`Self::ingest`], under the key that the target has and no other.
    pub(super) async fn ingest_named(
        self: &Arc<Self>,
        target: IngestTarget,
        batches: SendableRecordBatchStream,
    ) -> Result<u64> {
        let name = match &target.schema {
            Some(schema) => TableName::new(schema, &target.table),
            None => TableName::new(self.catalog.schema(), &target.table),
        };
        let mut watch = self.watch(Kind::Ingest, None, &format!("-- bulk ingest into {name}"));
        watch.run.is_job(Job { kind: JobKind::Ingest, target: name.clone() });
        let turn = watch.unqueued();
        let batches = watch.counting(batches);
        let few = watch.until_cancelled(Box::pin(self.ingest_few(&name, &target, batches))).await;
        let batches = match few {
            Ok(Err(batches)) => batches,
            Ok(Ok(rows)) => return watch.changed(Ok(rows)),
            Err(error) => return watch.changed(Err(error)),
        };
        let session = Arc::clone(self);
        let work = async move {
            let _turn = turn;
            session.ingest_into(&name, target, batches).await
        };
        let done = watch.until_cancelled(self.engine.compute.run(work)).await;
        watch.changed(done)
    }

    /// Few rows into a feature group that took some before need not be looked for first; `Err` gives others back.
    async fn ingest_few(
        &self,
        name: &TableName,
        target: &IngestTarget,
        batches: SendableRecordBatchStream,
    ) -> Result<Result<u64, SendableRecordBatchStream>> {
        if target.temporary || target.if_exists != IfExists::Append {
            return Ok(Err(batches));
        }
        let appended = self.engine.ingest.append_few(name, batches, target.idempotency_key.as_ref()).await?;
        match appended {
            Ok(Appended { rows, written }) => as_many(rows, written).map(Ok),
            Err(batches) => Ok(Err(batches)),
        }
    }

    async fn ingest_into(
        &self,
        name: &TableName,
        target: IngestTarget,
        batches: SendableRecordBatchStream,
    ) -> Result<u64> {
        self.catalog.refresh().await?;
        if target.temporary {
            return self.ingest_temporary(name, &target, batches).await;
        }
        let exists = self.catalog.object(name).await?.is_some();
        if !exists {
            self.check_creatable(name)?;
        }
        let (ingest, key) = (&self.engine.ingest, target.idempotency_key.as_ref());
        if target.if_exists != IfExists::Replace
            && let Some(rows) = ingest.earlier(name, key).await?
        {
            return repeated(batches, rows).await;
        }
        match (exists, target.if_not_exists, target.if_exists) {
            (false, IfNotExists::Fail, _) => Err(missing(name)),
            (false, IfNotExists::Create, _) => ingest.create_table(name, nullable(batches), key).await,
            (true, _, IfExists::Fail) => Err(taken(name)),
            (true, _, IfExists::Append) => ingest.append(name, batches, key).await,
            (true, _, IfExists::Replace) => ingest.replace_table(name, nullable(batches), key).await,
        }
    }

    async fn ingest_temporary(
        &self,
        name: &TableName,
        target: &IngestTarget,
        batches: SendableRecordBatchStream,
    ) -> Result<u64> {
        self.check_temp_name(name)?;
        if target.idempotency_key.is_some() {
            return Err(key_on_temporary(name));
        }
        let existing = self.catalog.temp.get(&name.name);
        match (existing, target.if_not_exists, target.if_exists) {
            (None, IfNotExists::Fail, _) => return Err(missing(name)),
            (Some(_), _, IfExists::Fail) => return Err(taken(name)),
            (Some(object), _, IfExists::Append) => {
                let table = object.as_any().downcast_ref::<TempTable>();
                let table = table.ok_or_else(|| Error::invalid(format!("'{}' is a view", name.name)))?;
                return table.append(batches).await;
            }
            (None, IfNotExists::Create, _) | (Some(_), _, IfExists::Replace) => {}
        }
        let batches = nullable(batches);
        let table = TempTable::new(&name.name, &batches.schema(), &self.engine.runtime.memory_pool)?;
        let count = table.append(batches).await?;
        self.catalog.temp.insert(&name.name, Arc::new(table), target.if_exists == IfExists::Replace)?;
        Ok(count)
    }

    /// Every schema this session sees, ordered by name.
    pub async fn schemas(&self) -> Result<Vec<String>> {
        let listing = self.catalog.refresh().await?;
        let mut schemas = listing.schemas.clone();
        schemas.extend([system::SCHEMA.to_owned(), "information_schema".to_owned()]);
        schemas.sort();
        Ok(schemas)
    }

    /// Every table this session sees, ordered by schema and name.
    pub async fn tables(&self) -> Result<Vec<TableEntry>> {
        let listing = self.catalog.refresh().await?;
        let mut tables = Vec::new();
        for name in listing.tables.keys() {
            match self.catalog.object(name).await {
                Ok(Some(object)) => tables.push(entry(name, &object)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(table = %name, %error, "a table that cannot be read is not listed")
                }
            }
        }
        for name in self.catalog.temp.names() {
            if let Some(object) = self.catalog.temp.get(&name) {
                tables.push(TableEntry {
                    schema: DEFAULT_SCHEMA.to_owned(),
                    kind: if object.as_any().is::<TempTable>() { "LOCAL TEMPORARY" } else { "VIEW" },
                    name,
                    columns: object.schema(),
                    comment: None,
                    primary_key: Vec::new(),
                });
            }
        }
        for name in system::TABLES {
            if let Some(table) = system::table(name, &Known::default())? {
                tables.push(TableEntry {
                    schema: system::SCHEMA.to_owned(),
                    name: name.to_owned(),
                    kind: "SYSTEM TABLE",
                    columns: table.schema(),
                    comment: None,
                    primary_key: Vec::new(),
                });
            }
        }
        tables.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
        Ok(tables)
    }
}

fn entry(name: &TableName, object: &Object) -> TableEntry {
    let (kind, columns, comment, primary_key) = match object {
        Object::FeatureGroup(group, _) => {
            let mut key: Vec<String> = group.key_fields().iter().map(|f| f.name().clone()).collect();
            key.push(group.columns[group.event_time].field.name().clone());
            ("FEATURE GROUP", commented(group), group.description.clone(), key)
        }
        Object::Table(table) => {
            let comment = table.metadata().properties().get("comment").cloned();
            ("TABLE", Arc::clone(table.schema()), comment, Vec::new())
        }
    };
    TableEntry { schema: name.schema.clone(), name: name.name.clone(), kind, columns, comment, primary_key }
}

/// The declared columns, each with its description as field metadata `comment`.
fn commented(group: &FeatureGroup) -> SchemaRef {
    let fields = group.columns.iter().map(|column| {
        let mut metadata = column.field.metadata().clone();
        metadata.extend(column.description.iter().map(|text| ("comment".to_owned(), text.clone())));
        column.field.as_ref().clone().with_metadata(metadata)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Takes the rows of an ingest that was done before, as their client expects, and tells how many were written then.
///
/// # Errors
/// `Invalid` where they are not as many: the key was another write's.
async fn repeated(mut batches: SendableRecordBatchStream, written: u64) -> Result<u64> {
    let mut rows = 0;
    while let Some(batch) = batches.try_next().await? {
        rows += batch.num_rows() as u64;
    }
    as_many(rows, written)
}

pub(super) fn as_many(rows: u64, written: u64) -> Result<u64> {
    match rows == written {
        true => Ok(written),
        false => Err(Error::invalid(format!(
            "the idempotency key is that of an earlier write of {written} rows, and these are {rows}: give each write a \
             key of its own"
        ))),
    }
}

fn missing(name: &TableName) -> Error {
    Error::not_found(format!(
        "table '{name}' does not exist: create it first, or ingest in a mode that creates it"
    ))
}

fn taken(name: &TableName) -> Error {
    Error::already_exists(format!(
        "table '{name}' exists already: append to it, or ingest in a mode that replaces it"
    ))
}
