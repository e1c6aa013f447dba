//! Idempotency keys on the wire: a header of each call that writes.

use arrow_flight::sql::{TableExistsOption as Exists, TableNotExistOption as NotExist};
use tonic::Code;

use crate::flight::{Client, House, batch, ids, ingest, numbers, put, status, update};

const HEADER: &str = "fletching-idempotency-key";

async fn with_key(house: &House, key: &str) -> Client {
    let mut client = house.client().await;
    client.set_header(HEADER, key);
    client
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_names_the_write_of_a_call() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE TABLE t (x BIGINT)").await;
    let (insert, count) = ("INSERT INTO t VALUES (1), (2)", "SELECT count(*) FROM t");

    // By DoPut and by GetFlightInfo, over any connection.
    for _ in 0..2 {
        let mut keyed = with_key(&house, "insert").await;
        assert_eq!(update(&mut keyed, insert).await, 2);
        assert_eq!(keyed.execute(insert.to_owned(), None).await.unwrap().total_records, 2);
        assert_eq!(numbers(&mut keyed, count).await, [2], "a query does not mind it");
    }
    assert_eq!(update(&mut client, insert).await, 2);
    assert_eq!(numbers(&mut client, count).await, [4], "without a header it is another write");

    // Bulk ingest in every mode that could add rows twice.
    for (table, exists, rows) in
        [("t", Exists::Append, 10), ("new", Exists::Fail, 6), ("newer", Exists::Append, 6)]
    {
        for _ in 0..3 {
            let command = ingest(table, exists, NotExist::Create);
            assert_eq!(put(&mut with_key(&house, "ingest").await, command, 3).await.unwrap(), 6);
            let count = format!("SELECT count(*) FROM {table}");
            assert_eq!(numbers(&mut client, &count).await, [rows], "{table}");
        }
    }
    let command = ingest("t", Exists::Append, NotExist::Fail);
    let other = status(put(&mut with_key(&house, "ingest").await, command, 50).await.unwrap_err());
    assert_eq!(other.code(), Code::InvalidArgument);
    assert!(other.message().contains("an earlier write of 6 rows, and these are 100"), "{other}");

    for (key, words) in [("two words", "1 to 128 letters"), (&"k".repeat(129), "1 to 128 letters")] {
        let mut client = with_key(&house, key).await;
        let refused = client.execute(insert.to_owned(), None).await.unwrap_err().to_string();
        assert!(refused.contains(words), "{refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_batch_lands_once() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE TABLE t (x BIGINT)").await;
    for (sql, rows) in [("INSERT INTO t VALUES (?)", 3), ("INSERT INTO t SELECT ? + 1000", 600)] {
        for _ in 0..2 {
            update(&mut client, "SET idempotency_key = 'batch'").await;
            let mut insert = client.prepare(sql.into(), None).await.unwrap();
            insert.set_parameters(batch(vec![("0", ids(0..rows))])).unwrap();
            assert_eq!(insert.execute_update().await.unwrap(), rows, "{sql}");
        }
        let count = "SELECT count(*) + count(DISTINCT x) FROM t";
        assert_eq!(numbers(&mut client, count).await, [2 * rows], "{sql}");
        update(&mut client, "DROP TABLE t").await;
        update(&mut client, "CREATE TABLE t (x BIGINT)").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_with_one_key_write_once() {
    let house = House::open().await;
    let mut client = house.client().await;
    update(&mut client, "CREATE TABLE t (x BIGINT)").await;
    let writes = (0..6).map(|_| async {
        let command = ingest("t", Exists::Append, NotExist::Fail);
        put(&mut with_key(&house, "one").await, command, 50).await.unwrap()
    });
    assert_eq!(futures::future::join_all(writes).await, [100; 6]);
    assert_eq!(numbers(&mut client, "SELECT count(*) FROM t").await, [100]);
}
