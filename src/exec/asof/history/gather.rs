//! One range of labels against one right side: the output columns at the chosen rows.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array};
use datafusion::arrow::compute::cast;
use datafusion::common::{Result, internal_datafusion_err};
use datafusion::execution::memory_pool::MemoryReservation;

use super::column::{BatchRows, Column, Filling};
use super::keys::{Keys, Sorted};
use super::right::{Origin, Right};
use super::search::Choice;
use super::source::{OpenFile, Source};
use crate::offline::ranges_of;

/// Where a label without a match has its value, until the number of parts is known.
const NOWHERE: (usize, usize) = (usize::MAX, 0);

/// A label and the row of a file that it chose.
struct Pick {
    label: u32,
    row: u32,
}

/// Where the chosen rows of one file are, and where their values go.
struct Picks {
    /// Distinct rows of the file, ascending.
    rows: Vec<u32>,
    /// A label that chose each row.
    picked: Vec<u32>,
    /// Labels, ascending, and for each the index of its row.
    labels: Vec<u32>,
    from: Vec<u32>,
}

impl Picks {
    /// Of what was chosen, in ascending order of rows.
    fn of(chosen: &[Pick]) -> Self {
        let (mut rows, mut picked) = (Vec::with_capacity(chosen.len()), Vec::with_capacity(chosen.len()));
        let mut labels = Vec::with_capacity(chosen.len());
        for Pick { label, row } in chosen {
            if rows.last() != Some(row) {
                rows.push(*row);
                picked.push(*label);
            }
            labels.push((*label, rows.len() as u32 - 1));
        }
        if !labels.is_sorted() {
            labels.sort_unstable();
        }
        let (labels, from) = labels.into_iter().unzip();
        Self { rows, picked, labels, from }
    }
}

/// One range against one right side, its rows chosen.
pub(super) struct Gather<'a, K: Keys> {
    pub(super) source: &'a Source<K>,
    pub(super) right: &'a Right,
    pub(super) files: &'a [OpenFile<K>],
    pub(super) labels: &'a Sorted<K>,
    pub(super) batch_rows: BatchRows,
    pub(super) reservation: &'a MemoryReservation,
}

impl<K: Keys> Gather<'_, K> {
    /// The output columns, of `len` labels: those of `choices`, and behind them some without a match.
    pub(super) async fn columns(&self, choices: &[Choice], len: usize) -> Result<Vec<Column>> {
        let absent =
            self.right.outputs.iter().map(|output| Filling::new(&output.absent, len, self.batch_rows));
        let mut columns = absent.collect::<Result<Vec<_>>>()?;
        self.reservation.try_grow(columns.iter().map(Filling::bytes).sum())?;
        let has_parts = columns.iter().any(|column| matches!(column, Filling::Parts(..)));
        let mut places = if has_parts { vec![NOWHERE; len] } else { Vec::new() };
        let (mut parts, mut gathered) = (0, 0);
        for (file, chosen) in self.files.iter().zip(self.by_file(choices)) {
            self.source.metrics.matched.add(chosen.len());
            if chosen.is_empty() || columns.is_empty() {
                continue;
            }
            let picks = Picks::of(&chosen);
            if has_parts {
                let picked = picks.labels.iter().zip(&picks.from);
                picked.for_each(|(label, from)| places[*label as usize] = (parts, *from as usize));
            }
            (parts, gathered) = (parts + 1, gathered + picks.rows.len());
            self.read(file, &picks, &mut columns).await?;
            self.known(&picks, choices, &mut columns)?;
        }
        self.source.metrics.rows_gathered.add(gathered);
        let _timer = self.source.metrics.gather_time.timer();
        places.iter_mut().filter(|place| **place == NOWHERE).for_each(|place| *place = (parts, 0));
        let places = places.into();
        columns.into_iter().map(|column| column.finish(&places)).collect()
    }

    /// For each file what was chosen from it, in ascending order of rows.
    fn by_file(&self, choices: &[Choice]) -> Vec<Vec<Pick>> {
        let mut counts = vec![0; self.files.len()];
        choices
            .iter()
            .filter(|choice| !choice.is_none())
            .for_each(|choice| counts[choice.file as usize] += 1);
        let mut by_file: Vec<Vec<Pick>> = counts.into_iter().map(Vec::with_capacity).collect();
        for (label, choice) in choices.iter().enumerate().filter(|(_, choice)| !choice.is_none()) {
            by_file[choice.file as usize].push(Pick { label: label as u32, row: choice.row });
        }
        if !self.right.is_sorted {
            // A sorted file and the labels are sorted alike, so its rows never decrease either.
            by_file.iter_mut().for_each(|picks| picks.sort_unstable_by_key(|pick| pick.row));
        }
        by_file
    }

    /// The outputs that are in the file.
    async fn read(&self, file: &OpenFile<K>, picks: &Picks, columns: &mut [Filling]) -> Result<()> {
        let metrics = &self.source.metrics;
        let mut wanted: Vec<usize> = file.outputs.iter().flatten().copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let fetched = file.rows.fetch(&wanted, &ranges_of(&picks.rows)).await?;
        metrics.bytes_read.add(fetched.bytes());
        let _timer = metrics.gather_time.timer();
        let outputs = self.right.outputs.iter().zip(&file.outputs).zip(columns);
        for ((output, place), column) in outputs.filter(|((output, _), _)| output.origin == Origin::File) {
            let taken = file.rows.take(&fetched, *place, &picks.rows, &output.column.data_type)?;
            self.reservation.try_grow(column.add(taken, &picks.from, &picks.labels, self.batch_rows))?;
        }
        Ok(())
    }

    /// The outputs that the search has found already.
    fn known(&self, picks: &Picks, choices: &[Choice], columns: &mut [Filling]) -> Result<()> {
        let _timer = self.source.metrics.gather_time.timer();
        let wants_keys = self.right.outputs.iter().any(|output| matches!(output.origin, Origin::Key(_)));
        let keys = match wants_keys {
            true => self.labels.keys.columns(&self.source.encoder, &picks.picked)?,
            false => Vec::new(),
        };
        for (output, column) in self.right.outputs.iter().zip(columns) {
            let known: ArrayRef = match output.origin {
                Origin::File => continue,
                Origin::Time => {
                    let times = picks.picked.iter().map(|label| choices[*label as usize].time);
                    Arc::new(Int64Array::from_iter_values(times))
                }
                Origin::Key(key) => {
                    Arc::clone(keys.get(key).ok_or_else(|| internal_datafusion_err!("a key was lost"))?)
                }
            };
            let known = cast(&known, &output.column.data_type)?;
            self.reservation.try_grow(column.add(known, &picks.from, &picks.labels, self.batch_rows))?;
        }
        Ok(())
    }
}
