//! What a feature group is: plain data, no I/O.

mod feature_group;

pub use feature_group::{Column, FeatureGroup, INGESTED_AT, SEQUENCE, TableName, system_fields};
