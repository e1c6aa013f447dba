//! Many writers and readers over two servers with caches that share a Redis. Every operation is noted with when it was
//! asked and when it was answered; what each read gave is then held against what had been written.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Instant;

use parking_lot::Mutex;

use super::cache::eventually;
use super::tracking::{connection, cut_tracking, server, tracking};
use super::*;

const USERS: i64 = 12;
/// Users 0, 1, 2 are written by one server alone, users 3, 4, 5 by the other, and never read past the caches: only
/// what Redis tells renews them in the cache of the server that does not write them.
const OWN_USERS: i64 = 3;
const WRITERS_PER_SERVER: usize = 3;
const READERS_PER_SERVER: usize = 3;
const LASTS: Duration = Duration::from_millis(2500);
/// How long another server's write may stay unseen. The goal is 50 ms; this allows for a machine with other work.
const UNSEEN_MAX: Duration = Duration::from_secs(2);

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }
}

/// What decides between two rows of a user.
type Order = (i64, i64, i64);

fn order(row: &Row) -> Order {
    (row.1.unwrap(), row.2, row.3)
}

/// When an operation was asked and answered: places in one order of all such moments, and the time of the latter.
#[derive(Debug, Clone, Copy)]
struct Span {
    asked: u64,
    answered: u64,
    asked_at: Instant,
    answered_at: Instant,
}

#[derive(Debug)]
struct Write {
    server: usize,
    span: Span,
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Read {
    server: usize,
    span: Span,
    /// User, and event time and amount of what was served.
    seen: Vec<(i64, Option<(i64, i64)>)>,
}

/// What has happened so far.
#[derive(Default)]
struct History {
    moments: AtomicU64,
    /// Amounts are given out once, so that each names its row.
    amounts: AtomicU64,
    over: AtomicBool,
    writes: Mutex<Vec<Write>>,
    reads: Mutex<Vec<Read>>,
}

impl History {
    async fn timed<T>(&self, operation: impl Future<Output = T>) -> (Span, T) {
        let (asked, asked_at) = (self.moments.fetch_add(1, SeqCst), Instant::now());
        let outcome = operation.await;
        let (answered_at, answered) = (Instant::now(), self.moments.fetch_add(1, SeqCst));
        (Span { asked, answered, asked_at, answered_at }, outcome)
    }

    /// Rows in no order of time, several of one user among them; or ones that were written before, by whomever.
    fn rows(&self, server: usize, dice: &mut Dice) -> Vec<Row> {
        let own = |user: i64| user >= 2 * OWN_USERS || user / OWN_USERS == server as i64;
        let writes = self.writes.lock();
        if !writes.is_empty() && dice.below(6) == 0 {
            let rows = &writes[dice.below(writes.len() as u64) as usize].rows;
            return rows.iter().filter(|row| own(row.0.unwrap())).copied().collect();
        }
        drop(writes);
        let rows = 1 + dice.below(6);
        let new_row = |_| {
            let amount = self.amounts.fetch_add(1, SeqCst) as i64;
            let user = dice.below(USERS as u64) as i64;
            let user = if own(user) { user } else { user + 2 * OWN_USERS };
            // Times rise slowly, so that most rows are news and many are not; ties are frequent.
            let time = 1 + amount / 40 + dice.below(8) as i64;
            row(user, time.min(NOW), dice.below(3) as i64, amount, amount)
        };
        (0..rows).map(new_row).collect()
    }

    async fn write_on(&self, stage: &Stage, server: usize, mut dice: Dice) {
        while !self.over.load(SeqCst) {
            let rows = self.rows(server, &mut dice);
            let (span, ()) = self.timed(stage.write(&rows)).await;
            self.writes.lock().push(Write { server, span, rows });
            if dice.below(3) == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn read_on(&self, stage: &Stage, server: usize, mut dice: Dice) {
        while !self.over.load(SeqCst) {
            let max_staleness = (dice.below(8) == 0).then_some(Duration::ZERO);
            let first = if max_staleness.is_some() { 2 * OWN_USERS } else { 0 };
            let users: Vec<i64> =
                (0..1 + dice.below(5)).map(|_| first + dice.below((USERS - first) as u64) as i64).collect();
            let asked = keys(&users);
            let (span, found) = self.timed(stage.store.get(&stage.group, &asked, max_staleness)).await;
            let seen = served(&stage.group, &found.unwrap().entries, NOW);
            let seen = users.into_iter().zip(seen).collect();
            self.reads.lock().push(Read { server, span, seen });
            tokio::task::yield_now().await;
        }
    }
}

/// What was known to be written, as time went on.
struct Acknowledged(HashMap<(usize, i64), Vec<(Span, Order)>>);

impl Acknowledged {
    /// For each server and user, the writes in the order of their answers, each with the newest row so far.
    fn of(writes: &[Write]) -> Self {
        let mut by_answer: Vec<&Write> = writes.iter().collect();
        by_answer.sort_by_key(|write| write.span.answered);
        let mut newest: HashMap<_, Vec<(Span, Order)>> = HashMap::new();
        for write in by_answer {
            for row in &write.rows {
                let so_far = newest.entry((write.server, row.0.unwrap())).or_default();
                let before = so_far.last().map(|(_, order)| *order);
                so_far.push((write.span, before.map_or(order(row), |before| before.max(order(row)))));
            }
        }
        Self(newest)
    }

    /// The newest row of the user whose write had been answered by this server when `was_before` holds.
    fn newest(&self, server: usize, user: i64, was_before: impl Fn(&Span) -> bool) -> Option<Order> {
        let so_far = self.0.get(&(server, user))?;
        let known = so_far.partition_point(|(span, _)| was_before(span));
        known.checked_sub(1).map(|last| so_far[last].1)
    }
}

/// Holds every read against the writes.
fn check(writes: &[Write], reads: &[Read], seed: u64) {
    let acknowledged = Acknowledged::of(writes);
    let mut written: HashMap<i64, (Row, u64)> = HashMap::new();
    for write in writes {
        for row in &write.rows {
            let first = written.entry(row.4).or_insert((*row, write.span.asked));
            first.1 = first.1.min(write.span.asked);
        }
    }
    for read in reads {
        for &(user, seen) in &read.seen {
            let seen = seen.map(|(time, amount)| {
                let (row, asked) =
                    written.get(&amount).unwrap_or_else(|| panic!("seed {seed}: never written: {read:?}"));
                assert_eq!((row.0, row.1), (Some(user), Some(time)), "seed {seed}: of another row: {read:?}");
                assert!(*asked < read.span.answered, "seed {seed}: before it was written: {read:?}");
                order(row)
            });
            let own = acknowledged.newest(read.server, user, |span| span.answered < read.span.asked);
            assert!(
                seen >= own,
                "seed {seed}: user {user}: older than its own {own:?}: {seen:?} in {read:?}"
            );
            let others = acknowledged
                .newest(1 - read.server, user, |span| span.answered_at + UNSEEN_MAX < read.span.asked_at);
            assert!(seen >= others, "seed {seed}: user {user}: older than the other's {others:?}: {read:?}");
        }
    }
}

/// The longest that a read missed what the other server had answered before.
fn longest_unseen(writes: &[Write], reads: &[Read]) -> Duration {
    let amounts: HashMap<i64, Order> =
        writes.iter().flat_map(|write| &write.rows).map(|row| (row.4, order(row))).collect();
    let acknowledged = Acknowledged::of(writes);
    let mut longest = Duration::ZERO;
    for read in reads {
        for (user, seen) in &read.seen {
            let seen = seen.map(|(_, amount)| amounts[&amount]);
            let Some(so_far) = acknowledged.0.get(&(1 - read.server, *user)) else { continue };
            let missed = so_far.iter().find(|(_, order)| Some(*order) > seen);
            let unseen =
                missed.map(|(span, _)| read.span.asked_at.saturating_duration_since(span.answered_at));
            longest = longest.max(unseen.unwrap_or_default());
        }
    }
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn newer_wins_and_a_server_reads_its_own_writes() {
    let seed =
        std::env::var("SEED").map_or_else(|_| RandomState::new().hash_one(0), |seed| seed.parse().unwrap());
    let redis = RedisServer::start(&[]);
    let servers = [server(&redis).await, server(&redis).await];
    for stage in &servers {
        tracking(stage).await;
    }
    let history = Arc::new(History::default());
    let mut running = tokio::task::JoinSet::new();
    for (at, stage) in servers.iter().enumerate() {
        for nth in 0..WRITERS_PER_SERVER + READERS_PER_SERVER {
            let (history, stage) = (Arc::clone(&history), Arc::clone(stage));
            let dice = Dice(seed.wrapping_add((at * 100 + nth) as u64));
            running.spawn(async move {
                match nth < WRITERS_PER_SERVER {
                    true => history.write_on(&stage, at, dice).await,
                    false => history.read_on(&stage, at, dice).await,
                }
            });
        }
    }
    // Meanwhile the connections that tell of changes break, now and then; not at last, when that would renew all.
    let mut connection = connection(&redis).await;
    for _ in 0..3 {
        tokio::time::sleep(LASTS / 6).await;
        cut_tracking(&mut connection).await;
    }
    tokio::time::sleep(LASTS / 2).await;
    history.over.store(true, SeqCst);
    while let Some(task) = running.join_next().await {
        task.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
    }

    let (writes, reads) =
        (std::mem::take(&mut *history.writes.lock()), std::mem::take(&mut *history.reads.lock()));
    check(&writes, &reads, seed);
    let mut newest: HashMap<i64, Row> = HashMap::new();
    for row in writes.iter().flat_map(|write| &write.rows) {
        let so_far = newest.entry(row.0.unwrap()).or_insert(*row);
        *so_far = if order(row) > order(so_far) { *row } else { *so_far };
    }
    let users: Vec<i64> = (0..USERS).collect();
    let expected: Vec<_> =
        users.iter().map(|user| newest.get(user).map(|row| (row.1.unwrap(), row.4))).collect();
    for stage in &servers {
        eventually(&format!("seed {seed}: both agree on the newest"), async || {
            stage.served(&users).await == expected
        })
        .await;
    }
    let hits: u64 = servers.iter().map(|stage| super::tracking::statistics(stage).hits).sum();
    println!(
        "seed {seed}: {} writes, {} reads, {hits} hits; longest unseen by the other server {:?}",
        writes.len(),
        reads.len(),
        longest_unseen(&writes, &reads)
    );
    assert!(writes.len() > 50 && hits > 50, "seed {seed}: hardly anything happened");
}
