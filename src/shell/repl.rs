//! The shell on a terminal: lines become statements at their semicolon; a line that begins with a backslash is a
//! command to the shell.

use std::io::{self, Write};
use std::path::PathBuf;

use arrow::array::RecordBatch;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::client::Client;
use super::split::{Split, split};
use super::{Failure, describe, execute, output};
use crate::config::OutputFormat;
use crate::error::{Error, Result};

const HELP: &str = "\
statements end with a semicolon
\\d          tables, feature groups and views
\\dS         those of the system too
\\d NAME     columns of a table
\\dt         the same as \\d
\\timing     show times, or stop to
\\?          this
\\q          leave
";

struct Shell {
    client: Client,
    format: OutputFormat,
    timed: bool,
    /// Lines of a statement that has not ended.
    pending: String,
}

/// Whether the shell goes on.
enum Next {
    Prompt,
    Leave,
}

pub(super) async fn run(client: Client, url: &str, format: OutputFormat) -> Result<()> {
    let broken = |error: ReadlineError| Error::unavailable(format!("cannot read the terminal: {error}"));
    let mut editor = DefaultEditor::new().map_err(broken)?;
    let history = std::env::home_dir().map(|home| home.join(".fletching_history"));
    if let Some(path) = &history {
        let _ = editor.load_history(path); // there is none the first time
    }
    say(&format!("connected to {url}; \\? for help, \\q to leave\n"));
    let mut shell = Shell { client, format, timed: true, pending: String::new() };
    loop {
        let prompt = if shell.pending.is_empty() { "fletching> " } else { "        -> " };
        match tokio::task::block_in_place(|| editor.readline(prompt)) {
            Ok(line) => {
                let next = shell.take(&line).await;
                remember(&mut editor, history.as_ref(), &line);
                if matches!(next, Next::Leave) {
                    return Ok(());
                }
            }
            Err(ReadlineError::Interrupted) => shell.pending.clear(),
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(broken(error)),
        }
    }
}

/// A history that cannot be kept is no reason to bother anybody.
fn remember(editor: &mut DefaultEditor, history: Option<&PathBuf>, line: &str) {
    if line.trim().is_empty() {
        return;
    }
    let _ = editor.add_history_entry(line);
    if let Some(path) = history {
        let _ = editor.save_history(path);
    }
}

fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
    let _ = io::stdout().flush();
}

impl Shell {
    async fn take(&mut self, line: &str) -> Next {
        let result = match line.trim().strip_prefix('\\') {
            Some(command) if self.pending.is_empty() => self.command(command).await,
            _ => self.statements(line).await,
        };
        match result {
            Ok(next) => next,
            Err(Failure::OutputClosed) => Next::Leave,
            Err(Failure::Error(error)) => {
                let _ = writeln!(io::stderr(), "error: {error}");
                Next::Prompt
            }
        }
    }

    async fn statements(&mut self, line: &str) -> Result<Next, Failure> {
        self.pending.push_str(line);
        self.pending.push('\n');
        // A text that ends within a string goes on in the next line.
        let Ok(Split { complete, rest }) = split(&self.pending) else { return Ok(Next::Prompt) };
        self.pending = if rest.is_empty() { rest } else { rest + "\n" };
        for sql in complete {
            tokio::select! {
                done = execute(&mut self.client, &sql, self.format, self.timed) => done?,
                // Leaving the call drops its stream, at which the server stops the query.
                _ = tokio::signal::ctrl_c() => return Err(Error::cancelled("cancelled").into()),
            }
        }
        Ok(Next::Prompt)
    }

    async fn command(&mut self, command: &str) -> Result<Next, Failure> {
        let (name, argument) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        match (name, argument.trim().trim_end_matches(';')) {
            ("q" | "quit", _) => return Ok(Next::Leave),
            ("?" | "h" | "help", _) => say(HELP),
            ("timing", _) => {
                self.timed = !self.timed;
                say(if self.timed { "times are shown\n" } else { "times are not shown\n" });
            }
            ("d" | "dt", "") => show(&describe::tables(&mut self.client, false).await?)?,
            ("dS", "") => show(&describe::tables(&mut self.client, true).await?)?,
            ("d" | "dt", table) => show(&describe::columns(&mut self.client, table).await?)?,
            (other, _) => {
                return Err(Error::invalid(format!("there is no command \\{other}; \\? lists them")).into());
            }
        }
        Ok(Next::Prompt)
    }
}

fn show(batch: &RecordBatch) -> Result<(), Failure> {
    let mut writer = output::Writer::new(OutputFormat::Table, &batch.schema(), io::stdout());
    writer.write(batch)?;
    writer.finish(None)
}
