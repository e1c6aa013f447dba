//! Servers on a real Redis, and on a cluster: what they share, and what they do without it.

#[path = "../../src/online/tests/redis_cluster.rs"]
#[allow(dead_code)] // the store's own tests use the rest
mod redis_cluster;
#[path = "../../src/online/tests/redis_server.rs"]
pub(crate) mod redis_server;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use arrow::util::pretty::pretty_format_batches;
use arrow_flight::FlightDescriptor;
use arrow_flight::utils::batches_to_flight_data;
use fletching::clock::ManualClock;
use fletching::error::{ErrorKind, Result};
use fletching::{OnlineSetting, Server, Session, Settings};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::oneshot;

use crate::support::http::until;
use crate::support::{START_US, connect};
use redis_cluster::RedisCluster;
use redis_server::RedisServer;

const GROUP: &str =
    "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, v BIGINT DEFAULT -1, ENTITY KEY (id), EVENT TIME (at))";

async fn server(data: &Path, redis: &RedisServer) -> Server {
    patient_server(data, redis, Duration::from_secs(10)).await
}

/// A server that waits so long for Redis.
async fn patient_server(data: &Path, redis: &RedisServer, patience: Duration) -> Server {
    let mut settings = Settings::for_data_dir(data).unwrap();
    settings.online = OnlineSetting::Redis(redis.url().parse().unwrap());
    settings.online_timeout = patience;
    Server::start(settings, Arc::new(ManualClock::new(START_US))).await.unwrap()
}

/// The rows as text, without frame and header.
async fn rows(session: &Session, sql: &str) -> Result<Vec<String>> {
    let batches: Vec<_> = session.query(sql, None).await?.try_collect().await?;
    let shown = pretty_format_batches(&batches)?.to_string();
    let lines = shown.lines().skip(3).filter(|line| line.starts_with('|'));
    let words = |line: &str| line.replace('|', " ").split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(lines.map(words).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_share_a_redis_serve_each_others_writes() {
    let (data, redis) = (tempfile::tempdir().unwrap(), RedisServer::start(&[]));
    let (one, two) = (server(data.path(), &redis).await, server(data.path(), &redis).await);
    let (writer, reader) = (one.engine().session(), two.engine().session());
    writer.update(GROUP, None).await.unwrap();
    for value in 1..5 {
        let insert = format!("INSERT INTO g VALUES (1, TIMESTAMP '2026-01-0{value}', {value})");
        writer.update(&insert, None).await.unwrap();
        let latest = "SELECT v FROM LATEST(g, 1, max_staleness => '0s')";
        assert_eq!(rows(&reader, latest).await.unwrap(), [value.to_string()]);
        assert_eq!(rows(&writer, "SELECT v FROM LATEST(g, 1)").await.unwrap(), [value.to_string()]);
        // What Redis tells the reader's cache of it arrives in time, whatever the TTL.
        let told = Instant::now() + Duration::from_secs(20);
        while rows(&reader, "SELECT v FROM LATEST(g, 1)").await.unwrap() != [value.to_string()] {
            assert!(Instant::now() < told, "the other server never saw {value}");
        }
    }
    // What Redis has still to tell of the last write may drop the entry once more.
    let analyze = "EXPLAIN ANALYZE SELECT v FROM LATEST(g, 1)";
    let deadline = Instant::now() + Duration::from_secs(20);
    let plan = loop {
        let plan = rows(&writer, analyze).await.unwrap().join("\n");
        if plan.contains("cache_hits=1") && plan.contains("store_reads=0") {
            break plan;
        }
        assert!(Instant::now() < deadline, "{plan}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let tracking = "SELECT tracking, invalidations > 0 FROM system.online_cache";
    assert_eq!(rows(&reader, tracking).await.unwrap(), ["true true"]);
    assert!(plan.contains(&format!("store=redis 127.0.0.1:{}, cached", redis.port())), "{plan}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_that_one_server_changes_is_the_others_too() {
    let (data, redis) = (tempfile::tempdir().unwrap(), RedisServer::start(&[]));
    let (one, two) = (server(data.path(), &redis).await, server(data.path(), &redis).await);
    let (writer, reader) = (one.engine().session(), two.engine().session());
    let update = async |sql: &str| writer.update(sql, None).await.unwrap();
    update(GROUP).await;
    update("INSERT INTO g VALUES (1, TIMESTAMP '2026-01-01', 5), (2, TIMESTAMP '2026-01-01', 6)").await;
    // The reader keeps this look-up ready, and in its cache what it read.
    let kept = "SELECT * FROM LATEST(g, 1, 2)";
    let old = ["1 2026-01-01T00:00:00 5 PRESENT", "2 2026-01-01T00:00:00 6 PRESENT"];
    assert_eq!(rows(&reader, kept).await.unwrap(), old);
    update("ALTER FEATURE GROUP g DROP FEATURE v, ADD FEATURE w BIGINT DEFAULT 7").await;
    assert_eq!(rows(&reader, "SELECT w FROM LATEST(g, 1, 9)").await.unwrap(), ["", "7"]);
    update("INSERT INTO g VALUES (2, TIMESTAMP '2026-01-02', 8)").await;
    // For a moment the definition of before may be served; never are bytes of one read as of another.
    let told = Instant::now() + Duration::from_secs(20);
    let new = ["1 2026-01-01T00:00:00 PRESENT", "2 2026-01-02T00:00:00 8 PRESENT"];
    loop {
        match rows(&reader, kept).await {
            Ok(served) if served == new => break,
            Ok(served) => assert_eq!(served, old),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
        }
        assert!(Instant::now() < told, "the other server never saw the change");
    }
    // What had had its life comes back with a longer one.
    update("ALTER FEATURE GROUP g SET (ttl = '1 hour')").await;
    update("INSERT INTO g VALUES (3, TIMESTAMP '2026-01-03', 9)").await;
    assert_eq!(
        rows(&reader, "SELECT w, _status FROM LATEST(g, 3, max_staleness => '0s')").await.unwrap(),
        ["7 NOT_FOUND"]
    );
    update("ALTER FEATURE GROUP g SET (ttl = '60 days')").await;
    let longer = "SELECT w AS longer, _status FROM LATEST(g, 3, max_staleness => '0s')";
    assert_eq!(rows(&reader, longer).await.unwrap(), ["9 PRESENT"]);
    // Out of service, there is nothing of it in Redis; in service again, all of it.
    update("ALTER FEATURE GROUP g SET (online = false)").await;
    assert_eq!(rows(&reader, "SELECT count(*) FROM LATEST(g)").await.unwrap_err().kind(), ErrorKind::Invalid);
    update("INSERT INTO g VALUES (4, TIMESTAMP '2026-01-03', 10)").await;
    update("ALTER FEATURE GROUP g SET (online = true)").await;
    assert_eq!(rows(&reader, "SELECT count(*), sum(w) FROM LATEST(g)").await.unwrap(), ["4 27"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_redis_history_answers_and_latest_says_what_is_missing() {
    let (data, mut redis) = (tempfile::tempdir().unwrap(), RedisServer::start(&[]));
    let server = server(data.path(), &redis).await;
    let session = server.engine().session();
    session.update(GROUP, None).await.unwrap();
    session.update("INSERT INTO g VALUES (1, TIMESTAMP '2026-01-01', 5)", None).await.unwrap();
    redis.stop();
    assert_eq!(rows(&session, "SELECT v FROM g").await.unwrap(), ["5"]);
    let error = rows(&session, "SELECT v FROM LATEST(g, 1)").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains(&format!("127.0.0.1:{}", redis.port())), "{error}");
    redis.restart();
    session.update("INSERT INTO g VALUES (2, TIMESTAMP '2026-01-01', 6)", None).await.unwrap();
    assert_eq!(rows(&session, "SELECT v, _status FROM LATEST(g, 2)").await.unwrap(), ["6 PRESENT"]);
}

/// While Redis is silent, large questions of one exchange wait for it beside each other, and go with their client.
#[tokio::test(flavor = "multi_thread")]
async fn large_questions_are_read_for_beside_each_other() {
    let (data, redis) = (tempfile::tempdir().unwrap(), RedisServer::start(&[]));
    // Longer than the test waits for anything.
    let server = patient_server(data.path(), &redis, Duration::from_secs(600)).await;
    let session = server.engine().session();
    session.update(GROUP, None).await.unwrap();
    let running = async |expected: &str| {
        until(&format!("{expected} look-ups"), async || {
            let count = "SELECT count(*) FROM system.queries WHERE kind = 'lookup'";
            rows(&session, count).await.unwrap() == [expected]
        })
        .await;
    };
    // Of so many keys that they are listed while they run.
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(0..10_000));
    let keys = RecordBatch::try_from_iter([("id", keys)]).unwrap();
    let mut messages = batches_to_flight_data(&keys.schema(), vec![keys.clone(); 4]).unwrap();
    let query = r#"{"query": "SELECT v FROM LATEST(g, ?)"}"#;
    messages[0].flight_descriptor = Some(FlightDescriptor::new_cmd(query));
    redis.pause();
    let mut client = connect(&server).await.into_inner();
    let (leave, left) = oneshot::channel::<()>();
    let asking = client.do_exchange(stream::iter(messages).chain(stream::pending()).take_until(left));
    let mut answers = asking.await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some(), "the schema comes first");
    running("4").await;
    drop((leave, answers));
    running("0").await;
    redis.resume();
    assert_eq!(rows(&session, "SELECT v FROM LATEST(g, 1)").await.unwrap(), ["-1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_serves_and_without_a_node_history_still_answers() {
    let (data, mut cluster) = (tempfile::tempdir().unwrap(), RedisCluster::start(3, 0, &[]));
    let seeds = cluster.urls()[1..].iter().map(|url| url.parse().unwrap()).collect();
    let mut settings = Settings::for_data_dir(data.path()).unwrap();
    settings.online = OnlineSetting::RedisCluster(seeds);
    settings.online_timeout = Duration::from_secs(2);
    settings.cache_capacity_bytes = 0;
    let server = Server::start(settings, Arc::new(ManualClock::new(START_US))).await.unwrap();
    let session = server.engine().session();
    session.update(GROUP, None).await.unwrap();
    let insert =
        "INSERT INTO g SELECT value, TIMESTAMP '2026-01-01', value * 2 FROM generate_series(1, 1000)";
    session.update(insert, None).await.unwrap();
    let served = "SELECT count(*), sum(v) FROM LATEST(g)";
    assert_eq!(rows(&session, served).await.unwrap(), ["1000 1001000"]);
    assert_eq!(rows(&session, "SELECT v FROM LATEST(g, 7, 0, 1000)").await.unwrap(), ["14", "-1", "2000"]);
    cluster.nodes[0].stop();
    let begin = std::time::Instant::now();
    let error = rows(&session, served).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("redis cluster 127.0.0.1:"), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(rows(&session, "SELECT count(*) FROM g").await.unwrap(), ["1000"]);
}
