//! Rule 10, 11 and 12: `LATEST(k)` equals `ASOF` at now. The oracle reads the whole history and applies the rules as
//! the contract words them.

use super::*;

#[derive(Debug, Clone, Copy)]
struct Event {
    user: Option<i64>,
    /// `None` never matches.
    time: Option<i64>,
    ingested: Option<i64>,
    amount: Option<i64>,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = (
        prop::option::weighted(0.9, 0i64..4),
        prop::option::weighted(0.9, NOW - 12..NOW + 9),
        prop::option::weighted(0.8, 0i64..3),
        prop::option::weighted(0.7, 0i64..100),
    )
        .prop_map(|(user, time, ingested, amount)| Event { user, time, ingested, amount });
    prop::collection::vec(event, 0..40)
}

/// Of the user's rows not after `now`, the greatest by (event time, ingested at, sequence); then the TTL.
fn asof(events: &[Event], user: i64, now: i64, ttl: Option<i64>) -> (Option<i64>, Option<i64>, &'static str) {
    let mut best: Option<((i64, i64, usize), Event)> = None;
    for (sequence, event) in events.iter().enumerate() {
        let Some(time) = event.time else { continue };
        if event.user != Some(user) || time > now {
            continue;
        }
        let rank = (time, event.ingested.unwrap_or(i64::MIN), sequence);
        if best.is_none_or(|(other, _)| other < rank) {
            best = Some((rank, *event));
        }
    }
    match best {
        None => (None, Some(0), "NOT_FOUND"),
        Some(((time, ..), _)) if ttl.is_some_and(|ttl| time < now - ttl) => {
            (Some(time), Some(0), "OUTSIDE_MAX_AGE")
        }
        Some(((time, ..), event)) => (Some(time), event.amount, "PRESENT"),
    }
}

fn batch(events: &[(usize, Event)]) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter(events.iter().map(|e| e.1.amount))),
        Arc::new(Int64Array::from_iter(events.iter().map(|e| e.1.user))),
        Arc::new(TimestampMicrosecondArray::from_iter(events.iter().map(|e| e.1.time))),
        Arc::new(StringArray::from_iter_values(events.iter().map(|e| format!("{:?}", e.1)))),
        Arc::new(
            TimestampMicrosecondArray::from_iter(events.iter().map(|e| e.1.ingested)).with_timezone("UTC"),
        ),
        Arc::new(Int64Array::from_iter_values(events.iter().map(|e| e.0 as i64))),
    ];
    RecordBatch::try_new(purchases(None).history_schema(), columns).unwrap()
}

async fn check(events: Vec<Event>, order: Vec<prop::sample::Index>, ttl: Option<i64>, steps: Vec<i64>) {
    let stage = Stage::new().await;
    let group = stage.define(purchases(ttl.map(|t| t as u64)), vec![]).await;
    let mut shuffled: Vec<(usize, Event)> = events.iter().copied().enumerate().collect();
    for (i, index) in order.iter().enumerate().take(shuffled.len()) {
        let other = index.index(shuffled.len());
        shuffled.swap(i, other);
    }
    for part in shuffled.chunks(7) {
        stage.store.write(&group, &batch(part)).await.unwrap();
    }
    let sql = "SELECT user_id, CAST(ts AS BIGINT) ts, amount, _status FROM LATEST(purchases, 3, 0, 9, 1, 2)";
    let scan = "SELECT user_id, CAST(ts AS BIGINT) ts, amount, _status FROM LATEST(purchases)";
    let mut now = NOW;
    for step in steps {
        now += step;
        stage.clock.set(now);
        let expected: Vec<_> = [3, 0, 9, 1, 2].map(|user| (user, asof(&events, user, now, ttl))).into();
        assert_eq!(answers(&stage.query(sql).await.unwrap()), expected, "at {now}");
        let mut found: Vec<_> = expected.into_iter().filter(|e| e.1.2 == "PRESENT").collect();
        found.sort_unstable();
        let mut scanned = answers(&stage.query(scan).await.unwrap());
        scanned.sort_unstable();
        assert_eq!(scanned, found, "scanned at {now}");
    }
}

type Answer = (i64, (Option<i64>, Option<i64>, &'static str));

fn answers(batches: &[RecordBatch]) -> Vec<Answer> {
    let mut answers = vec![];
    for batch in batches {
        let column = |i: usize| batch.column(i).as_primitive::<Int64Type>();
        let value = |i: usize, row: usize| column(i).iter().nth(row).flatten();
        for row in 0..batch.num_rows() {
            let status = match batch.column(3).as_string::<i32>().value(row) {
                "PRESENT" => "PRESENT",
                "NOT_FOUND" => "NOT_FOUND",
                _ => "OUTSIDE_MAX_AGE",
            };
            answers.push((column(0).value(row), (value(1, row), value(2, row), status)));
        }
    }
    answers
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn latest_equals_asof_at_now(
        events in events(),
        order in prop::collection::vec(any::<prop::sample::Index>(), 40),
        ttl in prop::option::of(1i64..12),
        steps in prop::collection::vec(0i64..5, 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(check(events, order, ttl, steps));
    }
}
