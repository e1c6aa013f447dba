//! Where the latest values live.

use std::collections::HashSet;
use std::fmt;

use url::Url;

use super::Why;

/// Where the latest values live.
#[derive(Clone, PartialEq, Eq)]
pub enum OnlineSetting {
    /// A key-value file in the data directory.
    Embedded,
    /// A Redis or Valkey server, at a host and port or, as `redis+unix:///path`, at a socket of this machine; the URL may
    /// hold a password, which is never shown.
    Redis(Url),
    /// Some nodes of a Redis Cluster, at least one, as URLs of single servers. The user and the password, which is never
    /// shown, are the same in all.
    RedisCluster(Vec<Url>),
}

impl fmt::Display for OnlineSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => f.write_str("embedded"),
            Self::Redis(url) => write!(f, "{}", without_password(url)),
            Self::RedisCluster(seeds) => {
                for (i, seed) in seeds.iter().enumerate() {
                    let shown = without_password(seed).to_string();
                    let shown = shown.trim_start_matches("redis://");
                    match i {
                        0 => write!(f, "redis-cluster://{shown}")?,
                        _ => write!(f, ",{}", shown.rsplit('@').next().unwrap_or(shown))?,
                    }
                }
                Ok(())
            }
        }
    }
}

/// The URL as it may be shown.
pub(super) fn without_password(url: &Url) -> Url {
    let mut shown = url.clone();
    if shown.password().is_some() {
        // A URL with a password has a host, and so takes another.
        let _ = shown.set_password(Some("***"));
    }
    shown.set_query(None);
    shown.set_fragment(None);
    shown
}

impl fmt::Debug for OnlineSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Never repeats the text: it may hold a password.
pub(super) fn parse(text: &str) -> Result<OnlineSetting, Why> {
    if text == "embedded" {
        return Ok(OnlineSetting::Embedded);
    }
    if let Some(nodes) = text.strip_prefix("redis-cluster://") {
        return cluster(nodes).map(OnlineSetting::RedisCluster);
    }
    let url = Url::parse(text).map_err(|_| "neither 'embedded' nor a redis://host:port URL".to_owned())?;
    match url.scheme() {
        "redis" if url.host_str().is_some_and(|host| !host.is_empty()) => Ok(OnlineSetting::Redis(url)),
        "redis" => Err("the redis:// URL names no host".into()),
        "redis+unix" => socket(&url).map(|()| OnlineSetting::Redis(url)),
        "rediss" => Err(
            "rediss:// (Redis over TLS) is not supported in this version; use redis:// on a trusted network"
                .into(),
        ),
        other => Err(format!(
            "{other}:// is no online store; use 'embedded', redis://host:port, redis+unix:///path or \
             redis-cluster://host:port,host:port"
        )),
    }
}

/// `redis+unix:///path[?db=…&user=…&pass=…]`; what else is asked for would be passed over in silence.
fn socket(url: &Url) -> Result<(), Why> {
    if url.cannot_be_a_base() || url.has_host() || url.path().len() < 2 {
        return Err("the redis+unix:// URL names no socket: write redis+unix:///path/of/the.sock".into());
    }
    let mut given = HashSet::new();
    let fit = url.query_pairs().all(|(name, value)| {
        let fits = match name.as_ref() {
            "db" => value.parse::<u32>().is_ok(),
            "user" | "pass" => !value.is_empty(),
            _ => false,
        };
        fits && given.insert(name)
    });
    // Without a password nobody signs in, as whoever it be.
    match fit && url.fragment().is_none() && (!given.contains("user") || given.contains("pass")) {
        true => Ok(()),
        false => Err(
            "behind the path of a redis+unix:// URL may stand ?db=NUMBER&user=NAME&pass=PASSWORD, with % escapes (%2B \
             for +), each once, no user without a password, and nothing else"
                .into(),
        ),
    }
}

/// `[user:password@]host:port[,host:port…]`, behind the scheme. Never repeats the text either.
fn cluster(text: &str) -> Result<Vec<Url>, Why> {
    let (credentials, nodes) = match text.rsplit_once('@') {
        Some((credentials, nodes)) => (format!("{credentials}@"), nodes),
        None => (String::new(), text),
    };
    let node = |(i, node): (usize, &str)| {
        let url = Url::parse(&format!("redis://{credentials}{node}"));
        let bad = || {
            format!(
                "node {} of the redis-cluster:// URL is not host:port; write redis-cluster://[user:password@]host:port\
                 [,host:port…], with % escapes in the password",
                i + 1
            )
        };
        let url = url.map_err(|_| bad())?;
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(
                "a Redis Cluster has no numbered databases; leave out what stands behind the nodes".into()
            );
        }
        if url.host_str().is_none_or(str::is_empty) { Err(bad()) } else { Ok(url) }
    };
    nodes.trim_end_matches('/').split(',').enumerate().map(node).collect()
}
