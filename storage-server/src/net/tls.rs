//! TLS of a listener: which peers are let in, by certificates and revocation lists.
//!
//! Sessions of TLS 1.3 can be resumed, for half the CPU of a handshake; rustls then takes the client's chain from the
//! earlier session without verifying it again. So [`Tls::accept`] keeps this invariant: *every* handshake ends with a
//! chain that was verified now, by dates and revocation lists. The sessions are kept in the server and not in tickets
//! that the client keeps: rustls would send tickets in TLS 1.2 too, and clients of mwDB's age stall on them.
//!
//! The files can change while the server runs: [`LiveTls`] of a listener is replaced as a whole, with its sessions that could
//! be resumed, and connections that are there keep what they were accepted with.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerSessionMemoryCache, StoresServerSessions, WebPkiClientVerifier};
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use storage_certs::{CredentialPaths, Credentials};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate, X509Error};

use super::certificate;
use super::claimed::{Claimed, Noting, noting};
use super::revocation::{ListsInUse, Step, has_signed};
use crate::auth::{Identity, IdentityError, Principal, Proof};
use crate::config::{AuthMethod, ListenerConfig, TlsMode, TlsVersion};

/// TLS sessions of a listener that can be resumed; each is about 1 KiB, mostly the client's certificate.
const SESSIONS_MAX: usize = 16 * 1024;
/// A session with more than this, by large certificates, is not resumed.
const SESSION_BYTES_MAX: usize = 4 * 1024;

/// The file of revocation lists, in the folder of certificates.
pub(crate) const CRL: &str = "crl.pem";

/// Why the certificates of the server cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is missing or not what it should be. The text names it.
    #[error(transparent)]
    Files(#[from] storage_certs::Error),
    /// A revocation list that belongs to none of the trusted authorities would revoke nothing.
    #[error("{}: a revocation list in it is by no authority of {}", crl.display(), ca.display())]
    ForeignCrl {
        /// The file of lists.
        crl: PathBuf,
        /// The file of authorities.
        ca: PathBuf,
    },
    /// A revocation list was in use and is gone: everybody would come in again whom it revokes.
    #[error(
        "{}: the revocation list of {authority} is gone, and everybody would come in again whom it revokes: put it back, or \
         restart the server to go on without it",
        crl.display()
    )]
    CrlGone {
        /// The file of lists.
        crl: PathBuf,
        /// Whose list it is.
        authority: String,
    },
    /// A revocation list is older than the one in use: everybody would come in again who was revoked between the two.
    #[error(
        "{}: the revocation list of {authority} is older than the one in use ({what}), and everybody would come in again who \
         was revoked between the two: put the newer one there, or restart the server to take this one",
        crl.display()
    )]
    OlderCrl {
        /// The file of lists.
        crl: PathBuf,
        /// Whose list it is.
        authority: String,
        /// What tells the two apart.
        what: String,
    },
    /// A listener with TLS, and no folder of certificates.
    #[error("listener {address} has TLS, and no folder of certificates is configured")]
    NoCertificates {
        /// Which listener.
        address: SocketAddr,
    },
    /// The certificates do not fit together, or are not good at this time.
    #[error("{}: {reason}", path.display())]
    Chain {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The TLS library does not accept the files.
    #[error("cannot set up TLS with {}: {reason}", dir.display())]
    Unusable {
        /// The folder.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
}

/// Why a connection was not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcceptError {
    #[error("TLS: {error}")]
    Handshake {
        error: std::io::Error,
        /// Whose certificate was refused in it.
        claimed: Option<Claimed>,
    },
    #[error("resumed TLS session: {error}")]
    Resumed {
        error: rustls::Error,
        claimed: Option<Claimed>,
    },
}

impl AcceptError {
    /// Whether the handshake was refused, rather than broken off.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Handshake { error, .. } => {
                error.get_ref().is_some_and(|why| why.is::<rustls::Error>())
            }
            Self::Resumed { .. } => true,
        }
    }

    /// Whose certificate it was that was refused, as it says.
    pub(crate) fn claimed(&self) -> Option<&Claimed> {
        match self {
            Self::Handshake { claimed, .. } | Self::Resumed { claimed, .. } => claimed.as_ref(),
        }
    }
}

/// A handshake that succeeded.
#[derive(Debug)]
pub(crate) struct Accepted<S> {
    pub(crate) stream: TlsStream<S>,
    /// Who the peer is by its certificate; `None`: it has none. One can be good and name nobody.
    pub(crate) identity: Result<Option<Identity>, IdentityError>,
    /// Whether an earlier session was resumed.
    pub(crate) resumed: bool,
}

/// From when until when a certificate is valid: seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) from: u64,
    pub(crate) until: u64,
}

/// TLS 1.3 sessions of a listener that can be resumed, each once. The oldest are dropped to make room.
#[derive(Debug)]
struct Resumable(Arc<ServerSessionMemoryCache>);

impl Resumable {
    fn new() -> Arc<Self> {
        Arc::new(Self(ServerSessionMemoryCache::new(SESSIONS_MAX)))
    }
}

impl StoresServerSessions for Resumable {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        value.len() <= SESSION_BYTES_MAX && self.0.put(key, value)
    }

    /// Called for TLS 1.2, which does not resume here.
    fn get(&self, _key: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// Called for TLS 1.3.
    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.0.take(key)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

/// The files of a folder of certificates, as they were at one time: `DIR/server/{cert,key,ca}.pem` and, if it is there,
/// `DIR/crl.pem`.
pub(crate) struct TlsFiles {
    dir: PathBuf,
    paths: CredentialPaths,
    own: Credentials,
    lists: Option<Vec<CertificateRevocationListDer<'static>>>,
}

impl std::fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsFiles")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl TlsFiles {
    /// Where the files are.
    pub(crate) fn paths(dir: &Path) -> [PathBuf; 4] {
        let CredentialPaths { ca, cert, key } = CredentialPaths::in_dir(dir.join("server"));
        [cert, key, ca, dir.join(CRL)]
    }

    /// Reads them, and checks that they fit together. Blocks.
    pub(crate) fn read(dir: &Path) -> Result<Self, TlsError> {
        let paths = CredentialPaths::in_dir(dir.join("server"));
        let own = Credentials::load_files(&paths)?;
        check_chain(&own.chain).map_err(|reason| TlsError::Chain {
            path: paths.cert.clone(),
            reason,
        })?;
        let lists = dir.join(CRL);
        let lists = match lists.exists() {
            true => Some(storage_certs::load_crls(&lists)?),
            false => None,
        };
        Ok(Self {
            dir: dir.to_owned(),
            paths,
            own,
            lists,
        })
    }

    /// The revocation lists in them.
    pub(crate) fn lists(&self) -> ListsInUse {
        ListsInUse::of(&self.own.ca, self.lists.as_deref().unwrap_or_default())
    }

    /// Whether they may take the place of files with these lists, while the server runs.
    pub(crate) fn check_lists(&self, in_use: &ListsInUse) -> Result<(), TlsError> {
        let crl = self.dir.join(CRL);
        let checked = in_use.check_next(&self.lists(), &self.own.ca);
        checked.map_err(|step| match step {
            Step::Gone { authority } => TlsError::CrlGone { crl, authority },
            Step::Older { authority, what } => TlsError::OlderCrl {
                crl,
                authority,
                what,
            },
        })
    }

    /// When what is in them is valid.
    pub(crate) fn dates(&self) -> Result<Dates, TlsError> {
        let of = |certificates: &[CertificateDer<'_>]| {
            let until = certificates.iter().map(|one| validity(Some(one)));
            until.flatten().map(|validity| validity.until).min()
        };
        let own = validity(self.own.chain.first());
        let own =
            own.ok_or_else(|| self.unusable("the dates of its certificate cannot be read"))?;
        let lists = self.lists.iter().flatten().filter_map(next_update);
        Ok(Dates {
            own,
            between: of(self.own.chain.get(1..).unwrap_or_default()),
            authority: of(&self.own.ca),
            lists: lists.min(),
        })
    }

    /// Whether the server's certificate can be used at this time.
    pub(crate) fn check_dates(&self) -> Result<(), TlsError> {
        let dates = self.dates()?;
        certificate::check(dates.own).map_err(|reason| TlsError::Chain {
            path: self.paths.cert.clone(),
            reason,
        })
    }

    fn unusable(&self, error: impl std::fmt::Display) -> TlsError {
        TlsError::Unusable {
            dir: self.dir.clone(),
            reason: error.to_string(),
        }
    }

    fn verifier(
        &self,
        provider: &Arc<rustls::crypto::CryptoProvider>,
        is_optional: bool,
    ) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in &self.own.ca {
            roots
                .add(certificate.clone())
                .map_err(|error| self.unusable(error))?;
        }
        let mut builder =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        if is_optional {
            builder = builder.allow_unauthenticated();
        }
        if let Some(lists) = &self.lists {
            let lists_path = self.dir.join(CRL);
            let covered =
                authorities_covered(&self.own.ca, lists).ok_or_else(|| TlsError::ForeignCrl {
                    crl: lists_path.clone(),
                    ca: self.paths.ca.clone(),
                })?;
            builder = builder
                .with_crls(lists.iter().cloned())
                .only_check_end_entity_revocation();
            if covered < self.own.ca.len() {
                // An authority without a list (a self-signed certificate of a peer, say) revokes nobody.
                tracing::info!(
                    authorities = self.own.ca.len(),
                    with_a_list = covered,
                    "of the authorities in {} some have no revocation list in {}: they revoke nobody",
                    self.paths.ca.display(),
                    lists_path.display()
                );
                builder = builder.allow_unknown_revocation_status();
            }
        }
        builder.build().map_err(|error| self.unusable(error))
    }
}

/// When what TLS of the server stands on is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dates {
    /// The server's own certificate.
    pub(crate) own: Validity,
    /// The first end of those between it and its authority; seconds since 1970, as below.
    pub(crate) between: Option<u64>,
    /// The first end of the authorities of clients.
    pub(crate) authority: Option<u64>,
    /// When the first of the revocation lists should have been replaced.
    pub(crate) lists: Option<u64>,
}

/// Where there are others, one of them must have signed the first: with the chain of the certificate before, clients could
/// not verify a renewed one.
fn check_chain(chain: &[CertificateDer<'_>]) -> Result<(), String> {
    let parsed: Result<Vec<_>, _> = chain
        .iter()
        .map(|der| X509Certificate::from_der(der).map(|(_, certificate)| certificate))
        .collect();
    let parsed = parsed.map_err(|_| "it has something that is no certificate".to_owned())?;
    let [own, others @ ..] = &parsed[..] else {
        return Ok(());
    };
    let has_signed = |other: &X509Certificate<'_>| {
        let is_named = other.subject().as_raw() == own.issuer().as_raw();
        // TLS knows algorithms that the parser does not.
        is_named
            && !matches!(
                own.verify_signature(Some(other.public_key())),
                Err(X509Error::SignatureVerificationError)
            )
    };
    match others.is_empty() || others.iter().any(has_signed) {
        true => Ok(()),
        false => Err(
            "the first certificate in it is signed by none of the others: they are of another chain".to_owned(),
        ),
    }
}

/// When a revocation list should be replaced, in seconds since 1970; `None`: it does not say.
fn next_update(list: &CertificateRevocationListDer<'_>) -> Option<u64> {
    let (_, list) = CertificateRevocationList::from_der(list).ok()?;
    u64::try_from(list.next_update()?.timestamp()).ok()
}

/// TLS of one listener.
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    /// `None`: client certificates are not asked for.
    pub(crate) verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("mutual", &self.verifier.is_some())
            .finish_non_exhaustive()
    }
}

/// TLS of a listener, which is replaced as a whole while connections come in.
#[derive(Debug)]
pub(crate) struct LiveTls(RwLock<Arc<Tls>>);

impl LiveTls {
    pub(crate) fn new(tls: Tls) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(tls))))
    }

    /// That for a connection that comes now.
    pub(crate) fn now(&self) -> Arc<Tls> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// For connections from now on; no earlier session can be resumed.
    pub(crate) fn replace(&self, tls: Tls) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(tls);
    }
}

impl Tls {
    /// For a listener that has TLS.
    pub(crate) fn new(files: &TlsFiles, listener: &ListenerConfig) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = match listener.auth().contains(&AuthMethod::Certificate) {
            true => Some(files.verifier(&provider, listener.tls == TlsMode::Server)?),
            false => None,
        };
        let versions: &[_] = match (listener.tls_min_version, listener.tls_max_version) {
            (TlsVersion::Tls12, TlsVersion::Tls13) => {
                &[&rustls::version::TLS13, &rustls::version::TLS12]
            }
            (_, TlsVersion::Tls12) => &[&rustls::version::TLS12],
            (TlsVersion::Tls13, TlsVersion::Tls13) => &[&rustls::version::TLS13],
        };
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| files.unusable(error))?;
        let builder = match &verifier {
            Some(verifier) => builder.with_client_cert_verifier(Arc::new(Noting(verifier.clone()))),
            None => builder.with_no_client_auth(),
        };
        let own = files.own.clone();
        let mut config = builder
            .with_single_cert(own.chain, own.key)
            .map_err(|error| files.unusable(error))?;
        config.session_storage = Resumable::new();
        config.send_tls13_tickets = 1;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            verifier,
        })
    }

    /// Does the handshake, and finds out who the peer is. `verified`: the version of what certificates are verified with,
    /// from before this was [taken](LiveTls::now).
    pub(crate) async fn accept<S>(
        &self,
        stream: S,
        verified: u64,
    ) -> Result<Accepted<S>, AcceptError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let (stream, claimed) = noting(self.acceptor.accept(stream)).await;
        let stream = stream.map_err(|error| AcceptError::Handshake { error, claimed })?;
        let connection = stream.get_ref().1;
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let identity = match (&self.verifier, connection.peer_certificates()) {
            (None, _) => Ok(None),
            (Some(verifier), Some([own, between @ ..])) => {
                if resumed {
                    verifier
                        .verify_client_cert(own, between, UnixTime::now())
                        .map_err(|error| AcceptError::Resumed {
                            error,
                            claimed: Claimed::of(own),
                        })?;
                }
                identity_of(own, between, verified).map(Some)
            }
            (Some(verifier), _) if !verifier.client_auth_mandatory() => Ok(None),
            // The verifier demands a certificate, so this does not happen; if it did, nobody gets in.
            (Some(_), _) => {
                return Err(AcceptError::Resumed {
                    error: rustls::Error::NoCertificatesPresented,
                    claimed: None,
                });
            }
        };
        Ok(Accepted {
            stream,
            identity,
            resumed,
        })
    }
}

/// A session lasts no longer than what let it in: its certificate, and those between that and the authority.
fn identity_of(
    own: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    verified: u64,
) -> Result<Identity, IdentityError> {
    let principal = Principal::of_certificate(own)?;
    let own_until = validity(Some(own)).ok_or(IdentityError::Unreadable)?.until;
    // The chain was verified just now: one that is over by now, or cannot be read, was shown and was no part of it.
    let now = UnixTime::now().as_secs();
    let others = between.iter().filter_map(|one| validity(Some(one)));
    let others = others.map(|validity| validity.until);
    let until = others
        .filter(|until| *until >= now)
        .fold(own_until, u64::min);
    let chain = std::iter::once(own).chain(between);
    let chain = chain.map(|certificate| certificate.clone().into_owned());
    let chain = chain.collect();
    Ok(Identity::new(
        principal,
        Proof::Certificate {
            chain,
            until,
            verified: AtomicU64::new(verified),
        },
    ))
}

/// When the server's own certificate is valid. Those behind it in the chain need not all be used by a client.
fn validity(own: Option<&CertificateDer<'_>>) -> Option<Validity> {
    let (_, certificate) = X509Certificate::from_der(own?).ok()?;
    let validity = certificate.validity();
    // A time before 1970 counts as 1970.
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    Some(Validity {
        from: seconds(validity.not_before),
        until: seconds(validity.not_after),
    })
}

/// How many authorities have a list; `None` if a list is by none of them.
fn authorities_covered(
    authorities: &[CertificateDer<'_>],
    crls: &[CertificateRevocationListDer<'_>],
) -> Option<usize> {
    let parsed = authorities
        .iter()
        .filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1));
    let authorities: Vec<_> = parsed.collect();
    let mut covered = vec![false; authorities.len()];
    for der in crls {
        let (_, crl) = CertificateRevocationList::from_der(der).ok()?;
        let by = authorities
            .iter()
            .position(|authority| has_signed(authority, &crl))?;
        covered[by] = true;
    }
    Some(covered.into_iter().filter(|covered| *covered).count())
}

#[cfg(test)]
mod tests;
