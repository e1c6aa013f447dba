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
use std::time::UNIX_EPOCH;

use datafusion::catalog::TableProvider;
use datafusion::execution::{SendableRecordBatchStream, SessionState};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{StreamExt, TryStreamExt};
use sha2::{Digest, Sha256};

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
use statement::Key;
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
        let files = self.files_of(&copy).await?;
        let own = match &copy.options.key {
            Some(Key::Auto) => Some(key_of(&copy, &files)?),
            Some(Key::Given(key)) => Some(key.clone()),
            None => None,
        };
        let key = own.as_ref().or(key);
        let temporary = self.catalog.temp.get(&name.name).filter(|_| self.catalog.holds_temp(&name.schema));
        if let Some(temporary) = temporary {
            let table = temporary.as_any().downcast_ref::<TempTable>();
            let table = table.ok_or_else(|| Error::invalid(format!("'{name}' is a view")))?;
            if key.is_some() {
                return Err(key_on_temporary(&name));
            }
            let target = Target::Table(name, table.schema());
            return table.append(self.copied(state, &copy, files, target, columns, run)).await;
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
        let rows = self.copied(state, &copy, files, target, columns, run);
        self.engine.ingest.append_planned(&object, rows, key).await
    }

    async fn files_of(&self, copy: &CopyFrom) -> Result<Vec<CopyFile>> {
        let (directories, from, options) =
            (self.engine.copy_directories.clone(), copy.source.clone(), copy.options.clone());
        let files = tokio::task::spawn_blocking(move || directories.files(&from, &options)).await;
        files.map_err(|error| Error::internal("looking for files did not finish").with_source(error))?
    }

    /// The rows of all files, as `target` has them.
    fn copied(
        &self,
        state: &SessionState,
        copy: &CopyFrom,
        files: Vec<CopyFile>,
        target: Target,
        columns: Vec<String>,
        run: &Arc<Run>,
    ) -> SendableRecordBatchStream {
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
        self.engine.compute.rows(Box::pin(rows), ())
    }
}

/// The same for the same files read in the same way, as their names, sizes and times of change tell.
fn key_of(copy: &CopyFrom, files: &[CopyFile]) -> Result<IdempotencyKey> {
    let mut hash = Sha256::new();
    let mut add = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    for column in &copy.columns {
        add(normalized(column).as_bytes());
    }
    add(copy.options.in_a_key().as_bytes());
    for file in files {
        let unknown =
            |error| Error::unsupported("the files do not tell when they changed").with_source(error);
        let changed = file.metadata.modified().map_err(unknown)?;
        let changed = changed.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        add(file.path.as_os_str().as_encoded_bytes());
        add(&file.metadata.len().to_le_bytes());
        add(&changed.to_le_bytes());
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    IdempotencyKey::parse(&format!("copy:{hash}"))
}

#[cfg(test)]
mod tests;
