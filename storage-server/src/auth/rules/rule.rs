//! One access rule: whom it is for, which keys of which keyspaces, and what it gives.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

use super::error::{field, from_json, named};
use super::{KeyspaceKind, KeyspacePattern, Permission, Permissions, RuleError, Subject};
use crate::auth::text::quoted;

/// The longest prefix of a rule, in bytes.
pub(super) const PREFIX_BYTES_MAX: usize = 4096;

/// Gives permissions to principals. A record of JSON, or a table of TOML:
///
/// ```json
/// {"principal": "cert:robot-*", "keyspace": "model*", "prefix": "robots/", "allow": ["read", "watch"]}
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    #[serde(deserialize_with = "principal")]
    principal: Subject,
    #[serde(deserialize_with = "keyspace")]
    keyspace: KeyspacePattern,
    #[serde(
        default,
        deserialize_with = "prefix",
        skip_serializing_if = "String::is_empty"
    )]
    prefix: String,
    #[serde(deserialize_with = "allow")]
    allow: Permissions,
}

impl Rule {
    /// The longest prefix, in bytes.
    pub const PREFIX_BYTES_MAX: usize = PREFIX_BYTES_MAX;

    /// A rule for keys that begin with `prefix`: with an empty one, for all keys.
    ///
    /// # Errors
    /// [`RuleError::PrefixTooLong`] and [`RuleError::NoPermission`].
    pub fn new(
        principal: Subject,
        keyspace: KeyspacePattern,
        prefix: &str,
        allow: Permissions,
    ) -> Result<Self, RuleError> {
        if allow.is_empty() {
            return Err(RuleError::NoPermission);
        }
        Ok(Self {
            principal,
            keyspace,
            prefix: check_prefix(prefix.to_owned())?,
            allow,
        })
    }

    /// Reads the value of a stored rule.
    ///
    /// # Errors
    /// [`RuleError`]: it is too long, not UTF-8, not JSON or no rule.
    pub fn from_json(json: &[u8]) -> Result<Self, RuleError> {
        from_json(json)
    }

    /// Whom it is for.
    #[must_use]
    pub fn principal(&self) -> &Subject {
        &self.principal
    }

    /// Which keyspaces it is for.
    #[must_use]
    pub fn keyspace(&self) -> &KeyspacePattern {
        &self.keyspace
    }

    /// What the keys that it is for begin with; empty: all keys.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What it says that it gives. Not all of that counts: see [`Rule::gives`].
    #[must_use]
    pub fn allow(&self) -> Permissions {
        self.allow
    }

    /// Whether it gives this permission on this key, to those whom it is for, in a keyspace that it is for and that is
    /// of this kind. The key does not matter for `admin`, nor in the server's own keyspaces: there `admin` is all that
    /// counts, and it counts for all keys.
    #[must_use]
    pub fn gives(&self, kind: KeyspaceKind, permission: Permission, key: &[u8]) -> bool {
        match (kind, permission) {
            (KeyspaceKind::Secrets, _) => false,
            (KeyspaceKind::System, _) | (_, Permission::Admin) => self.gives_admin(),
            (KeyspaceKind::Ordinary, permission) => {
                self.allow.contains(permission) && key.starts_with(self.prefix.as_bytes())
            }
        }
    }

    /// Whether it gives `admin`, which it cannot give on a part of the keys.
    pub(super) fn gives_admin(&self) -> bool {
        self.allow.contains(Permission::Admin) && self.prefix.is_empty()
    }

    /// What it gives in keyspaces of this kind on the keys with its prefix.
    pub(super) fn given(&self, kind: KeyspaceKind) -> Permissions {
        let key = self.prefix.as_bytes();
        let all = Permission::ALL.into_iter();
        all.filter(|permission| self.gives(kind, *permission, key))
            .collect()
    }
}

/// As in a sentence: `"cert:robot-*" is allowed read and watch on keys with prefix "robots/" in keyspace "model*"`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let principal = quoted(&self.principal.to_string());
        let keyspace = quoted(self.keyspace.as_str());
        write!(f, "{principal} is allowed {} on ", self.allow)?;
        match self.prefix.as_str() {
            "" => f.write_str("all keys")?,
            prefix => write!(f, "keys with prefix {}", quoted(prefix))?,
        }
        write!(f, " in keyspace {keyspace}")
    }
}

fn check_prefix(prefix: String) -> Result<String, RuleError> {
    if prefix.len() > PREFIX_BYTES_MAX {
        return Err(RuleError::PrefixTooLong {
            shown: quoted(&prefix),
        });
    }
    Ok(prefix)
}

fn principal<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Subject, D::Error> {
    field("principal", deserializer)
}

fn keyspace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KeyspacePattern, D::Error> {
    field("keyspace", deserializer)
}

fn prefix<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    const NAME: &str = "prefix";
    check_prefix(field(NAME, deserializer)?).map_err(|error| named(NAME, error))
}

fn allow<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Permissions, D::Error> {
    field("allow", deserializer)
}

#[cfg(test)]
mod tests {
    use super::super::RECORD_BYTES_MAX;
    use super::Permission::{Admin, Read, Watch, Write};
    use super::*;

    fn parse(json: &str) -> Result<Rule, RuleError> {
        Rule::from_json(json.as_bytes())
    }

    fn rule(prefix: &str, allow: &[Permission]) -> Rule {
        let (principal, keyspace) = ("*".parse().unwrap(), "*".parse().unwrap());
        Rule::new(principal, keyspace, prefix, allow.iter().copied().collect()).unwrap()
    }

    #[test]
    fn a_rule_is_a_record_with_four_fields() {
        let json = r#"{"principal":"role:ops","keyspace":"model*","prefix":"robots/","allow":["read","watch"]}"#;
        let rule = parse(json).unwrap();
        assert_eq!(rule.principal().to_string(), "role:ops");
        assert_eq!(rule.keyspace().as_str(), "model*");
        assert_eq!(rule.prefix(), "robots/");
        assert_eq!(rule.allow(), [Read, Watch].into_iter().collect());
        assert_eq!(serde_json::to_string(&rule).unwrap(), json);
        let short = r#" {"allow": ["write"], "keyspace": "a", "principal": "*"}"#;
        assert_eq!(parse(short).unwrap().prefix(), "");
        let binary = r#"{"principal":"*","keyspace":"a","prefix":"\u0000ä","allow":["read"]}"#;
        assert_eq!(parse(binary).unwrap().prefix(), "\0ä");
    }

    #[test]
    fn a_rule_is_a_table_of_toml_and_its_errors_name_the_field_there_too() {
        let toml = "principal = \"cert:a\"\nkeyspace = \"model\"\nallow = [\"admin\"]\n";
        let rule: Rule = toml::from_str(toml).unwrap();
        assert_eq!(rule.allow(), [Admin].into_iter().collect());
        assert_eq!(toml::to_string(&rule).unwrap(), toml);
        for (bad, expected) in [
            (
                toml.replace("admin", "all"),
                "allow: \"all\" is no permission",
            ),
            (
                toml.replace("\"cert:a\"", "3"),
                "principal: invalid type: integer `3`, expected a string",
            ),
            (toml.replace("model", ""), "keyspace: \"\" is no pattern"),
        ] {
            let error = toml::from_str::<Rule>(&bad).unwrap_err();
            let message = error.message();
            assert!(
                message.starts_with(expected) && !message.ends_with('\n'),
                "{message}"
            );
            assert!(error.span().is_some());
        }
    }

    /// A good record with a part of it replaced is refused in words that begin so.
    #[track_caller]
    fn assert_refused(part: &str, by: &str, expected: &str) {
        let good = r#"{"principal": "cert:a", "keyspace": "k", "prefix": "p", "allow": ["read"]}"#;
        parse(good).unwrap();
        assert!(good.contains(part));
        let error = parse(&good.replacen(part, by, 1)).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(error.matches(" at line 1 column ").count(), 1, "{error}");
    }

    #[test]
    fn values_that_are_not_allowed_are_told_with_their_field_and_what_is() {
        let pattern = r#"principal: "\u{7}" is no pattern; allowed are 1 to 256 bytes"#;
        assert_refused("cert:a", "\\u0007", pattern);
        let name = r#"principal: "A\n" is no name of a role; allowed is the form [a-z0-9]"#;
        assert_refused("cert:a", "role:A\\n", name);
        let keyspace = r#"keyspace: "" is no pattern; allowed are"#;
        assert_refused("\"k\"", "\"\"", keyspace);
        let word = r#"allow: "reed\u{1b}" is no permission; allowed are "read", "write""#;
        assert_refused("\"read\"", "\"read\", \"reed\\u001b\"", word);
        let empty = "allow: [] gives nothing; at least one of \"read\"";
        assert_refused("[\"read\"]", "[]", empty);
    }

    #[test]
    fn values_of_a_wrong_type_are_told_with_their_field() {
        let principal = "principal: invalid type: integer `7`, expected a string";
        assert_refused("\"cert:a\"", "7", principal);
        let keyspace = "keyspace: invalid type: null, expected a string";
        assert_refused("\"k\"", "null", keyspace);
        let prefix = "prefix: invalid type: sequence, expected a string";
        assert_refused("\"p\"", "[]", prefix);
        assert_refused("\"p\"", "null", "prefix: invalid type: null");
        let allow = "allow: invalid type: string \"read\", expected a sequence";
        assert_refused("[\"read\"]", "\"read\"", allow);
    }

    #[test]
    fn fields_that_are_unknown_missing_or_there_twice_are_told() {
        let unknown = "unknown field `alow`, expected one of `principal`, `keyspace`";
        assert_refused("\"allow\"", "\"alow\"", unknown);
        let unseen = r"unknown field `a\n\u{202e}b`";
        assert_refused("\"prefix\"", r#""a\n\u202eb""#, unseen);
        assert_refused(
            "\"principal\": \"cert:a\",",
            "",
            "missing field `principal`",
        );
        assert_refused("\"keyspace\": \"k\",", "", "missing field `keyspace`");
        assert_refused(", \"allow\": [\"read\"]", "", "missing field `allow`");
        assert_refused(
            "\"keyspace\"",
            "\"principal\"",
            "duplicate field `principal`",
        );
    }

    #[test]
    fn bytes_that_are_no_record_are_refused() {
        let from_bytes = |bytes: &[u8]| Rule::from_json(bytes).unwrap_err();
        assert_eq!(from_bytes(b"{\"a\xff"), RuleError::NotUtf8 { place: 3 });
        assert_eq!(from_bytes(b""), RuleError::NotObject);
        assert_eq!(
            from_bytes(br#"["*", "*", "", ["admin"]]"#),
            RuleError::NotObject
        );
        let deep = from_bytes("{\"allow\":".repeat(100_000).as_bytes()).to_string();
        assert!(
            deep.starts_with("allow: invalid type: map, expected a sequence"),
            "{deep}"
        );
        let long = vec![b' '; RECORD_BYTES_MAX + 1];
        assert_eq!(from_bytes(&long), RuleError::TooLong { bytes: long.len() });
        let trailing = from_bytes(br#"{"principal":"*","keyspace":"*","allow":["read"]}{}"#);
        assert!(trailing.to_string().starts_with("trailing characters"));
        // Messages stay short, however long the names of others.
        let name = format!("{{\"{}\": 1}}", "x".repeat(10_000));
        assert!(from_bytes(name.as_bytes()).to_string().len() < 400);
    }

    #[test]
    fn a_prefix_has_4096_bytes_at_most() {
        let json = |prefix: &str| {
            format!(r#"{{"principal":"*","keyspace":"*","prefix":"{prefix}","allow":["read"]}}"#)
        };
        assert!(parse(&json(&"ä".repeat(2048))).is_ok());
        let error = parse(&json(&"ä".repeat(2049))).unwrap_err().to_string();
        assert!(error.starts_with("prefix: \"ä"), "{error}");
        assert!(
            error.contains("(4098 bytes) is too long; allowed are at most 4096 bytes"),
            "{error}"
        );
        let [principal, keyspace] = ["*", "*"];
        let built = Rule::new(
            principal.parse().unwrap(),
            keyspace.parse().unwrap(),
            &"x".repeat(4097),
            Permissions::all(),
        );
        assert!(matches!(built, Err(RuleError::PrefixTooLong { .. })));
        let empty = Rule::new(
            principal.parse().unwrap(),
            keyspace.parse().unwrap(),
            "",
            Permissions::NONE,
        );
        assert_eq!(empty, Err(RuleError::NoPermission));
    }

    #[test]
    fn in_ordinary_keyspaces_it_gives_what_it_says_on_keys_with_its_prefix() {
        let rule = rule("a/", &[Read, Admin]);
        let gives = |permission, key: &[u8]| rule.gives(KeyspaceKind::Ordinary, permission, key);
        assert!(gives(Read, b"a/") && gives(Read, b"a/b"));
        assert!(!gives(Read, b"a") && !gives(Read, b"") && !gives(Read, b"b/"));
        assert!(!gives(Write, b"a/b") && !gives(Watch, b"a/b"));
        assert!(
            !gives(Admin, b"a/b"),
            "admin is not given on a part of the keys"
        );
    }

    #[test]
    fn admin_needs_the_empty_prefix_and_gives_nothing_else_in_ordinary_keyspaces() {
        let rule = rule("", &[Admin]);
        assert!(rule.gives(KeyspaceKind::Ordinary, Admin, b"any"));
        assert!(!rule.gives(KeyspaceKind::Ordinary, Read, b"any"));
    }

    #[test]
    fn in_the_servers_own_keyspaces_admin_gives_everything_and_all_else_nothing() {
        for permission in Permission::ALL {
            let gives = |rule: &Rule| rule.gives(KeyspaceKind::System, permission, b"a/b");
            assert!(gives(&rule("", &[Admin])));
            assert!(!gives(&rule("", &[Read, Write, Watch])));
            assert!(!gives(&rule("a", &[Admin, Read, Write, Watch])));
            assert!(!rule("", &Permission::ALL).gives(KeyspaceKind::Secrets, permission, b"a/b"));
        }
    }

    #[test]
    fn it_reads_as_a_sentence() {
        assert_eq!(
            rule("a\n", &[Read, Watch]).to_string(),
            r#""*" is allowed read and watch on keys with prefix "a\n" in keyspace "*""#
        );
        assert_eq!(
            rule("", &[Write]).to_string(),
            r#""*" is allowed write on all keys in keyspace "*""#
        );
    }
}
