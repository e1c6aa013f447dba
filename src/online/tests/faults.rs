//! Redis down, hanging, loading, out of memory, demoted, closed, or holding what is no entry: one clear error within the
//! timeout, and recovery without help.

use std::time::Instant;

use super::redis_cluster::eventually;
use super::*;
use crate::error::Error;

const TIMEOUT: Duration = Duration::from_millis(300);

/// A store that gives up soon, on a server with these arguments.
async fn impatient(arguments: &[&str]) -> Stage {
    let redis = RedisServer::start(arguments);
    let backend = Backend::Redis { url: redis.url() };
    Stage { redis: Some(redis), ..Stage::open_within(TIMEOUT, backend, None).await }
}

impl Stage {
    fn server(&self) -> &RedisServer {
        self.redis.as_ref().unwrap()
    }

    async fn read(&self) -> Result<Entries> {
        Ok(self.store.get(&self.group, &keys(&[1]), None).await?.entries)
    }

    async fn try_write(&self, rows: &[Row]) -> Result<()> {
        self.store.write(&self.group, &batch(&self.group, rows)).await
    }

    /// The key in Redis of the only entry there is.
    fn only_key(&self) -> Vec<u8> {
        let keys: Vec<Vec<u8>> =
            ::redis::from_redis_value(self.server().ask(&["KEYS", "*"]).unwrap()).unwrap();
        let [key] = keys.as_slice() else { panic!("{} keys", keys.len()) };
        key.clone()
    }
}

/// `Unavailable`, in the server's name, with these words.
fn assert_says(error: &Error, stage: &Stage, words: &str) {
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let text = error.to_string();
    assert!(text.contains(&format!("redis 127.0.0.1:{} ", stage.server().port())), "{text}");
    assert!(text.contains(words), "{text}");
}

/// Polls the store until it answers.
async fn until_it_answers(stage: &Stage) -> Entries {
    let begin = Instant::now();
    loop {
        match stage.read().await {
            Ok(entries) => return entries,
            Err(error) => assert!(begin.elapsed() < Duration::from_secs(30), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_redis_that_is_down_is_unavailable_and_comes_back_by_itself() {
    let mut stage = Stage::redis(None).await;
    stage.write(&[row(1, 10, 1, 0, 7)]).await;
    let redis = stage.redis.as_mut().unwrap();
    redis.stop();
    let error = stage.store.get(&stage.group, &keys(&[1]), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&format!("redis 127.0.0.1:{}", redis.port())), "{error}");
    redis.restart();
    // The new server is empty and has never seen the script.
    assert_eq!(stage.served(&[1]).await, [None]);
    stage.write(&[row(1, 11, 1, 0, 8)]).await;
    stage.redis.as_mut().unwrap().restart();
    stage.write(&[row(1, 12, 1, 0, 9)]).await;
    assert_eq!(stage.served(&[1]).await, [Some((12, 9))]);
}

#[tokio::test]
async fn no_error_shows_the_password() {
    let redis = RedisServer::start(&["--requirepass", "right-secret"]);
    let clock = Arc::new(ManualClock::new(NOW));
    let group = Arc::new(group(1));
    let get = async |url: String| {
        let store = open(options(Backend::Redis { url }), clock.clone()).await?;
        assert!(!format!("{store:?}{}", store.describe()).contains("secret"));
        store.get(&group, &keys(&[1]), None).await
    };
    let at = format!("127.0.0.1:{}", redis.port());
    assert!(get(format!("redis://:right-secret@{at}")).await.is_ok());
    for url in
        [format!("redis://:wrong-secret@{at}"), format!("rediss://:secret@{at}"), "http://:secret@x".into()]
    {
        let error = get(url).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        assert!(matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Invalid), "{error}");
    }
}

#[tokio::test]
async fn a_redis_that_hangs_is_given_up_at_the_deadline() {
    // A listener that accepts and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let store = open(options(Backend::Redis { url }), Arc::new(ManualClock::new(NOW))).await.unwrap();
    let error = store.get(&Arc::new(group(1)), &keys(&[1]), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn a_redis_that_stops_answering_is_given_up_and_found_again() {
    let stage = impatient(&[]).await;
    stage.write(&[row(1, 10, 1, 0, 7)]).await;
    stage.server().pause();
    for _ in 0..2 {
        let begin = Instant::now();
        let error = stage.read().await.unwrap_err();
        assert!(begin.elapsed() < TIMEOUT * 4, "{:?}", begin.elapsed());
        assert_says(&error, &stage, "did not answer within 300ms");
    }
    stage.server().resume();
    until_it_answers(&stage).await;
    assert_eq!(stage.served(&[1]).await, [Some((10, 7))]);
}

#[tokio::test]
async fn a_redis_that_is_loading_says_so_until_it_has_loaded() {
    let directory = TempDir::new().unwrap();
    let at = directory.path().to_str().unwrap();
    let mut stage = impatient(&["--dir", at]).await;
    let rows: Vec<Row> = (0..4000).map(|user| row(user, 10, 1, user, user)).collect();
    stage.write(&rows).await;
    stage.server().ask(&["SAVE"]).unwrap();
    let slowly = ["--dir", at, "--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"];
    stage.redis.as_mut().unwrap().restart_loading(&slowly);
    let begin = Instant::now();
    loop {
        let error = stage.read().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        if error.to_string().contains("is still loading its data") {
            break;
        }
        // It answers between keys only, at times beyond the timeout.
        assert!(begin.elapsed() < Duration::from_secs(8), "{error}");
    }
    eventually("loading goes on quickly", || {
        stage.server().ask(&["CONFIG", "SET", "key-load-delay", "0"]).is_ok()
    });
    until_it_answers(&stage).await;
    assert_eq!(stage.served(&[1, 3999]).await, [Some((10, 1)), Some((10, 3999))]);
}

#[tokio::test]
async fn a_redis_out_of_memory_refuses_writes_and_answers_reads() {
    let stage = impatient(&[]).await;
    stage.write(&[row(1, 10, 1, 0, 7)]).await;
    stage.server().ask(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    let error = stage.try_write(&[row(1, 11, 1, 0, 8), row(2, 11, 1, 1, 8)]).await.unwrap_err();
    assert_says(&error, &stage, "is out of memory: raise its maxmemory");
    assert_eq!(stage.served(&[1, 2]).await, [Some((10, 7)), None]);
    stage.server().ask(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    stage.write(&[row(1, 11, 1, 0, 8)]).await;
    assert_eq!(stage.served(&[1]).await, [Some((11, 8))]);
}

#[tokio::test]
async fn a_redis_that_became_a_replica_refuses_writes_until_it_is_a_master() {
    let stage = impatient(&[]).await;
    stage.write(&[row(1, 10, 1, 0, 7)]).await;
    stage.server().ask(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    let error = stage.try_write(&[row(1, 11, 1, 0, 8)]).await.unwrap_err();
    assert_says(&error, &stage, "is a replica, which takes no writes");
    stage.server().ask(&["REPLICAOF", "NO", "ONE"]).unwrap();
    stage.write(&[row(1, 11, 1, 0, 8)]).await;
    assert_eq!(stage.served(&[1]).await, [Some((11, 8))]);
}

#[tokio::test]
async fn a_password_is_needed_and_may_be_set_right_on_the_server() {
    let mut stage = impatient(&[]).await;
    let url = format!("redis://:right@127.0.0.1:{}", stage.server().port());
    stage.server().ask(&["CONFIG", "SET", "requirepass", "wrong"]).unwrap();
    let right = Stage::open_within(TIMEOUT, Backend::Redis { url }, None).await;
    let error = stage.read().await.unwrap_err();
    assert_says(&error, &stage, "refused the user or the password");
    stage.store = right.store;
    let error = stage.read().await.unwrap_err();
    assert_says(&error, &stage, "refused the user or the password");
    let mut connection = ::redis::Client::open(format!("redis://:wrong@127.0.0.1:{}", stage.server().port()))
        .and_then(|client| client.get_connection())
        .unwrap();
    let _: () = ::redis::cmd("CONFIG").arg(&["SET", "requirepass", "right"]).query(&mut connection).unwrap();
    assert_eq!(stage.served(&[1]).await, [None]);
}

#[tokio::test]
async fn what_is_no_entry_is_replaced_by_the_next_write() {
    let stage = impatient(&[]).await;
    let text: [&[u8]; 5] = [b"", b"garbage", b"\x02short", b"\x03", b"\x03\0\0\0\xff123"];
    for (time, value) in (20..).zip(text) {
        stage.write(&[row(1, 10, 1, 0, 7)]).await;
        let key = stage.only_key();
        stage.server().tell([b"SET".as_slice(), &key, value].into_iter()).unwrap();
        let entry = stage.read().await.unwrap().get(0).unwrap().to_vec();
        assert!(value.is_empty() || pick(&entry, NOW).unwrap_err().kind() == ErrorKind::Corrupt);
        // One row, and several.
        stage.write(&[row(1, time, 1, 0, 8), row(1, NOW + time, 1, 1, 9)]).await;
        assert_eq!(stage.served(&[1]).await, [Some((time, 8))]);
        stage.server().ask(&["FLUSHALL"]).unwrap();
    }
    stage.write(&[row(1, 10, 1, 0, 7)]).await;
    let key = stage.only_key();
    stage.server().tell([b"DEL".as_slice(), &key].into_iter()).unwrap();
    stage.server().tell([b"RPUSH".as_slice(), &key, b"of another type"].into_iter()).unwrap();
    assert_eq!(stage.served(&[1]).await, [None]);
    assert_eq!(stage.scanned().await, []);
    stage.write(&[row(1, 10, 1, 0, 7)]).await;
    assert_eq!(stage.served(&[1]).await, [Some((10, 7))]);
}

#[tokio::test]
async fn a_single_server_and_a_cluster_are_not_mistaken_for_each_other() {
    let stage = impatient(&[]).await;
    let backend = Backend::RedisCluster { seeds: vec![stage.server().url()] };
    let as_cluster = Stage::open_within(TIMEOUT, backend, None).await;
    let error = as_cluster.read().await.unwrap_err();
    assert!(error.to_string().contains("is no cluster: write redis://"), "{error}");
}
