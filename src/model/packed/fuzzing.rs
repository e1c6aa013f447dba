//! Any bytes as an entry: picked from, merged and decoded, as an online store's reader and writer do.

use std::sync::{Arc, LazyLock};

use datafusion::arrow::datatypes::{DataType, Field, Fields, TimeUnit};

use super::{MAX_FUTURE_ROWS, ORDER, RowLayout, decode_features, merge, pick};
use crate::model::{Column, FeatureGroup, FeatureSchema, TableName};

/// Every type that a row can hold, under two schemas: the features, and every second of them in reverse.
static LAYOUT: LazyLock<RowLayout> = LazyLock::new(|| {
    let group = group();
    let types = group.columns[2..].iter().map(|column| column.field.data_type().clone());
    let now: Vec<(i32, DataType)> = (0..).zip(types).collect();
    let before = now.iter().rev().step_by(2).cloned().collect();
    let schemas = vec![FeatureSchema { id: 0, features: before }, FeatureSchema { id: 1, features: now }];
    // All of these types can be kept; a group of none would still decode.
    RowLayout::new(&FeatureGroup { schemas, ..group })
        .unwrap_or(RowLayout { fields: Vec::new(), schemas: Vec::new() })
});

fn group() -> FeatureGroup {
    use DataType::{Binary, Boolean, Date32, Decimal128, Float32, Float64, Int32, Int64, Utf8};
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    let field = |name: &str, data_type: DataType| Arc::new(Field::new(name, data_type, true));
    let text = DataType::List(field("item", Utf8));
    let pair = DataType::Struct(Fields::from(vec![field("a", Float64), field("b", text.clone())]));
    let pairs = DataType::List(field("item", pair.clone()));
    let features = [
        Boolean,
        Int32,
        Int64,
        Float32,
        Float64,
        Decimal128(38, 10),
        Utf8,
        Binary,
        Date32,
        time.clone(),
        text,
        pair,
        pairs,
    ];
    let columns = [Int64, time].into_iter().chain(features).enumerate();
    let columns = columns.map(|(i, data_type)| Column {
        field: field(&format!("c{i}"), data_type),
        default: None,
        description: None,
    });
    FeatureGroup {
        id: uuid::Uuid::nil(),
        name: TableName::new("public", "fuzzed"),
        version: 1,
        columns: columns.collect(),
        entity_key: vec![0],
        event_time: 1,
        ttl: None,
        owner: None,
        description: None,
        tags: Vec::new(),
        online: true,
        schemas: Vec::new(),
    }
}

/// Reads `bytes` in every way that the store's bytes are read in. Only a panic is wrong, or a merge that reads back as
/// what it is not.
///
/// # Panics
/// When what was merged is no entry, or the newest row of two entries is lost: what the fuzzer is looking for.
pub fn online_entry(bytes: &[u8]) {
    let picked = pick(bytes, i64::MAX);
    if let Ok(Some(row)) = &picked {
        let all: Vec<usize> = (0..LAYOUT.fields.len()).collect();
        if let Ok(columns) = decode_features(&LAYOUT, &[Some(row.bytes), None], &all) {
            assert!(columns.iter().all(|column| column.len() == 2), "a row is missing");
        }
    }
    let (one, other) = bytes.split_at(bytes.len() / 2);
    if let Ok(merged) = merge(one, other, 0) {
        let newest = |entry| pick(entry, i64::MAX).map(|row| row.map(|row| row.order));
        let (Ok(a), Ok(b), Ok(both)) = (newest(one), newest(other), newest(&merged)) else {
            panic!("two entries were merged into none");
        };
        let full = bytes.len() > MAX_FUTURE_ROWS * ORDER; // then what is due last goes first
        assert!(full || both >= a.max(b), "the newest row is lost");
    }
}
