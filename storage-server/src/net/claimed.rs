//! Whose certificate it was that a handshake was refused for: for the log and the audit log, which else could not say who
//! tries to get in with a certificate that was revoked.
//!
//! What rustls answers with a refusal does not have the certificate, and what it tells the client must stay as it is. So the
//! verifier of a listener notes it, for the handshake in whose task it is asked.

use std::cell::RefCell;
use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::auth::Principal;

/// The most bytes of a serial number (RFC 5280); of a longer one the first are told.
const SERIAL_BYTES_MAX: usize = 20;

/// What a certificate says of itself that was not found good. Anybody can make one that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// Who its bearer would be; `None`: nobody.
    pub(crate) principal: Option<Principal>,
    /// Its serial number, in hexadecimal digits as `storage-certs show` has it.
    pub(crate) serial: String,
}

impl Claimed {
    /// `None`: it is no certificate.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let serial = parsed.raw_serial();
        // The zero before a number whose first bit is set is no part of it.
        let serial = match serial {
            [0, rest @ ..] if !rest.is_empty() => rest,
            serial => serial,
        };
        let told = serial.get(..SERIAL_BYTES_MAX).unwrap_or(serial);
        Some(Self {
            principal: Principal::of_certificate(certificate).ok(),
            serial: hex::encode(told),
        })
    }
}

tokio::task_local! {
    static REFUSED: RefCell<Option<Claimed>>;
}

/// Does a handshake, and tells whose certificate it was if one was refused in it.
pub(super) async fn noting<T>(handshake: impl Future<Output = T>) -> (T, Option<Claimed>) {
    let noted = REFUSED.scope(RefCell::new(None), async {
        let done = handshake.await;
        (done, REFUSED.with(RefCell::take))
    });
    noted.await
}

/// Another verifier, whose refusals are noted.
#[derive(Debug)]
pub(super) struct Noting(pub(super) Arc<dyn ClientCertVerifier>);

fn note<T>(result: Result<T, Error>, certificate: &CertificateDer<'_>) -> Result<T, Error> {
    if result.is_err() {
        // Outside of a handshake of ours nobody asks for it.
        let _ = REFUSED.try_with(|refused| refused.replace(Claimed::of(certificate)));
    }
    result
}

#[deny(clippy::missing_trait_methods)]
impl ClientCertVerifier for Noting {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        note(self.0.verify_client_cert(own, between, now), own)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        note(self.0.verify_tls12_signature(message, own, signature), own)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        note(self.0.verify_tls13_signature(message, own, signature), own)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.0.requires_raw_public_keys()
    }
}
