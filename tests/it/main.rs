//! The integration tests: one binary, over the crate as its users see it.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // a panic is how a test fails

mod catalog;
mod crash;
mod crowd;
mod flight;
mod hostile;
mod observe;
mod online;
mod protocol;
mod security;
mod serving;
mod shell;
mod slt;
mod support;
mod tidy;
mod trace;
