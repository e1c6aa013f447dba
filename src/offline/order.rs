//! The order that a table's files are sorted in: from its columns to Iceberg's metadata, and back.

use datafusion::arrow::datatypes::{DataType, Schema as ArrowSchema};
use iceberg::spec::{
    DataFile, NullOrder, Schema, SortDirection, SortField, SortOrder, TableMetadata, Transform,
};

use crate::error::{Error, Result};
use crate::model::INGESTED_AT;

/// The default sort order of a table, where files can be written and read in it: columns as they are, ascending,
/// NULLs first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableOrder {
    /// Iceberg's id of it, with which files that keep it are stamped.
    pub(super) id: i32,
    /// Names of its columns.
    pub(super) columns: Vec<String>,
    /// Which of `columns` is the event time, by which rows go into files.
    pub(super) time: Option<usize>,
}

impl TableOrder {
    /// `iceberg` is one of the table's schemas, and `schema` the same as SQL sees it.
    pub(super) fn of(metadata: &TableMetadata, iceberg: &Schema, schema: &ArrowSchema) -> Option<Self> {
        let order = metadata.default_sort_order();
        let id = i32::try_from(order.order_id).ok().filter(|_| !order.is_unsorted())?;
        let columns: Option<Vec<String>> = order
            .fields
            .iter()
            .map(|field| {
                let kept = field.transform == Transform::Identity
                    && field.direction == SortDirection::Ascending
                    && field.null_order == NullOrder::First;
                let name = &iceberg.field_by_id(field.source_id).filter(|_| kept)?.name;
                // A column of a struct has no place in Arrow's schema of its own; engines differ about floats.
                let data_type = schema.field_with_name(name).ok()?.data_type();
                (!data_type.is_nested() && !data_type.is_floating()).then(|| name.clone())
            })
            .collect();
        let columns = columns?;
        let is_time = |name: &String| {
            let field = schema.field_with_name(name);
            name != INGESTED_AT && field.is_ok_and(|f| matches!(f.data_type(), DataType::Timestamp(_, _)))
        };
        let time = columns.iter().rposition(is_time);
        Some(Self { id, columns, time })
    }

    /// Whether `file` says that its rows keep this order.
    pub(super) fn is_kept_by(&self, file: &DataFile) -> bool {
        file.sort_order_id() == Some(self.id)
    }

    /// The columns before the event time: an entity key.
    pub(super) fn keys(&self) -> &[String] {
        &self.columns[..self.time.unwrap_or(0)]
    }
}

/// Iceberg's order by `columns`; unsorted where there are none.
pub(super) fn iceberg_order(schema: &Schema, columns: &[String]) -> Result<SortOrder> {
    let unfit = |name: &str| Error::internal(format!("a table cannot be sorted by '{name}'"));
    let mut order = SortOrder::builder();
    for name in columns {
        order.with_sort_field(SortField {
            source_id: schema.field_by_name(name).ok_or_else(|| unfit(name))?.id,
            transform: Transform::Identity,
            direction: SortDirection::Ascending,
            null_order: NullOrder::First,
        });
    }
    order.build(schema).map_err(|e| unfit(&columns.join(", ")).with_source(e))
}
