//! What is answered, from before the stores are open until after the last query.
//!
//! | path | answers |
//! |---|---|
//! | `/health/live` | 200 as long as the process answers at all |
//! | `/health/ready` | 200 where queries are taken; 503 while starting and while draining. A second line tells of the online store: without it history can still be read |
//! | `/metrics` | all counts, in the text format of Prometheus |

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::listener::Bounded;
use super::scrape::Scrape;
use crate::error::{Error, Result};
use crate::sql::Engine;

/// Who asks for health waits no longer: the usual probe gives up after a second.
const ONLINE_ANSWER_MAX: Duration = Duration::from_millis(500);

/// An HTTP server that runs.
#[derive(Debug)]
pub(crate) struct Http {
    local_addr: SocketAddr,
    known: Arc<Known>,
    serving: JoinHandle<()>,
}

/// What the answers are made of. Connections that linger must not hold the engine, and with it the stores.
#[derive(Debug, Default)]
struct Known {
    /// Set when the stores are open.
    engine: OnceLock<(Weak<Engine>, Scrape)>,
    draining: AtomicBool,
}

impl Http {
    /// Answers on `listener`; there is no engine yet.
    pub(crate) fn open(listener: TcpListener) -> Result<Self> {
        let local_addr = listener.local_addr().map_err(|error| Error::unavailable(error.to_string()))?;
        let known = Arc::new(Known::default());
        let router = Router::new()
            .route("/health/live", get(async || "live\n"))
            .route("/health/ready", get(ready))
            .route("/metrics", get(metrics))
            .layer(map_response(close_after))
            .with_state(Arc::clone(&known));
        let serving = tokio::spawn(async move {
            // It takes the failures of single connections in its stride, and has no others.
            let _ = axum::serve(Bounded::new(listener), router).await;
        });
        Ok(Self { local_addr, known, serving })
    }

    /// Where it listens.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Queries are taken from now on.
    pub(crate) fn serves(&self, engine: &Arc<Engine>) {
        // There is one engine, and it is set once.
        let _ = self.known.engine.set((Arc::downgrade(engine), Scrape::of(engine)));
    }

    /// No more queries are taken from now on.
    pub(crate) fn drains(&self) {
        self.known.draining.store(true, Relaxed);
    }

    /// Stops, and returns when nobody listens any more.
    pub(crate) async fn close(mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await; // it was aborted, as it should be
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// One answer each: no probe needs a connection that stays.
async fn close_after(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn ready(State(known): State<Arc<Known>>) -> (StatusCode, String) {
    let not_yet = |why: &str| (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"));
    if known.draining.load(Relaxed) {
        return not_yet("draining: what runs may finish, and nothing new is taken");
    }
    let Some((engine, _)) = known.engine.get() else {
        return not_yet("starting: the stores are being opened");
    };
    let Some(engine) = engine.upgrade() else { return not_yet("stopped") };
    let online = match tokio::time::timeout(ONLINE_ANSWER_MAX, engine.online_answers()).await {
        Ok(Ok(())) => "answers".to_owned(),
        Ok(Err(error)) => format!("does not answer: {error}").replace('\n', " "),
        Err(_) => format!("does not answer within {}", humantime::format_duration(ONLINE_ANSWER_MAX)),
    };
    (StatusCode::OK, format!("ready\nonline store: {online}\n"))
}

async fn metrics(State(known): State<Arc<Known>>) -> Response {
    match known.engine.get().map(|(_, scrape)| scrape.text()) {
        Some(Ok(text)) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Some(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "starting: nothing is counted yet\n").into_response(),
    }
}
