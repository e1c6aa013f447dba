//! What a session sees: schemas of stored tables as of one moment, its own temporary objects, and `system`.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::catalog::{CatalogProvider, MemTable, SchemaProvider, TableProvider};
use datafusion::common::Result as DataFusionResult;
use parking_lot::RwLock;
use uuid::Uuid;

use super::feature_group_table::FeatureGroupTable;
use super::insert::PlainTable;
use super::moment::Moment;
use super::running::Running;
use super::system::{self, Known};
use super::temp::TempObjects;
use crate::error::{Error, Result};
use crate::ingest::Ingest;
use crate::model::{TableName, TableVersion};
use crate::offline::{IcebergTable, OfflineStore, inspect};
use crate::online::OnlineStore;
use crate::registry::{DEFAULT_SCHEMA, Listing, Object, Registry};

/// Suffix of a feature group's history table, and of a plain table's log of snapshots.
const HISTORY: &str = "$history";
const SNAPSHOTS: &str = "$snapshots";
const FILES: &str = "$files";

/// The catalog `fletching` of one session.
#[derive(Debug)]
pub(super) struct SessionCatalog {
    registry: Arc<Registry>,
    offline: Arc<OfflineStore>,
    ingest: Arc<Ingest>,
    online: Arc<dyn OnlineStore>,
    running: Arc<Running>,
    listing: RwLock<Arc<Listing>>,
    pub(super) temp: TempObjects,
    /// Where names without a schema are looked for.
    schema: RwLock<String>,
}

impl SessionCatalog {
    pub(super) fn new(
        registry: Arc<Registry>,
        offline: Arc<OfflineStore>,
        ingest: Arc<Ingest>,
        online: Arc<dyn OnlineStore>,
        running: Arc<Running>,
    ) -> Self {
        let temp = TempObjects::default();
        let schema = RwLock::new(DEFAULT_SCHEMA.to_owned());
        Self { registry, offline, ingest, online, running, listing: RwLock::default(), temp, schema }
    }

    /// Where names without a schema are looked for.
    pub(super) fn schema(&self) -> String {
        self.schema.read().clone()
    }

    pub(super) fn set_schema(&self, schema: &str) {
        schema.clone_into(&mut self.schema.write());
    }

    /// Whether temporary objects are found in that schema: in the current one, and in the default one always.
    pub(super) fn holds_temp(&self, schema: &str) -> bool {
        schema == DEFAULT_SCHEMA || schema == *self.schema.read()
    }

    /// Looks again at what exists: once for each statement, which then sees one state of the catalog.
    pub(super) async fn refresh(&self) -> Result<Arc<Listing>> {
        let listing = Arc::new(self.registry.listing().await?);
        *self.listing.write() = Arc::clone(&listing);
        Ok(listing)
    }

    pub(super) fn listing(&self) -> Arc<Listing> {
        Arc::clone(&self.listing.read())
    }

    pub(super) async fn object(&self, name: &TableName) -> Result<Option<Object>> {
        self.registry.object_in(&self.listing(), name).await
    }

    /// As [`Self::object`], as it was where `versions` name it.
    async fn object_at(&self, name: &TableName, versions: &[TableVersion]) -> Result<Option<Object>> {
        let object = self.object(name).await?;
        let Some(version) = versions.iter().find(|version| version.name == *name) else { return Ok(object) };
        match object {
            Some(object) => object.at_version(version).map(Some),
            None => Err(Error::not_found(format!("table '{name}' was dropped since: run the query again"))),
        }
    }

    /// The stored table of that name, or what is derived of one: `name$history`, `name$snapshots`, `name$files`. Those
    /// that `versions` name are as they were, the others as they are.
    pub(super) async fn stored(
        &self,
        name: &TableName,
        versions: &[TableVersion],
    ) -> Result<Option<Arc<dyn TableProvider>>> {
        let rows = |table| Arc::new(IcebergTable::current(Arc::clone(&self.offline), table));
        if let Some(object) = self.object_at(name, versions).await? {
            return Ok(Some(match object {
                Object::FeatureGroup(group, table) => {
                    Arc::new(FeatureGroupTable::new(group, rows(table)).with_ingest(Arc::clone(&self.ingest)))
                }
                Object::Table(table) => {
                    let ingest = Arc::clone(&self.ingest);
                    Arc::new(PlainTable { rows: rows(table), ingest })
                }
            }));
        }
        let Some((base, suffix)) = name.name.find('$').map(|at| name.name.split_at(at)) else {
            return Ok(None);
        };
        let base = TableName::new(&name.schema, base);
        let of_snapshots = [SNAPSHOTS, FILES].contains(&suffix);
        if of_snapshots && Box::pin(self.ingest.checkpoint(Some(&base))).await? {
            self.refresh().await?;
        }
        let Some(object) = self.object_at(&base, versions).await? else { return Ok(None) };
        let metadata = match (suffix, &object) {
            (HISTORY, Object::FeatureGroup(_, table)) => return Ok(Some(rows(table.clone()))),
            (HISTORY, Object::Table(table)) => inspect::history(table)?,
            (SNAPSHOTS, Object::FeatureGroup(_, table) | Object::Table(table)) => inspect::snapshots(table)?,
            (FILES, Object::FeatureGroup(_, table) | Object::Table(table)) => {
                inspect::files(&self.offline, table).await?
            }
            _ => return Ok(None),
        };
        Ok(Some(Arc::new(MemTable::try_new(metadata.schema(), vec![vec![metadata]])?)))
    }
}

/// The catalog as DataFusion asks for it: of a session at all times, or of one statement with the versions that it
/// reads.
#[derive(Debug, Clone)]
pub(super) struct Catalog {
    session: Arc<SessionCatalog>,
    /// The current schema of the statement, where it is not the session's.
    schema: Option<String>,
    versions: Arc<[TableVersion]>,
    /// The temporary objects that the statement names; `None` for all of the session.
    temporary: Option<Arc<[(String, Uuid)]>>,
}

impl Catalog {
    /// What the session sees.
    pub(super) fn of(session: Arc<SessionCatalog>) -> Self {
        Self { session, schema: None, versions: Arc::default(), temporary: None }
    }

    /// What a statement sees that was described before, in a session whose current schema was `schema`.
    pub(super) fn as_of(session: Arc<SessionCatalog>, schema: String, moment: &Moment) -> Self {
        let (versions, temporary) = (moment.tables.clone().into(), moment.temporary.clone().map(Arc::from));
        Self { session, schema: Some(schema), versions, temporary }
    }
}

impl CatalogProvider for Catalog {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema_names(&self) -> Vec<String> {
        let mut names = self.session.listing().schemas.clone();
        names.push(system::SCHEMA.to_owned());
        names
    }

    fn schema(&self, name: &str) -> Option<Arc<dyn SchemaProvider>> {
        if name == system::SCHEMA {
            return Some(Arc::new(SystemSchema(Arc::clone(&self.session))));
        }
        let known = self.session.listing().schemas.iter().any(|s| s == name);
        known.then(|| Arc::new(StoredSchema { catalog: self.clone(), name: name.to_owned() }) as _)
    }
}

/// One schema of stored tables. In the default schema and the current one, a temporary table hides a stored one of its
/// name.
#[derive(Debug)]
struct StoredSchema {
    catalog: Catalog,
    name: String,
}

impl StoredSchema {
    fn holds_temp(&self) -> bool {
        match &self.catalog.schema {
            Some(current) => self.name == DEFAULT_SCHEMA || self.name == *current,
            None => self.catalog.session.holds_temp(&self.name),
        }
    }

    fn temp(&self, name: &str) -> Option<Arc<dyn TableProvider>> {
        // Another table of a ticket was a stored one, whatever the session has made since.
        let names_it = match &self.catalog.temporary {
            Some(temporary) => temporary.iter().any(|(named, _)| named == name),
            None => true,
        };
        if names_it && self.holds_temp() { self.catalog.session.temp.get(name) } else { None }
    }
}

#[async_trait]
impl SchemaProvider for StoredSchema {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn table_names(&self) -> Vec<String> {
        let listing = self.catalog.session.listing();
        let stored = listing.tables.keys().filter(|t| t.schema == self.name).map(|t| t.name.clone());
        let mut names: Vec<String> = stored.collect();
        if self.name == DEFAULT_SCHEMA {
            names.extend(self.catalog.session.temp.names());
        }
        names.sort();
        names.dedup();
        names
    }

    async fn table(&self, name: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        if let Some(temp) = self.temp(name) {
            return Ok(Some(temp));
        }
        let name = TableName::new(&self.name, name);
        Ok(self.catalog.session.stored(&name, &self.catalog.versions).await?)
    }

    fn table_exist(&self, name: &str) -> bool {
        self.temp(name).is_some()
            || self.catalog.session.listing().tables.contains_key(&TableName::new(&self.name, name))
    }
}

/// The schema `system`.
#[derive(Debug)]
struct SystemSchema(Arc<SessionCatalog>);

#[async_trait]
impl SchemaProvider for SystemSchema {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn table_names(&self) -> Vec<String> {
        system::TABLES.iter().map(|t| (*t).to_owned()).collect()
    }

    async fn table(&self, name: &str) -> DataFusionResult<Option<Arc<dyn TableProvider>>> {
        let known = Known {
            groups: self.0.registry.feature_groups(&self.0.listing()).await,
            freshness: match name {
                system::FRESHNESS => self.0.ingest.freshness().await?,
                _ => Vec::new(),
            },
            cache: self.0.online.cache_statistics(),
            running: self.0.running.list(),
            ended: self.0.running.ended_jobs(),
        };
        Ok(system::table(name, &known)?)
    }

    fn table_exist(&self, name: &str) -> bool {
        system::TABLES.contains(&name)
    }
}
