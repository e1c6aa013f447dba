//! An object store as the storage of Iceberg's own reading and writing.

use std::fmt::Display;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage, StorageConfig,
    StorageFactory,
};
use iceberg::{Error, ErrorKind, Result};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::io::AsyncWriteExt;

/// Schemes that mean the same to different engines.
const SCHEMES: [&str; 3] = ["s3://", "s3a://", "s3n://"];

/// Of a file that is written, the bytes that go at a time, and how many of such parts are under way.
const PART_BYTES: usize = 8 << 20;
const PARTS_MAX: usize = 4;

/// Reads and writes locations in `bucket`.
pub(super) fn file_io(objects: Arc<dyn ObjectStore>, bucket: &str) -> FileIO {
    FileIOBuilder::new(Arc::new(ObjectStorage { objects, bucket: bucket.into() })).build()
}

/// The path of a location in `bucket`; `None` where it is in none or another.
pub(super) fn path_in(bucket: &str, location: &str) -> Option<Path> {
    let behind = SCHEMES.iter().find_map(|scheme| location.strip_prefix(scheme))?;
    Path::parse(behind.strip_prefix(bucket)?.strip_prefix('/')?).ok()
}

#[derive(Debug, Clone)]
struct ObjectStorage {
    objects: Arc<dyn ObjectStore>,
    bucket: Arc<str>,
}

impl ObjectStorage {
    fn path(&self, location: &str) -> Result<Path> {
        path_in(&self.bucket, location).ok_or_else(|| {
            let why = format!("'{location}' is not in the bucket '{}'", self.bucket);
            Error::new(ErrorKind::FeatureUnsupported, why)
        })
    }
}

fn failed(error: object_store::Error) -> Error {
    Error::new(ErrorKind::Unexpected, "the storage failed").with_source(error)
}

// Iceberg can ship a storage to other processes; a connection stays in its own.
impl Serialize for ObjectStorage {
    fn serialize<S: Serializer>(&self, _serializer: S) -> std::result::Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom(stays()))
    }
}

impl<'de> Deserialize<'de> for ObjectStorage {
    fn deserialize<D: Deserializer<'de>>(_deserializer: D) -> std::result::Result<Self, D::Error> {
        Err(serde::de::Error::custom(stays()))
    }
}

fn stays() -> impl Display {
    "a connection to object storage stays in its process"
}

#[typetag::serde]
impl StorageFactory for ObjectStorage {
    fn build(&self, _config: &StorageConfig) -> Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.clone()))
    }
}

#[async_trait]
#[typetag::serde]
impl Storage for ObjectStorage {
    async fn exists(&self, location: &str) -> Result<bool> {
        match self.objects.head(&self.path(location)?).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    async fn metadata(&self, location: &str) -> Result<FileMetadata> {
        let object = self.objects.head(&self.path(location)?).await.map_err(failed)?;
        Ok(FileMetadata { size: object.size })
    }

    async fn read(&self, location: &str) -> Result<Bytes> {
        let object = self.objects.get(&self.path(location)?).await.map_err(failed)?;
        object.bytes().await.map_err(failed)
    }

    async fn reader(&self, location: &str) -> Result<Box<dyn FileRead>> {
        Ok(Box::new(Reader { objects: Arc::clone(&self.objects), path: self.path(location)? }))
    }

    async fn write(&self, location: &str, bytes: Bytes) -> Result<()> {
        self.objects.put(&self.path(location)?, bytes.into()).await.map(|_| ()).map_err(failed)
    }

    async fn writer(&self, location: &str) -> Result<Box<dyn FileWrite>> {
        let objects = Arc::clone(&self.objects);
        let writer = BufWriter::with_capacity(objects, self.path(location)?, PART_BYTES);
        Ok(Box::new(Writer(writer.with_max_concurrency(PARTS_MAX))))
    }

    async fn delete(&self, location: &str) -> Result<()> {
        match self.objects.delete(&self.path(location)?).await {
            Err(error) if !matches!(error, object_store::Error::NotFound { .. }) => Err(failed(error)),
            _ => Ok(()),
        }
    }

    async fn delete_prefix(&self, location: &str) -> Result<()> {
        let found = self.objects.list(Some(&self.path(location)?));
        let paths = found.map_ok(|object| object.location).boxed();
        self.objects.delete_stream(paths).try_for_each(|_| async { Ok(()) }).await.map_err(failed)
    }

    async fn delete_stream(&self, mut locations: BoxStream<'static, String>) -> Result<()> {
        while let Some(location) = locations.next().await {
            self.delete(&location).await?;
        }
        Ok(())
    }

    fn new_input(&self, location: &str) -> Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), location.to_owned()))
    }

    fn new_output(&self, location: &str) -> Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), location.to_owned()))
    }
}

struct Reader {
    objects: Arc<dyn ObjectStore>,
    path: Path,
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        self.objects.get_range(&self.path, range).await.map_err(failed)
    }
}

/// A file on its way. It is there when it is closed, and not before; what fails leaves nothing behind.
struct Writer(BufWriter);

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let Err(error) = self.0.put(bytes).await else { return Ok(()) };
        if let Err(error) = self.0.abort().await {
            tracing::debug!(%error, "parts of a file that was not written stay in the bucket");
        }
        Err(failed(error))
    }

    async fn close(&mut self) -> Result<()> {
        self.0
            .shutdown()
            .await
            .map_err(|e| failed(object_store::Error::Generic { store: "S3", source: e.into() }))
    }
}
