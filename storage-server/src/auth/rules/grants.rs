//! What one principal may do in one keyspace.

use super::{Permission, Prefixes};

/// What one principal may do in one keyspace. Two are equal if and only if they allow the same, so that a change can be
/// told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    /// The keys that may be read.
    pub read: Prefixes,
    /// The keys that may be written.
    pub write: Prefixes,
    /// The keys whose changes may be followed.
    pub watch: Prefixes,
    /// Whether the keyspace as a whole may be administered.
    pub admin: bool,
}

impl Grants {
    /// Everything on every key.
    #[must_use]
    pub fn all() -> Self {
        let all = Prefixes::all();
        Self {
            read: all.clone(),
            write: all.clone(),
            watch: all,
            admin: true,
        }
    }

    /// Nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// What both allow.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        Self {
            read: self.read.intersect(&other.read),
            write: self.write.intersect(&other.write),
            watch: self.watch.intersect(&other.watch),
            admin: self.admin && other.admin,
        }
    }

    /// Whether nothing is allowed on any key.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.read.is_none() && self.write.is_none() && self.watch.is_none() && !self.admin
    }

    /// Whether this is allowed on `key`, which does not matter for [`Permission::Admin`]. Takes no memory, and log n
    /// comparisons.
    #[must_use]
    pub fn allows(&self, permission: Permission, key: &[u8]) -> bool {
        match permission {
            Permission::Read => self.read.contains(key),
            Permission::Write => self.write.contains(key),
            Permission::Watch => self.watch.contains(key),
            Permission::Admin => self.admin,
        }
    }
}
