//! The database that a catalog is in: SQLite or PostgreSQL, asked the same statements, whose parameters (`$1`, …) and
//! columns are all text.
//!
//! PostgreSQL is across a network, where silence is an answer too: every wait for it has an end, and a connection that
//! does not answer is not used again. Connections are made as they are needed, so a server that was gone is found again
//! when it is back.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection, Encode, Executor, FromRow, Type};
use tokio::time::sleep;
use url::Url;

use crate::error::{Error, Result};

const CONNECTIONS_MAX: u32 = 8;

/// How long SQLite waits for a lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
const BUSY_RETRY: Duration = Duration::from_millis(10);
/// `SQLITE_BUSY`, in the low byte of a code; what stands above says why.
const BUSY: i32 = 5;

/// How long it may take until there is a connection to PostgreSQL, until a kept one shows that it is alive, and until a
/// statement is answered, counting both.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ALIVE_TIMEOUT: Duration = Duration::from_secs(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A statement that nobody waits for any more does not wait for locks either; and what is acknowledged is on disk,
/// whatever the server does by default.
const SESSION: &str = "SET statement_timeout = '10s'; \
     SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'";

/// A pool of connections to the database.
#[derive(Debug, Clone)]
pub(super) struct Database {
    pool: Pool,
    /// What errors call it: never with a password.
    name: Arc<str>,
}

#[derive(Debug, Clone)]
enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

impl Database {
    /// The SQLite file at `path`, which is created where it does not exist.
    pub(super) async fn sqlite(path: &Path) -> Result<Self> {
        let name: Arc<str> = format!("sqlite:{}", path.display()).into();
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| cannot_open(&name).with_source(e))?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let mut waited = Duration::ZERO;
        // Of several who open a new file at once, one makes the journal, and SQLite does not let the others wait for it.
        let pool = loop {
            let pool = SqlitePoolOptions::new().max_connections(CONNECTIONS_MAX);
            match pool.connect_with(options.clone()).await {
                Err(error) if is_busy(&error) && waited < BUSY_TIMEOUT => {
                    sleep(BUSY_RETRY).await;
                    waited += BUSY_RETRY;
                }
                other => break other.map_err(|e| cannot_open(&name).with_source(e))?,
            }
        };
        Ok(Self { pool: Pool::Sqlite(pool), name })
    }

    /// The PostgreSQL database that a `postgresql://` URL names. It need not be up.
    pub(super) fn postgres(url: &Url) -> Result<Self> {
        let name: Arc<str> = without_credentials(url).into();
        let options: PgConnectOptions = url.as_str().parse().map_err(|e| {
            Error::invalid(format!("catalog: the URL of '{name}' cannot be used")).with_source(e)
        })?;
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .acquire_timeout(CONNECT_TIMEOUT)
            .test_before_acquire(false)
            .before_acquire(|connection, _| Box::pin(is_alive(connection)))
            .after_release(|connection, _| Box::pin(is_alive(connection)))
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(SESSION).await.map(|_| ()) })
            })
            .connect_lazy_with(options);
        Ok(Self { pool: Pool::Postgres(pool), name })
    }

    /// Runs a statement that changes rows; returns how many.
    pub(super) async fn change(&self, statement: &str, values: &[&str]) -> Result<u64> {
        let changed = async {
            Ok(match &self.pool {
                Pool::Sqlite(pool) => bound(statement, values).execute(pool).await?.rows_affected(),
                Pool::Postgres(pool) => bound(statement, values).execute(pool).await?.rows_affected(),
            })
        };
        self.within_time(changed).await.map_err(|error| self.failed(error))
    }

    /// The rows of a query.
    pub(super) async fn rows<T>(&self, query: &str, values: &[&str]) -> Result<Vec<T>>
    where
        T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow>,
    {
        let rows = async {
            match &self.pool {
                Pool::Sqlite(pool) => {
                    bound(query, values).fetch_all(pool).await?.iter().map(T::from_row).collect()
                }
                Pool::Postgres(pool) => {
                    bound(query, values).fetch_all(pool).await?.iter().map(T::from_row).collect()
                }
            }
        };
        self.within_time(rows).await.map_err(|error| self.failed(error))
    }

    /// Whether the database runs a statement without parameters.
    ///
    /// # Errors
    /// `Unavailable` where it says neither.
    pub(super) async fn takes(&self, statement: &str) -> Result<bool> {
        let taken = async {
            match &self.pool {
                Pool::Sqlite(pool) => pool.execute(statement).await.map(|_| true),
                Pool::Postgres(pool) => pool.execute(statement).await.map(|_| true),
            }
        };
        match self.within_time(taken).await {
            Err(sqlx::Error::Database(_)) => Ok(false),
            taken => taken.map_err(|error| self.failed(error)),
        }
    }

    async fn within_time<T>(&self, answer: impl Future<Output = sqlx::Result<T>>) -> sqlx::Result<T> {
        match &self.pool {
            Pool::Sqlite(_) => answer.await,
            Pool::Postgres(_) => {
                tokio::time::timeout(ANSWER_TIMEOUT, answer).await.unwrap_or(Err(sqlx::Error::PoolTimedOut))
            }
        }
    }

    fn failed(&self, error: sqlx::Error) -> Error {
        let name = &self.name;
        match error {
            sqlx::Error::PoolTimedOut => Error::unavailable(format!(
                "the catalog at '{name}' does not answer: see whether it is up and can be reached"
            )),
            // Names are all that callers say, and so it is one that is too long, or not text.
            sqlx::Error::Database(refused) if refused.code().is_some_and(|code| is_of_data(&code)) => {
                Error::invalid(format!("the catalog at '{name}' does not take this name"))
                    .with_source(refused.to_string())
            }
            error => Error::unavailable(format!("the catalog at '{name}' failed")).with_source(error),
        }
    }
}

/// A statement with the values of its parameters.
fn bound<'q, DB: sqlx::Database>(statement: &'q str, values: &[&'q str]) -> Query<'q, DB, DB::Arguments<'q>>
where
    &'q str: Encode<'q, DB> + Type<DB>,
{
    values.iter().fold(sqlx::query(statement), |query, value| query.bind(*value))
}

/// Whether a kept connection still has the server at its other end; one that hangs is given up.
async fn is_alive(connection: &mut PgConnection) -> sqlx::Result<bool> {
    Ok(matches!(tokio::time::timeout(ALIVE_TIMEOUT, connection.ping()).await, Ok(Ok(()))))
}

/// Whether an error code of PostgreSQL is of the class that says that a value is no good.
fn is_of_data(code: &str) -> bool {
    code.len() == 5 && code.starts_with("22")
}

fn without_credentials(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("postgresql://{}{port}{}", url.host_str().unwrap_or_default(), url.path())
}

fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<i32>().ok());
    code.is_some_and(|code| code & 0xff == BUSY)
}

fn cannot_open(name: &str) -> Error {
    Error::unavailable(format!("cannot open the catalog at '{name}'"))
}
