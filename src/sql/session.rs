//! One client's session: its statements, from text to rows, and its temporary objects.

use std::fmt;
use std::sync::Arc;

use chrono::DateTime;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::catalog::MemTable;
use datafusion::common::{DataFusionError, TableReference};
use datafusion::datasource::provider_as_source;
use datafusion::execution::context::SessionContext;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::{
    DdlStatement, LogicalPlan, LogicalPlanBuilder, SetVariable, Statement as LogicalStatement,
};
use datafusion::physical_plan::execute_stream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::sql::sqlparser::ast::ObjectName;
use futures::{StreamExt, TryStreamExt};
use uuid::Uuid;

use super::admission::is_light;
use super::alter;
use super::bind;
use super::catalog::SessionCatalog;
use super::copy::CopyFrom;
use super::definition::normalized;
use super::engine::{CATALOG, Engine};
use super::jobs::Job;
use super::memory::BoundedPool;
use super::moment::{Moment, settle};
use super::output::{to_wire, wire_schema};
use super::parameters;
use super::parts::{self, Part};
use super::refresh::RefreshOnline;
use super::running::{Owner, Watch};
use super::settings::Setting;
use super::statement::{self, CreateFeatureGroup, Statement};
use super::system;
use super::upkeep::Upkeep;
use crate::error::{Error, Result};
use crate::exec::SessionOptions;
use crate::metrics::Kind;
use crate::model::{Change, FeatureGroup, TableName};
use crate::registry::Object;

/// Texts that take long to plan are planned where that keeps nobody waiting.
pub(super) const LONG_SQL_BYTES: usize = 2 << 10;

const SHOW_SCHEMAS: &str =
    "SELECT DISTINCT schema_name FROM information_schema.schemata ORDER BY schema_name";
const SHOW_FEATURE_GROUPS: &str = "SELECT * FROM system.feature_groups ORDER BY schema_name, name, version";

/// Whether a statement returns rows or changes something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatementKind {
    /// Returns rows.
    Query,
    /// Changes data, definitions or the session.
    Update,
}

/// What a statement takes and gives, found without running it.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Query or update.
    pub kind: StatementKind,
    /// Columns of the result, exactly as [`Session::query`] streams them; empty for an update.
    pub schema: SchemaRef,
    /// One field for each parameter, in order, named `$1`, `$2`, …: what clients are told to send.
    pub parameters: SchemaRef,
    /// How many rows each row of parameters gives, where that is a matter of the statement alone: then many rows of
    /// parameters asked at once give what each would give by itself, in their order.
    pub rows_each: Option<usize>,
}

/// One client's session. Its temporary tables and views go with it.
pub struct Session {
    pub(super) engine: Arc<Engine>,
    pub(super) context: SessionContext,
    pub(super) catalog: Arc<SessionCatalog>,
    pub(super) owner: Arc<Owner>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.engine.metrics.sessions.dec();
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.context.session_id()).finish_non_exhaustive()
    }
}

/// A statement with its tables and types resolved.
pub(super) enum Planned {
    Query(LogicalPlan),
    /// A query whose one row is there when the work is done.
    Upkeep(LogicalPlan, Job),
    Update(LogicalPlan),
    CreateFeatureGroup(Box<CreateFeatureGroup>),
    DropFeatureGroup {
        name: TableName,
        if_exists: bool,
    },
    AlterFeatureGroup {
        name: TableName,
        if_exists: bool,
        changes: Vec<Change>,
    },
    KillQuery(Uuid),
    RefreshOnline(RefreshOnline),
    Checkpoint(Option<TableName>),
    Copy(Box<CopyFrom>),
}

impl Planned {
    /// The plan of a query.
    ///
    /// # Errors
    /// `Invalid` where the statement changes something.
    pub(super) fn query(self) -> Result<LogicalPlan> {
        match self {
            Self::Query(plan) | Self::Upkeep(plan, _) => Ok(plan),
            _ => Err(Error::invalid("the statement returns no rows: run it as an update")),
        }
    }

    /// What a statement takes that is no query.
    pub(super) fn prepared(&self) -> Result<Prepared> {
        let parameters = match self {
            Self::Update(plan) => parameters::told(plan)?,
            _ => Arc::new(Schema::empty()),
        };
        let (kind, schema) = (StatementKind::Update, Arc::new(Schema::empty()));
        Ok(Prepared { kind, schema, parameters, rows_each: None })
    }
}

impl Session {
    pub(super) fn new(
        engine: Arc<Engine>,
        context: SessionContext,
        catalog: Arc<SessionCatalog>,
        owner: Owner,
    ) -> Self {
        engine.metrics.sessions.inc();
        Self { engine, context, catalog, owner: Arc::new(owner) }
    }

    /// Parses and plans a statement, and runs nothing.
    ///
    /// # Errors
    /// `Invalid` where it does not parse or names what does not exist; `Unsupported`.
    pub async fn prepare(&self, sql: &str) -> Result<Prepared> {
        self.prepare_bound(sql, None).await
    }

    /// As [`Self::prepare`], where `values` also tell the types of parameters that the statement leaves open.
    pub async fn prepare_bound(&self, sql: &str, values: Option<&RecordBatch>) -> Result<Prepared> {
        // A statement that is wrong ends here, so this is where it is counted and told of.
        let prepared = self.prepare_planned(sql, values).await;
        prepared.map_err(|error| self.watch(Kind::Query, None, sql).failed(error))
    }

    async fn prepare_planned(&self, sql: &str, values: Option<&RecordBatch>) -> Result<Prepared> {
        if let Some(compiled) = self.compiled(sql).await {
            return Ok(compiled.prepared());
        }
        let generation = self.engine.compiled.generation();
        let state = self.state().await?;
        match self.plan(&state, sql).await? {
            Planned::Query(plan) | Planned::Upkeep(plan, _) => {
                self.prepare_query(sql, plan, values, generation)
            }
            update => update.prepared(),
        }
    }

    pub(super) fn prepare_query(
        &self,
        sql: &str,
        plan: LogicalPlan,
        values: Option<&RecordBatch>,
        generation: u64,
    ) -> Result<Prepared> {
        let (kind, parameters) = (StatementKind::Query, parameters::told(&plan)?);
        let schema = wire_schema(plan.schema().as_arrow());
        let mut prepared = Prepared { kind, schema, parameters, rows_each: None };
        if self.is_plain() {
            prepared.rows_each =
                self.engine.compiled.keep(&self.engine, sql, &plan, &prepared, generation)?;
        }
        Ok(match values {
            Some(values) => {
                let bound = bind::bind(plan, Some(&values.slice(0, values.num_rows().min(1))))?;
                Prepared { schema: result_schema(&bound)?, ..prepared }
            }
            None => prepared,
        })
    }

    /// Runs a query, once for each row of `parameters` (columns in parameter order); the results follow one another.
    ///
    /// # Errors
    /// `Invalid` where the statement is not a query or a parameter does not fit; errors of the run end the stream.
    pub async fn query(
        &self,
        sql: &str,
        parameters: Option<&RecordBatch>,
    ) -> Result<SendableRecordBatchStream> {
        self.query_at(None, sql, parameters, &Moment::default()).await
    }

    /// As [`Self::query`], as of `moment` and under the id by which it can be seen and cancelled; `None` for one that is
    /// made up.
    ///
    /// # Errors
    /// Those of a query; `NotFound` where a table is no longer what it was then; `Conflict` where the result is no longer
    /// split as it was.
    pub(crate) async fn query_at(
        &self,
        id: Option<Uuid>,
        sql: &str,
        parameters: Option<&RecordBatch>,
        moment: &Moment,
    ) -> Result<SendableRecordBatchStream> {
        if moment.is_now()
            && let Some(compiled) = self.compiled(sql).await
        {
            return compiled.run(self, id, parameters);
        }
        let mut watch = self.watch(Kind::Query, id, sql);
        match self.begin_query(&mut watch, sql, parameters, moment).await {
            Ok(rows) => Ok(watch.over(rows)),
            Err(error) => Err(watch.failed(error)),
        }
    }

    async fn begin_query(
        &self,
        watch: &mut Watch,
        sql: &str,
        parameters: Option<&RecordBatch>,
        moment: &Moment,
    ) -> Result<SendableRecordBatchStream> {
        let run = Arc::clone(&watch.run);
        let planning = async {
            let generation = self.engine.compiled.generation();
            let state = self.state_at(moment).await?;
            let planned = self.plan(&state, sql).await?;
            if let Planned::Upkeep(_, job) = &planned {
                run.is_job(job.clone());
            }
            let plan = planned.query()?;
            settle(&plan, &run).await?;
            if moment.is_now() {
                self.prepare_query(sql, plan.clone(), None, generation)?; // the next time it is ready
            }
            let light = is_light(&plan, default_schema(&state))?;
            Ok((state, bind::bind(plan, parameters)?, light))
        };
        let (state, bound, light) = watch.until_cancelled(planning).await?;
        if light && sql.len() <= LONG_SQL_BYTES {
            let _turn = watch.unqueued();
            return watch.until_cancelled(run_query(state, bound, moment.part)).await;
        }
        // Clients read the parts of a result in order, so a part must not wait for another's turn to end.
        let waits = !light && moment.part.is_none();
        let turn = if waits { watch.admitted().await? } else { watch.unqueued() };
        let (compute, part) = (&self.engine.compute, moment.part);
        let work = compute.run(async move { Ok((run_query(state, bound, part).await?, turn)) });
        let (rows, turn) = watch.until_cancelled(work).await?;
        Ok(compute.rows(rows, turn))
    }

    /// Lists a statement of this session that begins.
    pub(super) fn watch(&self, kind: Kind, id: Option<Uuid>, sql: &str) -> Watch {
        self.engine.running.begin(kind, id.unwrap_or_else(Uuid::new_v4), sql, &self.owner)
    }

    /// Ends what runs under this id, whoever runs it; returns whether anything did.
    pub(crate) fn cancel(&self, id: Uuid) -> bool {
        self.engine.running.cancel(id)
    }

    /// Counts work that is done for this session beside its statements.
    pub(crate) async fn counted<T>(&self, kind: Kind, work: impl Future<Output = Result<T>>) -> Result<T> {
        let started_us = self.engine.clock.now_us();
        let done = work.await;
        let duration_us = self.engine.clock.now_us().saturating_sub(started_us);
        self.engine.metrics.statement_ended(kind, done.as_ref().err().map(Error::kind), duration_us);
        done
    }

    /// A planner's state at this moment: what exists, and what time it is.
    pub(super) async fn state(&self) -> Result<SessionState> {
        self.catalog.refresh().await?;
        let mut state = self.context.state();
        let now = DateTime::from_timestamp_micros(self.engine.clock.now_us());
        state.execution_props_mut().query_execution_start_time = now;
        Ok(state)
    }

    pub(super) async fn plan(&self, state: &SessionState, sql: &str) -> Result<Planned> {
        let statement = if sql.len() > LONG_SQL_BYTES {
            let sql = sql.to_owned();
            self.engine.compute.run(async move { statement::parse(&sql) }).await?
        } else {
            statement::parse(sql)?
        };
        match statement {
            Statement::DataFusion(mut statement) => {
                self.fold_versioned(state, &mut statement).await?;
                let temporary = statement::take_temporary(&mut statement);
                let mut plan = if sql.len() > LONG_SQL_BYTES {
                    let state = state.clone();
                    self.engine
                        .compute
                        .run(async move { Ok(state.statement_to_plan(*statement).await?) })
                        .await?
                } else {
                    state.statement_to_plan(*statement).await?
                };
                if temporary && let LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) = &mut plan {
                    create.temporary = true;
                }
                Ok(if is_update(&plan) { Planned::Update(plan) } else { Planned::Query(plan) })
            }
            Statement::CreateFeatureGroup(create) => Ok(Planned::CreateFeatureGroup(create)),
            Statement::DropFeatureGroup { name, if_exists } => {
                Ok(Planned::DropFeatureGroup { name: table_name(&name, default_schema(state))?, if_exists })
            }
            Statement::AlterFeatureGroup(alter) => alter::planned(state, *alter).await,
            Statement::Use(name) => {
                let schema = table_name(&name, CATALOG)?; // one word is a schema, or the catalog itself
                if schema.schema != CATALOG {
                    return Err(Error::not_found(format!(
                        "catalog '{}' does not exist: there is one, '{CATALOG}'",
                        schema.schema
                    )));
                }
                let setting = match schema.name == CATALOG {
                    true => Setting::Catalog,
                    false => Setting::Schema,
                };
                let set = SetVariable { variable: setting.key().to_owned(), value: schema.name };
                Ok(Planned::Update(LogicalPlan::Statement(LogicalStatement::SetVariable(set))))
            }
            Statement::KillQuery(id) => Ok(Planned::KillQuery(id)),
            Statement::RefreshOnline { name, full } => {
                let name = table_name(&name, default_schema(state))?;
                Ok(Planned::RefreshOnline(RefreshOnline { name, full }))
            }
            Statement::Checkpoint(name) => {
                let name = name.map(|name| table_name(&name, default_schema(state))).transpose()?;
                Ok(Planned::Checkpoint(name))
            }
            Statement::Optimize { name, extent } => {
                self.plan_upkeep(state, &name, Upkeep::Optimize(extent)).await
            }
            Statement::Vacuum { name, retain } => {
                self.plan_upkeep(state, &name, Upkeep::Vacuum(retain)).await
            }
            Statement::Purge(name) => self.plan_upkeep(state, &name, Upkeep::Purge).await,
            Statement::Copy(copy) => Ok(Planned::Copy(copy)),
            Statement::ShowFeatureGroups => show(state, SHOW_FEATURE_GROUPS).await,
            Statement::ShowSchemas => show(state, SHOW_SCHEMAS).await,
            Statement::Describe(name) => Ok(Planned::Query(self.describe_table(state, &name).await?)),
        }
    }

    async fn describe_table(&self, state: &SessionState, name: &ObjectName) -> Result<LogicalPlan> {
        let name = table_name(name, default_schema(state))?;
        let reference = TableReference::full(CATALOG, name.schema.as_str(), name.name.as_str());
        let table = match state.schema_for_ref(reference.clone()) {
            Ok(schema) => schema.table(&name.name).await?,
            Err(_) => None,
        };
        let table = table.ok_or_else(|| Error::not_found(format!("table '{name}' does not exist")))?;
        let hidden = self.catalog.holds_temp(&name.schema) && self.catalog.temp.get(&name.name).is_some();
        let group = self.feature_group(&name).await?.filter(|_| !hidden);
        let batch = system::describe(table.schema().fields(), group.as_deref())?;
        let rows = MemTable::try_new(batch.schema(), vec![vec![batch]])?;
        let name = TableReference::partial(system::SCHEMA, "describe");
        Ok(LogicalPlanBuilder::scan(name, provider_as_source(Arc::new(rows)), None)?.build()?)
    }

    pub(super) async fn feature_group(&self, name: &TableName) -> Result<Option<Arc<FeatureGroup>>> {
        Ok(match self.catalog.object(name).await? {
            Some(Object::FeatureGroup(group, _)) => Some(group),
            _ => None,
        })
    }
}

/// The plan of a statement that is short for this one.
async fn show(state: &SessionState, long: &str) -> Result<Planned> {
    let Statement::DataFusion(statement) = statement::parse(long)? else {
        return Err(Error::internal(format!("{long} does not parse")));
    };
    Ok(Planned::Query(state.statement_to_plan(*statement).await?))
}

/// Optimizes, plans and starts a plan; partitions come as one stream.
pub(super) async fn run(state: &SessionState, plan: &LogicalPlan) -> Result<SendableRecordBatchStream> {
    let physical = state.create_physical_plan(plan).await?;
    Ok(execute_stream(physical, task_context(state))?)
}

fn options(state: &SessionState) -> Option<&SessionOptions> {
    state.config_options().extensions.get::<SessionOptions>()
}

/// Where a plan of this state runs, within the memory that the session allows each of its statements.
fn task_context(state: &SessionState) -> Arc<TaskContext> {
    match options(state).map_or(0, |options| options.memory_limit) {
        0 => state.task_ctx(),
        bytes_max => {
            let shared = Arc::clone(&state.runtime_env().memory_pool);
            let memory_pool = Arc::new(BoundedPool::new(shared, bytes_max));
            let runtime = RuntimeEnv { memory_pool, ..state.runtime_env().as_ref().clone() };
            Arc::new(TaskContext::from(state).with_runtime(Arc::new(runtime)))
        }
    }
}

/// Ends with an error, and never short, where there are more rows than the session wants; 0 is no limit.
fn at_most(rows_max: usize, batches: SendableRecordBatchStream) -> SendableRecordBatchStream {
    if rows_max == 0 {
        return batches;
    }
    let (schema, mut rows) = (batches.schema(), 0);
    let batches = batches.map(move |batch| {
        let batch = batch?;
        rows += batch.num_rows();
        match rows > rows_max {
            true => Err(Error::exhausted(format!(
                "the result has more than {rows_max} rows, the rows_max of this session: LIMIT it, or SET rows_max"
            ))
            .into()),
            false => Ok(batch),
        }
    });
    Box::pin(RecordBatchStreamAdapter::new(schema, batches))
}

/// Runs a bound query, or one part of it.
async fn run_query(
    state: SessionState,
    bound: bind::Bound,
    part: Option<Part>,
) -> Result<SendableRecordBatchStream> {
    let rows_max = options(&state).map_or(0, |options| options.rows_max);
    let schema = result_schema(&bound)?;
    if let Some(part) = part {
        let physical = state.create_physical_plan(&bound.plan(0)?).await?;
        let rows = parts::run_part(physical, part, task_context(&state))?;
        return Ok(at_most(rows_max, to_wire(rows, &schema)));
    }
    if bound.executions() == 1 {
        let rows = run(&state, &bound.plan(0)?).await?;
        return Ok(at_most(rows_max, to_wire(rows, &schema)));
    }
    let (each, shared) = (Arc::clone(&schema), Arc::new((state, bound)));
    let rows = futures::stream::iter(0..shared.1.executions())
        .then(move |execution| {
            let (each, shared) = (Arc::clone(&each), Arc::clone(&shared));
            async move {
                let (state, bound) = shared.as_ref();
                let rows = run(state, &bound.plan(execution)?).await?;
                Ok::<_, DataFusionError>(to_wire(rows, &each))
            }
        })
        .try_flatten();
    Ok(at_most(rows_max, Box::pin(RecordBatchStreamAdapter::new(schema, rows))))
}

/// The schema of names that give none.
pub(super) fn default_schema(state: &SessionState) -> &str {
    &state.config_options().catalog.default_schema
}

/// The one schema of the executions of a query.
fn result_schema(bound: &bind::Bound) -> Result<SchemaRef> {
    if bound.executions() == 0 {
        return Err(Error::invalid("parameters were bound with no row of values"));
    }
    Ok(wire_schema(bound.plan(0)?.schema().as_arrow()))
}

fn is_update(plan: &LogicalPlan) -> bool {
    matches!(
        plan,
        LogicalPlan::Dml(_) | LogicalPlan::Ddl(_) | LogicalPlan::Copy(_) | LogicalPlan::Statement(_)
    )
}

/// A name as written, in the one catalog; in `default_schema` where none is given.
pub(super) fn table_name(name: &ObjectName, default_schema: &str) -> Result<TableName> {
    let parts: Option<Vec<String>> = name.0.iter().map(|part| part.as_ident().map(normalized)).collect();
    match parts.as_deref() {
        Some([table]) => Ok(TableName::new(default_schema, table)),
        Some([schema, table]) => Ok(TableName::new(schema, table)),
        Some([catalog, schema, table]) if catalog == CATALOG => Ok(TableName::new(schema, table)),
        _ => Err(Error::invalid(format!("'{name}' is not the name of a table: write table or schema.table"))),
    }
}

/// A planned reference, in the one catalog; in `default_schema` where it names none.
pub(super) fn referenced(reference: &TableReference, default_schema: &str) -> Result<TableName> {
    match reference.catalog() {
        None | Some(CATALOG) => {
            Ok(TableName::new(reference.schema().unwrap_or(default_schema), reference.table()))
        }
        Some(other) => {
            Err(Error::not_found(format!("catalog '{other}' does not exist: there is one, '{CATALOG}'")))
        }
    }
}

#[cfg(test)]
pub(in crate::sql) mod tests;
