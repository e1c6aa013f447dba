//! A Redis server of the test's own: on a free port, holding nothing on disk, gone when it is dropped.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

pub(crate) struct RedisServer {
    child: Child,
    port: u16,
}

// Each test binary that includes this file uses a part of it.
#[allow(dead_code)]
impl RedisServer {
    /// A server that answers.
    ///
    /// # Panics
    /// When redis-server is not installed.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        for _ in 0..10 {
            let port = free_port();
            if let Some(child) = spawn(port, arguments, READY) {
                return Self { child, port };
            }
        }
        panic!("no redis-server came up on any of ten free ports");
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Kills it and starts an empty one in its place.
    pub(crate) fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// Kills it and starts another one in its place.
    pub(crate) fn restart_with(&mut self, arguments: &[&str]) {
        self.stop();
        self.child = spawn(self.port, arguments, READY).expect("the port was free a moment ago");
    }

    /// The same, back before it has loaded what it has on disk.
    pub(crate) fn restart_loading(&mut self, arguments: &[&str]) {
        self.stop();
        self.child =
            spawn(self.port, arguments, "Server initialized").expect("the port was free a moment ago");
    }

    pub(crate) fn stop(&mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it is our child");
    }

    /// Keeps it from running, as an overloaded machine would: connections are taken, and nobody answers.
    pub(crate) fn pause(&self) {
        self.signal("STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().expect("there is a shell").success());
    }

    /// Asks it something, past everything under test.
    pub(crate) fn ask(&self, command: &[&str]) -> ::redis::RedisResult<::redis::Value> {
        self.tell(command.iter().map(|part| part.as_bytes()))
    }

    pub(crate) fn tell<'a>(
        &self,
        command: impl Iterator<Item = &'a [u8]>,
    ) -> ::redis::RedisResult<::redis::Value> {
        let mut connection = ::redis::Client::open(self.url())?.get_connection()?;
        let mut packed = ::redis::Cmd::new();
        command.for_each(|part| {
            packed.arg(part);
        });
        packed.query(&mut connection)
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const READY: &str = "eady to accept connections";

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("loopback has a free port").port()
}

/// `None` when it ended before it said `ready`, as it does when somebody else took the port.
fn spawn(port: u16, arguments: &[&str], ready: &str) -> Option<Child> {
    let mut child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .expect("redis-server is needed to run these tests: apt-get install redis-server");
    let mut lines = BufReader::new(child.stdout.take().expect("it was asked for")).lines();
    let is_ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains(ready));
    if !is_ready {
        let _ = child.wait();
        return None;
    }
    // Its pipe must not fill up, nor break.
    std::thread::spawn(move || lines.for_each(drop));
    Some(child)
}
