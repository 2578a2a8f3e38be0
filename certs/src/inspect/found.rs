//! What an inspection finds, as `show` prints it.
//!
//! Serialised, it is the contract of `show --json`: fields are added, and do not change.

use rustls_pki_types::CertificateDer;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::peer;
use crate::revocations::Revocations;

/// All that was found.
#[derive(Debug, Serialize)]
pub(crate) struct Inspection {
    /// What was looked at.
    pub(crate) path: String,
    /// Whether all of it can be used. Of a folder of several, what is revoked does not count.
    pub(crate) usable: bool,
    pub(crate) credentials: Vec<Credential>,
    pub(crate) revocation_lists: Vec<List>,
    /// What is wrong with the folder or with the lists.
    pub(crate) findings: Vec<Finding>,
}

/// A certificate, with its key where it has one.
#[derive(Debug, Serialize)]
pub(crate) struct Credential {
    /// "ca", the name of its folder, or that of its file.
    pub(crate) name: String,
    pub(crate) file: String,
    /// None: the certificate cannot be read.
    #[serde(flatten)]
    pub(crate) details: Option<Details>,
    pub(crate) key: KeyState,
    /// Certificates that the name had before and that still let it in.
    pub(crate) older_valid: Vec<OlderValid>,
    pub(crate) findings: Vec<Finding>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Details {
    pub(crate) kind: Kind,
    /// Who the server takes the bearer for; None for what cannot dial.
    pub(crate) principal: Option<String>,
    pub(crate) subject: String,
    pub(crate) issuer: String,
    pub(crate) alternative_names: Vec<String>,
    pub(crate) serial: String,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) valid_from: OffsetDateTime,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) valid_until: OffsetDateTime,
    /// Whole days; below zero if it has expired.
    pub(crate) days_left: i64,
    /// None: there is no list that could say so.
    pub(crate) revoked: Option<bool>,
    #[serde(serialize_with = "rfc3339_or_null")]
    pub(crate) revoked_at: Option<OffsetDateTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Authority,
    Server,
    Client,
    ServerAndClient,
    /// Neither of them: it is good for nothing here.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum KeyState {
    Matches,
    /// It belongs to another certificate.
    Differs,
    Missing,
    /// It is no key, or none that TLS can use.
    Broken,
    /// Who asks may not read it.
    Unreadable,
    /// No key was looked for: a file was asked for, or its certificate is broken.
    Unknown,
}

#[derive(Debug, Serialize)]
pub(crate) struct OlderValid {
    pub(crate) serial: String,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) valid_until: OffsetDateTime,
}

/// A revocation list.
#[derive(Debug, Serialize)]
pub(crate) struct List {
    pub(crate) file: String,
    pub(crate) issuer: String,
    pub(crate) number: u64,
    #[serde(serialize_with = "rfc3339")]
    pub(crate) issued: OffsetDateTime,
    #[serde(serialize_with = "rfc3339_or_null")]
    pub(crate) next_update: Option<OffsetDateTime>,
    pub(crate) revoked: usize,
    #[serde(skip)]
    pub(super) entries: Revocations,
    /// The authority that signed it.
    #[serde(skip)]
    pub(super) by: CertificateDer<'static>,
}

/// Something that somebody should know of.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    /// For programs: stays the same.
    pub(crate) code: &'static str,
    /// For people: may change.
    pub(crate) text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Warning,
    /// It cannot be used.
    Error,
}

impl Finding {
    pub(super) fn warning(code: &'static str, text: impl AsRef<str>) -> Self {
        let (level, text) = (Level::Warning, peer::visible(text.as_ref()));
        Self { level, code, text }
    }

    pub(super) fn error(code: &'static str, text: impl AsRef<str>) -> Self {
        let (level, text) = (Level::Error, peer::visible(text.as_ref()));
        Self { level, code, text }
    }
}

pub(crate) fn timestamp(time: OffsetDateTime) -> String {
    // A year beyond 9999 has no such text.
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

fn rfc3339<S: Serializer>(
    time: &OffsetDateTime,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(&timestamp(*time))
}

fn rfc3339_or_null<S: Serializer>(
    time: &Option<OffsetDateTime>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    match time {
        Some(time) => rfc3339(time, serializer),
        None => serializer.serialize_none(),
    }
}
