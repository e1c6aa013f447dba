//! Into how many endpoints results are split, and where they may be fetched; and where traces go.

use url::Url;

use super::{Why, count};

/// The most endpoints into which a result is split.
pub(crate) const ENDPOINTS_MAX: usize = 64;

pub(super) fn endpoints(text: &str) -> Result<usize, Why> {
    match count::<usize>(text)? {
        number @ 1..=ENDPOINTS_MAX => Ok(number),
        _ => Err(format!("'{text}' is more than {ENDPOINTS_MAX}")),
    }
}

/// URIs, separated by commas. Drivers stumble over a location without a port.
pub(super) fn locations(text: &str) -> Result<Vec<String>, Why> {
    let location = |text: &str| {
        let url = Url::parse(text).ok().filter(|url| {
            matches!(url.scheme(), "grpc" | "grpc+tcp" | "grpc+tls")
                && url.host_str().is_some_and(|host| !host.is_empty())
                && url.port().is_some()
        });
        match url {
            Some(url) if url.username().is_empty() && url.password().is_none() => Ok(text.to_owned()),
            Some(_) => {
                Err("a location tells clients where to go, not who they are: leave out the user".into())
            }
            None => Err(format!("'{text}' is no location such as grpc://host:8815 or grpc+tls://host:8815")),
        }
    };
    text.split(',').map(str::trim).filter(|text| !text.is_empty()).map(location).collect()
}

/// The URL of a collector; nothing is none.
pub(super) fn collector(text: &str) -> Result<Option<String>, Why> {
    let is_url = |text: &str| Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    match text {
        "" => Ok(None),
        _ if is_url(text) => Ok(Some(text.to_owned())),
        _ => Err(format!("'{text}' is no URL such as http://127.0.0.1:4317")),
    }
}
