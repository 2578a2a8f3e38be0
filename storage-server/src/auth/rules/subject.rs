//! Whom a rule is for: the principals that a pattern matches, or the members of a role.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{RoleName, RuleError};
use crate::auth::pattern::Pattern;

/// Of a peer that proved nothing.
pub(super) const ANONYMOUS: &str = "anonymous";
/// What principals with a name begin with.
const CERTIFICATE: &str = "cert:";
const USER: &str = "user:";
/// What a role is written with.
const ROLE: &str = "role:";

/// Whom a rule is for. Written `role:NAME`, or as a [`Pattern`] of principals (`cert:robot-*`, `user:ann`,
/// `anonymous`). Made by parsing only, so that it is read again as it was meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subject(Kind);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Kind {
    /// Principals by their texts; not beginning with `role:`.
    Principals(Pattern),
    /// The members of the role with exactly this name.
    Role(RoleName),
}

impl Subject {
    /// The pattern of the principals, if it is one.
    #[must_use]
    pub fn pattern(&self) -> Option<&Pattern> {
        match &self.0 {
            Kind::Principals(pattern) => Some(pattern),
            Kind::Role(_) => None,
        }
    }

    /// The name of the role, if it is one.
    #[must_use]
    pub fn role(&self) -> Option<&RoleName> {
        match &self.0 {
            Kind::Principals(_) => None,
            Kind::Role(name) => Some(name),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Principals(pattern) => pattern.fmt(f),
            Kind::Role(name) => write!(f, "{ROLE}{name}"),
        }
    }
}

impl FromStr for Subject {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let kind = match text.strip_prefix(ROLE) {
            Some(name) => Kind::Role(name.parse()?),
            None => Kind::Principals(Pattern::parse(text)?),
        };
        Ok(Self(kind))
    }
}

impl TryFrom<String> for Subject {
    type Error = RuleError;

    fn try_from(text: String) -> Result<Self, RuleError> {
        text.parse()
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> Self {
        subject.to_string()
    }
}

/// Whether a member of a role was written as a role.
pub(super) fn names_role(member: &Pattern) -> bool {
    member.as_str().starts_with(ROLE)
}

/// Whether there can be a principal that the pattern matches.
pub(in crate::auth) fn matches_any_principal(pattern: &Pattern) -> bool {
    matches_beside_users(pattern) || may_be(pattern, USER)
}

/// The same of those that are no users: anybody may have a certificate with any name.
pub(in crate::auth) fn matches_beside_users(pattern: &Pattern) -> bool {
    may_be(pattern, CERTIFICATE) || pattern.matches(ANONYMOUS)
}

/// Whether the pattern matches a principal of this kind.
fn may_be(pattern: &Pattern, kind: &str) -> bool {
    let head = pattern.head();
    match head.strip_prefix(kind) {
        // A principal of this kind has a name behind it, for which a `*` can stand.
        Some(name) => !name.is_empty() || pattern.has_wildcard(),
        None => pattern.has_wildcard() && kind.starts_with(head),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_told_from_a_pattern_by_its_beginning() {
        for (text, role) in [
            ("role:ops", Some("ops")),
            ("cert:role:ops", None),
            ("roles", None),
            ("role*", None),
            ("*", None),
        ] {
            let subject: Subject = text.parse().unwrap();
            assert_eq!(subject.role().map(RoleName::as_str), role, "{text}");
            let pattern = subject.pattern().map(Pattern::as_str);
            assert_eq!(pattern, role.is_none().then_some(text));
            assert_eq!(subject.to_string(), text);
        }
        for bad in ["role:", "role:*", "role:Ops", "role:a b"] {
            let error = bad.parse::<Subject>().unwrap_err().to_string();
            let name = bad.strip_prefix("role:").unwrap();
            assert!(
                error.starts_with(&format!("{name:?} is no name of a role")),
                "{error}"
            );
        }
        let error = "".parse::<Subject>().unwrap_err().to_string();
        assert!(error.contains("is no pattern"), "{error}");
    }

    #[test]
    fn patterns_that_match_no_principal() {
        let good = [
            "*",
            "**",
            "c*",
            "cert*",
            "cert:*",
            "cert:a",
            "cert:**",
            "*a",
            "user:ann",
            "u*n",
            "anonymous",
            "anon*",
            "*s",
            "a*s",
            "cert:a*",
            "ce*rt:",
            "cert:*a",
        ];
        for text in good {
            assert!(
                matches_any_principal(&Pattern::parse(text).unwrap()),
                "{text}"
            );
        }
        let bad = [
            "cert:",
            "user:",
            "cert",
            "robot-*",
            "Cert:a",
            "group:*",
            "server",
            "anonymous2",
            "anonymous:*",
            "certs*",
            "ann",
        ];
        for text in bad {
            assert!(
                !matches_any_principal(&Pattern::parse(text).unwrap()),
                "{text}"
            );
        }
    }
}
