//! Runs every `tests/slt/**/*.slt` twice: in process, and over Flight SQL against a server in this process.
//!
//! Each file starts with an empty data directory and a clock that stands at 2026-01-31T00:00:00Z. A statement that is
//! only a comment speaks to the harness instead of the engine:
//!
//! ```text
//! statement ok
//! -- clock: 2026-02-01T00:00:00Z     sets the clock
//!
//! statement ok
//! -- restart                         stops everything and starts again on the same data directory
//! ```
//!
//! `SLT=asof/ cargo test --test it slt` runs the files whose path contains `asof/`; with `SLT_UPDATE=1` it writes what
//! came out in process into the files, for a person to read before believing it.

mod connection;
mod format;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use sqllogictest::{Runner, default_normalizer, default_validator, strict_column_validator};

use connection::{Connection, Failure, Node, Way};

const FILES_AT_A_TIME: usize = 4;

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "slt") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Runs one file; what went wrong, if anything did.
async fn run(file: &Path, way: Way) -> Result<(), String> {
    let node = Arc::new(Node::start(way).await.map_err(|error| error.to_string())?);
    let mut runner = Runner::new(|| {
        let node = Arc::clone(&node);
        async move { Ok::<_, Failure>(Connection::new(node)) }
    });
    runner.add_label(way.label());
    runner.with_column_validator(strict_column_validator);
    let outcome = if std::env::var_os("SLT_UPDATE").is_some() && way == Way::InProcess {
        runner
            .update_test_file(file, " ", default_validator, default_normalizer, strict_column_validator)
            .await
            .map_err(|error| error.to_string())
    } else {
        runner.run_file_async(file).await.map_err(|error| error.display(false).to_string())
    };
    drop(runner);
    node.stop().await;
    outcome
}

async fn run_all(way: Way) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/slt");
    let wanted = std::env::var("SLT").unwrap_or_default();
    let files: Vec<PathBuf> =
        files(&folder).into_iter().filter(|file| file.to_string_lossy().contains(&wanted)).collect();
    assert!(!files.is_empty(), "no slt file's path contains {wanted:?}");
    let total = files.len();
    let failures: Vec<String> = futures::stream::iter(files)
        .map(|file| async move {
            // a task of its own, so that a panic fails one file and the others still run
            let task = tokio::spawn({
                let file = file.clone();
                async move { run(&file, way).await }
            });
            let outcome = task.await.unwrap_or_else(|panic| Err(panic.to_string()));
            outcome.err().map(|error| format!("{}\n{error}", file.display()))
        })
        .buffer_unordered(FILES_AT_A_TIME)
        .filter_map(std::future::ready)
        .collect()
        .await;
    println!("{total} slt files {}, {} failed", way.label(), failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn slt_in_process() {
    run_all(Way::InProcess).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slt_over_flight() {
    run_all(Way::OverFlight).await;
}
