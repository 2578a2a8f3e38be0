//! From when to when a certificate is good.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Error, Result};

/// Days an issued certificate is good for unless asked otherwise.
pub const DAYS_DEFAULT: u32 = 365;
/// Days an issued certificate is good for, at most; also the life of the CA and of a CRL.
pub const DAYS_MAX: u32 = 3650;

/// A new certificate is good from this long ago, for peers whose clocks are behind.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// From when to when a certificate is good, to the second, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Not accepted before.
    pub not_before: SystemTime,
    /// Not accepted after.
    pub not_after: SystemTime,
}

impl Validity {
    /// From five minutes ago until `days` days from now.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless `days` is 1 to [`DAYS_MAX`].
    pub fn days(days: u32) -> Result<Self> {
        if !(1..=DAYS_MAX).contains(&days) {
            return Err(Error::Invalid {
                what: "validity in days",
                value: days.to_string(),
                rule: "1 to 3650 days",
            });
        }
        let now = SystemTime::now();
        Ok(Self {
            not_before: now - CLOCK_SKEW,
            not_after: now + DAY * days,
        })
    }

    /// From five minutes ago for as many whole days as a certificate was good for.
    ///
    /// # Errors
    /// [`Error::Crypto`] if it is no X.509 certificate.
    pub(crate) fn as_long_as(certificate: &CertificateDer<'_>) -> Result<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate)
            .map_err(Error::crypto("read the certificate"))?;
        let dates = parsed.validity();
        let seconds = dates.not_after.timestamp() - dates.not_before.timestamp();
        let period = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        // The skew before its beginning is no part of the days, and is less than the half day.
        let days = (period + DAY / 2).as_secs() / DAY.as_secs();
        let days = u32::try_from(days).unwrap_or(DAYS_MAX);
        Self::days(days.clamp(1, DAYS_MAX))
    }

    /// Whole days from now until then, none if it is past.
    pub(crate) fn days_until(then: SystemTime) -> u32 {
        let left = then.duration_since(SystemTime::now()).unwrap_or_default();
        u32::try_from(left.as_secs() / DAY.as_secs()).unwrap_or(u32::MAX)
    }

    /// Exactly this period, checked against nothing: tests issue expired certificates with it.
    pub fn between(not_before: SystemTime, not_after: SystemTime) -> Self {
        Self {
            not_before,
            not_after,
        }
    }
}

/// The day in UTC as year-month-day, for texts.
pub(crate) fn date(time: SystemTime) -> String {
    time::OffsetDateTime::from(time).date().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_bounds() {
        assert!(Validity::days(0).is_err());
        assert!(Validity::days(DAYS_MAX + 1).is_err());
        let one = Validity::days(1).unwrap();
        assert!(one.not_before < SystemTime::now() - Duration::from_secs(60));
        assert!(one.not_after > SystemTime::now() + DAY - Duration::from_secs(60));
    }
}
