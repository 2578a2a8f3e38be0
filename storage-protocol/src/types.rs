//! The nouns of the contract: keys, revisions, epochs, positions, entries, ranges, keyspaces.
//!
//! Plain values, cheap to clone (`Bytes` share their buffer). A `Bytes` cut out of a received message keeps that
//! whole message alive; copy it (`Bytes::copy_from_slice`) to keep a small value for long.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;

use crate::{Limit, StorageError};

/// A key: any bytes, at most [`Limits::key_bytes_max`](crate::Limits); keys are ordered bytewise.
pub type Key = Bytes;

/// A value: any bytes, at most [`Limits::value_bytes_max`](crate::Limits).
pub type Value = Bytes;

/// The number of a commit: strictly growing, store-wide, one per commit.
///
/// A keyspace sees gaps, since other keyspaces commit too. A number that is no commit's stands for the last commit
/// before it. Compare revisions only within one keyspace and one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

impl Revision {
    /// Before every commit.
    pub const ZERO: Self = Self(0);
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The random id of a store's history. A store that may have lost its tail, or was restored, continues under a new
/// one. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A place in a store's history: compared as a whole, shown and parsed as `EPOCH:REVISION`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Position {
    /// The history that `revision` belongs to.
    pub epoch: Epoch,
    /// The last commit at or before this place.
    pub revision: Revision,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.epoch, self.revision)
    }
}

impl FromStr for Position {
    type Err = StorageError;

    fn from_str(text: &str) -> Result<Self, StorageError> {
        let parse = || {
            let (epoch, revision) = text.split_once(':')?;
            if epoch.len() != 16 || !epoch.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            Some(Self {
                epoch: Epoch(u64::from_str_radix(epoch, 16).ok()?),
                revision: Revision(revision.parse().ok()?),
            })
        };
        parse().ok_or_else(|| {
            StorageError::invalid(format!(
                "{text:?} is no position; expected EPOCH:REVISION, 16 hexadecimal digits, a colon and a number"
            ))
        })
    }
}

/// Milliseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The wall clock, as this machine has it.
    #[must_use]
    pub fn now() -> Self {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO);
        Self::ZERO.after(since)
    }

    /// The start of 1970.
    pub const ZERO: Self = Self(0);

    /// This time plus `duration`, saturating.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(millis))
    }
}

/// How long a put entry is to live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is removed or put again. The default.
    #[default]
    Forever,
    /// Removed by a commit labelled `expired` when this much time has passed since the commit (whole milliseconds, at
    /// least one). It stays readable until that commit.
    TimeToLive(Duration),
    /// Removed by a commit labelled `session ended` when the session that put it ends.
    Session,
}

/// The lifetime of a stored entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntryLifetime {
    /// Until it is removed or put again.
    #[default]
    Forever,
    /// Its expiry commit is due at this time of the server's clock.
    Until(UnixMillis),
    /// As long as the session that put it. (Whose session is not told: a session id is a secret.)
    Session,
}

/// A stored value with the revision that wrote it.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The bytes that were put; empty where a scan asked for keys only.
    pub value: Value,
    /// The commit that put it.
    pub revision: Revision,
    /// How long it lives.
    pub lifetime: EntryLifetime,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("value_bytes", &self.value.len())
            .field("revision", &self.revision.0)
            .field("lifetime", &self.lifetime)
            .finish()
    }
}

/// What a key is at some revision, where removals are told too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// It has a value.
    Live(Entry),
    /// It was removed by the commit with this revision (a tombstone).
    Removed(Revision),
}

impl KeyState {
    /// The commit that made it so.
    #[must_use]
    pub fn revision(&self) -> Revision {
        match self {
            Self::Live(entry) => entry.revision,
            Self::Removed(revision) => *revision,
        }
    }
}

/// Something read, and the position it was true at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading<T> {
    /// Where in the history this was read: it holds every commit up to here and none after.
    pub position: Position,
    /// What was read.
    pub value: T,
}

/// A range of keys: from `start`, which is in it, to `end`, which is not.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct KeyRange {
    /// The first key in the range.
    pub start: Key,
    /// The first key behind the range; `None`: it reaches to the last key.
    pub end: Option<Key>,
}

impl KeyRange {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self {
            start: Key::new(),
            end: None,
        }
    }

    /// The keys that begin with `prefix` (all, for an empty one).
    #[must_use]
    pub fn prefix(prefix: impl Into<Key>) -> Self {
        let start = prefix.into();
        let mut end = start.to_vec();
        // The first key behind all that begin with the prefix: its last byte that can grow, grown by one.
        while let Some(last) = end.pop() {
            if let Some(next) = last.checked_add(1) {
                end.push(next);
                return Self {
                    start,
                    end: Some(end.into()),
                };
            }
        }
        Self { start, end: None }
    }

    /// The keys from `start` up to, not including, `end`. Empty where `end <= start`.
    #[must_use]
    pub fn between(start: impl Into<Key>, end: impl Into<Key>) -> Self {
        Self {
            start: start.into(),
            end: Some(end.into()),
        }
    }

    /// Just this key.
    #[must_use]
    pub fn single(key: impl Into<Key>) -> Self {
        let start = key.into();
        let mut end = Vec::with_capacity(start.len() + 1);
        end.extend_from_slice(&start);
        end.push(0);
        Self {
            start,
            end: Some(end.into()),
        }
    }

    /// Whether `key` lies in it.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= self.start.as_ref() && self.end.as_ref().is_none_or(|end| key < end.as_ref())
    }

    /// Whether its bounds are short enough: at most one byte longer than the longest key, which is what the end of a
    /// [single](KeyRange::single) longest key needs.
    ///
    /// # Errors
    /// [`StorageError::LimitExceeded`] with [`Limit::Key`], for the longer of the bounds.
    pub fn check_bounds(&self, key_bytes_max: usize) -> Result<(), StorageError> {
        let longest = self.start.len().max(self.end.as_ref().map_or(0, Key::len));
        let max = key_bytes_max.saturating_add(1);
        if longest > max {
            return Err(StorageError::limit(Limit::Key, longest, max));
        }
        Ok(())
    }

    /// Whether every key lies in it.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.start.is_empty() && self.end.is_none()
    }

    /// Whether no key can lie in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.end.as_ref().is_some_and(|end| end <= &self.start)
    }
}

impl fmt::Debug for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.end.as_ref().map(|end| end.escape_ascii().to_string());
        write!(
            f,
            "[{}..{})",
            self.start.escape_ascii(),
            end.as_deref().unwrap_or("")
        )
    }
}

/// The checked name of a keyspace: `[a-z0-9][a-z0-9._-]{0,62}`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Keyspace(String);

impl Keyspace {
    /// The longest name, in bytes.
    pub const NAME_BYTES_MAX: usize = 63;

    /// Checks a name.
    ///
    /// # Errors
    /// [`StorageError::InvalidArgument`] or [`StorageError::LimitExceeded`], naming the rule that is broken.
    pub fn new(name: &str) -> Result<Self, StorageError> {
        if name.len() > Self::NAME_BYTES_MAX {
            return Err(StorageError::limit(
                Limit::KeyspaceName,
                name.len(),
                Self::NAME_BYTES_MAX,
            ));
        }
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let first_ok = name.bytes().next().is_some_and(plain);
        if !first_ok
            || !name
                .bytes()
                .all(|b| plain(b) || matches!(b, b'.' | b'_' | b'-'))
        {
            return Err(StorageError::invalid(format!(
                "keyspace name {name:?} is not of the form [a-z0-9][a-z0-9._-]{{0,62}}"
            )));
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Keyspace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Keyspace {
    type Err = StorageError;

    fn from_str(name: &str) -> Result<Self, StorageError> {
        Self::new(name)
    }
}

/// The unguessable id of a session; who has it may resume the session, so it is masked in `Debug`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionId(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_range_ends_behind_its_last_key() {
        assert_eq!(KeyRange::prefix("ab").end, Some(Key::from("ac")));
        assert_eq!(KeyRange::prefix(vec![b'a', 0xff]).end, Some(Key::from("b")));
        assert_eq!(KeyRange::prefix(vec![0xff, 0xff]).end, None);
        assert_eq!(KeyRange::prefix("").end, None);
    }

    #[test]
    fn a_bound_is_at_most_one_byte_longer_than_a_key() {
        let key = |bytes: usize| Key::from(vec![b'k'; bytes]);
        KeyRange::single(key(8)).check_bounds(8).unwrap();
        KeyRange::prefix(key(9)).check_bounds(8).unwrap();
        KeyRange::all().check_bounds(0).unwrap();
        for range in [
            KeyRange::between(key(10), key(1)),
            KeyRange::between(key(1), key(10)),
            KeyRange::single(key(9)),
        ] {
            let error = range.check_bounds(8).unwrap_err();
            assert_eq!(error, StorageError::limit(Limit::Key, 10, 9));
        }
    }

    #[test]
    fn keyspace_names_are_checked() {
        for bad in ["", "..", ".a", "a/b", "A", "ä", "-x", "a b"] {
            assert!(Keyspace::new(bad).is_err(), "{bad:?} was taken");
        }
        let error = Keyspace::new(&"x".repeat(300)).unwrap_err().to_string();
        assert!(error.contains("63") && error.contains("300"), "{error}");
        for good in ["a", "0", "mwdb.prefixes", "a-b_c.d", &"x".repeat(63)] {
            assert_eq!(Keyspace::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn positions_round_trip_as_text() {
        let position = Position {
            epoch: Epoch(0xabc),
            revision: Revision(77),
        };
        assert_eq!(position.to_string(), "0000000000000abc:77");
        assert_eq!(position.to_string().parse::<Position>().unwrap(), position);
        for bad in [
            "",
            "77",
            "abc:77",
            "0000000000000abc:",
            "+000000000000abc:1",
        ] {
            assert!(bad.parse::<Position>().is_err(), "{bad:?} was taken");
        }
    }
}
