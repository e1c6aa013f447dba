//! Text to plan: statements, point-in-time joins, look-ups, and the tables they name.

mod feature_group_table;

pub(crate) use feature_group_table::FeatureGroupTable;
