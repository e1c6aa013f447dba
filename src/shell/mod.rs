//! `fletching sql`: a shell, and a one-shot client. It knows the server by the wire only, like any other client.

mod client;
mod describe;
mod output;
mod progress;
mod repl;
mod split;
mod table;

use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::time::Instant;

use crate::config::{OutputFormat, SqlArgs};
use crate::error::{Error, Result};
use client::{Answer, Client};
use progress::Progress;

/// Runs what `args` says: the SQL of `-c` or `-f`, what standard input holds, or a shell on a terminal.
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
    let statements = script.as_deref().map(split::all).transpose()?;
    let mut client = Client::connect(&args.url).await?;
    match statements {
        Some(statements) => {
            for sql in statements {
                match execute(&mut client, &sql, args.format, false).await {
                    Err(Failure::OutputClosed) => return Ok(()),
                    other => other.map_err(Failure::into_error)?,
                }
            }
            Ok(())
        }
        None => repl::run(client, &args.url, args.format).await,
    }
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

impl Failure {
    fn into_error(self) -> Error {
        match self {
            Self::OutputClosed => Error::unavailable("standard output was closed"),
            Self::Error(error) => error,
        }
    }
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

/// Runs one statement and writes its result; says how long it took when `timed`.
async fn execute(client: &mut Client, sql: &str, format: OutputFormat, timed: bool) -> Result<(), Failure> {
    let started = Instant::now();
    let mut progress = Progress::start();
    let stdout = io::stdout();
    match progress.watch(client.run(sql)).await? {
        Answer::Affected(rows) => {
            progress.finish();
            if format == OutputFormat::Table {
                let mut out = stdout.lock();
                writeln!(
                    out,
                    "OK{}{}",
                    output::affected(rows),
                    output::elapsed(timed.then(|| started.elapsed()))
                )?;
            }
        }
        Answer::Rows { schema, mut batches } => {
            let mut writer = output::Writer::new(format, &schema, io::BufWriter::new(stdout));
            while let Some(batch) = progress.watch(client::next(&mut batches)).await? {
                progress.rows(batch.num_rows());
                progress.suspend(|| writer.write(&batch))?;
            }
            progress.finish();
            writer.finish(timed.then(|| started.elapsed()))?;
        }
    }
    Ok(())
}
