//! The list of revoked certificates, read from a CRL so that no other database is needed.
//!
//! A CRL is only ever rewritten with all its older entries and a higher number. Signing is the
//! authority's; this file knows the contents only.

use std::fmt;
use std::time::SystemTime;

use rcgen::{RevocationReason, RevokedCertParams, SerialNumber};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::{Error, Result};

/// A certificate's serial number, without leading zero bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Serial(Vec<u8>);

impl Serial {
    /// The serial number of a certificate.
    ///
    /// # Errors
    /// [`Error::Crypto`] if it is no X.509 certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(Error::crypto("read the certificate"))?;
        Ok(Self::from_bytes(parsed.raw_serial()))
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|b| **b == 0).count();
        Self(bytes.iter().skip(zeros).copied().collect())
    }

    pub(crate) fn to_rcgen(&self) -> SerialNumber {
        SerialNumber::from_slice(&self.0)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The serial numbers that must no longer be accepted.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    /// Number of the CRL this was read from; 0 if there was none.
    number: u64,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    serial: Serial,
    at: OffsetDateTime,
    reason: Option<RevocationReason>,
}

impl Revocations {
    /// An empty list; the first CRL signed from it has number 1.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a CRL in DER. Its signature is not checked.
    ///
    /// # Errors
    /// A text that says what is wrong with it, for the caller to put beside the file's name.
    pub fn from_der(der: &[u8]) -> std::result::Result<Self, String> {
        let (rest, crl) = CertificateRevocationList::from_der(der)
            .map_err(|_| "it is no valid certificate revocation list".to_owned())?;
        if !rest.is_empty() {
            return Err("the certificate revocation list is followed by stray bytes".to_owned());
        }
        let number = crl.crl_number().map_or(Ok(0), |number| {
            u64::try_from(number).map_err(|_| "its CRL number is above 64 bits".to_owned())
        })?;
        let entries = crl
            .iter_revoked_certificates()
            .map(|revoked| {
                Ok(Entry {
                    serial: Serial::from_bytes(revoked.raw_serial()),
                    at: OffsetDateTime::from_unix_timestamp(revoked.revocation_date.timestamp())
                        .map_err(|_| "a revocation date in it is out of range".to_owned())?,
                    reason: revoked
                        .reason_code()
                        .and_then(|(_critical, code)| reason(code.0)),
                })
            })
            .collect::<std::result::Result<_, String>>()?;
        Ok(Self { number, entries })
    }

    /// Adds a serial number as revoked at `at`; false if it was there already.
    pub fn revoke(&mut self, serial: Serial, at: SystemTime) -> bool {
        if self.contains(&serial) {
            return false;
        }
        self.entries.push(Entry {
            serial,
            at: at.into(),
            reason: None,
        });
        true
    }

    /// Whether a serial number is revoked.
    pub fn contains(&self, serial: &Serial) -> bool {
        self.entries.iter().any(|entry| entry.serial == *serial)
    }

    /// Since when a serial number is revoked.
    pub(crate) fn revoked_at(&self, serial: &Serial) -> Option<OffsetDateTime> {
        let mut entries = self.entries.iter();
        let entry = entries.find(|entry| entry.serial == *serial)?;
        Some(entry.at)
    }

    /// Number of the CRL this was read from; 0 if there was none.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How many serial numbers are revoked.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn to_rcgen(&self) -> Vec<RevokedCertParams> {
        let entry = |entry: &Entry| RevokedCertParams {
            serial_number: entry.serial.to_rcgen(),
            revocation_time: entry.at,
            reason_code: entry.reason,
            invalidity_date: None,
        };
        self.entries.iter().map(entry).collect()
    }
}

/// RFC 5280, section 5.3.1. An unknown reason is dropped, the entry stays.
fn reason(code: u8) -> Option<RevocationReason> {
    Some(match code {
        1 => RevocationReason::KeyCompromise,
        2 => RevocationReason::CaCompromise,
        3 => RevocationReason::AffiliationChanged,
        4 => RevocationReason::Superseded,
        5 => RevocationReason::CessationOfOperation,
        6 => RevocationReason::CertificateHold,
        8 => RevocationReason::RemoveFromCrl,
        9 => RevocationReason::PrivilegeWithdrawn,
        10 => RevocationReason::AaCompromise,
        _ => return None,
    })
}
