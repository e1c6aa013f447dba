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
}

impl fmt::Display for CatalogSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Postgres(url) => write!(f, "{}", without_password(url)),
        }
    }
}

impl fmt::Debug for CatalogSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

pub(super) fn local_directory(text: &str) -> Result<PathBuf, Why> {
    match text.split_once("://") {
        None => path(text),
        Some(("file", rest)) => path(rest),
        Some((scheme, _)) => {
            Err(format!("{scheme}:// is not supported in this version; name a local directory"))
        }
    }
}

/// Never repeats a URL: it may hold a password.
pub(super) fn catalog(text: &str) -> Result<CatalogSetting, Why> {
    match text.split_once(':') {
        Some(("sqlite", file)) => Ok(CatalogSetting::Sqlite(path(file.trim_start_matches("//"))?)),
        Some(("postgresql" | "postgres", _)) => postgres(text).map(CatalogSetting::Postgres),
        _ => {
            Err("not a catalog of this version, which are sqlite:<path> and postgresql://host/database"
                .into())
        }
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
