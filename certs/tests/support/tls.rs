//! The server end of a mutual TLS connection, set up from credentials as the server does.

use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

use storage_certs::Credentials;

type Crls = Vec<CertificateRevocationListDer<'static>>;
pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A server that lets in whoever has a certificate of the CA that is not in the lists.
pub(crate) fn server(own: &Credentials, crls: Crls) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(&own.ca)?, Arc::clone(&provider))
            .with_crls(crls)
            .build()?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.chain.clone(), own.key.clone_key())?;
    Ok(Arc::new(config))
}

pub(crate) fn roots(ca: &[CertificateDer<'static>]) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for certificate in ca {
        roots.add(certificate.clone())?;
    }
    Ok(Arc::new(roots))
}
