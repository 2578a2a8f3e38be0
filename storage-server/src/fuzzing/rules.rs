//! What the keyspace `system` and the configuration say of who may do what: read, written anew, and asked.
//!
//! An input is text: a line with a principal, a keyspace and a key, parted by spaces; then a record of `system` a line, its
//! key and its value parted by a space; then, behind a line `+++`, a configuration.

use std::fmt::Debug;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use storage_protocol::{Batch, Key, KeyRange, Keyspace};

use crate::auth::quotas::{Quota, QuotaSet};
use crate::auth::rules::{
    Cut, Grants, KeyspaceKind, Permission, Prefixes, Role, Rule, RuleSet, SECRETS, SYSTEM,
};
use crate::auth::system::{Applies, Configured, Records, TokenRecord, User};
use crate::auth::{Lockout, Principal};
use crate::config::{Document, ServerConfig};

/// See the module.
///
/// # Panics
/// If a promise does not hold.
pub fn check(input: &[u8]) {
    let mut parts = input.splitn(2, |byte| *byte == b'\n');
    let question = parts.next().unwrap_or_default();
    let rest = parts.next().unwrap_or_default();
    let end = rest.windows(5).position(|part| part == b"\n+++\n");
    let (records, toml) = match end {
        Some(end) => (&rest[..end], &rest[end + 5..]),
        None => (rest, &[][..]),
    };
    let configured = configured(&String::from_utf8_lossy(toml));
    let stored = records.split(|byte| *byte == b'\n').map(|line| {
        let space = line.iter().position(|byte| *byte == b' ');
        let (key, value) = line.split_at(space.unwrap_or(line.len()));
        (
            Key::copy_from_slice(key),
            value.get(1..).unwrap_or_default(),
        )
    });
    let stored: Vec<_> = stored.collect();
    for (key, value) in &stored {
        check_record(key, value);
    }
    check_commit(&stored, &configured);
    let mut records = Records::default();
    for (key, value) in &stored {
        records.apply(key, Some(value));
    }
    let rules = records.rule_set(&configured);
    let quotas = records.quota_set(&configured, &rules);
    check_answers(&Question::of(question), &rules, &quotas);
    for (key, _) in &stored {
        records.apply(key, None);
    }
    let left = records.rule_set(&configured);
    assert_eq!(
        shown(&left),
        shown(&configured.rule_set()),
        "what was removed holds on"
    );
}

fn shown(rules: &RuleSet) -> String {
    format!("{rules:?}")
}

/// What a configuration says; of one that cannot be read nothing.
fn configured(text: &str) -> Configured {
    let read = |text: &str| -> Option<ServerConfig> {
        let document = Document::parse(Path::new("fuzz.toml"), text).ok()?;
        document.read().ok()
    };
    let Some(config) = read(text) else {
        return Configured::default();
    };
    if config.validate(&["storage", "admin"]).is_ok() {
        let written = config.to_toml().expect("what is valid can be written");
        let again = read(&written).expect("what was written can be read");
        assert_eq!(again.to_toml().ok(), Some(written));
        assert_eq!(again.rules, config.rules);
        assert_eq!(again.quotas, config.quotas);
    }
    config.rules.iter().for_each(check_written);
    config.quotas.iter().for_each(check_written);
    for role in &config.roles {
        check_written(&role.role);
    }
    Configured::of(&config)
}

/// That a thing is the same after it was written and read, in both languages.
fn check_written<T: Serialize + DeserializeOwned + PartialEq + Debug>(thing: &T) {
    let json = serde_json::to_string(thing).expect("JSON");
    let read = serde_json::from_str::<T>(&json);
    assert_eq!(read.as_ref().ok(), Some(thing), "{json}: {read:?}");
    // TOML has no `null` and no numbers above i64; no record has either.
    let toml = toml::to_string(thing).expect("TOML");
    let read = toml::from_str::<T>(&toml);
    assert_eq!(read.as_ref().ok(), Some(thing), "{toml}: {read:?}");
}

/// A record by itself: what is read is written the same, and a commit takes it only if it is read.
fn check_record(key: &Key, value: &[u8]) {
    let rule = Rule::from_json(value).ok();
    rule.iter().for_each(check_written);
    let role = Role::from_json(value).ok();
    role.iter().for_each(check_written);
    let quota = Quota::from_json(value).ok();
    quota.iter().for_each(check_written);
    let user = serde_json::from_slice::<User>(value).ok();
    for user in user
        .iter()
        .filter(|user| i64::try_from(user.password_set).is_ok())
    {
        check_written(user);
    }
    if let Ok(token) = serde_json::from_slice::<TokenRecord>(value) {
        let json = serde_json::to_vec(&token).expect("JSON");
        let read = serde_json::from_slice::<TokenRecord>(&json);
        assert_eq!(read.ok(), Some(token));
    }
    let batch = Batch::new().put(key.clone(), value.to_vec());
    let taken = Records::default().check(&batch, &Configured::default(), Lockout::Forced);
    if taken.is_ok() {
        let text = std::str::from_utf8(key).expect("keys of system are text");
        let is_read = match text.split_once('/') {
            Some(("access", _)) => rule.is_some(),
            Some(("roles", _)) => role.is_some(),
            Some(("users", _)) => user.is_some(),
            Some(("quotas", _)) => quota.is_some(),
            _ => false,
        };
        assert!(is_read, "a commit takes {text}, which cannot be read");
    }
}

/// All records as one commit: if it is taken, every record of it can be read and somebody can change the rules.
fn check_commit(stored: &[(Key, &[u8])], configured: &Configured) {
    let put = |batch: Batch, (key, value): &(Key, &[u8])| batch.put(key.clone(), value.to_vec());
    let batch = stored.iter().fold(Batch::new(), put);
    let taken = Records::default().check(&batch, configured, Lockout::Refused);
    let forced = Records::default().check(&batch, configured, Lockout::Forced);
    if taken.is_err() {
        if forced.is_ok() {
            let mut after = Records::default();
            for (key, value) in stored {
                after.apply(key, Some(value));
            }
            assert!(
                !after.has_administrator(&after.rule_set(configured)),
                "refused: {taken:?}"
            );
        }
        return;
    }
    assert!(forced.is_ok(), "{forced:?}");
    let mut after = Records::default();
    let mut changes_rules = false;
    for (key, value) in stored {
        let applies = after.apply(key, Some(value));
        let is_quota = key.starts_with(b"quotas/");
        changes_rules |= applies == Applies::Rules && !is_quota;
    }
    let rules = after.rule_set(configured);
    let is_administered = after.has_administrator(&rules);
    assert!(!changes_rules || is_administered, "{rules:?}");
}

/// Who asks for what.
struct Question {
    principals: Vec<String>,
    keyspaces: Vec<Keyspace>,
    key: Vec<u8>,
}

impl Question {
    fn of(line: &[u8]) -> Self {
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let mut word = || words.next().unwrap_or_default();
        let principal = String::from_utf8_lossy(word()).into_owned();
        let keyspace = Keyspace::new(&String::from_utf8_lossy(word())).ok();
        let known = [SYSTEM, SECRETS, "system.more", "model"];
        let known = known.map(|name| Keyspace::new(name).expect("a name"));
        Self {
            principals: ["anonymous", "cert:a", "user:ann"]
                .map(str::to_owned)
                .into_iter()
                .chain([principal])
                .collect(),
            keyspaces: known.into_iter().chain(keyspace).collect(),
            key: word().to_vec(),
        }
    }
}

/// The answers of a set of rules agree with one another.
fn check_answers(question: &Question, rules: &RuleSet, quotas: &QuotaSet) {
    for warning in rules.warnings() {
        assert!(!warning.to_string().is_empty());
    }
    for warning in quotas.warnings() {
        assert!(!warning.is_empty());
    }
    let prefixes = rules.rules().map(|(_, rule)| rule.prefix().as_bytes());
    let mut keys = vec![question.key.as_slice(), b""];
    keys.extend(prefixes.take(8));
    for principal in &question.principals {
        let _ = quotas.of_principal(principal);
        for keyspace in &question.keyspaces {
            let _ = quotas.of_keyspace(keyspace);
            let grants = rules.grants(principal, keyspace);
            check_grants(&grants, &keys);
            for permission in Permission::ALL {
                for key in &keys {
                    check_decision(rules, &grants, principal, keyspace, key, permission);
                }
            }
        }
    }
    let system = Keyspace::new(SYSTEM).expect("a name");
    let administrates =
        |name: &String| Principal::parse(name).is_some() && rules.grants(name, &system).admin;
    if question.principals.iter().any(administrates) {
        assert!(
            rules.has_system_admin(),
            "somebody administers, and nobody can"
        );
    }
}

/// What is granted, what is explained and what the rule says that is named are one.
fn check_decision(
    rules: &RuleSet,
    grants: &Grants,
    principal: &str,
    keyspace: &Keyspace,
    key: &[u8],
    permission: Permission,
) {
    let explained = rules.explain(principal, keyspace, key, permission);
    let reason = &explained.reason;
    assert_eq!(
        grants.allows(permission, key),
        explained.allowed,
        "{reason}"
    );
    let kind = KeyspaceKind::of(keyspace);
    if let Some((origin, rule)) = &explained.rule {
        assert!(
            explained.allowed && rule.gives(kind, permission, key),
            "{reason}"
        );
        assert!(rule.keyspace().matches(keyspace), "{reason}");
        assert!(
            rules.rules().any(|known| known == (origin, rule)),
            "{reason}"
        );
    }
    if kind == KeyspaceKind::Secrets {
        assert!(!explained.allowed, "{reason}");
    }
    if kind == KeyspaceKind::System {
        assert_eq!(explained.allowed, grants.admin, "{reason}");
    }
    if rules.has_rules() {
        assert_eq!(explained.allowed, explained.rule.is_some(), "{reason}");
    }
}

/// What a grant allows, by its parts.
fn check_grants(grants: &Grants, keys: &[&[u8]]) {
    assert_eq!(&grants.intersect(grants), grants);
    assert_eq!(&grants.intersect(&Grants::all()), grants);
    assert!(grants.intersect(&Grants::none()).is_none());
    for prefixes in [&grants.read, &grants.write, &grants.watch] {
        check_prefixes(prefixes, keys);
    }
}

/// A range that is cut has just the keys of the range that the prefixes have.
fn check_prefixes(prefixes: &Prefixes, keys: &[&[u8]]) {
    let [from, to] = [keys.first(), keys.last()].map(|key| *key.expect("two keys"));
    for range in [
        KeyRange::all(),
        KeyRange::prefix(from.to_vec()),
        KeyRange::between(from.to_vec(), to.to_vec()),
    ] {
        let parts = match prefixes.cut(&range) {
            Cut::Nothing => Vec::new(),
            Cut::One(part) => vec![part],
            Cut::Several { parts, .. } => parts,
        };
        for key in keys {
            let key = Key::copy_from_slice(key);
            let is_left = parts.iter().any(|part| part.contains(&key));
            let is_given = range.contains(&key) && prefixes.contains(&key);
            assert_eq!(is_left, is_given, "{prefixes:?} of {range:?}: {key:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzzing::tests::seeds;

    #[test]
    fn the_seeds_hold_what_is_promised() {
        for (name, seed) in seeds("rules") {
            check(&seed);
            let text = String::from_utf8(seed).unwrap();
            let toml = text.split_once("\n+++\n").map_or("", |(_, toml)| toml);
            let read = configured(toml);
            let says = |table: &str| toml.contains(&format!("[[{table}]]"));
            if !name.starts_with("bad") {
                assert_eq!(says("rule"), !read.rules.is_empty(), "{name}");
                assert_eq!(says("role"), !read.roles.is_empty(), "{name}");
                assert_eq!(says("quota"), !read.quotas.is_empty(), "{name}");
            }
        }
    }
}
