//! Everything that is counted, as Prometheus reads it: what the rooms count, and what is known at the moment.

use std::fmt;
use std::sync::{Arc, Weak};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::error::{Error, Result};
use crate::sql::Engine;

/// What `/metrics` answers from.
#[derive(Debug)]
pub(super) struct Scrape(Registry);

impl Scrape {
    pub(super) fn of(engine: &Arc<Engine>) -> Self {
        let mut registry = Registry::default();
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("fletching_build", "What runs here", version);
        engine.metrics().register(&mut registry);
        registry.register_collector(Box::new(Now(Arc::downgrade(engine))));
        Self(registry)
    }

    pub(super) fn text(&self) -> Result<String> {
        let mut text = String::new();
        encode(&mut text, &self.0).map_err(|error| Error::internal(error.to_string()))?;
        Ok(text)
    }
}

/// What is known at the moment of a scrape.
#[derive(Debug)]
struct Now(Weak<Engine>);

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(engine) = self.0.upgrade() else { return Ok(()) };
        let now = engine.gauges();
        let mut running = encoder.encode_descriptor(
            "fletching_queries_running",
            "Statements that run, but for look-ups that are kept ready.",
            None,
            MetricType::Gauge,
        )?;
        for (state, count) in now.statements {
            running.encode_family(&[("state", state)])?.encode_gauge(&(count as u64))?;
        }
        let reserved = now.memory_reserved_bytes as u64;
        gauge(
            &mut encoder,
            "fletching_memory_reserved_bytes",
            "Held by queries and temporary tables.",
            reserved,
        )?;
        if let Some(limit) = now.memory_limit_bytes {
            gauge(
                &mut encoder,
                "fletching_memory_limit_bytes",
                "What they may hold together.",
                limit as u64,
            )?;
        }
        if let Some(resident) = resident_bytes() {
            gauge(&mut encoder, "process_resident_memory_bytes", "Memory of the process.", resident)?;
        }
        counter(
            &mut encoder,
            "fletching_online_store_errors",
            "Calls that the online store did not answer as it should.",
            now.online_failures,
        )?;
        let Some(cache) = now.cache else { return Ok(()) };
        for (name, help, value) in [
            ("fletching_online_cache_hits", "Keys that the cache answered.", cache.hits),
            ("fletching_online_cache_misses", "Keys that were not in the cache.", cache.misses),
            ("fletching_online_cache_joined", "Misses that waited for a read under way.", cache.joined),
            (
                "fletching_online_cache_invalidations",
                "Keys that the store told were changed.",
                cache.invalidations,
            ),
            ("fletching_online_cache_clears", "How often everything was dropped.", cache.clears),
        ] {
            counter(&mut encoder, name, help, value)?;
        }
        gauge(&mut encoder, "fletching_online_cache_entries", "Keys in the cache.", cache.entries)?;
        gauge(&mut encoder, "fletching_online_cache_bytes", "What they weigh.", cache.bytes)
    }
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    encoder
        .encode_descriptor(name, help, None, MetricType::Counter)?
        .encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

/// `None` where the machine does not tell.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? << 10)
}
