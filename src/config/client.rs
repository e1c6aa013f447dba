//! Arguments of the commands that are no server.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Given;

/// Arguments of `fletching sql`.
#[derive(Debug, Args)]
pub struct SqlArgs {
    /// Server to talk to; grpc+tls://host:port for one with TLS
    #[arg(long, env = "FLETCHING_URL", default_value = "grpc://127.0.0.1:8815")]
    pub url: String,
    #[command(flatten)]
    pub(crate) credentials: Credentials,
    /// SQL to run, one or several statements separated by semicolons
    #[arg(short, long, value_name = "SQL", conflicts_with = "file")]
    pub command: Option<String>,
    /// File of SQL to run, - for standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    /// How results are written
    #[arg(long, value_enum, default_value_t = OutputFormat::Table)]
    pub format: OutputFormat,
}

/// What proves to a server who asks, and to us which server it is.
#[derive(Debug, Default, Args)]
pub(crate) struct Credentials {
    /// User to sign in as; the password is asked for where it is not given
    #[arg(short, long, env = "FLETCHING_USER", value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Password; better in the environment, which other users of this machine do not see
    #[arg(long, env = "FLETCHING_PASSWORD", hide_env_values = true)]
    pub(crate) password: Option<Given>,
    /// Bearer token, which goes before user and password
    #[arg(long, env = "FLETCHING_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<Given>,
    /// Authority that signed the server's certificate, as PEM [default: those that this machine trusts]
    #[arg(long, env = "FLETCHING_TLS_CA", value_name = "FILE")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Certificate to show to the server, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Key of that certificate, as PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
}

/// Arguments of `fletching user`.
#[derive(Debug, Args)]
pub struct UserArgs {
    /// Name of the user
    pub name: String,
    /// Write the line of a new bearer token, for services, instead of that of a password
    #[arg(long)]
    pub token: bool,
}

/// How `fletching sql` writes results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Aligned columns for people
    Table,
    /// RFC 4180 with a header line; NULL is an empty field
    Csv,
    /// One object per row and line
    Json,
    /// An Arrow IPC stream
    Arrow,
}
