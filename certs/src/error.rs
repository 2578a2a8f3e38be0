//! The error type of this crate.
//!
//! Every text is complete by itself: it names the file or value, what is wrong with it and, where
//! there is one, the way out. So callers print the error and need not walk its sources.

use std::io;
use std::path::{Path, PathBuf};

use crate::names::Name;

/// Why something was not issued, revoked or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something would have been overwritten. Nothing was written.
    #[error("{} already exists; {advice}", path.display())]
    Exists {
        /// What is in the way.
        path: PathBuf,
        /// What to do instead.
        advice: &'static str,
    },
    /// The CA never issued this name, or its folder is gone. Nothing was written.
    #[error("{name} is unknown: there is no {}", path.display())]
    UnknownName {
        /// The name asked for.
        name: Name,
        /// The certificate that was looked for.
        path: PathBuf,
    },
    /// The folder holds no CA.
    #[error("there is no CA: {} is missing; `storage-certs init` makes one", path.display())]
    NoAuthority {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// The folder holds a CA without its key, as on a server.
    #[error(
        "the CA's key {} is not here: nothing can be issued, renewed or revoked without it; \
         do it where the key is kept, or bring the key here",
        path.display()
    )]
    NoAuthorityKey {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// The certificate that was to be renewed is revoked. Nothing was written.
    #[error(
        "{name} is revoked (serial {serial}) and is not renewed; \
         to let it in again, `issue {name} --force` makes a new key and certificate"
    )]
    Revoked {
        /// The name asked for.
        name: Name,
        /// Serial number of its certificate, in hexadecimal.
        serial: String,
    },
    /// The new certificate would outlive the CA, so nobody would take it to its end. Nothing was
    /// written.
    #[error(
        "the CA in {} ends on {on}, before the new certificate would ({wanted}); {}",
        path.display(),
        shorter(*days)
    )]
    AuthorityEndsFirst {
        /// The CA certificate.
        path: PathBuf,
        /// The day the CA ends, as year-month-day.
        on: String,
        /// The day the new certificate would end.
        wanted: String,
        /// Whole days until the CA ends.
        days: u32,
    },
    /// The CA certificate itself has expired: nothing it signs would be accepted.
    #[error("the CA in {} expired on {on}; make a new one in another folder", path.display())]
    AuthorityExpired {
        /// The CA certificate.
        path: PathBuf,
        /// The day, as year-month-day.
        on: String,
    },
    /// A value given by the caller breaks a rule.
    #[error("{what} {value:?} is refused: {rule}")]
    Invalid {
        /// What kind of value.
        what: &'static str,
        /// The value.
        value: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A file was read but does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused a file operation.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// Verb, such as "read".
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Key generation, signing or encoding failed: a fault of the machine or of this crate.
    #[error("cannot {action}: {source}")]
    Crypto {
        /// Verb and object, such as "sign the certificate".
        action: &'static str,
        /// The library's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn shorter(days: u32) -> String {
    let new_ca = "make a new CA in another folder";
    match days {
        0 => new_ca.to_owned(),
        days => format!("take --days {days} at most, or {new_ca}"),
    }
}

impl Error {
    pub(crate) fn malformed(path: &Path, reason: impl Into<String>) -> Self {
        Self::Malformed {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn crypto<E>(action: &'static str) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::Crypto {
            action,
            source: source.into(),
        }
    }
}
