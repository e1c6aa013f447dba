//! Whom a client's certificate names, where that is how users sign in. TLS has checked it before.

use std::sync::Arc;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::{Error, Result};

/// Its subject's common name, or else the first URI, DNS name or mail address among its alternative names.
pub(super) fn user(certificate: &[u8]) -> Result<Arc<str>> {
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|_| Error::unauthenticated("the client's certificate cannot be read"))?;
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let alternative =
        alternative.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::URI(name) | GeneralName::DNSName(name) | GeneralName::RFC822Name(name) => {
                Some(*name)
            }
            _ => None,
        });
    let name = common.chain(alternative).map(str::trim).find(|name| !name.is_empty());
    name.map(Arc::from).ok_or_else(|| {
        Error::unauthenticated(
            "the client's certificate names nobody: give it a common name or an alternative one",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    fn named(common: Option<&str>, alternative: Vec<SanType>) -> Result<Arc<str>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names = alternative;
        user(params.self_signed(&KeyPair::generate().unwrap()).unwrap().der())
    }

    #[test]
    fn a_certificate_names_its_user() {
        let uri = || SanType::URI("spiffe://example.org/model-server".try_into().unwrap());
        let dns = || SanType::DnsName("model-server.example.org".try_into().unwrap());
        for (common, alternative, expected) in [
            (Some("ada"), vec![uri()], "ada"),
            (None, vec![dns(), uri()], "model-server.example.org"),
            (Some(" "), vec![uri()], "spiffe://example.org/model-server"),
        ] {
            assert_eq!(&*named(common, alternative).unwrap(), expected);
        }
        assert!(named(None, vec![SanType::IpAddress([127, 0, 0, 1].into())]).is_err());
        assert!(user(b"nonsense").is_err());
    }
}
