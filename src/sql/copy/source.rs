//! One file as rows of a table, read by DataFusion's own sources.

use std::io::{BufReader, Read};
use std::sync::Arc;

use chrono::DateTime;
use datafusion::arrow::array::{RecordBatch, StringArray, new_null_array};
use datafusion::arrow::compute::kernels::cmp::eq;
use datafusion::arrow::compute::{CastOptions, cast_with_options, nullif};
use datafusion::arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::config::{CsvOptions, JsonOptions};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::FileScanConfigBuilder;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::execution::SessionState;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::physical_plan::execute_stream;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::ObjectMeta;
use object_store::path::Path;

use super::files::CopyFile;
use super::statement::{Format, Options};
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::Conform;
use crate::model::{FeatureGroup, TableName};

/// As which integers are read out of JSON: as such, the reader would cut off what a number has behind its point.
const JSON_INTEGER: DataType = DataType::Decimal128(38, 9);

/// What the rows are for.
#[derive(Debug)]
pub(super) enum Target {
    FeatureGroup(Arc<FeatureGroup>),
    Table(TableName, SchemaRef),
}

impl Target {
    pub(super) fn schema(&self) -> SchemaRef {
        match self {
            Self::FeatureGroup(group) => group.schema(),
            Self::Table(_, schema) => Arc::clone(schema),
        }
    }

    fn conform(&self, rows: &Schema) -> Result<Conform> {
        match self {
            Self::FeatureGroup(group) => Conform::to_group(group, rows),
            Self::Table(name, schema) => Conform::to_table(name, schema, rows),
        }
    }

    /// Whether rows may lack a column: it has a DEFAULT.
    fn has_default(&self, column: &str) -> bool {
        match self {
            Self::FeatureGroup(group) => {
                group.columns.iter().any(|of| of.field.name() == column && of.default.is_some())
            }
            Self::Table(..) => false,
        }
    }
}

/// How all files of a statement are read.
pub(super) struct Source {
    pub(super) state: SessionState,
    pub(super) target: Target,
    /// The columns to fill; all where there are none.
    pub(super) columns: Vec<String>,
    pub(super) options: Options,
}

/// A format, and the columns of one file in it.
struct Shape {
    format: Arc<dyn FileFormat>,
    /// As they are read.
    schema: SchemaRef,
    /// What they are then: the same but for text that is more than that.
    typed: SchemaRef,
}

impl Shape {
    fn new(format: impl FileFormat + 'static, schema: SchemaRef) -> Self {
        Self { format: Arc::new(format), typed: Arc::clone(&schema), schema }
    }
}

impl Source {
    /// The rows of a file, in the target's columns.
    ///
    /// # Errors
    /// Each names the file.
    pub(super) async fn rows(&self, file: CopyFile) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let shown = file.shown.clone();
        let rows = self.read(&file).await.map_err(|error| of_file(&shown, file.format, error))?;
        Ok(rows.map_err(move |error| of_file(&shown, file.format, error)).boxed())
    }

    async fn read(&self, file: &CopyFile) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let object = ObjectMeta {
            location: Path::from_absolute_path(&file.path)
                .map_err(|error| Error::invalid(error.to_string()))?,
            last_modified: file.metadata.modified().map_or(DateTime::UNIX_EPOCH, Into::into),
            size: file.metadata.len(),
            e_tag: None,
            version: None,
        };
        let Shape { format, schema, typed } = match file.format {
            Format::Parquet => self.parquet(&object).await?,
            Format::Csv => self.csv(&object, file).await?,
            Format::Json => self.json(&object, file).await?,
        };
        let chosen = self.chosen(&schema)?;
        let source = format.file_source(TableSchema::from_file_schema(Arc::clone(&schema)));
        let config = FileScanConfigBuilder::new(ObjectStoreUrl::local_filesystem(), source)
            .with_file(PartitionedFile::from(object))
            .with_projection_indices(Some(chosen.clone()))?
            .build();
        let plan = format.create_physical_plan(&self.state, config).await?;
        let rows = execute_stream(plan, self.state.task_ctx())?;
        let given = self.with_absent(&typed.project(&chosen)?);
        let (conform, null) = (self.target.conform(&given)?, self.options.null.clone());
        Ok(rows.map(move |batch| conform.batch(&as_given(&batch?, &given, null.as_deref())?)).boxed())
    }

    /// The columns of a file that are read: those that are to be filled.
    fn chosen(&self, file: &Schema) -> Result<Vec<usize>> {
        if self.columns.is_empty() {
            return Ok((0..file.fields().len()).collect());
        }
        self.columns.iter().map(|name| position(file, name)).collect()
    }

    /// The columns that are given, and those that a list of columns leaves out: they are NULL where they have no DEFAULT.
    fn with_absent(&self, given: &Schema) -> SchemaRef {
        let mut fields: Vec<FieldRef> = given.fields().iter().cloned().collect();
        if !self.columns.is_empty() {
            let absent = |name: &str| fields_lack(given, name) && !self.target.has_default(name);
            let target = self.target.schema();
            let names = target.fields().iter().map(|field| field.name()).filter(|name| absent(name));
            fields.extend(names.map(|name| Arc::new(Field::new(name, DataType::Null, true))));
        }
        Arc::new(Schema::new(fields))
    }

    async fn parquet(&self, object: &ObjectMeta) -> Result<Shape> {
        let format = ParquetFormat::default().with_options(self.state.table_options().parquet.clone());
        let schema = self.inferred(&format, object).await?;
        Ok(Shape::new(format, schema))
    }

    async fn csv(&self, object: &ObjectMeta, file: &CopyFile) -> Result<Shape> {
        let has_header = self.options.header.unwrap_or(true);
        let defaults = CsvOptions::default();
        let options = CsvOptions {
            has_header: Some(has_header),
            delimiter: self.options.delimiter.or(file.delimiter).unwrap_or(defaults.delimiter),
            quote: self.options.quote.unwrap_or(defaults.quote),
            escape: self.options.escape,
            compression: file.compression,
            newlines_in_values: Some(true),
            schema_infer_max_rec: Some(0),
            ..defaults
        };
        let format = CsvFormat::default().with_options(options);
        let target = self.target.schema();
        let names: Vec<String> = match has_header {
            true => self.inferred(&format, object).await?.fields().iter().map(|f| f.name().clone()).collect(),
            false if self.columns.is_empty() => target.fields().iter().map(|f| f.name().clone()).collect(),
            false => self.columns.clone(),
        };
        let field = |name: &String| -> Result<Field> {
            let name = name.trim_start_matches('\u{feff}'); // as which some begin their files
            let of_target = position(&target, name).ok().map(|at| target.field(at).data_type().clone());
            match of_target.unwrap_or(DataType::Utf8) {
                nested if nested.is_nested() || nested.is_binary() => Err(Error::unsupported(format!(
                    "column '{name}' is {nested}, which csv does not hold: use parquet or json"
                ))),
                flat => Ok(Field::new(name, flat, true)),
            }
        };
        let typed = Arc::new(Schema::new(names.iter().map(field).collect::<Result<Vec<_>>>()?));
        if self.options.null.is_none() {
            return Ok(Shape::new(format, typed));
        }
        // DataFusion's reader knows no other NULL than an empty field.
        let text = |field: &FieldRef| field.as_ref().clone().with_data_type(DataType::Utf8);
        let schema = Schema::new(typed.fields().iter().map(text).collect::<Vec<_>>());
        Ok(Shape { format: Arc::new(format), schema: Arc::new(schema), typed })
    }

    /// A field that a record lacks is NULL. Which fields there are is looked for in as many records as DataFusion looks
    /// at, a thousand.
    async fn json(&self, object: &ObjectMeta, file: &CopyFile) -> Result<Shape> {
        let options = JsonOptions {
            compression: file.compression,
            newline_delimited: !is_array(file).await?,
            ..JsonOptions::default()
        };
        let format = JsonFormat::default().with_options(options);
        let found = self.inferred(&format, object).await?;
        let target = self.target.schema();
        let mut fields: Vec<FieldRef> = Vec::new();
        for field in target.fields() {
            let name = position(&found, field.name()).map_or(field.name(), |at| found.field(at).name());
            let read_as = match field.data_type() {
                DataType::Int32 | DataType::Int64 => JSON_INTEGER,
                other => other.clone(),
            };
            fields.push(Arc::new(Field::new(name, read_as, true)));
        }
        let unknown = found.fields().iter().filter(|field| fields.iter().all(|of| of.name() != field.name()));
        let unknown: Vec<FieldRef> = unknown.cloned().collect();
        fields.extend(unknown);
        Ok(Shape::new(format, Arc::new(Schema::new(fields))))
    }

    async fn inferred(&self, format: &dyn FileFormat, object: &ObjectMeta) -> Result<SchemaRef> {
        let store = self.state.runtime_env().object_store(ObjectStoreUrl::local_filesystem())?;
        Ok(format.infer_schema(&self.state, &store, std::slice::from_ref(object)).await?)
    }
}

/// The column of that name: exact first, then one that differs in case alone.
fn position(schema: &Schema, name: &str) -> Result<usize> {
    let fields = schema.fields();
    let exact = fields.iter().position(|field| field.name() == name);
    let found = exact.or_else(|| fields.iter().position(|field| field.name().eq_ignore_ascii_case(name)));
    found.ok_or_else(|| {
        let names: Vec<String> = fields.iter().map(|field| format!("'{}'", field.name())).collect();
        Error::invalid(format!("there is no column '{name}': it has {}", names.join(", ")))
    })
}

fn fields_lack(schema: &Schema, name: &str) -> bool {
    position(schema, name).is_err()
}

/// The batch as `given` has it: text turned into what it says, and behind its columns those that are absent, all NULL. A
/// text that is `null` is none.
fn as_given(batch: &RecordBatch, given: &SchemaRef, null: Option<&str>) -> Result<RecordBatch> {
    let mut columns = Vec::with_capacity(given.fields().len());
    for (field, column) in given.fields().iter().zip(batch.columns()) {
        let mut column = Arc::clone(column);
        if let (Some(null), DataType::Utf8) = (null, column.data_type()) {
            column = nullif(&column, &eq(&column, &StringArray::new_scalar(null))?)?;
        }
        if column.data_type() != field.data_type() {
            column = cast_with_options(
                &column,
                field.data_type(),
                &CastOptions { safe: false, ..CastOptions::default() },
            )
            .map_err(|error| Error::invalid(format!("column '{}': {error}", field.name())))?;
        }
        columns.push(column);
    }
    let absent = &given.fields()[columns.len()..];
    columns.extend(absent.iter().map(|field| new_null_array(field.data_type(), batch.num_rows())));
    let fields = given.fields().iter().zip(&columns);
    let fields = fields.map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true));
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns)?)
}

/// Whether a file of JSON begins as an array does.
async fn is_array(file: &CopyFile) -> Result<bool> {
    let (path, compression) = (file.path.clone(), FileCompressionType::from(file.compression));
    let first = tokio::task::spawn_blocking(move || -> Result<Option<u8>> {
        let opened = std::fs::File::open(path).map_err(|error| Error::unavailable(error.to_string()))?;
        for byte in BufReader::new(compression.convert_read(opened)?).bytes() {
            let byte = byte.map_err(|error| Error::invalid(error.to_string()))?;
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
        }
        Ok(None)
    });
    let first =
        first.await.map_err(|error| Error::internal("reading a file did not finish").with_source(error))?;
    Ok(first? == Some(b'['))
}

/// What went wrong with a file: that it is not what it should be is a mistake of who sent it, and damages nothing here.
fn of_file(shown: &str, format: Format, error: impl Into<Error>) -> Error {
    let error: Error = error.into();
    match error.kind() {
        ErrorKind::Corrupt | ErrorKind::Internal => {
            Error::invalid(format!("file '{shown}' cannot be read as {}: {error}", format.name()))
        }
        kind => Error::new(kind, format!("file '{shown}': {error}")),
    }
}
