//! An S3 server of the test's own, with one bucket and one user: moto's, as the clients' tests have it.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub(crate) const BUCKET: &str = "features";

pub(crate) struct ObjectStorage {
    child: Child,
    port: u16,
    /// Who may read and write the bucket, as environment variables.
    pub(crate) credentials: Vec<(String, String)>,
}

impl Drop for ObjectStorage {
    fn drop(&mut self) {
        // It is done with, however it ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl ObjectStorage {
    /// # Panics
    /// Without the Python environment of tests/clients/requirements-iceberg.txt.
    pub(crate) fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let given = std::env::var_os("ICEBERG_PYTHON").map(PathBuf::from);
        let python = given.unwrap_or_else(|| root.join(".venv-iceberg/bin/python"));
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.unwrap().port();
        let mut command = Command::new(python);
        command.arg(root.join("tests/clients/s3_server.py")).arg(port.to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("Python for the S3 server: make .venv-iceberg/.ready");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).expect("the S3 server says who may use it");
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let credentials = said.as_object().unwrap().iter().map(|(name, value)| (name.clone(), text(value)));
        Self { child, port, credentials: credentials.collect() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}
