//! A query as of the moment when it was described: whoever fetches it, wherever and however often, gets the same rows.
//!
//! 1. [`Session::describe`] plans the query, and notes what its result depends on beside its text and parameters: which
//!    versions of tables it reads, what time it is, and the session's settings. Where it can, it splits the result.
//! 2. [`Session::query_at`] plans it again under the same circumstances, in any session of any server.
//!
//! What a session has to itself, its temporary tables, it has only there, as they are when it fetches; and `LATEST` serves what is the latest then.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use chrono::DateTime;
use datafusion::arrow::array::RecordBatch;
use datafusion::catalog::information_schema::INFORMATION_SCHEMA;
use datafusion::catalog::{CatalogProviderList, MemoryCatalogProviderList};
use datafusion::common::config::{ConfigEntry, ConfigExtension, ExtensionOptions};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::config::ConfigOptions;
use datafusion::datasource::source_as_provider;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use uuid::Uuid;

use super::bind;
use super::catalog::Catalog;
use super::engine::CATALOG;
use super::feature_group_table::FeatureGroupTable;
use super::latest;
use super::parts::{self, Part};
use super::running::Run;
use super::session::{Planned, Prepared, Session, default_schema, referenced};
use super::settings;
use super::statement::{self, Statement};
use super::time_travel::stored_rows;
use crate::error::{Error, Result};
use crate::exec::SessionOptions;
use crate::metrics::Kind;
use crate::model::{TableName, TableVersion};
use crate::offline::IcebergTable;

/// What a query sees when it runs. By default everything as it is then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Moment {
    /// What time it is, in µs since 1970 UTC.
    pub now_us: Option<i64>,
    /// The settings that differ from the server's own, by name.
    pub settings: Option<Vec<(String, String)>>,
    /// The tables it reads that are not as they are now.
    pub tables: Vec<TableVersion>,
    /// The temporary tables and views that its text names, and their ids; `None` where it sees all of the session's.
    pub temporary: Option<Vec<(String, Uuid)>>,
    /// Which part of the result is wanted; `None` is all of it.
    pub part: Option<Part>,
}

impl Moment {
    /// Whether everything is seen as it is when the query runs.
    pub(super) fn is_now(&self) -> bool {
        *self == Self::default()
    }
}

/// What a statement takes and gives, and how to get it.
#[derive(Debug)]
pub struct Described {
    /// Its kind, schema and parameters.
    pub prepared: Prepared,
    /// When to run it: a query once for each of these, and the results together are all of it. Empty for an update.
    pub moments: Vec<Moment>,
    /// Whether the rows of the result come in an order that the statement says.
    pub ordered: bool,
    /// Whether only this session can run it, because it has objects of its own.
    pub is_here_only: bool,
}

impl Session {
    /// Parses and plans a statement, and runs nothing; see [`Session::prepare_bound`].
    pub async fn describe(&self, sql: &str, values: Option<&RecordBatch>) -> Result<Described> {
        // A statement that is wrong ends here, so this is where it is counted and told of.
        let described = self.describe_planned(sql, values).await;
        described.map_err(|error| self.watch(Kind::Query, None, sql).failed(error))
    }

    async fn describe_planned(&self, sql: &str, values: Option<&RecordBatch>) -> Result<Described> {
        let is_here_only = !self.catalog.temp.is_empty();
        let described = |prepared, moments, ordered| Described { prepared, moments, ordered, is_here_only };
        let looked_up = |prepared| described(prepared, vec![Moment::default()], true);
        if let Some(compiled) = self.compiled(sql).await {
            return Ok(looked_up(compiled.prepared()));
        }
        let generation = self.engine.compiled.generation();
        let state = self.state().await?;
        let plan = match self.plan(&state, sql).await? {
            Planned::Query(plan) | Planned::Upkeep(plan, _) => plan,
            update => return Ok(described(update.prepared()?, vec![], false)),
        };
        let prepared = self.prepare_query(sql, plan.clone(), values, generation)?;
        if prepared.rows_each.is_some() {
            return Ok(looked_up(prepared));
        }
        let ordered = is_ordered(&plan);
        let moment = self.moment(&state, sql, &plan).await?;
        let moments = match self.split(&state, plan, values, &moment).await? {
            moments if moments.is_empty() => vec![moment],
            moments => moments,
        };
        Ok(described(prepared, moments, ordered))
    }

    /// A planner's state as of `moment`.
    pub(super) async fn state_at(&self, moment: &Moment) -> Result<SessionState> {
        let mut state = self.state().await?;
        if moment.is_now() {
            return Ok(state);
        }
        if let Some(changed) = &moment.settings {
            settings::restore(&mut state, self.engine.config.options(), changed)?;
        }
        for (name, id) in moment.temporary.iter().flatten() {
            if self.catalog.temp.id(name) != Some(*id) {
                return Err(Error::not_found(format!(
                    "the query reads '{name}', a temporary object of the session that asked, which this session has \
                     not, or no longer: fetch it there, on the same connection or with its cookie, or ask again"
                )));
            }
        }
        let schema = state.config_options().catalog.default_schema.clone();
        let catalog = Catalog::as_of(Arc::clone(&self.catalog), schema, moment);
        let catalogs = MemoryCatalogProviderList::new();
        catalogs.register_catalog(CATALOG.to_owned(), Arc::new(catalog));
        state.register_catalog_list(Arc::new(catalogs));
        if let Some(now_us) = moment.now_us {
            let now = DateTime::from_timestamp_micros(now_us);
            state.execution_props_mut().query_execution_start_time = now;
            state.config_mut().options_mut().extensions.insert(StatementTime(now_us));
        }
        if moment.part.is_some() {
            parts::without_exchange(&mut state);
        }
        Ok(state)
    }

    /// What the result of `plan` depends on.
    async fn moment(&self, state: &SessionState, sql: &str, plan: &LogicalPlan) -> Result<Moment> {
        let (tables, serves_now) = read_by(plan).await?;
        let now = state.execution_props().query_execution_start_time;
        Ok(Moment {
            now_us: now.filter(|_| !serves_now).map(|now| now.timestamp_micros()),
            settings: Some(settings::changed(state.config_options(), self.engine.config.options())),
            tables,
            temporary: self.temporary_in(state, sql, plan)?,
            part: None,
        })
    }

    /// The temporary objects of this session that the text names; `None` for a text that asks for what there is.
    fn temporary_in(
        &self,
        state: &SessionState,
        sql: &str,
        plan: &LogicalPlan,
    ) -> Result<Option<Vec<(String, Uuid)>>> {
        if self.catalog.temp.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let Statement::DataFusion(statement) = statement::parse(sql)? else { return Ok(None) };
        if reads_schema(plan, INFORMATION_SCHEMA)? {
            return Ok(None);
        }
        let mut named = Vec::new();
        for reference in state.resolve_table_references(&statement)? {
            let TableName { schema, name } = referenced(&reference, default_schema(state))?;
            if self.catalog.holds_temp(&schema)
                && let Some(id) = self.catalog.temp.id(&name)
                && !named.contains(&(name.clone(), id))
            {
                named.push((name, id));
            }
        }
        Ok(Some(named))
    }

    /// The moments of as many parts as the session wants, as far as the query can be split; empty where it cannot.
    async fn split(
        &self,
        state: &SessionState,
        plan: LogicalPlan,
        values: Option<&RecordBatch>,
        whole: &Moment,
    ) -> Result<Vec<Moment>> {
        let options = state.config_options().extensions.get::<SessionOptions>();
        let wanted = options.map_or(1, |options| options.endpoints);
        let is_open = bind::parameters(&plan)?.fields().len() > values.map_or(0, RecordBatch::num_columns);
        let is_limited = options.is_some_and(|options| options.rows_max != 0); // which the parts cannot count together
        if wanted < 2 || is_open || is_limited || whole.now_us.is_none() || whole.tables.is_empty() {
            return Ok(Vec::new());
        }
        let bound = bind::bind(plan, values)?;
        if bound.executions() != 1 {
            return Ok(Vec::new());
        }
        // However the fetching server would split its scans by itself, here they are split the same way.
        let mut moment = whole.clone();
        moment.settings.get_or_insert_default().retain(|(name, _)| name != parts::PARTITIONS);
        moment.settings.get_or_insert_default().push((parts::PARTITIONS.to_owned(), wanted.to_string()));
        let mut state = self.state_at(&moment).await?;
        parts::without_exchange(&mut state);
        let physical = state.create_physical_plan(&bound.plan(0)?).await?;
        let Some(partitions) = parts::partitions_apart(&physical).filter(|partitions| *partitions > 1) else {
            return Ok(Vec::new());
        };
        let parts = wanted.min(partitions);
        let part = |index| Moment { part: Some(Part { index, parts, partitions }), ..moment.clone() };
        Ok((0..parts).map(part).collect())
    }
}

/// From now on the plan reads the rows that there are now, however long it waits for its turn, and `run` says which.
pub(super) async fn settle(plan: &LogicalPlan, run: &Run) -> Result<()> {
    read_by(plan).await?;
    for read in stored(plan)? {
        if let Some(snapshot) = read.rows.table().snapshot() {
            run.reads(read.rows.table().metadata().uuid(), snapshot.snapshot_id());
        }
    }
    Ok(())
}

/// A scan of a stored table.
struct Stored {
    rows: IcebergTable,
    /// That of a feature group.
    ttl: Option<Duration>,
    /// Whether the statement says by itself, with FOR … AS OF, which version it means.
    is_as_of: bool,
}

fn stored(plan: &LogicalPlan) -> Result<Vec<Stored>> {
    let mut found = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Ok(provider) = source_as_provider(&scan.source)
            && let Some(rows) = stored_rows(&provider)
        {
            let group = provider.as_any().downcast_ref::<FeatureGroupTable>();
            let ttl = group.and_then(|group| group.definition.ttl);
            found.push(Stored { rows, ttl, is_as_of: scan.table_name.table().contains('@') });
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(found)
}

/// The versions of stored tables that `plan` reads, and whether it also looks up what is the latest when it runs.
async fn read_by(plan: &LogicalPlan) -> Result<(Vec<TableVersion>, bool)> {
    let mut serves_now = false;
    plan.apply_with_subqueries(|node| {
        serves_now |= latest::serves_now(node);
        Ok(TreeNodeRecursion::Continue)
    })?;
    let mut tables = Vec::new();
    for Stored { rows, ttl, .. } in stored(plan)?.into_iter().filter(|read| !read.is_as_of) {
        let version = TableVersion { ttl, ..rows.version().await? };
        let snapshot = rows.table().snapshot().map(|snapshot| snapshot.sequence_number());
        let logged: u64 = version.logged.iter().map(|file| file.rows).sum();
        tables.push(((snapshot, logged), version));
    }
    // A view may hold an older version of a table than the statement itself reads: the newest is the statement's.
    tables.sort_by(|(a, _), (b, _)| b.cmp(a));
    let mut versions: Vec<TableVersion> = Vec::new();
    for (_, version) in tables {
        match versions.iter_mut().find(|known| known.name == version.name) {
            // Its "g$history" knows nothing of a group's TTL.
            Some(known) => known.ttl = known.ttl.or(version.ttl),
            None => versions.push(version),
        }
    }
    Ok((versions, serves_now))
}

/// Whether a table of that schema is read.
fn reads_schema(plan: &LogicalPlan, schema: &str) -> Result<bool> {
    let mut reads = false;
    plan.apply_with_subqueries(|node| {
        reads |= matches!(node, LogicalPlan::TableScan(scan) if scan.table_name.schema() == Some(schema));
        Ok(if reads { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
    })?;
    Ok(reads)
}

/// Whether the statement says in which order its rows come.
fn is_ordered(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Sort(_) => true,
        LogicalPlan::Projection(_) | LogicalPlan::SubqueryAlias(_) | LogicalPlan::Limit(_) => {
            plan.inputs().first().is_some_and(|input| is_ordered(input))
        }
        _ => false,
    }
}

/// What time it is for a statement that was described before, for those who see no more of the session than its options.
#[derive(Debug, Clone, Copy)]
struct StatementTime(i64);

/// See [`StatementTime`].
pub(super) fn statement_time_us(options: &ConfigOptions) -> Option<i64> {
    options.extensions.get::<StatementTime>().map(|time| time.0)
}

impl ConfigExtension for StatementTime {
    const PREFIX: &'static str = "fletching_statement";
}

impl ExtensionOptions for StatementTime {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn cloned(&self) -> Box<dyn ExtensionOptions> {
        Box::new(*self)
    }

    fn set(&mut self, key: &str, _: &str) -> datafusion::common::Result<()> {
        Err(crate::error::Error::unsupported(format!("'{key}' of a statement cannot be set")).into())
    }

    fn entries(&self) -> Vec<ConfigEntry> {
        Vec::new()
    }
}
