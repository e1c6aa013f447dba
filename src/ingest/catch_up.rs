//! The online store follows Iceberg: whatever snapshots it has not applied are replayed, in any order, because newer
//! wins. Those that only put files in the place of others have nothing to replay, and what those took away that delete rows
//! is erased behind it: see [`super::erase`]. The same code serves a write, a restart after a crash, and a store that was
//! wiped.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::arrow::array::RecordBatch;
use datafusion::catalog::TableProvider;
use datafusion::execution::context::SessionContext;
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionConfig;
use futures::TryStreamExt;
use parking_lot::Mutex;
use uuid::Uuid;

use super::Ingest;
use crate::error::Result;
use crate::model::FeatureGroup;
use crate::offline::{IcebergTable, OfflineTable};
use crate::registry::{Object, object_of};

/// In the place of an applied snapshot: nothing has been applied. No snapshot has this id.
pub(super) const NOTHING_APPLIED: i64 = -1;

/// Who is shown the rows that were applied.
pub(super) type Seen<'a> = &'a (dyn Fn(&RecordBatch) + Sync);

/// One at a time for each group or table.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<()>>>>);

impl Locks {
    pub(super) fn of(&self, group: Uuid) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.0.lock().entry(group).or_default())
    }
}

impl Ingest {
    /// Applies to the online store what `table`'s current snapshot has and the store has not. Returns the rows applied,
    /// which `seen` is shown as they are.
    pub(crate) async fn catch_up(
        &self,
        group: &Arc<FeatureGroup>,
        table: &OfflineTable,
        seen: Seen<'_>,
    ) -> Result<u64> {
        let Some(current) = table.metadata().current_snapshot_id().filter(|_| group.online) else {
            return Ok(0);
        };
        let lock = self.locks.of(group.id);
        let _one_at_a_time = lock.lock().await;
        let mut applied = self.catch_up_with(group, table, current, seen).await?;
        // Another server may have deleted rows, and erased them from the store that both share, before this one had brought
        // them there.
        let mut seen_to = current;
        while self.online.is_shared()
            && let Some(newest) = self.offline.load(&group.name).await?
            && newest.metadata().uuid() == group.id
            && !newest.deletions_since(Some(seen_to)).is_empty()
            && let Object::FeatureGroup(group, newest) = object_of(newest)?
            && let Some(current) = newest.metadata().current_snapshot_id().filter(|_| group.online)
        {
            applied += self.catch_up_with(&group, &newest, current, seen).await?;
            seen_to = current;
        }
        Ok(applied)
    }

    /// As [`Self::catch_up`], under the group's lock.
    async fn catch_up_with(
        &self,
        group: &Arc<FeatureGroup>,
        table: &OfflineTable,
        current: i64,
        seen: Seen<'_>,
    ) -> Result<u64> {
        let noted = self.online.applied_snapshot(group.id).await?;
        let missing = match noted {
            Some(applied) if applied == current => return Ok(0),
            Some(applied) => {
                // A concurrent write may have applied a later snapshot, of which this one is an ancestor.
                if table.metadata().snapshot_by_id(applied).is_none()
                    && self.is_behind(group, applied).await?
                {
                    return Ok(0);
                }
                table.writes_since(applied)
            }
            None => None,
        };
        let offline = Arc::clone(&self.offline);
        let rows: Vec<IcebergTable> = match missing {
            Some(writes) => {
                let rows = |(then, added)| IcebergTable::added_by(Arc::clone(&offline), then, added);
                writes.into_iter().map(rows).collect()
            }
            None => vec![IcebergTable::current(offline, table.clone())],
        };
        let mut applied = 0;
        for rows in rows {
            applied += self.apply(group, &rows, seen).await?;
        }
        let deletions = table.deletions_since(noted);
        if !deletions.is_empty() {
            Box::pin(self.erase(group, table, &deletions, seen)).await?;
        }
        self.online.set_applied_snapshot(group.id, current).await?;
        Ok(applied)
    }

    /// Applies all rows of `table` again. Nothing is taken away first, so that nothing is missing meanwhile, and writes
    /// of this or another server may go on: newer wins, and what was lost comes back.
    pub(crate) async fn rebuild(
        &self,
        group: &Arc<FeatureGroup>,
        table: &OfflineTable,
        seen: Seen<'_>,
    ) -> Result<u64> {
        let lock = self.locks.of(group.id);
        let _one_at_a_time = lock.lock().await;
        let rows = IcebergTable::current(Arc::clone(&self.offline), table.clone());
        let applied = self.apply(group, &rows, seen).await?;
        Box::pin(self.erase(group, table, &table.deletions_since(None), seen)).await?;
        // What was noted before may be newer than this view; what was not noted is all there now.
        if let Some(current) = table.metadata().current_snapshot_id() {
            let applied = self.online.applied_snapshot(group.id).await?;
            let is_earlier = |applied: i64| {
                applied == NOTHING_APPLIED
                    || table.ancestors().any(|snapshot| snapshot.snapshot_id() == applied)
            };
            if applied.is_none_or(is_earlier) {
                self.online.set_applied_snapshot(group.id, current).await?;
            }
        }
        Ok(applied)
    }

    /// Catches up with a table that was just written to, under the definition that it has by then: its rows may not be of
    /// the one under which they came.
    pub(super) async fn follow(&self, table: OfflineTable) -> Result<u64> {
        match object_of(table)? {
            Object::FeatureGroup(group, table) => self.catch_up(&group, &table, &|_| ()).await,
            Object::Table(_) => Ok(0),
        }
    }

    /// Whether the online store lacks what a changed definition serves: of a group that was not served all of it, and
    /// where entries expire those that now live longer.
    pub(crate) fn must_replay(&self, before: &FeatureGroup, after: &FeatureGroup) -> bool {
        let outlives = match (before.ttl, after.ttl) {
            (Some(before), Some(after)) => after > before,
            (before, after) => before.is_some() && after.is_none(),
        };
        after.online && (!before.online || outlives && self.online.expires())
    }

    /// Has the group replayed from the beginning by whoever catches up next.
    pub(crate) async fn forget_applied(&self, group: Uuid) -> Result<()> {
        let lock = self.locks.of(group);
        let _one_at_a_time = lock.lock().await;
        self.online.set_applied_snapshot(group, NOTHING_APPLIED).await
    }

    /// Removes the entries of a group that is not served any more, if that is still so.
    pub(crate) async fn drop_unserved(&self, group: &FeatureGroup) -> Result<()> {
        let lock = self.locks.of(group.id);
        let _one_at_a_time = lock.lock().await;
        match self.registry.object(&group.name).await? {
            Some(Object::FeatureGroup(now, _)) if now.id == group.id && now.online => Ok(()),
            _ => self.online.drop_group(group.id).await,
        }
    }

    /// Whether `applied` is a snapshot of the group that is newer than the caller's view.
    async fn is_behind(&self, group: &FeatureGroup, applied: i64) -> Result<bool> {
        let newest = self.offline.load(&group.name).await?;
        Ok(newest.is_some_and(|t| {
            t.metadata().uuid() == group.id && t.metadata().snapshot_by_id(applied).is_some()
        }))
    }

    pub(super) async fn apply(
        &self,
        group: &Arc<FeatureGroup>,
        rows: &IcebergTable,
        seen: Seen<'_>,
    ) -> Result<u64> {
        let config = SessionConfig::new().with_target_partitions(1);
        let state = SessionContext::new_with_config_rt(config, Arc::clone(&self.runtime)).state();
        let plan = rows.scan(&state, None, &[], None).await?;
        let mut batches = execute_stream(plan, state.task_ctx())?;
        let mut applied = 0;
        while let Some(batch) = batches.try_next().await? {
            applied += batch.num_rows() as u64;
            self.online.write(group, &batch).await?;
            seen(&batch);
        }
        Ok(applied)
    }

    /// Catches up every feature group whose online view is behind its history: after a restart, after a write whose
    /// client went away or whose store did not answer, and after the store was wiped. Cheap where nothing is missing.
    /// Returns how many groups could not be caught up.
    pub(crate) async fn catch_up_all(&self) -> Result<usize> {
        let listing = self.registry.listing().await?;
        let mut behind = 0;
        for (group, table) in self.registry.feature_groups(&listing).await {
            match self.catch_up(&group, &table, &|_| ()).await {
                Ok(0) => {}
                Ok(rows) => tracing::info!(group = %group.name, rows, "online store caught up"),
                Err(error) => {
                    tracing::debug!(group = %group.name, %error, "online store is behind");
                    behind += 1;
                }
            }
        }
        Ok(behind)
    }
}
