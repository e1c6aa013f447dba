mod postgres_server;

use std::time::{Duration, Instant};

use futures::future::join_all;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tempfile::TempDir;

use super::sql::{CATALOG_NAME, CREATE};
use super::*;
use crate::error::ErrorKind;
use postgres_server::{PASSWORD, PostgresServer};

/// A catalog of each kind, and what it is in.
pub(in crate::offline) fn places() -> Vec<Place> {
    let sqlite = tempfile::tempdir().unwrap();
    vec![
        Place { location: (&sqlite.path().join("catalog.db")).into(), _sqlite: Some(sqlite), postgres: None },
        postgres(),
    ]
}

pub(in crate::offline) struct Place {
    pub(in crate::offline) location: CatalogLocation,
    _sqlite: Option<TempDir>,
    postgres: Option<PostgresServer>,
}

fn postgres() -> Place {
    let server = PostgresServer::start();
    Place {
        location: CatalogLocation::Postgres(server.url().parse().unwrap()),
        _sqlite: None,
        postgres: Some(server),
    }
}

/// The catalog of a database.
async fn open(place: &Place) -> Result<SqlCatalog> {
    open_at(&place.location).await
}

async fn open_at(location: &CatalogLocation) -> Result<SqlCatalog> {
    match Catalog::open(location).await? {
        Catalog::Sql(catalog) => Ok(catalog),
        Catalog::Rest(_) => unreachable!("no place is a REST server"),
    }
}

fn table(name: &str) -> TableName {
    TableName::new("shop", name)
}

#[tokio::test]
async fn namespaces_and_tables_come_change_and_go() {
    for place in places() {
        let catalog = open(&place).await.unwrap();
        assert!(catalog.create_namespace("shop").await.unwrap());
        assert!(!catalog.create_namespace("shop").await.unwrap());
        assert!(catalog.create_namespace("Zoo").await.unwrap());
        for name in ["b", "ünïcode", "B", "quo'te"] {
            assert!(catalog.insert(&table(name), "one").await.unwrap());
            assert!(!catalog.insert(&table(name), "two").await.unwrap(), "the name is taken");
        }
        let names = |entries: Vec<Entry>| entries.into_iter().map(|e| e.name.name).collect::<Vec<_>>();
        assert_eq!(names(catalog.tables().await.unwrap()), ["B", "b", "quo'te", "ünïcode"]);
        assert!(!catalog.swap(&table("b"), "two", "three").await.unwrap(), "it is not there");
        assert!(catalog.swap(&table("b"), "one", "two").await.unwrap());
        assert_eq!(catalog.metadata_location(&table("b")).await.unwrap().as_deref(), Some("two"));
        assert_eq!(catalog.metadata_location(&table("c")).await.unwrap(), None);
        assert!(!catalog.drop_namespace("shop").await.unwrap(), "it is not empty");
        assert!(!catalog.remove(&table("b"), "one").await.unwrap(), "it changed");
        assert!(catalog.remove(&table("b"), "two").await.unwrap());
        for name in ["ünïcode", "B", "quo'te"] {
            assert!(catalog.remove(&table(name), "one").await.unwrap());
        }
        assert_eq!(catalog.namespaces().await.unwrap(), ["Zoo", "shop"]);
        assert!(catalog.drop_namespace("shop").await.unwrap());
        assert!(!catalog.drop_namespace("shop").await.unwrap());
        assert_eq!(catalog.namespaces().await.unwrap(), ["Zoo"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_open_and_swap_at_once_all_open_and_one_swaps() {
    for place in places() {
        let opened = join_all((0..8).map(|_| open(&place))).await;
        let catalogs: Vec<SqlCatalog> = opened.into_iter().collect::<Result<_>>().unwrap();
        let added = join_all(
            catalogs.iter().map(|catalog| async { catalog.insert(&table("t"), "0").await.unwrap() }),
        );
        assert_eq!(added.await.into_iter().filter(|added| *added).count(), 1);
        for round in 0..20 {
            let (from, to) = (round.to_string(), (round + 1).to_string());
            let swaps =
                catalogs.iter().map(|catalog| async { catalog.swap(&table("t"), &from, &to).await.unwrap() });
            assert_eq!(join_all(swaps).await.into_iter().filter(|swapped| *swapped).count(), 1);
        }
    }
}

#[tokio::test]
async fn the_tables_of_other_engines_are_taken_as_they_are() {
    for place in places() {
        let database = match &place.location {
            CatalogLocation::Sqlite(path) => Database::sqlite(path).await.unwrap(),
            CatalogLocation::Postgres(url) => Database::postgres(url).unwrap(),
            CatalogLocation::Rest(..) => unreachable!("no place is a REST server"),
        };
        // As pyiceberg makes them.
        let without_type = CREATE[0].replace("iceberg_type VARCHAR(5),", "");
        for statement in [without_type.as_str(), CREATE[1]] {
            database.change(statement, &[]).await.unwrap();
        }
        let insert = "INSERT INTO iceberg_tables VALUES ($1, 'shop', 'theirs', 'there', NULL)";
        database.change(insert, &[CATALOG_NAME]).await.unwrap();
        let catalog = open(&place).await.unwrap();
        assert_eq!(catalog.tables().await.unwrap()[0].name, table("theirs"));
        assert!(catalog.insert(&table("ours"), "here").await.unwrap());
        assert!(catalog.swap(&table("theirs"), "there", "here").await.unwrap());
    }
}

#[tokio::test]
async fn names_that_postgresql_does_not_take_are_the_callers_mistake() {
    let place = postgres();
    let catalog = open(&place).await.unwrap();
    for name in ["x".repeat(256), "nul\0".to_owned()] {
        let error = catalog.insert(&table(&name), "here").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        let error = catalog.create_namespace(&name).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    }
}

#[tokio::test]
async fn a_catalog_that_hangs_or_is_gone_is_named_in_time_and_found_again() {
    let mut place = postgres();
    let mut server = place.postgres.take().unwrap();
    let catalog = open(&place).await.unwrap();
    catalog.insert(&table("t"), "0").await.unwrap();
    let said = format!("the catalog at 'postgresql://127.0.0.1:{}/postgres' does not answer", server.port());
    let is_silent = async || {
        let begin = Instant::now();
        // More than there are connections: none stays with one who waits no more.
        let reads =
            join_all((0..20).map(|_| async { catalog.metadata_location(&table("t")).await.unwrap_err() }));
        let swap = async { catalog.swap(&table("t"), "1", "2").await.unwrap_err() };
        let open = async { open(&place).await.unwrap_err() };
        let (mut errors, of_swap, of_open) = tokio::join!(reads, swap, open);
        errors.extend([of_swap, of_open]);
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(error.to_string().starts_with(&said), "{error}");
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
    };
    server.pause();
    is_silent().await;
    server.resume();
    assert_eq!(catalog.metadata_location(&table("t")).await.unwrap().as_deref(), Some("0"));
    server.stop();
    is_silent().await;
    server.start_again();
    assert_eq!(catalog.metadata_location(&table("t")).await.unwrap().as_deref(), Some("0"));
    assert!(catalog.swap(&table("t"), "0", "1").await.unwrap());
}

#[tokio::test]
async fn a_password_is_asked_for_and_never_told() {
    let place = postgres();
    let url = place.postgres.as_ref().unwrap().url();
    let wrong = url.replace(PASSWORD, "hunter2");
    let no_database = url.replace("/postgres", "/nowhere");
    for (url, why) in [(wrong, "password authentication failed"), (no_database, "does not exist")] {
        let error = Catalog::open(&CatalogLocation::Postgres(url.parse().unwrap())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let told = format!("{error} {error:?}");
        assert!(told.contains(why), "{told}");
        assert!(!told.contains("hunter2") && !told.contains(PASSWORD), "{told}");
    }
    let catalog = open(&place).await.unwrap();
    assert!(!format!("{:?}", catalog.database).contains(PASSWORD));
}

#[tokio::test]
async fn tls_to_postgresql_knows_whom_it_speaks_to() {
    let certificate = |name: &str| generate_simple_self_signed([name.to_owned()]).unwrap();
    let CertifiedKey { cert, signing_key } = certificate("localhost");
    let files = [("server.crt", cert.pem()), ("server.key", signing_key.serialize_pem())];
    let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
    let server = PostgresServer::start_with(&["ssl=on"], &files);
    let directory = tempfile::tempdir().unwrap();
    let open = async |of: &str, pem: String| {
        let authority = directory.path().join(of);
        std::fs::write(&authority, pem).unwrap();
        let url = server.url().replace("127.0.0.1", "localhost");
        let url = format!("{url}?sslmode=verify-full&sslrootcert={}", authority.display());
        open_at(&CatalogLocation::Postgres(url.parse().unwrap())).await
    };
    let query = "SELECT CAST(ssl AS TEXT) FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let catalog = open("known", cert.pem()).await.unwrap();
    assert_eq!(catalog.database.rows::<(String,)>(query, &[]).await.unwrap()[0].0, "true");
    let error = open("other", certificate("localhost").cert.pem()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
}
