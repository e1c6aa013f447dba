//! Composes the rooms into a server: starts it, says what it serves, and stops it without losing what runs.

mod engine;
mod lifecycle;
mod logging;
mod telemetry;
mod upkeep;

pub use engine::open_engine;
pub use lifecycle::{Server, serve};
