//! Servers that share a Redis, each with a cache: what one writes, the other's cache learns from Redis. The clock
//! stands still, so nothing here goes out of date by itself.

use super::cache::eventually;
use super::*;

/// One server of several.
pub(super) async fn server(redis: &RedisServer) -> Arc<Stage> {
    Arc::new(Stage::open(Backend::Redis { url: redis.url() }, Some(CACHE)).await)
}

pub(super) fn statistics(stage: &Stage) -> CacheStatistics {
    stage.store.cache_statistics().unwrap()
}

pub(super) async fn tracking(stage: &Stage) {
    eventually("changes are tracked", async || statistics(stage).tracking == Some(true)).await;
}

/// A connection of the test's own.
pub(super) async fn connection(redis: &RedisServer) -> ::redis::aio::MultiplexedConnection {
    let client = ::redis::Client::open(redis.url()).unwrap();
    client.get_multiplexed_async_connection().await.unwrap()
}

/// Cuts every connection that is being told of changes; returns how many.
pub(super) async fn cut_tracking(connection: &mut ::redis::aio::MultiplexedConnection) -> usize {
    let list: String = ::redis::cmd("CLIENT").arg("LIST").query_async(connection).await.unwrap();
    let field = |line: &str, name: &str| {
        line.split(' ').find_map(|field| field.strip_prefix(name)).unwrap_or_default().to_owned()
    };
    let tracked = list.lines().filter(|line| field(line, "flags=").contains('B'));
    let ids: Vec<String> = tracked.map(|line| field(line, "id=")).collect();
    for id in &ids {
        ::redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).query_async::<i64>(connection).await.unwrap();
    }
    ids.len()
}

/// Reads until the key is held: what Redis still has to tell of an earlier write may drop it once more.
async fn warm(stage: &Stage, user: i64) -> Option<(i64, i64)> {
    eventually("the entry is held", async || {
        stage.store.get(&stage.group, &keys(&[user]), None).await.unwrap().cache_hits == 1
    })
    .await;
    stage.served(&[user]).await[0]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_through_one_server_reaches_the_caches_of_all() {
    let redis = RedisServer::start(&[]);
    let (one, two) = (server(&redis).await, server(&redis).await);
    tracking(&one).await;
    tracking(&two).await;
    assert_eq!(warm(&two, 1).await, None);
    for time in 1..50 {
        one.write(&[row(1, time, 1, 0, time)]).await;
        assert_eq!(one.served(&[1]).await, [Some((time, time))]);
        eventually("the other server sees it", async || two.served(&[1]).await == [Some((time, time))]).await;
        assert_eq!(warm(&two, 1).await, Some((time, time)));
    }
    let statistics = statistics(&two);
    assert!(statistics.invalidations >= 49, "{statistics:?}");
    // Established once, and never in doubt.
    assert_eq!(statistics.clears, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_clears_the_cache_and_comes_back() {
    let redis = RedisServer::start(&[]);
    let (one, two) = (server(&redis).await, server(&redis).await);
    tracking(&two).await;
    let mut connection = connection(&redis).await;
    for time in 1..6 {
        one.write(&[row(1, time, 1, 0, time)]).await;
        eventually("the other server sees it", async || two.served(&[1]).await == [Some((time, time))]).await;
        warm(&two, 1).await;
        let clears = statistics(&two).clears;
        assert!(cut_tracking(&mut connection).await >= 1);
        eventually("cleared, and cleared again", async || statistics(&two).clears >= clears + 2).await;
        tracking(&two).await;
        assert_eq!(warm(&two, 1).await, Some((time, time)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_redis_leaves_nothing_in_the_cache() {
    let mut redis = RedisServer::start(&[]);
    let stage = server(&redis).await;
    tracking(&stage).await;
    let mut connection = connection(&redis).await;
    for command in ["FLUSHALL", "FLUSHDB"] {
        stage.write(&[row(1, 10, 1, 0, 1)]).await;
        assert_eq!(warm(&stage, 1).await, Some((10, 1)));
        ::redis::cmd(command).query_async::<()>(&mut connection).await.unwrap();
        eventually("it is gone", async || stage.served(&[1]).await == [None]).await;
        assert_eq!(statistics(&stage).tracking, Some(true));
    }
    stage.write(&[row(1, 10, 1, 0, 1)]).await;
    assert_eq!(warm(&stage, 1).await, Some((10, 1)));
    redis.restart();
    eventually("it is gone", async || {
        let found = stage.store.get(&stage.group, &keys(&[1]), None).await;
        found.is_ok_and(|found| found.entries == Entries::absent(1))
    })
    .await;
    tracking(&stage).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_tracking_every_read_goes_to_redis() {
    let redis = RedisServer::start(&[]);
    let mut connection = connection(&redis).await;
    let mut allow = async |how: &str| {
        ::redis::cmd("ACL")
            .arg("SETUSER")
            .arg("default")
            .arg(how)
            .query_async::<()>(&mut connection)
            .await
            .unwrap();
    };
    allow("-client|tracking").await;
    let (one, two) = (server(&redis).await, server(&redis).await);
    for time in 1..20 {
        one.write(&[row(1, time, 1, 0, time)]).await;
        let found = two.store.get(&two.group, &keys(&[1, 1, 2]), None).await.unwrap();
        assert_eq!((found.cache_hits, found.cache_misses, found.store_reads), (0, 3, 2));
        assert_eq!(served(&two.group, &found.entries, NOW)[1..], [Some((time, time)), None]);
    }
    let seen = statistics(&two);
    assert_eq!((seen.hits, seen.entries, seen.tracking), (0, 0, Some(false)));
    allow("+client|tracking").await;
    tracking(&two).await;
    assert_eq!(warm(&two, 1).await, Some((19, 19)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watching_ends_with_the_store() {
    let redis = RedisServer::start(&[]);
    let stage = server(&redis).await;
    tracking(&stage).await;
    drop(stage);
    let mut connection = connection(&redis).await;
    eventually("nobody is told any more", async || cut_tracking(&mut connection).await == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_leads_to_the_same_server_as_its_port() {
    let directory = TempDir::new().unwrap();
    let socket = directory.path().join("redis.sock");
    let mut redis = RedisServer::start(&["--unixsocket", socket.to_str().unwrap()]);
    let backend = Backend::Redis { url: format!("redis+unix://{}", socket.display()) };
    let (local, other) = (Stage::open(backend, Some(CACHE)).await, server(&redis).await);
    assert_eq!(local.store.describe(), format!("redis {}, cached", socket.display()));
    tracking(&local).await;
    tracking(&other).await;
    assert_eq!((warm(&local, 1).await, warm(&other, 1).await), (None, None));
    other.write(&[row(1, 10, 1, 0, 7)]).await;
    eventually("the socket's sees it", async || local.served(&[1]).await == [Some((10, 7))]).await;
    local.write(&[row(1, 20, 1, 0, 8)]).await;
    eventually("the port's sees it", async || other.served(&[1]).await == [Some((20, 8))]).await;
    redis.stop();
    let error = local.store.get(&local.group, &keys(&[2]), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&format!("redis {} cannot be reached", socket.display())), "{error}");
}
