//! A table's data files as the ASOF join reads them: each in the table's sort order, with what its manifest says of it.

use iceberg::spec::{DataFile, Datum, PrimitiveLiteral};
use object_store::ObjectMeta;

use super::scan::IcebergTable;
use crate::error::Result;

/// The files of a snapshot, every one of them in the table's sort order.
#[derive(Debug)]
pub(crate) struct History {
    /// Columns of the sort order, all ascending with NULLs first.
    pub(crate) order: Vec<String>,
    pub(crate) files: Vec<HistoryFile>,
}

/// One sorted data file.
#[derive(Debug, Clone)]
pub(crate) struct HistoryFile {
    pub(crate) object: ObjectMeta,
    data: DataFile,
}

impl HistoryFile {
    /// Least and greatest value of a column of integers or instants, in the column's unit; `None` where the manifest
    /// does not say or where the column holds NULLs.
    pub(crate) fn bounds(&self, field_id: i32) -> Option<(i64, i64)> {
        if self.data.null_value_counts().get(&field_id).is_some_and(|nulls| *nulls > 0) {
            return None;
        }
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
    /// The table's rows as sorted files, or `None` where a file is not sorted or where this is not the whole table.
    pub(crate) async fn history(&self) -> Result<Option<History>> {
        let order = self.table().sort_columns().to_vec();
        if order.is_empty() || self.is_partial() {
            return Ok(None);
        }
        let mut files = Vec::new();
        for data in self.files().await? {
            if !self.table().is_sorted(&data) {
                return Ok(None);
            }
            files.push(HistoryFile { object: self.partitioned(&data)?.object_meta, data });
        }
        Ok(Some(History { order, files }))
    }

    /// The Iceberg id of a top-level column.
    pub(crate) fn field_id(&self, column: &str) -> Option<i32> {
        self.table().iceberg_schema().field_by_name(column).map(|field| field.id)
    }
}
