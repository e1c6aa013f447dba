//! The engine that all sessions share: stores, registry, memory, and how a session's planner is set up.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::execution::context::{QueryPlanner, SessionContext};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{
    FairSpillPool, MemoryPool, TrackConsumersPool, UnboundedMemoryPool,
};
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::execution::{SessionState, SessionStateBuilder};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_planner::{DefaultPhysicalPlanner, ExtensionPlanner, PhysicalPlanner};
use datafusion::prelude::SessionConfig;
use uuid::Uuid;

use super::asof::{self, AsofExtensionPlanner};
use super::catalog::{Catalog, SessionCatalog};
use super::compiled::CompiledStatements;
use super::compute::Compute;
use super::copy::CopyDirectories;
use super::latest;
use super::running::{Owner, RunLimits, Running};
use super::session::Session;
use super::time_travel;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::exec::{LookupPlanner, SessionOptions};
use crate::ingest::Ingest;
use crate::metrics::Metrics;
use crate::offline::OfflineStore;
use crate::online::{CacheStatistics, OnlineStore};
use crate::registry::{DEFAULT_SCHEMA, Registry};

/// The one catalog.
pub(crate) const CATALOG: &str = "fletching";

/// How many of the largest consumers an out-of-memory error names.
const CONSUMERS_NAMED: std::num::NonZeroUsize = std::num::NonZeroUsize::new(3).expect("3 is not 0");

/// Scans of at least this much are spread over all cores.
const FILE_SHARED_BYTES_MIN: usize = 1 << 20;

/// What an [`Engine`] is made of.
#[derive(Debug)]
pub(crate) struct EngineParts {
    pub(crate) offline: Arc<OfflineStore>,
    pub(crate) online: Arc<dyn OnlineStore>,
    pub(crate) clock: Arc<dyn Clock>,
    /// Bound on what all queries and temporary tables hold together; `None` means no bound.
    pub(crate) memory_limit_bytes: Option<usize>,
    /// Where queries that exceed their memory spill.
    pub(crate) spill_dir: PathBuf,
    pub(crate) run_limits: RunLimits,
    /// Into how many endpoints a session splits large results, until it says otherwise.
    pub(crate) endpoints: usize,
    /// The directories from which COPY may read.
    pub(crate) copy_directories: CopyDirectories,
}

/// Stores, registry and memory, shared by all sessions.
#[derive(Debug)]
pub struct Engine {
    pub(super) registry: Arc<Registry>,
    pub(super) offline: Arc<OfflineStore>,
    pub(super) online: Arc<dyn OnlineStore>,
    pub(super) ingest: Arc<Ingest>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) runtime: Arc<RuntimeEnv>,
    pub(super) compiled: CompiledStatements,
    pub(super) running: Arc<Running>,
    pub(super) compute: Compute,
    pub(super) metrics: Arc<Metrics>,
    pub(super) copy_directories: CopyDirectories,
    memory_limit_bytes: Option<usize>,
    /// What every session begins with.
    pub(super) config: SessionConfig,
}

/// What can be known of an engine at a moment.
#[derive(Debug)]
pub(crate) struct Gauges {
    /// How many statements are in each state, by its name.
    pub(crate) statements: [(&'static str, usize); 4],
    /// What queries and temporary tables hold together.
    pub(crate) memory_reserved_bytes: usize,
    /// What they may hold.
    pub(crate) memory_limit_bytes: Option<usize>,
    /// `None` where there is no cache.
    pub(crate) cache: Option<CacheStatistics>,
    /// Calls that the online store did not answer as it should, since the server started.
    pub(crate) online_failures: u64,
}

/// DataFusion's physical planner, with the operators of [`crate::exec`].
struct Planner {
    lookup: Arc<LookupPlanner>,
}

impl fmt::Debug for Planner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Planner")
    }
}

#[async_trait]
impl QueryPlanner for Planner {
    async fn create_physical_plan(
        &self,
        plan: &LogicalPlan,
        state: &SessionState,
    ) -> datafusion::common::Result<Arc<dyn ExecutionPlan>> {
        let planners: Vec<Arc<dyn ExtensionPlanner + Send + Sync>> =
            vec![Arc::new(AsofExtensionPlanner), Arc::clone(&self.lookup) as _];
        DefaultPhysicalPlanner::with_extension_planners(planners).create_physical_plan(plan, state).await
    }
}

impl Engine {
    pub(crate) fn new(parts: EngineParts) -> Result<Arc<Self>> {
        let EngineParts { offline, online, clock, memory_limit_bytes, spill_dir, .. } = parts;
        let pool: Arc<dyn MemoryPool> = match memory_limit_bytes {
            Some(bytes) => Arc::new(TrackConsumersPool::new(FairSpillPool::new(bytes), CONSUMERS_NAMED)),
            None => Arc::new(UnboundedMemoryPool::default()),
        };
        std::fs::create_dir_all(&spill_dir).map_err(|e| {
            Error::unavailable(format!("cannot use the spill directory '{}'", spill_dir.display()))
                .with_source(e)
        })?;
        let disk = DiskManagerBuilder::default().with_mode(DiskManagerMode::Directories(vec![spill_dir]));
        let runtime =
            RuntimeEnvBuilder::new().with_memory_pool(pool).with_disk_manager_builder(disk).build_arc()?;
        offline.register(&runtime);
        let registry = Arc::new(Registry::new(Arc::clone(&offline)));
        let ingest = Ingest::new(
            Arc::clone(&registry),
            Arc::clone(&offline),
            Arc::clone(&online),
            Arc::clone(&runtime),
            Arc::clone(&clock),
        );
        let (compiled, config) = (CompiledStatements::default(), config(parts.endpoints));
        let metrics = Arc::new(Metrics::default());
        let running = Arc::new(Running::new(&parts.run_limits, Arc::clone(&metrics), Arc::clone(&clock)));
        Ok(Arc::new(Self {
            registry,
            offline,
            online,
            ingest,
            clock,
            runtime,
            compiled,
            running,
            compute: Compute::start()?,
            metrics,
            copy_directories: parts.copy_directories,
            memory_limit_bytes,
            config,
        }))
    }

    /// A new session, with no temporary objects.
    pub fn session(self: &Arc<Self>) -> Arc<Session> {
        self.session_of(Owner::default())
    }

    /// The same for somebody in particular.
    pub(crate) fn session_of(self: &Arc<Self>, owner: Owner) -> Arc<Session> {
        let catalog = Arc::new(SessionCatalog::new(
            Arc::clone(&self.registry),
            Arc::clone(&self.offline),
            Arc::clone(&self.ingest),
            Arc::clone(&self.online),
            Arc::clone(&self.running),
        ));
        let context = self.context();
        context.register_catalog(CATALOG, Arc::new(Catalog::of(Arc::clone(&catalog))));
        Arc::new(Session::new(Arc::clone(self), context, catalog, owner))
    }

    /// Brings the online store up to the Iceberg snapshots that it has not applied; cheap where it has. Returns how
    /// many feature groups remain behind, because the store does not answer.
    pub(crate) async fn catch_up(&self) -> Result<usize> {
        // Plans run here, on the threads that have stacks for them.
        let ingest = Arc::clone(&self.ingest);
        self.compute.run(async move { ingest.catch_up_all().await }).await
    }

    /// Ends what runs, and takes nothing new.
    pub(crate) async fn stop(&self) {
        self.compute.stop().await;
    }

    /// Where this server counts.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Whether the online store answers, and why not.
    pub(crate) async fn online_answers(&self) -> Result<()> {
        self.online.applied_snapshot(Uuid::nil()).await.map(|_| ())
    }

    /// What there is to know at this moment.
    pub(crate) fn gauges(&self) -> Gauges {
        Gauges {
            statements: self.running.count_by_state(),
            memory_reserved_bytes: self.runtime.memory_pool.reserved(),
            memory_limit_bytes: self.memory_limit_bytes,
            cache: self.online.cache_statistics(),
            online_failures: self.online.failures(),
        }
    }

    fn context(&self) -> SessionContext {
        let builder = SessionStateBuilder::new()
            .with_config(self.config.clone())
            .with_runtime_env(Arc::clone(&self.runtime))
            .with_default_features()
            .with_query_planner(Arc::new(Planner {
                lookup: Arc::new(LookupPlanner::new(Arc::clone(&self.online), Arc::clone(&self.clock))),
            }));
        let builder =
            latest::install(asof::install(builder), Arc::clone(&self.online), Arc::clone(&self.clock));
        let builder = time_travel::install(builder, Arc::clone(&self.clock));
        SessionContext::new_with_state(builder.build())
    }
}

/// What every session begins with.
fn config(endpoints: usize) -> SessionConfig {
    let mut config = SessionConfig::new()
        .with_default_catalog_and_schema(CATALOG, DEFAULT_SCHEMA)
        .with_create_default_catalog_and_schema(false)
        .with_information_schema(true);
    let options = config.options_mut();
    // One string type everywhere: what is stored, computed and sent.
    options.sql_parser.map_string_types_to_utf8view = false;
    options.execution.parquet.schema_force_view_types = false;
    // A file of a few MB keeps one core busy for longer than it takes to share it.
    options.optimizer.repartition_file_min_size = FILE_SHARED_BYTES_MIN;
    // TIMESTAMP WITH TIME ZONE is an instant, shown in UTC.
    options.execution.time_zone = Some("UTC".to_owned());
    options.extensions.insert(SessionOptions { endpoints, ..SessionOptions::default() });
    config
}
