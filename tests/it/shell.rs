//! `fletching sql` and `fletching serve` as processes, against a server in this one.

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use fletching::Server;
use fletching::clock::ManualClock;

use crate::support::{START_US, connect, start_server};

async fn server(data: &Path) -> Server {
    start_server(data, Arc::new(ManualClock::new(START_US))).await.unwrap()
}

fn fletching(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fletching"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs `fletching sql` with `input` on its standard input.
fn sql(server: &Server, arguments: &[&str], input: &str) -> Output {
    let url = format!("grpc://{}", server.local_addr());
    let mut child = fletching(&[&["sql", "--url", &url], arguments].concat()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_the_shell_work_in_scripts() {
    let data = tempfile::tempdir().unwrap();
    let server = server(data.path()).await;
    assert_eq!(said(&sql(&server, &["-c", "CREATE TABLE t (a BIGINT, b VARCHAR)"], "")), "OK\n");
    assert_eq!(said(&sql(&server, &["-c", "INSERT INTO t SELECT 1, 'x' WHERE false"], "")), "OK, 0 rows\n");
    assert_eq!(said(&sql(&server, &["-c", "INSERT INTO t VALUES (1, 'x')"], "")), "OK, 1 row\n");

    let tables = said(&sql(&server, &["--format", "csv", "-c", "\\d"], ""));
    assert_eq!(tables, "schema,name,kind\npublic,t,TABLE\n");
    let piped = said(&sql(&server, &["--format", "csv"], "SELECT a FROM t;\n\\d t\nexit\nSELECT 1/0;\n"));
    assert!(piped.starts_with("a\n1\ncolumn,type,null,comment\na,BIGINT,yes,"), "{piped}");
    let file = data.path().join("script.sql");
    std::fs::write(&file, "help\n\\q\nSELECT 1/0").unwrap();
    assert!(said(&sql(&server, &["-f", file.to_str().unwrap()], "")).contains("\\timing"));

    let unknown = sql(&server, &["-c", "\\nonsense"], "");
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&unknown.stderr),
        "error: there is no command \\nonsense; \\? lists them\n"
    );
    server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_reads_as_a_plan() {
    let data = tempfile::tempdir().unwrap();
    let server = server(data.path()).await;
    let plan =
        said(&sql(&server, &["-c", "EXPLAIN SELECT a + 1 FROM (VALUES (1), (2)) AS v (a) LIMIT 1"], ""));
    assert!(!plan.contains("\\n"), "{plan}");
    assert!(plan.lines().any(|line| line.starts_with("               |   ")), "{plan}");
    server.shutdown().await.unwrap();
}

/// A Redis that takes the connection and then says nothing keeps a server that has something to catch up with from
/// serving for as long as its patience lasts.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_still_starting_obeys_sigterm() {
    let data = tempfile::tempdir().unwrap();
    let before = server(data.path()).await;
    let mut client = connect(&before).await;
    for statement in [
        "CREATE FEATURE GROUP g (id BIGINT, at TIMESTAMP, v BIGINT, ENTITY KEY (id), EVENT TIME (at))",
        "INSERT INTO g VALUES (1, '2026-01-01T00:00:00', 1)",
    ] {
        client.execute(statement.to_owned(), None).await.unwrap();
    }
    drop(client);
    before.shutdown().await.unwrap();

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let online = format!("redis://{}", silent.local_addr().unwrap());
    let data = data.path().to_str().unwrap();
    let free = "127.0.0.1:0";
    let addresses = ["--listen", free, "--http-listen", free];
    let settings = ["--data-dir", data, "--online", &online, "--online-timeout", "1h"];
    let child = fletching(&[&["serve"], &addresses[..], &settings].concat()).spawn().unwrap();
    let connection = silent.accept().unwrap(); // it is catching up
    let kill = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(kill.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "it never said that it serves");
    drop(connection);
}
