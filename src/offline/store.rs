//! The offline store: finds Iceberg tables, and builds what a commit will name.

mod alter;

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryPool;
use datafusion::execution::runtime_env::RuntimeEnv;
use iceberg::io::FileIO;
use iceberg::spec::{DataFile, TableMetadata, TableMetadataBuilder, TableMetadataRef};
use iceberg::{MetadataLocation, TableCreation};
use moka::sync::Cache;
use object_store::path::Path as ObjectPath;
use uuid::Uuid;

use super::catalog::{Catalog, CatalogLocation};
use super::files::{ManifestCache, data_files};
use super::log::WriteLog;
use super::order::iceberg_order;
use super::schema::iceberg_schema;
use super::snapshot::{self, Change};
use super::table::OfflineTable;
use super::warehouse::{Warehouse, WarehouseLocation, unreadable};
use super::write::write_files;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::model::TableName;

const METADATA_MAX: u64 = 4096;

/// How much of a table's name goes into its directory's name; a UUID behind it makes it unique.
const NAME_CHARS_MAX: usize = 64;

/// What a new table is made of.
#[derive(Debug, Clone)]
pub(crate) struct TableSpec {
    pub(crate) name: TableName,
    /// Stored columns; see [`super::storage_schema`].
    pub(crate) schema: SchemaRef,
    /// Descriptions of top-level columns.
    pub(crate) docs: HashMap<String, String>,
    /// Iceberg table properties.
    pub(crate) properties: HashMap<String, String>,
    /// Columns that its files are sorted by, ascending and NULLs first; none for rows as they come.
    pub(crate) sort_columns: Vec<String>,
    /// What the summary of its first snapshot holds beside Iceberg's own, if it is created with rows.
    pub(crate) snapshot_properties: HashMap<String, String>,
}

impl TableSpec {
    /// A table of these columns, and nothing more to say of it.
    pub(crate) fn plain(name: TableName, schema: SchemaRef) -> Self {
        Self {
            name,
            schema,
            docs: HashMap::new(),
            properties: HashMap::new(),
            sort_columns: Vec::new(),
            snapshot_properties: HashMap::new(),
        }
    }
}

/// Iceberg tables in one warehouse, found through one catalog.
#[derive(Debug)]
pub(crate) struct OfflineStore {
    pub(super) catalog: Catalog,
    pub(super) io: FileIO,
    pub(super) warehouse: Warehouse,
    pub(super) clock: Arc<dyn Clock>,
    metadata: Cache<String, TableMetadataRef>,
    pub(super) manifests: ManifestCache,
    pub(super) log: WriteLog,
    #[cfg(test)]
    pub(crate) faults: super::faults::Faults,
}

impl OfflineStore {
    /// Opens the catalog and the warehouse, creating what a machine of ours can where it does not exist.
    pub(crate) async fn open(
        catalog: impl Into<CatalogLocation>,
        warehouse: impl Into<WarehouseLocation>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let warehouse = Warehouse::open(&warehouse.into()).await?;
        let catalog = Catalog::open(&catalog.into()).await?;
        Ok(Self {
            catalog,
            io: warehouse.io().clone(),
            warehouse,
            clock,
            metadata: Cache::new(METADATA_MAX),
            manifests: ManifestCache::default(),
            log: WriteLog::default(),
            #[cfg(test)]
            faults: super::faults::Faults::default(),
        })
    }

    /// Makes its files known to what runs plans over its tables.
    pub(crate) fn register(&self, runtime: &RuntimeEnv) {
        self.warehouse.register(runtime);
    }

    /// Every namespace.
    pub(crate) async fn schemas(&self) -> Result<Vec<String>> {
        self.catalog.namespaces().await
    }

    /// `false` means that it exists already.
    pub(crate) async fn create_schema(&self, schema: &str) -> Result<bool> {
        self.catalog.create_namespace(schema).await
    }

    /// `false` means that it does not exist or is not empty.
    pub(crate) async fn drop_schema(&self, schema: &str) -> Result<bool> {
        self.catalog.drop_namespace(schema).await
    }

    /// Every table, with the location of its current metadata.
    pub(crate) async fn tables(&self) -> Result<Vec<(TableName, String)>> {
        Ok(self.catalog.tables().await?.into_iter().map(|e| (e.name, e.metadata_location)).collect())
    }

    /// The table at the metadata that `location` names.
    pub(crate) async fn load_at(&self, name: &TableName, location: &str) -> Result<OfflineTable> {
        let metadata = match self.metadata.get(location) {
            Some(metadata) => metadata,
            None => {
                let read = TableMetadata::read_from(&self.io, location).await.map_err(|e| {
                    unreadable(format!("cannot read metadata '{location}' of table '{name}'"), e)
                })?;
                let read = Arc::new(read);
                self.metadata.insert(location.to_owned(), Arc::clone(&read));
                read
            }
        };
        OfflineTable::new(name.clone(), location, metadata)
    }

    /// The table at its newest metadata.
    pub(crate) async fn load(&self, name: &TableName) -> Result<Option<OfflineTable>> {
        #[cfg(test)]
        self.faults.reading()?;
        match self.catalog.metadata_location(name).await? {
            Some(location) => self.load_at(name, &location).await.map(Some),
            None => Ok(None),
        }
    }

    /// The live data files of the table's snapshot; with `added_by`, only those that these snapshots added.
    pub(crate) async fn data_files(
        &self,
        table: &OfflineTable,
        added_by: Option<&[i64]>,
    ) -> Result<Vec<DataFile>> {
        match table.snapshot() {
            Some(snapshot) => {
                data_files(&self.io, &self.manifests, &table.metadata, snapshot, added_by).await
            }
            None => Ok(Vec::new()),
        }
    }

    pub(super) async fn build(
        &self,
        spec: &TableSpec,
        rows: Option<SendableRecordBatchStream>,
        memory: &Arc<dyn MemoryPool>,
    ) -> Result<Built> {
        let name = &spec.name;
        let directory = format!("{}-{}", path_component(&name.name), Uuid::now_v7());
        let location = self.warehouse.location([&path_component(&name.schema), &directory]);
        let schema = iceberg_schema(&spec.schema, &spec.docs)?;
        let order = iceberg_order(&schema, &spec.sort_columns)?;
        let creation = TableCreation::builder()
            .name(name.name.clone())
            .location(location)
            .schema(schema)
            .sort_order(order)
            .properties(spec.properties.clone())
            .build();
        let cannot = |e| Error::invalid(format!("table '{name}' does not fit Iceberg")).with_source(e);
        let built =
            TableMetadataBuilder::from_table_creation(creation).and_then(|b| b.build()).map_err(cannot)?;
        let now_ms = self.clock.now_us().div_euclid(1000);
        let mut metadata = updated_at(&built.metadata, now_ms)?;
        let mut written = None;
        if let Some(rows) = rows {
            let files = write_files(&self.io, &metadata, rows, memory).await?;
            if !files.files.is_empty() {
                let now_ms = self.clock.now_us().div_euclid(1000);
                let change = Change::Append(spec.snapshot_properties.clone());
                let (io, manifests) = (&self.io, &self.manifests);
                metadata = snapshot::changed(io, manifests, &metadata, &files.files, &change, now_ms).await?;
            }
            written = Some(files);
        }
        let location = MetadataLocation::new_with_metadata(metadata.location(), &metadata);
        let (files, rows) = written.map_or((Vec::new(), 0), |w| (w.files, w.rows));
        let (location, metadata) = self.write_metadata(metadata, location, &files).await?;
        Ok(Built { location, metadata, rows })
    }

    /// Writes metadata and makes it durable, with the data files that it names for the first time.
    pub(super) async fn write_metadata(
        &self,
        metadata: TableMetadata,
        location: MetadataLocation,
        new_files: &[DataFile],
    ) -> Result<(String, TableMetadataRef)> {
        metadata
            .write_to(&self.io, &location)
            .await
            .map_err(|e| Error::unavailable("cannot write table metadata to the warehouse").with_source(e))?;
        let (location, metadata) = (location.to_string(), Arc::new(metadata));
        self.warehouse.make_durable(&location, true, new_files).await?;
        self.metadata.insert(location.clone(), Arc::clone(&metadata));
        Ok((location, metadata))
    }

    /// The table's directory; `None` where it is not within the warehouse.
    pub(super) fn directory(&self, metadata: &TableMetadata) -> Option<ObjectPath> {
        self.warehouse.directory(metadata.location())
    }

    pub(super) async fn discard(&self, built: &Built) {
        self.delete_files(&built.metadata).await;
    }

    pub(super) async fn delete_files(&self, metadata: &TableMetadata) {
        let location = metadata.location();
        if self.directory(metadata).is_none() {
            tracing::info!(location, "files of a table outside the warehouse are left where they are");
            return;
        }
        if let Err(error) = self.io.delete_prefix(format!("{location}/")).await {
            tracing::warn!(location, %error, "files of a dropped table were not removed");
        }
    }
}

/// Where the metadata goes that comes after `table`'s.
pub(super) fn next_location(table: &OfflineTable) -> Result<MetadataLocation> {
    let location = MetadataLocation::from_str(&table.location).map_err(|e| {
        Error::corrupt(format!("table '{}' has a bad metadata location", table.name)).with_source(e)
    })?;
    Ok(location.with_next_version())
}

/// The same metadata as of `now_ms`. Iceberg's builder asks the machine for the time, and no snapshot may be older
/// than what it says.
pub(super) fn updated_at(metadata: &TableMetadata, now_ms: i64) -> Result<TableMetadata> {
    let failed = |e| Error::internal("table metadata does not survive JSON").with_source(e);
    let mut json = serde_json::to_value(metadata).map_err(failed)?;
    json["last-updated-ms"] = now_ms.into();
    serde_json::from_value(json).map_err(failed)
}

/// A name as one component of a path: whatever a quoted SQL name holds, it stays inside the warehouse.
fn path_component(name: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '_' || c == '-' { c } else { '_' };
    name.chars().take(NAME_CHARS_MAX).map(safe).collect()
}

/// A complete table that the catalog does not name yet.
pub(super) struct Built {
    pub(super) location: String,
    pub(super) metadata: TableMetadataRef,
    pub(super) rows: u64,
}

#[cfg(test)]
mod tests;
