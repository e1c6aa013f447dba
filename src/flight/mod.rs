//! The door: Arrow Flight SQL over gRPC. No other room of the server names tonic or arrow_flight.

mod actions;
mod append;
mod auth;
mod body;
mod commands;
mod compression;
mod decode;
mod direct;
mod door;
mod drain;
mod endpoints;
mod exchange;
pub(crate) mod fuzzing;
mod gathered;
mod handle;
mod idempotency;
mod listener;
mod message;
mod metadata;
mod moment;
mod observed;
mod options;
mod put;
mod query;
mod seal;
mod security;
mod service;
mod sessions;
mod status;
mod stream;
mod tls;

pub(crate) use door::{Door, DoorLimits};
pub(crate) use security::Security;
pub(crate) use sessions::Sessions;
