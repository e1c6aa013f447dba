//! A PostgreSQL server of the test's own: on a free port, in a directory of its own, gone when it is dropped.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// PostgreSQL does not run as root: there, it runs as nobody.
const NOBODY: u32 = 65_534;

pub(crate) const PASSWORD: &str = "not-for-logs";

pub(crate) struct PostgresServer {
    child: Child,
    port: u16,
    settings: Vec<String>,
    directory: TempDir,
}

// Each test binary that includes this file uses a part of it.
#[allow(dead_code)]
impl PostgresServer {
    /// A server that answers, and asks for a password.
    ///
    /// # Panics
    /// When PostgreSQL is not installed.
    pub(crate) fn start() -> Self {
        Self::start_with(&[], &[])
    }

    /// The same with `settings` beside its own, and with files of its data directory.
    pub(crate) fn start_with(settings: &[&str], files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("there is room for temporary files");
        let password = directory.path().join("password");
        fs::write(&password, PASSWORD).expect("it is our directory");
        let data = directory.path().join("data");
        give_away(directory.path());
        give_away(&password);
        let made = tool("initdb", directory.path())
            .args(["--username=fletching", "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"])
            .args(["--no-sync", "--no-instructions", "--pwfile"])
            .args([&password, Path::new("-D"), &data])
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        for (name, text) in files {
            let path = data.join(name);
            fs::write(&path, text).expect("it is our directory");
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))
                .expect("it is our file");
            give_away(&path);
        }
        let settings: Vec<String> = settings.iter().map(|setting| (*setting).to_owned()).collect();
        for _ in 0..10 {
            let port = free_port();
            if let Some(child) = spawn(port, &settings, directory.path()) {
                return Self { child, port, settings, directory };
            }
        }
        panic!("no PostgreSQL came up on any of ten free ports");
    }

    pub(crate) fn url(&self) -> String {
        format!("postgresql://fletching:{PASSWORD}@127.0.0.1:{}/postgres", self.port)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends it at once, connections and all; what was committed stays.
    pub(crate) fn stop(&mut self) {
        self.signal("QUIT");
        self.child.wait().expect("it is our child");
    }

    /// Starts it again after [`Self::stop`].
    pub(crate) fn start_again(&mut self) {
        self.child =
            spawn(self.port, &self.settings, self.directory.path()).expect("the port was free before");
    }

    /// Keeps it from running, as an overloaded machine would: connections are taken, and nobody answers.
    pub(crate) fn pause(&self) {
        self.signal_all("STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal_all("CONT");
    }

    fn signal(&self, name: &str) {
        run(&format!("kill -{name} {}", self.child.id()));
    }

    /// The server, and its processes for connections, which are its children and may end meanwhile.
    fn signal_all(&self, name: &str) {
        let id = self.child.id();
        self.signal(name);
        run(&format!(
            "for child in $(cat /proc/{id}/task/*/children); do kill -{name} $child 2>/dev/null || :; done"
        ));
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.resume();
            self.signal("QUIT");
        }
        let _ = self.child.wait();
    }
}

fn run(command: &str) {
    assert!(
        Command::new("sh").args(["-c", command]).status().expect("there is a shell").success(),
        "{command}"
    );
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|of_process| of_process.uid() == 0)
}

fn give_away(path: &Path) {
    if is_root() {
        chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
}

/// A program of PostgreSQL, of the newest version that is installed.
fn tool(name: &str, directory: &Path) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut installed: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| {
            let number = version.file_name().to_str()?.parse().ok()?;
            Some((number, version.path().join("bin").join(name)))
        })
        .filter(|(_, program)| program.exists())
        .collect();
    installed.sort();
    // Elsewhere than on Debian it is in the PATH.
    let program = installed.pop().map_or_else(|| PathBuf::from(name), |(_, program)| program);
    let mut command = Command::new(program);
    command.current_dir(directory).stdin(Stdio::null());
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("loopback has a free port").port()
}

/// `None` when it ended before it was ready, as it does when somebody else took the port.
fn spawn(port: u16, settings: &[String], directory: &Path) -> Option<Child> {
    let mut command = tool("postgres", directory);
    command.arg("-D").arg(directory.join("data")).args([
        "-p",
        &port.to_string(),
        "-h",
        "127.0.0.1",
        "-k",
        "",
    ]);
    // Nothing here outlives the machine.
    for setting in ["fsync=off", "shared_buffers=16MB", "logging_collector=off"] {
        command.args(["-c", setting]);
    }
    for setting in settings {
        command.args(["-c", setting]);
    }
    let spawned = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.expect("PostgreSQL is needed to run these tests: apt-get install postgresql");
    let mut lines = BufReader::new(child.stderr.take().expect("it was asked for")).lines();
    let ready = "ready to accept connections";
    if !lines.by_ref().map_while(Result::ok).any(|line| line.contains(ready)) {
        let _ = child.wait();
        return None;
    }
    // Its pipe must not fill up, nor break.
    std::thread::spawn(move || lines.for_each(drop));
    Some(child)
}
