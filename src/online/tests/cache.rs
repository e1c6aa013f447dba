//! What the cache must not do: answer with what a write has replaced.

use tokio::sync::Notify;

use super::*;

/// A store whose reads can be held after they have read and before they answer, and can fail then; and whose writes
/// can fail half-way.
#[derive(Debug)]
struct Held {
    store: Arc<dyn OnlineStore>,
    hold: std::sync::atomic::AtomicBool,
    fail_reads: std::sync::atomic::AtomicBool,
    fail_writes: std::sync::atomic::AtomicBool,
    /// The keys of each read so far.
    reads: parking_lot::Mutex<Vec<Vec<EntityKey>>>,
    has_read: Notify,
    go_on: Notify,
}

use std::sync::atomic::Ordering::SeqCst;

#[async_trait]
impl OnlineStore for Held {
    fn describe(&self) -> String {
        self.store.describe()
    }

    async fn write(&self, group: &Arc<FeatureGroup>, history: &RecordBatch) -> Result<()> {
        self.store.write(group, history).await?;
        match self.fail_writes.load(SeqCst) {
            true => Err(crate::error::Error::unavailable("lost after some of it was written")),
            false => Ok(()),
        }
    }

    async fn remove(&self, group: Uuid, keys: &[EntityKey]) -> Result<()> {
        self.store.remove(group, keys).await
    }

    async fn applied_snapshot(&self, group: Uuid) -> Result<Option<i64>> {
        self.store.applied_snapshot(group).await
    }

    async fn set_applied_snapshot(&self, group: Uuid, snapshot_id: i64) -> Result<()> {
        self.store.set_applied_snapshot(group, snapshot_id).await
    }

    async fn drop_group(&self, group: Uuid) -> Result<()> {
        self.store.drop_group(group).await
    }

    async fn get(
        &self,
        group: &Arc<FeatureGroup>,
        keys: &[EntityKey],
        max_staleness: Option<Duration>,
    ) -> Result<Found> {
        self.reads.lock().push(keys.to_vec());
        let found = self.store.get(group, keys, max_staleness).await;
        if self.hold.load(SeqCst) {
            self.has_read.notify_one();
            self.go_on.notified().await;
        }
        match self.fail_reads.load(SeqCst) {
            true => Err(crate::error::Error::unavailable("the store is away").with_source("cut off")),
            false => found,
        }
    }

    fn scan(&self, group: &Arc<FeatureGroup>) -> BoxStream<'static, Result<ScannedEntries>> {
        self.store.scan(group)
    }
}

/// The stage's store is the cache in front of the one that can be held.
async fn held() -> (Arc<Stage>, Arc<Held>) {
    let mut stage = Stage::embedded(None).await;
    let held = Arc::new(Held {
        store: Arc::clone(&stage.store),
        hold: false.into(),
        fail_reads: false.into(),
        reads: Default::default(),
        fail_writes: false.into(),
        has_read: Notify::new(),
        go_on: Notify::new(),
    });
    let clock = Arc::clone(&stage.clock) as Arc<dyn Clock>;
    stage.store = Arc::new(cached::CachedStore::new(Arc::clone(&held) as _, CACHE, clock));
    (Arc::new(stage), held)
}

async fn cost(stage: &Stage, users: &[i64]) -> (usize, usize, usize) {
    let found = stage.store.get(&stage.group, &keys(users), None).await.unwrap();
    (found.cache_hits, found.cache_misses, found.store_reads)
}

#[tokio::test]
async fn a_read_that_a_write_overtook_is_not_kept() {
    for change in ["write", "drop"] {
        let (stage, held) = held().await;
        stage.write(&[row(1, 10, 1, 0, 1)]).await;
        held.hold.store(true, SeqCst);
        let reader = tokio::spawn({
            let stage = Arc::clone(&stage);
            async move { stage.served(&[1]).await }
        });
        held.has_read.notified().await;
        held.hold.store(false, SeqCst);
        let expected = match change {
            "write" => {
                stage.write(&[row(1, 20, 1, 0, 2)]).await;
                Some((20, 2))
            }
            _ => {
                stage.store.drop_group(stage.group.id).await.unwrap();
                None
            }
        };
        held.go_on.notify_one();
        assert_eq!(reader.await.unwrap(), [Some((10, 1))], "it had read before the {change}");
        assert_eq!(stage.served(&[1]).await, [expected], "after the {change}");
    }
}

#[tokio::test]
async fn a_write_that_failed_half_way_leaves_nothing_stale() {
    let (stage, held) = held().await;
    stage.write(&[row(1, 10, 1, 0, 1)]).await;
    assert_eq!(stage.served(&[1]).await, [Some((10, 1))]);
    held.fail_writes.store(true, SeqCst);
    let rows = batch(&stage.group, &[row(1, 20, 1, 0, 2)]);
    assert!(stage.store.write(&stage.group, &rows).await.is_err());
    assert_eq!(stage.served(&[1]).await, [Some((20, 2))]);
}

#[tokio::test]
async fn what_is_absent_is_remembered_until_it_is_written() {
    let (stage, _held) = held().await;
    assert_eq!(cost(&stage, &[1, 2]).await, (0, 2, 2));
    assert_eq!(cost(&stage, &[1, 2]).await, (2, 0, 0));
    stage.write(&[row(2, 10, 1, 0, 1)]).await;
    assert_eq!(cost(&stage, &[1, 2]).await, (1, 1, 1));
    assert_eq!(stage.served(&[1, 2]).await, [None, Some((10, 1))]);
    // Another group's key of the same bytes is another key.
    let other = Arc::new(group(2));
    let found = stage.store.get(&other, &keys(&[2]), None).await.unwrap();
    assert_eq!((found.entries, found.cache_misses), (Entries::absent(1), 1));
}

#[tokio::test]
async fn an_entry_serves_as_long_as_it_may_and_no_longer() {
    let (stage, _held) = held().await;
    let within = async |staleness: u64| {
        let staleness = Some(Duration::from_secs(staleness));
        stage.store.get(&stage.group, &keys(&[1]), staleness).await.unwrap().cache_hits
    };
    assert_eq!(cost(&stage, &[1]).await, (0, 1, 1));
    stage.clock.advance(3_000_000);
    assert_eq!(within(4).await, 1);
    assert_eq!(within(3).await, 0);
    // It has just been read again.
    assert_eq!(within(1).await, 1);
    assert_eq!(within(0).await, 0);
    stage.clock.advance(CACHE.ttl.as_micros() as i64);
    assert_eq!(cost(&stage, &[1]).await, (0, 1, 1));
}

#[tokio::test]
async fn it_holds_no_more_than_it_may() {
    let mut stage = Stage::embedded(None).await;
    let clock = Arc::clone(&stage.clock) as Arc<dyn Clock>;
    let options = CacheOptions { capacity_bytes: 20_000, ..CACHE };
    let cache = Arc::new(cached::CachedStore::new(Arc::clone(&stage.store), options, clock));
    stage.store = Arc::clone(&cache) as _;
    let rows: Vec<Row> = (0..2000).map(|u| row(u, 5, 1, u, u)).collect();
    stage.write(&rows).await;
    let all: Vec<i64> = (0..2000).collect();
    assert!(stage.served(&all).await.iter().all(Option::is_some));
    let held = cache.cache_statistics().unwrap().bytes;
    assert!(held > 10_000 && held <= 20_000, "{held}");
}

type Answered = Result<Vec<Option<(i64, i64)>>>;

/// A look-up of its own task: what it serves, or its error.
fn ask(
    stage: &Arc<Stage>,
    users: &[i64],
    max_staleness: Option<Duration>,
) -> tokio::task::JoinHandle<Answered> {
    let (stage, users) = (Arc::clone(stage), users.to_vec());
    tokio::spawn(async move {
        let found = stage.store.get(&stage.group, &keys(&users), max_staleness).await?;
        Ok(served(&stage.group, &found.entries, stage.clock.now_us()))
    })
}

fn joined(stage: &Stage) -> u64 {
    stage.store.cache_statistics().unwrap().joined
}

/// Polls until it holds, for as long as a machine may be busy with other things.
pub(super) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok(), "never happened: {what}");
}

#[tokio::test]
async fn what_several_miss_is_read_once() {
    let (stage, held) = held().await;
    stage.write(&[row(1, 10, 1, 0, 1), row(2, 10, 1, 0, 2), row(3, 10, 1, 0, 3)]).await;
    held.hold.store(true, SeqCst);
    let first = ask(&stage, &[1, 2, 1], None);
    held.has_read.notified().await;
    held.hold.store(false, SeqCst);
    // All of these wait for the first; the last has keys of its own to read, each once.
    let others: Vec<_> = (0..8).map(|_| ask(&stage, &[2, 1], None)).collect();
    let last = ask(&stage, &[3, 2, 4, 3, 4], None);
    eventually("all wait", async || joined(&stage) == 8 * 2 + 1).await;
    held.go_on.notify_one();
    assert_eq!(first.await.unwrap().unwrap(), [Some((10, 1)), Some((10, 2)), Some((10, 1))]);
    for other in others {
        assert_eq!(other.await.unwrap().unwrap(), [Some((10, 2)), Some((10, 1))]);
    }
    let three = Some((10, 3));
    assert_eq!(last.await.unwrap().unwrap(), [three, Some((10, 2)), None, three, None]);
    assert_eq!(*held.reads.lock(), [keys(&[1, 2]), keys(&[3, 4])]);
    assert_eq!(cost(&stage, &[4, 3, 2, 1]).await, (4, 0, 0));
}

#[tokio::test]
async fn a_read_goes_on_for_those_who_wait_when_its_beginner_leaves() {
    let (stage, held) = held().await;
    stage.write(&[row(1, 10, 1, 0, 1)]).await;
    held.hold.store(true, SeqCst);
    let first = ask(&stage, &[1], None);
    held.has_read.notified().await;
    let second = ask(&stage, &[1], None);
    eventually("the second waits", async || joined(&stage) == 1).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    held.go_on.notify_one();
    assert_eq!(second.await.unwrap().unwrap(), [Some((10, 1))]);
    assert_eq!(held.reads.lock().len(), 1);
    assert_eq!(cost(&stage, &[1]).await, (1, 0, 0));
}

#[tokio::test]
async fn a_read_that_nobody_waits_for_ends() {
    let (stage, held) = held().await;
    let cache = Arc::new(cached::CachedStore::new(
        Arc::clone(&held) as _,
        CACHE,
        Arc::clone(&stage.clock) as Arc<dyn Clock>,
    ));
    held.hold.store(true, SeqCst);
    let reader = tokio::spawn({
        let (cache, group) = (Arc::clone(&cache), Arc::clone(&stage.group));
        async move { cache.get(&group, &keys(&[1, 2]), None).await.map(|found| found.entries) }
    });
    held.has_read.notified().await;
    assert_eq!(cache.reading(), 2);
    reader.abort();
    assert!(reader.await.unwrap_err().is_cancelled());
    assert_eq!(cache.reading(), 0);
    held.hold.store(false, SeqCst);
    assert_eq!(cache.get(&stage.group, &keys(&[1, 2]), None).await.unwrap().store_reads, 2);
    assert_eq!(cache.reading(), 0);
}

#[tokio::test]
async fn an_error_reaches_all_who_wait_and_nobody_else() {
    let (stage, held) = held().await;
    held.hold.store(true, SeqCst);
    held.fail_reads.store(true, SeqCst);
    let first = ask(&stage, &[1], None);
    held.has_read.notified().await;
    let second = ask(&stage, &[1], None);
    eventually("the second waits", async || joined(&stage) == 1).await;
    held.go_on.notify_one();
    for waiting in [first, second] {
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.to_string(), "the store is away: cut off");
    }
    held.hold.store(false, SeqCst);
    held.fail_reads.store(false, SeqCst);
    assert_eq!(cost(&stage, &[1]).await, (0, 1, 1));
}

#[tokio::test]
async fn who_asks_after_a_write_does_not_wait_for_a_read_from_before() {
    let (stage, held) = held().await;
    stage.write(&[row(1, 10, 1, 0, 1)]).await;
    held.hold.store(true, SeqCst);
    let before = ask(&stage, &[1], None);
    held.has_read.notified().await;
    held.hold.store(false, SeqCst);
    stage.write(&[row(1, 20, 1, 0, 2)]).await;
    assert_eq!(stage.served(&[1]).await, [Some((20, 2))]);
    held.go_on.notify_one();
    assert_eq!(before.await.unwrap().unwrap(), [Some((10, 1))]);
    assert_eq!(cost(&stage, &[1]).await, (1, 0, 0));
    assert_eq!(stage.served(&[1]).await, [Some((20, 2))]);
}

#[tokio::test]
async fn who_wants_it_fresh_reads_it_himself() {
    let (stage, held) = held().await;
    stage.write(&[row(1, 10, 1, 0, 1)]).await;
    held.hold.store(true, SeqCst);
    let before = ask(&stage, &[1], None);
    held.has_read.notified().await;
    held.hold.store(false, SeqCst);
    // Another server's write, of which this one does not learn.
    held.store.write(&stage.group, &batch(&stage.group, &[row(1, 20, 1, 0, 2)])).await.unwrap();
    let fresh = ask(&stage, &[1], Some(Duration::ZERO)).await.unwrap().unwrap();
    assert_eq!((fresh, joined(&stage)), (vec![Some((20, 2))], 0));
    held.go_on.notify_one();
    assert_eq!(before.await.unwrap().unwrap(), [Some((10, 1))]);
    // What the older read brought has not replaced what the younger one did.
    assert_eq!(stage.served(&[1]).await, [Some((20, 2))]);
    assert_eq!(cost(&stage, &[1]).await, (1, 0, 0));
}

#[tokio::test]
async fn statistics_add_up() {
    let (stage, _held) = held().await;
    stage.write(&[row(1, 10, 1, 0, 1)]).await;
    cost(&stage, &[1, 2, 2]).await;
    cost(&stage, &[1, 2, 2]).await;
    let statistics = stage.store.cache_statistics().unwrap();
    assert_eq!((statistics.hits, statistics.misses, statistics.entries), (3, 3, 2));
    assert!(statistics.bytes > 0);
    assert_eq!((statistics.invalidations, statistics.clears, statistics.tracking), (0, 0, None));
    stage.store.drop_group(stage.group.id).await.unwrap();
    let statistics = stage.store.cache_statistics().unwrap();
    assert_eq!((statistics.entries, statistics.bytes, statistics.clears), (0, 0, 1));
    cost(&stage, &[1, 2, 2]).await;
    assert_eq!(stage.store.cache_statistics().unwrap().entries, 2);
}
