use super::*;

use std::fs;
use std::time::Duration;

use base64::prelude::BASE64_STANDARD;
use prost::Message;
use tempfile::NamedTempFile;

use crate::access::{of_token, quick_line};
use crate::clock::ManualClock;
use crate::error::ErrorKind;
use crate::flight::seal::{Purpose, Secret};

const HOUR_US: i64 = 3_600_000_000;

/// Tokens hold for two hours.
struct Gate {
    auth: Authenticator,
    clock: Arc<ManualClock>,
    file: NamedTempFile,
}

impl Gate {
    fn of(lines: &[String]) -> Self {
        let file = NamedTempFile::new().unwrap();
        fs::write(file.path(), lines.join("\n")).unwrap();
        let clock = Arc::new(ManualClock::new(0));
        let users = Users::open(file.path(), clock.clone()).unwrap();
        let tokens = Seal::new(&Secret::random(), Purpose::Token, Duration::from_secs(7200), clock.clone());
        Self { auth: Authenticator::new(Method::Users(users), tokens, clock.clone()), clock, file }
    }

    /// Of ada, whose password is "lovelace", and a service with a token.
    fn open() -> Self {
        Self::of(&[quick_line("ada", "lovelace"), of_token("service", "flt_secret")])
    }

    /// The users are others from now on.
    fn rewrite(&self, lines: &[String]) {
        fs::write(self.file.path(), lines.join("\n")).unwrap();
        self.clock.advance(1_000_000);
    }

    fn identify(&self, header: &str) -> Result<Identity> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, header.parse().unwrap());
        self.auth.identify(&headers)
    }

    async fn sign_in(&self, user: &str, password: &str) -> Result<(Arc<str>, Token)> {
        match self.identify(&format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))))? {
            Identity::Unproven(basic) => self.auth.verify(basic, ([127, 0, 0, 1], 1).into()).await,
            other => panic!("{other:?}"),
        }
    }

    fn user(&self, header: &str) -> Result<String> {
        match self.identify(header)? {
            Identity::User(user) | Identity::Renewed(user, _) => Ok(user.to_string()),
            other => panic!("{other:?}"),
        }
    }
}

fn header(token: &Token) -> String {
    token.header().to_str().unwrap().to_owned()
}

fn refused<T: fmt::Debug>(result: Result<T>) -> String {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_password_gives_a_token_that_is_renewed_in_use_and_expires() {
    let gate = Gate::open();
    let (user, token) = gate.sign_in("ada", "lovelace").await.unwrap();
    assert_eq!(&*user, "ada");
    assert_eq!(gate.user(&header(&token)).unwrap(), "ada");
    assert!(matches!(gate.identify(&header(&token)).unwrap(), Identity::User(_)));
    gate.clock.set(HOUR_US + 1);
    let Identity::Renewed(_, fresh) = gate.identify(&header(&token)).unwrap() else {
        panic!("it has lived half")
    };
    gate.clock.set(2 * HOUR_US);
    assert!(refused(gate.user(&header(&token))).contains("has expired"));
    assert_eq!(gate.user(&header(&fresh)).unwrap(), "ada");
}

#[tokio::test]
async fn who_is_unknown_and_who_is_wrong_hear_the_same() {
    let gate = Gate::open();
    let wrong = refused(gate.sign_in("ada", "byron").await);
    assert_eq!(wrong, "wrong user name or password");
    assert_eq!(refused(gate.sign_in("eve", "lovelace").await), wrong);
    assert_eq!(refused(gate.sign_in("service", "flt_secret").await), wrong, "it has no password");
    assert_eq!(refused(gate.sign_in("", "").await), wrong);
}

#[tokio::test]
async fn a_user_who_is_removed_or_has_another_password_is_out() {
    let gate = Gate::open();
    let ada = header(&gate.sign_in("ada", "lovelace").await.unwrap().1);
    let rest = of_token("service", "flt_secret");
    gate.rewrite(&[quick_line("ada", "byron"), rest.clone()]);
    assert!(refused(gate.user(&ada)).contains("sign in again"));
    refused(gate.sign_in("ada", "lovelace").await);
    let ada = header(&gate.sign_in("ada", "byron").await.unwrap().1);
    assert_eq!(gate.user(&ada).unwrap(), "ada");
    gate.rewrite(&[rest]);
    refused(gate.user(&ada));
    assert_eq!(gate.user("Bearer flt_secret").unwrap(), "service");
    gate.rewrite(&[quick_line("bob", "b")]);
    refused(gate.user("Bearer flt_secret"));
}

#[tokio::test]
async fn nothing_else_is_a_token() {
    let gate = Gate::open();
    let (_, token) = gate.sign_in("ada", "lovelace").await.unwrap();
    let good = header(&token);
    let other = Gate::open();
    refused(other.user(&good));
    for at in "Bearer ".len()..good.len() {
        let mut forged = good.clone().into_bytes();
        forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
        refused(gate.user(str::from_utf8(&forged).unwrap()));
    }
    for header in
        ["Bearer", "Bearer ", "bearer flt_Secret", "Digest x", "Basic", "Basic ?", "Basic YWRh", "x"]
    {
        refused(gate.identify(header));
    }
    assert_eq!(gate.user("bearer  flt_secret ").unwrap(), "service", "the scheme is a word like any other");
}

#[tokio::test]
async fn clients_of_the_older_protocol_greet_in_a_message() {
    let gate = Gate::open();
    let client = ([127, 0, 0, 1], 1).into();
    let greeting = |user: &str, password: &str| {
        arrow_flight::BasicAuth { username: user.into(), password: password.into() }.encode_to_vec()
    };
    let token = gate.auth.greet(&greeting("ada", "lovelace"), client).await.unwrap().into_bytes();
    let mut headers = HeaderMap::new();
    headers.insert(OLDER_TOKEN_HEADER, BASE64_STANDARD.encode(&token).parse().unwrap());
    assert!(matches!(gate.auth.identify(&headers).unwrap(), Identity::User(user) if &*user == "ada"));
    for message in [greeting("ada", "byron"), greeting("", ""), b"nonsense".to_vec()] {
        refused(gate.auth.greet(&message, client).await);
    }
}

#[tokio::test]
async fn no_secret_is_shown() {
    let gate = Gate::open();
    let (_, token) = gate.sign_in("ada", "lovelace").await.unwrap();
    let Identity::Unproven(basic) = gate.identify("Basic YWRhOmxvdmVsYWNl").unwrap() else {
        panic!("a password")
    };
    let shown = format!("{:?} {token:?} {basic:?} {:?}", gate.auth, token.header());
    for secret in ["lovelace", "argon2", header(&token).split_at(20).1] {
        assert!(!shown.contains(secret), "{shown}");
    }
}
