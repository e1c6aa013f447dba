//! `fletching sql`: a shell, and a one-shot client. It knows the server by the wire only, like any other client.

mod client;
mod connect;
mod describe;
mod output;
mod progress;
mod repl;
mod session;
mod split;
mod table;

use std::io::{self, IsTerminal, Read};
use std::path::Path;

use crate::config::SqlArgs;
use crate::error::{Error, Result};
use client::Client;
use connect::Server;
use session::{Next, Session};
use split::Item;

/// Runs what `args` says: the script of `-c` or `-f`, what standard input holds, or a shell on a terminal.
///
/// # Errors
/// The first statement's that fails, with the server's message. A closed standard output is no error.
pub async fn run(args: SqlArgs) -> Result<()> {
    let script = match (&args.command, &args.file) {
        (Some(sql), _) => Some(sql.clone()),
        (None, Some(path)) => Some(read_script(path)?),
        (None, None) if io::stdin().is_terminal() => None,
        (None, None) => Some(read_script(Path::new("-"))?),
    };
    let script = script.as_deref().map(split::all).transpose()?;
    let server = Server::of(&args.url, args.credentials)?;
    let client = Client::connect(server).await?;
    match script {
        Some(items) => run_script(Session::new(client, args.format, false), &items).await,
        None => repl::run(Session::new(client, args.format, true), &args.url).await,
    }
}

async fn run_script(mut session: Session, items: &[Item]) -> Result<()> {
    for item in items {
        match session.run(item).await {
            Ok(Next::GoOn) => {}
            Ok(Next::Leave) | Err(Failure::OutputClosed) => break,
            Err(Failure::Error(error)) => return Err(error),
        }
    }
    Ok(())
}

fn read_script(path: &Path) -> Result<String> {
    let text = if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(path)
    };
    text.map_err(|error| Error::invalid(format!("cannot read {}: {error}", path.display())))
}

/// Why a statement did not get to its end.
enum Failure {
    /// Nobody reads standard output any more.
    OutputClosed,
    Error(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::Error(Error::unavailable(format!("cannot write the output: {error}"))),
        }
    }
}
