//! Fletching, a feature store that speaks Arrow Flight SQL.

pub mod clock;
mod config;
pub mod error;
mod exec;
mod ingest;
pub mod model;
mod offline;
mod online;
mod registry;
pub mod shell;
mod sql;

pub use config::{
    CatalogSetting, Cli, Command, Given, Limits, LogFormat, OnlineSetting, OutputFormat, ServeArgs, Settings, SqlArgs,
};
pub use sql::{Engine, IfExists, IfNotExists, IngestTarget, Prepared, Session, StatementKind, TableEntry};
