//! Who may come in, and how the wire is kept from others: by clients that have nothing, something wrong, or too late.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, PasswordHash, PasswordHasher, Version};
use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::{
    Action, BasicAuth, Criteria, Empty, FlightData, FlightDescriptor, HandshakeRequest, Ticket,
};
use fletching::clock::ManualClock;
use fletching::{ErrorKind, Server, Settings, TlsSettings};
use futures::future::join_all;
use futures::{FutureExt, TryStreamExt, stream};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request, Status};

use crate::support::START_US;
use crate::support::http::PAUSE;

type Client = FlightSqlServiceClient<Channel>;

const DAY_US: i64 = 86_400_000_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A server, and the directory of its data and of the files that its settings name.
struct House {
    server: Server,
    clock: Arc<ManualClock>,
    dir: TempDir,
}

impl House {
    /// Ada's password is "lovelace", bob's is "builder", and a service has the token "flt_service".
    async fn open() -> Self {
        Self::with(|_, _| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings, &Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lines =
            [line("ada", "lovelace", 8), line("bob", "builder", 8), token_line("service", "flt_service")];
        fs::write(dir.path().join("users"), lines.join("\n")).unwrap();
        let clock = Arc::new(ManualClock::new(START_US));
        let mut settings = Settings::for_data_dir(dir.path().join("data")).unwrap();
        settings.security.users_file = Some(dir.path().join("users"));
        change(&mut settings, dir.path());
        let server = Server::start(settings, clock.clone()).await.unwrap();
        Self { server, clock, dir }
    }

    fn plain(&self) -> Endpoint {
        Endpoint::from_shared(format!("http://{}", self.server.local_addr())).unwrap()
    }

    /// A client of a connection of its own that says nothing of itself.
    async fn nobody(&self) -> Client {
        FlightSqlServiceClient::new(self.plain().connect().await.unwrap())
    }

    async fn signed_in(&self, user: &str, password: &str) -> Client {
        let mut client = self.nobody().await;
        client.handshake(user, password).await.unwrap();
        client
    }

    async fn service(&self) -> Client {
        let mut client = self.nobody().await;
        client.set_token("flt_service".to_owned());
        client
    }

    fn rewrite_users(&self, lines: &[String]) {
        fs::write(self.dir.path().join("users"), lines.join("\n")).unwrap();
        self.clock.advance(1_000_000);
    }
}

/// A line of the users file whose password takes `memory_kib` to check.
fn line(name: &str, password: &str, memory_kib: u32) -> String {
    let params = Params::new(memory_kib, 1, 1, None).unwrap();
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash: PasswordHash = argon2.hash_password(password.as_bytes()).unwrap();
    format!("{name}:{hash}")
}

fn token_line(name: &str, token: &str) -> String {
    let digits: String = Sha256::digest(token).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name}:sha256:{digits}")
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::prelude::BASE64_STANDARD.encode(format!("{user}:{password}")))
}

fn with_header<T>(header: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", header.parse().unwrap());
    request
}

fn bearer(headers: &MetadataMap) -> Option<String> {
    headers.get("authorization").map(|header| header.to_str().unwrap().to_owned())
}

fn status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("not a status: {other}"),
    }
}

/// The one number that a query answers.
async fn number(client: &mut Client, sql: &str) -> Result<i64, Status> {
    let info = client.execute(sql.to_owned(), None).await.map_err(status)?;
    fetch(client, info.endpoint[0].ticket.clone().unwrap()).await
}

async fn fetch(client: &mut Client, ticket: Ticket) -> Result<i64, Status> {
    let batches = client.do_get(ticket).await.map_err(status)?;
    let batches: Vec<_> = batches.try_collect().await.map_err(status)?;
    Ok(batches[0].column(0).as_primitive::<Int64Type>().value(0))
}

/// A ticket that the client writes itself.
fn direct() -> Ticket {
    Ticket::new(r#"{"query": "SELECT 1"}"#)
}

async fn whoami(client: &mut Client) -> Code {
    number(client, "SELECT 1").await.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_says_who_it_comes_from() {
    let house = House::open().await;
    for header in [None, Some("Bearer nonsense"), Some("Basic nonsense"), Some("Negotiate x")] {
        let client = || async {
            let channel = house.plain().connect().await.unwrap();
            FlightServiceClient::with_interceptor(channel, move |mut request: Request<()>| {
                if let Some(header) = header {
                    request.metadata_mut().insert("authorization", header.parse().unwrap());
                }
                Ok(request)
            })
        };
        let mut client = client().await;
        let descriptor = FlightDescriptor::new_cmd(direct().ticket);
        let data = || stream::iter([FlightData::default()]);
        let codes = [
            client.handshake(stream::iter([HandshakeRequest::default()])).await.err(),
            client.list_flights(Criteria::default()).await.err(),
            client.get_flight_info(descriptor.clone()).await.err(),
            client.poll_flight_info(descriptor.clone()).await.err(),
            client.get_schema(descriptor).await.err(),
            client.do_get(direct()).await.err(),
            client.do_put(data()).await.err(),
            client.do_exchange(data()).await.err(),
            client.do_action(Action::new("CreatePreparedStatement", "")).await.err(),
            client.list_actions(Empty {}).await.err(),
        ];
        for (call, status) in codes.into_iter().enumerate() {
            let status = status.unwrap_or_else(|| panic!("call {call} was let in with {header:?}"));
            assert_eq!(status.code(), Code::Unauthenticated, "call {call}: {status}");
            assert!(!status.message().contains("nonsense"), "{status}");
        }
    }
    house.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_gives_a_token_on_any_call() {
    let house = House::open().await;
    assert_eq!(whoami(&mut house.signed_in("ada", "lovelace").await).await, Code::Ok);
    assert_eq!(whoami(&mut house.service().await).await, Code::Ok);

    let mut raw = house.nobody().await.into_inner();
    let answer = raw.do_get(with_header(&basic("ada", "lovelace"), direct())).await.unwrap();
    let token = bearer(answer.metadata()).unwrap();
    assert!(token.starts_with("Bearer "), "{token}");
    let answer = raw.do_get(with_header(&token, direct())).await.unwrap();
    assert_eq!(bearer(answer.metadata()), None, "it holds for long");
    house.clock.advance(4 * DAY_US);
    let renewed = bearer(raw.do_get(with_header(&token, direct())).await.unwrap().metadata()).unwrap();
    house.clock.advance(4 * DAY_US);
    let expired = raw.do_get(with_header(&token, direct())).await.unwrap_err();
    assert_eq!(expired.code(), Code::Unauthenticated);
    assert!(expired.message().contains("has expired"), "{expired}");
    raw.do_get(with_header(&renewed, direct())).await.unwrap();

    for (user, password) in [("ada", "Lovelace"), ("eve", "lovelace"), ("service", "flt_service")] {
        let refused = raw.do_get(with_header(&basic(user, password), direct())).await.unwrap_err();
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::Unauthenticated, "wrong user name or password")
        );
    }
    house.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_older_protocol_greet_in_a_message() {
    let house = House::open().await;
    let mut raw = house.nobody().await.into_inner();
    let greeting = |password: &str| {
        let payload = BasicAuth { username: "ada".into(), password: password.into() }.encode_to_vec().into();
        stream::iter([HandshakeRequest { protocol_version: 0, payload }])
    };
    let answers: Vec<_> =
        raw.handshake(greeting("lovelace")).await.unwrap().into_inner().try_collect().await.unwrap();
    let mut call = Request::new(direct());
    call.metadata_mut()
        .insert_bin("auth-token-bin", tonic::metadata::MetadataValue::from_bytes(&answers[0].payload));
    raw.do_get(call).await.unwrap();
    assert_eq!(raw.handshake(greeting("byron")).await.unwrap_err().code(), Code::Unauthenticated);
    house.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_signed_in_may_send_little() {
    let house = House::open().await;
    let mut client = house.nobody().await;
    let mut greet = async |bytes: usize| {
        let greeting = HandshakeRequest { payload: vec![7; bytes].into(), ..HandshakeRequest::default() };
        let answer = client.inner_mut().handshake(stream::iter([greeting])).await;
        answer.map(drop).unwrap_err()
    };
    assert_eq!(greet(1 << 10).await.code(), Code::Unauthenticated);
    let refused = greet(1 << 20).await;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    assert!(refused.message().contains("has not signed in"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn handles_and_tickets_are_those_that_were_given_out_and_in_time() {
    let house = House::open().await;
    let mut client = house.service().await;
    let info = client.execute("SELECT 7".to_owned(), None).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let prepared = client.prepare("SELECT 8".to_owned(), None).await.unwrap();
    for _ in 0..2 {
        assert_eq!(fetch(&mut client, ticket.clone()).await.unwrap(), 7);
    }
    for at in 0..ticket.ticket.len() {
        let mut forged = ticket.ticket.to_vec();
        forged[at] ^= 1;
        if let Err(status) = fetch(&mut client, Ticket::new(forged)).await {
            let code = status.code();
            assert!(matches!(code, Code::InvalidArgument | Code::Unimplemented), "byte {at}: {status}");
        } else {
            panic!("byte {at} may be changed");
        }
    }
    house.clock.advance(DAY_US);
    let expired = fetch(&mut client, ticket).await.unwrap_err();
    assert_eq!(expired.code(), Code::InvalidArgument);
    assert!(expired.message().contains("ask for a new ticket"), "{expired}");
    let mut prepared = prepared;
    let fresh = prepared.execute().await.unwrap();
    assert_eq!(fetch(&mut client, fresh.endpoint[0].ticket.clone().unwrap()).await.unwrap(), 8);
    house.clock.advance(30 * DAY_US);
    let expired = status(prepared.execute().await.unwrap_err());
    assert_eq!(expired.code(), Code::InvalidArgument);
    assert!(expired.message().contains("prepare the statement again"), "{expired}");
    house.server.shutdown().await.unwrap();
}

/// Servers with one secret stand in for each other; without one, what a server gave out ends with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_shared_secret_outlives_the_server() {
    for shared in [true, false] {
        let share = |settings: &mut Settings, dir: &Path| {
            if shared {
                fs::write(dir.join("secret"), "an example of 32 characters or more").unwrap();
                settings.security.secret_file = Some(dir.join("secret"));
            }
        };
        let (first, second) = (House::with(share).await, House::with(share).await);
        fs::copy(first.dir.path().join("users"), second.dir.path().join("users")).unwrap();
        second.clock.advance(1_000_000);
        let mut client = first.signed_in("ada", "lovelace").await;
        let info = client.execute("SELECT 7".to_owned(), None).await.unwrap();
        let mut raw = first.nobody().await.into_inner();
        let token =
            bearer(raw.do_get(with_header(&basic("ada", "lovelace"), direct())).await.unwrap().metadata());
        first.server.shutdown().await.unwrap();

        let by_token = {
            let mut client = second.nobody().await;
            client.set_token(token.unwrap().split_once(' ').unwrap().1.to_owned());
            whoami(&mut client).await
        };
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        let by_ticket = fetch(&mut second.service().await, ticket).await;
        if shared {
            assert_eq!((by_token, by_ticket.unwrap()), (Code::Ok, 7));
        } else {
            assert_eq!(
                (by_token, by_ticket.unwrap_err().code()),
                (Code::Unauthenticated, Code::InvalidArgument)
            );
        }
        second.server.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_its_users_alone() {
    let house = House::open().await;
    let count = "SELECT count(*) FROM mine";
    for cookie in [true, false] {
        // One connection, as of a proxy, and one cookie.
        let channel = house.plain().connect().await.unwrap();
        let client = |user: &'static str, password: &'static str| {
            let channel = channel.clone();
            async move {
                let mut client = FlightSqlServiceClient::new(channel);
                if cookie {
                    client.set_header("cookie", "arrow_flight_session_id=the-same");
                }
                client.handshake(user, password).await.unwrap();
                client
            }
        };
        let (mut ada, mut bob) = (client("ada", "lovelace").await, client("bob", "builder").await);
        let create = "CREATE TEMP TABLE mine AS SELECT 1 AS a".to_owned();
        ada.execute_update(create, None).await.unwrap();
        assert_eq!(number(&mut ada, count).await.unwrap(), 1);
        assert_eq!(number(&mut bob, count).await.unwrap_err().code(), Code::NotFound);
        let create = "CREATE TEMP TABLE mine AS SELECT a FROM (VALUES (1), (2)) AS t (a)".to_owned();
        bob.execute_update(create, None).await.unwrap();
        assert_eq!((number(&mut ada, count).await.unwrap(), number(&mut bob, count).await.unwrap()), (1, 2));
    }
    house.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_users_file_is_followed_while_it_is_used() {
    let house = House::open().await;
    let (mut ada, mut service) = (house.signed_in("ada", "lovelace").await, house.service().await);
    house.rewrite_users(&[token_line("service", "flt_service"), line("carol", "c", 8)]);
    assert_eq!(whoami(&mut ada).await, Code::Unauthenticated);
    assert_eq!(whoami(&mut service).await, Code::Ok);
    assert_eq!(whoami(&mut house.signed_in("carol", "c").await).await, Code::Ok);
    house.rewrite_users(&["half a li".to_owned()]);
    assert_eq!(whoami(&mut service).await, Code::Ok);
    house.server.shutdown().await.unwrap();
}

/// A password takes a good while to check. Others are served all that time, and the right one gets its turn.
#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_at_rate_keep_nobody_out() {
    let house = House::with(|_, dir| {
        let lines = [line("ada", "lovelace", 4096), token_line("service", "flt_service")];
        fs::write(dir.join("users"), lines.join("\n")).unwrap();
    })
    .await;
    let channel = house.plain().connect().await.unwrap();
    let attempts =
        join_all((0..200).map(|attempt| {
            let mut client = FlightServiceClient::new(channel.clone());
            let user = if attempt % 2 == 0 { "ada" } else { "eve" };
            async move {
                client.do_get(with_header(&basic(user, &attempt.to_string()), direct())).await.unwrap_err()
            }
        }));
    let mut attempts = tokio::spawn(attempts);
    let mut service = house.service().await;
    let mut served = 0;
    let refused = loop {
        tokio::select! {
            biased;
            refused = &mut attempts => break refused.unwrap(),
            one = number(&mut service, "SELECT 1") => served += one.unwrap(),
        }
    };
    assert!(served > 10, "{served} queries while {} passwords were refused", refused.len());
    for status in refused {
        assert!(matches!(status.code(), Code::Unauthenticated | Code::ResourceExhausted), "{status}");
    }
    assert_eq!(whoami(&mut house.signed_in("ada", "lovelace").await).await, Code::Ok);
    house.server.shutdown().await.unwrap();
}

/// A certificate authority, and what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Certificate and key for a host or a user.
    fn sign(&self, name: &str, host: &str) -> (String, String) {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.pem))
    }

    /// A client that shows a certificate.
    fn user(&self, signer: &Self, name: &str) -> ClientTlsConfig {
        let (cert, key) = signer.sign(name, "client.example.org");
        self.client().identity(Identity::from_pem(cert, key))
    }
}

/// Names files with these contents in the settings.
fn tls(settings: &mut Settings, dir: &Path, authority: &Authority, asks_for_certificates: bool) {
    let (cert, key) = authority.sign("server", "127.0.0.1");
    let file = |name: &str, text: &str| -> PathBuf {
        fs::write(dir.join(name), text).unwrap();
        dir.join(name)
    };
    let client_ca = asks_for_certificates.then(|| file("ca.pem", &authority.pem));
    settings.security.tls =
        Some(TlsSettings { cert: file("cert.pem", &cert), key: file("key.pem", &key), client_ca });
}

impl House {
    async fn tls_client(&self, config: ClientTlsConfig) -> Result<Client, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("https://{}", self.server.local_addr())).unwrap();
        Ok(FlightSqlServiceClient::new(endpoint.tls_config(config)?.connect().await?))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_serves_who_speaks_it_and_nobody_else() {
    let authority = Authority::new();
    let house = House::with(|settings, dir| tls(settings, dir, &authority, false)).await;
    let mut ada = house.tls_client(authority.client()).await.unwrap();
    ada.handshake("ada", "lovelace").await.unwrap();
    ada.execute_update("CREATE TEMP TABLE mine AS SELECT 1 AS a".to_owned(), None).await.unwrap();
    assert!(
        house.tls_client(Authority::new().client()).await.is_err(),
        "who trusts another authority stays away"
    );

    // Who speaks in clear hears nothing, and in good time.
    let mut clear = TcpStream::connect(house.server.local_addr()).await.unwrap();
    clear.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut heard = Vec::new();
    let closed = timeout(PATIENCE, clear.read_to_end(&mut heard)).await.expect("the connection is closed");
    assert!(closed.is_err() || !heard.windows(4).any(|bytes| bytes == b"HTTP"), "{heard:?}");
    let refused = timeout(PATIENCE, async {
        let channel = house.plain().connect().await.map_err(|error| error.to_string())?;
        FlightServiceClient::new(channel).do_get(direct()).await.map_err(|status| status.to_string())
    });
    assert!(refused.await.expect("an answer").is_err());

    assert_eq!(number(&mut ada, "SELECT count(*) FROM mine").await.unwrap(), 1, "the session goes on");
    timeout(PATIENCE, house.server.shutdown()).await.expect("it stops with a client connected").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_a_name_where_nobody_has_a_password() {
    let authority = Authority::new();
    let house = House::with(|settings, dir| {
        settings.security.users_file = None;
        tls(settings, dir, &authority, true);
    })
    .await;
    let refused = |config: ClientTlsConfig| async {
        let Ok(client) = house.tls_client(config).await else { return true };
        whoami(&mut { client }).await != Code::Ok
    };
    assert!(refused(authority.client()).await, "no certificate");
    assert!(refused(authority.user(&Authority::new(), "ada")).await, "anybody's certificate");
    let client = |name: &'static str| {
        house.tls_client(authority.user(&authority, name)).map(|client| {
            let mut client = client.unwrap();
            client.set_header("cookie", "arrow_flight_session_id=the-same");
            client
        })
    };
    let (mut ada, mut again, mut bob) = (client("ada").await, client("ada").await, client("bob").await);
    ada.execute_update("CREATE TEMP TABLE mine AS SELECT 1 AS a".to_owned(), None).await.unwrap();
    let count = "SELECT count(*) FROM mine";
    assert_eq!(number(&mut again, count).await.unwrap(), 1);
    assert_eq!(number(&mut bob, count).await.unwrap_err().code(), Code::NotFound);
    house.server.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_users_and_certificates_both_are_asked_for() {
    let authority = Authority::new();
    let house = House::with(|settings, dir| tls(settings, dir, &authority, true)).await;
    let mut client = house.tls_client(authority.user(&authority, "ada")).await.unwrap();
    assert_eq!(whoami(&mut client).await, Code::Unauthenticated);
    client.handshake("bob", "builder").await.unwrap();
    assert_eq!(whoami(&mut client).await, Code::Ok);
    house.server.shutdown().await.unwrap();
}

/// One place for a connection: who makes no call that is let in does not keep it.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_asks_for_nothing_is_closed() {
    for with_tls in [false, true] {
        let authority = Authority::new();
        let house = House::with(|settings, dir| {
            settings.limits.connections_max = 2;
            settings.security.authentication_timeout = Duration::from_secs(5);
            if with_tls {
                tls(settings, dir, &authority, false);
            }
        })
        .await;
        let connect = async || match with_tls {
            true => house.tls_client(authority.client()).await.unwrap(),
            false => house.nobody().await,
        };
        let mut ada = connect().await;
        ada.handshake("ada", "lovelace").await.unwrap();
        ada.execute_update("CREATE TEMP TABLE mine AS SELECT 1 AS a".to_owned(), None).await.unwrap();
        let mut silent = TcpStream::connect(house.server.local_addr()).await.unwrap();
        let read = timeout(PATIENCE, silent.read_to_end(&mut Vec::new())).await;
        read.expect("the silent one is let go").ok();
        // One that is refused has its time, too, and then its place is free.
        let mut eve = connect().await;
        assert_eq!(whoami(&mut eve).await, Code::Unauthenticated);
        let (mut tries, mut refused) = (0, None);
        let place = timeout(PATIENCE, async {
            loop {
                tries += 1;
                let next = match with_tls {
                    true => house.tls_client(authority.client()).await,
                    false => house.plain().connect().await.map(FlightSqlServiceClient::new),
                };
                match next {
                    Ok(mut next) => match next.handshake("bob", "builder").await {
                        Ok(_) => break,
                        Err(error) => refused = Some(error.to_string()),
                    },
                    Err(error) => refused = Some(format!("{error:?}")),
                }
                sleep(PAUSE).await;
            }
        });
        let place = place.await;
        assert!(place.is_ok(), "no place for another after {tries} tries, the last: {refused:?}");
        assert_eq!(number(&mut ada, "SELECT count(*) FROM mine").await.unwrap(), 1, "who was let in stays");
        house.server.shutdown().await.unwrap();
    }
}

type Change<'a> = Box<dyn FnOnce(&mut Settings) + 'a>;

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_used_are_told_before_anything_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let file = |name: &str, text: &str| {
        fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let (cert, key) = authority.sign("server", "127.0.0.1");
    let (cert, key) = (file("cert", &cert), file("key", &key));
    let (other_key, junk, missing) =
        (file("other", &authority.sign("b", "b").1), file("junk", "junk"), dir.path().join("no"));
    let pair = |cert: &PathBuf, key: &PathBuf, client_ca: Option<&PathBuf>| {
        Some(TlsSettings { cert: cert.clone(), key: key.clone(), client_ca: client_ca.cloned() })
    };
    let cases: [(&str, Change); 8] = [
        ("users_file: cannot read", Box::new(|s| s.security.users_file = Some(missing.clone()))),
        ("users_file: ", Box::new(|s| s.security.users_file = Some(junk.clone()))),
        ("secret_file: ", Box::new(|s| s.security.secret_file = Some(junk.clone()))),
        ("tls_cert: cannot read", Box::new(|s| s.security.tls = pair(&missing, &key, None))),
        ("tls_key: cannot read", Box::new(|s| s.security.tls = pair(&cert, &missing, None))),
        ("tls_cert, tls_key: ", Box::new(|s| s.security.tls = pair(&junk, &key, None))),
        ("tls_cert, tls_key: ", Box::new(|s| s.security.tls = pair(&cert, &other_key, None))),
        ("tls_client_ca: ", Box::new(|s| s.security.tls = pair(&cert, &key, Some(&junk)))),
    ];
    for (expected, change) in cases {
        let mut settings = Settings::for_data_dir(dir.path().join("data")).unwrap();
        change(&mut settings);
        let error = Server::start(settings, Arc::new(ManualClock::new(START_US))).await.unwrap_err();
        let text = error.to_string();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
        assert!(text.starts_with(expected) && !text.contains('\n'), "{expected}: {text}");
    }
    let served = fletching(
        &["serve", "--data-dir", "/does/not/matter", "--users-file", junk.to_str().unwrap()],
        &[],
        "",
    );
    assert_eq!(served.status.code(), Some(2));
    let said = String::from_utf8(served.stderr).unwrap();
    assert!(said.starts_with("error: users_file: ") && said.lines().count() == 1, "{said}");
}

/// Runs the binary with these variables in its environment.
fn fletching(arguments: &[&str], environment: &[(&str, &str)], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fletching"));
    command.args(arguments).envs(environment.iter().copied());
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> (String, String) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_write_users_and_sign_in() {
    let authority = Authority::new();
    let house = House::with(|settings, dir| tls(settings, dir, &authority, false)).await;
    let (password, _) = said(&fletching(&["user", "ada"], &[], "correct horse\n"));
    assert!(password.starts_with("ada:$argon2id$v=19$m=19456,t=2,p=1$"), "{password}");
    let (token_line, told) = said(&fletching(&["user", "service", "--token"], &[], ""));
    let token = told.trim().rsplit(' ').next().unwrap();
    assert!(
        token_line.starts_with("service:sha256:") && token.starts_with("flt_") && token.len() == 68,
        "{told}"
    );
    for (name, input) in [("ada", "\n"), ("ada", ""), ("a:b", "x\n")] {
        assert_eq!(fletching(&["user", name], &[], input).status.code(), Some(1), "{name} {input:?}");
    }
    house.rewrite_users(&[password, token_line]);

    let ca = house.dir.path().join("authority.pem");
    fs::write(&ca, &authority.pem).unwrap();
    let url = format!("grpc+tls://{}", house.server.local_addr());
    let sql = |more: &[&str], environment: &[(&str, &str)]| {
        let all = [
            "sql",
            "--url",
            &url,
            "--tls-ca",
            ca.to_str().unwrap(),
            "--format",
            "csv",
            "-c",
            "SELECT 1 AS a",
        ];
        fletching(&[&all, more].concat(), environment, "")
    };
    assert_eq!(said(&sql(&["--user", "ada"], &[("FLETCHING_PASSWORD", "correct horse")])).0, "a\n1\n");
    assert_eq!(said(&sql(&["--token", token], &[])).0, "a\n1\n");
    for (output, expected) in [
        (
            sql(&["--user", "ada"], &[("FLETCHING_PASSWORD", "battery staple")]),
            "error: wrong user name or password",
        ),
        (sql(&["--user", "ada"], &[]), "error: there is no terminal"),
        (sql(&[], &[("FLETCHING_TOKEN", "flt_battery_staple")]), "error: the token is not valid here"),
        (sql(&[], &[]), "error: sign in: "),
    ] {
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(said.starts_with(expected) && !said.contains("staple"), "{said}");
    }
    house.server.shutdown().await.unwrap();
}
