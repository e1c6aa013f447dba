//! Look-ups that run often, kept ready for all sessions.
//!
//! A model server sends one statement a thousand times a second. What it means depends on the text, on the feature
//! group's definition, and on whether the session hides the group behind a temporary table; so it is kept by its
//! text, dropped when this server changes a definition, and compared with the catalog once in a while, because other
//! servers change definitions too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use datafusion::arrow::array::{RecordBatch, RecordBatchOptions};
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::TryStreamExt;
use moka::sync::Cache;
use parking_lot::Mutex;

use super::bind::check_count;
use super::engine::Engine;
use super::latest::CompiledLatest;
use super::session::{Prepared, Session, StatementKind};
use crate::error::Result;
use crate::registry::{DEFAULT_SCHEMA, Object};

/// How many statements are kept.
const STATEMENTS_MAX: u64 = 1024;
/// The longest text that is kept.
const SQL_BYTES_MAX: usize = 64 << 10;
/// For how long a definition that another server changed may still be served as it was.
const DEFINITION_STALENESS: Duration = Duration::from_secs(1);

/// What is kept of one text.
#[derive(Debug)]
pub(super) struct Compiled {
    latest: Arc<CompiledLatest>,
    parameters: SchemaRef,
    generation: u64,
    checked: Mutex<Instant>,
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

    /// Keeps the plan of `sql`, if it is nothing but a look-up.
    pub(super) fn keep(
        &self,
        engine: &Engine,
        sql: &str,
        plan: &LogicalPlan,
        prepared: &Prepared,
        generation: u64,
    ) -> Result<()> {
        if sql.len() > SQL_BYTES_MAX {
            return Ok(());
        }
        let schema = Arc::clone(&prepared.schema);
        if let Some(latest) = CompiledLatest::of(plan, schema, &engine.online, &engine.clock)? {
            let parameters = Arc::clone(&prepared.parameters);
            let (latest, checked) = (Arc::new(latest), Mutex::new(Instant::now()));
            self.by_text
                .insert(sql.to_owned(), Arc::new(Compiled { latest, parameters, generation, checked }));
        }
        Ok(())
    }
}

impl Compiled {
    pub(super) fn prepared(&self) -> Prepared {
        Prepared {
            kind: StatementKind::Query,
            schema: Arc::clone(self.latest.schema()),
            parameters: Arc::clone(&self.parameters),
        }
    }

    /// Runs the look-up; see [`Session::query`].
    pub(super) fn run(&self, parameters: Option<&RecordBatch>) -> Result<SendableRecordBatchStream> {
        check_count(&self.parameters, parameters)?;
        let batches = match parameters.filter(|given| given.num_columns() > 0) {
            Some(parameters) => self.latest.run(parameters)?,
            None => self.latest.run(&once()?)?,
        };
        let schema = Arc::clone(self.latest.schema());
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches.map_err(Into::into))))
    }

    /// Whether the catalog is to be asked again; only one caller is told so at a time.
    fn is_due(&self) -> bool {
        let mut checked = self.checked.lock();
        let due = checked.elapsed() >= DEFINITION_STALENESS;
        if due {
            *checked = Instant::now();
        }
        due
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
        let compiled = self.engine.compiled.get(sql)?;
        let group = compiled.latest.group();
        let hidden = group.name.schema == DEFAULT_SCHEMA && self.catalog.temp.get(&group.name.name).is_some();
        if hidden {
            return None;
        }
        if compiled.is_due() {
            let listing = self.engine.registry.listing().await;
            let object = match &listing {
                Ok(listing) => self.engine.registry.object_in(listing, &group.name).await,
                Err(_) => return Some(compiled), // without a catalog the last known definition is the best there is
            };
            match object {
                Ok(Some(Object::FeatureGroup(now, _))) if now == *group => {}
                Err(_) => {}
                Ok(_) => {
                    self.engine.compiled.forget();
                    return None;
                }
            }
        }
        Some(compiled)
    }
}
