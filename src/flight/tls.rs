//! TLS: the server's certificate, and the authority that signs those of clients. Keys are agreed on beside the loop that
//! accepts connections, and a peer that does not get that far is let go by the listener.

use std::fmt;
use std::fs;
use std::path::Path;

use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use crate::config::TlsSettings;
use crate::error::{Error, Result};

/// A configuration that has been found to work.
#[derive(Clone)]
pub(super) struct Tls(ServerTlsConfig);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    /// # Errors
    /// `Invalid`, in one line that names the setting.
    pub(super) fn load(settings: &TlsSettings) -> Result<Self> {
        let TlsSettings { cert, key, client_ca } = settings;
        let identity = Identity::from_pem(read("tls_cert", cert)?, read("tls_key", key)?);
        let mut config = ServerTlsConfig::new().identity(identity);
        try_out(&config).map_err(|why| {
            let (cert, key) = (cert.display(), key.display());
            Error::invalid(format!(
                "tls_cert, tls_key: {cert} and {key} are no certificate and its key: {why}"
            ))
        })?;
        if let Some(file) = client_ca {
            config = config.client_ca_root(Certificate::from_pem(read("tls_client_ca", file)?));
            try_out(&config).map_err(|why| {
                Error::invalid(format!(
                    "tls_client_ca: {} is no certificate authority: {why}",
                    file.display()
                ))
            })?;
        }
        Ok(Self(config))
    }

    pub(super) fn config(self) -> ServerTlsConfig {
        self.0
    }
}

fn read(key: &str, file: &Path) -> Result<Vec<u8>> {
    fs::read(file).map_err(|error| Error::invalid(format!("{key}: cannot read {}: {error}", file.display())))
}

/// Why this configuration serves nobody, in one line.
fn try_out(config: &ServerTlsConfig) -> Result<(), String> {
    let Err(error) = Server::builder().tls_config(config.clone()) else { return Ok(()) };
    let mut cause: &dyn std::error::Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Err(cause.to_string().replace('\n', " "))
}
