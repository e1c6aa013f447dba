//! The shell on a terminal: lines become statements at their semicolon.

use std::io::{self, Write};
use std::path::PathBuf;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use super::Failure;
use super::session::{Next, Session};
use super::split::{Split, split};
use crate::error::{Error, Result};

struct Shell {
    session: Session,
    /// Lines of a statement that has not ended.
    pending: String,
}

pub(super) async fn run(session: Session, url: &str) -> Result<()> {
    let broken = |error: ReadlineError| Error::unavailable(format!("cannot read the terminal: {error}"));
    let mut editor = DefaultEditor::new().map_err(broken)?;
    let history = std::env::home_dir().map(|home| home.join(".fletching_history"));
    if let Some(path) = &history {
        let _ = editor.load_history(path); // there is none the first time
    }
    say(&format!("connected to {url}; \\? for help, \\q to leave\n"));
    let mut shell = Shell { session, pending: String::new() };
    loop {
        let prompt = if shell.pending.is_empty() { "fletching> " } else { "        -> " };
        match tokio::task::block_in_place(|| editor.readline(prompt)) {
            Ok(line) => {
                remember(&mut editor, history.as_ref(), &line);
                if matches!(shell.take(&line).await, Next::Leave) {
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
    /// Runs what `line` completes. A failure ends its statement and not the session; Ctrl-C ends what was left of
    /// the line, too.
    async fn take(&mut self, line: &str) -> Next {
        self.pending.push_str(line);
        self.pending.push('\n');
        // A text that ends within a string goes on in the next line.
        let Ok(Split { complete, rest }) = split(&self.pending) else { return Next::GoOn };
        self.pending = if rest.is_empty() { rest } else { rest + "\n" };
        for item in complete {
            let done = tokio::select! {
                done = self.session.run(&item) => done,
                // Leaving the call drops its stream, at which the server stops the query.
                _ = tokio::signal::ctrl_c() => {
                    self.pending.clear();
                    let _ = writeln!(io::stderr(), "cancelled");
                    return Next::GoOn;
                }
            };
            match done {
                Ok(Next::GoOn) => {}
                Ok(Next::Leave) | Err(Failure::OutputClosed) => return Next::Leave,
                Err(Failure::Error(error)) => {
                    let _ = writeln!(io::stderr(), "error: {error}");
                }
            }
        }
        Next::GoOn
    }
}
