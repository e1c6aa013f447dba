//! What is served after rows were deleted: entries of the entities that lost some are removed, and made again of the
//! history that is left.
//!
//! Which entities those are, the snapshots tell: of a deletion, by whomever, the files that it took away hold more rows of
//! them than the files that it added. So whoever catches up can do it: this server, another, or this one after a crash.
//!
//! An entry is removed before the history is read again. A row that another server commits later is brought by that server
//! later still, and one that it committed before is in the history that is read: nothing is lost. That no server brings
//! back what was deleted is for [`Ingest::catch_up`] to see to.

use std::collections::HashSet;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use datafusion::arrow::compute::filter_record_batch;
use datafusion::common::{JoinType, ScalarValue};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::provider_as_source;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::context::SessionContext;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::{Expr, LogicalPlanBuilder, col, ident, lit};
use datafusion::prelude::SessionConfig;
use futures::TryStreamExt;

use super::Ingest;
use super::catch_up::Seen;
use crate::error::Result;
use crate::model::{EntityKey, FeatureGroup, encode_keys};
use crate::offline::{DataFile, IcebergTable, OfflineTable, SnapshotRef};
use crate::registry::{Object, object_of};

/// Of more entities, not their rows but all of the history is read again.
const ENTITIES_MAX: usize = 10_000;

/// Entities that lost rows.
#[derive(Default)]
struct Lost {
    keys: HashSet<EntityKey>,
    /// The values of the first column of their keys.
    first: HashSet<ScalarValue>,
}

impl Ingest {
    /// Removes what is served of the entities that lost rows by `deletions`, and applies the rows of theirs that
    /// `table`, or what it is by now, still has.
    pub(super) async fn erase(
        &self,
        group: &Arc<FeatureGroup>,
        table: &OfflineTable,
        deletions: &[SnapshotRef],
        seen: Seen<'_>,
    ) -> Result<()> {
        let mut lost = Some(Lost::default());
        for deletion in deletions {
            let mut keys = match self.losers(group, table, deletion).await? {
                Some(keys) => keys,
                None => continue,
            };
            while let Some(batch) = keys.try_next().await? {
                let encoded: Vec<EntityKey> =
                    encode_keys(&key_columns(group, &batch))?.into_iter().flatten().collect();
                self.online.remove(group.id, &encoded).await?;
                if let Some(few) = &mut lost {
                    for row in 0..batch.num_rows() {
                        few.first.insert(ScalarValue::try_from_array(batch.column(0), row)?);
                    }
                    few.keys.extend(encoded);
                }
                lost = lost.filter(|lost| lost.keys.len() <= ENTITIES_MAX);
            }
        }
        // Looked for now, behind the removal: see above.
        let Some(newest) = self.offline.load(table.name()).await? else { return Ok(()) };
        if newest.metadata().uuid() != table.metadata().uuid() {
            return Ok(());
        }
        let Object::FeatureGroup(group, newest) = object_of(newest)? else { return Ok(()) };
        let rows = IcebergTable::current(Arc::clone(&self.offline), newest);
        match lost {
            Some(lost) if lost.keys.is_empty() => Ok(()),
            Some(lost) => self.apply_of(&group, rows, &lost, seen).await,
            None => self.apply(&group, &rows, seen).await.map(|_| ()),
        }
    }

    /// Applies the rows of these entities alone.
    async fn apply_of(
        &self,
        group: &Arc<FeatureGroup>,
        rows: IcebergTable,
        lost: &Lost,
        seen: Seen<'_>,
    ) -> Result<()> {
        let first = lost.first.iter().map(|value| Expr::Literal(value.clone(), None)).collect();
        let column = group.columns[group.entity_key[0]].field.name();
        let rows = self.rows(rows)?.filter(ident(column).in_list(first, false))?;
        let mut rows = rows.execute_stream().await?;
        while let Some(batch) = rows.try_next().await? {
            let columns: Vec<ArrayRef> =
                group.entity_key.iter().map(|&column| Arc::clone(batch.column(column))).collect();
            let is_lost = |key: Option<EntityKey>| key.is_some_and(|key| lost.keys.contains(&key));
            let theirs: BooleanArray =
                encode_keys(&columns)?.into_iter().map(|key| Some(is_lost(key))).collect();
            let batch = filter_record_batch(&batch, &theirs)?;
            self.online.write(group, &batch).await?;
            seen(&batch);
        }
        Ok(())
    }

    /// The keys of the entities of which a snapshot's files hold fewer rows than those that it took away; `None` where what
    /// it took away is not kept.
    async fn losers(
        &self,
        group: &FeatureGroup,
        table: &OfflineTable,
        deletion: &SnapshotRef,
    ) -> Result<Option<SendableRecordBatchStream>> {
        let Some(before) = table.before(deletion) else { return Ok(None) };
        let exchanged = self.offline.exchanged(table, deletion).await?;
        // Under names of our own: DataFusion reads dots and capitals into those of others.
        let fields = group.key_fields();
        let names = |side: &str| -> Vec<String> {
            (0..fields.len()).map(|number| format!("{side}_key_{number}")).collect()
        };
        let counted = |table: OfflineTable, files: Vec<DataFile>, side: &str| -> Result<DataFrame> {
            let rows = IcebergTable::of_files(Arc::clone(&self.offline), table, files);
            let named = fields.iter().zip(names(side)).map(|(field, name)| ident(field.name()).alias(name));
            let rows = self.rows(rows)?.select(named.collect::<Vec<_>>())?;
            let keys = names(side).iter().map(ident).collect();
            Ok(rows.aggregate(keys, vec![count(lit(1_i64)).alias(side)])?)
        };
        let (before_names, after_names) = (names("before"), names("after"));
        let before_keys: Vec<&str> = before_names.iter().map(String::as_str).collect();
        let after_keys: Vec<&str> = after_names.iter().map(String::as_str).collect();
        let after = counted(table.clone(), exchanged.added, "after")?;
        let both = counted(before, exchanged.removed, "before")?;
        let both = both.join(after, JoinType::Left, &before_keys, &after_keys, None)?;
        let is_less = col("after").is_null().or(col("after").lt(col("before")));
        let keys = before_names.iter().map(ident).collect::<Vec<_>>();
        Ok(Some(both.filter(is_less)?.select(keys)?.execute_stream().await?))
    }

    /// Rows of a table, to be read by one plan after the other in the order in which they lie.
    fn rows(&self, rows: IcebergTable) -> Result<DataFrame> {
        let config = SessionConfig::new().with_target_partitions(1);
        let state = SessionContext::new_with_config_rt(config, Arc::clone(&self.runtime)).state();
        let scan = LogicalPlanBuilder::scan("rows", provider_as_source(Arc::new(rows)), None)?.build()?;
        Ok(DataFrame::new(state, scan))
    }
}

/// The columns of a batch of keys, as they are encoded.
fn key_columns(group: &FeatureGroup, batch: &RecordBatch) -> Vec<ArrayRef> {
    (0..group.entity_key.len()).map(|column| Arc::clone(batch.column(column))).collect()
}
