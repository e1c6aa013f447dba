//! The door: Arrow Flight SQL over gRPC. No other room of the server names tonic or arrow_flight.

mod actions;
mod body;
mod commands;
mod direct;
mod door;
mod drain;
mod exchange;
mod handle;
mod listener;
mod message;
mod metadata;
mod put;
mod query;
mod running;
mod service;
mod sessions;
mod status;
mod stream;

pub(crate) use door::{Door, DoorLimits};
pub(crate) use sessions::Sessions;
