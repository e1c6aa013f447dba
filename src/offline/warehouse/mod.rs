//! Where the files of tables are: a directory of this machine, or a prefix of a bucket of S3-compatible storage.
//!
//! ```text
//!                 this machine                       S3
//! metadata        FileIO on the file system          FileIO ─ ObjectStorage ─┐
//! scans           ObjectStore on the file system     ObjectStore ────────────┴─ one client
//! rows by number  by path, into buffers of ours      by ranges
//! commits         files and directories are synced   what S3 has taken is durable
//! ```

mod s3;
mod storage;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::execution::runtime_env::RuntimeEnv;
use futures::TryStreamExt;
use iceberg::io::FileIO;
use iceberg::spec::DataFile;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use super::durable::{local_path, make_durable};
use crate::error::{Error, Result};
pub(crate) use s3::S3Location;

/// Where the warehouse is.
#[derive(Debug, Clone)]
pub(crate) enum WarehouseLocation {
    Local(PathBuf),
    S3(S3Location),
}

impl From<&PathBuf> for WarehouseLocation {
    fn from(path: &PathBuf) -> Self {
        Self::Local(path.clone())
    }
}

/// See the module's description.
#[derive(Debug)]
pub(crate) struct Warehouse {
    /// As Iceberg's metadata has it, without a slash at its end.
    root: String,
    root_path: ObjectPath,
    io: FileIO,
    objects: Arc<dyn ObjectStore>,
    url: ObjectStoreUrl,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    Bucket(String),
}

impl Warehouse {
    /// Opens the warehouse: a directory is created where it does not exist, a bucket must be there.
    pub(super) async fn open(location: &WarehouseLocation) -> Result<Self> {
        match location {
            WarehouseLocation::Local(path) => Self::local(path),
            WarehouseLocation::S3(at) => Self::s3(at).await,
        }
    }

    fn local(path: &Path) -> Result<Self> {
        let unusable = |e: io::Error| {
            Error::unavailable(format!("cannot use the warehouse at '{}'", path.display())).with_source(e)
        };
        std::fs::create_dir_all(path).map_err(unusable)?;
        let directory = path.canonicalize().map_err(unusable)?;
        let root_path =
            ObjectPath::from_absolute_path(&directory).map_err(|e| unusable(io::Error::other(e)))?;
        Ok(Self {
            root: format!("file://{}", directory.display()),
            root_path,
            io: FileIO::new_with_fs(),
            objects: Arc::new(LocalFileSystem::new()),
            url: ObjectStoreUrl::local_filesystem(),
            place: Place::Directory(directory),
        })
    }

    async fn s3(at: &S3Location) -> Result<Self> {
        let objects = at.connect()?;
        let url = ObjectStoreUrl::parse(format!("s3://{}", at.bucket))?;
        let root_path = at.prefix()?;
        at.check(&objects, &root_path).await?;
        let objects: Arc<dyn ObjectStore> = Arc::new(objects);
        Ok(Self {
            root: at.root(),
            root_path,
            io: storage::file_io(Arc::clone(&objects), &at.bucket),
            objects,
            url,
            place: Place::Bucket(at.bucket.clone()),
        })
    }

    /// What reads and writes Iceberg's metadata, and writes data files.
    pub(super) fn io(&self) -> &FileIO {
        &self.io
    }

    /// What names its [`ObjectStore`] in plans.
    pub(super) fn url(&self) -> &ObjectStoreUrl {
        &self.url
    }

    /// Makes its objects known to what runs plans.
    pub(super) fn register(&self, runtime: &RuntimeEnv) {
        runtime.register_object_store(self.url.as_ref(), Arc::clone(&self.objects));
    }

    /// The location of a table in `directories`.
    pub(super) fn location(&self, directories: [&str; 2]) -> String {
        format!("{}/{}", self.root, directories.join("/"))
    }

    /// The path of a file in the [`ObjectStore`], from a location of Iceberg's metadata.
    ///
    /// # Errors
    /// `Unsupported` where it is elsewhere.
    pub(super) fn path(&self, location: &str) -> Result<ObjectPath> {
        let path = match &self.place {
            Place::Directory(_) => ObjectPath::from_absolute_path(local_path(location)).ok(),
            Place::Bucket(bucket) => storage::path_in(bucket, location),
        };
        path.ok_or_else(|| {
            Error::unsupported(format!("'{location}' cannot be read from the warehouse at '{}'", self.root))
        })
    }

    /// The path of a table's directory; `None` where it is not within the warehouse.
    pub(super) fn directory(&self, location: &str) -> Option<ObjectPath> {
        let path = self.path(location).ok()?;
        (path.prefix_matches(&self.root_path) && path != self.root_path).then_some(path)
    }

    /// Every file below a directory.
    pub(super) async fn list(&self, directory: &ObjectPath) -> object_store::Result<Vec<ObjectMeta>> {
        self.objects.list(Some(directory)).try_collect().await
    }

    /// Deletes a file, and its directory if that is empty then. `false` means that it was gone.
    pub(super) async fn delete(&self, path: &ObjectPath) -> object_store::Result<bool> {
        match self.objects.delete(path).await {
            Ok(()) => {}
            Err(object_store::Error::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        if let (Place::Directory(_), Some(directory)) = (&self.place, absolute(path).parent()) {
            let _ = std::fs::remove_dir(directory); // fails, as it should, where others are in it
        }
        Ok(true)
    }

    /// Makes metadata durable that a commit is about to name, unless another writes it there then, and the data files
    /// that it names for the first time.
    pub(super) async fn make_durable(
        &self,
        metadata: &str,
        is_ours: bool,
        new_files: &[DataFile],
    ) -> Result<()> {
        match &self.place {
            Place::Directory(directory) => {
                let files = new_files.iter().map(|file| local_path(file.file_path())).collect();
                make_durable(directory, metadata, is_ours, files).await
            }
            Place::Bucket(_) => Ok(()),
        }
    }
}

/// The path of a file of this machine.
pub(super) fn absolute(path: &ObjectPath) -> PathBuf {
    Path::new("/").join(path.as_ref())
}

/// An error of reading what a table is made of: `Corrupt`, but where the storage does not answer.
pub(super) fn unreadable(what: String, error: iceberg::Error) -> Error {
    use object_store::Error as E;
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(&error);
    while let Some(error) = cause {
        match error.downcast_ref::<E>() {
            Some(E::NotFound { .. }) => break,
            Some(_) => return Error::unavailable(what).with_source(error.to_string()),
            None => cause = error.source(),
        }
    }
    Error::corrupt(what).with_source(error)
}
