//! In Redis an entry lives for twice its group's TTL, counted from the event time of its newest row.

use super::redis_cluster::eventually;
use super::*;

const HOUR: i64 = 3_600_000_000;
const HOUR_MS: i64 = HOUR / 1000;

async fn with_ttl(mut stage: Stage) -> Stage {
    let ttl = Some(Duration::from_secs(3600));
    stage.group = Arc::new(FeatureGroup { ttl, ..group(1) });
    stage.clock.set(10 * HOUR);
    stage
}

/// What Redis says that the entry has to live, in ms; -1 for ever, -2 when it is not there.
fn lives_ms(stage: &Stage, user: i64) -> i64 {
    let server = stage.redis.as_ref().unwrap();
    let wanted = keys(&[user]).remove(0);
    let stored: Vec<Vec<u8>> = ::redis::from_redis_value(server.ask(&["KEYS", "f*"]).unwrap()).unwrap();
    let Some(key) = stored.into_iter().find(|key| key.ends_with(wanted.as_bytes())) else { return -2 };
    ::redis::from_redis_value(server.tell([b"PTTL".as_slice(), &key].into_iter()).unwrap()).unwrap()
}

#[track_caller]
fn assert_lives(stage: &Stage, user: i64, expected_ms: i64) {
    let lives = lives_ms(stage, user);
    assert!(lives <= expected_ms + 1 && lives > expected_ms - 60_000, "{lives} instead of {expected_ms}");
}

#[tokio::test]
async fn redis_keeps_an_entry_as_long_as_it_is_needed() {
    let stage = with_ttl(Stage::redis(None).await).await;
    let now = 10 * HOUR;
    stage
        .write(&[
            row(1, now - HOUR / 2, 1, 0, 1),
            row(2, now + HOUR, 1, 1, 2),
            row(3, now - 2 * HOUR + HOUR / 60, 1, 2, 3),
        ])
        .await;
    assert_lives(&stage, 1, HOUR_MS * 3 / 2);
    assert_lives(&stage, 2, HOUR_MS * 3);
    assert_eq!(
        stage.served(&[1, 3]).await,
        [Some((now - HOUR / 2, 1)), Some((now - 2 * HOUR + HOUR / 60, 3))]
    );
    // An older row changes nothing, one that waits for its time and a newer one prolong.
    stage.write(&[row(1, now - HOUR, 2, 0, 4), row(2, now - HOUR, 2, 1, 5)]).await;
    assert_lives(&stage, 1, HOUR_MS * 3 / 2);
    assert_lives(&stage, 2, HOUR_MS * 3);
    assert_eq!(stage.served(&[2]).await, [Some((now - HOUR, 5))]);
    stage.write(&[row(1, now - 1, 3, 0, 6), row(2, now + 2 * HOUR, 3, 1, 7)]).await;
    assert_lives(&stage, 1, HOUR_MS * 2);
    assert_lives(&stage, 2, HOUR_MS * 4);
}

#[tokio::test]
async fn what_has_had_its_life_is_not_stored_where_memory_is_dear() {
    let over = 10 * HOUR - 2 * HOUR - 1;
    for (stage, kept) in [(Stage::redis(None).await, None), (Stage::embedded(None).await, Some((over, 1)))] {
        let stage = with_ttl(stage).await;
        // Not so near its end that Redis, whose clock goes on, lets it go meanwhile.
        let nearly = over + HOUR / 60;
        stage.write(&[row(1, over, 1, 0, 1), row(2, nearly, 1, 1, 2)]).await;
        assert_eq!(stage.served(&[1, 2]).await, [kept, Some((nearly, 2))]);
    }
}

#[tokio::test]
async fn a_group_without_ttl_lives_for_ever() {
    let stage = Stage::redis(None).await;
    stage.clock.set(10 * HOUR);
    stage.write(&[row(1, 0, 1, 0, 1)]).await;
    assert_eq!(lives_ms(&stage, 1), -1);
}

/// The TTL of a group may change: what is replayed then counts by the new one, were it there already.
#[tokio::test]
async fn rows_that_are_there_already_live_as_long_as_the_group_says_now() {
    let mut stage = with_ttl(Stage::redis(None).await).await;
    let now = 10 * HOUR;
    let rows = [row(1, now - HOUR, 1, 0, 1), row(2, now, 1, 1, 2), row(2, now + HOUR, 1, 2, 3)];
    stage.write(&rows).await;
    assert_lives(&stage, 1, HOUR_MS);
    assert_lives(&stage, 2, HOUR_MS * 3);
    stage.group = Arc::new(FeatureGroup { ttl: Some(Duration::from_secs(4 * 3600)), ..group(1) });
    stage.write(&rows).await;
    assert_lives(&stage, 1, HOUR_MS * 7);
    assert_lives(&stage, 2, HOUR_MS * 9);
    stage.group = Arc::new(group(1));
    stage.write(&rows).await;
    assert_eq!([lives_ms(&stage, 1), lives_ms(&stage, 2)], [-1, -1]);
    assert_eq!(stage.served(&[1, 2]).await, [Some((now - HOUR, 1)), Some((now, 2))]);
}

#[tokio::test]
async fn redis_lets_an_entry_go() {
    let mut stage = Stage::redis(None).await;
    stage.group = Arc::new(FeatureGroup { ttl: Some(Duration::from_millis(20)), ..group(1) });
    stage.write(&[row(1, NOW, 1, 0, 1)]).await;
    eventually("the entry is gone", || lives_ms(&stage, 1) == -2);
    // What comes late may be stored again, by a clock that stands still.
    stage.write(&[row(1, NOW - 1, 1, 0, 2)]).await;
    let _ = stage.served(&[1]).await;
}
