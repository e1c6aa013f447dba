//! `COPY … FROM`: files of the server's machine into a table, in one write.
//!
//! 1. [`statement`] is what was written.
//! 2. [`files`] finds the files that it names, where the operator allows it.
//! 3. [`source`] reads each, one after the other, as rows of the table: columns match by name, as in any write.
//! 4. Rows go where those of a bulk ingest go. While some are sorted and encoded, the next are decoded: by a task of
//!    its own, a few batches ahead.
//!
//! Files and their rows keep their order, so that of two rows of the same key and time the later one wins.

mod files;
mod source;
mod statement;

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt};

use super::ddl::RESERVED_SCHEMAS;
use super::definition::normalized;
use super::insert::key_on_temporary;
use super::running::Run;
use super::session::{Session, default_schema, table_name};
use super::temp::TempTable;
use crate::error::{Error, Result};
use crate::model::IdempotencyKey;
use crate::registry::Object;
pub(crate) use files::CopyDirectories;
use files::CopyFile;
use source::{Source, Target};
pub(super) use statement::{CopyFrom, parse};

impl Session {
    /// Returns the rows copied, which `run` counts as they come; with a key that an earlier write into the same table
    /// had, only tells what that one added.
    ///
    /// # Errors
    /// `NotFound`; `Unsupported`; `Invalid`, naming the file, for what cannot be read or does not fit. Nothing is written
    /// then.
    pub(super) async fn copy_from(
        &self,
        state: &SessionState,
        copy: CopyFrom,
        key: Option<&IdempotencyKey>,
        run: &Arc<Run>,
    ) -> Result<u64> {
        let name = table_name(&copy.name, default_schema(state))?;
        // No table may be called so: see `check_creatable`.
        if name.name.contains('$') || RESERVED_SCHEMAS.contains(&name.schema.as_str()) {
            return Err(Error::invalid(format!("'{name}' is read-only")));
        }
        let columns: Vec<String> = copy.columns.iter().map(normalized).collect();
        let temporary = self.catalog.temp.get(&name.name).filter(|_| self.catalog.holds_temp(&name.schema));
        if let Some(temporary) = temporary {
            let table = temporary.as_any().downcast_ref::<TempTable>();
            let table = table.ok_or_else(|| Error::invalid(format!("'{name}' is a view")))?;
            if key.is_some() {
                return Err(key_on_temporary(&name));
            }
            let target = Target::Table(name, table.schema());
            return table.append(self.copied(state, &copy, target, columns, run).await?).await;
        }
        let object = self.catalog.object(&name).await?;
        let object = object
            .ok_or_else(|| Error::not_found(format!("table '{name}' does not exist: create it first")))?;
        if let Some(rows) = self.engine.ingest.earlier(&name, key).await? {
            return Ok(rows);
        }
        let target = match &object {
            Object::FeatureGroup(group, _) => Target::FeatureGroup(Arc::clone(group)),
            Object::Table(table) => Target::Table(name, Arc::clone(table.schema())),
        };
        let rows = self.copied(state, &copy, target, columns, run).await?;
        self.engine.ingest.append_planned(&object, rows, key).await
    }

    /// The rows of all files, as `target` has them.
    async fn copied(
        &self,
        state: &SessionState,
        copy: &CopyFrom,
        target: Target,
        columns: Vec<String>,
        run: &Arc<Run>,
    ) -> Result<SendableRecordBatchStream> {
        let (directories, from, options) =
            (self.engine.copy_directories.clone(), copy.source.clone(), copy.options.clone());
        let files = tokio::task::spawn_blocking(move || directories.files(&from, &options)).await;
        let files: Vec<CopyFile> = files
            .map_err(|error| Error::internal("looking for files did not finish").with_source(error))??;
        let schema = target.schema();
        let source =
            Arc::new(Source { state: state.clone(), target, columns, options: copy.options.clone() });
        let run = Arc::clone(run);
        let rows = futures::stream::iter(files).then(move |file| {
            let source = Arc::clone(&source);
            async move { source.rows(file).await }
        });
        let rows = rows.try_flatten().inspect_ok(move |batch| run.count(batch));
        let rows = RecordBatchStreamAdapter::new(schema, rows.map_err(Into::into));
        Ok(self.engine.compute.rows(Box::pin(rows), ()))
    }
}

#[cfg(test)]
mod tests;
