use std::collections::HashMap;

use datafusion::arrow::array::TimestampMicrosecondArray;
use proptest::prelude::*;

use super::*;

fn fields(types: &[DataType]) -> Vec<FieldRef> {
    types
        .iter()
        .enumerate()
        .map(|(i, t)| Arc::new(Field::new(format!("k{i}"), t.clone(), true)) as _)
        .collect()
}

fn known(columns: &[ArrayRef]) -> Vec<EntityKey> {
    encode_keys(columns).unwrap().into_iter().map(Option::unwrap).collect()
}

#[test]
fn the_bytes_are_as_drawn() {
    let columns: Vec<ArrayRef> =
        vec![Arc::new(StringArray::from(vec!["u1"])), Arc::new(Int64Array::from(vec![7]))];
    let drawn = [0, 0, 0, 2, b'u', b'1', 0x80, 0, 0, 0, 0, 0, 0, 7];
    assert_eq!(known(&columns)[0].as_bytes(), drawn);
}

#[test]
fn concatenated_text_does_not_collide() {
    let keys = known(&[
        Arc::new(StringArray::from(vec!["a", "ab", "", "abc"])),
        Arc::new(StringArray::from(vec!["bc", "c", "abc", ""])),
    ]);
    let distinct: std::collections::HashSet<_> = keys.iter().collect();
    assert_eq!(distinct.len(), 4);
}

#[test]
fn a_null_column_makes_no_key() {
    let keys = encode_keys(&[
        Arc::new(Int32Array::from(vec![Some(1), None, Some(1)])),
        Arc::new(StringArray::from(vec![Some("a"), Some("a"), None])),
    ])
    .unwrap();
    assert_eq!(keys.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false]);
}

#[test]
fn every_key_type_reads_back() {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(BooleanArray::from(vec![true, false])),
        Arc::new(Int32Array::from(vec![i32::MIN, i32::MAX])),
        Arc::new(Int64Array::from(vec![-1, i64::MAX])),
        Arc::new(Date32Array::from(vec![-1, 20_000])),
        Arc::new(TimestampMicrosecondArray::from(vec![-5, 5]).with_timezone("UTC")),
        Arc::new(Decimal128Array::from(vec![-123, 456]).with_precision_and_scale(10, 2).unwrap()),
        Arc::new(StringArray::from(vec!["", "zürich"])),
        Arc::new(BinaryArray::from(vec![b"\x00\xff".as_slice(), b""])),
    ];
    let types: Vec<DataType> = columns.iter().map(|c| c.data_type().clone()).collect();
    assert_eq!(decode_keys(&fields(&types), &known(&columns)).unwrap(), columns);
}

proptest! {
    /// Equal bytes exactly when equal values, and the values come back.
    #[test]
    fn bytes_are_equal_when_values_are(rows in prop::collection::vec((".{0,4}", any::<i64>(), prop::collection::vec(any::<u8>(), 0..4)), 0..20)) {
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.0))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.1))),
            Arc::new(BinaryArray::from_iter_values(rows.iter().map(|r| &r.2))),
        ];
        let keys = known(&columns);
        let mut seen: HashMap<&[u8], &(String, i64, Vec<u8>)> = HashMap::new();
        for (key, row) in keys.iter().zip(&rows) {
            prop_assert_eq!(*seen.entry(key.as_bytes()).or_insert(row), row);
        }
        let types = [DataType::Utf8, DataType::Int64, DataType::Binary];
        prop_assert_eq!(decode_keys(&fields(&types), &keys).unwrap(), columns);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
        let fields = fields(&[DataType::Boolean, DataType::Utf8, DataType::Int32, DataType::Binary]);
        if let Ok(columns) = decode_keys(&fields, &[EntityKey::from_stored(bytes.clone())]) {
            prop_assert_eq!(columns.len(), 4);
        }
    }
}
