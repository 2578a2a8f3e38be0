//! A commit as its writer states it: checks, then operations.
//!
//! [`Batch::validate`] is the one place where a batch is checked by the limits; the client calls it before it sends
//! and every engine before it queues, so both refuse the same batches with the same words.

use std::collections::HashSet;

use crate::{Key, Lifetime, Limit, Limits, Result, Revision, StorageError, Value};

/// What a check expects of a key, just before the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It has no value (never put, removed or expired).
    Absent,
    /// Its value was written by the commit with this revision.
    At(Revision),
}

/// One condition of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// The key; it need not be one that the commit writes.
    pub key: Key,
    /// What must hold.
    pub expected: Expected,
}

/// One operation of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Sets a key's value.
    Put {
        /// The key.
        key: Key,
        /// Its new value.
        value: Value,
        /// How long it lives.
        lifetime: Lifetime,
    },
    /// Removes a key. Removing an absent key changes nothing and is not told to watchers.
    Remove {
        /// The key.
        key: Key,
    },
    /// Puts under the key `prefix` + this commit's revision (8 bytes, big-endian): unique, and ordered by commit.
    PutStamped {
        /// What the key begins with.
        prefix: Key,
        /// The value.
        value: Value,
        /// How long it lives.
        lifetime: Lifetime,
    },
    /// Tells `Every` watchers of `key` these bytes, and stores nothing.
    Signal {
        /// The key whose watchers are told.
        key: Key,
        /// What they are told.
        bytes: Value,
    },
}

impl Operation {
    /// The key, or the prefix of a stamped put.
    #[must_use]
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Remove { key } | Self::Signal { key, .. } => key,
            Self::PutStamped { prefix, .. } => prefix,
        }
    }

    /// The bytes it carries besides its key.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        match self {
            Self::Put { value, .. } | Self::PutStamped { value, .. } => value,
            Self::Signal { bytes, .. } => bytes,
            Self::Remove { .. } => &[],
        }
    }

    /// The bytes of its key, as it will be, and value.
    fn bytes(&self) -> usize {
        let stamp = match self {
            Self::PutStamped { .. } => 8,
            Self::Put { .. } | Self::Remove { .. } | Self::Signal { .. } => 0,
        };
        self.key().len() + stamp + self.value().len()
    }

    fn lifetime(&self) -> Lifetime {
        match self {
            Self::Put { lifetime, .. } | Self::PutStamped { lifetime, .. } => *lifetime,
            Self::Remove { .. } | Self::Signal { .. } => Lifetime::Forever,
        }
    }
}

/// An atomic batch within one keyspace: all checks hold and all operations happen, or nothing does.
///
/// ```
/// use storage_protocol::{Batch, Revision};
/// let batch = Batch::new().check_revision("a", Revision(7)).put("a", "1").remove("b");
/// assert_eq!(batch.operations.len(), 2);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// What must hold just before the commit.
    pub checks: Vec<Check>,
    /// What is done, in this order. Each key at most once.
    pub operations: Vec<Operation>,
}

impl Batch {
    /// What each check and operation counts beside its key and value: for lengths, lifetime and the like.
    pub const ITEM_BYTES: usize = 32;

    /// What a commit counts beside its items: for label, principal and the like.
    pub const BASE_BYTES: usize = 1024;

    /// An empty batch. Committing one with checks only tests them, and still takes a revision.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Demands that `key` was last written at `revision`.
    #[must_use]
    pub fn check_revision(mut self, key: impl Into<Key>, revision: Revision) -> Self {
        self.checks.push(Check {
            key: key.into(),
            expected: Expected::At(revision),
        });
        self
    }

    /// Demands that `key` is absent.
    #[must_use]
    pub fn check_absent(mut self, key: impl Into<Key>) -> Self {
        self.checks.push(Check {
            key: key.into(),
            expected: Expected::Absent,
        });
        self
    }

    /// Puts a value that lives for ever.
    #[must_use]
    pub fn put(self, key: impl Into<Key>, value: impl Into<Value>) -> Self {
        self.put_with(key, value, Lifetime::Forever)
    }

    /// Puts a value with a lifetime.
    #[must_use]
    pub fn put_with(
        mut self,
        key: impl Into<Key>,
        value: impl Into<Value>,
        lifetime: Lifetime,
    ) -> Self {
        self.operations.push(Operation::Put {
            key: key.into(),
            value: value.into(),
            lifetime,
        });
        self
    }

    /// Puts under `prefix` + this commit's revision (8 bytes, big-endian).
    #[must_use]
    pub fn put_stamped(
        mut self,
        prefix: impl Into<Key>,
        value: impl Into<Value>,
        lifetime: Lifetime,
    ) -> Self {
        let (prefix, value) = (prefix.into(), value.into());
        self.operations.push(Operation::PutStamped {
            prefix,
            value,
            lifetime,
        });
        self
    }

    /// Removes a key.
    #[must_use]
    pub fn remove(mut self, key: impl Into<Key>) -> Self {
        self.operations.push(Operation::Remove { key: key.into() });
        self
    }

    /// Tells `Every` watchers of `key`, and stores nothing.
    #[must_use]
    pub fn signal(mut self, key: impl Into<Key>, bytes: impl Into<Value>) -> Self {
        self.operations.push(Operation::Signal {
            key: key.into(),
            bytes: bytes.into(),
        });
        self
    }

    /// What it counts towards the message limit: the bytes of all keys and values, [`Batch::ITEM_BYTES`] for each check
    /// and operation, the eight bytes that each stamped key grows by, and [`Batch::BASE_BYTES`]. That is a bound on what the
    /// wire adds, both to the commit and to what its watchers are told, so that what passes here fits in a message. The
    /// values before come on top of it, where a commit asks for them.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let checks = self.checks.iter().map(|check| check.key.len());
        let operations = self.operations.iter().map(Operation::bytes);
        let items = self.checks.len() + self.operations.len();
        let content = checks.chain(operations).sum::<usize>();
        Self::BASE_BYTES + items * Self::ITEM_BYTES + content
    }

    /// Checks the batch by the limits and by itself.
    ///
    /// # Errors
    /// [`StorageError::LimitExceeded`] with the limit's name, or [`StorageError::InvalidArgument`] for a key that
    /// stands twice, an empty key or a time to live under a millisecond.
    pub fn validate(&self, options: &CommitOptions, limits: &Limits) -> Result<()> {
        let check_max = |limit, actual, max| {
            if actual > max {
                Err(StorageError::limit(limit, actual, max))
            } else {
                Ok(())
            }
        };
        let max = limits.operations_per_commit_max;
        check_max(Limit::OperationsPerCommit, self.operations.len(), max)?;
        check_max(Limit::OperationsPerCommit, self.checks.len(), max)?;
        check_max(Limit::Message, self.bytes(), limits.message_bytes_max)?;
        if let Some(label) = &options.label {
            check_max(Limit::Label, label.len(), Limits::LABEL_BYTES)?;
        }
        for check in &self.checks {
            check_max(Limit::Key, check.key.len(), limits.key_bytes_max)?;
        }
        let mut seen = HashSet::with_capacity(self.operations.len());
        for operation in &self.operations {
            let stamped = matches!(operation, Operation::PutStamped { .. });
            let key = operation.key();
            let key_bytes = key.len() + if stamped { 8 } else { 0 };
            if key_bytes == 0 {
                return Err(StorageError::invalid("a key has at least one byte"));
            }
            check_max(Limit::Key, key_bytes, limits.key_bytes_max)?;
            check_max(
                Limit::Value,
                operation.value().len(),
                limits.value_bytes_max,
            )?;
            if let Lifetime::TimeToLive(duration) = operation.lifetime()
                && duration.as_millis() == 0
            {
                return Err(StorageError::invalid(
                    "a time to live is at least one millisecond",
                ));
            }
            if !seen.insert((stamped, key)) {
                return Err(StorageError::invalid(format!(
                    "key \"{}\" stands twice in one commit",
                    key.escape_ascii()
                )));
            }
        }
        Ok(())
    }
}

/// How a batch is committed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommitOptions {
    /// A word for watchers on what this commit is, at most [`Limits::LABEL_BYTES`]. Default none.
    pub label: Option<String>,
    /// Whether the values before go into the change that watchers get. They count towards the message limit.
    pub with_previous: bool,
}

impl CommitOptions {
    /// With a label.
    #[must_use]
    pub fn labelled(label: impl Into<String>) -> Self {
        Self {
            label: Some(label.into()),
            ..Self::default()
        }
    }

    /// With the values before.
    #[must_use]
    pub fn with_previous(mut self) -> Self {
        self.with_previous = true;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_named() {
        let limits = Limits {
            key_bytes_max: 4,
            value_bytes_max: 4,
            ..Limits::default()
        };
        let validate = |batch: Batch| batch.validate(&CommitOptions::default(), &limits);
        let text = |batch: Batch| validate(batch).unwrap_err().to_string();
        assert!(text(Batch::new().put("12345", "")).contains("key_bytes_max is 4"));
        assert!(text(Batch::new().put("1", "12345")).contains("value_bytes_max is 4"));
        assert!(text(Batch::new().check_absent("12345")).contains("key_bytes_max"));
        assert!(text(Batch::new().put_stamped("", "", Lifetime::Forever)).contains("this has 8"));
        assert!(text(Batch::new().put("", "")).contains("at least one byte"));
        assert!(text(Batch::new().put("a", "").remove("a")).contains("\"a\" stands twice"));
        let ttl = Lifetime::TimeToLive(std::time::Duration::from_micros(1));
        assert!(text(Batch::new().put_with("a", "", ttl)).contains("millisecond"));
        assert!(validate(Batch::new().check_absent("a").put("a", "").remove("b")).is_ok());
        let many = (0..10_001u32).fold(Batch::new(), |batch, n| {
            batch.remove(n.to_be_bytes().to_vec())
        });
        assert!(text(many).contains("operations_per_commit_max is 10000, this has 10001"));
    }

    /// The longest that the wire makes of each kind of item.
    #[test]
    fn what_watchers_are_told_of_a_commit_is_no_longer_than_its_measure() {
        use crate::native::encode_commit_record;
        use crate::{Change, ChangeKind, CommitRecord, EntryLifetime, UnixMillis};

        let until = EntryLifetime::Until(UnixMillis(u64::MAX));
        let ttl = Lifetime::TimeToLive(std::time::Duration::from_millis(u64::MAX));
        let old = Value::from(vec![b'o'; 20_000]);
        let mut changes = Vec::new();
        let mut batch = Batch::new();
        let mut previous = 0;
        for n in 0..2_000_u32 {
            // Lengths of one to four bytes, which count themselves in one to three.
            let mut key = n.to_be_bytes().to_vec();
            let key_bytes = [4, 130, 4_096].into_iter().nth(n as usize % 3).unwrap();
            let value_bytes = [0, 130, 20_000, 70_000].into_iter().nth(n as usize % 4);
            key.resize(key_bytes, b'k');
            let value = Value::from(vec![b'v'; value_bytes.unwrap()]);
            let key = Key::from(key);
            let put = |key: &Key| Change {
                key: key.clone(),
                kind: ChangeKind::Put {
                    value: value.clone(),
                    lifetime: until,
                    previous: Some(old.clone()),
                },
            };
            let (next, change) = match n % 5 {
                0 => (
                    batch.remove(key.clone()),
                    ChangeKind::Removed {
                        previous: Some(old.clone()),
                    },
                ),
                1 => {
                    let bytes = value.clone();
                    (
                        batch.signal(key.clone(), bytes.clone()),
                        ChangeKind::Signalled { bytes },
                    )
                }
                2 => {
                    let stamped = Key::from([&key[..], &[0xff; 8]].concat());
                    (
                        batch.put_stamped(key.clone(), value.clone(), ttl),
                        put(&stamped).kind,
                    )
                }
                _ => (
                    batch.put_with(key.clone(), value.clone(), ttl),
                    put(&key).kind,
                ),
            };
            batch = next;
            let key = if n % 5 == 2 {
                [&key[..], &[0xff; 8]].concat().into()
            } else {
                key
            };
            previous += if n % 5 == 1 { 0 } else { old.len() };
            changes.push(Change { key, kind: change });
        }
        let label = "l".repeat(Limits::LABEL_BYTES);
        let record = CommitRecord::new(
            Revision(u64::MAX),
            UnixMillis(u64::MAX),
            Some(label.clone()),
            "p".repeat(256),
            changes,
        );
        let told = encode_commit_record(&record).len();
        assert!(
            told <= batch.bytes() + previous,
            "{told} of {}",
            batch.bytes() + previous
        );
        // Small items show what the wire adds to each.
        let small = (0..10_000_u32).fold(Batch::new(), |batch, n| {
            batch.put_with(n.to_be_bytes().to_vec(), "", ttl)
        });
        let changes = small.operations.iter().map(|operation| Change {
            key: operation.key().clone(),
            kind: ChangeKind::Put {
                value: Value::new(),
                lifetime: until,
                previous: Some(Value::new()),
            },
        });
        let record = CommitRecord::new(
            Revision(u64::MAX),
            UnixMillis(u64::MAX),
            Some(label),
            "p".repeat(256),
            changes.collect(),
        );
        assert!(encode_commit_record(&record).len() <= small.bytes());
    }
}
