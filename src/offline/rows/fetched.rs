//! Parts of a file in memory, which Parquet reads as if they were the file.

use std::io::Read;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use object_store::ObjectStore;
use object_store::path::Path;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, Length};

use crate::error::{Error, Result};

/// Some byte ranges of one file.
#[derive(Debug, Clone)]
pub(crate) struct Fetched {
    file_bytes: u64,
    parts: Arc<[(u64, Bytes)]>,
}

impl Fetched {
    /// Reads `ranges`, in any order; neighbours are read at once.
    pub(super) async fn read(
        store: &Arc<dyn ObjectStore>,
        path: &Path,
        file_bytes: u64,
        mut ranges: Vec<Range<u64>>,
    ) -> Result<Self> {
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        let bytes = store
            .get_ranges(path, &joined)
            .await
            .map_err(|e| Error::unavailable(format!("cannot read data file '{path}'")).with_source(e))?;
        let parts = joined.into_iter().map(|range| range.start).zip(bytes).collect();
        Ok(Self { file_bytes, parts })
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
