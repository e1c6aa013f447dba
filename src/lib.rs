//! Fletching, a feature store that speaks Arrow Flight SQL.

pub mod clock;
pub mod error;
pub mod model;
mod online;
mod sql;
