//! Compressed bodies, for clients that ask for them. Flight has no way to, so a header does: `fletching-compression`,
//! which pyarrow sends by its call options, and ADBC by `adbc.flight.sql.rpc.call_header.fletching-compression`.

use arrow::array::RecordBatch;
use arrow::ipc::CompressionType;
use arrow::ipc::writer::{CompressionContext, IpcWriteOptions};
use tonic::metadata::MetadataMap;

use super::message::Message;
use crate::error::{Error, Result};

const HEADER: &str = "fletching-compression";

/// How a call asks for its rows.
///
/// # Errors
/// `Invalid` for a codec that is not offered.
pub(super) fn asked(headers: &MetadataMap) -> Result<Option<IpcWriteOptions>> {
    let Some(name) = headers.get(HEADER) else { return Ok(None) };
    let codec = match name.as_bytes() {
        b"lz4" => CompressionType::LZ4_FRAME,
        b"zstd" => CompressionType::ZSTD,
        b"none" => return Ok(None),
        _ => return Err(Error::invalid(format!("the header {HEADER} is lz4, zstd or none, not {name:?}"))),
    };
    Ok(Some(IpcWriteOptions::default().try_with_compression(Some(codec))?))
}

/// Makes the messages of one answer.
pub(super) struct Compressor {
    options: IpcWriteOptions,
    context: CompressionContext,
}

impl Compressor {
    pub(super) fn new(options: IpcWriteOptions) -> Self {
        Self { options, context: CompressionContext::default() }
    }

    pub(super) fn message(&mut self, batch: &RecordBatch) -> Result<Message> {
        Message::copied(batch, &[], &self.options, &mut self.context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_the_codec() {
        let asked = |name: &str| {
            let mut headers = MetadataMap::new();
            headers.insert(HEADER, name.parse().unwrap());
            asked(&headers)
        };
        assert!(super::asked(&MetadataMap::new()).unwrap().is_none());
        assert!(asked("none").unwrap().is_none());
        for (name, codec) in [("lz4", "LZ4_FRAME"), ("zstd", "ZSTD")] {
            let options = format!("{:?}", asked(name).unwrap().unwrap());
            assert!(options.contains(codec), "{options}");
        }
        assert!(asked("gzip").unwrap_err().message().contains("lz4, zstd or none"));
    }
}
