//! `REFRESH ONLINE`: brings what is served up to the history, now and not with the server's next look.

use datafusion::arrow::array::RecordBatch;

use super::session::Session;
use crate::error::{Error, Result};
use crate::model::TableName;
use crate::registry::Object;

/// `REFRESH ONLINE name [FULL]`.
#[derive(Debug)]
pub(super) struct RefreshOnline {
    pub(super) name: TableName,
    /// Apply all of the history again, and not only what the online store has not applied.
    pub(super) full: bool,
}

impl Session {
    /// Returns the rows applied, each of which `applied` sees. Rows that are there already are applied without effect.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for what is not served; `Unavailable` where the online store does not answer.
    pub(super) async fn refresh_online(
        &self,
        refresh: &RefreshOnline,
        applied: &(dyn Fn(&RecordBatch) + Sync),
    ) -> Result<u64> {
        let name = &refresh.name;
        self.engine.checkpoint(Some(name)).await?;
        match self.engine.registry.object(name).await? {
            Some(Object::FeatureGroup(group, table)) if group.online => match refresh.full {
                true => self.engine.ingest.rebuild(&group, &table, applied).await,
                false => self.engine.ingest.catch_up(&group, &table, applied).await,
            },
            Some(Object::FeatureGroup(..)) => Err(Error::invalid(format!(
                "feature group '{name}' is not served online: ALTER FEATURE GROUP {name} SET (online = true) changes that"
            ))),
            Some(Object::Table(_)) => Err(Error::invalid(format!(
                "'{name}' is a plain table: only feature groups are served online"
            ))),
            None => Err(Error::not_found(format!("feature group '{name}' does not exist"))),
        }
    }
}
