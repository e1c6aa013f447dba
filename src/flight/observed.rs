//! What every call has in common, whatever it asks: it is counted, and it ends at its client's deadline.
//!
//! tonic heeds `grpc-timeout` until an answer begins. Here the deadline holds to the last byte, and what is left of the
//! call is dropped with it, also where the client neither reads nor goes away.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::Frame;
use opentelemetry::propagation::Extractor;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use super::listener::Peer;
use super::status::trailers;
use crate::clock::Clock;
use crate::metrics::{Call, Metrics};
use crate::spans;

/// Watches the calls of the service within.
#[derive(Clone)]
pub(super) struct Observe(Arc<Counting>);

struct Counting {
    metrics: Arc<Metrics>,
    clock: Arc<dyn Clock>,
}

impl Observe {
    pub(super) fn new(metrics: Arc<Metrics>, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Counting { metrics, clock }))
    }

    fn begin(&self, path: &str, span: Span) -> InFlight {
        let call = match path.rsplit_once('/') {
            Some(("/arrow.flight.protocol.FlightService", name)) => Call::named(name),
            _ => Call::Other,
        };
        self.0.metrics.calls_in_flight.inc();
        InFlight { counting: Arc::clone(&self.0), call, span, started_us: self.0.clock.now_us(), code: None }
    }
}

impl<S> Layer<S> for Observe {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, observe: self.clone() }
    }
}

#[derive(Clone)]
pub(super) struct Observed<S> {
    inner: S,
    observe: Observe,
}

impl<S> Service<Request<Body>> for Observed<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error: Send, Future: Send + 'static>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let peer = request.extensions().get::<Peer>();
        let span = spans::call(path, peer.map(|peer| peer.connection.peer), &Headers(request.headers()));
        let mut call = self.observe.begin(path, span.clone());
        let timeout = request.headers().get("grpc-timeout").and_then(|text| timeout(text.to_str().ok()?));
        let mut deadline = timeout.map(|timeout| Box::pin(tokio::time::sleep(timeout)));
        let answer = span.in_scope(|| self.inner.call(request)).instrument(span);
        Box::pin(async move {
            let answer = match &mut deadline {
                None => answer.await?,
                Some(deadline) => tokio::select! {
                    biased;
                    answer = answer => answer?,
                    () = deadline.as_mut() => expired().into_http(),
                },
            };
            // An answer that is nothing but a status has it among its headers.
            call.code = code(answer.headers());
            if call.code.is_some() {
                return Ok(answer);
            }
            Ok(answer.map(|body| Body::new(ObservedBody::new(body, call, deadline))))
        })
    }
}

/// Headers as a propagator of traces reads them.
struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|key| key.as_str()).collect()
    }
}

/// A call that is being answered; when it is dropped it is over.
struct InFlight {
    counting: Arc<Counting>,
    call: Call,
    span: Span,
    started_us: i64,
    /// `None` until it is known: a call that ends before was abandoned.
    code: Option<Code>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Counting { metrics, clock } = self.counting.as_ref();
        let duration_us = clock.now_us().saturating_sub(self.started_us);
        let code = self.code.unwrap_or(Code::Cancelled);
        metrics.calls_in_flight.dec();
        metrics.call_ended(self.call, name(code), duration_us);
        spans::call_ended(&self.span, code as i32, is_failure(code));
    }
}

/// An answer until its trailers.
struct ObservedBody {
    left: Arc<Mutex<Left>>,
    /// Waits for the deadline beside whoever reads; empty where there is none.
    deadline: JoinSet<()>,
}

/// What is left of an answer.
struct Left {
    /// `None` when it is over.
    body: Option<Body>,
    /// `None` once its status is known: it is counted before the client hears of it.
    call: Option<InFlight>,
    span: Span,
    /// The deadline has passed, and the client is yet to hear of it.
    is_expired: bool,
    /// Who waits for more of it.
    reader: Option<Waker>,
}

impl Left {
    fn ended(&mut self, code: Option<Code>) {
        if let Some(call) = &mut self.call {
            call.code = code;
        }
        self.call = None;
    }

    fn expire(&mut self) {
        if self.body.take().is_some() {
            self.ended(Some(Code::DeadlineExceeded));
            self.is_expired = true;
        }
        self.reader.take().into_iter().for_each(Waker::wake);
    }
}

impl ObservedBody {
    fn new(body: Body, call: InFlight, at: Option<Pin<Box<Sleep>>>) -> Self {
        let span = call.span.clone();
        let left = Left { body: Some(body), call: Some(call), span, is_expired: false, reader: None };
        let left = Arc::new(Mutex::new(left));
        let mut deadline = JoinSet::new();
        if let Some(at) = at {
            let left = Arc::clone(&left);
            deadline.spawn(async move {
                at.await;
                left.lock().expire();
            });
        }
        Self { left, deadline }
    }
}

impl http_body::Body for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let left = &mut *self.left.lock();
        if std::mem::take(&mut left.is_expired) {
            return Poll::Ready(Some(trailers(&expired())));
        }
        let Some(body) = &mut left.body else { return Poll::Ready(None) };
        // An exchange runs its statements while it is read.
        let polled = left.span.in_scope(|| Pin::new(body).poll_frame(cx));
        match &polled {
            Poll::Pending if !self.deadline.is_empty() => left.reader = Some(cx.waker().clone()),
            Poll::Pending => {}
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    left.ended(code(trailers));
                }
            }
            Poll::Ready(Some(Err(status))) => left.ended(Some(status.code())),
            Poll::Ready(None) => left.body = None,
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        let left = self.left.lock();
        !left.is_expired && left.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}

fn expired() -> Status {
    Status::deadline_exceeded("the client's deadline has passed, and the call was stopped")
}

/// The status in headers or trailers.
fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get(Status::GRPC_STATUS).map(|code| Code::from_bytes(code.as_bytes()))
}

/// What `grpc-timeout` says: at most eight digits, and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = if number.len() <= 8 { number.parse().ok()? } else { return None };
    Some(match unit {
        "H" => Duration::from_secs(number * 60 * 60),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Whether the code speaks of the server, not of the call.
fn is_failure(code: Code) -> bool {
    use Code::{DataLoss, DeadlineExceeded, Internal, Unavailable, Unimplemented, Unknown};
    matches!(code, DataLoss | DeadlineExceeded | Internal | Unavailable | Unimplemented | Unknown)
}

fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Cancelled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::convert::Infallible;

    use crate::clock::ManualClock;
    use http_body::Body as _;
    use prometheus_client::encoding::prometheus_text::encode;
    use prometheus_client::registry::Registry;
    use tower::service_fn;

    /// What one call of `DoGet` gave and left behind.
    async fn called(
        timeout: Option<&str>,
        answer: BoxFuture<'static, Response<Body>>,
    ) -> (Option<Code>, String) {
        let metrics = Arc::new(Metrics::default());
        let observe = Observe::new(Arc::clone(&metrics), Arc::new(ManualClock::new(0)));
        let mut answer = Some(answer);
        let mut service = observe.layer(service_fn(move |_: Request<Body>| {
            let answer = answer.take().unwrap();
            async move { Ok::<_, Infallible>(answer.await) }
        }));
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = "/arrow.flight.protocol.FlightService/DoGet".parse().unwrap();
        if let Some(timeout) = timeout {
            request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
        }
        let answer = service.call(request).await.unwrap();
        let mut seen = code(answer.headers());
        let mut body = answer.into_body();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            seen = seen.or(frame.unwrap().trailers_ref().and_then(code));
        }
        drop(body);
        let (mut registry, mut text) = (Registry::default(), String::new());
        metrics.register(&mut registry);
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("fletching_calls_in_flight 0\n"), "{text}");
        (seen, text)
    }

    #[tokio::test]
    async fn the_deadline_holds_before_an_answer_and_within_it() {
        let (held, _) = tokio::sync::oneshot::channel();
        let silent: [BoxFuture<'static, Response<Body>>; 2] =
            [Box::pin(std::future::pending()), Box::pin(async { Response::new(Body::new(Holding(held))) })];
        for answer in silent {
            let (seen, metrics) = called(Some("1m"), answer).await;
            assert_eq!(seen, Some(Code::DeadlineExceeded));
            let line = r#"fletching_calls_total{method="DoGet",code="DeadlineExceeded"} 1"#;
            assert!(metrics.contains(line), "{metrics}");
        }
    }

    #[tokio::test]
    async fn the_deadline_ends_what_nobody_reads() {
        let (held, let_go) = tokio::sync::oneshot::channel::<()>();
        let metrics = Arc::new(Metrics::default());
        let observe = Observe::new(Arc::clone(&metrics), Arc::new(ManualClock::new(0)));
        let call = observe.begin("/arrow.flight.protocol.FlightService/DoGet", Span::none());
        let deadline = Box::pin(tokio::time::sleep(Duration::from_millis(1)));
        let mut body = ObservedBody::new(Body::new(Holding(held)), call, Some(deadline));
        assert!(let_go.await.is_err(), "what the answer held is gone, though nobody asked for a byte of it");
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        assert_eq!(frame.trailers_ref().and_then(code), Some(Code::DeadlineExceeded));
        assert!(body.is_end_stream());
    }

    /// A body that never says anything, and holds something.
    struct Holding(#[expect(dead_code, reason = "held, not read")] tokio::sync::oneshot::Sender<()>);

    impl http_body::Body for Holding {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn a_status_counts_whether_it_is_all_there_is_or_comes_last() {
        let alone = Status::not_found("m").into_http();
        let mut trailers = HeaderMap::new();
        Status::ok("").add_header(&mut trailers).unwrap();
        let last = Response::new(Body::new(Trailers(Some(trailers))));
        for (answer, code, label) in [(alone, Code::NotFound, "NotFound"), (last, Code::Ok, "OK")] {
            let (seen, metrics) = called(Some("1H"), Box::pin(async move { answer })).await;
            assert_eq!(seen, Some(code));
            let line = format!(r#"fletching_calls_total{{method="DoGet",code="{label}"}} 1"#);
            assert!(metrics.contains(&line), "{metrics}");
        }
    }

    struct Trailers(Option<HeaderMap>);

    impl http_body::Body for Trailers {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.take().map(|trailers| Ok(Frame::trailers(trailers))))
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_dropped_was_abandoned() {
        let metrics = Arc::new(Metrics::default());
        let observe = Observe::new(Arc::clone(&metrics), Arc::new(ManualClock::new(0)));
        drop(observe.begin("/arrow.flight.protocol.FlightService/DoPut", Span::none()));
        let (mut registry, mut text) = (Registry::default(), String::new());
        metrics.register(&mut registry);
        encode(&mut text, &registry).unwrap();
        assert!(text.contains(r#"fletching_calls_total{method="DoPut",code="Cancelled"} 1"#), "{text}");
    }

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let cases = [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("100000000n", None),
            ("S", None),
            ("", None),
            ("1x", None),
            ("-1S", None),
            ("1é", None),
        ];
        for (text, expected) in cases {
            assert_eq!(timeout(text), expected, "{text}");
        }
    }
}
