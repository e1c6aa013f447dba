//! The columns of `LATEST(group)`.

use std::sync::Arc;

use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use crate::model::FeatureGroup;

/// Whether the entity was found: `PRESENT`, `NOT_FOUND` or `OUTSIDE_MAX_AGE`.
const STATUS: &str = "_status";

/// The entity key in key order, the event time, the features in declared order, and [`STATUS`]. All but the last may
/// be NULL: a key as it was asked, the rest where nothing was found.
pub(crate) fn latest_schema(group: &FeatureGroup) -> SchemaRef {
    let declared = group.entity_key.iter().copied().chain([group.event_time]).chain(group.features());
    let mut fields: Vec<Field> =
        declared.map(|i| group.columns[i].field.as_ref().clone().with_nullable(true)).collect();
    fields.push(Field::new(STATUS, DataType::Utf8, false));
    Arc::new(Schema::new(fields))
}

/// One column of [`latest_schema`], by what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LatestColumn {
    /// Position in the entity key.
    Key(usize),
    EventTime,
    /// Position among the features.
    Feature(usize),
    Status,
}

impl LatestColumn {
    /// Column `index` of [`latest_schema`].
    pub(super) fn at(group: &FeatureGroup, index: usize) -> Self {
        let (keys, features) = (group.entity_key.len(), group.columns.len() - group.entity_key.len() - 1);
        match index {
            i if i < keys => Self::Key(i),
            i if i == keys => Self::EventTime,
            i if i <= keys + features => Self::Feature(i - keys - 1),
            _ => Self::Status,
        }
    }
}
