//! All quotas together, made ready to be asked.

use std::fmt;

use storage_protocol::Keyspace;

use super::{Quota, QuotaKind, QuotaLimits, QuotaTarget};
use crate::auth::pattern::Pattern;
use crate::auth::rules::{Origin, RuleSet, matches_any_principal};
use crate::auth::text::{escaped, quoted};
use crate::engine::{StoredLimits, StoredMax};

/// The longest reason why a quota cannot be read that is told, in characters.
const REASON_CHARS_MAX: usize = 400;

/// All quotas, immutable. It tells what a principal, and what a keyspace, may have.
#[derive(Default)]
pub struct QuotaSet {
    quotas: Vec<Entry>,
    unreadable: Vec<(Origin, String)>,
}

/// A quota in a set.
struct Entry {
    origin: Origin,
    quota: Quota,
    /// The principals that it is for; of a role its members. `None`: there is no such role, or it is for keyspaces.
    principals: Option<Vec<Pattern>>,
}

impl QuotaSet {
    /// Of these quotas, by the roles of these rules. An error is the reason why a record is none: it limits nothing.
    #[must_use]
    pub fn new(
        quotas: impl IntoIterator<Item = (Origin, Result<Quota, String>)>,
        rules: &RuleSet,
    ) -> Self {
        let mut set = Self::default();
        for (origin, quota) in quotas {
            match quota {
                Ok(quota) => set.quotas.push(Entry {
                    principals: principals(&quota, rules),
                    origin,
                    quota,
                }),
                Err(reason) => set.unreadable.push((origin, reason)),
            }
        }
        set
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.quotas.is_empty()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.quotas.len()
    }

    /// All of them, in their order, with where they are from.
    pub fn quotas(&self) -> impl Iterator<Item = (&Origin, &Quota)> {
        self.quotas
            .iter()
            .map(|entry| (&entry.origin, &entry.quota))
    }

    /// What this principal may have: the smallest number of each kind. Looks at every quota and every member of a role.
    #[must_use]
    pub fn of_principal(&self, principal: &str) -> QuotaLimits {
        let is_for = |entry: &&Entry| {
            let mut patterns = entry.principals.iter().flatten();
            patterns.any(|pattern| pattern.matches(principal))
        };
        smallest(self.quotas.iter().filter(is_for))
    }

    /// What this keyspace may have, whoever uses it. The server's own have no limits.
    #[must_use]
    pub fn of_keyspace(&self, keyspace: &Keyspace) -> QuotaLimits {
        let quotas = self.quotas.iter();
        smallest(quotas.filter(|entry| entry.quota.is_for_keyspace(keyspace)))
    }

    /// The quotas that limit nothing, and why: one sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let void = self.quotas.iter().filter_map(|entry| {
            let what = entry.void()?;
            Some(format!("{}: {what}", shown(&entry.origin)))
        });
        let unreadable = self.unreadable.iter().map(|(origin, reason)| {
            let reason = escaped(reason, REASON_CHARS_MAX);
            let origin = shown(origin);
            format!("{origin}: it cannot be read and limits nothing: {reason}")
        });
        void.chain(unreadable).collect()
    }
}

impl StoredLimits for QuotaSet {
    fn stored_max(&self, keyspace: &Keyspace) -> StoredMax {
        let limits = self.of_keyspace(keyspace);
        StoredMax {
            entries: limits.get(QuotaKind::Entries),
            bytes: limits.get(QuotaKind::Bytes),
        }
    }
}

fn principals(quota: &Quota, rules: &RuleSet) -> Option<Vec<Pattern>> {
    let QuotaTarget::Principal(subject) = quota.target() else {
        return None;
    };
    match subject.role() {
        None => subject.pattern().map(|pattern| vec![pattern.clone()]),
        Some(name) => {
            let mut roles = rules.roles();
            let (_, members) = roles.find(|(role, _)| *role == name)?;
            Some(members.iter().cloned().collect())
        }
    }
}

fn smallest<'a>(entries: impl Iterator<Item = &'a Entry>) -> QuotaLimits {
    entries.fold(QuotaLimits::default(), |limits, entry| {
        limits.smallest(*entry.quota.limits())
    })
}

/// Where a quota comes from.
fn shown(origin: &Origin) -> String {
    match origin {
        Origin::Config(place) => format!("quota[{place}] of the configuration"),
        Origin::Stored(name) => format!("stored quota {}", quoted(name)),
    }
}

impl Entry {
    /// Why it limits nothing.
    fn void(&self) -> Option<String> {
        match (self.quota.target(), &self.principals) {
            (QuotaTarget::Keyspace(pattern), _) => {
                let is_void = pattern.is_system_only() || !pattern.matches_any();
                is_void.then(|| {
                    let pattern = quoted(pattern.as_str());
                    format!(
                        "keyspace {pattern} matches no keyspace that can have a quota, so it limits nothing"
                    )
                })
            }
            (QuotaTarget::Principal(subject), None) => {
                let subject = quoted(&subject.to_string());
                Some(format!("there is no {subject}, so it limits nothing"))
            }
            (QuotaTarget::Principal(subject), Some(patterns)) => {
                let is_void = !patterns.iter().any(matches_any_principal);
                is_void.then(|| {
                    let subject = quoted(&subject.to_string());
                    format!("principal {subject} matches nobody, so it limits nothing")
                })
            }
        }
    }
}

impl fmt::Debug for QuotaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuotaSet")
            .field("quotas", &self.quotas.len())
            .field("unreadable", &self.unreadable.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::rules::Role;

    fn set(quotas: &[&str]) -> QuotaSet {
        let mut rules = RuleSet::builder();
        let role = Role::from_json(br#"{"members":["cert:a*","user:zoe"]}"#).unwrap();
        rules.add_role(Origin::Config(0), "ops".parse().unwrap(), &role);
        let quotas = quotas.iter().enumerate().map(|(place, json)| {
            let quota = Quota::from_json(json.as_bytes());
            (
                Origin::Config(place),
                quota.map_err(|error| error.to_string()),
            )
        });
        QuotaSet::new(quotas, &rules.build())
    }

    #[test]
    fn the_smallest_number_of_each_kind_holds_of_those_that_match() {
        let set = set(&[
            r#"{"principal":"*","sessions":10,"watches":5}"#,
            r#"{"principal":"role:ops","sessions":3}"#,
            r#"{"principal":"cert:a1","watches":9,"commits_per_second":4}"#,
            r#"{"keyspace":"t*","sessions":1,"bytes":7}"#,
            r#"{"keyspace":"*","bytes":6}"#,
        ]);
        let of = |principal, kind| set.of_principal(principal).get(kind);
        assert_eq!(of("cert:b", QuotaKind::Sessions), Some(10));
        assert_eq!(of("user:zoe", QuotaKind::Sessions), Some(3));
        assert_eq!(of("cert:a1", QuotaKind::Sessions), Some(3));
        assert_eq!(of("cert:a1", QuotaKind::Watches), Some(5));
        assert_eq!(of("cert:a1", QuotaKind::CommitsPerSecond), Some(4));
        assert_eq!(of("cert:a2", QuotaKind::CommitsPerSecond), None);
        let of = |keyspace, kind| set.of_keyspace(&Keyspace::new(keyspace).unwrap()).get(kind);
        assert_eq!(of("t1", QuotaKind::Bytes), Some(6));
        assert_eq!(of("t1", QuotaKind::Sessions), Some(1));
        assert_eq!(of("u", QuotaKind::Sessions), None);
        assert!(set.warnings().is_empty());
    }

    #[test]
    fn the_keyspaces_of_the_server_have_no_quotas() {
        let set = set(&[
            r#"{"keyspace":"*","bytes":1}"#,
            r#"{"keyspace":"system*","bytes":1}"#,
        ]);
        for own in ["system", "system.secrets", "system.more"] {
            assert!(
                set.of_keyspace(&Keyspace::new(own).unwrap()).is_empty(),
                "{own}"
            );
        }
        let other = Keyspace::new("systems").unwrap();
        assert!(!set.of_keyspace(&other).is_empty());
    }

    #[test]
    fn quotas_that_limit_nothing_are_told() {
        let set = set(&[
            r#"{"principal":"role:nobody","sessions":1}"#,
            r#"{"principal":"certs:x","sessions":1}"#,
            r#"{"keyspace":"system.*","bytes":1}"#,
            r#"{"keyspace":"A","bytes":1}"#,
            r#"{"keyspace":"a","bytes":1,"new":2}"#,
        ]);
        let warnings = set.warnings();
        for (warning, expected) in warnings.iter().zip([
            "quota[0] of the configuration: there is no \"role:nobody\"",
            "quota[1] of the configuration: principal \"certs:x\" matches nobody",
            "quota[2] of the configuration: keyspace \"system.*\" matches no keyspace",
            "quota[3] of the configuration: keyspace \"A\" matches no keyspace",
            "quota[4] of the configuration: it cannot be read and limits nothing: unknown field `new`",
        ]) {
            assert!(warning.starts_with(expected), "{warning}");
        }
        assert_eq!(warnings.len(), 5);
        assert_eq!(set.len(), 4);
        assert!(set.of_keyspace(&Keyspace::new("a").unwrap()).is_empty());
    }
}
