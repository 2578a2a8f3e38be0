//! Which keyspaces a rule is for. The server's own are given away by nobody who did not name them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use storage_protocol::Keyspace;

use crate::auth::pattern::{Pattern, PatternError};

/// The server's own keyspace. Those whose names begin with it and a dot are the server's own too.
pub const SYSTEM: &str = "system";

/// The keyspace that is open to nobody, whatever the rules say.
pub const SECRETS: &str = "system.secrets";

/// Which rules a keyspace goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyspaceKind {
    /// A principal may do what rules give.
    Ordinary,
    /// [`SYSTEM`] and `system.*`: who has admin may do everything, all others nothing.
    System,
    /// [`SECRETS`]: nobody may do anything.
    Secrets,
}

impl KeyspaceKind {
    /// That of a keyspace.
    #[must_use]
    pub fn of(keyspace: &Keyspace) -> Self {
        let name = keyspace.as_str();
        if name == SECRETS {
            return Self::Secrets;
        }
        match name.strip_prefix(SYSTEM) {
            Some(rest) if rest.is_empty() || rest.starts_with('.') => Self::System,
            _ => Self::Ordinary,
        }
    }
}

/// A [`Pattern`] of names of keyspaces. It stands for one of the server's own only if its text begins with `system`,
/// which `*` does not.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize)]
#[serde(transparent)]
pub struct KeyspacePattern(Pattern);

impl KeyspacePattern {
    /// Checks a text.
    ///
    /// # Errors
    /// [`PatternError`]: the text is no [`Pattern`].
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        Pattern::parse(text).map(Self)
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether it stands for this keyspace.
    #[must_use]
    pub fn matches(&self, keyspace: &Keyspace) -> bool {
        let is_open = self.names_system() || KeyspaceKind::of(keyspace) == KeyspaceKind::Ordinary;
        is_open && self.0.matches(keyspace.as_str())
    }

    /// Whether it stands for the keyspace [`SYSTEM`].
    pub(super) fn matches_system(&self) -> bool {
        self.names_system() && self.0.matches(SYSTEM)
    }

    /// Whether a `*` is in it.
    pub(crate) fn has_wildcard(&self) -> bool {
        self.0.has_wildcard()
    }

    /// What stands before the first `*`.
    pub(super) fn head(&self) -> &str {
        self.0.head()
    }

    /// Whether it stands for every keyspace that `other` stands for.
    pub(super) fn covers(&self, other: &Self) -> bool {
        self.0.covers(&other.0) && (self.names_system() || !other.reaches_system())
    }

    /// Whether there can be a keyspace that it stands for.
    pub(in crate::auth) fn matches_any(&self) -> bool {
        // Each `*` is left empty, or the first one is a letter and the others are empty. Other names need not be tried:
        // the letter is enough where a name lacks its first character, and where `sys*tem` must not be `system`; and
        // there is no shorter way.
        ["", "a"].into_iter().any(|letter| {
            let name = Keyspace::new(&self.0.filled(letter));
            name.is_ok_and(|name| self.matches(&name))
        })
    }

    /// Whether it stands for none but the server's own keyspaces.
    pub(in crate::auth) fn is_system_only(&self) -> bool {
        let rest = self.as_str().strip_prefix(SYSTEM);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// Whether it stands for some of the server's own keyspaces.
    pub(super) fn reaches_system(&self) -> bool {
        let rest = self.as_str().strip_prefix(SYSTEM);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '*']))
    }

    /// Whether it was written for [`SECRETS`].
    pub(super) fn means_secrets(&self) -> bool {
        self.names_system() && self.0.filled("") == SECRETS
    }

    fn names_system(&self) -> bool {
        self.as_str().starts_with(SYSTEM)
    }
}

impl fmt::Display for KeyspacePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for KeyspacePattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> KeyspacePattern {
        KeyspacePattern::parse(text).unwrap()
    }

    fn matches(text: &str, name: &str) -> bool {
        pattern(text).matches(&Keyspace::new(name).unwrap())
    }

    #[test]
    fn kinds_of_keyspaces() {
        for (name, kind) in [
            ("system", KeyspaceKind::System),
            ("system.rules", KeyspaceKind::System),
            ("system.", KeyspaceKind::System),
            ("system.secrets", KeyspaceKind::Secrets),
            ("system.secrets.old", KeyspaceKind::System),
            ("systems", KeyspaceKind::Ordinary),
            ("system-a", KeyspaceKind::Ordinary),
            ("a.system", KeyspaceKind::Ordinary),
            ("mwdb.prefixes", KeyspaceKind::Ordinary),
        ] {
            assert_eq!(
                KeyspaceKind::of(&Keyspace::new(name).unwrap()),
                kind,
                "{name}"
            );
        }
    }

    #[test]
    fn only_patterns_that_begin_with_system_stand_for_the_servers_own_keyspaces() {
        for text in [
            "*",
            "s*",
            "syste*",
            "*system",
            "*system*",
            "*.*",
            "sys*.rules",
            "s*ystem",
        ] {
            for name in ["system", "system.rules", "system.secrets"] {
                assert!(!matches(text, name), "{text} {name}");
            }
        }
        assert!(matches("*", "systems") && matches("s*", "systems") && matches("*", "model"));
        assert!(matches("system", "system") && matches("system*", "system"));
        assert!(matches("system*", "system.rules") && matches("system.*", "system.rules"));
        assert!(!matches("system", "system.rules") && !matches("system.*", "system"));
        assert!(matches("system*", "systems"));
        assert!(pattern("system*").matches_system() && !pattern("system.*").matches_system());
        assert!(!pattern("*").matches_system());
    }

    #[test]
    fn whether_there_can_be_a_keyspace() {
        for good in [
            "*",
            "**",
            "a",
            "*.x",
            "s*ystem",
            "*system",
            "system",
            "system.secrets",
            "a*",
        ] {
            assert!(pattern(good).matches_any(), "{good}");
        }
        let full = "x".repeat(63);
        for good in [format!("*{full}"), full.clone(), format!("{full}*")] {
            assert!(pattern(&good).matches_any(), "{good}");
        }
        for bad in ["Model", "a/*", ".x", "-*", "a b", "ä", "*A"] {
            assert!(!pattern(bad).matches_any(), "{bad}");
        }
        assert!(!pattern(&format!("{full}x")).matches_any());
        // It could stand for `system.x…` only, as there is no room for a letter more.
        let reserved = format!("*system.{}", "x".repeat(56));
        assert!(!pattern(&reserved).matches_any());
    }

    #[test]
    fn what_is_known_of_a_pattern_for_system() {
        for (text, only, some, secrets) in [
            ("system", true, true, false),
            ("system.*", true, true, false),
            ("system.secrets", true, true, true),
            ("system.secrets*", true, true, true),
            ("system*.secrets", false, true, true),
            ("system*", false, true, false),
            ("systems*", false, false, false),
            ("*", false, false, false),
            ("*system.secrets", false, false, false),
        ] {
            let pattern = pattern(text);
            assert_eq!(pattern.is_system_only(), only, "{text}");
            assert_eq!(pattern.reaches_system(), some, "{text}");
            assert_eq!(pattern.means_secrets(), secrets, "{text}");
        }
    }

    #[test]
    fn a_wide_pattern_does_not_cover_the_servers_own_keyspaces() {
        assert!(pattern("*").covers(&pattern("model*")));
        assert!(!pattern("*").covers(&pattern("system")));
        assert!(!pattern("s*").covers(&pattern("system*")));
        assert!(pattern("system*").covers(&pattern("system.*")));
        assert!(pattern("s*").covers(&pattern("systems")));
        assert!(pattern("model").covers(&pattern("model")));
    }
}
