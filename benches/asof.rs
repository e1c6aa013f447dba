//! Kernels of the ASOF join and of reading single rows, on one core: `cargo bench --bench asof`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fletching::kernels::{merge_sorted, packed_values_at, search_sorted_file, sort_labels};

const ROWS: usize = 1_000_000;

/// Numbers that look random and are the same in every run.
fn scattered(index: usize, below: u64) -> i64 {
    let mixed = (index as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) % below) as i64
}

/// (key, time) pairs in order.
fn sorted(count: usize, entities: u64, seed: usize) -> (Vec<i64>, Vec<i64>) {
    let pair = |row: usize| (scattered(row * 2 + seed, entities), scattered(row * 3 + seed, 1 << 40));
    let mut pairs: Vec<(i64, i64)> = (0..count).map(pair).collect();
    pairs.sort_unstable();
    pairs.into_iter().unzip()
}

fn search(c: &mut Criterion) {
    let mut group = c.benchmark_group("search a sorted file, history rows per label");
    group.throughput(Throughput::Elements(ROWS as u64)).sample_size(20);
    let rows = sorted(ROWS, 100_000, 7);
    for per_label in [1, 10, 100, 1000] {
        let labels = sorted(ROWS / per_label, 102_000, 11);
        group.bench_function(BenchmarkId::from_parameter(per_label), |b| {
            b.iter(|| search_sorted_file((&rows.0, &rows.1), (&labels.0, &labels.1)));
        });
    }
    group.finish();
}

fn merge(c: &mut Criterion) {
    let mut group = c.benchmark_group("streaming merge");
    group.throughput(Throughput::Elements(2 * ROWS as u64)).sample_size(20);
    let (rows, labels) = (sorted(ROWS, 1, 7).1, sorted(ROWS, 1, 11).1);
    group.bench_function("one key", |b| b.iter(|| merge_sorted(&rows, &labels)));
    group.finish();
}

fn sort(c: &mut Criterion) {
    let mut group = c.benchmark_group("sort labels");
    group.throughput(Throughput::Elements(ROWS as u64)).sample_size(20);
    let keys: Vec<i64> = (0..ROWS).map(|row| scattered(row, 100_000)).collect();
    let times: Vec<i64> = (0..ROWS).map(|row| scattered(row * 3, 1 << 40)).collect();
    group.bench_function("integer key", |b| b.iter(|| sort_labels(&keys, &times)));
    group.finish();
}

/// One packed run of dictionary indices of 12 bits, as a page of a column of some thousand distinct values has them.
fn take(c: &mut Criterion) {
    const PAGE: usize = 16_000;
    let header = ((PAGE / 8) << 1) | 1;
    let mut page = vec![(header & 0x7f) as u8 | 0x80, (header >> 7) as u8];
    page.extend((0..PAGE * 12 / 8).map(|byte| scattered(byte, 256) as u8));
    let mut group = c.benchmark_group("values of a page, one in");
    for step in [1, 13, 100] {
        let positions: Vec<u32> = (0..PAGE as u32).step_by(step).collect();
        group.throughput(Throughput::Elements(positions.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(step), |b| {
            b.iter(|| packed_values_at(&page, 12, &positions));
        });
    }
    group.finish();
}

criterion_group!(kernels, search, merge, sort, take);
criterion_main!(kernels);
