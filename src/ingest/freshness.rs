//! How far what is served lags behind the history.

use std::sync::Arc;

use futures::StreamExt;

use super::Ingest;
use super::catch_up::NOTHING_APPLIED;
use crate::error::Result;
use crate::model::FeatureGroup;
use crate::offline::{OfflineTable, SnapshotRef, added_rows, is_rewrite, total_rows};

/// Groups whose online store is asked at a time.
const ASKED_AT_ONCE_MAX: usize = 16;

/// The online view of one feature group against its history.
#[derive(Debug)]
pub(crate) struct Freshness {
    pub(crate) group: Arc<FeatureGroup>,
    /// The history's current snapshot; `None` where nothing was written yet.
    pub(crate) snapshot_id: Option<i64>,
    /// When that was committed, in ms since 1970.
    pub(crate) committed_ms: Option<i64>,
    /// What the online store has applied, or why it does not say.
    pub(crate) applied: Result<Lag>,
}

/// What the online store has yet to apply.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Lag {
    /// The snapshot up to which everything is applied.
    pub(crate) applied_snapshot_id: Option<i64>,
    pub(crate) snapshots: u64,
    pub(crate) rows: u64,
    /// How long ago the oldest missing snapshot was committed, in µs; 0 where none is missing.
    pub(crate) age_us: i64,
}

impl Lag {
    fn of(table: &OfflineTable, applied_snapshot_id: Option<i64>, now_us: i64) -> Self {
        let is_applied = |snapshot: &&SnapshotRef| Some(snapshot.snapshot_id()) == applied_snapshot_id;
        let age_us =
            |snapshot: &SnapshotRef| now_us.saturating_sub(snapshot.timestamp_ms().saturating_mul(1000));
        let nothing = Self { applied_snapshot_id, ..Self::default() };
        if !table.ancestors().any(|snapshot| is_applied(&snapshot)) {
            // All of it will be applied, also what was added by snapshots that are no longer kept.
            return table.ancestors().fold(nothing, |lag, snapshot| Self {
                snapshots: lag.snapshots + 1,
                rows: lag.rows.max(total_rows(snapshot).unwrap_or(0)),
                age_us: lag.age_us.max(age_us(snapshot)),
                ..lag
            });
        }
        let missing = table.ancestors().take_while(|snapshot| !is_applied(snapshot));
        missing.filter(|snapshot| !is_rewrite(snapshot)).fold(nothing, |lag, snapshot| Self {
            snapshots: lag.snapshots + 1,
            rows: lag.rows + added_rows(snapshot).unwrap_or(0),
            age_us: lag.age_us.max(age_us(snapshot)),
            ..lag
        })
    }
}

impl Ingest {
    /// How every feature group that is served stands, ordered by name.
    pub(crate) async fn freshness(&self) -> Result<Vec<Freshness>> {
        let listing = self.registry.listing().await?;
        let groups = self.registry.feature_groups(&listing).await.into_iter();
        let asked = groups.filter(|(group, _)| group.online).map(|(group, _)| self.freshness_of(group));
        let asked: Vec<_> = futures::stream::iter(asked).buffered(ASKED_AT_ONCE_MAX).collect().await;
        let known: Vec<_> = asked.into_iter().collect::<Result<_>>()?;
        Ok(known.into_iter().flatten().collect())
    }

    /// `None` where the group was dropped meanwhile.
    async fn freshness_of(&self, group: Arc<FeatureGroup>) -> Result<Option<Freshness>> {
        // In this order, so that what is applied cannot be newer than the history that it is compared with.
        let applied = self.online.applied_snapshot(group.id).await;
        let table = self.offline.load(&group.name).await?;
        let Some(table) = table.filter(|table| table.metadata().uuid() == group.id) else { return Ok(None) };
        let (snapshot, now_us) = (table.snapshot(), self.clock.now_us());
        Ok(Some(Freshness {
            snapshot_id: snapshot.map(|snapshot| snapshot.snapshot_id()),
            committed_ms: snapshot.map(|snapshot| snapshot.timestamp_ms()),
            applied: applied
                .map(|applied| Lag::of(&table, applied.filter(|id| *id != NOTHING_APPLIED), now_us)),
            group,
        }))
    }
}
