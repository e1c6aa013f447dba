use std::sync::Arc;

use datafusion::arrow::array::*;
use datafusion::arrow::buffer::{NullBuffer, OffsetBuffer};
use datafusion::arrow::datatypes::{DataType, Field, Fields, Int32Type};
use proptest::prelude::*;
use proptest::sample::Index;
use uuid::Uuid;

use super::*;
use crate::error::ErrorKind;
use crate::model::{Column, TableName};

fn group_of(columns: &[ArrayRef]) -> FeatureGroup {
    let column = |name: String, data_type: &DataType| Column {
        field: Arc::new(Field::new(name, data_type.clone(), true)),
        default: None,
        description: None,
    };
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    let mut all = vec![column("id".into(), &DataType::Int64), column("ts".into(), &time)];
    all.extend(columns.iter().enumerate().map(|(i, c)| column(format!("f{i}"), c.data_type())));
    FeatureGroup {
        id: Uuid::from_u128(1),
        name: TableName::new("public", "g"),
        version: 1,
        columns: all,
        entity_key: vec![0],
        event_time: 1,
        ttl: None,
        owner: None,
        description: None,
        tags: vec![],
        online: true,
        schemas: vec![],
    }
}

/// Three rows of every type: a value, NULL, another value.
fn every_type() -> Vec<ArrayRef> {
    let list = ListArray::from_iter_primitive::<Int32Type, _, _>(vec![
        Some(vec![Some(1), None, Some(3)]),
        None,
        Some(vec![]),
    ]);
    let fields = Fields::from(vec![
        Field::new("a", DataType::Utf8, true),
        Field::new("b", DataType::Float64, false),
        Field::new("c", list.data_type().clone(), true),
    ]);
    let parts: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![Some("x"), None, None])),
        Arc::new(Float64Array::from(vec![1.5, 0.0, -0.0])),
        Arc::new(list.clone()),
    ];
    let nulls = NullBuffer::from(vec![true, false, true]);
    let structs = StructArray::new(fields, parts, Some(nulls.clone()));
    let item = Arc::new(Field::new("item", structs.data_type().clone(), true));
    let lengths = OffsetBuffer::from_lengths([2, 0, 1]);
    let nested = ListArray::new(item, lengths, Arc::new(structs.clone()), Some(nulls));
    vec![
        Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
        Arc::new(Int32Array::from(vec![Some(i32::MIN), None, Some(7)])),
        Arc::new(StringArray::from(vec![Some("zürich"), None, Some("")])),
        Arc::new(Int64Array::from(vec![Some(i64::MAX), None, Some(-1)])),
        Arc::new(Float32Array::from(vec![Some(f32::INFINITY), None, Some(0.1)])),
        Arc::new(Float64Array::from(vec![Some(-0.0), None, Some(f64::MIN_POSITIVE)])),
        Arc::new(
            Decimal128Array::from(vec![Some(-12345), None, Some(1)])
                .with_precision_and_scale(38, 10)
                .unwrap(),
        ),
        Arc::new(BinaryArray::from(vec![Some(b"\x00\xff".as_slice()), None, Some(b"")])),
        Arc::new(Date32Array::from(vec![Some(-1), None, Some(19_000)])),
        Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), None, Some(1)])),
        Arc::new(TimestampMicrosecondArray::from(vec![Some(-1), None, Some(1)]).with_timezone("UTC")),
        Arc::new(list),
        Arc::new(structs),
        Arc::new(nested),
    ]
}

fn order(event_time_us: i64, ingested_at_us: i64, sequence: i64) -> RowOrder {
    RowOrder { event_time_us, ingested_at_us, sequence }
}

fn pack(layout: &RowLayout, columns: &[ArrayRef], order: RowOrder) -> Vec<Vec<u8>> {
    let encoder = RowEncoder::new(layout, columns).unwrap();
    let one = |row| {
        let mut bytes = vec![];
        encoder.append(row, order, &mut bytes).unwrap();
        bytes
    };
    (0..columns[0].len()).map(one).collect()
}

#[test]
fn the_bytes_are_as_drawn() {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![-3])),
        Arc::new(StringArray::from(vec!["ab"])),
        Arc::new(Int64Array::from(vec![None])),
        Arc::new(StringArray::from(vec!["a longer text"])),
        Arc::new(Float64Array::from(vec![19.99])),
    ];
    let mut group = group_of(&columns);
    let features = (3..).zip(columns.iter().map(|c| c.data_type().clone())).collect();
    group.schemas = vec![FeatureSchema { id: 130, features }];
    let row = pack(&RowLayout::new(&group).unwrap(), &columns, order(1, -1, 2)).remove(0);
    let mut drawn = vec![0x80, 0, 0, 0, 0, 0, 0, 1];
    drawn.extend([0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    drawn.extend([0x80, 0, 0, 0, 0, 0, 0, 2]);
    drawn.extend([0x82, 0x01]);
    drawn.extend([0x32, 0xd0, 0x09]);
    drawn.push(5);
    drawn.extend(b"ab\x0da longer text");
    drawn.extend((1999u16 * 2).to_le_bytes());
    assert_eq!(row, drawn);
    let mut entry = vec![];
    put_entry(&[0], &mut entry, |_, out| {
        out.extend(&row);
        Ok(())
    })
    .unwrap();
    assert_eq!((entry[0], &entry[1..]), (2, row.as_slice()));
}

#[test]
fn ten_features_of_a_shop_fit_in_the_room_planned() {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![12])),
        Arc::new(Int64Array::from(vec![30])),
        Arc::new(Float64Array::from(vec![163.83])),
        Arc::new(Float64Array::from(vec![8388.6])),
        Arc::new(Int64Array::from(vec![89])),
        Arc::new(Int64Array::from(vec![20])),
        Arc::new(Float64Array::from(vec![327.67])),
        Arc::new(Float64Array::from(vec![0.5401])),
        Arc::new(StringArray::from(vec!["electronics"])),
        Arc::new(BooleanArray::from(vec![true])),
    ];
    let layout = RowLayout::new(&group_of(&columns)).unwrap();
    // With the entry's format: Redis keeps a value of up to 60 bytes in 64.
    assert!(pack(&layout, &columns, order(1, 1, 1))[0].len() < 60);
}

#[test]
fn every_type_reads_back_and_missing_rows_are_null() {
    let columns = every_type();
    let layout = RowLayout::new(&group_of(&columns)).unwrap();
    let rows = pack(&layout, &columns, order(1, 2, 3));
    let asked: Vec<Option<&[u8]>> =
        vec![Some(&rows[2]), None, Some(&rows[0]), Some(&rows[1]), Some(&rows[0])];
    let all: Vec<usize> = (0..columns.len()).collect();
    let decoded = decode_features(&layout, &asked, &all).unwrap();
    let some = [13, 2, 7];
    for (got, feature) in decode_features(&layout, &asked, &some).unwrap().iter().zip(some) {
        assert_eq!(got, &decoded[feature]);
    }
    let expected = UInt32Array::from(vec![Some(2), None, Some(0), Some(1), Some(0)]);
    for (got, column) in decoded.iter().zip(&columns) {
        let want = datafusion::arrow::compute::take(column, &expected, None).unwrap();
        assert_eq!(got.data_type(), want.data_type());
        assert_eq!(got, &want);
    }
}

#[test]
fn slices_pack_like_whole_columns() {
    let columns = every_type();
    let layout = RowLayout::new(&group_of(&columns)).unwrap();
    let whole = pack(&layout, &columns, order(1, 2, 3));
    let sliced: Vec<ArrayRef> = columns.iter().map(|c| c.slice(1, 2)).collect();
    assert_eq!(pack(&layout, &sliced, order(1, 2, 3)), whole[1..]);
}

#[test]
fn runs_of_equal_codes_end_where_they_differ() {
    let numbers = [Some(1.5), Some(2.25), Some(0.1 + 0.2), Some(1.0 / 3.0), None, None, Some(0.0), Some(7.0)];
    let texts =
        [Some("a"), Some("b"), Some("c"), Some("a longer text that needs its length"), None, Some("d")];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Float64Array::from_iter(numbers.iter().cycle().take(96).copied())),
        Arc::new(StringArray::from_iter(texts.iter().cycle().take(96).copied())),
        Arc::new(Int64Array::from_iter((0..96).map(|i| (i % 5 != 4).then_some(i / 3)))),
    ];
    let layout = RowLayout::new(&group_of(&columns)).unwrap();
    let rows = pack(&layout, &columns, order(1, 1, 1));
    let asked: Vec<Option<&[u8]>> =
        rows.iter().enumerate().map(|(i, r)| (i % 13 != 7).then_some(&r[..])).collect();
    let places = UInt32Array::from_iter((0..96).map(|i| (i % 13 != 7).then_some(i)));
    for (got, column) in decode_features(&layout, &asked, &[0, 1, 2]).unwrap().iter().zip(&columns) {
        assert_eq!(got, &datafusion::arrow::compute::take(column, &places, None).unwrap());
    }
}

/// A group whose table had these schemas, the last of them now: field id and a column of each feature.
fn group_through(schemas: &[&[(i32, &ArrayRef)]]) -> FeatureGroup {
    let current: Vec<ArrayRef> = schemas[schemas.len() - 1].iter().map(|(_, c)| Arc::clone(c)).collect();
    let schemas = schemas.iter().zip(0..).map(|(columns, id)| FeatureSchema {
        id,
        features: columns.iter().map(|(field, column)| (*field, column.data_type().clone())).collect(),
    });
    FeatureGroup { schemas: schemas.collect(), ..group_of(&current) }
}

#[test]
fn old_rows_read_right_after_features_came_went_and_widened() {
    let text: ArrayRef = Arc::new(StringArray::from(vec!["a text that stands behind its length"]));
    let (int, long): (ArrayRef, ArrayRef) =
        (Arc::new(Int32Array::from(vec![-70_000])), Arc::new(Int64Array::from(vec![-70_000])));
    let (real, double): (ArrayRef, ArrayRef) =
        (Arc::new(Float32Array::from(vec![0.1])), Arc::new(Float64Array::from(vec![f64::from(0.1f32)])));
    let truth: ArrayRef = Arc::new(BooleanArray::from(vec![true]));
    let first: &[(i32, &ArrayRef)] = &[(4, &text), (5, &int), (6, &real)];
    // 4 was dropped and its name may be taken by 7; 5 and 6 widened and changed places.
    let second: &[(i32, &ArrayRef)] = &[(6, &double), (7, &truth), (5, &long)];
    let old = RowLayout::new(&group_through(&[first])).unwrap();
    let new = RowLayout::new(&group_through(&[first, second])).unwrap();
    let written_then = pack(&old, &[text, int, real], order(1, 1, 1)).remove(0);
    let now = [double, truth, long];
    let written_now = pack(&new, &now, order(2, 1, 1)).remove(0);
    let rows = [Some(written_then.as_slice()), None, Some(written_now.as_slice()), Some(&written_then)];
    let decoded = decode_features(&new, &rows, &[2, 0, 1, 2]).unwrap();
    let column = |i: usize, places: [Option<u32>; 4]| {
        datafusion::arrow::compute::take(&now[i], &UInt32Array::from(places.to_vec()), None).unwrap()
    };
    let known = [Some(0), None, Some(0), Some(0)];
    assert_eq!(
        decoded,
        [column(2, known), column(0, known), column(1, [None, None, Some(0), None]), column(2, known)]
    );
    // A server that does not know of the change yet must not read it as something else.
    let error = decode_features(&old, &[Some(&written_now)], &[0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("schema 1, which is not known here"), "{error}");
}

#[test]
fn a_value_of_another_shape_is_not_read_as_something_else() {
    let structs = |names: [&str; 2]| -> ArrayRef {
        let fields = Fields::from(names.map(|name| Field::new(name, DataType::Float64, true)).to_vec());
        let parts: Vec<ArrayRef> =
            vec![Arc::new(Float64Array::from(vec![1.0])), Arc::new(Float64Array::from(vec![2.0]))];
        Arc::new(StructArray::new(fields, parts, None))
    };
    let other: ArrayRef = Arc::new(Int64Array::from(vec![7]));
    let (then, now) = (structs(["a", "b"]), structs(["b", "a"]));
    let first: &[(i32, &ArrayRef)] = &[(4, &then), (5, &other)];
    let second: &[(i32, &ArrayRef)] = &[(4, &now), (5, &other)];
    let old = RowLayout::new(&group_through(&[first])).unwrap();
    let row = pack(&old, &[then.clone(), other.clone()], order(1, 1, 1)).remove(0);
    let new = RowLayout::new(&group_through(&[first, second])).unwrap();
    let error = decode_features(&new, &[Some(&row)], &[0]).unwrap_err();
    assert!(error.to_string().contains("feature 'f0' had another type"), "{error}");
    assert_eq!(decode_features(&new, &[Some(&row)], &[1]).unwrap(), [other]);
}

#[test]
fn a_type_that_cannot_be_kept_is_named() {
    let columns: Vec<ArrayRef> = vec![Arc::new(UInt64Array::from(vec![1]))];
    let error = RowLayout::new(&group_of(&columns)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("'f0'") && error.to_string().contains("UInt64"), "{error}");
}

/// An entry of bare rows: the order, then one byte to tell rows apart.
fn entry(rows: &[(RowOrder, u8)]) -> Vec<u8> {
    let mut entry = vec![];
    let all: Vec<usize> = (0..rows.len()).collect();
    put_entry(&all, &mut entry, |row, out| {
        let (order, mark) = rows[row];
        out.extend(order.to_bytes());
        out.push(mark);
        Ok(())
    })
    .unwrap();
    entry
}

#[test]
fn future_rows_wait_and_do_not_hide_the_present_one() {
    let now = 100;
    let stored = merge(&entry(&[(order(90, 0, 0), 1)]), &entry(&[(order(110, 0, 0), 2)]), now).unwrap();
    let mark = |now| pick(&stored, now).unwrap().map(|row| row.bytes[ORDER]);
    assert_eq!([mark(89), mark(100), mark(109), mark(110)], [None, Some(1), Some(1), Some(2)]);
}

#[test]
fn what_is_due_last_goes_first_when_the_future_is_full() {
    let limit = MAX_FUTURE_ROWS as i64;
    let mut stored = entry(&[(order(0, 0, 0), 0)]);
    for time in (1..=limit + 3).rev() {
        stored = merge(&stored, &entry(&[(order(time, 0, 0), 1)]), 0).unwrap();
    }
    assert_eq!(stored.len(), 1 + (4 + ORDER + 1) * (MAX_FUTURE_ROWS + 1));
    assert_eq!(pick(&stored, 0).unwrap().unwrap().order.event_time_us, 0);
    assert_eq!(pick(&stored, i64::MAX).unwrap().unwrap().order.event_time_us, limit);
}

fn small_order() -> impl Strategy<Value = RowOrder> {
    (-3i64..6, 0i64..3, 0i64..3).prop_map(|(time, ingested, sequence)| order(time, ingested, sequence))
}

proptest! {
    /// The oracle of rule 10 and 11: whatever the order and the grouping of the merges, at every moment the entry
    /// serves the greatest row of all that were written.
    #[test]
    fn any_interleaving_serves_what_sorting_would(
        batches in prop::collection::vec(prop::collection::vec(small_order(), 1..5), 1..8),
        shuffle in prop::collection::vec(any::<Index>(), 8),
        now in -3i64..6,
    ) {
        let mut stored = vec![];
        let mut shuffled = vec![];
        for batch in &batches {
            let rows: Vec<_> = batch.iter().map(|o| (*o, 7)).collect();
            let incoming = merge(&[], &entry(&rows), now).unwrap();
            stored = merge(&stored, &incoming, now).unwrap();
            shuffled.push(incoming);
        }
        for (i, index) in shuffle.iter().enumerate().take(shuffled.len()) {
            let other = index.index(shuffled.len());
            shuffled.swap(i, other);
        }
        let mut other = vec![];
        for incoming in &shuffled {
            other = merge(&other, incoming, now).unwrap();
            other = merge(&other, incoming, now).unwrap();
        }
        prop_assert_eq!(&stored, &other);
        for later in now..7 {
            let greatest = batches.iter().flatten().filter(|o| o.event_time_us <= later).max();
            prop_assert_eq!(pick(&stored, later).unwrap().map(|row| row.order), greatest.copied());
        }
    }

    #[test]
    fn the_header_compares_like_the_order(a in any::<(i64, i64, i64)>(), b in any::<(i64, i64, i64)>()) {
        let (a, b) = (order(a.0, a.1, a.2), order(b.0, b.1, b.2));
        prop_assert_eq!(a.cmp(&b), a.to_bytes().cmp(&b.to_bytes()));
        prop_assert_eq!(RowOrder::from_bytes(&a.to_bytes()), a);
    }

    #[test]
    fn no_entry_makes_merge_or_pick_panic(a in prop::collection::vec(any::<u8>(), 0..120), b in prop::collection::vec(any::<u8>(), 0..120)) {
        let unreadable = pick(&a, i64::MAX).is_err();
        let merged = merge(&a, &b, 0);
        prop_assert!(!unreadable || merged.is_err());
    }

    /// A true row with some bytes changed, cut or added: an error or some values, never a panic.
    #[test]
    fn no_row_makes_the_decoder_panic(
        row in 0usize..3,
        changes in prop::collection::vec((any::<Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<Index>()),
        added in prop::collection::vec(any::<u8>(), 0..6),
    ) {
        let columns = every_type();
        let layout = RowLayout::new(&group_of(&columns)).unwrap();
        let mut bytes = pack(&layout, &columns, order(1, 2, 3)).remove(row);
        for (at, byte) in &changes {
            // Beyond the schema, or every case would stop at it.
            let at = ORDER + 1 + at.index(bytes.len() - ORDER - 1);
            bytes[at] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        bytes.extend(&added);
        let all: Vec<usize> = (0..columns.len()).collect();
        match decode_features(&layout, &[Some(&bytes), None], &all) {
            Ok(decoded) => prop_assert!(decoded.iter().all(|c| c.len() == 2)),
            Err(error) => prop_assert!(matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Conflict)),
        }
    }

    /// What `tests/fuzz` looks for with a better nose, in a few thousand steps.
    #[test]
    fn no_bytes_are_too_odd(
        head in prop::sample::select(vec![vec![2], vec![3], vec![2, 0x80], vec![]]),
        schema in 0u8..3,
        body in prop::collection::vec(any::<u8>(), 0..120),
    ) {
        fuzzing::online_entry(&body);
        let mut entry = head;
        entry.resize(1 + ORDER, 0x80);
        entry.push(schema);
        entry.extend(&body);
        fuzzing::online_entry(&entry);
        fuzzing::online_entry(&[entry.as_slice(), &entry].concat());
    }

    #[test]
    fn no_nested_value_makes_the_decoder_panic(value in prop::collection::vec(any::<u8>(), 0..80)) {
        let columns = every_type().split_off(13);
        let layout = RowLayout::new(&group_of(&columns)).unwrap();
        let mut bytes = pack(&layout, &columns, order(1, 2, 3)).remove(1);
        bytes[ORDER + 1] = 13;
        bytes.push(value.len() as u8);
        bytes.extend(&value);
        if let Ok(decoded) = decode_features(&layout, &[Some(&bytes)], &[0]) {
            prop_assert_eq!(decoded[0].len(), 1);
        }
    }
}
