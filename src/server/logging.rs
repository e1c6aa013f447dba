//! Logs go to standard error, so that standard output stays for what was asked; spans to a collector, if there is one.

use std::io::{self, IsTerminal};

use tracing::Subscriber;
use tracing_subscriber::filter::{FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
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
    let (registry, format) = (tracing_subscriber::registry(), settings.log_format);
    // Not by an `Option` of a layer: one that is not there wants all spans.
    let installed = match &telemetry {
        Some(telemetry) => registry.with(telemetry.layer()).with(log(filter, format)).try_init(),
        None => registry.with(log(filter, format)).try_init(),
    };
    installed.map_err(|error| Error::internal(format!("logging cannot start: {error}")))?;
    Ok(telemetry)
}

fn log<S: Subscriber + for<'a> LookupSpan<'a>>(filter: EnvFilter, format: LogFormat) -> impl Layer<S> {
    let log = fmt::layer().with_writer(io::stderr);
    let log = match format {
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => log.json().flatten_event(true).boxed(),
    };
    // Where a level is said, what is below it is not even asked for.
    let no_spans = filter_fn(|metadata| !spans::are(metadata)).with_max_level_hint(LevelFilter::TRACE);
    log.with_filter(filter.and(no_spans))
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::metrics::Kind;

    #[test]
    fn without_a_collector_there_are_no_spans() {
        let filter = EnvFilter::try_new("info").unwrap();
        let subscriber = tracing_subscriber::registry().with(log(filter, LogFormat::Text));
        assert_eq!(subscriber.max_level_hint(), Some(LevelFilter::INFO));
        tracing::subscriber::with_default(subscriber, || {
            assert!(spans::statement(Kind::Query, "SELECT 1", None).is_disabled());
        });
    }
}
