//! The load generator: callers that wait for each answer, or calls at a fixed rate, come what may.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use futures::future::{try_join, try_join_all};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::Failure;
use crate::calls::{Caller, Target};
use crate::record::{Record, Window};

/// A server that refuses everything is not to be asked as fast as it can refuse.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(1);
/// Tokio's timers know no less.
const TICK: Duration = Duration::from_millis(1);

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    #[command(flatten)]
    target: Target,
    /// How many call at a time; with --rate, how many calls may be in flight
    #[arg(long, default_value_t = 16)]
    callers: u64,
    /// Connections they share
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Calls per second, whatever becomes of them; latencies count from when a call was meant to begin
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("a rate is a number greater than 0".to_owned()),
    }
}

/// Calls, and says what happened.
pub(crate) async fn run(args: LoadArgs) -> Result<Value, Failure> {
    let target = &args.target;
    let channels = try_join_all((0..args.connections).map(|_| target.server.connect())).await?;
    let window = target.window();
    let mut callers = Vec::new();
    for (seed, channel) in (0..args.callers).zip(channels.iter().cycle()) {
        callers.push(Caller::new(target, channel.clone(), seed, Record::new(window)?));
    }
    let callers = match args.rate {
        None => closed_loop(callers, window).await?,
        Some(rate) => open_loop(callers, window, rate).await?,
    };
    let mut all = Record::new(window)?;
    for caller in callers {
        all.add(caller.record)?;
    }
    Ok(all.to_json(target.keys))
}

/// Each calls again as soon as it has its answer.
async fn closed_loop(callers: Vec<Caller>, window: Window) -> Result<Vec<Caller>, Failure> {
    let calling = callers.into_iter().map(|mut caller| async move {
        tokio::spawn(async move {
            loop {
                let started = Instant::now();
                if started >= window.until {
                    return Ok(caller);
                }
                call(&mut caller, started).await?;
            }
        })
        .await?
    });
    try_join_all(calling).await
}

async fn call(caller: &mut Caller, started: Instant) -> Result<(), Failure> {
    let errors = caller.record.errors();
    caller.call(started).await?;
    if caller.record.errors() > errors {
        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
    }
    Ok(())
}

/// Calls are due `rate` times a second, spaced evenly, and begin with the next tick, or later where all callers are busy.
/// Latencies count from when a call was due: that a slow server is asked less often does not flatter it.
async fn open_loop(callers: Vec<Caller>, window: Window, rate: f64) -> Result<Vec<Caller>, Failure> {
    let (due, begun) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let start = Instant::now();
    let calling = callers.into_iter().map(|mut caller| {
        let (due, begun) = (Arc::clone(&due), Arc::clone(&begun));
        async move {
            tokio::spawn(async move {
                // Closed when nothing more is to begin.
                while let Ok(one) = due.acquire().await {
                    one.forget();
                    let number = begun.fetch_add(1, Ordering::Relaxed);
                    call(&mut caller, start + Duration::from_secs_f64(number as f64 / rate)).await?;
                }
                Ok::<_, Failure>(caller)
            })
            .await?
        }
    });
    let pacing = async {
        let mut ticks = tokio::time::interval(TICK);
        let mut told = 0;
        while Instant::now() < window.until || begun.load(Ordering::Relaxed) < told {
            ticks.tick().await;
            let passed = Instant::now().min(window.until) - start;
            let all = (passed.as_secs_f64() * rate) as usize + 1; // the first at once
            due.add_permits(all - told);
            told = all;
        }
        due.close();
        Ok(())
    };
    Ok(try_join(try_join_all(calling), pacing).await?.0)
}
