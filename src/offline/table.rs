//! An Iceberg table as one reader sees it: one version of its metadata, at one of its snapshots.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, SecondsFormat};
use datafusion::arrow::datatypes::{FieldRef, SchemaRef};
use iceberg::spec::{
    DataFile, Operation, Schema, SchemaRef as IcebergSchemaRef, SnapshotRef, TableMetadataRef,
};

use super::commit::{IDEMPOTENCY_KEY, IDEMPOTENCY_KEYS};
use super::delete::is_deletion;
use super::evolution::refuse_nested_renames;
use super::order::TableOrder;
use super::schema::arrow_schema;
use crate::error::{Error, Result};
use crate::model::{LoggedFile, TableName, TableVersion};

/// How many snapshots are looked through for an idempotency key, newest first.
const KEYS_LOOKED_THROUGH_MAX: usize = 65_536;

/// An Iceberg table at one version of its metadata, and there at its current snapshot or at an older one.
#[derive(Debug, Clone)]
pub(crate) struct OfflineTable {
    pub(super) name: TableName,
    pub(super) location: Arc<str>,
    pub(super) metadata: TableMetadataRef,
    snapshot: Option<SnapshotRef>,
    iceberg_schema: IcebergSchemaRef,
    schema: SchemaRef,
    order: Option<Arc<TableOrder>>,
    /// The files of logged rows that are seen beside the snapshot; `None` where those are seen that are there when
    /// somebody looks.
    logged: Option<Arc<[LoggedFile]>>,
}

impl OfflineTable {
    /// The table at its current snapshot, under its current schema.
    pub(super) fn new(name: TableName, location: &str, metadata: TableMetadataRef) -> Result<Self> {
        refuse_nested_renames(&name, &metadata)?;
        let (snapshot, schema) = (metadata.current_snapshot().cloned(), metadata.current_schema().clone());
        Self::seen(name, location.into(), metadata, snapshot, schema, None)
    }

    fn seen(
        name: TableName,
        location: Arc<str>,
        metadata: TableMetadataRef,
        snapshot: Option<SnapshotRef>,
        iceberg_schema: IcebergSchemaRef,
        logged: Option<Arc<[LoggedFile]>>,
    ) -> Result<Self> {
        let schema = arrow_schema(&iceberg_schema)?;
        let order = TableOrder::of(&metadata, &iceberg_schema, &schema).map(Arc::new);
        Ok(Self { name, location, metadata, snapshot, iceberg_schema, schema, order, logged })
    }

    /// The table as it was at one of its snapshots, under the schema of its day.
    ///
    /// # Errors
    /// `NotFound` where the table has no such snapshot.
    pub(crate) fn at_snapshot(&self, snapshot_id: i64) -> Result<Self> {
        let snapshot = self.metadata.snapshot_by_id(snapshot_id).ok_or_else(|| {
            Error::not_found(format!(
                "table '{0}' has no snapshot {snapshot_id}: \"{1}$snapshots\" lists those it has",
                self.name, self.name.name
            ))
        })?;
        let schema = snapshot.schema(&self.metadata).map_err(|e| {
            Error::corrupt(format!("snapshot {snapshot_id} of table '{}' has no schema", self.name))
                .with_source(e)
        })?;
        let (location, metadata) = (Arc::clone(&self.location), Arc::clone(&self.metadata));
        let nothing = Some(Arc::default());
        Self::seen(self.name.clone(), location, metadata, Some(Arc::clone(snapshot)), schema, nothing)
    }

    /// The table as it was at a time: at the snapshot that was current then.
    ///
    /// # Errors
    /// `NotFound` where the table had no snapshot yet.
    pub(crate) fn at_time(&self, time_us: i64) -> Result<Self> {
        let time_ms = time_us.div_euclid(1000);
        let Some(last) = &self.snapshot else { return Ok(self.clone()) };
        // What came after the snapshot that this reader sees is not there for it, even where it came in the same moment.
        let history = self.metadata.history();
        let seen = history.iter().rposition(|entry| entry.snapshot_id == last.snapshot_id());
        let history = &history[..seen.map_or(history.len(), |last| last + 1)];
        if let Some(then) = history.iter().rev().find(|entry| entry.timestamp_ms() <= time_ms) {
            return self.at_snapshot(then.snapshot_id);
        }
        let since = history.first().map_or(time_ms, |first| first.timestamp_ms());
        Err(Error::not_found(format!(
            "table '{}' has no snapshot as of {}: its first is of {}",
            self.name,
            shown(time_ms),
            shown(since)
        )))
    }

    /// What a reader of this table sees, in a form that outlives it: see [`Self::at_version`]. Of a feature group's TTL it
    /// knows nothing.
    pub(crate) fn version(&self) -> TableVersion {
        TableVersion {
            name: self.name.clone(),
            table_id: self.metadata.uuid(),
            schema_id: self.iceberg_schema.schema_id(),
            snapshot_id: self.snapshot.as_ref().map(|snapshot| snapshot.snapshot_id()),
            ttl: None,
            logged: self.logged.as_deref().unwrap_or_default().to_vec(),
        }
    }

    /// The same with these files of logged rows, and no others, beside its snapshot.
    pub(crate) fn with_logged(self, files: &[LoggedFile]) -> Self {
        Self { logged: Some(files.into()), ..self }
    }

    /// The files of logged rows that it was given; `None` where those are meant that are there now.
    pub(super) fn given_logged(&self) -> Option<&[LoggedFile]> {
        self.logged.as_deref()
    }

    /// The table as an earlier reader saw it: the same rows, under the same columns.
    ///
    /// # Errors
    /// `NotFound` where this is another table of that name, or what was read is no longer kept.
    pub(crate) fn at_version(&self, version: &TableVersion) -> Result<Self> {
        let gone =
            |what: &str| Error::not_found(format!("{what}: run the query again for what there is now"));
        if self.metadata.uuid() != version.table_id {
            return Err(gone(&format!("table '{}' was dropped, and another has its name", self.name)));
        }
        let snapshot =
            match version.snapshot_id {
                Some(id) => Some(self.metadata.snapshot_by_id(id).cloned().ok_or_else(|| {
                    gone(&format!("snapshot {id} of table '{}' is no longer kept", self.name))
                })?),
                None => None,
            };
        let schema = self.metadata.schema_by_id(version.schema_id).cloned().ok_or_else(|| {
            gone(&format!("schema {} of table '{}' is no longer kept", version.schema_id, self.name))
        })?;
        let (location, metadata) = (Arc::clone(&self.location), Arc::clone(&self.metadata));
        let logged = Some(version.logged.as_slice().into());
        Self::seen(self.name.clone(), location, metadata, snapshot, schema, logged)
    }

    pub(crate) fn name(&self) -> &TableName {
        &self.name
    }

    pub(crate) fn metadata(&self) -> &TableMetadataRef {
        &self.metadata
    }

    /// The snapshot whose rows it has; `None` where nothing was written yet.
    pub(crate) fn snapshot(&self) -> Option<&SnapshotRef> {
        self.snapshot.as_ref()
    }

    /// Columns as SQL sees them.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Columns as Iceberg knows them, in the order of [`Self::schema`].
    pub(crate) fn iceberg_schema(&self) -> &Schema {
        &self.iceberg_schema
    }

    /// Every schema that the table has had, by its id but the current one last: its id, and each column's field id and type as SQL sees
    /// it. Passes over those that hold what is not read.
    pub(crate) fn schemas(&self) -> Vec<(i32, Vec<(i32, FieldRef)>)> {
        let current = self.iceberg_schema.schema_id();
        let mut before: Vec<_> =
            self.metadata.schemas_iter().filter(|schema| schema.schema_id() != current).collect();
        before.sort_by_key(|schema| schema.schema_id());
        let columns = |schema: &Schema| {
            let fields = arrow_schema(schema).ok()?;
            let ids = schema.as_struct().fields().iter().map(|field| field.id);
            Some((schema.schema_id(), ids.zip(fields.fields().iter().cloned()).collect()))
        };
        before.into_iter().chain([&self.iceberg_schema]).filter_map(|schema| columns(schema)).collect()
    }

    /// The columns that sorted files of this table are sorted by, ascending and NULLs first; see [`Self::is_sorted`].
    pub(crate) fn sort_columns(&self) -> &[String] {
        self.order.as_ref().map_or(&[], |order| &order.columns)
    }

    /// The event time and, before it in the order, the entity key: each time lies anywhere in a file.
    pub(super) fn time_behind_keys(&self) -> Option<(&str, &[String])> {
        let order = self.order.as_ref().filter(|order| !order.keys().is_empty())?;
        Some((&order.columns[order.time?], order.keys()))
    }

    /// The event time, where it is among [`Self::sort_columns`].
    pub(super) fn time_column(&self) -> Option<&String> {
        let order = self.order.as_ref()?;
        order.time.map(|time| &order.columns[time])
    }

    /// Whether the rows of `file` are in the order of [`Self::sort_columns`]: it was written so and stamped with it.
    pub(crate) fn is_sorted(&self, file: &DataFile) -> bool {
        self.order.as_ref().is_some_and(|order| order.is_kept_by(file))
    }

    /// What was written after the snapshot `applied`, newest first: the table as it was at some later snapshot, under the
    /// schema of now, with the snapshots up to it that added rows which it still has as they were added. `None` where
    /// `applied` is not among the ancestors of the current snapshot.
    ///
    /// A `replace` adds no rows, and hides in its files what others have added: those before it are seen from before it. A
    /// deletion of ours hides in its files what others have added too, so it counts as one that added rows, unless there
    /// is nothing before it.
    pub(crate) fn writes_since(&self, applied: i64) -> Option<Vec<(Self, Vec<i64>)>> {
        let mut writes: Vec<(Self, Vec<i64>)> = Vec::new();
        let mut is_behind_replace = true;
        for snapshot in self.ancestors() {
            let id = snapshot.snapshot_id();
            if id == applied {
                return Some(without_first(writes, |id| {
                    self.metadata.snapshot_by_id(id).is_some_and(is_deletion)
                }));
            }
            match writes.last_mut() {
                _ if is_rewrite(snapshot) => is_behind_replace = true,
                Some((_, ids)) if !is_behind_replace => ids.push(id),
                _ => {
                    writes.push((self.with_snapshot(snapshot), vec![id]));
                    is_behind_replace = false;
                }
            }
        }
        None
    }

    /// The same metadata at another snapshot, under the schema of now.
    pub(super) fn with_snapshot(&self, snapshot: &SnapshotRef) -> Self {
        Self { snapshot: Some(Arc::clone(snapshot)), ..self.clone() }
    }

    /// The current snapshot, its parent, and so on, as far as they are kept.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = &SnapshotRef> {
        let parent = |snapshot: &&SnapshotRef| self.metadata.snapshot_by_id(snapshot.parent_snapshot_id()?);
        std::iter::successors(self.metadata.current_snapshot(), parent)
    }

    /// The rows that the write with this idempotency key added, if it made one of the last 65,536 snapshots and that is
    /// still kept.
    pub(crate) fn rows_written_with(&self, key: &str) -> Option<u64> {
        self.ancestors().take(KEYS_LOOKED_THROUGH_MAX).find_map(|snapshot| {
            let summary = &snapshot.summary().additional_properties;
            if summary.get(IDEMPOTENCY_KEY).is_some_and(|its| its == key) {
                return Some(added_rows(snapshot).unwrap_or(0));
            }
            // Keys need no escapes in JSON, so that most summaries need not be parsed.
            let many = summary.get(IDEMPOTENCY_KEYS).filter(|many| many.contains(key))?;
            rows_by_key(many).get(key).copied()
        })
    }

    /// The idempotency keys of the last 65,536 snapshots that are kept.
    pub(super) fn keys_written(&self) -> HashSet<String> {
        let mut keys = HashSet::new();
        for snapshot in self.ancestors().take(KEYS_LOOKED_THROUGH_MAX) {
            let summary = &snapshot.summary().additional_properties;
            keys.extend(summary.get(IDEMPOTENCY_KEY).cloned());
            keys.extend(
                summary.get(IDEMPOTENCY_KEYS).into_iter().flat_map(|many| rows_by_key(many).into_keys()),
            );
        }
        keys
    }

    /// A property of the current snapshot's summary.
    pub(crate) fn snapshot_property(&self, key: &str) -> Option<&str> {
        let summary = self.metadata.current_snapshot()?.summary();
        summary.additional_properties.get(key).map(String::as_str)
    }
}

/// See [`IDEMPOTENCY_KEYS`].
fn rows_by_key(json: &str) -> HashMap<String, u64> {
    serde_json::from_str(json).unwrap_or_default()
}

/// What is left of writes, newest first, without the oldest ones as long as they are such.
fn without_first<T>(mut writes: Vec<(T, Vec<i64>)>, is_such: impl Fn(i64) -> bool) -> Vec<(T, Vec<i64>)> {
    while let Some((_, ids)) = writes.last_mut() {
        while ids.pop_if(|id| is_such(*id)).is_some() {}
        if !ids.is_empty() {
            break;
        }
        writes.pop();
    }
    writes
}

/// Whether a snapshot only has the rows of its parent in other files.
pub(crate) fn is_rewrite(snapshot: &SnapshotRef) -> bool {
    snapshot.summary().operation == Operation::Replace
}

/// The rows that there are as of a snapshot, where its writer says.
pub(crate) fn total_rows(snapshot: &SnapshotRef) -> Option<u64> {
    snapshot.summary().additional_properties.get("total-records")?.parse().ok()
}

/// The rows that a snapshot added, where its writer says.
pub(crate) fn added_rows(snapshot: &SnapshotRef) -> Option<u64> {
    snapshot.summary().additional_properties.get("added-records")?.parse().ok()
}

fn shown(time_ms: i64) -> String {
    let time = DateTime::from_timestamp_millis(time_ms);
    time.map_or_else(|| format!("{time_ms} ms"), |t| t.to_rfc3339_opts(SecondsFormat::Millis, true))
}
