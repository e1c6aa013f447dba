//! Where history lives.

use std::fmt;
use std::path::PathBuf;

use url::Url;

use super::online::without_password;
use super::{Why, path};

/// What may stand behind the `?` of a PostgreSQL URL: how to get there, and TLS, but nothing secret.
const POSTGRES_OPTIONS: [&str; 9] =
    ["host", "port", "dbname", "user", "application_name", "sslmode", "sslrootcert", "sslcert", "sslkey"];

/// Which catalog knows the Iceberg tables.
#[derive(Clone, PartialEq, Eq)]
pub enum CatalogSetting {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL database; the URL may hold a password, which is never shown.
    Postgres(Url),
    /// A server that speaks Iceberg's REST protocol.
    Rest {
        /// Where it is, before `/v1`; `?warehouse=…` is passed on to it.
        url: Url,
        /// The file with the token that it asks for.
        token_file: Option<PathBuf>,
    },
}

impl fmt::Display for CatalogSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) | Self::Rest { url, .. } => write!(f, "{}", without_password(url)),
        }
    }
}

impl fmt::Debug for CatalogSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Where the files of the Iceberg tables are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WarehouseSetting {
    /// A directory of this machine.
    Local(PathBuf),
    /// A bucket of S3-compatible storage; credentials come from the environment.
    S3 {
        /// Its name.
        bucket: String,
        /// Where in it, without slashes at the ends; empty for all of it.
        prefix: String,
        /// Where the storage listens, if it is not Amazon's or the environment's.
        endpoint: Option<String>,
        /// The bucket's region, if it is not the environment's.
        region: Option<String>,
    },
}

impl fmt::Display for WarehouseSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => write!(f, "{}", path.display()),
            Self::S3 { bucket, prefix, .. } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix, .. } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

pub(super) fn warehouse(
    text: &str,
    endpoint: Option<String>,
    region: Option<String>,
) -> Result<WarehouseSetting, Why> {
    let place = match text.split_once("://") {
        None => return path(text).map(WarehouseSetting::Local),
        Some(("file", rest)) => return path(rest).map(WarehouseSetting::Local),
        Some(("s3" | "s3a", place)) => place.trim_end_matches('/'),
        Some((scheme, _)) => {
            return Err(format!("{scheme}:// is not supported; name a directory, or s3://bucket/prefix"));
        }
    };
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if bucket.is_empty() || !bucket.chars().all(is_name) {
        return Err("the s3:// URL names no bucket: write s3://bucket or s3://bucket/prefix".into());
    }
    if prefix.split('/').any(|part| part.is_empty() && !prefix.is_empty() || part == "." || part == "..") {
        return Err("the prefix of the s3:// URL has an empty part, '.' or '..'".into());
    }
    Ok(WarehouseSetting::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned(), endpoint, region })
}

pub(super) fn endpoint(text: &str) -> Result<Option<String>, Why> {
    if text.is_empty() {
        return Ok(None);
    }
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let url = url.ok_or("no URL such as https://storage.internal:9000")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "credentials do not belong here, but into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY".into()
        );
    }
    Ok(Some(text.trim_end_matches('/').to_owned()))
}

pub(super) fn region(text: &str) -> Result<Option<String>, Why> {
    let is_name = text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    match text {
        "" => Ok(None),
        _ if is_name => Ok(Some(text.to_owned())),
        _ => Err(format!("'{text}' is no region such as eu-central-1")),
    }
}

/// Never repeats a URL: it may hold a password.
pub(super) fn catalog(text: &str, token_file: Option<PathBuf>) -> Result<CatalogSetting, Why> {
    match text.split_once(':') {
        Some(("http" | "https", _)) => rest(text).map(|url| CatalogSetting::Rest { url, token_file }),
        Some(("sqlite", file)) => Ok(CatalogSetting::Sqlite(path(file.trim_start_matches("//"))?)),
        Some(("postgresql" | "postgres", _)) => postgres(text).map(CatalogSetting::Postgres),
        _ => {
            Err("no catalog: name sqlite:<path>, postgresql://host/database, or the http(s):// URL of a REST catalog"
                .into())
        }
    }
}

fn rest(text: &str) -> Result<Url, Why> {
    let url = Url::parse(text).ok().filter(Url::has_host);
    let url = url.ok_or("no URL such as https://catalog.internal:8181/iceberg?warehouse=features")?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(
            "credentials do not belong here, but a token into the file of --catalog-token-file".into()
        );
    }
    match url.query_pairs().find(|(key, _)| key != "warehouse") {
        Some((key, _)) => {
            Err(format!("'{key}' is no option of a REST catalog's URL here; there is warehouse"))
        }
        None => Ok(url),
    }
}

fn postgres(text: &str) -> Result<Url, Why> {
    let url = Url::parse(text).ok().filter(|url| !url.cannot_be_a_base());
    let url = url.ok_or(
        "the URL is not postgresql://[user:password@]host[:port]/database, with % escapes in the password",
    )?;
    let names = |option: &str| url.query_pairs().any(|(key, _)| key == option);
    if url.host_str().is_none_or(str::is_empty) && !names("host") {
        return Err("the postgresql:// URL names no host".into());
    }
    if url.path().trim_matches('/').is_empty() && !names("dbname") {
        return Err("the postgresql:// URL names no database".into());
    }
    match url.query_pairs().find(|(key, _)| !POSTGRES_OPTIONS.contains(&key.as_ref())) {
        Some((key, _)) => Err(format!(
            "'{key}' is no option of a postgresql:// URL here; there are {}",
            POSTGRES_OPTIONS.join(", ")
        )),
        None => Ok(url),
    }
}
