//! A sign of life on standard error, if that is a terminal and the work takes long.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

/// Shorter work shows nothing.
const PATIENCE: Duration = Duration::from_millis(500);
const TICK: Duration = Duration::from_millis(100);
/// How often the server is asked how far a write is.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// The progress of one statement.
pub(super) struct Progress {
    started: Instant,
    rows: u64,
    visible: bool,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(super) fn start() -> Self {
        Self { started: Instant::now(), rows: 0, visible: io::stderr().is_terminal(), bar: None }
    }

    /// Awaits `work`, and shows the spinner once it has taken too long.
    pub(super) async fn watch<F: Future>(&mut self, work: F) -> F::Output {
        let mut work = std::pin::pin!(work);
        if self.visible && self.bar.is_none() {
            let patience = PATIENCE.saturating_sub(self.started.elapsed());
            if let Ok(done) = tokio::time::timeout(patience, &mut work).await {
                return done;
            }
            self.show();
        }
        work.await
    }

    /// The same for work that another counts the rows of.
    pub(super) async fn watch_counted<F: Future>(
        &mut self,
        work: F,
        mut count: impl AsyncFnMut() -> Option<u64>,
    ) -> F::Output {
        let mut work = std::pin::pin!(work);
        if !self.visible {
            return work.await;
        }
        if let Ok(done) = tokio::time::timeout(PATIENCE, &mut work).await {
            return done;
        }
        self.show();
        let done = loop {
            if let Ok(done) = tokio::time::timeout(ASKED_EVERY, &mut work).await {
                break done;
            }
            let counted = tokio::select! {
                done = &mut work => break done,
                counted = count() => counted,
            };
            self.rows = counted.unwrap_or(self.rows);
            self.rows(0);
        };
        self.rows = 0; // those of the result are counted anew
        done
    }

    /// Counts rows that have come.
    pub(super) fn rows(&mut self, rows: usize) {
        self.rows += rows as u64;
        if let Some(bar) = &self.bar {
            bar.set_message(self.message());
        }
    }

    /// Writes to the same terminal without tearing the spinner.
    pub(super) fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    /// Takes the spinner away.
    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn show(&mut self) {
        let bar = ProgressBar::new_spinner().with_elapsed(self.started.elapsed());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        bar.set_message(self.message());
        bar.enable_steady_tick(TICK);
        self.bar = Some(bar);
    }

    fn message(&self) -> String {
        match self.rows {
            0 => "running".to_owned(),
            1 => "1 row".to_owned(),
            rows => format!("{} rows", HumanCount(rows)),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A duration as people say it: milliseconds, then seconds, then minutes.
pub(super) fn human(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        1..=119 => format!("{:.2} s", duration.as_secs_f64()),
        _ => HumanDuration(duration).to_string(),
    }
}
