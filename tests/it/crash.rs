//! The process is killed at any moment of many writes. What was acknowledged is there, once, offline and online.

use std::time::Duration;

use arrow_flight::error::FlightError;
use tokio::sync::{mpsc, watch};

use crate::flight::{numbers, query, update};
use crate::support::process::{Process, connect_to};

const WRITERS: i64 = 4;
const KILLS: u64 = 5;
/// Writes that are acknowledged between two kills.
const WRITES_BETWEEN_MAX: u64 = 12;
/// After an error a writer waits for the server to come back; where it never went, it tries again after this.
const PATIENCE: Duration = Duration::from_millis(200);

/// The rows of a writer's write: 1 to 3, each with an entity and a value of its own.
fn ids_of(writer: i64, write: i64) -> std::ops::Range<i64> {
    let first = (writer * 100_000 + write) * 10;
    first..first + 1 + write % 3
}

async fn write_once(url: &str, writer: i64, write: i64) -> Result<i64, FlightError> {
    let mut client = connect_to(url).await.map_err(|error| FlightError::ExternalError(Box::new(error)))?;
    client.set_header("fletching-idempotency-key", format!("writer-{writer}/{write}"));
    let values: Vec<String> =
        ids_of(writer, write).map(|id| format!("({id}, TIMESTAMP '2026-01-01', {id})")).collect();
    client.execute_update(format!("INSERT INTO g VALUES {}", values.join(", ")), None).await
}

/// Writes until it is over, each write until it is acknowledged; returns how many were.
async fn write_on(
    writer: i64,
    mut server: watch::Receiver<Option<String>>,
    told: mpsc::UnboundedSender<()>,
) -> i64 {
    let mut write = 0;
    loop {
        let Some(url) = server.borrow_and_update().clone() else { return write };
        match write_once(&url, writer, write).await {
            Ok(rows) => {
                assert_eq!(
                    rows,
                    ids_of(writer, write).count() as i64,
                    "a retry answers as the write would have"
                );
                write += 1;
                let _ = told.send(()); // nobody counts any more when it is over
            }
            Err(_) => {
                let _ = tokio::time::timeout(PATIENCE, server.changed()).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_rows_outlive_kills_and_are_there_once() {
    let mut process = Process::start(&[]);
    let group =
        "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))";
    update(&mut process.connect().await, group).await;
    let (server, follows) = watch::channel(Some(process.url().to_owned()));
    let (told, mut acknowledged) = mpsc::unbounded_channel();
    let writers: Vec<_> =
        (0..WRITERS).map(|writer| tokio::spawn(write_on(writer, follows.clone(), told.clone()))).collect();
    let mut random = u64::from(std::process::id());
    for _ in 0..KILLS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        for _ in 0..1 + (random >> 33) % WRITES_BETWEEN_MAX {
            acknowledged.recv().await.unwrap();
        }
        // Somewhere within the writes that follow.
        for _ in 0..(random >> 40) % 2000 {
            tokio::task::yield_now().await;
        }
        process.kill_and_restart();
        server.send_replace(Some(process.url().to_owned()));
    }
    for _ in 0..WRITERS {
        acknowledged.recv().await.unwrap();
    }
    server.send_replace(None);
    let mut expected = Vec::new();
    for (writer, writes) in (0..).zip(writers) {
        expected.extend((0..writes.await.unwrap()).flat_map(|write| ids_of(writer, write)));
    }
    let mut client = process.connect().await;
    assert_eq!(numbers(&mut client, "SELECT id FROM g ORDER BY id").await, expected);
    update(&mut client, "REFRESH ONLINE g").await;
    let latest = query(&mut client, "SELECT id FROM LATEST(g) WHERE v = id ORDER BY id").await.unwrap();
    assert_eq!(latest.iter().map(|batch| batch.num_rows()).sum::<usize>(), expected.len());
    assert_eq!(numbers(&mut client, "SELECT id FROM LATEST(g) ORDER BY id").await, expected);
    let behind = "SELECT snapshots_behind + rows_behind FROM system.freshness";
    assert_eq!(numbers(&mut client, behind).await, [0]);
}
