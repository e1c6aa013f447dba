//! Settings: flag over `FLETCHING_…` environment variable over TOML file over default, each validated once.

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};

mod client;
mod endpoints;
mod offline;
mod online;
mod security;

pub(crate) use client::Credentials;
pub use client::{OutputFormat, SqlArgs, UserArgs};
pub(crate) use endpoints::ENDPOINTS_MAX;
use endpoints::{endpoints, locations};
pub use offline::{CatalogSetting, WarehouseSetting};
pub use online::OnlineSetting;
use security::GivenSecurity;
pub use security::{SecuritySettings, TlsSettings};

/// The command line of `fletching`.
#[derive(Debug, Parser)]
#[command(name = "fletching", version, about, arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `fletching` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve feature groups over Arrow Flight SQL
    Serve(Box<ServeArgs>),
    /// Run SQL on a server: a shell, or one shot with -c or -f
    Sql(SqlArgs),
    /// Write a line for the users file of a server, with the hash of a password or of a token
    User(UserArgs),
}

/// One setting as it was given, not yet validated. It may hold a secret, so it never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Given(String);

impl Given {
    /// For those who use the secret that it may be.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Given {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// In TOML, `connections_max = 100` and `connections_max = "100"` mean the same.
impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Scalar;
        impl Visitor<'_> for Scalar {
            type Value = Given;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, an integer or a boolean")
            }
            fn visit_str<E>(self, text: &str) -> Result<Given, E> {
                Ok(Given(text.to_owned()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Given, E> {
                Ok(Given(number.to_string()))
            }
            fn visit_bool<E>(self, truth: bool) -> Result<Given, E> {
                Ok(Given(truth.to_string()))
            }
        }
        deserializer.deserialize_any(Scalar)
    }
}

/// Declares every setting of `fletching serve` once: flag, environment variable, TOML key and help text.
macro_rules! serve_args {
    ($($(#[doc = $doc:literal])+ $key:ident $env:literal $value:literal $(, $extra:meta)?;)*) => {
        /// Settings of `fletching serve` as given, before validation.
        #[derive(Debug, Default, Args, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct ServeArgs {
            /// TOML file with any of the settings below, spelled with underscores (`data_dir = "…"`)
            #[arg(long, env = "FLETCHING_CONFIG", value_name = "FILE")]
            #[serde(skip)]
            config: Option<PathBuf>,
            $(
                $(#[doc = $doc])+
                #[arg(long, env = $env, value_name = $value, hide_env_values = true)]
                $(#[$extra])?
                $key: Option<Given>,
            )*
        }

        impl ServeArgs {
            /// These settings, and those of `file` where these are silent.
            fn over(self, file: ServeArgs) -> ServeArgs {
                ServeArgs { config: self.config, $($key: self.$key.or(file.$key),)* }
            }
        }
    };
}

serve_args! {
    /// Directory for everything that is embedded [default: ./data]
    data_dir "FLETCHING_DATA_DIR" "DIR";
    /// Address of the Flight SQL listener [default: 127.0.0.1:8815]
    listen "FLETCHING_LISTEN" "HOST:PORT";
    /// Listen beyond this machine although nobody is asked who they are [default: false]
    insecure "FLETCHING_INSECURE" "BOOL", arg(num_args = 0..=1, default_missing_value = "true", require_equals = true);
    /// File of users and the hashes of their passwords and tokens; `fletching user` writes its lines
    users_file "FLETCHING_USERS_FILE" "FILE";
    /// File with the secret that seals tokens, handles and tickets, for servers that stand in for each other
    /// [default: a new secret with every start]
    secret_file "FLETCHING_SECRET_FILE" "FILE";
    /// How long a token holds that a client was given for its password; it is renewed while in use [default: 7d]
    token_ttl "FLETCHING_TOKEN_TTL" "DURATION";
    /// How long the handle of a prepared statement holds; binding values renews it [default: 30d]
    handle_ttl "FLETCHING_HANDLE_TTL" "DURATION";
    /// How long a ticket holds [default: 1d]
    ticket_ttl "FLETCHING_TICKET_TTL" "DURATION";
    /// How long a connection may take until its first call is let in [default: 30s]
    authentication_timeout "FLETCHING_AUTHENTICATION_TIMEOUT" "DURATION";
    /// Certificate of the server, as PEM, for TLS
    tls_cert "FLETCHING_TLS_CERT" "FILE";
    /// Key of the certificate, as PEM
    tls_key "FLETCHING_TLS_KEY" "FILE";
    /// Authority that signs the certificates of clients, as PEM; clients without one are refused
    tls_client_ca "FLETCHING_TLS_CLIENT_CA" "FILE";
    /// Address of the HTTP port, which tells of health and metrics and of nothing that is stored, or off
    /// [default: 127.0.0.1:8816]
    http_listen "FLETCHING_HTTP_LISTEN" "HOST:PORT";
    /// Online store: embedded, redis://[user:password@]host[:port][/db],
    /// redis+unix:///path[?db=…&user=…&pass=…], or
    /// redis-cluster://[user:password@]host:port,… with some of the cluster's nodes [default: embedded]
    online "FLETCHING_ONLINE" "STORE";
    /// How long any one call to Redis may take [default: 2s]
    online_timeout "FLETCHING_ONLINE_TIMEOUT" "DURATION";
    /// Where the files of the Iceberg tables are: a directory, or s3://bucket[/prefix] [default: <data-dir>/warehouse]
    warehouse "FLETCHING_WAREHOUSE" "PLACE";
    /// Where S3-compatible storage listens that is not Amazon's: http[s]://host[:port] [default: AWS_ENDPOINT_URL]
    s3_endpoint "FLETCHING_S3_ENDPOINT" "URL";
    /// Region of the bucket [default: AWS_REGION, or us-east-1]
    s3_region "FLETCHING_S3_REGION" "REGION";
    /// Iceberg catalog: sqlite:<path>, postgresql://[user:password@]host[:port]/database, or the URL of a REST catalog,
    /// http[s]://host[:port][/path][?warehouse=name] [default: sqlite:<data-dir>/catalog.db]
    catalog "FLETCHING_CATALOG" "CATALOG";
    /// File with the token for a REST catalog, read anew for every request
    catalog_token_file "FLETCHING_CATALOG_TOKEN_FILE" "FILE";
    /// Directories of this machine from which COPY may read files: DIR,… [default: none]
    copy_from "FLETCHING_COPY_FROM" "DIRS";
    /// Memory that queries may use: 2GB, 512MiB, 70% of the machine, or unlimited [default: 70%]
    memory_limit "FLETCHING_MEMORY_LIMIT" "SIZE";
    /// Memory for cached online values; 0 turns the cache off [default: 256MB]
    cache_capacity "FLETCHING_CACHE_CAPACITY" "SIZE";
    /// How long an online value may be served from the cache [default: 5s]
    cache_ttl "FLETCHING_CACHE_TTL" "DURATION";
    /// text or json, on standard error [default: text]
    log_format "FLETCHING_LOG_FORMAT" "FORMAT";
    /// error, warn, info, debug, trace, or directives such as fletching=debug [default: info]
    log_level "FLETCHING_LOG_LEVEL" "LEVEL";
    /// Look-ups and small ingests that take this long are logged as other statements are [default: 100ms]
    slow_lookup "FLETCHING_SLOW_LOOKUP" "DURATION";
    /// Where traces go: the URL of an OpenTelemetry collector that takes OTLP over gRPC [default: nowhere]
    otlp_endpoint "FLETCHING_OTLP_ENDPOINT" "URL";
    /// How long running queries may take to finish after SIGTERM [default: 30s]
    drain_timeout "FLETCHING_DRAIN_TIMEOUT" "DURATION";
    /// How often tables with many small files are optimized without being asked to, or off [default: off]
    optimize_interval "FLETCHING_OPTIMIZE_INTERVAL" "DURATION";
    /// How long snapshots are kept that are no longer current, after which they are vacuumed without being asked to, or off
    /// [default: off]
    retain "FLETCHING_RETAIN" "DURATION";
    /// How long small writes stay in the log until they are put into a snapshot, where other engines see them
    /// [default: 1m]
    fold_interval "FLETCHING_FOLD_INTERVAL" "DURATION";
    /// Into how many endpoints a large result is split, for clients that fetch them in parallel [default: 1]
    endpoints "FLETCHING_ENDPOINTS" "COUNT";
    /// Where clients may fetch results: grpc://host:port,… of servers on the same stores [default: where they asked]
    advertise "FLETCHING_ADVERTISE" "URIS";
    /// Most client connections at a time [default: 1024]
    connections_max "FLETCHING_CONNECTIONS_MAX" "COUNT";
    /// Most calls in flight on one connection [default: 256]
    streams_per_connection_max "FLETCHING_STREAMS_PER_CONNECTION_MAX" "COUNT";
    /// Largest message that a client may send [default: 64MiB]
    message_size_max "FLETCHING_MESSAGE_SIZE_MAX" "SIZE";
    /// Most sessions that are kept by cookie [default: 1024]
    sessions_max "FLETCHING_SESSIONS_MAX" "COUNT";
    /// How long a session that is kept by cookie may lie idle [default: 30m]
    session_idle_timeout "FLETCHING_SESSION_IDLE_TIMEOUT" "DURATION";
    /// Most queries at a time; look-ups and questions about what exists are not counted [default: 64]
    queries_max "FLETCHING_QUERIES_MAX" "COUNT";
    /// Most queries that wait for their turn [default: 256]
    queries_queued_max "FLETCHING_QUERIES_QUEUED_MAX" "COUNT";
    /// How long a query may wait for its turn [default: 30s]
    queue_timeout "FLETCHING_QUEUE_TIMEOUT" "DURATION";
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object per line.
    Json,
}

/// What the server works with: complete and valid.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Directory for everything that is embedded.
    pub data_dir: PathBuf,
    /// Address of the Flight SQL listener; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Who may connect, and how they prove it.
    pub security: SecuritySettings,
    /// Address of the HTTP port; port 0 takes a free one, `None` opens none.
    pub http_listen: Option<SocketAddr>,
    /// Where the latest values live.
    pub online: OnlineSetting,
    /// How long any one call to Redis may take.
    pub online_timeout: Duration,
    /// Where the files of the Iceberg tables are.
    pub warehouse: WarehouseSetting,
    /// Which catalog knows the Iceberg tables.
    pub catalog: CatalogSetting,
    /// The directories from which COPY may read; none allows no COPY.
    pub copy_from: Vec<PathBuf>,
    /// Bytes that queries may use together; `None` is unlimited.
    pub memory_limit_bytes: Option<u64>,
    /// Bytes of online values in the cache; 0 is no cache.
    pub cache_capacity_bytes: u64,
    /// How long an online value may be served from the cache.
    pub cache_ttl: Duration,
    /// How logs are written.
    pub log_format: LogFormat,
    /// Directives of `tracing`'s `EnvFilter`.
    pub log_level: String,
    /// Look-ups that take this long are logged as other statements are.
    pub slow_lookup: Duration,
    /// The collector that takes traces; `None` sends none.
    pub otlp_endpoint: Option<String>,
    /// How long running queries may take to finish after the signal to stop.
    pub drain_timeout: Duration,
    /// How often tables with many small files are optimized without being asked to; `None` is never.
    pub optimize_interval: Option<Duration>,
    /// How long snapshots are kept that are no longer current, before the server vacuums them by itself; `None` is for ever.
    pub retain: Option<Duration>,
    /// How long small writes stay in the log until they are put into a snapshot.
    pub fold_interval: Duration,
    /// Into how many endpoints a session splits large results, until it says otherwise.
    pub endpoints: usize,
    /// The URIs at which results may be fetched; none is the server that was asked.
    pub advertise: Vec<String>,
    /// What clients may ask for.
    pub limits: Limits,
}

/// What clients may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most connections at a time.
    pub connections_max: usize,
    /// Most calls in flight on one connection.
    pub streams_per_connection_max: u32,
    /// Largest message that a client may send, in bytes.
    pub message_bytes_max: usize,
    /// Most sessions kept by cookie.
    pub sessions_max: usize,
    /// How long a session kept by cookie may lie idle.
    pub session_idle_timeout: Duration,
    /// Most queries at a time, but for look-ups that are kept ready.
    pub queries_max: usize,
    /// Most queries that wait for their turn.
    pub queries_queued_max: usize,
    /// How long a query may wait for its turn.
    pub queue_timeout: Duration,
}

impl Settings {
    /// Reads the file that `args` names, lets flags and environment win over it, and validates everything.
    ///
    /// # Errors
    /// `Invalid`, in one line that names the key.
    pub fn resolve(mut args: ServeArgs) -> Result<Self> {
        let file = args.config.take().map_or_else(|| Ok(ServeArgs::default()), |path| read_file(&path))?;
        Self::validate(args.over(file))
    }

    /// Every default, with everything under `data_dir` and any free ports.
    pub fn for_data_dir(data_dir: impl Into<PathBuf>) -> Result<Self> {
        let data_dir = data_dir.into();
        let given = |text: &str| Some(Given(text.to_owned()));
        let (listen, http_listen) = (given("127.0.0.1:0"), given("127.0.0.1:0"));
        let mut settings = Self::validate(ServeArgs { listen, http_listen, ..ServeArgs::default() })?;
        settings.warehouse = WarehouseSetting::Local(data_dir.join("warehouse"));
        settings.catalog = CatalogSetting::Sqlite(data_dir.join("catalog.db"));
        settings.data_dir = data_dir;
        Ok(settings)
    }

    fn validate(args: ServeArgs) -> Result<Self> {
        let data_dir = get("data_dir", args.data_dir, "./data", path)?;
        let insecure = get("insecure", args.insecure, "false", boolean)?;
        let listen = get("listen", args.listen, "127.0.0.1:8815", address)?;
        let security = GivenSecurity {
            users_file: args.users_file,
            secret_file: args.secret_file,
            token_ttl: args.token_ttl,
            handle_ttl: args.handle_ttl,
            ticket_ttl: args.ticket_ttl,
            authentication_timeout: args.authentication_timeout,
            tls_cert: args.tls_cert,
            tls_key: args.tls_key,
            tls_client_ca: args.tls_client_ca,
        };
        let warehouse = warehouse(args.warehouse, args.s3_endpoint, args.s3_region)?
            .unwrap_or_else(|| WarehouseSetting::Local(data_dir.join("warehouse")));
        let catalog = catalog(args.catalog, args.catalog_token_file)?
            .unwrap_or_else(|| CatalogSetting::Sqlite(data_dir.join("catalog.db")));
        Ok(Self {
            data_dir,
            listen,
            security: security.validate(listen, insecure)?,
            http_listen: get("http_listen", args.http_listen, "127.0.0.1:8816", address_or_off)?,
            warehouse,
            catalog,
            copy_from: get("copy_from", args.copy_from, "", directories)?,
            online: get("online", args.online, "embedded", online::parse)?,
            online_timeout: get("online_timeout", args.online_timeout, "2s", duration)?,
            memory_limit_bytes: get("memory_limit", args.memory_limit, "70%", memory)?,
            cache_capacity_bytes: get("cache_capacity", args.cache_capacity, "256MB", size_bytes)?,
            cache_ttl: get("cache_ttl", args.cache_ttl, "5s", duration)?,
            log_format: get("log_format", args.log_format, "text", log_format)?,
            log_level: get("log_level", args.log_level, "info", log_level)?,
            slow_lookup: get("slow_lookup", args.slow_lookup, "100ms", duration)?,
            otlp_endpoint: get("otlp_endpoint", args.otlp_endpoint, "", endpoints::collector)?,
            drain_timeout: get("drain_timeout", args.drain_timeout, "30s", duration)?,
            optimize_interval: get("optimize_interval", args.optimize_interval, "off", duration_or_off)?,
            retain: get("retain", args.retain, "off", duration_or_off)?,
            fold_interval: get("fold_interval", args.fold_interval, "1m", fold_interval)?,
            endpoints: get("endpoints", args.endpoints, "1", endpoints)?,
            advertise: get("advertise", args.advertise, "", locations)?,
            limits: Limits {
                connections_max: get("connections_max", args.connections_max, "1024", count)?,
                streams_per_connection_max: get(
                    "streams_per_connection_max",
                    args.streams_per_connection_max,
                    "256",
                    count,
                )?,
                message_bytes_max: get("message_size_max", args.message_size_max, "64MiB", message_size)?,
                sessions_max: get("sessions_max", args.sessions_max, "1024", count)?,
                session_idle_timeout: get(
                    "session_idle_timeout",
                    args.session_idle_timeout,
                    "30m",
                    duration,
                )?,
                queries_max: get("queries_max", args.queries_max, "64", count)?,
                queries_queued_max: get("queries_queued_max", args.queries_queued_max, "256", whole)?,
                queue_timeout: get("queue_timeout", args.queue_timeout, "30s", duration)?,
            },
        })
    }
}

/// The catalog as it is given.
fn catalog(given: Option<Given>, token_file: Option<Given>) -> Result<Option<CatalogSetting>> {
    let token_file = token_file.map(|file| get("catalog_token_file", Some(file), "", path)).transpose()?;
    let parse = |text: &str| offline::catalog(text, token_file.clone());
    let catalog = given.map(|given| get("catalog", Some(given), "", parse)).transpose()?;
    match (&catalog, token_file) {
        (Some(CatalogSetting::Rest { .. }), _) | (_, None) => Ok(catalog),
        _ => Err(Error::invalid("catalog_token_file: only a REST catalog is shown a token")),
    }
}

/// The warehouse as it is given; how to reach S3 is checked in any case.
fn warehouse(
    given: Option<Given>,
    endpoint: Option<Given>,
    region: Option<Given>,
) -> Result<Option<WarehouseSetting>> {
    let endpoint = get("s3_endpoint", endpoint, "", offline::endpoint)?;
    let region = get("s3_region", region, "", offline::region)?;
    let parse = |text: &str| offline::warehouse(text, endpoint.clone(), region.clone());
    given.map(|given| get("warehouse", Some(given), "", parse)).transpose()
}

fn read_file(path: &Path) -> Result<ServeArgs> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::invalid(format!("config: cannot read {}: {error}", path.display())))?;
    toml::from_str(&text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        let why = error.message().replace('\n', " ");
        Error::invalid(format!("config: {} line {line}: {why}", path.display()))
    })
}

/// Why a value is no good: ends the sentence that begins with the key.
type Why = String;

fn get<T>(
    key: &str,
    given: Option<Given>,
    default: &str,
    parse: impl Fn(&str) -> Result<T, Why>,
) -> Result<T> {
    let given = given.as_ref().map_or(default, |given| given.0.trim());
    parse(given).map_err(|why| Error::invalid(format!("{key}: {}", why.replace('\n', " "))))
}

fn path(text: &str) -> Result<PathBuf, Why> {
    if text.is_empty() { Err("an empty path names no directory".into()) } else { Ok(PathBuf::from(text)) }
}

fn boolean(text: &str) -> Result<bool, Why> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err(format!("'{text}' is neither true nor false")),
    }
}

fn count<T: std::str::FromStr + Default + PartialEq>(text: &str) -> Result<T, Why> {
    match text.parse::<T>() {
        Ok(number) if number != T::default() => Ok(number),
        _ => Err(format!("'{text}' is not a positive whole number")),
    }
}

fn whole(text: &str) -> Result<usize, Why> {
    text.parse().map_err(|_| format!("'{text}' is not a whole number"))
}

fn address_or_off(text: &str) -> Result<Option<SocketAddr>, Why> {
    if text == "off" { Ok(None) } else { address(text).map(Some) }
}

/// Files of what is logged are those of writes under way: after days they would not be taken for such.
fn fold_interval(text: &str) -> Result<Duration, Why> {
    let interval = duration(text)?;
    match (Duration::from_millis(100)..=Duration::from_secs(24 * 60 * 60)).contains(&interval) {
        true => Ok(interval),
        false => Err("not between 100ms and 1d".into()),
    }
}

fn duration_or_off(text: &str) -> Result<Option<Duration>, Why> {
    if text == "off" { Ok(None) } else { duration(text).map(Some) }
}

fn address(text: &str) -> Result<SocketAddr, Why> {
    let unknown = |_| format!("'{text}' is not an address such as 127.0.0.1:8815");
    text.to_socket_addrs().map_err(unknown)?.next().ok_or_else(|| format!("'{text}' has no address"))
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

fn directories(text: &str) -> Result<Vec<PathBuf>, Why> {
    let named = text.split(',').map(str::trim).filter(|directory| !directory.is_empty());
    let local = |directory: &str| match directory.split_once("://") {
        None => path(directory),
        Some(("file", rest)) => path(rest),
        Some((scheme, _)) => Err(format!("{scheme}:// is not read: name a directory of this machine")),
    };
    named.map(local).collect()
}

fn log_format(text: &str) -> Result<LogFormat, Why> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("'{text}' is neither text nor json")),
    }
}

fn log_level(text: &str) -> Result<String, Why> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let is_known = |part: &str| part.contains('=') || LEVELS.contains(&part.trim().to_lowercase().as_str());
    if let Some(part) = text.split(',').find(|part| !is_known(part)) {
        let levels = LEVELS.join(", ");
        return Err(format!("'{part}' is neither {levels} nor a directive such as fletching=debug"));
    }
    EnvFilter::try_new(text).map_err(|error| format!("'{text}' is no level: {error}"))?;
    Ok(text.to_owned())
}

fn duration(text: &str) -> Result<Duration, Why> {
    humantime::parse_duration(text)
        .map_err(|_| format!("'{text}' is not a duration such as 500ms, 30s or 5m"))
}

/// `512MiB` counts in 1024s, `512MB` in 1000s, `512` in bytes.
pub(crate) fn size_bytes(text: &str) -> Result<u64, Why> {
    let bad = || format!("'{text}' is not a size such as 512MB or 2GiB");
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit_bytes: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" | "k" => 1000,
        "mb" | "m" => 1000_u64.pow(2),
        "gb" | "g" => 1000_u64.pow(3),
        "tb" | "t" => 1000_u64.pow(4),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(bad()),
    };
    let bytes = number.parse::<f64>().map_err(|_| bad())? * unit_bytes as f64;
    if bytes < u64::MAX as f64 { Ok(bytes as u64) } else { Err(bad()) }
}

fn message_size(text: &str) -> Result<usize, Why> {
    let bytes = size_bytes(text)?;
    if (1 << 16..=1 << 31).contains(&bytes) {
        Ok(bytes as usize)
    } else {
        Err(format!("'{text}' is not between 64KiB and 2GiB"))
    }
}

fn memory(text: &str) -> Result<Option<u64>, Why> {
    if text == "unlimited" {
        return Ok(None);
    }
    if let Some(percent) = text.strip_suffix('%') {
        return match percent.trim().parse::<u64>() {
            Ok(percent @ 1..=100) => Ok(machine_memory_bytes().map(|total| total / 100 * percent)),
            _ => Err(format!("'{text}' is not between 1% and 100%")),
        };
    }
    match size_bytes(text)? {
        bytes if bytes >= 16 << 20 => Ok(Some(bytes)),
        _ => Err(format!("'{text}' is less than 16MiB, too little for any query")),
    }
}

/// What this process may use: the control group's limit or the machine's memory; `None` where neither can be read.
fn machine_memory_bytes() -> Option<u64> {
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let group = group.and_then(|text| text.trim().parse::<u64>().ok());
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()
    });
    [group, machine.map(|kib| kib << 10)].into_iter().flatten().min()
}

#[cfg(test)]
mod tests;
