//! Plans a commit: evaluates its checks, and looks up the entry that each operation replaces. The plan is a list of
//! steps, which `apply` turns into rows; a commit that is refused is refused here, and has written nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use storage_protocol::{
    Batch, CommitOptions, Expected, Key, Lifetime, Limit, Operation, Position, Result,
    StorageError, Value,
};

use super::apply::Numbered;
use super::group::Group;
use crate::engine::rocks::disk::Need;
use crate::engine::rocks::layout::{Head, NumberRow, Stored};
use crate::engine::rocks::sessions::SessionState;
use crate::engine::rocks::store::KeyspaceState;

/// What identifies a commit: its session's handle, its commit number, and its fingerprint if it may be retried.
#[derive(Clone, Copy)]
pub(super) struct Number {
    pub(super) handle: u64,
    pub(super) number: u64,
    pub(super) fingerprint: Option<u64>,
}

/// A signal, with its offset among the changes.
pub(super) type Signal = (usize, Key, Value);

/// What a commit does to one entry.
pub(super) struct Step {
    pub(super) key: Key,
    /// The key ends with the commit's revision, which is not known yet.
    pub(super) versionstamped: bool,
    pub(super) new: Stored,
    pub(super) value: Value,
    pub(super) old: Option<Head>,
    /// Bytes of the value that it replaces; 0 where there is none.
    pub(super) old_value_bytes: usize,
    pub(super) previous: Option<Value>,
}

impl Step {
    /// How many rows it writes.
    pub(super) fn rows(&self, indexed: bool) -> u64 {
        let lifetime = |stored: Stored| u64::from(stored != Stored::Forever);
        let old = self.old.map_or(0, |old| lifetime(old.stored));
        1 + u64::from(indexed) + lifetime(self.new) + old
    }
}

impl Group<'_> {
    pub(super) fn commit(
        &mut self,
        session: &Arc<SessionState>,
        number: Number,
        batch: Batch,
        options: CommitOptions,
    ) -> Result<Position> {
        let Number {
            handle,
            number,
            fingerprint,
        } = number;
        let repeatable = fingerprint.is_some();
        self.check_session(session, handle, number, repeatable)?;
        // Before anything that could refuse it: a commit that was executed must not be answered with "not executed".
        if repeatable && number <= session.executed.load(Ordering::Acquire) {
            return self.repeat(session, number, fingerprint);
        }
        self.store.check_poison()?;
        // Checked again, since it waited: commits before it may have taken the room.
        let ahead = self.batch.bytes() + self.taken;
        self.shared.disk.check(Need::of(&batch), ahead)?;
        if let Some(byte) = session.keyspace.rules().forbidden_byte {
            check_bytes(&batch, byte)?;
        }
        self.check(&session.keyspace, &batch)?;
        let (steps, signals) = self.plan(session, batch, &options)?;
        let unstored = repeatable && Self::is_unstored(session);
        let numbered = Some(Numbered {
            number,
            fingerprint,
            unstored,
        });
        let position = self.apply(session, numbered, options.label, steps, signals)?;
        session.executed.fetch_max(number, Ordering::AcqRel);
        if repeatable {
            let row = NumberRow {
                number,
                revision: position.revision,
                fingerprint,
            };
            self.executed.insert((session.id, number), row);
        }
        Ok(position)
    }

    fn check(&mut self, keyspace: &KeyspaceState, batch: &Batch) -> Result<()> {
        for check in &batch.checks {
            let actual = self.look(keyspace, &check.key)?.filter(Head::is_live);
            let actual = actual.map(|head| head.revision);
            let holds = match check.expected {
                Expected::Absent => actual.is_none(),
                Expected::At(revision) => actual == Some(revision),
            };
            if !holds {
                return Err(StorageError::CheckFailed {
                    key: check.key.clone(),
                    actual,
                });
            }
        }
        Ok(())
    }

    /// What each operation does, and the signals with their offsets among the changes.
    fn plan(
        &mut self,
        session: &SessionState,
        batch: Batch,
        options: &CommitOptions,
    ) -> Result<(Vec<Step>, Vec<Signal>)> {
        let mut steps = Vec::with_capacity(batch.operations.len());
        let mut signals = Vec::new();
        let mut bytes = batch.bytes();
        for operation in batch.operations {
            let (key, versionstamped, new, value) = match operation {
                Operation::Put {
                    key,
                    value,
                    lifetime,
                } => (key, false, self.stored(session, lifetime), value),
                Operation::PutStamped {
                    prefix,
                    value,
                    lifetime,
                } => (prefix, true, self.stored(session, lifetime), value),
                Operation::Remove { key } => {
                    (key, false, Stored::Tombstone(self.now), Value::new())
                }
                Operation::Signal { key, bytes } => {
                    signals.push((steps.len() + signals.len(), key, bytes));
                    continue;
                }
            };
            let old = if versionstamped {
                None
            } else {
                self.look_at(&session.keyspace, &key, options.with_previous)?
            };
            let live = old.as_ref().filter(|found| found.head.is_live());
            if matches!(new, Stored::Tombstone(_)) && live.is_none() {
                continue;
            }
            let previous = live
                .filter(|_| options.with_previous)
                .map(|found| found.value.clone());
            bytes += previous.as_ref().map_or(0, Bytes::len);
            steps.push(Step {
                key,
                versionstamped,
                new,
                value,
                old_value_bytes: old.as_ref().map_or(0, |found| found.value_bytes),
                old: old.map(|found| found.head),
                previous,
            });
        }
        let max = self.store.options.limits.message_bytes_max;
        if options.with_previous && bytes > max {
            return Err(StorageError::limit(Limit::Message, bytes, max));
        }
        Ok((steps, signals))
    }

    fn stored(&self, session: &SessionState, lifetime: Lifetime) -> Stored {
        match lifetime {
            Lifetime::Forever => Stored::Forever,
            Lifetime::TimeToLive(duration) => Stored::Until(self.now.after(duration)),
            Lifetime::Session => Stored::Session(session.id),
        }
    }
}

/// Refuses a batch with the byte that [`KeyspaceRules`](crate::engine::rocks::KeyspaceRules) forbid.
fn check_bytes(batch: &Batch, forbidden: u8) -> Result<()> {
    for operation in &batch.operations {
        let what = match operation {
            Operation::PutStamped { .. } => "a stamped key could contain",
            operation if operation.key().contains(&forbidden) => "this key contains",
            operation if operation.value().contains(&forbidden) => "this value contains",
            Operation::Put { .. } | Operation::Remove { .. } | Operation::Signal { .. } => continue,
        };
        let key = operation.key().escape_ascii();
        let byte = forbidden.escape_ascii();
        return Err(StorageError::invalid(format!(
            "key \"{key}\": {what} '{byte}', which separates items for some of the clients of this keyspace"
        )));
    }
    Ok(())
}
