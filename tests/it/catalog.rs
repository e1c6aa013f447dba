//! Servers whose catalog is in PostgreSQL: what they share, and what they do while it is gone.

#[path = "../../src/offline/catalog/tests/postgres_server.rs"]
pub(crate) mod postgres_server;

use arrow_flight::error::FlightError;
use fletching::{CatalogSetting, Settings, WarehouseSetting};
use tokio::sync::{mpsc, watch};
use tonic::Code;

use crate::flight::{Client, House, numbers, query, update};
use crate::support::http::PAUSE;
use postgres_server::{PASSWORD, PostgresServer};

const WRITERS: i64 = 3;
/// Writes of all before the catalog goes, and again when it is back.
const WRITES: usize = 6;
const GROUP: &str =
    "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))";

fn on(postgres: &PostgresServer) -> impl FnOnce(&mut Settings) {
    let url = postgres.url().parse().unwrap();
    |settings| settings.catalog = CatalogSetting::Postgres(url)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_share_a_catalog_see_each_others_tables() {
    let (postgres, files) = (PostgresServer::start(), tempfile::tempdir().unwrap());
    let warehouse = files.path().to_owned();
    let shared = |settings: &mut Settings| {
        on(&postgres)(settings);
        settings.warehouse = WarehouseSetting::Local(warehouse.clone());
    };
    let (one, two) = (House::with(shared).await, House::with(shared).await);
    let (mut first, mut second) = (one.client().await, two.client().await);
    update(&mut first, "CREATE SCHEMA shop").await;
    update(&mut first, "CREATE TABLE shop.t (x BIGINT)").await;
    let writes = async |client: &mut Client, from: i64| {
        for x in from..from + 5 {
            update(client, &format!("INSERT INTO shop.t VALUES ({x})")).await;
        }
    };
    tokio::join!(writes(&mut first, 0), writes(&mut second, 5));
    let all: Vec<i64> = (0..10).collect();
    for client in [&mut first, &mut second] {
        assert_eq!(numbers(client, "SELECT x FROM shop.t ORDER BY x").await, all);
    }
    query(&mut second, "OPTIMIZE shop.t FULL").await.unwrap();
    assert_eq!(numbers(&mut first, "SELECT x FROM shop.t ORDER BY x").await, all);
    let taken = first.execute_update("CREATE TABLE shop.t (y BIGINT)".into(), None).await.unwrap_err();
    assert_eq!(refused(taken).0, Code::AlreadyExists);
    let long = format!("CREATE TABLE {} (y BIGINT)", "x".repeat(256));
    let (code, said) = refused(first.execute_update(long, None).await.unwrap_err());
    assert_eq!(code, Code::InvalidArgument, "{said}");
    update(&mut second, "DROP TABLE shop.t").await;
    let gone = query(&mut first, "SELECT * FROM shop.t").await.unwrap_err();
    assert_eq!(refused(gone).0, Code::NotFound);
}

fn refused(error: FlightError) -> (Code, String) {
    match error {
        FlightError::Tonic(status) => (status.code(), status.message().to_owned()),
        other => panic!("{other}"),
    }
}

/// Writes rows until it is over, each write until it is acknowledged; returns how many were. Tells of each try.
async fn write_on(
    mut client: Client,
    writer: i64,
    over: watch::Receiver<bool>,
    told: mpsc::UnboundedSender<Result<(), (Code, String)>>,
) -> i64 {
    let mut write = 0;
    while !*over.borrow() {
        client.set_header("fletching-idempotency-key", format!("{writer}/{write}"));
        let id = writer * 1_000_000 + write;
        let insert = format!("INSERT INTO g VALUES ({id}, TIMESTAMP '2026-01-01', {id})");
        let written = client.execute_update(insert, None).await;
        match written {
            Ok(_) => write += 1,
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        let _ = told.send(written.map(|_| ()).map_err(refused)); // nobody asks any more when it is over
    }
    write
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_catalog_is_gone_calls_say_so_and_afterwards_all_is_there_once() {
    let mut postgres = PostgresServer::start();
    let house = House::with(on(&postgres)).await;
    let mut client = house.client().await;
    update(&mut client, GROUP).await;
    update(&mut client, "INSERT INTO g VALUES (-1, TIMESTAMP '2026-01-01', -1)").await;
    let kept = "SELECT v FROM LATEST(g, -1)";
    assert_eq!(numbers(&mut client, kept).await, [-1]);
    let (over, is_over) = watch::channel(false);
    let (told, mut tries) = mpsc::unbounded_channel();
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let client = house.client().await;
        writers.push(tokio::spawn(write_on(client, writer, is_over.clone(), told.clone())));
    }
    for _ in 0..WRITES {
        tries.recv().await.unwrap().unwrap();
    }
    postgres.stop();
    let (code, said) = refused(query(&mut client, "SELECT id FROM g").await.unwrap_err());
    let name = format!("the catalog at 'postgresql://127.0.0.1:{}/postgres'", postgres.port());
    assert_eq!(code, Code::Unavailable, "{said}");
    assert!(said.contains(&name), "{said}");
    // What is kept ready is served by what was known last, which is long ago by this clock.
    house.clock.advance(60_000_000);
    assert_eq!(numbers(&mut client, kept).await, [-1]);
    let mut errors = 0;
    while errors < 2 * WRITERS {
        let Err((code, said)) = tries.recv().await.unwrap() else { continue };
        assert_eq!(code, Code::Unavailable, "{said}");
        assert!(said.contains(&name) && !said.contains(PASSWORD), "{said}");
        errors += 1;
    }
    postgres.start_again();
    let mut written = 0;
    while written < WRITES {
        written += usize::from(tries.recv().await.unwrap().is_ok());
    }
    over.send_replace(true);
    let mut expected = vec![-1];
    for (writer, writes) in (0..).zip(writers) {
        expected.extend((0..writes.await.unwrap()).map(|write| writer * 1_000_000 + write));
    }
    assert_eq!(numbers(&mut client, "SELECT id FROM g ORDER BY id").await, expected);
    assert_eq!(numbers(&mut client, "SELECT id FROM LATEST(g) WHERE v = id ORDER BY id").await, expected);
}
