//! The keyspace `system`: what it may hold, and what follows from it.
//!
//! | key | value (JSON) |
//! | --- | --- |
//! | `access/NAME` | a [`Rule`] |
//! | `roles/NAME` | a [`Role`] |
//! | `users/NAME` | a [`User`]: that there is one, and whether it may log in. Its password is in `system.secrets` |
//! | `quotas/NAME` | a [`Quota`] |
//! | `tokens/ID` | a [`TokenRecord`]: what a token that was minted may do. Put by the server alone; removed, it is revoked |
//!
//! A commit to it is checked as a whole before it is made: each record must be one, and somebody must be able to change
//! the rules afterwards ([`super::lockout`]). What is there nevertheless and cannot be read (a newer version's) gives nothing to anybody, and a
//! quota limits nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use storage_protocol::{Key, Lifetime, Operation, Result, StorageError};

use super::Principal;
use super::quotas::{Quota, QuotaSet};
use super::rules::{Origin, Role, RoleName, Rule, RuleSet};
use super::text::quoted_key;
use crate::config::{NamedRole, ServerConfig};

const ACCESS: &str = "access/";
const ROLES: &str = "roles/";
const USERS: &str = "users/";
const QUOTAS: &str = "quotas/";
const TOKENS: &str = "tokens/";
/// The longest name of a rule and of a quota, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// Rules, roles and quotas of the configuration, which no commit changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Configured {
    pub(crate) rules: Vec<Rule>,
    pub(crate) roles: Vec<NamedRole>,
    pub(crate) quotas: Vec<Quota>,
}

impl Configured {
    /// What a configuration says of it.
    pub(crate) fn of(config: &ServerConfig) -> Self {
        Self {
            rules: config.rules.clone(),
            roles: config.roles.clone(),
            quotas: config.quotas.clone(),
        }
    }

    /// They alone.
    pub(crate) fn rule_set(&self) -> RuleSet {
        Records::default().rule_set(self)
    }
}

/// A user: who may log in with a password.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct User {
    /// It may not log in, and what it minted is good for nothing.
    pub(crate) disabled: bool,
    /// When its password was set, in ms since 1970; rises each time. What was minted before is good for nothing.
    pub(crate) password_set: u64,
}

/// What a token may do, and by whom it was minted.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenRecord {
    /// The principal that minted it, which its bearer is.
    pub(crate) principal: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    /// What it may do of what its minter may; empty: all of that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) grants: Vec<Rule>,
    /// In seconds since 1970.
    pub(crate) issued: u64,
    /// In seconds since 1970.
    pub(crate) expires: u64,
    /// Where a user minted it, when its password had been set: with another one it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) password_set: Option<u64>,
    /// The token that it was minted with: it ends with that, and does no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    /// The certificate that it was minted with and those between it and the authority, in base64: it ends with that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) certificates: Vec<String>,
}

/// Records of a kind by their names; an error where a record is none.
type ByName<T> = Arc<BTreeMap<String, std::result::Result<T, String>>>;

/// What the keyspace holds, but for the tokens, which are many. Clones share what they hold until one of them changes it,
/// each kind by itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Records {
    rules: ByName<Rule>,
    roles: ByName<(RoleName, Role)>,
    users: Arc<BTreeMap<String, User>>,
    quotas: ByName<Quota>,
}

/// What a change of a record can change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applies {
    /// Rules, roles and quotas.
    Rules,
    Users,
    Nothing,
}

/// What a key of the keyspace names.
pub(super) enum Named<'a> {
    Rule(&'a str),
    Role(&'a str),
    User(&'a str),
    Quota(&'a str),
    Token(&'a str),
}

impl<'a> Named<'a> {
    pub(super) fn of(key: &'a Key) -> Option<Self> {
        let text = std::str::from_utf8(key).ok()?;
        let is_good = |name: &str| !name.is_empty() && name.len() <= NAME_BYTES_MAX;
        if let Some(name) = text.strip_prefix(ACCESS) {
            return is_good(name).then_some(Self::Rule(name));
        }
        if let Some(name) = text.strip_prefix(QUOTAS) {
            return is_good(name).then_some(Self::Quota(name));
        }
        let (kind, rest): (fn(&'a str) -> Self, _) = if let Some(name) = text.strip_prefix(ROLES) {
            (Self::Role, name)
        } else if let Some(name) = text.strip_prefix(USERS) {
            (Self::User, name)
        } else {
            (Self::Token, text.strip_prefix(TOKENS)?)
        };
        Some(kind(rest))
    }
}

/// The key of a rule's record.
pub(crate) fn rule_key(name: &str) -> Key {
    Key::from(format!("{ACCESS}{name}"))
}

/// The key of a role's record.
pub(crate) fn role_key(name: &str) -> Key {
    Key::from(format!("{ROLES}{name}"))
}

/// The key of a user's record.
pub(crate) fn user_key(name: &str) -> Key {
    Key::from(format!("{USERS}{name}"))
}

/// The key of a quota's record.
pub(crate) fn quota_key(name: &str) -> Key {
    Key::from(format!("{QUOTAS}{name}"))
}

/// The key of a token's record.
pub(crate) fn token_key(id: &str) -> Key {
    Key::from(format!("{TOKENS}{id}"))
}

/// The id of the token whose record this key is of.
pub(crate) fn token_id(key: &Key) -> Option<&str> {
    match Named::of(key)? {
        Named::Token(id) => Some(id),
        _ => None,
    }
}

/// Whether the record with this key is a user's.
pub(super) fn is_user_key(key: &Key) -> bool {
    matches!(Named::of(key), Some(Named::User(_)))
}

/// Whether a user may have this name.
///
/// # Errors
/// What is wrong with it, for whoever chose it.
pub(crate) fn check_user_name(name: &str) -> std::result::Result<(), String> {
    Principal::user(name).map_err(|error| error.to_string())?;
    if [".", ".."].contains(&name) {
        return Err(format!(
            "the user's name is \"{name}\", which paths leave out: nothing could be asked about that user"
        ));
    }
    match name.chars().find(|c| [':', '/', '*'].contains(c)) {
        None => Ok(()),
        Some('*') => Err(
            "the user's name has a \"*\", which stands for any characters where rules name principals".to_owned(),
        ),
        // RFC 7617: the password begins behind the first colon.
        Some(':') => Err(
            "the user's name has a colon, and with one nobody can log in by HTTP's Basic authentication".to_owned(),
        ),
        Some(_) => Err("the user's name has a \"/\", which keys and paths are divided by".to_owned()),
    }
}

/// A record that cannot be read is of a user who may not log in.
pub(super) fn user_of(json: &[u8]) -> std::result::Result<User, String> {
    serde_json::from_slice(json).map_err(|error| format!("no record of a user: {error}"))
}

fn role_of(name: &str, json: &[u8]) -> std::result::Result<(RoleName, Role), String> {
    let name: RoleName = name.parse().map_err(|error| format!("{error}"))?;
    let role = Role::from_json(json).map_err(|error| format!("{error}"))?;
    Ok((name, role))
}

impl Records {
    /// Takes what a key holds now; `None`: it is gone. What that can change.
    pub(crate) fn apply(&mut self, key: &Key, value: Option<&[u8]>) -> Applies {
        match (Named::of(key), value) {
            (Some(Named::Rule(name)), Some(json)) => {
                let rule = Rule::from_json(json).map_err(|error| error.to_string());
                Arc::make_mut(&mut self.rules).insert(name.to_owned(), rule);
            }
            (Some(Named::Rule(name)), None) => {
                Arc::make_mut(&mut self.rules).remove(name);
            }
            (Some(Named::Role(name)), Some(json)) => {
                let role = role_of(name, json);
                Arc::make_mut(&mut self.roles).insert(name.to_owned(), role);
            }
            (Some(Named::Role(name)), None) => {
                Arc::make_mut(&mut self.roles).remove(name);
            }
            (Some(Named::Quota(name)), Some(json)) => {
                let quota = Quota::from_json(json).map_err(|error| error.to_string());
                Arc::make_mut(&mut self.quotas).insert(name.to_owned(), quota);
            }
            (Some(Named::Quota(name)), None) => {
                Arc::make_mut(&mut self.quotas).remove(name);
            }
            (Some(Named::User(name)), Some(json)) => {
                let unreadable = |_| User {
                    disabled: true,
                    password_set: 0,
                };
                let user = user_of(json).unwrap_or_else(unreadable);
                Arc::make_mut(&mut self.users).insert(name.to_owned(), user);
                return Applies::Users;
            }
            (Some(Named::User(name)), None) => {
                Arc::make_mut(&mut self.users).remove(name);
                return Applies::Users;
            }
            (Some(Named::Token(_)) | None, _) => return Applies::Nothing,
        }
        Applies::Rules
    }

    /// The user of this name.
    pub(crate) fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// The roles that can be read, by name.
    pub(crate) fn roles(&self) -> impl Iterator<Item = &(RoleName, Role)> {
        self.roles.values().filter_map(|role| role.as_ref().ok())
    }

    /// All users, by name.
    pub(crate) fn users(&self) -> impl Iterator<Item = (&String, &User)> {
        self.users.iter()
    }

    /// All rules and roles together.
    pub(crate) fn rule_set(&self, configured: &Configured) -> RuleSet {
        let mut set = RuleSet::builder();
        for (place, rule) in configured.rules.iter().enumerate() {
            set.add_rule(Origin::Config(place), rule.clone());
        }
        for (place, NamedRole { name, role }) in configured.roles.iter().enumerate() {
            set.add_role(Origin::Config(place), name.clone(), role);
        }
        for (name, rule) in self.rules.iter() {
            let origin = Origin::Stored(name.clone());
            match rule {
                Ok(rule) => set.add_rule(origin, rule.clone()),
                Err(reason) => set.add_unreadable_rule(origin, reason),
            }
        }
        for (name, role) in self.roles.iter() {
            if let Ok((role_name, role)) = role {
                set.add_role(Origin::Stored(name.clone()), role_name.clone(), role);
            }
        }
        set.build()
    }

    /// All quotas together, by the roles of these rules.
    pub(crate) fn quota_set(&self, configured: &Configured, rules: &RuleSet) -> QuotaSet {
        let configured = configured.quotas.iter().enumerate();
        let configured =
            configured.map(|(place, quota)| (Origin::Config(place), Ok(quota.clone())));
        let stored = self.quotas.iter();
        let stored = stored.map(|(name, quota)| (Origin::Stored(name.clone()), quota.clone()));
        QuotaSet::new(configured.chain(stored), rules)
    }
}

/// Whether one operation leaves a record that is one.
pub(super) fn check_operation(operation: &Operation) -> Result<()> {
    let shown = quoted_key(operation.key());
    let wrong = |what: String| Err(StorageError::invalid(format!("key {shown}: {what}")));
    let Some(named) = Named::of(operation.key()) else {
        return wrong(format!(
            "the keyspace system has {ACCESS}NAME for rules, {ROLES}NAME for roles, {USERS}NAME for users, {QUOTAS}NAME for \
             quotas and {TOKENS}ID for tokens, and nothing else; a name of a rule or a quota has 1 to {NAME_BYTES_MAX} bytes"
        ));
    };
    let (value, lifetime) = match operation {
        Operation::Put {
            value, lifetime, ..
        } => (value, lifetime),
        Operation::Remove { .. } => return Ok(()),
        Operation::PutStamped { .. } | Operation::Signal { .. } => {
            return wrong("records are put and removed, nothing else".to_owned());
        }
    };
    if *lifetime != Lifetime::Forever {
        return wrong("a record of the keyspace system lives for ever".to_owned());
    }
    let read = match named {
        Named::Rule(_) => Rule::from_json(value).map(drop).map_err(|e| e.to_string()),
        Named::Role(name) => role_of(name, value).map(drop),
        Named::User(name) => check_user_name(name).and_then(|()| user_of(value).map(drop)),
        Named::Quota(_) => Quota::from_json(value).map(drop).map_err(|e| e.to_string()),
        Named::Token(_) => Err("a token is minted, and can be removed; it is not put".to_owned()),
    };
    read.or_else(wrong)
}

#[cfg(test)]
mod tests {
    use storage_protocol::Batch;

    use super::*;
    use crate::auth::lockout::Lockout;

    fn rule(json: &str) -> Batch {
        Batch::new().put("access/one", json.to_owned())
    }

    const ADMIN: &str = r#"{"principal":"cert:boss","keyspace":"system","allow":["admin"]}"#;
    const OTHER: &str = r#"{"principal":"cert:a","keyspace":"model","allow":["read"]}"#;

    fn refused(records: &Records, batch: &Batch) -> String {
        let checked = records.check(batch, &Configured::default(), Lockout::Refused);
        let error = checked.unwrap_err();
        assert!(matches!(error, StorageError::InvalidArgument { .. }));
        error.to_string()
    }

    fn with(batch: Batch) -> Records {
        let mut records = Records::default();
        for operation in batch.operations {
            records.apply(operation.key(), Some(operation.value()));
        }
        records
    }

    #[test]
    fn what_is_no_record_is_refused_by_name() {
        let records = with(rule(ADMIN));
        let put = |key: &'static str, value: &'static str| Batch::new().put(key, value);
        for (batch, what) in [
            (put("access/", ADMIN), "access/NAME"),
            (put("other", "1"), "access/NAME"),
            (put("access/x", "{"), "access/x"),
            (
                put(
                    "access/x",
                    r#"{"principal":"a","keyspace":"b","allow":["reed"]}"#,
                ),
                "reed",
            ),
            (put("quotas/", "{}"), "quotas/NAME"),
            (put("quotas/x", ADMIN), "quotas/x"),
            (put("quotas/x", r#"{"principal":"a"}"#), "at least one of"),
            (put("roles/Big", r#"{"members":[]}"#), "roles/Big"),
            (put("roles/a", r#"{"members":["role:b"]}"#), "role:b"),
            (Batch::new().signal("access/x", "1"), "put and removed"),
            (
                Batch::new().put_stamped("access/x", ADMIN, Lifetime::Forever),
                "put and removed",
            ),
            (
                Batch::new().put_with("access/x", ADMIN, Lifetime::Session),
                "lives for ever",
            ),
        ] {
            let text = refused(&records, &batch);
            assert!(text.contains(what), "{text}");
        }
        let name = format!("access/{}", "x".repeat(257));
        assert!(refused(&records, &Batch::new().put(name, ADMIN)).contains("1 to 256 bytes"));
        for (name, what) in [
            ("", "empty"),
            ("a:b", "colon"),
            ("a/b", "\"/\""),
            ("a*b", "\"*\""),
            (".", "which paths leave out"),
            ("..", "which paths leave out"),
            ("a\nb", "control characters"),
            ("a\u{202e}b", "do not show"),
            (&"x".repeat(300), "longer than 256 bytes"),
        ] {
            let text = refused(&records, &Batch::new().put(format!("users/{name}"), "{}"));
            assert!(text.contains(what), "{text}");
        }
        let bytes = Batch::new().put("access/x", vec![0xff, 0xfe]);
        assert!(refused(&records, &bytes).contains("UTF-8"));
    }

    #[test]
    fn a_change_copies_nothing_of_the_other_kinds() {
        let mut records = with(rule(ADMIN).put("users/ann", "{}").put("users/bob", "{}"));
        let held = records.clone();
        let user = Batch::new().put("users/eve", "{}");
        records
            .check(&user, &Configured::default(), Lockout::Refused)
            .unwrap();
        assert!(Arc::ptr_eq(&records.users, &held.users));
        records.apply(&"access/two".into(), Some(OTHER.as_bytes()));
        assert!(Arc::ptr_eq(&records.users, &held.users));
        assert!(!Arc::ptr_eq(&records.rules, &held.rules));
        // Nobody else has the rules now: they are changed where they are.
        let place = Arc::as_ptr(&records.rules);
        records.apply(&"access/two".into(), None);
        assert_eq!(Arc::as_ptr(&records.rules), place);
        records.apply(&"users/eve".into(), Some(b"{}"));
        assert_eq!((records.users().count(), held.users().count()), (3, 2));
    }

    #[test]
    fn what_cannot_be_read_gives_nothing_and_closes_what_was_open() {
        let mut records = Records::default();
        assert!(!records.rule_set(&Configured::default()).has_rules());
        let new = Key::from_static(b"access/new");
        assert_eq!(records.apply(&new, Some(b"{\"a\":1}")), Applies::Rules);
        assert!(records.rule_set(&Configured::default()).has_rules());
        assert_eq!(records.apply(&new, None), Applies::Rules);
        // One that limits nothing is none.
        let quota = Key::from_static(b"quotas/new");
        let limits = |records: &Records| {
            let rules = RuleSet::default();
            let set = records.quota_set(&Configured::default(), &rules);
            (set.of_principal("cert:a").is_empty(), set.warnings().len())
        };
        let known = br#"{"principal":"*","sessions":1}"#;
        assert_eq!(records.apply(&quota, Some(known)), Applies::Rules);
        assert_eq!(limits(&records), (false, 0));
        let unknown = br#"{"principal":"*","sessions":1,"of_a_newer_version":2}"#;
        assert_eq!(records.apply(&quota, Some(unknown)), Applies::Rules);
        assert_eq!(limits(&records), (true, 1));
        assert_eq!(records.apply(&quota, None), Applies::Rules);
        assert_eq!(limits(&records), (true, 0));
        let newer = Key::from_static(b"of a newer version");
        assert_eq!(records.apply(&newer, Some(b"1")), Applies::Nothing);
        assert!(!records.rule_set(&Configured::default()).has_rules());
    }
}
