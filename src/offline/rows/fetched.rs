//! Parts of a file in memory, which Parquet reads as if they were the file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
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
    /// Reads `ranges` of a local file, in any order; neighbours are read at once.
    ///
    /// The buffers are made here and only filled by the thread that may block: one that makes them there, and frees
    /// them here, leaves every thread with memory of its own that no other can use.
    pub(super) async fn read(path: &Path, file_bytes: u64, mut ranges: Vec<Range<u64>>) -> Result<Self> {
        ranges.sort_by_key(|range| range.start);
        let mut parts: Vec<(Range<u64>, Vec<u8>)> = Vec::new();
        for range in ranges {
            match parts.last_mut() {
                Some((last, _)) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => parts.push((range, Vec::new())),
            }
        }
        for (range, buffer) in &mut parts {
            buffer.reserve_exact((range.end - range.start) as usize);
        }
        let unreadable = |e: std::io::Error| {
            Error::unavailable(format!("cannot read data file '{}'", path.display())).with_source(e)
        };
        let file = path.to_owned();
        let filled = tokio::task::spawn_blocking(move || fill(&file, parts)).await;
        let parts = filled.map_err(|e| unreadable(e.into()))?.map_err(unreadable)?;
        let parts = parts.into_iter().map(|(range, buffer)| (range.start, Bytes::from(buffer))).collect();
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

fn fill(path: &Path, mut parts: Vec<(Range<u64>, Vec<u8>)>) -> std::io::Result<Vec<(Range<u64>, Vec<u8>)>> {
    let mut file = File::open(path)?;
    for (range, buffer) in &mut parts {
        file.seek(SeekFrom::Start(range.start))?;
        (&file).take(range.end - range.start).read_to_end(buffer)?;
    }
    Ok(parts)
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
