//! What every store must do.

use super::*;

async fn newer_wins_whatever_the_order(stage: Stage) {
    stage.write(&[row(1, 50, 2, 0, 5), row(2, 70, 2, 1, 7)]).await;
    stage.write(&[row(1, 40, 3, 0, 4), row(2, 80, 3, 1, 8), row(3, 10, 3, 2, 1)]).await;
    stage.write(&[row(1, 49, 9, 9, 9), row(3, 9, 9, 9, 9)]).await;
    let served = [Some((50, 5)), Some((80, 8)), Some((10, 1)), None, Some((50, 5))];
    assert_eq!(stage.served(&[1, 2, 3, 4, 1]).await, served);
}

async fn ties_go_to_the_row_ingested_last_then_to_the_sequence(stage: Stage) {
    stage.write(&[row(1, 50, 2, 1, 21), row(1, 50, 2, 2, 22)]).await;
    stage.write(&[row(1, 50, 1, 9, 19), row(1, 50, 2, 0, 20)]).await;
    assert_eq!(stage.served(&[1]).await, [Some((50, 22))]);
    stage.write(&[row(1, 50, 3, 0, 30)]).await;
    assert_eq!(stage.served(&[1]).await, [Some((50, 30))]);
}

async fn future_rows_wait_for_their_time(stage: Stage) {
    stage.write(&[row(1, NOW + 10, 1, 0, 2), row(2, NOW + 10, 1, 1, 2)]).await;
    assert_eq!(stage.served(&[1, 2]).await, [None, None]);
    stage.write(&[row(1, NOW, 2, 0, 1)]).await;
    assert_eq!(stage.served(&[1, 2]).await, [Some((NOW, 1)), None]);
    stage.clock.set(NOW + 9);
    stage.write(&[row(1, NOW + 5, 3, 0, 3), row(1, NOW + 20, 3, 1, 4)]).await;
    assert_eq!(stage.served(&[1]).await, [Some((NOW + 5, 3))]);
    stage.clock.set(NOW + 10);
    assert_eq!(stage.served(&[1, 2]).await, [Some((NOW + 10, 2)), Some((NOW + 10, 2))]);
    stage.clock.set(NOW + 20);
    assert_eq!(stage.served(&[1]).await, [Some((NOW + 20, 4))]);
}

async fn replays_change_nothing(stage: Stage) {
    let rows = [row(1, 50, 2, 0, 5), row(1, NOW + 7, 2, 1, 6), row(2, 1, 2, 2, 1)];
    stage.write(&rows).await;
    let before = stage.store.get(&stage.group, &keys(&[1, 2]), None).await.unwrap().entries;
    stage.write(&rows[1..]).await;
    stage.write(&rows).await;
    assert_eq!(stage.store.get(&stage.group, &keys(&[1, 2]), None).await.unwrap().entries, before);
}

async fn rows_that_nobody_could_ask_for_are_passed_over(stage: Stage) {
    stage.write(&[Row(None, Some(5), 1, 0, 1), Row(Some(1), None, 1, 1, 2), row(2, 5, 1, 2, 3)]).await;
    assert_eq!(stage.served(&[1, 2]).await, [None, Some((5, 3))]);
    assert_eq!(stage.scanned().await, [(2, 3)]);
    stage.write(&[]).await;
}

async fn concurrent_writers_leave_the_newest(stage: Stage) {
    let stage = Arc::new(stage);
    let users = 40i64;
    // Every writer has rows for every user, with times that interleave; the greatest is known.
    let batches: Vec<Vec<Row>> = (0..12i64)
        .map(|writer| {
            (0..users).map(|u| row(u, (writer * 7 + u) % 12, 1, writer, (writer * 7 + u) % 12)).collect()
        })
        .collect();
    let writers = batches.into_iter().map(|rows| {
        let stage = Arc::clone(&stage);
        tokio::spawn(async move {
            for part in rows.chunks(9) {
                stage.write(part).await;
                let asked: Vec<i64> = part.iter().filter_map(|r| r.0).collect();
                // What was acknowledged is never unseen again, here or by a later reader.
                for (written, seen) in part.iter().zip(stage.served(&asked).await) {
                    assert!(seen.unwrap().0 >= written.1.unwrap());
                }
            }
        })
    });
    futures::future::try_join_all(writers).await.unwrap();
    let all: Vec<i64> = (0..users).collect();
    assert!(stage.served(&all).await.iter().all(|row| *row == Some((11, 11))));
}

async fn a_scan_gives_every_entity_once(stage: Stage) {
    let rows: Vec<Row> = (0..3000).map(|u| row(u, 5, 1, u, u * 2)).collect();
    stage.write(&rows).await;
    let other = Arc::new(group(2));
    stage.store.write(&other, &batch(&other, &[row(77, 1, 1, 1, 1)])).await.unwrap();
    stage.write(&[row(5, NOW + 1, 1, 1, 1), row(4000, NOW + 1, 1, 1, 1)]).await;
    let expected: Vec<(i64, i64)> = (0..3000).map(|u| (u, u * 2)).collect();
    assert_eq!(stage.scanned().await, expected);
}

async fn a_dropped_group_is_gone_and_no_other(stage: Stage) {
    let other = Arc::new(group(2));
    let rows: Vec<Row> = (0..2500).map(|u| row(u, 5, 1, u, u)).collect();
    stage.write(&rows).await;
    stage.store.write(&other, &batch(&other, &rows[..3])).await.unwrap();
    for (group, snapshot) in [(&stage.group, 7), (&other, -8)] {
        stage.store.set_applied_snapshot(group.id, snapshot).await.unwrap();
    }
    assert_eq!(stage.served(&[1]).await, [Some((5, 1))]);
    stage.store.drop_group(stage.group.id).await.unwrap();
    assert_eq!(stage.served(&[1]).await, [None]);
    assert_eq!(stage.scanned().await, []);
    assert_eq!(stage.store.applied_snapshot(stage.group.id).await.unwrap(), None);
    assert_eq!(stage.store.applied_snapshot(other.id).await.unwrap(), Some(-8));
    let found = stage.store.get(&other, &keys(&[0, 1, 2]), None).await.unwrap();
    assert!(found.entries.iter().all(|entry| entry.is_some()));
    stage.write(&rows[..1]).await;
    assert_eq!(stage.scanned().await, [(0, 0)]);
}

async fn no_key_and_many_keys_can_be_asked(stage: Stage) {
    assert!(stage.served(&[]).await.is_empty());
    let rows: Vec<Row> = (0..2500).map(|u| row(u, 5, 1, u, u)).collect();
    stage.write(&rows).await;
    let users: Vec<i64> = (-10..2510).rev().collect();
    let expected: Vec<_> = users.iter().map(|u| (0..2500).contains(u).then_some((5, *u))).collect();
    assert_eq!(stage.served(&users).await, expected);
}

async fn a_batch_of_another_schema_is_refused(stage: Stage) {
    let whole = batch(&stage.group, &[row(1, 1, 1, 1, 1)]);
    let error = stage.store.write(&stage.group, &whole.project(&[0, 1, 2, 3, 4]).unwrap()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
}

macro_rules! every_store {
    ($($test:ident),* $(,)?) => {
        /// One cluster for all: it takes seconds to come up.
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn on_a_cluster() {
            let cluster = RedisCluster::start(3, 0, &[]);
            for cache in [None, Some(CACHE)] {
                $(
                    eprintln!("{}, cached: {}", stringify!($test), cache.is_some());
                    cluster.flush();
                    $test(Stage::cluster(&cluster, cache).await).await;
                )*
            }
        }
        every_store!(embedded, Stage::embedded(None), $($test),*);
        every_store!(redis, Stage::redis(None), $($test),*);
        every_store!(embedded_cached, Stage::embedded(Some(CACHE)), $($test),*);
        every_store!(redis_cached, Stage::redis(Some(CACHE)), $($test),*);
    };
    ($store:ident, $stage:expr, $($test:ident),*) => {
        mod $store {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($stage.await).await;
            })*
        }
    };
}

every_store!(
    newer_wins_whatever_the_order,
    ties_go_to_the_row_ingested_last_then_to_the_sequence,
    future_rows_wait_for_their_time,
    replays_change_nothing,
    rows_that_nobody_could_ask_for_are_passed_over,
    concurrent_writers_leave_the_newest,
    a_scan_gives_every_entity_once,
    a_dropped_group_is_gone_and_no_other,
    no_key_and_many_keys_can_be_asked,
    a_batch_of_another_schema_is_refused,
);
