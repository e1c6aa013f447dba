//! Which objects exist: feature groups and plain tables, as immutable snapshots of their definitions.

mod definition;

use std::collections::BTreeMap;
use std::sync::Arc;

use moka::sync::Cache;

pub(crate) use definition::{default_text, object_of, table_of};

use crate::error::{Error, Result};
use crate::model::{Change, FeatureGroup, TableName, TableVersion};
use crate::offline::{OfflineStore, OfflineTable};

const DEFINITIONS_MAX: u64 = 4096;

/// Schema that holds unqualified names.
pub(crate) const DEFAULT_SCHEMA: &str = "public";

/// What a name stands for.
#[derive(Debug, Clone)]
pub(crate) enum Object {
    FeatureGroup(Arc<FeatureGroup>, OfflineTable),
    Table(OfflineTable),
}

impl Object {
    /// What a reader of it sees, in a form that outlives it: see [`Self::at_version`].
    pub(crate) fn version(&self) -> TableVersion {
        match self {
            Self::FeatureGroup(group, table) => TableVersion { ttl: group.ttl, ..table.version() },
            Self::Table(table) => table.version(),
        }
    }

    /// The object as an earlier reader saw it.
    ///
    /// # Errors
    /// `NotFound` where this is another object of that name, or what was read is no longer kept.
    pub(crate) fn at_version(self, version: &TableVersion) -> Result<Self> {
        let is_same = |now: TableVersion| TableVersion { logged: version.logged.clone(), ..now } == *version;
        if is_same(self.version()) {
            return Ok(match self {
                Self::FeatureGroup(group, table) => {
                    Self::FeatureGroup(group, table.with_logged(&version.logged))
                }
                Self::Table(table) => Self::Table(table.with_logged(&version.logged)),
            });
        }
        let (Self::FeatureGroup(_, table) | Self::Table(table)) = self;
        Ok(match definition::object_of(table.at_version(version)?)? {
            Self::FeatureGroup(group, table) => {
                let group = FeatureGroup { ttl: version.ttl, ..group.as_ref().clone() };
                Self::FeatureGroup(Arc::new(group), table)
            }
            table => table,
        })
    }
}

/// A definition before and after it changed, and the table that keeps it.
#[derive(Debug)]
pub(crate) struct Altered {
    pub(crate) before: Arc<FeatureGroup>,
    pub(crate) after: Arc<FeatureGroup>,
    pub(crate) table: OfflineTable,
}

/// Everything that existed at one moment: schemas, and tables with the location of their metadata.
#[derive(Debug, Clone, Default)]
pub(crate) struct Listing {
    pub(crate) schemas: Vec<String>,
    pub(crate) tables: BTreeMap<TableName, String>,
}

/// Finds objects in the Iceberg catalog; a definition lives in its table's properties, so it is as
/// atomic and as durable as the table.
#[derive(Debug)]
pub(crate) struct Registry {
    offline: Arc<OfflineStore>,
    objects: Cache<String, Object>,
}

impl Registry {
    pub(crate) fn new(offline: Arc<OfflineStore>) -> Self {
        Self { offline, objects: Cache::new(DEFINITIONS_MAX) }
    }

    /// What exists now.
    pub(crate) async fn listing(&self) -> Result<Listing> {
        let tables: BTreeMap<TableName, String> = self.offline.tables().await?.into_iter().collect();
        let mut schemas = self.offline.schemas().await?;
        if !schemas.iter().any(|s| s == DEFAULT_SCHEMA) {
            schemas.push(DEFAULT_SCHEMA.to_owned());
        }
        schemas.sort();
        Ok(Listing { schemas, tables })
    }

    /// The object as it was when `listing` was taken.
    pub(crate) async fn object_in(&self, listing: &Listing, name: &TableName) -> Result<Option<Object>> {
        let Some(location) = listing.tables.get(name) else { return Ok(None) };
        if let Some(object) = self.objects.get(location) {
            return Ok(Some(object));
        }
        let object = definition::object_of(self.offline.load_at(name, location).await?)?;
        self.objects.insert(location.clone(), object.clone());
        Ok(Some(object))
    }

    /// The object as it is now.
    pub(crate) async fn object(&self, name: &TableName) -> Result<Option<Object>> {
        match self.offline.load(name).await? {
            Some(table) => definition::object_of(table).map(Some),
            None => Ok(None),
        }
    }

    /// Changes the definition of the feature group that `table` keeps, in one step, from whatever it is by then.
    ///
    /// # Errors
    /// Those of [`FeatureGroup::changed`]; `Conflict` where the group was dropped meanwhile, or stays contended.
    pub(crate) async fn alter(&self, table: &OfflineTable, changes: &[Change]) -> Result<Altered> {
        let mut before = None;
        let changed = self.offline.alter(table, |current| {
            let Object::FeatureGroup(group, table) = definition::object_of(current.clone())? else {
                return Err(Error::conflict(format!("'{}' is no feature group any more", current.name())));
            };
            let spec = definition::altered(&table, &group, changes);
            before = Some(group);
            spec
        });
        match (definition::object_of(changed.await?)?, before) {
            (Object::FeatureGroup(after, table), Some(before)) => Ok(Altered { before, after, table }),
            _ => Err(Error::internal("a changed feature group is no feature group")),
        }
    }

    /// Every feature group in `listing`, ordered by name, but for those that cannot be read.
    pub(crate) async fn feature_groups(&self, listing: &Listing) -> Vec<(Arc<FeatureGroup>, OfflineTable)> {
        let mut groups = Vec::new();
        for name in listing.tables.keys() {
            match self.object_in(listing, name).await {
                Ok(Some(Object::FeatureGroup(group, table))) => groups.push((group, table)),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(table = %name, %error, "a table that cannot be read is passed over")
                }
            }
        }
        groups
    }
}
