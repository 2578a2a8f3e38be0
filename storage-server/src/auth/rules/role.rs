//! Roles: names for principals, so that rules need not be written anew for each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use super::RuleError;
use super::error::{field, from_json, named};
use super::subject::names_role;
use crate::auth::pattern::Pattern;
use crate::auth::text::quoted;

/// The checked name of a role: `[a-z0-9][a-z0-9._-]{0,62}`. Written as text, in serde too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct RoleName(String);

impl RoleName {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 63;

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RoleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for RoleName {
    type Err = RuleError;

    fn from_str(name: &str) -> Result<Self, RuleError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let is_good = name.len() <= Self::BYTES_MAX
            && name.bytes().next().is_some_and(plain)
            && name
                .bytes()
                .all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'));
        let error = || RuleError::RoleName {
            shown: quoted(name),
        };
        is_good.then(|| Self(name.to_owned())).ok_or_else(error)
    }
}

impl TryFrom<String> for RoleName {
    type Error = RuleError;

    fn try_from(name: String) -> Result<Self, RuleError> {
        name.parse()
    }
}

impl From<RoleName> for String {
    fn from(name: RoleName) -> Self {
        name.0
    }
}

/// Who has a role: the principals that one of its patterns matches. Its name is not in it. A record of JSON, or a table
/// of TOML, with the one field `members`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Role {
    #[serde(deserialize_with = "members")]
    members: Vec<Pattern>,
}

impl Role {
    /// Of these members, or of none.
    ///
    /// # Errors
    /// [`RuleError::NestedRole`]: a member begins with `role:`.
    pub fn new(members: Vec<Pattern>) -> Result<Self, RuleError> {
        match members.iter().find(|member| names_role(member)) {
            None => Ok(Self { members }),
            Some(role) => Err(RuleError::NestedRole {
                shown: quoted(role.as_str()),
            }),
        }
    }

    /// Reads the value of a stored role.
    ///
    /// # Errors
    /// [`RuleError`]: it is too long, not UTF-8, not JSON or no role.
    pub fn from_json(json: &[u8]) -> Result<Self, RuleError> {
        from_json(json)
    }

    /// Patterns of principals.
    #[must_use]
    pub fn members(&self) -> &[Pattern] {
        &self.members
    }
}

fn members<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Pattern>, D::Error> {
    const NAME: &str = "members";
    let role = Role::new(field(NAME, deserializer)?);
    role.map(|role| role.members)
        .map_err(|error| named(NAME, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["a", "0", "ops", "ops.night-shift_2", &"x".repeat(63)] {
            assert_eq!(good.parse::<RoleName>().unwrap().as_str(), good);
        }
        for bad in [
            "",
            "Ops",
            ".a",
            "-a",
            "_a",
            "a b",
            "a/b",
            "ä",
            "a*",
            &"x".repeat(64),
        ] {
            let error = bad.parse::<RoleName>().unwrap_err().to_string();
            assert!(
                error.starts_with(&format!("{bad:?} is no name of a role")),
                "{error}"
            );
            assert!(error.contains("[a-z0-9][a-z0-9._-]{0,62}"), "{error}");
        }
    }

    #[test]
    fn a_role_is_a_record_with_members() {
        let role = Role::from_json(br#"{"members": ["cert:robot-*", "user:ann"]}"#).unwrap();
        let members: Vec<&str> = role.members().iter().map(Pattern::as_str).collect();
        assert_eq!(members, ["cert:robot-*", "user:ann"]);
        let written = serde_json::to_string(&role).unwrap();
        assert_eq!(written, r#"{"members":["cert:robot-*","user:ann"]}"#);
        assert_eq!(Role::from_json(written.as_bytes()).unwrap(), role);
        assert!(
            Role::from_json(br#"{"members": []}"#)
                .unwrap()
                .members()
                .is_empty()
        );
    }

    #[test]
    fn records_that_are_no_role_are_refused_with_the_field_and_what_is_allowed() {
        for (json, expected) in [
            (
                r#"{"members": ["role:a"]}"#,
                r#"members: "role:a" is a role; allowed are patterns of principals"#,
            ),
            (r#"{"members": ["a", ""]}"#, r#"members: "" is no pattern"#),
            (
                r#"{"members": ["\u0007"]}"#,
                r#"members: "\u{7}" is no pattern"#,
            ),
            (
                r#"{"members": "a"}"#,
                "members: invalid type: string \"a\", expected a sequence",
            ),
            (r#"{}"#, "missing field `members`"),
            (
                r#"{"member": []}"#,
                "unknown field `member`, expected `members`",
            ),
            (
                r#"{"members": [], "members": []}"#,
                "duplicate field `members`",
            ),
            (r#"{"members": []} x"#, "trailing characters"),
            ("{", "EOF"),
            (r#"[["a"]]"#, "the record is no object of JSON"),
            ("", "the record is no object of JSON"),
        ] {
            let error = Role::from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{json}: {error}");
        }
    }

    #[test]
    fn roles_are_told_by_name_in_a_map() {
        let json = r#"{"ops": {"members": ["user:ann"]}}"#;
        let roles: std::collections::BTreeMap<RoleName, Role> = serde_json::from_str(json).unwrap();
        assert_eq!(
            serde_json::to_string(&roles).unwrap(),
            json.replace(": ", ":")
        );
        let error = serde_json::from_str::<std::collections::BTreeMap<RoleName, Role>>(
            r#"{"Ops": {"members": []}}"#,
        );
        assert!(
            error
                .unwrap_err()
                .to_string()
                .starts_with("\"Ops\" is no name of a role")
        );
    }
}
