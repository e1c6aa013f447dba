//! The load generator: callers that wait for each answer, or calls at a fixed rate, come what may.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use futures::future::try_join_all;
use serde_json::Value;
use tokio::runtime::Handle;

use crate::Failure;
use crate::calls::{Caller, Target};
use crate::record::{Record, Window};

/// A server that refuses everything is not to be asked as fast as it can refuse.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(1);
/// How long calls wait to begin together.
const TICK: Duration = Duration::from_micros(500);

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
    #[arg(long)]
    rate: Option<f64>,
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

/// Calls are due `rate` times a second, spaced evenly, and begin a tick late at the most, unless all callers are busy.
/// Latencies count from when a call was due: that a slow server is asked less often does not flatter it.
async fn open_loop(callers: Vec<Caller>, window: Window, rate: f64) -> Result<Vec<Caller>, Failure> {
    let (sender, idle) = mpsc::channel();
    let count = callers.len();
    for caller in callers {
        sender.send(Ok(caller))?;
    }
    let runtime = Handle::current();
    // Tokio's timers tick every millisecond. A thread could sleep for each call, and take a good part of the machine for it.
    let pacer = thread::spawn(move || -> Result<Vec<Caller>, Failure> {
        let start = Instant::now();
        for number in 0_u32.. {
            let due = start + Duration::from_secs_f64(f64::from(number) / rate);
            if due >= window.until {
                break;
            }
            let now = Instant::now();
            if due > now {
                thread::sleep(due.max(now + TICK) - now);
            }
            let mut caller: Caller = idle.recv()??;
            let sender = sender.clone();
            runtime.spawn(async move {
                let called = call(&mut caller, due).await;
                // Nobody waits for it only when another caller has failed.
                let _ = sender.send(called.map(|()| caller));
            });
        }
        (0..count).map(|_| idle.recv()?).collect()
    });
    tokio::task::spawn_blocking(|| pacer.join()).await?.map_err(|_| "the pacer panicked")?
}
