//! All rules and roles together, made ready to be asked.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use storage_protocol::{Key, Keyspace};

use super::subject::{ANONYMOUS, matches_any_principal};
use super::{Grants, KeyspaceKind, Permission, Prefixes, Role, RoleName, Rule};
use crate::auth::pattern::Pattern;
use crate::auth::text::quoted;

/// Where a rule or a role comes from. Shown as that of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The configuration; its place there, from 0.
    Config(usize),
    /// The store; its name there.
    Stored(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(place) => write!(f, "rule[{place}] of the configuration"),
            Self::Stored(name) => write!(f, "stored rule {}", quoted(name)),
        }
    }
}

/// All rules and roles, immutable. It tells who may do what.
#[derive(Default)]
pub struct RuleSet {
    pub(super) rules: Vec<Entry>,
    /// In the order of their names.
    pub(super) roles: Vec<MergedRole>,
    pub(super) unreadable: Vec<Unreadable>,
}

/// A rule in a set.
pub(super) struct Entry {
    pub(super) origin: Origin,
    pub(super) rule: Rule,
    /// The rule's prefix, to be shared by the grants.
    prefix: Key,
    /// The place of the rule's role; `None`: there is no such role, or the rule names none.
    pub(super) role: Option<usize>,
}

/// A role in a set, with all members that it has anywhere.
pub(super) struct MergedRole {
    pub(super) name: RoleName,
    /// The first of its origins.
    pub(super) origin: Origin,
    pub(super) members: BTreeSet<Pattern>,
}

/// A rule whose record is none.
pub(super) struct Unreadable {
    pub(super) origin: Origin,
    pub(super) reason: String,
}

/// Collects rules and roles for a [`RuleSet`]. The rules stay in the order in which they are added.
#[derive(Default)]
pub struct RuleSetBuilder {
    rules: Vec<(Origin, Rule)>,
    roles: BTreeMap<RoleName, (Origin, BTreeSet<Pattern>)>,
    unreadable: Vec<Unreadable>,
}

impl RuleSetBuilder {
    /// One more rule.
    pub fn add_rule(&mut self, origin: Origin, rule: Rule) {
        self.rules.push((origin, rule));
    }

    /// One more role. The members of two with the same name are united.
    pub fn add_role(&mut self, origin: Origin, name: RoleName, role: &Role) {
        let (_, members) = self
            .roles
            .entry(name)
            .or_insert_with(|| (origin, BTreeSet::new()));
        members.extend(role.members().iter().cloned());
    }

    /// A rule whose record could not be read. It gives nothing, but it is one: where the only rule is damaged, not
    /// everybody may be let in. `reason` is told by [`RuleSet::warnings`].
    pub fn add_unreadable_rule(&mut self, origin: Origin, reason: impl ToString) {
        self.unreadable.push(Unreadable {
            origin,
            reason: reason.to_string(),
        });
    }

    /// The set of all of them.
    #[must_use]
    pub fn build(self) -> RuleSet {
        let roles: Vec<MergedRole> = self
            .roles
            .into_iter()
            .map(|(name, (origin, members))| MergedRole {
                name,
                origin,
                members,
            })
            .collect();
        let place = |rule: &Rule| {
            let name = rule.principal().role()?;
            roles.binary_search_by(|role| role.name.cmp(name)).ok()
        };
        let entry = |(origin, rule): (Origin, Rule)| Entry {
            origin,
            prefix: Key::copy_from_slice(rule.prefix().as_bytes()),
            role: place(&rule),
            rule,
        };
        RuleSet {
            rules: self.rules.into_iter().map(entry).collect(),
            unreadable: self.unreadable,
            roles,
        }
    }
}

impl RuleSet {
    /// Begins one.
    #[must_use]
    pub fn builder() -> RuleSetBuilder {
        RuleSetBuilder::default()
    }

    /// Whether there is any rule, be it one that gives nothing. Without one, every principal may do everything, but for
    /// the server's own keyspaces: `anonymous` may do nothing there, and nobody in
    /// [`system.secrets`](super::SECRETS). Roles alone are no rules.
    #[must_use]
    pub fn has_rules(&self) -> bool {
        !self.rules.is_empty() || !self.unreadable.is_empty()
    }

    /// What this principal may do in this keyspace. Looks at every rule and every member of a role: keep the answer.
    ///
    /// The server's own commits are not asked for here: its principal is one like any other.
    #[must_use]
    pub fn grants(&self, principal: &str, keyspace: &Keyspace) -> Grants {
        let kind = KeyspaceKind::of(keyspace);
        if !self.has_rules() {
            return match is_open(kind, principal) {
                true => Grants::all(),
                false => Grants::none(),
            };
        }
        let matching = self.matching(principal, keyspace);
        let prefixes = |permission: Permission| -> Prefixes {
            let giving = matching.iter().filter(|entry| {
                let key = entry.rule.prefix().as_bytes();
                entry.rule.gives(kind, permission, key)
            });
            giving.map(|entry| entry.given_prefix(kind)).collect()
        };
        Grants {
            read: prefixes(Permission::Read),
            write: prefixes(Permission::Write),
            watch: prefixes(Permission::Watch),
            admin: prefixes(Permission::Admin).is_all(),
        }
    }

    /// All rules, in their order, with where they are from.
    pub fn rules(&self) -> impl Iterator<Item = (&Origin, &Rule)> {
        self.rules.iter().map(|entry| (&entry.origin, &entry.rule))
    }

    /// All roles by name, with all members that they have anywhere.
    pub(in crate::auth) fn roles(&self) -> impl Iterator<Item = (&RoleName, &BTreeSet<Pattern>)> {
        self.roles.iter().map(|role| (&role.name, &role.members))
    }

    /// Whether anybody may administer the keyspace [`system`](super::SYSTEM). Where nobody may, nobody can change the
    /// stored rules any more: ask it of a set before it takes the place of another. `anonymous` counts too.
    #[must_use]
    pub fn has_system_admin(&self) -> bool {
        self.has_system_admin_among(matches_any_principal)
    }

    /// The same of those that there are: `is_anybody` tells whether a pattern matches one.
    pub(in crate::auth) fn has_system_admin_among(
        &self,
        is_anybody: impl Fn(&Pattern) -> bool,
    ) -> bool {
        let gives = |entry: &Entry| {
            entry.rule.keyspace().matches_system()
                && entry.rule.gives_admin()
                && self.is_for(entry, &is_anybody)
        };
        !self.has_rules() || self.rules.iter().any(gives)
    }

    /// The rules that are for this principal and this keyspace, in their order.
    pub(super) fn matching(&self, principal: &str, keyspace: &Keyspace) -> Vec<&Entry> {
        let has_role: Vec<bool> = self
            .roles
            .iter()
            .map(|role| role.members.iter().any(|member| member.matches(principal)))
            .collect();
        let is_for = |entry: &&Entry| match entry.rule.principal().pattern() {
            Some(pattern) => pattern.matches(principal),
            None => entry.role.and_then(|place| has_role.get(place)) == Some(&true),
        };
        let rules = self.rules.iter();
        rules
            .filter(|entry| entry.rule.keyspace().matches(keyspace))
            .filter(is_for)
            .collect()
    }

    /// Whether there can be a principal that a rule is for.
    pub(super) fn is_for_anybody(&self, entry: &Entry) -> bool {
        self.is_for(entry, &matches_any_principal)
    }

    fn is_for(&self, entry: &Entry, is_anybody: &impl Fn(&Pattern) -> bool) -> bool {
        let role = entry.role.and_then(|place| self.roles.get(place));
        let members = role.into_iter().flat_map(|role| &role.members);
        let mut patterns = entry.rule.principal().pattern().into_iter().chain(members);
        patterns.any(is_anybody)
    }
}

impl Entry {
    /// The prefix of the keys on which it gives what it gives in keyspaces of this kind.
    fn given_prefix(&self, kind: KeyspaceKind) -> Key {
        match kind {
            KeyspaceKind::Ordinary => self.prefix.clone(),
            KeyspaceKind::System | KeyspaceKind::Secrets => Key::new(),
        }
    }
}

/// Whether a keyspace is open to a principal as long as there are no rules.
pub(super) fn is_open(kind: KeyspaceKind, principal: &str) -> bool {
    match kind {
        KeyspaceKind::Ordinary => true,
        KeyspaceKind::System => principal != ANONYMOUS,
        KeyspaceKind::Secrets => false,
    }
}

impl fmt::Debug for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleSet")
            .field("rules", &self.rules.len())
            .field("roles", &self.roles.len())
            .field("unreadable", &self.unreadable.len())
            .finish()
    }
}

impl fmt::Debug for RuleSetBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuleSetBuilder")
            .field("rules", &self.rules.len())
            .field("roles", &self.roles.len())
            .field("unreadable", &self.unreadable.len())
            .finish()
    }
}
