//! The join's pure algorithms over plain slices, for benchmarks outside the crate.

use super::history::{Integers, Keys, Rows, Sought, Window, search};
use super::merge::{Knowledge, Merge, Rules, Side};

/// Labels in the order of (key, time): their rows in `keys` and `times`.
pub fn sort_labels(keys: &[i64], times: &[i64]) -> Vec<u32> {
    let rows: Vec<u32> = (0..keys.len() as u32).collect();
    Integers::from(keys.to_vec()).sorted(&(), times, &rows).order
}

/// How many labels find a row at or before their time. Both sides ascend by (key, time).
pub fn search_sorted_file(rows: (&[i64], &[i64]), labels: (&[i64], &[i64])) -> usize {
    let keys = Integers::from(rows.0.to_vec());
    let mut sought: Vec<Sought<i64>> = { labels.0.iter().zip(labels.1).enumerate() }
        .map(|(label, (key, time))| Sought {
            key: *key,
            window: Window { near: *time, far: i64::MIN },
            label: label as u32,
            has_choice: false,
        })
        .collect();
    let mut found = 0;
    search(&mut sought, &Rows { keys: &keys, times: rows.1 }, true, |_| true, |_, _| found += 1);
    found
}

/// How many labels the streaming merge finds a row for. One key, both sides ascend by time.
pub fn merge_sorted(rows: &[i64], labels: &[i64]) -> usize {
    let side = |times: &[i64]| Side {
        keys: None,
        usable: None,
        times: times.iter().map(|time| i128::from(*time)).collect(),
        marks: Vec::new(),
    };
    let rules = Rules { strict: false, reach: None, knowledge: Knowledge::Ignored };
    let (right, left, mut picks) = (side(rows), side(labels), Vec::new());
    let mut merge = Merge::new(rules);
    merge.step(&left, Some((0, &right)), &mut picks);
    merge.step(&left, None, &mut picks);
    picks.iter().flatten().count()
}
