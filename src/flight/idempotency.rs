//! Idempotency keys, which Flight has no place for: the header `fletching-idempotency-key`, which pyarrow sends by its
//! call options, and ADBC by `adbc.flight.sql.rpc.call_header.fletching-idempotency-key` of a statement.

use tonic::metadata::MetadataMap;

use crate::error::{Error, Result};
use crate::model::IdempotencyKey;

const HEADER: &str = "fletching-idempotency-key";

/// What a call names the write that it asks for; calls that write nothing do not mind it.
///
/// # Errors
/// `Invalid` where it is no key, or there are several.
pub(super) fn key(headers: &MetadataMap) -> Result<Option<IdempotencyKey>> {
    let mut keys = headers.get_all(HEADER).iter();
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.any(|other| other != key) {
        return Err(Error::invalid(format!(
            "the header {HEADER} is there more than once: one write has one key"
        )));
    }
    let text =
        key.to_str().map_err(|_| Error::invalid(format!("the header {HEADER} is not visible ASCII")))?;
    IdempotencyKey::parse(text).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_names_the_write() {
        let mut headers = MetadataMap::new();
        assert_eq!(key(&headers).unwrap(), None);
        headers.insert(HEADER, "job-7".parse().unwrap());
        assert_eq!(key(&headers).unwrap().unwrap().as_str(), "job-7");
        headers.append(HEADER, "job-7".parse().unwrap());
        assert!(key(&headers).unwrap().is_some(), "of a connection and of a statement");
        headers.append(HEADER, "job-8".parse().unwrap());
        assert!(key(&headers).unwrap_err().message().contains("more than once"));
        headers.insert(HEADER, "two words".parse().unwrap());
        assert!(key(&headers).unwrap_err().message().contains("1 to 128 letters"));
    }
}
