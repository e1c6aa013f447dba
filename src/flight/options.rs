//! Session options: the settings of a session for clients that set them by an action of their own.
//!
//! The messages are those of Flight's protocol, which arrow-flight 58 does not know yet.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::{Message, Oneof};

use crate::error::{Error, ErrorKind, Result};
use crate::sql::{Session, SettingValue};

#[derive(Clone, PartialEq, Message)]
struct OptionValue {
    /// Absent: back to what it was in the beginning.
    #[prost(oneof = "Value", tags = "1, 2, 3, 4, 5")]
    value: Option<Value>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Value {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(bool, tag = "2")]
    Truth(bool),
    #[prost(sfixed64, tag = "3")]
    Whole(i64),
    #[prost(double, tag = "4")]
    Real(f64),
    #[prost(message, tag = "5")]
    List(StringList),
}

#[derive(Clone, PartialEq, Message)]
struct StringList {
    #[prost(string, repeated, tag = "1")]
    values: Vec<String>,
}

/// `SetSessionOptionsRequest`, and `GetSessionOptionsResult`, which looks the same.
#[derive(Clone, PartialEq, Message)]
struct Options {
    #[prost(btree_map = "string, message", tag = "1")]
    options: BTreeMap<String, OptionValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SetSessionOptionsResult {
    /// Only what could not be set.
    #[prost(btree_map = "string, message", tag = "1")]
    errors: BTreeMap<String, OptionError>,
}

#[derive(Clone, PartialEq, Message)]
struct OptionError {
    #[prost(int32, tag = "1")]
    value: i32,
}

const INVALID_NAME: i32 = 1;
const INVALID_VALUE: i32 = 2;
const ERROR: i32 = 3;

#[derive(Clone, PartialEq, Message)]
struct CloseSessionResult {
    #[prost(int32, tag = "1")]
    status: i32,
}

const CLOSED: i32 = 1;

/// `SetSessionOptions`: each option by itself, and those that cannot be set are named in the answer.
pub(super) async fn set(session: &Session, body: Bytes) -> Result<Bytes> {
    let request = Options::decode(body)
        .map_err(|error| Error::invalid(format!("the session options do not decode: {error}")))?;
    let mut errors = BTreeMap::new();
    for (name, OptionValue { value }) in request.options {
        if let Err(value) = set_one(session, &name, value).await {
            errors.insert(name, OptionError { value });
        }
    }
    Ok(SetSessionOptionsResult { errors }.encode_to_vec().into())
}

async fn set_one(session: &Session, name: &str, value: Option<Value>) -> Result<(), i32> {
    if !session.has_setting(name) {
        return Err(INVALID_NAME);
    }
    let text = match value {
        None => None,
        Some(Value::Text(text)) => Some(text),
        Some(Value::Whole(number)) => Some(number.to_string()),
        Some(Value::Real(number)) => Some(number.to_string()),
        Some(Value::Truth(truth)) => Some(truth.to_string()),
        Some(Value::List(_)) => return Err(INVALID_VALUE),
    };
    let set = session.set(name, text.as_deref()).await;
    set.map_err(|error| match error.kind() {
        ErrorKind::Invalid | ErrorKind::NotFound => {
            tracing::debug!(option = name, %error, "session option refused");
            INVALID_VALUE
        }
        _ => {
            tracing::warn!(option = name, %error, "session option not set");
            ERROR
        }
    })
}

/// `GetSessionOptions`: every setting of the session.
pub(super) fn get(session: &Session) -> Bytes {
    let option = |(name, value): (&'static str, SettingValue)| {
        let value = match value {
            SettingValue::Text(text) => Value::Text(text),
            SettingValue::Number(number) => Value::Whole(number),
        };
        (name.to_owned(), OptionValue { value: Some(value) })
    };
    Options { options: session.settings().into_iter().map(option).collect() }.encode_to_vec().into()
}

/// What `CloseSession` answers.
pub(super) fn closed() -> Bytes {
    CloseSessionResult { status: CLOSED }.encode_to_vec().into()
}
