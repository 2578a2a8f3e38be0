//! The certificate authority in memory: makes itself, issues credentials, signs CRLs.
//!
//! It never touches the disk; `AuthorityDir` does. All keys are EC P-256, which TLS 1.2 and 1.3
//! and Java 8 and later know.
//! Invariant: a server's certificate is good for serving only and a client's for dialling only, so
//! no client can pose as the server.

use std::fmt;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    DistinguishedName, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::load::{self, Credentials};
use crate::names::{Name, SanUri};
use crate::revocations::{Revocations, Serial};
use crate::template::Template;
use crate::validity::{DAYS_DEFAULT, DAYS_MAX, Validity};
use crate::{Error, Result};

/// Common name of every CA made here.
const CA_COMMON_NAME: &str = "storage-sync CA";

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Dials: extended key usage clientAuth only.
    Client,
    /// Is dialled under these names, at least one: extended key usage serverAuth only. A server
    /// that also dials another one gets client credentials of its own.
    Server(Vec<ServerName<'static>>),
}

/// What to issue. Starts from [`Request::client`] or [`Request::server`].
#[derive(Clone, Debug)]
pub struct Request {
    name: Name,
    role: Role,
    uri: Option<SanUri>,
    /// None: [`DAYS_DEFAULT`] days from the moment of issuing.
    validity: Option<Validity>,
}

impl Request {
    /// Client credentials with CN=`name`, and SAN DNS=`name` if it is a valid host name.
    pub fn client(name: Name) -> Self {
        Self::new(name, Role::Client)
    }

    /// Server credentials with CN=`name` and these subject alternative names.
    pub fn server(name: Name, names: Vec<ServerName<'static>>) -> Self {
        Self::new(name, Role::Server(names))
    }

    fn new(name: Name, role: Role) -> Self {
        Self {
            name,
            role,
            uri: None,
            validity: None,
        }
    }

    /// Adds a SAN URI. Default: none.
    #[must_use]
    pub fn uri(mut self, uri: SanUri) -> Self {
        self.uri = Some(uri);
        self
    }

    /// Sets the period. Default: 365 days from issuing. It never ends after the CA's own.
    #[must_use]
    pub fn validity(mut self, validity: Validity) -> Self {
        self.validity = Some(validity);
        self
    }

    /// Whose credentials these are.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What they are for.
    pub fn role(&self) -> &Role {
        &self.role
    }

    pub(crate) fn san_uri(&self) -> Option<&SanUri> {
        self.uri.as_ref()
    }
}

/// Freshly issued credentials, in memory. `Debug` is masked.
#[non_exhaustive]
pub struct Issued {
    /// What the peer presents and trusts; the chain is the one certificate.
    pub credentials: Credentials,
    /// The certificate as PEM.
    pub certificate_pem: String,
    /// The private key as PEM (PKCS#8).
    pub key_pem: String,
    /// The certificate's serial number.
    pub serial: Serial,
    /// When the certificate expires.
    pub not_after: SystemTime,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// A certificate authority: its certificate and its key.
pub struct Authority {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
}

impl Authority {
    /// Makes a CA that is good for ten years.
    ///
    /// # Errors
    /// [`Error::Crypto`] if the system has no random numbers.
    pub fn generate() -> Result<Self> {
        Self::generate_for(Validity::days(DAYS_MAX)?)
    }

    /// Makes a CA for a given period; see [`Authority::generate`].
    ///
    /// # Errors
    /// As [`Authority::generate`].
    pub fn generate_for(validity: Validity) -> Result<Self> {
        let action = "make the CA";
        let key = KeyPair::generate().map_err(Error::crypto(action))?;
        let mut params = params(Some(CA_COMMON_NAME), validity)?;
        // No CA below this one: a stolen client key must not be able to sign.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(Error::crypto(action))?;
        Ok(Self {
            not_after: load::expires_at(certificate.der())?,
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// A CA from its PEM texts. Whether the key is the certificate's is for the caller to check.
    pub(crate) fn from_pem(certificate_pem: String, key: &PrivateKeyDer<'_>) -> Result<Self> {
        let action = "read the CA";
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(Error::crypto(action))?;
        let key = KeyPair::try_from(key).map_err(Error::crypto(action))?;
        Ok(Self {
            not_after: load::expires_at(&certificate)?,
            issuer: Issuer::from_ca_cert_der(&certificate, key).map_err(Error::crypto(action))?,
            certificate,
            certificate_pem,
        })
    }

    /// The CA certificate: the trust anchor of every peer.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA certificate as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The CA's private key as PEM (PKCS#8).
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// When the CA certificate expires.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Issues credentials with a new key and a random serial number of 128 bits.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a server without names; [`Error::Crypto`] if the system has no
    /// random numbers or signing fails.
    pub fn issue(&self, request: &Request) -> Result<Issued> {
        let action = "issue the certificate";
        if request.role == Role::Server(vec![]) {
            return Err(Error::Invalid {
                what: "server",
                value: request.name.to_string(),
                rule: "a server certificate needs at least one server name",
            });
        }
        let mut validity = request
            .validity
            .map_or_else(|| Validity::days(DAYS_DEFAULT), Ok)?;
        // TLS libraries do not look at the dates of a trust anchor: the end is kept here.
        validity.not_after = validity.not_after.min(self.not_after);

        let key = KeyPair::generate().map_err(Error::crypto(action))?;
        let certificate = self.sign(&Template::of_request(request)?, validity, &key)?;

        Ok(Issued {
            serial: Serial::of(certificate.der())?,
            not_after: load::expires_at(certificate.der())?,
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            credentials: Credentials {
                ca: vec![self.certificate.clone()],
                chain: vec![certificate.der().clone()],
                key: PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            },
        })
    }

    /// Signs a certificate for this key, valid exactly as long as asked.
    pub(crate) fn sign(
        &self,
        template: &Template,
        validity: Validity,
        key: &impl PublicKeyData,
    ) -> Result<Certificate> {
        let mut params = params(template.common_name.as_deref(), validity)?;
        params
            .subject_alt_names
            .clone_from(&template.alternative_names);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages.clone_from(&template.usages);
        params.use_authority_key_identifier_extension = true;
        params
            .signed_by(key, &self.issuer)
            .map_err(Error::crypto("issue the certificate"))
    }

    /// Signs a CRL as PEM, numbered one above the one `revocations` was read from.
    ///
    /// Its next update is ten years away: the list changes when somebody is revoked and is carried
    /// to the servers by hand, so a nearer date would only lock everybody out one day.
    ///
    /// # Errors
    /// [`Error::Crypto`] if signing fails.
    pub fn sign_crl(&self, revocations: &Revocations) -> Result<String> {
        let action = "sign the CRL";
        let dates = Validity::days(DAYS_MAX)?;
        CertificateRevocationListParams {
            this_update: SystemTime::now().into(),
            next_update: dates.not_after.into(),
            crl_number: SerialNumber::from(revocations.number().saturating_add(1)),
            issuing_distribution_point: None,
            revoked_certs: revocations.to_rcgen(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.issuer)
        .and_then(|crl| crl.pem())
        .map_err(Error::crypto(action))
    }

    /// Whether this CA signed a certificate.
    pub fn has_issued(&self, certificate: &CertificateDer<'_>) -> bool {
        let signed = || {
            let (_, own) = X509Certificate::from_der(&self.certificate).ok()?;
            let (_, other) = X509Certificate::from_der(certificate).ok()?;
            other.verify_signature(Some(own.public_key())).ok()
        };
        signed().is_some()
    }

    /// Whether this CA signed a CRL.
    pub fn has_signed_crl(&self, crl: &[u8]) -> bool {
        let signed = || {
            let (_, own) = X509Certificate::from_der(&self.certificate).ok()?;
            let (_, crl) = CertificateRevocationList::from_der(crl).ok()?;
            crl.verify_signature(own.public_key()).ok()
        };
        signed().is_some()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("not_after", &self.not_after)
            .field("key", &"[masked]")
            .finish_non_exhaustive()
    }
}

/// What all certificates have in common.
fn params(common_name: Option<&str>, validity: Validity) -> Result<CertificateParams> {
    let mut serial = [0; 16];
    getrandom::fill(&mut serial).map_err(Error::crypto("make a serial number"))?;
    let mut params = CertificateParams::default();
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = common_name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    Ok(params)
}
