//! One data file, read by row number.

use std::ops::Range;
use std::sync::Arc;

use datafusion::arrow::array::{ArrayRef, RecordBatch, new_null_array};
use datafusion::arrow::compute::{cast, concat};
use datafusion::arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::datasource::physical_plan::parquet::metadata::DFParquetMetadata;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use object_store::ObjectMeta;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
    RowSelection, RowSelectionPolicy, RowSelector,
};
use parquet::column::page::PageReader;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, RowGroupMetaData};
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::serialized_reader::SerializedPageReader;

use super::fetched::{Buffers, Fetched, Source};
use super::page::{Gather, is_random_access};
use super::ranges_of;
use crate::error::{Error, Result};
use crate::offline::warehouse::absolute;

/// An open data file: its footer and page index, cached with the runtime; its rows are numbered from 0.
#[derive(Debug)]
pub(crate) struct RowFile {
    object: ObjectMeta,
    source: Source,
    arrow: ArrowReaderMetadata,
    /// First row of each row group, and behind them the number of rows.
    starts: Vec<u32>,
}

/// What the pages of one column hold, page after page through the whole file.
#[derive(Debug)]
pub(crate) struct PageBounds {
    /// Rows of each page.
    pub(crate) rows: Vec<Range<u32>>,
    /// Bounds of each page, NULL where unknown; of the column's type in the file.
    pub(crate) min: ArrayRef,
    pub(crate) max: ArrayRef,
}

impl RowFile {
    /// # Errors
    /// `Unavailable` where the file cannot be read, `Corrupt` where it is not Parquet, `Unsupported` where it has more
    /// than 4 billion rows.
    pub(crate) async fn open(runtime: &RuntimeEnv, url: &ObjectStoreUrl, object: ObjectMeta) -> Result<Self> {
        let store = runtime.object_store(url)?;
        let source = match *url == ObjectStoreUrl::local_filesystem() {
            true => Source::Local(absolute(&object.location)),
            false => Source::Remote(Arc::clone(&store), object.location.clone()),
        };
        let cache = runtime.cache_manager.get_file_metadata_cache();
        let metadata = DFParquetMetadata::new(store.as_ref(), &object)
            .with_file_metadata_cache(Some(cache))
            .fetch_metadata()
            .await?;
        let mut starts = vec![0_u32];
        for group in metadata.row_groups() {
            let last = starts.last().copied().unwrap_or(0);
            let next = u32::try_from(group.num_rows()).ok().and_then(|rows| last.checked_add(rows));
            starts.push(next.ok_or_else(|| {
                Error::unsupported(format!("data file '{}' has more than 4 billion rows", object.location))
            })?);
        }
        let arrow = ArrowReaderMetadata::try_new(metadata, ArrowReaderOptions::new())
            .map_err(|e| Error::corrupt(format!("data file '{}'", object.location)).with_source(e))?;
        Ok(Self { object, source, arrow, starts })
    }

    fn metadata(&self) -> &ParquetMetaData {
        self.arrow.metadata()
    }

    /// The file's own columns.
    pub(crate) fn schema(&self) -> &SchemaRef {
        self.arrow.schema()
    }

    #[cfg(test)]
    pub(super) fn rows(&self) -> u32 {
        self.starts.last().copied().unwrap_or(0)
    }

    /// The top-level column with this Iceberg field id, or, in a file without ids, of this name.
    pub(crate) fn column(&self, id: i32, name: &str) -> Option<usize> {
        let fields = self.metadata().file_metadata().schema_descr().root_schema().get_fields();
        let has_ids = fields.iter().any(|field| field.get_basic_info().has_id());
        fields.iter().position(|field| {
            let info = field.get_basic_info();
            if has_ids { info.has_id() && info.id() == id } else { info.name() == name }
        })
    }

    /// Whether single values of a column are read without those before them.
    pub(crate) fn has_slots(&self, column: usize) -> bool {
        self.random_access_leaf(column, &self.schema().fields()[column]).is_some()
    }

    /// All rows, in parts of at most about `rows_max` that no row group border runs through.
    pub(crate) fn units(&self, rows_max: u32) -> Vec<Range<u32>> {
        let of_group = |pair: &[u32]| {
            let (start, rows) = (pair[0], pair[1] - pair[0]);
            let count = rows.div_ceil(rows_max.max(1));
            (0..count).map(move |unit| {
                let at = |unit: u32| start + (u64::from(rows) * u64::from(unit) / u64::from(count)) as u32;
                at(unit)..at(unit + 1)
            })
        };
        self.starts.windows(2).flat_map(of_group).collect()
    }

    fn mask(&self, columns: &[usize]) -> ProjectionMask {
        ProjectionMask::roots(self.arrow.parquet_schema(), columns.iter().copied())
    }

    fn row_group(&self, index: usize) -> &RowGroupMetaData {
        self.metadata().row_group(index)
    }

    fn locations(&self, group: usize, leaf: usize) -> Option<&[PageLocation]> {
        let index = self.metadata().offset_index()?.get(group)?.get(leaf)?;
        (!index.page_locations().is_empty()).then(|| index.page_locations().as_slice())
    }

    /// Row groups that hold some of `ranges`, with those ranges counted from the row group's start.
    fn by_group<'a>(
        &'a self,
        ranges: &'a [Range<u32>],
    ) -> impl Iterator<Item = (usize, Vec<Range<u32>>)> + 'a {
        (0..self.starts.len() - 1).filter_map(move |group| {
            let (start, end) = (self.starts[group], self.starts[group + 1]);
            let from = ranges.partition_point(|range| range.end <= start);
            let inside: Vec<Range<u32>> = ranges[from..]
                .iter()
                .take_while(|range| range.start < end)
                .map(|range| range.start.max(start) - start..range.end.min(end) - start)
                .filter(|range| !range.is_empty())
                .collect();
            (!inside.is_empty()).then_some((group, inside))
        })
    }

    /// Bounds of the pages of a flat column (of its row groups where the file has no page index).
    pub(crate) fn page_bounds(&self, column: usize) -> Result<PageBounds> {
        let corrupt = |e: ParquetError| self.corrupt(e);
        let metadata = self.metadata();
        let name = self.schema().field(column).name();
        let converter = StatisticsConverter::try_new(name, self.schema(), self.arrow.parquet_schema())
            .map_err(corrupt)?;
        let groups: Vec<usize> = (0..metadata.num_row_groups()).collect();
        let leaf = converter.parquet_column_index();
        let indexed =
            leaf.is_some_and(|leaf| groups.iter().all(|group| self.locations(*group, leaf).is_some()));
        if let (true, Some(leaf), Some(columns), Some(offsets)) =
            (indexed, leaf, metadata.column_index(), metadata.offset_index())
        {
            let mut rows = Vec::new();
            for group in &groups {
                let (start, end) = (self.starts[*group], self.starts[group + 1]);
                let locations = self.locations(*group, leaf).unwrap_or_default();
                let firsts = locations.iter().map(|page| start + page.first_row_index as u32).chain([end]);
                let firsts: Vec<u32> = firsts.collect();
                rows.extend(firsts.windows(2).map(|pair| pair[0]..pair[1]));
            }
            let min = converter.data_page_mins(columns, offsets, &groups).map_err(corrupt)?;
            let max = converter.data_page_maxes(columns, offsets, &groups).map_err(corrupt)?;
            return Ok(PageBounds { rows, min, max });
        }
        Ok(PageBounds {
            rows: self.starts.windows(2).map(|pair| pair[0]..pair[1]).collect(),
            min: converter.row_group_mins(metadata.row_groups()).map_err(corrupt)?,
            max: converter.row_group_maxes(metadata.row_groups()).map_err(corrupt)?,
        })
    }

    /// Begins to read the pages of `columns` that hold rows of `ranges`, which ascend and do not overlap.
    pub(crate) fn fetch(
        &self,
        columns: &[usize],
        ranges: &[Range<u32>],
        buffers: &Buffers,
    ) -> impl Future<Output = Result<Fetched>> + Send + use<> {
        let mask = self.mask(columns);
        let mut wanted = Vec::new();
        for (group, ranges) in self.by_group(ranges) {
            for leaf in 0..self.row_group(group).num_columns() {
                if mask.leaf_included(leaf) {
                    self.pages_of(group, leaf, &ranges, &mut wanted);
                }
            }
        }
        Fetched::read(&self.source, self.object.size, wanted, buffers)
    }

    fn pages_of(&self, group: usize, leaf: usize, ranges: &[Range<u32>], wanted: &mut Vec<Range<u64>>) {
        let (start, length) = self.row_group(group).column(leaf).byte_range();
        let Some(locations) = self.locations(group, leaf) else {
            wanted.push(start..start + length);
            return;
        };
        let first = locations[0].offset as u64;
        if first > start {
            wanted.push(start..first); // the dictionary
        }
        let end = self.row_group(group).num_rows();
        for (index, page) in locations.iter().enumerate() {
            let from = page.first_row_index as u32;
            let to = locations.get(index + 1).map_or(end, |next| next.first_row_index) as u32;
            let next = ranges.partition_point(|range| range.end <= from);
            if ranges.get(next).is_some_and(|range| range.start < to) {
                wanted.push(page.offset as u64..page.offset as u64 + page.compressed_page_size as u64);
            }
        }
    }

    /// Decodes all rows of `ranges`, in order, from fetched pages; columns come in the file's order.
    pub(crate) fn scan(
        &self,
        fetched: &Fetched,
        columns: &[usize],
        ranges: &[Range<u32>],
        batch_rows: usize,
    ) -> Result<ParquetRecordBatchReader> {
        let (mut groups, mut selectors) = (Vec::new(), Vec::new());
        for (group, ranges) in self.by_group(ranges) {
            let mut at = 0;
            for range in ranges {
                selectors.push(RowSelector::skip((range.start - at) as usize));
                selectors.push(RowSelector::select(range.len()));
                at = range.end;
            }
            selectors.push(RowSelector::skip((self.starts[group + 1] - self.starts[group] - at) as usize));
            groups.push(group);
        }
        // A mask would decode pages between those that were fetched.
        ParquetRecordBatchReaderBuilder::new_with_metadata(fetched.clone(), self.arrow.clone())
            .with_row_selection_policy(RowSelectionPolicy::Selectors)
            .with_projection(self.mask(columns))
            .with_row_groups(groups)
            .with_row_selection(RowSelection::from(selectors))
            .with_batch_size(batch_rows)
            .build()
            .map_err(|e| self.corrupt(e))
    }

    /// The values of a column at `rows`, which never decrease, as `data_type`; NULLs where the file lacks the column.
    pub(crate) fn take(
        &self,
        fetched: &Fetched,
        column: Option<usize>,
        rows: &[u32],
        data_type: &DataType,
    ) -> Result<ArrayRef> {
        let Some(column) = column else { return Ok(new_null_array(data_type, rows.len())) };
        let field = Arc::clone(&self.schema().fields()[column]);
        let taken = match self.random_access_leaf(column, &field) {
            Some(leaf) => self.take_slots(fetched, leaf, &field, rows)?,
            None => self.take_scanned(fetched, column, rows)?,
        };
        if taken.data_type() == data_type { Ok(taken) } else { Ok(cast(&taken, data_type)?) }
    }

    fn random_access_leaf(&self, column: usize, field: &FieldRef) -> Option<usize> {
        let schema = self.arrow.parquet_schema();
        let mut leaves = (0..schema.num_columns()).filter(|leaf| schema.get_column_root_idx(*leaf) == column);
        let (Some(leaf), None) = (leaves.next(), leaves.next()) else { return None };
        let descriptor = schema.column(leaf);
        let flat = descriptor.max_rep_level() == 0 && descriptor.max_def_level() <= 1;
        let fits = self.metadata().row_groups().iter().enumerate().all(|(group, row_group)| {
            let chunk = row_group.column(leaf);
            self.locations(group, leaf).is_some()
                && is_random_access(chunk.column_type(), field.data_type(), chunk.encodings())
        });
        (flat && fits).then_some(leaf)
    }

    fn take_slots(&self, fetched: &Fetched, leaf: usize, field: &FieldRef, rows: &[u32]) -> Result<ArrayRef> {
        let descriptor = self.arrow.parquet_schema().column(leaf);
        let nullable = descriptor.max_def_level() == 1;
        let mut gather =
            Gather::new(descriptor.physical_type(), field.data_type().clone(), nullable, rows.len());
        let (mut rest, input) = (rows, Arc::new(fetched.clone()));
        let mut in_page = Vec::new();
        for (group, pair) in self.starts.windows(2).enumerate() {
            let (here, later) = rest.split_at(rest.partition_point(|row| *row < pair[1]));
            rest = later;
            if here.is_empty() {
                continue;
            }
            let locations = self.locations(group, leaf).unwrap_or_default();
            let (chunk, count) = (self.row_group(group).column(leaf), (pair[1] - pair[0]) as usize);
            let mut pages =
                SerializedPageReader::new(Arc::clone(&input), chunk, count, Some(locations.to_vec()))
                    .map_err(|e| self.corrupt(e))?;
            let mut rest = here;
            if locations.first().is_some_and(|first| first.offset as u64 > chunk.byte_range().0)
                && let Some(page) = pages.get_next_page().map_err(|e| self.corrupt(e))?
            {
                gather.dictionary(&page)?;
            }
            for (index, page) in locations.iter().enumerate() {
                let start = pair[0] + page.first_row_index as u32;
                let end =
                    locations.get(index + 1).map_or(pair[1], |next| pair[0] + next.first_row_index as u32);
                let (here, later) = rest.split_at(rest.partition_point(|row| *row < end));
                rest = later;
                if here.is_empty() {
                    pages.skip_next_page().map_err(|e| self.corrupt(e))?;
                    continue;
                }
                in_page.clear();
                in_page.extend(here.iter().map(|row| row - start));
                let page = pages.get_next_page().map_err(|e| self.corrupt(e))?;
                gather.page(&page.ok_or_else(|| self.corrupt("a page is missing"))?, &in_page)?;
                if rest.is_empty() {
                    break;
                }
            }
        }
        gather.finish()
    }

    fn take_scanned(&self, fetched: &Fetched, column: usize, rows: &[u32]) -> Result<ArrayRef> {
        let reader = self.scan(fetched, &[column], &ranges_of(rows), rows.len().max(1))?;
        let batches = reader.collect::<Result<Vec<RecordBatch>, _>>()?;
        let parts: Vec<&dyn datafusion::arrow::array::Array> =
            batches.iter().map(|batch| batch.column(0).as_ref()).collect();
        let distinct = match parts.as_slice() {
            [] => {
                return Ok(datafusion::arrow::array::new_empty_array(
                    self.schema().field(column).data_type(),
                ));
            }
            [_] => Arc::clone(batches[0].column(0)),
            parts => concat(parts)?,
        };
        if distinct.len() == rows.len() {
            return Ok(distinct);
        }
        let mut at = 0_u32;
        let repeated = rows.iter().enumerate().map(|(index, row)| {
            at += u32::from(index > 0 && rows[index - 1] != *row);
            at
        });
        let repeated = datafusion::arrow::array::UInt32Array::from_iter_values(repeated);
        Ok(datafusion::arrow::compute::take(&distinct, &repeated, None)?)
    }

    fn corrupt(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::corrupt(format!("data file '{}' cannot be decoded", self.object.location)).with_source(source)
    }
}
