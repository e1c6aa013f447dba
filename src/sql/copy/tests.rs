use std::fs::File;
use std::path::Path;

use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampNanosecondArray};
use parquet::arrow::ArrowWriter;

use super::*;
use crate::error::ErrorKind;
use crate::sql::session::tests::{engine, table};

const GROUP: &str =
    "CREATE FEATURE GROUP g (k BIGINT, at TIMESTAMP, v VARCHAR, ENTITY KEY (k), EVENT TIME (at))";
const HOUR_NS: i64 = 3_600_000_000_000;

/// Rows of `k`, hours since 1970 and, under a name in other case, `v`: as pandas writes them, in nanoseconds.
fn write(path: &Path, rows: &[(i64, i64, &str)]) {
    let column = |array: ArrayRef| array;
    let batch = RecordBatch::try_from_iter([
        ("V", column(Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.2))))),
        ("at", column(Arc::new(TimestampNanosecondArray::from_iter_values(rows.iter().map(|row| row.1))))),
        ("k", column(Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.0))))),
    ])
    .unwrap();
    let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// The data files that are there, named by a snapshot or not.
fn data_files(path: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(path) else { return 0 };
    let count = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let is_data = path.extension().is_some_and(|extension| extension == "parquet");
        if path.is_dir() { data_files(&path) } else { usize::from(is_data) }
    };
    entries.map(count).sum()
}

#[tokio::test]
async fn parquet_files_come_in_by_name_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update(GROUP, None).await.unwrap();
    write(&dir.path().join("b.parquet"), &[(1, HOUR_NS, "later"), (2, HOUR_NS, "two")]);
    write(&dir.path().join("a.parquet"), &[(1, HOUR_NS, "earlier")]);
    let copied = session.update("COPY g FROM '*.parquet'", None).await.unwrap();
    assert_eq!(copied, 3);
    let absolute = dir.path().canonicalize().unwrap().join("a.parquet");
    let copied = session.update(&format!("COPY g (k, at) FROM 'file://{}'", absolute.display()), None).await;
    assert_eq!(copied.unwrap(), 1);
    let rows =
        table(&session, "SELECT k, v, _sequence FROM \"g$history\" ORDER BY _ingested_at, _sequence").await;
    let values: Vec<&str> = rows.lines().skip(3).collect();
    assert_eq!(values[0], "| 1 | earlier | 0         |", "{rows}");
    assert_eq!(values[1], "| 1 | later   | 1         |", "{rows}");
    assert_eq!(values[3], "| 1 |         | 0         |", "{rows}");
}

#[tokio::test]
async fn the_same_files_come_in_once_under_the_key_that_they_make() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update(GROUP, None).await.unwrap();
    let copy = "COPY g FROM '*.parquet' (IDEMPOTENCY_KEY auto)";
    let count = async || table(&session, "SELECT count(*) AS n FROM \"g$history\"").await;
    write(&dir.path().join("a.parquet"), &[(1, HOUR_NS, "one")]);
    for _ in 0..3 {
        assert_eq!(session.update(copy, None).await.unwrap(), 1);
    }
    assert!(count().await.contains("| 1 "));
    write(&dir.path().join("b.parquet"), &[(2, HOUR_NS, "two")]);
    assert_eq!(session.update(copy, None).await.unwrap(), 2, "these are other files");
    assert!(count().await.contains("| 3 "));
    for _ in 0..2 {
        let given = "COPY g FROM 'a.parquet' WITH (IDEMPOTENCY_KEY 'of-mine')";
        assert_eq!(session.update(given, None).await.unwrap(), 1);
    }
    assert!(count().await.contains("| 4 "));
    let error = session.update("COPY g FROM 'a.parquet' (IDEMPOTENCY_KEY 'no key')", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn a_file_that_does_not_fit_leaves_nothing_of_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let session = engine(dir.path()).await.session();
    session.update(GROUP, None).await.unwrap();
    write(&dir.path().join("a.parquet"), &[(1, HOUR_NS, "fits")]);
    write(&dir.path().join("b.parquet"), &[(2, HOUR_NS + 1, "does not")]);
    let error = session.update("COPY g FROM '*.parquet'", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("b.parquet") && error.to_string().contains("without loss"), "{error}");
    let bytes = std::fs::read(dir.path().join("a.parquet")).unwrap();
    std::fs::write(dir.path().join("b.parquet"), &bytes[..bytes.len() / 2]).unwrap();
    let error = session.update("COPY g FROM '*.parquet'", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
    assert!(error.to_string().contains("b.parquet' cannot be read as parquet"), "{error}");
    assert!(table(&session, "SELECT count(*) FROM g").await.contains("| 0 "));
    assert_eq!(data_files(&dir.path().join("warehouse")), 0);
}

#[cfg(unix)]
#[tokio::test]
async fn links_lead_nowhere_else() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let session = engine(dir.path()).await.session();
    session.update(GROUP, None).await.unwrap();
    write(&other.path().join("a.parquet"), &[(1, HOUR_NS, "elsewhere")]);
    std::os::unix::fs::symlink(other.path().join("a.parquet"), dir.path().join("link.parquet")).unwrap();
    std::os::unix::fs::symlink(other.path(), dir.path().join("links")).unwrap();
    for source in ["link.parquet", "*.parquet", "links", "links/a.parquet", "links/*"] {
        let error = session.update(&format!("COPY g FROM '{source}'"), None).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{source}: {error}");
        assert!(error.message().contains("may not read"), "{source}: {error}");
    }
}

#[test]
fn who_allows_no_directory_allows_no_file() {
    let none = CopyDirectories::default();
    for source in ["/etc/passwd", "a.csv", "file:///etc/passwd"] {
        let error = none.files(source, &statement::Options::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.message().contains("--copy-from"), "{error}");
    }
    let error = CopyDirectories::new(&["/nowhere/at/all".into()]).unwrap_err();
    assert!(error.message().starts_with("copy_from: '/nowhere/at/all'"), "{error}");
}

#[tokio::test]
async fn cancelled_it_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let engine = engine(dir.path()).await;
    let session = engine.session();
    session.update(GROUP, None).await.unwrap();
    let rows: Vec<_> = (0..50_000).map(|k| (k, HOUR_NS, "value")).collect();
    write(&dir.path().join("a.parquet"), &rows);
    // As many files as keep it busy until it is told to end.
    for copy in 0..200 {
        std::fs::copy(dir.path().join("a.parquet"), dir.path().join(format!("{copy}.parquet"))).unwrap();
    }
    let copying = tokio::spawn(async move { session.update("COPY g FROM '*.parquet'", None).await });
    let watcher = engine.session();
    let id = loop {
        let running = "SELECT query_id FROM system.queries WHERE sql LIKE 'COPY%' AND rows > 100000";
        let shown = table(&watcher, running).await;
        match shown.lines().nth(3) {
            Some(line) if shown.lines().count() > 4 => break line.trim_matches(['|', ' ']).to_owned(),
            _ => tokio::task::yield_now().await,
        }
        assert!(!copying.is_finished(), "it ended before it was told to");
    };
    watcher.update(&format!("KILL QUERY '{id}'"), None).await.unwrap();
    assert_eq!(copying.await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    while data_files(&dir.path().join("warehouse")) > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(table(&watcher, "SELECT count(*) FROM g").await.contains("| 0 "));
}
