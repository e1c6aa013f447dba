//! A cluster whose slots move and whose nodes fail: every answer is whole and right, or an error in time.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};
use std::time::Instant;

use super::redis_cluster::eventually;
use super::*;

const USERS: i64 = 300;

fn rows_at(time: i64) -> Vec<Row> {
    (0..USERS).map(|user| row(user, time, 1, user, user)).collect()
}

fn all_users() -> Vec<i64> {
    (0..USERS).collect()
}

async fn patient(cluster: &RedisCluster) -> Arc<Stage> {
    Arc::new(Stage::cluster(cluster, None).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn reads_writes_and_scans_go_on_while_slots_move() {
    let cluster = RedisCluster::start(3, 0, &[]);
    let stage = patient(&cluster).await;
    stage.write(&rows_at(1)).await;
    let done = Arc::new(AtomicBool::new(false));
    let written = Arc::new(AtomicI64::new(1));
    let writer = tokio::spawn({
        let (stage, done, written) = (Arc::clone(&stage), Arc::clone(&done), Arc::clone(&written));
        async move {
            while !done.load(SeqCst) {
                let time = written.load(SeqCst) + 1;
                stage.clock.set(NOW.max(time));
                stage.write(&rows_at(time)).await;
                written.store(time, SeqCst);
            }
        }
    });
    let reader = tokio::spawn({
        let (stage, done, written) = (Arc::clone(&stage), Arc::clone(&done), Arc::clone(&written));
        async move {
            let mut reads = 0;
            while !done.load(SeqCst) {
                let least = written.load(SeqCst);
                for (user, served) in stage.served(&all_users()).await.into_iter().enumerate() {
                    let (time, amount) = served.unwrap_or_else(|| panic!("user {user} is gone"));
                    assert!(time >= least, "user {user}: {time} after {least} was acknowledged");
                    assert_eq!(amount, user as i64, "the value of another entity");
                }
                reads += 1;
            }
            reads
        }
    });
    let scanner = tokio::spawn({
        let (stage, done) = (Arc::clone(&stage), Arc::clone(&done));
        async move {
            let expected: Vec<(i64, i64)> = all_users().into_iter().map(|user| (user, user)).collect();
            while !done.load(SeqCst) {
                assert_eq!(stage.scanned().await, expected);
            }
        }
    });
    let (cluster, moved) = tokio::task::spawn_blocking(move || {
        let slots = cluster.slots_in_use(0);
        assert!(slots.len() > 50, "the group spreads over the cluster's slots");
        for (slot, to) in slots[..60.min(slots.len())].iter().zip([1, 2].into_iter().cycle()) {
            cluster.move_slot(*slot, 0, to, || {});
        }
        (cluster, slots.len())
    })
    .await
    .unwrap();
    let seen = written.load(SeqCst);
    eventually("writes go on", || written.load(SeqCst) > seen);
    done.store(true, SeqCst);
    writer.await.unwrap();
    assert!(reader.await.unwrap() > 0);
    scanner.await.unwrap();
    assert!(moved > 0 && written.load(SeqCst) > 1);
    // Who comes now finds everything, wherever it is.
    let late = patient(&cluster).await;
    late.clock.set(stage.clock.now_us());
    assert!(late.served(&all_users()).await.iter().all(|row| row.unwrap().0 == written.load(SeqCst)));
    late.store.drop_group(late.group.id).await.unwrap();
    assert_eq!(late.scanned().await, []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_stays_half_moved_is_read_and_written() {
    let cluster = RedisCluster::start(2, 0, &[]);
    let stage = patient(&cluster).await;
    // More entities than slots, so that keys of one slot are asked for together.
    let users: Vec<i64> = (0..40_000).collect();
    let rows: Vec<Row> = users.iter().map(|user| row(*user, 5, 1, *user, *user)).collect();
    stage.write(&rows).await;
    let slot = cluster.slots_in_use(0)[0];
    let handle = tokio::runtime::Handle::current();
    let (cluster, stage) = tokio::task::spawn_blocking(move || {
        let mut time = 6;
        cluster.move_slot(slot, 0, 1, || {
            handle.block_on(async {
                let rows: Vec<Row> = users.iter().map(|user| row(*user, time, 1, *user, *user)).collect();
                stage.write(&rows).await;
                // New entities in that slot as well, on neither node so far.
                let new = [row(100_000 + time, time, 1, 0, 0)];
                stage.write(&new).await;
                let served = stage.served(&users).await;
                assert!(served.iter().zip(&users).all(|(row, user)| *row == Some((time, *user))));
            });
            time += 1;
        });
        (cluster, stage)
    })
    .await
    .unwrap();
    drop((cluster, stage));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_takes_over_and_nothing_is_configured_anew() {
    let mut cluster = RedisCluster::start(3, 1, &[]);
    let stage = patient(&cluster).await;
    stage.write(&rows_at(5)).await;
    stage.store.set_applied_snapshot(stage.group.id, 42).await.unwrap();
    assert_eq!(stage.store.applied_snapshot(stage.group.id).await.unwrap(), Some(42));
    let synced = cluster.nodes[0].ask(&["WAIT", "1", "10000"]).unwrap();
    assert_eq!(synced, ::redis::Value::Int(1));
    cluster.nodes[0].stop();
    // One call, which waits for the replica; it has never seen the script.
    stage.write(&rows_at(6)).await;
    assert!(stage.served(&all_users()).await.iter().all(|row| row.unwrap().0 == 6));
    assert_eq!(stage.scanned().await.len(), USERS as usize);
    assert_eq!(stage.store.applied_snapshot(stage.group.id).await.unwrap(), Some(42));
    // The former master comes back as a replica.
    cluster.restart(0);
    cluster.await_ok();
    stage.write(&rows_at(7)).await;
    assert!(stage.served(&all_users()).await.iter().all(|row| row.unwrap().0 == 7));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_down_is_unavailable_in_time_until_it_is_back() {
    let mut cluster = RedisCluster::start(3, 0, &["--cluster-require-full-coverage", "no"]);
    let timeout = Duration::from_millis(400);
    let backend = Backend::RedisCluster { seeds: cluster.urls() };
    let stage = Stage::open_within(timeout, backend, None).await;
    stage.write(&rows_at(5)).await;
    stage.store.set_applied_snapshot(stage.group.id, 42).await.unwrap();
    for hung in [true, false] {
        match hung {
            true => cluster.nodes[1].pause(),
            false => cluster.nodes[1].stop(),
        }
        let begin = Instant::now();
        let read = stage.store.get(&stage.group, &keys(&all_users()), None).await;
        let write = stage.store.write(&stage.group, &batch(&stage.group, &rows_at(6))).await;
        let scan: Result<Vec<ScannedEntries>> = stage.store.scan(&stage.group).try_collect().await;
        assert!(begin.elapsed() < timeout * 6, "{:?}", begin.elapsed());
        for error in [read.unwrap_err(), write.unwrap_err(), scan.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(error.to_string().contains("redis cluster 127.0.0.1:"), "{error}");
        }
        match hung {
            true => cluster.nodes[1].resume(),
            false => cluster.restart(1),
        }
        cluster.await_ok();
        let found = read_until_it_answers(&stage).await;
        let there = found.iter().filter(|entry| entry.is_some()).count();
        // A node that hung has what it had; the one that was killed came back empty, and the note says so.
        assert!(if hung { there == USERS as usize } else { there < USERS as usize && there > 0 }, "{there}");
        let applied = stage.store.applied_snapshot(stage.group.id).await.unwrap();
        assert_eq!(applied, hung.then_some(42));
    }
    stage.write(&rows_at(7)).await;
    assert!(stage.served(&all_users()).await.iter().all(|row| row.unwrap().0 == 7));
}

async fn read_until_it_answers(stage: &Stage) -> Entries {
    let begin = Instant::now();
    loop {
        match stage.store.get(&stage.group, &keys(&all_users()), None).await {
            Ok(found) => return found.entries,
            Err(error) => assert!(begin.elapsed() < Duration::from_secs(30), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_without_a_master_for_some_slots_is_unavailable() {
    let mut cluster = RedisCluster::start(3, 0, &[]);
    let backend = Backend::RedisCluster { seeds: cluster.urls() };
    let stage = Stage::open_within(Duration::from_millis(400), backend, None).await;
    stage.write(&rows_at(5)).await;
    cluster.nodes[2].stop();
    eventually("the others notice", || {
        let info: String =
            ::redis::from_redis_value(cluster.nodes[0].ask(&["CLUSTER", "INFO"]).unwrap()).unwrap();
        info.contains("cluster_state:fail")
    });
    // Any key, on any node.
    let error = stage.store.get(&stage.group, &keys(&[1]), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}
