//! What the store says of itself, as rows: `system.feature_groups`, `system.features`, `system.freshness`,
//! `system.jobs`, `system.online_cache`, `system.queries`, and `DESCRIBE`.

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
    TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::catalog::{MemTable, TableProvider};

use super::jobs::{Ended, Job};
use super::running::Run;
use crate::error::Result;
use crate::ingest::{Freshness, Lag};
use crate::model::{Column, FeatureGroup};
use crate::offline::OfflineTable;
use crate::online::CacheStatistics;
use crate::registry::default_text;

pub(super) const SCHEMA: &str = "system";
pub(super) const TABLES: [&str; 6] =
    ["feature_groups", "features", FRESHNESS, "jobs", "online_cache", "queries"];
/// The one that asks the online store of every group.
pub(super) const FRESHNESS: &str = "freshness";

/// What system tables are made of.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// The feature groups that exist.
    pub(super) groups: Vec<(Arc<FeatureGroup>, OfflineTable)>,
    /// How their online views stand; looked for where it is asked for.
    pub(super) freshness: Vec<Freshness>,
    /// What the cache in front of the online store says of itself, where there is one.
    pub(super) cache: Option<CacheStatistics>,
    /// The statements that run, and for how long, in microseconds.
    pub(super) running: Vec<(Arc<Run>, i64)>,
    /// The last jobs that have ended.
    pub(super) ended: Vec<Arc<Ended>>,
}

/// The system table `name`.
pub(super) fn table(name: &str, known: &Known) -> Result<Option<Arc<dyn TableProvider>>> {
    let groups: Vec<&FeatureGroup> = known.groups.iter().map(|(group, _)| group.as_ref()).collect();
    let batch = match name {
        "feature_groups" => feature_groups(&groups)?,
        "features" => features(&groups)?,
        FRESHNESS => freshness(&known.freshness)?,
        "jobs" => jobs(&known.running, &known.ended)?,
        "online_cache" => online_cache(known.cache)?,
        "queries" => queries(&known.running)?,
        _ => return Ok(None),
    };
    Ok(Some(Arc::new(MemTable::try_new(batch.schema(), vec![vec![batch]])?)))
}

fn feature_groups(groups: &[&FeatureGroup]) -> Result<RecordBatch> {
    let names =
        |of: &dyn Fn(&FeatureGroup) -> Vec<String>| -> ArrayRef { lists(groups.iter().map(|g| of(g))) };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("schema_name", strings(groups, |g| Some(g.name.schema.clone()))),
        ("name", strings(groups, |g| Some(g.name.name.clone()))),
        ("version", Arc::new(Int64Array::from_iter_values(groups.iter().map(|g| i64::from(g.version))))),
        ("entity_key", names(&|g| g.key_fields().iter().map(|f| f.name().clone()).collect())),
        ("event_time", strings(groups, |g| Some(g.columns[g.event_time].field.name().clone()))),
        ("features", names(&|g| g.features().iter().map(|&i| g.columns[i].field.name().clone()).collect())),
        ("ttl", strings(groups, |g| g.ttl.map(ttl_text))),
        ("owner", strings(groups, |g| g.owner.clone())),
        ("description", strings(groups, |g| g.description.clone())),
        ("tags", names(&|g| g.tags.clone())),
        ("online", Arc::new(BooleanArray::from_iter(groups.iter().map(|g| Some(g.online))))),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))?)
}

fn features(groups: &[&FeatureGroup]) -> Result<RecordBatch> {
    let rows: Vec<(&FeatureGroup, usize)> =
        groups.iter().flat_map(|g| (0..g.columns.len()).map(move |i| (*g, i))).collect();
    let text = |of: &dyn Fn(&FeatureGroup, usize) -> Option<String>| -> ArrayRef {
        Arc::new(StringArray::from_iter(rows.iter().map(|(g, i)| of(g, *i))))
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("schema_name", text(&|g, _| Some(g.name.schema.clone()))),
        ("feature_group", text(&|g, _| Some(g.name.name.clone()))),
        ("name", text(&|g, i| Some(g.columns[i].field.name().clone()))),
        ("position", Arc::new(Int64Array::from_iter_values(rows.iter().map(|(_, i)| *i as i64 + 1)))),
        ("role", text(&|g, i| Some(role(g, i).to_owned()))),
        ("data_type", text(&|g, i| Some(g.columns[i].field.data_type().to_string()))),
        ("default", text(&|g, i| g.columns[i].default.as_ref().and_then(default_text))),
        ("description", text(&|g, i| g.columns[i].description.clone())),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))?)
}

/// One row for each feature group that is served.
///
/// | column | |
/// |---|---|
/// | `schema_name`, `feature_group` | which |
/// | `snapshot_id`, `committed_at` | the current snapshot of its history; NULL where nothing was written yet |
/// | `applied_snapshot_id` | the snapshot up to which its history is served; NULL where nothing is |
/// | `snapshots_behind`, `rows_behind` | what was committed since and is not served yet; of rows, those that the snapshots say they added |
/// | `seconds_behind` | how long ago the oldest of those snapshots was committed; 0 where none is missing |
/// | `error` | why the online store does not say; then the columns before are NULL |
fn freshness(known: &[Freshness]) -> Result<RecordBatch> {
    let text = |of: fn(&Freshness) -> Option<String>| -> ArrayRef {
        Arc::new(StringArray::from_iter(known.iter().map(of)))
    };
    let count = |of: fn(&Lag) -> u64| -> ArrayRef {
        let counts = known
            .iter()
            .map(|group| Some(i64::try_from(of(group.applied.as_ref().ok()?)).unwrap_or(i64::MAX)));
        Arc::new(counts.collect::<Int64Array>())
    };
    let committed = known.iter().map(|group| group.committed_ms.map(|ms| ms * 1000));
    let committed = TimestampMicrosecondArray::from_iter(committed).with_timezone("UTC");
    let applied = known.iter().map(|group| group.applied.as_ref().ok()?.applied_snapshot_id);
    let seconds = known.iter().map(|group| Some(group.applied.as_ref().ok()?.age_us as f64 / 1e6));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("schema_name", text(|group| Some(group.group.name.schema.clone()))),
        ("feature_group", text(|group| Some(group.group.name.name.clone()))),
        ("snapshot_id", Arc::new(known.iter().map(|group| group.snapshot_id).collect::<Int64Array>())),
        ("committed_at", Arc::new(committed)),
        ("applied_snapshot_id", Arc::new(applied.collect::<Int64Array>())),
        ("snapshots_behind", count(|lag| lag.snapshots)),
        ("rows_behind", count(|lag| lag.rows)),
        ("seconds_behind", Arc::new(seconds.collect::<Float64Array>())),
        ("error", text(|group| group.applied.as_ref().err().map(ToString::to_string))),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))?)
}

/// One row, or none where there is no cache; counts are of this server since it started, and of keys.
///
/// | column | |
/// |---|---|
/// | `hits` | answered by the cache, absent ones included |
/// | `misses` | looked for in the cache and not in it |
/// | `joined` | misses that waited for a read of the online store already under way |
/// | `entries` | held now, absent ones included |
/// | `bytes` | what they weigh; `cache_capacity` bounds it |
/// | `invalidations` | told by the online store as changed, whoever changed them, held here or not |
/// | `clears` | how often everything was dropped: a connection lost or made, a store emptied, a group dropped |
/// | `tracking` | whether the online store tells of changes; while not, every read goes to it. NULL where no other server can make any |
fn online_cache(cache: Option<CacheStatistics>) -> Result<RecordBatch> {
    let count = |of: fn(&CacheStatistics) -> u64| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(
            cache.iter().map(|cache| i64::try_from(of(cache)).unwrap_or(i64::MAX)),
        ))
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("hits", count(|cache| cache.hits)),
        ("misses", count(|cache| cache.misses)),
        ("joined", count(|cache| cache.joined)),
        ("entries", count(|cache| cache.entries)),
        ("bytes", count(|cache| cache.bytes)),
        ("invalidations", count(|cache| cache.invalidations)),
        ("clears", count(|cache| cache.clears)),
        ("tracking", Arc::new(BooleanArray::from_iter(cache.iter().map(|cache| cache.tracking)))),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))?)
}

/// One row for each statement that runs on this server, by everybody; not for look-ups that are kept ready.
///
/// | column | |
/// |---|---|
/// | `query_id` | what `KILL QUERY '…'` takes |
/// | `user_name` | who runs it, where users are known |
/// | `client` | where the session was first used from |
/// | `kind` | `query`, `lookup` (of many keys), `update` or `ingest` |
/// | `state` | `planning`, `queued` or `running` |
/// | `sql` | the text, as far as 4 KiB go |
/// | `started_at` | when it came |
/// | `elapsed_ms` | how long ago that is |
/// | `rows` | of the result that the client has taken; of an ingest, that came in |
/// | `bytes` | what those rows take in memory |
fn queries(running: &[(Arc<Run>, i64)]) -> Result<RecordBatch> {
    let text = |of: &dyn Fn(&Run) -> Option<String>| -> ArrayRef {
        Arc::new(StringArray::from_iter(running.iter().map(|(run, _)| of(run))))
    };
    let count = |of: &dyn Fn(&Run) -> u64| -> ArrayRef {
        let counts = running.iter().map(|(run, _)| i64::try_from(of(run)).unwrap_or(i64::MAX));
        Arc::new(Int64Array::from_iter_values(counts))
    };
    let started = running.iter().map(|(run, _)| run.started_us);
    let started = TimestampMicrosecondArray::from_iter_values(started).with_timezone("UTC");
    let elapsed = Int64Array::from_iter_values(running.iter().map(|(_, elapsed_us)| elapsed_us / 1000));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("query_id", text(&|run| Some(run.id.to_string()))),
        ("user_name", text(&|run| run.owner.user.as_deref().map(str::to_owned))),
        ("client", text(&|run| run.owner.client.map(|address| address.to_string()))),
        ("kind", text(&|run| Some(run.kind.name().to_owned()))),
        ("state", text(&|run| Some(run.state().to_owned()))),
        ("sql", text(&|run| Some(run.sql.to_string()))),
        ("started_at", Arc::new(started)),
        ("elapsed_ms", Arc::new(elapsed)),
        ("rows", count(&Run::rows)),
        ("bytes", count(&Run::bytes)),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))?)
}

/// One row for each write that may take long: those that run on this server, and the last ones that ended, for a day at
/// most; of `INSERT` and bulk ingest those that took a second.
///
/// | column | |
/// |---|---|
/// | `job_id` | the `query_id` of its statement, which `KILL QUERY '…'` takes |
/// | `kind` | `copy`, `ingest`, `insert`, `delete`, `refresh`, `optimize`, `vacuum` or `purge` |
/// | `target` | the table, as schema.name |
/// | `state` | those of `system.queries`; then `done`, `cancelled` or `failed` |
/// | `rows` | that came in so far, or were changed in the end; NULL for upkeep |
/// | `started_at`, `ended_at` | when it came and when it ended; NULL while it runs |
/// | `elapsed_ms` | from the one to the other, or until now |
/// | `user_name` | who runs it, where users are known |
/// | `sql` | the text, as far as 4 KiB go |
/// | `error` | why it failed |
fn jobs(running: &[(Arc<Run>, i64)], ended: &[Arc<Ended>]) -> Result<RecordBatch> {
    struct Row<'a> {
        run: &'a Run,
        job: &'a Job,
        elapsed_us: i64,
        ended: Option<&'a Ended>,
    }
    let has_ended = |run: &Arc<Run>| ended.iter().any(|ended| Arc::ptr_eq(&ended.run, run));
    let over = ended.iter().filter_map(|ended| {
        let elapsed_us = ended.ended_us.saturating_sub(ended.run.started_us);
        Some(Row { run: &ended.run, job: ended.run.job()?, elapsed_us, ended: Some(ended) })
    });
    let under_way = running.iter().filter(|(run, _)| !has_ended(run)).filter_map(|(run, elapsed_us)| {
        Some(Row { run, job: run.job()?, elapsed_us: *elapsed_us, ended: None })
    });
    let rows: Vec<Row<'_>> = over.chain(under_way).collect();
    let text = |of: &dyn Fn(&Row<'_>) -> Option<String>| -> ArrayRef {
        Arc::new(StringArray::from_iter(rows.iter().map(of)))
    };
    let times = |of: &dyn Fn(&Row<'_>) -> Option<i64>| -> ArrayRef {
        Arc::new(TimestampMicrosecondArray::from_iter(rows.iter().map(of)).with_timezone("UTC"))
    };
    let count =
        |row: &Row<'_>| row.job.kind.counts_rows().then(|| i64::try_from(row.run.rows()).unwrap_or(i64::MAX));
    let elapsed = Int64Array::from_iter_values(rows.iter().map(|row| row.elapsed_us / 1000));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("job_id", text(&|row| Some(row.run.id.to_string()))),
        ("kind", text(&|row| Some(row.job.kind.name().to_owned()))),
        ("target", text(&|row| Some(row.job.target.to_string()))),
        ("state", text(&|row| Some(row.ended.map_or(row.run.state(), |ended| ended.state).to_owned()))),
        ("rows", Arc::new(rows.iter().map(count).collect::<Int64Array>())),
        ("started_at", times(&|row| Some(row.run.started_us))),
        ("ended_at", times(&|row| Some(row.ended?.ended_us))),
        ("elapsed_ms", Arc::new(elapsed)),
        ("user_name", text(&|row| row.run.owner.user.as_deref().map(str::to_owned))),
        ("sql", text(&|row| Some(row.run.sql.to_string()))),
        ("error", text(&|row| row.ended?.error.clone())),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))?)
}

/// The answer to `DESCRIBE`: one row for each column; `group` adds roles, defaults and descriptions.
pub(super) fn describe(fields: &[FieldRef], group: Option<&FeatureGroup>) -> Result<RecordBatch> {
    let column = |i: usize| -> Option<&Column> { group.and_then(|g| g.columns.get(i)) };
    let text = |of: &dyn Fn(usize) -> Option<String>| -> ArrayRef {
        Arc::new(StringArray::from_iter((0..fields.len()).map(of)))
    };
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("column_name", text(&|i| Some(fields[i].name().clone()))),
        ("data_type", text(&|i| Some(fields[i].data_type().to_string()))),
        ("is_nullable", text(&|i| Some(if fields[i].is_nullable() { "YES" } else { "NO" }.to_owned()))),
        ("role", text(&|i| group.map(|g| role(g, i).to_owned()))),
        ("default", text(&|i| column(i)?.default.as_ref().and_then(default_text))),
        ("description", text(&|i| column(i)?.description.clone())),
    ];
    Ok(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true)))?)
}

fn role(group: &FeatureGroup, column: usize) -> &'static str {
    if group.entity_key.contains(&column) {
        "entity key"
    } else if group.event_time == column {
        "event time"
    } else {
        "feature"
    }
}

/// A TTL as one would write it: `30days`, `36h`.
pub(super) fn ttl_text(ttl: Duration) -> String {
    humantime::format_duration(ttl).to_string()
}

fn strings(groups: &[&FeatureGroup], of: impl Fn(&FeatureGroup) -> Option<String>) -> ArrayRef {
    Arc::new(StringArray::from_iter(groups.iter().map(|g| of(g))))
}

fn lists(rows: impl Iterator<Item = Vec<String>>) -> ArrayRef {
    let element = Field::new("element", DataType::Utf8, true);
    let mut builder = ListBuilder::new(StringBuilder::new()).with_field(element);
    for row in rows {
        builder.append_value(row.into_iter().map(Some));
    }
    Arc::new(builder.finish())
}
