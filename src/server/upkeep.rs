//! What the server does by itself, beside answering.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Settings;
use crate::flight::Sessions;
use crate::sql::Engine;

/// How often the online store is compared with the history that it serves.
const CATCH_UP_INTERVAL: Duration = Duration::from_secs(2);
/// How often snapshots are looked for that are old enough, at the least.
const VACUUM_INTERVAL_MAX: Duration = Duration::from_secs(60 * 60);
/// How often it is looked whether something in the log is old enough.
const FOLD_LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until it is stopped or dropped.
#[derive(Debug)]
pub(super) struct Upkeep(JoinHandle<()>);

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Upkeep {
    /// Stops, and returns when the engine is let go.
    pub(super) async fn stop(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await; // it was aborted, as it should be
    }

    /// Catches up what is behind online, ends sessions that lie idle, and folds the log, optimizes and vacuums tables as often
    /// as is said.
    pub(super) fn start(engine: Arc<Engine>, sessions: Arc<Sessions>, settings: &Settings) -> Self {
        let (optimize_interval, retain) = (settings.optimize_interval, settings.retain);
        let fold_interval = settings.fold_interval;
        Self(tokio::spawn(async move {
            tokio::join!(
                catch_up(&engine, &sessions),
                fold(&engine, fold_interval),
                optimize(&engine, optimize_interval),
                vacuum(&engine, retain)
            );
        }))
    }
}

async fn catch_up(engine: &Engine, sessions: &Sessions) {
    let mut ticks = interval(CATCH_UP_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known_trouble = None; // said once, and not with every tick
    loop {
        ticks.tick().await;
        sessions.end_idle();
        let trouble = match engine.catch_up().await {
            Ok(0) => None,
            Ok(behind) => Some(format!("{behind} feature groups are behind online; retrying")),
            Err(error) => Some(format!("cannot see which feature groups are behind online: {error}")),
        };
        if trouble != known_trouble {
            match &trouble {
                Some(trouble) => tracing::warn!("{trouble}"),
                None => tracing::info!("no feature group is behind online any more"),
            }
            known_trouble = trouble;
        }
    }
}

async fn fold(engine: &Engine, interval: Duration) {
    loop {
        tokio::select! {
            () = engine.fold_wanted() => {}
            () = tokio::time::sleep(interval.min(FOLD_LOOK_INTERVAL)) => {}
        }
        match engine.fold_due(interval).await {
            Ok(0) => {}
            // Told of in the log; whoever wants it at once waits a little too.
            Ok(_) => tokio::time::sleep(FOLD_LOOK_INTERVAL).await,
            Err(error) => tracing::warn!(%error, "the log is not folded"),
        }
    }
}

async fn optimize(engine: &Arc<Engine>, every: Option<Duration>) {
    let Some(every) = every else { return };
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await; // the first comes at once
    loop {
        ticks.tick().await;
        if let Err(error) = engine.optimize_due().await {
            tracing::warn!(%error, "cannot see which tables have many small files; retrying");
        }
    }
}

async fn vacuum(engine: &Arc<Engine>, retain: Option<Duration>) {
    let Some(retain) = retain else { return };
    let mut ticks = interval(retain.clamp(FOLD_LOOK_INTERVAL, VACUUM_INTERVAL_MAX));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = engine.vacuum_all(retain).await {
            tracing::warn!(%error, "cannot see which tables have old snapshots; retrying");
        }
    }
}
