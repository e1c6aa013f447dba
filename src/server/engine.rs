//! Settings to engine: opens the stores and brings the online store up to date.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{CatalogSetting, OnlineSetting, Settings, WarehouseSetting};
use crate::error::Result;
use crate::offline::{CatalogLocation, OfflineStore, S3Location, WarehouseLocation};
use crate::online::{self, Backend, CacheOptions, OnlineOptions};
use crate::sql::{CopyDirectories, Engine, EngineParts, RunLimits};

/// Opens what `settings` name, without a listener. The online store need not answer yet: groups catch up when it
/// does.
///
/// # Errors
/// `Invalid` where COPY may read from what is no directory; `Unavailable` for a store that another process holds or that cannot be reached, `Corrupt` for a damaged one.
pub async fn open_engine(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Arc<Engine>> {
    let catalog = match &settings.catalog {
        CatalogSetting::Sqlite(path) => CatalogLocation::Sqlite(path.clone()),
        CatalogSetting::Postgres(url) => CatalogLocation::Postgres(url.clone()),
        CatalogSetting::Rest { url, token_file } => CatalogLocation::Rest(url.clone(), token_file.clone()),
    };
    let warehouse = match settings.warehouse.clone() {
        WarehouseSetting::Local(path) => WarehouseLocation::Local(path),
        WarehouseSetting::S3 { bucket, prefix, endpoint, region } => {
            WarehouseLocation::S3(S3Location { bucket, prefix, endpoint, region })
        }
    };
    let offline = OfflineStore::open(catalog, warehouse, Arc::clone(&clock)).await?;
    let offline = offline.with_log(&settings.data_dir.join("log")).await?;
    let backend = match &settings.online {
        OnlineSetting::Embedded => Backend::Embedded { path: settings.data_dir.join("online.redb") },
        OnlineSetting::Redis(url) => Backend::Redis { url: url.to_string() },
        OnlineSetting::RedisCluster(seeds) => {
            Backend::RedisCluster { seeds: seeds.iter().map(ToString::to_string).collect() }
        }
    };
    let cache = (settings.cache_capacity_bytes > 0)
        .then_some(CacheOptions { capacity_bytes: settings.cache_capacity_bytes, ttl: settings.cache_ttl });
    let options = OnlineOptions { backend, timeout: settings.online_timeout, cache };
    let engine = Engine::new(EngineParts {
        offline: Arc::new(offline),
        online: online::open(options, Arc::clone(&clock)).await?,
        clock,
        memory_limit_bytes: settings.memory_limit_bytes.map(|b| usize::try_from(b).unwrap_or(usize::MAX)),
        spill_dir: settings.data_dir.join("spill"),
        run_limits: RunLimits {
            queries_max: settings.limits.queries_max,
            queries_queued_max: settings.limits.queries_queued_max,
            queue_timeout: settings.limits.queue_timeout,
            slow_lookup: settings.slow_lookup,
        },
        endpoints: settings.endpoints,
        copy_directories: CopyDirectories::new(&settings.copy_from)?,
    })?;
    // What a server that ended has logged; what cannot be folded now stays there, and is read from there.
    engine.fold_due(Duration::ZERO).await?;
    engine.catch_up().await?;
    Ok(engine)
}
