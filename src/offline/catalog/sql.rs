//! The SQL catalog schema that pyiceberg, Java and iceberg-rust share, in SQLite or PostgreSQL.
//!
//! A commit is one compare-and-swap on `metadata_location`. `iceberg-catalog-sql` is not used,
//! because it reports a failed COMMIT as success and offers no swap of our own.

use super::Entry;
use super::database::Database;
use crate::error::{Error, Result};
use crate::model::TableName;

/// Value of `catalog_name` in the shared tables: the name other engines open the catalog under.
pub(super) const CATALOG_NAME: &str = "fletching";

/// The tables, and the column that those of pyiceberg and of old versions of Java lack.
pub(super) const CREATE: [&str; 3] = [
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
    "ALTER TABLE iceberg_tables ADD COLUMN iceberg_type VARCHAR(5)",
];

/// Runs where all of that is there.
const IS_CREATED: &str =
    "SELECT iceberg_type, property_value FROM iceberg_tables, iceberg_namespace_properties LIMIT 0";

/// The catalog's tables.
#[derive(Debug, Clone)]
pub(in crate::offline) struct SqlCatalog {
    pub(super) database: Database,
}

impl SqlCatalog {
    /// The catalog in `database`, whose tables are created where they do not exist.
    pub(super) async fn open(database: Database) -> Result<Self> {
        let mut refused = None;
        for statement in CREATE {
            if database.takes(IS_CREATED).await? {
                return Ok(Self { database });
            }
            // Servers that start at once are in each other's way here, and all find what one of them made.
            refused = refused.or(database.change(statement, &[]).await.err());
        }
        match (database.takes(IS_CREATED).await?, refused) {
            (false, Some(error)) => Err(error),
            (false, None) => Err(Error::corrupt("the catalog's tables are not those of Iceberg")),
            (true, _) => Ok(Self { database }),
        }
    }

    /// Every namespace, including those that only hold tables, in order.
    pub(super) async fn namespaces(&self) -> Result<Vec<String>> {
        let query = "SELECT namespace FROM iceberg_namespace_properties WHERE catalog_name = $1
             UNION SELECT table_namespace FROM iceberg_tables WHERE catalog_name = $1";
        let rows: Vec<(String,)> = self.database.rows(query, &[CATALOG_NAME]).await?;
        let mut namespaces: Vec<String> = rows.into_iter().map(|(namespace,)| namespace).collect();
        namespaces.sort();
        Ok(namespaces)
    }

    pub(super) async fn create_namespace(&self, namespace: &str) -> Result<bool> {
        let insert =
            "INSERT INTO iceberg_namespace_properties (catalog_name, namespace, property_key, property_value)
             VALUES ($1, $2, 'exists', 'true') ON CONFLICT DO NOTHING";
        Ok(self.database.change(insert, &[CATALOG_NAME, namespace]).await? == 1)
    }

    pub(super) async fn drop_namespace(&self, namespace: &str) -> Result<bool> {
        let delete = "DELETE FROM iceberg_namespace_properties WHERE catalog_name = $1 AND namespace = $2 AND NOT EXISTS
             (SELECT 1 FROM iceberg_tables WHERE catalog_name = $1 AND table_namespace = $2)";
        Ok(self.database.change(delete, &[CATALOG_NAME, namespace]).await? > 0)
    }

    /// Every table with the location of its current metadata, ordered by name.
    pub(super) async fn tables(&self) -> Result<Vec<Entry>> {
        let query = "SELECT table_namespace, table_name, metadata_location FROM iceberg_tables
             WHERE catalog_name = $1 AND metadata_location IS NOT NULL
               AND (iceberg_type = 'TABLE' OR iceberg_type IS NULL)";
        let rows: Vec<(String, String, String)> = self.database.rows(query, &[CATALOG_NAME]).await?;
        let entry =
            |(schema, name, metadata_location)| Entry { name: TableName { schema, name }, metadata_location };
        let mut tables: Vec<Entry> = rows.into_iter().map(entry).collect();
        tables.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tables)
    }

    pub(super) async fn metadata_location(&self, name: &TableName) -> Result<Option<String>> {
        let query = "SELECT metadata_location FROM iceberg_tables
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3";
        let rows: Vec<(Option<String>,)> =
            self.database.rows(query, &[CATALOG_NAME, &name.schema, &name.name]).await?;
        Ok(rows.into_iter().next().and_then(|(location,)| location))
    }

    /// Adds a table. `false` means that the name is taken.
    pub(super) async fn insert(&self, name: &TableName, location: &str) -> Result<bool> {
        let insert = "INSERT INTO iceberg_tables
             (catalog_name, table_namespace, table_name, metadata_location, iceberg_type)
             VALUES ($1, $2, $3, $4, 'TABLE') ON CONFLICT DO NOTHING";
        Ok(self.database.change(insert, &[CATALOG_NAME, &name.schema, &name.name, location]).await? == 1)
    }

    /// Moves a table from one metadata file to the next. `false` means that somebody else moved it first.
    pub(super) async fn swap(&self, name: &TableName, from: &str, to: &str) -> Result<bool> {
        let update = "UPDATE iceberg_tables SET metadata_location = $1, previous_metadata_location = $2
             WHERE catalog_name = $3 AND table_namespace = $4 AND table_name = $5 AND metadata_location = $2";
        Ok(self.database.change(update, &[to, from, CATALOG_NAME, &name.schema, &name.name]).await? == 1)
    }

    /// Removes a table whose current metadata is `location`. `false` means that it changed meanwhile.
    pub(super) async fn remove(&self, name: &TableName, location: &str) -> Result<bool> {
        let delete = "DELETE FROM iceberg_tables
             WHERE catalog_name = $1 AND table_namespace = $2 AND table_name = $3 AND metadata_location = $4";
        Ok(self.database.change(delete, &[CATALOG_NAME, &name.schema, &name.name, location]).await? == 1)
    }
}
