//! Around everything that answers calls: nothing behind it sees a call whose caller is not known.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::FutureExt;
use futures::future::{BoxFuture, Either, Ready, ready};
use http_body_util::{BodyExt, Limited};
use moka::sync::Cache;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::codegen::http::{HeaderValue, Request, Response};
use tonic::transport::server::TlsConnectInfo;
use tower::{Layer, Service};

use super::{Authenticator, Caller, Identity, Method, certificate, nameless};
use crate::error::{Error, Result};
use crate::flight::listener::{ConnectionId, Peer};

/// Who greets without a header may do so in the message.
const HANDSHAKE: &str = "/arrow.flight.protocol.FlightService/Handshake";
/// Whoever asks whether the server is well learns just that, and has no name: load balancers and probes.
const HEALTH: &str = "/grpc.health.v1.Health/";

/// What a call may carry of which nobody knows yet who makes it: a name and a password, or less.
const NAMELESS_BYTES_MAX: usize = 64 << 10;

/// More certificates than connections are not needed, and asked for again at no great cost.
const CERTIFICATES_MAX: u64 = 4096;

/// Puts a [`Guarded`] around a service.
#[derive(Clone)]
pub(in crate::flight) struct AuthLayer(Arc<Gate>);

struct Gate {
    auth: Arc<Authenticator>,
    /// Whom the certificates of connections name.
    certified: Cache<ConnectionId, Arc<str>>,
}

impl AuthLayer {
    pub(in crate::flight) fn new(auth: Arc<Authenticator>) -> Self {
        Self(Arc::new(Gate { auth, certified: Cache::new(CERTIFICATES_MAX) }))
    }
}

impl Gate {
    /// Whom the certificate of the call's connection names.
    fn certified(&self, call: &Request<Body>, connection: ConnectionId) -> Result<Arc<str>> {
        if let Some(user) = self.certified.get(&connection) {
            return Ok(user);
        }
        let tls = call.extensions().get::<TlsConnectInfo<Peer>>();
        let certificates = tls.and_then(TlsConnectInfo::peer_certs);
        let first = certificates.as_deref().and_then(|certificates| certificates.first());
        let user = certificate::user(first.ok_or_else(|| Error::unauthenticated("no certificate came"))?)?;
        self.certified.insert(connection, Arc::clone(&user));
        Ok(user)
    }

    /// Lets a call in, or says that its password must be checked first.
    fn admit(&self, call: &mut Request<Body>) -> Result<Admitted> {
        let peer = call.extensions().get::<Peer>();
        let peer =
            peer.ok_or_else(|| Error::internal("a call without a connection: the listener sets it"))?.clone();
        let connection = peer.connection;
        let identity = match self.auth.method {
            Method::Certificate => Identity::User(self.certified(call, connection)?),
            _ => self.auth.identify(call.headers())?,
        };
        let (user, renewed) = match identity {
            Identity::Anybody => (None, None),
            Identity::User(user) => (Some(user), None),
            Identity::Renewed(user, token) => (Some(user), Some(token.header())),
            Identity::Unproven(basic) => return Ok(Admitted::Unproven(peer, basic)),
            Identity::Silent => match call.uri().path() {
                HANDSHAKE => {
                    limit(call);
                    return Ok(Admitted::Nameless);
                }
                path if path.starts_with(HEALTH) => {
                    limit(call);
                    // Nobody has been let in yet, and so the connection's time runs on.
                    call.extensions_mut().insert(Caller { connection, user: None });
                    return Ok(Admitted::Named);
                }
                _ => return Err(nameless()),
            },
        };
        peer.admitted();
        call.extensions_mut().insert(Caller { connection, user });
        Ok(renewed.map_or(Admitted::Named, Admitted::Renewed))
    }
}

enum Admitted {
    Named,
    /// The header goes back with the answer.
    Renewed(HeaderValue),
    Unproven(Peer, super::Basic),
    /// A handshake that says who greets in its message; it gets no [`Caller`].
    Nameless,
}

impl<S> Layer<S> for AuthLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, gate: Arc::clone(&self.0) }
    }
}

/// A service behind the layer.
#[derive(Clone)]
pub(in crate::flight) struct Guarded<S> {
    inner: S,
    gate: Arc<Gate>,
}

type Answer = Result<Response<Body>, Infallible>;

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Either<S::Future, Ready<Answer>>, BoxFuture<'static, Answer>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut call: Request<Body>) -> Self::Future {
        match self.gate.admit(&mut call) {
            Ok(Admitted::Named | Admitted::Nameless) => Either::Left(Either::Left(self.inner.call(call))),
            Ok(Admitted::Renewed(header)) => {
                Either::Right(self.inner.call(call).map(|answer| with_header(answer, header)).boxed())
            }
            Ok(Admitted::Unproven(peer, basic)) => {
                let auth = Arc::clone(&self.gate.auth);
                // The one that is ready is the one to call.
                let clone = self.inner.clone();
                let mut inner = std::mem::replace(&mut self.inner, clone);
                let answer = async move {
                    match auth.verify(basic, peer.connection.peer).await {
                        Ok((user, token)) => {
                            peer.admitted();
                            call.extensions_mut()
                                .insert(Caller { connection: peer.connection, user: Some(user) });
                            with_header(inner.call(call).await, token.header())
                        }
                        Err(error) => Ok(refusal(error)),
                    }
                };
                Either::Right(answer.boxed())
            }
            Err(error) => Either::Left(Either::Right(ready(Ok(refusal(error))))),
        }
    }
}

/// Bounds what the call may carry.
fn limit(call: &mut Request<Body>) {
    let body = Limited::new(std::mem::take(call.body_mut()), NAMELESS_BYTES_MAX);
    *call.body_mut() = Body::new(body.map_err(|_| {
        Status::out_of_range(format!("who has not signed in may send {NAMELESS_BYTES_MAX} bytes"))
    }));
}

fn refusal(error: Error) -> Response<Body> {
    Status::from(error).into_http()
}

/// The answer with a token for the next calls.
fn with_header(answer: Answer, header: HeaderValue) -> Answer {
    answer.map(|mut response| {
        response.headers_mut().insert(AUTHORIZATION, header);
        response
    })
}
