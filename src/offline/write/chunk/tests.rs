use std::sync::Arc;

use datafusion::arrow::array::{
    BooleanArray, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
};
use proptest::prelude::*;

use super::*;

/// One row: keys that repeat, a time within some 70 days around 1970, and what it is recognized by.
type Row = (Option<i64>, i32, i64);

fn rows() -> impl Strategy<Value = Vec<Row>> {
    let key = prop_oneof![9 => (-2..3_i64).prop_map(Some), 1 => Just(None)];
    let time = (-35..35_i64, 0..3_i64).prop_map(|(day, us)| day * DAY_US + us);
    proptest::collection::vec((key, 0..2_i32, time), 1..200)
}

/// Columns: a nullable text key, a nullable number key, a key, a boolean, the time, the row's number.
fn batch(rows: &[Row], first: usize) -> RecordBatch {
    let numbers = first as i64..(first + rows.len()) as i64;
    let columns: [(&str, ArrayRef); 6] = [
        ("text", Arc::new(StringArray::from_iter(rows.iter().map(|r| r.0.map(|k| format!("k{k}")))))),
        ("nullable", Arc::new(Int64Array::from_iter(rows.iter().map(|r| r.0)))),
        ("key", Arc::new(Int32Array::from_iter_values(rows.iter().map(|r| r.1)))),
        ("flag", Arc::new(BooleanArray::from_iter(rows.iter().map(|r| Some(r.1 == 0))))),
        ("time", Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.2)))),
        ("number", Arc::new(Int64Array::from_iter_values(numbers))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).unwrap()
}

fn chunk(rows: &[Row], batch_rows: usize, order: &[usize]) -> Chunk {
    let batches = rows.chunks(batch_rows).enumerate().map(|(i, rows)| batch(rows, i * batch_rows));
    Chunk::new(batches.collect(), order.to_vec(), Some(4))
}

/// The row numbers in the order of `columns`, by arrow's row format and a stable sort.
fn oracle(rows: &[Row], picked: &[u32], columns: &[usize]) -> Vec<u32> {
    let batch = batch(rows, 0);
    let columns: Vec<ArrayRef> = columns.iter().map(|&c| Arc::clone(batch.column(c))).collect();
    let fields = columns.iter().map(|c| SortField::new(c.data_type().clone())).collect();
    let keys = RowConverter::new(fields).unwrap().convert_columns(&columns).unwrap();
    let mut picked = picked.to_vec();
    picked.sort_by_key(|&row| keys.row(row as usize));
    picked
}

const ORDERS: [&[usize]; 8] =
    [&[1, 4, 5], &[2, 4, 5], &[0, 4, 5], &[2, 3, 4, 5], &[2, 1, 0, 4, 5], &[4, 5], &[5], &[3, 4]];

proptest! {
    #[test]
    fn files_hold_all_rows_in_order(
        rows in rows(), batch_rows in 1..60_usize, order in 0..ORDERS.len(), file_rows_min in 1..100_usize,
    ) {
        let chunk = chunk(&rows, batch_rows, ORDERS[order]);
        let files = chunk.files(file_rows_min).unwrap();
        prop_assert!(files.len() == 1 || rows.len() / files.len() >= file_rows_min);
        let mut seen: Vec<u32> = files.iter().flatten().copied().collect();
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..rows.len() as u32).collect::<Vec<_>>(), "each row is in one file");
        let mut times = Vec::new();
        for file in files {
            prop_assert!(!file.is_empty());
            let sorted = chunk.sorted(file.clone()).unwrap();
            prop_assert_eq!(&sorted, &oracle(&rows, &file, ORDERS[order]));
            let taken = chunk.take(&sorted).unwrap();
            let numbers = taken.column(5).as_primitive::<Int64Type>().values();
            prop_assert!(numbers.iter().map(|n| *n as u32).eq(sorted));
            let time = |row: &u32| rows[*row as usize].2;
            times.push((file.iter().map(time).min(), file.iter().map(time).max()));
        }
        times.sort_unstable();
        prop_assert!(times.windows(2).all(|two| two[0].1 < two[1].0), "files do not overlap in time");
    }
}

#[test]
fn files_are_days_then_months_then_one() {
    // 1970-01-30 to 1970-02-02, two rows each.
    let rows: Vec<Row> = (0..8).map(|i| (None, 0, (29 + i / 2) * DAY_US)).collect();
    let chunk = chunk(&rows, 3, &[4]);
    let files = |rows_min| chunk.files(rows_min).unwrap();
    assert_eq!(files(2), [[0, 1], [2, 3], [4, 5], [6, 7]]);
    assert_eq!(files(3), [[0, 1, 2, 3], [4, 5, 6, 7]]);
    assert_eq!(files(5), [[0, 1, 2, 3, 4, 5, 6, 7]]);
}
