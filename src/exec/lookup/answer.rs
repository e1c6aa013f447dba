//! From stored entries to the columns of an answer. Pure: no I/O, no clock.

use std::sync::Arc;
use std::time::Duration;

use datafusion::arrow::array::{
    ArrayRef, BooleanArray, PrimitiveArray, Scalar, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::compute::kernels::zip::zip;
use datafusion::arrow::compute::{filter, nullif};
use datafusion::arrow::datatypes::{DataType, TimestampMicrosecondType};

use super::columns::LatestColumn;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{FeatureGroup, RowLayout, StoredRow, decode_features, pick};
use crate::online::Entries;

/// What becomes of a row whose entity has no row that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Missing {
    /// It stays, with defaults for features and a status that says why: `LATEST(group, key, …)`.
    Explain,
    /// It goes, as in an inner join.
    Drop,
    /// It stays, with NULLs, as in a left join.
    Null,
}

impl Missing {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Explain => "explain",
            Self::Drop => "drop",
            Self::Null => "null",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Present,
    NotFound,
    OutsideMaxAge,
}

impl Status {
    fn as_str(self) -> &'static str {
        match self {
            Self::Present => "PRESENT",
            Self::NotFound => "NOT_FOUND",
            Self::OutsideMaxAge => "OUTSIDE_MAX_AGE",
        }
    }
}

/// Turns entries of one feature group into columns.
#[derive(Debug)]
pub(super) struct Answerer {
    group: Arc<FeatureGroup>,
    layout: RowLayout,
    missing: Missing,
}

impl Answerer {
    pub(super) fn new(group: Arc<FeatureGroup>, missing: Missing) -> Result<Self> {
        Ok(Self { layout: RowLayout::new(&group)?, group, missing })
    }

    /// The rows that `entries` (one per row asked) serve at `now_us`, the moment that the query asks about. They were
    /// read at `read_us`: what was due by then may have taken the place of what was due before, and is served instead.
    ///
    /// # Errors
    /// `Corrupt`, naming the feature group, for bytes that are no entry. An answer without the entity would be
    /// taken for the truth, so a damaged entry fails the look-up until it is written again.
    pub(super) fn answer<'a>(
        &'a self,
        entries: &'a Entries,
        now_us: i64,
        read_us: i64,
    ) -> Result<Answer<'a>> {
        let ttl_us = self.group.ttl.map(|ttl| i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX));
        let oldest_us = ttl_us.map_or(i64::MIN, |ttl| now_us.saturating_sub(ttl));
        let mut rows = Vec::with_capacity(entries.len());
        let mut statuses = Vec::with_capacity(entries.len());
        for entry in entries.iter() {
            let row = match entry {
                Some(entry) => match pick(entry, now_us).map_err(|e| self.damaged(e))? {
                    None if read_us > now_us => pick(entry, read_us).map_err(|e| self.damaged(e))?,
                    row => row,
                },
                None => None,
            };
            statuses.push(match &row {
                None => Status::NotFound,
                Some(row) if row.order.event_time_us < oldest_us => Status::OutsideMaxAge,
                Some(_) => Status::Present,
            });
            rows.push(row);
        }
        let keep = BooleanArray::from_iter(statuses.iter().map(|s| Some(*s == Status::Present)));
        if self.missing == Missing::Drop {
            retain_present(&mut rows, &statuses);
            statuses.retain(|s| *s == Status::Present);
        }
        Ok(Answer { answerer: self, rows, statuses, present: keep })
    }

    fn damaged(&self, error: Error) -> Error {
        if error.kind() != ErrorKind::Corrupt {
            let what =
                format!("a stored online value of feature group '{}': {}", self.group.name, error.message());
            return Error::new(error.kind(), what);
        }
        Error::corrupt(format!(
            "a stored online value of feature group '{}' cannot be read: write the entity again, or drop the online \
             store and let it be rebuilt from the history",
            self.group.name
        ))
        .with_source(error)
    }
}

fn retain_present(rows: &mut Vec<Option<StoredRow<'_>>>, statuses: &[Status]) {
    let mut statuses = statuses.iter();
    rows.retain(|_| statuses.next() == Some(&Status::Present));
}

/// What one batch of entries serves.
pub(super) struct Answer<'a> {
    answerer: &'a Answerer,
    /// One per row of the output.
    rows: Vec<Option<StoredRow<'a>>>,
    statuses: Vec<Status>,
    /// One per row asked.
    present: BooleanArray,
}

impl Answer<'_> {
    /// Rows of the output.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Which of the rows asked have a row to use.
    pub(super) fn present(&self) -> &BooleanArray {
        &self.present
    }

    /// A column of the input, for the rows that stay.
    pub(super) fn input(&self, column: &ArrayRef) -> Result<ArrayRef> {
        match self.answerer.missing {
            Missing::Drop if self.len() < column.len() => Ok(filter(column, &self.present)?),
            _ => Ok(Arc::clone(column)),
        }
    }

    /// Columns of `LATEST`; `keys` are the key columns as they were asked.
    pub(super) fn columns(&self, wanted: &[LatestColumn], keys: &[ArrayRef]) -> Result<Vec<ArrayRef>> {
        let features: Vec<usize> = wanted
            .iter()
            .filter_map(|c| match c {
                LatestColumn::Feature(i) => Some(*i),
                _ => None,
            })
            .collect();
        let mut features = self.features(&features)?.into_iter();
        let column = |column: &LatestColumn| match column {
            LatestColumn::Key(i) => self.key(&keys[*i]),
            LatestColumn::EventTime => Ok(self.event_times()),
            LatestColumn::Feature(_) => {
                features.next().ok_or_else(|| Error::internal("a feature was not decoded"))
            }
            LatestColumn::Status => Ok(self.statuses()),
        };
        wanted.iter().map(column).collect()
    }

    fn key(&self, column: &ArrayRef) -> Result<ArrayRef> {
        match self.answerer.missing {
            Missing::Null => Ok(nullif(column, &self.absent())?),
            Missing::Explain | Missing::Drop => self.input(column),
        }
    }

    fn event_times(&self) -> ArrayRef {
        let group = &self.answerer.group;
        let stale_too = self.answerer.missing == Missing::Explain;
        let times = self.rows.iter().zip(&self.statuses).map(|(row, status)| {
            row.filter(|_| stale_too || *status == Status::Present).map(|row| row.order.event_time_us)
        });
        let times: PrimitiveArray<TimestampMicrosecondType> = TimestampMicrosecondArray::from_iter(times);
        match group.columns[group.event_time].field.data_type() {
            DataType::Timestamp(_, zone) => Arc::new(times.with_timezone_opt(zone.clone())),
            _ => Arc::new(times),
        }
    }

    fn statuses(&self) -> ArrayRef {
        let shown = self.statuses.iter().map(|status| {
            let hidden = self.answerer.missing == Missing::Null && *status != Status::Present;
            (!hidden).then(|| status.as_str())
        });
        Arc::new(StringArray::from_iter(shown))
    }

    /// True where nothing may be used, for the rows of the output.
    fn absent(&self) -> BooleanArray {
        BooleanArray::from_iter(self.statuses.iter().map(|s| Some(*s != Status::Present)))
    }

    fn features(&self, wanted: &[usize]) -> Result<Vec<ArrayRef>> {
        let group = &self.answerer.group;
        let usable: Vec<Option<&[u8]>> = self
            .rows
            .iter()
            .zip(&self.statuses)
            .map(|(row, status)| row.filter(|_| *status == Status::Present).map(|row| row.bytes))
            .collect();
        let mut columns =
            decode_features(&self.answerer.layout, &usable, wanted).map_err(|e| self.answerer.damaged(e))?;
        let absent = self.absent();
        if self.answerer.missing != Missing::Explain || absent.true_count() == 0 {
            return Ok(columns);
        }
        let declared = group.features();
        for (column, feature) in columns.iter_mut().zip(wanted) {
            if let Some(default) = &group.columns[declared[*feature]].default {
                *column = zip(&absent, &Scalar::new(default.to_array()?), column)?;
            }
        }
        Ok(columns)
    }
}

/// The TTL for people: `30days`, or `none`.
pub(super) fn show_ttl(ttl: Option<Duration>) -> String {
    ttl.map_or_else(|| "none".to_owned(), |ttl| humantime::format_duration(ttl).to_string())
}
