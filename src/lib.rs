//! Fletching, a feature store that speaks Arrow Flight SQL.
//!
//! The life of a request:
//!
//! 1. A client connects; `flight` gives the connection an identity. Every call says who asks; with the first of a user
//!    the connection gets a session.
//! 2. The call's protobuf becomes a command. What concerns the catalog is answered from it; everything else is SQL.
//! 3. `sql` parses the statement, rewrites what is ours (`ASOF JOIN`, `LATEST`, `FOR … AS OF`, `CREATE FEATURE GROUP`)
//!    and plans it.
//! 4. A statement that changes something runs at once: `ingest` writes history through `offline`, and only then the
//!    latest values through `online`. The client's ticket carries nothing but the news that it is done.
//! 5. A query gets a ticket that carries the statement itself and what it reads, so that nothing waits on the server for
//!    the client, and any server gives the same rows.
//! 6. The client fetches the ticket: the plan runs, in its turn where many do, and can be seen and ended while it does.
//!    Its operators (`exec`) read history and latest values.
//! 7. Batches leave as fast as the client takes them. If it goes, the stream is dropped, and with it the query.
//! 8. An error at any point keeps its kind all the way, and becomes a gRPC code in one place, `flight::status`.

mod access;
pub mod clock;
mod config;
pub mod error;
mod exec;
mod flight;
mod http;
mod ingest;
mod metrics;
pub mod model;
mod offline;
mod online;
mod registry;
mod server;
pub mod shell;
mod spans;
mod sql;
mod stack;

/// Pure algorithms over plain slices, for the benchmarks; no part of the interface.
#[doc(hidden)]
pub mod kernels {
    pub use crate::exec::asof::kernels::{merge_sorted, search_sorted_file, sort_labels};
    pub use crate::offline::packed_values_at;
}

/// What fuzzers throw bytes at; no part of the interface.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::flight::fuzzing::flight_request;
    pub use crate::model::fuzzing::online_entry;
}

pub use access::write_user;
pub use config::{
    CatalogSetting, Cli, Command, Given, Limits, LogFormat, OnlineSetting, OutputFormat, SecuritySettings,
    ServeArgs, Settings, SqlArgs, TlsSettings, UserArgs, WarehouseSetting,
};
pub use error::{Error, ErrorKind, Result};
pub use server::{Server, open_engine, serve};
pub use sql::{
    Described, Engine, IfExists, IfNotExists, IngestTarget, Moment, Part, Prepared, Session, SettingValue,
    StatementKind, TableEntry,
};
pub use stack::STACK_BYTES;
