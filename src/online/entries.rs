//! Batches of history to entries, ready to be merged into a store.

use std::cmp::Reverse;
use std::ops::Range;
use std::time::Duration;

use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Int64Type, TimestampMicrosecondType};

use crate::error::{Error, Result};
use crate::model::{
    EntityKey, FeatureGroup, RowEncoder, RowLayout, RowOrder, encode_keys, put_entry, select_rows,
};

/// A batch sorted into entities, of which each becomes an entry when it is packed: part by part, so that a store can
/// take in one while the next is made. Only the rows that can still be served now or later are packed, so loading a
/// long history costs little more than sorting it.
pub(super) struct Incoming {
    layout: RowLayout,
    features: Vec<ArrayRef>,
    /// By key, newest first.
    rows: Vec<(EntityKey, RowOrder, usize)>,
    /// Where in `rows` each entity stands, those left out whose newest row has had its life.
    entities: Vec<Range<usize>>,
    /// How long after its newest row's event time an entity is worth storing, in microseconds.
    lifetime_us: Option<i64>,
    now_us: i64,
}

/// An entity's rows as its entry.
pub(super) struct PackedEntry {
    pub(super) key: EntityKey,
    pub(super) bytes: Vec<u8>,
    /// How long its newest row has to live, at least 1; `None` is for ever.
    pub(super) lives_ms: Option<i64>,
}

impl Incoming {
    /// Rows whose key or event time is NULL are passed over, and entities whose newest row is older than `lifetime`.
    pub(super) fn new(
        group: &FeatureGroup,
        history: &RecordBatch,
        now_us: i64,
        lifetime: Option<Duration>,
    ) -> Result<Self> {
        let layout = RowLayout::new(group)?;
        check_columns(group, history)?;
        let features = group.features().into_iter().map(|i| history.column(i).clone()).collect();
        let key_columns: Vec<ArrayRef> =
            group.entity_key.iter().map(|&i| history.column(i).clone()).collect();
        let orders = row_orders(group, history);
        let keys = encode_keys(&key_columns)?;
        let mut rows: Vec<(EntityKey, RowOrder, usize)> = keys
            .into_iter()
            .zip(orders)
            .enumerate()
            .filter_map(|(row, (key, order))| Some((key?, order?, row)))
            .collect();
        rows.sort_unstable_by(|a, b| (&a.0, Reverse(a.1)).cmp(&(&b.0, Reverse(b.1))));
        let lifetime_us = lifetime.map(|life| i64::try_from(life.as_micros()).unwrap_or(i64::MAX));
        let mut incoming = Self { layout, features, rows, entities: Vec::new(), lifetime_us, now_us };
        let (mut entities, mut start) = (Vec::new(), 0);
        for entity in incoming.rows.chunk_by(|a, b| a.0 == b.0) {
            let newest = entity[0].1;
            if incoming.left_us(newest).is_none_or(|left_us| left_us >= 0) {
                entities.push(start..start + entity.len());
            }
            start += entity.len();
        }
        incoming.entities = entities;
        Ok(incoming)
    }

    /// What an entry has left to live when this is its newest row; negative when that is over.
    fn left_us(&self, newest: RowOrder) -> Option<i64> {
        let end_us = newest.event_time_us.saturating_add(self.lifetime_us?);
        Some(end_us.saturating_sub(self.now_us))
    }

    /// Ranges of entities, each at most so long.
    pub(super) fn parts(&self, entities_max: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let all = self.entities.len();
        (0..all).step_by(entities_max).map(move |start| start..all.min(start + entities_max))
    }

    /// Every entity there is.
    pub(super) fn all(&self) -> Range<usize> {
        0..self.entities.len()
    }

    pub(super) fn pack(&self, entities: Range<usize>) -> Result<Vec<PackedEntry>> {
        let encoder = RowEncoder::new(&self.layout, &self.features)?;
        let mut packed = Vec::with_capacity(entities.len());
        for entity in &self.entities[entities] {
            let rows = &self.rows[entity.clone()];
            let newest_first: Vec<RowOrder> = rows.iter().map(|(_, order, _)| *order).collect();
            let mut bytes = Vec::new();
            put_entry(&select_rows(&newest_first, self.now_us), &mut bytes, |kept, out| {
                let (_, order, row) = rows[kept];
                encoder.append(row, order, out)
            })?;
            // Rounded up, so that nothing is gone before its time.
            let lives_ms = self.left_us(rows[0].1).map(|left_us| left_us / 1000 + 1);
            packed.push(PackedEntry { key: rows[0].0.clone(), bytes, lives_ms });
        }
        Ok(packed)
    }
}

/// The order of each row; `None` where the event time is NULL.
fn row_orders(group: &FeatureGroup, history: &RecordBatch) -> Vec<Option<RowOrder>> {
    let declared = group.columns.len();
    let event_times = history.column(group.event_time).as_primitive::<TimestampMicrosecondType>();
    let ingested = history.column(declared).as_primitive::<TimestampMicrosecondType>();
    let sequences = history.column(declared + 1).as_primitive::<Int64Type>();
    let order = |row: usize| {
        event_times.is_valid(row).then(|| RowOrder {
            event_time_us: event_times.value(row),
            ingested_at_us: if ingested.is_valid(row) { ingested.value(row) } else { i64::MIN },
            sequence: if sequences.is_valid(row) { sequences.value(row) } else { i64::MIN },
        })
    };
    (0..history.num_rows()).map(order).collect()
}

fn check_columns(group: &FeatureGroup, history: &RecordBatch) -> Result<()> {
    let (name, schema) = (&group.name, group.history_schema());
    let got = history.schema();
    let same = got.fields().len() == schema.fields().len()
        && got
            .fields()
            .iter()
            .zip(schema.fields())
            .all(|(a, b)| a.data_type().equals_datatype(b.data_type()));
    match same {
        true => Ok(()),
        false => Err(Error::internal(format!(
            "feature group '{name}' was given a batch of another schema: {got} instead of {schema}"
        ))),
    }
}
