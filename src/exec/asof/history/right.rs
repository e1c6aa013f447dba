//! What one right side of the join is: its files, how its times match, and what it puts out.

use std::sync::Arc;

use datafusion::arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::physical_expr::PhysicalExprRef;

use super::search::Window;
use crate::offline::HistoryFile;

/// What a value of a type without a width takes at least.
const TEXT_BYTES: usize = 24;

/// A column of the history, by its Iceberg field id; `name` finds it in files without ids.
#[derive(Debug, Clone)]
pub(in crate::exec::asof) struct HistoryColumn {
    pub(in crate::exec::asof) id: i32,
    pub(in crate::exec::asof) name: String,
    pub(in crate::exec::asof) data_type: DataType,
}

/// Where the values of an output come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::exec::asof) enum Origin {
    /// The key column of this place in the sort order: what the label has, too.
    Key(usize),
    /// The event time, known since the search.
    Time,
    /// The file.
    File,
}

/// A column that the join puts out, and what stands in where no row matches.
#[derive(Debug, Clone)]
pub(in crate::exec::asof) struct Output {
    pub(in crate::exec::asof) origin: Origin,
    pub(in crate::exec::asof) column: HistoryColumn,
    pub(in crate::exec::asof) absent: ScalarValue,
}

/// A file of the history, with what the choice among files needs.
#[derive(Debug)]
pub(in crate::exec::asof) struct SortedFile {
    pub(in crate::exec::asof) file: HistoryFile,
    /// Least and greatest event time, in the unit of the column.
    pub(in crate::exec::asof) times: (i64, i64),
    /// When the store learnt its rows, in µs since 1970, where that is one instant.
    pub(in crate::exec::asof) ingested_us: Option<i64>,
    /// Of rows of equal key and time in two files, that of the higher rank was ingested last.
    pub(in crate::exec::asof) rank: u32,
}

/// As-known-at: a row is visible where it was learnt no later than the bound.
#[derive(Debug, Clone)]
pub(in crate::exec::asof) struct KnownBy {
    /// An instant, over the left side.
    pub(in crate::exec::asof) bound: PhysicalExprRef,
    /// Its unit in nanoseconds.
    pub(in crate::exec::asof) unit_ns: i128,
    /// Whether a row learnt exactly at the bound is hidden.
    pub(in crate::exec::asof) strict: bool,
}

/// One right side.
#[derive(Debug, Clone)]
pub(in crate::exec::asof) struct Right {
    /// From the nearest in time: the latest first when looking back, the earliest first when looking forward.
    pub(in crate::exec::asof) files: Arc<[SortedFile]>,
    /// Whether all files are sorted by keys and time.
    pub(in crate::exec::asof) is_sorted: bool,
    /// In the files' sort order.
    pub(in crate::exec::asof) keys: Vec<HistoryColumn>,
    pub(in crate::exec::asof) time: HistoryColumn,
    pub(in crate::exec::asof) backward: bool,
    pub(in crate::exec::asof) strict: bool,
    /// Greatest distance of a match, itself included, in the common unit of the times.
    pub(in crate::exec::asof) reach: Option<i128>,
    /// How many of the common unit the label times and the event times count.
    pub(in crate::exec::asof) units: (i128, i128),
    pub(in crate::exec::asof) known_by: Option<KnownBy>,
    /// Whether labels without a match are dropped.
    pub(in crate::exec::asof) inner: bool,
    pub(in crate::exec::asof) outputs: Vec<Output>,
    /// Shown by `EXPLAIN`.
    pub(in crate::exec::asof) description: String,
}

impl Right {
    /// The event times that may match a label's time.
    #[inline]
    pub(super) fn window(&self, label_time: i64) -> Window {
        match (self.reach, self.units.0 == self.units.1, self.backward) {
            (None, true, true) => match label_time.checked_sub(i64::from(self.strict)) {
                Some(near) => Window { near, far: i64::MIN },
                None => Window::empty(true),
            },
            _ => self.window_of_any(label_time),
        }
    }

    fn window_of_any(&self, label_time: i64) -> Window {
        let (label_unit, unit) = self.units;
        let time = i128::from(label_time) * label_unit;
        let strict = i128::from(self.strict);
        let down = |value: i128| value.div_euclid(unit);
        let up = |value: i128| -(-value).div_euclid(unit);
        let (near, far) = if self.backward {
            (down(time - strict), self.reach.map_or(i128::MIN, |reach| up(time - reach)))
        } else {
            (up(time + strict), self.reach.map_or(i128::MAX, |reach| down(time + reach)))
        };
        let clamp = |value: i128| value.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        let (low, high) = if self.backward { (far, near) } else { (near, far) };
        let beyond = high < i64::MIN.into() || low > i64::MAX.into();
        if beyond { Window::empty(self.backward) } else { Window { near: clamp(near), far: clamp(far) } }
    }

    /// Latest ingestion, in µs since 1970, that is visible under a bound.
    pub(super) fn latest_known_us(known_by: &KnownBy, bound: i64) -> i64 {
        let bound = i128::from(bound) * known_by.unit_ns - i128::from(known_by.strict);
        bound.div_euclid(1_000).clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }

    /// What the outputs of one label take, about.
    pub(super) fn row_bytes(&self) -> usize {
        self.outputs.iter().map(|output| self.value_bytes(&output.column)).sum()
    }

    fn value_bytes(&self, column: &HistoryColumn) -> usize {
        let of_files = self.files.iter().map(|file| file.file.rows_and_bytes(column.id));
        let (rows, bytes) = of_files.fold((0, 0), |(rows, bytes), of| (rows + of.0, bytes + of.1));
        column.data_type.primitive_width().unwrap_or(TEXT_BYTES.max(bytes.div_ceil(rows.max(1)) as usize))
    }
}
