//! The kinds of quotas, and numbers of each.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use storage_protocol::{Limit, StorageError};

use crate::config::size;

/// What a quota limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuotaKind {
    /// Bytes of the keys and values that a keyspace holds.
    Bytes = 0,
    /// Entries that a keyspace holds.
    Entries = 1,
    /// Commits in a second.
    CommitsPerSecond = 2,
    /// Bytes of the keys and values of commits in a second.
    BytesPerSecond = 3,
    /// Sessions at a time.
    Sessions = 4,
    /// Watches at a time.
    Watches = 5,
}

impl QuotaKind {
    /// How many there are.
    pub const COUNT: usize = 6;
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; Self::COUNT] = [
        Self::Bytes,
        Self::Entries,
        Self::CommitsPerSecond,
        Self::BytesPerSecond,
        Self::Sessions,
        Self::Watches,
    ];

    /// As records, the command line and metrics have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Entries => "entries",
            Self::CommitsPerSecond => "commits_per_second",
            Self::BytesPerSecond => "bytes_per_second",
            Self::Sessions => "sessions",
            Self::Watches => "watches",
        }
    }

    /// As errors name it.
    #[must_use]
    pub fn limit(self) -> Limit {
        match self {
            Self::Bytes => Limit::KeyspaceBytes,
            Self::Entries => Limit::KeyspaceEntries,
            Self::CommitsPerSecond => Limit::CommitRate,
            Self::BytesPerSecond => Limit::CommitByteRate,
            Self::Sessions => Limit::QuotaSessions,
            Self::Watches => Limit::QuotaWatches,
        }
    }

    /// Whether it is counted for keyspaces alone: who stores an entry for whom is not known.
    #[must_use]
    pub fn is_of_keyspaces(self) -> bool {
        matches!(self, Self::Bytes | Self::Entries)
    }

    /// The error of a refusal.
    pub(crate) fn refused(self, max: u64) -> StorageError {
        let limit = self.limit();
        StorageError::Overloaded { limit, max }
    }
}

impl fmt::Display for QuotaKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A number of each kind, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct QuotaLimits([Option<u64>; QuotaKind::COUNT]);

impl QuotaLimits {
    /// No limit is higher. JSON of all readers has numbers up to there.
    pub const MAX: u64 = 1 << 53;

    /// The limit of a kind; `None`: there is none.
    #[must_use]
    pub fn get(&self, kind: QuotaKind) -> Option<u64> {
        self.0.get(kind as usize).copied().flatten()
    }

    /// Sets the limit of a kind, or takes it away.
    pub fn set(&mut self, kind: QuotaKind, limit: Option<u64>) {
        if let Some(place) = self.0.get_mut(kind as usize) {
            *place = limit;
        }
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// The limits that there are, in the order of their kinds.
    pub fn iter(&self) -> impl Iterator<Item = (QuotaKind, u64)> {
        let limit = |kind| Some((kind, self.get(kind)?));
        QuotaKind::ALL.into_iter().filter_map(limit)
    }

    /// The smaller one of each kind.
    #[must_use]
    pub fn smallest(self, other: Self) -> Self {
        let mut smallest = self;
        for (kind, limit) in other.iter() {
            let known = self.get(kind).unwrap_or(limit);
            smallest.set(kind, Some(known.min(limit)));
        }
        smallest
    }
}

/// A limit as it is written: a number, or a size such as "10 GiB".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(super) struct Amount(pub(super) u64);

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        size(deserializer).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_at_their_places_and_have_the_limits_of_their_names() {
        for (place, kind) in QuotaKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
            assert!(kind.limit().name().starts_with("quota_"), "{kind}");
        }
    }

    #[test]
    fn of_two_limits_the_smaller_one_holds() {
        let limits = |of: &[(QuotaKind, u64)]| {
            let mut limits = QuotaLimits::default();
            for (kind, limit) in of {
                limits.set(*kind, Some(*limit));
            }
            limits
        };
        let one = limits(&[(QuotaKind::Bytes, 5), (QuotaKind::Watches, 7)]);
        let other = limits(&[(QuotaKind::Sessions, 2), (QuotaKind::Watches, 3)]);
        let both = limits(&[
            (QuotaKind::Bytes, 5),
            (QuotaKind::Sessions, 2),
            (QuotaKind::Watches, 3),
        ]);
        assert_eq!(one.smallest(other), both);
        assert_eq!(other.smallest(one), both);
        assert_eq!(one.smallest(QuotaLimits::default()), one);
        assert!(QuotaLimits::default().is_empty() && !one.is_empty());
    }
}
