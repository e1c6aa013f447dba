//! `CHECKPOINT`: puts logged rows into snapshots, where other engines and servers see them, and not only when they are due.

use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::SessionState;
use datafusion::sql::parser::Statement;

use super::engine::Engine;
use super::session::{Session, default_schema, table_name};
use super::time_travel;
use crate::error::{Error, Result};
use crate::model::TableName;

impl Session {
    /// Of one table, or of all.
    ///
    /// # Errors
    /// `NotFound`; where rows could not be committed they stay in the log, and the error says why.
    pub(super) async fn checkpoint(&self, name: Option<&TableName>) -> Result<()> {
        if let Some(name) = name
            && self.engine.registry.object(name).await?.is_none()
        {
            return Err(Error::not_found(format!("table '{name}' does not exist")));
        }
        self.engine.checkpoint(name).await.map(|_| ())
    }
}

impl Session {
    /// Before a statement that reads versions of tables: what is logged becomes a version. Where that changes something,
    /// `state` sees it.
    pub(super) async fn fold_versioned(&self, state: &SessionState, statement: &mut Statement) -> Result<()> {
        for name in time_travel::versioned(statement) {
            let name = table_name(&name, default_schema(state))?;
            if self.engine.checkpoint(Some(&name)).await? {
                self.catalog.refresh().await?;
            }
        }
        Ok(())
    }
}

impl Engine {
    /// See [`crate::ingest::Ingest::checkpoint`]. It runs plans, to catch up, and so on the threads that have stacks for them.
    pub(super) async fn checkpoint(&self, name: Option<&TableName>) -> Result<bool> {
        let (ingest, name) = (Arc::clone(&self.ingest), name.cloned());
        self.compute.run(async move { ingest.checkpoint(name.as_ref()).await }).await
    }

    /// Waits until logged rows should be folded before their time.
    pub(crate) async fn fold_wanted(&self) {
        self.ingest.fold_wanted().await;
    }

    /// Puts rows into snapshots that are logged for longer than `age`, or that are many; returns of how many tables that
    /// did not succeed.
    pub(crate) async fn fold_due(&self, age: Duration) -> Result<usize> {
        let ingest = Arc::clone(&self.ingest);
        self.compute.run(async move { Ok(ingest.fold_due(age).await) }).await
    }
}
