//! Why a principal may do something, or may not.

use std::cmp::Reverse;
use std::fmt::Write as _;

use storage_protocol::Keyspace;

use super::set::{Entry, is_open};
use super::{KeyspaceKind, Origin, Permission, Rule, RuleSet, SECRETS};
use crate::auth::text::{quoted, quoted_key};

/// How many rules that come close are told of a denial.
const CLOSEST_MAX: usize = 3;

/// A decision of [`RuleSet::explain`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whether it is allowed.
    pub allowed: bool,
    /// The rule that allows it, the first that does. `None`: it is denied, or allowed since there are no rules.
    pub rule: Option<(Origin, Rule)>,
    /// Why, in a sentence. Of a denial with the rules for this principal and keyspace that come closest.
    pub reason: String,
}

/// A question, with what a rule must give for a yes.
struct Question<'a> {
    kind: KeyspaceKind,
    permission: Permission,
    key: &'a [u8],
}

impl RuleSet {
    /// Whether [`RuleSet::grants`] allow this principal to do this, and why. `key` does not matter for
    /// [`Permission::Admin`].
    #[must_use]
    pub fn explain(
        &self,
        principal: &str,
        keyspace: &Keyspace,
        key: &[u8],
        permission: Permission,
    ) -> Explanation {
        let kind = KeyspaceKind::of(keyspace);
        let question = Question {
            kind,
            permission,
            key,
        };
        let matching = match self.has_rules() {
            true => self.matching(principal, keyspace),
            false => Vec::new(),
        };
        let giving = matching
            .iter()
            .find(|entry| entry.rule.gives(kind, permission, key));
        let allowed = giving.is_some() || (!self.has_rules() && is_open(kind, principal));
        let why = match giving {
            _ if kind == KeyspaceKind::Secrets => {
                format!("{SECRETS} is open to nobody, whatever the rules say")
            }
            Some(entry) => format!("{} says: {}", entry.origin, entry.rule),
            None if allowed => "there are no access rules".to_owned(),
            None if !self.has_rules() => {
                "without access rules, the server's own keyspaces are closed to anonymous"
                    .to_owned()
            }
            None => self.denial(&question, &matching),
        };
        let not = if allowed { "" } else { " not" };
        let on_key = match permission {
            Permission::Admin => String::new(),
            Permission::Read | Permission::Write | Permission::Watch => {
                format!(" on key {}", quoted_key(key))
            }
        };
        Explanation {
            allowed,
            rule: giving.map(|entry| (entry.origin.clone(), entry.rule.clone())),
            reason: format!(
                "{} is{not} allowed {permission}{on_key} in keyspace \"{keyspace}\": {why}",
                quoted(principal)
            ),
        }
    }

    /// Why none of the rules for a principal and a keyspace gives what was asked for.
    fn denial(&self, question: &Question<'_>, matching: &[&Entry]) -> String {
        let mut why = String::from("no rule allows it");
        if question.kind == KeyspaceKind::System {
            why.push_str(", which takes admin without a prefix in the server's own keyspaces");
        }
        if matching.is_empty() {
            why.push_str("; none is for this principal and keyspace");
        }
        let mut closest: Vec<(_, &Entry)> = matching
            .iter()
            .map(|entry| (question.distance(&entry.rule), *entry))
            .collect();
        closest.sort_by_key(|(distance, _)| *distance);
        for (_, entry) in closest.iter().take(CLOSEST_MAX) {
            // A `String` takes all that is written to it.
            let _ = write!(why, "; {} {}", entry.origin, question.miss(&entry.rule));
        }
        match closest.len().saturating_sub(CLOSEST_MAX) {
            0 => {}
            more => {
                let _ = write!(why, "; others for this principal and keyspace: {more}");
            }
        }
        match self.unreadable.len() {
            0 => {}
            count => {
                let _ = write!(why, "; rules that cannot be read: {count}");
            }
        }
        why
    }
}

impl Question<'_> {
    /// What a rule must allow.
    fn needed(&self) -> Permission {
        match self.kind {
            KeyspaceKind::Ordinary => self.permission,
            KeyspaceKind::System | KeyspaceKind::Secrets => Permission::Admin,
        }
    }

    fn has_permission(&self, rule: &Rule) -> bool {
        rule.allow().contains(self.needed())
    }

    fn has_prefix(&self, rule: &Rule) -> bool {
        match self.needed() {
            Permission::Admin => rule.prefix().is_empty(),
            Permission::Read | Permission::Write | Permission::Watch => {
                self.key.starts_with(rule.prefix().as_bytes())
            }
        }
    }

    /// How far a rule is from a yes: what it lacks, a permission less than a prefix; then how little its prefix has in
    /// common with the key.
    fn distance(&self, rule: &Rule) -> (u8, Reverse<usize>) {
        let lacks_permission = u8::from(!self.has_permission(rule));
        let lacks_prefix = u8::from(!self.has_prefix(rule));
        let common = match self.needed() {
            Permission::Admin => 0,
            Permission::Read | Permission::Write | Permission::Watch => {
                let bytes = rule.prefix().bytes().zip(self.key);
                bytes.take_while(|(ours, theirs)| ours == *theirs).count()
            }
        };
        (lacks_permission + 2 * lacks_prefix, Reverse(common))
    }

    /// What a rule lacks.
    fn miss(&self, rule: &Rule) -> String {
        let only = format!("allows only {}", rule.allow());
        let prefix = quoted(rule.prefix());
        match (self.has_permission(rule), self.has_prefix(rule)) {
            (false, true) => only,
            (false, false) => format!("{only}, with prefix {prefix}"),
            (true, _) => format!("allows {} with prefix {prefix} only", self.needed()),
        }
    }
}
