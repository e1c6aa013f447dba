//! The definition of a feature group and the rules a definition must keep.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use datafusion::common::ScalarValue;
use uuid::Uuid;

use crate::error::{Error, Result};

/// System column: when the store learnt the row (UTC, µs).
pub const INGESTED_AT: &str = "_ingested_at";
/// System column: position of the row within its write; orders rows with equal event time and `_ingested_at`.
pub const SEQUENCE: &str = "_sequence";

/// The system columns of a feature group's history, in their order behind the declared columns.
pub fn system_fields() -> [FieldRef; 2] {
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    [
        Arc::new(Field::new(INGESTED_AT, timestamp, true)),
        Arc::new(Field::new(SEQUENCE, DataType::Int64, true)),
    ]
}

/// Schema (Iceberg namespace) and name of a table.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    /// Schema, an Iceberg namespace of one level.
    pub schema: String,
    /// Table name within the schema.
    pub name: String,
}

impl TableName {
    /// The table `schema.name`.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self { schema: schema.into(), name: name.into() }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.name)
    }
}

/// A table as a reader saw it: which rows, under which columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableVersion {
    /// The table's name at that time.
    pub name: TableName,
    /// Tells the table from another of its name.
    pub table_id: Uuid,
    /// The Iceberg schema under which it was read.
    pub schema_id: i32,
    /// The Iceberg snapshot; `None` where nothing had been written yet.
    pub snapshot_id: Option<i64>,
    /// The TTL of a feature group, by which a join leaves rows out.
    pub ttl: Option<Duration>,
    /// The files of rows that were logged and in no snapshot.
    pub logged: Vec<LoggedFile>,
}

/// A data file that no snapshot may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedFile {
    /// Its location.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// How many rows it has.
    pub rows: u64,
    /// The Iceberg sort order that its rows are in.
    pub sort_order_id: Option<i32>,
}

/// One declared column: an entity key, the event time, or a feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// Name, data type and nullability.
    pub field: FieldRef,
    /// Stands in when no row is picked; always of the field's type.
    pub default: Option<ScalarValue>,
    /// What the column means, in words.
    pub description: Option<String>,
}

/// The features of a group as one Iceberg schema of its table has them, in the schema's order.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureSchema {
    /// The schema's id in the table's metadata.
    pub id: i32,
    /// Iceberg field id and type of each feature.
    pub features: Vec<(i32, DataType)>,
}

/// A feature group: entity key columns, one event time, features, and how they are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct FeatureGroup {
    /// Identity that survives renames and tells a dropped group from its successor: the Iceberg table's UUID.
    pub id: Uuid,
    /// Where it is found in SQL.
    pub name: TableName,
    /// Version of the definition; 1 for the first.
    pub version: u32,
    /// All declared columns in declared order.
    pub columns: Vec<Column>,
    /// Indices into `columns` of the entity key, in `ENTITY KEY (…)` order.
    pub entity_key: Vec<usize>,
    /// Index into `columns` of the event time.
    pub event_time: usize,
    /// How long after its event time a row may be used; inclusive; `None` means for ever.
    pub ttl: Option<Duration>,
    /// Who answers for it.
    pub owner: Option<String>,
    /// What it is, in words.
    pub description: Option<String>,
    /// Free labels to find it by.
    pub tags: Vec<String>,
    /// Whether `LATEST` serves it.
    pub online: bool,
    /// Every schema that rows may have been written under; the current one last. Empty before there is a table.
    pub schemas: Vec<FeatureSchema>,
}

impl FeatureGroup {
    /// Checks the definition's rules.
    ///
    /// # Errors
    /// `Invalid`, naming the group, the column and the fix.
    pub fn validate(&self) -> Result<()> {
        let name = &self.name;
        let mut seen = HashSet::new();
        for column in &self.columns {
            let column_name = column.field.name();
            if !seen.insert(column_name.as_str()) {
                return Err(Error::invalid(format!(
                    "feature group '{name}' declares column '{column_name}' twice"
                )));
            }
            if column_name.starts_with('_') {
                return Err(Error::invalid(format!(
                    "column '{column_name}' of feature group '{name}' starts with '_', which is kept for system columns: rename it"
                )));
            }
        }
        if self.entity_key.is_empty() {
            return Err(Error::invalid(format!(
                "feature group '{name}' has no entity key: add ENTITY KEY (column, …)"
            )));
        }
        let mut keys = HashSet::new();
        for &key in &self.entity_key {
            self.validate_key(key, &mut keys)?;
        }
        for &required in self.entity_key.iter().chain([&self.event_time]) {
            let column = &self.columns[required];
            if column.default.is_some() {
                return Err(Error::invalid(format!(
                    "column '{}' of feature group '{name}' is an entity key or the event time, which every row must \
                     give: leave out its DEFAULT",
                    column.field.name()
                )));
            }
        }
        let time = &self.columns[self.event_time].field;
        if !matches!(time.data_type(), DataType::Timestamp(_, _)) {
            return Err(Error::invalid(format!(
                "event time '{}' of feature group '{name}' is {}: it must be TIMESTAMP",
                time.name(),
                time.data_type()
            )));
        }
        if self.ttl.is_some_and(|ttl| ttl.is_zero()) {
            return Err(Error::invalid(format!(
                "ttl of feature group '{name}' is zero: give a positive duration such as '30 days', or leave it out"
            )));
        }
        Ok(())
    }

    fn validate_key(&self, key: usize, seen: &mut HashSet<usize>) -> Result<()> {
        let (name, field) = (&self.name, &self.columns[key].field);
        if key == self.event_time {
            return Err(Error::invalid(format!(
                "column '{}' of feature group '{name}' cannot be both entity key and event time",
                field.name()
            )));
        }
        if !seen.insert(key) {
            return Err(Error::invalid(format!(
                "feature group '{name}' names entity key '{}' twice",
                field.name()
            )));
        }
        use DataType::{Binary, Boolean, Date32, Decimal128, Int32, Int64, Timestamp, Utf8};
        match field.data_type() {
            Boolean | Int32 | Int64 | Decimal128(_, _) | Utf8 | Binary | Date32 | Timestamp(_, _) => Ok(()),
            other => Err(Error::invalid(format!(
                "entity key '{}' of feature group '{name}' is {other}: use an integer, VARCHAR, BOOLEAN, DATE, \
                 TIMESTAMP, DECIMAL or BINARY column",
                field.name()
            ))),
        }
    }

    /// How long after its event time a row must be kept online: through the TTL, and as long again, so that `LATEST` can
    /// say that it is too old. `None` means for ever.
    pub fn online_lifetime(&self) -> Option<Duration> {
        self.ttl.map(|ttl| ttl.saturating_mul(2))
    }

    /// Schema of the declared columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.columns.iter().map(|c| Arc::clone(&c.field)).collect::<Vec<_>>()))
    }

    /// Schema of the history: the declared columns, then [`system_fields`].
    pub fn history_schema(&self) -> SchemaRef {
        let declared = self.columns.iter().map(|c| Arc::clone(&c.field));
        Arc::new(Schema::new(declared.chain(system_fields()).collect::<Vec<_>>()))
    }

    /// Fields of the entity key, in key order.
    pub fn key_fields(&self) -> Vec<FieldRef> {
        self.entity_key.iter().map(|&i| Arc::clone(&self.columns[i].field)).collect()
    }

    /// Indices into `columns` of the features: neither key nor event time, in declared order.
    pub fn features(&self) -> Vec<usize> {
        (0..self.columns.len()).filter(|i| *i != self.event_time && !self.entity_key.contains(i)).collect()
    }
}
