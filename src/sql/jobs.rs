//! Long-running writes: which statements are such, and the last ones that ended; `system.jobs` shows them.

use std::collections::VecDeque;
use std::sync::Arc;

use datafusion::logical_expr::{LogicalPlan, WriteOp};
use parking_lot::Mutex;

use super::running::Run;
use super::session::{Planned, referenced, table_name};
use crate::error::Result;
use crate::model::TableName;

/// How many that have ended are remembered, and for how long.
const ENDED_MAX: usize = 256;
const ENDED_US_MAX: i64 = 24 * 60 * 60 * 1_000_000;

/// Writes of rows that took no longer are not remembered: they come by the thousand.
const SHORT_US: i64 = 1_000_000;

/// What a write does, and to what.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) kind: JobKind,
    pub(super) target: TableName,
}

/// What a write does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobKind {
    Copy,
    Ingest,
    Stream,
    Insert,
    Delete,
    Refresh,
    Optimize,
    Vacuum,
    Purge,
}

impl JobKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Ingest => "ingest",
            Self::Stream => "stream",
            Self::Insert => "insert",
            Self::Delete => "delete",
            Self::Refresh => "refresh",
            Self::Optimize => "optimize",
            Self::Vacuum => "vacuum",
            Self::Purge => "purge",
        }
    }

    /// Whether it counts rows as it goes.
    pub(super) fn counts_rows(self) -> bool {
        !matches!(self, Self::Optimize | Self::Vacuum | Self::Purge)
    }

    fn is_often_short(self) -> bool {
        matches!(self, Self::Ingest | Self::Stream | Self::Insert)
    }
}

impl Job {
    /// What an update does, if it is a job.
    pub(super) fn of(planned: &Planned, default_schema: &str) -> Result<Option<Self>> {
        let (kind, target) = match planned {
            Planned::Copy(copy) => (JobKind::Copy, table_name(&copy.name, default_schema)?),
            Planned::RefreshOnline(refresh) => (JobKind::Refresh, refresh.name.clone()),
            Planned::Update(LogicalPlan::Dml(dml)) => {
                let kind = match dml.op {
                    WriteOp::Insert(_) => JobKind::Insert,
                    WriteOp::Delete => JobKind::Delete,
                    _ => return Ok(None),
                };
                (kind, referenced(&dml.table_name, default_schema)?)
            }
            _ => return Ok(None),
        };
        Ok(Some(Self { kind, target }))
    }
}

/// A job that has ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) run: Arc<Run>,
    pub(super) ended_us: i64,
    /// `done`, `cancelled` or `failed`.
    pub(super) state: &'static str,
    pub(super) error: Option<String>,
}

/// The last jobs that have ended, in that order.
#[derive(Debug, Default)]
pub(super) struct EndedJobs(Mutex<VecDeque<Arc<Ended>>>);

impl EndedJobs {
    /// Remembers one, if it is a job to be remembered.
    pub(super) fn keep(&self, ended: Ended) {
        let Some(job) = ended.run.job() else { return };
        let elapsed_us = ended.ended_us.saturating_sub(ended.run.started_us);
        if job.kind.is_often_short() && elapsed_us < SHORT_US {
            return;
        }
        let mut kept = self.0.lock();
        if kept.len() == ENDED_MAX {
            kept.pop_front();
        }
        kept.push_back(Arc::new(ended));
    }

    pub(super) fn list(&self, now_us: i64) -> Vec<Arc<Ended>> {
        let mut kept = self.0.lock();
        kept.retain(|ended| now_us.saturating_sub(ended.ended_us) <= ENDED_US_MAX);
        kept.iter().cloned().collect()
    }
}
