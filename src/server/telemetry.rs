//! Spans to a collector, by OTLP over gRPC. What OpenTelemetry's own variables say holds too: `OTEL_SERVICE_NAME`,
//! `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_TRACES_SAMPLER`.

use std::env;
use std::time::Duration;

use opentelemetry::global;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::tonic_types::transport::ClientTlsConfig;
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::error::{Error, Result};
use crate::spans;

/// What the server calls itself where the environment gives it no name.
const SERVICE: &str = "fletching";

/// How long the end of the server may wait for the collector.
const FLUSH_MAX: Duration = Duration::from_secs(2);

/// Spans on their way to the collector.
#[derive(Debug)]
pub(super) struct Telemetry(SdkTracerProvider);

impl Telemetry {
    /// Sends to the collector at `endpoint`, which need not answer yet.
    ///
    /// # Errors
    /// `Invalid` for an endpoint that cannot be one.
    pub(super) fn to(endpoint: &str) -> Result<Self> {
        let mut exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint);
        if endpoint.starts_with("https:") {
            exporter = exporter.with_tls_config(ClientTlsConfig::new().with_native_roots());
        }
        let exporter = exporter
            .build()
            .map_err(|error| Error::invalid(format!("otlp_endpoint: cannot send to {endpoint}: {error}")))?;
        let mut resource = Resource::builder();
        let is_named = env::var_os("OTEL_SERVICE_NAME").is_some()
            || env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|all| all.contains("service.name="));
        if !is_named {
            resource = resource.with_service_name(SERVICE);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self(provider))
    }

    /// Takes the spans of the process.
    pub(super) fn layer<S: Subscriber + for<'a> LookupSpan<'a>>(&self) -> impl Layer<S> + use<S> {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer(SERVICE))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false)
            .with_filter(filter_fn(spans::are))
    }

    /// Sends what is left.
    pub(super) async fn stop(self) {
        let flushed = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FLUSH_MAX)).await;
        if let Ok(Err(error)) = flushed {
            tracing::warn!(%error, "the last spans did not reach the collector");
        }
    }
}
