//! What an online store keeps for one entity, byte by byte. All lengths are in bytes.
//!
//! An **entry** is the entity's stored rows, newest first: every row dated in the future, and of the others the
//! newest one (see [`merge`]). Nearly every entry is one row, which then stands bare; of several each has its length
//! before it, big-endian:
//!
//! ```text
//! entry   02 | row                                            one row
//!         03 | [ length u32 | row ] [ length u32 | row ] …    two or more
//! ```
//!
//! A **row** holds no names: its slots are in the order of the group's features. Its first 24 bytes, compared as
//! bytes, put the rows of an entity in their total order.
//!
//! ```text
//! at   size
//!  0    8    event time       µs since 1970 UTC, big-endian, sign bit flipped
//!  8    8    _ingested_at     the same; NULL is the smallest
//! 16    8    _sequence        big-endian, sign bit flipped; NULL is the smallest
//! 24    1    format           1
//! 25    4    fingerprint      of the features' names and types, little-endian
//! 29   ⌈n/8⌉ present          bit i (byte i/8, from the low end) is set when feature i is not NULL
//!  …         slots            one per feature, little-endian, zeros when NULL:
//!                               BOOLEAN 1; INT, REAL, DATE 4; BIGINT, DOUBLE, TIMESTAMP 8; DECIMAL 16;
//!                               VARCHAR, BINARY, list, struct 4: where the value ends in the tail, which is
//!                               where the next one starts
//!  …         tail             the values of variable length, one after the other
//! ```
//!
//! In the tail, text and binary are bare. Lists and structs are **bodies**, which read back on their own:
//!
//! ```text
//! fixed width   as in a slot
//! text, binary  [ length u32 ][ bytes ]
//! list          [ count u32 ][ present ⌈count/8⌉ ][ body of each item that is not NULL ]
//! struct        [ present ⌈fields/8⌉ ][ body of each field that is not NULL ]
//! ```
//!
//! The fingerprint tells a value that was written under another set of features from a damaged one.

mod builder;
mod decode;
mod encode;
mod entry;

use datafusion::arrow::datatypes::{DataType, FieldRef, TimeUnit};

pub(crate) use decode::decode_features;
pub(crate) use encode::RowEncoder;
pub(crate) use entry::{MAX_FUTURE_ROWS, StoredRow, merge, pick, push_row, select_rows};

use crate::error::{Error, Result};
use crate::model::FeatureGroup;

/// The format this code writes, and the only one it reads.
const FORMAT: u8 = 1;
/// Event time, `_ingested_at`, `_sequence`, format, fingerprint.
const HEADER: usize = 29;
/// The part of the header that orders rows.
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

/// Where each feature of a group sits in a row.
#[derive(Debug, Clone)]
pub(crate) struct RowLayout {
    features: Vec<Slot>,
    fingerprint: u32,
    /// Where the tail starts, and the length of the shortest row.
    tail: usize,
}

#[derive(Debug, Clone)]
struct Slot {
    field: FieldRef,
    /// From the start of the row.
    offset: usize,
    /// The offset of the last slot before it that points into the tail: this one's value starts where that one's ends.
    variable_before: Option<usize>,
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
        let mut offset = HEADER + fields.len().div_ceil(8);
        let mut variable_before = None;
        let mut features = Vec::with_capacity(fields.len());
        for field in &fields {
            check_type(field.data_type()).map_err(|data_type| {
                Error::unsupported(format!(
                    "feature '{}' of feature group '{}' holds {data_type}, which the online store cannot keep: \
                     use another type, or online = false",
                    field.name(),
                    group.name
                ))
            })?;
            features.push(Slot { field: field.clone(), offset, variable_before });
            if is_variable(field.data_type()) {
                variable_before = Some(offset);
            }
            offset += slot_width(field.data_type());
        }
        Ok(Self { features, fingerprint: fingerprint(&fields), tail: offset })
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

fn slot_width(data_type: &DataType) -> usize {
    use DataType::{Boolean, Decimal128, Float64, Int64, Timestamp};
    match data_type {
        Boolean => 1,
        Int64 | Float64 | Timestamp(_, _) => 8,
        Decimal128(_, _) => 16,
        _ => 4,
    }
}

/// Whether the value stands in the tail, and the slot says where.
fn is_variable(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::Binary | DataType::List(_) | DataType::Struct(_))
}

/// FNV-1a over names and types: stable across builds and machines, which a `Hasher` of the standard library is not.
fn fingerprint(fields: &[FieldRef]) -> u32 {
    let mut hash = 0x811c_9dc5_u32;
    let mut add = |text: &str| {
        for byte in text.bytes().chain([0]) {
            hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        }
    };
    for field in fields {
        add(field.name());
        add(&shape(field.data_type()));
    }
    hash
}

/// The type as far as it decides the bytes; item names and nullability do not.
fn shape(data_type: &DataType) -> String {
    match data_type {
        DataType::List(item) => format!("[{}]", shape(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> =
                fields.iter().map(|f| format!("{}:{}", f.name(), shape(f.data_type()))).collect();
            format!("{{{}}}", fields.join(","))
        }
        DataType::Timestamp(_, zone) => format!("timestamp{}", if zone.is_some() { "tz" } else { "" }),
        DataType::Decimal128(precision, scale) => format!("decimal({precision},{scale})"),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
