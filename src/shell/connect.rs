//! The way to a server: its address, who it is, and who asks.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use arrow_flight::HandshakeRequest;
use arrow_flight::flight_service_client::FlightServiceClient;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::stream;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::client::refused;
use crate::config::{Credentials, Given};
use crate::error::{Error, Result};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A server, not yet connected to.
#[derive(Debug)]
pub(super) struct Server {
    url: String,
    endpoint: Endpoint,
    proof: Proof,
}

/// What a client says of itself.
#[derive(Debug)]
enum Proof {
    Nothing,
    Token(Given),
    Password { user: String, password: Given },
}

impl Server {
    /// The server at `url`. Asks for the password that goes with a user, if it is not given.
    ///
    /// # Errors
    /// `Invalid` for what is no URL, and for files that cannot be used.
    pub(super) fn of(url: &str, credentials: Credentials) -> Result<Self> {
        let endpoint = endpoint(url, &credentials)?;
        let Credentials { user, password, token, .. } = credentials;
        let proof = match (token, user, password) {
            (Some(token), ..) => Proof::Token(token),
            (None, Some(user), Some(password)) => Proof::Password { user, password },
            (None, Some(user), None) => Proof::Password { password: ask_password(&user)?, user },
            (None, None, Some(_)) => {
                return Err(Error::invalid("a password alone proves nobody: name a --user"));
            }
            (None, None, None) => Proof::Nothing,
        };
        Ok(Self { url: url.to_owned(), endpoint, proof })
    }

    /// A connection, and the token that its calls bring.
    pub(super) async fn connect(self) -> Result<(Channel, Option<String>)> {
        let channel = self.endpoint.connect().await.map_err(|error| {
            let cause = root_cause(&error);
            Error::unavailable(format!("cannot connect to {}: {cause}; {}", self.url, hint(&cause)))
        })?;
        let token = match self.proof {
            Proof::Nothing => None,
            Proof::Token(token) => Some(token.reveal().trim().to_owned()),
            Proof::Password { user, password } => sign_in(channel.clone(), &user, password.reveal()).await?,
        };
        Ok((channel, token))
    }
}

/// What to do about a connection that fails for this cause.
fn hint(cause: &str) -> &'static str {
    let hints = [
        (
            "UnknownIssuer",
            "nobody whom this machine trusts has signed the server's certificate: name the authority with --tls-ca",
        ),
        (
            "CaUsedAsEndEntity",
            "the certificate is an authority's own: make the server one with basicConstraints=CA:FALSE",
        ),
        ("UnsupportedCertVersion", "make the certificate one of version 3, with extensions"),
        (
            "BadSignature",
            "the certificate was not signed by whom it names: name the authority, or the certificate itself, with --tls-ca",
        ),
        (
            "ot valid for name",
            "the certificate is for another name: use the one that it has, or add this one to its subjectAltName",
        ),
        (
            "NotValidForName",
            "the certificate is for another name: use the one that it has, or add this one to its subjectAltName",
        ),
        ("InvalidContentType", "the server speaks no TLS there: use grpc://"),
        ("http2 error", "what listens there speaks no gRPC in clear: with TLS use grpc+tls://"),
    ];
    let known = hints.iter().find(|(what, _)| cause.contains(what)).map(|(_, hint)| *hint);
    known.unwrap_or("is `fletching serve` running there?")
}

/// The token for a user and a password; `None` from a server that asks nobody.
async fn sign_in(channel: Channel, user: &str, password: &str) -> Result<Option<String>> {
    let basic = BASE64_STANDARD.encode(format!("{user}:{password}"));
    let header = MetadataValue::<Ascii>::try_from(format!("Basic {basic}"));
    let mut greeting = Request::new(stream::iter([HandshakeRequest::default()]));
    greeting
        .metadata_mut()
        .insert("authorization", header.map_err(|_| Error::internal("base64 may stand in a header"))?);
    let answer =
        FlightServiceClient::new(channel).handshake(greeting).await.map_err(|status| refused(&status))?;
    let header = answer.metadata().get("authorization").and_then(|header| header.to_str().ok());
    Ok(header.and_then(|header| header.strip_prefix("Bearer ")).map(str::to_owned))
}

fn ask_password(user: &str) -> Result<Given> {
    if !io::stdin().is_terminal() {
        return Err(Error::invalid("there is no terminal to ask for the password: set FLETCHING_PASSWORD"));
    }
    let password = rpassword::prompt_password(format!("password of {user}: "));
    password
        .map(Given::from)
        .map_err(|error| Error::unavailable(format!("the password cannot be read: {error}")))
}

fn endpoint(url: &str, credentials: &Credentials) -> Result<Endpoint> {
    let (scheme, address) = url.split_once("://").unwrap_or(("grpc", url));
    let tls = match scheme {
        "grpc" | "grpc+tcp" | "http" => false,
        "grpc+tls" | "grpcs" | "https" => true,
        _ => {
            return Err(Error::unsupported(format!(
                "{scheme}:// is not supported; use grpc://host:port or grpc+tls://host:port"
            )));
        }
    };
    let bad = || Error::invalid(format!("'{url}' is no URL such as grpc://127.0.0.1:8815"));
    let scheme = if tls { "https" } else { "http" };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(|_| bad())?;
    let endpoint = endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true);
    if tls {
        let unusable =
            |error| Error::invalid(format!("the certificates cannot be used: {}", root_cause(&error)));
        return endpoint.tls_config(tls_config(credentials)?).map_err(unusable);
    }
    match credentials.tls_ca.is_some() || credentials.tls_cert.is_some() {
        true => {
            Err(Error::invalid(format!("certificates are for TLS, and '{url}' is without: use grpc+tls://")))
        }
        false => Ok(endpoint),
    }
}

fn tls_config(credentials: &Credentials) -> Result<ClientTlsConfig> {
    let mut config = ClientTlsConfig::new().timeout(CONNECT_TIMEOUT);
    config = match &credentials.tls_ca {
        Some(file) => config.ca_certificate(Certificate::from_pem(read(file)?)),
        None => config.with_enabled_roots(),
    };
    if let (Some(cert), Some(key)) = (&credentials.tls_cert, &credentials.tls_key) {
        config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
    }
    Ok(config)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).map_err(|error| Error::invalid(format!("cannot read {}: {error}", file.display())))
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let none = Credentials::default();
        for url in ["grpc://127.0.0.1:8815", "grpc+tcp://localhost:1", "http://[::1]:8815", "localhost:8815"]
        {
            assert!(endpoint(url, &none).is_ok(), "{url}");
        }
        for url in ["ftp://h", "grpc://"] {
            assert!(endpoint(url, &none).is_err(), "{url}");
        }
        let missing = Credentials { tls_ca: Some("/does/not/exist".into()), ..Credentials::default() };
        let error = endpoint("grpc+tls://h:1", &missing).unwrap_err().to_string();
        assert!(error.contains("cannot read /does/not/exist"), "{error}");
        let error = endpoint("grpc://h:1", &missing).unwrap_err().to_string();
        assert!(error.contains("use grpc+tls://"), "{error}");
    }

    #[tokio::test]
    async fn a_token_goes_before_a_password_and_none_is_shown() {
        let secret = || Some(Given::from("hunter2".to_owned()));
        let of = |credentials| Server::of("grpc://h:1", credentials);
        let both = Credentials {
            user: Some("ada".into()),
            password: secret(),
            token: secret(),
            ..Credentials::default()
        };
        let server = of(both).unwrap();
        assert!(matches!(server.proof, Proof::Token(_)) && !format!("{server:?}").contains("hunter2"));
        let error = of(Credentials { password: secret(), ..Credentials::default() }).unwrap_err().to_string();
        assert!(error.contains("--user"), "{error}");
    }
}
