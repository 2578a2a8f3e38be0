//! A group: commits that become durable together, in one batch. Each sees the effects of those before it in the group.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use quick_cache::DefaultHashBuilder;
use storage_protocol::{Key, Position, Result, Revision, SessionId, UnixMillis, Value};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::compact::content_bytes;
use super::plan::Number;
use super::replaced::Replaced;
use super::task::{Task, Work};
use super::usage::Counted;
use crate::engine::StoredLimits;
use crate::engine::rocks::layout::{
    Head, KeyspaceId, KeyspaceRow, NumberRow, Table, write_entry_key,
};
use crate::engine::rocks::store::{CachedEntry, KeyspaceState, RowBatch, Store};
use crate::engine::rocks::{EngineShared, layout};
use crate::feed::FeedCommit;

/// Sequence numbers that a group may take before it is written; a single commit may take more.
const GROUP_SEQUENCE_NUMBERS_MAX: u64 = 64 * 1024;

/// Bytes that a group may have before it is written. Previous values count here, which its requests do not contain.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// With so many rows of the index that small commits have replaced, the next group deletes them, which takes it 0.5 ms;
/// fewer go within a second. Readers of the index pass over them. A commit that replaces more than this deletes its own.
pub(super) const REPLACED_MAX: usize = 1024;

/// What a group leaves to the next one.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub(super) replaced: Replaced,
    /// Empty; its memory is used again.
    pub(super) batch: RowBatch,
}

/// Commits that become durable together.
pub(crate) struct Group<'a> {
    pub(crate) shared: &'a EngineShared,
    pub(crate) store: &'a Store,
    pub(super) batch: RowBatch,
    /// The store's revision before the group.
    pub(crate) base: u64,
    /// Sequence numbers taken so far.
    pub(crate) sequence_numbers: u64,
    pub(crate) now: UnixMillis,
    /// Bytes of the work in progress, as it was queued, and of the keys and values of its operations if it is a commit.
    pub(super) taken: usize,
    pub(super) content: usize,
    /// Rows of entries as the group's commits leave them, for later ones, and then for the entry cache.
    pub(super) overlay: HashMap<Vec<u8>, Overlaid, DefaultHashBuilder>,
    /// What was executed in this group, by peers' commit numbers.
    pub(crate) executed: HashMap<(SessionId, u64), NumberRow>,
    /// The fences of handles whose sessions newer generations took over.
    pub(crate) fenced: Vec<CancellationToken>,
    pub(super) records: Vec<FeedCommit>,
    pub(super) made: Vec<(Arc<KeyspaceState>, KeyspaceRow)>,
    pub(super) dues: Vec<UnixMillis>,
    /// What the keyspaces hold whose entries the group has changed.
    pub(super) counted: HashMap<KeyspaceId, Counted>,
    /// The quotas that its commits are held against.
    pub(super) stored_limits: Option<Arc<dyn StoredLimits>>,
    /// Rows of the index that commits have replaced and that are still there: of this group, and of those before.
    pub(super) replaced: Replaced,
    /// Buffers for the key of a row, and for what an entry's row has before the value.
    pub(super) row_key: Vec<u8>,
    pub(super) head: Vec<u8>,
    pub(super) answers: Vec<(oneshot::Sender<Result<Position>>, Result<Position>)>,
}

/// A row of an entry as a group's commits leave it.
pub(super) enum Overlaid {
    /// As the entry cache keeps it.
    Entry(CachedEntry),
    /// The entry cache does not keep its value.
    Large { head: Head, value: Value },
    /// There is none any more.
    Gone,
}

/// An entry, or a tombstone, as a commit finds it.
pub(super) struct Found {
    pub(super) head: Head,
    pub(super) value_bytes: usize,
    /// Empty unless it was wanted.
    pub(super) value: Value,
}

impl<'a> Group<'a> {
    pub(crate) fn new(shared: &'a EngineShared) -> Self {
        let store: &Store = &shared.store;
        Self {
            shared,
            store,
            batch: RowBatch::default(),
            base: store.db.latest_sequence_number(),
            sequence_numbers: 0,
            now: store.now(),
            taken: 0,
            content: 0,
            overlay: HashMap::default(),
            executed: HashMap::new(),
            fenced: Vec::new(),
            records: Vec::new(),
            made: Vec::new(),
            dues: Vec::new(),
            counted: HashMap::new(),
            stored_limits: shared.stored_limits(),
            replaced: Replaced::default(),
            row_key: Vec::new(),
            head: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// A group that looks at the clock first, and takes over what commits before have left to do.
    pub(super) fn begin(shared: &'a EngineShared, left: Left) -> Self {
        let mut group = Self {
            batch: left.batch,
            ..Self::new(shared)
        };
        group.follow_clock();
        group.replaced = left.replaced;
        if group.replaced.len() >= REPLACED_MAX {
            group.delete_replaced();
        }
        group
    }

    pub(super) fn is_full(&self) -> bool {
        self.sequence_numbers >= GROUP_SEQUENCE_NUMBERS_MAX || self.batch.bytes() >= GROUP_BYTES_MAX
    }

    pub(crate) fn take(&mut self, work: Work) {
        let Work {
            session,
            handle,
            task,
            reply,
            bytes,
        } = work;
        self.taken = bytes;
        self.content = match &task {
            Task::Commit { batch, .. } => content_bytes(batch),
            _ => 0,
        };
        let answer = match task {
            Task::Commit {
                number,
                fingerprint,
                batch,
                options,
            } => {
                let number = Number {
                    handle,
                    number,
                    fingerprint,
                };
                self.commit(&session, number, batch, options)
            }
            Task::Repeat {
                number,
                fingerprint,
            } => self
                .check_session(&session, handle, number, true)
                .and_then(|()| self.repeat(&session, number, fingerprint)),
            Task::Remove { label, entries } => self.remove(&session, label, entries),
            Task::Sweep { label, sweep } => self.sweep(&session, label, sweep),
            Task::Correct { label, entries } => self.correct(&session, label, entries),
            Task::Look => {
                self.delete_replaced();
                self.here()
            }
            Task::ForgetStretches { above } => {
                self.forget_stretches(&above);
                self.here()
            }
            Task::Forget {
                tombstones,
                compacted,
            } => self.forget(&session.keyspace, tombstones, compacted),
            Task::Attach {
                handle,
                generation,
                verdict,
            } => self.attach(&session, handle, generation, &verdict),
            Task::Lose => self.lose(&session, handle),
            Task::Acknowledge => self.acknowledge(&session, handle),
            Task::ExpireKeys { since } => self.expire_keys(&session, since),
            Task::ForgetSession { since, records } => {
                self.forget_session(&session, since, &records)
            }
            Task::End => self.end(&session, handle),
        };
        self.answers.push((reply, answer));
    }

    /// The answer to the last work.
    #[cfg(test)]
    pub(crate) fn last_answer(&self) -> Result<Position> {
        self.answers.last().expect("a work was taken").1.clone()
    }

    /// The store's position after what the group did so far.
    pub(crate) fn here(&self) -> Result<Position> {
        Ok(self.store.at(Revision(self.base + self.sequence_numbers)))
    }

    /// The present state of a key: in the group, else in the store.
    pub(super) fn look(&mut self, keyspace: &KeyspaceState, key: &Key) -> Result<Option<Head>> {
        Ok(self.look_at(keyspace, key, false)?.map(|found| found.head))
    }

    /// The same with its value, if that is wanted, and how long that is.
    pub(super) fn look_at(
        &mut self,
        keyspace: &KeyspaceState,
        key: &Key,
        value: bool,
    ) -> Result<Option<Found>> {
        let Some(id) = self.id(keyspace) else {
            return Ok(None);
        };
        let mut row_key = std::mem::take(&mut self.row_key);
        write_entry_key(&mut row_key, id, key);
        let found = self.look_at_row(&row_key, value);
        self.row_key = row_key;
        found
    }

    fn look_at_row(&self, row_key: &[u8], value: bool) -> Result<Option<Found>> {
        match self.overlay.get(row_key) {
            Some(Overlaid::Entry(entry)) => return found(entry, value),
            Some(Overlaid::Large { head, value }) => {
                return Ok(Some(Found {
                    head: *head,
                    value_bytes: value.len(),
                    value: value.clone(),
                }));
            }
            Some(Overlaid::Gone) => return Ok(None),
            None => {}
        }
        if let Some(entry) = self.store.entry_cache.get(row_key)
            && let Some(found) = found(&entry, value)?
        {
            return Ok(Some(found));
        }
        let Some(row) = self.store.row(Table::Entries, row_key)? else {
            return Ok(None);
        };
        let (head, at) = layout::parse_entry_value(&row)?;
        Ok(Some(Found {
            head,
            value_bytes: row.len() - at,
            value: if value {
                Bytes::copy_from_slice(&row[at..])
            } else {
                Value::new()
            },
        }))
    }

    pub(super) fn indexed(&self) -> bool {
        !self.store.options.danger_without_index
    }

    pub(super) fn id(&self, keyspace: &KeyspaceState) -> Option<KeyspaceId> {
        let made = self
            .made
            .iter()
            .find(|(made, _)| made.name == keyspace.name);
        made.map(|(_, row)| row.id).or_else(|| keyspace.id())
    }

    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &[u8]) {
        self.put_parts(table, key, &[value]);
    }

    /// Puts a row whose value is given in parts; returns the value in one piece.
    pub(super) fn put_parts(&mut self, table: Table, key: &[u8], value: &[&[u8]]) -> &[u8] {
        self.sequence_numbers += 1;
        self.batch.put(&self.store.row_heads, table, key, value)
    }

    pub(crate) fn delete(&mut self, table: Table, key: &[u8]) {
        self.batch.delete(&self.store.row_heads, table, key);
        self.sequence_numbers += 1;
    }
}

/// What a commit finds in the cache; `None`: it wants the value, which is not kept.
fn found(entry: &CachedEntry, wants_value: bool) -> Result<Option<Found>> {
    let (head, value_bytes, value) = entry.parts()?;
    let value = match (wants_value, value) {
        (true, None) => return Ok(None),
        (true, Some(value)) => Value::copy_from_slice(value),
        (false, _) => Value::new(),
    };
    Ok(Some(Found {
        head,
        value_bytes,
        value,
    }))
}
