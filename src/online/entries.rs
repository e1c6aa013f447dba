//! Batches of history to entries, ready to be merged into a store.

use std::cmp::Reverse;

use bytes::Bytes;
use datafusion::arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use datafusion::arrow::datatypes::{Int64Type, TimestampMicrosecondType};

use crate::error::{Error, Result};
use crate::model::{
    EntityKey, FeatureGroup, RowEncoder, RowLayout, RowOrder, encode_keys, put_entry, select_rows,
};

/// The batch as one entry per entity, sorted by key: only the rows that can still be served at `now_us` or later
/// are packed, so loading a long history costs little more than sorting it.
pub(super) fn entries_of(
    group: &FeatureGroup,
    history: &RecordBatch,
    now_us: i64,
) -> Result<Vec<(EntityKey, Bytes)>> {
    let layout = RowLayout::new(group)?;
    check_columns(group, history)?;
    let features: Vec<ArrayRef> = group.features().into_iter().map(|i| history.column(i).clone()).collect();
    let encoder = RowEncoder::new(&layout, &features)?;
    let key_columns: Vec<ArrayRef> = group.entity_key.iter().map(|&i| history.column(i).clone()).collect();

    let orders = row_orders(group, history);
    let keys = encode_keys(&key_columns)?;
    let mut rows: Vec<(EntityKey, RowOrder, usize)> = keys
        .into_iter()
        .zip(orders)
        .enumerate()
        .filter_map(|(row, (key, order))| Some((key?, order?, row)))
        .collect();
    rows.sort_unstable_by(|a, b| (&a.0, Reverse(a.1)).cmp(&(&b.0, Reverse(b.1))));

    let mut entries = Vec::new();
    for entity in rows.chunk_by(|a, b| a.0 == b.0) {
        let newest_first: Vec<RowOrder> = entity.iter().map(|(_, order, _)| *order).collect();
        let mut entry = Vec::new();
        put_entry(&select_rows(&newest_first, now_us), &mut entry, |kept, out| {
            let (_, order, row) = entity[kept];
            encoder.append(row, order, out)
        })?;
        entries.push((entity[0].0.clone(), Bytes::from(entry)));
    }
    Ok(entries)
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
