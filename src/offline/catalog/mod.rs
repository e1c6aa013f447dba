//! Which Iceberg tables exist and where their current metadata is: in a SQL database, or at a server that speaks Iceberg's
//! REST protocol.
//!
//! A commit is one compare-and-swap. In a database it is ours: of one metadata file that we wrote for the next. A REST
//! server is sent the changes and what they depend on, and writes the metadata itself.

mod database;
mod rest;
mod sql;

use std::path::PathBuf;

use iceberg::spec::TableMetadata;
use url::Url;

use super::table::OfflineTable;
use crate::error::{Error, Result};
use crate::model::TableName;
use database::Database;
use rest::RestCatalog;
use sql::SqlCatalog;

/// Where the catalog is.
#[derive(Clone)]
pub(crate) enum CatalogLocation {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL database; the URL may hold a password.
    Postgres(Url),
    /// A REST server, and the file with the token that it asks for.
    Rest(Url, Option<PathBuf>),
}

impl From<&PathBuf> for CatalogLocation {
    fn from(path: &PathBuf) -> Self {
        Self::Sqlite(path.clone())
    }
}

/// One table of the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: TableName,
    pub(super) metadata_location: String,
}

#[derive(Debug, Clone)]
pub(super) enum Catalog {
    Sql(SqlCatalog),
    Rest(RestCatalog),
}

impl Catalog {
    /// Opens the catalog. In a database, what does not exist is created: a SQLite file, and the tables.
    pub(super) async fn open(location: &CatalogLocation) -> Result<Self> {
        let database = match location {
            CatalogLocation::Sqlite(path) => Database::sqlite(path).await?,
            CatalogLocation::Postgres(url) => Database::postgres(url)?,
            CatalogLocation::Rest(url, token) => {
                return RestCatalog::open(url, token.clone()).await.map(Self::Rest);
            }
        };
        SqlCatalog::open(database).await.map(Self::Sql)
    }

    /// Whether the catalog writes the metadata of a table's changes itself.
    pub(super) fn writes_metadata(&self) -> bool {
        matches!(self, Self::Rest(_))
    }

    /// Every namespace, including those that only hold tables, in order.
    pub(super) async fn namespaces(&self) -> Result<Vec<String>> {
        match self {
            Self::Sql(catalog) => catalog.namespaces().await,
            Self::Rest(catalog) => catalog.namespaces().await,
        }
    }

    /// `false` means that it exists already.
    pub(super) async fn create_namespace(&self, namespace: &str) -> Result<bool> {
        match self {
            Self::Sql(catalog) => catalog.create_namespace(namespace).await,
            Self::Rest(catalog) => catalog.create_namespace(namespace).await,
        }
    }

    /// `false` means that it does not exist or is not empty.
    pub(super) async fn drop_namespace(&self, namespace: &str) -> Result<bool> {
        match self {
            Self::Sql(catalog) => catalog.drop_namespace(namespace).await,
            Self::Rest(catalog) => catalog.drop_namespace(namespace).await,
        }
    }

    /// Every table with the location of its current metadata, ordered by name.
    pub(super) async fn tables(&self) -> Result<Vec<Entry>> {
        match self {
            Self::Sql(catalog) => catalog.tables().await,
            Self::Rest(catalog) => catalog.tables().await,
        }
    }

    pub(super) async fn metadata_location(&self, name: &TableName) -> Result<Option<String>> {
        match self {
            Self::Sql(catalog) => catalog.metadata_location(name).await,
            Self::Rest(catalog) => catalog.metadata_location(name).await,
        }
    }

    /// Adds a table whose metadata is at `location`. `false` means that the name is taken.
    pub(super) async fn insert(&self, name: &TableName, location: &str) -> Result<bool> {
        match self {
            Self::Sql(catalog) => catalog.insert(name, location).await,
            Self::Rest(catalog) => catalog.register(name, location).await,
        }
    }

    /// Puts another table, whose metadata is at `location`, in the place of `old`. `false` means that somebody else
    /// changed it first.
    ///
    /// # Errors
    /// `Unsupported` at a REST server, which has no such step.
    pub(super) async fn replace(&self, old: &OfflineTable, location: &str) -> Result<bool> {
        match self {
            Self::Sql(catalog) => catalog.swap(&old.name, &old.location, location).await,
            Self::Rest(_) => Err(Error::unsupported(format!(
                "a REST catalog cannot replace table '{0}' in one step: DROP TABLE {0}, then CREATE it",
                old.name
            ))),
        }
    }

    /// Moves a table to its `next` metadata, which is at `location` already unless the catalog writes it. `false` means
    /// that somebody else moved it first.
    pub(super) async fn swap(
        &self,
        current: &OfflineTable,
        next: &TableMetadata,
        location: &str,
    ) -> Result<bool> {
        match self {
            Self::Sql(catalog) => catalog.swap(&current.name, &current.location, location).await,
            Self::Rest(catalog) => catalog.commit(&current.name, &current.metadata, next).await,
        }
    }

    /// Removes a table whose current metadata is `location`. `false` means that it changed meanwhile.
    pub(super) async fn remove(&self, name: &TableName, location: &str) -> Result<bool> {
        match self {
            Self::Sql(catalog) => catalog.remove(name, location).await,
            Self::Rest(catalog) => catalog.remove(name, location).await,
        }
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) use tests::places;
