//! A table's data files as the ASOF join reads them, with what the manifests say of each.

use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use iceberg::spec::{DataFile, Datum, PrimitiveLiteral};
use object_store::ObjectMeta;

use super::rows::RowFile;
use super::scan::IcebergTable;
use crate::error::Result;

/// The files of a snapshot.
#[derive(Debug)]
pub(crate) struct History {
    /// Columns of the table's sort order, all ascending with NULLs first; none where it has no order.
    pub(crate) order: Vec<String>,
    pub(crate) files: Vec<HistoryFile>,
}

/// One data file.
#[derive(Debug, Clone)]
pub(crate) struct HistoryFile {
    object: ObjectMeta,
    store: ObjectStoreUrl,
    /// Whether its rows are in the table's order.
    pub(crate) is_sorted: bool,
    data: DataFile,
}

impl HistoryFile {
    /// Its rows by number.
    pub(crate) async fn open(&self, runtime: &RuntimeEnv) -> Result<RowFile> {
        RowFile::open(runtime, &self.store, self.object.clone()).await
    }

    /// Whether a column holds NULLs, as far as the manifest tells.
    pub(crate) fn has_nulls(&self, field_id: i32) -> bool {
        self.data.null_value_counts().get(&field_id).is_some_and(|nulls| *nulls > 0)
    }

    /// Rows, and the bytes that a column takes in the file, where the manifest tells.
    pub(crate) fn rows_and_bytes(&self, field_id: i32) -> (u64, u64) {
        (self.data.record_count(), self.data.column_sizes().get(&field_id).copied().unwrap_or_default())
    }

    /// Least and greatest value of a column of integers or instants, in the column's unit and leaving NULLs out; `None`
    /// where the manifest does not say.
    pub(crate) fn bounds(&self, field_id: i32) -> Option<(i64, i64)> {
        let value = |datum: &Datum| match datum.literal() {
            PrimitiveLiteral::Int(value) => Some(i64::from(*value)),
            PrimitiveLiteral::Long(value) => Some(*value),
            _ => None,
        };
        let least = self.data.lower_bounds().get(&field_id).and_then(value)?;
        let greatest = self.data.upper_bounds().get(&field_id).and_then(value)?;
        Some((least, greatest))
    }
}

impl IcebergTable {
    /// The table's files, or `None` where this is not the whole table, or where files lack values that a column was
    /// given when it was added.
    pub(crate) async fn history(&self) -> Result<Option<History>> {
        let order = self.table().sort_columns().to_vec();
        let fields = self.table().iceberg_schema().as_struct().fields();
        if self.is_partial() || fields.iter().any(|field| field.initial_default.is_some()) {
            return Ok(None);
        }
        let mut files = Vec::new();
        for data in self.files().await? {
            let is_sorted = self.table().is_sorted(&data);
            let object = self.partitioned(&data)?.object_meta;
            files.push(HistoryFile { object, store: self.url().clone(), is_sorted, data });
        }
        Ok(Some(History { order, files }))
    }

    /// The Iceberg id of a top-level column.
    pub(crate) fn field_id(&self, column: &str) -> Option<i32> {
        self.table().iceberg_schema().field_by_name(column).map(|field| field.id)
    }
}
