//! The HTTP port: whether the server lives, whether it is ready, and what it counts; nothing of what it stores.

mod door;
mod listener;
mod scrape;

pub(crate) use door::Http;
