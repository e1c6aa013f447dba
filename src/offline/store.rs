//! The offline store: creates, finds, appends to, alters, replaces and drops Iceberg tables.

mod alter;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use datafusion::arrow::datatypes::SchemaRef;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::MemoryPool;
use iceberg::io::FileIO;
use iceberg::spec::{DataFile, TableMetadata, TableMetadataBuilder, TableMetadataRef};
use iceberg::{MetadataLocation, TableCreation};
use moka::sync::Cache;
use uuid::Uuid;

use super::catalog::Catalog;
use super::durable::{local_path, make_durable};
use super::files::{ManifestCache, data_files};
use super::order::iceberg_order;
use super::schema::iceberg_schema;
use super::snapshot;
use super::table::OfflineTable;
use super::write::{WrittenFiles, write_files};
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::model::TableName;

const METADATA_MAX: u64 = 4096;
/// How often a commit starts again from fresh metadata when others commit to the same table.
const COMMIT_ATTEMPTS_MAX: usize = 32;

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
}

impl TableSpec {
    /// A table of these columns, and nothing more to say of it.
    pub(crate) fn plain(name: TableName, schema: SchemaRef) -> Self {
        Self { name, schema, docs: HashMap::new(), properties: HashMap::new(), sort_columns: Vec::new() }
    }
}

/// Iceberg tables in one warehouse, found through one catalog.
#[derive(Debug)]
pub(crate) struct OfflineStore {
    catalog: Catalog,
    io: FileIO,
    warehouse: PathBuf,
    clock: Arc<dyn Clock>,
    metadata: Cache<String, TableMetadataRef>,
    manifests: ManifestCache,
}

impl OfflineStore {
    /// Opens the catalog (a SQLite file) and the warehouse (a directory), creating both where they do not exist.
    pub(crate) async fn open(catalog: &Path, warehouse: &Path, clock: Arc<dyn Clock>) -> Result<Self> {
        let unusable = |e: std::io::Error| {
            Error::unavailable(format!("cannot use the warehouse at '{}'", warehouse.display()))
                .with_source(e)
        };
        std::fs::create_dir_all(warehouse).map_err(unusable)?;
        let warehouse = warehouse.canonicalize().map_err(unusable)?;
        let catalog = Catalog::open(catalog).await?;
        Ok(Self {
            catalog,
            io: FileIO::new_with_fs(),
            warehouse,
            clock,
            metadata: Cache::new(METADATA_MAX),
            manifests: ManifestCache::default(),
        })
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
                    Error::corrupt(format!("cannot read metadata '{location}' of table '{name}'"))
                        .with_source(e)
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

    /// Creates a table, with rows if `rows` is given: both or neither become visible. Returns the rows written, for
    /// which `memory` is asked.
    ///
    /// # Errors
    /// `AlreadyExists` where the name is taken.
    pub(crate) async fn create(
        &self,
        spec: &TableSpec,
        rows: Option<SendableRecordBatchStream>,
        memory: &Arc<dyn MemoryPool>,
    ) -> Result<u64> {
        let built = self.build(spec, rows, memory).await?;
        match self.catalog.insert(&spec.name, &built.location).await {
            Ok(true) => Ok(built.rows),
            Ok(false) => {
                self.discard(&built).await;
                Err(Error::already_exists(format!("table '{}' exists already", spec.name)))
            }
            Err(error) => Err(error),
        }
    }

    /// Puts a new table in the place of `old`, in one step.
    ///
    /// # Errors
    /// `Conflict` where `old` changed meanwhile.
    pub(crate) async fn replace(
        &self,
        old: &OfflineTable,
        spec: &TableSpec,
        rows: SendableRecordBatchStream,
        memory: &Arc<dyn MemoryPool>,
    ) -> Result<u64> {
        let built = self.build(spec, Some(rows), memory).await?;
        if self.catalog.swap(&spec.name, &old.location, &built.location).await? {
            self.delete_files(&old.metadata).await;
            return Ok(built.rows);
        }
        self.discard(&built).await;
        Err(Error::conflict(format!("table '{}' changed while it was replaced: try again", spec.name)))
    }

    /// Appends rows to `table`, at whatever metadata it has by then, and returns it with them.
    /// `properties` go into the snapshot's summary.
    ///
    /// # Errors
    /// `Conflict` where the table was dropped or replaced meanwhile, or stays contended. Nothing is appended then.
    pub(crate) async fn append(
        &self,
        table: &OfflineTable,
        rows: SendableRecordBatchStream,
        properties: HashMap<String, String>,
        memory: &Arc<dyn MemoryPool>,
    ) -> Result<(OfflineTable, u64)> {
        let written = write_files(&self.io, &table.metadata, rows, memory).await?;
        if written.files.is_empty() {
            return Ok((table.clone(), 0));
        }
        let committed = self.commit(table, &written, properties).await;
        if let Err(error) = &committed
            && error.kind() == crate::error::ErrorKind::Conflict
        {
            written.discard(&self.io).await;
        }
        Ok((committed?, written.rows))
    }

    async fn commit(
        &self,
        table: &OfflineTable,
        written: &WrittenFiles,
        properties: HashMap<String, String>,
    ) -> Result<OfflineTable> {
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let current = self.current(table).await?;
            let now_ms = self.clock.now_us().div_euclid(1000);
            let next = snapshot::append(
                &self.io,
                &current.metadata,
                written.files.clone(),
                properties.clone(),
                now_ms,
            )
            .await?;
            if let Some(committed) = self.swap(&current, next, &written.files).await? {
                return Ok(committed);
            }
        }
        Err(contended(&table.name))
    }

    /// What `table` is by now.
    async fn current(&self, table: &OfflineTable) -> Result<OfflineTable> {
        let current = self.load(&table.name).await?;
        current.filter(|t| t.metadata.uuid() == table.metadata.uuid()).ok_or_else(|| {
            Error::conflict(format!("table '{}' was dropped or replaced meanwhile", table.name))
        })
    }

    /// Puts `next` in the place of the metadata of `current`; `None` where somebody else was first.
    async fn swap(
        &self,
        current: &OfflineTable,
        next: TableMetadata,
        new_files: &[DataFile],
    ) -> Result<Option<OfflineTable>> {
        let name = &current.name;
        let location = MetadataLocation::from_str(&current.location).map_err(|e| {
            Error::corrupt(format!("table '{name}' has a bad metadata location")).with_source(e)
        })?;
        let (location, metadata) = self.write_metadata(next, location.with_next_version(), new_files).await?;
        match self.catalog.swap(name, &current.location, &location).await? {
            true => OfflineTable::new(name.clone(), &location, metadata).map(Some),
            false => Ok(None),
        }
    }

    /// Removes a table from the catalog, then its files.
    pub(crate) async fn drop_table(&self, table: &OfflineTable) -> Result<()> {
        let mut current = table.clone();
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            if self.catalog.remove(&current.name, &current.location).await? {
                self.delete_files(&current.metadata).await;
                return Ok(());
            }
            match self.load(&table.name).await? {
                Some(newer) if newer.metadata.uuid() == table.metadata.uuid() => current = newer,
                _ => return Ok(()),
            }
        }
        Err(contended(&table.name))
    }

    async fn build(
        &self,
        spec: &TableSpec,
        rows: Option<SendableRecordBatchStream>,
        memory: &Arc<dyn MemoryPool>,
    ) -> Result<Built> {
        let name = &spec.name;
        let directory = format!("{}-{}", path_component(&name.name), Uuid::now_v7());
        let location = self.warehouse.join(path_component(&name.schema)).join(directory);
        let schema = iceberg_schema(&spec.schema, &spec.docs)?;
        let order = iceberg_order(&schema, &spec.sort_columns)?;
        let creation = TableCreation::builder()
            .name(name.name.clone())
            .location(format!("file://{}", location.display()))
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
                metadata = snapshot::append(&self.io, &metadata, files.files.clone(), HashMap::new(), now_ms)
                    .await?;
            }
            written = Some(files);
        }
        let location = MetadataLocation::new_with_metadata(metadata.location(), &metadata);
        let (files, rows) = written.map_or((Vec::new(), 0), |w| (w.files, w.rows));
        let (location, metadata) = self.write_metadata(metadata, location, &files).await?;
        Ok(Built { location, metadata, rows })
    }

    /// Writes metadata and makes it durable, with the data files that it names for the first time.
    async fn write_metadata(
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
        let data_files = new_files.iter().map(|f| local_path(f.file_path())).collect();
        make_durable(&self.warehouse, &location, data_files).await?;
        self.metadata.insert(location.clone(), Arc::clone(&metadata));
        Ok((location, metadata))
    }

    async fn discard(&self, built: &Built) {
        self.delete_files(&built.metadata).await;
    }

    async fn delete_files(&self, metadata: &TableMetadata) {
        let location = metadata.location();
        let path = local_path(location);
        let leaves = path.components().any(|c| c == Component::ParentDir);
        if leaves || !path.starts_with(&self.warehouse) || path == self.warehouse {
            tracing::info!(location, "files of a table outside the warehouse are left where they are");
            return;
        }
        if let Err(error) = self.io.delete_prefix(format!("{location}/")).await {
            tracing::warn!(location, %error, "files of a dropped table were not removed");
        }
    }
}

fn contended(name: &TableName) -> Error {
    Error::conflict(format!("table '{name}' is being written by too many at once: try again"))
}

/// The same metadata as of `now_ms`. Iceberg's builder asks the machine for the time, and no snapshot may be older
/// than what it says.
fn updated_at(metadata: &TableMetadata, now_ms: i64) -> Result<TableMetadata> {
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
struct Built {
    location: String,
    metadata: TableMetadataRef,
    rows: u64,
}

#[cfg(test)]
mod tests;
