//! Statements that change something: rows, definitions, or the session.

use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::execution::SessionState;
use datafusion::logical_expr::{DdlStatement, LogicalPlan, WriteOp};

use super::admission::is_light;
use super::bind;
use super::compiled::ForgetAtEnd;
use super::jobs::Job;
use super::moment::settle;
use super::running::{Run, Watch};
use super::session::{LONG_SQL_BYTES, Planned, Session, default_schema, referenced};
use crate::error::{Error, Result};
use crate::metrics::Kind;
use crate::model::IdempotencyKey;

impl Session {
    /// Runs a statement that is not a query, once for each row of `parameters`. Returns the rows it changed, 0 for
    /// definitions.
    ///
    /// # Errors
    /// `Invalid` where the statement is a query or a parameter does not fit. A failed INSERT leaves no row behind.
    pub async fn update(self: &Arc<Self>, sql: &str, parameters: Option<&RecordBatch>) -> Result<u64> {
        self.update_once(sql, parameters, None).await
    }

    /// As [`Self::update`]; where the statement writes rows and did so before with the same key, it only returns how
    /// many. Without a key, the one counts that `SET idempotency_key` put down for the next write.
    ///
    /// # Errors
    /// Those of an update; `Unsupported` for a key on rows that go into a temporary table.
    pub(crate) async fn update_once(
        self: &Arc<Self>,
        sql: &str,
        parameters: Option<&RecordBatch>,
        key: Option<IdempotencyKey>,
    ) -> Result<u64> {
        let mut watch = self.watch(Kind::Update, None, sql);
        let done = self.run_watched(&mut watch, sql, parameters, key).await;
        watch.changed(done)
    }

    async fn run_watched(
        self: &Arc<Self>,
        watch: &mut Watch,
        sql: &str,
        parameters: Option<&RecordBatch>,
        key: Option<IdempotencyKey>,
    ) -> Result<u64> {
        let run = Arc::clone(&watch.run);
        let planning = async {
            let state = self.state().await?;
            let planned = self.plan(&state, sql).await?;
            if let Planned::Update(plan) = &planned {
                settle(plan, &run).await?;
            }
            Ok((state, planned))
        };
        let (state, planned) = watch.until_cancelled(planning).await?;
        let is_heavy = match &planned {
            Planned::Update(plan) => !is_light(plan, default_schema(&state))?,
            Planned::RefreshOnline(_) | Planned::Checkpoint(_) | Planned::Copy(_) => true,
            _ => false,
        };
        if let Some(job) = Job::of(&planned, default_schema(&state))? {
            run.is_job(job);
        }
        if !is_heavy && sql.len() <= LONG_SQL_BYTES {
            let _turn = watch.unqueued();
            return watch.until_cancelled(self.run_planned(&state, planned, parameters, key, &run)).await;
        }
        let turn = if is_heavy { watch.admitted().await? } else { watch.unqueued() };
        let (session, parameters) = (Arc::clone(self), parameters.cloned());
        let work = self.engine.compute.run(async move {
            let _turn = turn;
            session.run_planned(&state, planned, parameters.as_ref(), key, &run).await
        });
        watch.until_cancelled(work).await
    }

    async fn run_planned(
        &self,
        state: &SessionState,
        planned: Planned,
        parameters: Option<&RecordBatch>,
        key: Option<IdempotencyKey>,
        run: &Arc<Run>,
    ) -> Result<u64> {
        let changes_no_definition = matches!(
            planned,
            Planned::Query(_)
                | Planned::Upkeep(..)
                | Planned::KillQuery(_)
                | Planned::RefreshOnline(_)
                | Planned::Checkpoint(_)
                | Planned::Copy(_)
                | Planned::Update(LogicalPlan::Dml(_) | LogicalPlan::Statement(_))
        );
        let _forget = (!changes_no_definition).then(|| ForgetAtEnd(&self.engine.compiled));
        match planned {
            Planned::Query(_) | Planned::Upkeep(..) => {
                Err(Error::invalid("the statement is a query: run it as one to get its rows"))
            }
            Planned::CreateFeatureGroup(create) => {
                self.create_feature_group(state, *create).await.map(|()| 0)
            }
            Planned::DropFeatureGroup { name, if_exists } => {
                self.drop_feature_group(&name, if_exists).await.map(|()| 0)
            }
            Planned::AlterFeatureGroup { name, if_exists, changes } => {
                self.alter_feature_group(&name, if_exists, &changes).await.map(|()| 0)
            }
            Planned::KillQuery(id) if self.cancel(id) => Ok(0),
            Planned::KillQuery(id) => Err(Error::not_found(format!(
                "no query '{id}' runs: SELECT * FROM system.queries lists those that do"
            ))),
            Planned::RefreshOnline(refresh) => self.refresh_online(&refresh, &|batch| run.count(batch)).await,
            Planned::Checkpoint(name) => self.checkpoint(name.as_ref()).await.map(|()| 0),
            Planned::Copy(copy) => {
                let key = self.take_idempotency_key()?.filter(|_| key.is_none()).or(key);
                self.copy_from(state, *copy, key.as_ref(), run).await
            }
            Planned::Update(plan) => {
                let key = match writes_rows(&plan) {
                    true => self.take_idempotency_key()?.filter(|_| key.is_none()).or(key),
                    false => None,
                };
                let bound = bind::bind(plan, parameters)?;
                let mut changed = 0;
                for execution in 0..bound.executions() {
                    changed += self.run_update(state, bound.plan(execution)?, key.as_ref(), run).await?;
                }
                Ok(changed)
            }
        }
    }

    async fn run_update(
        &self,
        state: &SessionState,
        plan: LogicalPlan,
        key: Option<&IdempotencyKey>,
        run: &Arc<Run>,
    ) -> Result<u64> {
        match plan {
            LogicalPlan::Dml(dml) if matches!(dml.op, WriteOp::Insert(_)) => {
                self.insert(state, dml, key, run).await
            }
            LogicalPlan::Dml(dml) if matches!(dml.op, WriteOp::Delete) => self.delete(state, dml).await,
            LogicalPlan::Dml(dml) => {
                let name = referenced(&dml.table_name, default_schema(state))?;
                let hint = match self.feature_group(&name).await? {
                    Some(_) => "a later row of the same key and time wins",
                    None => "CREATE TABLE … AS SELECT makes a table of those to keep",
                };
                let (op, table) = (dml.op.to_string().to_uppercase(), dml.table_name);
                Err(Error::unsupported(format!(
                    "{op} is not supported on '{table}': rows are added and deleted; {hint}"
                )))
            }
            LogicalPlan::Ddl(ddl) => self.run_ddl(state, ddl, key).await,
            LogicalPlan::Statement(statement) => self.run_setting(statement).await.map(|()| 0),
            other => Err(Error::unsupported(format!("{} is not supported", other.display()))),
        }
    }
}

/// Whether it is a write that an idempotency key can name.
fn writes_rows(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::Dml(dml) => matches!(dml.op, WriteOp::Insert(_)),
        LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) => {
            !create.temporary && !matches!(create.input.as_ref(), LogicalPlan::EmptyRelation(_))
        }
        _ => false,
    }
}
