//! What keyspaces hold: counted with each commit, written in its batch, and held against the quotas.
//!
//! A group writes one row for each keyspace whose entries it changes: among the rows of the first such commit, since the
//! last row of a commit is its record, and the last of a group should be too. What later commits of the group add is put
//! into that row's place before the write.

use std::collections::HashMap;
use std::sync::Arc;

use storage_protocol::{Keyspace, Limit, Result, Revision, StorageError};

use super::group::Group;
use super::plan::Step;
use crate::engine::Usage;
use crate::engine::rocks::SERVER;
use crate::engine::rocks::layout::{KeyspaceId, Stored, Table, UsageRow, usage_key};
use crate::engine::rocks::sessions::SessionState;
use crate::engine::rocks::store::{KeyspaceState, RowBatch};

/// What a keyspace holds after the group's commits so far.
pub(super) struct Counted {
    keyspace: Arc<KeyspaceState>,
    now: UsageRow,
    /// As the batch has it.
    written: UsageRow,
    /// Where the batch has it.
    place: usize,
}

/// How a commit changes what its keyspace holds.
#[derive(Clone, Copy)]
pub(super) struct Change {
    entries: i64,
    bytes: i64,
}

impl Change {
    /// Of steps whose keys are complete.
    pub(super) fn of(steps: &[Step]) -> Self {
        let mut change = Self {
            entries: 0,
            bytes: 0,
        };
        for step in steps {
            if !matches!(step.new, Stored::Tombstone(_)) {
                change.entries += 1;
                change.bytes += length(step.key.len() + step.value.len());
            }
            if step.old.is_some_and(|old| old.is_live()) {
                change.entries -= 1;
                change.bytes -= length(step.key.len() + step.old_value_bytes);
            }
        }
        change
    }

    fn apply(self, usage: Usage) -> Usage {
        Usage {
            entries: usage.entries.saturating_add_signed(self.entries),
            bytes: usage.bytes.saturating_add_signed(self.bytes),
        }
    }
}

fn length(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// The server's own keyspaces have no quotas: who is locked out of them could not raise any.
fn has_quotas(keyspace: &Keyspace) -> bool {
    let name = keyspace.as_str();
    name != "system" && !name.starts_with("system.")
}

impl Group<'_> {
    /// What a keyspace holds after the group's commits so far.
    fn usage(&self, keyspace: &KeyspaceState) -> Usage {
        let counted = self.id(keyspace).and_then(|id| self.counted.get(&id));
        counted.map_or_else(|| keyspace.usage(), |counted| counted.now.usage)
    }

    /// Whether the group has a row for what this keyspace holds.
    pub(super) fn is_counted(&self, keyspace: &KeyspaceState) -> bool {
        self.id(keyspace)
            .is_some_and(|id| self.counted.contains_key(&id))
    }

    /// Refuses a commit that would raise what its keyspace holds above a quota. What raises nothing is always taken: else
    /// nobody could come below the quota again.
    pub(super) fn check_quotas(&self, session: &SessionState, change: Change) -> Result<()> {
        let Some(limits) = &self.stored_limits else {
            return Ok(());
        };
        let keyspace = &session.keyspace;
        if *session.principal == *SERVER || !has_quotas(&keyspace.name) {
            return Ok(());
        }
        let before = self.usage(keyspace);
        let after = change.apply(before);
        let max = limits.stored_max(&keyspace.name);
        for (limit, before, after, max) in [
            (
                Limit::KeyspaceEntries,
                before.entries,
                after.entries,
                max.entries,
            ),
            (Limit::KeyspaceBytes, before.bytes, after.bytes, max.bytes),
        ] {
            if let Some(max) = max
                && after > before
                && after > max
            {
                return Err(StorageError::QuotaExceeded { limit, max });
            }
        }
        Ok(())
    }

    /// Counts what a commit changed. Its first row in a group is put into the batch.
    pub(super) fn count(
        &mut self,
        keyspace: &Arc<KeyspaceState>,
        id: KeyspaceId,
        change: Change,
        revision: Revision,
    ) {
        if let Some(counted) = self.counted.get_mut(&id) {
            counted.now.usage = change.apply(counted.now.usage);
            counted.now.at = revision;
            return;
        }
        let row = UsageRow {
            usage: change.apply(keyspace.usage()),
            at: revision,
        };
        self.put(Table::Meta, &usage_key(id), &row.encode());
        let counted = Counted {
            keyspace: keyspace.clone(),
            now: row,
            written: row,
            place: self.batch.bytes() - UsageRow::BYTES,
        };
        self.counted.insert(id, counted);
    }
}

/// Brings the rows of a group's batch to what later commits of the group have made of them.
///
/// # Errors
/// The batch does not have the rows where they were put. It must not be written.
pub(super) fn bring_counts(
    batch: &mut RowBatch,
    counted: &HashMap<KeyspaceId, Counted>,
) -> std::result::Result<(), String> {
    for counted in counted.values() {
        if counted.now != counted.written {
            batch.replace(
                counted.place,
                &counted.written.encode(),
                &counted.now.encode(),
            )?;
        }
    }
    Ok(())
}

/// Tells everybody what the group's keyspaces hold, once it is durable.
pub(super) fn publish(counted: HashMap<KeyspaceId, Counted>) {
    for counted in counted.into_values() {
        counted.keyspace.set_usage(counted.now.usage);
    }
}

#[cfg(test)]
mod tests;
