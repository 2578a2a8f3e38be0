//! TLS of a client: the configuration from PEM files, and words for what goes wrong.
//!
//! One [`ClientConfig`] lives as long as its files stay as they are, so that session tickets are used. The verifier is
//! rustls' own; nothing here weakens it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::{AlertDescription, CertificateError, CipherSuite, ClientConfig, RootCertStore};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsConnector;

/// The lowest TLS version a client agrees to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// TLS 1.2 or 1.3, for servers of another age.
    Tls12,
    /// TLS 1.3 only.
    #[default]
    Tls13,
}

/// Which files the client authenticates itself, and the server, with.
#[derive(Clone, Debug)]
pub(crate) enum Credentials {
    /// A folder with `ca.pem`, `cert.pem` and `key.pem`.
    Mutual { dir: PathBuf },
    /// The server's trust anchors only.
    ServerOnly { ca: PathBuf },
}

/// The TLS configuration, and the files it was made of.
#[derive(Clone)]
pub(crate) struct Tls {
    credentials: Credentials,
    min_version: TlsVersion,
    files: Vec<Vec<u8>>,
    connector: TlsConnector,
}

impl Tls {
    pub(super) fn connector(&self) -> &TlsConnector {
        &self.connector
    }

    /// Reads the files. Blocks on the disk.
    pub(crate) fn load(credentials: Credentials, min_version: TlsVersion) -> Result<Self, String> {
        // Ordering: the bytes first. If the files change in between, the next look sees it.
        let files = files(&credentials);
        let config = client_config(&credentials, min_version)?;
        Ok(Self {
            connector: TlsConnector::from(Arc::new(config)),
            credentials,
            min_version,
            files,
        })
    }

    /// The same, read again if the files have changed. Blocks on the disk.
    pub(super) fn reload(self) -> Result<Self, String> {
        if files(&self.credentials) == self.files {
            return Ok(self);
        }
        Self::load(self.credentials, self.min_version)
    }
}

/// In TLS 1.3 it offers AES-128 before AES-256, as Go's TLS does: its handshake hashes with SHA-256, which processors have
/// instructions for, and its records take a tenth less time at 16 KiB.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    let suites = &mut provider.cipher_suites;
    suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// Reads the files and makes the configuration. Blocks on the disk.
pub(crate) fn client_config(
    credentials: &Credentials,
    min_version: TlsVersion,
) -> Result<ClientConfig, String> {
    let versions: &[_] = match min_version {
        TlsVersion::Tls12 => &[&rustls::version::TLS13, &rustls::version::TLS12],
        TlsVersion::Tls13 => &[&rustls::version::TLS13],
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(versions)
        .map_err(|error| format!("TLS cannot be set up: {error}"))?;
    match credentials {
        Credentials::ServerOnly { ca } => Ok(builder
            .with_root_certificates(roots(ca)?)
            .with_no_client_auth()),
        Credentials::Mutual { dir } => {
            let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
            let chain = certificates(&cert)?;
            let private = PrivateKeyDer::from_pem_file(&key)
                .map_err(|error| unreadable(&key, "private key", &error))?;
            builder
                .with_root_certificates(roots(&dir.join("ca.pem"))?)
                .with_client_auth_cert(chain, private)
                .map_err(|error| {
                    let (cert, key) = (cert.display(), key.display());
                    format!("{cert} and {key} cannot be used: {error}")
                })
        }
    }
}

/// What the files hold, to see whether they changed; nothing of one that cannot be read. Blocks on the disk.
fn files(credentials: &Credentials) -> Vec<Vec<u8>> {
    let paths = match credentials {
        Credentials::ServerOnly { ca } => vec![ca.clone()],
        Credentials::Mutual { dir } => ["ca.pem", "cert.pem", "key.pem"]
            .map(|name| dir.join(name))
            .to_vec(),
    };
    let content = |path| std::fs::read(path).unwrap_or_default();
    paths.into_iter().map(content).collect()
}

fn roots(path: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        let added = roots.add(certificate);
        added.map_err(|error| format!("{}: no trust anchor: {error}", path.display()))?;
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let unreadable = |error| unreadable(path, "certificate", &error);
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .map_err(unreadable)?
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    if certificates.is_empty() {
        return Err(unreadable(pem::Error::NoItemsFound));
    }
    Ok(certificates)
}

fn unreadable(path: &Path, what: &str, error: &pem::Error) -> String {
    let path = path.display();
    match error {
        pem::Error::Io(error) => format!("{path} cannot be read: {error}"),
        pem::Error::NoItemsFound => format!("{path} holds no {what} that can be read"),
        error => format!("{path} is no PEM file of a {what}: {error}"),
    }
}

/// What TLS says about an I/O error, if it is TLS that failed.
pub(super) fn explain(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    Some(match error {
        rustls::Error::InvalidCertificate(refused) => explain_certificate(refused),
        rustls::Error::AlertReceived(alert) => explain_alert(*alert),
        error => format!("TLS failed: {error}"),
    })
}

/// Why the server ended TLS, if that is what failed: it did not let us in, so it has done nothing. With TLS 1.3 that
/// shows only when the answer is read.
pub(crate) fn refusal(error: &(dyn std::error::Error + 'static)) -> Option<String> {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let tls = causes.find_map(|error| error.downcast_ref::<io::Error>()?.get_ref());
    match tls?.downcast_ref::<rustls::Error>()? {
        rustls::Error::AlertReceived(alert) => Some(explain_alert(*alert)),
        _ => None,
    }
}

fn explain_certificate(error: &CertificateError) -> String {
    let what = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "is expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet (or this machine's clock is behind)"
        }
        CertificateError::UnknownIssuer => {
            "comes from an unknown issuer: no trust anchor of ca.pem vouches for it"
        }
        // Authorities of `storage-certs` all have one name; the signature tells them apart.
        CertificateError::BadSignature => {
            "comes from an unknown issuer: a trust anchor of ca.pem has its issuer's name, and did not sign it"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is for another name"
        }
        CertificateError::Revoked => "is revoked",
        _ => "is not accepted",
    };
    format!("the server's certificate {what} ({error})")
}

fn explain_alert(alert: AlertDescription) -> String {
    let what = match alert {
        AlertDescription::CertificateRequired => "it demands a client certificate",
        // The latter of an issuer that has the name, and not the key, of one that it trusts.
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it does not trust the issuer of our certificate"
        }
        AlertDescription::CertificateExpired => "our certificate is expired or not yet valid",
        AlertDescription::CertificateRevoked => "our certificate is revoked",
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown => "it does not accept our certificate",
        AlertDescription::AccessDenied => "it does not let our certificate in",
        AlertDescription::ProtocolVersion => "it speaks no TLS version that we agree to",
        AlertDescription::HandshakeFailure => {
            "we have no cipher in common, or it demands a client certificate"
        }
        _ => "it refused",
    };
    format!("the server ended TLS: {what} (alert {alert:?})")
}
