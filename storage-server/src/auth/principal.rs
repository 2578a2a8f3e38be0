//! Who a peer is, decided once: the principal of a session.
//!
//! Of a verified client certificate, the first that is there: SAN URI, SAN DNS name, common name. Peers without a
//! certificate are `anonymous`. The text goes into logs and history, and before the eyes of those who read them, so
//! control characters are refused, and those that do not show.

use std::fmt;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The longest principal, in bytes.
const PRINCIPAL_BYTES_MAX: usize = 256;
const ANONYMOUS: &str = "anonymous";

/// Who a peer is: `cert:NAME`, `user:NAME` or `anonymous`. The name has no control characters, none that do not show, and
/// at most 256 bytes with what is before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Principal(String);

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a peer is nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Its certificate is no X.509.
    #[error("the client certificate cannot be read")]
    Unreadable,
    /// Its certificate has no name.
    #[error("the client certificate has neither a URI nor a DNS name nor a common name")]
    Nameless,
    /// Its certificate's name is none.
    #[error(
        "the client certificate's name is empty, has control characters or ones that do not show, or is longer than 256 bytes"
    )]
    BadName,
    /// The name that it gave is none.
    #[error(
        "the user's name is empty, has control characters or ones that do not show, or is longer than 256 bytes"
    )]
    BadUser,
}

impl Principal {
    /// A peer that proved nothing.
    #[must_use]
    pub fn anonymous() -> Self {
        Self(ANONYMOUS.to_owned())
    }

    /// A peer that a gateway's protocol proved to be this user.
    ///
    /// # Errors
    /// [`IdentityError::BadUser`].
    pub fn user(name: &str) -> Result<Self, IdentityError> {
        Self::named("user:", name).ok_or(IdentityError::BadUser)
    }

    /// One that somebody names: `cert:NAME`, `user:NAME` or `anonymous`. `None`: it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once(':') {
            None if text == ANONYMOUS => Some(Self::anonymous()),
            Some(("cert", name)) => Self::named("cert:", name),
            Some(("user", name)) => Self::named("user:", name),
            _ => None,
        }
    }

    /// One that was found out before and kept.
    pub(crate) fn stored(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// As it is in logs and in the history.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it proved nothing.
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.0 == ANONYMOUS
    }

    fn named(kind: &str, name: &str) -> Option<Self> {
        let good = !name.is_empty()
            && name.len() + kind.len() <= PRINCIPAL_BYTES_MAX
            && !name.chars().any(|c| c.is_control() || is_unseen(c));
        good.then(|| Self(format!("{kind}{name}")))
    }

    /// The one of a certificate that was verified.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| IdentityError::Unreadable)?;
        let name = name_of(&parsed)?;
        Self::named("cert:", &name).ok_or(IdentityError::BadName)
    }
}

/// A format character or a separator of lines (Unicode: the categories Cf, Zl and Zp), which may turn or part what is
/// around it; or one that is shown by nothing (Default_Ignorable_Code_Point, U+2800).
fn is_unseen(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
        | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}'
        | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
        | '\u{ffa0}' | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
        | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

fn name_of(certificate: &X509Certificate<'_>) -> Result<String, IdentityError> {
    let names = match certificate.subject_alternative_name() {
        Ok(extension) => extension.map_or(&[][..], |extension| &extension.value.general_names),
        Err(_) => return Err(IdentityError::Unreadable),
    };
    let uri = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let dns = || {
        names.iter().find_map(|name| match name {
            GeneralName::DNSName(dns) => Some(*dns),
            _ => None,
        })
    };
    if let Some(name) = uri.or_else(dns) {
        return Ok(name.to_owned());
    }
    let common_name = certificate.subject().iter_common_name().next();
    common_name
        .ok_or(IdentityError::Nameless)?
        .as_str()
        .map(str::to_owned)
        .map_err(|_| IdentityError::Unreadable)
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn principal(common_name: Option<&str>, names: Vec<SanType>) -> Result<String, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = common_name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.subject_alt_names = names;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        Principal::of_certificate(certificate.der()).map(|principal| principal.to_string())
    }

    #[test]
    fn uri_before_dns_before_common_name() {
        let uri = || SanType::URI("spiffe://example/robot-7".try_into().unwrap());
        let dns = || SanType::DnsName("robot-7.example".try_into().unwrap());
        assert_eq!(
            principal(Some("cn"), vec![dns(), uri()]).unwrap(),
            "cert:spiffe://example/robot-7"
        );
        assert_eq!(
            principal(Some("cn"), vec![dns()]).unwrap(),
            "cert:robot-7.example"
        );
        assert_eq!(principal(Some("cn"), vec![]).unwrap(), "cert:cn");
        let address = SanType::IpAddress([127, 0, 0, 1].into());
        assert_eq!(principal(Some("cn"), vec![address]).unwrap(), "cert:cn");
    }

    #[test]
    fn certificates_that_name_nobody_are_refused() {
        assert_eq!(principal(None, vec![]), Err(IdentityError::Nameless));
        assert_eq!(principal(Some(""), vec![]), Err(IdentityError::BadName));
        assert_eq!(principal(Some("a\nb"), vec![]), Err(IdentityError::BadName));
        // What a reader of the log would take for "admin".
        for name in [
            "\u{202e}nimda",
            "ad\u{200b}min",
            "admin\u{2028}",
            "ad\u{34f}min",
        ] {
            assert_eq!(principal(Some(name), vec![]), Err(IdentityError::BadName));
        }
        let spelt = "Zoë Müller-\u{5d0}\u{5d1} 日本";
        assert!(principal(Some(spelt), vec![]).is_ok());
        assert_eq!(
            principal(Some(&"x".repeat(300)), vec![]),
            Err(IdentityError::BadName)
        );
        let nonsense = CertificateDer::from(vec![1, 2, 3]);
        assert_eq!(
            Principal::of_certificate(&nonsense),
            Err(IdentityError::Unreadable)
        );
    }
}
