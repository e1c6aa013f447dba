//! What happened: how many calls, how long each took, and what went wrong.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::Failure;

const SIGNIFICANT_DIGITS: u8 = 3;

/// The time in which calls count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// Caches are warm from here on.
    from: Instant,
    /// No call begins any more.
    pub(crate) until: Instant,
}

impl Window {
    pub(crate) fn starting_now(warm_up_seconds: f64, seconds: f64) -> Self {
        let from = Instant::now() + Duration::from_secs_f64(warm_up_seconds);
        Self { from, until: from + Duration::from_secs_f64(seconds) }
    }

    fn seconds(self) -> f64 {
        (self.until - self.from).as_secs_f64()
    }
}

/// Calls that ended in the window; latencies in µs.
#[derive(Debug)]
pub(crate) struct Record {
    window: Window,
    latencies: Histogram<u32>,
    errors: u64,
    first_error: Option<String>,
    /// Calls that began in the window and ended behind it: a rate may leave them out, percentiles may not.
    late: u64,
}

impl Record {
    pub(crate) fn new(window: Window) -> Result<Self, Failure> {
        let latencies = Histogram::new(SIGNIFICANT_DIGITS)?;
        Ok(Self { window, latencies, errors: 0, first_error: None, late: 0 })
    }

    /// A call that began, or was meant to begin, at `started` and has just ended.
    pub(crate) fn ended(&mut self, started: Instant, result: Result<(), Failure>) -> Result<(), Failure> {
        let now = Instant::now();
        match result {
            // Wrong is wrong, warm or not.
            Err(error) => {
                self.errors += 1;
                self.first_error.get_or_insert_with(|| error.to_string());
            }
            Ok(()) if now >= self.window.from && started < self.window.until => {
                self.latencies.record((now - started).as_micros() as u64)?;
                self.late += u64::from(now > self.window.until);
            }
            Ok(()) => {}
        }
        Ok(())
    }

    pub(crate) fn errors(&self) -> u64 {
        self.errors
    }

    pub(crate) fn add(&mut self, other: Self) -> Result<(), Failure> {
        self.latencies.add(other.latencies)?;
        self.errors += other.errors;
        self.late += other.late;
        self.first_error = self.first_error.take().or(other.first_error);
        Ok(())
    }

    /// In the words that `serving.py` reads; `keys` is how many a call asks for.
    pub(crate) fn to_json(&self, keys: usize) -> Value {
        let per_second = (self.latencies.len() - self.late) as f64 / self.window.seconds();
        let ms = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        json!({
            "calls": self.latencies.len(),
            "calls_per_second": per_second,
            "keys_per_second": per_second * keys as f64,
            "p50_ms": ms(0.5),
            "p90_ms": ms(0.9),
            "p99_ms": ms(0.99),
            "p999_ms": ms(0.999),
            "max_ms": self.latencies.max() as f64 / 1000.0,
            "errors": self.errors,
            "first_error": self.first_error,
        })
    }
}
