//! Reading certificates, keys and revocation lists from PEM files, for servers and clients.
//!
//! A loader answers "is this file what it should be, and do the pieces fit together?". Whether a
//! certificate is trusted, expired or revoked is for the verifier of a handshake.
//! Every error names the file and what is wrong with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::revocations::Revocations;
use crate::{Error, Result, files};

/// File of trust anchors in a peer's folder.
pub(crate) const CA_FILE: &str = "ca.pem";
/// File of the certificate chain in a peer's folder.
pub(crate) const CERT_FILE: &str = "cert.pem";
/// File of the private key in a peer's folder.
pub(crate) const KEY_FILE: &str = "key.pem";

/// Object identifier of DSA public keys (RFC 3279).
const DSA_OID: &str = "1.2.840.10040.4.1";

/// What one peer presents and trusts. `Debug` shows counts only.
#[non_exhaustive]
pub struct Credentials {
    /// Trust anchors: whoever presents a certificate that leads to one of these is let in. At
    /// least one. Self-signed certificates of peers are allowed.
    pub ca: Vec<CertificateDer<'static>>,
    /// The own certificate first, then those that lead to a trust anchor. At least one.
    pub chain: Vec<CertificateDer<'static>>,
    /// The private key of `chain[0]`, checked to be it.
    pub key: PrivateKeyDer<'static>,
}

/// The three files of [`Credentials`], where they are not in one folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialPaths {
    /// PEM file of the trust anchors.
    pub ca: PathBuf,
    /// PEM file of the certificate chain, own certificate first.
    pub cert: PathBuf,
    /// PEM file of the private key: PKCS#8, PKCS#1 or SEC1, not encrypted.
    pub key: PathBuf,
}

impl CredentialPaths {
    /// `ca.pem`, `cert.pem` and `key.pem` in this folder.
    pub fn in_dir(dir: impl AsRef<Path>) -> Self {
        let dir = dir.as_ref();
        Self {
            ca: dir.join(CA_FILE),
            cert: dir.join(CERT_FILE),
            key: dir.join(KEY_FILE),
        }
    }
}

impl Credentials {
    /// Loads `ca.pem`, `cert.pem` and `key.pem` of a folder, as `storage-certs` writes it.
    ///
    /// # Errors
    /// As [`Credentials::load_files`].
    pub fn load(dir: impl AsRef<Path>) -> Result<Self> {
        Self::load_files(&CredentialPaths::in_dir(dir))
    }

    /// Loads the three files, with the key that belongs to the first certificate.
    ///
    /// A file of keys may hold several: while `storage-certs` renews a pair, it has the key before
    /// and the new one, so that a crash then leaves a pair that loads.
    ///
    /// # Errors
    /// [`Error::Malformed`] if a file is missing, empty, holds nothing of the kind, is broken, has
    /// a DSA or encrypted key, or if key and certificate do not match; [`Error::Io`] if the system
    /// refuses to read it. The text names the file.
    pub fn load_files(paths: &CredentialPaths) -> Result<Self> {
        let ca = load_certificates(&paths.ca)?;
        let chain = load_certificates(&paths.cert)?;
        let key = load_key_of(&chain, paths)?;
        Ok(Self { ca, chain, key })
    }

    /// When the own certificate expires.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the chain is empty or unreadable; loaded credentials never are.
    pub fn expires_at(&self) -> Result<SystemTime> {
        let own = self.chain.first();
        own.map_or_else(
            || Err(Error::crypto("read the certificate")("the chain is empty")),
            expires_at,
        )
    }
}

impl Clone for Credentials {
    fn clone(&self) -> Self {
        Self {
            ca: self.ca.clone(),
            chain: self.chain.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("ca", &self.ca.len())
            .field("chain", &self.chain.len())
            .field("key", &"[masked]")
            .finish()
    }
}

/// When a certificate expires.
///
/// # Errors
/// [`Error::Crypto`] if it is no X.509 certificate, or expires before 1970.
pub fn expires_at(certificate: &CertificateDer<'_>) -> Result<SystemTime> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(Error::crypto("read the certificate"))?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp())
        .map_err(Error::crypto("read the certificate"))?;
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// Loads all certificates of a PEM file, at least one. Other sections are skipped.
///
/// # Errors
/// As [`Credentials::load_files`].
pub fn load_certificates(path: impl AsRef<Path>) -> Result<Vec<CertificateDer<'static>>> {
    let path = path.as_ref();
    let certificates = sections::<CertificateDer<'static>>(path, &read(path)?, "certificate")?;
    for (index, certificate) in certificates.iter().enumerate() {
        check_certificate(certificate).map_err(|reason| {
            Error::malformed(path, format!("certificate {} in it {reason}", index + 1))
        })?;
    }
    Ok(certificates)
}

/// Loads the first private key of a PEM file (PKCS#8, PKCS#1 or SEC1).
///
/// # Errors
/// As [`Credentials::load_files`].
pub fn load_private_key(path: impl AsRef<Path>) -> Result<PrivateKeyDer<'static>> {
    let path = path.as_ref();
    let keys = load_private_keys(path)?;
    keys.into_iter()
        .next()
        .ok_or_else(|| Error::malformed(path, "there is no private key in it"))
}

/// Loads all private keys of a PEM file, at least one.
pub(crate) fn load_private_keys(path: &Path) -> Result<Vec<PrivateKeyDer<'static>>> {
    let text = read(path)?;
    if contains(&text, b"BEGIN ENCRYPTED PRIVATE KEY") || contains(&text, b"Proc-Type: 4,ENCRYPTED")
    {
        return Err(Error::malformed(
            path,
            "the private key is encrypted; store it unencrypted with mode 0600",
        ));
    }
    sections::<PrivateKeyDer<'static>>(path, &text, "private key")
}

/// Loads the private key of a file that belongs to a certificate.
///
/// # Errors
/// As [`Credentials::load_files`]; if no key belongs to it, that of the first.
pub(crate) fn load_key_of(
    chain: &[CertificateDer<'static>],
    paths: &CredentialPaths,
) -> Result<PrivateKeyDer<'static>> {
    let mut refusal = None;
    for key in load_private_keys(&paths.key)? {
        match check_pair(chain, &key, paths) {
            Ok(()) => return Ok(key),
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.unwrap_or_else(|| Error::malformed(&paths.key, "there is no private key in it")))
}

/// Loads all certificate revocation lists of a PEM file, at least one.
///
/// The lists are checked to be readable, not to be signed by anyone: the verifier does that.
///
/// # Errors
/// As [`Credentials::load_files`].
pub fn load_crls(path: impl AsRef<Path>) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let path = path.as_ref();
    let crls = sections::<CertificateRevocationListDer<'static>>(
        path,
        &read(path)?,
        "certificate revocation list",
    )?;
    for crl in &crls {
        Revocations::from_der(crl).map_err(|reason| Error::malformed(path, reason))?;
    }
    Ok(crls)
}

/// Refuses a key that is not the first certificate's, or that TLS could not use.
pub(crate) fn check_pair(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    paths: &CredentialPaths,
) -> Result<()> {
    match pair(chain, key) {
        Ok(()) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => Err(Error::malformed(
            &paths.key,
            format!(
                "the key does not belong to the certificate in {}",
                paths.cert.display()
            ),
        )),
        Err(rustls::Error::InvalidCertificate(cause)) => Err(Error::malformed(
            &paths.cert,
            format!("the certificate cannot be used for TLS ({cause})"),
        )),
        Err(other) => Err(Error::malformed(
            &paths.key,
            format!("the key cannot be used for TLS ({other})"),
        )),
    }
}

/// Whether it is a good key, but not the first certificate's.
pub(crate) fn is_of_another(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> bool {
    matches!(pair(chain, key), Err(rustls::Error::InconsistentKeys(_)))
}

fn pair(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> std::result::Result<(), rustls::Error> {
    let provider = rustls::crypto::ring::default_provider();
    CertifiedKey::from_der(chain.to_vec(), key.clone_key(), &provider).map(|_| ())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let text = files::read(path)?;
    if text.trim_ascii().is_empty() {
        return Err(Error::malformed(path, "the file is empty"));
    }
    Ok(text)
}

/// All sections of one kind, at least one; `kind` is for the error's text.
fn sections<T: PemObject>(path: &Path, text: &[u8], kind: &str) -> Result<Vec<T>> {
    let found = T::pem_slice_iter(text)
        .collect::<std::result::Result<Vec<T>, pem::Error>>()
        .map_err(|error| Error::malformed(path, pem_reason(&error)))?;
    if !found.is_empty() {
        return Ok(found);
    }
    let hint = if contains(text, b"-----BEGIN ") {
        ""
    } else {
        " (it is not PEM text; a Java keystore or DER file must be converted first)"
    };
    Err(Error::malformed(
        path,
        format!("there is no {kind} in it{hint}"),
    ))
}

/// The library's own texts print lines as lists of numbers.
fn pem_reason(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { .. } => "broken PEM: a section has no END line".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "broken PEM: malformed BEGIN line".to_owned(),
        pem::Error::Base64Decode(_) => "broken PEM: malformed base64".to_owned(),
        other => format!("broken PEM: {other}"),
    }
}

fn check_certificate(der: &CertificateDer<'_>) -> std::result::Result<(), &'static str> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| "is no valid X.509 certificate")?;
    if !rest.is_empty() {
        return Err("is followed by stray bytes");
    }
    if certificate.public_key().algorithm.algorithm.to_id_string() == DSA_OID {
        return Err("has a DSA key, which TLS libraries no longer support; make it with EC or RSA");
    }
    Ok(())
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
