//! TLS as the server and its client have it: mutual, 1.3, ring.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use rustls::client::Resumption;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use storage_certs::Credentials;

/// The folder below the authority's with the credentials of all clients.
pub(crate) const CLIENT: &str = "bench";

fn roots(credentials: &Credentials) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for authority in &credentials.ca {
        roots.add(authority.clone())?;
    }
    Ok(roots)
}

/// A client with the credentials of this folder.
pub(crate) fn client(folder: &Path, resumption: Resumption) -> Result<Arc<ClientConfig>> {
    let own = Credentials::load(folder)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&own)?)
        .with_client_auth_cert(own.chain, own.key)?;
    config.resumption = resumption;
    Ok(Arc::new(config))
}

/// A server with the credentials of this folder, for clients that its authority vouches for.
pub(crate) fn server(folder: &Path) -> Result<Arc<ServerConfig>> {
    let own = Credentials::load(folder)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&own)?), provider.clone())
            .build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(own.chain, own.key)?;
    config.ticketer = rustls::crypto::ring::Ticketer::new()?;
    Ok(Arc::new(config))
}
