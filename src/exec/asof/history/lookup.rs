//! One range of labels against one right side: which row of which file each label is joined with.

use std::ops::Range;

use datafusion::arrow::array::{Array, ArrayRef, AsArray};
use datafusion::arrow::compute::cast;
use datafusion::arrow::datatypes::{DataType, Int64Type};
use datafusion::common::Result;
use datafusion::execution::memory_pool::MemoryReservation;

use super::keys::{Keys, Sorted};
use super::right::{Right, SortedFile};
use super::search::{self, Choice, Rows, Sought};
use super::source::{OpenFile, Source, in_order};
use crate::error::Error;
use crate::offline::Fetched;

/// Rows decoded at a time while searching.
const SCAN_ROWS: usize = 32 * 1024;

/// Keys and times of rows of one file, sorted, and where in the file each row is; of one file after the other, because
/// the first touch of fresh memory costs more than to fill it.
struct FileRows<K> {
    keys: K,
    times: Vec<i64>,
    numbers: Numbers,
    held: MemoryReservation,
}

enum Numbers {
    /// Where each run of rows begins among the rows read, and in the file.
    Ranges(Vec<(usize, u32)>),
    Each(Vec<u32>),
}

impl Numbers {
    fn of(&self, row: usize) -> u32 {
        match self {
            Numbers::Ranges(firsts) => {
                let (first, number) = firsts[firsts.partition_point(|(first, _)| *first <= row) - 1];
                number + (row - first) as u32
            }
            Numbers::Each(numbers) => numbers[row],
        }
    }
}

/// One range against one right side.
pub(super) struct Lookup<'a, K: Keys> {
    pub(super) source: &'a Source<K>,
    pub(super) right: &'a Right,
    pub(super) files: &'a [OpenFile<K>],
    pub(super) labels: &'a Sorted<K>,
    /// The range's labels in the pass, before they were sorted.
    pub(super) rows: &'a [u32],
    /// As-known-at bounds of all labels of the pass.
    pub(super) known_us: Option<&'a [Option<i64>]>,
    pub(super) reservation: &'a MemoryReservation,
}

impl<'a, K: Keys> Lookup<'a, K> {
    /// For each label of the range the row that it is joined with.
    pub(super) async fn choose(&self) -> Result<Vec<Choice>> {
        let mut choices = vec![Choice::NONE; self.labels.order.len()];
        let backward = self.right.backward;
        let (mut open, mut next): (Vec<Sought<K::Key<'a>>>, Vec<_>) = (Vec::new(), Vec::new());
        let mut rows = FileRows {
            keys: K::empty(&self.source.encoder, 0),
            times: Vec::new(),
            numbers: Numbers::Each(Vec::new()),
            held: self.reservation.new_empty(),
        };
        let entering = self.entering();
        for (index, file) in self.right.files.iter().enumerate() {
            let (min, max) = file.times;
            // Files come from the nearest in time: what is nearer, or bound to be, than all of this file is nearer than
            // all that follow.
            let beyond = |time: i64| if backward { time > max } else { time < min };
            let mut entering = entering[index].as_slice();
            for sought in open.drain(..) {
                let before = entering.iter().take_while(|first| first.label < sought.label).count();
                next.extend_from_slice(&entering[..before]);
                entering = &entering[before..];
                let is_settled = sought.has_choice && beyond(choices[sought.label as usize].time);
                if !is_settled && !beyond(sought.window.far) {
                    next.push(sought);
                }
            }
            next.extend_from_slice(entering);
            std::mem::swap(&mut open, &mut next);
            self.search_file(index, file, &mut open, &mut choices, &mut rows).await?;
        }
        Ok(choices)
    }

    /// For each file the labels that may match it and no file before it. What the search needs of them is copied here,
    /// where labels are walked in order: each file later reads only its own.
    fn entering(&self) -> Vec<Vec<Sought<K::Key<'a>>>> {
        let backward = self.right.backward;
        // How far the files up to each one reach, which only grows.
        let mut reached = if backward { i64::MAX } else { i64::MIN };
        let reach: Vec<i64> = { self.right.files.iter() }
            .map(|file| {
                reached = if backward { reached.min(file.times.0) } else { reached.max(file.times.1) };
                reached
            })
            .collect();
        let first = |time: &i64| {
            let near = self.right.window(*time).near;
            reach.partition_point(|reach| if backward { *reach > near } else { *reach < near }) as u32
        };
        let firsts: Vec<u32> = self.labels.times.iter().map(first).collect();
        let mut counts = vec![0; reach.len() + 1];
        firsts.iter().for_each(|first| counts[*first as usize] += 1);
        counts.truncate(reach.len()); // the last ones match no file
        let mut entering: Vec<Vec<_>> = counts.into_iter().map(Vec::with_capacity).collect();
        for (label, first) in firsts.into_iter().enumerate() {
            if let Some(entering) = entering.get_mut(first as usize) {
                let (key, window) =
                    (self.labels.keys.get(label), self.right.window(self.labels.times[label]));
                entering.push(Sought { key, window, label: label as u32, has_choice: false });
            }
        }
        entering
    }

    /// Whether the label may see what was ingested then, in µs since 1970.
    fn knows(&self, label: u32, ingested_us: i64) -> bool {
        self.known_us.is_none_or(|known| {
            let row = self.rows[self.labels.order[label as usize] as usize];
            known[row as usize].unwrap_or(i64::MIN) >= ingested_us
        })
    }

    async fn search_file(
        &self,
        index: usize,
        sorted: &SortedFile,
        open: &mut [Sought<K::Key<'a>>],
        choices: &mut [Choice],
        rows: &mut FileRows<K>,
    ) -> Result<()> {
        let (file, metrics) = (&self.files[index], &self.source.metrics);
        let (backward, (min, max)) = (self.right.backward, sorted.times);
        let ingested_us = sorted.ingested_us.unwrap_or(i64::MIN);
        let wanted = |sought: &Sought<K::Key<'a>>| {
            sought.window.overlaps(backward, min, max) && self.knows(sought.label, ingested_us)
        };
        let pages = &file.pages;
        let ranges = match self.right.is_sorted {
            true => search::pages::<K>(open, wanted, &pages.rows, &pages.min, &pages.max),
            false if open.iter().any(wanted) => pages.rows.clone(),
            false => Vec::new(),
        };
        if ranges.is_empty() {
            return Ok(());
        }
        let fetched = file.rows.fetch(&file.search_columns, &ranges, &self.source.buffers).await?;
        metrics.bytes_read.add(fetched.bytes());
        metrics.files_read.add(usize::from(file.mark_read()));
        let _timer = metrics.search_time.timer();
        match self.right.is_sorted {
            true => self.sorted_rows(file, &fetched, &ranges, rows)?,
            false => *rows = self.unsorted_rows(file, &fetched, &ranges)?,
        }
        search::search(
            open,
            &Rows { keys: &rows.keys, times: &rows.times },
            backward,
            wanted,
            |sought, found| {
                let choice = &mut choices[sought.label as usize];
                if !sought.has_choice || self.is_better(rows.times[found], index, choice) {
                    sought.has_choice = true;
                    *choice =
                        Choice { time: rows.times[found], file: index as u32, row: rows.numbers.of(found) };
                }
            },
        );
        Ok(())
    }

    /// Calls `each` with the keys and times of all rows of `ranges`, batch after batch.
    fn decode(
        &self,
        file: &OpenFile<K>,
        fetched: &Fetched,
        ranges: &[Range<u32>],
        mut each: impl FnMut(&[ArrayRef], &ArrayRef) -> Result<()>,
    ) -> Result<()> {
        let mut sought: Vec<(usize, _)> = file.keys.iter().copied().zip(&self.right.keys).collect();
        sought.extend(file.time.map(|time| (time, &self.right.time)));
        for batch in file.rows.scan(fetched, &file.search_columns, ranges, SCAN_ROWS)? {
            let batch = batch.map_err(Error::from)?;
            let columns = in_order(&batch, &file.search_columns, &sought)?;
            self.source.metrics.rows_searched.add(batch.num_rows());
            each(&columns[..file.keys.len()], &cast(&columns[file.keys.len()], &DataType::Int64)?)?;
        }
        Ok(())
    }

    /// Keys and times of a sorted file.
    fn sorted_rows(
        &self,
        file: &OpenFile<K>,
        fetched: &Fetched,
        ranges: &[Range<u32>],
        rows: &mut FileRows<K>,
    ) -> Result<()> {
        let FileRows { keys, times, numbers, held } = rows;
        let count: usize = ranges.iter().map(|range| range.len()).sum();
        held.try_resize(count * 16)?;
        keys.clear();
        times.clear();
        times.reserve(count);
        self.decode(file, fetched, ranges, |key, time| {
            if key.iter().chain([time]).any(|column| column.null_count() > 0) {
                return Err(Error::corrupt("a sorted data file has NULL among its keys or times").into());
            }
            keys.append(&self.source.encoder, key)?;
            times.extend_from_slice(time.as_primitive::<Int64Type>().values());
            Ok(())
        })?;
        *numbers = Numbers::Ranges(first_rows(ranges));
        Ok(())
    }

    /// Keys and times of those rows of an unsorted file whose keys are within this range of labels, sorted. Of rows of
    /// equal key and time the last one in the file comes last.
    fn unsorted_rows(
        &self,
        file: &OpenFile<K>,
        fetched: &Fetched,
        ranges: &[Range<u32>],
    ) -> Result<FileRows<K>> {
        let held = self.reservation.new_empty();
        let encoder = &self.source.encoder;
        let (mut keys, mut times, mut numbers) = (K::empty(encoder, 0), Vec::new(), Vec::new());
        let (first, last) = (self.labels.keys.get(0), self.labels.keys.get(self.labels.order.len() - 1));
        let mut start = 0_u32;
        self.decode(file, fetched, ranges, |key, time| {
            let mut decoded = K::empty(encoder, time.len());
            decoded.append(encoder, key)?;
            let values = time.as_primitive::<Int64Type>().values();
            for row in 0..time.len() {
                let null = key.iter().chain([time]).any(|column| column.is_null(row));
                let inside = decoded.compare_at(row, first).is_ge() && decoded.compare_at(row, last).is_le();
                if !null && inside {
                    keys.push(&decoded, row);
                    times.push(values[row]);
                    numbers.push(start + row as u32);
                }
            }
            start += time.len() as u32;
            held.try_resize(keys.bytes() * 2 + times.len() * 48)
        })?;
        let rows: Vec<u32> = (0..numbers.len() as u32).collect();
        let sorted = keys.sorted(encoder, &times, &rows);
        let numbers = sorted.order.iter().map(|row| numbers[*row as usize]).collect();
        Ok(FileRows { keys: sorted.keys, times: sorted.times, numbers: Numbers::Each(numbers), held })
    }

    fn is_better(&self, time: i64, file: usize, than: &Choice) -> bool {
        if time == than.time {
            return self.right.files[file].rank > self.right.files[than.file as usize].rank;
        }
        (time > than.time) == self.right.backward
    }
}

/// Where each range of rows begins among the rows read, and in the file.
fn first_rows(ranges: &[Range<u32>]) -> Vec<(usize, u32)> {
    let mut read = 0;
    ranges
        .iter()
        .map(|range| {
            let first = (read, range.start);
            read += range.len();
            first
        })
        .collect()
}
