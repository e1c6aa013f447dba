//! How long a hit takes: `cargo test --release --lib online::tests::cache_speed -- --ignored --nocapture`.

use std::hint::black_box;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::*;

const ENTITIES: usize = 100_000;
const BATCH: usize = 1_000;
const ENTRY_BYTES: usize = 450;

/// Every entity has an entry.
#[derive(Debug)]
struct Full(Bytes);

#[async_trait]
impl OnlineStore for Full {
    fn describe(&self) -> String {
        "full".to_owned()
    }

    async fn write(&self, _: &Arc<FeatureGroup>, _: &RecordBatch) -> Result<()> {
        Ok(())
    }

    async fn remove(&self, _: Uuid, _: &[EntityKey]) -> Result<()> {
        Ok(())
    }

    async fn applied_snapshot(&self, _: Uuid) -> Result<Option<i64>> {
        Ok(None)
    }

    async fn set_applied_snapshot(&self, _: Uuid, _: i64) -> Result<()> {
        Ok(())
    }

    async fn drop_group(&self, _: Uuid) -> Result<()> {
        Ok(())
    }

    async fn get(&self, _: &Arc<FeatureGroup>, keys: &[EntityKey], _: Option<Duration>) -> Result<Found> {
        let entries = keys.iter().map(|_| Some(Bytes::copy_from_slice(&self.0))).collect();
        Ok(Found { entries, store_reads: keys.len(), ..Found::default() })
    }

    fn scan(&self, _: &Arc<FeatureGroup>) -> BoxStream<'static, Result<ScannedEntries>> {
        Box::pin(futures::stream::empty())
    }
}

/// Batches of keys in no order.
fn batches(size: usize) -> Vec<Vec<EntityKey>> {
    let users = |batch: usize| (0..size).map(move |i| ((batch * size + i) * 7_919 % ENTITIES) as i64);
    (0..ENTITIES / size).map(|batch| keys(&users(batch).collect::<Vec<_>>())).collect()
}

/// Nanoseconds per key, with so many threads that do the same.
fn measure(threads: usize, size: usize, run: impl Fn(&[EntityKey]) + Sync) -> u128 {
    let batches = batches(size);
    let rounds = 20;
    let started = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (batches, run) = (&batches, &run);
            scope.spawn(move || {
                for round in 0..rounds {
                    for i in 0..batches.len() {
                        run(&batches[(i * 31 + thread * 7 + round) % batches.len()]);
                    }
                }
            });
        }
    });
    started.elapsed().as_nanos() / (rounds * ENTITIES / size * size) as u128
}

#[test]
#[ignore = "a measurement"]
fn hits() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let _in = runtime.enter();
    let store = Arc::new(Full(Bytes::from(vec![7; ENTRY_BYTES])));
    let options = CacheOptions { capacity_bytes: 1 << 30, ttl: Duration::from_secs(3600) };
    let clock = Arc::new(crate::clock::SystemClock);
    let cache = cached::CachedStore::new(store, options, clock);
    let group = Arc::new(group(1));
    let all: Vec<i64> = (0..ENTITIES as i64).collect();
    let found = futures::executor::block_on(cache.get(&group, &keys(&all), None)).unwrap();
    assert_eq!(found.store_reads, ENTITIES);
    for (threads, size) in [(1, BATCH), (2, BATCH), (1, 100), (2, 100), (1, 1), (2, 1)] {
        let reads = std::sync::atomic::AtomicUsize::new(0);
        let ns = measure(threads, size, |keys| {
            let found = futures::executor::block_on(cache.get(&group, keys, None)).unwrap();
            reads.fetch_add(found.store_reads, Relaxed);
            black_box(found.entries);
        });
        println!("{threads} threads, {size:4} keys: {ns} ns per key, {} not held", reads.load(Relaxed));
    }

    // moka alone, with the least that a hit may cost there.
    let moka = moka::sync::Cache::builder()
        .max_capacity(1 << 30)
        .build_with_hasher(foldhash::quality::RandomState::default());
    for key in keys(&all) {
        let key = EntityKey::from_stored(Bytes::copy_from_slice(key.as_bytes()));
        moka.insert(key, Bytes::from(vec![7; ENTRY_BYTES]));
    }
    for threads in [1, 2] {
        let ns = measure(threads, BATCH, |keys| {
            black_box(keys.iter().map(|key| moka.get(key)).collect::<Vec<_>>());
        });
        println!("{threads} threads, {BATCH:4} keys: {ns} ns per key of moka alone");
    }
}
