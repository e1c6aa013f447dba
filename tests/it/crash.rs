//! Processes are killed at any moment of many writes. What was acknowledged is there, once, offline and online.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow_flight::FlightDescriptor;
use arrow_flight::error::FlightError;
use arrow_flight::sql::{DoPutUpdateResult, TableExistsOption as Exists, TableNotExistOption as NotExist};
use arrow_flight::utils::batches_to_flight_data;
use prost::Message;
use tokio::sync::{mpsc, watch};

use crate::catalog::postgres_server::PostgresServer;
use crate::flight::{ingest, numbers, query, update};
use crate::online::redis_server::RedisServer;
use crate::support::START_US;
use crate::support::faulty::FaultyNetwork;
use crate::support::object_storage::{BUCKET, ObjectStorage};
use crate::support::process::{Process, connect_to};

/// Every other one writes by streams.
const WRITERS: i64 = 4;
/// Writes of a stream, of which none waits for the one before.
const STREAM_WRITES: i64 = 12;
/// After an error a writer waits for a server to come back; where none went, it tries again after this.
const PATIENCE: Duration = Duration::from_millis(200);

/// Each so many writes of a writer one is in bulk.
const BULK_EVERY: i64 = 10;
const BULK_ROWS: i64 = 2000;

/// Where to write, until it is over.
#[derive(Clone)]
struct Servers {
    urls: Vec<String>,
    is_over: bool,
}

fn is_bulk(write: i64) -> bool {
    write % BULK_EVERY == BULK_EVERY - 1
}

/// The rows of a writer's write, each with an entity and a value of its own.
fn ids_of(writer: i64, write: i64) -> Range<i64> {
    let first = (writer * 100_000 + write) * BULK_ROWS;
    first..first + if is_bulk(write) { BULK_ROWS } else { 1 + write % 3 }
}

fn rows_of(writer: i64, write: i64) -> RecordBatch {
    let ids: Arc<Int64Array> = Arc::new(Int64Array::from_iter_values(ids_of(writer, write)));
    let at = TimestampMicrosecondArray::from_value(START_US, ids.len());
    RecordBatch::try_from_iter([("id", ids.clone() as _), ("at", Arc::new(at) as _), ("v", ids as _)])
        .unwrap()
}

fn key_of(writer: i64, write: i64) -> String {
    format!("writer-{writer}/{write}")
}

/// The writes from this one on, by one stream, as far as they are acknowledged: the rows of each.
async fn stream_writes(url: &str, writer: i64, first: i64) -> Vec<i64> {
    let writes = first..first + STREAM_WRITES;
    let rows: Vec<_> = writes.clone().map(|write| rows_of(writer, write)).collect();
    let mut messages = batches_to_flight_data(&rows[0].schema(), rows.clone()).unwrap();
    messages[0].flight_descriptor = Some(FlightDescriptor::new_cmd(r#"{"append": "g"}"#));
    for (message, write) in messages[1..].iter_mut().zip(writes) {
        message.app_metadata = key_of(writer, write).into();
    }
    let mut acknowledged = Vec::new();
    let Ok(client) = connect_to(url).await else { return acknowledged };
    let Ok(answers) = client.into_inner().do_put(futures::stream::iter(messages)).await else {
        return acknowledged;
    };
    let mut answers = answers.into_inner();
    while let Ok(Some(answer)) = answers.message().await {
        acknowledged.push(DoPutUpdateResult::decode(answer.app_metadata).unwrap().record_count);
    }
    acknowledged
}

async fn write_once(url: &str, writer: i64, write: i64) -> Result<i64, FlightError> {
    let mut client = connect_to(url).await.map_err(|error| FlightError::ExternalError(Box::new(error)))?;
    client.set_header("fletching-idempotency-key", key_of(writer, write));
    let ids = ids_of(writer, write);
    if is_bulk(write) {
        let command = ingest("g", Exists::Append, NotExist::Fail);
        return client.execute_ingest(command, futures::stream::iter([Ok(rows_of(writer, write))])).await;
    }
    let values: Vec<String> = ids.map(|id| format!("({id}, TIMESTAMP '2026-01-01', {id})")).collect();
    client.execute_update(format!("INSERT INTO g VALUES {}", values.join(", ")), None).await
}

/// Writes until it is over, each write until it is acknowledged, by any of the servers; returns how many were. It is not over
/// while something may be written that nobody has heard of.
async fn write_on(
    writer: i64,
    mut servers: watch::Receiver<Servers>,
    told: mpsc::UnboundedSender<()>,
) -> i64 {
    let (mut write, mut tries, mut is_settled) = (0, writer as usize, true);
    loop {
        let Servers { urls, is_over } = servers.borrow_and_update().clone();
        if is_over && is_settled {
            return write;
        }
        tries += 1;
        let url = &urls[tries % urls.len()];
        let acknowledged: Vec<i64> = match writer % 2 {
            0 => write_once(url, writer, write).await.into_iter().collect(),
            _ => stream_writes(url, writer, write).await,
        };
        is_settled = acknowledged.len() as i64 == if writer % 2 == 0 { 1 } else { STREAM_WRITES };
        if !is_settled {
            let _ = tokio::time::timeout(PATIENCE, servers.changed()).await;
        }
        for rows in acknowledged {
            let expected = ids_of(writer, write).count() as i64;
            assert_eq!(rows, expected, "a retry answers as the write would have");
            write += 1;
            let _ = told.send(()); // nobody counts any more when it is over
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
    let urls = |processes: &[Process]| processes.iter().map(|process| process.url().to_owned()).collect();
    let (servers, follows) = watch::channel(Servers { urls: urls(&processes), is_over: false });
    let (told, mut acknowledged) = mpsc::unbounded_channel();
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write_on(writer, follows.clone(), told.clone()))).collect();
    drop(told); // when all of them have failed, so has this
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
        servers.send_modify(|servers| servers.urls = urls(&processes));
    }
    for _ in writes..writes_min.max(writes + WRITERS as u64) {
        acknowledged.recv().await.unwrap();
    }
    networks.iter().for_each(|network| network.set_fair(true));
    servers.send_modify(|servers| servers.is_over = true);
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
