//! Processes are killed at any moment of many writes. What was acknowledged is there, once, offline and online.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow_flight::error::FlightError;
use arrow_flight::sql::{TableExistsOption as Exists, TableNotExistOption as NotExist};
use tokio::sync::{mpsc, watch};

use crate::catalog::postgres_server::PostgresServer;
use crate::flight::{ingest, numbers, query, update};
use crate::online::redis_server::RedisServer;
use crate::support::START_US;
use crate::support::faulty::FaultyNetwork;
use crate::support::object_storage::{BUCKET, ObjectStorage};
use crate::support::process::{Process, connect_to};

const WRITERS: i64 = 4;
/// After an error a writer waits for a server to come back; where none went, it tries again after this.
const PATIENCE: Duration = Duration::from_millis(200);

/// Each so many writes of a writer one is in bulk.
const BULK_EVERY: i64 = 10;
const BULK_ROWS: i64 = 2000;

/// The URLs of the servers; none when it is over.
type Servers = Option<Vec<String>>;

fn is_bulk(write: i64) -> bool {
    write % BULK_EVERY == BULK_EVERY - 1
}

/// The rows of a writer's write, each with an entity and a value of its own.
fn ids_of(writer: i64, write: i64) -> Range<i64> {
    let first = (writer * 100_000 + write) * BULK_ROWS;
    first..first + if is_bulk(write) { BULK_ROWS } else { 1 + write % 3 }
}

async fn write_once(url: &str, writer: i64, write: i64) -> Result<i64, FlightError> {
    let mut client = connect_to(url).await.map_err(|error| FlightError::ExternalError(Box::new(error)))?;
    client.set_header("fletching-idempotency-key", format!("writer-{writer}/{write}"));
    let ids = ids_of(writer, write);
    if is_bulk(write) {
        let ids: Arc<Int64Array> = Arc::new(Int64Array::from_iter_values(ids));
        let at = TimestampMicrosecondArray::from_value(START_US, ids.len());
        let batch = RecordBatch::try_from_iter([
            ("id", ids.clone() as _),
            ("at", Arc::new(at) as _),
            ("v", ids as _),
        ]);
        let command = ingest("g", Exists::Append, NotExist::Fail);
        return client.execute_ingest(command, futures::stream::iter([Ok(batch.unwrap())])).await;
    }
    let values: Vec<String> = ids.map(|id| format!("({id}, TIMESTAMP '2026-01-01', {id})")).collect();
    client.execute_update(format!("INSERT INTO g VALUES {}", values.join(", ")), None).await
}

/// Writes until it is over, each write until it is acknowledged, by any of the servers; returns how many were.
async fn write_on(
    writer: i64,
    mut servers: watch::Receiver<Servers>,
    told: mpsc::UnboundedSender<()>,
) -> i64 {
    let (mut write, mut tries) = (0, writer as usize);
    loop {
        let Some(urls) = servers.borrow_and_update().clone() else { return write };
        tries += 1;
        match write_once(&urls[tries % urls.len()], writer, write).await {
            Ok(rows) => {
                let expected = ids_of(writer, write).count() as i64;
                assert_eq!(rows, expected, "a retry answers as the write would have");
                write += 1;
                let _ = told.send(()); // nobody counts any more when it is over
            }
            Err(_) => {
                let _ = tokio::time::timeout(PATIENCE, servers.changed()).await;
            }
        }
    }
}

/// Kills one of the processes, at a random moment of the writes that follow up to `writes_between_max` acknowledged
/// ones, and starts it again, `kills` times; writes go on until `writes_min` are acknowledged. All the while the
/// networks fail. Then all that was acknowledged is there.
async fn survive(
    mut processes: Vec<Process>,
    networks: &[FaultyNetwork],
    kills: u64,
    writes_between_max: u64,
    writes_min: u64,
) {
    let group =
        "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))";
    update(&mut processes[0].connect().await, group).await;
    networks.iter().for_each(|network| network.set_fair(false));
    let urls =
        |processes: &[Process]| Some(processes.iter().map(|process| process.url().to_owned()).collect());
    let (servers, follows) = watch::channel::<Servers>(urls(&processes));
    let (told, mut acknowledged) = mpsc::unbounded_channel();
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write_on(writer, follows.clone(), told.clone()))).collect();
    let mut random = u64::from(std::process::id());
    let mut writes = 0;
    for _ in 0..kills {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let before = 1 + (random >> 33) % writes_between_max;
        for _ in 0..before {
            acknowledged.recv().await.unwrap();
        }
        writes += before;
        // Somewhere within the writes that follow.
        for _ in 0..(random >> 40) % 2000 {
            tokio::task::yield_now().await;
        }
        let victim = (random >> 50) as usize % processes.len();
        processes[victim].kill_and_restart();
        servers.send_replace(urls(&processes));
    }
    for _ in writes..writes_min.max(writes + WRITERS as u64) {
        acknowledged.recv().await.unwrap();
    }
    networks.iter().for_each(|network| network.set_fair(true));
    servers.send_replace(None);
    let mut expected = Vec::new();
    for (writer, writes) in (0..).zip(writers) {
        expected.extend((0..writes.await.unwrap()).flat_map(|write| ids_of(writer, write)));
    }
    // What one server has logged the others see in its snapshot.
    for process in &processes {
        update(&mut process.connect().await, "CHECKPOINT").await;
    }
    update(&mut processes[0].connect().await, "REFRESH ONLINE g").await;
    for process in &processes {
        let mut client = process.connect().await;
        assert!(numbers(&mut client, "SELECT id FROM g ORDER BY id").await == expected, "offline");
        let latest = query(&mut client, "SELECT id FROM LATEST(g) WHERE v = id").await.unwrap();
        assert_eq!(latest.iter().map(|batch| batch.num_rows()).sum::<usize>(), expected.len());
        assert!(numbers(&mut client, "SELECT id FROM LATEST(g) ORDER BY id").await == expected, "online");
        let behind = "SELECT snapshots_behind + rows_behind FROM system.freshness";
        assert_eq!(numbers(&mut client, behind).await, [0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_rows_outlive_kills_and_are_there_once() {
    survive(vec![Process::start(&[])], &[], 5, 12, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_servers_on_one_postgresql_lose_and_double_nothing() {
    let (postgres, redis, files) =
        (PostgresServer::start(), RedisServer::start(&[]), tempfile::tempdir().unwrap());
    let warehouse = files.path().display().to_string();
    let shared = ["--catalog", &postgres.url(), "--warehouse", &warehouse, "--online", &redis.url()];
    survive(vec![Process::start(&shared), Process::start(&shared)], &[], 12, 25, 250).await;
}

/// The catalog, the warehouse and the online store are each behind a network that refuses, cuts and delays.
#[tokio::test(flavor = "multi_thread")]
async fn faults_at_every_store_lose_and_double_nothing() {
    let (postgres, redis, storage) =
        (PostgresServer::start(), RedisServer::start(&[]), ObjectStorage::start());
    let seed = u64::from(std::process::id());
    let catalog = FaultyNetwork::before(postgres.port(), 64 << 10, seed).await;
    let online = FaultyNetwork::before(redis.port(), 64 << 10, seed + 1).await;
    // A table's metadata has to fit through, of as many snapshots as a fast machine makes.
    let warehouse = FaultyNetwork::before(storage.port(), 1 << 20, seed + 2).await;
    let of_port = |url: String, port: u16, network: &FaultyNetwork| {
        url.replace(&format!(":{port}"), &format!(":{}", network.port()))
    };
    let shared = [
        "--catalog",
        &of_port(postgres.url(), postgres.port(), &catalog),
        "--online",
        &of_port(redis.url(), redis.port(), &online),
        "--warehouse",
        &format!("s3://{BUCKET}/prefix"),
        "--s3-endpoint",
        &format!("http://127.0.0.1:{}", warehouse.port()),
        "--fold-interval",
        "200ms",
    ];
    let start = || Process::start_in(&storage.credentials, &shared);
    let networks = [catalog, online, warehouse];
    survive(vec![start(), start()], &networks, 4, 25, 120).await;
    for network in networks {
        assert!(network.cuts() > 0, "it was no test of this store");
    }
}
