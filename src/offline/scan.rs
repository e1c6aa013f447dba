//! An Iceberg snapshot as a table of DataFusion: files chosen from the manifests, read by its own Parquet source.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::compute::SortOptions;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::memory::DataSourceExec;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Result, ToDFSchema};
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::parquet::CachedParquetFileReaderFactory;
use datafusion::datasource::physical_plan::{
    FileGroup, FileGroupPartitioner, FileScanConfig, FileScanConfigBuilder, FileSource, ParquetSource,
};
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, Operator, TableProviderFilterPushDown};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use datafusion::physical_expr::{LexOrdering, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_optimizer::pruning::PruningPredicate;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricType};
use datafusion_datasource::compute_all_files_statistics;
use iceberg::spec::DataFile;
use tokio::sync::OnceCell;

use super::evolution::ByFieldId;
use super::rows::RowFile;
use super::sparse::{SparseFile, SparseScanExec};
use super::statistics::{FileBounds, file_statistics, kept_part, may_hold_nan, without_endless};
use super::store::OfflineStore;
use super::table::OfflineTable;
use crate::model::{LoggedFile, TableVersion};

/// Where a filter keeps at most this part of the rows, their other columns are read value by value.
const SPARSE_PART_MAX: f64 = 0.1;

/// A table at the snapshot that its [`OfflineTable`] names, or some part of that: what some snapshots added, or some files.
#[derive(Debug, Clone)]
pub(crate) struct IcebergTable {
    store: Arc<OfflineStore>,
    table: OfflineTable,
    schema: SchemaRef,
    part: Part,
    /// The files of logged rows beside the snapshot, once somebody looked: the same ones from then on.
    logged: Arc<OnceCell<Arc<[DataFile]>>>,
}

/// Which of a snapshot's files are read.
#[derive(Debug, Clone)]
enum Part {
    All,
    AddedBy(Vec<i64>),
    Files(Vec<DataFile>),
}

impl IcebergTable {
    /// All rows that `table` has at its snapshot.
    pub(crate) fn current(store: Arc<OfflineStore>, table: OfflineTable) -> Self {
        let schema = Arc::clone(table.schema());
        Self { store, table, schema, part: Part::All, logged: Arc::default() }
    }

    /// Only the rows that the named snapshots added and that are still live.
    pub(crate) fn added_by(store: Arc<OfflineStore>, table: OfflineTable, snapshots: Vec<i64>) -> Self {
        Self { part: Part::AddedBy(snapshots), ..Self::current(store, table) }
    }

    /// Only the rows of some of its files.
    pub(crate) fn of_files(store: Arc<OfflineStore>, table: OfflineTable, files: Vec<DataFile>) -> Self {
        Self { part: Part::Files(files), ..Self::current(store, table) }
    }

    /// What it reads.
    pub(crate) fn table(&self) -> &OfflineTable {
        &self.table
    }

    /// The same table as another snapshot has it.
    pub(crate) fn of(&self, table: OfflineTable) -> Self {
        Self::current(Arc::clone(&self.store), table)
    }

    /// Whether this is not all of the snapshot's rows.
    pub(super) fn is_partial(&self) -> bool {
        !matches!(self.part, Part::All)
    }

    /// The data files that hold the rows.
    pub(super) async fn files(&self) -> crate::error::Result<Vec<DataFile>> {
        match &self.part {
            Part::All => {
                let mut files = self.store.data_files(&self.table, None).await?;
                files.extend_from_slice(self.logged().await?);
                Ok(files)
            }
            Part::AddedBy(snapshots) => self.store.data_files(&self.table, Some(snapshots)).await,
            Part::Files(files) => Ok(files.clone()),
        }
    }

    async fn logged(&self) -> crate::error::Result<&[DataFile]> {
        let files = async || {
            let files = match self.table.given_logged() {
                Some(given) => self.store.given_files(&self.table, given)?,
                None => self.store.logged_files(&self.table).await?,
            };
            Ok(files.into())
        };
        self.logged.get_or_try_init(files).await.map(|files| files.as_ref())
    }

    /// What it reads, from now on, in a form that outlives it: see [`OfflineTable::at_version`].
    pub(crate) async fn version(&self) -> crate::error::Result<TableVersion> {
        let logged = self.logged().await?.iter().map(LoggedFile::from).collect();
        Ok(TableVersion { logged, ..self.table.version() })
    }

    fn predicate(&self, state: &dyn Session, filters: &[Expr]) -> Result<Option<Arc<dyn PhysicalExpr>>> {
        let Some(filter) = conjunction(filters.iter().cloned()) else { return Ok(None) };
        let schema = Arc::clone(&self.schema).to_dfschema()?;
        state.create_physical_expr(filter, &schema).map(Some)
    }

    /// The files that may hold rows for which `predicate` is true.
    fn prune(&self, files: Vec<DataFile>, predicate: Option<Arc<dyn PhysicalExpr>>) -> Result<Vec<DataFile>> {
        let Some(predicate) = predicate else { return Ok(files) };
        let pruning = PruningPredicate::try_new(predicate, Arc::clone(&self.schema))?;
        if pruning.always_true() {
            return Ok(files);
        }
        let schema = self.table.iceberg_schema();
        let keep = pruning.prune(&FileBounds { files: &files, schema, arrow: &self.schema })?;
        Ok(files.into_iter().zip(keep).filter_map(|(file, keep)| keep.then_some(file)).collect())
    }

    /// What names the files' store in plans.
    pub(super) fn url(&self) -> &ObjectStoreUrl {
        self.store.warehouse.url()
    }

    pub(super) fn partitioned(&self, file: &DataFile) -> Result<PartitionedFile> {
        let mut partitioned = PartitionedFile::new("", file.file_size_in_bytes());
        partitioned.object_meta.location = self.store.warehouse.path(file.file_path())?;
        let statistics = file_statistics(file, self.table.iceberg_schema(), &self.schema);
        Ok(partitioned.with_statistics(Arc::new(statistics)))
    }

    /// Whether a filter reads a float column that may hold NaN, which the bounds of row groups and pages leave out.
    fn filters_nan(&self, filters: &[Expr], files: &[DataFile]) -> bool {
        let columns = filters.iter().flat_map(Expr::column_refs);
        { columns }.filter_map(|column| self.schema.field_with_name(&column.name).ok()).any(|field| {
            let id = self.table.iceberg_schema().field_by_name(field.name()).map(|field| field.id);
            id.is_some_and(|id| files.iter().any(|file| may_hold_nan(file, id, field.data_type())))
        })
    }

    /// Whether a filter names the keys it wants. The few rows of a key lie side by side, so decoding the other columns
    /// for those rows alone pays.
    fn looks_up(&self, filters: &[Expr]) -> bool {
        let Some(key) = self.table.sort_columns().first() else { return false };
        let is_key = |expr: &Expr| matches!(expr, Expr::Column(column) if column.name == *key);
        fn names(expr: &Expr, is_key: &impl Fn(&Expr) -> bool) -> bool {
            match expr {
                Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => {
                    is_key(left) || is_key(right)
                }
                Expr::BinaryExpr(BinaryExpr { left, op: Operator::Or, right }) => {
                    names(left, is_key) && names(right, is_key)
                }
                Expr::InList(list) => !list.negated && is_key(&list.expr),
                _ => false,
            }
        }
        filters.iter().any(|filter| names(filter, &is_key))
    }

    /// Whether a filter on the event time, and on no key, keeps few of the rows of files that are sorted by key: no page
    /// is without some.
    fn keeps_few_scattered(&self, predicate: &Arc<dyn PhysicalExpr>, files: &[DataFile]) -> bool {
        let Some((time, keys)) = self.table.time_behind_keys() else { return false };
        let names_key = |column: &Column| keys.iter().any(|key| key == column.name());
        !collect_columns(predicate).iter().any(names_key)
            && files.iter().all(|file| self.table.is_sorted(file))
            && kept_part(predicate, files, time, self.table.iceberg_schema(), &self.schema) <= SPARSE_PART_MAX
    }

    /// The files as a scan for few of their rows, if none of the columns needs more than a cast.
    async fn sparse_scan(
        &self,
        state: &dyn Session,
        files: &[DataFile],
        predicate: Arc<dyn PhysicalExpr>,
        projection: Option<&Vec<usize>>,
        live_count: usize,
    ) -> Result<Option<SparseScanExec>> {
        let projection = projection.cloned().unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let fields = self.table.iceberg_schema().as_struct().fields();
        if projection.iter().any(|column| self.schema.field(*column).data_type().is_nested())
            || fields.iter().any(|field| field.initial_default.is_some())
        {
            return Ok(None);
        }
        let mut opened = Vec::with_capacity(files.len());
        for file in files {
            let object = self.partitioned(file)?.object_meta;
            let rows = RowFile::open(state.runtime_env(), self.url(), object).await?;
            let columns = fields.iter().map(|field| rows.column(field.id, &field.name)).collect();
            opened.push(SparseFile { rows, columns });
        }
        let metrics = ExecutionPlanMetricsSet::new();
        count_files(&metrics, live_count - files.len(), files.len());
        let (table, partitions) = (Arc::clone(&self.schema), state.config().target_partitions());
        SparseScanExec::try_new(opened, table, predicate, projection, partitions, metrics)
    }

    /// The order of the rows of a sorted file.
    fn ordering(&self) -> Option<LexOrdering> {
        let ascending = SortOptions { descending: false, nulls_first: true };
        let column = |name: &String| {
            let index = self.schema.index_of(name).ok()?;
            Some(PhysicalSortExpr::new(Arc::new(Column::new(name, index)), ascending))
        };
        LexOrdering::new(self.table.sort_columns().iter().map_while(column))
    }
}

/// Whether the plan reads files, and its partitions have none of their rows in common.
pub(crate) fn is_file_scan(plan: &dyn ExecutionPlan) -> bool {
    let any = plan.as_any();
    let reads_files = |source: &DataSourceExec| source.data_source().as_any().is::<FileScanConfig>();
    any.is::<SparseScanExec>() || any.downcast_ref::<DataSourceExec>().is_some_and(reads_files)
}

/// Files over at most `partitions` groups: of equal bytes, cutting files, where there are `bytes_min` of them.
fn groups(files: FileGroup, partitions: usize, bytes_min: usize) -> Vec<FileGroup> {
    let even = FileGroupPartitioner::new()
        .with_target_partitions(partitions)
        .with_repartition_file_min_size(bytes_min)
        .repartition_file_groups(std::slice::from_ref(&files));
    even.unwrap_or_else(|| files.split_files(partitions))
}

/// Shows files that the manifests ruled out beside those that their footers do, in EXPLAIN ANALYZE.
fn count_files(metrics: &ExecutionPlanMetricsSet, pruned: usize, matched: usize) {
    let metric = MetricBuilder::new(metrics).with_type(MetricType::SUMMARY);
    let metric = metric.pruning_metrics("files_ranges_pruned_statistics", 0);
    metric.add_pruned(pruned);
    metric.add_matched(matched);
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
        let live = self.files().await?;
        let live_count = live.len();
        let predicate = self.predicate(state, filters)?;
        let files = self.prune(live, predicate.clone())?;
        if files.is_empty() {
            let schema = match projection {
                Some(columns) => Arc::new(self.schema.project(columns)?),
                None => Arc::clone(&self.schema),
            };
            return Ok(Arc::new(EmptyExec::new(schema)));
        }
        if let Some(predicate) = predicate
            && self.keeps_few_scattered(&predicate, &files)
            && let Some(sparse) = self.sparse_scan(state, &files, predicate, projection, live_count).await?
        {
            return Ok(Arc::new(sparse));
        }
        // Files of a group are read one after the other, and sorted files overlap: only one alone is in order.
        let ordering = match files.as_slice() {
            [file] if self.table.is_sorted(file) => self.ordering(),
            _ => None,
        };
        let partitioned = files.iter().map(|file| self.partitioned(file)).collect::<Result<Vec<_>>>()?;
        let (whole, statistics) = compute_all_files_statistics(
            vec![FileGroup::new(partitioned)],
            Arc::clone(&self.schema),
            true,
            false,
        )?;
        let whole = FileGroup::new(whole.into_iter().flat_map(FileGroup::into_inner).collect());
        let mut parquet = state.table_options().parquet.clone();
        if self.filters_nan(filters, &files) {
            parquet.global.pruning = false;
            parquet.global.enable_page_index = false;
        }
        let options = state.config_options();
        let bytes_min = options.optimizer.repartition_file_min_size;

        let url = self.url().clone();
        let runtime = state.runtime_env();
        let footers = runtime.cache_manager.get_file_metadata_cache();
        let readers = CachedParquetFileReaderFactory::new(runtime.object_store(&url)?, footers);
        // FilterExec above hands down its predicate: as it is planned, and again where a join narrows it as it runs.
        let source = ParquetSource::new(Arc::clone(&self.schema))
            .with_table_parquet_options(parquet)
            .with_pushdown_filters(self.looks_up(filters))
            .with_parquet_file_reader_factory(Arc::new(readers));
        count_files(source.metrics(), live_count - files.len(), 0); // the source counts what it opens
        let columns = ByFieldId::new(self.table.iceberg_schema(), &self.schema);
        let config = FileScanConfigBuilder::new(url, Arc::new(source))
            .with_file_groups(groups(whole, state.config().target_partitions(), bytes_min))
            .with_statistics(without_endless(statistics))
            .with_expr_adapter(Some(Arc::new(columns)))
            .with_output_ordering(ordering.into_iter().collect())
            .with_projection_indices(projection.cloned())?
            .with_limit(limit)
            .build();
        Ok(DataSourceExec::from_data_source(config))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_of_equal_bytes_where_it_pays() {
        let file = |(i, bytes): (usize, u64)| PartitionedFile::new(format!("{i}.parquet"), bytes);
        let cases: [(&[u64], usize, &[u64]); 5] = [
            (&[100], 4, &[25, 25, 25, 25]),
            (&[10, 70, 20], 2, &[50, 50]),
            (&[1, 1, 1, 1, 1], 2, &[3, 2]),
            (&[5], 4, &[5]),
            (&[40, 1, 1], 8, &[6, 6, 6, 6, 6, 6, 6]),
        ];
        for (files, partitions, expected) in cases {
            let whole = FileGroup::new(files.iter().copied().enumerate().map(file).collect());
            let groups = groups(whole, partitions, 10);
            let bytes = |group: &FileGroup| group.iter().map(PartitionedFile::effective_size).sum::<u64>();
            assert_eq!(groups.iter().map(bytes).collect::<Vec<_>>(), expected, "{files:?}");
        }
    }
}
