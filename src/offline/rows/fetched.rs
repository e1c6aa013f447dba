//! Parts of a file in memory, which Parquet reads as if they were the file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use datafusion::common::runtime::SpawnedTask;
use futures::future::Either;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use parking_lot::Mutex;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use crate::error::{Error, Result};

/// How many buffers wait to be used again, and how large one of them may be.
const FREE_BUFFERS_MAX: usize = 4;
const FREE_BUFFER_BYTES_MAX: usize = 32 << 20;

/// Buffers that one query reads into, again and again: the first touch of fresh memory costs about as much as to fill it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Buffers(Arc<Mutex<Vec<Vec<u8>>>>);

impl Buffers {
    /// An empty buffer with room for `bytes`.
    fn take(&self, bytes: usize) -> Vec<u8> {
        let mut free = self.0.lock();
        match free.iter().position(|buffer| buffer.capacity() >= bytes) {
            Some(index) => free.swap_remove(index),
            None => {
                let too_small = free.pop(); // as many as are needed at a time, each as large as needed once
                drop(free);
                drop(too_small);
                Vec::with_capacity(bytes)
            }
        }
    }
}

/// A buffer that goes back when nobody holds any of its bytes.
struct Lent {
    buffer: Vec<u8>,
    home: Buffers,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let mut free = self.home.0.lock();
        if free.len() < FREE_BUFFERS_MAX && buffer.capacity() <= FREE_BUFFER_BYTES_MAX {
            free.push(buffer);
        }
    }
}

/// Where a file is read from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// A file of this machine.
    Local(PathBuf),
    Remote(Arc<dyn ObjectStore>, ObjectPath),
}

/// Some byte ranges of one file.
#[derive(Debug, Clone)]
pub(crate) struct Fetched {
    file_bytes: u64,
    parts: Arc<[(u64, Bytes)]>,
}

impl Fetched {
    /// Begins to read `ranges` of a file, in any order; neighbours are read at once.
    pub(super) fn read(
        source: &Source,
        file_bytes: u64,
        mut ranges: Vec<Range<u64>>,
        buffers: &Buffers,
    ) -> impl Future<Output = Result<Self>> + Send + use<> {
        ranges.sort_by_key(|range| range.start);
        let mut parts: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match parts.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => parts.push(range),
            }
        }
        match source {
            Source::Local(path) => Either::Left(Self::read_local(path, file_bytes, parts, buffers)),
            Source::Remote(store, path) => {
                Either::Right(Self::read_remote(Arc::clone(store), path.clone(), file_bytes, parts))
            }
        }
    }

    /// The buffer is made here and only filled by the thread that may block: one that makes it there, and frees it
    /// here, leaves every thread with memory of its own that no other can use.
    fn read_local(
        path: &Path,
        file_bytes: u64,
        parts: Vec<Range<u64>>,
        buffers: &Buffers,
    ) -> impl Future<Output = Result<Self>> + Send + use<> {
        let buffer = buffers.take(parts.iter().map(|part| (part.end - part.start) as usize).sum());
        let (path, file, home) = (path.to_owned(), path.to_owned(), buffers.clone());
        let filling = tokio::task::spawn_blocking(move || fill(&file, parts, buffer));
        async move {
            let unreadable = |e: std::io::Error| {
                Error::unavailable(format!("cannot read data file '{}'", path.display())).with_source(e)
            };
            let (lengths, buffer) = filling.await.map_err(|e| unreadable(e.into()))?.map_err(unreadable)?;
            let bytes = Bytes::from_owner(Lent { buffer, home });
            let mut start = 0;
            let of_part = |(from, length): (u64, usize)| {
                start += length;
                (from, bytes.slice(start - length..start))
            };
            Ok(Self { file_bytes, parts: lengths.into_iter().map(of_part).collect() })
        }
    }

    fn read_remote(
        store: Arc<dyn ObjectStore>,
        path: ObjectPath,
        file_bytes: u64,
        parts: Vec<Range<u64>>,
    ) -> impl Future<Output = Result<Self>> + Send + use<> {
        let what = format!("cannot read data file '{path}'");
        // It goes on while nobody waits for it yet, and ends with the one who does.
        let reading = SpawnedTask::spawn(async move {
            let bytes = store.get_ranges(&path, &parts).await?;
            Ok(parts.into_iter().map(|part| part.start).zip(bytes).collect())
        });
        async move {
            let read: object_store::Result<_> = reading.join().await.unwrap_or_else(|e| Err(e.into()));
            let parts = read.map_err(|e| Error::unavailable(what).with_source(e))?;
            Ok(Self { file_bytes, parts })
        }
    }

    /// How many bytes were read.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    fn from(&self, start: u64) -> ParquetResult<Bytes> {
        let index = self.parts.partition_point(|(from, _)| *from <= start);
        let part = index.checked_sub(1).and_then(|index| self.parts.get(index));
        match part {
            Some((from, bytes)) if start - from <= bytes.len() as u64 => {
                Ok(bytes.slice((start - from) as usize..))
            }
            _ => Err(ParquetError::General(format!("byte {start} of the file was not fetched"))),
        }
    }
}

/// Where each part of a file begins, and how many bytes were read of it: a file may be shorter than it was.
type Lengths = Vec<(u64, usize)>;

/// Appends the parts of a file to the buffer.
fn fill(path: &Path, parts: Vec<Range<u64>>, mut buffer: Vec<u8>) -> std::io::Result<(Lengths, Vec<u8>)> {
    let mut file = File::open(path)?;
    let mut lengths = Vec::with_capacity(parts.len());
    for part in parts {
        file.seek(SeekFrom::Start(part.start))?;
        lengths.push((part.start, (&file).take(part.end - part.start).read_to_end(&mut buffer)?));
    }
    Ok((lengths, buffer))
}

impl Length for Fetched {
    fn len(&self) -> u64 {
        self.file_bytes
    }
}

impl ChunkReader for Fetched {
    type T = Box<dyn Read + Send>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(Box::new(self.from(start)?.reader()))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let bytes = self.from(start)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF(format!(
                "bytes {start} to {} were not fetched",
                start + length as u64
            )));
        }
        Ok(bytes.slice(..length))
    }
}
