use datafusion::arrow::array::{
    Float64Array, Int32Array, Int64Array, StringArray, StringViewArray, TimestampNanosecondArray,
};
use datafusion::arrow::datatypes::{Field, Int64Type, TimestampMicrosecondType};

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
        (vec![("id", fraction), names(), times(0)], "7.5 does not fit Int64 without rounding"),
        (vec![("id", huge), names(), times(0)], "column 'id' of 'public.t'"),
        (vec![ids(vec![None]), names(), times(0)], "'id' of 'public.t' is NULL (first in row 0"),
        (vec![ids(vec![Some(1)]), names(), times(1)], "1 ns since 1970 has nanoseconds"),
    ];
    for (columns, expected) in cases {
        let error = conform(columns).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::Invalid);
        assert!(error.to_string().contains(expected), "{error}");
    }
}
