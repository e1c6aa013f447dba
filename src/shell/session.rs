//! A session with a server: runs statements and the shell's own commands, for scripts and terminals alike.

use std::io::{self, Write};
use std::time::Instant;

use arrow::array::RecordBatch;

use super::client::{Answer, Client, next};
use super::progress::Progress;
use super::split::{Item, changes_rows};
use super::{Failure, describe, output};
use crate::config::OutputFormat;
use crate::error::Error;

const HELP: &str = "\
statements end with a semicolon
\\d          tables, feature groups and views
\\dS         those of the system too
\\d NAME     columns of a table
\\dt         the same as \\d
\\timing     show times, or stop to
\\?, help    this
\\q, exit    leave
";

pub(super) struct Session {
    client: Client,
    format: OutputFormat,
    timed: bool,
}

/// Whether the shell goes on.
pub(super) enum Next {
    GoOn,
    Leave,
}

impl Session {
    /// A session that says how long statements took if `timed`.
    pub(super) fn new(client: Client, format: OutputFormat, timed: bool) -> Self {
        Self { client, format, timed }
    }

    pub(super) async fn run(&mut self, item: &Item) -> Result<Next, Failure> {
        match item {
            Item::Statement(sql) => self.statement(sql).await.map(|()| Next::GoOn),
            Item::Command(command) => self.command(command).await,
        }
    }

    /// Runs one statement and writes its result.
    async fn statement(&mut self, sql: &str) -> Result<(), Failure> {
        let started = Instant::now();
        let took = |timed: bool| timed.then(|| started.elapsed());
        let mut progress = Progress::start();
        let mut stdout = io::stdout();
        let mut beside = self.client.beside();
        let counted = async || beside.rows_so_far(sql).await;
        match progress.watch_counted(self.client.run(sql), counted).await? {
            Answer::Affected(rows) => {
                progress.finish();
                if self.format == OutputFormat::Table {
                    let rows =
                        if rows != 0 || changes_rows(sql) { output::affected(rows) } else { String::new() };
                    writeln!(stdout, "OK{rows}{}", output::elapsed(took(self.timed)))?;
                }
            }
            Answer::Rows { schema, mut batches } => {
                let mut writer = output::Writer::new(self.format, &schema, io::BufWriter::new(stdout));
                while let Some(batch) = progress.watch(next(&mut batches)).await? {
                    progress.rows(batch.num_rows());
                    progress.suspend(|| writer.write(&batch))?;
                    // Rows that are always there must not keep whoever waits for ^C from hearing of it.
                    tokio::task::yield_now().await;
                }
                progress.finish();
                writer.finish(took(self.timed))?;
            }
        }
        Ok(())
    }

    async fn command(&mut self, command: &str) -> Result<Next, Failure> {
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name.trim_end_matches(';'), argument.trim().trim_end_matches(';')) {
            ("q" | "quit", _) => return Ok(Next::Leave),
            ("?" | "h" | "help", _) => io::stdout().write_all(HELP.as_bytes())?,
            ("timing", _) => {
                self.timed = !self.timed;
                let state = if self.timed { "shown" } else { "not shown" };
                writeln!(io::stdout(), "times are {state}")?;
            }
            ("d" | "dt", "") => show(self.format, &describe::tables(&mut self.client, false).await?)?,
            ("dS", "") => show(self.format, &describe::tables(&mut self.client, true).await?)?,
            ("d" | "dt", table) => show(self.format, &describe::columns(&mut self.client, table).await?)?,
            (other, _) => {
                return Err(Error::invalid(format!("there is no command \\{other}; \\? lists them")).into());
            }
        }
        Ok(Next::GoOn)
    }
}

fn show(format: OutputFormat, batch: &RecordBatch) -> Result<(), Failure> {
    let mut writer = output::Writer::new(format, &batch.schema(), io::BufWriter::new(io::stdout()));
    writer.write(batch)?;
    writer.finish(None)
}
