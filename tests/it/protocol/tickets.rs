//! Tickets hold what was asked, as of the moment when it was asked.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use arrow_flight::{FlightEndpoint, FlightInfo, RenewFlightEndpointRequest};
use fletching::clock::ManualClock;
use fletching::{Server, Settings};
use prost::Message;
use tonic::Code;

use super::{act, info};
use crate::flight::{Client, House, fetch, numbers, status, update};
use crate::support::{START_US, connect};

const GROUP: &str =
    "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, n BIGINT DEFAULT 0, ENTITY KEY (id), EVENT TIME (at))";

fn shown(batches: &[RecordBatch]) -> String {
    pretty_format_batches(batches).unwrap().to_string()
}

async fn flight(client: &mut Client, sql: &str) -> FlightInfo {
    client.execute(sql.to_owned(), None).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_gives_the_same_rows_whenever_and_wherever_it_is_fetched() {
    let data = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(START_US));
    // Whoever has the same secret takes the tickets.
    let secret = data.path().join("secret");
    std::fs::write(&secret, "a secret of forty bytes, as good as any..").unwrap();
    let start = async || {
        let mut settings = Settings::for_data_dir(data.path()).unwrap();
        settings.security.secret_file = Some(secret.clone());
        Server::start(settings, Arc::clone(&clock) as _).await.unwrap()
    };
    let server = start().await;
    let mut client = connect(&server).await;
    for sql in [
        GROUP,
        "CREATE SCHEMA shop",
        "CREATE TABLE t (x BIGINT)",
        "CREATE TABLE shop.u (x BIGINT)",
        "CREATE TABLE labels (id BIGINT, at TIMESTAMP)",
        "INSERT INTO t VALUES (1), (2)",
        "INSERT INTO g VALUES (1, TIMESTAMP '2026-01-01', 10), (2, TIMESTAMP '2026-01-02', 20)",
        "INSERT INTO labels VALUES (1, TIMESTAMP '2026-01-05'), (2, TIMESTAMP '2026-01-05'), (3, TIMESTAMP '2026-01-05')",
        "ALTER FEATURE GROUP public.g SET (ttl = '60 days')",
        "USE shop",
        "SET time_zone = '+05:00'",
    ] {
        update(&mut client, sql).await;
    }
    let mut kept = Vec::new();
    for sql in [
        "SELECT x FROM public.t ORDER BY x",
        "SELECT count(*), sum(x), min(x) FROM public.t",
        "SELECT * FROM public.g ORDER BY id",
        "SELECT count(*) FROM public.\"g$history\"",
        "SELECT x FROM u",
        "SELECT (SELECT max(x) FROM public.t) AS m, now() AS t, current_date AS d",
        "SELECT x FROM public.t WHERE x IN (SELECT id FROM public.g) ORDER BY x",
        "SELECT l.id, g.n FROM public.labels l ASOF JOIN public.g MATCH_CONDITION (l.at >= g.at) ON l.id = g.id ORDER BY 1",
        "SELECT count(*) FROM public.t FOR SYSTEM_TIME AS OF now()",
        "SELECT count(*) FROM public.t FOR SYSTEM_TIME AS OF now() JOIN public.t t2 USING (x)",
        "WITH a AS (SELECT x FROM public.t UNION ALL SELECT id FROM public.g) SELECT sum(x) FROM a",
    ] {
        let info = flight(&mut client, sql).await;
        let rows = shown(&fetch(&mut client, info.clone()).await.unwrap());
        kept.push((sql, info, rows));
    }
    clock.advance(Duration::from_secs(3600).as_micros() as i64);
    for sql in [
        "INSERT INTO public.t VALUES (3)",
        "INSERT INTO u VALUES (3)",
        "INSERT INTO public.g VALUES (1, TIMESTAMP '2026-01-04', 99)",
        "INSERT INTO public.labels VALUES (7, TIMESTAMP '2026-01-05')",
        "ALTER FEATURE GROUP public.g DROP FEATURE n, SET (ttl = '1 day')",
        "ALTER FEATURE GROUP public.g ADD FEATURE n VARCHAR DEFAULT 'none'",
        "INSERT INTO public.g VALUES (2, TIMESTAMP '2026-01-03', 'new')",
    ] {
        update(&mut client, sql).await;
    }
    assert_eq!(
        numbers(&mut client, "SELECT sum(x) FROM public.t").await,
        [6],
        "a new query sees what is new"
    );
    let mut elsewhere = connect(&server).await;
    for (sql, info, rows) in &kept {
        for client in [&mut client, &mut elsewhere] {
            assert_eq!(&shown(&fetch(client, info.clone()).await.unwrap()), rows, "{sql}");
        }
    }
    drop((client, elsewhere));
    server.shutdown().await.unwrap();
    let server = start().await;
    let mut client = connect(&server).await;
    for (sql, info, rows) in &kept {
        assert_eq!(&shown(&fetch(&mut client, info.clone()).await.unwrap()), rows, "{sql}, after a restart");
    }
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_serves_the_latest_is_not_kept() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, GROUP).await;
    update(&mut client, "INSERT INTO g VALUES (1, TIMESTAMP '2026-01-01', 10)").await;
    update(&mut client, "CREATE TABLE asked AS SELECT 1 AS id").await;
    for sql in ["SELECT n FROM LATEST(g, 1)", "SELECT n FROM asked JOIN LATEST(g) USING (id)"] {
        let info = flight(&mut client, sql).await;
        let n = 1 + numbers(&mut client, sql).await[0];
        let day = n % 20 + 1;
        update(&mut client, &format!("INSERT INTO g VALUES (1, TIMESTAMP '2026-01-{day:02}', {n})")).await;
        let batches = fetch(&mut client, info).await.unwrap();
        assert!(shown(&batches).contains(&n.to_string()), "{sql}: {}", shown(&batches));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_is_said() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE TABLE t AS SELECT 1 AS x").await;
    let info = flight(&mut client, "SELECT x FROM t").await;
    update(&mut client, "DROP TABLE t").await;
    let gone = status(fetch(&mut client, info.clone()).await.unwrap_err());
    assert_eq!(gone.code(), Code::NotFound, "{gone}");
    assert!(gone.message().contains("was dropped since"), "{gone}");
    update(&mut client, "CREATE TABLE t AS SELECT 2 AS x").await;
    let other = status(fetch(&mut client, info).await.unwrap_err());
    assert_eq!(other.code(), Code::NotFound, "{other}");
    assert!(other.message().contains("another has its name"), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn temporary_tables_are_read_as_they_are() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE TABLE t AS SELECT 1 AS x").await;
    update(&mut client, "CREATE TEMP TABLE mine AS SELECT 1 AS x").await;
    let info = flight(&mut client, "SELECT count(*) FROM t JOIN mine USING (x)").await;
    let mut other = house.client().await;
    let refused = status(fetch(&mut other, info.clone()).await.unwrap_err());
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    assert!(refused.message().contains("'mine', a temporary object of the session that asked"), "{refused}");
    // Nor does another of its name stand in for it, stored or temporary.
    update(&mut other, "CREATE TABLE mine AS SELECT 7 AS x").await;
    let refused = status(fetch(&mut other, info.clone()).await.unwrap_err());
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    update(&mut other, "CREATE TEMP TABLE mine AS SELECT 7 AS x").await;
    let refused = status(fetch(&mut other, info.clone()).await.unwrap_err());
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    assert!(shown(&fetch(&mut client, info).await.unwrap()).contains("| 1 "));
    // A view reads what was there when it was made, beside what the statement reads.
    update(&mut client, "CREATE TEMP VIEW v AS SELECT x FROM t").await;
    update(&mut client, "INSERT INTO t VALUES (5)").await;
    let info =
        flight(&mut client, "SELECT (SELECT count(*) FROM v) AS v, (SELECT count(*) FROM t) AS t").await;
    update(&mut client, "INSERT INTO t VALUES (6)").await;
    let rows = shown(&fetch(&mut client, info).await.unwrap());
    assert!(rows.contains("| 1 | 2 |"), "{rows}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_is_told_of_temporary_objects_too() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE TABLE hidden AS SELECT 1 AS stored").await;
    update(&mut client, "CREATE TEMP TABLE hidden AS SELECT 1 AS mine").await;
    update(&mut client, "CREATE TEMP TABLE more AS SELECT 1 AS x").await;
    let mut told = async |sql: &str| {
        let info = flight(&mut client, sql).await;
        shown(&fetch(&mut client, info).await.unwrap())
    };
    let described = told("DESCRIBE hidden").await;
    assert!(described.contains("mine") && !described.contains("stored"), "{described}");
    for sql in ["SHOW TABLES", "SELECT table_name FROM information_schema.tables", "DESCRIBE more"] {
        assert!(told(sql).await.contains(if sql == "DESCRIBE more" { "x" } else { "more" }), "{sql}");
    }
    let columns = "SELECT column_name FROM information_schema.columns WHERE table_name = 'hidden'";
    assert!(told(columns).await.contains("mine"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_endpoint_is_as_good() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE TABLE t AS SELECT 1 AS x").await;
    let mut raw = house.raw().await;
    let flight = info(&mut raw, "SELECT x FROM t").await;
    let hours = |hours: i64| house.clock.advance(hours * 3_600_000_000);
    let until = |endpoint: &FlightEndpoint| endpoint.expiration_time.unwrap().seconds;
    assert_eq!(until(&flight.endpoint[0]), START_US / 1_000_000 + 24 * 3_600);
    hours(1);
    let renew = RenewFlightEndpointRequest { endpoint: Some(flight.endpoint[0].clone()) };
    let (answers, _) = act(&mut raw, "RenewFlightEndpoint", renew.encode_to_vec()).await.unwrap();
    let endpoint = FlightEndpoint::decode(answers[0].clone()).unwrap();
    assert_eq!(until(&endpoint), until(&flight.endpoint[0]) + 3_600);
    update(&mut client, "INSERT INTO t VALUES (2)").await;
    house.clock.advance(23 * 3_600_000_000 + 1); // the first is over, and the other is not
    assert!(fetch(&mut client, flight.clone()).await.unwrap_err().to_string().contains("is over"));
    let renewed = FlightInfo { endpoint: vec![endpoint], ..flight };
    assert!(
        shown(&fetch(&mut client, renewed).await.unwrap()).ends_with("| 1 |\n+---+"),
        "as of the same moment"
    );
    let forged = FlightEndpoint::new().with_ticket(arrow_flight::Ticket::new("forged"));
    let forged = RenewFlightEndpointRequest { endpoint: Some(forged) }.encode_to_vec();
    let refused = act(&mut raw, "RenewFlightEndpoint", forged).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporary_table_does_not_stand_in_for_a_ticket_s_table() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE TABLE t AS SELECT 1 AS x").await;
    let flight = info(&mut house.raw().await, "SELECT x FROM t").await;
    update(&mut client, "CREATE TEMP TABLE t AS SELECT 9 AS x").await;
    assert!(shown(&fetch(&mut client, flight).await.unwrap()).ends_with("| 1 |\n+---+"));
}
