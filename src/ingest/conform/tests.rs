use datafusion::arrow::array::AsArray;
use datafusion::arrow::array::{
    Float64Array, Int32Array, Int64Array, StringArray, StringViewArray, TimestampNanosecondArray,
};
use datafusion::arrow::datatypes::{Field, Int64Type, TimeUnit, TimestampMicrosecondType};

use super::*;

fn target() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
    ]))
}

fn conform(columns: Vec<(&str, ArrayRef)>) -> Result<RecordBatch> {
    let batch =
        RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, a)| (n, a, true))).unwrap();
    Conform::to_table(&TableName::new("public", "t"), &target(), &batch.schema())?.batch(&batch)
}

fn ids(values: Vec<Option<i64>>) -> (&'static str, ArrayRef) {
    ("id", Arc::new(Int64Array::from(values)))
}

fn names() -> (&'static str, ArrayRef) {
    ("name", Arc::new(StringArray::from(vec!["a"])))
}

fn times(nanos: i64) -> (&'static str, ArrayRef) {
    ("at", Arc::new(TimestampNanosecondArray::from(vec![nanos])))
}

#[test]
fn columns_meet_by_name_and_widen() {
    let batch = conform(vec![
        times(5_000),
        ("ID", Arc::new(Int32Array::from(vec![7]))),
        ("name", Arc::new(StringViewArray::from(vec!["x"]))),
    ])
    .unwrap();
    assert_eq!(batch.schema(), target());
    assert_eq!(batch.column(0).as_primitive::<Int64Type>().value(0), 7);
    assert_eq!(batch.column(2).as_primitive::<TimestampMicrosecondType>().value(0), 5);
}

#[test]
fn whole_floats_are_integers() {
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![3.0]));
    let batch = conform(vec![("id", floats), names(), times(0)]).unwrap();
    assert_eq!(batch.column(0).as_primitive::<Int64Type>().value(0), 3);
}

#[test]
fn what_does_not_fit_is_named() {
    let text: ArrayRef = Arc::new(StringArray::from(vec!["7"]));
    let fraction: ArrayRef = Arc::new(Float64Array::from(vec![7.5]));
    let huge: ArrayRef = Arc::new(Float64Array::from(vec![1e300]));
    let extra: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let cases = [
        (vec![ids(vec![Some(1)]), names()], "lack column 'at'"),
        (
            vec![ids(vec![Some(1)]), names(), times(0), ("extra", extra)],
            "have column 'extra' that the table does not have",
        ),
        (vec![("id", text), names(), times(0)], "column 'id' of 'public.t' is Int64, but the rows give Utf8"),
        (vec![("id", fraction), names(), times(0)], "7.5 does not fit Int64 without loss"),
        (vec![("id", huge), names(), times(0)], "column 'id' of 'public.t'"),
        (vec![ids(vec![None]), names(), times(0)], "'id' of 'public.t' is NULL (first in row 0"),
        (vec![ids(vec![Some(1)]), names(), times(1)], "does not fit Timestamp(µs, \"UTC\") without loss"),
    ];
    for (columns, expected) in cases {
        let error = conform(columns).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Invalid);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn nothing_is_lost_in_a_cast_that_passes() {
    use datafusion::arrow::array::{Decimal128Array, ListArray};
    let item = |t| Arc::new(Field::new("item", t, true));
    let floats = ListArray::from_iter_primitive::<datafusion::arrow::datatypes::Float64Type, _, _>([
        Some(vec![Some(1.0), None]),
        Some(vec![Some(1.5)]),
    ]);
    let big = Decimal128Array::from(vec![1_234_567_890_123_456_789]).with_precision_and_scale(20, 2).unwrap();
    let cases: Vec<(ArrayRef, DataType, &str)> = vec![
        (Arc::new(big), DataType::Decimal128(20, 1), "12345678901234567.89"),
        (Arc::new(floats.clone()), DataType::List(item(DataType::Int32)), "[1.5]"),
        (Arc::new(Int64Array::from(vec![(1 << 53) + 1])), DataType::Float64, "9007199254740993"),
    ];
    for (array, to, named) in cases {
        let error = lossless(&array, &to).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
    let whole: ArrayRef = Arc::new(floats.slice(0, 1));
    assert_eq!(lossless(&whole, &DataType::List(item(DataType::Int32))).unwrap().len(), 1);
    let exact: ArrayRef = Arc::new(Int64Array::from(vec![Some(1 << 53), None]));
    assert_eq!(lossless(&exact, &DataType::Float64).unwrap().null_count(), 1);
}
