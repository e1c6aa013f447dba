//! One range of labels: search, choose, gather, put out.

use std::sync::Arc;

use datafusion::arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array,
};
use datafusion::arrow::compute::{cast, concat, take};
use datafusion::arrow::datatypes::{DataType, Int64Type, SchemaRef};
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::execution::TaskContext;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};

use super::keys::{Keys, Sorted};
use super::labels::Range;
use super::right::{Origin, Right, SortedFile};
use super::search::{self, Choice, Rows, Sought};
use super::source::{OpenFile, Pass, Source, in_order};
use crate::error::Error;
use crate::offline::Fetched;

/// Rows decoded at a time while searching.
const SCAN_ROWS: usize = 32 * 1024;
const NONE: u32 = u32::MAX;

/// A range whose rows are gathered, to be put out in batches.
#[derive(Debug)]
pub(super) struct Joined<K> {
    pass: Arc<Pass<K>>,
    rows: Vec<u32>,
    /// For each right side: the gathered columns, and for each row the index into them, or `NONE`.
    sides: Vec<Side>,
    next: usize,
    reservation: MemoryReservation,
}

#[derive(Debug)]
struct Side {
    columns: Vec<ArrayRef>,
    index: Vec<u32>,
    /// Where in `columns` the values stand that take the place of a missing row.
    absent: u32,
}

/// Joins a range with every right side.
pub(super) async fn join<K: Keys>(
    source: &Source<K>,
    pass: Arc<Pass<K>>,
    range: Range,
    context: &TaskContext,
) -> Result<Joined<K>> {
    let reservation = MemoryConsumer::new("AsofHistoryExec range").register(context.memory_pool());
    let Range { rows, mut unusable } = range;
    reservation.try_grow(rows.len() * (24 + 40 * source.rights.len()))?;
    let labels = {
        let _timer = source.metrics.sort_time.timer();
        pass.labels.keys.sorted(&source.encoder, &pass.labels.times, rows)
    };
    let files = source.files(context).await?;
    let mut sides = Vec::with_capacity(source.rights.len());
    for (index, (right, files)) in source.rights.iter().zip(files).enumerate() {
        let known_us = pass.labels.known_us[index].as_deref();
        let lookup = Lookup { source, right, files, labels: &labels, known_us, reservation: &reservation };
        let choices = lookup.choose().await?;
        sides.push(lookup.gather(choices).await?);
    }
    let mut rows = labels.rows;
    let inner: Vec<bool> = source.rights.iter().map(|right| right.inner).collect();
    if inner.contains(&true) {
        drop_unmatched(&mut rows, &mut sides, &inner);
    } else {
        rows.append(&mut unusable);
        sides.iter_mut().for_each(|side| side.index.resize(rows.len(), NONE));
    }
    Ok(Joined { pass, rows, sides, next: 0, reservation })
}

fn drop_unmatched(rows: &mut Vec<u32>, sides: &mut [Side], inner: &[bool]) {
    let keep: Vec<bool> = (0..rows.len())
        .map(|row| sides.iter().zip(inner).all(|(side, inner)| !inner || side.index[row] != NONE))
        .collect();
    let filtered = |values: &mut Vec<u32>| {
        let mut keep = keep.iter();
        values.retain(|_| keep.next().copied().unwrap_or_default());
    };
    filtered(rows);
    sides.iter_mut().for_each(|side| filtered(&mut side.index));
}

impl<K: Keys> Joined<K> {
    /// The next batch of at most `rows` rows, or `None` at the end. `order` says which of the label columns and, behind
    /// them, the outputs of each side comes where.
    pub(super) fn next(
        &mut self,
        schema: &SchemaRef,
        order: &[usize],
        rows: usize,
    ) -> Result<Option<RecordBatch>> {
        let end = self.rows.len().min(self.next + rows);
        if self.next == end {
            self.reservation.free();
            return Ok(None);
        }
        let slice = self.next..end;
        let mut columns = self.pass.labels.columns(&self.rows[slice.clone()])?;
        for side in &self.sides {
            let index = &side.index[slice.clone()];
            let index = UInt32Array::from_iter_values(
                index.iter().map(|at| if *at == NONE { side.absent } else { *at }),
            );
            for column in &side.columns {
                columns.push(take(column, &index, None)?);
            }
        }
        self.next = end;
        let columns = order.iter().map(|column| Arc::clone(&columns[*column])).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(slice.len()));
        Ok(Some(RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)?))
    }
}

/// Keys and times of rows of one file, sorted, and where in the file each row is.
struct FileRows<K> {
    keys: K,
    times: Vec<i64>,
    numbers: Numbers,
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
struct Lookup<'a, K: Keys> {
    source: &'a Source<K>,
    right: &'a Right,
    files: &'a [OpenFile<K>],
    labels: &'a Sorted<K>,
    /// As-known-at bounds of all labels of the pass.
    known_us: Option<&'a [Option<i64>]>,
    reservation: &'a MemoryReservation,
}

impl<'a, K: Keys> Lookup<'a, K> {
    /// For each label of the range the row that it is joined with.
    async fn choose(&self) -> Result<Vec<Choice>> {
        let mut choices = vec![Choice::NONE; self.labels.rows.len()];
        let backward = self.right.backward;
        let entering = self.entering();
        let mut open: Vec<Sought<K::Key<'a>>> = Vec::new();
        for (index, (file, entering)) in self.right.files.iter().zip(&entering).enumerate() {
            let (min, max) = file.times;
            // Files come from the nearest in time: what is nearer, or bound to be, than all of this file is nearer than
            // all that follow.
            let beyond = |time: i64| if backward { time > max } else { time < min };
            let mut next = Vec::with_capacity(open.len() + entering.len());
            let mut entering = entering.iter().peekable();
            for sought in open {
                while let Some(label) = entering.next_if(|label| **label < sought.label) {
                    next.push(self.sought(*label));
                }
                if beyond(sought.window.far) || !sought.choice.is_none() && beyond(sought.choice.time) {
                    choices[sought.label as usize] = sought.choice;
                } else {
                    next.push(sought);
                }
            }
            next.extend(entering.map(|label| self.sought(*label)));
            open = next;
            self.search_file(index, file, &mut open).await?;
        }
        for sought in open {
            choices[sought.label as usize] = sought.choice;
        }
        Ok(choices)
    }

    fn sought(&self, label: u32) -> Sought<K::Key<'a>> {
        let row = self.labels.rows[label as usize];
        Sought {
            key: self.labels.keys.get(label as usize),
            window: self.right.window(self.labels.times[label as usize]),
            known_us: self.known_us.map_or(i64::MAX, |known| known[row as usize].unwrap_or(i64::MIN)),
            label,
            choice: Choice::NONE,
        }
    }

    /// For each file the labels that may match it and no file before it.
    fn entering(&self) -> Vec<Vec<u32>> {
        let backward = self.right.backward;
        // How far the files up to each one reach, which only grows.
        let mut reached = if backward { i64::MAX } else { i64::MIN };
        let reach: Vec<i64> = { self.right.files.iter() }
            .map(|file| {
                reached = if backward { reached.min(file.times.0) } else { reached.max(file.times.1) };
                reached
            })
            .collect();
        let mut entering = vec![Vec::new(); reach.len()];
        for (label, time) in self.labels.times.iter().enumerate() {
            let near = self.right.window(*time).near;
            let first = reach.partition_point(|reach| if backward { *reach > near } else { *reach < near });
            if let Some(entering) = entering.get_mut(first) {
                entering.push(label as u32);
            }
        }
        entering
    }

    async fn search_file(
        &self,
        index: usize,
        sorted: &SortedFile,
        open: &mut [Sought<K::Key<'a>>],
    ) -> Result<()> {
        let (file, metrics) = (&self.files[index], &self.source.metrics);
        let (backward, (min, max)) = (self.right.backward, sorted.times);
        let ingested_us = sorted.ingested_us.unwrap_or(i64::MIN);
        let wanted = |sought: &Sought<K::Key<'a>>| {
            sought.known_us >= ingested_us && sought.window.overlaps(backward, min, max)
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
        let fetched = file.rows.fetch(&file.search_columns, &ranges).await?;
        metrics.bytes_read.add(fetched.bytes());
        metrics.files_read.add(usize::from(file.mark_read()));
        let _timer = metrics.search_time.timer();
        let (rows, _held) = match self.right.is_sorted {
            true => self.sorted_rows(file, &fetched, &ranges)?,
            false => self.unsorted_rows(file, &fetched, &ranges)?,
        };
        search::search(
            open,
            &Rows { keys: &rows.keys, times: &rows.times },
            backward,
            wanted,
            |sought, found| {
                if sought.choice.is_none() || self.is_better(rows.times[found], index, &sought.choice) {
                    sought.choice =
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
        ranges: &[std::ops::Range<u32>],
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
        ranges: &[std::ops::Range<u32>],
    ) -> Result<(FileRows<K>, MemoryReservation)> {
        let count = ranges.iter().map(|range| range.len()).sum();
        let held = self.reservation.new_empty();
        held.try_grow(count * 16)?;
        let (mut keys, mut times) = (K::empty(&self.source.encoder, count), Vec::with_capacity(count));
        self.decode(file, fetched, ranges, |key, time| {
            if key.iter().chain([time]).any(|column| column.null_count() > 0) {
                return Err(Error::corrupt("a sorted data file has NULL among its keys or times").into());
            }
            keys.append(&self.source.encoder, key)?;
            times.extend_from_slice(time.as_primitive::<Int64Type>().values());
            Ok(())
        })?;
        Ok((FileRows { keys, times, numbers: Numbers::Ranges(first_rows(ranges)) }, held))
    }

    /// Keys and times of those rows of an unsorted file whose keys are within this range of labels, sorted. Of rows of
    /// equal key and time the last one in the file comes last.
    fn unsorted_rows(
        &self,
        file: &OpenFile<K>,
        fetched: &Fetched,
        ranges: &[std::ops::Range<u32>],
    ) -> Result<(FileRows<K>, MemoryReservation)> {
        let held = self.reservation.new_empty();
        let encoder = &self.source.encoder;
        let (mut keys, mut times, mut numbers) = (K::empty(encoder, 0), Vec::new(), Vec::new());
        let (first, last) = (self.labels.keys.get(0), self.labels.keys.get(self.labels.rows.len() - 1));
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
        let sorted = keys.sorted(encoder, &times, (0..numbers.len() as u32).collect());
        let numbers = sorted.rows.iter().map(|row| numbers[*row as usize]).collect();
        Ok((FileRows { keys: sorted.keys, times: sorted.times, numbers: Numbers::Each(numbers) }, held))
    }

    fn is_better(&self, time: i64, file: usize, than: &Choice) -> bool {
        if time == than.time {
            return self.right.files[file].rank > self.right.files[than.file as usize].rank;
        }
        (time > than.time) == self.right.backward
    }

    /// Reads the output columns of the chosen rows.
    async fn gather(&self, choices: Vec<Choice>) -> Result<Side> {
        let outputs = &self.right.outputs;
        let mut parts: Vec<Vec<ArrayRef>> = vec![Vec::new(); outputs.len()];
        let mut index = vec![NONE; choices.len()];
        let mut by_file: Vec<Vec<(u32, u32)>> = vec![Vec::new(); self.files.len()];
        for (label, choice) in choices.iter().enumerate() {
            if !choice.is_none() {
                by_file[choice.file as usize].push((label as u32, choice.row));
            }
        }
        let mut gathered = 0_u32;
        for (file, labels) in self.files.iter().zip(&mut by_file) {
            if !self.right.is_sorted {
                labels.sort_unstable_by_key(|(_, row)| *row);
            }
            let mut rows: Vec<u32> = Vec::with_capacity(labels.len());
            let mut picked: Vec<u32> = Vec::with_capacity(labels.len());
            for (label, row) in labels.iter() {
                // A sorted file and the labels are sorted alike, so its rows never decrease either.
                if rows.last() != Some(row) {
                    rows.push(*row);
                    picked.push(*label);
                }
                index[*label as usize] = gathered + rows.len() as u32 - 1;
            }
            self.source.metrics.matched.add(labels.len());
            if rows.is_empty() || outputs.is_empty() {
                continue;
            }
            gathered += rows.len() as u32;
            self.gather_file(file, &rows, &mut parts).await?;
            self.gather_known(&picked, &choices, &mut parts)?;
        }
        self.source.metrics.rows_gathered.add(gathered as usize);
        let _timer = self.source.metrics.gather_time.timer();
        let columns = parts
            .into_iter()
            .zip(self.right.absent()?)
            .map(|(mut parts, absent)| {
                parts.push(absent);
                let parts: Vec<&dyn Array> = parts.iter().map(|part| part.as_ref()).collect();
                Ok(concat(&parts)?)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Side { columns, index, absent: gathered })
    }

    async fn gather_file(&self, file: &OpenFile<K>, rows: &[u32], parts: &mut [Vec<ArrayRef>]) -> Result<()> {
        let metrics = &self.source.metrics;
        let mut ranges: Vec<std::ops::Range<u32>> = Vec::new();
        for &row in rows {
            match ranges.last_mut() {
                Some(last) if last.end == row => last.end += 1,
                _ => ranges.push(row..row + 1),
            }
        }
        let mut columns: Vec<usize> = file.outputs.iter().flatten().copied().collect();
        columns.sort_unstable();
        columns.dedup();
        let fetched = file.rows.fetch(&columns, &ranges).await?;
        metrics.bytes_read.add(fetched.bytes());
        let _timer = metrics.gather_time.timer();
        let outputs = self.right.outputs.iter().zip(&file.outputs).zip(parts);
        for ((output, column), parts) in outputs.filter(|((output, _), _)| output.origin == Origin::File) {
            let taken = file.rows.take(&fetched, *column, rows, &output.column.data_type)?;
            self.reservation.try_grow(taken.get_array_memory_size())?;
            parts.push(taken);
        }
        Ok(())
    }

    /// The outputs that the search has found already, for labels that chose different rows.
    fn gather_known(&self, picked: &[u32], choices: &[Choice], parts: &mut [Vec<ArrayRef>]) -> Result<()> {
        let _timer = self.source.metrics.gather_time.timer();
        let wants_keys = self.right.outputs.iter().any(|output| matches!(output.origin, Origin::Key(_)));
        let keys = match wants_keys {
            true => self.labels.keys.columns(&self.source.encoder, picked)?,
            false => Vec::new(),
        };
        for (output, parts) in self.right.outputs.iter().zip(parts) {
            let known: ArrayRef = match output.origin {
                Origin::File => continue,
                Origin::Time => {
                    let times = picked.iter().map(|label| choices[*label as usize].time);
                    Arc::new(Int64Array::from_iter_values(times))
                }
                Origin::Key(key) => {
                    Arc::clone(keys.get(key).ok_or_else(|| internal_datafusion_err!("a key was lost"))?)
                }
            };
            parts.push(cast(&known, &output.column.data_type)?);
        }
        Ok(())
    }
}

/// Where each range of rows begins among the rows read, and in the file.
fn first_rows(ranges: &[std::ops::Range<u32>]) -> Vec<(usize, u32)> {
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
