//! The names a certificate can carry, checked once where they enter.
//!
//! A [`Name`] is a folder on disk, a keystore alias and a common name at the same time, so its
//! rule is the narrowest of the three. Past the constructors here nothing re-checks.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use rustls_pki_types::ServerName;

use crate::{Error, Result};

/// Bytes in a [`Name`], at most: the common name's 64 less one, and a DNS label's limit.
const NAME_LEN_MAX: usize = 63;
/// Bytes in a DNS name, at most (RFC 1035).
const DNS_NAME_LEN_MAX: usize = 253;
/// Bytes in a SAN URI, at most: our own bound, far above any sensible identity.
const URI_LEN_MAX: usize = 1024;

/// The name of a peer: its folder, keystore alias and common name.
///
/// `[A-Za-z0-9][A-Za-z0-9._-]{0,62}`, so it can neither leave the CA's folder nor hide in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, if DNS software would accept it as a host name.
    pub fn as_host_name(&self) -> Option<&str> {
        is_host_name(&self.0).then_some(self.as_str())
    }
}

impl FromStr for Name {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let first_ok = text.starts_with(|c: char| c.is_ascii_alphanumeric());
        let rest_ok = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !first_ok || !rest_ok || text.len() > NAME_LEN_MAX {
            return Err(Error::Invalid {
                what: "name",
                value: text.to_owned(),
                rule: "a name has 1 to 63 letters, digits, '.', '_' or '-' \
                       and begins with a letter or digit",
            });
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A URI for the subject alternative names; for the server it is the strongest identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SanUri(String);

impl SanUri {
    /// The URI as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SanUri {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let scheme_ok = text.split_once(':').is_some_and(|(scheme, rest)| {
            scheme.starts_with(|c: char| c.is_ascii_alphabetic())
                && scheme
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'.' | b'-'))
                && !rest.is_empty()
        });
        if !scheme_ok || !text.bytes().all(|b| b.is_ascii_graphic()) || text.len() > URI_LEN_MAX {
            return Err(Error::Invalid {
                what: "URI",
                value: text.to_owned(),
                rule: "a URI is scheme:rest in printable ASCII without spaces, \
                       at most 1024 characters, such as urn:storage:reporting",
            });
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for SanUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Reads a name that clients will dial: a host name or an IP address, no port, no wildcard.
///
/// # Errors
/// [`Error::Invalid`] with the rule.
pub fn server_name(text: &str) -> Result<ServerName<'static>> {
    let invalid = || Error::Invalid {
        what: "server name",
        value: text.to_owned(),
        rule: "a server name is a host name (letters, digits, '-' and '_' between dots, \
               the last part not all digits) or an IP address, without a port",
    };
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(ServerName::from(address));
    }
    // An underscore is in no host name of the standards and in many names of containers. TLS libraries verify it.
    if !is_host_name(&text.replace('_', "x")) {
        return Err(invalid());
    }
    ServerName::try_from(text.to_owned()).map_err(|_| invalid())
}

/// Stricter than TLS libraries need (no underscore, no trailing dot), as Java is strict too. The
/// last label must not be all digits, or the name could be read as an address.
fn is_host_name(text: &str) -> bool {
    let label_ok = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last_is_number = text
        .rsplit('.')
        .next()
        .is_some_and(|label| label.bytes().all(|b| b.is_ascii_digit()));
    text.len() <= DNS_NAME_LEN_MAX && text.split('.').all(label_ok) && !last_is_number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_the_folder_or_hide_in_it() {
        let long = "a".repeat(64);
        for bad in [
            "", ".", "..", "../x", "a/b", "/etc", ".hidden", "-force", "_x", "a b", "a\nb", "é",
            "a\0", &long,
        ] {
            let error = bad.parse::<Name>().unwrap_err().to_string();
            assert!(error.contains("1 to 63 letters"), "{bad:?}: {error}");
        }
        for good in ["a", "9", "laptop-7", "a..b", "A_b.c", &"a".repeat(63)] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn only_a_host_name_becomes_a_dns_name() {
        for bad in ["a_b", "a..b", "a.", "a-", "42", "10.0.0.1", "x.7"] {
            assert_eq!(bad.parse::<Name>().unwrap().as_host_name(), None, "{bad}");
        }
        for good in ["a", "a-b", "7a.example.com"] {
            assert_eq!(good.parse::<Name>().unwrap().as_host_name(), Some(good));
        }
    }

    #[test]
    fn a_server_name_is_a_host_or_an_address() {
        for bad in [
            "",
            "*.example.com",
            "host:8080",
            "[::1]",
            "a b",
            "1.2.3",
            "127.1",
            "host.",
            "-db",
        ] {
            assert!(server_name(bad).is_err(), "{bad}");
        }
        for good in [
            "localhost",
            "127.0.0.1",
            "::1",
            "db1.example.com",
            "my_db",
            "_db.x_y",
        ] {
            assert_eq!(server_name(good).unwrap().to_str(), good);
        }
    }

    #[test]
    fn a_uri_has_a_scheme_and_no_spaces() {
        for bad in ["", "x", ":x", "urn:", "1a:x", "urn:a b", "urn:é"] {
            assert!(bad.parse::<SanUri>().is_err(), "{bad}");
        }
        for good in ["urn:storage:a", "spiffe://x/y"] {
            assert_eq!(good.parse::<SanUri>().unwrap().as_str(), good);
        }
    }
}
