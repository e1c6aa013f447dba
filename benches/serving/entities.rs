//! The entities that everybody is asked for: made-up features that anyone can recompute, and their entries in Redis.

use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use clap::Args;
use redis::aio::MultiplexedConnection;

use crate::Failure;

/// Features of an entity.
pub(crate) const FEATURES: usize = 50;

/// What an entry of Fletching's has before its slots, about.
const HEADER_BYTES: usize = 40;
const SETS_PER_CALL: u64 = 1000;

/// SplitMix64: a number that looks random.
pub(crate) fn scatter(number: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A feature of an entity: from 0 to below 1, and every bit of a double counts. `data.py` computes the same.
pub(crate) fn feature(entity: u64, feature: usize) -> f64 {
    (scatter(entity * FEATURES as u64 + feature as u64) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Random entities, the same ones for the same seed.
#[derive(Debug)]
pub(crate) struct Entities {
    state: u64,
    count: u64,
}

impl Entities {
    pub(crate) fn new(count: u64, seed: u64) -> Self {
        Self { state: scatter(seed) << 20, count }
    }

    /// Any of them, each as likely.
    pub(crate) fn draw(&mut self) -> u64 {
        self.state += 1;
        ((u128::from(scatter(self.state)) * u128::from(self.count)) >> 64) as u64
    }
}

/// `f00`, `f01`, …
pub(crate) fn schema() -> SchemaRef {
    let field = |number| Field::new(name(number), DataType::Float64, true);
    Arc::new(Schema::new((0..FEATURES).map(field).collect::<Vec<_>>()))
}

/// The name of a feature.
pub(crate) fn name(feature: usize) -> String {
    format!("f{feature:02}")
}

/// Rows of features, `rows` of them, where `value(row, feature)` is what they hold.
pub(crate) fn batch(schema: &SchemaRef, rows: usize, value: impl Fn(usize, usize) -> f64) -> RecordBatch {
    let column = |feature| -> ArrayRef {
        Arc::new(Float64Array::from_iter_values((0..rows).map(|row| value(row, feature))))
    };
    RecordBatch::try_new(Arc::clone(schema), (0..FEATURES).map(column).collect()).expect("columns fit")
}

#[derive(Debug, Args)]
pub(crate) struct FillArgs {
    /// Where to
    #[arg(long)]
    redis: String,
    /// How many entries
    #[arg(long, default_value_t = 100_000)]
    entities: u64,
}

/// A key that `redis-benchmark` makes out of `floor:__rand_int__`, too.
fn key(entity: u64) -> String {
    format!("floor:{entity:012}")
}

fn entry(entity: u64) -> Vec<u8> {
    let mut entry = vec![0; HEADER_BYTES];
    entry.extend((0..FEATURES).flat_map(|number| feature(entity, number).to_le_bytes()));
    entry
}

/// Sets an entry for each entity.
pub(crate) async fn fill(args: FillArgs) -> Result<(), Failure> {
    let mut redis = redis::Client::open(args.redis)?.get_multiplexed_async_connection().await?;
    for first in (0..args.entities).step_by(SETS_PER_CALL as usize) {
        let mut pipe = redis::pipe();
        for entity in first..args.entities.min(first + SETS_PER_CALL) {
            pipe.set(key(entity), entry(entity)).ignore();
        }
        pipe.exec_async(&mut redis).await?;
    }
    Ok(())
}

/// Fetches the entries of entities, and turns them into columns.
pub(crate) async fn fetch(
    redis: &mut MultiplexedConnection,
    schema: &SchemaRef,
    entities: impl Iterator<Item = u64>,
) -> Result<RecordBatch, Failure> {
    let mut mget = redis::cmd("MGET");
    for entity in entities {
        mget.arg(key(entity));
    }
    let entries: Vec<Option<Vec<u8>>> = mget.query_async(redis).await?;
    let entries: Vec<Vec<u8>> = entries.into_iter().flatten().collect();
    if entries.iter().any(|entry| entry.len() != HEADER_BYTES + FEATURES * 8) {
        return Err("an entry is not one that `fill` has set".into());
    }
    Ok(batch(schema, entries.len(), |row, feature| {
        let start = HEADER_BYTES + feature * 8;
        f64::from_le_bytes(entries[row][start..start + 8].try_into().expect("8 bytes"))
    }))
}
