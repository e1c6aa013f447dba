//! Fletching, a feature store that speaks Arrow Flight SQL.

pub mod clock;
mod config;
pub mod error;
pub mod model;
mod online;
pub mod shell;
mod sql;

pub use config::{
    CatalogSetting, Cli, Command, Given, Limits, LogFormat, OnlineSetting, OutputFormat, ServeArgs, Settings, SqlArgs,
};
