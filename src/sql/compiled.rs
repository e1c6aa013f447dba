//! Look-ups that run often, kept ready for all sessions.
//!
//! A model server sends one statement a thousand times a second. What it means depends on the text and on the feature
//! group's definition; so it is kept by its text, dropped when this server changes a definition, and compared with the
//! catalog once in a while, because other servers change definitions too. In a session with temporary tables or views,
//! with another current schema or a limit of rows, a text may mean something else, so such sessions neither give nor take.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::TryStreamExt;
use moka::sync::Cache;
use tokio::sync::Mutex;
use uuid::Uuid;

use super::bind::check_count;
use super::engine::Engine;
use super::latest::CompiledLatest;
use super::running::bounded;
use super::session::{Prepared, Session, StatementKind};
use crate::error::{ErrorKind, Result};
use crate::metrics::Kind;
use crate::registry::Object;

/// How many statements are kept.
const STATEMENTS_MAX: u64 = 1024;
/// The longest text that is kept: keys belong into parameters.
const SQL_BYTES_MAX: usize = 4 << 10;
/// For how long a definition that another server changed may still be served as it was.
const DEFINITION_STALENESS_US: i64 = 1_000_000;
/// When the catalog is asked again, while look-ups go on.
const DEFINITION_RECHECK_US: i64 = DEFINITION_STALENESS_US / 2;
/// How long look-ups wait for the catalog to say so.
const CATALOG_TIMEOUT: Duration = Duration::from_millis(500);
/// A look-up of more keys takes long enough to be listed among what runs.
const UNLISTED_KEYS_MAX: usize = 8192;

/// What is kept of one text.
#[derive(Debug)]
pub(super) struct Compiled {
    /// The text, as it is shown.
    sql: Arc<str>,
    latest: Arc<CompiledLatest>,
    parameters: SchemaRef,
    generation: u64,
    /// As of when the definition was last seen to be that of the catalog, or the catalog did not say.
    checked_us: AtomicI64,
    /// Held while the catalog is asked again.
    checking: Arc<Mutex<()>>,
}

/// Every look-up that is kept.
#[derive(Debug)]
pub(super) struct CompiledStatements {
    by_text: Cache<String, Arc<Compiled>>,
    /// Moves on with every definition that this server changes.
    generation: AtomicU64,
}

impl Default for CompiledStatements {
    fn default() -> Self {
        Self { by_text: Cache::new(STATEMENTS_MAX), generation: AtomicU64::new(0) }
    }
}

impl CompiledStatements {
    /// To be asked before a statement is planned, and given to [`Self::keep`] with the plan.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// A definition has changed: nothing that was planned before means what it meant.
    pub(super) fn forget(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.by_text.invalidate_all();
    }

    fn get(&self, sql: &str) -> Option<Arc<Compiled>> {
        self.by_text.get(sql).filter(|compiled| compiled.generation == self.generation())
    }

    /// Keeps the plan of `sql`, if it is nothing but a look-up; returns of how many keys for each row of parameters.
    pub(super) fn keep(
        &self,
        engine: &Engine,
        sql: &str,
        plan: &LogicalPlan,
        prepared: &Prepared,
        generation: u64,
    ) -> Result<Option<usize>> {
        if sql.len() > SQL_BYTES_MAX {
            return Ok(None);
        }
        let schema = Arc::clone(&prepared.schema);
        let latest = CompiledLatest::of(plan, schema, &engine.online, &engine.clock)?;
        let keys = latest.as_ref().map(CompiledLatest::keys);
        if let Some(latest) = latest {
            let parameters = Arc::clone(&prepared.parameters);
            let (checked_us, checking) = (AtomicI64::new(engine.clock.now_us()), Arc::default());
            let (sql_shown, latest) = (bounded(sql), Arc::new(latest));
            let compiled = Compiled { sql: sql_shown, latest, parameters, generation, checked_us, checking };
            self.by_text.insert(sql.to_owned(), Arc::new(compiled));
        }
        Ok(keys)
    }
}

impl Compiled {
    pub(super) fn prepared(&self) -> Prepared {
        Prepared {
            kind: StatementKind::Query,
            schema: Arc::clone(self.latest.schema()),
            parameters: Arc::clone(&self.parameters),
            rows_each: Some(self.latest.keys()),
        }
    }

    /// Whether the definition was seen to be the catalog's less than so long ago.
    fn is_checked(&self, now_us: i64, within_us: i64) -> bool {
        let age_us = now_us.saturating_sub(self.checked_us.load(Ordering::Acquire));
        (0..within_us).contains(&age_us)
    }

    /// Asks the catalog for the definition, and forgets all statements where it is another one.
    async fn check(&self, engine: &Engine) {
        let group = self.latest.group();
        let asked_us = engine.clock.now_us();
        let asked = async {
            let listing = engine.registry.listing().await?;
            engine.registry.object_in(&listing, &group.name).await
        };
        let checked_us = match tokio::time::timeout(CATALOG_TIMEOUT, asked).await {
            Ok(Ok(Some(Object::FeatureGroup(now, _)))) => (now == *group).then_some(asked_us),
            Ok(Ok(_)) => None,
            // It is asked again in a while: look-ups must not wait for it one after the other.
            Ok(Err(_)) | Err(_) => Some(engine.clock.now_us()),
        };
        match checked_us {
            Some(checked_us) => self.checked_us.store(checked_us, Ordering::Release),
            None if self.generation == engine.compiled.generation() => engine.compiled.forget(),
            None => {} // by somebody who knew
        }
    }

    /// Runs the look-up; see [`Session::query_as`].
    pub(super) fn run(
        &self,
        session: &Session,
        id: Option<Uuid>,
        parameters: Option<&RecordBatch>,
    ) -> Result<SendableRecordBatchStream> {
        let parameters = parameters.filter(|given| given.num_columns() > 0);
        let keys = self.latest.keys().saturating_mul(parameters.map_or(1, RecordBatch::num_rows));
        let watch = match keys {
            0..=UNLISTED_KEYS_MAX => session.engine.running.begin_unlisted(&self.sql, &session.owner),
            _ => session.watch(Kind::Lookup, id, &self.sql),
        };
        watch.runs();
        match self.look_up(&session.engine, parameters) {
            Ok(rows) => Ok(watch.over(rows)),
            Err(error) => Err(watch.failed(error)),
        }
    }

    fn look_up(
        &self,
        engine: &Arc<Engine>,
        parameters: Option<&RecordBatch>,
    ) -> Result<SendableRecordBatchStream> {
        check_count(&self.parameters, parameters)?;
        let batches = match parameters {
            Some(parameters) => self.latest.run(parameters)?,
            None => self.latest.run(&once()?)?,
        };
        let (schema, engine) = (Arc::clone(self.latest.schema()), Arc::clone(engine));
        let batches = batches.map_err(move |error| {
            // Rows of a definition that is newer than this one: the next call plans by the catalog.
            if error.kind() == ErrorKind::Conflict {
                engine.compiled.forget();
            }
            error.into()
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}

/// Forgets every statement when the change of a definition is over, however it ends.
pub(super) struct ForgetAtEnd<'a>(pub(super) &'a CompiledStatements);

impl Drop for ForgetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.forget();
    }
}

/// One row of no values: a statement without parameters runs once.
fn once() -> Result<RecordBatch> {
    let rows = RecordBatchOptions::new().with_row_count(Some(1));
    Ok(RecordBatch::try_new_with_options(Arc::new(Schema::empty()), vec![], &rows)?)
}

impl Session {
    /// The look-up that `sql` is for this session, if it is kept ready.
    pub(super) async fn compiled(&self, sql: &str) -> Option<Arc<Compiled>> {
        let compiled = self.engine.compiled.get(sql).filter(|_| self.is_plain())?;
        self.is_current(&compiled).await.then_some(compiled)
    }

    /// Whether the definition is the catalog's, as of a moment ago. Without a catalog the last one known is the best
    /// there is.
    async fn is_current(&self, compiled: &Arc<Compiled>) -> bool {
        let engine = &self.engine;
        let is_checked = |within_us| compiled.is_checked(engine.clock.now_us(), within_us);
        if is_checked(DEFINITION_RECHECK_US) {
            return true;
        }
        let is_known = is_checked(DEFINITION_STALENESS_US);
        match Arc::clone(&compiled.checking).try_lock_owned() {
            Ok(turn) => {
                let (compiled, engine) = (Arc::clone(compiled), Arc::clone(engine));
                // A task of its own: it must come to its end though the look-up that asks for it does not.
                let check = tokio::spawn(async move {
                    compiled.check(&engine).await;
                    drop(turn);
                });
                if !is_known {
                    let _ = check.await;
                }
            }
            Err(_) if is_known => {}
            // Somebody is asking. Whoever waits here may be left alone for long, as where a client does not read, and must
            // not be given what all others wait for.
            Err(_) => {
                let checking = Arc::clone(&compiled.checking);
                let _ = tokio::spawn(async move { drop(checking.lock_owned().await) }).await;
            }
        }
        compiled.generation == engine.compiled.generation()
    }
}
