//! History: Iceberg tables, how they are found, read, written and committed.

mod catalog;
mod commit;
mod delete;
mod durable;
mod evolution;
#[cfg(test)]
mod faults;
mod files;
mod history;
pub(crate) mod inspect;
mod log;
mod optimize;
mod order;
mod rows;
mod scan;
mod schema;
mod snapshot;
mod sparse;
mod statistics;
mod store;
mod table;
mod vacuum;
mod warehouse;
mod write;

pub(crate) use catalog::CatalogLocation;
pub(crate) use commit::{IDEMPOTENCY_KEY, INGESTED_AT};
pub(crate) use delete::{Rewritten, Verdict};
#[cfg(test)]
pub(crate) use faults::Fault;
pub(crate) use history::{History, HistoryFile};
pub(crate) use iceberg::spec::{DataFile, SnapshotRef};
pub(crate) use log::{LogExtent, Logged, LoggedWrite};
pub(crate) use optimize::{Extent, Optimized};
pub use rows::packed_values_at;
pub(crate) use rows::{Buffers, Fetched, RowFile, ranges_of};
pub(crate) use scan::{IcebergTable, is_file_scan};
pub(crate) use schema::{storage_schema, storage_type};
pub(crate) use store::{OfflineStore, TableSpec};
pub(crate) use table::{OfflineTable, added_rows, is_rewrite, total_rows};
pub(crate) use vacuum::Vacuumed;
pub(crate) use warehouse::{S3Location, WarehouseLocation};
