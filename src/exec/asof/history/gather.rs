//! One range of labels against one right side: the outputs at the chosen rows.

use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, Int64Array};
use datafusion::arrow::compute::cast;
use datafusion::common::{Result, ScalarValue, internal_datafusion_err};
use datafusion::execution::memory_pool::MemoryReservation;

use super::keys::{Keys, Sorted};
use super::right::{Origin, Output, Right};
use super::search::Choice;
use super::slots::Slots;
use super::source::{OpenFile, Source};
use crate::offline::{Fetched, ranges_of};

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
    pub(super) reservation: &'a MemoryReservation,
}

impl<K: Keys> Gather<'_, K> {
    /// The outputs of `len` labels: those of `choices`, and behind them some without a match.
    pub(super) async fn slots(&self, choices: &[Choice], len: usize) -> Result<Slots> {
        let absent: Vec<&ScalarValue> = self.right.outputs.iter().map(|output| &output.absent).collect();
        self.reservation.try_grow(len * Slots::stride(&absent))?;
        let mut slots = Slots::new(&absent, len)?;
        let mut gathered = 0;
        let mut chosen =
            self.files.iter().zip(self.by_file(choices)).filter(|(_, chosen)| !chosen.is_empty());
        // While the values of one file are taken, the next one is read.
        let mut reading = chosen.next().map(|(file, chosen)| self.read(file, &chosen));
        while let Some((file, picks, fetched)) = reading {
            let fetched = fetched.await?;
            reading = chosen.next().map(|(file, chosen)| self.read(file, &chosen));
            self.source.metrics.bytes_read.add(fetched.bytes());
            gathered += picks.rows.len();
            let _timer = self.source.metrics.gather_time.timer();
            let columns = self.columns(file, &picks, &fetched, choices)?;
            self.reservation.try_grow(slots.put(&columns, &picks.from, &picks.labels)?)?;
        }
        self.source.metrics.rows_gathered.add(gathered);
        Ok(slots)
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

    /// Begins to read the pages of what was chosen from a file.
    fn read<'f>(
        &self,
        file: &'f OpenFile<K>,
        chosen: &[Pick],
    ) -> (&'f OpenFile<K>, Picks, impl Future<Output = crate::error::Result<Fetched>> + Send + use<K>) {
        self.source.metrics.matched.add(chosen.len());
        let picks = Picks::of(chosen);
        let mut wanted: Vec<usize> = file.outputs.iter().flatten().copied().collect();
        wanted.sort_unstable();
        wanted.dedup();
        let fetched = file.rows.fetch(&wanted, &ranges_of(&picks.rows), &self.source.buffers);
        (file, picks, fetched)
    }

    /// The outputs at the rows that were chosen from a file: those that the file has, and those that the search has found
    /// already.
    fn columns(
        &self,
        file: &OpenFile<K>,
        picks: &Picks,
        fetched: &Fetched,
        choices: &[Choice],
    ) -> Result<Vec<ArrayRef>> {
        let wants_keys = self.right.outputs.iter().any(|output| matches!(output.origin, Origin::Key(_)));
        let keys = match wants_keys {
            true => self.labels.keys.columns(&self.source.encoder, &picks.picked)?,
            false => Vec::new(),
        };
        let column = |(output, place): (&Output, &Option<usize>)| -> Result<ArrayRef> {
            let data_type = &output.column.data_type;
            let known: ArrayRef = match output.origin {
                Origin::File => return Ok(file.rows.take(fetched, *place, &picks.rows, data_type)?),
                Origin::Time => {
                    let times = picks.picked.iter().map(|label| choices[*label as usize].time);
                    Arc::new(Int64Array::from_iter_values(times))
                }
                Origin::Key(key) => {
                    Arc::clone(keys.get(key).ok_or_else(|| internal_datafusion_err!("a key was lost"))?)
                }
            };
            Ok(cast(&known, data_type)?)
        };
        self.right.outputs.iter().zip(&file.outputs).map(column).collect()
    }
}
