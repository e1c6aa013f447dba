//! An Iceberg snapshot as a table of DataFusion: files chosen from the manifests, read by its own Parquet source.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::memory::DataSourceExec;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, ToDFSchema};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_optimizer::pruning::PruningPredicate;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion_datasource::compute_all_files_statistics;
use iceberg::spec::DataFile;
use object_store::path::Path;

use super::statistics::{FileBounds, file_statistics};
use super::store::{OfflineStore, OfflineTable};
use crate::error::Error;

/// A table at one of its snapshots, or what some snapshots added to it.
#[derive(Debug, Clone)]
pub(crate) struct IcebergTable {
    store: Arc<OfflineStore>,
    table: OfflineTable,
    schema: SchemaRef,
    added_by: Option<Vec<i64>>,
}

impl IcebergTable {
    /// The table at its current snapshot; `schema` is [`OfflineTable::schema`].
    pub(crate) fn current(store: Arc<OfflineStore>, table: OfflineTable) -> Self {
        let schema = Arc::clone(table.schema());
        Self { store, table, schema, added_by: None }
    }

    /// Only the rows that the named snapshots added and that are still live.
    pub(crate) fn added_by(store: Arc<OfflineStore>, table: OfflineTable, snapshots: Vec<i64>) -> Self {
        Self { added_by: Some(snapshots), ..Self::current(store, table) }
    }

    pub(super) fn table(&self) -> &OfflineTable {
        &self.table
    }

    /// Whether this is some snapshots' rows only.
    pub(super) fn is_partial(&self) -> bool {
        self.added_by.is_some()
    }

    /// The data files that hold the rows.
    pub(super) async fn files(&self) -> crate::error::Result<Vec<DataFile>> {
        self.store.data_files(&self.table, self.added_by.as_deref()).await
    }

    fn predicate(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let Some(filter) = conjunction(filters.iter().cloned()) else { return Ok(None) };
        let schema = Arc::clone(&self.schema).to_dfschema()?;
        state.create_physical_expr(filter, &schema).map(Some)
    }

    /// The files that may hold rows for which `predicate` is true.
    fn prune(
        &self,
        files: Vec<DataFile>,
        predicate: Option<&Arc<dyn PhysicalExpr>>,
    ) -> Result<Vec<DataFile>> {
        let Some(predicate) = predicate else { return Ok(files) };
        let pruning = PruningPredicate::try_new(Arc::clone(predicate), Arc::clone(&self.schema))?;
        if pruning.always_true() {
            return Ok(files);
        }
        let schema = self.table.metadata().current_schema();
        let keep = pruning.prune(&FileBounds { files: &files, schema, arrow: &self.schema })?;
        Ok(files.into_iter().zip(keep).filter_map(|(file, keep)| keep.then_some(file)).collect())
    }

    pub(super) fn partitioned(&self, file: &DataFile) -> Result<PartitionedFile> {
        let location = file.file_path();
        let path = location.strip_prefix("file://").unwrap_or(location);
        let path = Path::from_absolute_path(path).map_err(|e| {
            Error::unsupported(format!("data file '{location}' is not a local path")).with_source(e)
        })?;
        let mut partitioned = PartitionedFile::new("", file.file_size_in_bytes());
        partitioned.object_meta.location = path;
        let statistics = file_statistics(file, self.table.metadata().current_schema(), &self.schema);
        Ok(partitioned.with_statistics(Arc::new(statistics)))
    }

    /// Spreads files over at most `partitions` groups of about equal bytes, largest files first.
    fn groups(&self, mut files: Vec<DataFile>, partitions: usize) -> Result<Vec<FileGroup>> {
        files.sort_by(|a, b| {
            b.file_size_in_bytes().cmp(&a.file_size_in_bytes()).then_with(|| a.file_path().cmp(b.file_path()))
        });
        let mut groups: Vec<(u64, Vec<PartitionedFile>)> = Vec::new();
        groups.resize_with(partitions.clamp(1, files.len().max(1)), Default::default);
        for file in &files {
            let smallest = groups.iter_mut().min_by_key(|(bytes, _)| *bytes);
            if let Some((bytes, group)) = smallest {
                *bytes += file.file_size_in_bytes();
                group.push(self.partitioned(file)?);
            }
        }
        Ok(groups.into_iter().map(|(_, files)| FileGroup::new(files)).collect())
    }
}

#[async_trait]
impl TableProvider for IcebergTable {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let predicate = self.predicate(state, filters)?;
        let files = self.files().await?;
        let files = self.prune(files, predicate.as_ref())?;
        if files.is_empty() {
            let schema = match projection {
                Some(columns) => Arc::new(self.schema.project(columns)?),
                None => Arc::clone(&self.schema),
            };
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        let groups = self.groups(files, state.config().target_partitions())?;
        let (groups, statistics) =
            compute_all_files_statistics(groups, Arc::clone(&self.schema), true, false)?;
        let mut source = ParquetSource::new(Arc::clone(&self.schema))
            .with_table_parquet_options(state.table_options().parquet.clone())
            .with_pushdown_filters(false);
        if let Some(predicate) = predicate {
            source = source.with_predicate(predicate);
        }
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), Arc::new(source))
            .with_file_groups(groups)
            .with_statistics(statistics)
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }
}
