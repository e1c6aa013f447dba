//! What a feature group is: plain data, no I/O.

mod change;
mod feature_group;
mod idempotency_key;
mod key;
mod packed;

pub use change::Change;
pub use feature_group::{
    Column, FeatureGroup, FeatureSchema, INGESTED_AT, LoggedFile, SEQUENCE, TableName, TableVersion,
    system_fields,
};
pub use idempotency_key::IdempotencyKey;
pub(crate) use key::{EntityKey, decode_keys, encode_keys};
pub use packed::fuzzing;
pub(crate) use packed::{
    MAX_FUTURE_ROWS, RowEncoder, RowLayout, RowOrder, StoredRow, decode_features, merge, pick, put_entry,
    select_rows,
};
