//! Many clients that do little: a thousand that are connected and ask for nothing, and a hundred that ask and do not
//! read. They cost what they cost, and the others do not wait for them.

use arrow_flight::sql::client::FlightSqlServiceClient;
use futures::{StreamExt, TryStreamExt, stream};
use tonic::transport::Channel;

use crate::support::http::until;
use crate::support::process::Process;

const IDLE: usize = 1000;
const SLOW: usize = 100;

/// What a connection may take of the server's memory, and what a result that nobody reads: HTTP/2's windows, the batches
/// that are ready, and those that the plan is ahead.
const IDLE_BYTES_MAX: f64 = 128e3;
const SLOW_BYTES_MAX: f64 = 4e6;

async fn memory(server: &Process) -> f64 {
    server.metric("process_resident_memory_bytes").await
}

async fn one(client: &mut FlightSqlServiceClient<Channel>) {
    let info = client.execute("SELECT 1 AS one".to_owned(), None).await.unwrap();
    let rows = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert_eq!(rows.try_collect::<Vec<_>>().await.unwrap()[0].num_rows(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_connections_that_ask_for_nothing() {
    rlimit::increase_nofile_limit(u64::MAX).unwrap();
    let server = Process::start(&["--queries-max", "1000"]);
    let mut client = server.connect().await;
    one(&mut client).await;
    let before = memory(&server).await;
    let idle = stream::iter(0..IDLE).map(|_| async {
        let mut client = server.connect().await;
        one(&mut client).await; // so that it has a session, too
        client
    });
    let idle: Vec<_> = idle.buffer_unordered(16).collect().await;
    assert_eq!(server.metric("fletching_connections").await, IDLE as f64 + 1.0);
    assert_eq!(server.metric("fletching_sessions").await, IDLE as f64 + 1.0);
    one(&mut client).await;
    let each = (memory(&server).await - before) / IDLE as f64;
    assert!(each < IDLE_BYTES_MAX, "{each} bytes for each connection");
    drop(idle);
    server.until_metric("fletching_connections", |open| open == 1.0).await;
    server.until_metric("fletching_sessions", |open| open == 1.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_results_that_nobody_reads() {
    let server = Process::start(&["--queries-max", "1000"]);
    let mut client = server.connect().await;
    one(&mut client).await;
    let before = memory(&server).await;
    let slow = stream::iter(0..SLOW).map(|_| async {
        let mut client = server.connect().await;
        let endless = "SELECT value FROM generate_series(1, 1000000000000)".to_owned();
        let info = client.execute(endless, None).await.unwrap();
        client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap()
    });
    let mut slow: Vec<_> = slow.buffer_unordered(16).collect().await;
    let running = r#"fletching_queries_running{state="running"}"#;
    server.until_metric(running, |running| running == SLOW as f64).await;
    // They come to a halt, as nobody takes what they have.
    let sent = "fletching_sent_bytes_total";
    let (mut last, mut quiet) = (0.0, 0);
    until("a halt", async || {
        let (now, before) = (server.metric(sent).await, last);
        last = now;
        quiet = if now == before { quiet + 1 } else { 0 };
        quiet == 100
    })
    .await;
    let each = (memory(&server).await - before) / SLOW as f64;
    assert!(each < SLOW_BYTES_MAX, "{each} bytes for each result");
    one(&mut client).await;
    // Whoever reads on finds everything in its place.
    let mut rows = 0;
    while rows < 1_000_000 {
        let batch = slow[0].try_next().await.unwrap().unwrap();
        let values = batch.column(0).to_data();
        assert_eq!(values.buffers()[0].typed_data::<i64>()[values.offset()], rows + 1);
        rows += batch.num_rows() as i64;
    }
    drop(slow);
    server.until_metric(running, |running| running == 0.0).await;
    one(&mut client).await;
}
