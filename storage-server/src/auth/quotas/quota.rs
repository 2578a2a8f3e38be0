//! One quota: whom or what it is for, and its limits.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use storage_protocol::Keyspace;

use super::amount::Amount;
use super::{QuotaKind, QuotaLimits};
use crate::auth::rules::{KeyspaceKind, KeyspacePattern, RuleError, Subject};
use crate::auth::rules::{field, from_json};
use crate::auth::text::quoted;

/// Limits principals or keyspaces, each of them by itself. A record of JSON, or a table of TOML:
///
/// ```json
/// {"principal": "cert:robot-*", "commits_per_second": 100, "sessions": 10}
/// {"keyspace": "tenant-*", "bytes": 10000000000, "entries": 1000000}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Quota {
    target: QuotaTarget,
    limits: QuotaLimits,
}

/// What a quota is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum QuotaTarget {
    /// Each of these principals.
    Principal(Subject),
    /// Each of these keyspaces, whoever uses it.
    Keyspace(KeyspacePattern),
}

/// What is wrong with a quota as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum QuotaError {
    #[error("a quota is for one of \"principal\" and \"keyspace\", and this one names {0}")]
    Target(&'static str),
    #[error("a quota has at least one of {}", kinds(|_| true))]
    NoLimit,
    #[error("{kind}: {value} is no limit; allowed are 1 to {}", QuotaLimits::MAX)]
    Range { kind: QuotaKind, value: u64 },
    #[error(
        "{kind}: it is counted for keyspaces alone, since nobody knows which principal an entry is stored for; give each \
         tenant a keyspace, and the quota \"keyspace\" instead of \"principal\""
    )]
    OfKeyspaces { kind: QuotaKind },
}

/// The names of kinds, as in a sentence.
fn kinds(fits: fn(QuotaKind) -> bool) -> String {
    let names = QuotaKind::ALL.into_iter().filter(|kind| fits(*kind));
    let names: Vec<String> = names.map(|kind| format!("\"{kind}\"")).collect();
    names.join(", ")
}

impl Quota {
    /// Reads the value of a stored quota.
    ///
    /// # Errors
    /// [`RuleError`]: it is too long, not UTF-8, not JSON or no quota.
    pub fn from_json(json: &[u8]) -> Result<Self, RuleError> {
        from_json(json)
    }

    /// What it is for.
    #[must_use]
    pub fn target(&self) -> &QuotaTarget {
        &self.target
    }

    /// Its limits: at least one.
    #[must_use]
    pub fn limits(&self) -> &QuotaLimits {
        &self.limits
    }

    /// Whether it is for this keyspace. The server's own have no quotas.
    pub(super) fn is_for_keyspace(&self, keyspace: &Keyspace) -> bool {
        match &self.target {
            QuotaTarget::Keyspace(pattern) => {
                KeyspaceKind::of(keyspace) == KeyspaceKind::Ordinary && pattern.matches(keyspace)
            }
            QuotaTarget::Principal(_) => false,
        }
    }
}

/// As in a sentence: `principal "cert:robot-*" has at most 100 commits_per_second and 10 sessions`.
impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            QuotaTarget::Principal(subject) => {
                write!(f, "principal {}", quoted(&subject.to_string()))?;
            }
            QuotaTarget::Keyspace(pattern) => write!(f, "keyspace {}", quoted(pattern.as_str()))?,
        }
        f.write_str(" has at most ")?;
        for (place, (kind, limit)) in self.limits.iter().enumerate() {
            let comma = if place == 0 { "" } else { ", " };
            write!(f, "{comma}{limit} {kind}")?;
        }
        Ok(())
    }
}

/// A quota as a record has it. Its errors begin with the field, wherever one is at fault.
#[derive(Default, Deserialize, Serialize)]
#[serde(rename = "quota", default, deny_unknown_fields)]
struct Written {
    #[serde(
        deserialize_with = "principal",
        skip_serializing_if = "Option::is_none"
    )]
    principal: Option<Subject>,
    #[serde(deserialize_with = "keyspace", skip_serializing_if = "Option::is_none")]
    keyspace: Option<KeyspacePattern>,
    #[serde(deserialize_with = "bytes", skip_serializing_if = "Option::is_none")]
    bytes: Option<Amount>,
    #[serde(deserialize_with = "entries", skip_serializing_if = "Option::is_none")]
    entries: Option<Amount>,
    #[serde(
        deserialize_with = "commits_per_second",
        skip_serializing_if = "Option::is_none"
    )]
    commits_per_second: Option<Amount>,
    #[serde(
        deserialize_with = "bytes_per_second",
        skip_serializing_if = "Option::is_none"
    )]
    bytes_per_second: Option<Amount>,
    #[serde(deserialize_with = "sessions", skip_serializing_if = "Option::is_none")]
    sessions: Option<Amount>,
    #[serde(deserialize_with = "watches", skip_serializing_if = "Option::is_none")]
    watches: Option<Amount>,
}

macro_rules! fields {
    ($($name:ident: $type:ty),* $(,)?) => {
        $(fn $name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<$type>, D::Error> {
            field(stringify!($name), deserializer).map(Some)
        })*
    };
}

fields! {
    principal: Subject,
    keyspace: KeyspacePattern,
    bytes: Amount,
    entries: Amount,
    commits_per_second: Amount,
    bytes_per_second: Amount,
    sessions: Amount,
    watches: Amount,
}

impl Written {
    fn amounts(&mut self) -> [(QuotaKind, &mut Option<Amount>); QuotaKind::COUNT] {
        [
            (QuotaKind::Bytes, &mut self.bytes),
            (QuotaKind::Entries, &mut self.entries),
            (QuotaKind::CommitsPerSecond, &mut self.commits_per_second),
            (QuotaKind::BytesPerSecond, &mut self.bytes_per_second),
            (QuotaKind::Sessions, &mut self.sessions),
            (QuotaKind::Watches, &mut self.watches),
        ]
    }
}

impl TryFrom<Written> for Quota {
    type Error = QuotaError;

    fn try_from(mut written: Written) -> Result<Self, QuotaError> {
        let mut limits = QuotaLimits::default();
        for (kind, amount) in written.amounts() {
            let Some(Amount(value)) = *amount else {
                continue;
            };
            if value == 0 || value > QuotaLimits::MAX {
                return Err(QuotaError::Range { kind, value });
            }
            limits.set(kind, Some(value));
        }
        let target = match (written.principal, written.keyspace) {
            (Some(principal), None) => QuotaTarget::Principal(principal),
            (None, Some(keyspace)) => QuotaTarget::Keyspace(keyspace),
            (None, None) => return Err(QuotaError::Target("neither")),
            (Some(_), Some(_)) => return Err(QuotaError::Target("both")),
        };
        if limits.is_empty() {
            return Err(QuotaError::NoLimit);
        }
        let of_keyspaces = limits.iter().find(|(kind, _)| kind.is_of_keyspaces());
        match (&target, of_keyspaces) {
            (QuotaTarget::Principal(_), Some((kind, _))) => Err(QuotaError::OfKeyspaces { kind }),
            _ => Ok(Self { target, limits }),
        }
    }
}

impl From<Quota> for Written {
    fn from(quota: Quota) -> Self {
        let mut written = Self::default();
        for (kind, amount) in written.amounts() {
            *amount = quota.limits.get(kind).map(Amount);
        }
        match quota.target {
            QuotaTarget::Principal(principal) => written.principal = Some(principal),
            QuotaTarget::Keyspace(keyspace) => written.keyspace = Some(keyspace),
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Quota, RuleError> {
        Quota::from_json(json.as_bytes())
    }

    #[test]
    fn a_quota_is_a_record_of_what_it_is_for_and_its_limits() {
        let json = r#"{"principal":"role:robots","commits_per_second":100,"sessions":10}"#;
        let quota = parse(json).unwrap();
        assert_eq!(
            quota.target(),
            &QuotaTarget::Principal("role:robots".parse().unwrap())
        );
        assert_eq!(quota.limits().get(QuotaKind::CommitsPerSecond), Some(100));
        assert_eq!(quota.limits().get(QuotaKind::Watches), None);
        assert_eq!(serde_json::to_string(&quota).unwrap(), json);
        assert_eq!(
            quota.to_string(),
            "principal \"role:robots\" has at most 100 commits_per_second, 10 sessions"
        );
        let sized = parse(r#"{"keyspace":"t*","bytes":"10 GiB","entries":7}"#).unwrap();
        assert_eq!(sized.limits().get(QuotaKind::Bytes), Some(10 << 30));
        let toml = "keyspace = \"t*\"\nbytes = 10737418240\nentries = 7\n";
        assert_eq!(toml::from_str::<Quota>(toml).unwrap(), sized);
        assert_eq!(toml::to_string(&sized).unwrap(), toml);
    }

    #[test]
    fn what_is_wrong_with_a_quota_is_told_with_its_field() {
        for (json, expected) in [
            ("[]", "no object of JSON"),
            (r#"{"bytes":1}"#, "this one names neither"),
            (
                r#"{"principal":"a","keyspace":"b","bytes":1}"#,
                "this one names both",
            ),
            (
                r#"{"principal":"a"}"#,
                "at least one of \"bytes\", \"entries\", \"commits_per_second\"",
            ),
            (
                r#"{"principal":"a","sessions":0}"#,
                "sessions: 0 is no limit; allowed are 1 to 9007199254740992",
            ),
            (
                r#"{"keyspace":"a","bytes":9007199254740993}"#,
                "bytes: 9007199254740993 is no limit",
            ),
            (
                r#"{"principal":"a","sessions":-1}"#,
                "sessions: invalid value: integer `-1`",
            ),
            (
                r#"{"principal":"a","watches":1.5}"#,
                "watches: invalid type: floating point `1.5`",
            ),
            (
                r#"{"principal":"a","watches":null}"#,
                "watches: invalid type: null",
            ),
            (
                r#"{"keyspace":"a","bytes":"10 GB"}"#,
                "bytes: invalid value: string \"10 GB\"",
            ),
            (
                r#"{"principal":"","watches":1}"#,
                "principal: \"\" is no pattern",
            ),
            (r#"{"principal":"role:A","watches":1}"#, "no name of a role"),
            (
                r#"{"principal":"a","bytes":1}"#,
                "bytes: it is counted for keyspaces alone",
            ),
            (
                r#"{"principal":"a","entries":1}"#,
                "entries: it is counted for keyspaces alone",
            ),
            (
                r#"{"principal":"a","size":1}"#,
                "unknown field `size`, expected one of",
            ),
        ] {
            let error = parse(json).unwrap_err().to_string();
            assert!(error.contains(expected), "{json}: {error}");
        }
    }
}
