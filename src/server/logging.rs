//! Logs go to standard error, so that standard output stays for what was asked; spans to a collector, if there is one.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use super::telemetry::Telemetry;
use crate::config::{LogFormat, Settings};
use crate::error::{Error, Result};
use crate::spans;

/// Installs the process's log, once.
pub(super) fn install(settings: &Settings) -> Result<Option<Telemetry>> {
    let filter = EnvFilter::try_new(&settings.log_level)
        .map_err(|error| Error::invalid(format!("log_level: {error}")))?;
    let telemetry = settings.otlp_endpoint.as_deref().map(Telemetry::to).transpose()?;
    let log = fmt::layer().with_writer(io::stderr);
    let log = match settings.log_format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => log.json().flatten_event(true).boxed(),
    };
    let log = log.with_filter(filter.and(filter_fn(|metadata| !spans::are(metadata))));
    let spans = telemetry.as_ref().map(Telemetry::layer);
    let installed = tracing_subscriber::registry().with(spans).with(log).try_init();
    installed.map_err(|error| Error::internal(format!("logging cannot start: {error}")))?;
    Ok(telemetry)
}
