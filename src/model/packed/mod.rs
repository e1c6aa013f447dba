//! What an online store keeps for one entity, byte by byte. All lengths are in bytes.
//!
//! An **entry** is the entity's stored rows, newest first: every row dated in the future, and of the others the
//! newest one (see [`merge`]). Most entities have one row, and then nothing stands between it and the entry's format:
//!
//! ```text
//! entry   02 | row
//!         03 | [ length u32, big-endian | row ] [ length | row ] …      two rows or more
//! ```
//!
//! A **row** holds no names, and so little of anything else that an entity of ten features takes some fifty bytes. Its
//! first 24 bytes, compared as bytes, put the rows of an entity in their total order.
//!
//! ```text
//! at   size
//!  0    8    event time       µs since 1970 UTC, big-endian, sign bit flipped
//!  8    8    _ingested_at     the same: when the store learnt the row; NULL is the smallest
//! 16    8    _sequence        big-endian, sign bit flipped; NULL is the smallest
//! 24   1–5   schema           id of the Iceberg schema that the row was written under; seven bits a byte, lowest first
//!  …   ⌈n/2⌉ codes            four bits for each of the schema's n features, the first in the low half of a byte
//!  …         values           one after the other, each of the length that its code says
//! ```
//!
//! The schema's features are its columns but for the entity key, the event time and the system columns, in the
//! schema's order. The table's metadata keeps its schemas, so a value is read as it was written however many features
//! were added or dropped since: features meet by Iceberg's field id. Where another engine has cleaned a schema out of the
//! metadata, its rows cannot be read until they are written again. A **code** is 0 for NULL, and otherwise:
//!
//! ```text
//! BOOLEAN                        1 false, 2 true; no bytes
//! INT, BIGINT, DATE, TIMESTAMP   1–9: as many bytes less one, zigzag, little-endian
//! DOUBLE                         1: +0; 2: 8 bytes, little-endian; 3: the same as a REAL, 4 bytes
//!                                4–7, 8–11, 12–15: 1–4 bytes as of an integer, divided by 1, 100, 10,000
//! REAL                           as DOUBLE, where 2 is 4 bytes, and there is no 3
//! DECIMAL                        1–14: as many bytes less one, as of an integer; 15: 16 bytes
//! VARCHAR, BINARY, list, struct  1–12: as many bytes less one; 13, 14, 15: behind a length of 1, 2, 4 bytes, little-endian
//! ```
//!
//! Text and binary are bare. Lists and structs are **bodies**, which read back on their own:
//!
//! ```text
//! BOOLEAN       1 byte
//! fixed width   4, 8 or 16 bytes, little-endian
//! text, binary  [ length u32 ][ bytes ]
//! list          [ count u32 ][ present ⌈count/8⌉ ][ body of each item that is not NULL ]
//! struct        [ present ⌈fields/8⌉ ][ body of each field that is not NULL ]
//! ```

mod builder;
mod codes;
mod decode;
mod encode;
mod entry;
pub mod fuzzing;

use datafusion::arrow::datatypes::{DataType, FieldRef, TimeUnit};

pub(crate) use decode::decode_features;
pub(crate) use encode::RowEncoder;
pub(crate) use entry::{MAX_FUTURE_ROWS, StoredRow, merge, pick, put_entry, select_rows};

use crate::error::{Error, Result};
use crate::model::{FeatureGroup, FeatureSchema};
use codes::Kind;

/// The part of a row that orders rows.
const ORDER: usize = 24;

/// Where a row stands among the rows of its entity: greatest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RowOrder {
    /// Event time in µs since 1970 UTC.
    pub(crate) event_time_us: i64,
    /// `_ingested_at` in µs since 1970 UTC; `i64::MIN` for NULL.
    pub(crate) ingested_at_us: i64,
    /// `_sequence`; `i64::MIN` for NULL.
    pub(crate) sequence: i64,
}

impl RowOrder {
    fn to_bytes(self) -> [u8; ORDER] {
        let mut bytes = [0; ORDER];
        let parts = [self.event_time_us, self.ingested_at_us, self.sequence];
        for (slot, part) in bytes.chunks_exact_mut(8).zip(parts) {
            slot.copy_from_slice(&(part ^ i64::MIN).to_be_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; ORDER]) -> Self {
        let part = |i: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
            i64::from_be_bytes(eight) ^ i64::MIN
        };
        Self { event_time_us: part(0), ingested_at_us: part(1), sequence: part(2) }
    }
}

/// How the rows of a group are written, and how those are read that were written before its features changed.
#[derive(Debug, Clone)]
pub(crate) struct RowLayout {
    /// The features as they are now.
    fields: Vec<FieldRef>,
    /// The schemas of rows that may be there; the last is the one to write under.
    schemas: Vec<WrittenSchema>,
}

/// One schema that rows were written under.
#[derive(Debug, Clone)]
struct WrittenSchema {
    id: u32,
    slots: Vec<Slot>,
}

#[derive(Debug, Clone)]
struct Slot {
    kind: Kind,
    is_now: Now,
}

/// What has become of a feature since.
#[derive(Debug, Clone, Copy)]
enum Now {
    /// It is this one of the features of now.
    Feature(usize),
    /// It is this one, and of a type that the old values are not of.
    Other(usize),
    Dropped,
}

impl RowLayout {
    /// The layout of `group`'s rows.
    ///
    /// # Errors
    /// `Unsupported` when a feature, or the event time, has a type that no row can hold.
    pub(crate) fn new(group: &FeatureGroup) -> Result<Self> {
        let event_time = &group.columns[group.event_time].field;
        if !matches!(event_time.data_type(), DataType::Timestamp(TimeUnit::Microsecond, _)) {
            return Err(Error::unsupported(format!(
                "event time '{}' of feature group '{}' is {}: the online store keeps microseconds",
                event_time.name(),
                group.name,
                event_time.data_type()
            )));
        }
        let fields: Vec<FieldRef> =
            group.features().into_iter().map(|i| group.columns[i].field.clone()).collect();
        for field in &fields {
            check_type(field.data_type()).map_err(|data_type| {
                Error::unsupported(format!(
                    "feature '{}' of feature group '{}' holds {data_type}, which the online store cannot keep: \
                     use another type, or online = false",
                    field.name(),
                    group.name
                ))
            })?;
        }
        let now: Vec<(i32, &DataType)> = match group.schemas.last() {
            Some(current) => current.features.iter().map(|(id, data_type)| (*id, data_type)).collect(),
            None => (0..).zip(fields.iter().map(|field| field.data_type())).collect(),
        };
        let mut schemas: Vec<WrittenSchema> =
            group.schemas.iter().filter_map(|written| WrittenSchema::new(written, &now)).collect();
        if schemas.is_empty() {
            let slots = fields
                .iter()
                .enumerate()
                .map(|(i, f)| Slot { kind: Kind::of(f.data_type()), is_now: Now::Feature(i) });
            schemas.push(WrittenSchema { id: 0, slots: slots.collect() });
        }
        Ok(Self { fields, schemas })
    }

    /// The schema to write under.
    fn current(&self) -> &WrittenSchema {
        &self.schemas[self.schemas.len() - 1]
    }
}

impl WrittenSchema {
    /// `None` for a schema of which no row can have been written.
    fn new(written: &FeatureSchema, now: &[(i32, &DataType)]) -> Option<Self> {
        let slot = |(id, data_type): &(i32, DataType)| {
            check_type(data_type).ok()?;
            let is_now = match now.iter().position(|(now_id, _)| now_id == id) {
                None => Now::Dropped,
                Some(feature) if reads_as(data_type, now[feature].1) => Now::Feature(feature),
                Some(feature) => Now::Other(feature),
            };
            Some(Slot { kind: Kind::of(data_type), is_now })
        };
        let slots = written.features.iter().map(slot).collect::<Option<Vec<_>>>()?;
        Some(Self { id: u32::try_from(written.id).ok()?, slots })
    }
}

/// Whether a value that was written as one type is a value of the other: the promotions that Iceberg allows.
pub(super) fn reads_as(written: &DataType, now: &DataType) -> bool {
    use DataType::{Decimal128, Float32, Float64, Int32, Int64};
    match (written, now) {
        (Int32, Int64) | (Float32, Float64) => true,
        (Decimal128(from, scale), Decimal128(to, now_scale)) => from <= to && scale == now_scale,
        _ => is_same(written, now),
    }
}

/// Whether the bytes of a value mean the same under both types: those of a struct are in the order of its fields.
fn is_same(written: &DataType, now: &DataType) -> bool {
    match (written, now) {
        (DataType::List(written), DataType::List(now)) => is_same(written.data_type(), now.data_type()),
        (DataType::Struct(written), DataType::Struct(now)) => {
            written.len() == now.len()
                && written
                    .iter()
                    .zip(now)
                    .all(|(a, b)| a.name() == b.name() && is_same(a.data_type(), b.data_type()))
        }
        _ => written == now,
    }
}

/// `Err` with the type, possibly nested, that cannot be packed.
fn check_type(data_type: &DataType) -> Result<(), &DataType> {
    use DataType::{
        Binary, Boolean, Date32, Decimal128, Float32, Float64, Int32, Int64, List, Struct, Timestamp, Utf8,
    };
    match data_type {
        Boolean | Int32 | Int64 | Float32 | Float64 | Date32 | Decimal128(_, _) | Utf8 | Binary => Ok(()),
        Timestamp(TimeUnit::Microsecond, _) => Ok(()),
        List(item) => check_type(item.data_type()),
        Struct(fields) => fields.iter().try_for_each(|f| check_type(f.data_type())),
        other => Err(other),
    }
}

#[cfg(test)]
mod tests;
