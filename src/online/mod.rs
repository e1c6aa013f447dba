//! The latest values: one entry per entity, newer wins.
