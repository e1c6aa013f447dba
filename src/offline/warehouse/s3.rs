//! S3-compatible storage: how it is reached, and what is wrong where it is not.

use std::time::Duration;

use object_store::RetryConfig;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::list::{PaginatedListOptions, PaginatedListStore};
use object_store::path::Path as ObjectPath;

use crate::error::{Error, Result};

/// A call is sent again where that may help, for as long as this; one that hangs ends after the client's own 30 s.
const RETRIES_MAX: usize = 5;
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);

/// A prefix of a bucket. Credentials, and what is not said here, come from the environment by the usual names
/// (`AWS_ACCESS_KEY_ID`, …), or from the machine's role.
#[derive(Debug, Clone)]
pub(crate) struct S3Location {
    pub(crate) bucket: String,
    /// Without slashes at its ends; empty for the whole bucket.
    pub(crate) prefix: String,
    pub(crate) endpoint: Option<String>,
    pub(crate) region: Option<String>,
}

impl S3Location {
    /// As Iceberg's metadata has it.
    pub(super) fn root(&self) -> String {
        let (bucket, prefix) = (&self.bucket, &self.prefix);
        if prefix.is_empty() { format!("s3://{bucket}") } else { format!("s3://{bucket}/{prefix}") }
    }

    pub(super) fn prefix(&self) -> Result<ObjectPath> {
        ObjectPath::parse(&self.prefix).map_err(|e| self.unusable("no prefix of a bucket").with_source(e))
    }

    pub(super) fn connect(&self) -> Result<AmazonS3> {
        let retries =
            RetryConfig { max_retries: RETRIES_MAX, retry_timeout: RETRY_TIMEOUT, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&self.bucket)
            .with_retry(retries)
            .with_allow_http(true);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(region) = &self.region {
            builder = builder.with_region(region);
        }
        builder.build().map_err(|e| self.unusable("its settings do not fit").with_source(e))
    }

    /// Lists one object of it, however many there are, as everything else presupposes.
    pub(super) async fn check(&self, objects: &AmazonS3, prefix: &ObjectPath) -> Result<()> {
        let one = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
        let directory = (!prefix.as_ref().is_empty()).then(|| format!("{prefix}/"));
        let error = match objects.list_paginated(directory.as_deref(), one).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // Of a request that lists, the client tells the status in words only.
        let told = error.to_string();
        let is = |statuses: &[&str]| {
            statuses.iter().any(|status| told.contains(&format!("status code: {status}")))
        };
        let why = if is(&["404"]) {
            "the bucket does not exist"
        } else if is(&["401", "403"]) {
            "access is denied: see AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what they may"
        } else {
            "it does not answer as it should: see the endpoint (s3_endpoint or AWS_ENDPOINT_URL) and the region"
        };
        Err(self.unusable(why).with_source(error))
    }

    fn unusable(&self, why: &str) -> Error {
        Error::unavailable(format!("cannot use the warehouse at '{}': {why}", self.root()))
    }
}
