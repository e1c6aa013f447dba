//! Which Iceberg tables exist and where their current metadata is: the SQL catalog schema that
//! pyiceberg, Java and iceberg-rust share, in SQLite.
//!
//! A commit is one compare-and-swap on `metadata_location`. `iceberg-catalog-sql` is not used,
//! because it reports a failed COMMIT as success and offers no swap of our own.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

use crate::error::{Error, Result};
use crate::model::TableName;

/// Value of `catalog_name` in the shared tables: the name other engines open the catalog under.
pub(crate) const CATALOG_NAME: &str = "fletching";

const CONNECTIONS_MAX: u32 = 8;
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

const CREATE: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS iceberg_tables (
        catalog_name VARCHAR(255) NOT NULL,
        table_namespace VARCHAR(255) NOT NULL,
        table_name VARCHAR(255) NOT NULL,
        metadata_location VARCHAR(1000),
        previous_metadata_location VARCHAR(1000),
        iceberg_type VARCHAR(5),
        PRIMARY KEY (catalog_name, table_namespace, table_name))",
    "CREATE TABLE IF NOT EXISTS iceberg_namespace_properties (
        catalog_name VARCHAR(255) NOT NULL,
        namespace VARCHAR(255) NOT NULL,
        property_key VARCHAR(255) NOT NULL,
        property_value VARCHAR(1000) NOT NULL,
        PRIMARY KEY (catalog_name, namespace, property_key))",
];

/// A connection pool on the catalog database.
#[derive(Debug, Clone)]
pub(super) struct Catalog {
    pool: SqlitePool,
}

/// One row of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: TableName,
    pub(super) metadata_location: String,
}

impl Catalog {
    /// Opens the SQLite file, creating it and its tables where they do not exist.
    pub(super) async fn open(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|e| cannot_open(path, e))?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS_MAX)
            .connect_with(options)
            .await
            .map_err(|e| cannot_open(path, e))?;
        for statement in CREATE {
            sqlx::query(statement).execute(&pool).await.map_err(|e| cannot_open(path, e))?;
        }
        Ok(Self { pool })
    }

    /// Every namespace, including those that only hold tables.
    pub(super) async fn namespaces(&self) -> Result<Vec<String>> {
        sqlx::query_scalar(
            "SELECT DISTINCT namespace FROM iceberg_namespace_properties WHERE catalog_name = ?1
             UNION SELECT DISTINCT table_namespace FROM iceberg_tables WHERE catalog_name = ?1 ORDER BY 1",
        )
        .bind(CATALOG_NAME)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)
    }

    pub(super) async fn create_namespace(&self, namespace: &str) -> Result<bool> {
        let inserted = sqlx::query(
            "INSERT OR IGNORE INTO iceberg_namespace_properties VALUES (?1, ?2, 'exists', 'true')",
        )
        .bind(CATALOG_NAME)
        .bind(namespace)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(inserted.rows_affected() == 1)
    }

    pub(super) async fn drop_namespace(&self, namespace: &str) -> Result<bool> {
        let deleted = sqlx::query(
            "DELETE FROM iceberg_namespace_properties WHERE catalog_name = ?1 AND namespace = ?2 AND NOT EXISTS
             (SELECT 1 FROM iceberg_tables WHERE catalog_name = ?1 AND table_namespace = ?2)",
        )
        .bind(CATALOG_NAME)
        .bind(namespace)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(deleted.rows_affected() > 0)
    }

    /// Every table with the location of its current metadata, ordered by name.
    pub(super) async fn tables(&self) -> Result<Vec<Entry>> {
        let rows: Vec<(String, String, String)> = sqlx::query_as(
            "SELECT table_namespace, table_name, metadata_location FROM iceberg_tables
             WHERE catalog_name = ?1 AND metadata_location IS NOT NULL
               AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL) ORDER BY 1, 2",
        )
        .bind(CATALOG_NAME)
        .fetch_all(&self.pool)
        .await
        .map_err(failed)?;
        Ok(rows
            .into_iter()
            .map(|(schema, name, metadata_location)| Entry {
                name: TableName { schema, name },
                metadata_location,
            })
            .collect())
    }

    pub(super) async fn metadata_location(&self, name: &TableName) -> Result<Option<String>> {
        sqlx::query_scalar(
            "SELECT metadata_location FROM iceberg_tables
             WHERE catalog_name = ?1 AND table_namespace = ?2 AND table_name = ?3",
        )
        .bind(CATALOG_NAME)
        .bind(&name.schema)
        .bind(&name.name)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed)
    }

    /// Adds a table. `false` means that the name is taken.
    pub(super) async fn insert(&self, name: &TableName, location: &str) -> Result<bool> {
        let inserted =
            sqlx::query("INSERT OR IGNORE INTO iceberg_tables VALUES (?1, ?2, ?3, ?4, NULL, 'TABLE')")
                .bind(CATALOG_NAME)
                .bind(&name.schema)
                .bind(&name.name)
                .bind(location)
                .execute(&self.pool)
                .await
                .map_err(failed)?;
        Ok(inserted.rows_affected() == 1)
    }

    /// Moves a table from one metadata file to the next. `false` means that somebody else moved it first.
    pub(super) async fn swap(&self, name: &TableName, from: &str, to: &str) -> Result<bool> {
        let updated = sqlx::query(
            "UPDATE iceberg_tables SET metadata_location = ?1, previous_metadata_location = ?2
             WHERE catalog_name = ?3 AND table_namespace = ?4 AND table_name = ?5 AND metadata_location = ?2",
        )
        .bind(to)
        .bind(from)
        .bind(CATALOG_NAME)
        .bind(&name.schema)
        .bind(&name.name)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(updated.rows_affected() == 1)
    }

    /// Removes a table whose current metadata is `location`. `false` means that it changed meanwhile.
    pub(super) async fn remove(&self, name: &TableName, location: &str) -> Result<bool> {
        let deleted = sqlx::query(
            "DELETE FROM iceberg_tables
             WHERE catalog_name = ?1 AND table_namespace = ?2 AND table_name = ?3 AND metadata_location = ?4",
        )
        .bind(CATALOG_NAME)
        .bind(&name.schema)
        .bind(&name.name)
        .bind(location)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(deleted.rows_affected() == 1)
    }
}

fn cannot_open(path: &Path, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::unavailable(format!("cannot open the catalog at '{}'", path.display())).with_source(error)
}

fn failed(error: sqlx::Error) -> Error {
    Error::unavailable("the catalog database did not answer").with_source(error)
}
